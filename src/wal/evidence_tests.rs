//! Tests of each assumption that once lost commits: a WAL built in bytes, and two states of its index.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use crate::wal::frame_offset;

const PAGE: u32 = 512;

fn page_size() -> PageSize {
    PageSize::new(PAGE).unwrap()
}

/// A WAL as SQLite writes it, with its index.
#[derive(Clone)]
struct Wal {
    bytes: Vec<u8>,
    index: WalIndex,
    sum: (u32, u32),
    /// Fill byte of the next frame.
    next: u8,
}

fn sum(from: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let (mut a, mut b) = from;
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| u32::from_le_bytes(pair[at..at + 4].try_into().unwrap());
        a = a.wrapping_add(word(0)).wrapping_add(b);
        b = b.wrapping_add(word(4)).wrapping_add(a);
    }
    (a, b)
}

impl Wal {
    fn new(salts: Salts) -> Wal {
        let index = WalIndex {
            change: 0,
            max_frame: 0,
            page_count: 9,
            page_size: page_size(),
            frame_checksum: (0, 0),
            salts,
        };
        let mut wal = Wal { bytes: Vec::new(), index, sum: (0, 0), next: 1 };
        wal.put_header();
        wal
    }

    fn put_header(&mut self) {
        let mut head = Vec::new();
        let Salts(first, second) = self.index.salts;
        for word in [0x377f_0682, 3_007_000, PAGE, 0, first, second] {
            head.extend_from_slice(&word.to_be_bytes());
        }
        self.sum = sum((0, 0), &head);
        head.extend_from_slice(&self.sum.0.to_be_bytes());
        head.extend_from_slice(&self.sum.1.to_be_bytes());
        self.write(0, &head);
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[at..end].copy_from_slice(bytes);
    }

    /// Commits a transaction of `frames` frames. Without `marked`, salts and checksums are zero, as SQLite
    /// before 3.50.2 may write them.
    fn commit_frames(&mut self, frames: u32, marked: bool) {
        for frame in 1..=frames {
            let commit = if frame == frames { 9u32 } else { 0 };
            let mut head = vec![];
            head.extend_from_slice(&(u32::from(self.next) % 9 + 1).to_be_bytes());
            head.extend_from_slice(&commit.to_be_bytes());
            let page = vec![self.next; PAGE as usize];
            self.next = self.next.wrapping_add(1);
            self.sum = sum(sum(self.sum, &head), &page);
            let Salts(first, second) = self.index.salts;
            let words = [first, second, self.sum.0, self.sum.1];
            for word in if marked { words } else { [0; 4] } {
                head.extend_from_slice(&word.to_be_bytes());
            }
            head.extend_from_slice(&page);
            self.index.max_frame += 1;
            let at = frame_offset(page_size(), self.index.max_frame) as usize;
            self.write(at, &head);
        }
        self.index.change = self.index.change.wrapping_add(1);
    }

    fn commit(&mut self, frames: u32) {
        self.commit_frames(frames, true);
    }

    /// Repeats the last frame `copies` times, as psow=0 does up to a sector boundary.
    fn pad(&mut self, copies: u32) {
        for _ in 0..copies {
            let from = frame_offset(page_size(), self.index.max_frame) as usize;
            let mut frame = self.bytes[from..from + 24 + PAGE as usize].to_vec();
            self.sum = sum(sum(self.sum, &frame[..8]), &frame[24..]);
            frame[16..20].copy_from_slice(&self.sum.0.to_be_bytes());
            frame[20..24].copy_from_slice(&self.sum.1.to_be_bytes());
            self.index.max_frame += 1;
            self.write(frame_offset(page_size(), self.index.max_frame) as usize, &frame);
        }
    }

    /// Commits a transaction of two frames, and `copies` copies of the last.
    fn commit_padded(&mut self, copies: u32) {
        self.commit(2);
        self.pad(copies);
    }

    fn commit_all_padded(&mut self, copies: &[u32]) {
        for copies in copies {
            self.commit_padded(*copies);
        }
    }

    /// Commits a transaction that writes the last page again, unchanged.
    fn commit_again(&mut self) {
        self.pad(1);
        self.index.change = self.index.change.wrapping_add(1);
    }

