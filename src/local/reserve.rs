//! Room on the disk that is kept free for the application, in a file without a name.
//!
//! While a job reads the whole database, the WAL cannot be restarted and grows with each commit. A disk that
//! is nearly full may fill up before the sealer looks. Then the write that finds no room must get some at
//! once, and only room that was reserved before can be given back.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::folder;
use super::spool::free_at;

/// The divisor of the free room: a quarter is kept.
const PART_OF_FREE: u64 = 4;
/// Fewest bytes that are kept for a database, however small: its WAL grows to this size without walferry too.
const LEAST: u64 = 4 << 20;
/// Most bytes that are kept: few transactions are larger.
const MOST: u64 = 64 << 20;

/// The file systems of this process's reserves. One reserve is enough for each file system.
static KEPT: Mutex<Vec<(u64, Weak<()>)>> = Mutex::new(Vec::new());

/// Reserved room on a file system. Dropping the reserve gives the room back.
#[derive(Debug)]
pub struct Reserve {
    file: File,
    device: u64,
    _kept: Arc<()>,
}

impl Reserve {
    /// Reserves some of the free room on a folder's file system, for a database of `database` bytes. `None`
    /// if the file system cannot reserve room or has none to spare, or if this process has a reserve there
    /// already.
    pub fn keep(dir: &Path, database: u64) -> Option<Reserve> {
        let device = std::fs::metadata(dir).ok()?.dev();
        let mut all = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, kept)| kept.strong_count() > 0);
        if all.iter().any(|(other, _)| *other == device) {
            return None;
        }
        let len = (free_at(dir)? / PART_OF_FREE).min(database.clamp(LEAST, MOST));
        let file = folder::create_unnamed(&dir.join("reserve.tmp")).ok()?;
        let kept = Arc::new(());
        all.push((device, Arc::downgrade(&kept)));
        let reserve = Reserve { file, device, _kept: kept };
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&reserve.file, flags, 0, len).is_ok().then_some(reserve)
    }

    /// Returns the number of the file system.
    pub fn device(&self) -> u64 {
        self.device
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // The child of a fork may still have the file open.
        let _ = self.file.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_once_for_each_disk_and_given_back_whoever_has_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let Some(reserve) = Reserve::keep(dir.path(), 1) else { return };
        let copy = reserve.file.try_clone().unwrap();
        let blocks = || copy.metadata().unwrap().blocks();
        assert!((1..=LEAST).contains(&copy.metadata().unwrap().len()) && blocks() > 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
        assert!(Reserve::keep(dir.path(), 1).is_none());
        drop(reserve);
        assert_eq!(blocks(), 0);
        assert!(Reserve::keep(dir.path(), 1).is_some());
    }
}
