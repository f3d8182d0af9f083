//! The pin keeps processes without walferry from overwriting the WAL.
//!
//! A file object of our own on the database holds two locks. A SHARED lock on the file keeps other processes
//! from finding themselves alone and removing the WAL. A SHARED lock on a read slot whose mark is 'not used'
//! keeps them from restarting the WAL. A slot with that mark holds back no checkpoint (`walCheckpoint` in
//! `wal.c` takes the smallest mark) and serves no reader.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use walferry::border::Way;
use walferry::units::Salts;
use walferry::wal::WalIndex;
use walferry::wal::evidence::Guard;

use crate::api::{
    Api, BaseVfs, OwnFile, RawFile, SQLITE_LOCK_NONE, SQLITE_LOCK_SHARED, SQLITE_OK,
    SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_SHARED, SQLITE_SHM_UNLOCK, Shm,
};

/// `READMARK_NOT_USED` in `wal.c`.
const NOT_USED: u32 = 0xffff_ffff;
/// Lock of the writer (`WAL_WRITE_LOCK`).
const WRITE_LOCK: i32 = 0;
/// Lock of the checkpointer (`WAL_CKPT_LOCK`).
const CKPT_LOCK: i32 = 1;
/// Lock of read slot 0 (`WAL_READ_LOCK(0)`).
const READ_LOCK_0: i32 = 3;
/// Word of the wal-index with the number of frames that are in the database file (`nBackfill`, byte 96).
pub const BACKFILLED: usize = 24;

/// Words before the page numbers in the first region of the wal-index (`WALINDEX_HDR_SIZE` in `wal.c`, 136
/// bytes). They hold both copies of the header, and the checkpoint's part.
const HEADER_WORDS: usize = 34;
/// Page numbers in each region (`HASHTABLE_NPAGE`). The first region has fewer, by the words of its header.
const REGION_PAGES: usize = 4096;

/// Number of read slots (`WAL_NREADER`). Slot 0 is for readers that need nothing from the WAL.
const SLOTS: usize = 5;
/// Number of frames that may be committed behind a read transaction before a checkpoint ends it. The first is
/// for a transaction that makes room, the second for one that does not. While the transaction goes on,
/// checkpoints stop at its last frame, and the WAL grows.
const BEHIND: [u32; 2] = [500, 5000];
/// Number of attempts to begin a read transaction, since other connections may commit meanwhile.
const READ_ATTEMPTS: usize = 5;

/// Number of a read transaction of a pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Read(u64);

/// A read transaction under way.
#[derive(Clone, Copy)]
struct Reading {
    read: Read,
    slot: usize,
    /// Last frame that the transaction sees.
    frame: u32,
    /// A writer that restarts the WAL ends the transaction.
    makes_room: bool,
}

impl Reading {
    /// Returns the last frame up to which a checkpoint leaves the transaction alone.
    fn until(self) -> u32 {
        let [with, without] = BEHIND;
        self.frame.saturating_add(if self.makes_room { with } else { without })
    }
}

fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Returns a new guard.
pub fn new_guard() -> Guard {
    Guard(number())
}

/// A pinned WAL.
pub struct Pin {
    file: OwnFile,
    shm: Shm,
    /// Regions of the wal-index after the first.
    more: Vec<Shm>,
    /// The read slot that the pin holds, if it got one, and the slot's guard.
    slot: Option<(usize, Guard)>,
    /// How other processes may restart the WAL, since the slot was given up.
    way: Way,
    /// Guard of the slot before it was given up for a narrow way.
    before_way: Option<Guard>,
    /// The pin holds the checkpoint lock.
    checkpoints: bool,
    /// The read transaction under way.
    reading: Option<Reading>,
}

