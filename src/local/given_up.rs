//! Gives up the local state of a database, without losing a commit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::folder::{self, Folder};
use super::{Context as _, Error, spool};

/// Files that are removed.
const FILES: [&str; 4] = ["state", "pages", "history", "follow"];
/// Folders that are removed, with their content.
const FOLDERS: [&str; 2] = ["spool", "copies"];

/// True if none of the files and folders to remove exists.
pub(crate) fn is_given_up(dir: &Path) -> bool {
    let mut all = FILES.into_iter().chain(FOLDERS);
    all.all(|name| dir.join(name).symlink_metadata().is_err())
}

/// Removes the page table, the state and the spool of a database, and all other knowledge of its replica.
/// First moves the `unshipped` files of the spool to a folder `kept-<n>`, and returns that folder. The next
/// start finds a removal that a crash interrupted, and sends a full image. The next call completes the
/// removal.
///
/// The caller has the lock of the state folder.
pub(crate) fn give_up(dir: &Path, unshipped: &[spool::Entry]) -> Result<Option<PathBuf>, Error> {
    let kept = if unshipped.is_empty() { None } else { kept_next(dir) };
    if let Some(kept) = &kept {
        let spool = dir.join("spool");
        Folder::make(kept)?;
        for entry in unshipped {
            let (from, to) = (spool.join(entry.file_name()), kept.join(entry.file_name()));
            folder::rename(&from, &to).context("cannot move aside", &from)?;
        }
        sync(kept)?;
        sync(dir)?;
    }
    // Without the state, the spool has no meaning and the page table proves nothing.
    for file in FILES {
        remove(|path| folder::remove(&path), &dir.join(file))?;
    }
    for folder in FOLDERS {
        remove(fs::remove_dir_all, &dir.join(folder))?;
    }
    sync(dir)?;
    Ok(kept)
}

/// Returns the folder to which unshipped files would be moved.
pub(crate) fn kept_next(dir: &Path) -> Option<PathBuf> {
    (1..=u32::MAX)
        .map(|n| dir.join(format!("kept-{n}")))
        .find(|folder| folder.symlink_metadata().is_err())
}

fn remove(how: impl Fn(PathBuf) -> io::Result<()>, path: &Path) -> Result<(), Error> {
    match how(path.to_path_buf()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("cannot remove", path)
        }
        _ => Ok(()),
    }
}

fn sync(folder: &Path) -> Result<(), Error> {
    super::sync_folder(folder).context("cannot sync", folder)
}
