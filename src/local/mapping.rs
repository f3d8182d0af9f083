//! The one place of this library that needs `unsafe`: files mapped into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapMut, MmapOptions};

/// Maps the first `len` bytes of a file for reading and writing.
///
/// The caller holds the shipper's lock, so that no other walferry changes or shortens the file
/// while it is mapped, and shortens it itself only after it has dropped the mapping.
pub(super) fn map(file: &File, len: usize) -> io::Result<MmapMut> {
    // SAFETY: the mapping is of a file in our own state folder, guarded by the shipper's lock. Its
    // bytes are checksums that are verified as a whole before they are believed, so that a change
    // from outside can lead to a refused page table, never to undefined values of a Rust type:
    // they are read as plain integers.
    unsafe { MmapOptions::new().len(len).map_mut(file) }
}

/// A mapping that several processes read and write, word by word.
#[derive(Debug)]
pub(super) struct Words {
    map: MmapMut,
}

// A mapping begins at the boundary of a memory page, so its words are aligned.
#[allow(clippy::cast_ptr_alignment)]
impl Words {
    /// Maps `count` words of 8 bytes. The file is as long, and nobody shortens it.
    pub(super) fn map(file: &File, count: usize) -> io::Result<Words> {
        // SAFETY: the mapping is touched through atomics alone, for which any bits are a value and
        // changes by other processes are what they are for. Walferry never shortens the file.
        let map = unsafe { MmapOptions::new().len(count * 8).map_mut(file)? };
        Ok(Words { map })
    }

    /// The word at this place, counted in words.
    ///
    /// # Panics
    /// Beyond the mapping.
    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < self.map.len() / 8, "word {at} of {} bytes", self.map.len());
        // SAFETY: within the mapping, which starts at a page boundary and lives as long as `self`;
        // all accesses by this program are atomic.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().cast_mut().cast::<u64>().add(at)) }
    }

    /// The first half of the word at this place, for a futex, which has 32 bits.
    ///
    /// # Panics
    /// Beyond the mapping.
    pub(super) fn half(&self, at: usize) -> &AtomicU32 {
        let word = std::ptr::from_ref(self.word(at));
        // SAFETY: as above; a place that is used as a half is never used as a word.
        unsafe { AtomicU32::from_ptr(word.cast_mut().cast::<u32>()) }
    }
}