impl Pin {
    /// Pins the WAL of a database. Some connection of this process must have it open in WAL mode and have
    /// read it, so that its wal-index exists.
    ///
    /// With `hold`, takes a read slot at once; otherwise [`Pin::hold_slot`] does so later. `in_place` tells
    /// whether the path still has the file of that connection. SQLite would truncate the wal-index for
    /// another file.
    pub fn take(
        api: &'static Api,
        vfs: BaseVfs,
        path: &Path,
        hold: bool,
        in_place: impl Fn() -> bool,
    ) -> Option<Pin> {
        let file = OwnFile::open(api, vfs.0, path)?;
        let raw = file.raw();
        if !in_place() || !raw.has_shm() || raw.lock(SQLITE_LOCK_SHARED) != SQLITE_OK {
            return None;
        }
        let Some(shm) = raw.shm_header(true) else {
            // A refused xShmMap has opened the wal-index nevertheless, and xClose does not close it.
            raw.shm_unmap(false);
            raw.unlock(SQLITE_LOCK_NONE);
            return None;
        };
        let mut pin = Pin {
            file,
            shm,
            more: Vec::new(),
            slot: None,
            way: Way::Shut,
            before_way: None,
            checkpoints: false,
            reading: None,
        };
        if hold {
            pin.hold_slot();
        }
        Some(pin)
    }

    fn raw(&self) -> RawFile {
        self.file.raw()
    }

    /// Takes a read slot, unless the pin has one or [`Pin::give_way`] has given it up. Tries the last slot
    /// but one first, since readers begin with the first slot. A recovery that finds the last slot locked
    /// returns `SQLITE_BUSY` (`walIndexRecover` in `wal.c`).
    pub fn hold_slot(&mut self) {
        if self.way == Way::Shut && self.slot.is_none() {
            let reads = |slot: &usize| self.reading.is_some_and(|reading| reading.slot == *slot);
            let slots = [3, 2, 4].into_iter().filter(|slot| !reads(slot));
            let slot = slots.into_iter().find(|slot| self.try_slot(*slot));
            self.slot = slot.map(|slot| (slot, new_guard()));
        }
    }

    /// Continues an earlier guard. The caller knows that nothing which a guard excludes has happened in
    /// between.
    pub fn goes_on_as(&mut self, guard: Guard) {
        self.slot = self.slot.map(|(slot, _)| (slot, guard));
    }

    /// Returns the guard of the slot, while the pin holds one.
    pub fn guard(&self) -> Option<Guard> {
        self.slot.map(|(_, guard)| guard)
    }

