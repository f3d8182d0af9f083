//! What the engine asks for.

use crate::ltx::DatabaseChecksum;
use crate::units::{Level, Txid};

/// One thing to do. Its end is reported as the event named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Ask the store for the newest TXID of the replica: `HeadFound` or `RequestFailed`.
    FindHead,
    /// Look whether an image that was sent before a crash is there and ours: `Confirmed` or
    /// `RequestFailed`.
    Confirm {
        /// Level of the file.
        level: Level,
        /// First TXID in its name.
        min: Txid,
        /// Last TXID in its name.
        max: Txid,
    },
    /// Send the whole database as one file: `ImageSent`, `ImageRefused` or `ImageFailed`.
    Image {
        /// Level: snapshots for the first file of a replica, 0 for a later one.
        level: Level,
        /// TXID of the file.
        txid: Txid,
        /// Database checksum that the replica's last file leaves, where it tells.
        pre_apply: Option<DatabaseChecksum>,
    },
    /// Close what was captured as this TXID: `Closed` or `LocalFailed`.
    Close {
        /// TXID of the file.
        txid: Txid,
    },
    /// Compare the database with the page table and close what differs: `Closed` or `LocalFailed`.
    Resync {
        /// TXID of the file.
        txid: Txid,
        /// Whether to compare all pages; else the captured ones are all that there is.
        scan: bool,
        /// Whether a file must be made even if nothing differs: page 1 as it stands.
        claim: bool,
    },
    /// Create the closed file at the store, if none of its name is there: `PutDone`, `PutRefused`
    /// or `RequestFailed`.
    Put {
        /// TXID of the file.
        txid: Txid,
    },
    /// Find out whose file has this TXID: `Inspected` or `RequestFailed`.
    Inspect {
        /// TXID of the file.
        txid: Txid,
    },
}
