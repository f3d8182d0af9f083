//! Checks how an LZ4 frame ends. The decoder of `lz4_flex` does not tell: an early end of the input and
//! an empty block end the data just as the end mark does.

use std::io::{self, Read};

/// First four bytes of an LZ4 frame
/// (<https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md#general-structure-of-lz4-frame-format>).
pub(crate) const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// A reader that passes a decoder's input on, counts its bytes and keeps the last eight.
pub(crate) struct Tail<R> {
    inner: R,
    last: [u8; 8],
    count: u64,
}

/// The bytes that a decoder took for the end of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The end mark alone.
    Mark,
    /// The end mark and the content checksum, which the decoder has compared.
    Checksum,
    /// The input ended early.
    Early,
    /// Bytes that do not end a frame, such as an empty block.
    Other,
}

impl<R> Tail<R> {
    pub(crate) fn new(inner: R) -> Tail<R> {
        Tail { inner, last: [0; 8], count: 0 }
    }

    #[cfg(feature = "cli")]
    pub(crate) fn get_ref(&self) -> &R {
        &self.inner
    }

    #[cfg(feature = "cli")]
    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Returns the number of bytes that the decoder has read.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Classifies the bytes that the decoder has read since `count` was `before`. Call this when the
    /// decoder returns no more data.
    pub(crate) fn end(&self, before: u64) -> End {
        let end = u64::from_be_bytes(self.last);
        match self.count.saturating_sub(before) {
            4 if end as u32 == 0 => End::Mark,
            8 if end >> 32 == 0 => End::Checksum,
            0..4 => End::Early,
            _ => End::Other,
        }
    }
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let kept = n.min(self.last.len());
        self.last.rotate_left(kept);
        let (_, place) = self.last.split_at_mut(8usize.saturating_sub(kept));
        place.copy_from_slice(buffer.get(n.saturating_sub(kept)..n).unwrap_or_default());
        self.count = self.count.saturating_add(n as u64);
        Ok(n)
    }
}
