//! Finds the databases of an entry of the file.

use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{Database, pattern};
use crate::canonical::canonical;
use crate::store::url;

/// Most levels of folders that a walk enters.
const DEPTH_MAX: usize = 64;
/// First bytes of every database (<https://sqlite.org/fileformat2.html#magic_header_string>).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

impl Database {
    /// Returns the entry for one database of its folder, or `None` if the database is not in the folder.
    ///
    /// Each database has a place of its own in the replica, by its path in the folder.
    pub(super) fn in_folder(&self, database: &Path) -> Option<Database> {
        let wanted = self.pattern.as_deref()?;
        let folder = canonical(&self.place);
        let below = database.strip_prefix(&folder).ok()?;
        let name = below.file_name()?.to_str()?;
        if !self.recursive && below.components().count() > 1 {
            return None;
        }
        if !pattern::matches(wanted, name).unwrap_or(false) {
            return None;
        }
        let below = below.to_str()?;
        let mut entry = self.clone();
        entry.place = database.to_path_buf();
        entry.pattern = None;
        for replica in &mut entry.replicas {
            replica.url = url::below_path(&replica.url, below);
            replica.identity = url::below_path(&replica.identity, below);
        }
        Some(entry)
    }

    /// Returns the databases of the entry that are on disk. An entry for one database always returns its path.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.found().0
    }

    /// Returns the folders of the entry that cannot be read, with the reasons.
    #[cfg(feature = "cli")]
    pub(crate) fn unread(&self) -> Vec<(PathBuf, io::Error)> {
        self.found().1
    }

    fn found(&self) -> (Vec<PathBuf>, Vec<(PathBuf, io::Error)>) {
        if self.pattern.is_none() {
            return (vec![canonical(&self.place)], Vec::new());
        }
        let (mut found, mut unread) = (Vec::new(), Vec::new());
        self.walk(&canonical(&self.place), 0, &mut found, &mut unread);
        found.sort();
        (found, unread)
    }

    fn walk(
        &self,
        folder: &Path,
        depth: usize,
        found: &mut Vec<PathBuf>,
        unread: &mut Vec<(PathBuf, io::Error)>,
    ) {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            // The folder was deleted after its parent was listed.
            Err(error) if depth > 0 && error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return unread.push((folder.to_path_buf(), error)),
        };
        for entry in entries {
            // For a link, `file_type` gives the type of the link itself, so the walk does not follow links.
            let (kind, path) = match entry.and_then(|entry| Ok((entry.file_type()?, entry.path())))
            {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    unread.push((folder.to_path_buf(), error));
                    continue;
                }
            };
            // The folders beside a database belong to the owner alone, and contain no other databases.
            let name = path.as_os_str().as_bytes();
            let ours = name.ends_with(b"-walferry") || name.ends_with(b"-restoring");
            if kind.is_dir() && self.recursive && depth < DEPTH_MAX && !ours {
                self.walk(&path, depth + 1, found, unread);
            } else if kind.is_file() && self.in_folder(&path).is_some() && is_database(&path) {
                found.push(path);
            }
        }
    }
}

fn is_database(path: &Path) -> bool {
    let mut magic = [0; 16];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == *MAGIC
}
