//! The newest frame of each page, for any number of pages: up to [`PAGES_KEPT`] pages in memory, and
//! more in sorted runs on the disk.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;

use crate::scratch::{Place, Scratch, Stretch};
use crate::units::Pgno;

/// Largest number of pages in memory, at about 20 bytes each.
const PAGES_KEPT: usize = 64 << 10;
/// Length in bytes of an entry in a run: page number and frame number.
const ENTRY_LEN: usize = 8;
/// Number of entries of a run that a walk reads at once.
const READ_AT_ONCE: usize = 256;

/// The newest frame of each page in a stretch of frames.
#[derive(Clone, Debug, Default)]
pub struct Newest {
    /// Runs on the disk, oldest first, each sorted by page. The last run with a page has its newest frame.
    runs: Vec<Stretch>,
    /// Number of runs that are settled; these come first.
    settled: usize,
    /// Settled pages in memory, newer than all settled runs.
    recent: BTreeMap<Pgno, u32>,
    /// Added pages that are not settled yet.
    pending: BTreeMap<Pgno, u32>,
    /// File for the runs; `None` keeps all pages in memory.
    scratch: Option<Scratch>,
}

impl Newest {
    /// Spills to `place` from now on, so that at most [`PAGES_KEPT`] pages are in memory.
    pub(super) fn spill_to(&mut self, place: &Place) {
        self.scratch.get_or_insert_with(|| Scratch::new(place.clone()));
    }

    /// Adds a page's frame, not settled yet. The frame must be newer than all others.
    pub(super) fn add(&mut self, pgno: Pgno, frame: u32) -> io::Result<()> {
        self.pending.insert(pgno, frame);
        let Some(scratch) = &mut self.scratch else { return Ok(()) };
        if self.recent.len() + self.pending.len() < PAGES_KEPT {
            return Ok(());
        }
        if !self.recent.is_empty() {
            // While `recent` has pages, all runs are settled.
            self.runs.push(scratch.append(&encode(&self.recent))?);
            self.recent.clear();
            self.settled = self.runs.len();
        }
        if self.pending.len() * 2 >= PAGES_KEPT {
            self.runs.push(scratch.append(&encode(&self.pending))?);
            self.pending.clear();
        }
        Ok(())
    }

    /// Settles all added pages, so that [`Newest::drop_pending`] keeps them.
    pub(super) fn settle(&mut self) {
        self.settled = self.runs.len();
        if self.recent.is_empty() {
            std::mem::swap(&mut self.recent, &mut self.pending);
        } else {
            self.recent.extend(std::mem::take(&mut self.pending));
        }
    }

    /// Drops the added pages that are not settled.
    pub(super) fn drop_pending(&mut self) {
        self.runs.truncate(self.settled);
        self.pending.clear();
        if let Some(scratch) = &mut self.scratch {
            scratch.rewind(self.runs.last());
        }
    }

    /// Returns a page's newest frame.
    pub fn get(&self, pgno: Pgno) -> io::Result<Option<u32>> {
        if let Some(frame) = self.recent.get(&pgno) {
            return Ok(Some(*frame));
        }
        for run in self.runs.iter().rev() {
            let (mut low, mut high) = (0, run.len / ENTRY_LEN as u64);
            while low < high {
                let middle = low + (high - low) / 2;
                let mut entry = [0; ENTRY_LEN];
                run.read_exact_at(&mut entry, middle.saturating_mul(ENTRY_LEN as u64))?;
                let (found, frame) = decode(entry);
                match found.cmp(&pgno) {
                    std::cmp::Ordering::Less => low = middle + 1,
                    std::cmp::Ordering::Equal => return Ok(Some(frame)),
                    std::cmp::Ordering::Greater => high = middle,
                }
            }
        }
        Ok(None)
    }

    /// Starts a walk over all pages, in ascending order.
    pub fn walk(&self) -> Walk {
        let runs = vec![RunWalk::default(); self.runs.len()];
        Walk { runs, heads: BinaryHeap::new(), next: Some(0), begun: false }
    }

    /// Returns all pages with their frames, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = io::Result<(Pgno, u32)>> + '_ {
        let mut walk = self.walk();
        std::iter::from_fn(move || walk.next(self).transpose())
    }
}

/// Compares the pages, no matter where they are stored. After a read error the two are not equal.
impl PartialEq for Newest {
    fn eq(&self, other: &Newest) -> bool {
        let (mut one, mut two) = (self.walk(), other.walk());
        loop {
            match (one.next(self), two.next(other)) {
                (Ok(None), Ok(None)) => return true,
                (Ok(one), Ok(two)) if one == two => {}
                _ => return false,
            }
        }
    }
}

impl Eq for Newest {}

/// State of a walk over the pages of a [`Newest`]. All steps of a walk must be over the same pages.
#[derive(Debug)]
pub struct Walk {
    runs: Vec<RunWalk>,
    /// For each run, and for the pages in memory: next page, number of the run, frame. The pages in memory
    /// have the number behind the last run.
    heads: BinaryHeap<Reverse<(Pgno, Reverse<usize>, u32)>>,
    /// First page in memory that the walk has not read yet; `None` at the end.
    next: Option<Pgno>,
    begun: bool,
}

#[derive(Clone, Debug, Default)]
struct RunWalk {
    /// Number of bytes read from the run.
    read: u64,
    /// Entries read from the run; the walk has used the first `used` bytes.
    entries: Vec<u8>,
    used: usize,
}

