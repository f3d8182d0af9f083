//! How a process lets go of the database, and ends (`lock`, `before_unlock` and `before_close` in
//! `sqlite-ext/src/shim.rs`, `drain` in `src/process.rs`).

use walferry::wal::WalIndex;
use walferry::wal::evidence::{Guard, Restart};

use super::{Alone, Control, WalEnd};
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, sh};
use crate::sqlite::ReaderId;
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
            self.db.abandon();
        }
        Ok(())
    }

    fn close_last(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        if self.has_it_alone(cx, p)? {
            self.db.open(cx.now);
            let last = self.begin_alone(p);
            self.db.close(cx.now);
            // What came between the capture and the lock is captured now, or found by comparison.
            if cx.bug != Bug::CloseRace {
                self.wait_captured(cx, p)?;
            }
            let end = last.map(|index| WalEnd { index, fingerprint: self.db.fingerprint() });
            self.end_alone(p);
            cx.log(format_args!("host {}.{p}: closed, the WAL is gone", self.id));
            return self.detach(cx, p, end);
        }
        if !self.keeps_pending {
            self.repin(p);
        }
        self.meanwhile(cx, p);
        self.wait_captured(cx, p)?;
        cx.log(format_args!("host {}.{p}: closed", self.id));
        self.detach(cx, p, None)
    }

    /// A connection asks for the file to itself, for which the pin gives way; whether it gets it.
    fn has_it_alone(&mut self, cx: &mut Cx, p: usize) -> Result<bool, Stop> {
        self.wait_captured(cx, p)?;
        self.meanwhile(cx, p);
        self.procs[p].makes_way = true;
        self.unpin(p);
        if cx.stress == Stress::Unpinned && !cx.calm {
            for _ in 0..cx.rng.below(4) {
                self.act_from_outside(cx, p);
            }
        } else {
            self.meanwhile(cx, p);
        }
        let alone = !self.is_open_but(p);
        self.procs[p].makes_way = alone;
        Ok(alone)
    }

    /// From here on nobody else can change anything.
    fn begin_alone(&mut self, p: usize) -> Option<WalIndex> {
        self.exclusive = true;
        self.guards += 1;
        let last = self.db.index();
        self.procs[p].alone = Some(Alone { guard: Guard(self.guards), last });
        last
    }

    fn end_alone(&mut self, p: usize) {
        self.exclusive = false;
        self.procs[p].alone = None;
        self.procs[p].makes_way = false;
    }

    /// A connection wants the file to itself, as for another journal mode, and does not get it, since
    /// others have it open; or has it for a while, and leaves the WAL in its place.
    pub fn want_exclusive(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        self.db.readers.remove(&ReaderId::Scan(p));
        if self.has_it_alone(cx, p)? {
            return self.exclusive_session(cx, p);
        }
        if self.keeps_pending {
            self.meanwhile(cx, p);
            self.wait_captured(cx, p)?;
        }
        self.repin(p);
        self.wait_captured(cx, p)?;
        Ok(())
    }

    /// `locking_mode=EXCLUSIVE`: no locks of the wal-index are seen, and of a restart only that the
    /// WAL's header is written.
    fn exclusive_session(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        self.db.open(cx.now);
        self.begin_alone(p);
        cx.log(format_args!("host {}.{p}: has the database to itself", self.id));
        for _ in 0..cx.rng.below(5) {
            if self.db.may_begin_anew() && cx.rng.chance(70) {
                self.restart_alone(cx, p)?;
            }
            let by = Some((p, self.procs[p].incarnation));
            self.db.commit(&mut cx.rng, cx.now, by);
            cx.log(format_args!("host {}.{p}: commit {} alone", self.id, self.db.head()));
            self.tell_alone(p, self.db.index());
            self.publish(cx, p);
            if cx.rng.chance(40) {
                self.db.checkpoint();
            }
            if cx.rng.chance(40) && self.procs[p].busy_until <= cx.now {
                self.run_sealer(cx, p)?;
            }
        }
        self.wait_captured(cx, p)?;
        self.end_alone(p);
        self.detach(cx, p, None)
    }

    fn tell_alone(&mut self, p: usize, last: Option<WalIndex>) {
        if let Some(alone) = &mut self.procs[p].alone {
            alone.last = last;
        }
    }

    /// The WAL's header is written (`before_overwrite` in `sqlite-ext/src/wal_file.rs`): the shared
    /// wal-index is reset by then.
    fn restart_alone(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let (Some(alone), Some(before)) = (self.procs[p].alone, self.db.index()) else {
            return Ok(());
        };
        let Some(last) = alone.last else { return Ok(()) };
        let captured = last.max_frame == 0 || self.may_restart(cx, p, last)?;
        self.db.restart(&mut cx.rng);
        let now = self.db.index().expect("it was just written");
        cx.log(format_args!("host {}.{p}: begins the WAL anew alone", self.id));
        if !captured || before.change != last.change {
            self.diverged(cx, p, "the WAL was begun anew by who has it alone");
            return Ok(());
        }
        let restart = Restart { from: last, to: now.salts, guard: Some(alone.guard) };
        sh!(self, p).restart = Some(restart);
        self.tell_alone(p, Some(WalIndex { salts: now.salts, max_frame: 0, ..last }));
        Ok(())
    }

    fn detach(&mut self, cx: &mut Cx, p: usize, end: Option<WalEnd>) -> Result<(), Stop> {
        self.unpin(p);
        self.procs[p].attached = false;
        self.detached(cx, p, end)
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
