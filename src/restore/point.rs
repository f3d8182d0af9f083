//! The state of a database that a restore leads to.

use crate::units::{Timestamp, Txid};

/// Target of a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The newest state of the replica.
    Latest,
    /// The state after exactly this transaction.
    Txid(Txid),
    /// The last shipped state with a commit time at or before this time.
    Time(Timestamp),
}

/// The commit times that a replica covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Commit time of the oldest state.
    pub first: Timestamp,
    /// Commit time of the newest state.
    pub last: Timestamp,
}
