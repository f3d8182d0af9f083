//! The methods of a main database that are acted on: when a commit is seen, when the WAL may be
//! overwritten, when the pin gives way. Safe code; the calls come from `ffi/`.

use std::sync::atomic::Ordering;

use walferry::finding::Finding;
use walferry::local::state::Fingerprint;

use crate::api::{
    self, SQLITE_BUSY, SQLITE_FCNTL_CKPT_DONE, SQLITE_FCNTL_CKPT_START,
    SQLITE_FCNTL_COMMIT_PHASETWO, SQLITE_LOCK_EXCLUSIVE, SQLITE_LOCK_NONE, SQLITE_OK,
    SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_SHARED, SQLITE_SHM_UNLOCK, Shm,
};
use crate::functions;
use crate::handle::{Handle, WalWrites, fresh};
use crate::pin::{Pin, read_index};

/// Locks of the wal-index (`wal.c`): write, checkpoint, and the first read slot but one.
const WRITE_LOCK: i32 = 0;
const CKPT_LOCK: i32 = 1;
const READ_LOCK_0: i32 = 3;
const READ_LOCK_1: i32 = 4;
/// Read slots 1 to 4: asked for at once only to begin the WAL anew.
const READERS: i32 = 4;
/// While the gate is shut, a checkpoint is let through for so many new frames: each one costs two
/// fsyncs and cannot shorten the WAL.
const CHECKPOINT_EVERY: u32 = 1000;

/// The methods of a main database that are acted on.
pub struct MainFile<'a>(pub &'a Handle);

