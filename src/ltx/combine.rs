//! Two CRCs made one. crc-fast can do that too, but takes some 20 microseconds for it, since it squares
//! matrices; a restore of ten thousand small files spent half its time there.
//!
//! A CRC is a remainder of polynomials over GF(2). Bytes that come later shift what was before: they
//! multiply its remainder by x once for each bit. That power is put together from the powers
//! x^(2^k), which never change.

/// x^4 + x^3 + x + 1, what x^64 leaves in CRC-64/GO-ISO; bit 63 stands for x^0.
const POLYNOMIAL: u64 = 0xd8 << 56;
const ONE: u64 = 1 << 63;

/// x^(2^k) at place k.
const POWERS: [u64; 64] = powers();

/// The CRC of some bytes and `after_len` bytes behind them.
pub(super) fn combined(before: u64, after: u64, after_len: u64) -> u64 {
    multiplied(before, power_of_bytes(after_len)) ^ after
}

/// x^(8 * len).
fn power_of_bytes(len: u64) -> u64 {
    let powers = POWERS.iter().skip(3).enumerate();
    let wanted = powers.filter(|(bit, _)| len >> bit & 1 == 1);
    wanted.fold(ONE, |power, (_, factor)| multiplied(power, *factor))
}

#[allow(clippy::indexing_slicing)] // it is evaluated by the compiler
const fn powers() -> [u64; 64] {
    let mut all = [ONE >> 1; 64];
    let mut at = 1;
    while at < all.len() {
        all[at] = multiplied(all[at - 1], all[at - 1]);
        at += 1;
    }
    all
}

/// The product of two remainders, as a remainder.
const fn multiplied(one: u64, mut other: u64) -> u64 {
    let (mut product, mut left) = (0, one);
    while left != 0 {
        if left & ONE != 0 {
            product ^= other;
        }
        left <<= 1;
        other = (other >> 1) ^ (POLYNOMIAL & (other & 1).wrapping_neg());
    }
    product
}

#[cfg(test)]
mod tests {
    use crc_fast::{CrcAlgorithm, checksum_combine};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_by_the_library(before: u64, after: u64, len in 0..1u64 << 61, bits in 0..61u32) {
            let len = len >> bits;
            let expected = checksum_combine(CrcAlgorithm::Crc64GoIso, before, after, len);
            prop_assert_eq!(combined(before, after, len), expected);
        }
    }

    #[test]
    fn of_nothing() {
        assert_eq!(combined(7, 0, 0), 7);
        assert_eq!(combined(0, 7, 100), 7);
    }
}
