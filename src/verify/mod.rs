//! Proving a replica without restoring it to anywhere.
//!
//! Every file is read once, whole: its header against its name, its pages against its page index and
//! its checksum. The headers of all files are held against each other. Of the newest state every page
//! is known by then, though none is kept: the checksums of the newest images, joined, must be the one
//! that the last file names.
//!
//! Memory: a chunk of 4 MiB and a page for each thread, a header for each file, and about 30 bytes for
//! each page of the database.

mod advance;
mod coverage;

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::ltx::{self, Checksum, DatabaseChecksum, Decoder, HEADER_LEN, Header, MIN_FILE_LEN};
use crate::plan::{self, chain};
use crate::restore::list_in_turn;
use crate::store::reader::StoreReader;
use crate::store::{self, ErrorKind, FileInfo, Key, Store};
use crate::units::{PageSize, Pgno, Timestamp, Txid};

pub use advance::{Advance, advance};

/// How thoroughly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// The headers alone: 100 bytes of each file.
    Headers,
    /// Every byte.
    Whole,
}

/// What the replica is to have.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Kept {
    /// A state of this time or before, and what leads on from it.
    pub since: Option<Timestamp>,
    /// Each state since then by itself.
    pub one_by_one: Option<Timestamp>,
}

/// Something that is wrong with a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Defect {
    /// The file, if it is about one.
    pub key: Option<Key>,
    /// What is wrong.
    pub what: String,
}

/// What is known of the newest state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proven {
    /// The state.
    pub txid: Txid,
    /// Its commit time.
    pub timestamp: Timestamp,
    /// Checksum of the database.
    pub checksum: DatabaseChecksum,
}

/// The newest state of a replica, page by page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Newest {
    /// The state.
    pub txid: Txid,
    /// Its commit time.
    pub timestamp: Timestamp,
    /// Page size.
    pub page_size: PageSize,
    /// The checksum of each page, from page 1 on; 0 for the lock page.
    pub sums: Vec<Checksum>,
}

impl Newest {
    /// A page's checksum.
    pub fn sum(&self, pgno: Pgno) -> Option<Checksum> {
        let at = (pgno as usize).checked_sub(1)?;
        self.sums.get(at).copied()
    }

    /// Checksum of the database.
    pub fn checksum(&self) -> DatabaseChecksum {
        let mut sum = DatabaseChecksum::EMPTY;
        self.sums.iter().for_each(|page| sum.toggle(*page));
        sum
    }
}

/// The outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Files looked at.
    pub files: usize,
    /// Of these, files that carry no database checksums.
    pub untagged: usize,
    /// Bytes read.
    pub fetched: u64,
    /// Pages whose images were checked.
    pub pages: u64,
    /// States that can be restored without the files that have a defect.
    pub states: usize,
    /// The oldest of them.
    pub oldest: Option<(Txid, Timestamp)>,
    /// The newest state, if every page of it was seen and they add up.
    pub proven: Option<Proven>,
    /// What is wrong, in the order of the files.
    pub defects: Vec<Defect>,
}

/// How much is read at a time, in bytes.
pub(crate) const CHUNK: u64 = 4 << 20;
/// How often the walk begins anew because files were removed while it was on its way.
const ATTEMPTS: usize = 3;

/// Walks the whole replica. An error means that the store did not answer; what is wrong with files is
/// in the report. `progress` is told of bytes read, of so many.
pub async fn verify(
    store: Arc<dyn Store>,
    depth: Depth,
    kept: Kept,
    parallelism: usize,
    progress: Arc<dyn Fn(u64, u64) + Send + Sync>,
) -> Result<Report, crate::restore::Error> {
    Ok(examine(store, depth, kept, parallelism, progress).await?.0)
}

/// As [`verify`], with the newest state, where each of its pages was seen.
pub async fn examine(
    store: Arc<dyn Store>,
    depth: Depth,
    kept: Kept,
    parallelism: usize,
    progress: Arc<dyn Fn(u64, u64) + Send + Sync>,
) -> Result<(Report, Option<Newest>), crate::restore::Error> {
    let runtime = Handle::current();
    for attempt in 1.. {
        let files = list_in_turn(store.as_ref()).await?;
        if files.is_empty() {
            return Err(plan::Error::Empty.into());
        }
        let walk = Walk::new(store.clone(), runtime.clone(), files, depth, progress.clone());
        let (walk, failure) = tokio::task::spawn_blocking(move || {
            let failure = walk.run(parallelism.max(1)).err();
            (walk, failure)
        })
        .await
        .map_err(|_| crate::restore::Error::Internal("a thread broke off"))?;
        match failure {
            // Compaction and retention go on while this reads.
            Some(error) if error.kind == ErrorKind::NotFound && attempt < ATTEMPTS => {}
            Some(error) => return Err(error.into()),
            None => return Ok(walk.report(kept)),
        }
    }
    Err(crate::restore::Error::Internal("the files of the replica keep changing"))
}

