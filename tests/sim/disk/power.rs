//! What a loss of power leaves of the local state, and what an operator does to it.

use super::{Disk, Stored, Table};
use crate::rng::Rng;

impl Disk {
    /// The system writes everything back by itself, as it does after half a minute.
    pub fn write_back(&mut self) {
        self.synced_state.clone_from(&self.state);
        self.synced_table.clone_from(&self.table);
        self.synced_spool.clone_from(&self.spool);
        self.synced_history.clone_from(&self.history);
        self.unsynced_states.clear();
    }

    /// The power goes. Each file that was written and not synced is as before, new, or torn; each
    /// that was removed may be back; of the page table each entry is old or new.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        let percent = [0, 100, 50, 85][rng.below(4) as usize];
        self.lose_state(rng, percent);
        self.lose_table(rng);
        self.lose_spool(rng, percent);
        self.history.clone_from(&self.synced_history);
        self.write_back();
        self.full = false;
    }

    fn lose_state(&mut self, rng: &mut Rng, percent: u64) {
        let unsynced = std::mem::take(&mut self.unsynced_states);
        if unsynced.is_empty() || !rng.chance(percent) {
            self.state.clone_from(&self.synced_state);
            return;
        }
        let which = if rng.chance(60) {
            unsynced.len() - 1
        } else {
            rng.below(unsynced.len() as u64) as usize
        };
        let torn = rng.chance(10);
        self.state = Some(if torn { Stored::Torn } else { Stored::Whole(unsynced[which].clone()) });
    }

    fn lose_table(&mut self, rng: &mut Rng) {
        let percent = [0, 100, 50][rng.below(3) as usize];
        let mut kept = Table::default();
        for at in 0..self.table.sums.len().max(self.synced_table.sums.len()) {
            let from = if rng.chance(percent) { &self.table } else { &self.synced_table };
            kept.sums.push(from.sums.get(at).copied().flatten());
        }
        self.table = kept;
    }

    fn lose_spool(&mut self, rng: &mut Rng, percent: u64) {
        let mut kept = self.synced_spool.clone();
        for (name, (entry, bytes)) in &self.spool {
            if kept.contains_key(name) || !rng.chance(percent) {
                continue;
            }
            let mut bytes = bytes.clone();
            match rng.below(6) {
                0 => bytes.truncate(rng.below(bytes.len() as u64) as usize),
                1 => {
                    let from = rng.below(bytes.len() as u64) as usize;
                    bytes[from..].fill(0);
                }
                _ => {}
            }
            kept.insert(name.clone(), (entry.clone(), bytes));
        }
        for name in self.synced_spool.keys() {
            if !self.spool.contains_key(name) && rng.chance(percent) {
                kept.remove(name);
            }
        }
        self.spool = kept;
    }

    /// Somebody deletes the state folder.
    pub fn delete(&mut self) {
        *self = Disk { full: self.full, ..Disk::default() };
    }

    /// Somebody deletes the page table.
    pub fn delete_table(&mut self) {
        self.table = Table::default();
        self.synced_table = Table::default();
    }
}
