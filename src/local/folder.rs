//! The state folder as an open descriptor. This module opens and makes every file of the folder.
//!
//! Files and folders get the mode and the owner of the database, whatever the umask is, because they hold
//! rows of the database. SQLite does the same with `-wal` and `-shm`. A new file is accessible to its maker
//! alone, then gets its owner, and its mode last. Only users who may write the database may open `lock`: a
//! user who may open this file can lock it, and so stop replication.
//!
//! A privileged process works in a folder that another user can write to. For this reason:
//! - No link in the folder is followed, and no call waits for a pipe.
//! - An entry of another kind than expected, or of an unexpected owner, is refused ([`Odd`]).
//! - No file that existed before is given to another user. Such a file gets a wider mode only where its owner
//!   could do the same (`Folder::set_mode`).
//!
//! A symbolic link may lead to the folder itself: some users keep the folder on another disk.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::{Context, Error};

/// End of the name of a state folder.
const STATE: &str = "-walferry";
/// End of the name of the folder in which a restore works.
const RESTORING: &str = "-restoring";
/// Name of the file that the shipper locks.
pub(super) const LOCK: &str = "lock";
/// Name of the pipe that wakes the shipper.
pub(super) const BELL: &str = "bell";
/// Attempts at an entry that other processes make or remove between two calls.
const ATTEMPTS: usize = 100;
/// Most levels of folders below the state folder, as in `replicas/<name>/spool`.
const DEPTH_MAX: usize = 4;

/// Mode and owner of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Like {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Like {
    /// Returns mode and owner of an existing file.
    pub fn of(path: &Path) -> io::Result<Like> {
        Ok(Like::from(&fs::stat(path)?))
    }

    /// Returns the mode and owner of a file that only this process's user may read.
    pub fn private() -> Like {
        let (uid, gid) = (geteuid().as_raw(), rustix::process::getegid().as_raw());
        Like { mode: 0o600, uid, gid }
    }

    fn from(stat: &Stat) -> Like {
        Like { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid }
    }

    /// Turns the database's mode into the mode of a file of local state. Its owner can always use the file.
    fn of_file(self) -> Like {
        Like { mode: self.mode & 0o666 | 0o600, ..self }
    }

    /// Turns the database's mode into the mode of a folder. Users who may read the database may search the
    /// folder.
    fn of_folder(self) -> Like {
        let mode = self.of_file().mode;
        Like { mode: mode | (mode & 0o444) >> 2, ..self }
    }

    /// Turns the database's mode into the mode of a file for the database's writers only.
    fn of_lock(self) -> Like {
        let writers = self.of_file().mode & 0o222;
        Like { mode: writers | writers << 1, ..self }
    }

    /// True if the group or all users may write.
    fn is_shared(self) -> bool {
        self.mode & 0o022 != 0
    }

    /// Sets owner and mode of a file that this process has just made. Ignores a refusal: a file system may
    /// have no owners, and a user may not be allowed to give files away.
    pub fn give(self, file: impl AsFd) -> io::Result<()> {
        let file = file.as_fd();
        let is = fs::fstat(file)?;
        if (is.st_uid, is.st_gid) != (self.uid, self.gid) {
            let root = geteuid().is_root();
            let uid = (root && is.st_uid != self.uid).then(|| fs::Uid::from_raw(self.uid));
            let gid = (is.st_gid != self.gid).then(|| fs::Gid::from_raw(self.gid));
            let _ = fs::fchown(file, uid, gid);
        }
        let group = fs::fstat(file)?.st_gid;
        // The members of a group that is not the database's get only the permissions of all users.
        let others = self.mode & 0o007;
        let mode = if group == self.gid {
            self.mode
        } else {
            self.mode & !0o070 | self.mode & others << 3
        };
        if is.st_mode & 0o7777 != mode {
            let _ = fs::fchmod(file, Mode::from_raw_mode(mode));
        }
        Ok(())
    }
}

