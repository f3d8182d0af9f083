//! Joining files and removing them: what could be restored still can, and is the same.

use std::sync::Arc;

use walferry::history::{Purpose, join, removable, remove};
use walferry::ltx::Decoder;
use walferry::plan::compact::{Ladder, Step, next, snapshot};
use walferry::plan::restore::restorable;
use walferry::plan::retain::{Own, Policy};
use walferry::restore::{Error, Options, Point};
use walferry::store::file::FileStore;
use walferry::store::{ErrorKind, FileInfo, Key, Store};
use walferry::units::{Level, Timestamp, Txid};
use walferry::verify::{Depth, Kept, verify};

use crate::support::{Replica, block_on, golden, key, listed, put, run};

fn planned(store: &impl Store, level: u8) -> Option<Step> {
    let ladder = Ladder::new([1, 2, 3].into_iter().filter_map(Level::new));
    let (files, all) = (listed(store), Txid(u64::MAX));
    match Level::new(level).unwrap() {
        Level::SNAPSHOT => snapshot(&files, &ladder, all).unwrap(),
        level => next(&files, &ladder, level, all),
    }
}

/// Makes the next file of a level, if there is one to make.
fn make(replica: &Replica, level: u8) -> bool {
    let Some(step) = planned(&replica.store, level) else { return false };
    let joined =
        block_on(join(Arc::new(replica.store.clone()), step.clone(), Purpose::Publish, None))
            .unwrap();
    let bytes = replica.bytes(step.key);
    assert_eq!((joined.key, joined.len, joined.existed), (step.key, bytes.len() as u64, false));
    true
}

/// Forty transactions with growth and shrinks, joined at every level as they come.
fn forty() -> Replica {
    let mut replica = Replica::new(512);
    for txid in 1..=40u32 {
        replica.commit(3 + txid * 7 % 11, &[1, 1 + txid % 3]);
        if txid == 1 {
            replica.snapshot(9, 1);
        }
        for (level, every) in [(1, 3), (2, 7), (3, 15), (9, 20)] {
            if txid % every == 0 {
                make(&replica, level);
            }
        }
    }
    replica
}

/// Restores every state that there is, and compares it with what was committed.
fn compare_all(replica: &Replica) -> Vec<Txid> {
    let points = restorable(&listed(&replica.store));
    for point in &points {
        let dir = tempfile::TempDir::new().unwrap();
        let out = dir.path().join("out.db");
        let options = Options { point: Point::Txid(*point), ..Options::new(&out) };
        let report = run(replica.store.clone(), options).unwrap();
        assert!(report.proven);
        assert!(std::fs::read(out).unwrap() == replica.image(point.0), "TXID {point}");
    }
    points
}

#[test]
fn joined_files_lead_to_the_same_states() {
    let replica = forty();
    assert_eq!(compare_all(&replica).len(), 40);
    let report = block_on(verify(
        Arc::new(replica.store.clone()),
        Depth::Whole,
        Kept::default(),
        4,
        Arc::new(|_, _| {}),
    ));
    let report = report.unwrap();
    assert_eq!((report.defects, report.proven.unwrap().txid), (vec![], Txid(40)));
    let count =
        |level| listed(&replica.store).iter().filter(|file| file.key.level.get() == level).count();
    assert!((1..=3).all(|level| count(level) > 1) && count(9) > 1);
}

#[test]
fn what_is_kept_is_enough() {
    let replica = forty();
    // The store knows no times here: a transaction's time is its number.
    let timed: Vec<FileInfo> = listed(&replica.store)
        .into_iter()
        .map(|file| (file, Timestamp(file.key.name.max.0 as i64)))
        .map(|(file, time)| FileInfo { modified: time, stored: time, ..file })
        .collect();
    let policy = Policy { all: Some(Timestamp(25)), l0: Timestamp(36) };
    let store: Arc<dyn Store> = Arc::new(replica.store.clone());
    let removed = block_on(remove(&store, &timed, policy, Own::NONE, &[])).unwrap();
    assert!(removed.len() > 20, "{} of {}", removed.len(), timed.len());
    let points = compare_all(&replica);
    assert!(points[0] <= Txid(25), "{points:?}");
    assert!(points.ends_with(&(36..=40).map(Txid).collect::<Vec<_>>()), "{points:?}");
    assert_eq!(
        block_on(remove(&store, &timed, policy, Own::NONE, &[])).unwrap().len(),
        removed.len()
    );
}

#[test]
fn compressed_pages_are_copied() {
    let replica = forty();
    let blocks = |bytes: &[u8]| {
        let mut decoder = Decoder::new(bytes).unwrap();
        let mut blocks = Vec::new();
        while let Some(page) = decoder.next_page().unwrap() {
            blocks.push(page.block.unwrap().to_vec());
        }
        blocks
    };
    let original: Vec<_> =
        (1..=40).flat_map(|txid| blocks(&replica.bytes(key(0, txid, txid)))).collect();
    for file in listed(&replica.store).iter().filter(|file| (1..9).contains(&file.key.level.get()))
    {
        let copied = blocks(&replica.bytes(file.key));
        assert!(copied.iter().all(|block| original.contains(block)), "{}", file.key);
    }
}

