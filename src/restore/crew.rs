//! The threads of a restore: one thread cuts files into stretches, the others write the stretches' pages to the
//! output.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::cut::{Cutter, Stretch};
use super::fetch::{Opened, Opener, Source};
use super::making::Making;
use super::pages::{Shared, Worker};
use super::progress::{Meter, Step};
use super::record::Record;
use super::verify::{self, Chain, Claims};
use super::{Error, Options};
use crate::ltx::{DatabaseChecksum, Header};
use crate::plan::Plan;
use crate::store::Key;

/// Result of all threads together.
pub(super) struct Done {
    /// The newest file of the plan: it leads to the restored state.
    pub(super) last: (Key, Header),
    /// Checksum of all pages that the threads wrote or found in the output.
    pub(super) checksum: DatabaseChecksum,
    pub(super) files: usize,
    pub(super) untagged: usize,
    /// Bytes of page frames whose pages were found in the output.
    pub(super) reused: u64,
}

/// Access to the store, the runtime and the options for the threads.
pub(super) struct Crew<'a> {
    pub(super) source: &'a Source,
    pub(super) runtime: &'a Handle,
    pub(super) options: &'a Options,
}

impl Crew<'_> {
    /// Returns the number of threads that expand and write.
    ///
    /// More threads than processors would only wait for each other, and their writes for the file's lock.
    fn threads(&self) -> usize {
        let requests = self.options.parallelism.max(1);
        std::thread::available_parallelism().map_or(1, NonZero::get).min(requests)
    }

    /// Writes every page of the files, or finds it in the output.
    ///
    /// Pages that no file has are the pages of an older copy of `base` pages.
    pub(super) fn pages(
        &self,
        making: &Making<'_>,
        plan: &Plan,
        last: Opened,
        opener: &mut Opener<'_>,
        record: Option<&Record>,
        base: u32,
    ) -> Result<Done, Error> {
        let (proven, stop, reused) =
            (AtomicUsize::new(0), AtomicBool::new(false), AtomicU64::new(0));
        let total = Mutex::new(DatabaseChecksum::EMPTY);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let fail = |error| {
            failure.lock().get_or_insert(error);
            stop.store(true, Ordering::Relaxed);
        };
        let meter = Meter::new(self.options.watch.as_ref(), Step::Fetch, plan.bytes());
        let shared = Shared {
            runtime: self.runtime,
            proven: &proven,
            target: making.target(last.header.page_size),
            record,
            reused: &reused,
            meter: &meter,
        };
        // The stretches in the channel are already being fetched.
        let (workers, stretches) =
            crossbeam_channel::bounded::<Stretch>(self.options.parallelism.max(1));
        let cutter = Cutter {
            source: self.source,
            runtime: self.runtime,
            proven: &proven,
            record,
            meter: &meter,
            workers,
        };
        let mut claims = Claims::new(last.header.commit, last.header.page_size);
        let (newest, mut chain) = ((last.key, last.header), Chain::default());
        let mut files = 0;
        std::thread::scope(|scope| {
            for _ in 0..self.threads() {
                let stretches = stretches.clone();
                scope.spawn(|| {
                    let stretches = stretches;
                    let mut worker = Worker::new(shared);
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
            let send = || -> Result<(), Error> {
                let mut next = Some(Ok(last));
                while let Some(opened) = next.transpose()? {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    if chain.step(opened.key, &opened.header)? == verify::Step::Superseded {
                        break;
                    }
                    files += 1;
                    if !cutter.cut(&opened, &mut claims)? {
                        return Ok(());
                    }
                    next = opener.next();
                }
                Ok(())
            };
            if let Err(error) = send() {
                fail(error);
            }
            // The workers end when they have taken the stretches that are left in the channel.
            drop(cutter);
        });
        if let Some(error) = failure.into_inner() {
            return Err(error);
        }
        // Any other number means an error of the loop above.
        if proven.load(Ordering::Relaxed) != files {
            return Err(Error::Internal("not every file's checksum was compared"));
        }
        // The chain was read from headers and indexes that are proven only now.
        let untagged = chain.untagged;
        chain.finish()?;
        claims.finish(newest.0, base)?;
        meter.finish();
        let (checksum, reused) = (total.into_inner(), reused.into_inner());
        Ok(Done { last: newest, checksum, files, untagged, reused })
    }
}
