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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::units::Salts;

    /// A WAL with right checksums, and the position where it ends.
    fn wal(big_endian: bool, frames: u32) -> (Vec<u8>, WalPosition) {
        let page_size = PageSize::new(512).unwrap();
        let mut bytes = Vec::new();
        for field in [0x377f_0682 | u32::from(big_endian), 3_007_000, 512, 0, 7, 8] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        let mut sum = checksum(big_endian, (0, 0), &bytes);
        let put = |bytes: &mut Vec<u8>, words: &[u32]| {
            for word in words {
                bytes.extend_from_slice(&word.to_be_bytes());
            }
        };
        put(&mut bytes, &[sum.0, sum.1]);
        for frame in 1..=frames {
            let at = bytes.len();
            put(&mut bytes, &[frame, frame, 7, 8]);
            sum = checksum(big_endian, sum, &bytes[at..at + 8]);
            let page = vec![frame as u8; page_size.bytes()];
            sum = checksum(big_endian, sum, &page);
            put(&mut bytes, &[sum.0, sum.1]);
            bytes.extend_from_slice(&page);
        }
        (bytes, WalPosition { salts: Salts(7, 8), frame: frames, checksum: sum })
    }

    #[test]
    fn only_an_unbroken_chain_reaches_its_end() {
        let page_size = PageSize::new(512).unwrap();
        for big_endian in [false, true] {
            let (bytes, end) = wal(big_endian, 5);
            assert!(reaches(bytes.as_slice(), page_size, end));
            assert!(!reaches(&bytes[..bytes.len() - 1], page_size, end), "cut off");
            for at in (0..bytes.len()).filter(|at| *at < 60 || at % 97 == 0) {
                let mut bad = bytes.clone();
                bad[at] ^= 4;
                assert!(!reaches(bad.as_slice(), page_size, end), "byte {at}");
            }
            let other = |change: fn(&mut WalPosition)| {
                let mut end = end;
                change(&mut end);
                !reaches(bytes.as_slice(), page_size, end)
            };
            assert!(other(|end| end.salts = Salts(7, 9)));
            assert!(other(|end| end.frame -= 1));
            assert!(other(|end| end.checksum.0 ^= 1));
            assert!(!reaches(bytes.as_slice(), PageSize::new(1024).unwrap(), end));
        }
    }
}
