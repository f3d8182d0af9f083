//! How many transactions a stretch of frames ends, as far as the frames tell.
//!
//! A frame with a commit mark is not always a commit of its own. Where a write may harm what is near
//! it (`psow=0`, or a VFS without `SQLITE_IOCAP_POWERSAFE_OVERWRITE`), and with `synchronous=FULL`,
//! `sqlite3WalFrames` repeats a transaction's last frame, with its mark, up to the next sector
//! boundary: once with pages of 4096 bytes, eight times with pages of 512, and 122 times where a
//! sector has 64 KiB. `iChange` grows by one all the same.
//!
//! Nothing in the file tells such a copy from a transaction that wrote the same page once more as it
//! was. Where a copy ends does not tell either: the size of a sector is known to the writer alone,
//! and writers that pad and others take turns. So there is a least and a greatest number.

use std::io;
use std::ops::Add;

use super::frames::{read_frame_page, word};
use super::{FRAME_HEADER_LEN, FrameHeader, ReadAt};
use crate::units::PageSize;

/// A number of commits: from the least that there can be to the greatest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Commits {
    /// The frames with a commit mark that repeat no other.
    pub least: u32,
    /// All frames with a commit mark.
    pub most: u32,
}

impl Commits {
    /// True if there is one number only.
    pub fn is_exact(self) -> bool {
        self.least == self.most
    }

    /// True if it may be this number.
    pub fn may_be(self, number: u32) -> bool {
        (self.least..=self.most).contains(&number)
    }

    /// How many of them may be none.
    pub fn doubtful(self) -> u32 {
        self.most.saturating_sub(self.least)
    }

    /// Adds a frame with a commit mark.
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

/// True if a frame may be nothing but a copy of the one before it: both are given as they are in the
/// file. Salts and checksums say nothing of it.
pub(super) fn repeats(before: &[u8], frame: &[u8]) -> bool {
    let is_marked = word(frame, 4).is_some_and(|commit| commit != 0);
    is_marked
        && before.get(..8) == frame.get(..8)
        && before.get(FRAME_HEADER_LEN..) == frame.get(FRAME_HEADER_LEN..)
}

/// Counts the transactions that these frames end. The first of the frames must begin a transaction, so
/// that it repeats nothing.
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

/// True if a frame holds the same bytes of a page as the one before it.
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
