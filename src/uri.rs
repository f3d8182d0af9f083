//! Decides which parameters in the URI of a database count.
//!
//! A program's own code writes the URI with which it opens a database. But `ATTACH` takes a URI too, and SQL
//! may come from people who may see a program's data and nothing else. A replica that they name would write a
//! copy of any WAL database to any folder. Or it would send that copy to any server, signed with the
//! credentials of the process. So if a configuration file or the environment says what is replicated, a URI
//! may only name replicas that these name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::config::values::{parse_duration, parse_size, parse_switch, parse_time_or_off};
use crate::config::{Given, Origin};
use crate::environment;
use crate::settings::{Lookup, NAMES, Settings, means_strict};
use crate::store;

/// The words for a policy.
pub const WORDS: &[&str] = &["all", "listed", "off"];
/// Key in the configuration file.
pub const KEY: &str = "uri-parameters";
/// Name of the environment variable.
pub const VARIABLE: &str = "WALFERRY_URI";

/// Parameters that are no settings ([`NAMES`]).
const REPLICA: &str = "replica";
const TEND: &str = "tend";

/// Rule for the parameters that count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// All parameters count.
    All,
    /// A replica counts if configuration file or environment name it for the database; a setting, as
    /// `may_set` allows.
    Listed,
    /// No parameter counts.
    Off,
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Policy, String> {
        match text.trim() {
            "all" => Ok(Policy::All),
            "listed" => Ok(Policy::Listed),
            "off" => Ok(Policy::Off),
            other => Err(format!("'{other}' is none of {}", WORDS.join(", "))),
        }
    }
}

/// Returns the word for the policy, with its origin: the variable, else the configuration file, else the
/// default. `has_file` is true if there is a configuration file, even an unusable one.
pub fn given(variable: Option<&str>, file: Option<&Given>, has_file: bool) -> Given {
    if let Some(text) = variable.filter(|text| !text.trim().is_empty()) {
        return Given { text: text.to_string(), origin: Origin::Variable(VARIABLE.to_string()) };
    }
    if let Some(file) = file {
        return file.clone();
    }
    // A set-uid program ignores variables: the user who starts it may not decide what is copied.
    let is_listed = has_file
        || environment::is_ignored()
        || environment::variable("WALFERRY_REPLICA").is_some();
    let text = if is_listed { "listed" } else { "all" };
    Given { text: text.to_string(), origin: Origin::Default }
}

/// Parses the word for a policy. The error names the origin of the word.
pub fn policy(given: &Given) -> Result<Policy, String> {
    given.text.parse().map_err(|why| format!("{KEY}: {why} (from {})", given.origin))
}

/// The parameters of one URI that count.
pub struct Screened<'a> {
    lookup: &'a dyn Lookup,
    dropped: Vec<&'static str>,
    /// Reason why the database is not replicated: its URI names a replica that it may not name, or the policy
    /// is unknown.
    pub refusal: Option<String>,
    /// True if the policy is off and the URI has a parameter.
    pub is_off: bool,
    /// Warnings about ignored parameters.
    pub warnings: Vec<String>,
}

impl Lookup for Screened<'_> {
    fn parameter(&self, name: &str) -> Option<String> {
        if self.dropped.contains(&name) { None } else { self.lookup.parameter(name) }
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.lookup.variable(name)
    }
}

/// A URI of which one parameter counts, or none.
struct Only<'a>(&'a dyn Lookup, Option<&'static str>);

impl Lookup for Only<'_> {
    fn parameter(&self, name: &str) -> Option<String> {
        if self.1 == Some(name) { self.0.parameter(name) } else { None }
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.0.variable(name)
    }
}

/// Finds a database's settings with these parameters.
pub type Resolve<'a> = dyn Fn(&dyn Lookup) -> Result<Vec<Settings>, String> + 'a;

