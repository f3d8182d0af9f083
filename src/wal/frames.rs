//! Frames of the WAL: their headers, and the newest frame of each page in a stretch of the WAL.

use std::io;

use super::{FRAME_HEADER_LEN, Newest, WAL_HEADER_LEN, WalIndex};
use crate::scratch::Place;
use crate::units::{PageSize, Pgno, Salts};

/// A source of bytes at any offset, without a cursor.
pub trait ReadAt {
    /// Fills `buffer` with the bytes from `offset` on.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for std::fs::File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = (offset as usize).checked_add(buffer.len());
        match end.and_then(|end| self.get(offset as usize..end)) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Returns the byte offset of a frame's header in the WAL. Frames count from 1.
pub fn frame_offset(page_size: PageSize, frame: u32) -> u64 {
    let frame_len = u64::from(page_size.get()).saturating_add(FRAME_HEADER_LEN as u64);
    let before = u64::from(frame.saturating_sub(1)).saturating_mul(frame_len);
    WAL_HEADER_LEN.saturating_add(before)
}

/// Reads the page that a frame holds.
pub fn read_frame_page<R: ReadAt + ?Sized>(
    wal: &R,
    page_size: PageSize,
    frame: u32,
    page: &mut [u8],
) -> io::Result<()> {
    wal.read_exact_at(page, frame_offset(page_size, frame).saturating_add(FRAME_HEADER_LEN as u64))
}

/// Fields of the WAL's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalHeader {
    /// Page size of the frames.
    pub page_size: PageSize,
    /// Salts of the generation.
    pub salts: Salts,
}

impl WalHeader {
    /// Reads the header. `None` if the file is too short, or the magic or the page size is not one of
    /// SQLite's. Does not check the header's checksum.
    pub fn read<R: ReadAt + ?Sized>(wal: &R) -> Option<WalHeader> {
        let mut bytes = [0; WAL_HEADER_LEN as usize];
        wal.read_exact_at(&mut bytes, 0).ok()?;
        let magic = word(&bytes, 0)?;
        if magic & !1 != 0x377f_0682 {
            return None;
        }
        let page_size = PageSize::new(word(&bytes, 8)?)?;
        Some(WalHeader { page_size, salts: Salts(word(&bytes, 16)?, word(&bytes, 20)?) })
    }
}

/// A frame's header: 24 bytes, big-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Page that the frame holds.
    pub pgno: Pgno,
    /// Size of the database in pages after a commit; 0 for all other frames.
    pub commit: u32,
    /// Salts, as written; zero in rare frames of SQLite before 3.50.2.
    pub salts: Salts,
    /// Cumulative checksum up to this frame, as written.
    pub checksum: (u32, u32),
}

impl FrameHeader {
    /// True if the frame has salts or a checksum other than zero.
    fn is_marked(&self) -> bool {
        self.salts != Salts(0, 0) || self.checksum != (0, 0)
    }

    /// True if salts and checksum are those of the index's last frame. False for a frame without a
    /// checksum, since such a frame looks like any other at its place.
    pub fn is_end_of(&self, index: &WalIndex) -> bool {
        self.is_marked() && self.salts == index.salts && self.checksum == index.frame_checksum
    }

    /// Returns the checksum in the header, or calls `unmarked` if the header has none.
    fn checksum_or(
        &self,
        unmarked: impl FnOnce() -> io::Result<(u32, u32)>,
    ) -> io::Result<(u32, u32)> {
        if self.is_marked() { Ok(self.checksum) } else { unmarked() }
    }

    /// Reads one frame's header.
    pub fn read<R: ReadAt + ?Sized>(
        wal: &R,
        page_size: PageSize,
        frame: u32,
    ) -> io::Result<FrameHeader> {
        let mut bytes = [0; FRAME_HEADER_LEN];
        wal.read_exact_at(&mut bytes, frame_offset(page_size, frame))?;
        let field = |at| word(&bytes, at).unwrap_or(0);
        Ok(FrameHeader {
            pgno: field(0),
            commit: field(4),
            salts: Salts(field(8), field(12)),
            checksum: (field(16), field(20)),
        })
    }
}

/// Largest number of frames without a checksum that [`checksum_at`] reads before its frame.
const UNMARKED_MAX: u32 = 64;

/// Returns the checksum that tells a frame from any other frame at its place: the checksum in its header.
///
/// SQLite before 3.50.2 sometimes writes the frames of a transaction with zeros there, and recovery cuts
/// such frames off. For such a frame, the result is computed from its bytes, and from the frames without
/// a checksum just before, 64 at most. The sum starts from the checksum of the frame before those, if
/// that frame has one.
pub fn checksum_at<R: ReadAt + ?Sized>(
    wal: &R,
    page_size: PageSize,
    frame: u32,
) -> io::Result<(u32, u32)> {
    let header = FrameHeader::read(wal, page_size, frame)?;
    if header.is_marked() {
        return Ok(header.checksum);
    }
    let (mut first, mut sum) = (frame, (0, 0));
    while first > 1 && frame - first < UNMARKED_MAX {
        let before = FrameHeader::read(wal, page_size, first - 1)?;
        if before.is_marked() {
            sum = before.checksum;
            break;
        }
        first -= 1;
    }
    let mut bytes = vec![0; FRAME_HEADER_LEN + page_size.bytes()];
    for number in first..=frame {
        wal.read_exact_at(&mut bytes, frame_offset(page_size, number))?;
        sum = checksum(true, sum, &bytes);
    }
    Ok(sum)
}

