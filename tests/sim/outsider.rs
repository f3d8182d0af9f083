//! What others do to the database while it is open: at any time, and in the midst of our steps.

use crate::host::Host;
use crate::world::Cx;

impl Host {
    /// A process without walferry commits, checkpoints, or begins the WAL anew where nothing keeps
    /// it from that.
    pub fn act_from_outside(&mut self, cx: &mut Cx, p: usize) {
        if self.exclusive {
            return;
        }
        self.db.open();
        let roll = cx.rng.below(10);
        if roll < 6 {
            self.db.commit(&mut cx.rng, cx.now, None);
            cx.log(format_args!("host {}: commit {} from outside", self.id, self.db.head()));
        }
        if (3..8).contains(&roll) {
            self.db.checkpoint();
        }
        let pinned = self.is_pinned_but(usize::MAX);
        if roll > 4 && self.db.may_begin_anew() && !pinned {
            if cx.rng.chance(40) {
                self.db.truncate(&mut cx.rng);
            } else {
                self.db.restart(&mut cx.rng);
            }
            self.db.commit(&mut cx.rng, cx.now, None);
            cx.log(format_args!("host {}.{p}: the WAL is begun anew from outside", self.id));
        }
        if !self.is_open() {
            // It was alone: its close is the last one.
            if cx.rng.chance(60) {
                self.db.close();
            } else {
                self.db.abandon();
            }
        }
    }

    /// Something that happens while the sealer, or another thread, is in the midst of a step: a
    /// commit of this process, of one that stands by, or from outside.
    pub fn meanwhile(&mut self, cx: &mut Cx, p: usize) {
        if cx.calm || cx.within || self.exclusive || self.writing || !cx.rng.chance(4) {
            return;
        }
        cx.within = true;
        match cx.rng.below(3) {
            0 if self.procs[p].attached => self.append(cx, p),
            1 => {
                let other = cx.rng.below(self.procs.len() as u64) as usize;
                if self.procs[other].attached {
                    self.append(cx, other);
                }
            }
            _ => {
                let open = self.is_open();
                self.act_from_outside(cx, p);
                if open && cx.rng.chance(50) {
                    self.act_from_outside(cx, p);
                }
            }
        }
        cx.within = false;
    }
}
