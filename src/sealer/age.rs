//! How old the commits are that an earlier process left.
//!
//! Times are kept by the clock that counts from the start of the machine, which tells nothing of what was
//! before it, and which goes on evenly. On the disk are times of the wall clock, which anybody can set.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::replica::Replica;
use crate::units::Timestamp;

/// So much older than the last state that the store has, in milliseconds, what it lacks may seem: a file has
/// the time at which its capture ended.
const OVERLAP_MS: i64 = 60_000;
/// So long before its last sign of life, in milliseconds, a shipper may have looked for commits of programs
/// without walferry.
const LOOKED_MS: u64 = 2000;

/// Both clocks at one moment, in milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Clocks {
    pub now: u64,
    pub wall: Timestamp,
}

impl Clocks {
    /// When something was that has this time of the wall clock. What seems to be still to come is taken to be
    /// now, and what was before the machine was started for its start. Each clock shows whole milliseconds, so
    /// one is added: an age is never less than it was.
    pub(super) fn since(self, then: Timestamp) -> u64 {
        let age = self.wall.0.saturating_sub(then.0).saturating_add(1);
        self.now.saturating_sub(u64::try_from(age).unwrap_or(0))
    }

    /// When the oldest commit of a file was made, by the time that the file has of it and that of the last
    /// state at the store. A commit that seems to be much older than that was made before the clock was set
    /// forward, and all that is known is that it came later. A state from the future tells nothing.
    pub(super) fn since_oldest(self, oldest: Timestamp, stored: Option<Timestamp>) -> u64 {
        let stored = stored.filter(|stored| *stored <= self.wall);
        let is_after = |stored: &Timestamp| oldest.0 < stored.0.saturating_sub(OVERLAP_MS);
        self.since(stored.filter(is_after).unwrap_or(oldest))
    }

    /// What the wall clock showed at a time of this machine's, or a millisecond less.
    pub(super) fn wall_at(self, then: u64) -> Timestamp {
        let age = self.now.saturating_sub(then).saturating_add(1);
        let age = i64::try_from(age).unwrap_or(i64::MAX);
        Timestamp(self.wall.0.saturating_sub(age))
    }
}

/// When the oldest commit in a spool file was made, by the wall clock. It is kept as the file's time of
/// modification; the header has that of the last one, which is never the earlier one.
pub(super) fn oldest_in(file: &Path, newest: Timestamp) -> Timestamp {
    let modified = file.symlink_metadata().and_then(|found| found.modified());
    let since = modified.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let millis = since.and_then(|since| i64::try_from(since.as_millis()).ok());
    millis.map_or(newest, |millis| newest.min(Timestamp(millis)))
}

/// Gives a file this time of modification. One that cannot have it shows that of its last commit.
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

    /// Since when, at the most, there may be commits of which no file in the spool tells: since the last one
    /// that is captured, and since the shipper before us was heard of, if this process stood by.
    pub(super) fn unknown_since(&self) -> u64 {
        let clocks = self.clocks();
        let state = self.local.as_ref().map(|local| &local.state);
        let base = state.and_then(|state| state.base.or(state.image.map(|image| image.base)));
        let captured = self.point.map(|point| point.timestamp);
        let captured = captured.or(base.map(|base| Timestamp(base.timestamp)));
        captured.map_or(clocks.now, |then| clocks.since(then)).max(self.heard)
    }

    /// Takes in what the shipper before us said last, if this process stood by: since when there were commits
    /// that the store lacked, or else until when there were none.
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
        // A copy of it has the time at which it was made.
        std::fs::copy(&second, &first).unwrap();
        assert_eq!(oldest_in(&first, newest), newest);
        assert_eq!(oldest_in(&folder.path().join("none"), newest), newest);
    }
}
