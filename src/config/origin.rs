//! Where a value comes from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A value and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// As it was written.
    pub text: String,
    /// Where.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A parameter in the database's URI.
    Parameter,
    /// The environment variable of this name.
    Variable(String),
    /// The configuration file.
    File {
        /// Its path.
        file: Arc<Path>,
        /// From 1.
        line: usize,
        /// Path of the key.
        key: String,
    },
    /// Nothing was given.
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
