//! Errors of a follower, with advice for the user.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::local;
use crate::ltx;
use crate::plan;
use crate::restore;
use crate::store::{self, Key};
use crate::units::Txid;

/// Reason why the copy was not brought forward. The copy is still a valid database, in the state of the last
/// step.
#[derive(Debug)]
pub enum Error {
    /// The store did not answer, or refused.
    Store(store::Error),
    /// The replica's files do not lead to its newest state.
    Plan(plan::Error),
    /// The restore of the whole database failed.
    Restore(restore::Error),
    /// A file is damaged, or does not match its name.
    File {
        /// The damaged file.
        key: Key,
        /// The damage.
        source: ltx::Error,
    },
    /// The replica has only states of Litestream 0.3, which has no transactions to follow.
    Generations,
    /// The replica ends before the state that the copy has.
    Back {
        /// The copy's state.
        at: Txid,
        /// The replica's newest state; `None` if the replica has no files.
        head: Option<Txid>,
    },
    /// Another program has written to the copy.
    Changed(PathBuf),
    /// A database is at the path, and no file beside it says that it is a copy of this replica.
    Unknown(PathBuf),
    /// The database is a copy of another replica.
    OtherReplica {
        /// The copy.
        path: PathBuf,
        /// The replica of the copy.
        replica: String,
    },
    /// The database is no copy: it is replicated from here.
    Original(PathBuf),
    /// Another process follows or replicates the database.
    Busy {
        /// The copy.
        path: PathBuf,
        /// The process, if known.
        pid: Option<u32>,
    },
    /// The copy must be replaced as a whole, and programs have it open.
    Readers(PathBuf),
    /// An operation of SQLite failed.
    Sqlite {
        /// The copy.
        path: PathBuf,
        /// The operation that failed.
        doing: &'static str,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    /// A file beside the copy could not be read or written.
    Local(local::Error),
    /// The SQLite of this build lacks `sqlite_dbpage`.
    Build,
    /// The follower was stopped in the middle of a step, which is rolled back.
    Stopped,
    /// A part of the program stopped without an error of its own.
    Internal(&'static str),
}

impl Error {
    /// Returns advice for the user, in one or two sentences.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Error::Restore(error) => error.advice(),
            Error::Generations => Some(
                "Restore it again and again instead, or let the program that writes it go on with \
                 walferry or Litestream 0.5.",
            ),
            Error::Back { .. } => Some(
                "If the replica is right, remove the copy and its folder -walferry, and follow anew; \
                 what only the copy has is lost then.",
            ),
            Error::Changed(_) => Some(
                "Keep what was written there if it matters, then remove the copy and its folder \
                 -walferry, and follow anew. A copy that is followed is only to be read.",
            ),
            Error::Unknown(_) | Error::OtherReplica { .. } | Error::Original(_) => {
                Some("Follow to a new path, or move what is there out of the way.")
            }
            Error::Busy { .. } => Some("End that program first, or follow to a new path."),
            Error::Readers(_) => Some("It goes on when they have closed it."),
            Error::Build => Some(
                "Build it with LIBSQLITE3_FLAGS=SQLITE_ENABLE_DBPAGE_VTAB, as `make build` does.",
            ),
            _ => None,
        }
    }

    /// True if the error may pass without a restart, so that the follower tries again.
    pub(super) fn passes(&self) -> bool {
        match self {
            Error::Store(error) | Error::Restore(restore::Error::Store(error)) => {
                // The store has worked before. A person can mend errors such as rejected credentials from
                // outside.
                error.kind != store::ErrorKind::Invalid
            }
            // Files come and go while the follower looks at them. A writer may mend its replica with an image,
            // and a user can free disk space.
            Error::Plan(_)
            | Error::Restore(
                restore::Error::Plan(_)
                | restore::Error::File { .. }
                | restore::Error::Chain { .. }
                | restore::Error::PageSize { .. }
                | restore::Error::Missing { .. }
                | restore::Error::Database { .. }
                | restore::Error::BrokenOff { .. }
                | restore::Error::Output { .. },
            )
            | Error::Back { .. }
            | Error::File { .. }
            | Error::Readers(_)
            | Error::Local(_) => true,
            Error::Sqlite { source, .. } => source.sqlite_error_code().is_some_and(|code| {
                use rusqlite::ErrorCode::{
                    DatabaseBusy, DatabaseLocked, DiskFull, SystemIoFailure,
                };
                matches!(code, DatabaseBusy | DatabaseLocked | DiskFull | SystemIoFailure)
            }),
            _ => false,
        }
    }

    pub(super) fn sqlite(
        path: &Path,
        doing: &'static str,
    ) -> impl FnOnce(rusqlite::Error) -> Error + use<> {
        let path = path.to_path_buf();
        move |source| Error::Sqlite { path, doing, source }
    }

    pub(super) fn local(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let message = format!("{what} {}", path.display());
        move |source| Error::Local(local::Error { message, source })
    }

    pub(super) fn corrupt(key: Key, what: impl Into<String>) -> Error {
        Error::File { key, source: ltx::Error::Corrupt(what.into()) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Store(error) => error.fmt(f),
            Error::Plan(error) => error.fmt(f),
            Error::Restore(error) => error.fmt(f),
            Error::File { key, .. } => write!(f, "file {key} of the replica cannot be used"),
            Error::Generations => {
                f.write_str("what Litestream 0.3 wrote has no transactions that could be followed")
            }
            Error::Back { at, head: Some(head) } => {
                write!(f, "the copy is at TXID {at}, but the replica ends at {head}")
            }
            Error::Back { at, head: None } => {
                write!(f, "the copy is at TXID {at}, but the replica holds no files any more")
            }
            Error::Changed(path) => {
                write!(f, "somebody else has written to {}", path.display())
            }
            Error::Unknown(path) => write!(
                f,
                "{} is there, and nothing beside it says that it is a copy of this replica",
                path.display()
            ),
            Error::OtherReplica { path, replica } => {
                write!(f, "{} is a copy of another replica, {replica}", path.display())
            }
            Error::Original(path) => {
                write!(f, "{} is no copy: it was replicated from here", path.display())
            }
            Error::Busy { path, pid } => {
                let who = pid.map_or("another process".to_string(), |pid| format!("process {pid}"));
                write!(f, "{who} follows or replicates {}", path.display())
            }
            Error::Readers(path) => write!(
                f,
                "the page size has changed, so {} must be replaced as a whole, but a program has it \
                 open",
                path.display()
            ),
            Error::Sqlite { path, doing, .. } => write!(f, "{doing} {} failed", path.display()),
            Error::Local(error) => f.write_str(&error.message),
            Error::Build => {
                f.write_str("this program was built with a SQLite that cannot write single pages")
            }
            Error::Stopped => f.write_str("it was asked to end"),
            Error::Internal(what) => write!(f, "following stopped: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // The error itself is shown in place of its wrapper, so the source is the cause below it.
            Error::Store(error) => error.source(),
            Error::Restore(error) => error.source(),
            Error::File { source, .. } => Some(source),
            Error::Sqlite { source, .. } => Some(source),
            Error::Local(error) => Some(&error.source),
            _ => None,
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Error {
        Error::Store(error)
    }
}

impl From<plan::Error> for Error {
    fn from(error: plan::Error) -> Error {
        Error::Plan(error)
    }
}

impl From<restore::Error> for Error {
    fn from(error: restore::Error) -> Error {
        Error::Restore(error)
    }
}

impl From<local::Error> for Error {
    fn from(error: local::Error) -> Error {
        Error::Local(error)
    }
}
