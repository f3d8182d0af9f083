//! The output, and the folder beside it in which it is made.
//!
//! A restore to `app.db` works in `app.db-restoring`:
//!
//! | entry | what it is |
//! |---|---|
//! | `lock` | held by the one restore that is at work |
//! | `database` | the database, which is renamed to its place when it is proven |
//! | `record` | what of it is written ([`super::record`]) |
//! | `copy` | instead of `database`: the older copy that is brought forward |
//! | `pages` | scratch: its page table, where none is kept |
//! | `wal` | scratch: a WAL of Litestream 0.3 that is put together |
//! | `state` | what will be `app.db-walferry` |
//!
//! It is removed at the end. Where a restore is broken off it stays, and the next one to the same
//! output takes it over, under the lock.

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

/// What SQLite and walferry keep beside a database. A leftover of another database would be taken
/// for a part of the restored one.
const COMPANIONS: [&str; 4] = ["-wal", "-shm", "-journal", "-walferry"];

/// Entries with which no other restore goes on.
const SCRATCH: [&str; 3] = ["copy", "pages", "wal"];

/// How often another restore may remove the folder while we are about to take it.
const ATTEMPTS: usize = 100;

/// Whether something may be at the output's path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Nothing.
    Free,
    /// An older copy, which is replaced.
    Copy,
    /// Anything that may be replaced ([`super::former`]); `unshipped`: also what no replica has.
    #[cfg(feature = "cli")]
    Any {
        /// See there.
        unshipped: bool,
    },
}

/// The folder of a restore, with its lock. Dropped without [`Workplace::leave`], it is removed.
pub(super) struct Workplace {
    path: PathBuf,
    parent: PathBuf,
    dir: PathBuf,
    lock: Option<Lock>,
    /// Mode that the database is to have, if it is set.
    mode: Option<u32>,
    /// Mode of a new one, if that is not set.
    new_mode: u32,
    #[cfg(feature = "cli")]
    former: Option<Former>,
    stays: bool,
}

impl Workplace {
    /// Checks that the path is free, and takes the folder, whoever left it.
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
                // Whoever had it is done, and has just removed it.
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
            // Whoever had it may have finished between the first look and the lock.
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

    /// Sets the mode that the database gets with its name. Else it is that of the file which it replaces, or
    /// what a new one gets.
    pub(super) fn with_mode(mut self, options: &Options) -> Workplace {
        self.mode = options.mode;
        self.new_mode = options.new_mode;
        self
    }

    /// Mode and owner that the database is to have.
    fn like(&self) -> io::Result<Like> {
        let there = match fs::symlink_metadata(&self.path) {
            Ok(meta) if meta.is_file() => Like::of(&self.path)?,
            _ => Like { mode: self.new_mode, ..Like::private() },
        };
        Ok(Like { mode: self.mode.unwrap_or(there.mode), ..there })
    }

    /// Removes everything with which no other attempt goes on.
    pub(super) fn clear(&self) -> Result<(), Error> {
        self.remove_state();
        SCRATCH.iter().try_for_each(|name| self.remove(name))
    }

    /// Path of an entry.
    pub(super) fn entry(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Opens an entry that may be there, for this process's user alone.
    pub(super) fn open(&self, name: &str) -> Result<File, Error> {
        let path = self.entry(name);
        folder::open(&path).map_err(failed("opening", &path))
    }

    /// Removes an entry, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.entry(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("removing", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes the folder `state` anew.
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

    /// Lets the folder stay when this is dropped, for the next restore.
    pub(super) fn leave(&mut self) {
        self.stays = true;
    }

    /// Makes an entry durable and gives it the output's name. Unless a copy is replaced, nothing else
    /// may have taken that name since.
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
        // Held until the name is the new file's.
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
            // A name that may be gone after a power loss is no restored database.
            if place == Place::Free {
                remove(&self.path);
            }
            failed("making durable the directory", &self.parent)(error)
        })?;
        #[cfg(feature = "cli")]
        if let Some(former) = &self.former
            && let Err(error) = former.forget()
        {
            // It does not fit the new file, and whoever reads it finds that out.
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
            // The lock's file last, and its name before the lock itself: who opens it now finds that it
            // is not in its place any more.
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

/// Checks that nothing is at the path or beside it that belongs to a database there; gives its
/// directory. Beside a copy that is replaced its state may be, and an empty WAL.
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
                // What is in them is not in the database yet.
                "-wal" | "-journal" if !meta.is_file() || meta.len() > 0 => {
                    return Err(Error::Exists { path });
                }
                _ => {}
            },
            // What is left of a lost database, with nothing in it that was not shipped.
            Ok(meta) if *suffix == "-walferry" && meta.is_dir() && local::is_spent(&path) => {}
            Ok(_) => return Err(Error::Exists { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking at", &path)(error)),
        }
    }
    Ok(parent)
}

/// What `--force` does not replace.
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

/// A new file that is removed again unless it is kept.
pub(super) struct Temporary {
    pub(super) file: File,
    path: PathBuf,
    keep: bool,
}

impl Temporary {
    /// Creates a file that must not exist.
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

    /// Lets the file stay.
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

/// Renames without ever replacing what is there.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // A file system or kernel without the flag.
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
        // Nor in the moment after the last look.
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
        // What it leaves is the next one's.
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
                                // Whoever has it is alone with it.
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
