//! A replica in a directory of this machine, in Litestream's layout:
//! `<directory>/ltx/<level, decimal>/<name>`.
//!
//! A file is written under a temporary name in its folder, synced, and then linked to its final name. The
//! link fails if that name is taken: this is the exclusive create of the store. The modification time of the
//! file is the LTX timestamp; Litestream looks for the timestamp there.
//!
//! Only the owner may read the files, unless a setting says otherwise: the files hold the content of the
//! database.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use super::parts::Parts;
use super::{Body, Error, ErrorKind, FileInfo, Key, Object, Store, Upload, range};
use crate::blocking::Broken;
use crate::buffer::Buffer;
use crate::canonical::canonical;
use crate::config::values::parse_mode;
use crate::local::folder::make_private;
use crate::local::{self, sync_folder};
use crate::ltx::FileName;
use crate::units::{Level, Timestamp};

/// Length in bytes of the parts of an upload. The caller holds one part in memory.
const PART_LEN: usize = 2 << 20;

/// Small files that are read by one call.
const AT_A_TIME: usize = 32;

/// Reads of at least so many bytes use memory from the system, not from the allocator.
const LARGE: usize = 128 << 10;

/// Age in seconds from which a temporary file counts as left by a dead process.
const LEFTOVER_AGE_S: i64 = 24 * 3600;

/// Name of the setting for the mode of files.
pub(crate) const FILE_MODE: &str = "file-mode";
/// Name of the environment variable for the mode of files.
pub(super) const FILE_MODE_VARIABLE: &str = "WALFERRY_FILE_MODE";
/// Mode of files without a setting.
const PRIVATE: u32 = 0o600;

/// End of temporary names. Readers skip names that do not end in `.ltx`.
const TEMP_SUFFIX: &str = ".walferry.tmp";

/// A directory that holds one replica.
#[derive(Clone, Debug)]
pub struct FileStore(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    root: PathBuf,
    url: String,
    /// Mode of the files.
    mode: u32,
    /// True once the root was seen. A root that disappears later is not made again: it may be the mount point
    /// of a disk that was removed, and files written below it would be lost.
    seen: AtomicBool,
    /// One bit for each level: set once the level's leftover temporary files were removed.
    swept: AtomicU16,
}

impl FileStore {
    /// Returns a replica in `root`. The first write makes `root` if it does not exist. A relative path is
    /// resolved against the current working directory, even if the process changes it later. The URL, and so
    /// the identity, is of the folder itself, by whichever links `root` leads there.
    pub fn new(root: impl Into<PathBuf>) -> FileStore {
        FileStore::with_mode(root, PRIVATE)
    }

    /// Returns a replica as [`FileStore::new`] does, whose files get these permission bits. Its folders get
    /// the bits with which those files can be reached. Existing files and folders stay as they are.
    pub fn with_mode(root: impl Into<PathBuf>, mode: u32) -> FileStore {
        let root = root.into();
        let root = std::path::absolute(&root).unwrap_or(root);
        let url = super::url::of_path(&canonical(&root));
        let (seen, swept) = (AtomicBool::new(false), AtomicU16::new(0));
        FileStore(Arc::new(Directory { root, url, mode, seen, swept }))
    }

    /// Returns the replica's directory.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Runs file system calls on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Directory) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let directory = Arc::clone(&self.0);
        blocking(move || job(&directory)).await
    }
}

/// Runs a job on the runtime's threads for blocking calls.
pub(super) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    crate::blocking::blocking(job).await.unwrap_or_else(|broken| Err(broken.into()))
}

impl From<Broken> for Error {
    fn from(broken: Broken) -> Error {
        let (kind, message) = match broken {
            Broken::NoThread => (
                ErrorKind::Unavailable,
                "the system gives no thread for work on files: the process or its user may be at the \
                 limit (ulimit -u, or that of the container)",
            ),
            Broken::GivenUp => {
                (ErrorKind::Other, "work on files was given up because the program is stopping")
            }
            Broken::Panicked => (
                ErrorKind::Other,
                "an internal error of walferry (a panic in work on files); please report it",
            ),
        };
        Error { kind, message: message.to_string(), source: None, retry_after: None }
    }
}

#[async_trait]
impl Store for FileStore {
    fn url(&self) -> &str {
        &self.0.url
    }

    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error> {
        self.blocking(move |directory| directory.list(level)).await
    }

