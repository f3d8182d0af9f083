//! Giving up what walferry keeps beside a database, without losing a commit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::folder::{self, Folder};
use super::{Context as _, Error, spool};

/// What goes.
const FILES: [&str; 4] = ["state", "pages", "history", "follow"];
/// And with all that is in them.
const FOLDERS: [&str; 2] = ["spool", "copies"];

/// Whether nothing is there that would go.
pub(crate) fn is_given_up(dir: &Path) -> bool {
    let mut all = FILES.into_iter().chain(FOLDERS);
    all.all(|name| dir.join(name).symlink_metadata().is_err())
}

/// Removes page table, state and spool of a database, and what is known of its replica. `unshipped`
/// files of the spool are moved to a folder `kept-<n>` first; which, is the answer. What a crash leaves
/// half done is found by the next start, which then sends a full image, and by the next call of this.
///
/// The caller has the place of whoever ships it.
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
    // Without a state, what is in the spool means nothing and the page table proves nothing.
    for file in FILES {
        remove(|path| folder::remove(&path), &dir.join(file))?;
    }
    for folder in FOLDERS {
        remove(fs::remove_dir_all, &dir.join(folder))?;
    }
    sync(dir)?;
    Ok(kept)
}

/// Where files that were not shipped would be moved to.
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
