//! The model of a SQLite database in WAL mode: a main file, a WAL of real bytes, the wal-index
//! header, and the history of everything that was ever committed.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use walferry::local::state::Fingerprint;
use walferry::ltx::{self, DatabaseChecksum};
use walferry::units::{PageSize, Pgno, Salts};
use walferry::wal::{self, WalIndex};

use crate::rng::Rng;

/// The smallest page that SQLite knows.
pub fn page_size() -> PageSize {
    PageSize::new(512).unwrap()
}

const PAGES_MAX: u32 = 12;

pub type Page = Rc<Vec<u8>>;
/// All pages of the database in one state.
pub type State = Vec<Page>;

pub fn checksum(state: &State) -> DatabaseChecksum {
    let mut sum = DatabaseChecksum::EMPTY;
    for (pgno, page) in (1..).zip(state) {
        sum.toggle(ltx::checksum::page(pgno, page));
    }
    sum
}

pub struct Commit {
    pub state: State,
    pub at: u64,
    /// By a process that does not load the extension: it is seen only when somebody looks.
    pub outside: bool,
}

pub struct Database {
    id: u64,
    main: State,
    /// Stands for the modification time of the main file.
    version: i64,
    wal: Vec<u8>,
    pub index: Option<WalIndex>,
    /// Frames up to this one are in the main file.
    backfilled: u32,
    sums: (u32, u32),
    pub history: Vec<Commit>,
    by_sum: HashMap<u64, usize>,
    fill: u64,
    /// The last frame that a read transaction needs, while there is one.
    pub reader: Option<u32>,
}

impl Database {
    /// A database of one page or more, made without a WAL.
    pub fn new(id: u64, state: Option<State>) -> Database {
        let mut db = Database {
            id,
            main: Vec::new(),
            version: 1,
            wal: Vec::new(),
            index: None,
            backfilled: 0,
            sums: (1, 1),
            history: Vec::new(),
            by_sum: HashMap::new(),
            fill: 0,
            reader: None,
        };
        let pages = state.unwrap_or_else(|| vec![db.new_page()]);
        db.main.clone_from(&pages);
        db.remember(pages, 0, true);
        db
    }

    fn new_page(&mut self) -> Page {
        self.fill += 1;
        let mut page = vec![0; page_size().bytes()];
        page[..8].copy_from_slice(&self.id.to_be_bytes());
        page[8..16].copy_from_slice(&self.fill.to_be_bytes());
        // The exclusive or of page checksums is linear: numbers alone would cancel out.
        page[16..24].copy_from_slice(&Rng::new(self.fill << 1 | self.id).next().to_be_bytes());
        Rc::new(page)
    }

    fn remember(&mut self, state: State, at: u64, outside: bool) {
        self.by_sum.insert(checksum(&state).get(), self.history.len());
        self.history.push(Commit { state, at, outside });
    }

    pub fn now(&self) -> &State {
        &self.history[self.head()].state
    }

    /// Number of the newest commit.
    pub fn head(&self) -> usize {
        self.history.len() - 1
    }

    /// Which commit left exactly these pages.
    pub fn commit_of(&self, state: &State) -> Option<usize> {
        let number = *self.by_sum.get(&checksum(state).get())?;
        (self.history[number].state == *state).then_some(number)
    }

    pub fn wal(&self) -> &[u8] {
        &self.wal
    }

    pub fn main_page(&self, pgno: Pgno) -> Option<&Page> {
        self.main.get(pgno as usize - 1)
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let len = self.main.len() as u64 * 512;
        Fingerprint { file: (1, self.id), len, modified: (self.version, 0) }
    }

    fn frames(&self) -> u32 {
        self.index.map_or(0, |index| index.max_frame)
    }

    /// Whether a writer would begin the WAL anew now, if nobody hinders it.
    pub fn may_begin_anew(&self) -> bool {
        self.frames() > 0 && self.backfilled == self.frames() && self.reader.is_none()
    }

