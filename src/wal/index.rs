//! The wal-index header, which `wal.c` publishes to all connections at each commit.

use crate::units::{PageSize, Salts};

/// The fields of a consistent copy of the wal-index header (`struct WalIndexHdr` in `wal.c`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalIndex {
    /// Counter that rises by one with each commit; recovery sets it to zero.
    pub change: u32,
    /// Last committed frame; 0 for an empty WAL.
    pub max_frame: u32,
    /// Size of the database in pages.
    pub page_count: u32,
    /// Page size; meaningless while `max_frame` is 0.
    pub page_size: PageSize,
    /// Cumulative checksum of all frames up to `max_frame`, as in the header of frame `max_frame`.
    /// Meaningless while `max_frame` is 0.
    pub frame_checksum: (u32, u32),
    /// Salts of the generation.
    pub salts: Salts,
}

impl WalIndex {
    /// True if this index can follow `earlier` in the same generation without a recovery in between.
    ///
    /// Recovery sets `change` to zero and may bring other frames to the same places. This function misses
    /// a recovery that enough commits have followed. Only the frame at `earlier.max_frame` tells then.
    pub fn follows(&self, earlier: &WalIndex) -> bool {
        let more = self.change.wrapping_sub(earlier.change) < 1 << 31;
        self.salts == earlier.salts && self.max_frame >= earlier.max_frame && more
    }

    /// The wal-index after recovery of an empty WAL.
    pub const EMPTY: WalIndex = WalIndex {
        change: 0,
        max_frame: 0,
        page_count: 0,
        page_size: PageSize::SMALLEST,
        frame_checksum: (0, 0),
        salts: Salts(0, 0),
    };

    /// Length in bytes of one copy of the header; the second copy follows the first.
    pub const LEN: usize = 48;

    /// Offset in a copy of the size of the database in pages.
    const SIZE_AT: usize = 20;

    /// Offset in a copy of the checksum of all bytes before the checksum.
    const CHECKSUM_AT: usize = 40;

    /// Parses one copy. Its fields have native byte order, except the salts, which are as in the WAL
    /// file. `None` if the header is not initialised, has an unknown version, or has a wrong checksum.
    ///
    /// The checksum is needed because two equal copies may still be torn, on a processor that reorders
    /// its stores (`walIndexTryHdr` in `wal.c`).
    pub fn parse(copy: &[u8; Self::LEN]) -> Option<WalIndex> {
        const VERSION: u32 = 3_007_000;
        let word = |at: usize| -> Option<u32> {
            let bytes = copy.get(at..at.checked_add(4)?)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let initialised = *copy.get(12)? != 0;
        let stored = (word(Self::CHECKSUM_AT)?, word(Self::CHECKSUM_AT + 4)?);
        if !initialised || word(0)? != VERSION || stored != WalIndex::checksum(copy) {
            return None;
        }
        let max_frame = word(16)?;
        let page_size = match u16::from_ne_bytes(copy.get(14..16)?.try_into().ok()?) {
            // Recovery found no WAL, so no frame has given the page size yet.
            0 if max_frame == 0 => PageSize::SMALLEST,
            size => PageSize::from_u16(size)?,
        };
        Some(WalIndex {
            change: word(8)?,
            max_frame,
            page_count: word(Self::SIZE_AT)?,
            page_size,
            frame_checksum: (word(24)?, word(28)?),
            salts: Salts(u32::from_be(word(32)?), u32::from_be(word(36)?)),
        })
    }

    /// Returns a copy of the header with the size of the database set to 0, as after recovery of an empty
    /// WAL. SQLite then takes the size from the database file (`pagerPagecount` in `pager.c`). `None` if
    /// [`WalIndex::parse`] refuses the header, or if the WAL has frames.
    pub fn without_size(copy: &[u8; Self::LEN]) -> Option<[u8; Self::LEN]> {
        WalIndex::parse(copy).filter(|index| index.max_frame == 0)?;
        let mut copy = *copy;
        copy.get_mut(Self::SIZE_AT..Self::SIZE_AT + 4)?.fill(0);
        let (a, b) = WalIndex::checksum(&copy);
        let checksum = [a.to_ne_bytes(), b.to_ne_bytes()].concat();
        copy.get_mut(Self::CHECKSUM_AT..)?.copy_from_slice(&checksum);
        Some(copy)
    }

    /// Returns the checksum of a copy (`walChecksumBytes` in `wal.c`), over pairs of native words.
    pub fn checksum(copy: &[u8; Self::LEN]) -> (u32, u32) {
        let (mut a, mut b) = (0u32, 0u32);
        let (before, _) = copy.split_at(Self::CHECKSUM_AT);
        for [x, y] in before.as_chunks::<4>().0.as_chunks::<2>().0 {
            a = a.wrapping_add(u32::from_ne_bytes(*x)).wrapping_add(b);
            b = b.wrapping_add(u32::from_ne_bytes(*y)).wrapping_add(a);
        }
        (a, b)
    }

    /// Parses the header if both copies are equal. `wal.c` has the same test for a header that a writer is
    /// just changing.
    pub fn parse_both(copies: &[u8; 2 * Self::LEN]) -> Option<WalIndex> {
        let (first, second) = copies.split_at(Self::LEN);
        if first != second {
            return None;
        }
        WalIndex::parse(first.try_into().ok()?)
    }
}
