//! Restoring a database from a replica.
//!
//! The plan's files are taken from the newest to the oldest. A file's page index says which pages
//! it has; the first file to claim a page has its newest image. The frames are fetched in
//! stretches, expanded and written by several threads at once. Everything is proven before the
//! output gets its name: the checksum of every file, the chain of database checksums from file to
//! file where the files carry them, that no page is missing, and the checksum of the result.
//!
//! What comes from the store is not trusted: lengths are checked against the listing before
//! anything is allocated, and nothing is written but what is in the folder `-restoring` beside the
//! output ([`output`]). That folder is locked, so that two restores to one place do not meet.
//!
//! A large restore that is broken off goes on where it stood, since it notes what it has written
//! ([`record`]). An older copy can be brought forward by the files since then ([`base`]): its copy is
//! proven first, then the newer pages are written over it, and the checksum of all pages must be the one
//! that the newest file names. Where anything of that does not hold, everything is fetched.
//!
//! Memory, whatever the size of the database: one bit a page that there is; 100 bytes for each stretch
//! on record; for each request at a time a stretch
//! with its page list (4 MiB and 0.2 MiB), and again for each thread with a write buffer; for each
//! file that is opened ahead (as many as there may be requests) its page index, about ten bytes a
//! page of that file, or the whole file where it is under 1 MiB; small files of a folder are opened
//! several at a time, up to 1 MiB.

mod base;
mod crew;
mod cut;
mod error;
mod fetch;
#[cfg(feature = "cli")]
mod former;
#[cfg(feature = "cli")]
pub mod generations;
mod handover;
#[cfg(feature = "cli")]
mod integrity;
mod job;
mod making;
mod moment;
mod output;
mod pages;
mod point;
mod points;
mod progress;
mod record;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

pub use base::Instead;
pub use error::{Error, Refusal};
pub use fetch::requests;
pub use handover::restore_with_state;
pub use moment::range;
#[cfg(feature = "cli")]
pub(crate) use output::rename_new;
pub use point::{Point, Range};
pub use points::{Known, known};
pub use progress::{Step, Watch};

use crate::ltx::{DatabaseChecksum, Header};
use crate::plan::{self, Plan};
use crate::store::{self, FileInfo, Key, Store};
use crate::units::{Level, PageSize, Timestamp, Txid};
use fetch::Source;
use job::Job;
use output::Place;

/// Restores that read less than this many bytes are begun anew after a failure, and leave nothing.
const RESUME_FROM: u64 = 16 << 20;

/// Most damaged files that are passed over.
const PASSED_OVER_MAX: usize = 100;

/// A request takes about as long as so many bytes of a stream: for the choice between few large files
/// and many small ones.
const REQUEST_WEIGHT: u64 = 64 << 10;

/// How much of the result SQLite is asked to check.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Integrity {
    /// Nothing.
    #[default]
    None,
    /// `PRAGMA quick_check`.
    Quick,
    /// `PRAGMA integrity_check`.
    Full,
}

/// Whether a restore replaces a database that is no older copy of the same replica. Never one that a
/// program has open, or that another process ships.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Force {
    /// Nothing is replaced.
    #[default]
    Never,
    /// Whatever is there, unless it was replicated from there and may hold what its replica does not.
    Shipped,
    /// That too. What was packed and not shipped is moved aside, to `-walferry/kept-<n>`.
    Unshipped,
}

