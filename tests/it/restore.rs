//! Restoring: what Litestream wrote, what we write, and every way in which a replica can lie.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;
use walferry::ltx::encode::to_vec;
use walferry::ltx::{DatabaseChecksum, Encoder, Tag, checksum};
use walferry::plan;
use walferry::restore::{Error, Integrity, Options, Point};
use walferry::store::file::FileStore;
use walferry::store::memory::MemoryStore;
use walferry::store::{self, Body, ErrorKind, FileInfo, Key, Store, Upload};
use walferry::units::{Level, PageSize, Pgno, Timestamp, Txid};

use crate::support::{Replica, five, golden, header, key, large, names, page_of, put, run};

fn options(dir: &TempDir) -> Options {
    Options::new(dir.path().join("out.db"))
}

fn at(dir: &TempDir, txid: u64) -> Options {
    Options { point: Point::Txid(Txid(txid)), ..options(dir) }
}

/// Restores and compares; the directory holds nothing else afterwards.
fn check(replica: &Replica, txid: u64) {
    let dir = TempDir::new().unwrap();
    let report = run(replica.store.clone(), at(&dir, txid)).unwrap();
    assert_eq!(names(dir.path()), ["out.db"]);
    assert!(fs::read(dir.path().join("out.db")).unwrap() == replica.image(txid), "TXID {txid}");
    assert_eq!(report.checksum, replica.checksum(txid));
    assert_eq!(report.proven, replica.tagged);
    assert_eq!(report.commit as usize, replica.states[txid as usize].len());
}

/// Expects a refusal that leaves nothing behind.
fn refused(store: impl Store + 'static, point: Point) -> Error {
    let dir = TempDir::new().unwrap();
    let table = dir.path().join("pages");
    let options = Options { point, page_table: Some(table), ..options(&dir) };
    let error = run(store, options).expect_err("it was restored");
    assert_eq!(names(dir.path()), [""; 0], "left behind after: {error}");
    error
}

#[test]
fn replicas_of_litestream_restore_as_litestream_restores_them() {
    for (replica, newest) in [("litestream-0.5.17", 8), ("litestream-0.5.11", 4)] {
        for txid in 1..=newest {
            let dir = TempDir::new().unwrap();
            let report = run(FileStore::new(golden(replica)), at(&dir, txid)).unwrap();
            let expected = golden(replica).join("restored").join(format!("{}.db", Txid(txid)));
            let restored = fs::read(dir.path().join("out.db")).unwrap();
            assert!(restored == fs::read(expected).unwrap(), "{replica} at {txid}");
            assert!(!report.proven && report.untagged == report.files);
        }
        let dir = TempDir::new().unwrap();
        let report = run(FileStore::new(golden(replica)), options(&dir)).unwrap();
        assert_eq!(report.txid, Txid(newest));
    }
}

#[test]
fn every_state_of_a_log() {
    let replica = five();
    for txid in 1..=5 {
        check(&replica, txid);
    }
}

#[test]
fn overlapping_levels() {
    let replica = five();
    replica.snapshot(9, 2);
    replica.compact(1, 2, 4);
    replica.compact(2, 1, 3);
    for txid in [1, 3, 4] {
        replica.delete(key(0, txid, txid));
    }
    for txid in [2, 3, 4, 5] {
        check(&replica, txid);
    }
}

/// Commits with the pages they change; files of higher levels, by level, first transaction and
/// number of more; which files of level 0 are gone.
type History = (Vec<(u32, Vec<Pgno>)>, Vec<(u8, usize, usize)>, Vec<bool>);

