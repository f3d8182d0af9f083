//! Finds out whether another process has a database open, before the database's name goes to another file.
//!
//! Such a process would go on with a file that has lost its name. It would write journals under a name that belongs
//! to the new file, or write its cached pages to the new file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::error::{Error, Refusal, failed};

/// SQLite's lock bytes: PENDING, RESERVED and the shared ones (os_unix.c, `PENDING_BYTE`).
const LOCK_BYTES: (u64, u64) = (0x4000_0000, 512);

/// Returns an error if another process has the file open, by its descriptors and by SQLite's locks.
///
/// A connection in WAL mode that has read holds a lock; an idle one in another mode, or one that has read nothing,
/// has a descriptor alone. The descriptors of other users' processes show only to root, so the locks count as well.
pub(super) fn refuse(path: &Path) -> Result<(), Error> {
    let meta = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.map_err(failed("looking at", path))?,
    };
    let open = |pid| Err(Error::Copy { path: path.into(), why: Refusal::Open(pid) });
    match opener((meta.dev(), meta.ino())) {
        Ok(None) => {}
        Ok(pid) => return open(pid),
        Err(error) => log::warn!(
            "cannot see which processes have {} open, but for SQLite's locks: reading /proc: {error}",
            path.display()
        ),
    }
    if is_locked(path)? { open(None) } else { Ok(()) }
}

/// Returns another process that has the file open, as far as `/proc` tells.
fn opener(file: (u64, u64)) -> io::Result<Option<u32>> {
    let ours = std::process::id();
    for process in fs::read_dir("/proc")?.flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid != ours) else { continue };
        let Ok(open) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in open.flatten() {
            if fs::metadata(descriptor.path()).is_ok_and(|meta| (meta.dev(), meta.ino()) == file) {
                return Ok(Some(pid));
            }
        }
    }
    Ok(None)
}

/// True if another process holds one of SQLite's locks on the file.
fn is_locked(path: &Path) -> Result<bool, Error> {
    let file = File::open(path).map_err(failed("opening", path))?;
    let mut wanted = Flock::from(FlockType::WriteLock);
    (wanted.start, wanted.length) = LOCK_BYTES;
    let found = fcntl_getlk(&file, &wanted);
    found
        .map(|lock| lock.is_some())
        .map_err(|errno| failed("asking for locks on", path)(errno.into()))
}