    fn commits(&self) -> Commits {
        let (wal, last) = (self.bytes.as_slice(), self.index.max_frame);
        count_commits(wal, page_size(), 1, last).unwrap()
    }

    /// Restarts the WAL, as `walRestartHdr` and the next write do.
    fn restart(&mut self) {
        let Salts(first, second) = self.index.salts;
        self.index.salts = Salts(first.wrapping_add(1), second.wrapping_mul(31).wrapping_add(7));
        self.index.max_frame = 0;
        self.put_header();
    }

    /// Restarts the WAL and empties the file, as a TRUNCATE checkpoint does.
    fn truncate(&mut self) {
        self.restart();
        self.bytes.clear();
    }

    /// Keeps the frames up to `last` and sets `iChange` to 0, as `walIndexRecover` does.
    fn recover(&mut self, last: u32) {
        self.index.max_frame = last;
        self.index.change = 0;
        if last > 0 {
            self.sum = self.position(last).checksum;
        }
    }

    fn position(&self, frame: u32) -> WalPosition {
        let checksum = match frame {
            0 => (0, 0),
            frame => checksum_at(self.bytes.as_slice(), page_size(), frame).unwrap(),
        };
        WalPosition { salts: self.index.salts, frame, checksum }
    }

    /// Returns the end of the index, with every commit so far captured.
    fn proven(&self) -> Proven {
        let at = self.position(self.index.max_frame);
        Proven::end_of(&self.index, at, None)
    }

    fn account(&self, proven: &Proven) -> Account {
        self.account_under(proven, None)
    }

    fn account_under(&self, proven: &Proven, guard: Option<Guard>) -> Account {
        let wal = self.bytes.as_slice();
        let sight = Sight { index: &self.index, wal, page_size: page_size(), guard };
        account(proven, &sight).unwrap()
    }
}

fn not_proven(gap: Gap) -> Account {
    Account::NotProven(gap)
}

/// Returns a WAL with this many commits, of two frames each.
fn wal_of(commits: u32) -> Wal {
    let mut wal = Wal::new(Salts(u32::MAX, 7));
    (0..commits).for_each(|_| wal.commit(2));
    wal
}

#[test]
fn same_generation_continues_behind_the_captured_checksum() {
    let mut wal = wal_of(3);
    let proven = wal.proven();
    assert_eq!(wal.account(&proven), Account::Continues);
    wal.commit(5);
    assert_eq!(wal.account(&proven), Account::Continues);
    // The same generation needs no `iChange`.
    let position = Proven::position(proven.at);
    assert_eq!(wal.account(&position), Account::Continues);
}

#[test]
fn same_generation_with_another_frame_at_the_position_is_not_proven() {
    let mut wal = wal_of(3);
    let proven = wal.proven();
    wal.recover(4);
    assert_eq!(wal.account(&proven), not_proven(Gap::WentBack));
    wal.next = 100;
    (0..5).for_each(|_| wal.commit(2));
    assert_eq!(wal.account(&proven), not_proven(Gap::OtherFrames));
}

#[test]
fn direct_restart_is_proven_by_tail_and_count() {
    let mut wal = wal_of(20);
    let proven = wal.proven();
    wal.commit(2);
    wal.commit(2);
    wal.restart();
    wal.commit(2);
    match wal.account(&proven) {
        Account::Begun { tail, change } => {
            assert_eq!((tail.frames.first, tail.frames.last), (41, 44));
            assert_eq!(change, 22);
        }
        other => panic!("{other:?}"),
    }
    // The first salt shows a second restart; the second salt is random.
    wal.index.salts.0 += 1;
    wal.put_header();
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted));
}

#[test]
fn second_restart_is_not_proven_even_if_its_commits_fit_the_count() {
    let mut wal = wal_of(20);
    let proven = wal.proven();
    wal.restart();
    wal.commit(2);
    wal.restart();
    wal.commit(2);
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted));
}

#[test]
fn overwritten_tail_is_not_proven() {
    let mut wal = wal_of(1);
    let proven = wal.proven();
    (0..30).for_each(|_| wal.commit(2));
    wal.restart();
    (0..10).for_each(|_| wal.commit(2));
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted));
}

