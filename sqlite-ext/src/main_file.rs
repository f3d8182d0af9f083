//! Acts on calls of a main database's methods: sees commits, decides whether the WAL may be overwritten, and
//! gives up the pin. Safe code; the calls come from `ffi/`.

use std::sync::atomic::Ordering;

use walferry::database::WalEnd;
use walferry::finding::Finding;
use walferry::local::state::Fingerprint;
use walferry::settings::JournalMode;
use walferry::wal::WalIndex;
use walferry::wal::evidence::Restart;

use crate::api::{
    self, SQLITE_BUSY, SQLITE_FCNTL_CKPT_DONE, SQLITE_FCNTL_CKPT_START,
    SQLITE_FCNTL_COMMIT_PHASETWO, SQLITE_FCNTL_HAS_MOVED, SQLITE_LOCK_EXCLUSIVE, SQLITE_LOCK_NONE,
    SQLITE_OK, SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_SHARED, SQLITE_SHM_UNLOCK, Shm,
};
use crate::functions;
use crate::handle::{Handle, WalWrites, fresh, has_wal_mode};
use crate::leftovers;
use crate::pin::read_index;
use crate::walk;

/// Locks of the wal-index (`wal.c`): write, checkpoint, and read slots 0 and 1.
const WRITE_LOCK: i32 = 0;
const CKPT_LOCK: i32 = 1;
const READ_LOCK_0: i32 = 3;
const READ_LOCK_1: i32 = 4;
/// Number of read slots from 1 on. A connection asks for them at once only to restart the WAL.
const READERS: i32 = 4;
/// While the gate is shut, one checkpoint is allowed for this many new frames. Each checkpoint costs two
/// fsyncs, and cannot shorten the WAL.
const CHECKPOINT_EVERY: u32 = 1000;

/// The calls of a main database's methods that walferry acts on.
pub struct MainFile<'a>(pub &'a Handle);

