//! Failures in the program's own SQLite.

use std::fmt;

use super::{Error, Exit};

/// Why the extension, or a database in it, did not do what was asked, with what the exit status says of it.
#[derive(Debug)]
pub(super) struct Failure {
    message: String,
    exit: Exit,
    source: Option<rusqlite::Error>,
}

impl Failure {
    pub(super) fn because(exit: Exit, message: impl Into<String>) -> Error {
        Error::Sync(Failure { message: message.into(), exit, source: None })
    }

    pub(super) fn sqlite(message: impl Into<String>, source: rusqlite::Error) -> Error {
        Error::Sync(Failure { message: message.into(), exit: Exit::Failure, source: Some(source) })
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}
