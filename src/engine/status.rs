//! What people are shown of an engine.

use super::Failure;
use super::Millis;
use crate::units::{Txid, WriterId};

/// Where a database stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Local state is being read.
    Opening,
    /// A full image is being taken, or is about to be.
    Imaging,
    /// Commits are shipped as they come.
    Streaming,
    /// The last attempt failed; the next comes after a wait.
    Waiting,
    /// Another writer owns the replica; nothing is shipped any more.
    Fenced {
        /// Who.
        by: WriterId,
        /// The TXID at which it was found.
        at: Txid,
    },
}

/// A summary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Where the database stands.
    pub phase: Phase,
    /// Last TXID given to a closed file.
    pub sealed: Txid,
    /// Last TXID that the store confirmed.
    pub acked: Txid,
    /// When the oldest commit was made that the store has not confirmed.
    pub unacked_since: Option<Millis>,
    /// Why the last attempt failed, until one succeeds.
    pub failure: Option<Failure>,
}
