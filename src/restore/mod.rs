//! Restoring a database from a replica.
//!
//! The plan's files are taken from the newest to the oldest. A file's page index says which pages
//! it has; the first file to claim a page has its newest image. The frames are fetched in
//! stretches, expanded and written by several threads at once. Everything is proven before the
//! output gets its name: the checksum of every file, the chain of database checksums from file to
//! file where the files carry them, that no page is missing, and the checksum of the result.
//!
//! What comes from the store is not trusted: lengths are checked against the listing before
//! anything is allocated, and nothing is written but the temporary file.
//!
//! Memory, whatever the size of the database: one bit a page that there is; for each request at a time a stretch
//! with its page list (4 MiB and 0.2 MiB), and again for each thread with a write buffer; for each
//! file that is opened ahead (as many as there may be requests) its page index, about ten bytes a
//! page of that file, or the whole file where it is under 1 MiB.

mod error;
mod fetch;
#[cfg(feature = "cli")]
pub mod generations;
mod handover;
#[cfg(feature = "cli")]
mod integrity;
mod moment;
mod output;
mod pages;
mod verify;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

pub use error::Error;
pub use handover::restore_with_state;
pub use moment::{Point, Range, range};

use crate::ltx::{DatabaseChecksum, Header, page};
use crate::plan::{self, Plan};
use crate::store::{self, FileInfo, Store};
use crate::units::{Level, PageSize, Timestamp, Txid};
use fetch::{Opened, Opener, Source};
use output::{Output, Temporary, failed};
use pages::{Stretch, Target, Worker};
use verify::{Chain, Claims, Step};

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

/// What to restore, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The new database. Nothing may be there, nor anything of a database there.
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
    let begun = Instant::now();
    output::check(&options.output)?;
    let (_, plan) = plan(&store, options.point).await?;
    let runtime = Handle::current();
    let mut report = tokio::task::spawn_blocking(move || {
        execute(&Source::new(store), &runtime, &plan, &options)
    })
    .await
    .map_err(|_| Error::Internal("a thread broke off"))??;
    report.elapsed = begun.elapsed();
    Ok(report)
}

/// Checks that a database may be put there: that nothing is in the way, and that the directory
/// exists. A restore does so by itself, at its beginning and again at its end.
pub fn check_output(path: &Path) -> Result<(), Error> {
    output::check(path).map(drop)
}

fn execute(
    source: &Source,
    runtime: &Handle,
    plan: &Plan,
    options: &Options,
) -> Result<Report, Error> {
    let requests = options.parallelism.max(1);
    let mut opener = Opener::new(source, runtime, plan.files.iter().rev().copied(), requests);
    let Some(last) = opener.next().transpose()? else {
        return Err(Error::Plan(plan::Error::Empty));
    };
    let Header { commit, page_size, .. } = last.header;
    let (last_key, last_header) = (last.key, last.header);

    // A page frame has a least length, so that the length of the files bounds the number of pages,
    // but for the lock page, before anything is made of that size.
    let least = page::min_page_frame_len(page_size);
    let frames = plan.files.iter().map(|file| file.len / least);
    if frames.fold(1u64, u64::saturating_add) < u64::from(commit) {
        return Err(Error::corrupt(
            last_key,
            format!(
                "it speaks of {commit} pages of {page_size} bytes, more than the files can hold"
            ),
        ));
    }

    let output = Output::create(&options.output)?;
    let table = options.page_table.as_deref().map(Temporary::create).transpose()?;
    let target = Target {
        page_size,
        database: output.file(),
        path: output.temporary_path(),
        page_table: table.as_ref().map(|table| (&table.file, table.path())),
    };
    let done = Run { source, runtime, target, requests }.pages(last, &mut opener)?;

    set_lengths(&target, commit)?;
    let expected = last_header.tag.map(|tag| tag.post_apply);
    if let Some(expected) = expected.filter(|expected| *expected != done.checksum) {
        return Err(Error::Database { key: last_key, expected, found: done.checksum });
    }
    verify::first_page(output.file(), output.temporary_path(), last_key, &last_header)?;
    #[cfg(feature = "cli")]
    integrity::check(output.temporary_path(), options.integrity)?;
    if let Some(table) = &table {
        table.sync()?;
    }
    output.publish()?;
    if let Some(table) = table {
        table.keep();
    }
    Ok(Report {
        txid: plan.txid,
        timestamp: last_header.timestamp,
        commit,
        page_size,
        checksum: done.checksum,
        proven: expected.is_some(),
        files: done.files,
        untagged: done.untagged,
        last: last_header,
        fetched: source.fetched(),
        elapsed: Duration::ZERO,
    })
}

