//! The gate decides whether the WAL may be overwritten, and how long an application's thread waits for that.
//!
//! The gate waits for local work, never for the network. If another process ships the database, the gate asks
//! that process ([`crate::standby`]).

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use crate::database::{Database, Gate, Shared};
use crate::local::shared::Call;
use crate::process::Control;
use crate::wal::WalIndex;
use crate::wal::evidence::Restart;

/// Longest time that a writer waits at the gate for the end of local work.
pub(crate) const GATE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time that application threads together wait each time that the gate is shut. Most images and comparisons
/// of small databases end sooner, so the application does not notice them.
const SHUT_PATIENCE: Duration = Duration::from_millis(250);

/// Milliseconds in which walferry takes no read slot after a writer was refused the read slots. The writer
/// asks again with its next transaction.
const TURN: u64 = 1000;

/// A writer's turn to restart the WAL.
///
/// A read transaction of walferry's is a reader like any other. If it runs just when a writer asks for the
/// read slots, the WAL grows by a transaction.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct WritersTurn {
    refused_at: Option<u64>,
}

impl WritersTurn {
    /// Notes that a writer was refused at `now`. A second refusal within the turn does not extend it:
    /// walferry must read too, and a reader of the application may hold a slot for hours.
    pub fn refused(&mut self, now: u64) {
        if self.until(now).is_none() {
            self.refused_at = Some(now);
        }
    }

    /// Notes that the writer got the slots.
    pub fn taken(&mut self) {
        self.refused_at = None;
    }

    /// Returns the end of the turn, if one is under way at `now`.
    pub fn until(&self, now: u64) -> Option<u64> {
        self.refused_at.map(|at| at.saturating_add(TURN)).filter(|until| now < *until)
    }
}

impl Shared {
    pub(crate) fn is_shut(&self) -> bool {
        self.gate == Gate::Shut
    }

    /// True if capture stands exactly at this index.
    fn has_captured(&self, index: &WalIndex) -> bool {
        self.captured == Some((index.salts, index.max_frame))
            && self.captured_end.is_some_and(|end| end.is_known_at(index))
    }

    /// True if capture is complete and has taken in every publication up to this count.
    fn has_captured_all(&self, seq: u64) -> bool {
        self.captured.is_some() && self.captured_seq >= seq
    }

    pub(crate) fn set_gate(&mut self, gate: Gate) {
        if gate == Gate::Shut && self.gate != Gate::Shut {
            self.patience = SHUT_PATIENCE;
        }
        self.gate = gate;
    }
}

impl Database {
    /// True if the gate stays shut for longer than an application's thread should wait. Checkpoints should
    /// then be held back too.
    pub fn gate_stays_shut(&self) -> bool {
        let mut shared = self.shared.lock();
        if let Some(page) = shared.shippers_page() {
            return page.view().is_some_and(|view| view.gate == crate::standby::SHUT);
        }
        while shared.gate == Gate::Shut {
            let waited;
            (shared, waited) = self.wait_shut(shared);
            if !waited {
                return true;
            }
        }
        false
    }

    /// Waits for news while the gate is shut; `false` when the patience is used up.
    fn wait_shut<'a>(&self, shared: MutexGuard<'a, Shared>) -> (MutexGuard<'a, Shared>, bool) {
        let patience = shared.patience;
        if patience.is_zero() || self.process.strong_count() == 0 {
            return (shared, false);
        }
        let began = Instant::now();
        let (mut shared, _) = self.shared.wait_for(shared, patience);
        shared.patience = shared.patience.saturating_sub(began.elapsed());
        (shared, true)
    }

    /// True if the WAL, which is complete up to `index`, may be overwritten. Waits for capture, which is
    /// local work, and never for the network.
    pub fn may_restart(&self, index: WalIndex) -> bool {
        let page = self.with(|shared| shared.shippers_page());
        if let Some(page) = page
            && let Some(answer) = self.ask_shipper(&page, index)
        {
            return answer;
        }
        self.wait_for_capture(index, true)
    }

    /// Waits until everything up to `index` is captured. Gives up when the gate stays shut or local work
    /// takes too long. Also true if capture has given up until the database is compared.
    pub fn wait_captured(&self, index: WalIndex) -> bool {
        self.wait_for_capture(index, false)
    }

    /// Waits for capture. With `still`, the caller holds the write lock, and capture must stand at `index`
    /// itself.
    fn wait_for_capture(&self, index: WalIndex, still: bool) -> bool {
        let page = self.with(|shared| shared.shippers_page());
        if let Some(page) = page
            && !self.takes_over(&page)
        {
            // The other process captures.
            return false;
        }
        let mut shared = self.shared.lock();
        // Read under the lock under which commits are published, so the index is not older than a published
        // one. A connection with exclusive use of the database has only its own index.
        let index = self.border().and_then(|border| border.wal_index()).unwrap_or(index);
        if shared.published != Some(index) {
            shared.published = Some(index);
            shared.commit_seq += 1;
            let now = self.process.upgrade().map_or(0, |process| process.now());
            shared.unreported_since.get_or_insert(now);
        }
        let seq = shared.commit_seq;
        let deadline = Instant::now() + GATE_TIMEOUT;
        let mut asked = false;
        loop {
            let all = !still && shared.has_captured_all(seq);
            if shared.gate == Gate::Open || all || shared.has_captured(&index) {
                return true;
            }
            if self.process.strong_count() == 0 {
                return false;
            }
            if shared.gate == Gate::Shut {
                let waited;
                (shared, waited) = self.wait_shut(shared);
                if waited {
                    continue;
                }
                return false;
            }
            if !asked {
                asked = true;
                drop(shared);
                self.send(Control::Capture(self.id));
                shared = self.shared.lock();
                continue;
            }
            let news;
            (shared, news) = self.shared.wait_until(shared, deadline);
            if !news {
                // No other thread waits in vain: the gate opens again when capture has caught up.
                shared.set_gate(Gate::Shut);
                shared.patience = Duration::ZERO;
                return false;
            }
        }
    }

    /// Notes that the caller is about to ask for the read slots.
    pub fn restart_begins(&self) {
        self.with(|shared| shared.restarts = true);
    }

    /// Notes that the restart did not happen although the gate had allowed it.
    pub fn restart_failed(&self) {
        let page = self.with(|shared| {
            shared.restarts = false;
            shared.turn.refused(self.process.upgrade().map_or(0, |process| process.now()));
            shared.shippers_page()
        });
        if let Some(page) = page {
            page.call(Call::FAILED);
        }
    }

    /// Notes that the caller took the read slots and gave them back. `restart` is the restart that the caller
    /// made meanwhile, if any.
    pub fn restarted(&self, restart: Option<Restart>) {
        let page = self.with(|shared| {
            shared.restart = restart.or(shared.restart);
            shared.restarts = false;
            shared.turn.taken();
            shared.shippers_page()
        });
        if let Some(page) = page {
            page.call(Call::RESTARTED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_writer_has_its_turn_once_in_a_while() {
        let mut turn = WritersTurn::default();
        assert_eq!(turn.until(0), None);
        turn.refused(5000);
        assert_eq!(turn.until(5000), Some(6000));
        turn.refused(5999);
        assert_eq!((turn.until(5999), turn.until(6000)), (Some(6000), None));
        turn.refused(6000);
        assert_eq!(turn.until(6000), Some(7000));
        turn.taken();
        assert_eq!(turn.until(6001), None);
    }
}
