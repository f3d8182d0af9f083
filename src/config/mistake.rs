//! The mistakes of a file: line, key, reason, and a correction.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Given;

/// A mistake, or a note. It never holds a value that may be secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    /// Line number from 1; 0 for the file as a whole.
    pub line: usize,
    /// Path of the key, such as `dbs[0].replica.retention`; empty if the mistake has no key.
    pub key: String,
    /// The mistake, and its correction.
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

/// A file that cannot be used, with all its mistakes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// The file.
    pub file: PathBuf,
    /// At least one mistake, in the order of lines.
    pub mistakes: Vec<Mistake>,
    /// True if the file says `strict: true`, as far as the file can be read.
    pub strict: bool,
    /// The file's value of `uri-parameters`, as far as the file can be read.
    pub uri: Option<Box<Given>>,
}

impl Broken {
    pub(super) fn because(file: &Path, what: impl Into<String>) -> Broken {
        let mistakes = vec![Mistake::at(0, "", what)];
        Broken { file: file.into(), mistakes, strict: false, uri: None }
    }
}

impl fmt::Display for Broken {
    /// Writes one line for each mistake: `file:line: key: what`.
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