/// Why an entry of the folder is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Odd {
    /// A symbolic link.
    Link,
    /// Not of the expected kind.
    Kind {
        /// The expected kind: file, folder or pipe.
        expected: &'static str,
    },
    /// Owned by a user who has no right to it.
    Owner {
        /// The owner of the entry.
        uid: u32,
        /// The owner of the database.
        expected: u32,
    },
    /// A file with another hard link.
    Names,
    /// A file or folder that this process's user may not use.
    Denied {
        /// The owner of the file or folder.
        uid: u32,
    },
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Odd::Link => f.write_str(
                "this is a symbolic link, which walferry does not follow in its own folder; remove it",
            ),
            Odd::Kind { expected } => {
                write!(f, "this is not a {expected}; move it out of the way")
            }
            Odd::Owner { uid, expected } => write!(
                f,
                "user {uid} owns this, and neither the database's owner (user {expected}) nor this \
                 process's user (user {}) nor root does; remove it, or give it to user {expected} with \
                 chown if it is yours",
                geteuid().as_raw()
            ),
            Odd::Names => f.write_str(
                "this file has another name too (a hard link), and what is written here would change \
                 that one; remove it",
            ),
            Odd::Denied { uid } => write!(
                f,
                "permission denied: user {uid} owns this, and this process is user {}'s; give the \
                 folder and all in it to the database's owner (chown -R)",
                geteuid().as_raw()
            ),
        }
    }
}

impl std::error::Error for Odd {}

impl From<Odd> for io::Error {
    fn from(odd: Odd) -> io::Error {
        io::Error::other(odd)
    }
}

fn denied(found: rustix::io::Result<Stat>) -> io::Error {
    match found {
        Ok(stat) => {
            io::Error::new(io::ErrorKind::PermissionDenied, Odd::Denied { uid: stat.st_uid })
        }
        Err(_) => Errno::ACCESS.into(),
    }
}

/// True if the error is an [`Odd`].
pub(crate) fn is_odd(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Odd>()).is_some()
}

/// A state folder, or a folder below it.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    /// Mode and owner of the database.
    like: Like,
    /// True if only this process's user can have brought entries here. Always true in a process that is not
    /// root, which can change no files of other users.
    private: bool,
}

/// Returns the folder below which no link is followed, and the names that lead from there to `path`.
fn root_of(path: &Path) -> (&Path, Vec<&OsStr>) {
    let root = path.ancestors().find(|path| is_ours(path)).unwrap_or(path);
    let below = path.strip_prefix(root).map(|rest| rest.iter().collect());
    (root, below.unwrap_or_default())
}

/// True if the path has the name of a state folder or of a restore's folder.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().map_or(&[][..], OsStr::as_bytes);
    name.ends_with(STATE.as_bytes()) || name.ends_with(RESTORING.as_bytes())
}

/// Returns the path of the database that a state folder belongs to.
fn database_of(root: &Path) -> Option<PathBuf> {
    let name = root.file_name()?.as_encoded_bytes().strip_suffix(STATE.as_bytes())?;
    (!name.is_empty()).then(|| root.with_file_name(OsStr::from_bytes(name)))
}

/// Makes a folder that only its owner can use, whatever the umask is.
pub(crate) fn make_private(at: impl AsFd, name: impl AsRef<Path>) -> io::Result<()> {
    let (at, name) = (at.as_fd(), name.as_ref());
    fs::mkdirat(at, name, Mode::RWXU)?;
    // Root needs no permission bits.
    if geteuid().is_root() {
        return Ok(());
    }
    // Another user of the parent folder may have removed the new one already. The caller finds out.
    let Ok(is) = fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
    let masked = is.st_mode & Mode::RWXU.as_raw_mode() != Mode::RWXU.as_raw_mode();
    if masked && kind(&is) == FileType::Directory {
        // This call follows links, but can change only files of this process's user, who is not root.
        let _ = fs::chmodat(at, name, Mode::RWXU, AtFlags::empty());
    }
    Ok(())
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// Flags for opening a file.
fn file_flags() -> OFlags {
    OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Returns the folder that contains a folder.
fn above(root: &Path) -> &Path {
    let above = root.parent().filter(|above| !above.as_os_str().is_empty());
    above.unwrap_or(Path::new("."))
}

/// True if only root can rename root's entries in a folder.
fn is_private(folder: &Path) -> bool {
    fs::stat(folder).is_ok_and(|stat| {
        let sticky = stat.st_mode & 0o1000 != 0;
        stat.st_uid == 0 && (sticky || !Like::from(&stat).is_shared())
    })
}

/// Opens the folder of a file, and returns the folder and the file's name.
fn parent(path: &Path) -> io::Result<(Folder, &OsStr)> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let (folder, name) = (path.parent().ok_or_else(invalid)?, path.file_name());
    Ok((Folder::open(folder)?, name.ok_or_else(invalid)?))
}

/// Opens a file of local state for reading.
pub(crate) fn read(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    folder.read(name)
}

/// Opens a file of local state for reading and writing; makes the file if it is missing.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    folder.open_or_create(name)
}

/// Opens an existing file of local state for reading and writing.
pub(crate) fn open_existing(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    folder.open_file(name, OFlags::RDWR)
}

