//! Where replicas live: one trait, one file a backend, one conformance suite for all.
//!
//! The seam is shaped by what replication needs, not by what a bucket can do: list a level, read
//! a range, create a file that did not exist, delete. A file, once created, never changes.

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

/// One file of a replica: its level and the transactions in its name. Backends turn it into a
/// path or an object key.
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
    /// Which file.
    pub key: Key,
    /// Length in bytes.
    pub len: u64,
    /// When the listing says that it was made: modification time of the file or object. On a
    /// directory this is the header's timestamp; on S3 it is the time of the upload.
    pub modified: Timestamp,
    /// When the store got it, by its own clock: what retention counts from. A file that waited long
    /// for the store is young there.
    pub stored: Timestamp,
}

/// An object of a replica that is no file of its levels: what Litestream 0.3 left there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Its path below the replica, with slashes.
    pub path: String,
    /// Length in bytes.
    pub len: u64,
    /// When the listing says that it was made.
    pub modified: Timestamp,
}

/// What a whole-file upload is made from.
#[derive(Clone, Debug)]
pub enum Body {
    /// Bytes at hand.
    Bytes(Bytes),
    /// A local file, streamed; large ones go up in parallel parts.
    File(PathBuf),
}

/// What a caller can do about a failed call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// There is no such file.
    NotFound,
    /// A conditional create found the file there already.
    AlreadyExists,
    /// The bucket or directory itself is missing: a setting is wrong, or somebody removed it.
    NoReplica,
    /// The credentials are missing, wrong or expired.
    Unauthenticated,
    /// The credentials are good but do not allow this.
    Denied,
    /// The store asks to slow down. Try again later.
    Throttled,
    /// No answer, a broken connection, a server error, a time-out. The call may have taken effect.
    Unavailable,
    /// The disk or quota is full.
    NoSpace,
    /// The settings cannot work, whatever the store does.
    Invalid,
    /// The local file that was to be sent cannot be read.
    Local,
    /// Anything else.
    Other,
}

impl ErrorKind {
    /// Whether the same call may succeed later without anybody changing a setting.
    pub fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Throttled | ErrorKind::Unavailable | ErrorKind::NoSpace)
    }
}

/// A failed call: its kind, what was tried on which file, and why.
#[derive(Debug)]
pub struct Error {
    /// What can be done.
    pub kind: ErrorKind,
    /// What was tried, on which file of which replica, and what to do about it. No secrets.
    pub message: String,
    /// The cause underneath, if there is one.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// How long the store asked to be left alone.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// An error without a cause underneath.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None, retry_after: None }
    }

    /// An error with the cause underneath.
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
/// Calls may be made from several tasks at once. Every call has a time-out of its own and retries
/// a few times what is worth retrying at once; longer backoff is the caller's.
#[async_trait]
pub trait Store: Send + Sync {
    /// The replica's URL, without secrets, for messages.
    fn url(&self) -> &str;

    /// The server that the calls go to, if that is not this machine.
    fn server(&self) -> Option<&str> {
        None
    }

    /// All files of a level, ascending by name. Names that are not of the form are passed over.
    /// A level without files, or a replica that does not exist yet, is empty; a missing bucket is
    /// [`ErrorKind::NoReplica`].
    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error>;

    /// The bytes of a file, or of the part of it in `range`. A range that reaches past the end is
    /// cut off there; one that begins past the end is an error.
    async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, Error>;

    /// How many small files are best read by one [`Store::get_each`]; 1 where each is a request of its
    /// own, of which as many are made at a time as the caller likes.
    fn at_a_time(&self) -> usize {
        1
    }

    /// As [`Store::get`] for each of these, in the same order.
    async fn get_each(&self, wanted: Vec<(Key, Range<u64>)>) -> Vec<Result<Bytes, Error>> {
        let mut each = Vec::with_capacity(wanted.len());
        for (key, range) in wanted {
            each.push(self.get(key, Some(range)).await);
        }
        each
    }

    /// Creates a file, all or nothing, only if it does not exist: else
    /// [`ErrorKind::AlreadyExists`]. After `Ok` it is durable. After [`ErrorKind::Unavailable`]
    /// it may exist, and a repeated call may then find the caller's own file.
    async fn put_new(&self, key: Key, body: Body, timestamp: Timestamp) -> Result<(), Error>;

    /// Starts to create a file of about `len` bytes. Nothing is visible before [`Upload::complete`].
    async fn upload_new(
        &self,
        key: Key,
        timestamp: Timestamp,
        len: u64,
    ) -> Result<Box<dyn Upload>, Error>;

    /// The objects in a folder of the replica and in all folders below it, in any order. A folder that
    /// is not there has none.
    async fn objects(&self, _folder: &str) -> Result<Vec<Object>, Error> {
        Ok(Vec::new())
    }

    /// A part of such an object; cut off at its end as in [`Store::get`].
    async fn object(&self, path: &str, _range: Range<u64>) -> Result<Bytes, Error> {
        Err(Error::new(ErrorKind::NotFound, format!("{} has no object {path}", self.url())))
    }

    /// Removes a file. One that is not there is no error.
    async fn delete(&self, key: Key) -> Result<(), Error>;
}

/// A file that is being created in parts.
#[async_trait]
pub trait Upload: Send {
    /// Length in bytes of every part but the last.
    fn part_len(&self) -> usize;

    /// Sends part `number`, from 0. Parts may be sent in any order, each once. All but the
    /// highest have [`Upload::part_len`] bytes.
    async fn part(&mut self, number: u32, bytes: Bytes) -> Result<(), Error>;

    /// Makes the file appear, only if none of this name exists; as [`Store::put_new`].
    async fn complete(self: Box<Self>) -> Result<(), Error>;

    /// Gives up and removes what was sent.
    async fn abort(self: Box<Self>);
}
