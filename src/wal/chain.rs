//! Whether a WAL, as it lies on the disk, holds everything up to a position.
//!
//! This is for a WAL that nobody has open: what SQLite would find in it when it recovers.

use super::frames::word;
use super::{FRAME_HEADER_LEN, ReadAt, WAL_HEADER_LEN, WalHeader, frame_offset};
use crate::units::{PageSize, WalPosition};

/// The first word of a WAL whose checksums are over big-endian words.
const MAGIC_BIG_ENDIAN: u32 = 0x377f_0683;

/// Whether every frame up to `position` is there, by salts and by the running checksum. An error
/// of reading, as at the end of a shorter file, means no.
pub fn reaches<R: ReadAt + ?Sized>(wal: &R, page_size: PageSize, position: WalPosition) -> bool {
    running_checksum(wal, page_size, position).is_some_and(|sum| sum == position.checksum)
}

fn running_checksum<R: ReadAt + ?Sized>(
    wal: &R,
    page_size: PageSize,
    position: WalPosition,
) -> Option<(u32, u32)> {
    let expected = WalHeader { page_size, salts: position.salts };
    if WalHeader::read(wal)? != expected {
        return None;
    }
    let mut head = [0; WAL_HEADER_LEN as usize];
    wal.read_exact_at(&mut head, 0).ok()?;
    let big_endian = word(&head, 0)? == MAGIC_BIG_ENDIAN;
    let mut sum = checksum(big_endian, (0, 0), head.get(..24)?);
    if sum != (word(&head, 24)?, word(&head, 28)?) {
        return None;
    }
    let mut frame = vec![0; FRAME_HEADER_LEN + page_size.bytes()];
    for number in 1..=position.frame {
        wal.read_exact_at(&mut frame, frame_offset(page_size, number)).ok()?;
        if (word(&frame, 8)?, word(&frame, 12)?) != (position.salts.0, position.salts.1) {
            return None;
        }
        sum = checksum(big_endian, sum, frame.get(..8)?);
        sum = checksum(big_endian, sum, frame.get(FRAME_HEADER_LEN..)?);
        if sum != (word(&frame, 16)?, word(&frame, 20)?) {
            return None;
        }
    }
    Some(sum)
}

/// The checksum of `wal.c`, over pairs of words.
fn checksum(big_endian: bool, from: (u32, u32), bytes: &[u8]) -> (u32, u32) {
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
