//! Cuts a requested range to a file's length, in the same way for every backend.

use std::ops::Range;

use super::{Error, ErrorKind};

/// Returns the part of a file of `len` bytes that `range` asks for. `what` names the file in an error.
pub(super) fn within(
    range: Option<&Range<u64>>,
    len: u64,
    what: impl std::fmt::Display,
) -> Result<Range<u64>, Error> {
    match range {
        None => Ok(0..len),
        Some(range) if range.start >= range.end => Ok(0..0),
        Some(range) if range.start >= len => Err(past_end(range, what)),
        Some(range) => Ok(range.start..range.end.min(len)),
    }
}

/// Returns the error for a range that begins at or past the end.
pub(super) fn past_end(range: &Range<u64>, what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Other,
        format!("{what} ends before byte {}, where a read was to begin", range.start),
    )
}
