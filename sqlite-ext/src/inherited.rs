//! Descriptors that the child of a fork shares with its parent.
//!
//! While anybody of the process has a lock on a file, SQLite closes no descriptor of it: that would drop
//! the locks. It keeps it for the next connection (`setPendingFd` and `findReusableFd` in `os_unix.c`). A
//! child has inherited what its parent kept, and with each descriptor the position in the file; a SQLite
//! without pread sets that before each read and write. Where both use one, each reads and writes where the
//! other has moved to. So before a database is opened in a child, they are set aside for good.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::{Api, BaseVfs, OwnFile, SQLITE_OPEN_READONLY, SQLITE_OPEN_READWRITE};
use crate::inside;

/// Most that are set aside of a file, in case that none is ever a new one.
const MOST: usize = 1000;

/// The files of which none is left, by the generation in which that was seen to. Of the standard library's
/// kind, as it is locked around a fork.
static DONE: Mutex<Option<HashMap<PathBuf, u32>>> = Mutex::new(None);

/// Locks what is known.
pub fn done() -> MutexGuard<'static, Option<HashMap<PathBuf, u32>>> {
    DONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Before a database is opened: keeps SQLite from giving out a descriptor of it that the parent shares.
pub fn set_aside(api: &'static Api, vfs: BaseVfs, path: &Path) {
    let generation = inside::generation();
    if generation == 0 {
        return;
    }
    let mut done = done();
    let done = done.get_or_insert_with(HashMap::new);
    if done.insert(path.to_path_buf(), generation) == Some(generation) {
        return;
    }
    // It keeps those apart that may write.
    for flags in [SQLITE_OPEN_READWRITE, SQLITE_OPEN_READONLY] {
        for _ in 0..MOST {
            let before = descriptors_of(path).map(|all| all.len());
            let Some(file) = OwnFile::open_with(api, vfs.0, path, flags) else { break };
            let after = descriptors_of(path).map(|all| all.len());
            if after > before || before.is_none() {
                break;
            }
            std::mem::forget(file);
        }
    }
}

/// After a connection from before the fork was closed: SQLite has kept its descriptor.
pub fn closed(path: &Path) {
    if let Some(done) = done().as_mut() {
        done.remove(path);
    }
}

/// The descriptors that the process has of a file; `None` where it cannot list them.
pub fn descriptors_of(path: &Path) -> Option<Vec<i32>> {
    let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let wanted = id(std::fs::metadata(path).ok()?);
    let open = std::fs::read_dir("/proc/self/fd").ok()?.filter_map(Result::ok);
    let of_it =
        open.filter(|entry| std::fs::metadata(entry.path()).is_ok_and(|meta| id(meta) == wanted));
    Some(of_it.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}
