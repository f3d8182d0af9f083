//! `walferry restore --list` and `--dry-run`: what could be restored, and what that would read.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use walferry::units::Txid;

use crate::support::{golden, key, large, names, put};

fn walferry(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walferry"));
    let output = command.env_clear().stdin(Stdio::null()).args(args).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{args:?}\n{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stderr, b"", "{args:?}");
    said
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&walferry(args)).unwrap()
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

fn txid(txid: u64) -> Value {
    Txid(txid).to_string().into()
}

#[test]
fn the_list_of_a_replica_of_litestream() {
    let replica = url(&golden("litestream-0.5.17"));
    let list = json(&["restore", "--list", "--json", &replica]);
    let [range] = list["ranges"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!((&range["states"], &range["every_txid"]), (&8.into(), &true.into()));
    let (first, last) = (&range["first"], &range["last"]);
    assert_eq!((&first["txid"], &last["txid"]), (&txid(1), &txid(8)));
    assert_eq!(first["time"], "2026-11-22T12:48:32.804Z");
    assert_eq!(last["time"], "2026-11-22T12:49:04.196Z");
    assert_eq!((&last["page_size"], &last["pages"]), (&512.into(), &4.into()));
    assert_eq!(last["database_bytes"], 2048);
    assert_eq!((&list["gaps"], &list["problem"]), (&Value::Array(vec![]), &Value::Null));
    assert_eq!((&list["head"], &list["unreadable"]), (&txid(8), &Value::Array(vec![])));

    // Each state is what a dry run says, and what a restore does.
    let states = list["states"].as_array().unwrap();
    assert_eq!(states.len(), 8);
    for state in states {
        let at = state["txid"].as_str().unwrap();
        let plan = json(&["restore", "--dry-run", "--json", "--txid", at, &replica]);
        for what in ["txid", "bytes_to_read", "requests"] {
            assert_eq!(state[what], plan[what], "{what} of {at}");
        }
        let files = plan["files"].as_array().unwrap();
        assert_eq!(state["files"], files.len());
        let dir = TempDir::new().unwrap();
        let out = dir.path().join("out.db");
        let args = ["restore", "--json", "--txid", at, "-o", out.to_str().unwrap(), &replica];
        let report = json(&args);
        assert_eq!(report["bytes_fetched"], plan["bytes_to_read"]);
        assert_eq!((&report["requests"], &report["files"]), (&plan["requests"], &state["files"]));
        assert_eq!(report["timestamp"], plan["timestamp"]);
        assert_eq!(report["bytes"], plan["database_bytes"]);
    }
    assert_eq!(list["ranges"][0]["last"]["bytes_to_read"], states[7]["bytes_to_read"]);
}

#[test]
fn the_list_for_people() {
    let said = walferry(&["restore", "--list", &url(&golden("litestream-0.5.17"))]);
    let lines: Vec<&str> = said.lines().collect();
    let [heading, range, summary] = lines.as_slice() else { panic!("{said}") };
    assert!(heading.starts_with("first_txid        last_txid "), "{said}");
    let fields: Vec<&str> = range.split_whitespace().collect();
    assert_eq!(
        fields[..6],
        [
            "0000000000000001",
            "0000000000000008",
            "8",
            "each",
            "2026-11-22T12:48:32.804Z",
            "2026-11-22T12:49:04.196Z"
        ]
    );
    assert_eq!(fields[6..8], ["2.0", "KiB"], "{said}");
    assert_eq!(*summary, "8 states, TXID 0000000000000001 to 0000000000000008");
    let said = walferry(&["restore", "--list", &url(&golden("litestream-0.5.11"))]);
    assert!(said.contains("4 states"), "{said}");
}

#[test]
fn holes_and_damage_are_shown() {
    let replica = TempDir::new().unwrap();
    let store = walferry::store::file::FileStore::new(replica.path());
    let model = crate::support::five();
    for txid in [1, 2, 4, 5] {
        put(&store, key(0, txid, txid), model.bytes(key(0, txid, txid)).to_vec());
    }
    let url = url(replica.path());
    let list = json(&["restore", "--list", "--json", &url]);
    let gap = &list["gaps"][0];
    assert_eq!((&gap["after"], &gap["next"], &gap["last"]), (&txid(2), &txid(4), &txid(5)));
    assert_eq!((&gap["files"], list["states"].as_array().unwrap().len()), (&2.into(), 2));
    assert!(list["problem"].as_str().unwrap().contains("are missing"), "{list}");
    let said = walferry(&["restore", "--list", &url]);
    let gap = "gap: after 0000000000000002 nothing up to 0000000000000003; 2 files behind it, up to \
               0000000000000005, lead nowhere\n";
    assert!(said.contains(gap) && said.contains("warning: transactions"), "{said}");

    // Coarser before, a file that cannot be read.
    let snapshot = {
        model.snapshot(9, 3);
        model.bytes(key(9, 1, 3)).to_vec()
    };
    put(&store, key(9, 1, 3), snapshot);
    let mut damaged = model.bytes(key(0, 5, 5)).to_vec();
    damaged[0] = b'X';
    put(&store, key(0, 5, 5), damaged);
    let list = json(&["restore", "--list", "--json", &url]);
    assert_eq!((&list["gaps"], &list["problem"]), (&Value::Array(vec![]), &Value::Null));
    assert_eq!(list["ranges"][0]["last"]["time"], Value::Null);
    assert_eq!(list["unreadable"].as_array().unwrap().len(), 1);
    let said = walferry(&["restore", "--list", &url]);
    assert!(said.contains(" ? ") && said.contains("warning: file 0/"), "{said}");
}

#[test]
fn requests_of_large_files_are_counted() {
    let replica = TempDir::new().unwrap();
    let model = large();
    let store = walferry::store::file::FileStore::new(replica.path());
    for (key, bytes) in model.store.files() {
        put(&store, key, bytes.to_vec());
    }
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.db");
    let url = url(replica.path());
    let plan = json(&["restore", "--dry-run", "--json", &url]);
    let report = json(&["restore", "--json", "-o", out.to_str().unwrap(), &url]);
    assert_eq!(plan["requests"], report["requests"]);
    assert_eq!(plan["requests"], 1 + 2 + 3);
}

#[test]
fn a_dry_run_of_a_delta() {
    let replica = TempDir::new().unwrap();
    let model = large();
    let store = walferry::store::file::FileStore::new(replica.path());
    for (key, bytes) in model.store.files() {
        put(&store, key, bytes.to_vec());
    }
    let dir = TempDir::new().unwrap();
    let (out, url) = (dir.path().join("out.db"), url(replica.path()));
    let out = out.to_str().unwrap();
    let plan = json(&["restore", "--dry-run", "--json", "--delta", "-o", out, &url]);
    assert_eq!((&plan["from"], plan["files"].as_array().unwrap().len()), (&Value::Null, 2));
    walferry(&["restore", "--txid", "2", "-o", out, &url]);
    let before = names(dir.path());
    let plan = json(&["restore", "--dry-run", "--json", "--delta", "-o", out, &url]);
    assert_eq!((&plan["from"], plan["files"].as_array().unwrap().len()), (&txid(2), 1));
    let said = walferry(&["restore", "--dry-run", "--delta", "-o", out, &url]);
    assert!(said.contains("would go on from TXID 0000000000000002"), "{said}");
    assert_eq!(names(dir.path()), before);
    let said = walferry(&["restore", "--delta", "-o", out, &url]);
    assert!(said.contains("went on from TXID 0000000000000002"), "{said}");
    let plan = json(&["restore", "--dry-run", "--json", "--delta", "--txid", "2", "-o", out, &url]);
    assert!(plan["instead"].as_str().unwrap().contains("newer"), "{plan}");
    let said = walferry(&["restore", "--delta", "--txid", "2", "-o", out, &url]);
    assert!(said.starts_with("everything was read: the copy is newer"), "{said}");
    assert!(std::fs::read(out).unwrap() == model.image(2));
}

#[test]
fn quiet_is_quiet() {
    let dir = TempDir::new().unwrap();
    let (out, url) = (dir.path().join("out.db"), url(&golden("litestream-0.5.17")));
    let out = out.to_str().unwrap();
    assert_eq!(walferry(&["restore", "--quiet", "-o", out, &url]), "");
    assert_eq!(walferry(&["restore", "-q", "--if-db-not-exists", "-o", out, &url]), "");
    assert_eq!(walferry(&["verify", "--quiet", &url]), "");
    assert!(walferry(&["verify", "--no-progress", &url]).contains("8 states"));
}

#[test]
fn what_litestream_03_left_is_listed_too() {
    let replica = url(&golden("litestream-0.3.13"));
    let list = json(&["restore", "--list", "--json", &replica]);
    assert_eq!(list["states"], Value::Array(vec![]));
    assert!(!list["generations"].as_array().unwrap().is_empty(), "{list}");
    assert_eq!((&list["problem"], &list["head"]), (&Value::Null, &Value::Null));
    let said = walferry(&["restore", "--list", &replica]);
    assert!(said.contains("Litestream 0.3") && !said.contains("first_txid"), "{said}");
    // Of which there is none, a delta restores everything to a new place.
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.db");
    walferry(&["restore", "--delta", "--quiet", "-o", out.to_str().unwrap(), &replica]);
    assert_eq!(names(dir.path()), ["out.db"]);
}
