//! Settings of a database, and the URL of its replica.
//!
//! Each value comes from the first of three places that has it. These are the URI parameters with which the
//! database was opened, the environment, and the configuration file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::config::values::{
    LEVELS, parse_duration, parse_levels, parse_mode, parse_size, parse_switch, parse_time_or_off,
};
use crate::config::{Broken, Config, Given, Layer, Origin};
use crate::nearest::near;
use crate::store::{self, Access};

/// Settings of one replica of a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// URL of the replica, which names the replica. `access` also holds how to reach it.
    pub replica: String,
    /// Name of the replica in the configuration file.
    pub name: Option<String>,
    /// Credentials and options of the store, from the configuration file.
    pub access: Access,
    /// Shortest time between two shipped files.
    pub sync_interval: Duration,
    /// Longest time that the end of the process waits for unshipped transactions.
    pub shutdown_timeout: Duration,
    /// Most bytes that wait in the spool; 0 for the default: 10 GiB, or twice the database's size if that is
    /// more.
    pub spool_cap: u64,
    /// True if this process checkpoints for other processes and lets them restart the WAL. For a process that
    /// writes nothing itself.
    pub tend: bool,
    /// How the replica's history is maintained.
    pub history: History,
    /// Time with writes in which the database is compared once with its page table; zero for never.
    pub audit_interval: Duration,
    /// Bytes of the database that a comparison reads in a second.
    pub audit_rate: u64,
    /// Treatment of the database's journal mode.
    pub journal_mode: JournalMode,
    /// Permission bits of a restored database that replaces no file.
    pub restore_mode: u32,
    /// True if a database that cannot be replicated as its settings say is not opened.
    pub strict: bool,
    /// Place that names the replica.
    pub origin: Origin,
    /// Every other value by its name, given or default, with its origin.
    pub given: BTreeMap<&'static str, Given>,
}

/// Treatment of the journal mode of a database that is to be replicated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalMode {
    /// The database is put into WAL mode.
    Wal,
    /// The journal mode stays as it is.
    Keep,
}

/// How files are compacted, and how long they are kept. A time of zero turns a task off. For `retention`, the
/// value `None` does; for `l0_retention`, off means that no file ever expires.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// Windows of level 1, 2, and so on: all files of a window become one file. A level of zero is not made.
    pub levels: Vec<Duration>,
    /// Window in which at most one snapshot is made.
    pub snapshot_interval: Duration,
    /// How far back states can be restored; `None` for ever.
    pub retention: Option<Duration>,
    /// How far back every single state can be restored.
    pub l0_retention: Duration,
    /// True if files are ever deleted from the store.
    pub deletes: bool,
    /// Window in which the newest state is proven once from the store's files.
    pub validation_interval: Duration,
    /// True if a file that makes the database smaller holds all pages of the database.
    pub shrink_images: bool,
    /// Most bytes of shipped files that are kept on this machine for compaction.
    pub copies_cap: u64,
}

/// Default of `spool-cap`, as text.
const SPOOL_CAP: &str = "auto";
/// Default of `restore-mode`: only the user who restores a database can read it.
const RESTORE_MODE: &str = "600";

impl History {
    fn resolve(layers: &Layers<'_>) -> Result<History, String> {
        Ok(History {
            levels: layers.parsed("levels", LEVELS, parse_levels)?,
            snapshot_interval: layers
                .parsed("snapshot-interval", "24h", parse_time_or_off)?
                .unwrap_or_default(),
            // As in the configuration file, and as in Litestream, 0 is off.
            retention: layers
                .parsed("retention", "168h", parse_time_or_off)?
                .filter(|retention| !retention.is_zero()),
            l0_retention: layers
                .parsed("l0-retention", "24h", parse_time_or_off)?
                .unwrap_or(Duration::MAX),
            deletes: layers.parsed("deletes", "on", parse_switch)?,
            shrink_images: layers.parsed("shrink-images", "off", parse_switch)?,
            validation_interval: layers
                .parsed("validation-interval", "off", parse_time_or_off)?
                .unwrap_or_default(),
            copies_cap: layers.parsed("copies-cap", "16MB", parse_size)?,
        })
    }
}

fn parse_journal_mode(text: &str) -> Result<JournalMode, String> {
    match text.trim() {
        "wal" => Ok(JournalMode::Wal),
        "keep" => Ok(JournalMode::Keep),
        other => Err(format!("'{other}' is neither wal nor keep")),
    }
}

