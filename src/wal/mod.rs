//! The WAL as SQLite writes it (<https://sqlite.org/fileformat2.html#the_write_ahead_log>): offsets and
//! headers of frames, and the frame with the newest version of each page.
//!
//! In a live WAL, the wal-index ([`WalIndex`]) tells which frames are committed; their bytes are then
//! read from the file. Salts and checksums of the frames cannot tell: SQLite before 3.50.2 commits
//! frames with zero salts after `ROLLBACK TO` in a spilled transaction.

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
/// Contents of a WAL that does not exist.
pub const NO_WAL: &[u8] = &[];
/// Length of a frame's header in bytes.
pub const FRAME_HEADER_LEN: usize = 24;
