//! Decides the next request to the store, on plain values: no store, no clock, no disk.
//!
//! A follower asks for the file of the next TXID by its name. This is one request, with an answer of a few
//! bytes while the file does not exist. The file may never come although the log goes on: level-0 files are
//! removed some time after their compaction. A follower that was away for longer does not find them. So the
//! follower lists the replica after a time without new files, and after failures.

use crate::engine::Millis;
use crate::engine::backoff::Backoff;
use crate::ltx::FileName;
use crate::plan::{self, Plan, Target};
use crate::restore::{Instead, forward};
use crate::store::{FileInfo, Key};
use crate::units::{Level, Txid};

/// Time in milliseconds for which the next file may be missing before the replica is listed.
///
/// The time is less than that for which level-0 files are kept: walferry warns of an `l0-retention` under 5
/// minutes. A listing takes ten requests.
const LIST_EVERY: Millis = 240_000;

/// The next action of a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Request this file.
    Get(Key),
    /// List all levels.
    List,
    /// Wait for this time, in milliseconds.
    Wait(Millis),
}

/// Times of the next requests.
#[derive(Clone, Debug)]
pub struct Schedule {
    at: Txid,
    interval: Millis,
    /// Time at which the next file is requested.
    due: Millis,
    /// Last time at which no file was known to lead on from here. `None` if the replica must be listed.
    sure: Option<Millis>,
    backoff: Backoff,
}

impl Schedule {
    /// Returns a schedule for a copy in state `at` that was not compared with the replica yet. `interval` is
    /// the time between two requests while the replica has no new files, in milliseconds.
    pub fn new(at: Txid, interval: Millis, seed: u64) -> Schedule {
        Schedule { at, interval, due: 0, sure: None, backoff: Backoff::new(seed) }
    }

    /// Returns the action at the time `now`.
    pub fn next(&self, now: Millis) -> Next {
        let due = self.due.max(self.backoff.due());
        if now < due {
            return Next::Wait(due - now);
        }
        match self.sure {
            Some(sure) if now.saturating_sub(sure) < LIST_EVERY => Next::Get(following(self.at)),
            _ => Next::List,
        }
    }

    /// Notes that the copy is in this state now. The next file is requested at once.
    pub fn moved(&mut self, at: Txid, now: Millis) {
        (self.at, self.due, self.sure) = (at, now, Some(now));
        self.backoff.reset();
    }

    /// Notes that the next file does not exist.
    pub fn missing(&mut self, now: Millis) {
        self.due = now.saturating_add(self.interval);
        self.backoff.reset();
    }

    /// Notes that a listing shows no files that lead on from here.
    pub fn nothing_new(&mut self, now: Millis) {
        self.missing(now);
        self.sure = Some(now);
    }

    /// Requests a listing, because the next file does not fit, or a listed file was gone.
    pub fn look_again(&mut self) {
        self.sure = None;
    }

    /// Notes that the store failed. `lasting` is true if a person has to mend something. `hold` is the delay
    /// that the store asked for, in milliseconds.
    pub fn failed(&mut self, now: Millis, lasting: bool, hold: Option<Millis>) {
        self.backoff.fail(now, lasting);
        if let Some(hold) = hold {
            self.backoff.hold_until(now.saturating_add(hold));
        }
    }
}

/// Returns the file that follows a state in a log without compaction.
pub fn following(at: Txid) -> Key {
    Key { level: Level::L0, name: FileName::single(at.next()) }
}

/// Way from a copy's state to the newest state of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// The copy has the newest state.
    There,
    /// Apply these files, one after the other.
    Steps(Plan),
    /// Restore the whole database, and write the pages that differ.
    Whole(Instead),
    /// The copy is newer than the replica's newest state, which is this. The replica was emptied, or has a new
    /// log.
    Back(Txid),
    /// The replica has no files.
    Empty,
}