struct Walk {
    store: Arc<dyn Store>,
    runtime: Handle,
    files: Vec<FileInfo>,
    depth: Depth,
    /// The files that lead to the newest state, each with its place among them.
    newest: HashMap<Key, usize>,
    plan: Result<plan::Plan, plan::Error>,
    progress: Arc<dyn Fn(u64, u64) + Send + Sync>,
    fetched: AtomicU64,
    pages: AtomicU64,
    total: u64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    headers: Vec<(Key, Header)>,
    defects: Vec<Defect>,
    /// Of each page of the newest state the image in the newest file: that file's place, and the
    /// page's checksum.
    pages: HashMap<Pgno, (usize, Checksum)>,
}

impl Walk {
    fn new(
        store: Arc<dyn Store>,
        runtime: Handle,
        files: Vec<FileInfo>,
        depth: Depth,
        progress: Arc<dyn Fn(u64, u64) + Send + Sync>,
    ) -> Walk {
        let plan = plan::restore::restore(&files, plan::Target::Latest);
        let of_plan = plan.iter().flat_map(|plan| plan.files.iter().map(|file| file.key));
        let newest = of_plan.zip(0..).collect();
        let read = |file: &FileInfo| match depth {
            Depth::Headers => file.len.min(HEADER_LEN as u64),
            Depth::Whole => file.len,
        };
        let total = files.iter().map(read).fold(0, u64::saturating_add);
        Walk {
            store,
            runtime,
            files,
            depth,
            newest,
            plan,
            progress,
            fetched: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            total,
            seen: Mutex::default(),
        }
    }

    /// Reads all files, on several threads.
    fn run(&self, requests: usize) -> Result<(), store::Error> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = match self.depth {
            // Mostly waiting for the store.
            Depth::Headers => requests,
            Depth::Whole => requests.min(processors.saturating_mul(2)),
        };
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<store::Error>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while failure.lock().is_none()
                        && let Some(file) = self.files.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        if let Err(error) = self.file(file) {
                            failure.lock().get_or_insert(error);
                        }
                    }
                });
            }
        });
        failure.into_inner().map_or(Ok(()), Err)
    }

    fn file(&self, file: &FileInfo) -> Result<(), store::Error> {
        let key = file.key;
        if file.len < MIN_FILE_LEN {
            self.defect(key, "it is too short to be a file");
            return Ok(());
        }
        let len = match self.depth {
            Depth::Headers => HEADER_LEN as u64,
            Depth::Whole => file.len,
        };
        let told = |bytes| {
            let fetched = self.fetched.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            (self.progress)(fetched, self.total);
        };
        let mut reader = StoreReader::new(&*self.store, &self.runtime, key, (len, CHUNK), &told);
        let read = match self.depth {
            Depth::Headers => read_header(&mut reader).map(|header| (header, Vec::new())),
            Depth::Whole => self.read_whole(key, &mut reader),
        };
        if let Some(error) = reader.failure() {
            return Err(error);
        }
        match read {
            Ok((header, pages)) => self.take_in(key, &header, &pages),
            Err(error) => self.defect(key, error.to_string()),
        }
        Ok(())
    }

    fn read_whole(&self, key: Key, reader: &mut StoreReader<'_>) -> Result<Contents, ltx::Error> {
        let mut decoder = Decoder::new(reader)?;
        let header = *decoder.header();
        let counts = self.newest.contains_key(&key);
        let mut pages = Vec::new();
        while let Some(page) = decoder.next_page()? {
            self.pages.fetch_add(1, Ordering::Relaxed);
            if counts {
                pages.push((page.pgno, ltx::checksum::page(page.pgno, page.data)));
            }
        }
        decoder.finish()?;
        Ok((header, pages))
    }

    fn take_in(&self, key: Key, header: &Header, pages: &[(Pgno, Checksum)]) {
        if (header.min_txid, header.max_txid) != (key.name.min, key.name.max) {
            let (min, max) = (header.min_txid, header.max_txid);
            return self.defect(key, format!("its header names transactions {min} to {max}"));
        }
        let mut seen = self.seen.lock();
        seen.headers.push((key, *header));
        let Some(place) = self.newest.get(&key) else { return };
        for (pgno, sum) in pages {
            let known = seen.pages.entry(*pgno).or_insert((*place, *sum));
            if known.0 <= *place {
                *known = (*place, *sum);
            }
        }
    }

    fn defect(&self, key: Key, what: impl Into<String>) {
        self.seen.lock().defects.push(Defect { key: Some(key), what: what.into() });
    }

    fn report(self, kept: Kept) -> (Report, Option<Newest>) {
        let Seen { headers, mut defects, pages } = self.seen.into_inner();
        let chain = chain::contradictions(&headers).into_iter();
        defects.extend(chain.map(|found| Defect { key: Some(found.key), what: found.what }));
        defects.extend(coverage::defects(&self.files, &headers, kept));
        let (mut proven, mut newest) = (None, None);
        match &self.plan {
            Err(error) => defects.push(Defect { key: None, what: error.to_string() }),
            Ok(plan) if self.depth == Depth::Whole && defects.is_empty() => {
                match newest_state(plan, &headers, &pages) {
                    Ok(Some((state, tagged))) => {
                        proven = tagged.then(|| Proven {
                            txid: state.txid,
                            timestamp: state.timestamp,
                            checksum: state.checksum(),
                        });
                        newest = Some(state);
                    }
                    Ok(None) => {}
                    Err(defect) => defects.push(defect),
                }
            }
            Ok(_) => {}
        }
        defects.sort_by_key(|defect| defect.key);
        let damaged: HashSet<Key> = defects.iter().filter_map(|defect| defect.key).collect();
        let mut sound = self.files.clone();
        sound.retain(|file| !damaged.contains(&file.key));
        let report = Report {
            files: self.files.len(),
            untagged: headers.iter().filter(|(_, header)| header.tag.is_none()).count(),
            fetched: self.fetched.into_inner(),
            pages: self.pages.into_inner(),
            states: plan::restore::restorable(&sound).len(),
            oldest: coverage::oldest(&sound, &headers),
            proven,
            defects,
        };
        (report, newest)
    }
}

