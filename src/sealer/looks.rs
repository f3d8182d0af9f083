//! Decides when the store is asked, before a file goes out, whether the log still ends where this process left
//! it.
//!
//! The replica may have been emptied. Or the machine was put back to an earlier state from which it had already
//! continued once. A process that was started since then looks before its first file. A process that was put
//! back together with its memory notices a jump of the wall clock. Or a listing made for another reason shows a
//! transaction that this process has never sent.

use crate::local::state::State;
use crate::log_end::Confirmed;
use crate::ltx::DatabaseChecksum;
use crate::plan::retain::Own;
use crate::shipper::Look;
use crate::units::{Timestamp, Txid, WriterId};

/// Milliseconds between two looks at the replica while files go there.
const INTERVAL_MS: u64 = 60_000;

/// The current time by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Milliseconds since the start of the machine.
    pub at: u64,
    pub wall: Timestamp,
}

impl Moment {
    pub(super) fn now() -> Moment {
        Moment { at: crate::clock::since_boot(), wall: crate::clock::wall() }
    }

    fn is_long_after(self, earlier: Moment) -> bool {
        let passed = self.at.saturating_sub(earlier.at);
        let shown = self.wall.0.abs_diff(earlier.wall.0);
        passed.max(shown) >= INTERVAL_MS
    }

    /// True if the two clocks disagree about the time since then, as after a restored memory image.
    fn has_jumped_since(self, earlier: Moment) -> bool {
        let passed = self.at.saturating_sub(earlier.at);
        let shown = self.wall.0.abs_diff(earlier.wall.0);
        passed.abs_diff(shown) >= INTERVAL_MS
    }
}

/// State of the looks at the replica.
#[derive(Default, Debug)]
pub(super) struct Looks {
    /// Time at which the replica was last seen to hold every confirmed file. `None` before this process has
    /// looked, and when there is reason to look again.
    seen: Option<Moment>,
    /// Set if the file in flight goes out only after a look; true if that look is one at the log's end.
    asked: Option<bool>,
    /// True if a listing showed transactions that this process has not sent.
    outrun: bool,
}

impl Looks {
    /// Returns the transactions that the replica must still hold, if it is time to look. These are the last
    /// transaction, and the last one of the look before. A replica that was emptied in between lacks the
    /// latter, whatever was sent there since.
    pub(super) fn before_put(
        &mut self,
        now: Moment,
        state: Option<&State>,
        claimed: bool,
        writer: WriterId,
    ) -> Look {
        let first = !claimed || self.outrun;
        let fresh = self.seen.is_some_and(|seen| !now.is_long_after(seen));
        let Some(state) = state.filter(|_| !fresh) else {
            self.asked = None;
            return Look { first, writer, ..Look::default() };
        };
        let base = Txid(state.base.map_or(0, |base| base.txid));
        // A disk that was put back to the start of the lineage finds the file of its `base`. Later files may
        // have been removed, so that file proves nothing.
        let own = Own { first: state.first.map(Txid), last: base };
        let first = first || own.may_outlast(base);
        // A look by this process itself is newer than any power loss, and than a reset that would show in the
        // clocks. So is a state that was saved since the machine was started.
        let known = state.is_sure(crate::clock::boot());
        let behind = self.seen.map_or(!known, |seen| now.has_jumped_since(seen));
        let confirmed = |txid, sum: Option<u64>| {
            let post_apply = sum.map(DatabaseChecksum::from_stored);
            let of_lineage = state.first.is_some_and(|first| Txid(first) <= txid);
            let writer = of_lineage.then_some(writer);
            Some(Confirmed { txid, post_apply, writer }).filter(|_| txid > Txid::ZERO)
        };
        let last = confirmed(base, state.base.map(|base| base.checksum));
        let earlier = confirmed(Txid(state.checked), state.checked_sum);
        let earlier = earlier.filter(|checked| checked.txid != base);
        self.asked = Some(first);
        Look { last, earlier, first, behind, writer }
    }

    /// Notes that the store confirmed a file; true if there was a look at the files before it.
    pub(super) fn confirmed(&mut self, now: Moment) -> bool {
        let Some(at_the_end) = self.asked.take() else { return false };
        if at_the_end {
            self.outrun = false;
        }
        self.all_seen(now);
        true
    }

    /// Notes that every confirmed file is there.
    pub(super) fn all_seen(&mut self, now: Moment) {
        // Since then, a listing may have shown that the log has later transactions.
        self.seen = Some(now).filter(|_| !self.outrun);
    }

