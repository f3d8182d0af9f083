//! What writers, checkpoints and closes do to the files.

use std::collections::BTreeMap;
use std::rc::Rc;

use walferry::units::{PageSize, Pgno, Salts};
use walferry::wal::{self, WalIndex};

use super::{Author, Database, PAGES_MAX, Page, State, log};
use crate::rng::Rng;

impl Database {
    /// One transaction.
    pub fn commit(&mut self, rng: &mut Rng, at: u64, by: Author) {
        self.open(at);
        let (next, sums) = if self.sector > 0 && self.sector_rng.chance(15) {
            self.write_as_it_was(rng)
        } else {
            self.write_transaction(rng)
        };
        self.sums = sums;
        let begun = self.frames() == 0;
        self.set_index(next.len() as u32);
        if begun && rng.chance(15) {
            self.limit_size(rng);
        }
        if self.synchronous {
            self.sync_wal();
        }
        self.remember(next, at, by);
    }

    /// `journal_size_limit`: the first commit of a generation cuts off what is left of the one before.
    fn limit_size(&mut self, rng: &mut Rng) {
        let end = wal::frame_offset(self.page_size, self.cut + 1);
        let mut wal = self.wal.as_ref().unwrap().borrow_mut();
        let left = (wal.len() as u64).saturating_sub(end);
        let kept = if rng.chance(50) { 0 } else { rng.below(left + 1) };
        wal.truncate((end + kept) as usize);
    }

    /// A writer dies in the middle of the wal-index header, when all of its frames are written: the
    /// next connection recovers, and finds the transaction. Or it dies just before that: then its
    /// frames are written over, or found by a recovery that has another reason.
    pub fn die_committing(&mut self, rng: &mut Rng, at: u64, torn: bool) {
        self.open(at);
        let before = self.sums;
        let begun = self.frames() > 0;
        self.write_transaction(rng);
        self.patched = true;
        if torn {
            self.torn = true;
        } else if begun {
            self.sums = before;
            self.cut = self.frames();
        }
    }

    /// Writes the frames of a transaction: some pages, sometimes more or fewer of them, some written
    /// twice as after a spill, some changed alike. Gives the state that it makes, and the checksum
    /// that the next frame goes on from.
    fn write_transaction(&mut self, rng: &mut Rng) -> (State, log::Sums) {
        let mut next = self.now().clone();
        let before = next.len() as u32;
        let count = match rng.below(10) {
            0..2 => (before + 1 + rng.below(3) as u32).min(PAGES_MAX),
            2 => (before / 2).max(1),
            _ => before,
        };
        let mut changed: BTreeMap<Pgno, Page> = BTreeMap::new();
        for pgno in before + 1..=count {
            changed.insert(pgno, self.new_page());
        }
        next.resize(count as usize, Rc::new(Vec::new()));
        for _ in 0..=rng.below(3) {
            let pgno = 1 + rng.below(u64::from(count)) as u32;
            changed.insert(pgno, self.new_page());
        }
        if count > 1 && rng.chance(20) {
            self.change_alike(rng, &next, &mut changed);
        }
        for (pgno, page) in &changed {
            next[*pgno as usize - 1] = page.clone();
        }
        let mut frames: Vec<(Pgno, Page)> = Vec::new();
        if rng.chance(20) {
            frames.push((*changed.keys().next().unwrap(), self.new_page()));
        }
        frames.extend(changed);
        self.begin_wal(rng);
        let unmarked = self.leaves_unmarked && rng.chance(12);
        let before = self.sums;
        let last = frames.len();
        if unmarked {
            self.unmarked_from.get_or_insert(self.cut + 1);
        }
        for (at, (pgno, page)) in (1..).zip(frames) {
            self.append(pgno, if at == last { count } else { 0 }, &page, unmarked);
            if at == last {
                self.pad(pgno, count, &page, unmarked);
            }
        }
        let sums = match unmarked {
            false => self.sums,
            // `walRewriteChecksums` reads it from the header of some frame.
            true if rng.chance(50) => before,
            true => (0, 0),
        };
        self.patched |= unmarked;
        (next, sums)
    }

    /// A transaction that writes a page as it is, mostly the one that was written last: its frame looks
    /// like a copy.
    fn write_as_it_was(&mut self, rng: &mut Rng) -> (State, log::Sums) {
        let now = self.now().clone();
        let count = now.len() as u32;
        let pgno = self.ended_with.min(count);
        let page = now[pgno as usize - 1].clone();
        self.begin_wal(rng);
        self.append(pgno, count, &page, false);
        self.pad(pgno, count, &page, false);
        (now, self.sums)
    }

    /// Some writers repeat the last frame of a transaction up to the next sector boundary.
    fn pad(&mut self, pgno: Pgno, count: u32, page: &[u8], unmarked: bool) {
        self.ended_with = pgno;
        if self.sector == 0 || !self.sector_rng.chance(60) {
            return;
        }
        let boundary = self.wal_end().next_multiple_of(self.sector);
        while self.wal_end() < boundary {
            self.append(pgno, count, page, unmarked);
        }
    }

