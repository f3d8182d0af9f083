//! Lets the WAL go if it cannot be captured.
//!
//! While capture fails the WAL must stay, so it grows. That ends before the application suffers. After a while,
//! or at a size, the replica gives up its position in the WAL, as it does when the spool is full. Once the
//! state folder can be written again, a comparison finds the missing commits. A write of the application that
//! finds no room ends the wait at once.
//!
//! If the disk is full by then, no transaction commits any more, so no checkpoint of the application runs
//! either. Then the sealer copies the WAL into the database file, and the next transaction restarts the WAL.

use super::capture::{self, Cursor, Stop};
use super::replica::{LocalJob, Replica};
use super::room::spool_cap;
use crate::database::Gate;
use crate::engine::Failure;
use crate::finding::Finding;
use crate::local;
use crate::units::PageSize;
use crate::wal::{WalIndex, frame_offset};

/// Milliseconds for which capture may fail before the WAL is let go. A file waits for room equally long.
const FAILS_FOR_MS: u64 = 10_000;
/// Bytes up to which a WAL is kept, however small the database is.
const KEPT_AT_LEAST: u64 = 16 << 20;
/// Usual length of a WAL without walferry, in bytes. SQLite checkpoints at 1000 pages, most often of 4096
/// bytes.
const USUAL_WAL: u64 = 4 << 20;
/// Divisor for the part of the free room on the database's disk that the WAL may take.
const PART_OF_FREE: u64 = 4;
/// Milliseconds for which a WAL must not change before it is copied, and milliseconds between a failed copy and
/// the next.
const STANDS_STILL_MS: u64 = 1000;
/// Milliseconds after which the same reason is logged again.
const TOLD_AGAIN_MS: u64 = 10_000;

/// Record of failing capture, and of the WAL meanwhile.
#[derive(Default)]
pub(super) struct Failing {
    /// Time of the first failure since the last success.
    since: Option<u64>,
    /// True if the last failure was a lack of room.
    lacks_room: bool,
    /// Last wal-index seen while the WAL was let go, and the time since when it has not changed.
    stands: Option<(WalIndex, u64)>,
    /// Time at which a copy of the WAL last failed to reach the WAL's end.
    copied_at: Option<u64>,
    /// Last logged reason, with its time.
    told: Option<(String, u64)>,
}

/// Cost of a WAL that cannot be captured.
#[derive(Clone, Copy, Debug)]
struct Burden {
    /// Milliseconds for which capture has failed.
    failed_for: u64,
    /// Bytes of the WAL that are not captured.
    uncaptured: u64,
    /// Bytes that the spool may take.
    cap: u64,
    /// Bytes of the database, which a comparison reads.
    database: u64,
    /// Bytes that are free on the database's disk; `None` if they do not count, or the file system does not
    /// tell.
    free: Option<u64>,
}

impl Burden {
    /// True if the WAL must be let go. Beyond the size of the database a comparison costs less than the WAL
    /// that it saves.
    fn is_too_much(&self) -> bool {
        let room = self.free.map_or(u64::MAX, |free| free / PART_OF_FREE);
        let most = self.cap.min(self.database.max(KEPT_AT_LEAST)).min(room);
        self.failed_for >= FAILS_FOR_MS || self.uncaptured > most
    }
}

impl Replica {
    /// Notes that capture was stopped by the local disk.
    pub(super) fn capture_fails(&mut self, stop: &Stop) {
        self.failing.lacks_room = matches!(stop, Stop::NoRoom(_));
        self.comparison_fails();
    }

    /// Logs the reason. The same reason is logged again only after a while, since each commit may fail.
    pub(super) fn tell_why_it_fails(&mut self, why: &str) {
        let now = self.process.now();
        let known = self
            .failing
            .told
            .as_ref()
            .is_some_and(|(told, at)| told == why && now.saturating_sub(*at) < TOLD_AGAIN_MS);
        if !known {
            log::error!("{}: {why}", self.database.label());
            self.failing.told = Some((why.to_string(), now));
        }
    }

    /// Notes that a comparison was stopped by the local disk.
    pub(super) fn comparison_fails(&mut self) {
        let now = self.process.now();
        self.failing.since.get_or_insert(now);
    }

    /// Notes that everything is captured.
    pub(super) fn capture_succeeds(&mut self) {
        let Failing { copied_at, told, .. } = std::mem::take(&mut self.failing);
        self.failing = Failing { copied_at, told, ..Failing::default() };
    }

