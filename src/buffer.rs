//! Memory for large pieces of a file, mapped from the system and unmapped with the piece. An allocator would
//! keep the memory for good, in a process that belongs to the application.

use std::io::{self, Write};

use bytes::Bytes;
use memmap2::MmapMut;

/// Bytes that grow at their end.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// `None` until the first write.
    map: Option<MmapMut>,
    len: usize,
    /// Size in bytes of the first mapping. Pages of it that were never written cost nothing.
    capacity: usize,
}

impl Buffer {
    /// Makes an empty buffer that takes `capacity` bytes before its contents have to move.
    pub fn with_capacity(capacity: usize) -> Buffer {
        Buffer { map: None, len: 0, capacity: capacity.max(1) }
    }

    /// Makes a buffer of `len` zeros.
    pub fn zeroed(len: usize) -> io::Result<Buffer> {
        let mut buffer = Buffer::with_capacity(len);
        buffer.reserve(len)?;
        buffer.len = len;
        Ok(buffer)
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts off everything behind the first `at` bytes, and returns the bytes cut off.
    pub fn split_off(&mut self, at: usize) -> io::Result<Buffer> {
        let mut rest = Buffer::with_capacity(self.capacity);
        rest.write_all(self.as_ref().get(at..).unwrap_or_default())?;
        self.len = self.len.min(at);
        Ok(rest)
    }

    fn reserve(&mut self, more: usize) -> io::Result<()> {
        let needed = self.len.checked_add(more).ok_or(io::ErrorKind::OutOfMemory)?;
        let has = self.map.as_ref().map_or(0, |map| map.len());
        if needed <= has {
            return Ok(());
        }
        let mut map = MmapMut::map_anon(needed.max(has.saturating_mul(2)).max(self.capacity))?;
        let bytes = self.as_ref();
        map[..bytes.len()].copy_from_slice(bytes);
        self.map = Some(map);
        Ok(())
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.reserve(bytes.len())?;
        if let Some(map) = &mut self.map {
            map[self.len..self.len + bytes.len()].copy_from_slice(bytes);
            self.len += bytes.len();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], |map| &map[..self.len])
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.map.as_mut().map_or(&mut [], |map| &mut map[..self.len])
    }
}

impl From<Buffer> for Bytes {
    fn from(buffer: Buffer) -> Bytes {
        if buffer.is_empty() { Bytes::new() } else { Bytes::from_owner(buffer) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_written_wherever_it_is_cut() {
        let all: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        for capacity in [0, 1, 5000, 1 << 20] {
            let mut buffer = Buffer::with_capacity(capacity);
            assert!(buffer.is_empty() && buffer.as_ref().is_empty() && buffer.as_mut().is_empty());
            all.chunks(777).for_each(|chunk| buffer.write_all(chunk).unwrap());
            assert_eq!(buffer.as_ref(), all);
            for at in [0, 1, 4096, all.len() - 1] {
                let mut rest = buffer.split_off(at).unwrap();
                assert_eq!((buffer.as_ref(), rest.as_ref()), (&all[..at], &all[at..]));
                rest.as_mut()[0] ^= 1;
                assert_eq!(rest.as_ref()[0], all[at] ^ 1);
                buffer.write_all(&all[at..]).unwrap();
            }
            assert!(buffer.split_off(all.len() + 1).unwrap().is_empty());
            assert_eq!(Bytes::from(buffer), all);
        }
        assert_eq!(Bytes::from(Buffer::with_capacity(9)), Bytes::new());
        assert_eq!(Buffer::zeroed(10).unwrap().as_ref(), [0; 10]);
    }
}
