//! Counts the transactions that a stretch of frames ends, as far as the frames tell.
//!
//! A frame with a commit mark is not always a commit of its own. `sqlite3WalFrames` may repeat a
//! transaction's last frame, with its mark, up to the next sector boundary. SQLite does so with
//! `synchronous=FULL` where a write may damage nearby bytes: with `psow=0`, or with a VFS without
//! `SQLITE_IOCAP_POWERSAFE_OVERWRITE`. There is one copy with pages of 4096 bytes, eight with pages of
//! 512, and 122 where a sector has 64 KiB. `iChange` still grows by one only.
//!
//! A copy looks like a transaction that wrote the same page again, unchanged. The place where a copy
//! ends does not tell the two apart: only the process that wrote the frames knows the size of a sector.
//! Processes that pad and processes that do not may also take turns. So [`Commits`] has a least and a
//! greatest number.

use std::io;
use std::ops::Add;

use super::frames::{read_frame_page, word};
use super::{FRAME_HEADER_LEN, FrameHeader, ReadAt};
use crate::units::PageSize;

/// Bounds of a number of commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Commits {
    /// Number of frames with a commit mark that do not repeat the frame before.
    pub least: u32,
    /// Number of all frames with a commit mark.
    pub most: u32,
}

impl Commits {
    /// True if the bounds are equal.
    pub fn is_exact(self) -> bool {
        self.least == self.most
    }

    /// True if `number` is within the bounds.
    pub fn may_be(self, number: u32) -> bool {
        (self.least..=self.most).contains(&number)
    }

    /// Returns the number of frames that may be commits or mere copies.
    pub fn doubtful(self) -> u32 {
        self.most.saturating_sub(self.least)
    }

    /// Counts a frame with a commit mark. `repeats` says that the frame may be a copy.
    pub(super) fn add_frame(&mut self, repeats: bool) {
        self.least = self.least.saturating_add(u32::from(!repeats));
        self.most = self.most.saturating_add(1);
    }
}

impl Add for Commits {
    type Output = Commits;

    fn add(self, other: Commits) -> Commits {
        Commits {
            least: self.least.saturating_add(other.least),
            most: self.most.saturating_add(other.most),
        }
    }
}

/// True if a frame may be a mere copy of the frame before it. Both are given as in the file. Salts and
/// checksums do not matter.
pub(super) fn repeats(before: &[u8], frame: &[u8]) -> bool {
    let is_marked = word(frame, 4).is_some_and(|commit| commit != 0);
    is_marked
        && before.get(..8) == frame.get(..8)
        && before.get(FRAME_HEADER_LEN..) == frame.get(FRAME_HEADER_LEN..)
}

/// Counts the transactions that the frames `first..=last` end. The first frame must begin a transaction,
/// so that it cannot be a copy.
pub fn count_commits<R: ReadAt + ?Sized>(
    wal: &R,
    page_size: PageSize,
    first: u32,
    last: u32,
) -> io::Result<Commits> {
    let mut commits = Commits::default();
    let mut before = None;
    for number in first..=last {
        let frame = FrameHeader::read(wal, page_size, number)?;
        let page = (frame.pgno, frame.commit);
        if frame.commit != 0 {
            let repeats = before == Some(page) && has_page_of_last(wal, page_size, number)?;
            commits.add_frame(repeats);
        }
        before = Some(page);
    }
    Ok(commits)
}

/// True if a frame's page has the same bytes as the page of the frame before it.
fn has_page_of_last<R: ReadAt + ?Sized>(
    wal: &R,
    page_size: PageSize,
    frame: u32,
) -> io::Result<bool> {
    let (mut before, mut page) = (vec![0; page_size.bytes()], vec![0; page_size.bytes()]);
    read_frame_page(wal, page_size, frame.saturating_sub(1), &mut before)?;
    read_frame_page(wal, page_size, frame, &mut page)?;
    Ok(before == page)
}