/// Names of all settings of a database except its replica, as URI parameters have them.
pub const NAMES: [&str; 16] = [
    "audit-interval",
    "audit-rate",
    "copies-cap",
    "deletes",
    "journal-mode",
    "l0-retention",
    "levels",
    "restore-mode",
    "retention",
    "shrink-images",
    "shutdown-timeout",
    "snapshot-interval",
    "spool-cap",
    "strict",
    "sync-interval",
    "validation-interval",
];

/// Checks a setting by its name. The error says why the name or the value is wrong.
pub fn check(name: &str, value: &str) -> Result<(), String> {
    let Some(known) = NAMES.into_iter().find(|known| *known == name) else {
        return Err(match near(name, NAMES) {
            Some(near) => format!("the setting {name} is not known; the nearest is {near}"),
            None => format!("the setting {name} is not known; there are {}", NAMES.join(", ")),
        });
    };
    if value.trim().is_empty() {
        return Err(format!("{name}: there is no value"));
    }
    let given = Given { text: value.to_string(), origin: Origin::Default };
    let layer = Layer { values: [(known, given)].into(), ..Layer::default() };
    let nobody = (String::new(), None, Origin::Default);
    Settings::of(nobody, &layer, &Nothing).map(drop)
}

/// Returns the setting that a URI parameter may mean which is neither a setting nor a parameter of SQLite.
pub fn meant(parameter: &str) -> Option<&'static str> {
    // <https://sqlite.org/uri.html>, and parameters of the program.
    let others = ["cache", "immutable", "mode", "modeof", "nolock", "psow", "vfs", "tend"];
    let known = NAMES.into_iter().chain(["replica"]);
    if known.clone().chain(others).any(|known| known == parameter) {
        return None;
    }
    near(parameter, known).filter(|_| parameter.len() > 3)
}

/// True if a switch in the environment is off.
pub fn is_off(text: &str) -> bool {
    matches!(text.trim().to_ascii_lowercase().as_str(), "0" | "off" | "false" | "no")
}

/// Looks up a setting: first the URI parameter of this name, then the environment variable `WALFERRY_` with
/// the name in capitals.
pub trait Lookup {
    /// Returns the URI parameter, if the database was opened with it.
    fn parameter(&self, name: &str) -> Option<String>;
    /// Returns the environment variable.
    fn variable(&self, name: &str) -> Option<String>;
}

/// The environment alone, as a program without URI parameters has it.
pub struct Environment;

impl Lookup for Environment {
    fn parameter(&self, _: &str) -> Option<String> {
        None
    }

    fn variable(&self, name: &str) -> Option<String> {
        crate::environment::text(name)
    }
}

/// Neither parameters nor variables.
struct Nothing;

impl Lookup for Nothing {
    fn parameter(&self, _: &str) -> Option<String> {
        None
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

/// The layers of settings: URI parameters, then the environment, then the configuration file.
struct Layers<'a> {
    lookup: &'a dyn Lookup,
    file: &'a Layer,
    /// Values that were asked for, as found.
    given: RefCell<BTreeMap<&'static str, Given>>,
}

impl Layers<'_> {
    fn parsed<T>(
        &self,
        name: &'static str,
        default: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, String> {
        let given = find(self.lookup, name)
            .or_else(|| self.file.values.get(name).cloned())
            .unwrap_or_else(|| Given { text: default.to_string(), origin: Origin::Default });
        let parsed = parse(&given.text).map_err(|why| match &given.origin {
            Origin::Default => format!("{name}: {why}"),
            origin => format!("{name}: {why} (from {origin})"),
        });
        self.given.borrow_mut().insert(name, given);
        parsed
    }
}

impl Settings {
    /// Returns the settings of each replica of a database, in the order of the configuration file; none if
    /// the database is not to be replicated. A replica in the URI or in the environment replaces the replicas
    /// in the file.
    pub fn resolve(
        database: &Path,
        lookup: &dyn Lookup,
        config: Option<&Config>,
    ) -> Result<Vec<Settings>, String> {
        let none = Layer::default();
        let entry = config.and_then(|config| config.entry(database));
        let defaults = match (&entry, config) {
            (Some(entry), _) => &entry.layer,
            (None, Some(config)) => &config.global,
            (None, None) => &none,
        };
        let listed = entry.as_ref().map(|entry| entry.replicas.as_slice()).unwrap_or_default();
        let Some(given) = find(lookup, "replica") else {
            let one = |replica: &crate::config::Replica| {
                let found = (replica.url.clone(), replica.name.clone(), replica.origin.clone());
                Settings::of(found, &replica.layer, lookup)
            };
            return listed.iter().map(one).collect();
        };
        if given.text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let name = database.file_name().unwrap_or_default();
        let url = given.text.replace("{name}", &store::url::of_name(&given.text, name));
        // The configuration file may say how the same replica is reached.
        let identity = store::check_url(&url, &Access::default()).ok();
        let same = listed.iter().find(|replica| identity.as_ref() == Some(&replica.identity));
        let (name, layer) = match same {
            Some(replica) => (replica.name.clone(), &replica.layer),
            None => (None, defaults),
        };
        Ok(vec![Settings::of((url, name, given.origin), layer, lookup)?])
    }

