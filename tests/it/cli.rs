//! The program as a person runs it: what it prints and how it exits.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use walferry::ltx::encode::to_vec;
use walferry::store::file::FileStore;
use walferry::units::{PageSize, Txid};

use crate::support::{
    Generations, Replica, begin_database, copy_golden, golden, header, key, listed, names, put,
};

fn walferry() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// Runs and checks the exit status; gives standard output, or standard error when it failed.
fn check(args: &[&str], status: i32) -> String {
    let Output { status: found, stdout, stderr } = walferry().args(args).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(found.code(), Some(status), "{args:?}\n{stdout}{stderr}");
    let (said, silent) = if status == 0 { (stdout, stderr) } else { (stderr, stdout) };
    assert_eq!(silent, "", "{args:?}");
    assert!(said.ends_with('\n'), "{args:?}: {said:?}");
    said
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn restores_and_says_what() {
    let dir = TempDir::new().unwrap();
    let (out, replica) = (dir.path().join("out.db"), url(&golden("litestream-0.5.17")));
    let said = check(&["restore", "-o", text(&out), &replica], 0);
    assert!(said.contains("TXID 0000000000000008"), "{said}");
    assert!(said.contains("carry no database checksums"), "{said}");
    let expected = golden("litestream-0.5.17/restored/0000000000000008.db");
    assert_eq!(fs::read(&out).unwrap(), fs::read(expected).unwrap());

    let said = check(&["restore", "-o", text(&out), &replica], 6);
    assert!(said.contains("exists already") && said.contains("Restore to a new path"), "{said}");
    assert_eq!(said.matches("exists already").count(), 1, "shown once: {said}");
    check(&["restore", "--if-db-not-exists", "-o", text(&out), &replica], 0);

    let older = dir.path().join("older.db");
    let args = ["restore", "--json", "--txid", "3", "--integrity-check", "full", "-o"];
    let said = check(&[&args[..], &[text(&older), &replica]].concat(), 0);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(json["txid"], Txid(3).to_string());
    assert_eq!((&json["pages"], &json["page_size"]), (&4.into(), &512.into()));
    assert_eq!((&json["restored"], &json["proven"]), (&true.into(), &false.into()));
    assert_eq!(names(dir.path()), ["older.db", "older.db-walferry", "out.db", "out.db-walferry"]);
}

#[test]
fn restores_the_state_of_a_moment() {
    let dir = TempDir::new().unwrap();
    let (out, replica) = (dir.path().join("out.db"), url(&golden("litestream-0.5.17")));
    for (moment, txid) in [
        ("2026-11-22T12:48:34.201Z", 2),
        ("2026-11-22T13:48:34.2Z+01:00", 0),
        ("2026-11-22T13:48:34.200+01:00", 1),
        ("2026-11-22 12:49", 6),
        ("2026-11-23", 8),
    ] {
        let args = ["restore", "--dry-run", "--json", "--timestamp", moment, &replica];
        if txid == 0 {
            check(&args, 2);
            continue;
        }
        let json: serde_json::Value = serde_json::from_str(&check(&args, 0)).unwrap();
        assert_eq!(json["txid"], Txid(txid).to_string(), "{moment}");
    }
    check(&["restore", "--timestamp=-1000w", "-o", text(&out), &replica], 3);
    let said = check(&["restore", "--timestamp", "-1000w", "-o", text(&out), &replica], 3);
    let range = "it has those from 2026-11-22T12:48:32.804Z to 2026-11-22T12:49:04.196Z";
    assert!(said.contains(range), "{said}");
    check(&["restore", "--timestamp", "-5m", "--txid", "1", "-o", text(&out), &replica], 2);
    check(&["restore", "--timestamp", "2026-11-22T12:48:34.201Z", "-o", text(&out), &replica], 0);
    let expected = golden("litestream-0.5.17/restored/0000000000000002.db");
    assert_eq!(fs::read(&out).unwrap(), fs::read(expected).unwrap());
}

#[test]
fn restores_what_litestream_0_3_wrote() {
    let Generations { replica, folder } = Generations::new();
    let (dir, url) = (TempDir::new().unwrap(), url(replica.path()));
    let out = dir.path().join("out.db");
    let said = check(&["restore", "--dry-run", &url], 0);
    let plan = "generation ebcc5c9659d4a37f of 2023-11-14T22:13:46Z from 2 objects";
    assert_eq!(said, format!("would restore {plan} with 43116 bytes\n"));
    let said = check(&["restore", "--integrity-check", "full", "-o", text(&out), &url], 0);
    assert!(said.contains("generation ebcc5c9659d4a37f") && said.contains("0.3"), "{said}");
    let expected = fs::read(golden("litestream-0.3.13/restored/latest.db")).unwrap();
    assert!(fs::read(&out).unwrap() == expected);
    assert_eq!(names(dir.path()), ["out.db"]);
    check(&["restore", "-o", text(&out), &url], 6);

    let at = dir.path().join("at.db");
    let moment = "2023-11-14T22:13:25Z";
    let args = ["restore", "--json", "--timestamp", moment, "-o", text(&at), &url];
    let json: serde_json::Value = serde_json::from_str(&check(&args, 0)).unwrap();
    assert_eq!((&json["timestamp"], &json["restored"]), (&moment.into(), &true.into()));
    let expected = golden("litestream-0.3.13/restored/2023-11-14T22-13-25Z.db");
    assert!(fs::read(&at).unwrap() == fs::read(expected).unwrap());

    let bad = dir.path().join("bad.db");
    let said = check(&["restore", "--timestamp", "2023-11-14", "-o", text(&bad), &url], 3);
    let range = "it has those from 2023-11-14T22:13:20Z to 2023-11-14T22:13:46Z";
    assert!(said.contains(range) && said.contains("`walferry restore --list`"), "{said}");
    check(&["restore", "--txid", "1", "-o", text(&bad), &url], 3);
    let snapshot = folder.join("snapshots/00000008.snapshot.lz4");
    fs::OpenOptions::new().append(true).open(&snapshot).unwrap().write_all(&[0]).unwrap();
    let said = check(&["restore", "-o", text(&bad), &url], 4);
    assert!(said.contains("00000008.snapshot.lz4 of the replica cannot be used"), "{said}");
    assert!(said.contains("bytes behind its end") && said.contains("--timestamp"), "{said}");
    assert_eq!(names(dir.path()), ["at.db", "out.db"]);
}

#[test]
fn lists_what_litestream_0_3_wrote() {
    let Generations { replica, folder } = Generations::new();
    let url = url(replica.path());
    let said = check(&["ltx", &url], 0);
    let lines: Vec<Vec<&str>> =
        said.lines().map(|line| line.split_whitespace().collect()).collect();
    let (first, last) = ("2023-11-14T22:13:20Z", "2023-11-14T22:13:46Z");
    assert_eq!(lines[0], ["generation", "snapshots", "WALs", "bytes", "from", "to"]);
    assert_eq!(lines[1], ["ebcc5c9659d4a37f", "4", "9", "133056", first, last]);
    assert_eq!(
        said.lines().nth(2).unwrap(),
        format!("restorable from Litestream 0.3: {first} to {last}")
    );
    assert_eq!(lines.len(), 3);
    let json: serde_json::Value =
        serde_json::from_str(&check(&["ltx", "--json", &url], 0)).unwrap();
    let generation = &json["generations"][0];
    assert_eq!((&generation["from"], &generation["to"]), (&first.into(), &last.into()));
    assert_eq!(generation["snapshots"][1]["index"], "00000003");
    assert_eq!(generation["wals"][2]["segments"], 3);
    assert_eq!((&json["problem"], &json["head"]), (&().into(), &().into()));

    // Beside files of the levels.
    fs::create_dir(replica.path().join("ltx")).unwrap();
    std::os::unix::fs::symlink(golden("litestream-0.5.17/ltx/0"), replica.path().join("ltx/0"))
        .unwrap();
    let said = check(&["ltx", &url], 0);
    assert!(said.contains("restorable: 8 states") && said.contains("ebcc5c9659d4a37f"), "{said}");
    fs::remove_file(folder.join("snapshots/00000008.snapshot.lz4")).unwrap();
    fs::remove_file(folder.join("wal/00000007_00000000.wal.lz4")).unwrap();
    let said = check(&["ltx", &url], 0);
    assert!(said.contains("warning: bytes 00000000 to 00001038 of WAL 00000007 of"), "{said}");
}

#[test]
fn a_dry_run_reads_only_the_listing() {
    let dir = TempDir::new().unwrap();
    let (out, replica) = (dir.path().join("out.db"), url(&golden("litestream-0.5.17")));
    let said = check(&["restore", "--dry-run", "--txid", "7", "-o", text(&out), &replica], 0);
    assert!(said.contains("9      0000000000000001  0000000000000006           573"), "{said}");
    assert!(said.contains("would restore TXID 0000000000000007 from 2 files"), "{said}");
    let said = check(&["restore", "--dry-run", "--json", &replica], 0);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(json["files"].as_array().unwrap().len(), 1);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn nothing_to_restore() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.db");
    let missing = url(&dir.path().join("missing"));
    check(&["restore", "-o", text(&out), &missing], 3);
    check(&["restore", "--if-replica-exists", "-o", text(&out), &missing], 0);
    let said = check(&["restore", "--if-replica-exists", "--json", "-o", text(&out), &missing], 0);
    assert!(said.contains("\"restored\":false"), "{said}");
    check(&["ltx", &missing], 3);
    let replica = url(&golden("litestream-0.5.17"));
    let said = check(&["restore", "--txid", "ff", "-o", text(&out), &replica], 3);
    assert!(said.contains("the newest that can be restored is 0000000000000008"), "{said}");
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn wrong_usage() {
    let replica = url(&golden("litestream-0.5.17"));
    check(&[], 2);
    check(&["restore"], 2);
    check(&["restore", &replica], 2);
    check(&["restore", "-o", "x", "--txid", "0", &replica], 2);
    check(&["restore", "-o", "x", "--txid", "no", &replica], 2);
    check(&["restore", "-o", "x", "--parallelism", "0", &replica], 2);
    check(&["restore", "-o", "x", "--integrity-check", "some", &replica], 2);
    check(&["restore", "-o", "x", "gopher://x/y"], 2);
    check(&["ltx", "--level", "10", &replica], 2);
}

/// A directory with a copy of the files of a golden replica.
fn copy(name: &str) -> TempDir {
    copy_golden(name, "ltx")
}

#[test]
fn damaged_and_incomplete_replicas() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.db");
    let replica = copy("litestream-0.5.11");
    let file = replica.path().join("ltx/1/0000000000000002-0000000000000004.ltx");
    let mut bytes = fs::read(&file).unwrap();
    bytes[150] ^= 1;
    fs::write(&file, bytes).unwrap();
    // Others have what is in it, as long as these are there.
    let said = check(&["restore", "-o", text(&out), &url(replica.path())], 0);
    assert!(said.contains("1/0000000000000002-0000000000000004.ltx is damaged"), "{said}");
    fs::remove_file(&out).unwrap();
    let _ = fs::remove_dir_all(dir.path().join("out.db-walferry"));
    fs::remove_file(replica.path().join("ltx/0/0000000000000003-0000000000000003.ltx")).unwrap();
    let said = check(&["restore", "-o", text(&out), &url(replica.path())], 4);
    assert!(said.contains("file 1/0000000000000002-0000000000000004.ltx"), "{said}");
    assert!(said.lines().count() >= 3, "message, cause, advice: {said}");

    fs::remove_file(&file).unwrap();
    let said = check(&["restore", "-o", text(&out), &url(replica.path())], 4);
    assert!(said.contains("0000000000000003 to 0000000000000003 are missing"), "{said}");
    let said = check(&["ltx", &url(replica.path())], 0);
    assert!(said.contains("restorable: 2 states"), "{said}");
    assert!(said.contains("warning: transactions 0000000000000003"), "{said}");
    check(&["restore", "--txid", "2", "-o", text(&out), &url(replica.path())], 0);
}

#[test]
fn an_output_that_cannot_be_there() {
    let replica = url(&golden("litestream-0.5.17"));
    let long = format!("/tmp/{}.db", "n".repeat(300));
    for output in ["/proc/out.db", "/no such folder/out.db", "/dev/null/out.db", &long] {
        check(&["restore", "-o", output, &replica], 6);
    }
}

#[test]
fn lists_files() {
    let replica = url(&golden("litestream-0.5.17"));
    let said = check(&["ltx", &replica], 0);
    assert_eq!(said.lines().count(), 1 + 21 + 2, "{said}");
    let end = "restorable: 8 states, TXID 0000000000000001 to 0000000000000008\n\
               committed: 2026-11-22T12:48:32.804Z to 2026-11-22T12:49:04.196Z\n";
    assert!(said.ends_with(end), "{said}");
    let said = check(&["ltx", "--level", "9", "--json", &replica], 0);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(json["files"].as_array().unwrap().len(), 4);
    assert_eq!(json["restorable"]["states"], 8);
    assert_eq!(json["head"], Txid(8).to_string());
    assert!(json["problem"].is_null());
}

#[test]
fn version_and_help() {
    assert_eq!(check(&["version"], 0), format!("walferry {}\n", env!("CARGO_PKG_VERSION")));
    for args in [&["--help"][..], &["restore", "--help"], &["ltx", "--help"]] {
        let said = check(args, 0);
        assert!(said.contains("Exit status:") && said.contains("  5  the store"), "{said}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = walferry()
        .args(["ltx", &url(&golden("litestream-0.5.17"))])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn killed_in_the_middle_leaves_no_database() {
    let replica = TempDir::new().unwrap();
    let size = PageSize::new(65536).unwrap();
    let (mut page, commit) = (vec![7; size.bytes()], 2000);
    begin_database(&mut page, size);
    let pages = (1..=commit).map(|pgno| (pgno, page.as_slice()));
    let file = to_vec(&header(size, commit, 1, 1), pages).unwrap();
    put(&FileStore::new(replica.path()), key(9, 1, 1), file);
    for _ in 0..20 {
        let dir = TempDir::new().unwrap();
        let out = dir.path().join("out.db");
        let args = ["restore", "-o", text(&out), &url(replica.path())];
        let mut child = walferry().args(args).stdout(Stdio::null()).spawn().unwrap();
        while names(dir.path()).is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        if child.wait().unwrap().signal().is_some() {
            assert!(!out.exists());
            // What it left behind is in nobody's way.
            check(&args, 0);
            assert_eq!(fs::metadata(&out).unwrap().len(), u64::from(commit) * 65536);
            return;
        }
    }
    panic!("the restore was always done before it could be killed");
}

#[test]
fn reset_and_promote_say_what_they_lack() {
    let dir = TempDir::new().unwrap();
    let database = dir.path().join("app.db");
    for command in ["reset", "promote"] {
        let said = check(&[command, text(&database)], 2);
        assert!(said.contains("there is no database") && said.contains("app.db"), "{said}");
    }
    fs::write(&database, b"").unwrap();
    let said = check(&["reset", text(&database)], 0);
    assert!(said.contains("nothing to reset"), "{said}");
    let said = check(&["reset", "--json", text(&database)], 0);
    assert!(said.contains("\"reset\":false"), "{said}");
    let said = check(&["promote", text(&database)], 7);
    assert!(said.contains("takes the replica by itself"), "{said}");
    assert_eq!(names(dir.path()), ["app.db"]);
}

#[test]
fn a_damaged_state_is_given_up_and_its_files_are_kept() {
    let dir = TempDir::new().unwrap();
    let (database, state) = (dir.path().join("app.db"), dir.path().join("app.db-walferry"));
    fs::create_dir_all(state.join("spool")).unwrap();
    fs::write(&database, b"").unwrap();
    fs::write(state.join("state"), b"not what we wrote").unwrap();
    let name = "0000000000000007-0000000000000001-0000000000000002-none.ltx";
    fs::write(state.join("spool").join(name), b"precious").unwrap();
    let said = check(&["promote", text(&database)], 2);
    assert!(said.contains("give --replica"), "{said}");
    let said = check(&["reset", "--dry-run", text(&database)], 0);
    assert!(said.contains("TXID 0000000000000007") && said.contains("would be moved"), "{said}");
    assert!(state.join("state").exists());
    let said = check(&["reset", text(&database)], 0);
    assert!(said.contains("kept-1"), "{said}");
    assert_eq!(fs::read(state.join("kept-1").join(name)).unwrap(), b"precious");
    assert_eq!(names(&state), [".gitignore", "kept-1", "lock"]);
    // Nothing is put on top of what was kept before.
    fs::create_dir_all(state.join("spool")).unwrap();
    fs::write(state.join("spool").join(name), b"more").unwrap();
    assert!(check(&["reset", text(&database)], 0).contains("kept-2"));
    assert_eq!(fs::read(state.join("kept-1").join(name)).unwrap(), b"precious");
}

#[test]
fn a_database_in_use_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let (database, state) = (dir.path().join("app.db"), dir.path().join("app.db-walferry"));
    fs::create_dir_all(&state).unwrap();
    fs::write(&database, b"").unwrap();
    let lock = walferry::local::lock::Lock::try_take(&state).unwrap();
    let pid = format!("process {}", std::process::id());
    for command in ["reset", "promote"] {
        let said = check(&[command, text(&database)], 7);
        assert!(said.contains(&pid), "{said}");
    }
    drop(lock);
    check(&["reset", text(&database)], 0);
}

#[test]
fn verifies() {
    let said = check(&["verify", &url(&golden("litestream-0.5.17"))], 0);
    assert!(said.starts_with("read 21 files with ") && said.contains("8 states"), "{said}");
    assert!(said.contains("carry no database checksums"), "{said}");
    assert!(said.ends_with("whether it is the database, --against DB shows\n"), "{said}");
    let replica = copy("litestream-0.5.17");
    let file = replica.path().join("ltx/0/0000000000000004-0000000000000004.ltx");
    let mut bytes = fs::read(&file).unwrap();
    bytes[150] ^= 1;
    fs::write(&file, bytes).unwrap();
    check(&["verify", "--quick", &url(replica.path())], 0);
    for args in [&["verify"][..], &["verify", "--json"]] {
        let out = walferry().args(args).arg(url(replica.path())).output().unwrap();
        assert_eq!(out.status.code(), Some(4));
        let (said, error) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr));
        assert!(said.contains("0/0000000000000004-0000000000000004.ltx"), "{said}");
        assert!(error.unwrap().contains("has 1 defect"));
    }
    check(&["verify", &url(&replica.path().join("nothing"))], 3);
}

#[test]
fn compacts_and_retains() {
    let replica = copy("litestream-0.5.17");
    let url = url(replica.path());
    let said = check(&["compact", "--level", "9", &url], 0);
    assert_eq!(said, "there is nothing to join\n", "the newest snapshot is the newest state");
    fs::remove_file(replica.path().join("ltx/9/0000000000000001-0000000000000008.ltx")).unwrap();
    let said = check(&["compact", "--level", "9", "--dry-run", &url], 0);
    assert!(said.contains("would make 9/"), "{said}");
    let files = || check(&["ltx", &url], 0);
    let before = files();
    let said = check(&["compact", "--level", "9", &url], 0);
    assert!(said.starts_with("made 9/0000000000000001-"), "{said}");
    assert_ne!(files(), before);
    let said = check(&["compact", "--level", "9", &url], 0);
    assert_eq!(said, "there is nothing to join\n");
    check(&["verify", &url], 0);

    let said = check(&["retain", "--retention", "0s", "--dry-run", &url], 0);
    assert!(said.starts_with("would remove "), "{said}");
    let said = check(&["retain", "--retention", "10000w", "--l0-retention", "10000w", &url], 0);
    assert!(said.starts_with("removed 0 files"), "{said}");
    let said = check(&["retain", "--retention", "0s", "--l0-retention", "0s", &url], 0);
    assert!(said.starts_with("removed ") && !said.starts_with("removed 0"), "{said}");
    let (dir, expected) = (TempDir::new().unwrap(), golden("litestream-0.5.17/restored"));
    let out = dir.path().join("out.db");
    check(&["restore", "-o", text(&out), &url], 0);
    let expected = expected.join("0000000000000008.db");
    assert_eq!(fs::read(&out).unwrap(), fs::read(expected).unwrap());
    for wrong in ["", "-5m", "5", "soon"] {
        check(&["retain", &format!("--retention={wrong}"), &url], 2);
    }
    check(&["retain", &url], 2);
    check(&["compact", "--level", "0", &url], 2);
}

/// So many are joined at a time, until all are: by way of level 8, for which nothing is removed.
#[test]
fn a_snapshot_of_very_many_files() {
    let mut replica = Replica::new(512);
    (0..700).for_each(|n| replica.commit(4, &[2 + n % 3]));
    let dir = TempDir::new().unwrap();
    let store = FileStore::new(dir.path());
    for file in listed(&replica.store) {
        put(&store, file.key, replica.bytes(file.key).to_vec());
    }
    let url = url(dir.path());
    let made = |args: &[&str]| {
        let said = check(&[args, &[url.as_str()]].concat(), 0);
        said.lines().map(|line| line.split(' ').nth(1).unwrap_or_default().to_string()).collect()
    };
    let name = |level: u8, min: u64, max: u64| key(level, min, max).to_string();
    let steps: Vec<String> = made(&["snapshot"]);
    assert_eq!(steps, [name(8, 2, 257), name(9, 1, 700)]);
    assert_eq!(check(&["snapshot", &url], 0), "there is nothing to join\n");
    let steps: Vec<String> = made(&["compact", "--level", "1"]);
    assert_eq!(steps, [name(1, 1, 256), name(1, 257, 512), name(1, 513, 700)]);
    fs::remove_dir_all(dir.path().join("ltx/1")).unwrap();
    let said = check(&["retain", "--retention", "10000w", "--l0-retention", "0s", &url], 0);
    assert!(said.starts_with("removed 0 files"), "{said}");
    check(&["verify", &url], 0);
}

/// A hole is an error, not nothing to do; and what was read before the deletion was damaged.
#[test]
fn compacts_and_retains_what_is_damaged() {
    let replica = copy("litestream-0.5.17");
    let url = url(replica.path());
    let file = |name: &str| replica.path().join("ltx").join(name);
    let flip = |name: &str| {
        let mut bytes = fs::read(file(name)).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(file(name), bytes).unwrap();
    };
    let newest = "9/0000000000000001-0000000000000008.ltx";
    flip(newest);
    let dry = ["retain", "--retention", "0s", "--l0-retention", "0s", "--dry-run", url.as_str()];
    let out = walferry().args(dry).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains(&format!("file {newest} of the replica is damaged")), "{said}");
    let removes = |out: Vec<u8>| {
        let said = String::from_utf8(out).unwrap();
        let words: Vec<&str> = said.split(' ').collect();
        words[2].parse::<u32>().unwrap()
    };
    let all = walferry().args(dry).arg("--quick").output().unwrap();
    assert_eq!(String::from_utf8(all.stderr).unwrap(), "");
    assert!(removes(out.stdout) < removes(all.stdout));
    fs::remove_file(file(newest)).unwrap();
    flip("0/0000000000000008-0000000000000008.ltx");
    for level in 1..=3 {
        let _ = fs::remove_dir_all(file(&level.to_string()));
    }
    let said = check(&["snapshot", &url], 4);
    assert!(said.contains("file 0/0000000000000008-0000000000000008.ltx of"), "{said}");
    fs::remove_file(file("0/0000000000000007-0000000000000007.ltx")).unwrap();
    let said = check(&["snapshot", &url], 4);
    assert!(said.contains("are missing"), "{said}");
}

