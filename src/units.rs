//! The quantities that every part of walferry uses.
//!
//! [`PageSize`] and [`Level`] check their values. A type's text form is the same in logs, file names and
//! messages. No type does I/O. The terms are from the SQLite file format
//! (<https://sqlite.org/fileformat2.html>) and from LTX.

use std::fmt;
use std::str::FromStr;

/// Transaction id of the replica's log: 1 for the first state, plus one for each sealed file.
///
/// Text form: sixteen lowercase hex digits, as in an LTX file's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Txid(pub u64);

impl Txid {
    /// No transaction: the position of an empty replica.
    pub const ZERO: Txid = Txid(0);

    /// Returns the TXID that follows this one.
    #[must_use]
    pub fn next(self) -> Txid {
        Txid(self.0.saturating_add(1))
    }

    /// Returns the TXID before this one; zero stays zero.
    #[must_use]
    pub fn prev(self) -> Txid {
        Txid(self.0.saturating_sub(1))
    }

    /// Parses exactly sixteen lowercase hex digits, as Litestream does; any other text gives `None`.
    pub fn parse_hex(text: &str) -> Option<Txid> {
        parse_hex_u64(text).map(Txid)
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Txid({:x})", self.0)
    }
}

impl FromStr for Txid {
    type Err = String;

    /// Parses up to sixteen hex digits, as a person types them.
    fn from_str(text: &str) -> Result<Txid, String> {
        // The standard library would accept a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if text.is_empty() || text.len() > 16 || !digits {
            return Err(format!("'{text}' is not a TXID: give 1 to 16 hexadecimal digits"));
        }
        match u64::from_str_radix(text, 16) {
            Ok(0) | Err(_) => {
                Err(format!("'{text}' is not a TXID: give hexadecimal digits, from 1 upwards"))
            }
            Ok(value) => Ok(Txid(value)),
        }
    }
}

/// Parses exactly sixteen lowercase hexadecimal digits, and no sign.
pub fn parse_hex_u64(text: &str) -> Option<u64> {
    (text.len() == 16 && text.bytes().all(is_lower_hex))
        .then(|| u64::from_str_radix(text, 16).ok())?
}

/// Parses exactly eight lowercase hexadecimal digits, and no sign.
pub fn parse_hex_u32(text: &str) -> Option<u32> {
    (text.len() == 8 && text.bytes().all(is_lower_hex))
        .then(|| u32::from_str_radix(text, 16).ok())?
}

fn is_lower_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

/// Page number, from 1.
pub type Pgno = u32;

/// Page size in bytes: a power of two from 512 to 65536.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageSize(u32);

impl PageSize {
    /// The largest page size of SQLite, in bytes.
    pub const MAX: usize = 65536;

    /// Checks a size in bytes.
    pub fn new(bytes: u32) -> Option<PageSize> {
        ((512..=65536).contains(&bytes) && bytes.is_power_of_two()).then_some(PageSize(bytes))
    }

    /// The smallest page size of SQLite.
    pub const SMALLEST: PageSize = PageSize(512);

    /// Reads the two-byte field of the database header or of the wal-index, where 1 means 65536.
    pub fn from_u16(field: u16) -> Option<PageSize> {
        PageSize::new(if field == 1 { 65536 } else { u32::from(field) })
    }

    /// Returns the size in bytes.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Returns the size in bytes, for buffers.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }

    /// Returns the page that holds SQLite's lock bytes at 1 GiB. It is never written and never shipped.
    pub fn lock_page(self) -> Pgno {
        0x4000_0000 / self.0 + 1
    }

    /// Returns the byte offset of a page in the database file.
    pub fn offset_of(self, pgno: Pgno) -> u64 {
        u64::from(pgno.saturating_sub(1)) * u64::from(self.0)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The two salts of a WAL generation, in the values of the WAL header's big-endian fields.
///
/// `wal.c` adds one to the first at each restart and draws the second at random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Salts(pub u32, pub u32);

impl fmt::Debug for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Salts({:08x},{:08x})", self.0, self.1)
    }
}

/// A place in the WAL: the generation, the last frame (from 1; 0 is before the first), and the
/// cumulative checksum that this frame's header stores. Equal positions mean equal prefixes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WalPosition {
    /// Generation.
    pub salts: Salts,
    /// Last frame covered; 0 for none.
    pub frame: u32,
    /// The two checksum words stored in that frame's header; 0 for frame 0.
    pub checksum: (u32, u32),
}

/// Replica level: 0 as sealed, 1 to 8 compacted, 9 snapshots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// Files as they were sealed.
    pub const L0: Level = Level(0);
    /// The first level of compacted files.
    pub const L1: Level = Level(1);
    /// The last level of compacted files.
    pub const L8: Level = Level(8);
    /// Snapshots: whole databases.
    pub const SNAPSHOT: Level = Level(9);

    /// Checks a level, 0 to 9.
    pub fn new(level: u8) -> Option<Level> {
        (level <= 9).then_some(Level(level))
    }

    /// Returns the number, 0 to 9.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Returns all levels, from 0 to 9.
    pub fn all() -> impl DoubleEndedIterator<Item = Level> {
        (0..=9).map(Level)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}", self.0)
    }
}

/// Wall-clock time in milliseconds since the Unix epoch, as an LTX header stores it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Returns the time as RFC 3339 in UTC, without trailing zeros of the fraction: the form of Litestream's
    /// metadata.
    pub fn to_rfc3339(self) -> String {
        let (days, ms_of_day) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        let (year, month, day) = civil_from_days(days);
        let (seconds, ms) = (ms_of_day / 1000, ms_of_day % 1000);
        let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let fraction = match ms {
            0 => String::new(),
            ms => format!(".{ms:03}").trim_end_matches('0').to_string(),
        };
        format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}{fraction}Z")
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

/// Returns year, month and day of a day count since 1970-01-01, in the proleptic Gregorian calendar.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    // Years are counted from 1 March, so the leap day is the last day of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// Random 64-bit identity of a shipper's lineage, stored as the node id of each file that the shipper writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WriterId(pub u64);

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriterId({:016x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn txid_text_forms() {
        assert_eq!(Txid(0x1f).to_string(), "000000000000001f");
        assert_eq!(Txid::parse_hex("000000000000001f"), Some(Txid(31)));
        for wrong in ["1f", "000000000000001F", "+00000000000001f", "00000000000000001f"] {
            assert_eq!(Txid::parse_hex(wrong), None, "{wrong}");
        }
        assert_eq!("1f".parse(), Ok(Txid(31)));
        for wrong in ["0", "", "+1f", "1g", "00000000000000001"] {
            assert!(wrong.parse::<Txid>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn lock_pages_are_those_of_sqlite() {
        let lock = |bytes| PageSize::new(bytes).map(PageSize::lock_page);
        assert_eq!(lock(512), Some(2_097_153));
        assert_eq!(lock(4096), Some(262_145));
        assert_eq!(lock(65536), Some(16_385));
        assert!(PageSize::new(0).is_none() && PageSize::new(1000).is_none());
        assert_eq!(PageSize::from_u16(1).map(PageSize::get), Some(65536));
    }

    #[test]
    fn timestamps_read_as_rfc3339() {
        let text = |ms| Timestamp(ms).to_rfc3339();
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(1_795_351_714_201), "2026-11-22T12:48:34.201Z");
        assert_eq!(text(1_795_351_714_920), "2026-11-22T12:48:34.92Z");
        assert_eq!(text(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(text(-1), "1969-12-31T23:59:59.999Z");
    }
}
