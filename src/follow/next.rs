//! What is asked of the store next, as values: no store, no clock, no disk.
//!
//! A follower asks for the file of the next TXID by its name, which is one request and an answer of
//! a few bytes while there is none. That name may never come although the log goes on: the files of
//! level 0 are removed some time after they were joined, and a follower that was away for longer
//! finds nothing there. So after a time without answers, and after failures, it lists the replica.

use crate::engine::Millis;
use crate::engine::backoff::Backoff;
use crate::ltx::FileName;
use crate::plan::{self, Plan, Target};
use crate::restore::{Instead, forward};
use crate::store::{FileInfo, Key};
use crate::units::{Level, Txid};

/// So long, in milliseconds, may the next file be missing before the replica is listed. Far less than
/// files of level 0 are kept (`l0-retention` is 5 minutes at the least), and ten requests.
const LIST_EVERY: Millis = 240_000;

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Ask for this file.
    Get(Key),
    /// List all levels.
    List,
    /// Nothing for this long, in milliseconds.
    Wait(Millis),
}

/// When to ask for what.
#[derive(Clone, Debug)]
pub struct Schedule {
    at: Txid,
    interval: Millis,
    /// When the next file is asked for.
    due: Millis,
    /// When it was last sure that no file leads on from here; `None`: the replica must be listed.
    sure: Option<Millis>,
    backoff: Backoff,
}

impl Schedule {
    /// For a copy in state `at`, which nobody has compared with the replica yet. `interval` is the time
    /// between two requests while nothing is new, in milliseconds.
    pub fn new(at: Txid, interval: Millis, seed: u64) -> Schedule {
        Schedule { at, interval, due: 0, sure: None, backoff: Backoff::new(seed) }
    }

    /// What to do at `now`.
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

    /// The copy is in this state now: there may be more at once.
    pub fn moved(&mut self, at: Txid, now: Millis) {
        (self.at, self.due, self.sure) = (at, now, Some(now));
        self.backoff.reset();
    }

    /// The next file is not there.
    pub fn missing(&mut self, now: Millis) {
        self.due = now.saturating_add(self.interval);
        self.backoff.reset();
    }

    /// A listing shows nothing that leads on from here.
    pub fn nothing_new(&mut self, now: Millis) {
        self.missing(now);
        self.sure = Some(now);
    }

    /// The next file is of no use, or one of a listing was gone: only a new listing tells.
    pub fn look_again(&mut self) {
        self.sure = None;
    }

    /// The store failed. `lasting`: until somebody mends something. `hold`: what it asked for, in
    /// milliseconds.
    pub fn failed(&mut self, now: Millis, lasting: bool, hold: Option<Millis>) {
        self.backoff.fail(now, lasting);
        if let Some(hold) = hold {
            self.backoff.hold_until(now.saturating_add(hold));
        }
    }
}

/// The file with which the log goes on from a state, if nothing was joined.
pub fn following(at: Txid) -> Key {
    Key { level: Level::L0, name: FileName::single(at.next()) }
}

/// How a copy gets to what a listing shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// It is there.
    There,
    /// By these files, one after the other.
    Steps(Plan),
    /// Everything is restored, and what differs is written.
    Whole(Instead),
    /// The newest state of the replica is this one, which the copy has passed: it was emptied, or
    /// begun anew.
    Back(Txid),
    /// It holds nothing at all.
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
        // What leads on from here may be there although its beginning is not any more, or although
        // there is a hole far behind.
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
        // A snapshot, and what follows it: nothing leads on from 5.
        let young = [file(9, 1, 9, 5000), file(0, 10, 10, 500)];
        assert_eq!(way(&young, Txid(5)), Ok(Way::Whole(Instead::NoWay(Txid(5)))));
        // A hole before the copy is none of its business.
        let hole = [first, file(0, 5, 5, 500), file(0, 6, 6, 500)];
        assert!(matches!(way(&hole, Txid(5)), Ok(Way::Steps(_))));
        assert!(matches!(way(&hole, Txid(3)), Err(plan::Error::Gap { .. })));
    }

    proptest! {
        /// Whatever a listing shows: steps lead from where the copy is to the newest state, and each
        /// takes the state that the one before it leads to.
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
