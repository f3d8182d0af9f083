//! Room on the disk that is kept free for the application, in a file without a name.
//!
//! While the database is read as a whole its WAL cannot be begun anew, and grows with each commit. On a
//! disk that is nearly full the room may end before anybody has looked: then the write that finds none
//! must get some at once, and all that can be given is what was taken before.

use std::fs::File;
use std::path::Path;

use super::folder;
use super::spool::free_at;

/// The part of the free room that is kept.
const PART_OF_FREE: u64 = 4;
/// Most bytes that are kept: few transactions are larger.
const MOST: u64 = 64 << 20;

/// Room that is given back when this is dropped.
#[derive(Debug)]
pub struct Reserve {
    _file: File,
}

impl Reserve {
    /// Keeps some of what is free where this folder is. `None` where a file system has no such call, or
    /// nothing to spare.
    pub fn keep(dir: &Path) -> Option<Reserve> {
        let len = (free_at(dir)? / PART_OF_FREE).min(MOST);
        let file = folder::create_unnamed(&dir.join("reserve.tmp")).ok()?;
        let kept = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len);
        kept.is_ok().then_some(Reserve { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let used = || std::fs::read_dir(dir.path()).unwrap().count();
        let Some(reserve) = Reserve::keep(dir.path()) else { return };
        let meta = reserve._file.metadata().unwrap();
        assert!((1..=MOST).contains(&meta.len()), "{meta:?}");
        assert_eq!(used(), 0, "it has no name");
    }
}
