//! The process that we live in: its signals, its forks, its end.

use std::ffi::{c_int, c_void};
use std::ptr;

/// Starts threads with all signals blocked: they are the application's business.
pub fn without_signals(start: &mut dyn FnMut()) {
    // SAFETY: plain signal-set calls on local sets; the mask is put back as it was.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        start();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
    }
}

/// Keeps the library that this address is in mapped, whoever closes it.
pub fn keep_mapped(address: *const c_void) {
    const FLAGS: c_int = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: the name is the loader's own; the library is open already, and one more count is kept.
    unsafe {
        let mut found: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address, &raw mut found) != 0 && !found.dli_fname.is_null() {
            // Null where it is the program itself, which stays.
            libc::dlopen(found.dli_fname, FLAGS);
        }
    }
}

/// Reads through a descriptor of the process, whoever has opened it; how many bytes there were. `None` if
/// it cannot be read, or is closed by now.
pub fn read_descriptor(descriptor: c_int, buffer: &mut [u8], offset: i64) -> Option<usize> {
    // SAFETY: the buffer is as long as said; a descriptor that is not open is an error.
    let read = unsafe { libc::pread(descriptor, buffer.as_mut_ptr().cast(), buffer.len(), offset) };
    usize::try_from(read).ok()
}

/// File system and number of a file.
pub type FileId = (u64, u64);

/// Returns the file behind a descriptor of the process, whoever has opened it. `None` if it is not open.
pub fn file_of(descriptor: c_int) -> Option<FileId> {
    // SAFETY: the structure is the call's to fill; a descriptor that is not open is an error.
    unsafe {
        let mut stat: libc::stat64 = std::mem::zeroed();
        (libc::fstat64(descriptor, &raw mut stat) == 0).then_some((stat.st_dev, stat.st_ino))
    }
}

/// Has a function called when the process exits.
pub fn at_exit(function: extern "C" fn()) {
    // SAFETY: the function stays mapped: the library is never unloaded.
    unsafe { libc::atexit(function) };
}

/// Has functions called around each fork: before it, after it in the parent, and in the child.
pub fn at_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: the functions stay mapped: the library is never unloaded.
    unsafe {
        libc::pthread_atfork(Some(before), Some(parent), Some(child));
    }
}

/// Closes descriptors of the parent in the child of a fork. What owned them is abandoned.
pub fn close_inherited(descriptors: &[std::os::fd::RawFd]) {
    for descriptor in descriptors {
        // SAFETY: their owners are on the stacks of threads that do not exist in this process, so
        // nobody uses or closes them again.
        unsafe { libc::close(*descriptor) };
    }
}

/// True if this process has other rights than whoever started it: a set-uid program, or one with
/// capabilities.
pub fn is_set_uid() -> bool {
    // SAFETY: reads the auxiliary vector, which the kernel has made.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
