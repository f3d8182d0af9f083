//! The LTX file format, as Litestream 0.5 writes and reads it. A file holds the pages that a range
//! of transactions changed, each page in its newest version.
//!
//! Everything in a file is big-endian, without padding:
//!
//! | section | bytes |
//! |---|---|
//! | header | 100, see [`header`] |
//! | page frames, ascending | 6 + 4 + n each, see [`page`] |
//! | end of pages | 6 zero bytes |
//! | page index | varints, see [`index`] |
//! | length of the index | 8 |
//! | trailer | 8 post-apply checksum (0), 8 file checksum |
//!
//! This module does I/O only through the `Read` and `Write` of its callers, and checks every length
//! in a file before use.

#![deny(clippy::indexing_slicing)]

pub mod checksum;
mod combine;
pub mod decode;
pub mod encode;
mod error;
pub mod header;
pub mod index;
pub(crate) mod lz4;
pub mod merge;
pub mod name;
pub mod page;
#[cfg(test)]
mod tests;

pub use checksum::{Checksum, DatabaseChecksum};
pub use decode::Decoder;
pub use encode::{Encoded, Encoder, Ending};
pub use error::Error;
pub use header::{Header, Tag};
pub use name::FileName;

/// Length of the file header in bytes.
pub const HEADER_LEN: usize = 100;
/// Length of a page frame's header in bytes: page number and flags.
pub const PAGE_HEADER_LEN: usize = 6;
/// Length of the trailer in bytes.
pub const TRAILER_LEN: usize = 16;
/// Length of the field after the index that gives the index's length.
pub const INDEX_SIZE_LEN: usize = 8;
/// Length of the shortest valid file: header, end of pages, an empty index, trailer.
pub const MIN_FILE_LEN: u64 =
    (HEADER_LEN + PAGE_HEADER_LEN + 1 + INDEX_SIZE_LEN + TRAILER_LEN) as u64;
