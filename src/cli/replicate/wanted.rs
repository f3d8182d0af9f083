//! What is to be replicated: the one thing that the command line, or a configuration, tells the rest.

use std::path::{Path, PathBuf};

use super::super::sync::encoded;
use crate::store::url;
use std::os::unix::ffi::OsStrExt;

/// A database, or a folder of them.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) place: Place,
    /// Settings of the extension, as URI parameters (`replica`, `sync-interval`, ...). In a folder
    /// each database has its own path behind the replica's.
    pub(crate) parameters: Vec<(String, String)>,
    /// Whether a database that is not in WAL mode is put into it.
    pub(crate) set_wal: bool,
    /// Whether a database that is missing is restored before anything else.
    pub(crate) restore: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Database(PathBuf),
    Folder {
        path: PathBuf,
        /// Of the file names ([`crate::config::pattern`]).
        pattern: String,
        recursive: bool,
        /// Whether databases that come later are taken in too.
        watch: bool,
    },
}

impl Wanted {
    /// The URI of one of its databases. `within` is its path in the folder, if it is of one.
    pub(super) fn uri(&self, database: &Path, within: Option<&Path>) -> String {
        let mut uri =
            format!("file:{}?vfs=walferry&tend=on", encoded(database.as_os_str().as_bytes()));
        uri += if self.set_wal { "&journal-mode=wal" } else { "&journal-mode=keep" };
        for (name, value) in &self.parameters {
            let value = match name.as_str() {
                "replica" => Self::at(value, within),
                _ => value.clone(),
            };
            uri += &["&", name, "=", &encoded(value.as_bytes())].concat();
        }
        uri
    }

    /// The URL of the replica of one of its databases, if it was given.
    pub(super) fn replica(&self, within: Option<&Path>) -> Option<String> {
        let replica = self.parameters.iter().find(|(name, _)| name == "replica");
        replica.map(|(_, value)| Self::at(value, within))
    }

    fn at(place: &str, within: Option<&Path>) -> String {
        within.map_or_else(
            || place.to_string(),
            |within| url::below_path(place, &within.to_string_lossy()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_database_of_a_folder_has_a_replica_of_its_own() {
        let at = |url, within| Wanted::at(url, Some(Path::new(within)));
        assert_eq!(at("s3://b/p/?endpoint=x", "a/b.db"), "s3://b/p/a/b.db?endpoint=x");
        assert_eq!(at("/srv/what?", "a/b.db"), "/srv/what?/a/b.db");
        // A character with a meaning in URLs is part of the name.
        assert_eq!(at("s3://b/p", "x%41?.db"), "s3://b/p/x%2541%3F.db");
        assert_eq!(at("/srv", "x%41?.db"), "/srv/x%41?.db");
        let wanted = Wanted {
            place: Place::Database("/x".into()),
            parameters: vec![
                ("replica".into(), "s3://b/p".into()),
                ("retention".into(), "1h".into()),
            ],
            set_wal: true,
            restore: false,
        };
        assert_eq!(
            wanted.uri(Path::new("/d/a b.db"), Some(Path::new("a b.db"))),
            "file:/d/a%20b.db?vfs=walferry&tend=on&journal-mode=wal&replica=s3%3A//b/p/a%2520b.db&retention=1h"
        );
        assert_eq!(wanted.replica(None).as_deref(), Some("s3://b/p"));
    }
}
