//! The contract of [`Store`], as checks that every backend has to pass.
//!
//! The checks are for tests. They panic at the first broken rule, and tell the expected result.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Body, ErrorKind, Key, Store};
use crate::ltx::FileName;
use crate::units::{Level, Timestamp, Txid};

/// A time in 2026, in milliseconds.
const NOW: Timestamp = Timestamp(1_795_351_714_201);

/// Differences between backends that the contract allows.
pub struct Traits {
    /// True if the listing shows the LTX timestamp. S3 shows the time of the upload.
    pub modified_is_timestamp: bool,
    /// Number of files in the long listing, which must continue after its first page.
    pub many: u64,
}

/// Runs all checks. `make` returns the store of an empty replica for a name, and for the same name another
/// store of the same replica.
pub async fn run(traits: Traits, make: impl Fn(&str) -> Arc<dyn Store>) {
    an_absent_replica_is_empty(&*make("absent")).await;
    a_file_is_created_once(&*make("once"), &*make("once"), &traits).await;
    racing_creates_have_one_winner(&make("race")).await;
    ranges_are_cut_at_the_end(&*make("ranges")).await;
    lists_are_whole_and_ascending(&make("list"), traits.many).await;
    large_files_are_sent_whole(&*make("large")).await;
    uploads_appear_when_complete(&*make("upload")).await;
    broken_uploads_are_refused(&*make("broken")).await;
    deletes_are_idempotent(&*make("delete")).await;
}

/// Returns the key of a file with one transaction.
pub fn key(level: u8, txid: u64) -> Key {
    Key { level: Level::new(level).unwrap(), name: FileName::single(Txid(txid)) }
}

/// Returns bytes that differ between places and between seeds.
pub fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

async fn an_absent_replica_is_empty(store: &dyn Store) {
    for level in Level::all() {
        assert_eq!(store.list(level).await.unwrap(), [], "level {level}");
    }
    assert_eq!(store.get(key(0, 1), None).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(store.get(key(0, 1), Some(0..9)).await.unwrap_err().kind, ErrorKind::NotFound);
    store.delete(key(0, 1)).await.expect("deleting what is not there is no error");
}

async fn a_file_is_created_once(store: &dyn Store, other: &dyn Store, traits: &Traits) {
    let (first, second) = (noise(1, 4000), noise(2, 4000));
    store.put_new(key(0, 1), Body::Bytes(first.clone()), NOW).await.unwrap();
    for store in [store, other] {
        let again = store.put_new(key(0, 1), Body::Bytes(second.clone()), NOW).await.unwrap_err();
        assert_eq!(again.kind, ErrorKind::AlreadyExists, "{again}");
        assert_eq!(store.get(key(0, 1), None).await.unwrap(), first, "a refused create wrote");
    }
    // The same name in another level is another file. An empty file is a file too.
    store.put_new(key(9, 1), Body::Bytes(Bytes::new()), NOW).await.unwrap();
    assert_eq!(other.get(key(9, 1), None).await.unwrap(), Bytes::new());
    let listed = other.list(Level::L0).await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((listed[0].key, listed[0].len), (key(0, 1), 4000));
    assert_eq!(other.list(Level::SNAPSHOT).await.unwrap()[0].len, 0);
    if traits.modified_is_timestamp {
        assert_eq!(listed[0].modified, NOW, "the modification time is the LTX timestamp");
    } else {
        assert!(listed[0].modified > Timestamp(1_600_000_000_000), "{listed:?}");
    }
    assert!(!store.url().is_empty());
}

async fn racing_creates_have_one_winner(store: &Arc<dyn Store>) {
    for round in 1..=2 {
        let mut racers = JoinSet::new();
        for racer in 0..16 {
            let store = Arc::clone(store);
            racers.spawn(async move {
                let body = Body::Bytes(noise(racer, 3000 + racer as usize));
                (racer, store.put_new(key(0, round), body, NOW).await)
            });
        }
        let mut winners = Vec::new();
        while let Some(answer) = racers.join_next().await {
            match answer.unwrap() {
                (racer, Ok(())) => winners.push(racer),
                (_, Err(err)) => assert_eq!(err.kind, ErrorKind::AlreadyExists, "{err}"),
            }
        }
        assert_eq!(winners.len(), 1, "winners of one create: {winners:?}");
        let expected = noise(winners[0], 3000 + winners[0] as usize);
        assert_eq!(store.get(key(0, round), None).await.unwrap(), expected, "not the winner's");
    }
    assert_eq!(store.list(Level::L0).await.unwrap().len(), 2, "losers left files behind");
}

async fn ranges_are_cut_at_the_end(store: &dyn Store) {
    let bytes = noise(3, 1000);
    store.put_new(key(1, 7), Body::Bytes(bytes.clone()), NOW).await.unwrap();
    for (range, part) in [
        (0..1000, 0..1000),
        (0..1, 0..1),
        (10..20, 10..20),
        (990..1000, 990..1000),
        (990..5000, 990..1000),
        (999..u64::MAX, 999..1000),
        (5..5, 5..5),
    ] {
        let got = store.get(key(1, 7), Some(range.clone())).await.unwrap();
        assert_eq!(got, bytes.slice(part), "range {range:?}");
    }
    for range in [1000..1001, 1000..2000, 5000..5001] {
        let err = store.get(key(1, 7), Some(range.clone())).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::Other, "{range:?}: {err}");
    }
}

