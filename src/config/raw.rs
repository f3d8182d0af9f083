//! Reads a file as it is written: each value with its line and the path of its key.
//!
//! The values are checked only for their kind and against the table of keys.

use std::collections::BTreeMap;

use super::Variables;
use super::expand::{Failure, expand};
use super::keys::{self, Kind, Meaning, Place, Row};
use super::mistake::Mistake;
use super::values::{parse_duration, parse_levels, parse_mode, parse_size};
use super::yaml::{Entry, Node, Value};
use crate::nearest::near;

/// A value of the file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// The value, with variables replaced, in the form that walferry's settings have.
    pub(super) text: String,
    /// Line number from 1.
    pub(super) line: usize,
    /// Path of the key, such as `dbs[0].replica.retention`.
    pub(super) key: String,
}

impl Written {
    /// Returns a mistake about the value.
    pub(super) fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake::at(self.line, &self.key, what)
    }
}

/// Values of one place, by their names in the table.
#[derive(Default)]
pub(super) struct Section {
    /// First line of the section.
    pub(super) line: usize,
    /// Path of the section, such as `dbs[0]`; empty at the top of the file.
    pub(super) key: String,
    pub(super) values: BTreeMap<&'static str, Written>,
}

impl Section {
    pub(super) fn get(&self, name: &str) -> Option<&Written> {
        self.values.get(name)
    }

    /// Returns a mistake about the section as a whole.
    pub(super) fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake::at(self.line, &self.key, what)
    }
}

/// An entry of `dbs`.
pub(super) struct RawDatabase {
    pub(super) section: Section,
    pub(super) replicas: Vec<Section>,
}

/// A whole file.
pub(super) struct Raw {
    pub(super) global: Section,
    pub(super) databases: Vec<RawDatabase>,
}

/// Variables, mistakes and notes of a read.
pub(super) struct Reading<'a> {
    /// Returns a variable's value. With `None`, variables are not replaced.
    pub(super) variable: Option<&'a Variables<'a>>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) notes: Vec<Mistake>,
}