    async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        self.blocking(move |directory| directory.get_large(key, range.as_ref())).await
    }

    fn at_a_time(&self) -> usize {
        AT_A_TIME
    }

    /// Reads all ranges in one job: handing a read to another thread takes longer than the read.
    async fn get_each(&self, wanted: Vec<(Key, Range<u64>)>) -> Vec<Result<Bytes, Error>> {
        let number = wanted.len();
        let each = self.blocking(move |directory| {
            Ok(wanted.iter().map(|(key, range)| directory.get(*key, Some(range))).collect())
        });
        each.await.unwrap_or_else(|Error { kind, message, .. }| {
            let again =
                || Error { kind, message: message.clone(), source: None, retry_after: None };
            (0..number).map(|_| Err(again())).collect()
        })
    }

    async fn objects(&self, folder: &str) -> Result<Vec<Object>, Error> {
        let folder = folder.to_string();
        self.blocking(move |directory| {
            let mut objects = Vec::new();
            directory.objects(&folder, &mut objects)?;
            Ok(objects)
        })
        .await
    }

    async fn object(&self, path: &str, range: Range<u64>) -> Result<Bytes, Error> {
        let path = path.to_string();
        self.blocking(move |directory| directory.read(&directory.root.join(path), Some(&range)))
            .await
    }

    async fn put_new(&self, key: Key, body: Body, timestamp: Timestamp) -> Result<(), Error> {
        self.blocking(move |directory| {
            directory.refuse_existing(key)?;
            let mut temp = directory.temp(key)?;
            match body {
                Body::Bytes(bytes) => {
                    temp.file.write_all(&bytes).map_err(|err| fail("write", &temp.path, err))?;
                }
                Body::File(from) => {
                    let unreadable = |err| {
                        let message = format!("cannot read the local file {}", from.display());
                        Error::caused(ErrorKind::Local, message, err)
                    };
                    let mut source = local::folder::read(&from).map_err(unreadable)?;
                    if let Err(err) = io::copy(&mut source, &mut temp.file) {
                        // The error does not say if reading or writing failed.
                        io::copy(&mut source, &mut io::sink()).map_err(unreadable)?;
                        return Err(fail(&format!("copy {} to", from.display()), &temp.path, err));
                    }
                }
            }
            directory.publish(temp, key, timestamp)
        })
        .await
    }

    async fn upload_new(
        &self,
        key: Key,
        timestamp: Timestamp,
        _len: u64,
    ) -> Result<Box<dyn Upload>, Error> {
        let temp = self
            .blocking(move |directory| {
                directory.refuse_existing(key)?;
                directory.temp(key)
            })
            .await?;
        let parts = Parts::new(key, PART_LEN);
        Ok(Box::new(FileUpload {
            store: self.clone(),
            key,
            timestamp,
            temp: Arc::new(temp),
            parts,
        }))
    }

    async fn delete(&self, key: Key) -> Result<(), Error> {
        self.blocking(move |directory| directory.delete(key)).await
    }
}

impl Directory {
    fn folder(&self, level: Level) -> PathBuf {
        self.root.join("ltx").join(level.to_string())
    }

    fn path(&self, key: Key) -> PathBuf {
        self.folder(key.level).join(key.name.to_string())
    }

    fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error> {
        let folder = self.folder(level);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                self.look_for_root()?;
                return Ok(Vec::new());
            }
            Err(err) => return Err(fail("list", &folder, err)),
        };
        self.seen.store(true, Ordering::Relaxed);
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|err| fail("list", &folder, err))?;
            let Some(name) = entry.file_name().to_str().and_then(FileName::parse) else { continue };
            let path = entry.path();
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // Deleted after the folder was read.
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                Err(err) => return Err(fail("list", &path, err)),
            };
            // A folder or a link takes the name, so it is listed: the reader of the file finds it empty. No
            // link is followed, inside or outside the replica.
            let len = if metadata.is_file() { metadata.len() } else { 0 };
            let (modified, stored) = (modified(&metadata), stored(&metadata));
            files.push(FileInfo { key: Key { level, name }, len, modified, stored });
        }
        files.sort_unstable_by_key(|file| file.key);
        Ok(files)
    }

    /// Returns an error if the root is missing and was seen before. Otherwise a missing root is a replica
    /// that does not exist yet.
    fn look_for_root(&self) -> Result<(), Error> {
        match fs::metadata(&self.root) {
            Ok(metadata) if metadata.is_dir() => self.seen.store(true, Ordering::Relaxed),
            Ok(_) => return Err(not_a_directory(&self.root, None)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                if self.seen.load(Ordering::Relaxed) {
                    return Err(Error {
                        kind: ErrorKind::NoReplica,
                        message: format!(
                            "the replica directory {} was there and is gone; mount or create it again",
                            self.root.display()
                        ),
                        source: Some(err.into()),
                        retry_after: None,
                    });
                }
            }
            Err(err) => return Err(fail("look at", &self.root, err)),
        }
        Ok(())
    }

    /// Adds the files below a folder to `found`. Follows no links.
    fn objects(&self, folder: &str, found: &mut Vec<Object>) -> Result<(), Error> {
        let path = self.root.join(folder);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            // The folder may have been deleted after its parent was read.
            Err(err)
                if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Ok(());
            }
            Err(err) => return Err(fail("list", &path, err)),
        };
        for entry in entries {
            let entry = entry.map_err(|err| fail("list", &path, err))?;
            let Some(name) = entry.file_name().to_str().map(|name| format!("{folder}/{name}"))
            else {
                continue;
            };
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                Err(err) => return Err(fail("list", &entry.path(), err)),
            };
            if metadata.is_dir() {
                self.objects(&name, found)?;
            } else if metadata.is_file() {
                let (len, modified) = (metadata.len(), modified(&metadata));
                found.push(Object { path: name, len, modified });
            }
        }
        Ok(())
    }

    fn get(&self, key: Key, range: Option<&Range<u64>>) -> Result<Bytes, Error> {
        self.read(&self.path(key), range)
    }

    /// Reads a file as [`Directory::get`] does, into memory from the system: an allocator keeps the memory of
    /// large reads.
    fn get_large(&self, key: Key, range: Option<&Range<u64>>) -> Result<Bytes, Error> {
        let path = self.path(key);
        let (file, range) = self.open_range(&path, range)?;
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if len < LARGE {
            return read_range(&file, &path, &range);
        }
        let read = || {
            let mut buffer = Buffer::zeroed(len)?;
            file.read_exact_at(buffer.as_mut(), range.start)?;
            Ok(Bytes::from(buffer))
        };
        read().map_err(|err| fail("read", &path, err))
    }

    fn read(&self, path: &Path, range: Option<&Range<u64>>) -> Result<Bytes, Error> {
        let (file, range) = self.open_range(path, range)?;
        read_range(&file, path, &range)
    }

    /// Opens a file, and returns it with the range to read.
    fn open_range(
        &self,
        path: &Path,
        range: Option<&Range<u64>>,
    ) -> Result<(File, Range<u64>), Error> {
        // The listing has told files from links and pipes. A link or pipe that took a file's place since then
        // is not followed, and does not block.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(err) if err.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                return Err(not_a_file(path));
            }
            Err(err) => {
                if err.kind() == io::ErrorKind::NotFound {
                    self.look_for_root()?;
                }
                return Err(fail("read", path, err));
            }
        };
        let metadata = file.metadata().map_err(|err| fail("read", path, err))?;
        if !metadata.is_file() {
            return Err(not_a_file(path));
        }
        let len = metadata.len();
        let range = range::within(range, len, path.display())?;
        Ok((file, range))
    }

    fn delete(&self, key: Key) -> Result<(), Error> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => {
                let folder = self.folder(key.level);
                sync_folder(&folder).map_err(|err| fail("sync", &folder, err))
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => self.look_for_root(),
            Err(err) => Err(fail("delete", &path, err)),
        }
    }

    /// Returns an error if the file exists, so that no bytes are written in vain. The error is returned only
    /// after the name is durable, because the caller may find its own file and count it as acknowledged.
    fn refuse_existing(&self, key: Key) -> Result<(), Error> {
        let path = self.path(key);
        match fs::symlink_metadata(&path) {
            Ok(_) => Err(self.exists(&path, key)),
            Err(_) => Ok(()),
        }
    }

    fn exists(&self, path: &Path, key: Key) -> Error {
        if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
            // No reader could read it, so no writer could tell whose file it is.
            return Error { kind: ErrorKind::Other, ..not_a_file(path) };
        }
        let folder = self.folder(key.level);
        match sync_folder(&folder) {
            Ok(()) => Error::new(ErrorKind::AlreadyExists, format!("{} exists", path.display())),
            Err(err) => fail("sync", &folder, err),
        }
    }

    /// Makes a temporary file in the folder of `key`, and the folder if it is missing.
    fn temp(&self, key: Key) -> Result<Temp, Error> {
        let folder = self.folder(key.level);
        match Temp::create(&folder, key, self.mode) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                self.look_for_root()?;
                create_folders(&folder, self.mode)?;
                Temp::create(&folder, key, self.mode)
            }
            result => result,
        }
        .inspect(|_| self.seen.store(true, Ordering::Relaxed))
        .map_err(|err| fail("write to", &folder, err))
    }

    /// Gives a written temporary file its final name.
    fn publish(&self, temp: Temp, key: Key, timestamp: Timestamp) -> Result<(), Error> {
        let (folder, path) = (self.folder(key.level), self.path(key));
        temp.file
            .set_times(FileTimes::new().set_modified(system_time(timestamp)))
            .and_then(|()| temp.file.sync_all())
            .map_err(|err| fail("sync", &temp.path, err))?;
        match link_new(&temp, &path) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                drop(temp);
                return Err(self.exists(&path, key));
            }
            Err(err) => return Err(fail("create", &path, err)),
        }
        drop(temp);
        sync_folder(&folder).map_err(|err| Error {
            kind: ErrorKind::Unavailable,
            message: format!(
                "{} was created, but syncing its folder failed, so a power loss may undo it",
                path.display()
            ),
            source: Some(err.into()),
            retry_after: None,
        })?;
        let bit = 1 << key.level.get();
        if self.swept.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
            remove_leftovers(&folder, now.cast_signed());
        }
        Ok(())
    }
}

