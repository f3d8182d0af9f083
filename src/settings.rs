//! What can be set for a database, and where a replica's URL comes from.

use std::path::Path;
use std::time::Duration;

/// Settings of one replicated database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// URL of the replica.
    pub replica: String,
    /// Shortest time between two shipped files.
    pub sync_interval: Duration,
    /// Longest time that the end of the process waits for what is not shipped yet.
    pub shutdown_timeout: Duration,
    /// Most bytes that wait in the spool; 0 for the default: 10 GiB, or twice the database's size
    /// if that is more.
    pub spool_cap: u64,
    /// Whether this process checkpoints for others, and lets them begin the WAL anew: for a process
    /// that writes nothing itself.
    pub tend: bool,
    /// How the replica's history is kept up.
    pub history: History,
}

/// How files are joined, and how long they are kept. What is not to be done has a time of zero, but
/// for `retention`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// Windows of level 1, 2, and so on: what is shipped in one becomes one file.
    pub levels: Vec<Duration>,
    /// Window in which at most one snapshot is made.
    pub snapshot_interval: Duration,
    /// How far back states can be restored; `None` for ever.
    pub retention: Option<Duration>,
    /// How far back they can be restored one by one.
    pub l0_retention: Duration,
    /// Whether anything is ever deleted from the store.
    pub deletes: bool,
    /// Window in which the newest state is proven once from the store's files.
    pub validation_interval: Duration,
    /// Whether a file that makes the database smaller holds all of its pages.
    pub shrink_images: bool,
    /// Most bytes of shipped files that are kept on this machine to be joined.
    pub copies_cap: u64,
}

/// Level 1, 2 and 3, as Litestream has them.
const LEVELS: &str = "30s,5m,1h";
/// Level 1 to 8 can have files of joined ones.
const LEVELS_MAX: usize = 8;
const DAY: Duration = Duration::from_hours(24);
const COPIES_CAP: u64 = 16 << 20;

impl History {
    fn resolve(lookup: &dyn Lookup) -> Result<History, String> {
        let time = |name, default| match find(lookup, name) {
            None => Ok(default),
            Some(text) => parse_time_or_off(&text).map_err(|why| format!("{name}: {why}")),
        };
        let levels = find(lookup, "levels").unwrap_or_else(|| LEVELS.to_string());
        let levels = parse_levels(&levels).map_err(|why| format!("levels: {why}"))?;
        let switch = |name, default| match find(lookup, name).as_deref().map(str::trim) {
            None => Ok(default),
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(other) => Err(format!("{name}: '{other}' is neither on nor off")),
        };
        let history = History {
            levels,
            snapshot_interval: time("snapshot-interval", Some(DAY))?.unwrap_or_default(),
            retention: time("retention", Some(7 * DAY))?,
            l0_retention: time("l0-retention", Some(DAY))?.unwrap_or(Duration::MAX),
            deletes: switch("deletes", true)?,
            shrink_images: switch("shrink-images", false)?,
            validation_interval: time("validation-interval", None)?.unwrap_or_default(),
            copies_cap: match find(lookup, "copies-cap") {
                None => COPIES_CAP,
                Some(text) => parse_size(&text).map_err(|why| format!("copies-cap: {why}"))?,
            },
        };
        if history.retention.is_some_and(|retention| retention.is_zero()) {
            return Err("retention: 0 would keep nothing; say how long, or off to keep all".into());
        }
        Ok(history)
    }
}

/// `30s,5m,1h`, each longer than the one before it; or `off`.
fn parse_levels(text: &str) -> Result<Vec<Duration>, String> {
    if text.trim() == "off" {
        return Ok(Vec::new());
    }
    let levels: Vec<Duration> = text.split(',').map(parse_duration).collect::<Result<_, _>>()?;
    if levels.len() > LEVELS_MAX {
        return Err(format!("there are {LEVELS_MAX} levels at the most"));
    }
    let rises = levels.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
    match levels.first() {
        Some(first) if rises && !first.is_zero() => Ok(levels),
        _ => Err(format!(
            "'{text}' does not rise: each level's time must be longer than the one before it, as in {LEVELS}"
        )),
    }
}

fn parse_time_or_off(text: &str) -> Result<Option<Duration>, String> {
    match text.trim() {
        "off" => Ok(None),
        text => parse_duration(text).map(Some),
    }
}

/// Looks a setting up: first the URI parameter of this name, then the environment variable
/// `WALFERRY_` with the name in capitals.
pub trait Lookup {
    /// The URI parameter, if the database was opened with one.
    fn parameter(&self, name: &str) -> Option<String>;
    /// The environment variable.
    fn variable(&self, name: &str) -> Option<String>;
}

