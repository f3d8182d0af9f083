//! Restores a database from a replica.
//!
//! A restore reads the plan's files from the newest to the oldest. A file's page index names the pages of the
//! file. The first file that claims a page has the newest image of the page. Tasks of the runtime fetch the
//! frames in stretches. Several threads expand and write the stretches at once.
//!
//! The restore proves everything before the output gets its name. It checks the checksum of every file and the
//! chain of database checksums from file to file, where the files carry them. It also checks that no page is
//! missing, and the checksum of the result.
//!
//! The restore does not trust the store. It compares lengths with the listing before it allocates memory. It
//! writes only in the folder `-restoring` beside the output ([`output`]), except a page table that the options
//! ask for. A lock on that folder keeps two restores to one output apart.
//!
//! A large restore notes in a record ([`record`]) the stretches that it has written. After an interruption the
//! next restore goes on from there.
//!
//! The files since an older copy can bring the copy forward ([`base`]). The restore first proves the copy, then
//! writes the newer pages over it. The checksum of all pages must be the checksum that the newest file names.
//! If any of these checks fails, the restore fetches everything.
//!
//! Memory, whatever the size of the database:
//! - one bit for each page
//! - 100 bytes for each stretch on record
//! - for each request at a time, a stretch with its page list (4 MiB and 0.2 MiB)
//! - for each thread, again a stretch with its page list, and a write buffer
//! - for each file that is opened ahead (as many as requests at a time), its page index: about ten bytes for
//!   each page of the file, or the whole file if the file is under 1 MiB
//! - small files of a folder are opened several at a time, up to 1 MiB

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
mod opened;
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

/// Restores that read less than this many bytes leave nothing after a failure. The next restore starts from the
/// beginning.
const RESUME_FROM: u64 = 16 << 20;

/// Most damaged files that one restore skips.
const PASSED_OVER_MAX: usize = 100;

/// Bytes of a stream that take about as long as a request. The choice between few large files and many small
/// files uses this weight.
const REQUEST_WEIGHT: u64 = 64 << 10;

/// SQLite's check of the result.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Integrity {
    /// No check.
    #[default]
    None,
    /// `PRAGMA quick_check`.
    Quick,
    /// `PRAGMA integrity_check`.
    Full,
}

/// Permission to replace a database that is not an older copy of the same replica. A restore never replaces a
/// database that a program has open, or that another process ships.
#[cfg(feature = "cli")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Force {
    /// Replaces no database.
    #[default]
    Never,
    /// Replaces any database, except one that was replicated from here and may hold data that its replica does
    /// not have.
    Shipped,
    /// Replaces such a database, too. Captured files that were not shipped are moved to `-walferry/kept-<n>`.
    Unshipped,
}

/// Target, output and settings of a restore.
#[derive(Clone, Debug)]
pub struct Options {
    /// Path of the new database. Without `delta`, neither a file nor a database's companion file may be there.
    pub output: PathBuf,
    /// The state to restore.
    pub point: Point,
    /// Number of stretches that are requested ahead, and of batches of files that are opened ahead. Also the
    /// most threads; there are no more threads than processors.
    pub parallelism: usize,
    /// Path of the page table, if one is to be written. Entry `i` has 8 bytes, little-endian: the checksum of
    /// page `i + 1`, or 0 for the lock page. The path must be free. The table is durable before the database
    /// gets its name.
    pub page_table: Option<PathBuf>,
    /// True if the file at the output may be an older copy that [`restore_with_state`] has made. The restore
    /// replaces the copy. If nothing has changed the copy, the restore reads only the files after the copy's
    /// state. This process must not have the copy open: it would lose its locks.
    pub delta: bool,
    /// Bytes of the replica from which on a restore is worth keeping if the store fails. The folder
    /// `-restoring` beside the output keeps the restore, as after a kill, and the next restore goes on with it.
    pub resume_from: u64,
    /// True if the restore goes on with the part that an earlier one kept. Otherwise that part is removed.
    pub resume: bool,
    /// Permission to replace the file at the output, once the new database is proven.
    #[cfg(feature = "cli")]
    pub force: Force,
    /// Mode of the database; if `None`, the mode of the replaced file.
    pub mode: Option<u32>,
    /// Mode of the database if it replaces no file and `mode` is `None`.
    pub new_mode: u32,
    /// Receives the progress.
    pub watch: Option<Watch>,
    /// SQLite's check before the database gets its name.
    #[cfg(feature = "cli")]
    pub integrity: Integrity,
}

