//! What a host's disk holds of the local state, and when writing to it fails.

use std::cmp::Reverse;

use walferry::local::spool::Entry;
use walferry::local::state::State;
use walferry::ltx::{self, Checksum, DatabaseChecksum, Decoder};
use walferry::units::Pgno;

use crate::world::{Bug, Cx};

/// Why a step of the model did not go on.
#[derive(Debug)]
pub enum Stop {
    /// The process dies here; what is on the disk stays.
    Crash,
    /// The disk is full.
    Failed(String),
    /// Capture cannot go on from here.
    Diverged(String),
}

/// The page table: as the production's, without its file.
#[derive(Clone, Default)]
pub struct Table {
    sums: Vec<Option<Checksum>>,
}

impl Table {
    pub fn commit(&self) -> u32 {
        self.sums.len() as u32
    }

    pub fn get(&self, pgno: Pgno) -> Option<Checksum> {
        *self.sums.get(pgno as usize - 1)?
    }

    pub fn checksum(&self) -> DatabaseChecksum {
        let mut sum = DatabaseChecksum::EMPTY;
        self.sums.iter().flatten().for_each(|page| sum.toggle(*page));
        sum
    }

    pub fn set(&mut self, pgno: Pgno, sum: Option<Checksum>) {
        if self.sums.len() < pgno as usize {
            self.sums.resize(pgno as usize, None);
        }
        self.sums[pgno as usize - 1] = sum;
    }

    pub fn set_commit(&mut self, commit: u32) {
        self.sums.resize(commit as usize, None);
    }

    /// As recovery applies a captured file.
    pub fn apply(&mut self, bytes: &[u8]) -> Result<(), ltx::Error> {
        let mut decoder = Decoder::new(bytes)?;
        let commit = decoder.header().commit;
        while let Some(page) = decoder.next_page()? {
            if page.pgno <= commit {
                let sum = ltx::checksum::page(page.pgno, page.data);
                self.set(page.pgno, Some(sum));
            }
        }
        self.set_commit(commit);
        decoder.finish().map(|_| ())
    }
}

#[derive(Default)]
pub struct Disk {
    pub state: Option<State>,
    pub table: Table,
    spool: Vec<(Entry, Vec<u8>)>,
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

    pub fn save(&mut self, state: &State) -> Result<(), Stop> {
        self.write_new()?;
        self.state = Some(state.clone());
        Ok(())
    }

    pub fn publish(&mut self, entry: Entry, bytes: Vec<u8>) -> Result<(), Stop> {
        self.write_new()?;
        self.spool.retain(|(other, _)| other.file_name() != entry.file_name());
        self.spool.push((entry, bytes));
        Ok(())
    }

    pub fn remove(&mut self, entry: &Entry) -> Result<(), Stop> {
        self.write()?;
        self.spool.retain(|(other, _)| other.file_name() != entry.file_name());
        Ok(())
    }

    /// The page table is a mapped file: changing it is a write that cannot fail.
    pub fn set(&mut self, pgno: Pgno, sum: Checksum) -> Result<(), Stop> {
        self.write()?;
        self.table.set(pgno, Some(sum));
        Ok(())
    }

    pub fn set_commit(&mut self, commit: u32) -> Result<(), Stop> {
        self.write()?;
        self.table.set_commit(commit);
        Ok(())
    }

    pub fn read(&self, entry: &Entry) -> Option<&Vec<u8>> {
        let name = entry.file_name();
        self.spool.iter().find(|(other, _)| other.file_name() == name).map(|(_, bytes)| bytes)
    }

    pub fn spool_len(&self) -> usize {
        self.spool.len()
    }

    /// As the spool is read after a start: a directory lists its files in any order.
    pub fn scan(&mut self, cx: &mut Cx, done: u64) -> Result<Vec<Entry>, Stop> {
        let mut entries: Vec<Entry> = self.spool.iter().map(|(entry, _)| entry.clone()).collect();
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