/// An upload into a temporary file. Dropping an incomplete upload removes the file.
struct FileUpload {
    store: FileStore,
    key: Key,
    timestamp: Timestamp,
    temp: Arc<Temp>,
    parts: Parts,
}

#[async_trait]
impl Upload for FileUpload {
    fn part_len(&self) -> usize {
        PART_LEN
    }

    async fn part(&mut self, number: u32, bytes: Bytes) -> Result<(), Error> {
        self.parts.add(number, bytes.len())?;
        let (temp, offset) = (Arc::clone(&self.temp), u64::from(number) * PART_LEN as u64);
        blocking(move || {
            temp.file.write_all_at(&bytes, offset).map_err(|err| fail("write", &temp.path, err))
        })
        .await
    }

    async fn complete(self: Box<Self>) -> Result<(), Error> {
        self.parts.check()?;
        let FileUpload { store, key, timestamp, temp, .. } = *self;
        store
            .blocking(move |directory| match Arc::try_unwrap(temp) {
                Ok(temp) => directory.publish(temp, key, timestamp),
                // The call of a part was cancelled, and its bytes are still being written.
                Err(_) => Err(Error::new(
                    ErrorKind::Invalid,
                    format!("the upload of {key} was completed before its parts were written"),
                )),
            })
            .await
    }

    async fn abort(self: Box<Self>) {}
}

/// A temporary file that is removed when dropped.
struct Temp {
    file: File,
    path: PathBuf,
}

impl Temp {
    fn create(folder: &Path, key: Key, mode: u32) -> io::Result<Temp> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let process = std::process::id();
            let path = folder.join(format!("{}.{process}-{number}{TEMP_SUFFIX}", key.name));
            match OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&path) {
                Ok(file) => {
                    let temp = Temp { file, path };
                    // The umask may have removed even the owner's permissions.
                    let is = temp.file.metadata()?.permissions().mode();
                    if mode != PRIVATE || is & PRIVATE != PRIVATE {
                        temp.file.set_permissions(Permissions::from_mode(mode))?;
                    }
                    return Ok(temp);
                }
                // Left by a process that had the same id, on this or another machine.
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                Err(err) => return Err(err),
            }
        }
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        // On a file system without links, the file was renamed and has no temporary name. A file that cannot
        // be removed now is removed as a leftover later.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives a temporary file its final name. Fails if the name is taken.