    fn of(
        (replica, name, origin): (String, Option<String>, Origin),
        layer: &Layer,
        lookup: &dyn Lookup,
    ) -> Result<Settings, String> {
        let layers = Layers { lookup, file: layer, given: RefCell::default() };
        let settings = Settings {
            access: layer.access.fitting(&replica),
            replica,
            name,
            sync_interval: layers.parsed("sync-interval", "1s", parse_duration)?,
            shutdown_timeout: layers.parsed("shutdown-timeout", "5s", parse_duration)?,
            spool_cap: layers.parsed("spool-cap", SPOOL_CAP, parse_spool_cap)?,
            // Only in the URI: this setting is for the program, not for people.
            tend: lookup.parameter("tend").is_some_and(|value| value == "on"),
            history: History::resolve(&layers)?,
            audit_interval: layers
                .parsed("audit-interval", "24h", parse_time_or_off)?
                .unwrap_or_default(),
            audit_rate: layers.parsed("audit-rate", "8MB", parse_audit_rate)?,
            journal_mode: layers.parsed("journal-mode", "wal", parse_journal_mode)?,
            restore_mode: layers.parsed("restore-mode", RESTORE_MODE, parse_mode)?,
            strict: layers.parsed("strict", "off", |text| Ok(means_strict(text)))?,
            origin,
            given: BTreeMap::new(),
        };
        Ok(Settings { given: layers.given.into_inner(), ..settings })
    }

    /// Does the same as [`Settings::resolve`] if the configuration file cannot be used.
    ///
    /// Without the file it is unknown whether the database is to be replicated. If URI or environment name a
    /// replica, it is; if they name an empty replica, it is not. Otherwise, and for a strict database, the
    /// result is an error. Nothing is deleted, since the unusable file may say how long states are kept.
    pub fn resolve_without(
        database: &Path,
        lookup: &dyn Lookup,
        broken: &Broken,
    ) -> Result<Vec<Settings>, String> {
        let given = find(lookup, "replica");
        if given.as_ref().is_some_and(|given| given.text.trim().is_empty()) {
            return Ok(Vec::new());
        }
        if given.is_none() || Settings::is_strict_without(lookup, broken) {
            return Err(format!("the configuration cannot be used: {broken}"));
        }
        let mut all = Settings::resolve(database, lookup, None)?;
        for settings in &mut all {
            settings.history.deletes = false;
        }
        Ok(all)
    }

    /// Returns the permission bits of a restored database that replaces no file, from environment and
    /// configuration file, for databases that the file does not list.
    pub fn restore_mode_of_any(
        lookup: &dyn Lookup,
        config: Option<&Config>,
    ) -> Result<u32, String> {
        let none = Layer::default();
        let file = config.map_or(&none, |config| &config.global);
        let layers = Layers { lookup, file, given: RefCell::default() };
        layers.parsed("restore-mode", RESTORE_MODE, parse_mode)
    }

    /// Does the same as [`Settings::is_strict`] if the configuration file cannot be used, but may say so.
    pub fn is_strict_without(lookup: &dyn Lookup, broken: &Broken) -> bool {
        find(lookup, "strict").map_or(broken.strict, |given| means_strict(&given.text))
    }

