//! Frames: their headers, and the newest frame of each page in a stretch of the WAL.

use std::collections::BTreeMap;
use std::io;

use super::{FRAME_HEADER_LEN, WAL_HEADER_LEN};
use crate::units::{PageSize, Pgno, Salts};

/// Reads at a position, without a cursor.
pub trait ReadAt {
    /// Fills `buffer` from byte `offset` on.
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

/// Byte offset of a frame's header in the WAL. Frames count from 1.
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

/// What the WAL's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalHeader {
    /// Page size of the frames.
    pub page_size: PageSize,
    /// Generation.
    pub salts: Salts,
}

impl WalHeader {
    /// Reads the header; `None` when there is none that `wal.c` would accept by its magic.
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
    /// Generation, as written; zero in rare frames of older SQLite.
    pub salts: Salts,
    /// Cumulative checksum up to this frame, as written.
    pub checksum: (u32, u32),
}

impl FrameHeader {
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

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(field.try_into().ok()?))
}

/// A stretch of committed frames: of each page the newest frame, at a few bytes a page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FrameSet {
    /// First frame of the stretch; 0 while it is empty.
    pub first: u32,
    /// Last frame of the stretch; 0 while it is empty.
    pub last: u32,
    /// Newest frame of each page.
    pub newest: BTreeMap<Pgno, u32>,
    /// Size of the database in pages after the last commit of the stretch.
    pub commit: u32,
    /// Checksum stored in the last frame's header.
    pub checksum: (u32, u32),
}

impl FrameSet {
    /// Whether no frame was added.
    pub fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// Adds the frames up to `last`, which must be committed: behind what the set holds, or from
    /// `first` on when it is empty.
    ///
    /// On error the set is as before.
    pub fn extend<R: ReadAt + ?Sized>(
        &mut self,
        wal: &R,
        page_size: PageSize,
        first: u32,
        last: u32,
    ) -> io::Result<()> {
        let from = if self.is_empty() { first } else { self.last.saturating_add(1) };
        let mut headers = Vec::new();
        for frame in from..=last {
            let header = FrameHeader::read(wal, page_size, frame)?;
            if header.pgno == 0 {
                return Err(io::Error::other(format!("frame {frame} of the WAL names page 0")));
            }
            headers.push((frame, header));
        }
        for (frame, header) in headers {
            self.newest.insert(header.pgno, frame);
            if self.first == 0 {
                self.first = frame;
            }
            self.last = frame;
            self.checksum = header.checksum;
            if header.commit != 0 {
                self.commit = header.commit;
            }
        }
        Ok(())
    }

    /// Adds committed frames whose pages are known from the wal-index (`aPgno` in `wal.c`): frame
    /// `first` holds the first of them, and the last frame's header is read from the file. Saves
    /// reading the header of each frame.
    ///
    /// On error the set is as before.
    pub fn extend_known<R: ReadAt + ?Sized>(
        &mut self,
        wal: &R,
        page_size: PageSize,
        first: u32,
        pages: &[Pgno],
    ) -> io::Result<()> {
        let last = match u32::try_from(pages.len()) {
            Ok(0) => return Ok(()),
            Ok(count) => first.saturating_add(count - 1),
            Err(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let header = FrameHeader::read(wal, page_size, last)?;
        if header.commit == 0 || pages.last() != Some(&header.pgno) || pages.contains(&0) {
            return Err(io::Error::other(format!(
                "the wal-index and frame {last} of the WAL disagree"
            )));
        }
        for (frame, pgno) in (first..=last).zip(pages) {
            self.newest.insert(*pgno, frame);
        }
        if self.first == 0 {
            self.first = first;
        }
        self.last = last;
        self.checksum = header.checksum;
        self.commit = header.commit;
        Ok(())
    }
}