/// Screens the parameters of a URI. `given` is the policy. `resolve` finds the settings of the database with
/// the parameters of the lookup that it gets.
pub fn screen<'a>(given: &Given, lookup: &'a dyn Lookup, resolve: &Resolve<'_>) -> Screened<'a> {
    let ours = NAMES.into_iter().chain([REPLICA, TEND]);
    let present: Vec<_> = ours.filter(|name| lookup.parameter(name).is_some()).collect();
    let (dropped, warnings) = (Vec::new(), Vec::new());
    let mut screened = Screened { lookup, dropped, refusal: None, is_off: false, warnings };
    if present.is_empty() {
        return screened;
    }
    match policy(given) {
        Ok(Policy::All) => {}
        Ok(Policy::Listed) => screened.keep_listed(&present, resolve),
        Ok(Policy::Off) => {
            let from = &given.origin;
            screened.warnings.push(format!(
                "the URI parameter {} is ignored, and so is each other one of walferry's, in every \
                 URI: {KEY} is off (from {from})",
                present.join(", ")
            ));
            screened.is_off = true;
            screened.dropped = present;
        }
        Err(why) => {
            screened.dropped = present;
            screened.refusal = Some(why);
        }
    }
    screened
}

impl Screened<'_> {
    fn keep_listed(&mut self, present: &[&'static str], resolve: &Resolve<'_>) {
        let named = self.lookup.parameter(REPLICA).filter(|url| !url.trim().is_empty());
        let Ok(own) = resolve(&Only(self.lookup, None)) else {
            // The replicas that file or environment name are unknown, so no replica is listed. The next
            // search for the settings ends with the same error. A URI may still say that there is no replica,
            // and that the database is strict.
            let strict = self.lookup.parameter("strict").is_some_and(|text| means_strict(&text));
            let counts = |name| match name {
                REPLICA => named.is_none(),
                "strict" => strict,
                _ => false,
            };
            self.dropped = present.iter().copied().filter(|name| !counts(*name)).collect();
            return;
        };
        let mut picked: Vec<&Settings> = own.iter().collect();
        if let Some(named) = &named {
            let wanted = resolve(&Only(self.lookup, Some(REPLICA))).unwrap_or_default();
            let is_wanted = |own: &&Settings| wanted.iter().any(|wanted| is_same(wanted, own));
            picked = own.iter().filter(is_wanted).collect();
            if picked.is_empty() {
                self.dropped = present.to_vec();
                self.refusal = Some(unlisted(named));
                return;
            }
        }
        for name in present {
            let text = self.lookup.parameter(name).unwrap_or_default();
            if let Err(why) = picked.iter().try_for_each(|own| may_set(name, &text, own)) {
                self.dropped.push(*name);
                self.warnings.push(format!("the URI parameter {name} is ignored: {why}; {ADVICE}"));
            }
        }
    }
}

/// Advice for programs whose own code writes every URI.
const ADVICE: &str = "where only trusted code opens and attaches databases, WALFERRY_URI=all, or \
                      uri-parameters: all in the configuration file, allows every parameter";

fn unlisted(named: &str) -> String {
    format!(
        "its URI names the replica {}, and neither the configuration file nor the environment names \
         that one, with these options, for this database: name it there; {ADVICE}",
        store::url::redacted(named)
    )
}

/// True if both are the same replica, reached in the same way and by the same credentials.
fn is_same(wanted: &Settings, own: &Settings) -> bool {
    store::is_same_way((&wanted.replica, &wanted.access), (&own.replica, &own.access))
}

