//! Files that walferry keeps beside a database, in the state folder `<database>-walferry/`.
//!
//! | entry | content |
//! |---|---|
//! | `lock` | locked by the shipper: one process for each state folder ([`lock`]) |
//! | `state` | the writer, and how far the log has come ([`state`]) |
//! | `pages` | the page table: a checksum for each page as of the last captured commit ([`pages`]) |
//! | `copies/` | copies of files of the store that compaction will read soon ([`copies`]) |
//! | `history` | the known files of the replica ([`crate::history`]) |
//! | `follow` | in place of all these: how far a copy that follows a replica has come ([`crate::follow`]) |
//! | `spool/` | captured transactions that the store has not acknowledged yet ([`spool`]) |
//! | `shm-3`, `bell` | messages between the processes of one database ([`shared`]) |
//! | `.gitignore` | keeps the folder out of the repository that the database is in |
//! | `replicas/` | a state folder for each further replica of the database ([`replicas`]) |
//!
//! The order of writes makes every crash harmless. A spool file appears whole, by rename, before the page
//! table includes its pages. The state moves past a spool file before that file is removed. A start after a
//! crash therefore reads the state, then every spool file in order, then the WAL.

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

/// Returns the state folder of a database file.
pub fn state_dir(database: &Path) -> PathBuf {
    beside(database, "-walferry")
}

/// Returns an error message if the replica lies in a state folder, of this or of another database. Such a
/// folder may be deleted at any time, and is lost together with the disk.
pub fn misplaced(database: &Path, replica: &str) -> Option<String> {
    let folder = crate::config::canonical(&crate::store::url::folder(replica)?);
    let own = state_dir(database);
    let found = folder.ancestors().find(|folder| *folder == own || is_state_dir(folder))?;
    Some(format!("{} is no place for a replica: it is walferry's own folder", found.display()))
}

/// True if this is the state folder of a database file that exists.
fn is_state_dir(folder: &Path) -> bool {
    let name = folder.as_os_str().as_encoded_bytes();
    name.strip_suffix(b"-walferry").is_some_and(|database| {
        use std::os::unix::ffi::OsStrExt;
        Path::new(std::ffi::OsStr::from_bytes(database)).is_file()
    })
}

/// Returns the path of a database's WAL.
pub fn wal_path(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// Returns the path of a database's wal-index.
pub fn shm_path(database: &Path) -> PathBuf {
    beside(database, "-shm")
}

/// Returns the path of a database's rollback journal.
pub fn journal_path(database: &Path) -> PathBuf {
    beside(database, "-journal")
}

/// Device and inode of a database's WAL and wal-index; `None` for a missing file.
pub type Beside = [Option<(u64, u64)>; 2];

/// Looks up the files of a database's WAL and wal-index. SQLite removes neither while a connection is open.
pub fn files_beside(database: &Path) -> Beside {
    use std::os::unix::fs::MetadataExt;
    [wal_path(database), shm_path(database)].map(|path| {
        let meta = std::fs::metadata(path).ok()?;
        meta.is_file().then(|| (meta.dev(), meta.ino()))
    })
}

/// Returns the path with `suffix` appended to its file name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// True if the folder holds transactions that were set aside for a person to look at (in `kept-<n>`). Also
/// true if the folder cannot be listed.
pub fn has_kept(dir: &Path) -> bool {
    let kept = std::fs::read_dir(dir).map(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b"kept-"))
        })
    });
    kept.unwrap_or(true)
}

/// True if a state folder may be deleted together with its database: no process ships from the folder, its
/// spool holds no captured transaction, and no transactions were set aside for a person. walferry can make
/// the rest of the folder again.
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

/// An input or output error, with the operation that failed and its path.
#[derive(Debug)]
pub struct Error {
    /// The operation and its path.
    pub message: String,
    /// The error of the system.
    pub source: io::Error,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.message, self.source)
    }
}

impl std::error::Error for Error {}

/// Adds the operation and its path to an input or output error.
pub(crate) trait Context<T> {
    fn context(self, what: &str, path: &Path) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: &str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error { message: format!("{what} {}", path.display()), source })
    }
}

/// After this time the kernel has written a file back to the disk, unless the system is configured otherwise.
const WRITTEN_BACK: Duration = Duration::from_mins(1);

/// True if a file may not be on the disk yet, because its writer may have been killed before syncing. The age
/// of the file decides: less than [`WRITTEN_BACK`], or unknown.
pub(crate) fn may_be_unsynced(meta: io::Result<std::fs::Metadata>) -> bool {
    let age = meta.and_then(|meta| meta.modified()).ok().and_then(|then| then.elapsed().ok());
    age.is_none_or(|age| age < WRITTEN_BACK)
}

/// Makes the names in a folder durable, as far as the file system can.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    bear(folder::sync(path).map_err(io::Error::from))
}

/// Ignores the error of a file system that has no call to sync a folder (SMB, some in user space). Such a
/// file system makes names durable by itself or never. Returns the errors of the disk.
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