    /// One transaction: some pages, sometimes more or fewer of them, some written twice as after a
    /// spill.
    pub fn commit(&mut self, rng: &mut Rng, at: u64, outside: bool) {
        let mut next = self.now().clone();
        let before = next.len() as u32;
        let count = match rng.below(10) {
            0..2 => (before + 1 + rng.below(3) as u32).min(PAGES_MAX),
            2 => (before / 2).max(1),
            _ => before,
        };
        let mut changed: BTreeMap<Pgno, Page> = BTreeMap::new();
        for pgno in before + 1..=count {
            changed.insert(pgno, self.new_page());
        }
        next.resize(count as usize, Rc::new(Vec::new()));
        for _ in 0..=rng.below(3) {
            let pgno = 1 + rng.below(u64::from(count)) as u32;
            changed.insert(pgno, self.new_page());
        }
        for (pgno, page) in &changed {
            next[*pgno as usize - 1] = page.clone();
        }
        let mut frames: Vec<(Pgno, Page)> = Vec::new();
        if rng.chance(20) {
            frames.push((*changed.keys().next().unwrap(), self.new_page()));
        }
        frames.extend(changed);
        self.begin_wal(rng);
        let last = frames.len();
        for (at, (pgno, page)) in (1..).zip(frames) {
            self.append(pgno, if at == last { count } else { 0 }, &page);
        }
        let frame = self.written_frames();
        let index = self.index.as_mut().unwrap();
        index.max_frame = frame;
        index.page_count = count;
        index.change += 1;
        self.remember(next, at, outside);
    }

    /// A transaction that spilled and was rolled back: frames that nobody may believe.
    pub fn roll_back(&mut self, rng: &mut Rng) {
        self.begin_wal(rng);
        let kept = (self.wal.len(), self.sums);
        let page = self.new_page();
        self.append(1, 1, &page);
        self.append(1, 0, &page);
        // The next transaction writes over them.
        self.sums = kept.1;
    }

    fn begin_wal(&mut self, rng: &mut Rng) {
        if self.index.is_none() {
            let salts = Salts(rng.next() as u32, rng.next() as u32);
            self.new_generation(salts);
        }
        let end = wal::frame_offset(page_size(), self.frames() + 1) as usize;
        self.wal.truncate(end);
    }

    fn new_generation(&mut self, salts: Salts) {
        self.wal.truncate(0);
        for field in [0x377f_0682u32, 3_007_000, 512, 0, salts.0, salts.1, 0, 0] {
            self.wal.extend_from_slice(&field.to_be_bytes());
        }
        self.backfilled = 0;
        self.sums = (salts.0 | 1, salts.1);
        let page_count = self.main.len() as u32;
        let change = self.index.map_or(0, |index| index.change);
        self.index =
            Some(WalIndex { change, max_frame: 0, page_count, page_size: page_size(), salts });
    }

    fn written_frames(&self) -> u32 {
        ((self.wal.len() as u64 - wal::WAL_HEADER_LEN) / (512 + 24)) as u32
    }

    fn append(&mut self, pgno: Pgno, commit: u32, page: &[u8]) {
        let salts = self.index.unwrap().salts;
        let mixed = ltx::checksum::page(pgno, page).0 as u32;
        self.sums = (self.sums.0.rotate_left(5) ^ mixed, self.sums.1.wrapping_add(self.sums.0));
        for field in [pgno, commit, salts.0, salts.1, self.sums.0, self.sums.1] {
            self.wal.extend_from_slice(&field.to_be_bytes());
        }
        self.wal.extend_from_slice(page);
    }

    /// Copies frames into the main file, as far as a reader allows.
    pub fn checkpoint(&mut self) {
        let limit = self.reader.unwrap_or(u32::MAX).min(self.frames());
        if limit <= self.backfilled {
            return;
        }
        let mut page = vec![0; 512];
        for frame in self.backfilled + 1..=limit {
            let header = wal::FrameHeader::read(self.wal.as_slice(), page_size(), frame).unwrap();
            wal::read_frame_page(self.wal.as_slice(), page_size(), frame, &mut page).unwrap();
            let at = header.pgno as usize - 1;
            if self.main.len() <= at {
                self.main.resize(at + 1, Rc::new(vec![0; 512]));
            }
            self.main[at] = Rc::new(page.clone());
        }
        self.backfilled = limit;
        self.version += 1;
        if limit == self.frames() {
            self.main.truncate(self.index.unwrap().page_count as usize);
            assert_eq!(&self.main, self.now(), "the model's own checkpoint");
        }
    }

    /// Begins the WAL anew; all of it must be in the main file.
    pub fn restart(&mut self, rng: &mut Rng) {
        assert!(self.may_begin_anew());
        let old = self.index.unwrap().salts;
        self.new_generation(Salts(old.0.wrapping_add(1), rng.next() as u32));
    }

    /// The last close: everything goes to the main file, the WAL goes.
    pub fn close(&mut self) {
        self.checkpoint();
        self.wal.clear();
        self.index = None;
        self.backfilled = 0;
    }

    /// All processes died: the wal-index is built again from the WAL.
    pub fn recover(&mut self) {
        self.reader = None;
        if let Some(index) = self.index.as_mut() {
            index.change = 0;
        }
        self.backfilled = 0;
    }
}