/// Checks whether a parameter may change the value from file or environment.
///
/// A URI may keep history for longer, and never for less long. It may use less disk, and less time at the end
/// of the process, and never more. An invalid value passes: it is an error where it is used.
fn may_set(name: &str, text: &str, own: &Settings) -> Result<(), Why> {
    let (history, forever) = (&own.history, Duration::MAX);
    let time = |text| parse_time_or_off(text).ok();
    let (may, why) = match name {
        "retention" => {
            let wanted = time(text).map(|time| time.filter(|time| !time.is_zero()));
            let own = history.retention.unwrap_or(forever);
            (wanted.is_none_or(|time| time.unwrap_or(forever) >= own), Why::Shorter)
        }
        "l0-retention" => {
            let own = history.l0_retention;
            (time(text).is_none_or(|time| time.unwrap_or(forever) >= own), Why::Shorter)
        }
        "deletes" => (history.deletes || parse_switch(text) != Ok(true), Why::Shorter),
        "strict" => (!own.strict || means_strict(text), Why::Laxer),
        "shutdown-timeout" => {
            (parse_duration(text).map_or(true, |time| time <= own.shutdown_timeout), Why::More)
        }
        "copies-cap" => {
            (parse_size(text).map_or(true, |size| size <= history.copies_cap), Why::More)
        }
        // A smaller spool loses the states of an outage.
        "spool-cap" => {
            let own = own.given.get(name).map(|given| given.text.trim());
            (own == Some(text.trim()) || parse_size(text).is_err(), Why::Other)
        }
        TEND => (false, Why::Program),
        _ => (true, Why::Other),
    };
    if may { Ok(()) } else { Err(why) }
}

/// Reason why a parameter does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    Shorter,
    Laxer,
    More,
    Other,
    Program,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Shorter => {
                "a URI may have history kept for longer than configuration file, environment and \
                 defaults say, and not for less long"
            }
            Why::Laxer => "the configuration file or the environment says that it is strict",
            Why::More => {
                "a URI may give less than configuration file, environment and defaults say, and not \
                 more"
            }
            Why::Other => "a URI may not change what configuration file, environment and defaults say",
            Why::Program => "it is for the program walferry alone",
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Surroundings};

    struct Parameters<'a>(&'a [(&'a str, &'a str)]);

    impl Lookup for Parameters<'_> {
        fn parameter(&self, name: &str) -> Option<String> {
            self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        }

        fn variable(&self, _: &str) -> Option<String> {
            None
        }
    }

    const FILE: &str = "
dbs:
- path: /data/app.db
  replicas:
  - {url: 's3://b/app', region: r, endpoint: 'https://h', access-key-id: i, secret-access-key: s}
  - {path: /backup/app}
- path: /data/other.db
  retention: 100h
  l0-retention: 1h
  deletes: false
  strict: true
  shutdown-timeout: 9s
  spool-cap: 1GB
  replica: {path: /backup/other}