    /// Offset behind the last frame that was written.
    fn wal_end(&self) -> u64 {
        wal::frame_offset(self.page_size, self.cut + 1)
    }

    /// One statement that sets the same field in two pages.
    fn change_alike(&mut self, rng: &mut Rng, now: &State, changed: &mut BTreeMap<Pgno, Page>) {
        let known: Vec<Pgno> =
            (1..).zip(now).filter(|(_, p)| !p.is_empty()).map(|(n, _)| n).collect();
        if known.len() < 2 {
            return;
        }
        let first = rng.below(known.len() as u64 - 1) as usize;
        changed.clear();
        let with = rng.next() as u8 | 1;
        for pgno in &known[first..first + 2] {
            let mut page = now[*pgno as usize - 1].to_vec();
            page[100] ^= with;
            self.fill += 1;
            changed.insert(*pgno, Rc::new(page));
        }
        let grown = (1..).zip(now).filter(|(_, p)| p.is_empty()).map(|(n, _)| n);
        for pgno in grown.collect::<Vec<_>>() {
            changed.insert(pgno, self.new_page());
        }
    }

    /// A transaction that spilled and was rolled back: frames that nobody may believe.
    pub fn roll_back(&mut self, rng: &mut Rng) {
        assert!(self.index().is_some());
        self.begin_wal(rng);
        let kept = self.sums;
        let page = self.new_page();
        self.append(1, 0, &page, false);
        self.append(1, 0, &page, false);
        // The next transaction writes over them.
        self.sums = kept;
    }

    /// The WAL's file is there, with the header of the generation that is about to be written.
    fn begin_wal(&mut self, rng: &mut Rng) {
        let wal = self.wal.get_or_insert_default().clone();
        if self.frames() == 0 {
            let (salts, restarts) = match self.next_salts {
                // A connection that never began the WAL anew draws salts of its own.
                Some((salts, restarts)) if restarts > 0 && (self.keeps_salts || rng.chance(70)) => {
                    (salts, restarts)
                }
                _ => (Salts(rng.next() as u32, rng.next() as u32), 0),
            };
            let (header, sums) = log::header(self.page_size, restarts, salts);
            overwrite(&mut wal.borrow_mut(), 0, &header);
            self.sums = sums;
            self.next_salts = Some((salts, restarts));
            self.sync_wal();
            self.backfilled = 0;
            self.unmarked_from = None;
        }
        self.cut = self.frames();
    }

    fn set_index(&mut self, page_count: u32) {
        let (salts, _) = self.next_salts.unwrap();
        let change = self.index.map_or(0, |index| index.change) + 1;
        self.torn = false;
        let (max_frame, page_size) = (self.cut, self.page_size);
        let frame_checksum = self.sums;
        self.index =
            Some(WalIndex { change, max_frame, page_count, page_size, frame_checksum, salts });
    }

    fn append(&mut self, pgno: Pgno, commit: u32, page: &[u8], unmarked: bool) {
        let (salts, _) = self.next_salts.unwrap();
        self.cut += 1;
        let frame = if unmarked {
            log::unmarked(pgno, commit, page)
        } else {
            let (frame, sums) = log::frame(pgno, commit, salts, page, self.sums);
            self.sums = sums;
            frame
        };
        let at = wal::frame_offset(self.page_size, self.cut) as usize;
        overwrite(&mut self.wal.as_ref().unwrap().borrow_mut(), at, &frame);
    }

    fn sync_wal(&mut self) {
        self.wal_synced = self.wal.as_ref().map(|wal| wal.borrow().clone());
    }

    /// Copies frames into the main file, as far as readers allow.
    pub fn checkpoint(&mut self) {
        let Some((mark, limit)) = self.checkpoint_limit() else { return };
        self.sync_wal();
        for (pgno, page) in self.frames_between(mark, limit) {
            self.write_main(pgno, page);
        }
        self.backfilled = limit;
        self.version += 1;
        if limit == self.frames() {
            self.main.truncate(self.index.unwrap().page_count as usize);
            assert_eq!(&self.main, self.now(), "the model's own checkpoint");
        }
    }

    /// A checkpoint that ends in its middle, with the process or the power: some pages are written,
    /// some torn. The WAL has them all.
    pub fn checkpoint_in_part(&mut self, rng: &mut Rng) {
        let Some((mark, limit)) = self.checkpoint_limit() else { return };
        if self.unmarked_from.is_some() {
            return;
        }
        self.sync_wal();
        for (pgno, page) in self.frames_between(mark, limit) {
            if rng.chance(60) {
                let mut bytes = page.to_vec();
                if rng.chance(30) {
                    bytes[200..].fill(0xee);
                }
                self.write_main(pgno, Rc::new(bytes));
            }
        }
        self.version += 1;
    }

