//! Schedules the comparison of the database with the page table, slice by slice, while nothing is wrong.
//!
//! Pure, like the engine: times are milliseconds on any clock that does not go back. Each commit lets slices be
//! read for a short while, so a database without writes costs nothing. An audit that stops for lack of commits
//! continues at the next commit.

use super::Millis;
use crate::units::Pgno;

/// Milliseconds after a commit in which slices are read.
const ACTIVE: Millis = 10_000;
/// Milliseconds until a slice that could not be read is tried again.
const AGAIN: Millis = 1000;
/// Milliseconds until a slice that made room is tried again.
const SOON: Millis = 20;
/// Number of failed attempts in a row from which a slice no longer makes room.
const YIELDS: u32 = 5;

/// Settings of the user.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Shortest time between the starts of two audits; 0 for no audits.
    pub interval: Millis,
    /// Bytes that are read per second.
    pub rate: u64,
}

/// The audits of one database.
#[derive(Clone, Debug)]
pub struct Audit {
    options: Options,
    /// Earliest start of the next audit.
    from: Millis,
    /// Time until which slices are read because of the last commit.
    active_until: Millis,
    walk: Option<Walk>,
}

/// An audit in progress.
#[derive(Clone, Copy, Debug)]
struct Walk {
    /// First page of the next slice.
    next: Pgno,
    /// Time from which that slice may be read.
    due: Millis,
    /// Number of compared pages.
    pages: u64,
    /// Number of failed attempts in a row.
    failures: u32,
}

impl Audit {
    /// Returns the audits of a database whose last audit began `age` ago. An unfinished audit continues with
    /// page `next`.
    pub fn new(options: Options, now: Millis, age: Millis, next: Option<Pgno>) -> Audit {
        let from = now.saturating_add(options.interval.saturating_sub(age));
        let walk = next.map(|next| Walk {
            next: next.max(1),
            due: now,
            pages: u64::from(next.saturating_sub(1)),
            failures: 0,
        });
        Audit { options, from, active_until: 0, walk }
    }

    /// Notes a commit.
    pub fn written(&mut self, now: Millis) {
        self.active_until = now.saturating_add(ACTIVE);
    }

    /// Returns the time at which the next slice is due, if the commits so far call for a slice.
    pub fn due(&self) -> Option<Millis> {
        let due = self.walk.map_or(self.from, |walk| walk.due);
        (self.options.interval > 0 && due < self.active_until).then_some(due)
    }

    /// True if a slice must be read now.
    pub fn is_due(&self, now: Millis) -> bool {
        self.due().is_some_and(|due| due <= now && now < self.active_until)
    }

    /// Returns the page with which the audit in progress continues.
    pub fn next(&self) -> Option<Pgno> {
        self.walk.map(|walk| walk.next)
    }

    /// Begins an audit, unless one is in progress.
    pub fn begin(&mut self, now: Millis) {
        if self.walk.is_none() {
            self.walk = Some(Walk { next: 1, due: now, pages: 0, failures: 0 });
            self.from = now.saturating_add(self.options.interval);
        }
    }

    /// Notes that a slice of `pages` pages was compared, for which `bytes` bytes were read. `next` is the page
    /// behind the slice.
    pub fn slice_done(&mut self, bytes: u64, pages: u64, next: Pgno, now: Millis) {
        let pause = bytes.saturating_mul(1000) / self.options.rate.max(1);
        if let Some(walk) = &mut self.walk {
            walk.next = next;
            walk.due = now.saturating_add(pause);
            walk.pages = walk.pages.saturating_add(pages);
            walk.failures = 0;
        }
    }

    /// Notes that a slice could not be read now. Returns the number of such failures in a row.
    pub fn put_off(&mut self, now: Millis) -> u32 {
        let Some(walk) = &mut self.walk else { return 0 };
        walk.due = now.saturating_add(AGAIN);
        walk.failures = walk.failures.saturating_add(1);
        walk.failures
    }

    /// Notes that a slice made room for another connection before it was read.
    pub fn made_room(&mut self, now: Millis) {
        self.put_off(now);
        if let Some(walk) = &mut self.walk {
            walk.due = now.saturating_add(SOON);
        }
    }

    /// True if a slice makes room for a connection that wants its read slot. After some failures it does not:
    /// an audit must end some day, even beside a connection that asks all the time.
    pub fn makes_room(&self) -> bool {
        self.walk.is_none_or(|walk| walk.failures < YIELDS)
    }

