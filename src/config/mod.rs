//! The configuration file: YAML with the keys of Litestream's versions 0.3 and 0.5, and some keys of walferry.
//!
//! `Config::parse` works in two steps. `raw` reads each value with its line and checks it against the table of
//! `keys`. `believed` turns the values into databases and replicas. The caller passes the text and the
//! variables; from disk `parse` reads only the links in paths. It finds all mistakes of a file at once, and
//! rejects a file with a mistake as a whole.

mod believed;
mod expand;
mod find;
mod hosts;
pub mod keys;
mod mistake;
mod origin;
mod paths;
pub(crate) mod pattern;
mod raw;
pub mod values;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::believed::Believing;
pub use self::find::{file_of_environment, load};
pub use self::keys::Place;
pub use self::mistake::{Broken, Mistake};
pub use self::origin::{Given, Origin};
use self::raw::Reading;
pub use crate::canonical::canonical;
use crate::store::Access;

/// The contents of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Path of the file.
    pub file: Arc<Path>,
    /// The parameters of a database's URI that count ([`crate::uri`]), if the file names them.
    pub uri: Option<Given>,
    /// Values for every database, also for databases that the file does not list.
    pub global: Layer,
    /// The databases, in the file's order.
    pub databases: Vec<Database>,
    /// Settings of the extension's log.
    pub logging: Logging,
    /// The program that a sidecar runs.
    pub exec: Option<String>,
    /// Keys without effect, with the reasons.
    pub notes: Vec<Mistake>,
}

/// Values by the names of settings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layer {
    /// The values, in the form that settings have.
    pub values: BTreeMap<&'static str, Given>,
    /// Credentials and options of the store.
    pub access: Access,
    /// Origin of the credentials in `access`.
    pub credentials: Option<Origin>,
}

/// An entry of `dbs`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Database {
    /// Path of a database, or with `pattern` of a folder of databases; absolute.
    pub place: PathBuf,
    /// Pattern of the names in the folder that are databases.
    pub pattern: Option<String>,
    /// True if the databases in folders below count, too.
    pub recursive: bool,
    /// True if databases that are made later count, too.
    pub watch: bool,
    /// True if a sidecar restores the database first, if it is missing.
    pub restore: bool,
    /// Values for the database, and for a replica of it that is not in the file.
    pub layer: Layer,
    /// Replicas of the database, in the file's order.
    pub replicas: Vec<Replica>,
    /// Line of the entry.
    pub line: usize,
}

/// A replica of a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replica {
    /// Name of the replica.
    pub name: Option<String>,
    /// Its URL.
    pub url: String,
    /// URL that distinguishes the replica from others.
    pub identity: String,
    /// Values for the replica.
    pub layer: Layer,
    /// Origin of the replica in the file.
    pub origin: Origin,
}

/// The file's settings of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Logging {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: Option<String>,
    /// True if the log has one JSON object a line.
    pub json: bool,
    /// True if the log goes to standard error.
    pub stderr: bool,
    /// File that the log goes to.
    pub file: Option<PathBuf>,
}

/// Returns the value of an environment variable.
pub type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The directories that paths of a file are relative to.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The working directory.
    pub directory: PathBuf,
    /// The directory that `~` stands for.
    pub home: Option<PathBuf>,
}

impl Config {
    /// Reads a file's text. `variable` returns environment variables. Without `variable`, `$` has no special
    /// meaning.
    pub fn parse(
        file: &Path,
        text: &str,
        variable: Option<&Variables<'_>>,
        surroundings: &Surroundings,
    ) -> Result<Config, Broken> {
        let broken = |mut mistakes: Vec<Mistake>| {
            mistakes.sort_by_key(|mistake| mistake.line);
            Broken {
                file: file.into(),
                mistakes,
                strict: says_strict(text),
                uri: says_of_uris(file, text),
            }
        };
        let root = match yaml::parse(text) {
            Ok(Some(root)) if !root.is_null() => root,
            Ok(_) => {
                let what = "the file is empty: remove it, or write dbs: with the databases in it";
                return Err(broken(vec![Mistake::at(0, "", what)]));
            }
            Err(mistake) => return Err(broken(vec![mistake])),
        };
        let mut reading = Reading { variable, mistakes: Vec::new(), notes: Vec::new() };
        let raw = reading.file(&root);
        let mut believing = Believing {
            file: file.into(),
            surroundings,
            mistakes: reading.mistakes,
            notes: reading.notes,
        };
        let config = believing.config(&raw);
        if believing.mistakes.is_empty() { Ok(config) } else { Err(broken(believing.mistakes)) }
    }

    /// Returns the entry for the database at this canonical path, or `None` if the file has none.
    ///
    /// An entry for the database itself goes before the first entry for a folder that contains the database.
    pub fn entry(&self, database: &Path) -> Option<Database> {
        let named =
            |entry: &&Database| entry.pattern.is_none() && canonical(&entry.place) == database;
        if let Some(entry) = self.databases.iter().find(named) {
            return Some(entry.clone());
        }
        self.databases.iter().find_map(|entry| entry.in_folder(database))
    }

    /// Returns the canonical paths of the databases on disk, in the file's order. A database with an entry of
    /// its own need not exist.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in &self.databases {
            for file in entry.files() {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        files
    }
}

/// True if a file that cannot be parsed says `strict: true`.
fn says_strict(text: &str) -> bool {
    values(text, "strict:").any(|(_, value)| matches!(value.as_str(), "true" | "yes" | "on" | "y"))
}

/// Returns the value of `uri-parameters` in a file that cannot be parsed.
fn says_of_uris(file: &Path, text: &str) -> Option<Box<Given>> {
    let (line, text) = values(text, "uri-parameters:").next()?;
    let origin = Origin::File { file: file.into(), line, key: crate::uri::KEY.to_string() };
    Some(Box::new(Given { text, origin }))
}

/// Returns the values of a key at the top of a file that may not be YAML, each with its line.
fn values<'a>(text: &'a str, key: &'static str) -> impl Iterator<Item = (usize, String)> + 'a {
    text.lines().enumerate().filter_map(move |(number, line)| {
        let line = line.split('#').next().unwrap_or_default();
        let value = line.strip_prefix(key)?.trim().trim_matches(['"', '\'']);
        Some((number + 1, value.to_ascii_lowercase()))
    })
}
