//! What is asked of what is not there: replicas, databases and settings that nobody knows by this name.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use walferry::local::state::State;
use walferry::store::file::FileStore;
use walferry::units::WriterId;

use crate::support::{copy_golden, five, golden, key, names, put};

/// Exit code, standard output, standard error.
fn run_in(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
    command.env_clear().current_dir(dir).stdin(Stdio::null()).args(args);
    command.env("AWS_ACCESS_KEY_ID", "id").env("AWS_SECRET_ACCESS_KEY", "secret");
    command.env("AWS_REGION", "x").env("AWS_EC2_METADATA_DISABLED", "true");
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Checks the exit code; gives all that was said.
fn check_in(dir: &Path, args: &[&str], code: i32) -> String {
    let (found, out, err) = run_in(dir, args);
    assert_eq!(found, code, "{args:?}\n{out}{err}");
    out + &err
}

fn json(dir: &Path, args: &[&str]) -> serde_json::Value {
    let (code, out, err) = run_in(dir, args);
    assert_eq!(code, 0, "{args:?}\n{out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}\n{out}"))
}

/// A configuration file for `app.db` with these replicas.
fn config(dir: &Path, replicas: &[&str]) {
    let replicas = replicas.join("\n  - ");
    let text = format!("dbs:\n- path: app.db\n  replicas:\n  - {replicas}\n");
    fs::write(dir.join("x.yml"), text).unwrap();
}

/// Nobody listens there: connection refused.
const DEAD: &str = "{name: dead, url: 's3://bucket/app?endpoint=http://127.0.0.1:9'}";
const EMPTY: &str = "{name: empty, path: empty}";

#[test]
fn a_store_that_fails_is_no_absent_replica_whatever_the_others_say() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let restore = ["restore", "-config", "x.yml", "app.db"];
    let foreseen = ["restore", "-config", "x.yml", "-if-replica-exists", "app.db"];
    for replicas in [[DEAD, EMPTY], [EMPTY, DEAD]] {
        config(dir, &replicas);
        for args in [&restore[..], &foreseen] {
            let said = check_in(dir, args, 5);
            assert!(said.contains("passed over replica") && said.contains("s3://bucket"), "{said}");
        }
        assert!(!dir.join("app.db").exists());
    }
    // A state that one has not is no absent replica either.
    let kept = format!("{{name: kept, path: '{}'}}", golden("litestream-0.5.17").display());
    config(dir, &[&kept, EMPTY]);
    check_in(dir, &[&foreseen[..], &["-txid", "ff"]].concat(), 3);
    config(dir, &[EMPTY, "{name: other, path: other}"]);
    check_in(dir, &restore, 3);
    let said = check_in(dir, &foreseen, 0);
    assert!(said.contains("nothing was restored"), "{said}");
    config(dir, &[DEAD, &kept]);
    check_in(dir, &foreseen, 0);
    assert!(dir.join("app.db").exists());
}

#[test]
fn a_database_that_no_file_lists_is_no_absent_replica() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let foreseen = ["-if-db-not-exists", "-if-replica-exists"];
    let restore = [&["restore"][..], &foreseen].concat();
    let said = check_in(dir, &[&restore[..], &["-o", "app.db", "app.db"]].concat(), 2);
    assert!(said.contains("no configuration file lists app.db"), "{said}");
    assert!(said.contains("file:app.db"), "{said}");
    let said = check_in(dir, &[&restore[..], &["app.db"]].concat(), 2);
    assert!(said.contains("no configuration file lists app.db"), "{said}");
    config(dir, &[EMPTY]);
    let named = ["-config", "x.yml", "-o", "other.db", "other.db"];
    let said = check_in(dir, &[&restore[..], &named].concat(), 2);
    assert!(said.contains("x.yml lists no database other.db; it has "), "{said}");
    // One that is there is no replica.
    fs::write(dir.join("other.db"), "").unwrap();
    for command in ["restore", "ltx", "verify", "compact", "snapshot"] {
        let said = check_in(dir, &[command, "other.db"], 2);
        assert!(said.contains("no configuration file lists other.db"), "{command}: {said}");
    }
    // A folder is one, and what is written as a URL is meant as one.
    let (_, out, _) = run_in(dir, &["ltx", golden("litestream-0.5.17").to_str().unwrap()]);
    assert!(out.contains("restorable: 8 states"), "{out}");
    check_in(dir, &[&restore[..], &["-o", "app.db", "file:nothing"]].concat(), 0);
}

