//! Proves a replica without restoring it.
//!
//! Reads every file once, and compares its header with its name, and its pages with its page index and
//! its checksum. Compares the headers of all files with each other. By then the checksum of every page of
//! the newest state is known, while no page is kept. The page checksums together must give the database
//! checksum that the last file names.
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

/// The part of each file to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// The header alone: 100 bytes of each file.
    Headers,
    /// Every byte.
    Whole,
}

/// States that the replica should have.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Kept {
    /// The replica should have a state of this time or before, and the files that lead on from there.
    pub since: Option<Timestamp>,
    /// The replica should have each single state since this time.
    pub one_by_one: Option<Timestamp>,
}

/// A defect of a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Defect {
    /// The file with the defect; `None` for a defect of the replica as a whole.
    pub key: Option<Key>,
    /// Description for users.
    pub what: String,
}

/// The newest state, proven by its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proven {
    /// The state.
    pub txid: Txid,
    /// Commit time of the state.
    pub timestamp: Timestamp,
    /// Checksum of the database.
    pub checksum: DatabaseChecksum,
}

/// The newest state of a replica, as the checksums of its pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Newest {
    /// The state.
    pub txid: Txid,
    /// Commit time of the state.
    pub timestamp: Timestamp,
    /// Page size.
    pub page_size: PageSize,
    /// Checksum of each page, from page 1 on; 0 for the lock page.
    pub sums: Vec<Checksum>,
}

impl Newest {
    /// Returns a page's checksum.
    pub fn sum(&self, pgno: Pgno) -> Option<Checksum> {
        let at = (pgno as usize).checked_sub(1)?;
        self.sums.get(at).copied()
    }

    /// Returns the checksum of the database.
    pub fn checksum(&self) -> DatabaseChecksum {
        let mut sum = DatabaseChecksum::EMPTY;
        self.sums.iter().for_each(|page| sum.toggle(*page));
        sum
    }
}

/// Result of a verification.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Number of files.
    pub files: usize,
    /// Number of files without database checksums.
    pub untagged: usize,
    /// Bytes read.
    pub fetched: u64,
    /// Number of pages checked, in all files.
    pub pages: u64,
    /// Number of states that can be restored without the files that have a defect.
    pub states: usize,
    /// The oldest of these states, and its commit time.
    pub oldest: Option<(Txid, Timestamp)>,
    /// The newest state, if all its pages were read and give the checksum that its last file names.
    pub proven: Option<Proven>,
    /// Defects, in the order of the files; those of the replica as a whole come first.
    pub defects: Vec<Defect>,
}

/// Number of bytes to read at a time.
pub(crate) const CHUNK: u64 = 4 << 20;
/// Number of walks, at most. A walk fails if another process deletes a file meanwhile.
const ATTEMPTS: usize = 3;

/// Verifies the whole replica. Calls `progress` with the number of bytes read so far, and of all bytes.
///
/// Defects of files are no error, but part of the report. Fails if the store fails or the replica is empty.
pub async fn verify(
    store: Arc<dyn Store>,
    depth: Depth,
    kept: Kept,
    parallelism: usize,
    progress: Arc<dyn Fn(u64, u64) + Send + Sync>,
) -> Result<Report, crate::restore::Error> {
    Ok(examine(store, depth, kept, parallelism, progress).await?.0)
}

/// As [`verify`], and also returns the newest state, if the replica has no defect and the walk has read all
/// pages of that state. [`Depth::Headers`] reads none.
pub async fn examine(
    store: Arc<dyn Store>,
    depth: Depth,
    kept: Kept,
    parallelism: usize,
    progress: Arc<dyn Fn(u64, u64) + Send + Sync>,
) -> Result<(Report, Option<Newest>), crate::restore::Error> {
    let runtime = Handle::current();
    let mut attempt = 0;
    loop {
        attempt += 1;
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
            // Retention may delete files during the walk.
            Some(error) if error.kind == ErrorKind::NotFound && attempt < ATTEMPTS => {}
            Some(error) => return Err(error.into()),
            None => return Ok(walk.report(kept)),
        }
    }
}

struct Walk {
    store: Arc<dyn Store>,
    runtime: Handle,
    files: Vec<FileInfo>,
    depth: Depth,
    /// Files that lead to the newest state, each with its index in the plan.
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
    /// For each page in the files of the plan: index of the newest file read so far with this page, and
    /// the checksum of the page there.
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

    /// Reads all files on several threads.
    fn run(&self, requests: usize) -> Result<(), store::Error> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = match self.depth {
            // These threads mostly wait for the store.
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

/// Returns the newest state, and true if the last file's checksum proves it. `None` if the header of the
/// last file is not known.
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
    // Pages in files before the last full image do not count.
    let full = plan.files.iter().rposition(|file| {
        header_of(file.key).is_some_and(|header| header.tag.is_some_and(|tag| tag.full_image))
    });
    // A page does not count if a later file cut it off by a smaller database. If the database grew again,
    // a still later file holds the page.
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
