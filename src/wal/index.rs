//! The wal-index header: what `wal.c` publishes to all connections at each commit.

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
    /// Page size.
    pub page_size: PageSize,
    /// Generation.
    pub salts: Salts,
}

impl WalIndex {
    /// Bytes of one copy of the header; the second copy follows the first.
    pub const LEN: usize = 48;

    /// Takes one copy apart. Native byte order, but for the salts, which are file bytes. `None`
    /// while the header is not initialised or is of a version that we do not know.
    pub fn parse(copy: &[u8; Self::LEN]) -> Option<WalIndex> {
        const VERSION: u32 = 3_007_000;
        let word = |at: usize| -> Option<u32> {
            let bytes = copy.get(at..at.checked_add(4)?)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let initialised = *copy.get(12)? != 0;
        if !initialised || word(0)? != VERSION {
            return None;
        }
        let size = u16::from_ne_bytes(copy.get(14..16)?.try_into().ok()?);
        Some(WalIndex {
            change: word(8)?,
            max_frame: word(16)?,
            page_count: word(20)?,
            page_size: PageSize::from_u16(size)?,
            salts: Salts(u32::from_be(word(32)?), u32::from_be(word(36)?)),
        })
    }

    /// Whether both copies are equal, which is how `wal.c` tells a whole header from one that is
    /// just being written.
    pub fn parse_both(copies: &[u8; 2 * Self::LEN]) -> Option<WalIndex> {
        let (first, second) = copies.split_at(Self::LEN);
        if first != second {
            return None;
        }
        WalIndex::parse(first.try_into().ok()?)
    }
}