fn histories() -> impl Strategy<Value = History> {
    let commit = (1u32..12, proptest::collection::vec(1u32..12, 0..5));
    let file = (1u8..=9, 0usize..9, 0usize..4);
    (
        proptest::collection::vec(commit, 1..9),
        proptest::collection::vec(file, 0..5),
        proptest::collection::vec(any::<bool>(), 9),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn whatever_files_there_are_each_restorable_state_is_right(
        (commits, compactions, deleted) in histories(), tagged: bool,
    ) {
        let mut replica = Replica::new(512);
        replica.tagged = tagged;
        for (commit, changed) in &commits {
            replica.commit(*commit, changed);
        }
        let head = replica.head() as usize;
        for (level, min, more) in compactions {
            let min = min % head + 1;
            let max = (min + more).min(head);
            if level == 9 {
                replica.snapshot(9, max as u64);
            } else {
                replica.compact(level, min as u64, max as u64);
            }
        }
        for (txid, deleted) in (1..=head as u64).zip(deleted) {
            if deleted {
                replica.delete(key(0, txid, txid));
            }
        }
        let files: Vec<FileInfo> = replica.store.files().into_iter().map(|(key, bytes)| FileInfo {
            key, len: bytes.len() as u64, modified: Timestamp(0), stored: Timestamp(0),
        }).collect();
        let points = plan::restore::restorable(&files);
        for txid in 1..=head as u64 {
            if points.contains(&Txid(txid)) {
                check(&replica, txid);
            } else {
                refused(replica.store.clone(), Point::Txid(Txid(txid)));
            }
        }
    }
}

#[test]
fn gaps_and_missing_ends_are_named() {
    let replica = five();
    replica.delete(key(0, 3, 3));
    let error = refused(replica.store.clone(), Point::Latest);
    assert!(matches!(error, Error::Plan(plan::Error::Gap { after: Txid(2), next: Txid(4) })));
    let error = refused(replica.store.clone(), Point::Txid(Txid(3)));
    assert!(matches!(error, Error::Plan(plan::Error::NotReachable { .. })));
    let error = refused(MemoryStore::new(), Point::Latest);
    assert!(matches!(error, Error::Plan(plan::Error::Empty)));
    check(&replica, 2);
}

/// Damages each byte of each file in turn.
fn damage_everywhere(replica: &Replica) {
    for (key, bytes) in replica.store.files() {
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << (at % 8);
            replica.put(key, damaged);
            let dir = TempDir::new().unwrap();
            match run(replica.store.clone(), options(&dir)) {
                // Unused bits of an LZ4 token, or another way to write the same page.
                Ok(_) => assert!(
                    fs::read(dir.path().join("out.db")).unwrap() == replica.image(replica.head()),
                    "byte {at} of {key}"
                ),
                Err(error) => {
                    let known = matches!(error, Error::File { .. } | Error::PageSize { .. });
                    assert!(known, "byte {at} of {key}: {error:?}");
                    assert_eq!(names(dir.path()), [""; 0]);
                }
            }
        }
        for len in [0, 1, 99, 100, 106, bytes.len() / 2, bytes.len() - 1] {
            replica.put(key, bytes[..len].to_vec());
            assert!(matches!(refused(replica.store.clone(), Point::Latest), Error::File { .. }));
        }
        replica.put(key, [&bytes[..], &[0]].concat());
        refused(replica.store.clone(), Point::Latest);
        replica.put(key, bytes.to_vec());
    }
}

#[test]
fn a_damaged_byte_anywhere_is_refused() {
    for tagged in [false, true] {
        let mut replica = Replica::new(512);
        replica.tagged = tagged;
        replica.commit(3, &[]);
        replica.commit(3, &[2]);
        damage_everywhere(&replica);
    }
}

#[test]
fn a_file_under_another_name_is_refused() {
    let replica = five();
    let (second, third) = (replica.bytes(key(0, 2, 2)), replica.bytes(key(0, 3, 3)));
    replica.put(key(0, 2, 2), third.to_vec());
    replica.put(key(0, 3, 3), second.to_vec());
    let error = refused(replica.store.clone(), Point::Latest);
    assert!(matches!(error, Error::File { .. }), "{error:?}");
}

#[test]
fn a_file_of_another_history_breaks_the_chain() {
    let (ours, mut theirs) = (five(), Replica::new(512));
    for _ in 0..5 {
        theirs.commit(8, &[1, 2]);
    }
    ours.put(key(0, 5, 5), theirs.bytes(key(0, 5, 5)).to_vec());
    let error = refused(ours.store.clone(), Point::Latest);
    assert!(matches!(error, Error::Chain { .. }), "{error:?}");
    check(&ours, 4);
}

#[test]
fn a_result_that_is_not_the_named_one_is_refused() {
    let replica = five();
    // Each link holds, but file 4 lost a page that it should have.
    replica.delete(key(0, 4, 4));
    replica.put_pages(0, 4, 4, &[1, 4, 5, 6, 7, 8], |_| ());
    let error = refused(replica.store.clone(), Point::Latest);
    assert!(matches!(error, Error::Database { .. }), "{error:?}");
}

