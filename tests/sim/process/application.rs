//! What an application does, as the VFS sees it (`sqlite-ext/src/shim.rs`).

use super::{Attach, Control};
use walferry::wal::evidence::Restart;

use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, sh};
use crate::world::Cx;

/// Fewer frames than this are left for the gate: the WALs of the simulation are short.
const CAPTURE_AHEAD: u32 = 4;

/// Reasons to ask for the read slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Anew {
    /// A writer's commit.
    Commit,
    /// A TRUNCATE checkpoint.
    Truncate,
    /// A RESTART checkpoint.
    Never,
}

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
        let first = self.db.fingerprint();
        if !cx.calm && cx.rng.chance(10) {
            self.act_from_outside(cx, p);
        }
        self.db.open(cx.now);
        sh!(self, p).published = None;
        self.procs[p].attached = true;
        self.meanwhile(cx, p);
        self.repin(p);
        let guard = self.guard(p);
        self.meanwhile(cx, p);
        let (index, head) = (self.db.index(), self.db.head());
        let guard = guard.filter(|_| guard == self.guard(p));
        self.meanwhile(cx, p);
        let last = self.db.fingerprint();
        let fingerprint = Some(if cx.bug == Bug::FingerprintFirst { first } else { last });
        self.attached(cx, p, Attach { guard, index, fingerprint }, head)?;
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
        self.db.open(cx.now);
        if self.db.may_begin_anew() && cx.rng.chance(70) {
            self.restart(cx, p, Anew::Commit)?;
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

    /// A thread that holds the write lock asks for all read slots.
    fn restart(&mut self, cx: &mut Cx, p: usize, how: Anew) -> Result<(), Stop> {
        let Some(before) = self.db.index() else { return Ok(()) };
        self.writing = true;
        let allowed = before.max_frame == 0 || self.may_restart(cx, p, before)?;
        if !allowed {
            self.writing = false;
            return Ok(());
        }
        sh!(self, p).granted = Some((before.salts, before.max_frame));
        self.drop_slot(p);
        // Now and then a reader has a slot, and the WAL is appended to after all.
        let granted = self.db.may_begin_anew() && !self.is_pinned_but(p) && cx.rng.chance(85);
        match how {
            Anew::Commit if granted => self.db.restart(&mut cx.rng),
            Anew::Truncate if granted => self.db.truncate(&mut cx.rng),
            // A RESTART checkpoint leaves the new beginning to the next writer.
            _ => {}
        }
        self.hold_again(p);
        if granted {
            let after = self.db.index().expect("who writes has an index");
            let restart = Restart::between(&before, &after, self.guard(p));
            let shared = &mut sh!(self, p);
            shared.restart = restart.or(shared.restart);
            cx.log(format_args!("host {}.{p}: the read slots for {how:?}: {restart:?}", self.id));
        }
        self.writing = false;
        self.publish(cx, p);
        Ok(())
    }

    /// A RESTART checkpoint takes the read slots and begins nothing.
    pub fn restart_in_vain(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        self.db.open(cx.now);
        self.restart(cx, p, Anew::Never)
    }

    pub fn checkpoint(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        self.attach(cx, p)?;
        let shared = &sh!(self, p);
        if shared.gate == super::Gate::Shut && cx.rng.chance(80) {
            return Ok(());
        }
        let behind = shared.published.map_or(0, |index| match shared.captured {
            Some(captured) if captured.at.salts == index.salts => {
                index.max_frame.saturating_sub(captured.at.frame)
            }
            _ => index.max_frame,
        });
        if shared.gate == super::Gate::Capturing && behind >= CAPTURE_AHEAD {
            self.control(cx, p, Control::Capture);
        }
        self.db.open(cx.now);
        self.db.checkpoint();
        if self.db.may_begin_anew() && cx.rng.chance(40) {
            let how = if cx.rng.chance(60) { Anew::Truncate } else { Anew::Never };
            self.restart(cx, p, how)?;
        }
        Ok(())
    }
}
