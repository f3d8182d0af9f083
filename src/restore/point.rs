//! Which state of a database is meant.

use crate::units::{Timestamp, Txid};

/// What to restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The newest state that the replica knows of.
    Latest,
    /// The state after exactly this transaction.
    Txid(Txid),
    /// The last state that was shipped with a commit time at or before this.
    Time(Timestamp),
}

/// The commit times that a replica covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Of the oldest state.
    pub first: Timestamp,
    /// Of the newest.
    pub last: Timestamp,
}
