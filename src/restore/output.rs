//! The output, and the folder beside it in which the restore makes the output.
//!
//! A restore to `app.db` works in `app.db-restoring`:
//!
//! | entry | contents |
//! |---|---|
//! | `lock` | lock of the one restore that is running |
//! | `database` | the database, which is renamed to its place when it is proven |
//! | `record` | record of the stretches that are written to `database` ([`super::record`]) |
//! | `copy` | instead of `database`: the older copy that is brought forward |
//! | `pages` | scratch: the page table of `copy`, if no page table is to be kept |
//! | `wal` | scratch: a WAL of Litestream 0.3 that is put together |
//! | `state` | the future `app.db-walferry` |
//!
//! The restore removes the folder at its end. An interrupted restore leaves the folder. The next restore to the
//! same output takes the folder over, under the lock.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Options;
use super::error::{Error, failed};
#[cfg(feature = "cli")]
use super::former::Former;
use crate::local;
use crate::local::folder::{self, Folder, Like, make_private};
use crate::local::lock::{Attempt, Lock};

/// Suffixes of the files and the folder that SQLite and walferry keep beside a database. A leftover of another
/// database would be taken for a part of the restored database.
const COMPANIONS: [&str; 4] = ["-wal", "-shm", "-journal", "-walferry"];

/// Entries that the next restore cannot use.
const SCRATCH: [&str; 3] = ["copy", "pages", "wal"];

/// Number of times that another restore may remove the folder while we are about to take it.
const ATTEMPTS: usize = 100;

/// Files that are allowed at the output's path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// No file.
    Free,
    /// An older copy, which the restore replaces.
    Copy,
    /// Any database that may be replaced ([`super::former`]).
    #[cfg(feature = "cli")]
    Any {
        /// True if a database with data that no replica has may be replaced, too.
        unshipped: bool,
    },
}

/// The folder of a restore, with its lock. Drop removes the folder, except after [`Workplace::leave`].
pub(super) struct Workplace {
    path: PathBuf,
    parent: PathBuf,
    dir: PathBuf,
    lock: Option<Lock>,
    /// Mode of the database, if the options set one.
    mode: Option<u32>,
    /// Mode of a new database, if the options set none.
    new_mode: u32,
    #[cfg(feature = "cli")]
    former: Option<Former>,
    stays: bool,
}

