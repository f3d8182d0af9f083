//! The WAL as SQLite writes it (<https://sqlite.org/fileformat2.html#the_write_ahead_log>):
//! where a frame is, what its header says, and which frame holds the newest image of each page.
//!
//! Frames of a live WAL are not judged by their salts or checksums: SQLite before 3.50.2 commits
//! frames with zero salts after `ROLLBACK TO` in a spilled transaction. Which frames are committed
//! is what the wal-index says ([`WalIndex`]); the bytes are then read from the file.

#![deny(clippy::indexing_slicing)]

mod chain;
mod commits;
pub mod evidence;
mod frames;
mod index;
mod newest;
#[cfg(test)]
mod tests;

pub use chain::{Recovered, Tail, reaches, recover, tail};
pub use commits::{Commits, count_commits};
pub(crate) use frames::parts;
pub use frames::{
    FrameHeader, FrameSet, ReadAt, WalHeader, checksum_at, frame_offset, read_frame_page,
};
pub use index::WalIndex;
pub use newest::{Newest, Walk};

/// Length of the WAL's header in bytes.
pub const WAL_HEADER_LEN: u64 = 32;
/// A WAL that is not there.
pub const NO_WAL: &[u8] = &[];
/// Length of a frame's header in bytes.
pub const FRAME_HEADER_LEN: usize = 24;
