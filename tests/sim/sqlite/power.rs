//! What a loss of power leaves of a database.
//!
//! The main file is written by checkpoints alone, which sync it before they say that they are done.
//! Of the WAL each sector that was not synced may be there or not.

use std::cell::RefCell;
use std::rc::Rc;

use super::Database;
use crate::rng::Rng;

const SECTOR: usize = 512;

impl Database {
    /// The power goes: what was not synced is lost in part. The next one that opens the database
    /// sees the newest commit whose frames prove themselves.
    pub fn lose_power(&mut self, rng: &mut Rng, at: u64) {
        let before = self.head();
        if rng.chance(20) {
            // In the middle of a transaction.
            self.open(at);
            self.roll_back(rng);
        }
        self.mark_what_was_copied();
        let cached = self.wal.as_ref().map(|wal| wal.borrow().clone());
        let kept = match (cached, self.wal_synced.take()) {
            (Some(cached), Some(synced)) => Some(blend(rng, &synced, &cached)),
            (Some(cached), None) => rng.chance(50).then(|| blend(rng, &[], &cached)),
            // Its removal was not synced.
            (None, Some(synced)) => rng.chance(50).then_some(synced),
            (None, None) => None,
        };
        self.wal_synced.clone_from(&kept);
        self.wal = kept.map(|bytes| Rc::new(RefCell::new(bytes)));
        self.next_salts = None;
        self.abandon();
        self.open(at);
        assert!(self.head() <= before + 2);
        self.abandon();
    }
}

/// Each sector as it was synced or as it was written last.
fn blend(rng: &mut Rng, synced: &[u8], cached: &[u8]) -> Vec<u8> {
    let keep_percent = [0, 100, 50, 90][rng.below(4) as usize];
    let in_order = rng.chance(30);
    let mut result = synced.to_vec();
    let shrinks = cached.len() < synced.len() && rng.chance(50);
    for (number, sector) in cached.chunks(SECTOR).enumerate() {
        let at = number * SECTOR;
        if synced.get(at..at + sector.len()) == Some(sector) {
            continue;
        }
        if rng.chance(keep_percent) {
            if result.len() < at + sector.len() {
                result.resize(at + sector.len(), 0);
            }
            result[at..at + sector.len()].copy_from_slice(sector);
        } else if in_order {
            return result;
        }
    }
    if shrinks {
        result.truncate(cached.len());
    }
    result
}