impl Workplace {
    /// Checks that the path is free, and takes the folder, even if an earlier restore has left it.
    pub(super) fn take(path: &Path, place: Place) -> Result<Workplace, Error> {
        let dir = local::beside(path, "-restoring");
        for _ in 0..ATTEMPTS {
            let parent = check(path, place)?;
            match make_private(rustix::fs::CWD, &dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let meta = fs::symlink_metadata(&dir);
                    if meta.is_ok_and(|meta| !meta.is_dir()) {
                        return Err(Error::Exists { path: dir });
                    }
                }
                Err(error) => return Err(failed("creating the directory", &dir)(error)),
            }
            let lock = match Lock::try_take(&dir) {
                Ok(Attempt::Taken(lock)) => lock,
                Ok(Attempt::HeldBy(pid)) => return Err(Error::Busy { path: path.into(), pid }),
                // The restore that had the folder is done, and has just removed it.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("locking", &dir.join("lock"))(error.source)),
            };
            if !lock.is_in_place(&dir) {
                continue;
            }
            let lock = Some(lock);
            #[allow(unused_mut)]
            let mut taken = Workplace {
                path: path.into(),
                parent,
                dir,
                lock,
                mode: None,
                new_mode: 0o600,
                #[cfg(feature = "cli")]
                former: None,
                stays: false,
            };
            // The restore that had the folder may have finished between the first check and the lock.
            check(path, place)?;
            #[cfg(feature = "cli")]
            if let Place::Any { unshipped } = place {
                taken.former = Some(Former::look(path, unshipped)?);
            }
            taken.clear()?;
            return Ok(taken);
        }
        Err(Error::Busy { path: path.into(), pid: None })
    }

    /// Sets the mode that the database gets with its name. If the options set no mode, the database gets the
    /// mode of the file that it replaces. If it replaces none, it gets `new_mode`.
    pub(super) fn with_mode(mut self, options: &Options) -> Workplace {
        self.mode = options.mode;
        self.new_mode = options.new_mode;
        self
    }

    /// Returns the mode and the owner that the database is to have.
    fn like(&self) -> io::Result<Like> {
        let there = match fs::symlink_metadata(&self.path) {
            Ok(meta) if meta.is_file() => Like::of(&self.path)?,
            _ => Like { mode: self.new_mode, ..Like::private() },
        };
        Ok(Like { mode: self.mode.unwrap_or(there.mode), ..there })
    }

    /// Removes every entry that the next attempt cannot use.
    pub(super) fn clear(&self) -> Result<(), Error> {
        self.remove_state();
        SCRATCH.iter().try_for_each(|name| self.remove(name))
    }

    /// Returns the path of an entry.
    pub(super) fn entry(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Opens an entry, or creates it with access for this process's user alone.
    pub(super) fn open(&self, name: &str) -> Result<File, Error> {
        let path = self.entry(name);
        folder::open(&path).map_err(failed("opening", &path))
    }

    /// Removes an entry, if it exists.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.entry(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("removing", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes an empty folder `state`.
    pub(super) fn make_state(&self) -> io::Result<PathBuf> {
        Folder::open(&self.dir)?.make_sub("state")?;
        Ok(self.entry("state"))
    }

    fn remove_state(&self) {
        let path = self.entry("state");
        if path.symlink_metadata().is_ok()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            log::warn!("removing {} failed: {error}", path.display());
        }
    }

    /// Makes Drop leave the folder for the next restore.
    pub(super) fn leave(&mut self) {
        self.stays = true;
    }

    /// Makes an entry durable and gives it the output's name.
    ///
    /// Without permission to replace a file, it returns an error if the name has been taken since the first
    /// check.
    pub(super) fn publish(&self, name: &str, file: &File, place: Place) -> Result<(), Error> {
        let from = self.entry(name);
        let like = self.like().map_err(failed("looking at", &self.path))?;
        like.give(file).map_err(failed("setting the mode of", &from))?;
        let owner = file.metadata().map_err(failed("looking at", &from))?.uid();
        if owner != like.uid {
            log::warn!(
                "{} belongs to user {owner} from now on, and no longer to user {}: only root may \
                 give files to another user",
                self.path.display(),
                like.uid
            );
        }
        file.sync_all().map_err(failed("making durable", &from))?;
        check(&self.path, place)?;
        // The lock is held until the name belongs to the new file.
        #[cfg(feature = "cli")]
        let _former = self.former.as_ref().map(Former::finish).transpose()?;
        let renamed = match place {
            Place::Free => rename_new(&from, &self.path),
            _ => fs::rename(&from, &self.path),
        };
        renamed.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: self.path.clone() },
            _ => failed("naming", &self.path)(source),
        })?;
        let synced = local::sync_folder(&self.parent);
        synced.map_err(|error| {
            // After a power loss the name may be gone, so the database is not restored.
            if place == Place::Free {
                remove(&self.path);
            }
            failed("making durable the directory", &self.parent)(error)
        })?;
        #[cfg(feature = "cli")]
        if let Some(former) = &self.former
            && let Err(error) = former.forget()
        {
            // The old state does not fit the new file. A process that reads the state finds that out.
            log::warn!("{error}");
        }
        Ok(())
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        self.remove_state();
        let begun: &[&str] = if self.stays { &[] } else { &["database", "record"] };
        for name in SCRATCH.iter().chain(begun) {
            if let Err(error) = self.remove(name) {
                log::warn!("{error}");
            }
        }
        if !self.stays {
            // The lock's file goes last. Its name goes before the lock itself: a process that opens the lock
            // now finds that the file is no longer in its place.
            let lock = self.entry("lock");
            let gone = fs::remove_file(&lock).and_then(|()| fs::remove_dir(&self.dir));
            if let Err(error) = gone
                && self.dir.symlink_metadata().is_ok()
            {
                log::warn!("removing {} failed: {error}", self.dir.display());
            }
        }
        self.lock = None;
    }
}