    /// Returns an error if capture has failed before and the spool still cannot be written. A comparison would
    /// then read the database, and keep its WAL, for nothing.
    pub(super) fn try_spool(&self) -> Result<(), Stop> {
        let (Some(_), Some(local)) = (self.failing.since, &self.local) else { return Ok(()) };
        let why = |error: local::Error| {
            capture::stop(error.source.kind(), format!("nothing is captured of it: {error}"))
        };
        local.spool.try_write().map_err(why)
    }

    /// Lets the WAL go if capture has failed for too long, or if the WAL has grown too much meanwhile.
    pub(super) fn let_go_in_time(&mut self) {
        let burden = self.burden().filter(Burden::is_too_much);
        if burden.is_some() && self.keeps_wal_in_vain() {
            log::debug!("{}: {burden:?}", self.database.label());
            self.let_wal_go();
        }
        self.copy_standing_wal();
    }

    /// True if the WAL is kept only for capture, and capture fails.
    fn keeps_wal_in_vain(&self) -> bool {
        let fails = self.failing.since.is_some() && matches!(self.job, LocalJob::None);
        fails && self.attached && self.cursor != Cursor::Unknown
    }

    fn burden(&self) -> Option<Burden> {
        let since = self.failing.since?;
        let Cursor::At(end) = self.cursor else { return None };
        let (local, point) = self.local.as_ref().zip(self.point)?;
        let index = self.database.with(|shared| shared.published)?;
        let from = if end.at.salts == index.salts { end.at.frame } else { 0 };
        let database = u64::from(local.table.commit()) * u64::from(point.page_size.get());
        // If our own files take the room on that disk, they are given back first, and a comparison would only
        // need more.
        let shared = self.failing.lacks_room && self.shares_disk();
        let folder = self.database.path().parent().filter(|_| !shared);
        Some(Burden {
            failed_for: self.process.now().saturating_sub(since),
            uncaptured: wal_len(point.page_size, index.max_frame.saturating_sub(from)),
            cap: spool_cap(self.database.settings().spool_cap, database),
            database,
            free: folder.and_then(local::spool::free_at),
        })
    }

    /// Gives up the position in the WAL. Captured frames stay; a comparison finds the missing commits.
    fn let_wal_go(&mut self) {
        let failure = self.engine.status().failure;
        self.diverge(Finding::CaptureFails);
        let why = failure.map_or_else(|| "capture has failed".into(), |f| f.message().to_string());
        let message = format!("{why}; nothing is captured of it until that succeeds");
        self.engine.note(Failure::Local { message });
        self.copy_wal();
        self.publish();
    }

    /// Frees the WAL for a write of the application that found no room.
    pub(super) fn free_wal(&mut self) {
        if self.is_wal_large() && (self.end_comparison() || self.end_image()) {
            self.leave_room();
        }
        if self.keeps_wal_in_vain() {
            self.let_wal_go();
            self.leave_room();
        }
        self.copy_wal();
    }

    /// Truncates the WAL if a comparison, which will be repeated, found no room beside it. SQLite does not
    /// shorten a file that has grown while it had to stay.
    pub(super) fn shorten_wal(&self) {
        let Some(border) = self.database.border().filter(|_| self.is_wal_in_the_way()) else {
            return;
        };
        border.hold_checkpoints(false);
        let path = self.database.label();
        // With nothing left to copy, the write lock is held only for a moment.
        let is_copied = border.checkpoint().is_ok()
            && border.wal_index().is_some_and(|index| border.copied() == Some(index.max_frame));
        if !is_copied || self.database.with(|shared| shared.restarts) {
            return;
        }
        match border.empty_wal() {
            Ok(done) => log::debug!("{path}: its WAL was cut off: {done}"),
            Err(error) => log::debug!("{path}: its WAL cannot be cut off: {error}"),
        }
    }

    fn is_wal_in_the_way(&self) -> bool {
        let wal = local::wal_path(self.database.path());
        let len = wal.symlink_metadata().map_or(0, |found| found.len());
        let free = self.local.as_ref().and_then(|local| local.spool.free());
        let is_more = free.is_some_and(|free| len > USUAL_WAL && len > free);
        // Other replicas of the database, and the programs beside a sidecar, are not asked.
        let all = self.process.at(self.database.path()).map_or(0, |all| all.each().count());
        let is_alone = all == 1 && !self.database.settings().tend;
        is_more && is_alone && matches!(self.job, LocalJob::None) && self.shares_disk()
    }