fn link_new(temp: &Temp, path: &Path) -> io::Result<()> {
    match fs::hard_link(&temp.path, path) {
        // NFS may lose an answer and repeat the call. The second call then finds the name that the first one
        // made. If our file has two names, the first call succeeded.
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => match temp.file.metadata() {
            Ok(metadata) if metadata.nlink() > 1 => Ok(()),
            _ => Err(err),
        },
        Err(err) if cannot_link(&err) => rename_new(temp, path),
        result => result,
    }
}

fn rename_new(temp: &Temp, path: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, &temp.path, CWD, path, RenameFlags::NOREPLACE)?)
}

/// True if the file system has no hard links (FAT, some network and user-space file systems).
fn cannot_link(err: &io::Error) -> bool {
    matches!(
        err.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK | Errno::XDEV)
    )
}

/// Creates a folder and its missing parents, each durable in its parent.
fn create_folders(folder: &Path, mode: u32) -> Result<(), Error> {
    let Some(parent) = folder.parent() else { return Ok(()) };
    let create = || make_private(CWD, folder);
    let created = match create() {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            create_folders(parent, mode)?;
            create()
        }
        result => result,
    };
    match created {
        Ok(()) if mode == PRIVATE => {}
        Ok(()) => open_up(folder, mode).map_err(|err| fail("set the mode of", folder, err))?,
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
        Err(err) => return Err(fail("create the folder", folder, err)),
    }
    sync_folder(parent).map_err(|err| fail("sync", parent, err))
}

/// Gives a new folder the mode with which files of this mode can be reached in it.
fn open_up(folder: &Path, mode: u32) -> io::Result<()> {
    let flags = (OFlags::NOFOLLOW | OFlags::DIRECTORY).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
    // The setgid bit, inherited from the parent folder, decides the group of the files, and stays.
    let inherited = opened.metadata()?.permissions().mode() & 0o2000;
    opened.set_permissions(Permissions::from_mode(inherited | mode | (mode & 0o444) >> 2))
}

/// Parses the mode of files. The owner must be able to read and write them.
pub(crate) fn parse_file_mode(text: &str) -> Result<u32, String> {
    let mode = parse_mode(text)?;
    if mode & PRIVATE != PRIVATE {
        return Err("the owner must be able to read and write the files: give at least 600".into());
    }
    Ok(mode)
}

/// Removes temporary files that were not changed for a day before `now`, in seconds since the Unix epoch. A
/// failure is harmless.
fn remove_leftovers(folder: &Path, now: i64) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !is_temp(&entry.file_name()) {
            continue;
        }
        // The modification time is no guide: a file that is about to be linked has one in the past.
        let Ok(changed) = entry.metadata().map(|metadata| metadata.ctime()) else { continue };
        if now.saturating_sub(changed) > LEFTOVER_AGE_S {
            match fs::remove_file(entry.path()) {
                Ok(()) => log::info!("removed {}, left by a dead process", entry.path().display()),
                Err(err) => log::warn!("cannot remove {}: {err}", entry.path().display()),
            }
        }
    }
}

fn is_temp(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.ends_with(TEMP_SUFFIX))
}

/// Returns the time at which the file appeared: the last change of its inode, which no program can set.
fn stored(metadata: &fs::Metadata) -> Timestamp {
    use std::os::unix::fs::MetadataExt;
    Timestamp(
        metadata.ctime().saturating_mul(1000).saturating_add(metadata.ctime_nsec() / 1_000_000),
    )
}

fn modified(metadata: &fs::Metadata) -> Timestamp {
    Timestamp(
        metadata.mtime().saturating_mul(1000).saturating_add(metadata.mtime_nsec() / 1_000_000),
    )
}

fn system_time(timestamp: Timestamp) -> SystemTime {
    let distance = Duration::from_millis(timestamp.0.unsigned_abs());
    let time = match timestamp.0 {
        0.. => UNIX_EPOCH.checked_add(distance),
        _ => UNIX_EPOCH.checked_sub(distance),
    };
    time.unwrap_or(UNIX_EPOCH)
}

fn read_range(file: &File, path: &Path, range: &Range<u64>) -> Result<Bytes, Error> {
    let mut buffer = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut buffer, range.start).map_err(|err| fail("read", path, err))?;
    Ok(buffer.into())
}

