//! The model of a SQLite database in WAL mode: a main file, a WAL of real bytes, the wal-index
//! header, read marks, and the history of everything that was ever committed.

mod log;
mod power;
mod write;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use walferry::local::state::Fingerprint;
use walferry::ltx::{self, DatabaseChecksum};
use walferry::units::{PageSize, Pgno, Salts};
use walferry::wal::WalIndex;

use crate::rng::Rng;

/// The smallest page that SQLite knows.
const SMALL: u32 = 512;
const PAGES_MAX: u32 = 12;

pub type Page = Rc<Vec<u8>>;
/// All pages of the database in one state.
pub type State = Vec<Page>;
/// A WAL's file: whoever has it open keeps it, also when its name is gone.
pub type WalFile = Rc<RefCell<Vec<u8>>>;

pub fn checksum(state: &State) -> DatabaseChecksum {
    let mut sum = DatabaseChecksum::EMPTY;
    for (pgno, page) in (1..).zip(state) {
        sum.toggle(ltx::checksum::page(pgno, page));
    }
    sum
}

/// Who committed: a process with walferry and its life, or nobody that tells.
pub type Author = Option<(usize, u64)>;

pub struct Commit {
    pub state: State,
    pub at: u64,
    pub by: Author,
}

/// What a read transaction keeps in place.
#[derive(Clone, Copy)]
pub struct ReadMark {
    /// It reads the main file alone: then the WAL may be begun anew, and nothing be checkpointed.
    pub file_only: bool,
    pub frame: u32,
}

/// Whose read transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ReaderId {
    /// The sealer's walk.
    Scan(usize),
    Application,
}

pub struct Database {
    id: u64,
    page_size: PageSize,
    main: State,
    /// Which file it is, and its modification time.
    inode: u64,
    version: i64,
    wal: Option<WalFile>,
    /// What of the WAL is on the disk for good; `None` when there is none.
    wal_synced: Option<Vec<u8>>,
    /// The wal-index as it was written last; `None` while nobody has the database open.
    index: Option<WalIndex>,
    /// A writer died while it wrote the header of the wal-index: nobody can read it until the next
    /// connection that needs it recovers.
    torn: bool,
    /// Salts and count of restarts that the next header will have.
    next_salts: Option<(Salts, u32)>,
    /// Frames up to this one are in the main file.
    backfilled: u32,
    sums: log::Sums,
    /// The writer that began the WAL anew goes on with it.
    keeps_salts: bool,
    /// Last frame that was written, committed or not.
    cut: u32,
    pub history: Vec<Commit>,
    by_sum: HashMap<u64, Vec<usize>>,
    fill: u64,
    pub readers: BTreeMap<ReaderId, ReadMark>,
    /// Each commit waits for the disk (`synchronous=FULL`).
    pub synchronous: bool,
    /// SQLite is older than 3.50.2: now and then it writes frames without salts and checksum.
    pub leaves_unmarked: bool,
    /// Size of a sector, where writers pad to the end of one (`psow=0` and `synchronous=FULL`); 0 if none
    /// does.
    pub sector: u64,
    /// What those writers do is drawn here.
    pub sector_rng: Rng,
    /// Page of the last frame that ended a transaction.
    ended_with: Pgno,
    /// The first frame of the WAL without salts and checksum.
    unmarked_from: Option<u32>,
    /// Recovery may have given a state that nobody committed as such: such frames were cut off, or a
    /// transaction whose writer died came back.
    patched: bool,
    /// Recoveries that took commits away.
    pub cut_off: u64,
}

impl Database {
    /// A database of one page or more, made without a WAL.
    pub fn new(id: u64, state: Option<State>) -> Database {
        let size =
            state.as_ref().and_then(|state| state.first()).map_or(SMALL as usize, |p| p.len());
        let mut db = Database {
            id,
            page_size: PageSize::new(size as u32).unwrap(),
            main: Vec::new(),
            inode: id << 32,
            version: 1,
            wal: None,
            wal_synced: None,
            index: None,
            torn: false,
            next_salts: None,
            backfilled: 0,
            sums: (0, 0),
            keeps_salts: false,
            cut: 0,
            history: Vec::new(),
            by_sum: HashMap::new(),
            fill: 0,
            readers: BTreeMap::new(),
            synchronous: false,
            leaves_unmarked: false,
            sector: 0,
            sector_rng: Rng::new(id),
            ended_with: 1,
            unmarked_from: None,
            patched: false,
            cut_off: 0,
        };
        let pages = state.unwrap_or_else(|| vec![db.new_page()]);
        db.main.clone_from(&pages);
        db.remember(pages, 0, None);
        db
    }

    fn new_page(&mut self) -> Page {
        self.fill += 1;
        let mut page = vec![0; self.page_size.bytes()];
        page[..8].copy_from_slice(&self.id.to_be_bytes());
        page[8..16].copy_from_slice(&self.fill.to_be_bytes());
        page[16..24].copy_from_slice(&Rng::new(self.fill << 1 | self.id).next().to_be_bytes());
        Rc::new(page)
    }