#[test]
fn recovery_that_makes_up_for_what_was_overwritten_is_not_proven() {
    let mut wal = wal_of(4);
    let proven = wal.proven();
    // Four commits are lost, and recovery has reduced `iChange` by four.
    wal.recover(8);
    (0..4).for_each(|_| wal.commit(2));
    wal.restart();
    (0..8).for_each(|_| wal.commit(2));
    assert_eq!(wal.index.change, proven.change.unwrap() + 8);
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted));
    // Here no recovery explains the count, and the end of the old generation shows: behind the overwritten
    // frames is a frame of an older generation.
    let mut wal = wal_of(50);
    wal.restart();
    (0..40).for_each(|_| wal.commit(2));
    let proven = wal.proven();
    wal.restart();
    (0..45).for_each(|_| wal.commit(2));
    assert!(matches!(wal.account(&proven), Account::Begun { change: 90, .. }));
    (0..20).for_each(|_| wal.commit(2));
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted), "no end is seen any more");
}

#[test]
fn new_generation_that_grows_while_it_is_looked_at_hides_no_end() {
    let mut wal = wal_of(50);
    wal.restart();
    (0..10).for_each(|_| wal.commit(2));
    let proven = wal.proven();
    wal.restart();
    wal.commit(2);
    let seen = wal.index;
    // The new generation has more frames than the index names, past the end of the old generation.
    (0..12).for_each(|_| wal.commit(2));
    wal.index = seen;
    assert!(matches!(wal.account(&proven), Account::Begun { change: 60, .. }));
    // The places of these frames count as overwritten.
    let few = Proven { change: Some(7), ..proven };
    wal.index.change = 8;
    assert!(matches!(wal.account(&few), Account::Begun { change: 7, .. }), "six frames at most");
    let few = Proven { change: Some(6), ..proven };
    wal.index.change = 7;
    assert_eq!(wal.account(&few), not_proven(Gap::Restarted));
    // Only frames of the new generation are left up to the end of the file, so the file may have been cut
    // off before.
    wal.bytes.truncate(frame_offset(page_size(), 27) as usize);
    wal.index = seen;
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted));
}

#[test]
fn file_that_was_cut_off_and_grew_again_is_not_proven() {
    let mut wal = wal_of(4);
    let proven = wal.proven();
    wal.recover(8);
    (0..5).for_each(|_| wal.commit(1));
    wal.truncate();
    wal.put_header();
    (0..3).for_each(|_| wal.commit(1));
    wal.index.change = proven.change.unwrap() + 3;
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted));
}

#[test]
fn frames_of_a_writer_that_died_are_no_older_generation() {
    let mut wal = wal_of(2);
    let proven = wal.proven();
    wal.recover(4);
    (0..2).for_each(|_| wal.commit(1));
    wal.truncate();
    let now = wal.index;
    assert_eq!((now.change, now.max_frame), (proven.change.unwrap(), 0));
    // A process finds an empty file, takes random salts, writes frames, and dies before it publishes them.
    wal.index.salts = Salts(0x0bca_198e, 7);
    wal.put_header();
    wal.commit(6);
    wal.index = now;
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted));
}

#[test]
fn generation_that_went_on_past_the_new_one_is_not_proven() {
    let mut wal = wal_of(4);
    let proven = wal.proven();
    wal.recover(8);
    (0..10).for_each(|_| wal.commit(1));
    // Of ten lost commits, the new generation overwrites four. The other six are still behind it.
    wal.restart();
    (0..12).for_each(|_| wal.commit(1));
    wal.index.change = proven.change.unwrap() + 12;
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted));
}

#[test]
fn truncated_wal_is_proven_only_under_one_guard() {
    let guard = Some(Guard(1));
    let mut wal = wal_of(5);
    let proven = Proven { guard, ..wal.proven() };
    wal.truncate();
    assert!(matches!(wal.account_under(&proven, guard), Account::Begun { change: 5, .. }));
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted), "nothing shows where it ended");
    wal.index.change += 1;
    assert_eq!(wal.account_under(&proven, guard), not_proven(Gap::Restarted), "one more before");
}