/// A script that asked for JSON gets it for failures too, with all that a person is told.
#[test]
fn failures_in_json() {
    let dir = TempDir::new().unwrap();
    let (out, empty) = (dir.path().join("out.db"), url(dir.path()));
    let golden = url(&golden("litestream-0.5.11"));
    let wrong: [(&[&str], i32); 5] = [
        (&["restore", "--json", "-o", text(&out), &empty], 3),
        (&["restore", "-json", "--txid", "99", "-o", text(&out), &golden], 3),
        (&["verify", "--json", "gopher://x/y"], 2),
        (&["ltx", "--json", "file:///proc/nothing/here"], 3),
        (&["status", "--json", text(&out)], 2),
    ];
    for (args, status) in wrong {
        let said = check(args, status);
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        let json: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(json["exit_status"], status, "{args:?}: {said}");
        let in_words: Vec<&str> =
            args.iter().filter(|arg| !arg.ends_with("-json")).copied().collect();
        let in_words = check(&in_words, status);
        for part in [&json["error"], &json["advice"]] {
            assert!(
                part.is_null() || in_words.contains(part.as_str().unwrap()),
                "{said}{in_words}"
            );
        }
        let causes = json["causes"].as_array().unwrap();
        assert!(causes.iter().all(|cause| in_words.contains(cause.as_str().unwrap())), "{said}");
        assert!(in_words.starts_with(&format!("walferry: {}", json["error"].as_str().unwrap())));
    }
}
