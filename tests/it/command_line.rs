//! The program's face: help, flags as Litestream's users write them, what is refused, and what is never
//! shown.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rusqlite::Connection;
use tempfile::TempDir;
use walferry::local::lock::Lock;
use walferry::local::spool::Entry;
use walferry::store::file::FileStore;

use crate::support::{copy_golden, five, golden, key, names, put};

/// What must not be seen anywhere.
const PLANTED: [&str; 4] = ["PLANTED-password", "PLANTED-key", "PLANTED-token", "PLANTED-env"];

fn run(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
    command.env_clear().stdin(Stdio::null()).args(args);
    command.env("AWS_SECRET_ACCESS_KEY", "PLANTED-env").env("AWS_ACCESS_KEY_ID", "id");
    command.env("AWS_SESSION_TOKEN", "PLANTED-token").env("AWS_REGION", "x");
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    for secret in PLANTED {
        assert!(!out.contains(secret) && !err.contains(secret), "{args:?}\n{out}{err}");
    }
    (status.code().unwrap(), out, err)
}

fn succeeds(args: &[&str]) -> String {
    let (code, out, err) = run(args);
    assert_eq!((code, err.as_str()), (0, ""), "{args:?}\n{out}");
    out
}

fn fails(args: &[&str], code: i32) -> String {
    let (found, out, err) = run(args);
    assert_eq!((found, out.as_str()), (code, ""), "{args:?}\n{err}");
    err
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn commands() -> Vec<String> {
    let help = succeeds(&["--help"]);
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_string).collect()
}

#[test]
fn each_command_shows_how_it_is_used_and_how_it_ends() {
    let all = commands();
    assert!(all.len() >= 13, "{all:?}");
    for name in &all {
        let help = succeeds(&[name, "--help"]);
        assert!(help.contains(&["  walferry ", name].concat()), "{name}: no example\n{help}");
        assert!(help.contains("Exit status:\n  0  success"), "{name}\n{help}");
        assert_eq!(succeeds(&[name, "-help"]), help);
        let json = help.contains("--json");
        assert!(
            json || ["completions", "man", "replicate"].contains(&name.as_str()),
            "{name} has no --json"
        );
    }
}

#[test]
fn the_near_miss_is_named() {
    for (args, meant) in [
        (&["restor", "x"][..], "restore"),
        (&["restore", "--timestmp", "-5m", "x"], "--timestamp"),
        (&["restore", "-timestmp", "-5m", "x"], "--timestamp"),
        (&["restore", "-outptu", "x", "y"], "--output"),
        (&["verify", "-quik", "x"], "--quick"),
        (&["restore", "-o", "x", "-integrity-check", "ful", "y"], "full"),
        (&["compact", "-levle=3", "x"], "--level"),
    ] {
        let said = fails(args, 2);
        assert!(said.contains("similar") && said.contains(meant), "{args:?}: {said}");
    }
}

#[test]
fn flags_of_litestream() {
    let dir = TempDir::new().unwrap();
    let (out, replica) = (dir.path().join("out.db"), golden("litestream-0.5.17"));
    let (out, replica) = (text(&out), text(&replica));
    succeeds(&[
        "restore",
        "-o",
        out,
        "-txid",
        "3",
        "-integrity-check",
        "quick",
        "-parallelism=2",
        replica,
    ]);
    succeeds(&["restore", "-if-db-not-exists", "-o", out, replica]);
    let said = succeeds(&[
        "restore",
        "-dry-run",
        "-json",
        "-timestamp",
        "2026-11-22T12:48:34.201Z",
        replica,
    ]);
    assert!(said.contains("\"txid\":\"0000000000000002\""), "{said}");
    succeeds(&["restore", "-force", "-o", out, replica]);
    let expected = golden("litestream-0.5.17/restored/0000000000000008.db");
    assert_eq!(fs::read(out).unwrap(), fs::read(expected).unwrap());
    let (code, out, err) = run(&["wal", "-level", "0", replica]);
    assert_eq!((code, err.as_str()), (0, "walferry: `wal` is called `ltx` now\n"));
    assert_eq!(out, succeeds(&["ltx", "--level=0", replica]));
    // With the value of another flag the name is nothing special.
    let said = fails(&["sync", "-wait", "-timeout", "30", "wal"], 2);
    assert!(!said.contains("called"), "{said}");
}

