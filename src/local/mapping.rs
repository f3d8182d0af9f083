//! The one place of this library that needs `unsafe`: a file mapped into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

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
