//! What can stop a restore, and what a person can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::point::Range;
use crate::ltx;
use crate::ltx::DatabaseChecksum;
use crate::plan;
use crate::store::{self, Key};
use crate::units::{Pgno, Timestamp};

/// Why nothing was restored. Whatever the reason, no output file exists.
#[derive(Debug)]
pub enum Error {
    /// The store did not answer, or refused.
    Store(store::Error),
    /// The replica's files do not lead to the target.
    Plan(plan::Error),
    /// Nothing had been shipped yet at the moment that was asked for.
    TooEarly {
        /// The moment.
        at: Timestamp,
        /// What there is.
        range: Range,
    },
    /// What Litestream 0.3 left does not lead to the target.
    Generations(plan::generations::Error),
    /// An object that Litestream 0.3 left is damaged, or one before it is missing.
    Object {
        /// Its path below the replica.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file is damaged, or is not what its name says.
    File {
        /// Which file.
        key: Key,
        /// What is wrong with it.
        source: ltx::Error,
    },
    /// Two files follow each other by their names, but not by their database checksums.
    Chain {
        /// The file before.
        older: Key,
        /// The file that was made from another state than the older one leads to.
        newer: Key,
    },
    /// The page size changes between two files without a full image.
    PageSize {
        /// The file before.
        older: Key,
        /// The file after.
        newer: Key,
    },
    /// No file of the plan holds some pages of the database.
    Missing {
        /// The first such page.
        first: Pgno,
        /// How many there are.
        count: u64,
        /// The last file of the plan, which says how many pages the database has.
        key: Key,
    },
    /// The result is not the database that the last file was made from.
    Database {
        /// The last file.
        key: Key,
        /// The checksum that the file names.
        expected: DatabaseChecksum,
        /// The checksum of what came out.
        found: DatabaseChecksum,
    },
    /// The store failed when much was restored already. That is kept, and the next restore to the
    /// same output goes on with it.
    BrokenOff {
        /// What the store said.
        source: store::Error,
        /// The folder in which it is kept.
        dir: PathBuf,
    },
    /// Another restore to the same output is at work.
    Busy {
        /// The output.
        path: PathBuf,
        /// Its process.
        pid: Option<u32>,
    },
    /// What is at the output's path may not be replaced.
    Copy {
        /// The output.
        path: PathBuf,
        /// Why.
        why: Refusal,
    },
    /// Something is where the output would go, or belongs to a database there.
    Exists {
        /// What is in the way.
        path: PathBuf,
    },
    /// The output path cannot be one.
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Writing the output failed.
    Output {
        /// The file that was written.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite's check of the restored database found faults.
    Integrity {
        /// What SQLite said, line by line.
        findings: Vec<String>,
    },
    /// A part of the program stopped without saying why.
    Internal(&'static str),
}

/// Why a database is not replaced by a newer state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No earlier restore has left its state beside it.
    Unknown,
    /// It was restored from, or replicated to, another replica.
    OtherReplica(String),
    /// It holds, or its spool does, what the replica may not have.
    Unshipped,
    /// A process ships it.
    Shipped(Option<u32>),
    /// Nothing proves that the replica has what is in it.
    NotShipped,
    /// A program has it open; which, if the system tells.
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

    /// What to do about it, in one sentence.
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
            // Shown as the error itself, so what counts is the cause underneath.
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

/// For `map_err` of what is done with a file here.
pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Output { path, doing, source }
}