    fn remember(&mut self, state: State, at: u64, by: Author) {
        let number = self.history.len();
        self.by_sum.entry(checksum(&state).get()).or_default().push(number);
        self.history.push(Commit { state, at, by });
    }

    pub fn now(&self) -> &State {
        &self.history[self.head()].state
    }

    /// Number of the newest commit.
    pub fn head(&self) -> usize {
        self.history.len() - 1
    }

    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The first commit from a number on that left exactly these pages. A file that was replaced by
    /// an older copy, or that lost commits with the power, has a content twice.
    pub fn commit_of(&self, state: &State, from: usize) -> Option<usize> {
        let numbers = self.by_sum.get(&checksum(state).get())?;
        numbers.iter().copied().find(|n| *n >= from && self.history[*n].state == *state)
    }

    /// Opens the WAL's file as it is now.
    pub fn open_wal(&self) -> Option<WalFile> {
        self.wal.clone()
    }

    /// Pages of the main file.
    pub fn main_len(&self) -> u32 {
        self.main.len() as u32
    }

    pub fn main_page(&self, pgno: Pgno) -> Option<&Page> {
        self.main.get(pgno as usize - 1)
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let len = self.main.len() as u64 * u64::from(self.page_size.get());
        Fingerprint { file: (1, self.inode), len, modified: (self.version, 0), changed: None }
    }

    /// The wal-index as whoever looks at it reads it.
    pub fn index(&self) -> Option<WalIndex> {
        self.index.filter(|_| !self.torn)
    }

    fn frames(&self) -> u32 {
        self.index.map_or(0, |index| index.max_frame)
    }

    /// Whether a writer would begin the WAL anew now, if nobody hinders it.
    pub fn may_begin_anew(&self) -> bool {
        self.frames() > 0
            && !self.torn
            && self.backfilled == self.frames()
            && self.readers.values().all(|mark| mark.file_only)
    }

    /// A connection is there: it recovers if the wal-index is new, or torn.
    pub fn open(&mut self, at: u64) {
        if self.index().is_none() {
            self.recover(at);
        }
    }

    /// Nobody has the database open any more, and nobody closed it in peace: the wal-index is gone.
    pub fn abandon(&mut self) {
        self.mark_what_was_copied();
        self.readers.clear();
        self.index = None;
        self.torn = false;
    }

    /// The wal-index is built again from the WAL, and counts commits from 0 (`walIndexRecover`).
    fn recover(&mut self, at: u64) {
        self.mark_what_was_copied();
        self.unmarked_from = None;
        self.backfilled = 0;
        self.torn = false;
        self.keeps_salts = false;
        let found = self.wal.as_ref().and_then(|wal| log::recover(&wal.borrow()));
        self.next_salts = found.as_ref().map(|found| (found.salts, found.restarts));
        let mut index = WalIndex {
            change: 0,
            max_frame: 0,
            page_count: 0,
            page_size: PageSize::SMALLEST,
            frame_checksum: (0, 0),
            salts: Salts(0, 0),
        };
        if let Some(found) = found {
            index.salts = found.salts;
            if let Some((max_frame, page_count, sums)) = found.last {
                self.sums = sums;
                let (page_size, frame_checksum) = (found.page_size, sums);
                index = WalIndex { max_frame, page_count, page_size, frame_checksum, ..index };
            }
        }
        self.index = Some(index);
        self.cut = index.max_frame;
        let pages = index.page_count as usize;
        if self.patched && self.main.len() < pages {
            // The file ends before pages that were in frames which are cut off: they read as zeros.
            self.main.resize(pages, Rc::new(vec![0; self.page_size.bytes()]));
        }
        let now = self.content();
        if now != *self.now() {
            let known = self.commit_of(&now, 0).is_some();
            assert!(known || self.patched, "SQLite's own recovery gives a committed state");
            self.cut_off += 1;
            self.remember(now, at, None);
        }
    }

    /// A read transaction begins.
    pub fn read(&mut self, who: ReaderId) {
        let frame = self.frames();
        let file_only = self.backfilled == frame;
        self.readers.insert(who, ReadMark { file_only, frame });
    }

    /// A page as the WAL and the main file give it, to check the model itself.
    fn content(&self) -> State {
        let mut state = self.main.clone();
        let frames = self.frames();
        if let (Some(wal), true) = (&self.wal, frames > 0) {
            let (wal, size) = (wal.borrow(), self.page_size);
            let count = self.index.unwrap().page_count as usize;
            state.resize(count.max(state.len()), Rc::new(Vec::new()));
            for frame in 1..=frames {
                let head = walferry::wal::FrameHeader::read(wal.as_slice(), size, frame).unwrap();
                let mut page = vec![0; size.bytes()];
                walferry::wal::read_frame_page(wal.as_slice(), size, frame, &mut page).unwrap();
                state.resize((head.pgno as usize).max(state.len()), Rc::new(Vec::new()));
                state[head.pgno as usize - 1] = Rc::new(page);
            }
            state.truncate(count);
        }
        state
    }
}
