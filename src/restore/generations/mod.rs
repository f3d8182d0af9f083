//! Restoring what Litestream 0.3 wrote: a snapshot of the file, and the WALs behind it.
//!
//! Nothing there says what the database's bytes must be. What is proven is what the parts say of
//! themselves: the LZ4 frames' checksums, that the segments of a WAL join and end with a commit,
//! SQLite's own salts and checksums of all their frames, and that a WAL has every page by which the
//! database grew. That the last segment of a WAL is missing where another WAL follows, or that the
//! newest ones are, shows nowhere: ask SQLite for an integrity check.
//!
//! Memory, whatever the size of the database: for each request at a time 4 MiB, the decoder's
//! blocks of 4 MiB, and a few bytes for each page in a WAL. A WAL is put together in a file of the
//! restore's folder.

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

/// How a database file begins (<https://sqlite.org/fileformat2.html#magic_header_string>).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What was restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The generation, 16 hex digits.
    pub generation: String,
    /// Index of the snapshot's WAL.
    pub index: u32,
    /// When the newest part was made.
    pub timestamp: Timestamp,
    /// Size of the database in pages.
    pub commit: u32,
    /// Page size.
    pub page_size: PageSize,
    /// Number of objects that were read.
    pub objects: usize,
    /// Bytes read from the store.
    pub fetched: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Lists what Litestream 0.3 left in a replica, the oldest generation first.
pub async fn list(store: &dyn Store) -> Result<Vec<Generation>, store::Error> {
    Ok(generations::list(&store.objects(FOLDER).await?))
}

/// Plans, where what Litestream 0.3 left holds the newest state that there is at or before the
/// point. `None` where the files of the levels do, which alone have transaction numbers, or where
/// there is nothing of Litestream 0.3.
///
/// Of the levels the commit times in the files' headers count, of the generations the times in the
/// listing: there are no others. With the same time the levels win.
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

/// Restores: all of it, or nothing. Needs a Tokio runtime.
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
    // There is no copy of the same history that could be brought forward.
    let place = match place_of(options) {
        Place::Copy => Place::Free,
        place => place,
    };
    output::check(&options.output, place)?;
    plan.check()?;
    let work = Workplace::take(&options.output, place)?.with_mode(options);
    // What another restore has left is of no use here.
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

/// Puts a WAL together from its segments; gives its length.
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

/// The page size and the size in pages, if the file is a database. `object` is what led to it.
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
