//! The file to which the log is written.
//!
//! Each line opens the file again. A daemon closes all its descriptors, including one that walferry would
//! keep open. The next file or connection of the application would then get its number: a database or a
//! socket.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::api::{self, Written};
use crate::inherited;

/// Path of the log, and the file that it names. A fork may happen at any time, so no field has a lock.
pub struct LogFile {
    path: PathBuf,
    /// Device and inode of the file that was last found not to belong to SQLite.
    seen: (AtomicU64, AtomicU64),
    /// The file belongs to a database, and is not written.
    is_refused: AtomicBool,
}

/// First bytes of SQLite's files: databases, WALs of either byte order and rollback journals.
const MAGIC: [&[u8]; 4] = [
    b"SQLite format 3\0",
    &[0x37, 0x7f, 0x06, 0x82],
    &[0x37, 0x7f, 0x06, 0x83],
    &[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7],
];
/// First bytes of a wal-index, in the byte order of the machine.
const WAL_INDEX: [u8; 4] = 3_007_000_u32.to_ne_bytes();
/// Suffixes that SQLite adds to a database's name for the files beside it.
const BESIDE: [&str; 4] = ["", "-wal", "-shm", "-journal"];

impl LogFile {
    /// Resolves the path against the current folder of the process, and creates the file.
    pub fn new(path: &Path) -> Result<LogFile, String> {
        let new = || {
            let path = std::path::absolute(path)?;
            let seen = (AtomicU64::new(0), AtomicU64::new(0));
            let file = LogFile { path, seen, is_refused: AtomicBool::new(false) };
            match file.open() {
                Err(why) if !file.is_unread(&why) => Err(why),
                _ => Ok(file),
            }
        };
        let refused =
            |why: io::Error| format!("the log cannot be written to {}: {why}", path.display());
        new().map_err(refused)
    }

    /// True for a pipe that has no reader now: a reader may come later. A socket gives the same error, and is
    /// never opened.
    fn is_unread(&self, why: &io::Error) -> bool {
        why.raw_os_error() == Some(libc::ENXIO)
            && std::fs::metadata(&self.path).is_ok_and(|meta| meta.file_type().is_fifo())
    }

    /// Appends a text, without waiting for a reader.
    pub fn write(&self, text: &str) -> Written {
        match self.open() {
            Ok(file) => api::to_file(&file, text.as_bytes()),
            Err(_) => Written::Nothing,
        }
    }

    /// Opens the file, unless it is a file of SQLite's: its close would drop the locks that the process has
    /// on it.
    fn open(&self) -> io::Result<File> {
        self.look()?;
        api::open_to_append(&self.path)
    }

    fn look(&self) -> io::Result<()> {
        let taken = || io::Error::other("it is a file of SQLite's");
        if self.is_refused.load(Ordering::Relaxed) {
            return Err(taken());
        }
        let Ok(meta) = std::fs::metadata(&self.path) else { return Ok(()) };
        let id = (meta.dev(), meta.ino());
        let seen = (self.seen.0.load(Ordering::Relaxed), self.seen.1.load(Ordering::Relaxed));
        if !meta.is_file() || seen == id {
            return Ok(());
        }
        if is_of_sqlite(&self.path) {
            return Err(taken());
        }
        self.seen.0.store(id.0, Ordering::Relaxed);
        self.seen.1.store(id.1, Ordering::Relaxed);
        Ok(())
    }

    /// Stops writing to the file if it is this database, which is about to be opened, or a file beside it.
    /// Returns `true` if that was found out now.
    pub fn leave_to(&self, database: &Path) -> bool {
        let Ok(id) = std::fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino())) else {
            return false;
        };
        let is_it = |beside: &&str| {
            let mut path = OsString::from(database);
            path.push(beside);
            std::fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == id)
        };
        BESIDE.iter().any(is_it) && !self.is_refused.swap(true, Ordering::Relaxed)
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// True if the file begins like a file of SQLite's. If the process has the file open, reads through that
/// descriptor: the close of another one would drop the process's locks.
fn is_of_sqlite(path: &Path) -> bool {
    let mut head = [0; 16];
    let Some(open) = inherited::descriptors_of(path, None) else { return false };
    let read = if open.is_empty() {
        File::open(path).and_then(|mut file| file.read(&mut head)).ok()
    } else {
        // A write-only descriptor is not SQLite's, since SQLite reads the files that it opens.
        open.iter().find_map(|number| api::read_descriptor(*number, &mut head, 0))
    };
    let head = head.get(..read.unwrap_or(0)).unwrap_or_default();
    head.starts_with(&WAL_INDEX) || MAGIC.iter().any(|magic| head.starts_with(magic))
}
