//! The bytes of a WAL: headers, frames, checksums, and which frames a recovery believes
//! (<https://sqlite.org/fileformat2.html#the_write_ahead_log>).

use walferry::units::{PageSize, Pgno, Salts};
use walferry::wal::{self, FRAME_HEADER_LEN, WAL_HEADER_LEN, WalHeader};

/// Checksums are summed over little-endian words.
const MAGIC: u32 = 0x377f_0682;

pub type Sums = (u32, u32);

fn sum(bytes: &[u8], (mut a, mut b): Sums) -> Sums {
    for words in bytes.chunks_exact(8) {
        let word = |at: usize| u32::from_le_bytes(words[at..at + 4].try_into().unwrap());
        a = a.wrapping_add(word(0)).wrapping_add(b);
        b = b.wrapping_add(word(4)).wrapping_add(a);
    }
    (a, b)
}

/// A WAL's header, and the checksum that its first frame goes on from.
pub fn header(page_size: PageSize, restarts: u32, salts: Salts) -> (Vec<u8>, Sums) {
    let mut bytes = Vec::new();
    for field in [MAGIC, 3_007_000, page_size.get(), restarts, salts.0, salts.1] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    let sums = sum(&bytes, (0, 0));
    bytes.extend_from_slice(&sums.0.to_be_bytes());
    bytes.extend_from_slice(&sums.1.to_be_bytes());
    (bytes, sums)
}

/// A frame, and the checksum that the next one goes on from.
pub fn frame(pgno: Pgno, commit: u32, salts: Salts, page: &[u8], sums: Sums) -> (Vec<u8>, Sums) {
    let mut bytes = Vec::with_capacity(FRAME_HEADER_LEN + page.len());
    bytes.extend_from_slice(&pgno.to_be_bytes());
    bytes.extend_from_slice(&commit.to_be_bytes());
    let sums = sum(page, sum(&bytes, sums));
    for field in [salts.0, salts.1, sums.0, sums.1] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    bytes.extend_from_slice(page);
    (bytes, sums)
}

/// A frame as SQLite before 3.50.2 writes it after `ROLLBACK TO` in a transaction that spilled: salts
/// and checksum are 0.
pub fn unmarked(pgno: Pgno, commit: u32, page: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME_HEADER_LEN + page.len());
    bytes.extend_from_slice(&pgno.to_be_bytes());
    bytes.extend_from_slice(&commit.to_be_bytes());
    bytes.resize(FRAME_HEADER_LEN, 0);
    bytes.extend_from_slice(page);
    bytes
}

/// What a recovery finds in a WAL.
pub struct Recovered {
    pub page_size: PageSize,
    pub salts: Salts,
    /// How often the WAL was begun anew, as its header tells.
    pub restarts: u32,
    /// Last frame with a commit mark of the valid stretch, and the pages of the database then.
    pub last: Option<(u32, u32, Sums)>,
}

/// Reads a WAL as SQLite does after a crash: the frames up to the first that does not prove itself.
pub fn recover(bytes: &[u8]) -> Option<Recovered> {
    let WalHeader { page_size, salts } = WalHeader::read(bytes)?;
    let restarts = u32::from_be_bytes(bytes[12..16].try_into().unwrap());
    let (expected, mut sums) = header(page_size, restarts, salts);
    if bytes[..WAL_HEADER_LEN as usize] != expected {
        return None;
    }
    let mut found = Recovered { page_size, salts, restarts, last: None };
    for number in 1.. {
        let at = wal::frame_offset(page_size, number) as usize;
        let len = FRAME_HEADER_LEN + page_size.bytes();
        let Some(stored) = bytes.get(at..at + len) else { break };
        let field = |i: usize| u32::from_be_bytes(stored[i..i + 4].try_into().unwrap());
        let (pgno, commit) = (field(0), field(4));
        let (again, next) = frame(pgno, commit, salts, &stored[FRAME_HEADER_LEN..], sums);
        if pgno == 0 || again[..FRAME_HEADER_LEN] != stored[..FRAME_HEADER_LEN] {
            break;
        }
        sums = next;
        if commit != 0 {
            found.last = Some((number, commit, sums));
        }
    }
    Some(found)
}