    /// Ends the audit in progress. Returns the number of pages that it compared.
    pub fn finished(&mut self, now: Millis) -> u64 {
        self.from = self.from.max(now);
        self.walk.take().map_or(0, |walk| walk.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Millis = 86_400_000;
    const MIB: u64 = 1 << 20;

    fn audit(age: Millis, next: Option<Pgno>) -> Audit {
        Audit::new(Options { interval: DAY, rate: 8 * MIB }, 1000, age, next)
    }

    #[test]
    fn nothing_is_due_where_nothing_is_written() {
        let mut audit = audit(2 * DAY, None);
        assert_eq!(audit.due(), None);
        audit.written(5000);
        assert_eq!(audit.due(), Some(1000));
        assert!(audit.is_due(5000) && audit.is_due(14_999) && !audit.is_due(15_000));
        // An audit that began waits for the next commit, and continues with its next page.
        audit.begin(5000);
        audit.slice_done(MIB, 256, 257, 14_990);
        assert_eq!((audit.due(), audit.next()), (None, Some(257)));
        audit.written(100_000);
        assert!(audit.is_due(100_000));
        let off = Options { interval: 0, rate: 1 };
        let mut off = Audit::new(off, 0, 0, Some(7));
        off.written(5);
        assert_eq!(off.due(), None);
    }

    #[test]
    fn one_begins_in_each_interval_whatever_the_process() {
        // A process without a record of an audit waits for a whole interval.
        let mut fresh = audit(0, None);
        fresh.written(DAY);
        assert!(!fresh.is_due(DAY + 999) && fresh.is_due(DAY + 1000));
        // An audit that an earlier process began an hour ago is continued.
        let mut resumed = audit(3_600_000, Some(1000));
        resumed.written(1000);
        assert!(resumed.is_due(1000));
        resumed.begin(1000);
        assert_eq!(resumed.next(), Some(1000));
        resumed.slice_done(MIB, 256, 1256, 1000);
        assert_eq!(resumed.finished(2000), 999 + 256);
        resumed.written(DAY - 3_600_000);
        assert!(!resumed.is_due(DAY - 3_600_000) && resumed.is_due(DAY - 3_599_000));
        // An audit that took longer than the interval is followed by the next at once.
        let mut slow = audit(DAY, None);
        slow.written(1000);
        slow.begin(1000);
        slow.finished(3 * DAY);
        slow.written(3 * DAY);
        assert!(slow.is_due(3 * DAY) && !slow.is_due(3 * DAY - 1));
    }

    #[test]
    fn slices_keep_to_the_rate() {
        let mut audit = audit(DAY, None);
        let (mut now, mut read) = (1000, 0);
        audit.written(now);
        audit.begin(now);
        while now < 11_000 {
            audit.written(now);
            if audit.is_due(now) {
                read += MIB;
                let next = audit.next().map_or(1, |next| next + 256);
                audit.slice_done(MIB, 256, next, now);
            }
            now += 1;
        }
        assert_eq!(read, 80 * MIB);
        // However low the rate is, each commit that comes late enough allows one slice.
        let mut audit = Audit::new(Options { interval: 1, rate: 1 << 10 }, 0, 1, None);
        audit.written(0);
        audit.begin(0);
        audit.slice_done(MIB, 1, 2, 0);
        audit.written(500_000);
        assert_eq!(audit.due(), None);
        audit.written(1_023_999);
        assert_eq!(audit.due(), Some(1_024_000));
    }

    #[test]
    fn what_cannot_be_read_is_tried_again_and_counted() {
        let mut audit = audit(DAY, None);
        audit.written(1000);
        assert_eq!(audit.put_off(1000), 0);
        audit.begin(1000);
        assert_eq!((audit.put_off(1000), audit.put_off(1500)), (1, 2));
        assert!(!audit.is_due(2499) && audit.is_due(2500));
        audit.slice_done(0, 1, 2, 2500);
        assert_eq!((audit.put_off(2500), audit.finished(2500)), (1, 1));
    }

    #[test]
    fn a_slice_makes_room_a_few_times_and_then_no_more() {
        let mut audit = audit(DAY, None);
        audit.written(0);
        audit.begin(0);
        for round in 0..u64::from(YIELDS) {
            assert!(audit.makes_room());
            audit.made_room(round * SOON);
            assert_eq!(audit.due(), Some((round + 1) * SOON));
        }
        assert!(!audit.makes_room());
        audit.slice_done(MIB, 256, 257, 1000);
        assert!(audit.makes_room());
    }
}