#[test]
fn what_litestream_had_and_what_to_use() {
    for (args, meant) in [
        (&["generations", "x"][..], "walferry ltx"),
        (&["snapshots", "x"], "walferry ltx --level 9"),
        (&["list"], "walferry status"),
        (&["info"], "walferry status"),
        (&["restore", "-generation", "01", "-o", "x", "y"], "-timestamp"),
        (&["restore", "-index=3", "-o", "x", "y"], "-txid"),
    ] {
        let said = fails(args, 2);
        assert!(said.contains(meant) && said.lines().count() == 1, "{args:?}: {said}");
    }
}

/// A failed store is never an absent replica.
#[test]
fn no_replica_is_told_from_a_store_that_fails() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.db");
    let flags = ["restore", "-if-replica-exists", "-o", text(&out)];
    let empty = dir.path().join("nothing");
    let empty = format!("file:{}", empty.display());
    let said = succeeds(&[&flags[..], &[&empty]].concat());
    assert!(said.contains("nothing was restored"), "{said}");
    succeeds(&[&flags[..], &["-f", &empty]].concat());
    // Nobody listens there: connection refused.
    let dead = "s3://bucket/app?endpoint=http://127.0.0.1:9";
    let said = fails(&[&flags[..], &[dead]].concat(), 5);
    assert!(said.contains("127.0.0.1:9") || said.contains("s3://bucket/app"), "{said}");
    fails(&[&flags[..], &["-f", dead]].concat(), 5);
    // A folder that may not be read is there.
    let file = dir.path().join("file");
    fs::write(&file, "no folder").unwrap();
    let (code, ..) = run(&[&flags[..], &[&format!("file:{}", file.display())]].concat());
    assert_ne!(code, 0);
    fails(&[&flags[..], &[text(&file)]].concat(), 2);
    assert!(!out.exists());
}

#[test]
fn secrets_stay_in() {
    let url = "s3://user:PLANTED-password@bucket/app?secret-access-key=PLANTED-key&endpoint=http://127.0.0.1:9";
    let dir = TempDir::new().unwrap();
    let database = dir.path().join("a.db");
    Connection::open(&database).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let database = text(&database);
    let out = dir.path().join("out.db");
    let good = dir.path().join("good.yml");
    fs::write(&good, "dbs:\n- path: /a\n  replica: {path: /r}\n").unwrap();
    for args in [
        &["restore", "-o", text(&out), url][..],
        &["restore", "-f", "-o", text(&out), url],
        &["restore", "-o", text(&out), url, url],
        &["restore", "--dry-run", "--json", url],
        &["restore", "--list", url],
        &["restore", "--txid", url, "-o", "x", "y"],
        &[&format!("restore-{url}")],
        &["restore", &format!("--{url}")],
        &["ltx", url],
        &["ltx", "--level", url, "x"],
        &["verify", "--json", url],
        &["compact", "--dry-run", url],
        &["retain", "--retention", "1h", url],
        &["snapshot", url],
        &["snapshot", "--json", url],
        &["sync", database, "--replica", url, "--extension", "/nowhere"],
        &["sync", database, &format!("--replica={url}"), "--timeout=x"],
        &["promote", database, "--replica", url],
        &["status", database, url],
        &["reset", url],
        &["promote", url],
        &["sync", url],
        &["check", "--config", text(&good), url],
        &["replicate", url, database],
        &["restore", "--replica", url, url],
        &["restore", "-o", text(&out), "--replica", url, text(dir.path())],
        &["restore", "-o", url, text(dir.path())],
        &["databases", "--config", url],
        &["ltx", "--config", url, database],
        // A key of AWS may have a slash in it, and so may one with too few of them before it.
        &["restore", "-o", text(&out), "s3://AKIA:PLANTED/PLANTED-key@bucket/app"],
        &["restore", "--dry-run", "s3://AKIA:PLANTED+a/PLANTED-key@bucket/app"],
        &["ltx", "s3://AKIA:a/PLANTED-key@bucket/app"],
        &["verify", "s3://AKIA:a/PLANTED-key@bucket/app?endpoint=http://127.0.0.1:9"],
        &["replicate", "s3://AKIA:a/PLANTED-key@bucket/app", database],
        &["replicate", database, "s3://AKIA:a/PLANTED-key@bucket/app"],
        &["ltx", "s3:/AKIA:a/PLANTED-key@bucket/app"],
        &["ltx", "s3:/AKIA:PLANTED-key@bucket/app"],
        &["ltx", "s3:AKIA:PLANTED-key@bucket/app"],
    ] {
        assert_ne!(run(args).0, 0, "{args:?}");
    }
    let file = dir.path().join("x.yml");
    let replica = "{url: 's3://b/p', access-key-id: id, secret-access-key: 'a$PLANTED_key'}";
    fs::write(&file, format!("dbs:\n- path: /a\n  replica: {replica}\n")).unwrap();
    let said = fails(&["databases", "--config", text(&file)], 2);
    assert!(!said.contains("PLANTED_key") && said.contains("a variable in it"), "{said}");
}

