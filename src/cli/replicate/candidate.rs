//! What a path that is to be replicated holds, before SQLite is asked: nothing of it may change.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Which file it is: device and inode.
pub(super) type FileId = (u64, u64);

/// What is at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Candidate {
    /// Nothing yet, or a file without a byte: a database that was not written to.
    Nothing,
    /// A database in WAL mode.
    Wal(FileId),
    /// A database in another journal mode.
    OtherMode(FileId),
    /// Something else; why.
    NotOne(String),
    /// A file that cannot be looked at, if its metadata can; why.
    Unread(Option<FileId>, String),
}

/// The file of a path now.
pub(super) fn file_id(path: &Path) -> Option<FileId> {
    let meta = std::fs::metadata(path).ok()?;
    meta.is_file().then(|| (meta.dev(), meta.ino()))
}

/// Looks at the file's first bytes (<https://sqlite.org/fileformat2.html#the_database_header>). Not
/// for a file that this process has open: closing it again would drop the process's locks.
pub(super) fn look(path: &Path) -> Candidate {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => return Candidate::Nothing,
        Err(error) => return Candidate::Unread(None, error.to_string()),
    };
    if !meta.is_file() {
        return Candidate::NotOne("it is no file".into());
    }
    if meta.len() == 0 {
        return Candidate::Nothing;
    }
    let mut head = [0; 100];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    match read {
        Ok(()) if head.starts_with(b"SQLite format 3\0") => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Candidate::Nothing,
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => {
            return Candidate::Unread(Some((meta.dev(), meta.ino())), error.to_string());
        }
        _ => return Candidate::NotOne("it is no SQLite database".into()),
    }
    let file = (meta.dev(), meta.ino());
    // The write and read versions of the file format.
    if head[18] == 2 && head[19] == 2 { Candidate::Wal(file) } else { Candidate::OtherMode(file) }
}
