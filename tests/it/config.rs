//! The configuration file: what is believed of it, and what is said of its mistakes.

mod docs;
mod field;
mod mistakes;

use std::path::Path;
use std::time::Duration;

use walferry::config::{Broken, Config, Surroundings, canonical};
use walferry::settings::{JournalMode, Lookup, Settings};

/// What a file says, read in `/srv/app` by somebody whose home is `/home/me`.
fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, Broken> {
    let variable = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.to_string())
    };
    let surroundings = Surroundings { directory: "/srv/app".into(), home: Some("/home/me".into()) };
    Config::parse(Path::new("/etc/x.yml"), text, Some(&variable), &surroundings)
}

fn parse(text: &str) -> Result<Config, Broken> {
    parse_with(text, &[])
}

/// All that is wrong with a file, a line each.
fn wrong(text: &str) -> String {
    match parse(text) {
        Ok(config) => panic!("{text}\nis believed: {config:?}"),
        Err(broken) => broken.to_string(),
    }
}

/// Nothing but these values, as parameters (`name`) or as variables (`WALFERRY_NAME`).
struct Given<'a>(&'a [(&'a str, &'a str)]);

impl Lookup for Given<'_> {
    fn parameter(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.parameter(name)
    }
}

fn settings(config: &Config, database: &str, given: &[(&str, &str)]) -> Vec<Settings> {
    Settings::resolve(Path::new(database), &Given(given), Some(config)).unwrap()
}

const HOURS: fn(u64) -> Duration = Duration::from_hours;

#[test]
fn a_file_of_litestream_0_3() {
    let text = "
addr: \":9090\"
dbs:
  - path: /data/app.db
    replicas:
      - type: s3
        bucket: backups
        path: app/db
        region: eu-central-1
        endpoint: http://127.0.0.1:9000
        access-key-id: ${AWS_ACCESS_KEY_ID}
        secret-access-key: ${AWS_SECRET_ACCESS_KEY}
        retention: 720h
        snapshot-interval: 12h
        retention-check-interval: 1h
      - path: /backup/app
        name: disk
";
    let variables = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hidden")];
    let config = parse_with(text, &variables).unwrap();
    let all = settings(&config, "/data/app.db", &[]);
    let [s3, file] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((s3.replica.as_str(), s3.name.as_deref()), ("s3://backups/app/db", Some("s3")));
    assert_eq!(s3.history.retention, Some(HOURS(720)));
    assert_eq!(s3.history.snapshot_interval, HOURS(12));
    assert_eq!(s3.access.options["region"], "eu-central-1");
    assert_eq!(s3.access.options["endpoint"], "http://127.0.0.1:9000");
    let credentials = s3.access.credentials.as_ref().unwrap();
    assert_eq!((&*credentials.access_key_id, &*credentials.secret_access_key), ("AKIA", "hidden"));
    assert_eq!((&*file.replica, file.name.as_deref()), ("file:///backup/app", Some("disk")));
    assert_eq!(file.history.retention, Some(HOURS(168)));
    assert!(file.access.credentials.is_none());
    // Nothing of it in what may be logged.
    let debug = format!("{config:?} {all:?}");
    assert!(!debug.contains("hidden") && !debug.contains("AKIA"), "{debug}");
    let notes: Vec<_> = config.notes.iter().map(|note| note.key.as_str()).collect();
    assert_eq!(notes, ["addr", "dbs[0].replicas[0].retention-check-interval"]);
}

