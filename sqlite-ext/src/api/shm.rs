//! The wal-index in shared memory.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

/// Bytes of one region of the wal-index (`WALINDEX_PGSZ` in `wal.c`).
pub const SHM_REGION: c_int = 32768;

/// A mapped region of a wal-index, usually the first.
#[derive(Clone, Copy)]
pub struct Shm(pub(super) NonNull<u8>);

// SAFETY: the mapping is shared memory by design; it is read and written only through volatile
// accesses below, and its owner drops it before the file is closed.
unsafe impl Send for Shm {}
// SAFETY: as above.
unsafe impl Sync for Shm {}

// A region is mapped at a page boundary, so its words are aligned.
#[allow(clippy::cast_ptr_alignment)]
impl Shm {
    /// Wraps a region that SQLite got from `xShmMap`.
    pub fn from_pointer(region: *mut c_void) -> Option<Shm> {
        NonNull::new(region.cast::<u8>()).map(Shm)
    }

    /// Returns a plain pointer, to be kept in an atomic.
    pub fn as_pointer(self) -> *mut u8 {
        self.0.as_ptr()
    }

    /// Returns the two copies of the header (`WalIndexHdr` twice, 96 bytes). Reads the whole first copy
    /// before the second; a writer writes the second before the first (`walIndexTryHdr` in `wal.c`).
    pub fn header(self) -> [u8; 96] {
        const WORDS_OF_COPY: usize = 6;
        let mut copy = [0u8; 96];
        let (words, _) = copy.as_chunks_mut::<8>();
        for (at, bytes) in words.iter_mut().enumerate() {
            if at == WORDS_OF_COPY {
                fence(Ordering::SeqCst);
            }
            // SAFETY: a region has 32768 bytes and is aligned to a page.
            let word = unsafe { self.0.as_ptr().cast::<u64>().add(at).read_volatile() };
            *bytes = word.to_ne_bytes();
        }
        copy
    }

    /// Writes both copies of the header, in the order of `walIndexWriteHdr` in `wal.c`. The caller holds the
    /// write lock.
    pub fn set_header(self, copy: &[u8; 48]) {
        const WORDS_OF_COPY: usize = 6;
        let (words, _) = copy.as_chunks::<8>();
        for first in [WORDS_OF_COPY, 0] {
            for (at, bytes) in words.iter().enumerate() {
                let word = u64::from_ne_bytes(*bytes);
                // SAFETY: within a region's 32768 bytes, and aligned; the lock keeps all others from writing.
                unsafe { self.0.as_ptr().cast::<u64>().add(first + at).write_volatile(word) };
            }
            fence(Ordering::SeqCst);
        }
    }

    /// Returns a word of the region, which has 8192 words; 0 beyond them.
    pub fn word(self, at: usize) -> u32 {
        if at >= SHM_REGION as usize / size_of::<u32>() {
            return 0;
        }
        // SAFETY: within a region's 32768 bytes, and aligned.
        unsafe { self.0.as_ptr().cast::<u32>().add(at).read_volatile() }
    }

    /// Returns the read mark of a read slot (`aReadMark` at byte 100).
    pub fn read_mark(self, slot: usize) -> u32 {
        // SAFETY: as above; slots are 0 to 4.
        unsafe { self.0.as_ptr().cast::<u32>().add(25 + slot.min(4)).read_volatile() }
    }

    /// Sets the read mark of a slot whose exclusive lock the caller holds.
    pub fn set_read_mark(self, slot: usize, mark: u32) {
        // SAFETY: as above; the lock keeps all others from changing the mark.
        unsafe { self.0.as_ptr().cast::<u32>().add(25 + slot.min(4)).write_volatile(mark) }
    }
}