#[test]
fn what_litestream_wrote_is_joined_without_database_checksums() {
    let dir = tempfile::TempDir::new().unwrap();
    let (from, to) = (FileStore::new(golden("litestream-0.5.17")), FileStore::new(dir.path()));
    for file in listed(&from).iter().filter(|file| file.key.level == Level::L0) {
        put(&to, file.key, block_on(from.get(file.key, None)).unwrap().to_vec());
    }
    let step = planned(&to, 9).unwrap();
    assert_eq!(step.key, key(9, 1, 8));
    block_on(join(Arc::new(to.clone()), step, Purpose::Publish, None)).unwrap();
    let out = dir.path().join("out.db");
    let report = run(to, Options::new(&out)).unwrap();
    assert_eq!((report.files, report.untagged), (1, 1));
    let expected = golden("litestream-0.5.17/restored/0000000000000008.db");
    assert!(std::fs::read(out).unwrap() == std::fs::read(expected).unwrap());
}

/// A replica of three transactions, one file of which is not what it should be.
fn refused(change: impl FnOnce(&Replica), level: u8) -> Error {
    let mut replica = Replica::new(512);
    replica.commit(4, &[]);
    replica.commit(4, &[2]);
    replica.commit(4, &[3]);
    change(&replica);
    let step = planned(&replica.store, level).unwrap();
    let before = replica.store.files();
    let error =
        block_on(join(Arc::new(replica.store.clone()), step, Purpose::Publish, None)).unwrap_err();
    assert_eq!(replica.store.files(), before, "{error}");
    error
}

#[test]
fn nothing_is_made_of_files_that_are_wrong() {
    let damaged = |replica: &Replica| {
        let mut bytes = replica.bytes(key(0, 2, 2)).to_vec();
        let at = bytes.len() - 20;
        bytes[at] ^= 1;
        replica.put(key(0, 2, 2), bytes);
    };
    let of_file = |error| matches!(error, Error::File { key, .. } if key == self::key(0, 2, 2));
    assert!(of_file(refused(damaged, 1)) && of_file(refused(damaged, 9)));
    let other_name = |replica: &Replica| {
        replica.put(key(0, 3, 3), replica.bytes(key(0, 2, 2)).to_vec());
    };
    assert!(matches!(refused(other_name, 1), Error::File { .. }));
    let other_history = |replica: &Replica| {
        let wrong = replica.checksum(1);
        replica.put_pages(0, 3, 3, &[3], |header| header.tag.as_mut().unwrap().pre_apply = wrong);
    };
    assert!(matches!(refused(other_history, 1), Error::Chain { .. }));
    // Only a whole database can be added up.
    let page_left_out = |replica: &Replica| replica.put_pages(0, 3, 3, &[2], |_| ());
    assert!(matches!(refused(page_left_out, 9), Error::Database { .. }));
}

#[test]
fn who_is_late_leaves_what_is_there() {
    let replica = forty();
    let step = Step { key: key(1, 2, 3), inputs: Vec::new() };
    let inputs = listed(&replica.store);
    let inputs = [2, 3].map(|txid| *inputs.iter().find(|f| f.key == key(0, txid, txid)).unwrap());
    let step = Step { inputs: inputs.to_vec(), ..step };
    replica.put(key(1, 2, 3), b"somebody else's".to_vec());
    let joined =
        block_on(join(Arc::new(replica.store.clone()), step.clone(), Purpose::Publish, None))
            .unwrap();
    assert!(joined.existed);
    assert_eq!(&replica.bytes(step.key)[..], b"somebody else's");
    // An input that was removed meanwhile is an error of the store, not a damaged file.
    replica.delete(key(0, 3, 3));
    let error =
        block_on(join(Arc::new(replica.store.clone()), step, Purpose::Publish, None)).unwrap_err();
    assert!(matches!(&error, Error::Store(error) if error.kind == ErrorKind::NotFound), "{error}");
}

/// Large enough for an upload in parts, which the store refuses before there is one.
#[test]
fn who_is_late_with_a_large_file_leaves_what_is_there() {
    let mut replica = Replica::new(65536);
    let all: Vec<u32> = (2..=40).collect();
    for _ in 0..3 {
        replica.commit(40, &all);
    }
    let dir = tempfile::TempDir::new().unwrap();
    let store = FileStore::new(dir.path());
    for file in listed(&replica.store) {
        put(&store, file.key, replica.bytes(file.key).to_vec());
    }
    let step = planned(&store, 9).unwrap();
    put(&store, step.key, b"somebody else's".to_vec());
    let joined = block_on(join(Arc::new(store), step, Purpose::Publish, None)).unwrap();
    assert!(joined.existed);
}

