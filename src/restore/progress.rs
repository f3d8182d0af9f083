//! How far a restore is, for whoever wants to show it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Sending a database as a whole.
    Send,
    /// Copying the older copy that is brought forward.
    Copy,
    /// Reading that copy, to prove it.
    Prove,
    /// Reading the replica's files, from the store, or from the output where an earlier restore was
    /// broken off.
    Fetch,
}

/// Is told how far a restore is: the step, bytes done, and bytes in all. Called from several threads,
/// often; it must not wait.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn(Step, u64, u64) + Send + Sync>);

impl Watch {
    /// Hands each word to this function.
    pub fn new(told: impl Fn(Step, u64, u64) + Send + Sync + 'static) -> Watch {
        Watch(Arc::new(told))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// Counts one step.
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

    /// So many bytes more.
    pub(super) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Some(Watch(told)) = &self.watch {
            told(self.step, done.min(self.total), self.total);
        }
    }

    /// What is left needs not be done.
    pub(super) fn finish(&self) {
        self.add(self.total.saturating_sub(self.done.load(Ordering::Relaxed)));
    }
}