/// Decides how a copy in state `at` gets to the newest state.
pub fn way(files: &[FileInfo], at: Txid) -> Result<Way, plan::Error> {
    let Some(head) = plan::restore::head(files) else { return Ok(Way::Empty) };
    if head < at {
        return Ok(Way::Back(head));
    }
    if head == at {
        return Ok(Way::There);
    }
    let whole = plan::restore::restore(files, Target::Latest);
    match whole {
        Ok(whole) => Ok(match forward(files, &whole, at) {
            Ok(steps) => Way::Steps(steps),
            Err(instead) => Way::Whole(instead),
        }),
        // Files may lead on from here although the beginning of the log is gone, or although there is a gap far
        // before.
        Err(error) => match plan::restore::forward(files, at, head) {
            Some(steps) => Ok(Way::Steps(steps)),
            None => Err(error),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::units::Timestamp;
    use proptest::prelude::*;

    fn file(level: u8, min: u64, max: u64, len: u64) -> FileInfo {
        let name = FileName { min: Txid(min), max: Txid(max) };
        let key = Key { level: Level::new(level).unwrap(), name };
        FileInfo { key, len, modified: Timestamp(0), stored: Timestamp(0) }
    }

    #[test]
    fn asks_by_name_and_lists_seldom() {
        let mut schedule = Schedule::new(Txid(7), 1000, 1);
        assert_eq!(schedule.next(5), Next::List);
        schedule.nothing_new(5);
        let (mut now, mut gets, mut lists) = (5, 0, 0);
        while now < 3_600_000 {
            match schedule.next(now) {
                Next::Get(key) => {
                    assert_eq!(key, following(Txid(7)));
                    gets += 1;
                    schedule.missing(now);
                }
                Next::List => {
                    lists += 1;
                    schedule.nothing_new(now);
                }
                Next::Wait(ms) => {
                    assert!(ms <= 1000);
                    now += ms;
                }
            }
        }
        assert_eq!((gets + lists, lists), (3599, 14));
        schedule.moved(Txid(8), now);
        assert_eq!(schedule.next(now), Next::Get(following(Txid(8))), "there may be more at once");
    }

    #[test]
    fn failures_make_it_wait_and_a_gone_file_makes_it_list() {
        let mut schedule = Schedule::new(Txid(7), 1000, 1);
        schedule.nothing_new(0);
        for _ in 0..9 {
            schedule.failed(2000, false, None);
        }
        let Next::Wait(ms) = schedule.next(2000) else { panic!() };
        assert!((7000..=15_000).contains(&ms), "{ms}");
        schedule.failed(2000, false, Some(60_000));
        assert_eq!(schedule.next(2000), Next::Wait(60_000));
        assert_eq!(schedule.next(62_000), Next::Get(following(Txid(7))));
        schedule.look_again();
        assert_eq!(schedule.next(62_000), Next::List);
    }

    #[test]
    fn every_way_there_is() {
        let first = file(9, 1, 1, 100 << 20);
        let joined = [first, file(0, 2, 2, 500), file(1, 3, 20, 5000), file(0, 21, 21, 500)];
        let steps = |at| match way(&joined, Txid(at)).unwrap() {
            Way::Steps(plan) => plan.files.iter().map(|f| f.key.to_string()).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(steps(20).len(), 1);
        assert_eq!(steps(7).len(), 2, "a joined file takes any state that it covers");
        assert_eq!(steps(1).len(), 3);
        assert_eq!(way(&joined, Txid(21)), Ok(Way::There));
        assert_eq!(way(&joined, Txid(22)), Ok(Way::Back(Txid(21))));
        assert_eq!(way(&[], Txid(22)), Ok(Way::Empty));
        // A snapshot and the file that follows it: no files lead on from 5.
        let young = [file(9, 1, 9, 5000), file(0, 10, 10, 500)];
        assert_eq!(way(&young, Txid(5)), Ok(Way::Whole(Instead::NoWay(Txid(5)))));
        // A gap before the copy does not matter.
        let hole = [first, file(0, 5, 5, 500), file(0, 6, 6, 500)];
        assert!(matches!(way(&hole, Txid(5)), Ok(Way::Steps(_))));
        assert!(matches!(way(&hole, Txid(3)), Err(plan::Error::Gap { .. })));
    }

    proptest! {
        /// For any listing, steps lead from the copy's state to the newest state. Each step takes the state
        /// that the step before it leads to.
        #[test]
        fn steps_lead_without_a_hole(
            files in prop::collection::vec((0u8..10, 1u64..30, 0u64..8, 200u64..9999), 0..40),
            at in 1u64..30,
        ) {
            let files: Vec<_> = files
                .into_iter()
                .map(|(level, min, more, len)| file(level, min, min + more, len))
                .collect();
            if let Ok(Way::Steps(plan)) = way(&files, Txid(at)) {
                let mut at = Txid(at);
                prop_assert!(!plan.files.is_empty());
                for step in &plan.files {
                    let name = step.key.name;
                    prop_assert!(name.min <= at.next() && name.max > at && name.min > Txid(1));
                    at = name.max;
                }
                prop_assert_eq!(Some(at), plan::restore::head(&files));
            }
        }
    }
}