#[test]
fn any_first_generation_is_proven_only_under_one_guard() {
    let guard = Some(Guard(3));
    let begun = Proven::beginning(Salts(0, 0), 0, guard);
    let mut wal = Wal::new(Salts(99, 98));
    wal.commit(2);
    wal.commit(2);
    assert!(matches!(wal.account_under(&begun, guard), Account::Begun { change: 0, .. }));
    assert_eq!(wal.account_under(&begun, Some(Guard(4))), not_proven(Gap::Restarted));
    assert_eq!(wal.account_under(&begun, None), not_proven(Gap::Restarted));
    wal.restart();
    wal.commit(2);
    assert_eq!(wal.account_under(&begun, guard), not_proven(Gap::Restarted), "two are missing");
}

#[test]
fn position_without_a_count_proves_no_other_generation() {
    let mut wal = wal_of(5);
    let position = Proven::position(wal.proven().at);
    wal.restart();
    wal.commit(2);
    assert_eq!(wal.account(&position), not_proven(Gap::Restarted));
}

#[test]
fn frames_without_checksums_are_told_apart_by_their_bytes() {
    let mut wal = wal_of(20);
    let before = Wal { bytes: wal.bytes.clone(), ..wal };
    wal.commit_frames(2, false);
    let proven = wal.proven();
    assert_ne!(proven.at.checksum, (0, 0));
    wal.commit(2);
    assert_eq!(wal.account(&proven), Account::Continues);
    // Recovery cuts these frames off, and other frames without a checksum take their place. `iChange` is
    // the same again.
    let mut other = before;
    other.next += 7;
    other.commit_frames(2, false);
    other.commit(2);
    let (change, max_frame) = (wal.index.change, wal.index.max_frame);
    assert_eq!((other.index.change, other.index.max_frame), (change, max_frame));
    assert_eq!(other.account(&proven), not_proven(Gap::OtherFrames));
}

#[test]
fn index_and_file_of_two_moments_are_looked_at_again() {
    let mut wal = wal_of(5);
    let (proven, before) = (wal.proven(), wal.index);
    wal.restart();
    let now = std::mem::replace(&mut wal.index, before);
    assert_eq!(wal.account(&proven), Account::Overtaken, "the file is newer");
    wal.index = now;
    wal.index.max_frame = 1;
    wal.bytes.truncate(40);
    assert_eq!(wal.account(&proven), Account::Overtaken, "the file ends early");
    wal.bytes.clear();
    wal.index = before;
    assert_eq!(wal.account(&proven), Account::Overtaken, "the file is empty");
}

/// A WAL with the bytes `before` for the first `reads` reads, and then the bytes `after`.
struct Changing<'a> {
    before: &'a [u8],
    after: &'a [u8],
    reads: std::cell::Cell<u32>,
}

impl ReadAt for Changing<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let left = self.reads.get();
        self.reads.set(left.saturating_sub(1));
        if left > 0 { self.before } else { self.after }.read_exact_at(buffer, offset)
    }
}

#[test]
fn generation_that_begins_between_two_reads_is_looked_at_again() {
    let position = wal_of(20);
    let mut behind = position.clone();
    behind.restart();
    (0..2).for_each(|_| behind.commit(2));
    for (wal, expected) in [(&position, "Continues"), (&behind, "Begun")] {
        let mut later = wal.clone();
        later.restart();
        (0..30).for_each(|_| later.commit(2));
        let seen: Vec<String> = (0..60)
            .map(|reads| {
                let reads = std::cell::Cell::new(reads);
                let changing = Changing { before: &wal.bytes, after: &later.bytes, reads };
                let (index, page_size) = (&wal.index, page_size());
                let sight = Sight { index, wal: &changing, page_size, guard: None };
                format!("{:?}", account(&position.proven(), &sight).unwrap())
            })
            .collect();
        let known = |one: &String| one == "Overtaken" || one.starts_with(expected);
        assert!(seen.iter().all(known) && seen[59].starts_with(expected), "{seen:?}");
    }
}

