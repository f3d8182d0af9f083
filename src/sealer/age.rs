//! Ages of the commits that an earlier process left.
//!
//! The program measures time with the clock that counts from the start of the machine. That clock runs evenly,
//! but says nothing about the time before the start. Times on the disk are of the wall clock, which anybody can
//! set.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::replica::Replica;
use crate::units::Timestamp;

/// Milliseconds by which a commit that the store lacks may seem older than the store's last state. The time of
/// a file is the end of its capture.
const OVERLAP_MS: i64 = 60_000;
/// Milliseconds between a shipper's last look for commits of programs without walferry and its last sign of
/// life, at most.
const LOOKED_MS: u64 = 2000;

/// Both clocks at the same moment, in milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Clocks {
    pub now: u64,
    pub wall: Timestamp,
}

impl Clocks {
    /// Returns the boot-clock time of this wall-clock time. A time in the future counts as now. A time before
    /// the start of the machine counts as the start. Each clock shows whole milliseconds, so one is added: an
    /// age is never too small.
    pub(super) fn since(self, then: Timestamp) -> u64 {
        let age = self.wall.0.saturating_sub(then.0).saturating_add(1);
        self.now.saturating_sub(u64::try_from(age).unwrap_or(0))
    }

    /// Returns the boot-clock time of the oldest commit of a file. `oldest` is the file's own time for that
    /// commit, `stored` the time of the last state at the store.
    ///
    /// A commit that seems much older than `stored` was made before the wall clock was set forward. Then only
    /// one fact is known: the commit is younger than `stored`. A `stored` in the future is ignored.
    pub(super) fn since_oldest(self, oldest: Timestamp, stored: Option<Timestamp>) -> u64 {
        let stored = stored.filter(|stored| *stored <= self.wall);
        let is_after = |stored: &Timestamp| oldest.0 < stored.0.saturating_sub(OVERLAP_MS);
        self.since(stored.filter(is_after).unwrap_or(oldest))
    }

    /// Returns the wall-clock time of a boot-clock time, or up to a millisecond less.
    pub(super) fn wall_at(self, then: u64) -> Timestamp {
        let age = self.now.saturating_sub(then).saturating_add(1);
        let age = i64::try_from(age).unwrap_or(i64::MAX);
        Timestamp(self.wall.0.saturating_sub(age))
    }
}

/// Returns the wall-clock time of the oldest commit in a spool file. The file's modification time holds it. The
/// header has the time of the last commit, which is an upper limit.
pub(super) fn oldest_in(file: &Path, newest: Timestamp) -> Timestamp {
    let modified = file.symlink_metadata().and_then(|found| found.modified());
    let since = modified.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let millis = since.and_then(|since| i64::try_from(since.as_millis()).ok());
    millis.map_or(newest, |millis| newest.min(Timestamp(millis)))
}

/// Sets the modification time of a file. If that fails, the file counts as old as its last commit.
pub(super) fn keep_oldest(file: &std::fs::File, oldest: Timestamp) {
    let millis = Duration::from_millis(u64::try_from(oldest.0).unwrap_or(0));
    let times = std::fs::FileTimes::new().set_modified(UNIX_EPOCH + millis);
    if let Err(error) = file.set_times(times) {
        log::debug!("the time of its oldest commit cannot be kept: {error}");
    }
}

impl Replica {
    pub(super) fn clocks(&self) -> Clocks {
        Clocks { now: self.process.now(), wall: crate::clock::wall() }
    }

    /// Returns the earliest time at which a commit that is in no spool file may have been made. That is the
    /// time of the last captured commit. If this process was a standby, it is at the earliest when the former
    /// shipper was last heard.
    pub(super) fn unknown_since(&self) -> u64 {
        let clocks = self.clocks();
        let state = self.local.as_ref().map(|local| &local.state);
        let base = state.and_then(|state| state.base.or(state.image.map(|image| image.base)));
        let captured = self.point.map(|point| point.timestamp);
        let captured = captured.or(base.map(|base| Timestamp(base.timestamp)));
        captured.map_or(clocks.now, |then| clocks.since(then)).max(self.heard)
    }

    /// Reads the former shipper's last report, if this process was a standby. The report says since when the
    /// store lacked commits, or until when it lacked none.
    pub(super) fn hear_the_last(&mut self) {
        let now = self.process.now();
        let page = self.database.with(|shared| shared.page.clone());
        let said = page.and_then(|page| {
            let (last, view) = (page.last_alive(), page.view()?);
            let known = view.unacked_since.checked_sub(1);
            let since = known.map_or(last, |since| since.min(last)).saturating_sub(LOOKED_MS);
            (last != 0 && last <= now).then_some(since)
        });
        self.heard = said.unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_what_both_clocks_allow() {
        let clocks = Clocks { now: 1_000_000, wall: Timestamp(500_000_000) };
        let since = |oldest, stored| clocks.since_oldest(Timestamp(oldest), stored);
        assert_eq!(since(499_990_001, None), 990_000);
        assert_eq!(since(499_990_001, Some(Timestamp(499_000_000))), 990_000);
        assert_eq!(since(499_990_001, Some(Timestamp(499_991_000))), 990_000, "captured late");
        assert_eq!(since(500_000_001, None), 1_000_000, "the clock was set back");
        assert_eq!(since(0, Some(Timestamp(499_990_001))), 990_000, "it was set forward");
        assert_eq!(since(499_990_001, Some(Timestamp(600_000_000))), 990_000, "it was set back");
        assert_eq!(since(0, None), 0, "before the machine was started");
        assert_eq!(since(i64::MIN, Some(Timestamp(i64::MIN))), 0);
        assert_eq!(since(i64::MAX, Some(Timestamp(i64::MAX))), 1_000_000);
        assert_eq!(clocks.wall_at(990_001), Timestamp(499_990_000));
    }

    #[test]
    fn a_file_keeps_the_time_of_its_oldest_commit() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        keep_oldest(&std::fs::File::create(&first).unwrap(), Timestamp(1_700_000_000_123));
        std::fs::rename(&first, &second).unwrap();
        let newest = Timestamp(1_700_000_005_000);
        assert_eq!(oldest_in(&second, newest), Timestamp(1_700_000_000_123));
        // The copy has its own time of creation.
        std::fs::copy(&second, &first).unwrap();
        assert_eq!(oldest_in(&first, newest), newest);
        assert_eq!(oldest_in(&folder.path().join("none"), newest), newest);
    }
}