impl Settings {
    /// The settings of a database; `Ok(None)` when it is not to be replicated.
    pub fn resolve(database: &Path, lookup: &dyn Lookup) -> Result<Option<Settings>, String> {
        let Some(replica) = find(lookup, "replica") else {
            return Ok(None);
        };
        if replica.trim().is_empty() {
            return Ok(None);
        }
        let name = database.file_name().map(|name| name.to_string_lossy().into_owned());
        let replica = replica.replace("{name}", &name.unwrap_or_default());
        let duration = |name, default| match find(lookup, name) {
            None => Ok(default),
            Some(text) => parse_duration(&text).map_err(|why| format!("{name}: {why}")),
        };
        let spool_cap = match find(lookup, "spool-cap") {
            None => 0,
            Some(text) => parse_size(&text).map_err(|why| format!("spool-cap: {why}"))?,
        };
        Ok(Some(Settings {
            replica,
            sync_interval: duration("sync-interval", Duration::from_secs(1))?,
            shutdown_timeout: duration("shutdown-timeout", Duration::from_secs(5))?,
            spool_cap,
            // In the URI alone: it is for the program, not for people.
            tend: lookup.parameter("tend").is_some_and(|value| value == "on"),
            history: History::resolve(lookup)?,
        }))
    }
}

fn find(lookup: &dyn Lookup, name: &str) -> Option<String> {
    lookup.parameter(name).or_else(|| {
        let variable = format!("WALFERRY_{}", name.to_uppercase().replace('-', "_"));
        lookup.variable(&variable)
    })
}

/// Parses a length of time: a number with `ms`, `s`, `m`, `h` or `d`; a bare 0 is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a length of time: write it like 500ms, 1s, 5m or 24h");
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Parses a size in bytes: a number, or one with `KB`, `MB`, `GB`, `TB` (powers of 1024).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: write it like 500MB or 10GB");
    let text = text.trim().to_ascii_uppercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.trim().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Given(&'static [(&'static str, &'static str)]);

    impl Lookup for Given {
        fn parameter(&self, name: &str) -> Option<String> {
            self.0.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        }
        fn variable(&self, name: &str) -> Option<String> {
            self.parameter(name)
        }
    }

    #[test]
    fn the_parameter_beats_the_variable() {
        let given = Given(&[
            ("WALFERRY_REPLICA", "s3://b/{name}"),
            ("WALFERRY_SYNC_INTERVAL", "2s"),
            ("sync-interval", "10ms"),
            ("spool-cap", "2MiB"),
        ]);
        let settings = Settings::resolve(Path::new("/data/app.db"), &given).unwrap().unwrap();
        assert_eq!(settings.replica, "s3://b/app.db");
        assert_eq!(settings.sync_interval, Duration::from_millis(10));
        assert_eq!(settings.spool_cap, 2 << 20);
        assert_eq!(Settings::resolve(Path::new("a"), &Given(&[])), Ok(None));
        assert_eq!(settings.history.levels.len(), 3);
        assert_eq!(settings.history.retention, Some(7 * DAY));
        let given = Given(&[
            ("replica", "s3://b/p"),
            ("levels", "10s, 1m"),
            ("retention", "720h"),
            ("snapshot-interval", "off"),
            ("deletes", "off"),
        ]);
        let history = Settings::resolve(Path::new("a"), &given).unwrap().unwrap().history;
        assert_eq!(history.levels, [Duration::from_secs(10), Duration::from_mins(1)]);
        assert_eq!((history.retention, history.deletes), (Some(30 * DAY), false));
        assert_eq!(history.snapshot_interval, Duration::ZERO);
        for (name, value) in [
            ("levels", "5m,30s"),
            ("levels", "0,1h"),
            ("levels", "1s,2s,3s,4s,5s,6s,7s,8s,9s"),
            ("levels", ""),
            ("retention", "0"),
            ("retention", "forever"),
            ("deletes", "no"),
            ("shrink-images", "1"),
        ] {
            let wrong: &'static _ = Box::leak(Box::new([("replica", "x"), (name, value)]));
            let message = Settings::resolve(Path::new("a"), &Given(wrong)).unwrap_err();
            assert!(message.starts_with(name), "{message}");
        }
        let wrong = Given(&[("replica", "x"), ("shutdown-timeout", "5 parsecs")]);
        let message = Settings::resolve(Path::new("a"), &wrong).unwrap_err();
        assert!(message.contains("shutdown-timeout") && message.contains("5 parsecs"), "{message}");
    }
}
