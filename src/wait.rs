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
        if let Some(page) = self.with(|shared| shared.shippers_page())
            && let Some(end) = self.wait_for_shipper(&page, deadline, hurry)
        {
            return end;
        }
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
            if shared.acked_seq >= target {
                return Ok(shared.report.acked);
            }
            if let Some(why) = shared.report.stopped() {
                return Err(WaitError::Stopped(why));
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
                return Err(WaitError::TimedOut(shared.report.in_the_way()));
            }
        }
    }
}