type Contents = (Header, Vec<(Pgno, Checksum)>);

fn read_header(reader: &mut StoreReader<'_>) -> Result<Header, ltx::Error> {
    let mut head = [0; HEADER_LEN];
    std::io::Read::read_exact(reader, &mut head)?;
    Header::decode(&head)
}

/// The newest pages, and whether the last file says what they must come to: then they do.
fn newest_state(
    plan: &plan::Plan,
    headers: &[(Key, Header)],
    pages: &HashMap<Pgno, (usize, Checksum)>,
) -> Result<Option<(Newest, bool)>, Defect> {
    let headers: HashMap<Key, &Header> =
        headers.iter().map(|(key, header)| (*key, header)).collect();
    let header_of = |key: Key| headers.get(&key).copied();
    let Some((last, header)) =
        plan.files.last().and_then(|file| Some((file.key, header_of(file.key)?)))
    else {
        return Ok(None);
    };
    // What is older than the last full image does not count.
    let full = plan.files.iter().rposition(|file| {
        header_of(file.key).is_some_and(|header| header.tag.is_some_and(|tag| tag.full_image))
    });
    // Nor does what a smaller database between two files cut off: its pages come again behind it.
    let mut cut = vec![u32::MAX; plan.files.len()];
    let mut smallest = u32::MAX;
    for (place, file) in plan.files.iter().enumerate().rev() {
        if let Some(cut) = cut.get_mut(place) {
            *cut = smallest;
        }
        smallest = smallest.min(header_of(file.key).map_or(u32::MAX, |header| header.commit));
    }
    let counts = plan.files.get(full.unwrap_or(0)..).unwrap_or_default();
    let other = counts.iter().filter_map(|file| Some((file.key, header_of(file.key)?.page_size)));
    if let Some((key, found)) = other.into_iter().find(|(_, size)| *size != header.page_size) {
        let what = format!(
            "its pages have {found} bytes, those of the files behind it {}, and none of these is a \
             full image",
            header.page_size
        );
        return Err(Defect { key: Some(key), what });
    }
    let lock_page = header.page_size.lock_page();
    let mut sums = Vec::with_capacity(header.commit as usize);
    let mut missing = 0u64;
    for pgno in 1..=header.commit {
        match pages.get(&pgno) {
            _ if pgno == lock_page => sums.push(Checksum(0)),
            Some((place, page))
                if full.is_none_or(|full| *place >= full)
                    && cut.get(*place).is_some_and(|cut| pgno <= *cut) =>
            {
                sums.push(*page);
            }
            _ => missing += 1,
        }
    }
    if missing > 0 {
        let what = format!("{missing} pages of the database that it leads to are in no file");
        return Err(Defect { key: Some(last), what });
    }
    let (txid, timestamp, page_size) = (plan.txid, header.timestamp, header.page_size);
    let newest = Newest { txid, timestamp, page_size, sums };
    let sum = newest.checksum();
    match header.tag {
        Some(tag) if tag.post_apply != sum => {
            let what = format!(
                "the database that it leads to has checksum {sum}, but it names {}",
                tag.post_apply
            );
            Err(Defect { key: Some(last), what })
        }
        tag => Ok(Some((newest, tag.is_some()))),
    }
}