    /// Frames without checksums that were copied to the main file and are cut off by a recovery leave a
    /// database that SQLite itself has damaged: in the model, recovery finds them.
    pub(super) fn mark_what_was_copied(&mut self) {
        let Some(first) = self.unmarked_from.take_if(|first| *first <= self.backfilled) else {
            return;
        };
        let Some(wal) = self.wal.clone() else { return };
        let Some((salts, restarts)) = self.next_salts else { return };
        let (_, mut sums) = log::header(self.page_size, restarts, salts);
        for frame in 1..=self.cut {
            let header =
                wal::FrameHeader::read(wal.borrow().as_slice(), self.page_size, frame).unwrap();
            if frame < first {
                sums = header.checksum;
                continue;
            }
            let mut page = vec![0; self.page_size.bytes()];
            wal::read_frame_page(wal.borrow().as_slice(), self.page_size, frame, &mut page)
                .unwrap();
            let (bytes, next) = log::frame(header.pgno, header.commit, salts, &page, sums);
            sums = next;
            let at = wal::frame_offset(self.page_size, frame) as usize;
            overwrite(&mut wal.borrow_mut(), at, &bytes);
        }
        self.sums = sums;
        self.sync_wal();
    }

    fn checkpoint_limit(&self) -> Option<(u32, u32)> {
        if self.torn || self.readers.values().any(|mark| mark.file_only) {
            return None;
        }
        let oldest = self.readers.values().map(|mark| mark.frame).min();
        let limit = oldest.unwrap_or(u32::MAX).min(self.frames());
        (limit > self.backfilled).then_some((self.backfilled, limit))
    }

    fn frames_between(&self, from: u32, to: u32) -> Vec<(Pgno, Page)> {
        let wal = self.wal.as_ref().unwrap().borrow();
        let mut pages = Vec::new();
        for frame in from + 1..=to {
            let header = wal::FrameHeader::read(wal.as_slice(), self.page_size, frame).unwrap();
            let mut page = vec![0; self.page_size.bytes()];
            wal::read_frame_page(wal.as_slice(), self.page_size, frame, &mut page).unwrap();
            pages.push((header.pgno, Rc::new(page)));
        }
        pages
    }

    fn write_main(&mut self, pgno: Pgno, page: Page) {
        let at = pgno as usize - 1;
        if self.main.len() <= at {
            self.main.resize(at + 1, Rc::new(vec![0; self.page_size.bytes()]));
        }
        self.main[at] = page;
    }

    /// Begins the WAL anew; all of it must be in the main file. The file keeps its bytes until they
    /// are written over.
    pub fn restart(&mut self, rng: &mut Rng) {
        assert!(self.may_begin_anew());
        let index = self.index.as_mut().unwrap();
        index.salts = Salts(index.salts.0.wrapping_add(1), rng.next() as u32);
        index.max_frame = 0;
        let restarts = self.next_salts.map_or(0, |(_, restarts)| restarts) + 1;
        self.next_salts = Some((index.salts, restarts));
        self.keeps_salts = true;
        self.backfilled = 0;
    }

    /// Checkpoint TRUNCATE: the file is cut off as well.
    pub fn truncate(&mut self, rng: &mut Rng) {
        self.restart(rng);
        self.keeps_salts = false;
        self.wal.as_ref().unwrap().borrow_mut().clear();
    }

    /// The last close: everything goes to the main file, the WAL goes. Its name may come back with
    /// a power loss.
    pub fn close(&mut self, at: u64) {
        self.open(at);
        self.readers.clear();
        self.checkpoint();
        assert_eq!(&self.main, self.now(), "the model's own close");
        self.forget_wal();
    }

    fn forget_wal(&mut self) {
        self.unmarked_from = None;
        self.wal = None;
        self.index = None;
        self.next_salts = None;
        self.backfilled = 0;
        self.torn = false;
    }

    /// The file is written in another journal mode, perhaps with pages of another size, and is in
    /// WAL mode again. Nobody has it open meanwhile.
    pub fn rewrite(&mut self, rng: &mut Rng, at: u64, other_size: bool) {
        self.close(at);
        self.wal_synced = None;
        let mut pages = self.now().clone();
        if other_size {
            let size = if self.page_size.get() == 512 { 1024 } else { 512 };
            self.page_size = PageSize::new(size).unwrap();
            pages = pages.iter().map(|_| self.new_page()).collect();
        } else {
            let pgno = rng.below(pages.len() as u64) as usize;
            pages[pgno] = self.new_page();
        }
        self.main.clone_from(&pages);
        self.version += 1;
        self.remember(pages, at, None);
    }

    /// Another file takes the place of this one: an older copy, or another database. Nobody has it
    /// open meanwhile.
    pub fn replace(&mut self, rng: &mut Rng, at: u64) {
        self.close(at);
        self.wal_synced = None;
        let size = self.page_size.bytes();
        let old = rng.below(self.history.len() as u64) as usize;
        let same_size = self.history[old].state[0].len() == size;
        let pages = if same_size && rng.chance(60) {
            self.history[old].state.clone()
        } else {
            (0..=rng.below(6)).map(|_| self.new_page()).collect()
        };
        self.main.clone_from(&pages);
        self.inode += 1;
        self.version += 1;
        self.remember(pages, at, None);
    }
}

fn overwrite(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