impl MainFile<'_> {
    /// `xShmLock`.
    pub fn shm_lock(&self, offset: i32, count: i32, flags: i32) -> i32 {
        const LOCK_EXCL: i32 = SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE;
        const UNLOCK_EXCL: i32 = SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE;
        const LOCK_SHARED: i32 = SQLITE_SHM_LOCK | SQLITE_SHM_SHARED;
        const UNLOCK_SHARED: i32 = SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED;
        let handle = self.0;
        let forward = || handle.real.shm_lock(offset, count, flags);
        match (offset, count, flags) {
            (WRITE_LOCK, 1, UNLOCK_EXCL) => {
                self.publish();
                forward()
            }
            // A RESTART or TRUNCATE checkpoint would wait for the gate while all writers are locked out.
            // Without this lock, SQLite goes on as PASSIVE (`sqlite3WalCheckpoint` in `wal.c`).
            (WRITE_LOCK, 1, LOCK_EXCL) if self.checkpoint_would_wait() => SQLITE_BUSY,
            (CKPT_LOCK, 1, LOCK_EXCL) => {
                if self.holds_back_checkpoint() {
                    return SQLITE_BUSY;
                }
                handle.database().checkpoint_begins();
                handle.shimmed.make_room(handle.index().map_or(0, |index| index.max_frame));
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
                // No other connection writes: the caller holds the write lock until after this.
                handle.shimmed.hold_again();
                let before = handle.restarting.lock().take();
                let restart = before.zip(handle.index()).and_then(|(before, after)| {
                    Restart::between(&before, &after, handle.shimmed.guard())
                });
                handle.database().restarted(restart);
                if let Some(restart) = restart {
                    handle.database().wait_followed(&restart);
                }
                rc
            }
            (offset, 1, LOCK_SHARED) if offset >= READ_LOCK_0 => {
                let rc = forward();
                handle.reads.store(rc == SQLITE_OK, Ordering::Release);
                if rc == SQLITE_OK && !handle.shimmed.is_attached() {
                    let shm = Shm::from_pointer(handle.shm.load(Ordering::Acquire).cast())
                        .or_else(|| handle.real.shm_header(false));
                    handle.set_shm(shm);
                    handle.shimmed.attach(|| shm.and_then(read_index));
                }
                rc
            }
            (offset, 1, UNLOCK_SHARED) if offset >= READ_LOCK_0 => {
                handle.reads.store(false, Ordering::Release);
                forward()
            }
            _ => forward(),
        }
    }

    /// Publishes the commits, just before the write lock is given up. Everything committed under that lock is
    /// final and in order, and no other connection can be writing.
    fn publish(&self) {
        let handle = self.0;
        if handle.shimmed.is_attached() {
            handle.database().committed(&|| handle.index());
        } else if handle.reads.load(Ordering::Acquire) {
            // The WAL was detached during this connection's read transaction: at the end of exclusive mode,
            // or by the close of another connection.
            handle.shimmed.attach(|| handle.index());
        }
    }

    /// True if a checkpoint of this connection asks for the write lock while the gate stays shut.
    fn checkpoint_would_wait(&self) -> bool {
        let handle = self.0;
        handle.checkpoints.load(Ordering::Acquire)
            && handle.shimmed.is_attached()
            && handle.database().gate_stays_shut()
    }

    /// Handles the request for all read slots of a connection that holds the write lock, to restart the WAL.
    fn restart(&self, forward: impl Fn() -> i32) -> i32 {
        let handle = self.0;
        if !handle.shimmed.is_attached() {
            return forward();
        }
        let before = handle.index();
        let allowed = match before {
            Some(index) if index.max_frame > 0 => handle.database().may_restart(index),
            _ => true,
        };
        if !allowed {
            // A writer then appends without an error, and a checkpoint reports that it was busy.
            return SQLITE_BUSY;
        }
        handle.database().restart_begins();
        let rc = handle.shimmed.ask_for_slots(forward);
        if rc != SQLITE_OK {
            handle.database().restart_failed();
            handle.shimmed.hold_again();
            return rc;
        }
        *handle.restarting.lock() = before;
        rc
    }

    /// True if a checkpoint is to be refused. While the gate is shut the WAL grows, and SQLite would
    /// checkpoint at every commit.
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

    /// `xLock`. A connection asks for EXCLUSIVE at its close, at a change of the journal mode, and for
    /// `locking_mode=EXCLUSIVE`. Our own SHARED lock must not be in the way, and the connection may remove
    /// the WAL.
    pub fn lock(&self, level: i32) -> i32 {
        let handle = self.0;
        if level < SQLITE_LOCK_EXCLUSIVE || handle.is_exclusive() || self.is_refused_anyway() {
            if level >= SQLITE_LOCK_EXCLUSIVE && handle.is_exclusive() {
                // The connection has this lock, and asks for it again when it closes the WAL. It removes the
                // WAL next.
                handle.wait_captured();
            }
            let mark = leftovers::mark();
            let mut rc = handle.real.lock(level);
            if rc == SQLITE_BUSY && leftovers::is_in_the_way(mark) {
                rc = handle.real.lock(level);
            }
            if rc == SQLITE_OK {
                self.note_locked();
                if level >= SQLITE_LOCK_EXCLUSIVE && !handle.is_exclusive() {
                    // Granted after all: the other connection has just given up its lock.
                    handle.shimmed.make_way(false);
                    self.begin_exclusive();
                }
            }
            return rc;
        }
        handle.wait_captured();
        *handle.gap.lock() = handle.shimmed.before_gap();
        handle.shimmed.make_way(handle.closes.swap(false, Ordering::AcqRel));
        let rc = handle.real.lock(level);
        if rc == SQLITE_OK {
            self.note_locked();
            self.begin_exclusive();
            return rc;
        }
        handle.shimmed.end_way();
        // SQLite up to 3.40.1 refuses this process a SHARED lock until this connection has given up its own.
        // `after_unlock` then tries again.
        handle.shimmed.repin_after(&handle.gap);
        rc
    }

    /// Notes that this connection has the database exclusively. No other connection changes file or WAL from
    /// here on.
    fn begin_exclusive(&self) {
        let handle = self.0;
        *handle.gap.lock() = None;
        *handle.before.lock() = Fingerprint::of(handle.database().path()).ok();
        handle.exclusive.store(true, Ordering::Release);
        handle.begin_alone();
        handle.set_readable(true);
    }

    /// True if SQLite refuses EXCLUSIVE for certain, since another connection of this process has a lock. The
    /// pin, which would be in the way too, can then stay.
    fn is_refused_anyway(&self) -> bool {
        let own = usize::from(self.0.locked.load(Ordering::Acquire));
        self.0.shimmed.locked.load(Ordering::Acquire) > own
    }

    fn note_locked(&self) {
        if !self.0.locked.swap(true, Ordering::AcqRel) {
            self.0.shimmed.locked.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn note_unlocked(&self) {
        if self.0.locked.swap(false, Ordering::AcqRel) {
            self.0.shimmed.locked.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Runs before `xUnlock`.
    pub fn before_unlock(&self, level: i32) {
        let handle = self.0;
        if level <= SQLITE_LOCK_NONE {
            // Before the unlock: a connection that can get EXCLUSIVE right after the unlock must not count as
            // refused.
            self.note_unlocked();
        }
        if level >= SQLITE_LOCK_EXCLUSIVE || !handle.is_exclusive() {
            return;
        }
        handle.wait_captured();
        let last = handle.last.lock().take();
        handle.set_readable(false);
        handle.exclusive.store(false, Ordering::Release);
        handle.shimmed.end_way();
        *handle.written.lock() = WalWrites::default();
        if !handle.shimmed.is_attached() {
            return;
        }
        // This connection still has the database exclusively. If the WAL is gone, the file has all of it, and
        // this is the file's fingerprint.
        let path = handle.database().path();
        let wal_is_gone = std::fs::metadata(walferry::local::wal_path(path)).is_err();
        let written = handle.shimmed.written.load(Ordering::Acquire);
        let file = Fingerprint::of(path).ok().filter(|_| wal_is_gone && !written);
        let end = last.zip(file).map(|(index, fingerprint)| WalEnd { index, fingerprint });
        handle.shimmed.detach(end);
    }

    /// Runs after `xUnlock`. Takes the pin again, and puts a database into WAL mode that was written. A
    /// database that was empty has its first content now, so WAL mode takes away no choice any more.
    pub fn after_unlock(&self, level: i32) {
        let handle = self.0;
        let others = handle.shimmed.locked.load(Ordering::Acquire) > 0;
        if others && handle.shimmed.is_attached() {
            handle.shimmed.repin_after(&handle.gap);
        }
        if level > SQLITE_LOCK_NONE || handle.fresh.load(Ordering::Acquire) != fresh::WRITTEN {
            return;
        }
        let done = handle.shimmed.is_attached() || functions::into_wal_mode(&handle.shimmed);
        let mode = handle.database().first().settings().journal_mode;
        if mode == JournalMode::Keep && !handle.shimmed.is_attached() && !has_wal_mode(handle.real)
        {
            handle.shimmed.tell_outside_wal();
        }
        // If WAL mode failed, for example because another connection reads, it is tried again after the next
        // write.
        let next = if done { fresh::NO } else { fresh::NOT_YET };
        handle.fresh.store(next, Ordering::Release);
    }

    /// Runs before `xWrite`.
    pub fn before_write(&self) {
        let handle = self.0;
        handle.disturb();
        if handle.is_exclusive() {
            // The file is not as it was left any more, and the first commit to the WAL does not tell of this
            // write.
            *handle.before.lock() = None;
        }
        let checkpoint =
            handle.checkpoints.load(Ordering::Acquire) || handle.copies.load(Ordering::Acquire);
        if checkpoint {
            return;
        }
        if handle.is_exclusive() {
            // In WAL mode only checkpoints write to the file. So this connection has left that mode, and
            // still has the lock.
            handle.wait_captured();
            *handle.written.lock() = WalWrites::default();
            *handle.last.lock() = None;
            if handle.shimmed.is_attached() {
                handle.shimmed.detach(None);
            }
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
        // A database that is still to get WAL mode gets it after this write.
        let stays = handle.fresh.load(Ordering::Acquire) == fresh::NO;
        if stays {
            handle.shimmed.tell_outside_wal();
        }
    }

    /// Runs before `xFileControl`.
    pub fn before_control(&self, op: i32) {
        let handle = self.0;
        handle.closes.store(op == SQLITE_FCNTL_HAS_MOVED, Ordering::Release);
        match op {
            SQLITE_FCNTL_CKPT_START => {
                handle.disturb();
                handle.copies.store(true, Ordering::Release);
            }
            SQLITE_FCNTL_CKPT_DONE => handle.copies.store(false, Ordering::Release),
            // A connection with exclusive use takes no locks of the wal-index: this control is the only sign
            // of its commits.
            SQLITE_FCNTL_COMMIT_PHASETWO if handle.is_exclusive() => self.publish_exclusive(),
            _ => {}
        }
    }

    fn publish_exclusive(&self) {
        let handle = self.0;
        handle.written.lock().end_commit();
        let Some(index) = handle.index_alone().or_else(|| handle.exclusive_index()) else {
            if handle.adopted {
                handle.database().diverged(Finding::HeldExclusively);
            }
            return;
        };
        *handle.last.lock() = Some(index);
        handle.shimmed.attach_alone(handle, index);
        if handle.shimmed.is_attached() {
            handle.database().committed(&|| Some(index));
        }
    }

    /// Takes in the WAL that a connection with exclusive use has opened, and reads next. A process that was
    /// killed may have left commits there, and this connection may never commit anything.
    pub fn opened_wal_alone(&self) {
        let handle = self.0;
        let is_known = handle.last.lock().is_some();
        // A WAL that cannot be read does not count as empty. A wait on this connection then fails.
        if !is_known && !handle.begin_alone() {
            return;
        }
        let index = *handle.last.lock().get_or_insert(WalIndex::EMPTY);
        handle.shimmed.attach_alone(handle, index);
    }

    /// Runs after `xClose`.
    pub fn after_close(&self) {
        let shimmed = &self.0.shimmed;
        if self.0.persists.load(Ordering::Acquire) {
            shimmed.left.store(false, Ordering::Release);
        }
        if shimmed.left.load(Ordering::Acquire)
            && !shimmed.is_orphaned()
            && let Some(api) = api::api()
        {
            leftovers::remove(api, shimmed.vfs, shimmed.database.path());
        }
    }

    /// Runs before `xClose`.
    pub fn before_close(&self) {
        let handle = self.0;
        let shimmed = &handle.shimmed;
        if handle.exclusive.swap(false, Ordering::AcqRel) {
            handle.set_readable(false);
            shimmed.end_way();
        }
        let last = shimmed.handles.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && !shimmed.is_orphaned() {
            if shimmed.is_attached() {
                handle.wait_captured();
            }
            shimmed.detach(None);
            // A connection that has read nothing asks for no lock at its close, so `lock` has not ended the
            // walks.
            walk::closes(shimmed.database.path());
        }
        self.note_unlocked();
        handle.leave();
    }
}
