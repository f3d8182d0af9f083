//! Waiting until commits are at the store: the one place where an application's thread waits for
//! the network, because it asked to.

use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::database::{Database, WaitError};
use crate::process::Control;
use crate::units::Txid;

impl Database {
    /// Waits until everything committed before the call is at the store; gives the TXID that the
    /// store confirmed last. `hurry` ships at once instead of at the next interval.
    pub fn wait(&self, timeout: Duration, hurry: bool) -> Result<Txid, WaitError> {
        let deadline = Instant::now() + timeout;
        loop {
            // Who ships may change while we wait, and is not known at first.
            let end = match self.with(|shared| shared.shippers_page()) {
                Some(page) => self.wait_for_shipper(&page, deadline, hurry),
                None => self.wait_here(deadline, hurry),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Asks for what is committed to be shipped, and does not wait for it.
    pub(crate) fn hurry(&self) {
        if self.with(|shared| shared.shippers_page()).is_none() {
            self.send(Control::Hurry(self.id));
        }
    }

    /// Waits as the process that ships. `None` when another one turns out to do so.
    fn wait_here(&self, deadline: Instant, hurry: bool) -> Option<Result<Txid, WaitError>> {
        // What other processes committed counts too.
        if let Some(index) = self.border().and_then(|border| border.wal_index()) {
            self.committed(index);
        }
        let mut shared = self.shared.lock();
        let target = shared.commit_seq;
        if shared.acked_seq < target {
            let control = if hurry { Control::Hurry(self.id) } else { Control::Capture(self.id) };
            MutexGuard::unlocked(&mut shared, || self.send(control));
        }
        loop {
            if shared.shippers_page().is_some() {
                return None;
            }
            if shared.acked_seq >= target {
                return Some(Ok(shared.report.acked));
            }
            if let Some(why) = shared.report.stopped()
                && !shared.is_opened_again()
            {
                return Some(Err(WaitError::Stopped(why)));
            }
            if self.changed.wait_until(&mut shared, deadline).timed_out() {
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
