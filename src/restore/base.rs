//! Brings an older copy of the database forward: only the files after its state are read.
//!
//! [`crate::local::state`], which an earlier restore has left beside the copy, names the copy's state. The
//! restore does not believe that record. It copies the database and reads every page of the new file. The
//! checksums of the pages must add up to the database checksum of the recorded state. So a restore notices
//! every write to the copy.

use std::fs::File;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, io};

use parking_lot::Mutex;

use super::error::{Error, Refusal, failed};
use super::opened;
use super::progress::{Meter, Step, Watch};
use crate::local;
use crate::local::lock::{Attempt, Lock};
use crate::local::spool::Spool;
use crate::local::state::{Base, State};
use crate::ltx::{DatabaseChecksum, checksum};
use crate::units::{PageSize, Txid};

/// Bytes that are copied between two reports of progress.
const COPY_LEN: u64 = 64 << 20;
/// Bytes that a thread reads at a time.
const READ_LEN: u64 = 1 << 20;
/// Reason why everything was fetched although an older copy was there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Instead {
    /// The copy was written to after its restore.
    Changed,
    /// The copy is newer than the state that was asked for.
    Newer(Txid),
    /// The replica no longer has the files that lead on from the copy's state.
    NoWay(Txid),
    /// The files since the copy's state are no smaller than the files of the whole plan.
    NotLess,
    /// The newest file carries no database checksum, so nothing could prove the result.
    Untagged,
    /// The copy is not a state of the log that the replica holds now.
    Disproved(String),
}

impl fmt::Display for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Instead::Changed => {
                f.write_str("the copy was written to since it was restored")
            }
            Instead::Newer(txid) => write!(f, "the copy is newer: it is at TXID {txid}"),
            Instead::NoWay(txid) => write!(
                f,
                "the replica has no files any more that lead on from TXID {txid}, where the copy is"
            ),
            Instead::NotLess => f.write_str("the files since the copy's state are no less"),
            Instead::Untagged => f.write_str(
                "the newest file carries no database checksum, as Litestream writes it, so that what \
                 comes of a copy could not be proven",
            ),
            Instead::Disproved(why) => {
                write!(f, "the copy does not lead to what the replica holds: {why}")
            }
        }
    }
}

/// The copy at the output's path, with the shipper's lock. While we hold the lock, no process can begin to ship
/// the copy.
pub(super) struct Older {
    pub(super) base: Base,
    pub(super) page_size: PageSize,
    claimed: bool,
    _place: Lock,
}

impl Older {
    /// Checks that the copy may be replaced, and takes the shipper's lock.
    pub(super) fn look(path: &Path, replica: &str) -> Result<Older, Error> {
        let refuse = |why| Error::Copy { path: path.into(), why };
        let dir = local::state_dir(path);
        let local_error = |error: local::Error| Error::Output {
            path: dir.clone(),
            doing: "looking at what is kept in",
            source: error.source,
        };
        let Ok(Some(state)) = State::load(&dir) else {
            return Err(refuse(Refusal::Unknown));
        };
        let place = match Lock::try_take(&dir).map_err(local_error)? {
            Attempt::Taken(place) => place,
            Attempt::HeldBy(pid) => return Err(refuse(Refusal::Shipped(pid))),
        };
        if state.replica != replica {
            return Err(refuse(Refusal::OtherReplica(state.replica)));
        }
        let waiting = match Spool::existing(&dir) {
            Some(spool) => !spool.is_empty().map_err(local_error)?,
            None => false,
        };
        let page_size = |base: Base| PageSize::new(base.page_size).map(|size| (base, size));
        let (false, Some((base, page_size))) = (waiting, state.base.and_then(page_size)) else {
            return Err(refuse(Refusal::Unshipped));
        };
        opened::refuse(path)?;
        Ok(Older { base, page_size, claimed: state.claimed, _place: place })
    }

    pub(super) fn txid(&self) -> Txid {
        self.base.txid()
    }

    pub(super) fn checksum(&self) -> DatabaseChecksum {
        DatabaseChecksum::from_stored(self.base.checksum)
    }

