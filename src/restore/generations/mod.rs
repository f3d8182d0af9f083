//! Restores the format of Litestream 0.3: a snapshot of the database file, and the WALs that follow it.
//!
//! The format does not say which bytes the database must have. The restore proves the parts by their own data:
//! - the checksums of the LZ4 frames
//! - the segments of a WAL join, and the last segment ends with a commit
//! - SQLite's salts and checksums of all frames of the WALs
//! - a WAL has every page by which the database grew
//!
//! Nothing shows that the last segment of a WAL is missing where another WAL follows. Nothing shows that the
//! newest segments are missing, either. An integrity check by SQLite may find such damage.
//!
//! Memory, whatever the size of the database: 4 MiB for each request at a time, the decoder's blocks of 4 MiB,
//! and a few bytes for each page in a WAL. A WAL is put together in a file of the restore's folder.

mod replay;
mod source;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::error::{Error, failed};
use super::output::{self, Place, Temporary, Workplace};
use super::{Options, Point, Range, integrity, list_in_turn, moment, place_of};
use crate::plan::generations::{self, FOLDER, Generation, Plan, Segment};
use crate::store::{self, Object, Store};
use crate::units::{PageSize, Timestamp};
use source::Source;

/// First bytes of a database file (<https://sqlite.org/fileformat2.html#magic_header_string>).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Result of a restore from Litestream 0.3's format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The generation, 16 hex digits.
    pub generation: String,
    /// Index of the snapshot's WAL.
    pub index: u32,
    /// Time at which the newest part was made.
    pub timestamp: Timestamp,
    /// Size of the database in pages.
    pub commit: u32,
    /// Page size.
    pub page_size: PageSize,
    /// Number of objects that were read.
    pub objects: usize,
    /// Bytes read from the store.
    pub fetched: u64,
    /// Duration of the restore.
    pub elapsed: Duration,
}

/// Lists the generations of Litestream 0.3 in a replica, the oldest first.
pub async fn list(store: &dyn Store) -> Result<Vec<Generation>, store::Error> {
    Ok(generations::list(&store.objects(FOLDER).await?))
}

/// Plans a restore if the generations of Litestream 0.3 hold the newest state at or before the point.
///
/// Returns `None` if the files of the levels hold that state, or if there are no generations. The point of a
/// transaction number always gives `None`: only the files of the levels have transaction numbers.
///
/// The times of the levels are the commit times in the files' headers. The times of the generations are those
/// of the listing, since they have no others. If both times are equal, the levels win.
pub async fn plan(store: &dyn Store, point: Point) -> Result<Option<Plan>, Error> {
    let at = match point {
        Point::Txid(_) => return Ok(None),
        Point::Latest => None,
        Point::Time(at) => Some(at),
    };
    let generations = list(store).await?;
    let old = match generations::restore(&generations, at) {
        Err(generations::Error::Empty) => return Ok(None),
        old => old,
    };
    let files = list_in_turn(store).await?;
    let newer = moment::last(store, &files, at).await?;
    match (old, newer) {
        (Ok(plan), newer) => {
            if newer.is_some_and(|(_, time)| time >= plan.time()) {
                return Ok(None);
            }
            plan.check()?;
            Ok(Some(plan))
        }
        (Err(_), Some(_)) => Ok(None),
        (Err(generations::Error::TooEarly { at, first, last }), None) => {
            let others = moment::range(store, &files).await?.unwrap_or(Range { first, last });
            let range = Range { first: first.min(others.first), last: last.max(others.last) };
            Err(Error::TooEarly { at, range })
        }
        (Err(error), None) => Err(error.into()),
    }
}

/// Restores the whole database, or nothing. Needs a Tokio runtime.
pub async fn restore(
    store: Arc<dyn Store>,
    plan: Plan,
    options: &Options,
) -> Result<Report, Error> {
    let (runtime, options) = (Handle::current(), options.clone());
    tokio::task::spawn_blocking(move || {
        let source = Source::new(store, runtime, plan.objects(), options.parallelism);
        execute(source, &plan, &options)
    })
    .await
    .map_err(|_| Error::Internal("a thread broke off"))?
}

fn execute(mut source: Source<'_>, plan: &Plan, options: &Options) -> Result<Report, Error> {
    let begun = Instant::now();
    // No older copy has a history that this plan could bring forward.
    let place = match place_of(options) {
        Place::Copy => Place::Free,
        place => place,
    };
    output::check(&options.output, place)?;
    plan.check()?;
    let work = Workplace::take(&options.output, place)?.with_mode(options);
    // The record of another restore does not apply to this format.
    work.remove("record")?;
    let (file, at) = (&work.open("database")?, &work.entry("database"));
    file.set_len(0).map_err(failed("emptying", at))?;
    source.expand(&plan.snapshot, file, 0, at)?;
    look_at(file, at, &plan.snapshot)?;
    for (index, segments) in &plan.wals {
        let wal = Temporary::create(&work.entry("wal"))?;
        let len = join(&mut source, plan, *index, segments, &wal)?;
        replay::replay(&wal.file, len, segments, file, at)?;
    }
    let last = plan.objects().last().unwrap_or(&plan.snapshot);
    let (page_size, commit) = look_at(file, at, last)?;
    integrity::check(at, options.integrity)?;
    work.publish("database", file, place)?;
    Ok(Report {
        generation: plan.generation.clone(),
        index: plan.index,
        timestamp: plan.time(),
        commit,
        page_size,
        objects: plan.objects().count(),
        fetched: source.fetched(),
        elapsed: begun.elapsed(),
    })
}

/// Puts a WAL together from its segments and returns its length.
fn join(
    source: &mut Source<'_>,
    plan: &Plan,
    index: u32,
    segments: &[Segment],
    wal: &Temporary,
) -> Result<u64, Error> {
    let mut len = 0;
    for Segment { offset, object } in segments {
        if *offset > len {
            let (generation, missing) = (plan.generation.clone(), len..*offset);
            return Err(generations::Error::MissingSegment { generation, index, missing }.into());
        }
        if *offset < len {
            let what = format!("the part of its WAL before it reaches to byte {len:08x}");
            return Err(Error::object(object, what));
        }
        len += source.expand(object, &wal.file, len, wal.path())?;
    }
    Ok(len)
}

/// Returns the page size and the number of pages. Returns an error that names `object` if the file is no
/// database.
fn look_at(database: &File, path: &Path, object: &Object) -> Result<(PageSize, u32), Error> {
    let refuse = || Err(Error::object(object, "what it leads to is not a SQLite database"));
    let len = database.metadata().map_err(failed("looking at", path))?.len();
    let mut head = [0; 18];
    if len < head.len() as u64 {
        return refuse();
    }
    database.read_exact_at(&mut head, 0).map_err(failed("reading", path))?;
    let [magic @ .., high, low] = head;
    let Some(page_size) = PageSize::from_u16(u16::from_be_bytes([high, low])) else {
        return refuse();
    };
    match u32::try_from(len / u64::from(page_size.get())) {
        Ok(pages) if magic == *MAGIC && len.is_multiple_of(u64::from(page_size.get())) => {
            Ok((page_size, pages))
        }
        _ => refuse(),
    }
}
