//! Events that the engine is told.

use super::Millis;
use crate::ltx::DatabaseChecksum;
use crate::store::ErrorKind;
use crate::units::{Level, Timestamp, Txid, WriterId};

/// An event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Contents of local state, spool and WAL, after they were compared with each other.
    Opened(Opened),
    /// Transactions were committed.
    Committed {
        /// Time of the oldest commit not yet reported.
        at: Millis,
    },
    /// The close under way has taken in commits that were not reported yet.
    TakenIn {
        /// Time of the oldest of these commits.
        at: Millis,
    },
    /// A caller waits: close and ship without regard to interval and backoff.
    Hurry,
    /// A caller waits for the store at the usual pace.
    Asked,
    /// Capture cannot guarantee that it has seen every commit.
    Diverged,
    /// The page table cannot serve as a base, as when the database has another page size.
    ImageNeeded,
    /// `Close` or `Resync` is done, and made the file of this TXID; `None` if there was nothing to close.
    Closed(Option<Txid>),
    /// The reported commit was no transaction: the WAL was restarted.
    FoundNothing,
    /// `Close` or `Resync` failed.
    LocalFailed(Failure),
    /// `Image` is done and the store confirmed the file.
    ImageSent {
        /// TXID of the file.
        txid: Txid,
        /// True if every commit reported so far is in the image.
        complete: bool,
    },
    /// `Image` found a file of that name.
    ImageRefused,
    /// `Image` was sent whole, but the store's answer leaves open whether the file is there, and whose it is.
    ImageUnsure {
        /// Level of the file.
        level: Level,
        /// First TXID in the file's name.
        min: Txid,
        /// TXID of the file.
        txid: Txid,
    },
    /// `Image` failed.
    ImageFailed(Failure),
    /// The replica's newest TXID; `None` for an empty replica.
    HeadFound(Option<Head>),
    /// The replica lacks files that the store had confirmed: the replica was emptied or replaced. A further
    /// file would have no predecessor.
    ReplicaLost,
    /// The store has answered `Confirm`.
    Confirmed {
        /// True if the image is there and ours.
        arrived: bool,
    },
    /// The store confirmed a file.
    PutDone {
        /// TXID of the file.
        txid: Txid,
    },
    /// The store already had a file of that name.
    PutRefused {
        /// TXID of the file.
        txid: Txid,
    },
    /// The writer of a file was found out.
    Inspected {
        /// TXID of the file.
        txid: Txid,
        /// The result.
        verdict: Verdict,
    },
    /// A request of the store failed; it may have taken effect.
    RequestFailed(Failure),
}

/// State found on the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// True if a file of our lineage is in the log.
    pub claimed: bool,
    /// Last TXID that the store is known to have.
    pub acked: Txid,
    /// Closed files in the spool, oldest first, contiguous behind `acked`.
    pub closed: Vec<Closed>,
    /// True if commits were captured, or wait in the WAL, behind the last closed file.
    pub uncommitted_since_close: bool,
    /// Earliest possible time of the oldest commit that is in no closed file.
    pub since: Millis,
    /// Work that must be done before the log can continue.
    pub need: Need,
    /// False if the local state may be older than the log, as after a power loss. Then only a look at the store
    /// shows that the store lacks nothing.
    pub sure: bool,
}

/// Work that must be done before the log can continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// None: the WAL continues where the log ends.
    Nothing,
    /// A comparison of the database with the page table.
    Resync,
    /// A full image: there is no page table, or it has another page size.
    Image,
    /// The store's answer whether an earlier process's image is there.
    Confirm {
        /// Level of the file.
        level: Level,
        /// First TXID in the file's name.
        min: Txid,
        /// TXID of the file.
        txid: Txid,
    },
}

/// A closed file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// TXID of the file.
    pub txid: Txid,
    /// Time of the oldest commit in the file.
    pub committed_at: Millis,
    /// True if a put found the file's name taken, and the writer of the file there is still unknown.
    pub refused: bool,
}

impl Closed {
    /// Returns a file that was just closed.
    pub fn new(txid: Txid, committed_at: Millis) -> Closed {
        Closed { txid, committed_at, refused: false }
    }
}

/// End of the replica's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Newest TXID over all levels.
    pub txid: Txid,
    /// Database checksum after that TXID's file, if the file has our tag.
    pub post_apply: Option<DatabaseChecksum>,
    /// Commit time of the file; 0 if it cannot be read.
    pub timestamp: Timestamp,
    /// Writer of the file; 0 for Litestream.
    pub writer: WriterId,
}

/// Result of an inspection of the file of a TXID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The file that we put, byte for byte.
    Ours,
    /// Another file.
    Foreign {
        /// Writer of the file; 0 for Litestream.
        writer: WriterId,
    },
    /// There is no file.
    Missing,
}

/// Reason why an action failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The local disk or the database failed.
    Local {
        /// Attempted operation, its path, and the reason of the failure.
        message: String,
    },
    /// The store failed.
    Store {
        /// Kind of the error, which shows the remedy.
        kind: ErrorKind,
        /// Attempted operation, its key, and the reason of the failure.
        message: String,
    },
}

impl Failure {
    /// Returns the failure of a store, with all causes of the error.
    pub(crate) fn of_store(error: &crate::store::Error) -> Failure {
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = inner.source();
        }
        Failure::Store { kind: error.kind, message }
    }

    /// Returns the text for people.
    pub fn message(&self) -> &str {
        match self {
            Failure::Local { message } | Failure::Store { message, .. } => message,
        }
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self, Failure::Local { .. })
    }

    pub(super) fn is_store(&self) -> bool {
        matches!(self, Failure::Store { .. })
    }

    /// True if the place of the replica is gone. A replica that appears there next may be another.
    pub fn is_no_replica(&self) -> bool {
        matches!(self, Failure::Store { kind: ErrorKind::NoReplica, .. })
    }

    /// True if the local file that was to be uploaded caused the failure.
    pub(crate) fn is_of_local_file(&self) -> bool {
        matches!(self, Failure::Store { kind: ErrorKind::Local, .. })
    }

    /// True if the failure will not pass by itself soon: a person has to change something.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self, Failure::Store { kind, .. } if !kind.is_transient())
    }
}
