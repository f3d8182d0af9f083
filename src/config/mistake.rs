//! What is wrong with a file: where, which key, why, and what to write instead.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Given;

/// One mistake, or one thing worth knowing. It never holds a value that may be secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    /// From 1; 0 if it is about the file as a whole.
    pub line: usize,
    /// Path of the key, such as `dbs[0].replica.retention`; empty if it is about none.
    pub key: String,
    /// What is wrong, and what to do.
    pub what: String,
}

impl Mistake {
    pub(super) fn at(line: usize, key: &str, what: impl Into<String>) -> Mistake {
        Mistake { line, key: key.to_string(), what: what.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}: ", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// A file that cannot be used, with all that is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// The file.
    pub file: PathBuf,
    /// At least one, in the order of their lines.
    pub mistakes: Vec<Mistake>,
    /// The file says `strict: true`, as far as that can be read.
    pub strict: bool,
    /// The file's value of `uri-parameters`, as far as that can be read.
    pub uri: Option<Box<Given>>,
}

impl Broken {
    pub(super) fn because(file: &Path, what: impl Into<String>) -> Broken {
        let mistakes = vec![Mistake::at(0, "", what)];
        Broken { file: file.into(), mistakes, strict: false, uri: None }
    }
}

impl fmt::Display for Broken {
    /// One line a mistake: `file:line: key: what`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.mistakes.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            let colon = if mistake.line > 0 { ":" } else { ": " };
            write!(f, "{end}{}{colon}{mistake}", self.file.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for Broken {}
