//! Reads a WAL file by its salts and checksums, without a wal-index.
//!
//! [`reaches`] and [`recover`] are for a WAL that no process has open: they read the file as SQLite's
//! recovery would. [`tail`] finds frames of a generation that a later generation is overwriting.

use std::collections::BTreeMap;

use super::commits::repeats;
use super::frames::{checksum, word};
use super::{Commits, FRAME_HEADER_LEN, FrameSet, ReadAt, WAL_HEADER_LEN, WalHeader, frame_offset};
use crate::units::{PageSize, Pgno, WalPosition};

/// First word of a WAL with checksums over big-endian words.
const MAGIC_BIG_ENDIAN: u32 = 0x377f_0683;

/// True if every frame up to `position` is present, by salts and by the running checksum. A read error,
/// as at the end of a shorter file, gives false.
pub fn reaches<R: ReadAt + ?Sized>(wal: &R, page_size: PageSize, position: WalPosition) -> bool {
    running_checksum(wal, page_size, position).is_some_and(|sum| sum == position.checksum)
}

/// Committed contents of a WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Page size of the database.
    pub page_size: PageSize,
    /// Last committed frame; 0 if there is none.
    pub last: u32,
    /// Size of the database in pages after the last commit; 0 if there is no commit.
    pub commit: u32,
    /// Smallest size in pages after any of the commits; `u32::MAX` if there is no commit. Pages of the
    /// database file behind this size are gone.
    pub smallest: u32,
    /// Newest committed frame of each page. Pages behind the end of the database are left out.
    pub newest: BTreeMap<Pgno, u32>,
}

/// Finds the frames that SQLite would recover from a WAL that no process has open (`walIndexRecover` in
/// `wal.c`). These are the frames with right salts and running checksum, up to the last commit among
/// them. `None` if the WAL's header is not valid.
pub fn recover<R: ReadAt + ?Sized>(wal: &R) -> Option<Recovered> {
    let WalHeader { page_size, salts } = WalHeader::read(wal)?;
    let (big_endian, mut sum) = header_checksum(wal)?;
    let mut frame = vec![0; FRAME_HEADER_LEN + page_size.bytes()];
    let newest = BTreeMap::new();
    let mut found = Recovered { page_size, last: 0, commit: 0, smallest: u32::MAX, newest };
    let mut pending: BTreeMap<Pgno, u32> = BTreeMap::new();
    for number in 1..u32::MAX {
        if wal.read_exact_at(&mut frame, frame_offset(page_size, number)).is_err() {
            break;
        }
        let field = |at| word(&frame, at).unwrap_or(0);
        let (pgno, commit) = (field(0), field(4));
        if pgno == 0 || (field(8), field(12)) != (salts.0, salts.1) {
            break;
        }
        sum = checksum(big_endian, sum, frame.get(..8)?);
        sum = checksum(big_endian, sum, frame.get(FRAME_HEADER_LEN..)?);
        if sum != (field(16), field(20)) {
            break;
        }
        pending.insert(pgno, number);
        if commit != 0 {
            found.newest.append(&mut pending);
            // A transaction may spill pages and then cut them off the database.
            drop(found.newest.split_off(&commit.saturating_add(1)));
            found.last = number;
            found.commit = commit;
            found.smallest = found.smallest.min(commit);
        }
    }
    Some(found)
}

/// Frames of an old generation that are still in the file behind a position, after a restart of the WAL.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tail {
    /// Committed frames behind the position; empty if there are none.
    pub frames: FrameSet,
    /// Number of transactions that these frames end.
    pub commits: Commits,
}

