//! Progress of a restore.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Step that is in progress.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Upload of a full image.
    Send,
    /// Copy of the older database that is brought forward.
    Copy,
    /// Check of that copy.
    Prove,
    /// Read of the replica's files from the store, or of the output that an interrupted restore has left.
    Fetch,
}

/// Receives the progress of a restore: the step, the bytes done, and the total bytes.
///
/// Several threads call the function, often. It must not wait.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn(Step, u64, u64) + Send + Sync>);

impl Watch {
    /// Calls this function for each report of progress.
    pub fn new(told: impl Fn(Step, u64, u64) + Send + Sync + 'static) -> Watch {
        Watch(Arc::new(told))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// Counts the bytes of one step.
pub(super) struct Meter {
    watch: Option<Watch>,
    step: Step,
    done: AtomicU64,
    total: u64,
}

impl Meter {
    pub(super) fn new(watch: Option<&Watch>, step: Step, total: u64) -> Meter {
        let meter = Meter { watch: watch.cloned(), step, done: AtomicU64::new(0), total };
        meter.add(0);
        meter
    }

    /// Adds bytes, and reports the sum.
    pub(super) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Some(Watch(told)) = &self.watch {
            told(self.step, done.min(self.total), self.total);
        }
    }

    /// Counts all remaining bytes as done, since they need not be read.
    pub(super) fn finish(&self) {
        self.add(self.total.saturating_sub(self.done.load(Ordering::Relaxed)));
    }
}