    fn try_slot(&self, slot: usize) -> bool {
        let lock = READ_LOCK_0 + slot as i32;
        let raw = self.raw();
        // Another process's pin may hold the slot in the same way. The mark stays while any process holds the
        // slot.
        if raw.shm_lock(lock, 1, SQLITE_SHM_LOCK | SQLITE_SHM_SHARED) == SQLITE_OK {
            raw.shm_barrier();
            if self.shm.read_mark(slot) == NOT_USED {
                return true;
            }
            raw.shm_lock(lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
        }
        if !self.set_mark(slot, NOT_USED)
            || raw.shm_lock(lock, 1, SQLITE_SHM_LOCK | SQLITE_SHM_SHARED) != SQLITE_OK
        {
            return false;
        }
        raw.shm_barrier();
        // A reader may have taken the slot between the two locks, and set its own mark. The slot would then
        // hold back checkpoints.
        if self.shm.read_mark(slot) == NOT_USED {
            return true;
        }
        raw.shm_lock(lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
        false
    }

    /// Begins a read transaction, like `walTryBeginRead` in `wal.c`, and returns the index that describes its
    /// state. `None` if a transaction is under way, or if no slot is free.
    pub fn begin_read(&mut self, makes_room: bool) -> Option<(Read, WalIndex)> {
        if self.reading.is_some() {
            return None;
        }
        let (slot, index) = (0..READ_ATTEMPTS).find_map(|_| self.try_begin_read())?;
        let read = Read(number());
        self.reading = Some(Reading { read, slot, frame: index.max_frame, makes_room });
        Some((read, index))
    }

    fn try_begin_read(&self) -> Option<(usize, WalIndex)> {
        let index = self.index()?;
        let (slot, mark) = self.slot_for(index.max_frame)?;
        let (raw, lock) = (self.raw(), READ_LOCK_0 + slot as i32);
        if raw.shm_lock(lock, 1, SQLITE_SHM_LOCK | SQLITE_SHM_SHARED) != SQLITE_OK {
            return None;
        }
        raw.shm_barrier();
        // Before the lock, another process could change the mark, and copy or overwrite frames.
        let holds = slot == 0 || self.shm.read_mark(slot) == mark;
        if holds && self.index() == Some(index) {
            return Some((slot, index));
        }
        raw.shm_lock(lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
        None
    }

    /// Returns a slot for a reader of the frames up to `frame`, and the slot's mark. While the slot is held,
    /// no process copies frames beyond the mark. Never returns the pin's own slot, whose mark serves no
    /// reader.
    fn slot_for(&self, frame: u32) -> Option<(usize, u32)> {
        if self.copied() == frame {
            return Some((0, 0));
        }
        let marks = (1..SLOTS).map(|slot| (slot, self.shm.read_mark(slot)));
        let best = marks.filter(|(_, mark)| *mark <= frame).max_by_key(|(_, mark)| *mark);
        if let Some((_, mark)) = best
            && mark == frame
        {
            return best;
        }
        let free = (1..SLOTS).filter(|slot| self.slot.is_none_or(|(pinned, _)| pinned != *slot));
        let set = free.into_iter().find(|slot| self.set_mark(*slot, frame));
        set.map(|slot| (slot, frame)).or(best)
    }

    /// Sets the mark of a slot. `false` if another connection holds the slot.
    fn set_mark(&self, slot: usize, mark: u32) -> bool {
        let (raw, lock) = (self.raw(), READ_LOCK_0 + slot as i32);
        if raw.shm_lock(lock, 1, SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE) != SQLITE_OK {
            return false;
        }
        self.shm.set_read_mark(slot, mark);
        raw.shm_lock(lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
        true
    }

    /// True while this read transaction goes on.
    pub fn is_reading(&self, read: Read) -> bool {
        self.reading.is_some_and(|reading| reading.read == read)
    }

    /// Returns the last frame up to which a checkpoint leaves the current read transaction alone.
    pub fn reads_until(&self) -> Option<u32> {
        self.reading.map(Reading::until)
    }

    /// Ends the read transaction, if one is under way.
    pub fn end_read(&mut self) {
        if let Some(reading) = self.reading.take() {
            let lock = READ_LOCK_0 + reading.slot as i32;
            self.raw().shm_lock(lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
        }
    }

    /// Reads bytes of the database file. Only within one read transaction do they belong to one state.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.raw().read(buffer, offset)
    }

    /// Gives up the read slot, so that the WAL can be restarted until [`Pin::hold_slot`].
    pub fn drop_slot(&mut self) {
        if self.reading.is_some_and(|reading| reading.makes_room) {
            self.end_read();
        }
        self.unlock_checkpoints();
        self.way = Way::Shut;
        self.before_way = None;
        if let Some((slot, _)) = self.slot.take() {
            let lock = READ_LOCK_0 + slot as i32;
            self.raw().shm_lock(lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
        }
    }

    /// Gives up the slot for one restart of the WAL ([`walferry::border::Border::give_way`]).
    ///
    /// A writer restarts the WAL only if the database file had all of it when the writer's transaction began
    /// (`walRestartLog` in `wal.c`). While no process can checkpoint, this is so only where the WAL ends now.
    pub fn give_way(&mut self, captured: (Salts, u32), tail: u32) -> Way {
        if self.way != Way::Shut {
            return self.way;
        }
        let locked = self.lock_checkpoints();
        let (salts, frame) = captured;
        let index = self.index().filter(|index| index.salts == salts && index.max_frame >= frame);
        let behind = index.map(|index| index.max_frame - frame);
        let copied = self.copied() == frame;
        self.way = match behind {
            Some(0) if locked && copied => Way::Narrow,
            Some(behind) if behind <= tail && tail > 0 => Way::Wide,
            _ => Way::Shut,
        };
        let way = self.way;
        if way != Way::Narrow {
            self.unlock_checkpoints();
        }
        self.before_way = None;
        if way != Way::Shut
            && let Some((slot, guard)) = self.slot.take()
        {
            self.before_way = Some(guard).filter(|_| way == Way::Narrow);
            let lock = READ_LOCK_0 + slot as i32;
            self.raw().shm_lock(lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
        }
        way
    }

    /// Takes the slot again. `false` if no slot is free yet: the way then stays as it was.
    pub fn take_back(&mut self) -> bool {
        if self.way == Way::Shut {
            return true;
        }
        let way = std::mem::replace(&mut self.way, Way::Shut);
        self.hold_slot();
        if self.slot.is_none() {
            self.way = way;
            return false;
        }
        // Recovery (`walIndexRecover`) and a truncation of the WAL need the checkpoint lock, which the pin
        // has held in between. So neither has happened, and the guard continues.
        if let Some(guard) = self.before_way.take() {
            self.goes_on_as(guard);
        }
        self.unlock_checkpoints();
        true
    }

    /// Returns how many frames are in the database file too (`nBackfill` in `wal.c`).
    pub fn copied(&self) -> u32 {
        self.shm.word(BACKFILLED)
    }

    /// Takes the checkpoint lock, which blocks all checkpoints, or gives it up. Keeps the lock while the way
    /// is narrow, which needs it. Returns whether the pin holds the lock.
    pub fn hold_checkpoints(&mut self, hold: bool) -> bool {
        if hold {
            self.lock_checkpoints();
        } else if self.way != Way::Narrow {
            self.unlock_checkpoints();
        }
        self.checkpoints
    }

    fn lock_checkpoints(&mut self) -> bool {
        let lock = || self.raw().shm_lock(CKPT_LOCK, 1, SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE);
        self.checkpoints = self.checkpoints || lock() == SQLITE_OK;
        self.checkpoints
    }

    fn unlock_checkpoints(&mut self) {
        if std::mem::take(&mut self.checkpoints) {
            self.raw().shm_lock(CKPT_LOCK, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE);
        }
    }

    /// Removes the size of the database from the wal-index of an empty WAL, so that the wal-index is as after
    /// recovery. Later connections take the size from the database file, which may be another file by then.
    /// Does nothing while another connection writes or reads. A read transaction that sees the wal-index
    /// change cannot go on to write.
    pub fn forget_size(&self) {
        let raw = self.raw();
        let lock = |lock, how| raw.shm_lock(lock, 1, how | SQLITE_SHM_EXCLUSIVE) == SQLITE_OK;
        // A reader of an empty WAL takes slot 0.
        let taken: Vec<i32> = [WRITE_LOCK, READ_LOCK_0]
            .into_iter()
            .take_while(|which| lock(*which, SQLITE_SHM_LOCK))
            .collect();
        if taken.len() == 2 {
            raw.shm_barrier();
            let copies = self.shm.header();
            let (first, second) = copies.split_at(WalIndex::LEN);
            let first = first.try_into().ok().filter(|_| first == second);
            if let Some(without) = first.and_then(WalIndex::without_size) {
                self.shm.set_header(&without);
                raw.shm_barrier();
            }
        }
        for which in taken.into_iter().rev() {
            lock(which, SQLITE_SHM_UNLOCK);
        }
    }

    /// Returns the pages that these frames hold (`aPgno` in `wal.c`). `None` unless the frames belong to the
    /// generation of `index`.
    pub fn frame_pages(&mut self, index: &WalIndex, first: u32, last: u32) -> Option<Vec<u32>> {
        let frames = (first as usize).checked_sub(1)?..last as usize;
        let mut pages = Vec::with_capacity(frames.len());
        for frame in frames {
            let at = frame + HEADER_WORDS;
            let region = match at / REGION_PAGES {
                0 => self.shm,
                number => self.region(number - 1)?,
            };
            pages.push(region.word(at % REGION_PAGES));
        }
        self.raw().shm_barrier();
        let now = self.index()?;
        (now.salts == index.salts && now.max_frame >= last).then_some(pages)
    }

    fn region(&mut self, at: usize) -> Option<Shm> {
        while self.more.len() <= at {
            let number = i32::try_from(self.more.len() + 1).ok()?;
            self.more.push(self.raw().shm_region(number, false)?);
        }
        self.more.get(at).copied()
    }

    /// Returns the wal-index header.
    pub fn index(&self) -> Option<WalIndex> {
        read_index(self.shm)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.end_read();
        self.drop_slot();
        self.raw().shm_unmap(false);
        self.raw().unlock(SQLITE_LOCK_NONE);
    }
}

/// Returns a consistent copy of the header. Tries again while a writer changes it.
pub fn read_index(shm: Shm) -> Option<WalIndex> {
    (0..100).find_map(|_| {
        let copies = shm.header();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        WalIndex::parse_both(&copies)
    })
}