/// Gives the files their length, now that every page is known to be there: what was not written
/// reads as zeros, and is only the lock page.
fn set_lengths(target: &Target<'_>, commit: u32) -> Result<(), Error> {
    let len = u64::from(commit) * u64::from(target.page_size.get());
    target.database.set_len(len).map_err(failed("setting the length of", target.path))?;
    if let Some((file, path)) = target.page_table {
        file.set_len(u64::from(commit) * 8).map_err(failed("setting the length of", path))?;
    }
    Ok(())
}

/// What the threads have done together.
struct Done {
    checksum: DatabaseChecksum,
    files: usize,
    untagged: usize,
}

struct Run<'a> {
    source: &'a Source,
    runtime: &'a Handle,
    target: Target<'a>,
    requests: usize,
}

impl Run<'_> {
    /// Threads that expand and write: more than there are processors would only wait for each
    /// other, the writes at the file's lock.
    fn threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, NonZero::get).min(self.requests)
    }

    fn pages(&self, last: Opened, opener: &mut Opener<'_>) -> Result<Done, Error> {
        let (proven, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let total = Mutex::new(DatabaseChecksum::EMPTY);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let fail = |error| {
            failure.lock().get_or_insert(error);
            stop.store(true, Ordering::Relaxed);
        };
        // Stretches in the channel are being fetched already.
        let (sender, stretches) = crossbeam_channel::bounded::<Stretch>(self.requests);
        let mut claims = Claims::new(last.header.commit, last.header.page_size);
        let (last_key, mut chain) = (last.key, Chain::default());
        let mut files = 0;
        std::thread::scope(|scope| {
            for _ in 0..self.threads() {
                let stretches = stretches.clone();
                scope.spawn(|| {
                    let stretches = stretches;
                    let mut worker = Worker::new(self.runtime, &proven, self.target);
                    for stretch in stretches {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        if let Err(error) = worker.work(stretch) {
                            return fail(error);
                        }
                    }
                    total.lock().merge(worker.finish());
                });
            }
            drop(stretches);
            let cut = |opened: &Opened, claims: &mut Claims| {
                pages::cut(self.source, self.runtime, opened, claims, &proven, &sender)
            };
            let send = || -> Result<(), Error> {
                let mut next = Some(Ok(last));
                while let Some(opened) = next.transpose()? {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    if chain.step(opened.key, &opened.header)? == Step::Superseded {
                        break;
                    }
                    files += 1;
                    if !cut(&opened, &mut claims)? {
                        return Ok(());
                    }
                    next = opener.next();
                }
                Ok(())
            };
            if let Err(error) = send() {
                fail(error);
            }
            // The workers end when they have taken what is left.
            drop(sender);
        });
        if let Some(error) = failure.into_inner() {
            return Err(error);
        }
        // Each file was compared with its checksum, or the loop above did not do its work.
        if proven.load(Ordering::Relaxed) != files {
            return Err(Error::Internal("not every file's checksum was compared"));
        }
        // Only now are the headers and indexes proven from which the chain was read.
        let untagged = chain.untagged;
        chain.finish()?;
        claims.finish(last_key)?;
        let checksum = *total.lock();
        Ok(Done { checksum, files, untagged })
    }
}