impl RunWalk {
    fn next(&mut self, run: &Stretch) -> io::Result<Option<(Pgno, u32)>> {
        if self.used >= self.entries.len() {
            let left = usize::try_from(run.len - self.read).unwrap_or(usize::MAX);
            self.entries.resize(left.min(READ_AT_ONCE * ENTRY_LEN), 0);
            run.read_exact_at(&mut self.entries, self.read)?;
            self.read = self.read.saturating_add(self.entries.len() as u64);
            self.used = 0;
        }
        let entry = self.entries.get(self.used..).and_then(|rest| rest.first_chunk());
        self.used += ENTRY_LEN;
        Ok(entry.copied().map(decode))
    }
}

impl Walk {
    /// Returns the next page and its newest frame.
    pub fn next(&mut self, of: &Newest) -> io::Result<Option<(Pgno, u32)>> {
        if !std::mem::replace(&mut self.begun, true) {
            (0..=self.runs.len()).try_for_each(|from| self.pull(of, from))?;
        }
        let Some(Reverse((pgno, Reverse(from), frame))) = self.heads.pop() else { return Ok(None) };
        self.pull(of, from)?;
        // Skip older frames of the same page.
        while let Some(Reverse((same, Reverse(from), _))) = self.heads.peek().copied()
            && same == pgno
        {
            self.heads.pop();
            self.pull(of, from)?;
        }
        Ok(Some((pgno, frame)))
    }

    /// Adds the next page of run `from` to the heads. The number behind the last run means the pages in
    /// memory.
    fn pull(&mut self, of: &Newest, from: usize) -> io::Result<()> {
        let head = match (self.runs.get_mut(from), of.runs.get(from)) {
            (Some(walk), Some(run)) => walk.next(run)?,
            _ => {
                let head = self.next.and_then(|next| of.recent.range(next..).next());
                let head = head.map(|(pgno, frame)| (*pgno, *frame));
                self.next = head.and_then(|(pgno, _)| pgno.checked_add(1));
                head
            }
        };
        if let Some((pgno, frame)) = head {
            self.heads.push(Reverse((pgno, Reverse(from), frame)));
        }
        Ok(())
    }
}

fn encode(pages: &BTreeMap<Pgno, u32>) -> Vec<u8> {
    let entry =
        |(pgno, frame): (&Pgno, &u32)| (u64::from(*pgno) << 32 | u64::from(*frame)).to_le_bytes();
    pages.iter().flat_map(entry).collect()
}

fn decode(entry: [u8; ENTRY_LEN]) -> (Pgno, u32) {
    let entry = u64::from_le_bytes(entry);
    ((entry >> 32) as Pgno, entry as u32)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn create(path: &std::path::Path) -> io::Result<std::fs::File> {
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(path)?;
        std::fs::remove_file(path)?;
        Ok(file)
    }

    /// Adds pages in random order, some of them repeatedly, and compares the result with a map.
    #[test]
    fn it_is_a_map_that_keeps_little() {
        let dir = tempfile::tempdir().unwrap();
        let mut newest = Newest::default();
        newest.spill_to(&Place::new(&dir.path().join("scratch.tmp"), create));
        let (mut map, mut seed) = (BTreeMap::new(), 1u32);
        for (number, length) in [1, 100_000, 3, 400_000, 70_000, 200_000].into_iter().enumerate() {
            let before = newest.clone();
            for round in 0..2 {
                let first = map.values().max().map_or(1, |last| last + 1);
                for frame in first..first + length {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let pgno = if number % 2 == 0 { seed >> 13 } else { frame };
                    newest.add(pgno, frame).unwrap();
                    assert!(newest.recent.len() + newest.pending.len() <= PAGES_KEPT);
                    if round == 1 {
                        map.insert(pgno, frame);
                    }
                }
                if round == 0 {
                    newest.drop_pending();
                    assert!(newest == before, "what was not settled does not count");
                }
            }
            newest.settle();
            assert!(newest != before);
            let found = newest.iter().map(Result::unwrap);
            assert!(found.eq(map.iter().map(|(pgno, frame)| (*pgno, *frame))));
        }
        assert!(newest.runs.len() > 5, "{}", newest.runs.len());
        for pgno in (0..600_000).step_by(97).chain([u32::MAX]) {
            assert_eq!(newest.get(pgno).unwrap(), map.get(&pgno).copied(), "page {pgno}");
        }
    }

    #[test]
    fn what_was_dropped_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut newest = Newest::default();
        newest.spill_to(&Place::new(&dir.path().join("scratch.tmp"), create));
        for attempt in 0..3 {
            (1..=200_000).for_each(|frame| newest.add(frame, frame).unwrap());
            match attempt {
                2 => newest.settle(),
                _ => newest.drop_pending(),
            }
        }
        assert!(newest.runs.len() > 2);
        let taken: u64 = newest.runs.iter().map(|run| run.len).sum();
        assert_eq!(newest.runs.last().unwrap().end(), taken);
        assert!(newest.iter().map(Result::unwrap).eq((1..=200_000).map(|frame| (frame, frame))));
    }

    #[test]
    fn without_room_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let mut newest = Newest::default();
        newest.add(Pgno::MAX, 1).unwrap();
        newest.settle();
        newest.spill_to(&Place::new(&dir.path().join("none/scratch.tmp"), create));
        let before = newest.clone();
        let error = (1..=PAGES_KEPT as u32).find_map(|frame| newest.add(frame, frame).err());
        assert_eq!(error.unwrap().kind(), io::ErrorKind::NotFound);
        newest.drop_pending();
        assert!(newest == before);
        assert!(newest.iter().map(Result::unwrap).eq([(Pgno::MAX, 1)]));
    }
}