impl MainFile<'_> {
    /// `xShmLock`.
    pub fn shm_lock(&self, offset: i32, count: i32, flags: i32) -> i32 {
        const LOCK_EXCL: i32 = SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE;
        const UNLOCK_EXCL: i32 = SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE;
        const LOCK_SHARED: i32 = SQLITE_SHM_LOCK | SQLITE_SHM_SHARED;
        let handle = self.0;
        let forward = || handle.real.shm_lock(offset, count, flags);
        match (offset, count, flags) {
            (WRITE_LOCK, 1, UNLOCK_EXCL) => {
                self.publish();
                forward()
            }
            (CKPT_LOCK, 1, LOCK_EXCL) => {
                if self.holds_back_checkpoint() {
                    return SQLITE_BUSY;
                }
                handle.database().checkpoint_begins();
                let rc = forward();
                handle.checkpoints.store(rc == SQLITE_OK, Ordering::Release);
                rc
            }
            (CKPT_LOCK, _, UNLOCK_EXCL) => {
                handle.checkpoints.store(false, Ordering::Release);
                handle.copies.store(false, Ordering::Release);
                forward()
            }
            (READ_LOCK_1, READERS, LOCK_EXCL) => self.restart(forward),
            (READ_LOCK_1, READERS, UNLOCK_EXCL) => {
                let rc = forward();
                handle.database().restarted();
                handle.shimmed.hold_again();
                rc
            }
            (offset, 1, LOCK_SHARED) if offset >= READ_LOCK_0 => {
                let rc = forward();
                if rc == SQLITE_OK && !handle.shimmed.is_attached() {
                    let shm = Shm::from_pointer(handle.shm.load(Ordering::Acquire).cast())
                        .or_else(|| handle.real.shm_header(false));
                    handle.set_shm(shm);
                    handle.shimmed.attach(shm.and_then(read_index));
                    // Another connection may have committed while the pin was being taken.
                    self.publish();
                }
                rc
            }
            _ => forward(),
        }
    }

    /// The write lock is about to be given up: what was committed under it is final, in order, and
    /// nobody else can be writing.
    fn publish(&self) {
        let handle = self.0;
        if handle.shimmed.is_attached()
            && let Some(index) = handle.index()
        {
            handle.database().committed(index);
        }
    }

    /// Somebody who holds the write lock wants to begin the WAL anew.
    fn restart(&self, forward: impl Fn() -> i32) -> i32 {
        let handle = self.0;
        if !handle.shimmed.is_attached() {
            return forward();
        }
        let allowed = match handle.index() {
            Some(index) if index.max_frame > 0 => handle.database().may_restart(index),
            _ => true,
        };
        if !allowed {
            // A writer then appends without an error, and a checkpoint says that it was busy.
            return SQLITE_BUSY;
        }
        let mut pin = handle.shimmed.pin.lock();
        if let Some(pin) = pin.as_mut() {
            pin.drop_slot();
        }
        let rc = forward();
        // What is shared with the sealer is locked before the pin, never after it.
        drop(pin);
        if rc != SQLITE_OK {
            handle.database().restart_failed();
            handle.shimmed.hold_again();
        }
        rc
    }

    /// With the gate shut the WAL grows, and SQLite would checkpoint at every commit.
    fn holds_back_checkpoint(&self) -> bool {
        let handle = self.0;
        if !handle.shimmed.is_attached() || !handle.database().gate_stays_shut() {
            return false;
        }
        let Some(index) = handle.index() else { return false };
        let last = handle.shimmed.checkpointed.load(Ordering::Acquire);
        let grown = index.max_frame.checked_sub(last).is_none_or(|by| by >= CHECKPOINT_EVERY);
        if grown {
            handle.shimmed.checkpointed.store(index.max_frame, Ordering::Release);
        }
        !grown
    }

    /// `xLock`. EXCLUSIVE is asked for at the last close, at a change of the journal mode, and for
    /// `locking_mode=EXCLUSIVE`: our own SHARED lock must not be in the way, and the WAL may go.
    pub fn lock(&self, level: i32) -> i32 {
        let handle = self.0;
        if level < SQLITE_LOCK_EXCLUSIVE || handle.is_exclusive() {
            return handle.real.lock(level);
        }
        let before = handle.index();
        let complete = handle.wait_captured();
        handle.shimmed.unpin();
        let fingerprint = Fingerprint::of(handle.database().path()).ok();
        let rc = handle.real.lock(level);
        if rc == SQLITE_OK {
            let now = handle.index();
            let same_wal = before.map(|index| index.salts) == now.map(|index| index.salts);
            *handle.before.lock() = fingerprint;
            handle.exclusive.store(true, Ordering::Release);
            // Others may have committed before we were alone.
            let complete =
                if before == now { complete } else { same_wal && handle.wait_captured() };
            handle.complete.store(complete, Ordering::Release);
            handle.set_readable(true);
            return rc;
        }
        if handle.shimmed.is_attached()
            && let Some(api) = api::api()
        {
            let path = handle.database().path();
            let hold = handle.shimmed.holds.any();
            *handle.shimmed.pin.lock() = Pin::take(api, handle.shimmed.vfs, path, hold);
        }
        // Only a WAL with frames shows by itself that another one took its place.
        let now = handle.index();
        let begun = before.is_some_and(|index| index.max_frame > 0);
        let same_wal = before.map(|index| index.salts) == now.map(|index| index.salts);
        let unseen = if begun { !complete && !same_wal } else { before != now };
        if unseen {
            handle.database().diverged_here(Finding::WalRestartedUnseen);
        }
        rc
    }

    /// Before `xUnlock`.
    pub fn before_unlock(&self, level: i32) {
        let handle = self.0;
        if level >= SQLITE_LOCK_EXCLUSIVE || !handle.is_exclusive() {
            return;
        }
        let captured = handle.wait_captured();
        handle.set_readable(false);
        handle.exclusive.store(false, Ordering::Release);
        *handle.written.lock() = WalWrites::default();
        if !handle.shimmed.is_attached() {
            return;
        }
        // Still alone: if the WAL is gone, all of it is in the file, and this is how that looks.
        let path = handle.database().path();
        let wal_is_gone = std::fs::metadata(walferry::local::wal_path(path)).is_err();
        let written = handle.shimmed.written.load(Ordering::Acquire);
        let clean = wal_is_gone && !written && captured && handle.complete.load(Ordering::Acquire);
        let fingerprint = Fingerprint::of(path).ok().filter(|_| clean);
        handle.shimmed.detach(fingerprint);
    }

    /// After `xUnlock`. What was an empty database has got its first content: now WAL mode takes no
    /// choice away any more.
    pub fn after_unlock(&self, level: i32) {
        let handle = self.0;
        if level > SQLITE_LOCK_NONE || handle.fresh.load(Ordering::Acquire) != fresh::WRITTEN {
            return;
        }
        let done = handle.shimmed.is_attached() || functions::into_wal_mode(&handle.shimmed);
        // In vain, as where another connection reads: again after the next write.
        let next = if done { fresh::NO } else { fresh::NOT_YET };
        handle.fresh.store(next, Ordering::Release);
    }

    /// Before `xWrite`.
    pub fn before_write(&self) {
        let handle = self.0;
        handle.disturb();
        let checkpoint =
            handle.checkpoints.load(Ordering::Acquire) || handle.copies.load(Ordering::Acquire);
        if checkpoint {
            return;
        }
        if handle.is_exclusive() && handle.shimmed.is_attached() {
            // With a WAL only checkpoints write to the file: that mode was left, with the lock held.
            handle.wait_captured();
            *handle.written.lock() = WalWrites::default();
            handle.shimmed.detach(None);
        }
        if !handle.shimmed.is_attached() {
            handle.database().written_outside_wal();
            if handle.fresh.load(Ordering::Acquire) == fresh::NOT_YET {
                handle.fresh.store(fresh::WRITTEN, Ordering::Release);
            }
        }
        if !handle.shimmed.written.swap(true, Ordering::AcqRel) {
            log::debug!("{}: written outside the WAL", handle.database().path().display());
        }
    }

    /// Before `xFileControl`.
    pub fn before_control(&self, op: i32) {
        let handle = self.0;
        match op {
            SQLITE_FCNTL_CKPT_START => {
                handle.disturb();
                handle.copies.store(true, Ordering::Release);
            }
            SQLITE_FCNTL_CKPT_DONE => handle.copies.store(false, Ordering::Release),
            // With the database to itself a connection takes no wal-index locks: this is the only
            // sign of a commit.
            SQLITE_FCNTL_COMMIT_PHASETWO if handle.is_exclusive() => self.publish_exclusive(),
            _ => {}
        }
    }

    fn publish_exclusive(&self) {
        let handle = self.0;
        let Some(index) = handle.exclusive_index() else {
            if handle.adopted {
                handle.database().diverged(Finding::HeldExclusively);
            }
            return;
        };
        if !handle.shimmed.is_attached() {
            let begun = handle.written.lock().begun;
            let before = handle.before.lock().take();
            handle.shimmed.attached.store(true, Ordering::Release);
            let seen = if begun { None } else { Some(index) };
            handle.database().attached(seen, before);
        }
        handle.database().committed(index);
    }

    /// Before `xClose`.
    pub fn before_close(&self) {
        let handle = self.0;
        let shimmed = &handle.shimmed;
        if handle.is_exclusive() {
            handle.set_readable(false);
        }
        let last = shimmed.handles.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && !shimmed.is_orphaned() {
            if shimmed.is_attached() {
                handle.wait_captured();
            }
            shimmed.detach(None);
        }
        handle.database().disconnect();
    }
}