impl Reading<'_> {
    /// Reads a file's tree, and collects all mistakes.
    pub(super) fn file(&mut self, root: &Node) -> Raw {
        let mut raw = Raw { global: Section::default(), databases: Vec::new() };
        let Value::Mapping(entries) = &root.value else {
            let what = format!("the file is {}, not keys with values such as dbs:", root.kind());
            self.mistakes.push(Mistake::at(root.line, "", what));
            return raw;
        };
        raw.global = self.section(Place::Global, root.line, "", entries);
        if let Some(dbs) = entries.iter().find(|entry| entry.key == "dbs") {
            for (number, (node, key)) in self.list(dbs, "dbs").into_iter().enumerate() {
                let Value::Mapping(entries) = &node.value else {
                    let what = format!(
                        "a database is keys with values, such as path:; this is {}",
                        node.kind()
                    );
                    self.mistakes.push(Mistake::at(node.line, &format!("dbs[{number}]"), what));
                    continue;
                };
                let section = self.section(Place::Database, node.line, &key, entries);
                let replicas = self.replicas(&key, entries);
                raw.databases.push(RawDatabase { section, replicas });
            }
        }
        raw
    }

    fn replicas(&mut self, at: &str, entries: &[Entry]) -> Vec<Section> {
        let named = |name: &str| entries.iter().find(|entry| entry.key == name);
        let (one, many) = (named("replica"), named("replicas"));
        if let (Some(one), Some(many)) = (one, many) {
            let what =
                format!("there are replica and replicas (line {}): use one of them", many.line);
            self.mistakes.push(Mistake::at(one.line, &format!("{at}.replica"), what));
        }
        let mut found: Vec<(&Node, String)> = Vec::new();
        if let Some(one) = one {
            found.push((&one.value, format!("{at}.replica")));
        }
        if let Some(many) = many {
            found.extend(self.list(many, &format!("{at}.replicas")));
        }
        let mut replicas = Vec::new();
        for (node, key) in found {
            match &node.value {
                Value::Mapping(entries) => {
                    replicas.push(self.section(Place::Replica, node.line, &key, entries));
                }
                _ if node.is_null() => self.empty(node.line, &key),
                _ => {
                    let what = format!(
                        "a replica is keys with values, such as type: and url:; this is {}",
                        node.kind()
                    );
                    self.mistakes.push(Mistake::at(node.line, &key, what));
                }
            }
        }
        replicas
    }

    /// Returns the items of a list, with the paths of their keys.
    fn list<'a>(&mut self, entry: &'a Entry, key: &str) -> Vec<(&'a Node, String)> {
        match &entry.value.value {
            Value::Sequence(items) => {
                let keyed = |(i, item)| (item, format!("{key}[{i}]"));
                items.iter().enumerate().map(keyed).collect()
            }
            _ if entry.value.is_null() => {
                self.empty(entry.line, key);
                Vec::new()
            }
            _ => {
                let what = format!(
                    "this must be a list, each item with a dash before it; it is {}",
                    entry.value.kind()
                );
                self.mistakes.push(Mistake::at(entry.line, key, what));
                Vec::new()
            }
        }
    }

    fn section(&mut self, place: Place, line: usize, key: &str, entries: &[Entry]) -> Section {
        let mut section = Section { line, key: key.to_string(), values: BTreeMap::new() };
        self.keys(place, "", &mut section, entries);
        section
    }

    fn keys(&mut self, place: Place, prefix: &str, section: &mut Section, entries: &[Entry]) {
        for entry in entries {
            let name = format!("{prefix}{}", entry.key);
            let key = match section.key.as_str() {
                "" => name.clone(),
                at => format!("{at}.{name}"),
            };
            let row = keys::find(place, &name);
            let structured = matches!(entry.value.value, Value::Mapping(_));
            if keys::is_group(place, &name) && (row.is_none() || structured) {
                match &entry.value.value {
                    Value::Mapping(inner) => {
                        self.keys(place, &format!("{name}."), section, inner);
                    }
                    _ if entry.value.is_null() => self.empty(entry.line, &key),
                    _ => {
                        let mut inside: Vec<_> = keys::names(place, &format!("{name}.")).collect();
                        inside.sort_unstable();
                        let what = format!(
                            "this must be a group of keys ({}); it is {}",
                            inside.join(", "),
                            entry.value.kind()
                        );
                        self.mistakes.push(Mistake::at(entry.line, &key, what));
                    }
                }
                continue;
            }
            let Some(row) = row else {
                let what = unknown(place, prefix, &entry.key);
                self.mistakes.push(Mistake::at(entry.line, &key, what));
                continue;
            };
            if let Some(written) = self.value(row, entry, &key) {
                section.values.insert(row.name, written);
            }
        }
    }

    /// Returns the value of a known key, if it is valid.
    fn value(&mut self, row: &'static Row, entry: &Entry, key: &str) -> Option<Written> {
        let at = entry.line;
        match row.meaning {
            Meaning::Refused(why) => {
                self.mistakes.push(Mistake::at(at, key, format!("this cannot be had: {why}")));
                return None;
            }
            Meaning::Note(why) => {
                self.notes.push(Mistake::at(at, key, format!("without effect: {why}")));
            }
            Meaning::Supported | Meaning::Only(..) => {}
        }
        if row.kind == Kind::Structure {
            return None;
        }
        if entry.value.is_null() {
            self.empty(at, key);
            return None;
        }
        let text = match (&entry.value.value, row.kind) {
            (Value::Scalar { text, .. }, _) => self.expanded(text, row.kind, at, key)?,
            (Value::Sequence(items), Kind::Levels) => self.levels(items, key)?,
            (other, _) => {
                let what = format!(
                    "this must be {}; it is {}",
                    words(row.kind),
                    Node { line: at, value: other.clone() }.kind()
                );
                self.mistakes.push(Mistake::at(at, key, what));
                return None;
            }
        };
        match checked(row.kind, &text) {
            Ok(text) => {
                let written = Written { text, line: at, key: key.to_string() };
                if let Meaning::Only(only, why) = row.meaning
                    && ![only, normal(only)].contains(&written.text.as_str())
                {
                    self.mistakes.push(written.mistake(format!("it can only be {only}: {why}")));
                }
                Some(written)
            }
            Err(()) => {
                // The message quotes the text of the file, never the value of a variable.
                let shown = match (&entry.value.value, row.kind) {
                    (_, Kind::Secret) => String::new(),
                    (Value::Scalar { text, .. }, _) => format!("'{}' is not ", shortened(text)),
                    _ => "this is not ".to_string(),
                };
                let what = format!("{shown}{}", words(row.kind));
                self.mistakes.push(Mistake::at(at, key, what));
                None
            }
        }
    }

    /// Joins a list of lengths of time, or of `interval: 30s`, to one text.
    fn levels(&mut self, items: &[Node], key: &str) -> Option<String> {
        let mut levels = Vec::new();
        for (number, item) in items.iter().enumerate() {
            let key = format!("{key}[{number}]");
            let text = match &item.value {
                Value::Scalar { text, .. } if !item.is_null() => text,
                Value::Mapping(entries) => {
                    if let Some(other) = entries.iter().find(|entry| entry.key != "interval") {
                        let what = format!(
                            "the key {} is not known; a level has interval: alone",
                            other.key
                        );
                        self.mistakes.push(Mistake::at(
                            other.line,
                            &format!("{key}.{}", other.key),
                            what,
                        ));
                        return None;
                    }
                    match entries.first().map(|entry| &entry.value.value) {
                        Some(Value::Scalar { text, .. }) => text,
                        _ => {
                            self.empty(item.line, &format!("{key}.interval"));
                            return None;
                        }
                    }
                }
                _ => {
                    self.empty(item.line, &key);
                    return None;
                }
            };
            levels.push(self.expanded(text, Kind::Levels, item.line, &key)?);
        }
        if levels.is_empty() {
            return Some("off".to_string());
        }
        Some(levels.join(","))
    }

    fn expanded(&mut self, text: &str, kind: Kind, line: usize, key: &str) -> Option<String> {
        let Some(variable) = self.variable else { return Some(text.to_string()) };
        match expand(text, variable) {
            Ok(expanded) if expanded.is_empty() && !text.is_empty() => {
                let what =
                    format!("'{text}' is set, and empty: give it a value, or remove the key");
                self.mistakes.push(Mistake::at(line, key, what));
                None
            }
            Ok(expanded) if expanded.is_empty() => {
                self.empty(line, key);
                None
            }
            Ok(expanded) => Some(expanded),
            Err(Failure::Unset(name)) => {
                // The text behind a $ may be a part of the secret itself.
                let is_whole = text == format!("${name}") || text == format!("${{{name}}}");
                let is_secret = kind == Kind::Secret || text.contains('@');
                let named = if is_secret && !is_whole {
                    "a variable in it".to_string()
                } else {
                    format!("the variable {name}")
                };
                let what = format!(
                    "{named} is not set; set it for this process, or write $$ for a $ that is meant as one"
                );
                self.mistakes.push(Mistake::at(line, key, what));
                None
            }
            Err(Failure::Malformed) => {
                let what = "a variable is written ${NAME}, with letters, digits and _; write $$ for a $ \
                            that is meant as one";
                self.mistakes.push(Mistake::at(line, key, what));
                None
            }
        }
    }

    fn empty(&mut self, line: usize, key: &str) {
        let what = "there is no value: give it one, or remove the key";
        self.mistakes.push(Mistake::at(line, key, what));
    }
}

