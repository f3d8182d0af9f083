//! The lock file of a state folder: at most one shipper, over all processes of a host.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::folder::{Folder, LOCK};
use super::{Context, Error};

/// The shipper's lock, held until dropped or until the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// The descriptors of all locks held. The child of a fork closes its copies: the lock stays taken as long as
/// any copy of the descriptor is open.
static HELD: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Locks [`HELD`]. The standard library's mutex can be held across a fork.
pub(crate) fn held() -> MutexGuard<'static, Vec<RawFd>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Lock {
    fn drop(&mut self) {
        held().retain(|descriptor| *descriptor != self.file.as_raw_fd());
        // A child of a fork may still hold the same open file, so closing the file alone would not release
        // the lock.
        let _ = self.file.unlock();
    }
}

/// Result of an attempt to take the lock.
#[derive(Debug)]
pub enum Attempt {
    /// This process has the lock.
    Taken(Lock),
    /// Another process has the lock. Holds that process's id, if the file names a process that exists.
    HeldBy(Option<u32>),
}

impl Lock {
    /// True if the folder still has the locked file. If the file was deleted, another process could take a
    /// lock too.
    pub fn is_in_place(&self, dir: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let ours = self.file.metadata().map(id);
        let there = std::fs::symlink_metadata(dir.join(LOCK)).map(id);
        matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
    }

    /// Tries to take the lock in this folder, without waiting.
    pub fn try_take(dir: &Path) -> Result<Attempt, Error> {
        let path = dir.join(LOCK);
        let folder = Folder::open(dir).context("cannot open", dir)?;
        let mut file = folder.open_or_create(LOCK).context("cannot open", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = (&mut file).take(64).read_to_string(&mut text);
                let pid = text.trim().parse().ok();
                return Ok(Attempt::HeldBy(pid.filter(|pid| is_there(*pid))));
            }
            Err(TryLockError::Error(source)) => return Err(source).context("cannot lock", &path),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.context("cannot write", &path)?;
        held().push(file.as_raw_fd());
        Ok(Attempt::Taken(Lock { file }))
    }
}

/// True if a process with this id exists.
fn is_there(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let asked = pid.map(test_kill_process);
    matches!(asked, Some(Ok(()) | Err(Errno::PERM)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_there_is_not_named() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::try_take(dir.path()).unwrap();
        assert!(matches!(held, Attempt::Taken(_)));
        let name = |text: &str| {
            std::fs::write(dir.path().join(LOCK), text).unwrap();
            match Lock::try_take(dir.path()).unwrap() {
                Attempt::HeldBy(pid) => pid,
                Attempt::Taken(_) => panic!("it is held"),
            }
        };
        assert_eq!(name(&std::process::id().to_string()), Some(std::process::id()));
        assert_eq!(name("1"), Some(1), "somebody else's");
        for nobody in ["2147483647", "4294967295", "0", "", "who"] {
            assert_eq!(name(nobody), None, "{nobody}");
        }
    }
}
