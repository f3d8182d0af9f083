//! The folder of local state as an open descriptor: every file in it is opened and made here.
//!
//! Files and folders get the mode and the owner of the database, whatever the umask is, as SQLite does
//! with `-wal` and `-shm`: rows of the database are in them. A new one is made for its owner alone, gets
//! its owner, and its mode last. `lock` is for those who may write the database: whoever may open it can
//! hold it, and stop replication.
//!
//! A privileged process works in a folder that another user can write to. So nothing in it is followed
//! or waited for, what is not a file of an expected owner is refused ([`Odd`]), and no file that was
//! there before is given to another user, or made readable for more of them unless that user owns it.
//!
//! The folder itself may be reached by a symbolic link: some keep it on another disk.

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

/// Last part of the name of a folder of local state.
const STATE: &str = "-walferry";
/// Last part of the name of a restore's folder.
const RESTORING: &str = "-restoring";
/// Name of the file that is locked.
pub(super) const LOCK: &str = "lock";
/// Name of the pipe.
pub(super) const BELL: &str = "bell";
/// How often an entry may come or go between two calls.
const ATTEMPTS: usize = 100;
/// Folders below the state folder: `replicas/<name>/spool` and the like.
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
    /// Returns mode and owner of a file that is there.
    pub fn of(path: &Path) -> io::Result<Like> {
        Ok(Like::from(&fs::stat(path)?))
    }

    /// Returns mode and owner of a file that only this process's user may read.
    pub fn private() -> Like {
        let (uid, gid) = (geteuid().as_raw(), rustix::process::getegid().as_raw());
        Like { mode: 0o600, uid, gid }
    }

    fn from(stat: &Stat) -> Like {
        Like { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid }
    }

    /// Turns the database's mode into that of a file of local state, which its owner can always use.
    fn of_file(self) -> Like {
        Like { mode: self.mode & 0o666 | 0o600, ..self }
    }

    /// Turns the database's mode into that of a folder, which all may search who may read the database.
    fn of_folder(self) -> Like {
        let mode = self.of_file().mode;
        Like { mode: mode | (mode & 0o444) >> 2, ..self }
    }

    /// Turns the database's mode into that of a file for the database's writers only.
    fn of_lock(self) -> Like {
        let writers = self.of_file().mode & 0o222;
        Like { mode: writers | writers << 1, ..self }
    }

    /// True if others than the owner may write.
    fn is_shared(self) -> bool {
        self.mode & 0o022 != 0
    }

    /// Gives a file that this process has just made owner and mode. A file system without owners, or a
    /// user who may not give files away, leaves them as they are.
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
        // Another group than the database's gets no more than everybody.
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

/// Reason for which an entry of the folder is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Odd {
    /// A symbolic link.
    Link,
    /// Neither a file nor, where one is expected, a folder or a pipe.
    Kind {
        /// Kind that is expected.
        expected: &'static str,
    },
    /// Owned by a user who has no right to it.
    Owner {
        /// Number of the user.
        uid: u32,
        /// Owner of the database.
        expected: u32,
    },
    /// A file that has another name too.
    Names,
    /// A file or folder that this process's user may not use.
    Denied {
        /// Its owner.
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

/// True if an entry was refused for what it is.
pub(crate) fn is_odd(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Odd>()).is_some()
}

/// A folder of local state, or one below it.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    /// Mode and owner of the database.
    like: Like,
    /// True if only this process's user can have brought entries here.
    private: bool,
}

/// The folder from which on nothing is followed, and the names that lead from there to `path`.
fn root_of(path: &Path) -> (&Path, Vec<&OsStr>) {
    let root = path.ancestors().find(|path| is_ours(path)).unwrap_or(path);
    let below = path.strip_prefix(root).map(|rest| rest.iter().collect());
    (root, below.unwrap_or_default())
}