#[test]
fn a_page_that_nobody_holds_is_named() {
    let mut replica = five();
    replica.tagged = false;
    // Page 4 was in file 1 and 2, but was cut off by file 3: its old image must not come back.
    replica.delete(key(0, 4, 4));
    replica.put_pages(0, 4, 4, &[1, 3, 5, 7, 8], |_| ());
    let error = refused(replica.store.clone(), Point::Latest);
    assert!(matches!(error, Error::Missing { first: 4, count: 2, .. }), "{error:?}");
}

#[test]
fn a_commit_that_no_file_could_hold_is_refused_before_anything_is_made_of_that_size() {
    let mut replica = five();
    replica.tagged = false;
    replica.delete(key(0, 5, 5));
    replica.put_pages(0, 5, 5, &[1], |header| header.commit = u32::MAX);
    let error = refused(replica.store.clone(), Point::Latest);
    assert!(matches!(error, Error::File { .. }), "{error:?}");
}

#[test]
fn a_new_page_size_needs_a_full_image() {
    let replica = five();
    let size = PageSize::new(1024).unwrap();
    let pages: Vec<Vec<u8>> = (1..=3).map(|pgno| page_of(pgno, 6, size)).collect();
    let mut sum = DatabaseChecksum::EMPTY;
    for (page, pgno) in pages.iter().zip(1..) {
        sum.toggle(checksum::page(pgno, page));
    }
    let put_sixth = |full_image| {
        let mut head = header(size, 3, 6, 6);
        let mut tag = replica.header(5, 5).tag.unwrap();
        (tag.pre_apply, tag.post_apply, tag.full_image) = (tag.post_apply, sum, full_image);
        head.tag = Some(tag);
        let pages = pages.iter().zip(1..).map(|(page, pgno)| (pgno, page.as_slice()));
        replica.put(key(0, 6, 6), to_vec(&head, pages).unwrap());
    };
    put_sixth(false);
    let error = refused(replica.store.clone(), Point::Latest);
    assert!(matches!(error, Error::PageSize { .. }), "{error:?}");
    put_sixth(true);
    let dir = TempDir::new().unwrap();
    let report = run(replica.store.clone(), options(&dir)).unwrap();
    assert_eq!((report.files, report.page_size, report.proven), (1, size, true));
    assert!(fs::read(dir.path().join("out.db")).unwrap() == pages.concat());
}

#[test]
fn the_lock_page_is_a_hole() {
    let size = PageSize::new(65536).unwrap();
    let (lock, commit) = (size.lock_page(), size.lock_page() + 2);
    let zeros = vec![0; size.bytes()];
    let real = [1, lock - 1, lock + 1, commit];
    let image = |pgno: Pgno| {
        if real.contains(&pgno) { page_of(pgno, 1, size) } else { zeros.clone() }
    };
    let mut encoder = Encoder::new(Vec::new(), size);
    for pgno in (1..=commit).filter(|pgno| *pgno != lock) {
        encoder.page(pgno, &image(pgno)).unwrap();
    }
    let (body, encoded) = encoder.finish(&header(size, commit, 1, 1)).unwrap();
    let file = [&encoded.header[..], &body].concat();
    assert!(file.len() > 3 << 20, "it should be read in stretches");
    let store = MemoryStore::new();
    put(&store, key(9, 1, 1), file);
    let dir = TempDir::new().unwrap();
    let table = dir.path().join("pages");
    run(store, Options { page_table: Some(table.clone()), ..options(&dir) }).unwrap();
    let out = fs::File::open(dir.path().join("out.db")).unwrap();
    assert_eq!(out.metadata().unwrap().len(), u64::from(commit) * 65536);
    let sums = fs::read(table).unwrap();
    let (mut page, mut expected) = (vec![0; size.bytes()], Vec::new());
    for pgno in 1..=commit {
        use std::os::unix::fs::FileExt;
        out.read_exact_at(&mut page, size.offset_of(pgno)).unwrap();
        assert!(page == image(pgno), "page {pgno}");
        let sum = if pgno == lock { 0 } else { checksum::page(pgno, &page).0 };
        expected.extend_from_slice(&sum.to_le_bytes());
    }
    assert!(sums == expected);
}

#[test]
fn the_page_table_holds_every_page() {
    let replica = five();
    for txid in 1..=5 {
        let dir = TempDir::new().unwrap();
        let table = dir.path().join("pages");
        run(replica.store.clone(), Options { page_table: Some(table.clone()), ..at(&dir, txid) })
            .unwrap();
        let expected: Vec<u8> = replica.states[txid as usize]
            .iter()
            .zip(1..)
            .flat_map(|(page, pgno)| checksum::page(pgno, page).0.to_le_bytes())
            .collect();
        assert_eq!(fs::read(table).unwrap(), expected);
    }
}