    /// True if a database that cannot be replicated as its settings say must not be opened. Known even if no
    /// other setting is.
    pub fn is_strict(database: &Path, lookup: &dyn Lookup, config: Option<&Config>) -> bool {
        let in_file = || {
            let config = config?;
            let entry = config.entry(database);
            let layer = entry.as_ref().map_or(&config.global, |entry| &entry.layer);
            layer.values.get("strict").cloned()
        };
        let given = find(lookup, "strict").or_else(in_file);
        given.is_some_and(|given| means_strict(&given.text))
    }
}

/// True unless the text clearly says no: a user who sets `strict` wants to be told of errors.
pub(crate) fn means_strict(text: &str) -> bool {
    !matches!(text.trim(), "off" | "false" | "0" | "no" | "")
}

fn parse_spool_cap(text: &str) -> Result<u64, String> {
    if text.trim() == SPOOL_CAP { Ok(0) } else { parse_size(text) }
}

fn parse_audit_rate(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("an audit that reads nothing is none; use audit-interval=off".into()),
        rate => Ok(rate),
    }
}

fn find(lookup: &dyn Lookup, name: &str) -> Option<Given> {
    // An empty value counts as not set, except for the replica: there it means that the database has none.
    let says = |text: &String| name == "replica" || !text.trim().is_empty();
    if let Some(text) = lookup.parameter(name).filter(says) {
        return Some(Given { text, origin: Origin::Parameter });
    }
    let variable = format!("WALFERRY_{}", name.to_uppercase().replace('-', "_"));
    let text = lookup.variable(&variable).filter(says)?;
    Some(Given { text, origin: Origin::Variable(variable) })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known(&'static [(&'static str, &'static str)]);

    impl Lookup for Known {
        fn parameter(&self, name: &str) -> Option<String> {
            self.0.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        }
        fn variable(&self, name: &str) -> Option<String> {
            self.parameter(name)
        }
    }

    fn one(database: &str, lookup: &dyn Lookup) -> Result<Settings, String> {
        let mut all = Settings::resolve(Path::new(database), lookup, None)?;
        assert_eq!(all.len(), 1);
        Ok(all.remove(0))
    }

    #[test]
    fn the_parameter_beats_the_variable() {
        let given = Known(&[
            ("WALFERRY_REPLICA", "s3://b/{name}"),
            ("WALFERRY_SYNC_INTERVAL", "2s"),
            ("sync-interval", "10ms"),
            ("spool-cap", "2MiB"),
        ]);
        let settings = one("/data/app.db", &given).unwrap();
        assert_eq!(settings.replica, "s3://b/app.db");
        assert_eq!(settings.sync_interval, Duration::from_millis(10));
        assert_eq!(settings.spool_cap, 2 << 20);
        let shown = |name: &str| settings.given[name].origin.to_string();
        assert_eq!(shown("sync-interval"), "URI parameter");
        assert_eq!(settings.origin.to_string(), "WALFERRY_REPLICA");
        assert_eq!(shown("retention"), "default");
        assert_eq!(Settings::resolve(Path::new("a"), &Known(&[]), None), Ok(Vec::new()));
        assert_eq!(settings.history.levels.len(), 3);
        assert_eq!(settings.history.retention, Some(Duration::from_hours(168)));
        let given = Known(&[
            ("replica", "s3://b/p"),
            ("levels", "10s, 1m"),
            ("retention", "720h"),
            ("snapshot-interval", "off"),
            ("deletes", "off"),
        ]);
        let history = one("a", &given).unwrap().history;
        assert_eq!(history.levels, [Duration::from_secs(10), Duration::from_mins(1)]);
        assert_eq!((history.retention, history.deletes), (Some(Duration::from_hours(720)), false));
        assert_eq!(history.snapshot_interval, Duration::ZERO);
        let audit = |given: &Known| {
            one("a", given).map(|all| (all.audit_interval.as_secs(), all.audit_rate))
        };
        assert_eq!(audit(&Known(&[("replica", "x")])), Ok((86_400, 8 << 20)));
        let given = Known(&[("replica", "x"), ("audit-interval", "off"), ("audit-rate", "1GB")]);
        assert_eq!(audit(&given), Ok((0, 1 << 30)));
        assert_eq!(parse_levels("off,1m").unwrap(), [Duration::ZERO, Duration::from_mins(1)]);
        for (name, value) in [
            ("levels", "5m,30s"),
            ("levels", "0,1h"),
            ("levels", "1s,2s,3s,4s,5s,6s,7s,8s,9s"),
            ("levels", "1m,off,30s"),
            ("retention", "forever"),
            ("deletes", "no"),
            ("shrink-images", "1"),
            ("audit-interval", "daily"),
            ("audit-rate", "0"),
            ("journal-mode", "delete"),
        ] {
            let wrong: &'static _ = Box::leak(Box::new([("replica", "x"), (name, value)]));
            let message = one("a", &Known(wrong)).unwrap_err();
            assert!(message.starts_with(name), "{message}");
        }
        let wrong = Known(&[("replica", "x"), ("shutdown-timeout", "5 parsecs")]);
        let message = one("a", &wrong).unwrap_err();
        assert!(message.contains("shutdown-timeout") && message.contains("5 parsecs"), "{message}");
        assert!(message.ends_with("(from URI parameter)"), "{message}");
        let wrong = Known(&[("replica", "x"), ("WALFERRY_LEVELS", "5m,30s")]);
        let message = one("a", &wrong).unwrap_err();
        assert!(message.ends_with("(from WALFERRY_LEVELS)"), "{message}");
    }

    #[test]
    fn without_a_value_nothing_is_said() {
        let given = Known(&[("replica", "x"), ("retention", " "), ("WALFERRY_RETENTION", "5h")]);
        let retention = one("a", &given).unwrap().history.retention;
        assert_eq!(retention, Some(Duration::from_hours(5)));
        let given = Known(&[("replica", "x"), ("levels", ""), ("WALFERRY_LEVELS", "")]);
        assert_eq!(one("a", &given).unwrap().history.levels.len(), 3);
        // An empty replica means none.
        let given = Known(&[("replica", ""), ("WALFERRY_REPLICA", "x")]);
        assert_eq!(Settings::resolve(Path::new("a"), &given, None), Ok(Vec::new()));
        // Off, as in the configuration file.
        let given = Known(&[("replica", "x"), ("retention", "0")]);
        assert_eq!(one("a", &given).unwrap().history.retention, None);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_overruled_by_what_is_nearer() {
        let broken =
            |strict| Broken { file: "/x.yml".into(), mistakes: Vec::new(), strict, uri: None };
        let resolve = |given: &Known, strict| {
            Settings::resolve_without(Path::new("a"), given, &broken(strict))
        };
        let nothing = Known(&[]);
        assert!(resolve(&nothing, false).unwrap_err().starts_with("the configuration cannot"));
        assert!(Settings::is_strict_without(&nothing, &broken(true)));
        let named = Known(&[("replica", "x")]);
        assert!(!resolve(&named, false).unwrap()[0].history.deletes);
        assert!(resolve(&named, true).is_err());
        for lenient in [
            Known(&[("replica", "x"), ("strict", "0")]),
            Known(&[("WALFERRY_REPLICA", "x"), ("WALFERRY_STRICT", "0")]),
        ] {
            assert_eq!(resolve(&lenient, true).map(|all| all.len()), Ok(1));
            assert!(!Settings::is_strict_without(&lenient, &broken(true)));
        }
        // A database that is not to be replicated does not need the configuration file.
        for none in [Known(&[("replica", "")]), Known(&[("WALFERRY_REPLICA", "")])] {
            assert_eq!(resolve(&none, true), Ok(Vec::new()));
        }
    }

    #[test]
    fn every_setting_has_a_name_and_is_checked() {
        let settings = one("a", &Known(&[("replica", "x")])).unwrap();
        assert!(settings.given.keys().eq(NAMES.iter()), "{:?}", settings.given.keys());
        assert_eq!(check("retention", "720h"), Ok(()));
        assert_eq!(check("spool-cap", "auto"), Ok(()));
        for (name, value, words) in [
            ("retnetion", "720h", "the nearest is retention"),
            ("mode", "ro", "is not known"),
            ("vfs", "unix", "is not known; there are audit-interval, "),
            ("retention", "forever", "retention: 'forever' is not a length of time"),
            ("retention", "", "no value"),
        ] {
            let why = check(name, value).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
        assert_eq!(meant("retnetion"), Some("retention"));
        assert_eq!(meant("replic"), Some("replica"));
        for fine in ["replica", "retention", "mode", "vfs", "cache", "x", "my-option"] {
            assert_eq!(meant(fine), None, "{fine}");
        }
    }
}
