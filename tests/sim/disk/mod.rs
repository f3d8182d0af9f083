//! What a host's disk holds of the local state, and when writing to it fails.
//!
//! A process that dies leaves the page cache as it is; a loss of power takes of what was not synced
//! whatever it likes ([`power`]).

mod power;
mod table;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use walferry::history::Saved;
use walferry::local::spool::Entry;
use walferry::local::state::State;
use walferry::units::Pgno;

pub use table::Table;
use walferry::ltx::Checksum;

use crate::bug::Bug;
use crate::world::Cx;

/// Why a step of the model did not go on.
#[derive(Debug)]
pub enum Stop {
    /// The process dies here, or the whole host; what is on the disk stays.
    Crash,
    /// The disk is full, or the database cannot be read now.
    Failed(String),
    /// Capture cannot go on from here.
    Diverged(String),
    /// One of the model's promises is broken.
    Broken(String),
}

/// The state file.
#[derive(Clone)]
pub enum Stored {
    Whole(State),
    /// Its checksum shows that it is damaged.
    Torn,
}

#[derive(Default)]
pub struct Disk {
    pub state: Option<Stored>,
    pub table: Table,
    spool: BTreeMap<String, (Entry, Vec<u8>)>,
    /// What a loss of power cannot take.
    synced_state: Option<Stored>,
    synced_table: Table,
    synced_spool: BTreeMap<String, (Entry, Vec<u8>)>,
    /// What is known of the replica, and by which lineage.
    pub history: Option<(u64, Saved)>,
    synced_history: Option<(u64, Saved)>,
    /// States that were written since one was synced.
    unsynced_states: Vec<State>,
    /// The process dies instead of making the write with this number.
    pub fuse: Option<u64>,
    pub full: bool,
}

impl Disk {
    /// One write is about to be made: the place where a process may die.
    pub fn write(&mut self) -> Result<(), Stop> {
        if let Some(fuse) = &mut self.fuse {
            if *fuse == 0 {
                return Err(Stop::Crash);
            }
            *fuse -= 1;
        }
        Ok(())
    }

    fn write_new(&mut self) -> Result<(), Stop> {
        self.write()?;
        if self.full { Err(Stop::Failed("the disk is full".into())) } else { Ok(()) }
    }

    /// Replaces the state, durably or not.
    pub fn save(&mut self, state: &State, durable: bool) -> Result<(), Stop> {
        self.write_new()?;
        self.state = Some(Stored::Whole(state.clone()));
        if durable {
            self.synced_state.clone_from(&self.state);
            self.unsynced_states.clear();
        } else {
            self.unsynced_states.push(state.clone());
        }
        Ok(())
    }

    /// What is known of the replica: a full disk keeps the older.
    pub fn save_history(&mut self, writer: u64, saved: Saved) -> Result<(), Stop> {
        self.write()?;
        if !self.full {
            self.history = Some((writer, saved));
        }
        Ok(())
    }

    /// A failure to save is said in the log and nowhere else.
    pub fn save_if_possible(&mut self, state: &State, durable: bool) -> Result<bool, Stop> {
        match self.save(state, durable) {
            Ok(()) => Ok(true),
            Err(Stop::Failed(_)) => Ok(false),
            Err(stop) => Err(stop),
        }
    }

    /// Whether the state file says that an image was sent, and not what became of it.
    pub fn is_unsure_of_image(&self) -> bool {
        matches!(&self.state, Some(Stored::Whole(state)) if state.image.is_some())
    }

    pub fn publish(&mut self, entry: &Entry, bytes: Vec<u8>) -> Result<(), Stop> {
        self.write_new()?;
        self.spool.insert(entry.file_name(), (entry.clone(), bytes));
        Ok(())
    }

    pub fn remove(&mut self, entry: &Entry) -> Result<(), Stop> {
        self.write()?;
        self.spool.remove(&entry.file_name());
        Ok(())
    }

    /// The page table is a mapped file: changing it is a write that cannot fail.
    pub fn set(&mut self, pgno: Pgno, sum: Option<Checksum>) -> Result<(), Stop> {
        self.write()?;
        self.table.set(pgno, sum);
        Ok(())
    }

    pub fn set_commit(&mut self, commit: u32) -> Result<(), Stop> {
        self.write()?;
        self.table.set_commit(commit);
        Ok(())
    }

    pub fn sync_table(&mut self) -> Result<(), Stop> {
        self.write()?;
        self.synced_table.clone_from(&self.table);
        Ok(())
    }

    pub fn read(&self, entry: &Entry) -> Option<&Vec<u8>> {
        self.spool.get(&entry.file_name()).map(|(_, bytes)| bytes)
    }

    pub fn spool_names(&self) -> Vec<&String> {
        self.spool.keys().collect()
    }

    pub fn spool_len(&self) -> usize {
        self.spool.len()
    }

    /// As the spool is read after a start: a directory lists its files in any order.
    pub fn scan(&mut self, cx: &mut Cx, done: u64) -> Result<Vec<Entry>, Stop> {
        let mut entries: Vec<Entry> = self.spool.values().map(|(entry, _)| entry.clone()).collect();
        for i in (1..entries.len()).rev() {
            entries.swap(i, cx.rng.below(i as u64 + 1) as usize);
        }
        // Of files that begin alike the one that contains the other comes first.
        if cx.bug == Bug::JoinedComesLater {
            entries.sort_by_key(|entry| (entry.pieces.0, entry.txid.is_none()));
        } else {
            let longest = |entry: &Entry| Reverse(entry.pieces.1);
            entries.sort_by_key(|entry| (entry.pieces.0, entry.txid.is_none(), longest(entry)));
        }
        let mut kept: Vec<Entry> = Vec::new();
        for entry in entries {
            let passed = kept.last().map_or(done, |last| last.pieces.1);
            if entry.pieces.1 <= passed {
                self.remove(&entry)?;
            } else {
                kept.push(entry);
            }
        }
        Ok(kept)
    }
}
