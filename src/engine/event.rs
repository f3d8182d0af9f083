//! What the engine is told.

use super::Millis;
use crate::ltx::DatabaseChecksum;
use crate::store::ErrorKind;
use crate::units::{Level, Timestamp, Txid, WriterId};

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// What the local state, the spool and the WAL say, after they were held against each other.
    Opened(Opened),
    /// Transactions were committed; the oldest one not yet reported, at this time.
    Committed {
        /// When.
        at: Millis,
    },
    /// The close under way has taken in commits that were not reported yet, the oldest of this
    /// time.
    TakenIn {
        /// When.
        at: Millis,
    },
    /// Somebody waits: close and ship without regard to interval and backoff.
    Hurry,
    /// A caller waits for the store at the natural pace.
    Asked,
    /// Capture can not vouch for having seen every commit.
    Diverged,
    /// The page table cannot serve as a base: the database has another page size.
    ImageNeeded,
    /// `Close` or `Resync` is done, and made the file of this TXID; `None` when there was nothing to close.
    Closed(Option<Txid>),
    /// What was reported as committed was no transaction: a WAL that was begun anew.
    FoundNothing,
    /// `Close` or `Resync` failed.
    LocalFailed(Failure),
    /// `Image` is done and the store confirmed the file.
    ImageSent {
        /// Its TXID.
        txid: Txid,
        /// Whether every commit reported so far is in it.
        complete: bool,
    },
    /// `Image` found a file of that name.
    ImageRefused,
    /// `Image` was sent whole, but the store's answer leaves open whether it is there, or whose file
    /// is.
    ImageUnsure {
        /// Level of the file.
        level: Level,
        /// First TXID in its name.
        min: Txid,
        /// Its TXID.
        txid: Txid,
    },
    /// `Image` failed.
    ImageFailed(Failure),
    /// The replica's newest TXID; `None` for an empty replica.
    HeadFound(Option<Head>),
    /// The replica does not hold any more what the store confirmed: somebody emptied or replaced
    /// it. Whatever comes next would have nothing to follow.
    ReplicaLost,
    /// Whether the image is there and ours.
    Confirmed {
        /// It is.
        arrived: bool,
    },
    /// The store confirmed a file.
    PutDone {
        /// Its TXID.
        txid: Txid,
    },
    /// A file of that name was there already.
    PutRefused {
        /// Its TXID.
        txid: Txid,
    },
    /// Whose file it is.
    Inspected {
        /// Its TXID.
        txid: Txid,
        /// The answer.
        verdict: Verdict,
    },
    /// A request of the store failed; it may have taken effect.
    RequestFailed(Failure),
}

/// What was found on the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Whether a file of our lineage is in the log.
    pub claimed: bool,
    /// Last TXID that the store is known to have.
    pub acked: Txid,
    /// Closed files in the spool, oldest first, contiguous behind `acked`.
    pub closed: Vec<Closed>,
    /// Whether commits were captured, or wait in the WAL, behind the last closed file.
    pub uncommitted_since_close: bool,
    /// When the oldest commit was made, at the earliest, that is in no closed file.
    pub since: Millis,
    /// What must happen before the log can go on.
    pub need: Need,
    /// False where the local state may be older than the log, as after a power loss: that the store lacks
    /// nothing is only known once it was looked at.
    pub sure: bool,
}

/// What must happen before the log can go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Nothing: the WAL goes on where the log ends.
    Nothing,
    /// A comparison of the database with the page table.
    Resync,
    /// A full image: there is no page table, or it is of another page size.
    Image,
    /// An answer whether the image that an earlier process sent is there.
    Confirm {
        /// Level of the file.
        level: Level,
        /// First TXID in its name.
        min: Txid,
        /// Its TXID.
        txid: Txid,
    },
}

/// A closed file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// Its TXID.
    pub txid: Txid,
    /// When the oldest commit in it was made.
    pub committed_at: Millis,
    /// A put found its name taken, and it is not known yet by whom.
    pub refused: bool,
}

impl Closed {
    /// A file that was just closed.
    pub fn new(txid: Txid, committed_at: Millis) -> Closed {
        Closed { txid, committed_at, refused: false }
    }
}

/// Where the replica's log stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Newest TXID over all levels.
    pub txid: Txid,
    /// The database checksum that its file leaves, if it has our tag.
    pub post_apply: Option<DatabaseChecksum>,
    /// Its commit time; 0 if it cannot be read.
    pub timestamp: Timestamp,
    /// Who wrote it; 0 for Litestream.
    pub writer: WriterId,
}

/// Whose file has a TXID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Byte for byte the one that we put.
    Ours,
    /// Another one.
    Foreign {
        /// Who wrote it; 0 for Litestream.
        writer: WriterId,
    },
    /// There is none.
    Missing,
}

/// Why an action failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The local disk or the database.
    Local {
        /// What was tried, on which path, and why it failed.
        message: String,
    },
    /// The store.
    Store {
        /// What can be done.
        kind: ErrorKind,
        /// What was tried, on which key, and why it failed.
        message: String,
    },
}

impl Failure {
    /// What a store says, with all that is behind it.
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

    /// The text for people.
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

    /// Whether the place where the replica was is gone: what comes there next may be another.
    pub fn is_no_replica(&self) -> bool {
        matches!(self, Failure::Store { kind: ErrorKind::NoReplica, .. })
    }

    /// Whether it was the local file that was to be sent.
    pub(crate) fn is_of_local_file(&self) -> bool {
        matches!(self, Failure::Store { kind: ErrorKind::Local, .. })
    }

    /// Whether it will not pass by itself soon: somebody has to change something.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self, Failure::Store { kind, .. } if !kind.is_transient())
    }
}