/// What to restore, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The new database. Nothing may be there, nor anything of a database there, unless `delta` says
    /// so.
    pub output: PathBuf,
    /// Which state.
    pub point: Point,
    /// Number of requests at a time; also the most threads, of which there are no more than
    /// processors.
    pub parallelism: usize,
    /// Where to write the page table: 8 bytes a page, little-endian, the checksum of page `i + 1`
    /// at entry `i`, 0 for the lock page. Nothing may be there. It is durable before the database
    /// gets its name.
    pub page_table: Option<PathBuf>,
    /// What is at the output may be an older copy that [`restore_with_state`] has made. It is replaced,
    /// and if nobody has written to it, only what came after is read. This process must not have it
    /// open: it would lose its locks.
    pub delta: bool,
    /// From how many bytes of the replica on a restore is worth keeping if the store fails; what is
    /// kept is in the folder `-restoring` beside the output, as after a kill, and the next restore goes
    /// on with it.
    pub resume_from: u64,
    /// Whether to go on with what is kept; else it is removed.
    pub resume: bool,
    /// Whether what is at the output is replaced, once the new database is proven.
    #[cfg(feature = "cli")]
    pub force: Force,
    /// Mode of the database; else that of the file that it replaces.
    pub mode: Option<u32>,
    /// Mode of the database where there is none that it replaces.
    pub new_mode: u32,
    /// Is told how far it is.
    pub watch: Option<Watch>,
    /// What SQLite checks before the database gets its name.
    #[cfg(feature = "cli")]
    pub integrity: Integrity,
}

impl Options {
    /// The newest state, with the usual settings.
    pub fn new(output: impl Into<PathBuf>) -> Options {
        Options {
            output: output.into(),
            point: Point::Latest,
            parallelism: 8,
            page_table: None,
            delta: false,
            resume_from: RESUME_FROM,
            resume: true,
            #[cfg(feature = "cli")]
            force: Force::Never,
            mode: None,
            new_mode: 0o600,
            watch: None,
            #[cfg(feature = "cli")]
            integrity: Integrity::None,
        }
    }
}

/// What was restored.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// The state.
    pub txid: Txid,
    /// The last file's timestamp: commit time, or when a snapshot was taken.
    pub timestamp: Timestamp,
    /// Size of the database in pages.
    pub commit: u32,
    /// Page size.
    pub page_size: PageSize,
    /// Checksum of the database.
    pub checksum: DatabaseChecksum,
    /// Whether the last file names this checksum, so that the result is proven as a whole.
    pub proven: bool,
    /// Number of files that were read.
    pub files: usize,
    /// Of these, files that carry no database checksums: made by Litestream, or by its
    /// compaction. Through them only the numbers of the transactions hold the chain together.
    pub untagged: usize,
    /// The last file's header.
    pub last: Header,
    /// Bytes read from the store.
    pub fetched: u64,
    /// Requests for them, listings not counted.
    pub requests: u64,
    /// Bytes of the files that were not read again, since a restore that was broken off had done so.
    pub reused: u64,
    /// Damaged files that were passed over, since others have what is in them.
    pub passed_over: Vec<Key>,
    /// The state of the older copy that was brought forward, if it was.
    pub from: Option<Txid>,
    /// Why it was not, if there is one.
    pub instead: Option<Instead>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Lists all levels, ascending, and plans.
pub async fn plan(store: &Arc<dyn Store>, point: Point) -> Result<(Vec<FileInfo>, Plan), Error> {
    let files = list_at_once(store).await?;
    if let Ok(target) = moment::target(store.as_ref(), &files, point).await
        && let Ok(plan) = plan::restore::restore(&files, target)
    {
        return Ok((files, plan));
    }
    // A file may have moved to a higher level between two listings. Read in this order, levels
    // can show a file twice but never hide one: it is created above before it is removed below.
    let files = list_in_turn(store.as_ref()).await?;
    let target = moment::target(store.as_ref(), &files, point).await?;
    let plan = plan::restore::restore(&files, target)?;
    Ok((files, plan))
}

async fn list_at_once(store: &Arc<dyn Store>) -> Result<Vec<FileInfo>, Error> {
    let mut listings = JoinSet::new();
    for level in Level::all() {
        let store = store.clone();
        listings.spawn(async move { store.list(level).await });
    }
    let mut files = Vec::new();
    while let Some(listing) = listings.join_next().await {
        files.append(&mut listing.map_err(|_| Error::Internal("a listing broke off"))??);
    }
    files.sort_by_key(|file| file.key);
    Ok(files)
}

/// The files of all levels, ascending.
pub async fn list_in_turn(store: &dyn Store) -> Result<Vec<FileInfo>, store::Error> {
    let mut files = Vec::new();
    for level in Level::all() {
        files.append(&mut store.list(level).await?);
    }
    Ok(files)
}