/// Finds the committed frames of an old generation that are still in the file behind a position. Checks
/// the salts, and the running checksum from the position's own checksum on.
///
/// A later generation overwrites the file from frame 1 on. So as long as the first frame of the result
/// is in its place, all later frames of the result are in theirs.
pub fn tail<R: ReadAt + ?Sized>(wal: &R, page_size: PageSize, behind: WalPosition) -> Tail {
    let mut tail = Tail::default();
    let mut head = [0; WAL_HEADER_LEN as usize];
    if behind.frame == 0 || wal.read_exact_at(&mut head, 0).is_err() {
        return tail;
    }
    // The same machine wrote both generations.
    let big_endian = word(&head, 0) == Some(MAGIC_BIG_ENDIAN);
    let mut sum = behind.checksum;
    let mut frame = vec![0; FRAME_HEADER_LEN + page_size.bytes()];
    // The first frame is no copy of the frame at the position: a transaction ends there with its copies.
    let mut before = Vec::new();
    let mut last = behind.frame;
    for number in behind.frame.saturating_add(1)..u32::MAX {
        if wal.read_exact_at(&mut frame, frame_offset(page_size, number)).is_err() {
            break;
        }
        let field = |at| word(&frame, at).unwrap_or(0);
        if field(0) == 0 || (field(8), field(12)) != (behind.salts.0, behind.salts.1) {
            break;
        }
        sum = checksum(big_endian, sum, frame.get(..8).unwrap_or_default());
        sum = checksum(big_endian, sum, frame.get(FRAME_HEADER_LEN..).unwrap_or_default());
        if sum != (field(16), field(20)) {
            break;
        }
        if field(4) != 0 {
            tail.commits.add_frame(repeats(&before, &frame));
            last = number;
        }
        before.clone_from(&frame);
    }
    // This reads the headers a second time, but only those of the few committed frames.
    if tail.frames.extend(wal, page_size, behind.frame.saturating_add(1), last).is_err() {
        return Tail::default();
    }
    tail
}

/// Returns the checksum of the WAL's header, and true if its words are big-endian. `None` if the stored
/// checksum is wrong.
fn header_checksum<R: ReadAt + ?Sized>(wal: &R) -> Option<(bool, (u32, u32))> {
    let mut head = [0; WAL_HEADER_LEN as usize];
    wal.read_exact_at(&mut head, 0).ok()?;
    let big_endian = word(&head, 0)? == MAGIC_BIG_ENDIAN;
    let sum = checksum(big_endian, (0, 0), head.get(..24)?);
    (sum == (word(&head, 24)?, word(&head, 28)?)).then_some((big_endian, sum))
}