#[test]
fn nothing_that_exists_is_touched() {
    let replica = five();
    for suffix in ["", "-wal", "-shm", "-journal", "-walferry"] {
        let dir = TempDir::new().unwrap();
        let there = dir.path().join(format!("out.db{suffix}"));
        fs::write(&there, "mine").unwrap();
        let error = run(replica.store.clone(), options(&dir)).unwrap_err();
        assert!(matches!(&error, Error::Exists { path } if *path == there), "{error:?}");
        assert_eq!(fs::read(&there).unwrap(), b"mine");
        assert_eq!(names(dir.path()).len(), 1);
    }
    // A dangling link is something too.
    let dir = TempDir::new().unwrap();
    std::os::unix::fs::symlink("elsewhere", dir.path().join("out.db")).unwrap();
    let error = run(replica.store.clone(), options(&dir)).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error:?}");
    // So is a page table.
    let dir = TempDir::new().unwrap();
    let table = dir.path().join("pages");
    fs::write(&table, "mine").unwrap();
    let with_table = Options { page_table: Some(table.clone()), ..options(&dir) };
    let error = run(replica.store.clone(), with_table).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error:?}");
    assert_eq!((names(dir.path()).len(), fs::read(&table).unwrap()), (1, b"mine".to_vec()));
}

#[test]
fn output_paths_that_cannot_be() {
    let replica = five();
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.join("out.db"), dir.path().join("no/out.db"), "/".into(), "x/..".into()] {
        let error = run(replica.store.clone(), Options::new(&path)).unwrap_err();
        let known = matches!(error, Error::Path { .. } | Error::Output { .. });
        assert!(known, "{}: {error:?}", path.display());
    }
    assert_eq!(names(dir.path()), ["file"]);
}

/// A store that does something wrong at its nth read.
struct Faulty {
    inner: MemoryStore,
    reads: AtomicUsize,
    at: usize,
    fault: Fault,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    Error(ErrorKind),
    Shorter,
    Longer,
    ListedShorter,
    ListedLonger,
    ListedHuge,
}

#[async_trait]
impl Store for Faulty {
    fn url(&self) -> &'static str {
        "faulty:"
    }

    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, store::Error> {
        let mut files = self.inner.list(level).await?;
        for file in &mut files {
            match self.fault {
                Fault::ListedShorter => file.len -= 1,
                Fault::ListedLonger => file.len += 1,
                Fault::ListedHuge => file.len = u64::MAX - 5,
                _ => {}
            }
        }
        Ok(files)
    }

    async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, store::Error> {
        let bytes = self.inner.get(key, range).await?;
        if self.reads.fetch_add(1, Ordering::Relaxed) != self.at {
            return Ok(bytes);
        }
        match self.fault {
            Fault::Error(kind) => Err(store::Error::new(kind, "on purpose")),
            Fault::Shorter => Ok(bytes.slice(..bytes.len() - 1)),
            Fault::Longer => Ok([&bytes[..], &[0]].concat().into()),
            _ => Ok(bytes),
        }
    }

    async fn put_new(&self, _: Key, _: Body, _: Timestamp) -> Result<(), store::Error> {
        unreachable!("a restore writes nothing to the store")
    }

    async fn upload_new(
        &self,
        _: Key,
        _: Timestamp,
        _: u64,
    ) -> Result<Box<dyn Upload>, store::Error> {
        unreachable!("a restore writes nothing to the store")
    }

    async fn delete(&self, _: Key) -> Result<(), store::Error> {
        unreachable!("a restore deletes nothing in the store")
    }
}

#[test]
fn a_large_file_comes_in_stretches() {
    let replica = large();
    for parallelism in [0, 1, 3, 64] {
        let dir = TempDir::new().unwrap();
        run(replica.store.clone(), Options { parallelism, ..options(&dir) }).unwrap();
        assert!(fs::read(dir.path().join("out.db")).unwrap() == replica.image(3));
    }
}

#[test]
fn a_runtime_of_one_thread_will_do() {
    let replica = large();
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = Arc::new(replica.store.clone());
    runtime.block_on(walferry::restore::restore(store, options(&dir))).unwrap();
    assert!(fs::read(dir.path().join("out.db")).unwrap() == replica.image(3));
}