/// Makes a new file of local state, in place of an existing one.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    folder.create(name)
}

/// Renames a file of local state, in place of an existing file of the new name.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let ((old, from), (new, to)) = (parent(from)?, parent(to)?);
    Ok(fs::renameat(&old.fd, from, &new.fd, to)?)
}

/// Removes a file of local state.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let (folder, name) = parent(path)?;
    Ok(fs::unlinkat(&folder.fd, name, AtFlags::empty())?)
}

/// Makes the names in a folder durable. An error if the file system cannot.
pub(crate) fn sync(path: &Path) -> rustix::io::Result<()> {
    fs::fsync(fs::open(path, folder_flags(), Mode::empty())?)
}

/// Makes a file of local state, and removes its name.
pub(crate) fn create_unnamed(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    let file = folder.create(name)?;
    folder.remove(name)?;
    Ok(file)
}

/// A file of local state that has no name yet.
pub(crate) struct Nameless<'a> {
    folder: Folder,
    file: File,
    name: &'a OsStr,
}

impl Nameless<'_> {
    /// Makes a file without a name. `None` if the file system has no such files, or on an error.
    pub fn create(path: &Path) -> Option<Nameless<'_>> {
        let (folder, name) = parent(path).ok()?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = fs::openat(&folder.fd, ".", flags, Mode::RUSR | Mode::WUSR).ok()?;
        folder.like_of(name).give(&file).ok()?;
        Some(Nameless { folder, file: file.into(), name })
    }

    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, in place of an existing file. An error if the process cannot see its own
    /// descriptors in `/proc`.
    pub fn give_name(&self) -> io::Result<()> {
        self.folder.remove(self.name)?;
        let from = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(fs::linkat(fs::CWD, from, &self.folder.fd, self.name, follow)?)
    }
}

/// Makes a file of local state. An error if the name exists.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    folder.create_new(name)
}

/// True if the path is a folder, and no link to one.
pub(crate) fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

impl Folder {
    /// Opens an existing folder.
    pub fn open(path: &Path) -> io::Result<Folder> {
        let (root, below) = root_of(path);
        below.into_iter().try_fold(Folder::open_root(root)?, |folder, name| folder.sub(name))
    }

    /// Opens a folder of local state, and makes its missing folders. Corrects the modes of all entries of the
    /// state folder.
    pub fn make(path: &Path) -> Result<Folder, Error> {
        let (root, below) = root_of(path);
        let folder = Folder::make_root(root).context("cannot create", root)?;
        below.into_iter().try_fold(folder, |folder, name| {
            let path = folder.path.join(name);
            folder.make_sub(name).context("cannot create", &path)
        })
    }

