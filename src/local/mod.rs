//! What walferry keeps beside a database, in the folder `<database>-walferry/`:
//!
//! | entry | what it is |
//! |---|---|
//! | `lock` | held by the one process that ships the database |
//! | `state` | who we are and where the log stands ([`state`]) |
//! | `pages` | a checksum per page as of the last captured commit ([`pages`]) |
//! | `copies/` | some of what the store has, to be joined soon ([`copies`]) |
//! | `history` | what is known of the replica's files ([`crate::history`]) |
//! | `follow` | instead of all this: how far a copy is that follows a replica ([`crate::follow`]) |
//! | `spool/` | captured, not yet acknowledged transactions ([`spool`]) |
//! | `shm-3`, `bell` | what the processes of one database tell each other ([`shared`]) |
//! | `.gitignore` | keeps the folder out of the repository that the database is in |
//! | `replicas/` | the same for each further replica of the database ([`replicas`]) |
//!
//! The order of writes makes every crash harmless: a spool file appears whole, by rename, before
//! the page table follows it; the state moves past a spool file before that file is removed. What
//! is found after a crash is therefore: state, then every spool file in order, then the WAL.

pub mod copies;
pub(crate) mod folder;
#[cfg(feature = "cli")]
pub(crate) mod given_up;
pub(crate) mod history;
pub mod lock;
mod mapping;
pub mod pages;
mod replace;
pub mod replicas;
pub mod reserve;
pub mod shared;
pub mod spool;
pub mod state;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder of local state that belongs to a database file.
pub fn state_dir(database: &Path) -> PathBuf {
    beside(database, "-walferry")
}

/// Tells why this cannot be a replica of the database, if it lies in walferry's own folder beside this or
/// another database: that may be deleted at any time, and is lost with the disk.
pub fn misplaced(database: &Path, replica: &str) -> Option<String> {
    let folder = crate::config::canonical(&crate::store::url::folder(replica)?);
    let own = state_dir(database);
    let found = folder.ancestors().find(|folder| *folder == own || is_state_dir(folder))?;
    Some(format!("{} is no place for a replica: it is walferry's own folder", found.display()))
}

/// True if this is the folder of local state of a database that is there.
fn is_state_dir(folder: &Path) -> bool {
    let name = folder.as_os_str().as_encoded_bytes();
    name.strip_suffix(b"-walferry").is_some_and(|database| {
        use std::os::unix::ffi::OsStrExt;
        Path::new(std::ffi::OsStr::from_bytes(database)).is_file()
    })
}

/// Path of a database's WAL.
pub fn wal_path(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// Path of a database's wal-index.
pub fn shm_path(database: &Path) -> PathBuf {
    beside(database, "-shm")
}

/// Path of a database's rollback journal.
pub fn journal_path(database: &Path) -> PathBuf {
    beside(database, "-journal")
}

/// A database's WAL and wal-index: device and inode of each that is there.
pub type Beside = [Option<(u64, u64)>; 2];

/// The files of a database's WAL and wal-index now. Nobody removes them while a connection is open.
pub fn files_beside(database: &Path) -> Beside {
    use std::os::unix::fs::MetadataExt;
    [wal_path(database), shm_path(database)].map(|path| {
        let meta = std::fs::metadata(path).ok()?;
        meta.is_file().then(|| (meta.dev(), meta.ino()))
    })
}

/// Path of a file whose name is that of another with more behind it.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether transactions were moved aside there for a person ([`crate::local`]); also if there is no
/// telling.
pub fn has_kept(dir: &Path) -> bool {
    let kept = std::fs::read_dir(dir).map(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b"kept-"))
        })
    });
    kept.unwrap_or(true)
}

/// Whether a state folder may be thrown away together with its database: nobody ships from it, no
/// captured transaction waits in its spool, and none was kept for a person. Whatever else is in it can
/// be made anew.
pub fn is_spent(dir: &Path) -> bool {
    if has_kept(dir) {
        return false;
    }
    if !replicas::others(dir).iter().all(|other| is_spent(other)) {
        return false;
    }
    let unused = matches!(lock::Lock::try_take(dir), Ok(lock::Attempt::Taken(_)));
    let spool = spool::Spool::open(dir).and_then(|spool| spool.is_empty());
    unused && spool.unwrap_or(false)
}

/// An input or output error together with what was tried on which path.
#[derive(Debug)]
pub struct Error {
    /// What was tried, and on which path.
    pub message: String,
    /// Why it failed.
    pub source: io::Error,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.message, self.source)
    }
}

impl std::error::Error for Error {}

/// Adds what was tried to an input or output error.
pub(crate) trait Context<T> {
    fn context(self, what: &str, path: &Path) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: &str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error { message: format!("{what} {}", path.display()), source })
    }
}

/// Whatever was written so long ago is on the disk, unless the system is told otherwise.
const WRITTEN_BACK: Duration = Duration::from_mins(1);

/// True if a file was written so lately that it may not be on the disk yet, where the process that did so was
/// killed.
pub(crate) fn may_be_unsynced(meta: io::Result<std::fs::Metadata>) -> bool {
    let age = meta.and_then(|meta| meta.modified()).ok().and_then(|then| then.elapsed().ok());
    age.is_none_or(|age| age < WRITTEN_BACK)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    bear(folder::sync(path).map_err(io::Error::from))
}

/// Judges the syncing of a folder. A file system that has no such call (SMB, some in user space) makes
/// names durable by itself or never: to go on is all that is left. An error of the disk is one.
fn bear(synced: io::Result<()>) -> io::Result<()> {
    use rustix::io::Errno;
    const HAS_NONE: [Errno; 5] =
        [Errno::INVAL, Errno::BADF, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS];
    match synced {
        Err(error) if Errno::from_io_error(&error).is_some_and(|it| HAS_NONE.contains(&it)) => {
            Ok(())
        }
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn only_error_of_disk_is_one_when_folder_is_synced() {
        let synced = |errno: Errno| bear(Err(errno.into())).is_ok();
        for errno in [Errno::INVAL, Errno::BADF, Errno::OPNOTSUPP, Errno::NOSYS] {
            assert!(synced(errno), "{errno:?}");
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::NOENT, Errno::ACCESS] {
            assert!(!synced(errno), "{errno:?}");
        }
        assert!(bear(Ok(())).is_ok() && bear(Err(io::Error::other("something"))).is_err());
    }
}