#[test]
fn restart_under_the_write_lock_moves_only_what_stands_at_its_place() {
    let mut wal = wal_of(5);
    let (proven, before) = (wal.proven(), wal.index);
    wal.restart();
    let restart = Restart::between(&before, &wal.index, Some(Guard(1))).unwrap();
    let moved = proven.restarted(&restart).unwrap();
    assert_eq!(moved, Proven::beginning(wal.index.salts, 5, Some(Guard(1))));
    let earlier = Proven { at: WalPosition { frame: 8, ..proven.at }, ..proven };
    assert_eq!(earlier.restarted(&restart), None);
    assert_eq!(Proven { change: Some(4), ..proven }.restarted(&restart), None);
    assert_eq!(Restart::between(&before, &before, None), None, "nothing was restarted");
    let twice = WalIndex { salts: Salts(wal.index.salts.0 + 1, 1), ..wal.index };
    assert_eq!(Restart::between(&before, &twice, None), None);
    let committed = WalIndex { change: 6, ..wal.index };
    assert_eq!(Restart::between(&before, &committed, None), None);
}

// ---- copies up to a sector boundary ------------------------------------------------------------

#[test]
fn frame_that_repeats_the_one_before_it_may_be_no_commit() {
    // Number of copies behind each commit; least and greatest number of commits.
    let table: [(&[u32], u32, u32); 6] = [
        (&[], 0, 0),
        (&[0], 1, 1),
        (&[0, 0], 2, 2),
        (&[1], 1, 2),
        (&[7, 0, 122], 3, 132),
        (&[1, 1], 2, 4),
    ];
    for (copies, least, most) in table {
        let mut wal = wal_of(0);
        wal.commit_all_padded(copies);
        assert_eq!(wal.commits(), Commits { least, most }, "{copies:?}");
        // `tail` counts the same.
        let mut wal = wal_of(1);
        let at = wal.proven().at;
        wal.commit_all_padded(copies);
        let left = tail(wal.bytes.as_slice(), page_size(), at);
        assert_eq!(left.commits, Commits { least, most }, "{copies:?}");
    }
}

#[test]
fn frame_that_differs_from_the_one_before_it_is_a_commit() {
    let copy = |change: fn(&mut [u8])| {
        let mut wal = wal_of(1);
        wal.pad(1);
        let from = frame_offset(page_size(), 3) as usize;
        change(&mut wal.bytes[from..]);
        wal.commits()
    };
    let (doubtful, sure) = (Commits { least: 1, most: 2 }, Commits { least: 2, most: 2 });
    assert_eq!(copy(|_| {}), doubtful);
    assert_eq!(copy(|frame| frame[8..24].fill(0)), doubtful, "salts and checksum of a copy differ");
    assert_eq!(copy(|frame| frame[3] ^= 1), sure, "another page");
    assert_eq!(copy(|frame| frame[7] ^= 1), sure, "another size of the database");
    assert_eq!(copy(|frame| frame[24] ^= 1), sure, "another first byte");
    assert_eq!(copy(|frame| frame[24 + PAGE as usize - 1] ^= 1), sure, "another last byte");
    assert_eq!(copy(|frame| frame[7] = 0), Commits { least: 1, most: 1 }, "no commit mark");
}

#[test]
fn first_frame_behind_a_position_is_a_copy_of_nothing() {
    let mut wal = wal_of(1);
    let at = wal.proven().at;
    wal.commit_again();
    let left = tail(wal.bytes.as_slice(), page_size(), at);
    assert_eq!(left.commits, Commits { least: 1, most: 1 });
}

/// Returns a WAL with two generations. Frames of the older one show where the newer one ends.
fn wal_with_an_end(commits: u32) -> Wal {
    let mut wal = wal_of(200);
    wal.restart();
    (0..commits).for_each(|_| wal.commit(2));
    wal
}

#[test]
fn copies_make_up_for_no_commit_that_was_overwritten() {
    for guard in [None, Some(Guard(1))] {
        let mut wal = wal_with_an_end(20);
        let proven = Proven { guard, ..wal.proven() };
        // Two commits are lost: the new generation overwrites them, and contains two copies.
        wal.commit(2);
        wal.commit(2);
        wal.restart();
        (0..30).for_each(|_| wal.commit(2));
        wal.commit_padded(1);
        wal.commit_padded(1);
        assert_eq!(wal.index.change - proven.change.unwrap(), wal.commits().most);
        assert_eq!(wal.account_under(&proven, guard), not_proven(Gap::Restarted), "{guard:?}");
    }
}

