//! Stores of replicas: one trait, one file for each backend, one conformance suite for all.
//!
//! The trait offers the operations that replication needs, not all that a bucket can do: list a level, read a
//! range, create a file that does not exist, delete. A file never changes after its creation.

mod access;
#[doc(hidden)]
pub mod conformance;
pub mod file;
mod header;
pub mod memory;
mod open;
mod parts;
mod range;
pub(crate) mod reader;
pub mod s3;
pub mod url;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use self::access::{Access, Secret};
pub(crate) use self::file::{FILE_MODE, parse_file_mode};
pub(crate) use self::header::read_header;
pub use self::open::{check_url, is_same_way, open, open_at, open_with};
use crate::ltx::FileName;
use crate::units::{Level, Timestamp};

/// One file of a replica: its level and the transactions in its name. A backend turns the key into a path or
/// an object key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key {
    /// Replica level.
    pub level: Level,
    /// Range of transactions.
    pub name: FileName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.level, self.name)
    }
}

/// A file as a listing shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileInfo {
    /// The file.
    pub key: Key,
    /// Length in bytes.
    pub len: u64,
    /// Creation time in the listing: modification time of the file or object. On a directory, this is the
    /// timestamp in the file's header; on S3, the time of the upload.
    pub modified: Timestamp,
    /// Time at which the store got the file, by the store's clock. Retention counts from this time: a file
    /// that waited long for the store is young there.
    pub stored: Timestamp,
}

/// An object of a replica outside its levels, left by Litestream 0.3.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Path below the replica, with slashes.
    pub path: String,
    /// Length in bytes.
    pub len: u64,
    /// Creation time in the listing.
    pub modified: Timestamp,
}

/// Source of a whole-file upload.
#[derive(Clone, Debug)]
pub enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A local file, streamed. A large file is sent in parallel parts.
    File(PathBuf),
}

/// Class of a failed call, by the caller's possible answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// The file does not exist.
    NotFound,
    /// A conditional create found an existing file.
    AlreadyExists,
    /// The bucket or directory itself is missing: a setting is wrong, or the bucket or directory was removed.
    NoReplica,
    /// The credentials are missing, wrong or expired.
    Unauthenticated,
    /// The credentials are good but do not allow this.
    Denied,
    /// The store asks for fewer requests. Try again later.
    Throttled,
    /// No answer, a broken connection, a server error, a timeout. The call may have taken effect.
    Unavailable,
    /// The disk or quota is full.
    NoSpace,
    /// The settings cannot work with any store.
    Invalid,
    /// The local file to send cannot be read.
    Local,
    /// Anything else.
    Other,
}

impl ErrorKind {
    /// True if the same call may succeed later without a change of the settings.
    pub fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Throttled | ErrorKind::Unavailable | ErrorKind::NoSpace)
    }
}

/// A failed call: its kind, the operation and its file, and the reason.
#[derive(Debug)]
pub struct Error {
    /// Class of the failure.
    pub kind: ErrorKind,
    /// The operation, its file and replica, and advice. Contains no secrets.
    pub message: String,
    /// The underlying cause.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// How long the store asked not to be called.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// Returns an error without an underlying cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None, retry_after: None }
    }

    /// Returns an error with its underlying cause.
    pub fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error { source: Some(source.into()), ..Error::new(kind, message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn std::error::Error + 'static))
    }
}

/// A store that holds one replica.
///
/// Several tasks may call at once. Every call has its own timeout, and retries errors that are worth an
/// immediate retry a few times. Longer backoff is up to the caller.
#[async_trait]
pub trait Store: Send + Sync {
    /// Returns the replica's URL without secrets, for messages.
    fn url(&self) -> &str;

    /// Returns the server that the calls go to; `None` if the store is on this machine.
    fn server(&self) -> Option<&str> {
        None
    }

    /// Returns all files of a level, ascending by name. Skips names of another form. A level without files,
    /// or a replica that does not exist yet, is empty. A missing bucket is [`ErrorKind::NoReplica`].
    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error>;

    /// Returns the bytes of a file, or of the part of the file in `range`. A range that reaches past the end
    /// is cut off there. A range that begins at or past the end is an error.
    async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, Error>;

    /// Returns how many small files are best read by one [`Store::get_each`]. 1 if each file is a request of
    /// its own; the caller may then make many requests at once.
    fn at_a_time(&self) -> usize {
        1
    }

    /// Returns the result of [`Store::get`] for each of these ranges, in the same order.
    async fn get_each(&self, wanted: Vec<(Key, Range<u64>)>) -> Vec<Result<Bytes, Error>> {
        let mut each = Vec::with_capacity(wanted.len());
        for (key, range) in wanted {
            each.push(self.get(key, Some(range)).await);
        }
        each
    }

    /// Creates a file, all or nothing, only if the file does not exist: otherwise
    /// [`ErrorKind::AlreadyExists`]. After `Ok` the file is durable. After [`ErrorKind::Unavailable`] the
    /// file may exist, and a repeated call may then find the caller's own file.
    async fn put_new(&self, key: Key, body: Body, timestamp: Timestamp) -> Result<(), Error>;

    /// Starts to create a file of about `len` bytes. The file is invisible before [`Upload::complete`].
    async fn upload_new(
        &self,
        key: Key,
        timestamp: Timestamp,
        len: u64,
    ) -> Result<Box<dyn Upload>, Error>;

    /// Returns the objects in a folder of the replica and in all folders below, in any order. A missing
    /// folder has none.
    async fn objects(&self, _folder: &str) -> Result<Vec<Object>, Error> {
        Ok(Vec::new())
    }

    /// Returns a part of such an object, cut off at its end as by [`Store::get`].
    async fn object(&self, path: &str, _range: Range<u64>) -> Result<Bytes, Error> {
        Err(Error::new(ErrorKind::NotFound, format!("{} has no object {path}", self.url())))
    }

    /// Removes a file. A missing file is no error.
    async fn delete(&self, key: Key) -> Result<(), Error>;
}

/// A file that is being created in parts.
#[async_trait]
pub trait Upload: Send {
    /// Returns the length in bytes of every part but the last.
    fn part_len(&self) -> usize;

    /// Sends part `number`, counted from 0. Parts may be sent in any order, each once. All parts but the one
    /// with the highest number have [`Upload::part_len`] bytes.
    async fn part(&mut self, number: u32, bytes: Bytes) -> Result<(), Error>;

    /// Makes the file visible, only if the name is free; errors as for [`Store::put_new`].
    async fn complete(self: Box<Self>) -> Result<(), Error>;

    /// Gives up, and removes the parts that were sent.
    async fn abort(self: Box<Self>);
}
