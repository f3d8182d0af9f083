//! Folders whose databases are to be replicated.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why a folder could not be read.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Unread {
    why: String,
    /// True if the folder does not exist.
    pub(super) missing: bool,
}

impl Unread {
    fn of(error: &std::io::Error) -> Unread {
        Unread { why: error.to_string(), missing: error.kind() == ErrorKind::NotFound }
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it cannot be read, and its databases are not replicated: {}", self.why)
    }
}

/// The files of a folder whose names fit. What SQLite and walferry have beside a database is none.
pub(super) fn find(
    folder: &Path,
    pattern: &str,
    recursive: bool,
    files: &mut Vec<PathBuf>,
    unread: &mut BTreeMap<PathBuf, Unread>,
) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            unread.insert(folder.to_path_buf(), Unread::of(&error));
            return;
        }
    };
    for entry in entries {
        let kind = entry.and_then(|entry| Ok((entry.file_type()?, entry)));
        let (kind, entry) = match kind {
            Ok(found) => found,
            // The file was deleted after the folder was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                unread.insert(folder.to_path_buf(), Unread::of(&error));
                continue;
            }
        };
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let ours = name.ends_with("-walferry") || name.ends_with("-restoring");
        let beside = ["-wal", "-shm", "-journal"].iter().any(|end| name.ends_with(end));
        if kind.is_dir() && recursive && !ours {
            find(&path, pattern, recursive, files, unread);
            // The folder was deleted after its parent was listed.
            unread.retain(|folder, why| *folder != path || !why.missing || path.exists());
        } else if kind.is_file() && !beside && fits(pattern, &name) {
            // A link is skipped, since its target is a database with a place of its own.
            files.push(path);
        }
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    crate::config::pattern::matches(pattern, name).unwrap_or(false)
}