/// Restores a database: all of it, proven, or nothing.
///
/// Needs a Tokio runtime; the work itself is done on threads of its own.
pub async fn restore(store: Arc<dyn Store>, options: Options) -> Result<Report, Error> {
    Ok(restore_and(store, options, false).await?.0)
}

/// `leave`: with the state for a replication that goes on; the second value says why it is not left.
async fn restore_and(
    store: Arc<dyn Store>,
    options: Options,
    leave: bool,
) -> Result<(Report, Option<String>), Error> {
    let begun = Instant::now();
    check_output(&options)?;
    let (mut files, mut plan) = plan(&store, options.point).await?;
    let runtime = Handle::current();
    let replica = store::url::identity(store.as_ref());
    let (mut report, not_left) = tokio::task::spawn_blocking(move || {
        let source = &Source::new(store);
        let mut passed_over = Vec::new();
        loop {
            let (runtime, options, all, way) = (&runtime, &options, &files, &plan);
            let job =
                Job { source, runtime, options, files: all, plan: way, replica: &replica, leave };
            let error = match job.execute() {
                Ok((report, not_left)) => return Ok((Report { passed_over, ..report }, not_left)),
                Err(error) => error,
            };
            if passed_over.len() >= PASSED_OVER_MAX {
                return Err(error);
            }
            let Some((key, other)) = another_way(&files, &plan, &error) else { return Err(error) };
            log::warn!("{error}; it is passed over, since others have what is in it");
            files.retain(|file| file.key != key);
            passed_over.push(key);
            plan = other;
        }
    })
    .await
    .map_err(|_| Error::Internal("a thread broke off"))??;
    report.elapsed = begun.elapsed();
    Ok((report, not_left))
}

/// A way to the same state without a file that is damaged, and that file: what was joined is there
/// twice for a while. What comes out is proven as ever. Whole files that contradict each other are
/// another matter: nobody knows which of them is right.
fn another_way(files: &[FileInfo], plan: &Plan, error: &Error) -> Option<(Key, Plan)> {
    let Error::File { key, .. } = error else { return None };
    let others: Vec<FileInfo> = files.iter().filter(|file| file.key != *key).copied().collect();
    let way = plan::restore::restore(&others, plan::Target::Txid(plan.txid)).ok()?;
    Some((*key, way))
}

/// Checks that a database may be put there: that nothing is in the way, or only what the options let
/// be replaced, and that the directory exists. A restore does so by itself, at its beginning and again
/// at its end.
pub fn check_output(options: &Options) -> Result<(), Error> {
    output::check(&options.output, place_of(options)).map(drop)
}

/// A file that ends before it should.
#[cfg(feature = "cli")]
pub(crate) fn truncated(key: store::Key, section: &'static str) -> Error {
    Error::truncated(key, section)
}

fn place_of(options: &Options) -> Place {
    #[cfg(feature = "cli")]
    if options.force != Force::Never {
        return Place::Any { unshipped: options.force == Force::Unshipped };
    }
    let there = options.delta && options.output.symlink_metadata().is_ok();
    if there { Place::Copy } else { Place::Free }
}

/// The files that lead on from an older copy in state `from`, and whether they are the better way to
/// the plan's state than the plan.
pub fn forward(files: &[FileInfo], plan: &Plan, from: Txid) -> Result<Plan, Instead> {
    if from > plan.txid {
        return Err(Instead::Newer(from));
    }
    let weight = |files: &[FileInfo]| {
        files.iter().fold(0u64, |sum, file| sum.saturating_add(file.len + REQUEST_WEIGHT))
    };
    match plan::restore::forward(files, from, plan.txid) {
        None => Err(Instead::NoWay(from)),
        Some(forward) if weight(&forward.files) >= weight(&plan.files) => Err(Instead::NotLess),
        Some(forward) => Ok(forward),
    }
}

/// The header of the last file of a plan.
pub async fn last_header(store: &Arc<dyn Store>, plan: &Plan) -> Result<Header, Error> {
    let Some(last) = plan.files.last() else {
        return Err(Error::Plan(plan::Error::Empty));
    };
    fetch::header(&Source::new(store.clone()), last.key).await
}
