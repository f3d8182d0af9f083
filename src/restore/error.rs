//! Errors of a restore, with advice for the user.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::point::Range;
use crate::ltx;
use crate::ltx::DatabaseChecksum;
use crate::plan;
use crate::store::{self, Key};
use crate::units::{Pgno, Timestamp};

/// Reason why a restore failed. The output's path then holds no new database.
///
/// A database that was to be replaced stays in place. The exception is a failed sync of the directory after the
/// rename: the new database then keeps the name.
#[derive(Debug)]
pub enum Error {
    /// The store did not answer, or refused.
    Store(store::Error),
    /// The replica's files do not lead to the target.
    Plan(plan::Error),
    /// The moment that was asked for is older than the oldest state of the replica.
    TooEarly {
        /// The moment that was asked for.
        at: Timestamp,
        /// Commit times that the replica covers.
        range: Range,
    },
    /// The objects of Litestream 0.3 do not lead to the target.
    Generations(plan::generations::Error),
    /// An object of Litestream 0.3 is damaged, or an object before it is missing.
    Object {
        /// Path of the object below the replica.
        path: String,
        /// The damage.
        what: String,
    },
    /// A file is damaged, or does not match its name.
    File {
        /// The damaged file.
        key: Key,
        /// The damage.
        source: ltx::Error,
    },
    /// The names of two files follow each other, but their database checksums do not.
    Chain {
        /// The older file.
        older: Key,
        /// The newer file, which was made from another state than the state that the older file leads to.
        newer: Key,
    },
    /// The page size changes between two files without a full image.
    PageSize {
        /// The older file.
        older: Key,
        /// The newer file.
        newer: Key,
    },
    /// Some pages of the database are in no file of the plan.
    Missing {
        /// The first missing page.
        first: Pgno,
        /// Number of missing pages.
        count: u64,
        /// The last file of the plan, which names the number of pages of the database.
        key: Key,
    },
    /// The result is not the database that the last file was made from.
    Database {
        /// The last file.
        key: Key,
        /// The checksum that the last file names.
        expected: DatabaseChecksum,
        /// The checksum of the result.
        found: DatabaseChecksum,
    },
    /// The store failed when the restore had already written much. The next restore to the same output goes on
    /// with the part that is kept.
    BrokenOff {
        /// The error of the store.
        source: store::Error,
        /// The folder with the part that is kept.
        dir: PathBuf,
    },
    /// Another restore to the same output is running.
    Busy {
        /// The output.
        path: PathBuf,
        /// The process of that restore, if known.
        pid: Option<u32>,
    },
    /// The database at the output's path may not be replaced.
    Copy {
        /// The output.
        path: PathBuf,
        /// The reason.
        why: Refusal,
    },
    /// A file is at the output's path, or a file beside it belongs to a database there.
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// The path cannot be an output path.
    Path {
        /// The path.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// Writing the output failed.
    Output {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        doing: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// SQLite's check of the restored database found faults.
    Integrity {
        /// The lines of SQLite's answer.
        findings: Vec<String>,
    },
    /// A part of the program stopped without an error of its own.
    Internal(&'static str),
}

/// Reason why a database is not replaced by a newer state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No earlier restore has left its state beside the database.
    Unknown,
    /// The database was restored from, or replicated to, another replica.
    OtherReplica(String),
    /// The database or its spool holds data that the replica may not have.
    Unshipped,
    /// A process ships the database; its process id, if known.
    Shipped(Option<u32>),
    /// Nothing proves that the replica has the contents of the database.
    NotShipped,
    /// A program has the database open; its process id, if the system tells it.
    Open(Option<u32>),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Unknown => f.write_str("nothing beside it says that it was restored before"),
            Refusal::OtherReplica(url) => write!(f, "it belongs to another replica, {url}"),
            Refusal::Unshipped => {
                f.write_str("it was replicated from here, and holds what the replica may not have")
            }
            Refusal::Shipped(Some(pid)) => write!(f, "process {pid} replicates it"),
            Refusal::Shipped(None) => f.write_str("another process replicates it"),
            Refusal::NotShipped => {
                f.write_str("it was replicated from here, and its replica may not have all of it")
            }
            Refusal::Open(Some(pid)) => write!(f, "process {pid} has it open"),
            Refusal::Open(None) => f.write_str("a program has it open"),
        }
    }
}

impl Error {
    pub(crate) fn corrupt(key: Key, what: impl Into<String>) -> Error {
        Error::File { key, source: ltx::Error::Corrupt(what.into()) }
    }

    #[cfg(feature = "cli")]
    pub(super) fn object(object: &store::Object, what: impl Into<String>) -> Error {
        Error::Object { path: object.path.clone(), what: what.into() }
    }

    pub(super) fn truncated(key: Key, section: &'static str) -> Error {
        Error::File { key, source: ltx::Error::Truncated(section) }
    }

