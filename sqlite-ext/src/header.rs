//! The header of a database file (<https://sqlite.org/fileformat.html#the_database_header>).

use walferry::units::PageSize;

/// Length of the header in bytes.
pub const LEN: usize = 100;

/// A database file's header, to read its fields from.
pub struct Header<'a>(pub &'a [u8; LEN]);

impl Header<'_> {
    /// True in WAL mode: the read and the write version are 2.
    pub fn has_wal_mode(&self) -> bool {
        self.0[18..20] == [2, 2]
    }

    /// Page size.
    pub fn page_size(&self) -> Option<PageSize> {
        PageSize::from_u16(u16::from_be_bytes([self.0[16], self.0[17]]))
    }

    /// Size in pages, if it is from the last change: SQLite before 3.7.0 did not write it.
    pub fn page_count(&self) -> Option<u32> {
        let (changed, count, valid_for) = (self.word(24)?, self.word(28)?, self.word(92)?);
        (changed == valid_for).then_some(count)
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }
}
