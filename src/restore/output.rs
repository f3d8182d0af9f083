//! The output: a temporary file beside it, which takes its name only when all is proven.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::local;

/// What SQLite and walferry keep beside a database. A leftover of another database would be taken
/// for a part of the restored one.
const COMPANIONS: [&str; 4] = ["-wal", "-shm", "-journal", "-walferry"];

/// The database that is being written, under a temporary name. Dropped without
/// [`Output::publish`], it is gone.
pub(super) struct Output {
    path: PathBuf,
    parent: PathBuf,
    temporary: Temporary,
}

impl Output {
    /// Checks that the path is free and creates the temporary file.
    pub(super) fn create(path: &Path) -> Result<Output, Error> {
        let parent = check(path)?;
        for number in 0..1000 {
            let suffix = format!(".tmp-{}-{number}", std::process::id());
            match Temporary::create(&with_suffix(path, &suffix)) {
                Err(Error::Exists { .. }) => {}
                result => return Ok(Output { path: path.into(), parent, temporary: result? }),
            }
        }
        Err(Error::Path {
            path: path.into(),
            why: "too many temporary files of earlier restores are beside it; remove them",
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.temporary.file
    }

    pub(super) fn temporary_path(&self) -> &Path {
        &self.temporary.path
    }

    /// Makes the file durable and gives it its name, unless something has taken the name since.
    pub(super) fn publish(mut self) -> Result<(), Error> {
        self.temporary.sync()?;
        check(&self.path)?;
        rename_new(&self.temporary.path, &self.path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: self.path.clone() },
            _ => failed("naming", &self.path)(source),
        })?;
        self.temporary.keep = true;
        let dir = File::open(&self.parent).and_then(|dir| dir.sync_all());
        dir.map_err(|error| {
            // A name that may be gone after a power loss is no restored database.
            remove(&self.path);
            failed("making durable the directory", &self.parent)(error)
        })
    }
}

/// Checks that nothing is at the path or beside it that belongs to a database there; gives its
/// directory.
pub(super) fn check(path: &Path) -> Result<PathBuf, Error> {
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
        let path = with_suffix(path, suffix);
        match fs::symlink_metadata(&path) {
            // What is left of a lost database, with nothing in it that was not shipped.
            Ok(meta) if *suffix == "-walferry" && meta.is_dir() && local::is_spent(&path) => {}
            Ok(_) => return Err(Error::Exists { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking at", &path)(error)),
        }
    }
    Ok(parent)
}

/// A new file that is removed again unless it is kept.
pub(super) struct Temporary {
    pub(super) file: File,
    path: PathBuf,
    keep: bool,
}

impl Temporary {
    /// Creates a file that must not exist, with the permissions that SQLite gives a database.
    pub(super) fn create(path: &Path) -> Result<Temporary, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o644);
        match options.open(path) {
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
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
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

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Output { path, doing, source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_appears_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let output = Output::create(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(matches!(output.publish(), Err(Error::Exists { .. })));
        // Nor in the moment after the last look.
        let temporary = Temporary::create(&dir.path().join("temporary")).unwrap();
        let error = rename_new(temporary.path(), &path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        drop(temporary);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_leftover_temporary_file_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let left = Output::create(&path).unwrap();
        let output = Output::create(&path).unwrap();
        output.publish().unwrap();
        assert!(path.exists() && left.temporary_path().exists());
    }
}