fn running_checksum<R: ReadAt + ?Sized>(
    wal: &R,
    page_size: PageSize,
    position: WalPosition,
) -> Option<(u32, u32)> {
    let expected = WalHeader { page_size, salts: position.salts };
    if WalHeader::read(wal)? != expected {
        return None;
    }
    let (big_endian, mut sum) = header_checksum(wal)?;
    let mut frame = vec![0; FRAME_HEADER_LEN + page_size.bytes()];
    for number in 1..=position.frame {
        wal.read_exact_at(&mut frame, frame_offset(page_size, number)).ok()?;
        if (word(&frame, 8)?, word(&frame, 12)?) != (position.salts.0, position.salts.1) {
            return None;
        }
        sum = checksum(big_endian, sum, frame.get(..8)?);
        sum = checksum(big_endian, sum, frame.get(FRAME_HEADER_LEN..)?);
        if sum != (word(&frame, 16)?, word(&frame, 20)?) {
            return None;
        }
    }
    Some(sum)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::units::Salts;

    /// Returns a WAL with right checksums, and the position of its end.
    fn wal(big_endian: bool, frames: u32) -> (Vec<u8>, WalPosition) {
        wal_of(big_endian, &(1..=frames).map(|n| (n, n)).collect::<Vec<_>>())
    }

    /// Returns a WAL and the position of its end. Each frame is given as page number and commit mark: the
    /// size of the database after a commit, else 0.
    fn wal_of(big_endian: bool, frames: &[(u32, u32)]) -> (Vec<u8>, WalPosition) {
        let page_size = PageSize::new(512).unwrap();
        let mut bytes = Vec::new();
        for field in [0x377f_0682 | u32::from(big_endian), 3_007_000, 512, 0, 7, 8] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        let mut sum = checksum(big_endian, (0, 0), &bytes);
        let put = |bytes: &mut Vec<u8>, words: &[u32]| {
            for word in words {
                bytes.extend_from_slice(&word.to_be_bytes());
            }
        };
        put(&mut bytes, &[sum.0, sum.1]);
        for (pgno, commit) in frames {
            let at = bytes.len();
            put(&mut bytes, &[*pgno, *commit, 7, 8]);
            sum = checksum(big_endian, sum, &bytes[at..at + 8]);
            let page = vec![*pgno as u8; page_size.bytes()];
            sum = checksum(big_endian, sum, &page);
            put(&mut bytes, &[sum.0, sum.1]);
            bytes.extend_from_slice(&page);
        }
        let frame = frames.len() as u32;
        (bytes, WalPosition { salts: Salts(7, 8), frame, checksum: sum })
    }

    #[test]
    fn only_an_unbroken_chain_reaches_its_end() {
        let page_size = PageSize::new(512).unwrap();
        for big_endian in [false, true] {
            let (bytes, end) = wal(big_endian, 5);
            assert!(reaches(bytes.as_slice(), page_size, end));
            assert!(!reaches(&bytes[..bytes.len() - 1], page_size, end), "cut off");
            for at in (0..bytes.len()).filter(|at| *at < 60 || at % 97 == 0) {
                let mut bad = bytes.clone();
                bad[at] ^= 4;
                assert!(!reaches(bad.as_slice(), page_size, end), "byte {at}");
            }
            let other = |change: fn(&mut WalPosition)| {
                let mut end = end;
                change(&mut end);
                !reaches(bytes.as_slice(), page_size, end)
            };
            assert!(other(|end| end.salts = Salts(7, 9)));
            assert!(other(|end| end.frame -= 1));
            assert!(other(|end| end.checksum.0 ^= 1));
            assert!(!reaches(bytes.as_slice(), PageSize::new(1024).unwrap(), end));
        }
    }

    #[test]
    fn a_tail_is_what_no_later_generation_has_overwritten() {
        let page_size = PageSize::new(512).unwrap();
        for big_endian in [false, true] {
            let (_, at) = wal(big_endian, 3);
            // Frame 4 is in the middle of a transaction; frame 6 was never committed.
            let frames = [(1, 1), (2, 2), (3, 3), (4, 0), (2, 4), (3, 0)];
            let (mut bytes, _) = wal_of(big_endian, &frames);
            let frame_len = 512 + FRAME_HEADER_LEN;
            // A later generation: another salt in the header, and other bytes in the first two frames.
            bytes[19] ^= 1;
            for byte in &mut bytes[32..32 + 2 * frame_len] {
                *byte ^= 0x55;
            }
            let found = tail(bytes.as_slice(), page_size, at);
            assert_eq!(found.commits, Commits { least: 1, most: 1 });
            assert_eq!((found.frames.first, found.frames.last, found.frames.commit), (4, 5, 4));
            assert!(found.frames.newest.iter().map(Result::unwrap).eq([(2, 5), (4, 4)]));
            for at_byte in [3 * frame_len + 40, 4 * frame_len + 32, 4 * frame_len + 100] {
                let mut bad = bytes.clone();
                bad[at_byte] ^= 1;
                assert_eq!(tail(bad.as_slice(), page_size, at), Tail::default(), "{at_byte}");
            }
            let other = WalPosition { checksum: (1, 2), ..at };
            assert_eq!(tail(bytes.as_slice(), page_size, other), Tail::default());
        }
    }

    #[test]
    fn what_is_recovered_ends_at_the_last_right_commit() {
        // Each frame is a commit of as many pages as its number.
        for big_endian in [false, true] {
            let (bytes, _) = wal(big_endian, 5);
            let found = recover(bytes.as_slice()).unwrap();
            assert_eq!((found.page_size.get(), found.commit, found.smallest), (512, 5, 1));
            assert_eq!(found.last, 5);
            assert_eq!(found.newest, (1..=5).map(|n| (n, n)).collect());
            let frame_len = 512 + FRAME_HEADER_LEN;
            for at in (0..bytes.len()).filter(|at| *at < 60 || at % 61 == 0) {
                let mut bad = bytes.clone();
                bad[at] ^= 4;
                let whole = at.saturating_sub(32) / frame_len;
                let commit = recover(bad.as_slice()).map_or(0, |found| found.commit as usize);
                assert_eq!(commit, if at < 32 { 0 } else { whole }, "byte {at}");
            }
            assert_eq!(recover(&bytes[..bytes.len() - 1]).unwrap().commit, 4);
            assert_eq!(recover(&bytes[..32]).unwrap().last, 0);
            assert_eq!(recover(&bytes[..31]), None);
        }
    }
    #[test]
    fn what_a_commit_gave_up_is_not_recovered() {
        let recovered =
            |frames: &[(u32, u32)]| recover(wal_of(false, frames).0.as_slice()).unwrap();
        // The first transaction spills page 7 and then cuts it off. The next commit cuts off 4 and 5.
        let found = recovered(&[(7, 0), (4, 0), (5, 5), (1, 3), (4, 4), (2, 0)]);
        assert_eq!((found.last, found.commit, found.smallest), (5, 4, 3));
        assert_eq!(found.newest, [(1, 4), (4, 5)].into());
        let found = recovered(&[(1, 0), (2, 0)]);
        assert_eq!((found.last, found.commit, found.newest.len()), (0, 0, 0));
    }
}
