//! Errors of reading and writing LTX files.

use std::fmt;
use std::io;

/// Reason why an LTX file could not be written or read.
#[derive(Debug)]
pub enum Error {
    /// The reader or writer underneath failed.
    Io(io::Error),
    /// The file is cut off in the section of this name.
    Truncated(&'static str),
    /// The bytes are no LTX file, or differ from those that the file checksum covers.
    Corrupt(String),
    /// The caller broke a rule of the format; the output is not usable.
    Rule(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(_) => f.write_str("reading or writing an LTX file failed"),
            Error::Truncated(section) => write!(f, "the file is cut off in its {section}"),
            Error::Corrupt(what) => write!(f, "the file is corrupt: {what}"),
            Error::Rule(what) => write!(f, "not allowed in an LTX file: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(source) => Some(source),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

/// Maps the error of reading a named section: an early end of input to `Truncated`, all others to `Io`.
pub(crate) fn section<T>(result: io::Result<T>, name: &'static str) -> Result<T, Error> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated(name),
        _ => Error::Io(error),
    })
}

pub(crate) fn corrupt<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Corrupt(what.into()))
}

pub(crate) fn rule<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Rule(what.into()))
}