#[test]
fn copies_make_up_for_no_first_generation_that_was_missed() {
    let guard = Some(Guard(3));
    let begun = Proven::beginning(Salts(0, 0), 0, guard);
    let mut wal = Wal::new(Salts(99, 98));
    wal.commit_padded(1);
    assert!(matches!(wal.account_under(&begun, guard), Account::Begun { change: 0, .. }));
    wal.restart();
    wal.commit_padded(1);
    assert_eq!(wal.index.change, wal.commits().most);
    assert_eq!(wal.account_under(&begun, guard), not_proven(Gap::Restarted));
}

#[test]
fn copies_are_no_reason_for_a_comparison_behind_what_is_captured() {
    for guard in [None, Some(Guard(1))] {
        let mut wal = wal_with_an_end(20);
        let proven = Proven { guard, ..wal.proven() };
        wal.restart();
        (0..2).for_each(|_| wal.commit_padded(7));
        let change = proven.change.unwrap();
        match wal.account_under(&proven, guard) {
            Account::Begun { tail, change: begun } => {
                assert!(tail.frames.is_empty());
                assert_eq!(begun, change);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn transaction_of_a_writer_that_died_is_no_commit_that_a_copy_hides() {
    for guard in [None, Some(Guard(1))] {
        let mut wal = wal_with_an_end(20);
        let proven = Proven { guard, ..wal.proven() };
        let committed = wal.index;
        wal.commit(2);
        // The transaction is in the file, but not in the wal-index.
        wal.index = committed;
        wal.restart();
        wal.commit(2);
        let once = wal.clone();
        assert_eq!(once.account_under(&proven, guard), not_proven(Gap::Restarted), "{guard:?}");
        wal.commit_again();
        assert_eq!(wal.account_under(&proven, guard), not_proven(Gap::Restarted), "{guard:?}");
    }
}

#[test]
fn same_page_as_before_is_a_commit_where_nothing_was_overwritten() {
    let guard = Some(Guard(1));
    let mut wal = wal_with_an_end(20);
    let proven = Proven { guard, ..wal.proven() };
    let change = proven.change.unwrap();
    wal.commit(2);
    wal.restart();
    wal.commit(2);
    wal.commit_again();
    let begun =
        |account| matches!(account, Account::Begun { change: begun, .. } if begun == change + 1);
    assert!(begun(wal.account_under(&proven, guard)));
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted), "recovery would explain it");
    // Copies in the tail alone can be counted, too.
    let mut wal = wal_with_an_end(20);
    wal.commit_again();
    wal.commit_again();
    wal.restart();
    wal.commit(2);
    match wal.account_under(&proven, guard) {
        Account::Begun { change: begun, .. } => assert_eq!(begun, change + 2),
        other => panic!("{other:?}"),
    }
    // With copies in both generations, the number of commits before the restart is ambiguous.
    wal.commit_again();
    assert_eq!(wal.account_under(&proven, guard), not_proven(Gap::Restarted));
}

#[test]
fn recovery_is_not_outcounted_by_copies() {
    // The position's `iChange` is set to 6. Behind the position, five frames can hold missing commits.
    let mut wal = wal_of(200);
    wal.restart();
    (0..6).for_each(|_| wal.commit(1));
    let proven = Proven { change: Some(6), ..wal.proven() };
    (0..5).for_each(|_| wal.commit(1));
    wal.restart();
    (0..10).for_each(|_| wal.commit(1));
    wal.pad(1);
    wal.index.change = 6 + 10;
    // The new generation overwrites frames 1 to 11. Five of them, 7 to 11, can hold missing commits, and
    // the copy may be a sixth.
    assert_eq!(wal.account(&proven), not_proven(Gap::Restarted));
    let more = Proven { change: Some(7), ..proven };
    wal.index.change = 7 + 10;
    assert!(matches!(wal.account(&more), Account::Begun { change: 7, .. }));
}