/// True for the name of a state folder, or of a restore's.
fn is_ours(path: &Path) -> bool {
    let name = path.file_name().map_or(&[][..], OsStr::as_bytes);
    name.ends_with(STATE.as_bytes()) || name.ends_with(RESTORING.as_bytes())
}

/// The database that a folder of local state belongs to.
fn database_of(root: &Path) -> Option<PathBuf> {
    let name = root.file_name()?.as_encoded_bytes().strip_suffix(STATE.as_bytes())?;
    (!name.is_empty()).then(|| root.with_file_name(OsStr::from_bytes(name)))
}

/// Makes a folder that its owner can use and nobody else, whatever the umask is.
pub(crate) fn make_private(at: impl AsFd, name: impl AsRef<Path>) -> io::Result<()> {
    let (at, name) = (at.as_fd(), name.as_ref());
    fs::mkdirat(at, name, Mode::RWXU)?;
    // Root needs no permission.
    if geteuid().is_root() {
        return Ok(());
    }
    // Whoever shares the folder may have removed it again already: that is the caller's to find out.
    let Ok(is) = fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
    let masked = is.st_mode & Mode::RWXU.as_raw_mode() != Mode::RWXU.as_raw_mode();
    if masked && kind(&is) == FileType::Directory {
        // It follows links, and reaches no file but this user's own.
        let _ = fs::chmodat(at, name, Mode::RWXU, AtFlags::empty());
    }
    Ok(())
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// Flags with which a file is opened.
fn file_flags() -> OFlags {
    OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The folder that a folder is in.
fn above(root: &Path) -> &Path {
    let above = root.parent().filter(|above| !above.as_os_str().is_empty());
    above.unwrap_or(Path::new("."))
}

/// True if nobody but root can rename what root has in a folder.
fn is_private(folder: &Path) -> bool {
    fs::stat(folder).is_ok_and(|stat| {
        let sticky = stat.st_mode & 0o1000 != 0;
        stat.st_uid == 0 && (sticky || !Like::from(&stat).is_shared())
    })
}

/// Opens the folder of a file.
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

/// Opens a file of local state for reading and writing, which is made if need be.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    folder.open_or_create(name)
}

/// Opens a file of local state that must be there, for reading and writing.
pub(crate) fn open_existing(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    folder.open_file(name, OFlags::RDWR)
}

/// Makes a file of local state anew, in place of one that is there.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    folder.create(name)
}

/// Gives a file of local state another name, in place of one that has it.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let ((old, from), (new, to)) = (parent(from)?, parent(to)?);
    Ok(fs::renameat(&old.fd, from, &new.fd, to)?)
}

/// Removes a file of local state.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let (folder, name) = parent(path)?;
    Ok(fs::unlinkat(&folder.fd, name, AtFlags::empty())?)
}

/// Makes the names in a folder durable, as far as the file system can.
pub(crate) fn sync(path: &Path) -> rustix::io::Result<()> {
    fs::fsync(fs::open(path, folder_flags(), Mode::empty())?)
}

/// Makes a file of local state that has no name any more.
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
    /// Makes one. None where the file system has no such files, or it cannot be made.
    pub fn create(path: &Path) -> Option<Nameless<'_>> {
        let (folder, name) = parent(path).ok()?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = fs::openat(&folder.fd, ".", flags, Mode::RUSR | Mode::WUSR).ok()?;
        folder.like_of(name).give(&file).ok()?;
        Some(Nameless { folder, file: file.into(), name })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, in place of a file that has it. An error where the process cannot see its own
    /// descriptors in `/proc`.
    pub fn give_name(&self) -> io::Result<()> {
        self.folder.remove(self.name)?;
        let from = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(fs::linkat(fs::CWD, from, &self.folder.fd, self.name, follow)?)
    }
}

/// Makes a file of local state that must not be there.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    let (folder, name) = parent(path)?;
    folder.create_new(name)
}

/// True if a folder is there, by no link.
pub(crate) fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

