//! Room on the disk that is kept free for the application, in a file without a name.
//!
//! While the database is read as a whole its WAL cannot be begun anew, and grows with each commit. On a
//! disk that is nearly full the room may end before anybody has looked: then the write that finds none
//! must get some at once, and all that can be given is what was taken before.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::folder;
use super::spool::free_at;

/// The part of the free room that is kept.
const PART_OF_FREE: u64 = 4;
/// Bytes that are kept where that is more than the database has: the WAL has as many without us.
const LEAST: u64 = 4 << 20;
/// Most bytes that are kept: few transactions are larger.
const MOST: u64 = 64 << 20;

/// The reserves of this process, and their file systems: one is enough for each, whoever keeps it.
static KEPT: Mutex<Vec<(u64, Weak<()>)>> = Mutex::new(Vec::new());

/// Room that is given back when this is dropped.
#[derive(Debug)]
pub struct Reserve {
    file: File,
    device: u64,
    _kept: Arc<()>,
}

impl Reserve {
    /// Keeps some of what is free where this folder is, for a database of so many bytes. `None` where a file
    /// system has no such call, or nothing to spare, or this process has a reserve on it.
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

    /// The number of its file system.
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
