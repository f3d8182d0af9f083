//! The origin of a value.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A value and its origin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// Text of the value. A value of the file has its variables replaced, and the form that settings have.
    pub text: String,
    /// Origin of the value.
    pub origin: Origin,
}

/// Origin of a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A parameter in the database's URI.
    Parameter,
    /// The environment variable of this name.
    Variable(String),
    /// The configuration file.
    File {
        /// Path of the file.
        file: Arc<Path>,
        /// Line number from 1.
        line: usize,
        /// Path of the key.
        key: String,
    },
    /// No value was given.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Parameter => f.write_str("URI parameter"),
            Origin::Variable(name) => f.write_str(name),
            Origin::File { file, line, key } => write!(f, "{}:{line} {key}", file.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}