fn database(path: &Path, mode: &str) -> Connection {
    let db = Connection::open(path).unwrap();
    db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(())).unwrap();
    db.execute_batch("CREATE TABLE mine (x); INSERT INTO mine VALUES (1)").unwrap();
    db
}

#[test]
fn force_replaces_what_is_there_in_the_last_moment() {
    let dir = TempDir::new().unwrap();
    let (path, replica) = (dir.path().join("app.db"), copy_golden("litestream-0.5.17", ""));
    let (out, url) = (text(&path), text(replica.path()));
    let expected = fs::read(golden("litestream-0.5.17/restored/0000000000000008.db")).unwrap();
    let force = ["restore", "-force", "-o", out, url];

    // While a program has it open, nothing; not even twice.
    let db = database(&path, "WAL");
    for args in [&force[..], &["restore", "-force", "-force", "-o", out, url]] {
        let said = fails(args, 6);
        assert!(said.contains(&format!("process {} has it open", std::process::id())), "{said}");
    }
    assert_eq!(db.query_row("SELECT x FROM mine", [], |row| row.get(0)), Ok(1));
    // As a crash leaves it: a WAL with commits, and another one that came later.
    let wal = fs::read(dir.path().join("app.db-wal")).unwrap();
    drop(db);
    fs::write(dir.path().join("app.db-wal"), wal).unwrap();
    let said = fails(&["restore", "-o", out, url], 6);
    assert!(said.contains("--force"), "{said}");
    succeeds(&force);
    assert_eq!(fs::read(&path).unwrap(), expected);
    assert_eq!(names(dir.path()), ["app.db", "app.db-walferry"]);

    // Leftovers alone, and what is no database.
    fs::remove_file(&path).unwrap();
    fs::write(dir.path().join("app.db-wal"), "left").unwrap();
    fs::write(dir.path().join("app.db-journal"), "left").unwrap();
    succeeds(&force);
    fs::write(&path, "no database").unwrap();
    fs::write(dir.path().join("app.db-shm"), "left").unwrap();
    succeeds(&force);
    assert_eq!(fs::read(&path).unwrap(), expected);
    assert_eq!(names(dir.path()), ["app.db", "app.db-walferry"]);

    // A restore that fails leaves the old one as it was.
    fs::remove_dir_all(dir.path().join("app.db-walferry")).unwrap();
    fs::remove_file(&path).unwrap();
    drop(database(&path, "DELETE"));
    let before = fs::read(&path).unwrap();
    fails(&["restore", "-force", "-o", out, "-txid", "99", url], 3);
    for level in fs::read_dir(replica.path().join("ltx")).unwrap() {
        for file in fs::read_dir(level.unwrap().path()).unwrap() {
            let file = file.unwrap().path();
            let mut bytes = fs::read(&file).unwrap();
            let at = bytes.len() - 1;
            bytes[at] ^= 1;
            fs::write(&file, bytes).unwrap();
        }
    }
    fails(&force, 4);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(names(dir.path()), ["app.db"]);
}

