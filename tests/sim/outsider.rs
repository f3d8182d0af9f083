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
        self.db.open(cx.now);
        if self.db.sector > 0 && self.db.sector_rng.chance(30) {
            self.overwrite_from_outside(cx);
            return self.end_outside(cx);
        }
        let roll = cx.rng.below(12);
        if roll < 6 {
            self.db.commit(&mut cx.rng, cx.now, None);
            cx.log(format_args!("host {}: commit {} from outside", self.id, self.db.head()));
        }
        if (3..8).contains(&roll) {
            self.db.checkpoint();
        }
        let pinned = self.is_pinned_but(usize::MAX);
        if (5..10).contains(&roll) && self.db.may_begin_anew() && !pinned {
            self.begin_anew_outside(cx);
        }
        if roll > 9 && cx.rng.chance(60) {
            let torn = cx.rng.chance(70);
            self.db.die_committing(&mut cx.rng, cx.now, torn);
            cx.log(format_args!("host {}.{p}: a writer dies, torn: {torn}", self.id));
            if cx.rng.chance(50) {
                self.db.open(cx.now);
            }
        }
        self.end_outside(cx);
    }

    /// The process that came from outside ends. If it was alone, its close is the last one.
    fn end_outside(&mut self, cx: &mut Cx) {
        if self.is_open() {
            return;
        }
        if cx.rng.chance(60) {
            self.db.close(cx.now);
        } else {
            self.db.abandon();
        }
    }

    /// Commits that nobody has seen are copied to the file, and overwritten by others, if nothing keeps the
    /// WAL from being begun anew: whoever counts copies as commits may miss none.
    fn overwrite_from_outside(&mut self, cx: &mut Cx) {
        let few = 1 + self.db.sector_rng.below(3);
        let more = 1 + self.db.sector_rng.below(5);
        for _ in 0..few {
            self.db.commit(&mut cx.rng, cx.now, None);
        }
        self.db.checkpoint();
        if self.db.may_begin_anew() && !self.is_pinned_but(usize::MAX) {
            self.db.restart(&mut cx.rng);
            for _ in 0..more {
                self.db.commit(&mut cx.rng, cx.now, None);
            }
            cx.log(format_args!("host {}: {few} commits are overwritten from outside", self.id));
        }
    }

    /// A commit begins the WAL anew, or a TRUNCATE checkpoint does and a commit follows or not; a
    /// RESTART checkpoint takes the read slots and leaves all as it was.
    fn begin_anew_outside(&mut self, cx: &mut Cx) {
        let follows = match cx.rng.below(10) {
            0..5 => {
                self.db.restart(&mut cx.rng);
                true
            }
            5..9 => {
                self.db.truncate(&mut cx.rng);
                cx.rng.chance(60)
            }
            _ => false,
        };
        if follows {
            for _ in 0..=cx.rng.below(2) {
                self.db.commit(&mut cx.rng, cx.now, None);
            }
        }
        cx.log(format_args!("host {}: the WAL is begun anew from outside", self.id));
    }

    /// Events while the state that the process's threads share is locked: they cannot publish,
    /// but others can write, and the pin can go.
    pub fn meanwhile_locked(&mut self, cx: &mut Cx, p: usize) {
        if cx.calm || cx.within || self.exclusive || self.writing || !cx.rng.chance(3) {
            return;
        }
        cx.within = true;
        if self.procs[p].pinned && cx.rng.chance(40) {
            self.lose_pin(cx, p);
        } else {
            self.act_from_outside(cx, p);
        }
        cx.within = false;
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
