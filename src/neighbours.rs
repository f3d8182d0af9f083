//! Finds other processes that have a database open, in the kernel's list of locks.
//!
//! A connection in WAL mode holds a shared lock on the database file from its first read to its close
//! (`sqlite3WalBeginReadTransaction` in `wal.c`). It holds another one on the wal-index (`unixShmMap` in
//! `os_unix.c`). `F_GETLK` would report a single lock, which may be our own, and needs a descriptor that may
//! never be closed.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::local;

/// The first pid namespace of a system (`PROC_PID_INIT_INO` in the kernel's `proc_ns.h`). In any other
/// namespace, the list lacks the locks of processes outside.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// Processes that hold locks, by inode. A file system composed of others lists another device than `stat`
/// reports, so an inode number counts on any device.
pub(crate) struct Locks {
    holders: HashMap<u64, Vec<i64>>,
}

impl Locks {
    /// Reads the current list; `None` if the list cannot be read or does not show all processes.
    pub(crate) fn read() -> Option<Locks> {
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
        let text = std::fs::read_to_string("/proc/locks").ok()?;
        (namespace.as_os_str() == FIRST_NAMESPACE).then(|| Locks::of(&text))
    }

    fn of(text: &str) -> Locks {
        let mut holders: HashMap<u64, Vec<i64>> = HashMap::new();
        for (process, inode) in text.lines().filter_map(parse) {
            holders.entry(inode).or_default().push(process);
        }
        Locks { holders }
    }

    /// True if this process, and no other, has the database open. False if that cannot be known.
    pub(crate) fn are_ours_alone(&self, database: &Path) -> bool {
        let inode = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.ino());
        let (file, shm) = (inode(database), inode(&local::shm_path(database)));
        file.zip(shm).is_some_and(|(file, shm)| self.are_held_by(file, shm, std::process::id()))
    }

    /// True if this process holds locks on the file and on its wal-index, and no other process does.
    fn are_held_by(&self, file: u64, shm: u64, process: u32) -> bool {
        let of = |inode| self.holders.get(&inode).into_iter().flatten();
        let is_it = |holder: &i64| *holder == i64::from(process);
        of(file).any(is_it) && of(shm).any(is_it) && of(file).chain(of(shm)).all(is_it)
    }
}

/// True if this process alone has the database open in WAL mode. False if that cannot be known.
pub(crate) fn is_alone(database: &Path) -> bool {
    Locks::read().is_some_and(|locks| locks.are_ours_alone(database))
}

/// Returns process and inode of a line such as `1: POSIX  ADVISORY  READ 18142 fe:00:5464086 128 128`
/// (proc_locks(5)). A waiting process has `->` before the kind. A lock of an open file description has
/// process -1.
fn parse(line: &str) -> Option<(i64, u64)> {
    let mut words = line.split_ascii_whitespace().skip(1).filter(|word| *word != "->").skip(3);
    let holder = words.next()?.parse().ok()?;
    let inode = words.next()?.rsplit(':').next()?.parse().ok()?;
    Some((holder, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  READ 10 fe:00:7 1073741826 1073742335
2: POSIX  ADVISORY  READ 10 fe:00:8 128 128
3: POSIX  ADVISORY  READ 11 fe:00:70 0 EOF
4: FLOCK  ADVISORY  WRITE 12 00:2b:71 0 EOF
";

    #[test]
    fn who_alone_holds_a_lock_is_alone() {
        let locks = Locks::of(LOCKS);
        assert!(locks.are_held_by(7, 8, 10));
        assert!(!locks.are_held_by(7, 8, 11), "another one holds it");
        assert!(!locks.are_held_by(9, 8, 10), "nobody is seen to hold it, not even we");
        assert!(!locks.are_held_by(7, 9, 10), "the wal-index is not the one that we have");
        for other in [
            "5: POSIX  ADVISORY  READ 13 fe:00:7 1073741826 1073742335\n",
            "5: POSIX  ADVISORY  READ 13 fe:00:8 128 128\n",
            "5: OFDLCK ADVISORY  READ -1 fe:00:8 128 128\n",
            "1: -> POSIX  ADVISORY  WRITE 13 fe:00:7 1073741824 1073741824\n",
        ] {
            let locks = Locks::of(&[LOCKS, other].concat());
            assert!(!locks.are_held_by(7, 8, 10), "{other}");
        }
    }
}