/// Checks that neither the path nor a companion file belongs to a database that may not be replaced. Returns
/// the directory.
///
/// An older copy that is replaced may have its state beside it, a -shm, and an empty WAL or journal.
pub(super) fn check(path: &Path, place: Place) -> Result<PathBuf, Error> {
    let refuse = |why| Error::Path { path: path.into(), why };
    if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(refuse("this is not the path of a file"));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    match fs::metadata(&parent) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(refuse("its parent is not a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refuse("its directory does not exist"));
        }
        Err(error) => return Err(failed("looking at the directory", &parent)(error)),
    }
    for suffix in [""].iter().chain(&COMPANIONS) {
        let path = local::beside(path, suffix);
        match fs::symlink_metadata(&path) {
            #[cfg(feature = "cli")]
            Ok(meta) if matches!(place, Place::Any { .. }) => match *suffix {
                "-walferry" if meta.is_dir() => {}
                "-walferry" => return Err(not_replaced(path, &meta)),
                _ if !meta.is_file() => return Err(not_replaced(path, &meta)),
                _ => {}
            },
            Ok(meta) if place == Place::Copy => match *suffix {
                "" if !meta.is_file() => return Err(refuse("what is there is not a file")),
                // Their contents are not in the database yet.
                "-wal" | "-journal" if !meta.is_file() || meta.len() > 0 => {
                    return Err(Error::Exists { path });
                }
                _ => {}
            },
            // A lost database has left this folder. Every captured transaction in it was shipped.
            Ok(meta) if *suffix == "-walferry" && meta.is_dir() && local::is_spent(&path) => {}
            Ok(_) => return Err(Error::Exists { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking at", &path)(error)),
        }
    }
    Ok(parent)
}

/// Returns the error for a file that `--force` does not replace.
#[cfg(feature = "cli")]
fn not_replaced(path: PathBuf, meta: &fs::Metadata) -> Error {
    let why = if meta.is_symlink() {
        "this is a link, which is not replaced: name the file that it leads to, or remove the link"
    } else if meta.is_dir() {
        "this is a folder, which is not replaced: name a file in it, or move it out of the way"
    } else {
        "this is no file that walferry or SQLite made, so it is not replaced: move it out of the way"
    };
    Error::Path { path, why }
}

/// A new file. Drop removes the file, except after [`Temporary::keep`].
pub(super) struct Temporary {
    pub(super) file: File,
    path: PathBuf,
    keep: bool,
}

impl Temporary {
    /// Creates a file. Returns an error if the file exists.
    pub(super) fn create(path: &Path) -> Result<Temporary, Error> {
        match folder::create_new(path) {
            Ok(file) => Ok(Temporary { file, path: path.into(), keep: false }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::Exists { path: path.into() })
            }
            Err(error) => Err(failed("creating", path)(error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(failed("making durable", &self.path))
    }

    /// Makes Drop leave the file.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.path);
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        log::warn!("removing {} failed: {error}", path.display());
    }
}

/// Renames a file. Never replaces another.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // The file system or the kernel lacks the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_appears_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let place = Workplace::take(&path, Place::Free).unwrap();
        let file = place.open("database").unwrap();
        fs::write(&path, "mine").unwrap();
        let error = place.publish("database", &file, Place::Free).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }));
        drop(place);
        // Nor does a rename replace a file that appears after the last check.
        let temporary = Temporary::create(&dir.path().join("temporary")).unwrap();
        let error = rename_new(temporary.path(), &path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        drop(temporary);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_restore_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let mut first = Workplace::take(&path, Place::Free).unwrap();
        let error = Workplace::take(&path, Place::Free).err().unwrap();
        let Error::Busy { pid, .. } = error else { panic!("{error}") };
        assert_eq!(pid, Some(std::process::id()));
        // The next restore gets the files that the first has left.
        fs::write(first.entry("database"), "half").unwrap();
        fs::write(first.entry("copy"), "").unwrap();
        first.leave();
        drop(first);
        let second = Workplace::take(&path, Place::Free).unwrap();
        assert_eq!(fs::read(second.entry("database")).unwrap(), b"half");
        assert!(!second.entry("copy").exists());
        drop(second);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_removed_while_it_is_taken_belongs_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        match Workplace::take(&path, Place::Free) {
                            Ok(place) => {
                                // The restore that has the folder is alone with it.
                                let mine = place.entry("database");
                                let new =
                                    fs::OpenOptions::new().write(true).create_new(true).open(&mine);
                                assert!(new.is_ok(), "{new:?}");
                            }
                            Err(error) => assert!(matches!(error, Error::Busy { .. }), "{error}"),
                        }
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, precious) = (dir.path().join("out.db"), dir.path().join("precious"));
        fs::write(&precious, "mine").unwrap();
        fs::create_dir(dir.path().join("out.db-restoring")).unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join("out.db-restoring/database"))
            .unwrap();
        let place = Workplace::take(&path, Place::Free).unwrap();
        assert!(place.open("database").is_err());
        drop(place);
        assert_eq!(fs::read(&precious).unwrap(), b"mine");
    }
}