async fn lists_are_whole_and_ascending(store: &Arc<dyn Store>, many: u64) {
    // Several tasks create files at once, not in the order of the names.
    let mut tasks = JoinSet::new();
    for lane in (0..8).rev() {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            for txid in (1..=many).rev().filter(|txid| txid % 8 == lane) {
                let body = Body::Bytes(noise(txid, 10 + txid as usize % 50));
                store.put_new(key(0, txid), body, NOW).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let wide = Key { level: Level::L0, name: FileName { min: Txid(2), max: Txid(many) } };
    store.put_new(wide, Body::Bytes(noise(0, 5)), NOW).await.unwrap();
    store.put_new(key(1, 1), Body::Bytes(noise(0, 5)), NOW).await.unwrap();

    let listed = store.list(Level::L0).await.unwrap();
    let mut expected: Vec<Key> = (1..=many).map(|txid| key(0, txid)).collect();
    expected.insert(2, wide);
    assert_eq!(listed.iter().map(|file| file.key).collect::<Vec<_>>(), expected);
    for file in &listed {
        let txid = file.key.name.max.0;
        let len = if file.key == wide { 5 } else { 10 + txid % 50 };
        assert_eq!(file.len, len, "{}", file.key);
    }
}

async fn large_files_are_sent_whole(store: &dyn Store) {
    let bytes = noise(4, (20 << 20) + 123);
    let path = std::env::temp_dir().join(format!("walferry-large-{}", std::process::id()));
    let _removed = RemovedAfter(path.clone());
    std::fs::write(&path, &bytes).unwrap();
    store.put_new(key(9, 3), Body::File(path.clone()), NOW).await.unwrap();
    let again = store.put_new(key(9, 3), Body::File(path.clone()), NOW).await.unwrap_err();
    assert_eq!(again.kind, ErrorKind::AlreadyExists, "{again}");
    assert!(store.get(key(9, 3), None).await.unwrap() == bytes, "a large file came back changed");
    store.put_new(key(9, 4), Body::Bytes(bytes.clone()), NOW).await.unwrap();
    assert!(store.get(key(9, 4), None).await.unwrap() == bytes, "large bytes came back changed");

    std::fs::write(&path, b"small").unwrap();
    store.put_new(key(9, 5), Body::File(path.clone()), NOW).await.unwrap();
    assert_eq!(store.get(key(9, 5), None).await.unwrap(), &b"small"[..]);

    let absent = Body::File(path.with_extension("absent"));
    let err = store.put_new(key(9, 6), absent, NOW).await.expect_err("a file that is not there");
    assert_eq!(err.kind, ErrorKind::Local, "{err}");
    assert_eq!(store.list(Level::SNAPSHOT).await.unwrap().len(), 3);
}

async fn uploads_appear_when_complete(store: &dyn Store) {
    let part_len = store.upload_new(key(2, 1), NOW, 0).await.unwrap().part_len();
    let whole = noise(5, 2 * part_len + 1000);
    let part =
        |number: usize| whole.slice(number * part_len..whole.len().min((number + 1) * part_len));

    // Parts may come in any order; the file is invisible before the end.
    let mut upload = store.upload_new(key(2, 1), NOW, 0).await.unwrap();
    for number in [2, 0, 1] {
        upload.part(number, part(number as usize)).await.unwrap();
        assert_eq!(store.get(key(2, 1), None).await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(store.list(key(2, 1).level).await.unwrap(), [], "visible before complete");
    }
    upload.complete().await.unwrap();
    assert!(store.get(key(2, 1), None).await.unwrap() == whole, "an upload came back changed");

    // The file exists already at the end; and an upload of one part.
    let mut small = store.upload_new(key(2, 2), NOW, 0).await.unwrap();
    small.part(0, noise(6, 300)).await.unwrap();
    let mut large = store.upload_new(key(2, 2), NOW, 0).await.unwrap();
    large.part(0, part(0)).await.unwrap();
    large.part(1, part(2)).await.unwrap();
    small.complete().await.unwrap();
    let late = large.complete().await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::AlreadyExists, "{late}");
    assert_eq!(store.get(key(2, 2), None).await.unwrap(), noise(6, 300));
    if let Ok(mut upload) = store.upload_new(key(2, 2), NOW, 0).await {
        upload.part(0, noise(7, 300)).await.unwrap();
        let late = upload.complete().await.unwrap_err();
        assert_eq!(late.kind, ErrorKind::AlreadyExists, "{late}");
    }

    // An upload ends without completion, with and without an abort.
    for number in 0..2 {
        let mut upload = store.upload_new(key(2, 3), NOW, 0).await.unwrap();
        upload.part(0, part(0)).await.unwrap();
        upload.part(1, part(2)).await.unwrap();
        if number == 0 {
            upload.abort().await;
        }
    }
    let keys: Vec<Key> =
        store.list(key(2, 1).level).await.unwrap().iter().map(|file| file.key).collect();
    assert_eq!(keys, [key(2, 1), key(2, 2)]);
    store.put_new(key(2, 3), Body::Bytes(noise(8, 30)), NOW).await.unwrap();
}

async fn broken_uploads_are_refused(store: &dyn Store) {
    let part_len = store.upload_new(key(3, 1), NOW, 0).await.unwrap().part_len();

    let mut hole = store.upload_new(key(3, 1), NOW, 0).await.unwrap();
    hole.part(1, noise(1, 10)).await.unwrap();
    assert_eq!(hole.complete().await.unwrap_err().kind, ErrorKind::Invalid, "part 0 is missing");

    let mut short = store.upload_new(key(3, 1), NOW, 0).await.unwrap();
    short.part(0, noise(1, part_len - 1)).await.unwrap();
    let refused = match short.part(1, noise(1, 10)).await {
        Ok(()) => short.complete().await.unwrap_err(),
        Err(err) => err,
    };
    assert_eq!(refused.kind, ErrorKind::Invalid, "a part but the last is short: {refused}");

    let mut long = store.upload_new(key(3, 1), NOW, 0).await.unwrap();
    let refused = long.part(0, noise(1, part_len + 1)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Invalid, "a part is too long: {refused}");
    assert_eq!(store.list(key(3, 1).level).await.unwrap(), []);
}

async fn deletes_are_idempotent(store: &dyn Store) {
    for txid in 1..=3 {
        store.put_new(key(0, txid), Body::Bytes(noise(txid, 100)), NOW).await.unwrap();
    }
    store.delete(key(0, 2)).await.unwrap();
    store.delete(key(0, 2)).await.expect("a second delete is no error");
    assert_eq!(store.get(key(0, 2), None).await.unwrap_err().kind, ErrorKind::NotFound);
    let left: Vec<Key> = store.list(Level::L0).await.unwrap().iter().map(|file| file.key).collect();
    assert_eq!(left, [key(0, 1), key(0, 3)]);
    store.put_new(key(0, 2), Body::Bytes(noise(9, 10)), NOW).await.expect("the name is free again");
}

/// A file that is removed when a check ends, also by a panic.
struct RemovedAfter(PathBuf);

impl Drop for RemovedAfter {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
