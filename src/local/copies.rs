//! The folder `copies/`: copies of files that the store has, so that a compaction need not fetch them.
//!
//! A file moves here by a rename when the store has confirmed it. The folder's size is bounded; the oldest
//! copy is removed first. Nothing depends on the folder, and a reader checks a copy as if it came from the
//! store.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::folder::{self, Folder};
use super::{Context, Error};
use crate::ltx::FileName;
use crate::store::Key;
use crate::units::{Level, Txid};

/// The folder and its list of copies.
#[derive(Debug)]
pub struct Copies {
    dir: PathBuf,
    /// Most bytes that all copies may take.
    cap: u64,
    /// Keys and lengths of the copies, oldest first.
    files: VecDeque<(Key, u64)>,
    bytes: u64,
}

/// Returns the path of a file's copy.
pub(crate) fn path(dir: &Path, key: Key) -> PathBuf {
    dir.join(format!("{}-{}", key.level, key.name))
}

/// Reads a file's copy, if it exists.
pub(crate) fn read(dir: &Path, key: Key) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = folder::read(&path(dir, key)).ok()?;
    std::io::Read::read_to_end(&mut file, &mut bytes).ok()?;
    Some(bytes)
}

fn parse(name: &str) -> Option<Key> {
    let (level, name) = name.split_once('-')?;
    Some(Key { level: Level::new(level.parse().ok()?)?, name: FileName::parse(name)? })
}

impl Copies {
    /// Opens the folder of a state folder; makes the folder if it is missing.
    pub fn open(state_dir: &Path, cap: u64) -> Result<Copies, Error> {
        let dir = state_dir.join("copies");
        Folder::make(&dir)?;
        let mut files = Vec::new();
        for file in std::fs::read_dir(&dir).context("cannot list", &dir)? {
            let file = file.context("cannot list", &dir)?;
            if let Some(key) = file.file_name().to_str().and_then(parse) {
                let len = file.metadata().context("cannot look at", &file.path())?.len();
                files.push((key, len));
            }
        }
        files.sort_unstable_by_key(|(key, _)| key.name.max);
        let bytes = files.iter().map(|(_, len)| *len).fold(0, u64::saturating_add);
        let mut copies = Copies { dir, cap, files: files.into(), bytes };
        copies.trim();
        Ok(copies)
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves a file of `len` bytes here; the store has it as `key`. Removes the file instead if it is larger
    /// than the bound of the folder.
    pub fn take(&mut self, from: &Path, key: Key, len: u64) -> Result<(), Error> {
        if len > self.cap {
            return super::spool::remove_path(from);
        }
        let to = path(&self.dir, key);
        if folder::rename(from, &to).is_err() {
            // A missing copy loses nothing.
            return super::spool::remove_path(from);
        }
        self.files.push_back((key, len));
        self.bytes = self.bytes.saturating_add(len);
        self.trim();
        Ok(())
    }

    /// Removes the copies that end at or before this transaction, since a compaction has included them.
    pub fn remove_up_to(&mut self, txid: Txid) {
        while self.files.front().is_some_and(|(key, _)| key.name.max <= txid) {
            self.remove_first();
        }
    }

    /// Returns the bytes that all copies take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Removes all copies.
    pub fn clear(&mut self) {
        while !self.files.is_empty() {
            self.remove_first();
        }
    }

    fn trim(&mut self) {
        while self.bytes > self.cap {
            self.remove_first();
        }
    }

    fn remove_first(&mut self) {
        let Some((key, len)) = self.files.pop_front() else {
            self.bytes = 0;
            return;
        };
        self.bytes = self.bytes.saturating_sub(len);
        if let Err(error) = super::spool::remove_path(&path(&self.dir, key)) {
            log::warn!("{error}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_stays_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let key = |txid| Key { level: Level::L0, name: FileName::single(Txid(txid)) };
        let there = |txid| path(&dir.path().join("copies"), key(txid)).exists();
        let from = dir.path().join("from");
        let mut copies = Copies::open(dir.path(), 100).unwrap();
        for (txid, len) in [(1, 40), (2, 50), (3, 20), (4, 101)] {
            std::fs::write(&from, vec![7; len]).unwrap();
            copies.take(&from, key(txid), len as u64).unwrap();
            assert!(!from.exists());
        }
        assert_eq!([there(1), there(2), there(3), there(4)], [false, true, true, false]);
        // Another process finds the same copies, and may have a lower bound.
        let mut copies = Copies::open(dir.path(), 30).unwrap();
        assert_eq!([there(2), there(3)], [false, true]);
        copies.remove_up_to(Txid(2));
        assert!(there(3));
        copies.remove_up_to(Txid(3));
        assert_eq!((there(3), copies.bytes), (false, 0));
    }
}