    fn open_root(root: &Path) -> io::Result<Folder> {
        // The parent of a relative path of one part is the empty path.
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        let fd = fs::open(root, folder_flags(), Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR => Odd::Kind { expected: "folder" }.into(),
            Errno::ACCESS => denied(fs::stat(root)),
            errno => io::Error::from(errno),
        })?;
        let own = fs::fstat(&fd)?;
        let database = database_of(root);
        let like = match database.as_deref().map(Like::of) {
            Some(Ok(like)) => like.of_file(),
            // The database is lost, or not made yet. The folder's owner is trusted if that user also owns the
            // folder around it.
            Some(Err(_)) => {
                let own = Like::from(&own).of_file();
                let known = own.uid == fs::stat(above(root))?.st_uid;
                Like { uid: if known { own.uid } else { geteuid().as_raw() }, ..own }
            }
            None => Like::private(),
        };
        let private = !geteuid().is_root() || like.uid == 0 && is_private(above(root));
        let folder = Folder { fd, path: root.to_path_buf(), like, private };
        // The owner of a folder of another name is the caller's business.
        if is_ours(root) {
            folder.judge_owner(&own)?;
            let link = fs::lstat(root)?;
            if kind(&link) == FileType::Symlink {
                folder.judge_owner(&link)?;
            }
        }
        Ok(folder)
    }

    fn make_root(root: &Path) -> io::Result<Folder> {
        let made = match make_private(fs::CWD, root) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        let folder = Folder::open_root(root)?;
        folder.adopt(made)?;
        folder.adapt(0);
        if database_of(root).is_some() {
            folder.ignore();
        }
        Ok(folder)
    }

    /// Sets owner and mode of an empty folder that this process made, or that has this process's user as its
    /// owner and not the database's. Any other folder gets the mode alone.
    fn adopt(&self, made: bool) -> io::Result<()> {
        let like = self.like.of_folder();
        let stat = fs::fstat(&self.fd)?;
        let ours = stat.st_uid == geteuid().as_raw();
        // Another folder may have taken the new folder's name by now. An empty one has no content to give
        // away.
        if ours && (made || stat.st_uid != like.uid) && self.is_empty()? {
            return like.give(&self.fd);
        }
        self.set_own_mode(&stat);
        Ok(())
    }

    /// Sets the mode of an existing folder. Adds permissions only if the owner is the database's (and not
    /// root), or is this process's user and the folder is `private`.
    fn set_own_mode(&self, stat: &Stat) {
        let (is, wanted) = (stat.st_mode & 0o7777, self.like.of_folder().mode);
        let own = stat.st_uid == geteuid().as_raw() && self.private;
        let wanted = if own || stat.st_uid == self.like.uid && stat.st_uid != 0 {
            wanted | is & 0o7000
        } else {
            is & (wanted | 0o7700)
        };
        if is != wanted {
            let _ = fs::fchmod(&self.fd, Mode::from_raw_mode(wanted));
        }
    }

    fn is_empty(&self) -> io::Result<bool> {
        let entries = fs::Dir::read_from(&self.fd)?;
        for entry in entries {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens the folder of this name.
    pub fn sub(&self, name: impl AsRef<OsStr>) -> io::Result<Folder> {
        let name = name.as_ref();
        let flags = folder_flags() | OFlags::NOFOLLOW;
        let fd = fs::openat(&self.fd, name, flags, Mode::empty())
            .map_err(|errno| self.named(name, errno, "folder"))?;
        self.judge_owner(&fs::fstat(&fd)?)?;
        Ok(Folder { fd, path: self.path.join(name), like: self.like, private: self.private })
    }

    /// Opens the folder of this name; makes the folder if it is missing.
    pub fn make_sub(&self, name: impl AsRef<OsStr>) -> io::Result<Folder> {
        let name = name.as_ref();
        let made = match make_private(&self.fd, name) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        let folder = self.sub(name)?;
        folder.adopt(made)?;
        Ok(folder)
    }

    /// Opens a file for reading.
    pub fn read(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlags::RDONLY)
    }

    /// Opens a file for reading and writing; makes the file if it is missing.
    pub fn open_or_create(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let name = name.as_ref();
        for _ in 0..ATTEMPTS {
            match self.open_file(name, OFlags::RDWR) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
            match self.create_new(name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made,
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Makes a new file, in place of an existing one.
    pub fn create(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let name = name.as_ref();
        for _ in 0..ATTEMPTS {
            match self.create_new(name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made,
            }
            self.remove(name)?;
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Removes a file's name, if it exists.
    fn remove(&self, name: &OsStr) -> io::Result<()> {
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.named(name, errno, "file")),
        }
    }

    /// Makes a file. An error if the name exists.
    pub fn create_new(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let name = name.as_ref();
        let flags = file_flags() | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?;
        self.like_of(name).give(&file)?;
        Ok(file.into())
    }

    /// Opens a pipe for reading and writing; makes the pipe if it is missing.
    pub fn make_pipe(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let (name, mode) = (name.as_ref(), Mode::RUSR | Mode::WUSR);
        match fs::mknodat(&self.fd, name, FileType::Fifo, mode, 0) {
            Ok(()) => {
                let (file, stat) = self.open_pipe(name)?;
                if stat.st_nlink == 1 && stat.st_uid == geteuid().as_raw() {
                    self.like.give(&file)?;
                }
                Ok(file)
            }
            Err(Errno::EXIST) => self.pipe(name),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens an existing pipe for reading and writing.
    pub fn pipe(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let (file, stat) = self.open_pipe(name.as_ref())?;
        self.set_mode(&file, &stat, self.like.mode);
        Ok(file)
    }

    fn open_pipe(&self, name: &OsStr) -> io::Result<(File, Stat)> {
        let (file, stat) = self.open_any(name, OFlags::RDWR, "pipe")?;
        if kind(&stat) != FileType::Fifo {
            return Err(Odd::Kind { expected: "pipe" }.into());
        }
        Ok((file, stat))
    }

    /// Gives a folder that this process has made in a folder of its own, and the files in it, to the owner of
    /// another database.
    pub fn hand_over(&self, like: Like) -> io::Result<()> {
        for entry in fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if entry.file_type() != FileType::Directory {
                let file = self.read(name)?;
                Folder::like_in(like, name).give(&file)?;
            }
        }
        like.of_folder().give(&self.fd)
    }

    fn open_file(&self, name: &OsStr, access: OFlags) -> io::Result<File> {
        let (file, stat) = self.open_any(name, access, "file")?;
        if kind(&stat) != FileType::RegularFile {
            return Err(Odd::Kind { expected: "file" }.into());
        }
        if access != OFlags::RDONLY && stat.st_nlink > 1 {
            return Err(Odd::Names.into());
        }
        self.set_mode(&file, &stat, self.like_of(name).mode);
        Ok(file)
    }

    fn open_any(
        &self,
        name: &OsStr,
        access: OFlags,
        expected: &'static str,
    ) -> io::Result<(File, Stat)> {
        let fd = fs::openat(&self.fd, name, file_flags() | access, Mode::empty())
            .map_err(|errno| self.named(name, errno, expected))?;
        let stat = fs::fstat(&fd)?;
        self.judge_owner(&stat)?;
        Ok((fd.into(), stat))
    }

    /// Turns the kernel's error for an entry into an error that says how to go on.
    fn named(&self, name: &OsStr, errno: Errno, expected: &'static str) -> io::Error {
        let found = || fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        match errno {
            Errno::LOOP => Odd::Link.into(),
            Errno::NOTDIR if found().is_ok_and(|stat| kind(&stat) == FileType::Symlink) => {
                Odd::Link.into()
            }
            Errno::NOTDIR | Errno::ISDIR | Errno::NXIO | Errno::NODEV => {
                Odd::Kind { expected }.into()
            }
            Errno::ACCESS => denied(found()),
            errno => errno.into(),
        }
    }

    /// Refuses an entry whose owner has no right to it. The database's owner, this process's user and root
    /// have the right. Any user has it if all users may write the database, or if the database's group may
    /// and the entry has that group.
    fn judge_owner(&self, stat: &Stat) -> io::Result<()> {
        let expected = [self.like.uid, geteuid().as_raw(), 0];
        let shared = self.like.mode & 0o002 != 0
            || self.like.mode & 0o020 != 0 && stat.st_gid == self.like.gid;
        if expected.contains(&stat.st_uid) || shared {
            return Ok(());
        }
        Err(Odd::Owner { uid: stat.st_uid, expected: self.like.uid }.into())
    }

    fn like_of(&self, name: &OsStr) -> Like {
        Folder::like_in(self.like, name)
    }

    fn like_in(like: Like, name: &OsStr) -> Like {
        if name == LOCK { like.of_lock() } else { like.of_file() }
    }

    /// Sets the mode of an existing entry. Root changes an entry only if the owner could do so too: a user
    /// who owns the database and is not root, or who owns this folder and alone can write to it. Otherwise a
    /// link may have brought another file here. A file of root gets no new permissions, unless the folder is
    /// `private`.
    fn set_mode(&self, file: impl AsFd, stat: &Stat, wanted: u32) {
        let (is, own) = (stat.st_mode & 0o7777, geteuid());
        let wanted = if stat.st_uid == 0 && !self.private { is & (wanted | 0o700) } else { wanted };
        let may = stat.st_uid == own.as_raw() || own.is_root();
        let safe = !own.is_root()
            || fs::fstat(&self.fd).is_ok_and(|folder| {
                folder.st_uid == stat.st_uid && !Like::from(&folder).is_shared()
            });
        if is != wanted && may && (safe || stat.st_uid == self.like.uid && stat.st_uid != 0) {
            let _ = fs::fchmod(file, Mode::from_raw_mode(wanted));
        }
    }

    /// Corrects the modes of all entries of the folder, as far as this process may. An earlier version left
    /// files that all users can read.
    fn adapt(&self, depth: usize) {
        let Ok(entries) = fs::Dir::read_from(&self.fd) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let name = OsStr::from_bytes(name.to_bytes());
            match kind(&stat) {
                FileType::Directory if depth < DEPTH_MAX => {
                    if let Ok(folder) = self.sub(name) {
                        folder.set_own_mode(&stat);
                        folder.adapt(depth + 1);
                    }
                }
                FileType::RegularFile if stat.st_mode & 0o7777 != self.like_of(name).mode => {
                    let _ = self.read(name);
                }
                _ => {}
            }
        }
    }

    /// Keeps the folder out of the repository that its database is in.
    fn ignore(&self) {
        use std::io::Write;
        match self.create_new(".gitignore") {
            Ok(mut file) => {
                let _ = file.write_all(b"*\n");
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => log::debug!("{}: no .gitignore: {error}", self.path.display()),
        }
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
