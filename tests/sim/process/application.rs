//! What an application does, as the VFS sees it (`sqlite-ext/src/shim.rs`).

use super::{Attach, Control};
use crate::disk::Stop;
use crate::host::{Host, sh};
use crate::world::Cx;

/// Fewer frames than this are left for the gate: the WALs of the simulation are short.
const CAPTURE_AHEAD: u32 = 4;

impl Host {
    /// A process begins and opens the database.
    pub fn start(&mut self, cx: &mut Cx, p: usize) {
        self.lives += 1;
        let process = &mut self.procs[p];
        process.alive = true;
        process.incarnation = self.lives;
        process.started_at = cx.now;
        cx.log(format_args!("host {}.{p}: start", self.id));
        self.connect(cx, p);
    }

    pub fn connect(&mut self, cx: &mut Cx, p: usize) {
        self.procs[p].connections += 1;
        self.control(cx, p, Control::Connected);
    }

    /// The first read: the WAL is pinned, and the sealer told of it.
    pub fn attach(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        if self.procs[p].attached {
            return Ok(());
        }
        self.db.open();
        let (index, head) = (self.db.index, self.db.head());
        self.meanwhile(cx, p);
        let process = &mut self.procs[p];
        process.attached = true;
        process.pinned = true;
        process.slot = process.holds;
        let fingerprint = Some(self.db.fingerprint());
        self.attached(cx, p, Attach { index, fingerprint }, head)?;
        // Another connection may have committed while the pin was being taken.
        self.publish(cx, p);
        Ok(())
    }

    /// What a script does: it opens the database, writes, checkpoints, writes, and is gone.
    pub fn script(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        if !self.procs[p].alive {
            self.start(cx, p);
        } else if self.procs[p].connections == 0 {
            self.connect(cx, p);
        }
        for _ in 0..=cx.rng.below(4) {
            self.commit(cx, p)?;
            if cx.rng.chance(60) {
                self.checkpoint(cx, p)?;
            }
        }
        if cx.rng.chance(60) {
            self.close(cx, p)?;
        }
        Ok(())
    }

    pub fn commit(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        self.attach(cx, p)?;
        if self.db.may_begin_anew() && cx.rng.chance(70) {
            self.restart(cx, p, false)?;
        }
        self.append(cx, p);
        Ok(())
    }

    /// A commit that does not begin the WAL anew.
    pub fn append(&mut self, cx: &mut Cx, p: usize) {
        let by = Some((p, self.procs[p].incarnation));
        self.db.commit(&mut cx.rng, cx.now, by);
        cx.log(format_args!("host {}.{p}: commit {}", self.id, self.db.head()));
        self.publish(cx, p);
    }

    /// Somebody who holds the write lock wants to begin the WAL anew.
    fn restart(&mut self, cx: &mut Cx, p: usize, truncate: bool) -> Result<(), Stop> {
        let Some(index) = self.db.index else { return Ok(()) };
        self.writing = true;
        let allowed = self.may_restart(cx, p, index)?;
        self.writing = false;
        if !allowed {
            return Ok(());
        }
        self.procs[p].slot = false;
        // Now and then a reader has a slot, and the WAL is appended to after all.
        if self.db.may_begin_anew() && !self.is_pinned_but(p) && cx.rng.chance(85) {
            if truncate {
                self.db.truncate(&mut cx.rng);
                self.publish(cx, p);
            } else {
                self.db.restart(&mut cx.rng);
            }
            cx.log(format_args!("host {}.{p}: the WAL is begun anew", self.id));
        } else if cx.bug != crate::bug::Bug::StaleGrant {
            sh!(self, p).grant = None;
        }
        self.procs[p].slot = self.procs[p].holds;
        Ok(())
    }

    /// Somebody is let through the gate, and a reader keeps him from beginning the WAL anew.
    pub fn restart_in_vain(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let Some(index) = self.db.index else { return Ok(()) };
        let allowed = self.may_restart(cx, p, index)?;
        if allowed && cx.bug != crate::bug::Bug::StaleGrant {
            sh!(self, p).grant = None;
        }
        Ok(())
    }

    pub fn checkpoint(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        self.attach(cx, p)?;
        let shared = &sh!(self, p);
        if shared.gate == super::Gate::Shut && cx.rng.chance(80) {
            return Ok(());
        }
        let behind = shared.published.map_or(0, |index| match shared.captured {
            Some((salts, frame)) if salts == index.salts => index.max_frame.saturating_sub(frame),
            _ => index.max_frame,
        });
        if shared.gate == super::Gate::Capturing && behind >= CAPTURE_AHEAD {
            self.control(cx, p, Control::Capture);
        }
        self.db.checkpoint();
        if self.db.may_begin_anew() && cx.rng.chance(25) {
            self.restart(cx, p, true)?;
        }
        Ok(())
    }
}
