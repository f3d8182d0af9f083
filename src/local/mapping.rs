//! The only module of this library with `unsafe` code: a futex in a file, on which processes wait.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use rustix::io::Errno;
use rustix::thread::futex;

/// The address of a word of 4 bytes in a file. The process itself never reads or writes there, and gives the
/// address to the kernel alone. If the file was cut off under the mapping, the kernel returns an error, while
/// an access by the process would end in SIGBUS. The process reads and writes the word through the file.
#[derive(Debug)]
pub(super) struct Futex {
    map: MmapRaw,
    at: usize,
}

// A mapping begins at the boundary of a memory page, so its words are aligned.
#[allow(clippy::cast_ptr_alignment)]
impl Futex {
    /// Maps the word that begins at this byte, a multiple of 4.
    pub(super) fn map(file: &File, at: usize) -> io::Result<Futex> {
        let map = MmapOptions::new().len(at + size_of::<u32>()).map_raw(file)?;
        Ok(Futex { map, at })
    }

    /// Waits for [`Futex::wake`] or the timeout, if the word still has this value. Returns `false` if the
    /// process cannot wait on the word.
    pub(super) fn wait(&self, value: u32, timeout: Duration) -> bool {
        let timeout = rustix::time::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let waited = futex::wait(self.word(), futex::Flags::empty(), value, Some(&timeout));
        !matches!(waited, Err(error) if error == Errno::FAULT || error == Errno::NOSYS)
    }

    /// Wakes all threads that wait, in all processes.
    pub(super) fn wake(&self) {
        let _ = futex::wake(self.word(), futex::Flags::empty(), u32::MAX >> 1);
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the word is within the mapping, aligned, and mapped as long as `self` lives. The reference
        // goes to the kernel as an address and is not read through. The compiler does not read through it
        // either, since the value of a cell may change or vanish at any time.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(self.at).cast::<u32>()) }
    }
}