#[test]
fn a_replica_has_the_name_that_the_file_gives() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    config(dir, &["{name: first, path: one}", "{name: second, path: two}"]);
    rusqlite::Connection::open(dir.join("app.db"))
        .unwrap()
        .execute_batch("CREATE TABLE t (x)")
        .unwrap();
    let named = ["-config", "x.yml", "-replica", "secnod", "app.db"];
    for command in ["sync", "promote"] {
        let said = check_in(
            dir,
            &[&[command], &named[..]].concat(),
            if command == "sync" { 2 } else { 7 },
        );
        assert!(command != "sync" || said.contains("there are first, second"), "{said}");
    }
    let said = check_in(dir, &["sync", "-replica", "second", "app.db"], 2);
    assert!(said.contains("no configuration file names a replica second"), "{said}");
    assert_eq!(names(dir), ["app.db", "x.yml"]);
    // With two states beside it, each command that takes one replica asks which.
    for (folder, replica) in [("", "one"), ("app.db-walferry/replicas/x", "two")] {
        let state = State::new(WriterId(7), &format!("file://{}/{replica}", dir.display()));
        let folder = dir.join(if folder.is_empty() { "app.db-walferry" } else { folder });
        fs::create_dir_all(&folder).unwrap();
        state.save(&folder, true).unwrap();
    }
    let said = check_in(dir, &[&["promote"], &named[..]].concat(), 2);
    assert!(said.contains("there are first, second"), "{said}");
}

#[test]
fn a_folder_is_one_replica_by_whatever_name() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("real")).unwrap();
    symlink("real", dir.join("link")).unwrap();
    let url = |path: &str| walferry::store::Store::url(&FileStore::new(dir.join(path))).to_string();
    for path in ["link/app", "real/../real/app", "link/../link/./app", "gone/../real/app"] {
        assert_eq!(url(path), url("real/app"), "{path}");
    }
    for (databases, replicas) in [
        (["real/a.db", "link/a.db"], ["one", "two"]),
        (["real/a.db", "real/../link/a.db"], ["one", "two"]),
        (["a.db", "b.db"], ["real/r", "link/r"]),
        (["a.db", "b.db"], ["real/r", "link/../real/r"]),
    ] {
        let entry =
            |i: usize| format!("- path: {}\n  replica: {{path: {}}}\n", databases[i], replicas[i]);
        fs::write(dir.join("x.yml"), format!("dbs:\n{}{}", entry(0), entry(1))).unwrap();
        let said = check_in(dir, &["databases", "-config", "x.yml"], 2);
        let twice = "is there already, in line 2";
        assert!(said.contains(twice) || said.contains("in the same place, in line 3"), "{said}");
    }
}

#[test]
fn a_setting_has_a_name_that_is_known_and_a_value_that_it_may_have() {
    let dir = TempDir::new().unwrap();
    for (set, words) in [
        ("retnetion=720h", "the nearest is retention"),
        ("mode=ro", "the setting mode is not known"),
        ("vfs=unix", "the setting vfs is not known"),
        ("retention=forever", "is not a length of time"),
        ("replica=s3://b/p", "argument of its own"),
        ("journal-mode=wal", "--journal-mode"),
        ("retention", "write it like"),
    ] {
        let args = ["replicate", "a.db", "file:r", "-extension", "/nowhere", "-set", set];
        let said = check_in(dir.path(), &args, 2);
        assert!(said.contains(words), "{set}: {said}");
    }
    // Those that are known get as far as to the extension.
    let args = ["replicate", "a.db", "file:r", "-extension", "/nowhere", "-set", "retention=720h"];
    assert!(check_in(dir.path(), &args, 2).contains("/nowhere"));
}