impl Folder {
    /// Opens a folder that is there.
    pub fn open(path: &Path) -> io::Result<Folder> {
        let (root, below) = root_of(path);
        below.into_iter().try_fold(Folder::open_root(root)?, |folder, name| folder.sub(name))
    }

    /// Opens a folder of local state, and makes what is missing of it. All that is in the state folder
    /// gets the mode that it should have.
    pub fn make(path: &Path) -> Result<Folder, Error> {
        let (root, below) = root_of(path);
        let folder = Folder::make_root(root).context("cannot create", root)?;
        below.into_iter().try_fold(folder, |folder, name| {
            let path = folder.path.join(name);
            folder.make_sub(name).context("cannot create", &path)
        })
    }

    fn open_root(root: &Path) -> io::Result<Folder> {
        // The folder that is meant by a relative path of one part, and by none.
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
            // Lost, or not made yet: its folder is the owner's of the folder that they are in.
            Some(Err(_)) => {
                let own = Like::from(&own).of_file();
                let known = own.uid == fs::stat(above(root))?.st_uid;
                Like { uid: if known { own.uid } else { geteuid().as_raw() }, ..own }
            }
            None => Like::private(),
        };
        let private = !geteuid().is_root() || like.uid == 0 && is_private(above(root));
        let folder = Folder { fd, path: root.to_path_buf(), like, private };
        // A folder of another name is the caller's business.
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

    /// Gives a new folder owner and mode, and one that was there the mode alone.
    fn adopt(&self, made: bool) -> io::Result<()> {
        let like = self.like.of_folder();
        let stat = fs::fstat(&self.fd)?;
        let ours = stat.st_uid == geteuid().as_raw();
        // One that is empty holds nothing that somebody else could be given with it: another one may
        // have taken the new folder's name.
        if ours && (made || stat.st_uid != like.uid) && self.is_empty()? {
            return like.give(&self.fd);
        }
        self.set_own_mode(&stat);
        Ok(())
    }

    /// Sets the mode of a folder that was there before; root makes those of others no wider.
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

    /// The folder of this name in it.
    pub fn sub(&self, name: impl AsRef<OsStr>) -> io::Result<Folder> {
        let name = name.as_ref();
        let flags = folder_flags() | OFlags::NOFOLLOW;
        let fd = fs::openat(&self.fd, name, flags, Mode::empty())
            .map_err(|errno| self.named(name, errno, "folder"))?;
        self.judge_owner(&fs::fstat(&fd)?)?;
        Ok(Folder { fd, path: self.path.join(name), like: self.like, private: self.private })
    }

    /// The folder of this name in it, made if need be.
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

    /// Opens a file for reading and writing, which is made if need be.
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

    /// Makes a file anew, in place of one that is there.
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

    /// Takes a file's name away, if it has it still.
    fn remove(&self, name: &OsStr) -> io::Result<()> {
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.named(name, errno, "file")),
        }
    }

    /// Makes a file that must not be there.
    pub fn create_new(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let name = name.as_ref();
        let flags = file_flags() | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?;
        self.like_of(name).give(&file)?;
        Ok(file.into())
    }

    /// Opens a pipe, which is made if need be, for reading and writing.
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

    /// Opens a pipe that is there, for reading and writing.
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

    /// Gives a folder that this process has made in one of its own, with the files in it, to the owner
    /// of another database.
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

    /// Turns the kernel's reason for not opening an entry into one that says what to do.
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

    /// Refuses what a user owns who has no right to it. Whoever may write the database may write its local
    /// state.
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

    /// Sets the mode of an entry that was there before. Root changes only files of the folder's owner,
    /// who could do so too: another file may have been brought here by a link. A file of root's is made
    /// readable for nobody.
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

    /// Sets the modes of all that is in the folder, as far as they are this process's to set: an earlier
    /// version left files that everybody can read.
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