    /// Returns advice for the user, in one or two sentences.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Error::Store(error) => match error.kind {
                store::ErrorKind::NotFound => Some(
                    "The file was removed while it was needed, perhaps by retention: run the \
                     restore again.",
                ),
                kind if kind.is_transient() => Some("Try again later."),
                _ => None,
            },
            Error::Plan(plan::Error::Empty) => Some("Check the replica's URL and its path."),
            Error::Plan(plan::Error::Gap { .. }) => Some(
                "Restore the newest state before the gap with --txid, or bring the missing files \
                 back.",
            ),
            Error::Plan(_) | Error::TooEarly { .. } => {
                Some("List what can be restored with `walferry restore --list`.")
            }
            Error::Generations(
                plan::generations::Error::TooEarly { .. } | plan::generations::Error::Empty,
            ) => Some("List what can be restored with `walferry restore --list`."),
            Error::Generations(_) => {
                Some("Restore an older state with --timestamp, or bring the missing objects back.")
            }
            Error::Object { .. } => Some(
                "Restore an older state with --timestamp, or restore from another replica; keep \
                 this one as it is until you know more.",
            ),
            Error::File { .. }
            | Error::Chain { .. }
            | Error::PageSize { .. }
            | Error::Missing { .. }
            | Error::Database { .. }
            | Error::Integrity { .. } => Some(
                "Restore an older state with --txid, or restore from another replica; keep this \
                 one as it is until you know more.",
            ),
            Error::BrokenOff { .. } => Some(
                "What was restored so far is kept beside the output: the same command goes on from \
                 there.",
            ),
            Error::Copy { why: Refusal::NotShipped, .. } => Some(
                "Ship it with `walferry sync`, or say --force twice: what was packed and not shipped \
                 is then moved aside in its folder -walferry, and the rest is gone.",
            ),
            Error::Copy { why: Refusal::Open(_) | Refusal::Shipped(_), .. } => {
                Some("End that program first, or restore to a new path.")
            }
            Error::Copy { why: Refusal::Unshipped, .. } => Some(
                "Ship it with `walferry sync`, or give that up with `walferry reset` and restore to \
                 a new path.",
            ),
            Error::Copy { .. } | Error::Exists { .. } => Some(
                "Restore to a new path, move what is there out of the way, or replace it with --force.",
            ),
            Error::Output { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("Make room, or restore to another file system.")
            }
            Error::Path { .. } | Error::Output { .. } | Error::Busy { .. } | Error::Internal(_) => {
                None
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Store(error) => error.fmt(f),
            Error::Plan(error) => error.fmt(f),
            Error::TooEarly { at, range } => write!(
                f,
                "the replica has no state as old as {at}; it has those from {} to {}",
                range.first, range.last
            ),
            Error::Generations(error) => error.fmt(f),
            Error::Object { path, what } => {
                write!(f, "{path} of the replica cannot be used: {what}")
            }
            Error::File { key, .. } => write!(f, "file {key} of the replica cannot be used"),
            Error::Chain { older, newer } => write!(
                f,
                "file {newer} of the replica was not made from the state that {older} leads to: \
                 their database checksums differ"
            ),
            Error::PageSize { older, newer } => write!(
                f,
                "the page size changes from file {older} to file {newer}, which is no full image"
            ),
            Error::Missing { first, count, key } => write!(
                f,
                "{count} pages of the database that file {key} leads to are in none of the files, \
                 the first is page {first}"
            ),
            Error::Database { key, expected, found } => write!(
                f,
                "the restored database has checksum {found}, but file {key} names {expected}"
            ),
            Error::BrokenOff { source, .. } => source.fmt(f),
            Error::Busy { path, pid } => {
                write!(f, "another restore to {} is at work", path.display())?;
                pid.map_or(Ok(()), |pid| write!(f, ": process {pid}"))
            }
            Error::Copy { path, why } => {
                write!(f, "{} is not replaced: {why}", path.display())
            }
            Error::Exists { path } => write!(f, "{} exists already", path.display()),
            Error::Path { path, why } => write!(f, "{}: {why}", path.display()),
            Error::Output { path, doing, .. } => write!(f, "{doing} {} failed", path.display()),
            Error::Integrity { findings } => {
                write!(f, "SQLite finds faults in the restored database: {}", findings.join("; "))
            }
            Error::Internal(what) => write!(f, "the restore stopped: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // The error itself is shown in place of its wrapper, so the source is the cause below it.
            Error::Store(error) | Error::BrokenOff { source: error, .. } => error.source(),
            Error::File { source, .. } => Some(source),
            Error::Output { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Error {
        Error::Store(error)
    }
}

impl From<plan::generations::Error> for Error {
    fn from(error: plan::generations::Error) -> Error {
        Error::Generations(error)
    }
}

impl From<plan::Error> for Error {
    fn from(error: plan::Error) -> Error {
        Error::Plan(error)
    }
}

/// Returns a function for `map_err` that adds the operation and the path to an I/O error.
pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Output { path, doing, source }
}
