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
        let wrong = Given(&[("replica", "x"), ("shutdown-timeout", "5 parsecs")]);
        let message = Settings::resolve(Path::new("a"), &wrong).unwrap_err();
        assert!(message.contains("shutdown-timeout") && message.contains("5 parsecs"), "{message}");
    }
}
