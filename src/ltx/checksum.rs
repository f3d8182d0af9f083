//! Checksums of a page, a database and a file, all from CRC-64/GO-ISO.
//!
//! Every stored checksum has its top bit set, so that zero can mean 'none'.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};

use super::combine::combined;
use crate::units::Pgno;

const FLAG: u64 = 1 << 63;

/// A stored checksum: CRC-64/GO-ISO with the top bit set. Text form: sixteen hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum(pub u64);

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({:016x})", self.0)
    }
}

/// Returns the checksum of one page, for our page table and tag. The checksum is the CRC over the page's
/// number (4 bytes, big-endian) and bytes, mixed by `mix`.
///
/// The mixing is needed because a CRC is linear and [`DatabaseChecksum`] is an exclusive or. Without
/// mixing, the same change at the same place of two pages would cancel out, as when one statement
/// updates many rows alike.
pub fn page(pgno: Pgno, data: &[u8]) -> Checksum {
    let mut digest = new_digest();
    digest.update(&pgno.to_be_bytes());
    digest.update(data);
    Checksum(FLAG | mix(digest.finalize()))
}

/// Mixes the bits of `value` by the finalizer of splitmix64: one-to-one, and far from linear over
/// exclusive or.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Checksum of a whole database: the exclusive or of the checksums of all pages but the lock page.
///
/// One changed page updates the checksum in constant time, and the order of the pages does not
/// matter. The checksum of an empty database has only the top bit set.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatabaseChecksum(u64);

impl DatabaseChecksum {
    /// Checksum of the empty database.
    pub const EMPTY: DatabaseChecksum = DatabaseChecksum(FLAG);

    /// Converts a stored value back. Sets the top bit in any case.
    pub fn from_stored(value: u64) -> DatabaseChecksum {
        DatabaseChecksum(FLAG | value)
    }

    /// Adds a page that is not yet included, or removes an included page: both are the same operation.
    pub fn toggle(&mut self, page: Checksum) {
        self.0 = FLAG | (self.0 ^ page.0);
    }

    /// Merges the checksum of a disjoint set of pages.
    pub fn merge(&mut self, other: DatabaseChecksum) {
        self.toggle(Checksum(other.0));
    }

    /// Returns the value as it is stored.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for DatabaseChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for DatabaseChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseChecksum({:016x})", self.0)
    }
}

/// Running CRC of a file's contents, or of a stretch of them. [`Digested::then`] joins stretches that
/// were computed apart.
#[derive(Clone)]
pub struct FileDigest(Digest);

impl FileDigest {
    /// Starts a digest of no bytes.
    pub fn new() -> FileDigest {
        FileDigest(new_digest())
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the stored form of the checksum of the bytes so far.
    pub fn checksum(&self) -> Checksum {
        Checksum(FLAG | self.0.finalize())
    }

    /// Adds `len` zero bytes.
    pub fn update_zeros(&mut self, len: u64) {
        let mut left = len;
        while left > 0 {
            let n = left.min(ZEROS.len() as u64);
            self.update(ZEROS.get(..n as usize).unwrap_or(&ZEROS));
            left = left.saturating_sub(n);
        }
    }

    /// Returns the digest of the bytes so far.
    pub fn digested(&self) -> Digested {
        Digested { crc: self.0.finalize(), len: self.0.get_amount() }
    }
}

impl Default for FileDigest {
    fn default() -> Self {
        Self::new()
    }
}

/// Digest of a stretch of a file's contents as two numbers, which can be stored and joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Digested {
    /// The plain CRC, without the top bit that stored checksums set.
    pub crc: u64,
    /// Number of bytes covered.
    pub len: u64,
}

impl Digested {
    /// Returns the digest of `len` zero bytes.
    pub fn zeros(len: u64) -> Digested {
        let mut digest = FileDigest::new();
        digest.update_zeros(len);
        digest.digested()
    }

    /// Returns the digest of this stretch followed by `next`.
    #[must_use]
    pub fn then(self, next: Digested) -> Digested {
        let crc = combined(self.crc, next.crc, next.len);
        Digested { crc, len: self.len.saturating_add(next.len) }
    }

    /// Returns the digest of two stretches of equal length laid over each other. Each stretch must have
    /// zero bytes where the other stretch has its data. A CRC is linear, except for the part that depends
    /// on the length.
    #[must_use]
    pub fn over(self, other: Digested) -> Digested {
        Digested { crc: self.crc ^ other.crc ^ Digested::zeros(self.len).crc, len: self.len }
    }

    /// Returns the stored form.
    pub fn checksum(self) -> Checksum {
        Checksum(FLAG | self.crc)
    }
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

fn new_digest() -> Digest {
    Digest::new(CrcAlgorithm::Crc64GoIso)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_catalogue() {
        let mut digest = FileDigest::new();
        digest.update(b"123456789");
        assert_eq!(digest.checksum(), Checksum(0xb909_56c7_75a4_1001));
    }

    #[test]
    fn a_digest_survives_as_numbers() {
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i * 13 % 255) as u8).collect();
        let of = |parts: &[&[u8]]| {
            let mut digest = FileDigest::new();
            for part in parts {
                digest.update(part);
            }
            digest.digested()
        };
        let whole = of(&[&bytes]);
        let (zeros, mut half) = (vec![0; 100_000], FileDigest::new());
        for cut in [0, 1, 7, 4096, 199_999, 200_000] {
            let (left, right) = bytes.split_at(cut);
            assert_eq!(of(&[left]).then(of(&[right])), whole, "cut at {cut}");
        }
        half.update(&bytes[..100_000]);
        half.update_zeros(100_000);
        assert_eq!(half.digested().over(of(&[&zeros, &bytes[100_000..]])), whole);
        assert_eq!(whole.checksum(), Checksum(FLAG | whole.crc));
        assert_eq!(Digested::default(), of(&[]));
    }

    #[test]
    fn the_same_change_in_two_pages_does_not_cancel_out() {
        let sum = |fill: u8| {
            let mut sum = DatabaseChecksum::EMPTY;
            for pgno in 1..=2 {
                sum.toggle(page(pgno, &[0, fill, 0]));
            }
            sum
        };
        assert_ne!(sum(1), sum(2));
    }

    #[test]
    fn database_checksum_forgets_what_it_is_told_to() {
        let (one, two) = (page(1, b"one"), page(2, b"two"));
        let mut sum = DatabaseChecksum::EMPTY;
        sum.toggle(one);
        let with_one = sum;
        sum.toggle(two);
        sum.toggle(two);
        assert_eq!(sum, with_one);
        assert_ne!(page(1, b"x"), page(2, b"x"), "the page's number counts");
    }
}