    /// Reads every page, enters its checksum in the table, and compares the sum with the recorded state.
    ///
    /// If walferry replicated the database from here and the sum differs, the result is `Refusal::Unshipped`.
    /// Nothing then proves that the replica has the contents of the database.
    pub(super) fn prove(
        &self,
        (file, path): (&File, &Path),
        table: Option<(&File, &Path)>,
        watch: Option<&Watch>,
        output: &Path,
    ) -> Result<Result<(), Instead>, Error> {
        let len = file.metadata().map_err(failed("looking at", path))?.len();
        let expected = u64::from(self.base.commit) * u64::from(self.page_size.get());
        let same = len == expected
            && self.sum((file, path), table, &Meter::new(watch, Step::Prove, len))?
                == self.checksum();
        match (same, self.claimed) {
            (true, _) => Ok(Ok(())),
            (false, false) => Ok(Err(Instead::Changed)),
            (false, true) => Err(Error::Copy { path: output.into(), why: Refusal::Unshipped }),
        }
    }

    fn sum(
        &self,
        (file, path): (&File, &Path),
        table: Option<(&File, &Path)>,
        meter: &Meter,
    ) -> Result<DatabaseChecksum, Error> {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(8);
        let page_len = u64::from(self.page_size.get());
        let at_once = READ_LEN / page_len;
        let (next, total) = (AtomicU64::new(0), Mutex::new(DatabaseChecksum::EMPTY));
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let work = || -> Result<(), Error> {
            let mut sum = DatabaseChecksum::EMPTY;
            let (mut pages, mut entries) = (Vec::new(), Vec::new());
            while failure.lock().is_none() {
                let first = next.fetch_add(at_once, Ordering::Relaxed);
                let count = u64::from(self.base.commit).saturating_sub(first).min(at_once);
                if count == 0 {
                    break;
                }
                pages.resize((count * page_len) as usize, 0);
                file.read_exact_at(&mut pages, first * page_len)
                    .map_err(failed("reading", path))?;
                entries.clear();
                for (place, page) in (1u64..).zip(pages.chunks_exact(page_len as usize)) {
                    let pgno = (first + place) as u32;
                    let entry = if pgno == self.page_size.lock_page() {
                        0
                    } else {
                        let page = checksum::page(pgno, page);
                        sum.toggle(page);
                        page.0
                    };
                    entries.extend_from_slice(&u64::to_le_bytes(entry));
                }
                if let Some((table, path)) = table {
                    table.write_all_at(&entries, first * 8).map_err(failed("writing", path))?;
                }
                meter.add(count * page_len);
            }
            total.lock().merge(sum);
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    if let Err(error) = work() {
                        failure.lock().get_or_insert(error);
                    }
                });
            }
        });
        failure.into_inner().map_or(Ok(total.into_inner()), Err)
    }
}

/// Copies the database, by reference where the file system supports it.
pub(super) fn copy(from: &Path, to: &File, watch: Option<&Watch>) -> Result<(), Error> {
    let source = File::open(from).map_err(failed("opening", from))?;
    let len = source.metadata().map_err(failed("looking at", from))?.len();
    let meter = Meter::new(watch, Step::Copy, len);
    loop {
        let (mut piece, mut to) = (io::Read::take(&source, COPY_LEN), to);
        let n = io::copy(&mut piece, &mut to).map_err(failed("copying", from))?;
        if n == 0 {
            return Ok(());
        }
        meter.add(n);
    }
}

/// Returns the database checksum that the entries of a page table add up to.
pub(super) fn sum_of_table(
    file: &File,
    path: &Path,
    commit: u32,
) -> Result<DatabaseChecksum, Error> {
    let mut sum = DatabaseChecksum::EMPTY;
    let (mut at, end) = (0, u64::from(commit) * 8);
    let mut buffer = vec![0; 64 << 10];
    while at < end {
        let n = (buffer.len() as u64).min(end - at) as usize;
        let entries = &mut buffer[..n];
        file.read_exact_at(entries, at).map_err(failed("reading", path))?;
        for entry in entries.as_chunks::<8>().0 {
            sum.toggle(crate::ltx::Checksum(u64::from_le_bytes(*entry)));
        }
        at += n as u64;
    }
    Ok(sum)
}