impl Options {
    /// Options to restore the newest state, with the usual settings.
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

/// Result of a restore.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// The restored state.
    pub txid: Txid,
    /// Timestamp of the last file: the commit time, or the time of a snapshot.
    pub timestamp: Timestamp,
    /// Size of the database in pages.
    pub commit: u32,
    /// Page size.
    pub page_size: PageSize,
    /// Checksum of the database.
    pub checksum: DatabaseChecksum,
    /// True if the last file names this checksum, which then proves the whole result.
    pub proven: bool,
    /// Number of files that were read.
    pub files: usize,
    /// Number of these files that carry no database checksums, because Litestream or its compaction made them.
    /// Only their TXIDs hold the chain together.
    pub untagged: usize,
    /// The last file's header.
    pub last: Header,
    /// Bytes read from the store, without the headers that a point in time needs.
    pub fetched: u64,
    /// Number of requests for these bytes.
    pub requests: u64,
    /// Bytes of the files that were not read again, because an interrupted restore had written their pages.
    pub reused: u64,
    /// Damaged files that were skipped. Their pages are also in other files.
    pub passed_over: Vec<Key>,
    /// State of the older copy that was brought forward, if one was.
    pub from: Option<Txid>,
    /// Reason why an older copy was not brought forward, if there is one.
    pub instead: Option<Instead>,
    /// Duration of the restore.
    pub elapsed: Duration,
}

/// Lists all levels, ascending, and plans the restore.
pub async fn plan(store: &Arc<dyn Store>, point: Point) -> Result<(Vec<FileInfo>, Plan), Error> {
    let files = list_at_once(store).await?;
    if let Ok(target) = moment::target(store.as_ref(), &files, point).await
        && let Ok(plan) = plan::restore::restore(&files, target)
    {
        return Ok((files, plan));
    }
    // A file may have moved to a higher level between two listings. The higher level gets the file before the
    // lower level loses it. So listings in ascending order can show a file twice, but cannot miss one.
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

/// Lists the files of all levels, ascending, one level after the other.
pub async fn list_in_turn(store: &dyn Store) -> Result<Vec<FileInfo>, store::Error> {
    let mut files = Vec::new();
    for level in Level::all() {
        files.append(&mut store.list(level).await?);
    }
    Ok(files)
}

/// Restores a whole, proven database, or nothing.
///
/// Needs a Tokio runtime. The work itself is done on threads of its own.
pub async fn restore(store: Arc<dyn Store>, options: Options) -> Result<Report, Error> {
    Ok(restore_and(store, options, false).await?.0)
}

/// Restores, and with `leave` also writes the local state, so that replication can go on without an image.
///
/// The second value is the reason why the state was not written, if there is one.
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

/// Returns a plan for the same state without the damaged file of `error`, and the key of that file.
///
/// A compaction keeps its source files for a while, so their pages are there twice. The new plan's result is
/// proven like any other. If intact files contradict each other, there is no other plan: nothing tells which of
/// the files is right.
fn another_way(files: &[FileInfo], plan: &Plan, error: &Error) -> Option<(Key, Plan)> {
    let Error::File { key, .. } = error else { return None };
    let others: Vec<FileInfo> = files.iter().filter(|file| file.key != *key).copied().collect();
    let way = plan::restore::restore(&others, plan::Target::Txid(plan.txid)).ok()?;
    Some((*key, way))
}

/// Checks that the output's directory exists and that the options allow a database at the output.
///
/// A restore makes this check by itself, at its beginning and again at its end.
pub fn check_output(options: &Options) -> Result<(), Error> {
    output::check(&options.output, place_of(options)).map(drop)
}

/// Returns the error for a file that ends too early.
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

/// Returns the plan that leads from an older copy in state `from` to the plan's state. Returns the reason if
/// that plan is not possible, or not smaller.
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

/// Reads the header of the last file of a plan.
pub async fn last_header(store: &Arc<dyn Store>, plan: &Plan) -> Result<Header, Error> {
    let Some(last) = plan.files.last() else {
        return Err(Error::Plan(plan::Error::Empty));
    };
    fetch::header(&Source::new(store.clone()), last.key).await
}