#[test]
fn nothing_is_kept_in_order_where_there_is_no_replica() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("empty")).unwrap();
    for place in ["file:nothing", "file:empty", "empty"] {
        check_in(dir, &["compact", place], 3);
        check_in(dir, &["snapshot", "-json", place], 3);
        check_in(dir, &["retain", "-retention", "1h", place], 3);
        check_in(dir, &["retain", "-retention", "1h", "-dry-run", place], 3);
    }
    let replica = copy_golden("litestream-0.5.17", "");
    let replica = replica.path().to_str().unwrap();
    for args in [&["compact", "-json", "-level", "9", replica][..], &["snapshot", "-json", replica]]
    {
        let said = json(dir, args);
        assert_eq!(
            (&said["file"], &said["reason"]),
            (&().into(), &"there is nothing to join".into())
        );
    }
}

#[test]
fn a_snapshot_of_several_replicas_asks_which() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let history = five();
    for replica in ["one", "two"] {
        let store = FileStore::new(dir.join(replica));
        for txid in 1..=5 {
            put(&store, key(0, txid, txid), history.bytes(key(0, txid, txid)).to_vec());
        }
    }
    config(dir, &["{name: first, path: one}", "{name: second, path: two}"]);
    check_in(dir, &["restore", "-config", "x.yml", "app.db"], 0);
    let said = check_in(dir, &["snapshot", "-config", "x.yml", "app.db"], 2);
    assert!(said.contains("several replicas") && said.contains("--replica"), "{said}");
    let args = ["snapshot", "-config", "x.yml", "-replica", "second", "app.db"];
    assert!(check_in(dir, &args, 0).starts_with("made 9/"));
    let levels = |replica: &str| names(&dir.join(replica).join("ltx"));
    assert_eq!((levels("one"), levels("two").len()), (vec!["0".to_string()], 2));
}

#[test]
fn force_says_what_it_does_not_replace() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    fs::write(dir.join("real.db"), "").unwrap();
    symlink("real.db", dir.join("link.db")).unwrap();
    fs::create_dir(dir.join("folder.db")).unwrap();
    let replica = golden("litestream-0.5.17");
    let replica = replica.to_str().unwrap();
    for (out, what) in [("link.db", "this is a link"), ("folder.db", "this is a folder")] {
        let said = check_in(dir, &["restore", "-force", "-o", out, replica], 6);
        assert!(said.contains(what) && !said.contains("--force"), "{said}");
    }
}

#[test]
fn what_is_not_there_yet_is_no_failure_and_hides_nothing() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    config(dir, &["{name: first, path: one}"]);
    let said = check_in(dir, &["check", "-config", "x.yml"], 0);
    assert!(said.contains("database: it is not there yet"), "{said}");
    // One that is not there is told, and the others are shown.
    fs::write(dir.join("a.db"), "").unwrap();
    let (code, out, err) = run_in(dir, &["status", "nosuch.db", "a.db"]);
    assert_eq!(code, 2);
    assert!(out.contains("a.db: not replicated") && err.contains("nosuch.db"), "{out}{err}");
    let (code, out, _) = run_in(dir, &["status", "-json", "nosuch.db", "a.db"]);
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, shown.as_array().unwrap().len()), (2, 1));
    // After a reset nothing is left to be reset.
    check_in(dir, &["restore", "-o", "b.db", golden("litestream-0.5.17").to_str().unwrap()], 0);
    let said = check_in(dir, &["reset", "b.db"], 0);
    assert!(said.contains("the state is given up"), "{said}");
    let said = check_in(dir, &["reset", "b.db"], 0);
    assert!(said.contains("nothing to reset"), "{said}");
    assert_eq!(json(dir, &["reset", "-json", "b.db"])["reset"], false);
}

#[test]
fn who_follows_is_not_said_to_ship() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
    let replica = golden("litestream-0.5.17");
    command.env_clear().current_dir(dir).args(["restore", "-f", "-o", "copy.db"]).arg(replica);
    let mut follows = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut out = BufReader::new(follows.stdout.take().unwrap());
    while !said.contains("following") && out.read_line(&mut said).unwrap() > 0 {}
    for command in ["reset", "promote"] {
        let said = check_in(dir, &[command, "copy.db"], 7);
        assert!(said.contains(&format!("process {} follows its replica", follows.id())), "{said}");
    }
    follows.kill().unwrap();
    follows.wait().unwrap();
}