";

    /// Returns the refusal and the warnings for a database's parameters under this policy.
    fn said(policy: &str, database: &str, given: &[(&str, &str)]) -> (Option<String>, Vec<String>) {
        let surroundings = Surroundings { directory: "/".into(), home: None };
        let config = Config::parse(Path::new("/x.yml"), FILE, None, &surroundings).unwrap();
        let parameters = Parameters(given);
        let resolve =
            |lookup: &dyn Lookup| Settings::resolve(Path::new(database), lookup, Some(&config));
        let policy = Given { text: policy.to_string(), origin: Origin::Default };
        let screened = screen(&policy, &parameters, &resolve);
        for name in &screened.dropped {
            assert_eq!(screened.parameter(name), None);
        }
        (screened.refusal, screened.warnings)
    }

    fn is_refused(database: &str, replica: &str) -> bool {
        let (refusal, warnings) = said("listed", database, &[("replica", replica)]);
        assert!(warnings.is_empty(), "{warnings:?}");
        if let Some(why) = &refusal {
            assert!(why.contains("WALFERRY_URI=all") && why.contains(KEY), "{why}");
        }
        refusal.is_some()
    }

    #[test]
    fn listed_uri_names_replicas_of_its_database_reached_as_file_says() {
        for replica in [
            "s3://b/app",
            "s3://b/app?region=r",
            "s3://b/app/?endpoint=https://h&region=r",
            "s3://b/%61pp?endpoint=h",
            "/backup/app",
            "file:///backup/./app",
            "",
        ] {
            assert!(!is_refused("/data/app.db", replica), "{replica}");
        }
        for replica in [
            "s3://b/app?endpoint=https://elsewhere",
            "s3://b/app?region=other",
            "s3://b/app?profile=other",
            "s3://b/app?force-path-style=false",
            "s3://b/app?sse-customer-key-path=/etc/shadow",
            "s3://b/app?concurrency=64",
            "s3://b/app/below",
            "s3://b/ap",
            "s3://other/app",
            "/backup/app/below",
            "/backup",
            "/backup/other",
            "gs://b/app",
            "file:",
        ] {
            assert!(is_refused("/data/app.db", replica), "{replica}");
        }
        assert!(is_refused("/data/unlisted.db", "/backup/app"));
        assert!(!is_refused("/data/unlisted.db", ""));
    }

    #[test]
    fn listed_uri_keeps_more_and_takes_less_than_file_says() {
        for (name, value, counts) in [
            ("retention", "100h", true),
            ("retention", "off", true),
            ("retention", "0", true),
            ("retention", "99h", false),
            ("retention", "nonsense", true),
            ("l0-retention", "off", true),
            ("l0-retention", "59m", false),
            ("l0-retention", "0", false),
            ("deletes", "off", true),
            ("deletes", "on", false),
            ("strict", "1", true),
            ("strict", "0", false),
            ("shutdown-timeout", "9s", true),
            ("shutdown-timeout", "10s", false),
            ("shutdown-timeout", "nonsense", true),
            ("copies-cap", "1MB", true),
            ("copies-cap", "1GB", false),
            ("copies-cap", "nonsense", true),
            ("spool-cap", "1GB", true),
            ("spool-cap", "1MB", false),
            ("spool-cap", "nonsense", true),
            ("tend", "on", false),
            ("sync-interval", "0", true),
            ("levels", "off", true),
            ("snapshot-interval", "1h", true),
            ("journal-mode", "keep", true),
        ] {
            let (refusal, warnings) = said("listed", "/data/other.db", &[(name, value)]);
            assert_eq!((refusal, warnings.is_empty()), (None, counts), "{name}={value}");
            assert!(warnings.iter().all(|one| one.contains(name) && one.contains(ADVICE)));
            assert_eq!(said("all", "/data/other.db", &[(name, value)]), (None, Vec::new()));
        }
    }

    #[test]
    fn off_says_so_once_for_all_parameters() {
        let (refusal, warnings) =
            said("off", "/data/app.db", &[("replica", "/x"), ("retention", "1s")]);
        assert_eq!((refusal, warnings.len()), (None, 1));
        assert_eq!(said("off", "/data/app.db", &[("mode", "ro")]), (None, Vec::new()));
        let (refusal, _) = said("of", "/data/app.db", &[("replica", "/x")]);
        assert_eq!(
            refusal.as_deref(),
            Some("uri-parameters: 'of' is none of all, listed, off (from default)")
        );
    }

    #[test]
    fn unknown_replicas_are_not_listed_and_strict_counts() {
        let given = Given { text: "listed".to_string(), origin: Origin::Default };
        let unknown = |_: &dyn Lookup| Err("the file cannot be used".to_string());
        for (parameters, dropped) in [
            (
                &[("replica", "/x"), ("strict", "1"), ("retention", "off")][..],
                &["retention", "replica"][..],
            ),
            (&[("replica", ""), ("strict", "0")], &["strict"]),
        ] {
            let parameters = Parameters(parameters);
            assert_eq!(screen(&given, &parameters, &unknown).dropped, dropped);
        }
    }

    #[test]
    fn variable_goes_before_file_before_default() {
        let file = Given { text: "all".to_string(), origin: Origin::Default };
        assert_eq!(given(Some("off"), Some(&file), true).text, "off");
        assert_eq!(given(Some(" "), Some(&file), true).text, "all");
        assert_eq!(given(None, None, true).text, "listed");
        assert_eq!(given(None, None, false).text, "all");
    }
}