/// Turns a failed call on `path` into an error of the kind that tells the caller's possible answer.
fn fail(what: &str, path: &Path, err: io::Error) -> Error {
    let errno = err.raw_os_error().map(Errno::from_raw_os_error);
    let (kind, advice) = match (err.kind(), errno) {
        (_, Some(Errno::NOTDIR)) => return not_a_directory(path, Some(err)),
        (io::ErrorKind::NotFound, _) => (ErrorKind::NotFound, "it does not exist"),
        (io::ErrorKind::AlreadyExists, _) => (ErrorKind::AlreadyExists, "it exists"),
        (_, Some(Errno::ACCESS | Errno::PERM)) => {
            (ErrorKind::Denied, "the permissions of the file or folder do not allow it")
        }
        (_, Some(Errno::ROFS)) => (ErrorKind::Denied, "the file system is read-only"),
        (_, Some(Errno::NOSPC)) => (ErrorKind::NoSpace, "the disk is full"),
        (_, Some(Errno::DQUOT)) => (ErrorKind::NoSpace, "the disk quota is used up"),
        (_, Some(Errno::FBIG)) => (ErrorKind::NoSpace, "the file would be larger than is allowed"),
        (_, Some(Errno::INVAL)) => (
            ErrorKind::Invalid,
            "the file system refuses the call; a replica needs one that can link a file, or \
             rename it without replacing another",
        ),
        (
            _,
            Some(
                Errno::IO
                | Errno::STALE
                | Errno::TIMEDOUT
                | Errno::NOTCONN
                | Errno::HOSTDOWN
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOMEM
                | Errno::BUSY,
            ),
        ) => (ErrorKind::Unavailable, "the disk or the system could not do it now"),
        _ => (ErrorKind::Other, "the system refused"),
    };
    let message = format!("cannot {what} {}: {advice}", path.display());
    Error::caused(kind, message, err)
}

fn not_a_file(path: &Path) -> Error {
    let message =
        format!("{} is a folder or a link, not a file of a replica: move it away", path.display());
    Error::new(ErrorKind::NotFound, message)
}

fn not_a_directory(path: &Path, err: Option<io::Error>) -> Error {
    Error {
        kind: ErrorKind::Invalid,
        message: format!(
            "{} cannot be used: it or a part of its path is a file, not a directory; give the \
             replica a directory",
            path.display()
        ),
        source: err.map(Into::into),
        retry_after: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_errors_say_what_can_be_done() {
        for (errno, kind) in [
            (Errno::NOSPC, ErrorKind::NoSpace),
            (Errno::DQUOT, ErrorKind::NoSpace),
            (Errno::ACCESS, ErrorKind::Denied),
            (Errno::PERM, ErrorKind::Denied),
            (Errno::ROFS, ErrorKind::Denied),
            (Errno::NOTDIR, ErrorKind::Invalid),
            (Errno::NOENT, ErrorKind::NotFound),
            (Errno::EXIST, ErrorKind::AlreadyExists),
            (Errno::IO, ErrorKind::Unavailable),
            (Errno::ISDIR, ErrorKind::Other),
        ] {
            let err = fail("write", Path::new("/replica/x"), errno.into());
            assert_eq!(err.kind, kind, "{err}");
            assert!(err.message.contains("/replica/x") && err.source.is_some(), "{err}");
        }
    }

    #[test]
    fn without_links_a_file_is_renamed_into_place_and_never_over_another() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key { level: Level::L0, name: FileName::single(crate::units::Txid(1)) };
        let place = folder.path().join("taken");
        let rename = |text: &str| {
            let mut temp = Temp::create(folder.path(), key, PRIVATE).unwrap();
            temp.file.write_all(text.as_bytes()).unwrap();
            rename_new(&temp, &place)
        };
        rename("first").unwrap();
        assert_eq!(rename("second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&place).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_old_temporary_files_are_left_overs() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key { level: Level::L0, name: FileName::single(crate::units::Txid(1)) };
        let temp = Temp::create(folder.path(), key, PRIVATE).unwrap();
        let other = folder.path().join("0000000000000001-0000000000000001.ltx");
        fs::write(&other, b"x").unwrap();
        // Old by its modification time, as a file of last month is right before it is linked.
        temp.file.set_times(FileTimes::new().set_modified(UNIX_EPOCH)).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
        remove_leftovers(folder.path(), now);
        assert!(temp.path.exists(), "a file in use was removed");
        remove_leftovers(folder.path(), now + LEFTOVER_AGE_S + 60);
        assert!(!temp.path.exists() && other.exists());
    }
}
