//! How a process lets go of the database, and ends (`lock`, `before_unlock` and `before_close` in
//! `sqlite-ext/src/shim.rs`, `drain` in `src/process.rs`).

use walferry::wal::WalIndex;

use super::Control;
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::Host;
use crate::world::{Cx, Stress};

impl Host {
    /// A connection is closed. The last one of all processes checkpoints and removes the WAL.
    pub fn close(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        if self.procs[p].connections == 1 && self.procs[p].attached {
            self.close_last(cx, p)?;
        }
        self.procs[p].connections -= 1;
        if self.procs[p].connections == 0 {
            self.control(cx, p, Control::Disconnected);
        }
        if !self.is_open() {
            // Nobody removed the WAL: the next one that opens the database recovers.
            if self.db.index.is_some() {
                self.db.abandon();
            }
        }
        Ok(())
    }

    fn close_last(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let before = self.db.index;
        let complete = self.wait_all_captured(cx, p)?;
        self.meanwhile(cx, p);
        self.unpin(p);
        self.meanwhile(cx, p);
        self.procs[p].connections = 0;
        let alone = !self.is_open();
        self.procs[p].connections = 1;
        let now = self.db.index;
        let same_wal = before.map(|index| index.salts) == now.map(|index| index.salts);
        if alone {
            self.exclusive = true;
            // What came between the capture and the lock is captured now, or found by comparison.
            let complete = complete
                && (cx.bug == Bug::CloseRace
                    || before == now
                    || (same_wal && self.wait_all_captured(cx, p)?));
            self.db.close();
            self.exclusive = false;
            cx.log(format_args!(
                "host {}.{p}: closed, the WAL is gone, seen whole: {complete}",
                self.id
            ));
            return self.detach(cx, p, complete);
        }
        self.pin_again(cx, p, complete, before)?;
        cx.log(format_args!("host {}.{p}: closed", self.id));
        self.detach(cx, p, false)
    }

    /// Somebody wants the file to himself, as for another journal mode, and does not get it, since
    /// others have it open.
    pub fn want_exclusive(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let before = self.db.index;
        let complete = self.wait_all_captured(cx, p)?;
        self.unpin(p);
        if cx.stress == Stress::Unpinned {
            for _ in 0..cx.rng.below(4) {
                self.act_from_outside(cx, p);
            }
        } else {
            self.meanwhile(cx, p);
        }
        self.pin_again(cx, p, complete, before)
    }

    /// The pin is taken again. If all was captured, the capture itself sees that another WAL began:
    /// unless there was none with frames.
    fn pin_again(
        &mut self,
        cx: &mut Cx,
        p: usize,
        complete: bool,
        before: Option<WalIndex>,
    ) -> Result<(), Stop> {
        self.procs[p].pinned = true;
        self.procs[p].slot = self.procs[p].holds;
        let now = self.db.index;
        let begun = before.is_some_and(|index| index.max_frame > 0);
        let same_wal = before.map(|index| index.salts) == now.map(|index| index.salts);
        let unseen = match cx.bug {
            Bug::UnpinnedBelieved => false,
            Bug::UnpinnedFresh => !complete && !same_wal,
            _ if begun => !complete && !same_wal,
            _ => before != now,
        };
        if unseen {
            self.diverged(cx, p, "the WAL was begun anew while it was not pinned");
        }
        self.wait_all_captured(cx, p)?;
        Ok(())
    }

    fn wait_all_captured(&mut self, cx: &mut Cx, p: usize) -> Result<bool, Stop> {
        match self.db.index {
            Some(index) => self.wait_captured(cx, p, index),
            None => Ok(true),
        }
    }

    fn unpin(&mut self, p: usize) {
        self.procs[p].pinned = false;
        self.procs[p].slot = false;
    }

    fn detach(&mut self, cx: &mut Cx, p: usize, clean: bool) -> Result<(), Stop> {
        self.unpin(p);
        self.procs[p].attached = false;
        self.detached(cx, p, clean)
    }

    /// The process ends in order: all connections are closed, or not, and it waits for the store.
    pub fn end(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        if cx.rng.chance(70) {
            while self.procs[p].connections > 0 {
                self.close(cx, p)?;
            }
        }
        self.procs[p].ends_at = Some(cx.now + [0, 500, 5000][cx.rng.below(3) as usize]);
        self.control(cx, p, Control::Drain);
        cx.log(format_args!("host {}.{p}: drains", self.id));
        Ok(())
    }

    /// Whether it has nothing to wait for any more.
    pub fn may_end(&self, now: u64, p: usize) -> bool {
        let process = &self.procs[p];
        let drained = process.controls.is_empty()
            && process.replica.as_ref().is_none_or(|replica| replica.is_drained_or_stuck(process));
        process.ends_at.is_some_and(|at| at <= now || drained)
    }
}
