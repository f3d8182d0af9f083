//! The one place of this library that needs `unsafe`: a word of a file that processes wait on.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use rustix::io::Errno;
use rustix::thread::futex;

/// The address of a word of 4 bytes in a file. Nothing is ever read or written there but by the
/// kernel, to which the address is given: where the file was cut off under the mapping, it says so,
/// while a look by ourselves would be a SIGBUS and end the process. The word is read and written
/// through the file.
#[derive(Debug)]
pub(super) struct Futex {
    map: MmapRaw,
    at: usize,
}

// A mapping begins at the boundary of a memory page, so its words are aligned.
#[allow(clippy::cast_ptr_alignment)]
impl Futex {
    /// The word that begins at this byte, a multiple of 4.
    pub(super) fn map(file: &File, at: usize) -> io::Result<Futex> {
        let map = MmapOptions::new().len(at + size_of::<u32>()).map_raw(file)?;
        Ok(Futex { map, at })
    }

    /// Waits until somebody wakes those who wait here, if the word still has this value. `false` if
    /// there is nothing to wait on.
    pub(super) fn wait(&self, value: u32, timeout: Duration) -> bool {
        let timeout = rustix::time::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let waited = futex::wait(self.word(), futex::Flags::empty(), value, Some(&timeout));
        !matches!(waited, Err(error) if error == Errno::FAULT || error == Errno::NOSYS)
    }

    /// Wakes all who wait.
    pub(super) fn wake(&self) {
        let _ = futex::wake(self.word(), futex::Flags::empty(), u32::MAX >> 1);
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: within the mapping, aligned, and mapped as long as `self` lives. The reference
        // goes to the kernel as an address and is not read through: the compiler does not either,
        // since what is in a cell may change or go at any time.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(self.at).cast::<u32>()) }
    }
}