    /// Notes a reason to look again.
    pub(super) fn doubt(&mut self) {
        self.seen = None;
    }

    /// Notes that the log was seen to end with `end`, when this process had sent nothing behind `sent`.
    pub(super) fn saw_end(&mut self, end: Txid, sent: Txid) {
        if end > sent {
            self.doubt();
            self.outrun = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::state::Base;

    const OURS: WriterId = WriterId(7);

    fn at(at: u64, wall: i64) -> Moment {
        Moment { at, wall: Timestamp(wall) }
    }

    fn state() -> State {
        let mut state = State::new(OURS, "file:///r");
        (state.first, state.checked) = (Some(2), 5);
        state.base = Some(Base {
            txid: 9,
            piece: 1,
            page_size: 4096,
            commit: 1,
            checksum: 0,
            timestamp: 0,
            position: None,
        });
        state
    }

    fn ask(looks: &mut Looks, now: Moment) -> (Option<u64>, Option<u64>, bool) {
        let look = looks.before_put(now, Some(&state()), true, OURS);
        let txid = |it: Option<Confirmed>| it.map(|it| it.txid.0);
        (txid(look.last), txid(look.earlier), look.first)
    }

    const ALL: (Option<u64>, Option<u64>, bool) = (Some(9), Some(5), false);
    const NOTHING: (Option<u64>, Option<u64>, bool) = (None, None, false);

    #[test]
    fn it_is_looked_once_in_a_while() {
        let mut looks = Looks::default();
        assert_eq!(ask(&mut looks, at(0, 0)), ALL);
        assert!(looks.confirmed(at(1, 1)));
        assert_eq!(ask(&mut looks, at(59_000, 59_000)), NOTHING);
        assert!(!looks.confirmed(at(59_001, 59_001)));
        assert_eq!(ask(&mut looks, at(60_001, 60_001)), ALL);
    }

    #[test]
    fn a_wall_clock_that_jumps_is_a_reason_to_look() {
        let mut looks = Looks::default();
        looks.all_seen(at(1000, 100_000_000));
        assert_eq!(ask(&mut looks, at(1001, 186_400_000)), ALL);
        assert_eq!(ask(&mut looks, at(1001, 13_600_000)), ALL);
        assert_eq!(ask(&mut looks, at(1001, 100_000_500)), NOTHING);
    }

    #[test]
    fn what_may_have_been_forgotten_is_not_believed_by_its_own_file() {
        let mut looks = Looks::default();
        let is_behind = |looks: &mut Looks, now| {
            let look = looks.before_put(now, Some(&state()), true, OURS);
            look.behind
        };
        assert!(is_behind(&mut looks, at(0, 0)));
        looks.all_seen(at(0, 0));
        assert!(!is_behind(&mut looks, at(3_600_000, 3_600_000)));
        assert!(is_behind(&mut looks, at(1000, 3_600_000)));
        looks.doubt();
        assert!(is_behind(&mut looks, at(1000, 1000)));
    }

    #[test]
    fn what_was_not_sent_from_here_is_looked_for_at_the_logs_end() {
        let mut looks = Looks::default();
        looks.all_seen(at(0, 0));
        looks.saw_end(Txid(9), Txid(9));
        assert_eq!(ask(&mut looks, at(1, 1)), NOTHING);
        looks.saw_end(Txid(10), Txid(9));
        assert_eq!(ask(&mut looks, at(1, 1)), (Some(9), Some(5), true));
        // The same, until a look was done.
        assert_eq!(ask(&mut looks, at(2, 2)), (Some(9), Some(5), true));
        assert!(looks.confirmed(at(3, 3)));
        assert_eq!(ask(&mut looks, at(4, 4)), NOTHING);
    }

    #[test]
    fn what_is_seen_while_a_file_is_on_its_way_is_not_forgotten() {
        let mut looks = Looks::default();
        // First with a look, then without.
        for now in [0, 1000] {
            ask(&mut looks, at(now, 0));
            looks.saw_end(Txid(10), Txid(9));
            looks.confirmed(at(now, 0));
            assert_eq!(ask(&mut looks, at(now, 0)), (Some(9), Some(5), true));
            assert!(looks.confirmed(at(now, 0)));
        }
        // An image does not end the doubt either, since it has a name of its own.
        looks.saw_end(Txid(10), Txid(9));
        looks.all_seen(at(1000, 0));
        assert_eq!(ask(&mut looks, at(1001, 0)), (Some(9), Some(5), true));
    }
}
