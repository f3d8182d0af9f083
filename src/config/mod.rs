//! The configuration file: YAML with the keys of Litestream, of its versions 0.3 and 0.5, and some of
//! walferry's own.
//!
//! It is read in two steps: `raw` is what is written, each value with its line, checked against the
//! table of `keys`; `believed` is what walferry does with it. Text and variables are passed in; of the
//! disk only the links in paths are read. All mistakes of a file are found at once, and a file with a mistake is not used at all.

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

/// A file, as it is believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The file.
    pub file: Arc<Path>,
    /// Which parameters of a database's URI count ([`crate::uri`]), if the file says so.
    pub uri: Option<Given>,
    /// What holds for every database, also for those that the file does not list.
    pub global: Layer,
    /// The databases, in the file's order.
    pub databases: Vec<Database>,
    /// Where the extension logs to.
    pub logging: Logging,
    /// The program that a sidecar runs.
    pub exec: Option<String>,
    /// Keys that have no effect here, and why.
    pub notes: Vec<Mistake>,
}

/// Values by the names of settings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layer {
    /// What is given, in the form that settings have.
    pub values: BTreeMap<&'static str, Given>,
    /// How a store in S3 is reached.
    pub access: Access,
    /// Where the credentials in it stand.
    pub credentials: Option<Origin>,
}

/// An entry of `dbs`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Database {
    /// A database, or with a pattern a folder of databases; absolute.
    pub place: PathBuf,
    /// Which names in the folder are databases.
    pub pattern: Option<String>,
    /// Also in folders below it.
    pub recursive: bool,
    /// Also those that are made later.
    pub watch: bool,
    /// Whether a sidecar restores it first, if it is missing.
    pub restore: bool,
    /// What holds for it, and for a replica that is not in the file.
    pub layer: Layer,
    /// Where it is replicated to, in the file's order.
    pub replicas: Vec<Replica>,
    /// Line of the entry.
    pub line: usize,
}

/// A replica of a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replica {
    /// What it is called.
    pub name: Option<String>,
    /// Its URL.
    pub url: String,
    /// What tells it from other replicas.
    pub identity: String,
    /// What holds for it.
    pub layer: Layer,
    /// Where it stands.
    pub origin: Origin,
}

/// What the file says of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Logging {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: Option<String>,
    /// One JSON object a line.
    pub json: bool,
    /// To standard error.
    pub stderr: bool,
    /// To a file.
    pub file: Option<PathBuf>,
}

/// Looks an environment variable up.
pub type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What paths of a file are relative to.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The working directory.
    pub directory: PathBuf,
    /// What `~` stands for.
    pub home: Option<PathBuf>,
}

impl Config {
    /// Reads a file's text. `variable` looks an environment variable up; without it `$` means
    /// nothing.
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

    /// What the file says of the database at this canonical path: an entry for the database itself,
    /// else the first for a folder that it is in. `None` if there is none.
    pub fn entry(&self, database: &Path) -> Option<Database> {
        let named =
            |entry: &&Database| entry.pattern.is_none() && canonical(&entry.place) == database;
        if let Some(entry) = self.databases.iter().find(named) {
            return Some(entry.clone());
        }
        self.databases.iter().find_map(|entry| entry.in_folder(database))
    }

    /// The databases that there are on the disk, each with its canonical path, in the file's order;
    /// one that is named is there in any case.
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

/// Whether a file that cannot be read otherwise asks for failure instead of silence.
fn says_strict(text: &str) -> bool {
    values(text, "strict:").any(|(_, value)| matches!(value.as_str(), "true" | "yes" | "on" | "y"))
}

/// Returns the value of `uri-parameters` in a file that cannot be read otherwise.
fn says_of_uris(file: &Path, text: &str) -> Option<Box<Given>> {
    let (line, text) = values(text, "uri-parameters:").next()?;
    let origin = Origin::File { file: file.into(), line, key: crate::uri::KEY.to_string() };
    Some(Box::new(Given { text, origin }))
}

/// The values that a key has at the top of a file that may be no YAML, each with its line.
fn values<'a>(text: &'a str, key: &'static str) -> impl Iterator<Item = (usize, String)> + 'a {
    text.lines().enumerate().filter_map(move |(number, line)| {
        let line = line.split('#').next().unwrap_or_default();
        let value = line.strip_prefix(key)?.trim().trim_matches(['"', '\'']);
        Some((number + 1, value.to_ascii_lowercase()))
    })
}
