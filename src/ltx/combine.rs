//! Combines two CRCs into one. crc-fast has a function for this, too, but squares matrices, which takes
//! some 20 microseconds. A restore of ten thousand small files spent half its time there.
//!
//! A CRC is a remainder of polynomials over GF(2). Later bytes shift the earlier ones: they multiply the
//! earlier remainder by x once for each bit. [`power_of_bytes`] computes this power of x from the
//! constant powers x^(2^k).

/// x^4 + x^3 + x + 1, the remainder of x^64 in CRC-64/GO-ISO; bit 63 stands for x^0.
const POLYNOMIAL: u64 = 0xd8 << 56;
const ONE: u64 = 1 << 63;

/// x^(2^k) at place k.
const POWERS: [u64; 64] = powers();

/// Returns the CRC of two stretches, from the CRC of each; the second has `after_len` bytes.
pub(super) fn combined(before: u64, after: u64, after_len: u64) -> u64 {
    multiplied(before, power_of_bytes(after_len)) ^ after
}

/// Returns x^(8 * len).
fn power_of_bytes(len: u64) -> u64 {
    let powers = POWERS.iter().skip(3).enumerate();
    let wanted = powers.filter(|(bit, _)| len >> bit & 1 == 1);
    wanted.fold(ONE, |power, (_, factor)| multiplied(power, *factor))
}

#[allow(clippy::indexing_slicing)] // the compiler evaluates this function
const fn powers() -> [u64; 64] {
    let mut all = [ONE >> 1; 64];
    let mut at = 1;
    while at < all.len() {
        all[at] = multiplied(all[at - 1], all[at - 1]);
        at += 1;
    }
    all
}

/// Returns the product of two remainders, as a remainder.
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
