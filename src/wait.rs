//! Waits until commits are at the store. Only here does an application's thread wait for the network, at its
//! own request.

use std::time::{Duration, Instant};

use crate::database::{CommittedFrames, Database, ReadIndex, WaitError};
use crate::local::shared::Call;
use crate::process::Control;
use crate::units::Txid;

/// Longest wait for a wal-index that cannot be read: a writer may stop in the middle of an entry.
const UNSEEN_MAX: Duration = Duration::from_secs(1);
/// Pause before the next look at the wal-index.
const UNSEEN_PAUSE: Duration = Duration::from_millis(5);
/// Pause before the next question whether the application has interrupted the wait.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Limits of a wait by an application's thread.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// End of the wait.
    pub deadline: Instant,
    /// True if the application has interrupted the wait. Called in the waiting thread, without a lock.
    pub interrupted: &'a dyn Fn() -> bool,
}

impl Database {
    /// Waits until everything that a connection sees committed is at the store. Returns the TXID that the
    /// store confirmed last. With `hurry`, ships at once instead of at the next interval.
    pub fn wait(
        &self,
        patience: Patience<'_>,
        hurry: bool,
        read: ReadIndex<'_>,
    ) -> Result<Txid, WaitError> {
        let unseen_until = patience.deadline.min(Instant::now() + UNSEEN_MAX);
        loop {
            // The shipper may change during the wait, and is unknown at first.
            let end = match self.with(|shared| shared.shippers_page()) {
                Some(page) => self.wait_for_shipper(&page, patience, hurry, read),
                None => self.wait_here(patience, hurry, read),
            };
            match end {
                Some(Err(WaitError::Unseen)) if Instant::now() < unseen_until => {
                    drop(self.shared.wait_for(self.shared.lock(), UNSEEN_PAUSE));
                }
                Some(end) => return end,
                None => {}
            }
        }
    }

    /// Asks for committed transactions to be shipped, without waiting.
    pub(crate) fn hurry(&self) {
        match self.with(|shared| shared.shippers_page()) {
            Some(page) => page.call(Call::HURRY.and(Call::CAPTURE)),
            None => self.send(Control::Hurry(self.id)),
        }
    }

    /// Waits as the process that ships. `None` if another process turns out to ship.
    fn wait_here(
        &self,
        patience: Patience<'_>,
        hurry: bool,
        read: ReadIndex<'_>,
    ) -> Option<Result<Txid, WaitError>> {
        let Some(process) = self.process.upgrade() else {
            let why = "the threads that replicate are gone".to_string();
            return Some(Err(WaitError::Stopped(why)));
        };
        let mut shared = self.shared.lock();
        if shared.shippers_page().is_some() {
            return None;
        }
        // Read under the lock; otherwise an old index could replace a newer one.
        let Some(index) = read() else { return Some(Err(WaitError::Unseen)) };
        let news = shared.observe(index, process.now());
        let target = shared.commit_seq;
        let behind = shared.acked_seq < target;
        drop(shared);
        if let Some((at, ring)) = news {
            process.commit(CommittedFrames { database: self.id, index, at }, ring);
        }
        if behind {
            let hurried = if hurry { Control::Hurry } else { Control::Capture };
            self.send(hurried(self.id));
        }
        let mut ask_at = Instant::now() + ASK_AGAIN;
        let mut shared = self.shared.lock();
        loop {
            if shared.shippers_page().is_some() {
                return None;
            }
            // Checked before success: a stopped replication vouches for nothing.
            if let Some(why) = shared.report.stopped()
                && !shared.is_opened_again()
            {
                return Some(Err(WaitError::Stopped(why)));
            }
            if shared.acked_seq >= target {
                return Some(Ok(shared.report.acked));
            }
            let news;
            (shared, news) = self.shared.wait_until(shared, patience.deadline.min(ask_at));
            let now = Instant::now();
            // News may come all the time, so the time decides when to ask.
            if now >= ask_at {
                drop(shared);
                if (patience.interrupted)() {
                    return Some(Err(WaitError::Interrupted));
                }
                ask_at = now + ASK_AGAIN;
                shared = self.shared.lock();
            }
            if !news && now >= patience.deadline {
                log::debug!(
                    "{}: a wait for commit {target} ended at {}: captured {} at {:?}, published {:?}, gate {:?}",
                    self.path().display(),
                    shared.acked_seq,
                    shared.captured_seq,
                    shared.captured,
                    shared.published,
                    shared.gate
                );
                return Some(Err(WaitError::TimedOut(shared.report.in_the_way())));
            }
        }
    }
}