/// Returns a value in the form that settings have.
fn checked(kind: Kind, text: &str) -> Result<String, ()> {
    let trimmed = text.trim();
    let same = |right: bool| if right { Ok(trimmed.to_string()) } else { Err(()) };
    match kind {
        Kind::Time => same(parse_duration(trimmed).is_ok()),
        Kind::TimeOrOff | Kind::Levels if trimmed == "off" || trimmed == "false" => {
            Ok("off".to_string())
        }
        Kind::TimeOrOff => match parse_duration(trimmed) {
            Ok(time) if time.is_zero() => Ok("off".to_string()),
            Ok(_) => Ok(trimmed.to_string()),
            Err(_) => Err(()),
        },
        Kind::Size => same(parse_size(trimmed).is_ok()),
        Kind::Number => same(trimmed.parse::<i64>().is_ok()),
        Kind::Mode => same(parse_mode(trimmed).is_ok()),
        Kind::Switch => match trimmed.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Ok("on".to_string()),
            "false" | "no" | "off" | "n" => Ok("off".to_string()),
            _ => Err(()),
        },
        Kind::Word(all) => {
            let word = trimmed.to_ascii_lowercase();
            // Some YAML readers read `off` as false.
            let word = if word == "false" && all.contains(&"off") { "off".into() } else { word };
            if all.contains(&word.as_str()) { Ok(word) } else { Err(()) }
        }
        Kind::Levels => same(parse_levels(trimmed).is_ok()),
        // A secret keeps the spaces around it.
        Kind::Secret => Ok(text.to_string()),
        Kind::Text | Kind::Path | Kind::Option | Kind::Structure => {
            if text.contains('\0') {
                Err(())
            } else {
                Ok(text.to_string())
            }
        }
    }
}