#[test]
fn a_file_of_litestream_0_5() {
    let text = "
snapshot: {interval: 6h, retention: 48h}
levels:
  - interval: 10s
  - interval: 1m
l0-retention: 0
shutdown-sync-timeout: 20s
retention: {enabled: false}
validation: {interval: 1h30m}
region: nowhere
dbs:
  - path: sqlite:///data/app.db
    snapshot: {retention: 96h}
    replica:
      url: s3://backups/app?endpoint=http://localhost:1
      sync-interval: 5s
";
    let config = parse(text).unwrap();
    let all = settings(&config, "/data/app.db", &[]);
    let [one] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!(one.sync_interval, Duration::from_secs(5));
    assert_eq!(one.shutdown_timeout, Duration::from_secs(20));
    assert_eq!(one.history.levels, [Duration::from_secs(10), Duration::from_mins(1)]);
    assert_eq!(one.history.snapshot_interval, HOURS(6));
    assert_eq!(one.history.retention, Some(HOURS(96)));
    assert_eq!(one.history.l0_retention, Duration::MAX);
    assert_eq!(one.history.validation_interval, Duration::from_mins(90));
    assert!(!one.history.deletes);
    assert_eq!(one.access.options["region"], "nowhere");
    // What is not in the file is not replicated.
    assert_eq!(settings(&config, "/data/other.db", &[]), []);
}

#[test]
fn parameters_go_before_variables_before_the_file_before_defaults() {
    let text = "
retention: 1h
dbs:
  - path: /data/app.db
    sync-interval: 3s
    journal-mode: keep
    replica:
      url: file:///r
      retention: 2h
      levels: off
";
    let config = parse(text).unwrap();
    let given = [("WALFERRY_SYNC_INTERVAL", "4s"), ("retention", "3h")];
    let all = settings(&config, "/data/app.db", &given);
    let [one] = all.as_slice() else { panic!("{all:?}") };
    let origin = |name: &str| one.given[name].origin.to_string();
    assert_eq!((one.history.retention, &*origin("retention")), (Some(HOURS(3)), "URI parameter"));
    assert_eq!(origin("sync-interval"), "WALFERRY_SYNC_INTERVAL");
    assert_eq!(origin("levels"), "/etc/x.yml:10 dbs[0].replica.levels");
    assert_eq!(origin("journal-mode"), "/etc/x.yml:6 dbs[0].journal-mode");
    assert_eq!(origin("deletes"), "default");
    assert_eq!(one.origin.to_string(), "/etc/x.yml:8 dbs[0].replica.url");
    assert_eq!(one.journal_mode, JournalMode::Keep);
    assert!(one.history.levels.iter().all(Duration::is_zero));
    // Another replica takes the place of those in the file; what is nearer than it holds.
    let all = settings(&config, "/data/app.db", &[("replica", "/elsewhere/{name}")]);
    let [one] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((&*one.replica, one.history.retention), ("/elsewhere/app.db", Some(HOURS(1))));
    // The same replica under another spelling is still the file's.
    let all = settings(&config, "/data/app.db", &[("replica", "file:/r/")]);
    assert_eq!(all.first().unwrap().history.retention, Some(HOURS(2)));
    // An empty one: not replicated, whatever the file says.
    assert_eq!(settings(&config, "/data/app.db", &[("WALFERRY_REPLICA", "")]), []);
    // And defaults of the file reach databases that it does not list.
    let all = settings(&config, "/data/unlisted.db", &[("replica", "/r2")]);
    assert_eq!(all.first().unwrap().history.retention, Some(HOURS(1)));
}

#[test]
fn a_secret_may_hold_anything() {
    let odd = ": # { } \" ' \n - % $HOME ${X} | > & * !";
    let text = "
dbs:
  - path: /data/app.db
    replica:
      url: s3://b/p
      access-key-id: $ID
      secret-access-key: ${SECRET}
";
    let config = parse_with(text, &[("ID", "id"), ("SECRET", odd)]).unwrap();
    let all = settings(&config, "/data/app.db", &[]);
    let credentials = all.first().unwrap().access.credentials.clone().unwrap();
    assert_eq!(credentials.secret_access_key, odd);
    // Without expansion a dollar means nothing.
    let surroundings = Surroundings { directory: "/".into(), home: None };
    let config = Config::parse(Path::new("x"), text, None, &surroundings).unwrap();
    let all = settings(&config, "/data/app.db", &[]);
    let credentials = all.first().unwrap().access.credentials.clone().unwrap();
    assert_eq!(credentials.secret_access_key, "${SECRET}");
}

