//! Writes lines of the log. Does not wait for their reader, and keeps the host from getting a signal.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::ptr;

use walferry::descriptors;

/// Part of a text that was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// The whole text.
    Whole,
    /// Only its beginning.
    Part,
    /// No byte of it.
    Nothing,
}

/// Standard error of the process, through the thread's folder: the process's own folder is empty once its
/// first thread has ended.
const STDERR: &str = "/proc/thread-self/fd/2";
/// Flags of an open that does not wait for a reader.
const FLAGS: c_int = libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens a file to append one line. The descriptor never gets the number of standard input, output or error,
/// even if the application has closed these. Other threads may write to those numbers at any time.
pub fn open_to_append(path: &Path) -> std::io::Result<File> {
    opened(OpenOptions::new().create(true).append(true), path)
}

fn opened(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    // Held until the file has its number. Writes to the standard numbers fail meanwhile, as if they were
    // closed.
    let _taken: Vec<OwnedFd> = descriptors::take_standard()?;
    let file = options.custom_flags(FLAGS).open(path)?;
    // Another thread may have closed a standard descriptor just now.
    if file.as_raw_fd() <= libc::STDERR_FILENO {
        return Err(std::io::Error::other("standard output was closed meanwhile"));
    }
    Ok(file)
}

/// Writes to a file from [`open_to_append`].
pub fn to_file(file: &File, text: &[u8]) -> Written {
    without_sigpipe(|| pieces(text, text.len(), |piece| write(file.as_raw_fd(), piece)))
}

/// Writes to standard error as much as standard error takes at once.
pub fn to_stderr(text: &[u8]) -> Written {
    // A pipe is opened once more. Another thread may take the room that a poll of the application's
    // description has found, and the write would wait. A description of our own never waits, and the
    // application's stays unchanged.
    let is_pipe = std::fs::metadata(STDERR).is_ok_and(|meta| meta.file_type().is_fifo());
    let pipe = is_pipe.then(|| opened(OpenOptions::new().write(true), Path::new(STDERR)));
    without_sigpipe(|| {
        pieces(text, libc::PIPE_BUF, |piece| match &pipe {
            Some(Ok(pipe)) => write(pipe.as_raw_fd(), piece),
            // The pipe has no reader any more.
            Some(Err(why)) if why.raw_os_error() == Some(libc::ENXIO) => 0,
            _ => write_if_ready(libc::STDERR_FILENO, piece),
        })
    })
}

/// Writes a text in pieces of at most `most` bytes, until a piece is not written as a whole.
fn pieces(text: &[u8], most: usize, mut write: impl FnMut(&[u8]) -> usize) -> Written {
    let mut written = 0;
    for piece in text.chunks(most.max(1)) {
        let now = write(piece);
        written += now;
        if now < piece.len() {
            break;
        }
    }
    match written {
        all if all == text.len() => Written::Whole,
        0 => Written::Nothing,
        _ => Written::Part,
    }
}

/// Writes once, and returns the number of bytes written.
fn write(descriptor: c_int, text: &[u8]) -> usize {
    loop {
        // SAFETY: the text is as long as said; a descriptor that is not open is an error.
        let written = unsafe { libc::write(descriptor, text.as_ptr().cast(), text.len()) };
        if written >= 0 || !was_interrupted() {
            return usize::try_from(written).unwrap_or(0);
        }
    }
}

fn was_interrupted() -> bool {
    std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
}

/// Writes once, without waiting: to a socket, or to another file that reports room.
fn write_if_ready(descriptor: c_int, text: &[u8]) -> usize {
    const FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as for `write`; a descriptor that is no socket is an error.
    let sent = unsafe { libc::send(descriptor, text.as_ptr().cast(), text.len(), FLAGS) };
    if sent >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOTSOCK) {
        return usize::try_from(sent).unwrap_or(0);
    }
    let mut asked = libc::pollfd { fd: descriptor, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one structure, which outlives the call.
    let answered = unsafe { libc::poll(&raw mut asked, 1, 0) };
    if answered == 1 && asked.revents & libc::POLLOUT != 0 { write(descriptor, text) } else { 0 }
}

/// Keeps SIGPIPE from the host, which a write to a pipe without a reader causes. The kernel sends the signal
/// to the writing thread.
fn without_sigpipe<T>(write: impl FnOnce() -> T) -> T {
    // SAFETY: plain signal-set calls on local sets; the mask is put back as it was. Only the signal of this
    // write is taken away, since none was pending before.
    unsafe {
        let mut pipe: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut pipe);
        libc::sigaddset(&raw mut pipe, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const pipe, &raw mut before);
        libc::sigpending(&raw mut pending);
        let was_pending = libc::sigismember(&raw const pending, libc::SIGPIPE) == 1;
        let answer = write();
        if !was_pending {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            while libc::sigtimedwait(&raw const pipe, ptr::null_mut(), &raw const now) < 0
                && was_interrupted()
            {}
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        answer
    }
}
