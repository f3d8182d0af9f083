//! Turns a raw file into a [`Config`]: databases, their replicas, and the values for each.
//!
//! A replica's value goes before the database's, and the database's before that of the whole file.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::keys::{self, KEYS, Kind, Meaning, NO_STORE, OTHER_TYPES, Row};
use super::mistake::Mistake;
use super::raw::{Raw, RawDatabase, Section, Written};
use super::{Config, Database, Given, Layer, Logging, Origin, Place, Replica, Surroundings};
use super::{hosts, pattern};
use crate::canonical::canonical;
use crate::store::s3::Credentials;
use crate::store::{self, Access, Secret};

/// Builds the configuration and collects the mistakes.
pub(super) struct Believing<'a> {
    pub(super) file: Arc<Path>,
    pub(super) surroundings: &'a Surroundings,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) notes: Vec<Mistake>,
}

impl Believing<'_> {
    pub(super) fn config(&mut self, raw: &Raw) -> Config {
        let mut global = self.layer(&[&raw.global], Some("s3"));
        // Options at the top of the file apply to folders, too.
        let of_folders = self.folder_access(&[&raw.global]);
        global.access.options.extend(of_folders.options);
        let mut databases: Vec<Database> = Vec::new();
        for database in &raw.databases {
            if let Some(database) = self.database(database, &raw.global) {
                databases.push(database);
            }
        }
        self.twice(&databases);
        let word = |name| raw.global.get(name).map(|written| written.text.clone());
        let logging = Logging {
            level: word("logging.level"),
            json: word("logging.type").is_some_and(|kind| kind == "json"),
            stderr: word("logging.stderr").is_some_and(|switch| switch == "on"),
            file: raw.global.get("logging.file").and_then(|written| self.path(written)),
        };
        let uri = raw.global.get(crate::uri::KEY);
        let uri =
            uri.map(|written| Given { text: written.text.clone(), origin: self.origin(written) });
        Config {
            file: self.file.clone(),
            uri,
            global,
            databases,
            logging,
            exec: word("exec"),
            notes: std::mem::take(&mut self.notes),
        }
    }

    fn wrong(&mut self, mistake: Mistake) {
        self.mistakes.push(mistake);
    }

    fn origin(&self, written: &Written) -> Origin {
        let (file, line, key) = (self.file.clone(), written.line, written.key.clone());
        Origin::File { file, line, key }
    }

    /// Collects the values of sections, the nearest section first. `kind` is the type of the replica whose
    /// access is wanted.
    fn layer(&mut self, sections: &[&Section], kind: Option<&str>) -> Layer {
        let mut values: BTreeMap<&'static str, Given> = BTreeMap::new();
        for section in sections {
            let mut here: BTreeMap<&'static str, (&'static str, &Written)> = BTreeMap::new();
            for (name, written) in &section.values {
                let Some(setting) = row_of(name).and_then(|row| row.sets) else { continue };
                if let Some((other, first)) = here.insert(setting, (*name, written))
                    && first.text != written.text
                {
                    let what = format!(
                        "it says the same as {other} in line {}, which has another value: keep one of \
                         them",
                        first.line
                    );
                    // `layer` reads a section again for each replica below it.
                    let mistake = written.mistake(what);
                    if !self.mistakes.contains(&mistake) {
                        self.wrong(mistake);
                    }
                }
            }
            for (setting, (_, written)) in here {
                let origin = self.origin(written);
                values.entry(setting).or_insert(Given { text: written.text.clone(), origin });
            }
        }
        let access = match kind {
            Some("s3") => self.access(sections),
            Some("file") => (self.folder_access(sections), None),
            _ => (Access::default(), None),
        };
        Layer { values, access: access.0, credentials: access.1 }
    }

    /// Returns the options of a folder.
    fn folder_access(&mut self, sections: &[&Section]) -> Access {
        let mut access = Access::default();
        let Some(written) = sections.iter().find_map(|section| section.get(store::FILE_MODE))
        else {
            return access;
        };
        match store::parse_file_mode(&written.text) {
            Ok(_) => {
                access.options.insert(store::FILE_MODE.to_string(), written.text.clone());
            }
            Err(why) => {
                let mistake = written.mistake(why);
                if !self.mistakes.contains(&mistake) {
                    self.wrong(mistake);
                }
            }
        }
        access
    }

    /// Returns credentials and options, and the origin of the credentials.
    fn access(&mut self, sections: &[&Section]) -> (Access, Option<Origin>) {
        let get = |name: &str| sections.iter().find_map(|section| section.get(name));
        let mut access = Access::default();
        let options = KEYS.iter().filter(|row| {
            row.kind == Kind::Option
                && row.meaning == Meaning::Supported
                && row.types.contains(&"s3")
        });
        for row in options {
            let Some(written) = get(row.name) else { continue };
            let one = [(row.name.to_string(), written.text.clone())].into();
            let alone = Access { options: one, ..Access::default() };
            if let Err(error) = store::check_url(SOME_URL, &alone) {
                let why = error.message.trim_start_matches(SOME_URL).trim_start_matches(": ");
                let mistake = written.mistake(why);
                if !self.mistakes.contains(&mistake) {
                    self.wrong(mistake);
                }
                continue;
            }
            access.options.insert(row.name.to_string(), written.text.clone());
        }
        access.customer_key = get("sse-customer-key").map(|written| Secret(written.text.clone()));
        let (id, secret) = (get("access-key-id"), get("secret-access-key"));
        let token = get("session-token").map(|written| written.text.clone());
        match (id, secret) {
            (Some(id), Some(secret)) => {
                access.credentials = Some(Credentials {
                    access_key_id: id.text.trim().to_string(),
                    secret_access_key: secret.text.trim().to_string(),
                    session_token: token,
                });
            }
            (Some(one), None) => self.half(one, "secret-access-key"),
            (None, Some(one)) => self.half(one, "access-key-id"),
            (None, None) => {}
        }
        let origin = access.credentials.as_ref().and(id).map(|written| self.origin(written));
        (access, origin)
    }

    fn half(&mut self, one: &Written, other: &str) {
        let mistake = one.mistake(format!("{other} is missing: credentials are a pair"));
        // If the other key is present but unusable, it is among the mistakes already.
        let is_there = |known: &Mistake| known.key.rsplit('.').next() == Some(other);
        if !self.mistakes.contains(&mistake) && !self.mistakes.iter().any(is_there) {
            self.wrong(mistake);
        }
    }

    fn database(&mut self, raw: &RawDatabase, global: &Section) -> Option<Database> {
        let section = &raw.section;
        let place = match (section.get("path"), section.get("dir")) {
            (Some(path), None) => self.path(path),
            (None, Some(dir)) => self.path(dir),
            (Some(_), Some(dir)) => {
                let what = "there are path and dir: an entry is one database, or a folder of them";
                self.wrong(dir.mistake(what));
                None
            }
            (None, None) => {
                // If the key is misspelt, it is among the mistakes already.
                if !self.mistakes.iter().any(|one| one.key.starts_with(&section.key)) {
                    self.wrong(section.mistake("the database is missing: write path: or dir:"));
                }
                None
            }
        };
        let is_dir = section.get("dir").is_some();
        for name in ["pattern", "recursive", "watch"] {
            if let Some(written) = section.get(name).filter(|_| !is_dir) {
                self.wrong(written.mistake("it goes with dir: only"));
            }
        }
        let text = section.get("pattern");
        if is_dir && text.is_none() && section.get("path").is_none() {
            self.wrong(section.mistake("dir: needs pattern:, such as \"*.db\""));
        }
        if let Some(text) = text.filter(|text| pattern::matches(&text.text, "").is_none()) {
            self.wrong(
                text.mistake("the pattern is malformed: it may have *, ?, [a-z] and [^a-z]"),
            );
        }
        let is_on = |name| section.get(name).is_some_and(|written| written.text == "on");
        let (recursive, watch) = (is_on("recursive"), is_on("watch"));
        let restore = is_on("restore-if-db-not-exists");
        if let Some(written) = section.get("restore-if-db-not-exists").filter(|_| is_dir && restore)
        {
            self.wrong(written.mistake("it goes with path: only"));
        }
        let layer = self.layer(&[section, global], Some("s3"));
        if raw.replicas.is_empty()
            && !self.mistakes.iter().any(|one| one.key.starts_with(&section.key))
        {
            let what = "it has no replica: write replica: with a url: below it";
            self.wrong(section.mistake(what));
        }
        let mut replicas = Vec::new();
        for replica in &raw.replicas {
            replicas.extend(self.replica(replica, section, global));
        }
        self.name(&mut replicas);
        let pattern = text.map(|text| text.text.clone());
        let place = place?;
        Some(Database {
            place,
            pattern,
            recursive,
            watch,
            restore,
            layer,
            replicas,
            line: section.line,
        })
    }

    /// Gives each replica a name: its own name, else its type. A number tells equal types apart.
    fn name(&mut self, replicas: &mut [Replica]) {
        let mut taken: Vec<String> = Vec::new();
        for replica in replicas {
            if let Some(name) = &replica.name {
                if taken.contains(name) {
                    let Origin::File { line, key, .. } = &replica.origin else { continue };
                    let what = format!("another replica of this database is called {name} already");
                    self.mistakes.push(Mistake::at(*line, key, what));
                }
                taken.push(name.clone());
                continue;
            }
            let base = if replica.url.starts_with("s3:") { "s3" } else { "file" };
            let numbered = (2..).map(|number| format!("{base}-{number}"));
            let mut names = std::iter::once(base.to_string()).chain(numbered);
            let name = names.find(|name| !taken.contains(name)).unwrap_or_default();
            taken.push(name.clone());
            replica.name = Some(name);
        }
    }

    fn replica(&mut self, raw: &Section, database: &Section, global: &Section) -> Option<Replica> {
        let kind = self.kind(raw, global)?;
        for (name, written) in &raw.values {
            let Some(row) = keys::find(Place::Replica, name) else { continue };
            if !row.types.is_empty() && !row.types.contains(&kind) {
                let types = row.types.join(", ");
                let what =
                    format!("this replica is of type {kind}, and {name} goes with {types} only");
                self.wrong(written.mistake(what));
            }
        }
        let mut layer = self.layer(&[raw, database, global], Some(kind));
        let url = if let Some(url) = raw.get("url") {
            let url = self.given_url(url, raw)?;
            apart(url, &mut layer.access)
        } else if kind == "file" {
            let Some(path) = raw.get("path") else {
                self.wrong(raw.mistake("the folder is missing: write path: or url:"));
                return None;
            };
            if store::url::is_url(&path.text) && path.text.contains("://") {
                self.wrong(path.mistake("this is a URL: write url: instead of path:"));
                return None;
            }
            store::url::of_path(&self.path(path)?)
        } else {
            let bucket = raw.get("bucket").or_else(|| global.get("bucket"));
            let (Some(bucket), Some(path)) = (bucket, raw.get("path")) else {
                let missing = if bucket.is_none() { "bucket" } else { "path" };
                self.wrong(raw.mistake(format!(
                    "{missing}: is missing: a replica in S3 has bucket: and path:, or url:"
                )));
                return None;
            };
            if bucket.text.contains(['/', ':', '@', '?', '#', '%']) {
                self.wrong(bucket.mistake("this is no name of a bucket"));
                return None;
            }
            store::url::of_bucket(&bucket.text, &path.text)
        };
        let at = raw.get("url").or_else(|| raw.get("path"))?;
        let identity = match store::check_url(&url, &layer.access) {
            Ok(identity) => identity,
            Err(error) => {
                // A wrong option of S3 is a mistake of its own key already.
                if !self.mistakes.iter().any(|one| one.key.starts_with(&raw.key)) {
                    self.wrong(at.mistake(error.message));
                }
                return None;
            }
        };
        let name = raw.get("name").map(|name| name.text.clone());
        Some(Replica { name, url, identity, layer, origin: self.origin(at) })
    }

    /// Returns the type of a replica, if walferry has that type.
    fn kind(&mut self, raw: &Section, global: &Section) -> Option<&'static str> {
        let by_url = raw.get("url").map(|url| url.text.split(':').next().unwrap_or_default());
        let given = raw.get("type").map(|kind| kind.text.as_str());
        let word = match (given, by_url) {
            (Some(kind), Some(scheme))
                if kind != scheme
                    && !(matches!(kind, "gs" | "gcs") && matches!(scheme, "gs" | "gcs")) =>
            {
                let at = raw.get("type")?;
                let shown = if keys::is_type(scheme) { scheme } else { "another type" };
                self.wrong(at.mistake(format!("the type is {kind}, and the url is of {shown}")));
                return None;
            }
            (Some(kind), _) => kind,
            (None, Some(scheme)) => scheme,
            (None, None) if raw.get("bucket").is_some() => "s3",
            (None, None) if global.get("bucket").is_some() && raw.get("path").is_none() => "s3",
            (None, None) => "file",
        };
        if let Some(kind) = keys::TYPES.iter().find(|known| **known == word) {
            return Some(kind);
        }
        let at = raw.get("type").or_else(|| raw.get("url"))?;
        let what = if OTHER_TYPES.contains(&word) {
            format!("the type {word} cannot be had: {NO_STORE}")
        } else {
            "this URL is of no known type: write s3://bucket/path or file:///path".to_string()
        };
        let mistake = at.mistake(what);
        self.wrong(mistake);
        None
    }

    /// Returns the text of `url:`. Other keys must not repeat parts of the URL, or contradict its options.
    fn given_url(&mut self, url: &Written, raw: &Section) -> Option<String> {
        let mut fits = true;
        for name in ["path", "bucket"] {
            if let Some(other) = raw.get(name) {
                self.wrong(other.mistake(format!("it is in the url already (line {})", url.line)));
                fits = false;
            }
        }
        let query = url.text.split_once('?').map(|(_, query)| query).unwrap_or_default();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = store::url::percent_decode(value);
            let name = store::s3::kebab_case(name);
            if let Some(other) = raw.get(&name).filter(|other| other.text.as_bytes() != value) {
                let what = format!("the url in line {} has another value for it", url.line);
                self.wrong(other.mistake(what));
                fits = false;
            }
        }
        fits.then(|| url.text.clone())
    }

    /// Returns an absolute path without a prefix such as `sqlite://`. A relative path starts at the working
    /// directory.
    fn path(&mut self, written: &Written) -> Option<PathBuf> {
        let text = written.text.as_str();
        let text = ["sqlite3://", "sqlite://"]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        let path = match text.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                let Some(home) = &self.surroundings.home else {
                    self.wrong(
                        written.mistake("there is no home directory here (HOME is not set)"),
                    );
                    return None;
                };
                home.join(rest.trim_start_matches('/'))
            }
            _ => PathBuf::from(text),
        };
        if path.as_os_str().is_empty() {
            self.wrong(written.mistake("the path is empty"));
            return None;
        }
        Some(tidy(&self.surroundings.directory.join(path)))
    }

    /// Finds databases with two entries, and places with two replicas: both would conflict.
    fn twice(&mut self, databases: &[Database]) {
        for (i, database) in databases.iter().enumerate() {
            let before = databases.get(..i).unwrap_or_default();
            let same = |other: &&Database| {
                other.pattern == database.pattern
                    && canonical(&other.place) == canonical(&database.place)
            };
            if let Some(other) = before.iter().find(same) {
                let what = format!("this database is there already, in line {}", other.line);
                self.wrong(Mistake::at(database.line, &format!("dbs[{i}]"), what));
            }
        }
        let mut known: BTreeMap<&str, usize> = BTreeMap::new();
        for replica in databases.iter().flat_map(|database| &database.replicas) {
            let Origin::File { line, key, .. } = &replica.origin else { continue };
            if let Some(first) = known.insert(&replica.identity, *line) {
                let what = format!(
                    "another replica is in the same place, in line {first}: give each its own"
                );
                self.mistakes.push(Mistake::at(*line, key, what));
            }
        }
    }
}

/// Splits the host of a URL into bucket, region and endpoint, as Litestream does. Options of other keys go
/// first.
fn apart(url: String, access: &mut Access) -> String {
    let Some(rest) = url.strip_prefix("s3://") else { return url };
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let Some(found) = hosts::parse(host) else { return url };
    let said = [("region", found.region), ("endpoint", found.endpoint)];
    for (name, value) in said {
        if let Some(value) = value {
            access.options.entry(name.to_string()).or_insert(value);
        }
    }
    format!("s3://{}{path}", found.bucket)
}

/// A URL to check options with.
const SOME_URL: &str = "s3://bucket/path";

/// Returns the table's row of a name, at any place of the file.
fn row_of(name: &str) -> Option<&'static Row> {
    KEYS.iter().find(|row| row.name == name)
}

/// Removes `.` and double slashes. `..` stays, since its meaning depends on links.
fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}