#[test]
fn a_long_log_of_small_files() {
    let mut replica = Replica::new(512);
    replica.commit(20, &[]);
    for txid in 2..600 {
        replica.commit(20, &[1, txid % 20 + 1]);
    }
    check(&replica, 599);
}

#[test]
fn a_failure_at_any_read_leaves_nothing() {
    let replica = large();
    let inner = replica.store.clone();
    let faulty = |at, fault| Faulty { inner: inner.clone(), reads: AtomicUsize::new(0), at, fault };
    let kinds = [
        Fault::Error(ErrorKind::NotFound),
        Fault::Error(ErrorKind::Unavailable),
        Fault::Shorter,
        Fault::Longer,
    ];
    for fault in kinds {
        // The small file's whole, the snapshot's header and end, and its three stretches.
        for at in 0..6 {
            let error = refused(faulty(at, fault), Point::Latest);
            let expected = match (fault, &error) {
                (Fault::Error(kind), Error::Store(error)) => error.kind == kind,
                (_, Error::File { .. }) => true,
                _ => false,
            };
            assert!(expected, "{fault:?} at read {at}: {error:?}");
        }
    }
    for fault in [Fault::ListedShorter, Fault::ListedLonger, Fault::ListedHuge] {
        refused(faulty(usize::MAX, fault), Point::Latest);
    }
    let dir = TempDir::new().unwrap();
    run(faulty(6, Fault::Shorter), options(&dir)).unwrap();
}

/// A real database as a replica of one snapshot.
fn replica_of(path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> MemoryStore {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    let size = PageSize::new(4096).unwrap();
    let mut header = header(size, (bytes.len() / 4096) as u32, 1, 1);
    let mut sum = DatabaseChecksum::EMPTY;
    for (page, pgno) in bytes.chunks(4096).zip(1..) {
        sum.toggle(checksum::page(pgno, page));
    }
    // Its tag says that this is what was there: only SQLite can know better.
    let pre_apply = DatabaseChecksum::EMPTY;
    header.tag = Some(Tag { pre_apply, post_apply: sum, full_image: true });
    let store = MemoryStore::new();
    put(&store, key(9, 1, 1), to_vec(&header, (1..).zip(bytes.chunks(4096))).unwrap());
    store
}

#[test]
fn sqlite_checks_the_result_before_it_appears() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a database.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    database
        .execute_batch(
            "PRAGMA page_size = 4096; PRAGMA journal_mode = wal;
             CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); CREATE INDEX i ON t(b);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO t SELECT i, 'row ' || i FROM n;",
        )
        .unwrap();
    database.close().unwrap();
    for integrity in [Integrity::Quick, Integrity::Full] {
        let dir = TempDir::with_prefix("with space?#%41").unwrap();
        run(replica_of(&path, |_| ()), Options { integrity, ..options(&dir) }).unwrap();
        assert_eq!(names(dir.path()), ["out.db"]);
        let dir = TempDir::new().unwrap();
        let damaged = replica_of(&path, |bytes| bytes[4096 * 3..4096 * 3 + 8].fill(0xee));
        let error = run(damaged, Options { integrity, ..options(&dir) }).unwrap_err();
        assert!(matches!(error, Error::Integrity { .. }), "{error:?}");
        assert_eq!(names(dir.path()), [""; 0]);
        let dir = TempDir::new().unwrap();
        let other = replica_of(&path, |bytes| bytes[..16].fill(0));
        let error = run(other, Options { integrity, ..options(&dir) }).unwrap_err();
        assert!(matches!(error, Error::Integrity { .. }), "{error:?}");
    }
}

#[test]
fn two_restores_to_one_place_give_one_database() {
    let replica = five();
    let dir = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(replica.store.clone());
    let results = crate::support::block_on(async {
        let one = walferry::restore::restore(store.clone(), options(&dir));
        let two = walferry::restore::restore(store.clone(), options(&dir));
        let (one, two) = tokio::join!(one, two);
        [one, two]
    });
    let won = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(won, 1, "{results:?}");
    // The other one found the first at work, or done.
    assert!(
        results
            .iter()
            .filter_map(|r| r.as_ref().err())
            .all(|e| matches!(e, Error::Busy { .. } | Error::Exists { .. }))
    );
    assert_eq!(names(dir.path()), ["out.db"]);
    assert!(fs::read(dir.path().join("out.db")).unwrap() == replica.image(5));
}