/// Continues the checksum `from` over `bytes`, as `wal.c` does, over pairs of words.
pub(super) fn checksum(big_endian: bool, from: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let (mut a, mut b) = from;
    for pair in bytes.chunks_exact(8) {
        let at = |at| word(pair, at).unwrap_or(0);
        let (x, y) = (at(0), at(4));
        let (x, y) = if big_endian { (x, y) } else { (x.swap_bytes(), y.swap_bytes()) };
        a = a.wrapping_add(x).wrapping_add(b);
        b = b.wrapping_add(y).wrapping_add(a);
    }
    (a, b)
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(field.try_into().ok()?))
}

/// Number of page numbers that [`FrameSet::extend_known`] asks of the wal-index at once.
const PAGES_AT_ONCE: u32 = 32 << 10;

/// A stretch of committed frames, with the newest frame of each page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FrameSet {
    /// First frame of the stretch; 0 while the set is empty.
    pub first: u32,
    /// Last frame of the stretch; 0 while the set is empty.
    pub last: u32,
    /// Newest frame of each page.
    pub newest: Newest,
    /// Size of the database in pages after the last commit of the stretch.
    pub commit: u32,
    /// The last frame's checksum ([`checksum_at`]).
    pub checksum: (u32, u32),
}

impl FrameSet {
    /// True if no frame was added.
    pub fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// Spills the set to `place` from now on, so that little is in memory. Without spilling, the set takes
    /// some 20 bytes of memory a page.
    pub fn spill_to(&mut self, place: &Place) {
        self.newest.spill_to(place);
    }

    /// Adds the frames up to `last`: from the end of the set on, or from `first` on if the set is empty.
    /// The frames must be committed.
    ///
    /// On error the set stays as it was.
    pub fn extend<R: ReadAt + ?Sized>(
        &mut self,
        wal: &R,
        page_size: PageSize,
        first: u32,
        last: u32,
    ) -> io::Result<()> {
        let from = if self.is_empty() { first } else { self.last.saturating_add(1) };
        if last < from {
            return Ok(());
        }
        let mut commit = self.commit;
        let mut add = || -> io::Result<(u32, u32)> {
            let mut checksum = (0, 0);
            for frame in from..=last {
                let header = FrameHeader::read(wal, page_size, frame)?;
                if header.pgno == 0 {
                    return Err(io::Error::other(format!("frame {frame} of the WAL names page 0")));
                }
                self.newest.add(header.pgno, frame)?;
                if header.commit != 0 {
                    commit = header.commit;
                }
                if frame == last {
                    checksum = header.checksum_or(|| checksum_at(wal, page_size, last))?;
                }
            }
            Ok(checksum)
        };
        let added = add();
        self.added(added, from, last, commit)
    }

    /// Adds the committed frames `first..=last`, with page numbers from the wal-index (`aPgno` in
    /// `wal.c`). `pages` returns the page numbers of a range of frames, given its first and last. This
    /// method reads only the last frame's header from the file, not the header of each frame.
    ///
    /// On error the set stays as it was.
    pub fn extend_known<R: ReadAt + ?Sized>(
        &mut self,
        wal: &R,
        page_size: PageSize,
        (first, last): (u32, u32),
        mut pages: impl FnMut(u32, u32) -> Option<Vec<Pgno>>,
    ) -> io::Result<()> {
        if last < first {
            return Ok(());
        }
        let header = FrameHeader::read(wal, page_size, last)?;
        let checksum = header.checksum_or(|| checksum_at(wal, page_size, last))?;
        let disagree =
            || io::Error::other(format!("the wal-index and frame {last} of the WAL disagree"));
        let mut add = || -> io::Result<(u32, u32)> {
            if header.commit == 0 {
                return Err(disagree());
            }
            for (from, to) in parts(first, last) {
                let pages = pages(from, to).ok_or_else(disagree)?;
                let whole = pages.len() as u64 == u64::from(to - from) + 1;
                let ends = to < last || pages.last() == Some(&header.pgno);
                if !whole || !ends || pages.contains(&0) {
                    return Err(disagree());
                }
                for (frame, pgno) in (from..=to).zip(pages) {
                    self.newest.add(pgno, frame)?;
                }
            }
            Ok(checksum)
        };
        let added = add();
        self.added(added, first, last, header.commit)
    }

    /// Settles the added frames, or drops them if adding failed.
    fn added(
        &mut self,
        checksum: io::Result<(u32, u32)>,
        first: u32,
        last: u32,
        commit: u32,
    ) -> io::Result<()> {
        match checksum {
            Ok(checksum) => {
                self.newest.settle();
                if self.first == 0 {
                    self.first = first;
                }
                (self.last, self.checksum, self.commit) = (last, checksum, commit);
                Ok(())
            }
            Err(error) => {
                self.newest.drop_pending();
                Err(error)
            }
        }
    }
}

/// Cuts a stretch of frames into parts of at most [`PAGES_AT_ONCE`]. Yields each part's first and last
/// frame.
pub(crate) fn parts(first: u32, last: u32) -> impl Iterator<Item = (u32, u32)> {
    let end = move |from: u32| from.saturating_add(PAGES_AT_ONCE - 1).min(last);
    let starts = (first..=last).step_by(PAGES_AT_ONCE as usize);
    starts.map(move |from| (from, end(from)))
}
