//! The pin: what keeps processes without walferry from overwriting the WAL.
//!
//! A file object of our own on the database holds a SHARED lock on the file, so that no other
//! process finds itself alone and removes the WAL; and a SHARED lock on a read slot whose mark is
//! 'not used', so that none can begin the WAL anew. A slot with that mark holds back no checkpoint
//! (`walCheckpoint` in `wal.c` takes the smallest mark) and serves no reader.

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
/// Lock of who writes (`WAL_WRITE_LOCK`).
const WRITE_LOCK: i32 = 0;
/// Lock of who checkpoints (`WAL_CKPT_LOCK`).
const CKPT_LOCK: i32 = 1;
/// Lock of read slot 0 (`WAL_READ_LOCK(0)`).
const READ_LOCK_0: i32 = 3;
/// Word of the wal-index that counts the frames which are in the database file (`nBackfill`, byte 96).
pub const BACKFILLED: usize = 24;

/// Words before the page numbers in the first region of the wal-index: both copies of the header
/// and the checkpoint's part (`WALINDEX_HDR_SIZE` in `wal.c`, 136 bytes).
const HEADER_WORDS: usize = 34;
/// Page numbers in each region (`HASHTABLE_NPAGE`); the first has so many fewer as its header has
/// words.
const REGION_PAGES: usize = 4096;

/// Read slots (`WAL_NREADER`). The first one is for readers that need nothing of the WAL.
const SLOTS: usize = 5;
/// Most frames that may be committed while a read transaction goes on that makes room, and while one does
/// that makes none: a checkpoint has to stop where it began, and the WAL grows.
const BEHIND: [u32; 2] = [500, 5000];
/// Attempts to begin a read transaction, as others commit meanwhile.
const READ_ATTEMPTS: usize = 5;

/// A read transaction of a pin's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Read(u64);

/// A read transaction under way.
#[derive(Clone, Copy)]
struct Reading {
    read: Read,
    slot: usize,
    /// The last frame that it sees.
    frame: u32,
    /// Ends for who begins the WAL anew.
    makes_room: bool,
}

impl Reading {
    /// The last frame up to which a checkpoint lets it go on.
    fn until(self) -> u32 {
        let [with, without] = BEHIND;
        self.frame.saturating_add(if self.makes_room { with } else { without })
    }
}

fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A guard that was never held before.
pub fn new_guard() -> Guard {
    Guard(number())
}

/// A pinned WAL.
pub struct Pin {
    file: OwnFile,
    shm: Shm,
    /// The regions of the wal-index behind the first.
    more: Vec<Shm>,
    /// The read slot held, if one was to be had, and the guard that it is.
    slot: Option<(usize, Guard)>,
    /// Whether the slot was given up so that others may begin the WAL anew.
    way: Way,
    /// The guard that the slot was when a narrow way was given.
    before_way: Option<Guard>,
    /// Whether the checkpoint lock is held.
    checkpoints: bool,
    /// The read transaction under way.
    reading: Option<Reading>,
}

impl Pin {
    /// Pins the WAL of a database that some connection of this process has open in WAL mode, and
    /// is reading: so its wal-index exists.
    ///
    /// `hold` takes a read slot at once; else that is left to [`Pin::hold_slot`]. `in_place` tells whether the
    /// path has the file of that connection still: SQLite would truncate the wal-index for another one.
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
            // A refused xShmMap has opened the wal-index all the same, and xClose does not close it.
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

    /// Takes a read slot, the last one but one first. Readers begin with the first slot. A recovery that
    /// finds the last slot locked returns `SQLITE_BUSY` (`walIndexRecover` in `wal.c`). Not while others
    /// have the way.
    pub fn hold_slot(&mut self) {
        if self.way == Way::Shut && self.slot.is_none() {
            let reads = |slot: &usize| self.reading.is_some_and(|reading| reading.slot == *slot);
            let slots = [3, 2, 4].into_iter().filter(|slot| !reads(slot));
            let slot = slots.into_iter().find(|slot| self.try_slot(*slot));
            self.slot = slot.map(|slot| (slot, new_guard()));
        }
    }

