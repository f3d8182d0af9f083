//! The header of a database file (<https://sqlite.org/fileformat.html#the_database_header>).

use walferry::units::PageSize;

/// Length of the header in bytes.
pub const LEN: usize = 100;

/// Header of a database file, with access to its fields.
pub struct Header<'a>(pub &'a [u8; LEN]);

impl Header<'_> {
    /// True in WAL mode: the read and the write version are 2.
    pub fn has_wal_mode(&self) -> bool {
        self.0[18..20] == [2, 2]
    }

    /// Returns the page size; `None` if the field is invalid.
    pub fn page_size(&self) -> Option<PageSize> {
        PageSize::from_u16(u16::from_be_bytes([self.0[16], self.0[17]]))
    }

    /// Returns the size in pages. `None` if the field is older than the last change: SQLite before 3.7.0 did
    /// not write it.
    pub fn page_count(&self) -> Option<u32> {
        let (changed, count, valid_for) = (self.word(24)?, self.word(28)?, self.word(92)?);
        (changed == valid_for).then_some(count)
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }
}