/// What stays in the place of what is removed is read first: a damaged file stands in for nothing.
#[test]
fn what_a_damaged_file_would_stand_in_for_stays() {
    let replica = forty();
    while [1, 9].into_iter().any(|level| make(&replica, level)) {}
    let (store, files): (Arc<dyn Store>, _) =
        (Arc::new(replica.store.clone()), listed(&replica.store));
    let late = Timestamp(i64::MAX);
    let policy = Policy { all: Some(late), l0: late };
    let mut read = Vec::new();
    let damaged = |read: &mut Vec<Key>| {
        block_on(walferry::history::damaged(&store, &files, policy, |file| read.push(file.key)))
            .unwrap()
    };
    assert_eq!(damaged(&mut read), []);
    let base = *read.first().unwrap();
    assert_eq!((read.len(), base.level), (1, Level::SNAPSHOT));
    let mut bytes = replica.bytes(base).to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    replica.put(base, bytes);
    assert_eq!(damaged(&mut Vec::new()), [base]);
    let removed = |damaged: &[Key]| {
        block_on(removable(&store, &files, policy, Own::NONE, damaged)).unwrap().len()
    };
    assert!(removed(&[base]) < removed(&[]));
    block_on(remove(&store, &files, policy, Own::NONE, &[base])).unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let report = run(replica.store.clone(), Options::new(dir.path().join("out.db"))).unwrap();
    assert_eq!(report.txid, Txid(40));
}

/// A bucket that says that it deleted, and keeps the object.
struct Locked(walferry::store::memory::MemoryStore);

#[async_trait::async_trait]
impl Store for Locked {
    fn url(&self) -> &'static str {
        "s3://locked/app"
    }
    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, walferry::store::Error> {
        self.0.list(level).await
    }
    async fn get(
        &self,
        key: walferry::store::Key,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<bytes::Bytes, walferry::store::Error> {
        self.0.get(key, range).await
    }
    async fn put_new(
        &self,
        key: walferry::store::Key,
        body: walferry::store::Body,
        timestamp: Timestamp,
    ) -> Result<(), walferry::store::Error> {
        self.0.put_new(key, body, timestamp).await
    }
    async fn upload_new(
        &self,
        key: walferry::store::Key,
        timestamp: Timestamp,
        len: u64,
    ) -> Result<Box<dyn walferry::store::Upload>, walferry::store::Error> {
        self.0.upload_new(key, timestamp, len).await
    }
    async fn delete(&self, _key: walferry::store::Key) -> Result<(), walferry::store::Error> {
        Ok(())
    }
}

fn all_old(store: &impl Store) -> Vec<FileInfo> {
    let timed = |file: FileInfo| {
        let time = Timestamp(file.key.name.max.0.cast_signed());
        FileInfo { modified: time, stored: time, ..file }
    };
    listed(store).into_iter().map(timed).collect()
}

#[test]
fn a_delete_that_did_nothing_is_told() {
    let replica = forty();
    let (files, policy) =
        (all_old(&replica.store), Policy { all: Some(Timestamp(25)), l0: Timestamp(36) });
    let store: Arc<dyn Store> = Arc::new(Locked(replica.store.clone()));
    let error = block_on(remove(&store, &files, policy, Own::NONE, &[])).unwrap_err().to_string();
    assert!(
        error.contains("s3://locked/app said that 0/") && error.contains("deletes=off"),
        "{error}"
    );
    assert_eq!(listed(&replica.store).len(), files.len());
}

#[test]
fn the_first_file_of_each_writer_stays() {
    let mut replica = Replica::new(512);
    for txid in 1..=40 {
        replica.commit(5, &[1 + txid % 5]);
        if txid == 1 {
            replica.snapshot(9, 1);
        }
        // From the twentieth on they are another writer's.
        if txid >= 20 {
            let writer = walferry::units::WriterId(8);
            replica.put_pages(0, txid.into(), txid.into(), &[1 + txid % 5], |h| h.writer = writer);
        }
    }
    for level in [1, 9] {
        make(&replica, level);
    }
    let (files, policy) =
        (all_old(&replica.store), Policy { all: Some(Timestamp(90)), l0: Timestamp(90) });
    let store: Arc<dyn Store> = Arc::new(replica.store.clone());
    // To the second writer its own files but the first two can go without a look.
    let own = Own { first: Some(Txid(20)), last: Txid(40) };
    let removed = block_on(remove(&store, &files, policy, own, &[])).unwrap();
    assert!(!removed.is_empty());
    let left: Vec<u64> = listed(&replica.store)
        .iter()
        .filter(|file| file.key.level == Level::L0)
        .map(|file| file.key.name.max.0)
        .collect();
    assert_eq!(left, [1, 20, 21, 40], "the first of each, and the newest");
}

#[test]
fn a_clock_that_is_ahead_costs_no_history() {
    let files = all_old(&forty().store);
    let keep = walferry::plan::retain::Keep { all: Some(30), l0: 10 };
    let policy = Policy { all: Some(Timestamp(10)), l0: Timestamp(30) };
    assert_eq!(keep.at(Timestamp(40), &files), policy);
    assert_eq!(keep.at(Timestamp(4_000_000_000_000), &files), policy);
    assert_eq!(keep.at(Timestamp(35), &files).l0, Timestamp(25));
}