    /// Counts as the guard that was held before, if nothing was committed in between.
    pub fn goes_on_as(&mut self, guard: Guard) {
        self.slot = self.slot.map(|(slot, _)| (slot, guard));
    }

    /// The guard that the slot is, while it is held.
    pub fn guard(&self) -> Option<Guard> {
        self.slot.map(|(_, guard)| guard)
    }

    fn try_slot(&self, slot: usize) -> bool {
        let lock = READ_LOCK_0 + slot as i32;
        let raw = self.raw();
        // Another process's pin may hold it in the same way. Its mark stays while anybody does.
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
        // Between the two locks a reader may have taken the slot and set its own mark: then it
        // would hold back checkpoints.
        if self.shm.read_mark(slot) == NOT_USED {
            return true;
        }
        raw.shm_lock(lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
        false
    }

    /// Begins a read transaction, as `walTryBeginRead` in `wal.c` does, of the state that this index
    /// describes. `None` while one is under way, or no slot is to be had.
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
        // Before the lock the mark could be set anew, and frames be copied or overwritten.
        let holds = slot == 0 || self.shm.read_mark(slot) == mark;
        if holds && self.index() == Some(index) {
            return Some((slot, index));
        }
        raw.shm_lock(lock, 1, SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED);
        None
    }

    /// The slot for a reader of the frames up to this one, and its mark: nobody copies frames beyond it
    /// while the slot is held. That of the pin is none: its mark is for nobody to read by.
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

    /// Sets the mark of a slot that nobody reads by.
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

    /// The last frame up to which a checkpoint lets the read transaction go on that is under way.
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

    /// Reads bytes of the database file. They are of one state only in a read transaction.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.raw().read(buffer, offset)
    }

    /// Lets the WAL be begun anew, for as long as the slot is not taken again.
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

    /// Gives the slot up for one new beginning of the WAL ([`walferry::border::Border::give_way`]).
    ///
    /// A writer begins the WAL anew only if all of it was in the database file when its transaction
    /// began (`walRestartLog` in `wal.c`). While nobody can checkpoint, that is so only where it ends
    /// now.
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

    /// Takes the slot again; `false` when it is not to be had yet. Until it is, the way stays narrow
    /// if it was.
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
        // Recovery (`walIndexRecover`) and whoever truncates the WAL need the checkpoint lock, which was
        // held all the while: what a guard excludes was excluded.
        if let Some(guard) = self.before_way.take() {
            self.goes_on_as(guard);
        }
        self.unlock_checkpoints();
        true
    }

    /// How many frames are in the database file too (`nBackfill` in `wal.c`).
    pub fn copied(&self) -> u32 {
        self.shm.word(BACKFILLED)
    }

    /// Keeps everybody from checkpointing, or ends that; not while the way is narrow, which needs it.
    /// Whether nobody can.
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

    /// Removes the size of the database from the wal-index of an empty WAL, as recovery leaves it. Connections
    /// that are opened later take it from the database file, which may be another one by then. Not while
    /// somebody writes, or reads: a read transaction that sees the wal-index change cannot go on to write.
    pub fn forget_size(&self) {
        let raw = self.raw();
        let lock = |lock, how| raw.shm_lock(lock, 1, how | SQLITE_SHM_EXCLUSIVE) == SQLITE_OK;
        // A reader of an empty WAL takes the first slot.
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

    /// The pages that these frames hold (`aPgno` in `wal.c`), if they belong to this generation.
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

    /// The wal-index header.
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

/// A consistent copy of the header: tried again while a writer is just changing it.
pub fn read_index(shm: Shm) -> Option<WalIndex> {
    (0..100).find_map(|_| {
        let copies = shm.header();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        WalIndex::parse_both(&copies)
    })
}
