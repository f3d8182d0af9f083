//! The pin (`sqlite-ext/src/pin.rs`, `sqlite-ext/src/registry.rs`): a lock on the file and on a read
//! slot, which may be lost at any moment, and may not be had for any time.

use walferry::wal::WalIndex;
use walferry::wal::evidence::Guard;

use crate::host::Host;
use crate::sqlite::ReaderId;
use crate::world::Cx;

impl Host {
    /// Takes the pin if it is not held. Not while a connection has, or asks for, the file to itself.
    pub fn repin(&mut self, p: usize) {
        let process = &mut self.procs[p];
        if process.pinned || !process.attached || process.makes_way || process.starved {
            return;
        }
        process.pinned = true;
        if process.holds {
            self.hold_slot(p);
        }
    }

    /// Takes the read slot, unless readers have all of them just now.
    pub fn hold_slot(&mut self, p: usize) {
        let process = &mut self.procs[p];
        if !process.pinned || process.slot || self.pin_rng.chance(self.slots_taken) {
            return;
        }
        process.slot = true;
        self.guards += 1;
        process.guard = Some(Guard(self.guards));
    }

    /// After a new beginning that was let through, or failed.
    pub fn hold_again(&mut self, p: usize) {
        if self.procs[p].holds {
            self.hold_slot(p);
        }
    }

    pub fn drop_slot(&mut self, p: usize) {
        self.procs[p].slot = false;
        self.procs[p].guard = None;
    }

    pub fn unpin(&mut self, p: usize) {
        self.drop_slot(p);
        self.procs[p].pinned = false;
    }

    /// Keeps other processes from beginning the WAL anew, or lets them.
    pub fn hold(&mut self, p: usize, hold: bool) {
        self.procs[p].holds = hold;
        self.repin(p);
        if hold { self.hold_slot(p) } else { self.drop_slot(p) }
    }

    /// The pin is lost, as when the process forks, with which its walks end; and cannot be taken
    /// again for a while, as when there is no descriptor for it.
    pub fn lose_pin(&mut self, cx: &mut Cx, p: usize) {
        self.unpin(p);
        self.db.readers.remove(&ReaderId::Scan(p));
        self.procs[p].starved = cx.rng.chance(50);
        for _ in 0..cx.rng.below(3) {
            self.act_from_outside(cx, p);
        }
        cx.log(format_args!("host {}.{p}: the pin was lost", self.id));
        if cx.rng.chance(70) {
            self.repin(p);
        }
    }

    /// What keeps other processes from beginning the WAL anew.
    pub fn guard(&self, p: usize) -> Option<Guard> {
        let process = &self.procs[p];
        process.guard.or(process.alone.map(|alone| alone.guard))
    }

    /// The wal-index, through the pin or a connection.
    pub fn wal_index(&self, p: usize) -> Option<WalIndex> {
        let process = &self.procs[p];
        match process.alone {
            Some(alone) => alone.last,
            None => self.db.index().filter(|_| process.attached),
        }
    }
}