#[test]
fn force_must_be_said_twice_where_something_is_not_shipped() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("app.db");
    let replica = FileStore::new(dir.path().join("replica"));
    let history = five();
    for txid in 1..=5 {
        put(&replica, key(0, txid, txid), history.bytes(key(0, txid, txid)).to_vec());
    }
    let (out, url) = (text(&path), dir.path().join("replica"));
    let url = text(&url);
    succeeds(&["restore", "-o", out, url]);
    // A restored database that nobody has replicated since may go.
    succeeds(&["restore", "-force", "-o", out, "-txid", "4", url]);
    // What waits in the spool may not.
    let folder = dir.path().join("app.db-walferry");
    let spool = folder.join("spool");
    fs::create_dir_all(&spool).unwrap();
    let entry = Entry { txid: None, pieces: (1, 1), position: None, len: 7 };
    fs::write(spool.join(entry.file_name()), "waiting").unwrap();
    let before = fs::read(&path).unwrap();
    let said = fails(&["restore", "-force", "-o", out, url], 6);
    assert!(said.contains("walferry sync") && said.contains("--force twice"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), before);
    succeeds(&["restore", "-force", "-force", "-o", out, url]);
    assert_eq!(fs::read(&path).unwrap(), history.image(5));
    assert_eq!(fs::read(folder.join("kept-1").join(entry.file_name())).unwrap(), b"waiting");
    assert!(!spool.exists());
    // A shipper is never passed by.
    let lock = Lock::try_take(&folder).unwrap();
    let said = fails(&["restore", "-force", "-force", "-o", out, url], 6);
    assert!(said.contains(&format!("process {} replicates it", std::process::id())), "{said}");
    drop(lock);
}

#[test]
fn status_touches_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("app.db");
    fails(&["status", text(&path)], 2);
    fs::write(&path, "not even a database").unwrap();
    let said = succeeds(&["status", text(&path)]);
    assert!(said.contains("not replicated"), "{said}");
    fs::remove_file(&path).unwrap();
    succeeds(&["restore", "-o", text(&path), text(&golden("litestream-0.5.17"))]);
    let seen = || {
        let mut seen = Vec::new();
        for folder in [dir.path().to_path_buf(), dir.path().join("app.db-walferry")] {
            for entry in fs::read_dir(folder).unwrap() {
                let meta = entry.as_ref().unwrap().metadata().unwrap();
                seen.push((entry.unwrap().path(), meta.len(), meta.modified().unwrap()));
            }
        }
        seen.sort();
        seen
    };
    let before = seen();
    let said = succeeds(&["status", text(&path)]);
    assert!(said.contains("no process replicates it"), "{said}");
    assert!(said.contains("TXID 0000000000000008"), "{said}");
    let json: serde_json::Value =
        serde_json::from_str(&succeeds(&["status", "--json", text(&path)])).unwrap();
    assert_eq!(json[0]["acked"], "0000000000000008");
    assert_eq!((&json[0]["state"], &json[0]["shipper"]), (&"closed".into(), &().into()));
    assert_eq!(seen(), before);
}

#[test]
fn papers() {
    let dir = TempDir::new().unwrap();
    let listed = succeeds(&["man", text(&dir.path().join("man"))]);
    let pages = names(&dir.path().join("man"));
    assert_eq!(pages.len(), commands().len() + 1);
    assert_eq!(listed.lines().count(), pages.len());
    let page = fs::read_to_string(dir.path().join("man/walferry-restore.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("integrity"), "{page}");
    for shell in ["bash", "zsh", "fish"] {
        let said = succeeds(&["completions", shell]);
        assert!(said.contains("walferry") && said.contains("follow-interval"), "{shell}");
    }
    fails(&["completions", "basch"], 2);
}

#[test]
fn versions() {
    let said = succeeds(&["version"]);
    for flag in ["--version", "-version", "-V"] {
        assert_eq!(succeeds(&[flag]), said, "{flag}");
    }
    assert_eq!(said, concat!("walferry ", env!("CARGO_PKG_VERSION"), "\n"));
    assert!(succeeds(&["version", "-verbose"]).contains("SQLite 3."));
    let json: serde_json::Value = serde_json::from_str(&succeeds(&["version", "--json"])).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_snapshot_is_all_files_in_one() {
    let dir = TempDir::new().unwrap();
    let replica = FileStore::new(dir.path().join("replica"));
    let history = five();
    for txid in 1..=5 {
        put(&replica, key(0, txid, txid), history.bytes(key(0, txid, txid)).to_vec());
    }
    let url = dir.path().join("replica");
    let said = succeeds(&["snapshot", "-dry-run", text(&url)]);
    assert!(said.starts_with("would make 9/"), "{said}");
    // Of a database the replica is found by what is beside it.
    let path = dir.path().join("app.db");
    succeeds(&["restore", "-o", text(&path), text(&url)]);
    let said = succeeds(&["snapshot", text(&path)]);
    assert!(said.starts_with("made 9/"), "{said}");
    assert!(succeeds(&["ltx", "-level", "9", text(&url)]).contains("\n9 "));
}