#[test]
fn paths_as_people_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let root = canonical(folder.path());
    let real = root.join("räume und mehr.db");
    std::fs::write(&real, "").unwrap();
    std::os::unix::fs::symlink(&real, root.join("link.db")).unwrap();
    std::os::unix::fs::symlink("not yet.db", root.join("dangling.db")).unwrap();
    let surroundings = Surroundings { directory: root.clone(), home: Some(root.clone()) };
    let entry = |path: &str, database: &Path| {
        let text = format!("dbs: [{{path: '{path}', replica: {{url: 'file:///r'}}}}]");
        let config = Config::parse(Path::new("x"), &text, None, &surroundings).unwrap();
        config.entry(&canonical(database)).is_some()
    };
    for path in [
        "räume und mehr.db",
        "./räume und mehr.db",
        "~/räume und mehr.db",
        "sqlite3://räume und mehr.db",
        "link.db",
        real.to_str().unwrap(),
    ] {
        assert!(entry(path, &real), "{path}");
        assert!(entry(path, &root.join("link.db")), "{path}");
    }
    // SQLite follows links by itself before it opens a file, also one that is to be made.
    assert!(entry("dangling.db", &root.join("not yet.db")));
    assert!(entry("new/../fresh.db", &root.join("fresh.db")) || !root.join("new").exists());
    assert!(!entry("other.db", &real));
}

#[test]
fn folders_of_databases() {
    let folder = tempfile::tempdir().unwrap();
    let root = canonical(folder.path());
    std::fs::create_dir_all(root.join("a/b c")).unwrap();
    for name in ["one.db", "a/two.db", "a/b c/drei ü.db", "a/three.sqlite"] {
        std::fs::write(root.join(name), "SQLite format 3\0").unwrap();
    }
    std::fs::write(root.join("a/empty.db"), "").unwrap();
    let text = |recursive| {
        format!(
            "dbs:\n- dir: {}\n  pattern: '*.db'\n  recursive: {recursive}\n  replica:\n    url: s3://b/all?region=r\n",
            root.display()
        )
    };
    let config = parse(&text("true")).unwrap();
    let urls = |config: &Config| -> Vec<String> {
        let files = config.files();
        let all = files.iter().flat_map(|file| settings(config, file.to_str().unwrap(), &[]));
        all.map(|one| one.replica).collect()
    };
    assert_eq!(
        urls(&config),
        [
            "s3://b/all/a/b%20c/drei%20%C3%BC.db?region=r",
            "s3://b/all/a/two.db?region=r",
            "s3://b/all/one.db?region=r"
        ]
    );
    // One that is new, or empty, when it is opened.
    let new = root.join("a/new.db");
    let all = settings(&config, new.to_str().unwrap(), &[]);
    assert_eq!(all.first().unwrap().replica, "s3://b/all/a/new.db?region=r");
    assert_eq!(settings(&config, root.join("a/x.sqlite").to_str().unwrap(), &[]), []);
    assert_eq!(urls(&parse(&text("false")).unwrap()), ["s3://b/all/one.db?region=r"]);
}

#[test]
fn hosts_of_providers_in_a_url() {
    let text =
        "dbs: [{path: /a, replica: {url: 's3://b.nyc3.digitaloceanspaces.com/p/q', region: own}}]";
    let config = parse(text).unwrap();
    let all = settings(&config, "/a", &[]);
    let one = all.first().unwrap();
    assert_eq!(one.replica, "s3://b/p/q");
    assert_eq!(one.access.options["endpoint"], "https://nyc3.digitaloceanspaces.com");
    assert_eq!(one.access.options["region"], "own");
}

#[test]
fn anchors_and_merge_keys() {
    let text = "
dbs:
  - path: /a.db
    replica: &common
      type: s3
      bucket: b
      path: a
      region: r
  - path: /b.db
    replica:
      <<: *common
      path: b
";
    let config = parse(text).unwrap();
    let all = settings(&config, "/b.db", &[]);
    let one = all.first().unwrap();
    assert_eq!((&*one.replica, &*one.access.options["region"]), ("s3://b/b", "r"));
}
