//! Status of an engine, for people.

use super::Failure;
use super::Millis;
use crate::units::{Txid, WriterId};

/// State of a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The local state is being read.
    Opening,
    /// A full image is being taken, or is about to be.
    Imaging,
    /// Commits are shipped as they come.
    Streaming,
    /// The last attempt failed; the next follows after a wait.
    Waiting,
    /// Another writer owns the replica; nothing is shipped any more.
    Fenced {
        /// The other writer.
        by: WriterId,
        /// TXID at which that writer was found.
        at: Txid,
    },
}

/// A summary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// State of the database.
    pub phase: Phase,
    /// Last TXID given to a closed file.
    pub sealed: Txid,
    /// Last TXID that the store confirmed.
    pub acked: Txid,
    /// Time of the oldest commit that the store has not confirmed.
    pub unacked_since: Option<Millis>,
    /// Reason of the last failure, until an attempt succeeds.
    pub failure: Option<Failure>,
}
