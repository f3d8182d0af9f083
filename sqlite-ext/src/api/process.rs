//! Signals, descriptors, forks and exit of the process.

use std::ffi::{c_int, c_void};
use std::ptr;

/// Starts threads with all signals blocked, since signals are the application's business.
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

/// True on a thread of walferry's, by its name.
pub fn is_own_thread() -> bool {
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes at most 16 bytes.
    let read = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    read == 0 && name.starts_with(b"walferry-")
}

/// The beginning of a thread that no Rust code catches or cleans up for.
pub type Beginning = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// Runs a function on a thread of its own, and waits for the end of that thread. `false` if no thread can be had.
///
/// The function may be ended by `pthread_exit`, which unwinds the stack. Each thread of the standard library catches
/// that, and the process aborts.
///
/// # Safety
/// The function's frame has no destructors, and the argument fits the function.
pub unsafe fn run_apart(function: Beginning, argument: *mut c_void) -> bool {
    // SAFETY: the two types of functions differ in what may unwind through them alone, and the caller vouches for the
    // argument, which lives until the thread has ended.
    unsafe {
        let function: extern "C" fn(*mut c_void) -> *mut c_void = std::mem::transmute(function);
        let mut thread: libc::pthread_t = std::mem::zeroed();
        libc::pthread_create(&raw mut thread, ptr::null(), function, argument) == 0
            && libc::pthread_join(thread, ptr::null_mut()) == 0
    }
}

/// Keeps the library that contains this address mapped, even if the host closes it.
pub fn keep_mapped(address: *const c_void) {
    const FLAGS: c_int = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: the name is the loader's own; the library is open already, and one more count is kept.
    unsafe {
        let mut found: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address, &raw mut found) != 0 && !found.dli_fname.is_null() {
            // The name is null if the address is in the program itself, which stays mapped.
            libc::dlopen(found.dli_fname, FLAGS);
        }
    }
}

/// Reads through any descriptor of the process, and returns the number of bytes. `None` if the descriptor
/// cannot be read, or is closed by now.
pub fn read_descriptor(descriptor: c_int, buffer: &mut [u8], offset: i64) -> Option<usize> {
    // SAFETY: the buffer is as long as said; a descriptor that is not open is an error.
    let read = unsafe { libc::pread(descriptor, buffer.as_mut_ptr().cast(), buffer.len(), offset) };
    usize::try_from(read).ok()
}

/// Device and inode of a file.
pub type FileId = (u64, u64);

/// Returns the file of any descriptor of the process. `None` if the descriptor is not open.
pub fn file_of(descriptor: c_int) -> Option<FileId> {
    // SAFETY: the structure is the call's to fill; a descriptor that is not open is an error.
    unsafe {
        let mut stat: libc::stat64 = std::mem::zeroed();
        (libc::fstat64(descriptor, &raw mut stat) == 0).then_some((stat.st_dev, stat.st_ino))
    }
}

/// Registers a function that runs when the process exits.
pub fn at_exit(function: extern "C" fn()) {
    // SAFETY: the function stays mapped: the library is never unloaded.
    unsafe { libc::atexit(function) };
}

/// Registers functions that run around each fork: before it, and after it in the parent and in the child.
pub fn at_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: the functions stay mapped: the library is never unloaded.
    unsafe {
        libc::pthread_atfork(Some(before), Some(parent), Some(child));
    }
}

/// Closes descriptors of the parent in the child of a fork. The child has abandoned their owners.
pub fn close_inherited(descriptors: &[std::os::fd::RawFd]) {
    for descriptor in descriptors {
        // SAFETY: their owners are on the stacks of threads that do not exist in this process, so no code
        // uses or closes them again.
        unsafe { libc::close(*descriptor) };
    }
}

/// True if this process has other rights than the user who started it: a set-uid program, or one with
/// capabilities.
pub fn is_set_uid() -> bool {
    // SAFETY: reads the auxiliary vector, which the kernel has made.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
