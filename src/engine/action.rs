//! Actions that the engine asks for.

use crate::ltx::DatabaseChecksum;
use crate::units::{Level, Txid};

/// An action. The shell reports its end as one of the events named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Ask the store for the newest TXID of the replica: `HeadFound` or `RequestFailed`.
    FindHead,
    /// Ask the store whether an image that was sent before a crash is there and ours: `Confirmed` or
    /// `RequestFailed`.
    Confirm {
        /// Level of the file.
        level: Level,
        /// First TXID in its name.
        min: Txid,
        /// Last TXID in its name.
        max: Txid,
    },
    /// Send the whole database as one file: `ImageSent`, `ImageRefused`, `ImageUnsure` or `ImageFailed`.
    Image {
        /// Level of the file: the snapshot level for the first file of a replica, 0 for a later file.
        level: Level,
        /// TXID of the file.
        txid: Txid,
        /// Database checksum after the replica's last file, if that file names it.
        pre_apply: Option<DatabaseChecksum>,
    },
    /// Close the captured frames as the file of this TXID: `Closed` or `LocalFailed`.
    Close {
        /// TXID of the file.
        txid: Txid,
    },
    /// Compare the database with the page table, and close a file of the pages that differ: `Closed` or
    /// `LocalFailed`.
    Resync {
        /// TXID of the file.
        txid: Txid,
        /// True to compare all pages. Otherwise the captured pages are complete.
        scan: bool,
        /// True to make a file even if nothing differs. That file holds page 1 as it is.
        claim: bool,
    },
    /// Create the closed file at the store, if there is no file of its name: `PutDone`, `PutRefused` or
    /// `RequestFailed`. The check before it may end in `ReplicaLost` or `Inspected`.
    Put {
        /// TXID of the file.
        txid: Txid,
    },
    /// Find out the writer of the file of this TXID: `Inspected` or `RequestFailed`.
    Inspect {
        /// TXID of the file.
        txid: Txid,
    },
}