    /// True if the WAL is larger than its usual length without walferry.
    fn is_wal_large(&self) -> bool {
        let index = self.database.border().and_then(|border| border.wal_index());
        let len = index.map_or(0, |index| wal_len(index.page_size, index.max_frame));
        len >= USUAL_WAL
    }

    /// Gives back the reserve that is kept while an image reads the database; false if there is none.
    pub(super) fn gives_reserve(&mut self) -> bool {
        let LocalJob::Image(image) = &mut self.job else { return false };
        let gives = image.take_reserve().is_some();
        if gives && self.is_wal_large() {
            self.end_image();
        }
        gives
    }

    /// Copies a WAL that was let go and does not change. If no commit finds room, no other connection
    /// checkpoints the WAL, and walferry does not hear of writers in other processes.
    pub(super) fn copy_standing_wal(&mut self) {
        let is_let_go = self.failing.since.is_some() || self.local.is_none();
        // A connection of ours takes descriptors, and the remaining descriptors are for the application.
        let is_let_go = is_let_go && crate::descriptors::scarce().is_none();
        let is_open = self.database.with(|shared| shared.gate == Gate::Open);
        let index = self.database.border().filter(|_| is_let_go && is_open);
        let Some(index) = index.and_then(|border| border.wal_index()) else {
            self.failing.stands = None;
            return;
        };
        let now = self.process.now();
        match self.failing.stands {
            Some((seen, since)) if seen == index => {
                if now.saturating_sub(since) >= STANDS_STILL_MS {
                    self.copy_wal();
                }
            }
            _ => self.failing.stands = Some((index, now)),
        }
    }

    /// Copies the WAL's frames into the database file, as far as readers allow. This checkpoint waits for no
    /// lock: the writer that waits for this call may hold the write lock.
    fn copy_wal(&mut self) {
        let Some(border) = self.database.border().cloned() else { return };
        let Some(index) = border.wal_index() else { return };
        let now = self.process.now();
        let is_copied = || border.copied().is_some_and(|copied| copied >= index.max_frame);
        // Each failed copy costs as much of the application's disk time again.
        let recent =
            self.failing.copied_at.is_some_and(|at| now.saturating_sub(at) < STANDS_STILL_MS);
        if recent || is_copied() {
            return;
        }
        border.hold_checkpoints(false);
        let result = border.checkpoint();
        if !is_copied() {
            self.failing.copied_at = Some(now);
        }
        let path = self.database.label();
        match result {
            Ok(done) => log::debug!("{path}: copied up to {:?}, {done}", border.copied()),
            Err(error) => log::warn!("{path}: its WAL cannot be checkpointed: {error}"),
        }
    }
}

/// Returns the length in bytes of a WAL of `frames` frames.
fn wal_len(page_size: PageSize, frames: u32) -> u64 {
    frame_offset(page_size, frames.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wal_that_cannot_be_captured_is_let_go_after_a_while_or_at_a_size() {
        let kept = Burden {
            failed_for: 0,
            uncaptured: 0,
            cap: 10 << 30,
            database: 1 << 30,
            free: Some(100 << 30),
        };
        let most = |burden: Burden, bytes: u64| {
            let of = |uncaptured| Burden { uncaptured, ..burden }.is_too_much();
            assert!(!of(bytes) && of(bytes + 1), "{bytes} of {burden:?}");
        };
        assert!(!kept.is_too_much());
        assert!(!Burden { failed_for: FAILS_FOR_MS - 1, ..kept }.is_too_much());
        assert!(Burden { failed_for: FAILS_FOR_MS, ..kept }.is_too_much(), "however small it is");
        most(kept, 1 << 30);
        most(Burden { database: 1 << 20, ..kept }, KEPT_AT_LEAST);
        most(Burden { cap: 5 << 20, ..kept }, 5 << 20);
        most(Burden { free: Some(40 << 20), ..kept }, 10 << 20);
        most(Burden { free: None, ..kept }, 1 << 30);
        assert!(!Burden { free: Some(0), ..kept }.is_too_much(), "nothing is lost by waiting");
        most(Burden { free: Some(0), ..kept }, 0);
    }
}