/// Returns a switch's word in the form that [`checked`] returns.
fn normal(word: &str) -> &str {
    match word {
        "false" => "off",
        "true" => "on",
        other => other,
    }
}

/// Describes a kind of value, in words that follow "not" and "must be".
fn words(kind: Kind) -> String {
    match kind {
        Kind::Time => "a length of time: write it like 500ms, 1s, 5m, 1h30m or 30d".into(),
        Kind::TimeOrOff => "a length of time: write it like 5m, 24h or 30d, or off".into(),
        Kind::Size => "a size: write it like 500MB or 10GB".into(),
        Kind::Number => "a whole number".into(),
        Kind::Mode => "permission bits in octal: write them like 640".into(),
        Kind::Switch => "true or false".into(),
        Kind::Word(words) => format!("one of {}", words.join(", ")),
        Kind::Levels => {
            "lengths of time, each longer than the one before, such as 30s,5m,1h, at most 8, off for one \
             that is not made; or off"
                .into()
        }
        Kind::Path => "a path without a zero byte".into(),
        Kind::Text | Kind::Secret | Kind::Option | Kind::Structure => "one value".into(),
    }
}

/// Shortens a value for a message.
fn shortened(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("{short}...") } else { short }
}

fn unknown(place: Place, prefix: &str, name: &str) -> String {
    let spelt = name.to_ascii_lowercase().replace('_', "-");
    // The same word with hyphens comes first, since another word may be nearer by its letters.
    let same = keys::names(place, prefix).find(|known| *known == spelt);
    if let Some(known) = same.or_else(|| near(&kebab(name), keys::names(place, prefix))) {
        return format!("this key is not known; the nearest is {known}");
    }
    if let Some(elsewhere) = keys::elsewhere(name).filter(|_| prefix.is_empty()) {
        return format!("this key does not belong here: it stands {elsewhere}");
    }
    let all = [Place::Global, Place::Database, Place::Replica];
    let anywhere = all.iter().flat_map(|place| keys::names(*place, ""));
    if let Some((known, elsewhere)) =
        near(&kebab(name), anywhere).and_then(|known| Some((known, keys::elsewhere(known)?)))
    {
        return format!("this key is not known; the nearest is {known}, which stands {elsewhere}");
    }
    let mut known: Vec<_> = keys::names(place, prefix).collect();
    known.dedup();
    if prefix.is_empty() {
        return "this key is not known, and no known one is near it; docs/configuration.md has all"
            .into();
    }
    format!("this key is not known; there are {}", known.join(", "))
}

/// Turns `forcePathStyle` into `force-path-style`.
fn kebab(name: &str) -> String {
    crate::store::s3::kebab_case(name)
}
