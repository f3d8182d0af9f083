//! Following a replica: a local copy, read by plain SQLite while it is brought forward.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use walferry::follow::{Error, Event, Options, Stop, follow};
use walferry::ltx::encode::to_vec;
use walferry::restore::{self, Integrity, restore_with_state};
use walferry::store::file::FileStore;
use walferry::store::{Key, Store};
use walferry::units::{Pgno, Txid};

use crate::support::{Replica, block_on, golden, key, put};

/// A database that is written to with SQL, and its replica.
struct Source {
    db: Connection,
    replica: Replica,
    _dir: TempDir,
}

impl Source {
    fn new(page_size: u32, first: &str) -> Source {
        let dir = TempDir::new().unwrap();
        let db = Connection::open(dir.path().join("source.db")).unwrap();
        db.execute_batch(&format!("PRAGMA page_size={page_size}; {first}")).unwrap();
        db.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(())).unwrap();
        let mut source = Source { db, replica: Replica::new(page_size), _dir: dir };
        source.ship();
        source
    }

    /// The database as it is now, as the next transaction of the log.
    fn ship(&mut self) -> u64 {
        let pages: Vec<Vec<u8>> = pages(&self.db);
        let old = self.replica.states.last().unwrap();
        let changed: Vec<Pgno> = (1..)
            .zip(&pages)
            .filter(|(pgno, page)| old.get(*pgno as usize - 1) != Some(page))
            .map(|(pgno, _)| pgno)
            .collect();
        let size = pages[0].len() as u32;
        self.replica.states.push(pages);
        let txid = self.replica.head();
        if self.replica.page_size.get() == size {
            self.replica.put_pages(0, txid, txid, &changed, |_| ());
        }
        txid
    }

    fn run(&mut self, sql: &str) -> u64 {
        self.db.execute_batch(sql).unwrap();
        self.ship()
    }
}

fn pages(db: &Connection) -> Vec<Vec<u8>> {
    let mut read = db.prepare("SELECT data FROM sqlite_dbpage ORDER BY pgno").unwrap();
    read.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn reader(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// The copy must have the pages of a state, but for what a copy's own SQLite writes into page 1.
fn assert_is(path: &Path, state: &[Vec<u8>]) {
    let mut found = pages(&reader(path));
    for place in [18..20, 24..28, 64..68, 92..100] {
        found[0][place.clone()].copy_from_slice(&state[0][place]);
    }
    assert_eq!(found.len(), state.len());
    for (pgno, (found, expected)) in (1..).zip(found.iter().zip(state)) {
        assert!(found == expected, "page {pgno}");
    }
}

#[derive(Debug)]
enum Said {
    Restored(u64),
    Resumed(u64),
    Step { txid: u64, whole: Option<String> },
    Trouble(String),
}

struct Follower {
    stop: Arc<Stop>,
    said: Receiver<Said>,
    thread: JoinHandle<Result<Option<Txid>, Error>>,
}

fn start(store: impl Store + 'static, path: &Path) -> Follower {
    let (stop, (say, said)): (Arc<Stop>, (Sender<Said>, _)) = (Arc::default(), channel());
    let options = Options {
        output: path.to_path_buf(),
        interval: Duration::from_millis(10),
        parallelism: 2,
        integrity: Integrity::Full,
        mode: None,
        watch: None,
    };
    let (store, told) = (Arc::new(store), stop.clone());
    let thread = std::thread::spawn(move || {
        block_on(follow(store, options, told, move |event| {
            let _ = say.send(match event {
                Event::Restored(report) => Said::Restored(report.txid.0),
                Event::Resumed { txid, .. } => Said::Resumed(txid.0),
                Event::Step { txid, whole, .. } => Said::Step { txid: txid.0, whole },
                Event::Trouble { error } => Said::Trouble(error.to_string()),
            });
        }))
    });
    Follower { stop, said, thread }
}

impl Follower {
    fn hear(&self) -> Said {
        self.said.recv_timeout(Duration::from_mins(1)).unwrap()
    }

    /// The next step, which is this one, and not by restoring everything.
    fn step(&self, expected: u64) {
        match self.hear() {
            Said::Step { txid, whole: None } if txid == expected => {}
            other => panic!("{other:?} instead of {expected}"),
        }
    }

    fn whole(&self, expected: u64) -> String {
        match self.hear() {
            Said::Step { txid, whole: Some(why) } if txid == expected => why,
            other => panic!("{other:?} instead of {expected}"),
        }
    }

    fn resumed(&self, expected: u64) {
        let said = self.hear();
        assert!(matches!(said, Said::Resumed(txid) if txid == expected), "{said:?}");
    }

    fn restored(&self, expected: u64) {
        let said = self.hear();
        assert!(matches!(said, Said::Restored(txid) if txid == expected), "{said:?}");
    }

    fn trouble(&self) -> String {
        match self.hear() {
            Said::Trouble(error) => error,
            other => panic!("{other:?}"),
        }
    }

    fn end(self) -> Result<Option<Txid>, Error> {
        self.stop.set();
        self.thread.join().unwrap()
    }

    fn fails(self) -> Error {
        self.thread.join().unwrap().unwrap_err()
    }
}

fn place() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("copy.db");
    (dir, path)
}

const LEDGER: &str = "CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER);
     CREATE TABLE clock (now INTEGER);
     INSERT INTO clock VALUES (0);
     WITH n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 200)
     INSERT INTO accounts SELECT i, 100 FROM n;";

/// Readers of their own, which see in each transaction what was one in the original.
fn readers(path: &Path, done: &Arc<AtomicBool>) -> Vec<JoinHandle<u64>> {
    let read = |path: PathBuf, done: Arc<AtomicBool>, keep: bool| {
        std::thread::spawn(move || {
            let (mut last, mut seen, mut db) = (0, 0, reader(&path));
            while !done.load(Ordering::Relaxed) {
                if !keep {
                    db = reader(&path);
                }
                db.execute_batch("BEGIN").unwrap();
                // In two statements, between which a step may be made.
                let now: u32 = db.query_row("SELECT now FROM clock", [], |row| row.get(0)).unwrap();
                let (sum, rows): (i64, u32) = db
                    .query_row("SELECT sum(balance), count(*) FROM accounts", [], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })
                    .unwrap();
                db.execute_batch("COMMIT").unwrap();
                assert_eq!((sum, rows), (20_000, 200 + now), "at {now}");
                assert!(now >= last, "{now} after {last}");
                seen += u64::from(now > last);
                last = now;
            }
            seen
        })
    };
    [false, true, true].map(|keep| read(path.to_path_buf(), done.clone(), keep)).into()
}

fn transfer(source: &mut Source, now: u64) -> u64 {
    // Something moves, something is new, the schema changes, and the database grows and shrinks.
    let (from, to) = (now * 7 % 200 + 1, now * 11 % 200 + 1);
    let more = match now % 8 {
        1 => format!("CREATE TABLE t{now} AS SELECT id, hex(randomblob(400)) AS x FROM accounts;"),
        3 => format!("CREATE INDEX i{now} ON t{} (x);", now - 2),
        5 => format!("DELETE FROM t{} WHERE id % 3;", now - 4),
        7 => format!("DROP TABLE t{}; PRAGMA incremental_vacuum;", now - 6),
        _ => String::new(),
    };
    source.run(&format!(
        "BEGIN; UPDATE accounts SET balance = balance - 7 WHERE id = {from};
         UPDATE accounts SET balance = balance + 7 WHERE id = {to};
         INSERT INTO accounts VALUES ({}, 0); UPDATE clock SET now = {now}; {more} COMMIT;",
        1000 + now
    ))
}

fn follows_under_readers(page_size: u32, vacuum: &str) {
    let (_dir, path) = place();
    let mut source = Source::new(page_size, &format!("PRAGMA auto_vacuum={vacuum}; {LEDGER}"));
    let follower = start(source.replica.store.clone(), &path);
    follower.restored(1);
    let done = Arc::new(AtomicBool::new(false));
    let reading = readers(&path, &done);
    let mut sizes = Vec::new();
    for now in 1..=60 {
        if now % 20 == 0 {
            source.db.execute_batch("VACUUM").unwrap();
        }
        let txid = transfer(&mut source, now);
        follower.step(txid);
        assert_is(&path, &source.replica.states[txid as usize]);
        sizes.push(source.replica.states[txid as usize].len());
    }
    assert!(sizes.windows(2).any(|pair| pair[0] > pair[1]), "it shrinks");
    done.store(true, Ordering::Relaxed);
    for reader in reading {
        reader.join().unwrap();
    }
    assert_eq!(follower.end().unwrap(), Some(Txid(61)));
    let check = |db: &Connection| db.query_row("PRAGMA integrity_check", [], |row| row.get(0));
    assert_eq!(check(&reader(&path)), Ok("ok".to_string()));
    // And on from there.
    let follower = start(source.replica.store.clone(), &path);
    follower.resumed(61);
    let txid = transfer(&mut source, 61);
    follower.step(txid);
    assert_eq!(follower.end().unwrap(), Some(Txid(txid)));
    assert_is(&path, &source.replica.states[txid as usize]);
}

#[test]
fn each_step_is_one_transaction_for_plain_readers() {
    follows_under_readers(4096, "NONE");
}

#[test]
fn databases_with_pointer_maps() {
    follows_under_readers(512, "FULL");
    follows_under_readers(1024, "INCREMENTAL");
}

#[test]
fn a_reader_that_takes_long_keeps_nobody_waiting() {
    let (_dir, path) = place();
    let mut source = Source::new(1024, LEDGER);
    let follower = start(source.replica.store.clone(), &path);
    follower.restored(1);
    let slow = reader(&path);
    slow.execute_batch("BEGIN; SELECT * FROM clock;").unwrap();
    for now in 1..=30 {
        let txid = transfer(&mut source, now);
        follower.step(txid);
    }
    let now = |db: &Connection| db.query_row("SELECT now FROM clock", [], |row| row.get(0));
    assert_eq!((now(&slow), now(&reader(&path))), (Ok(0), Ok(30)));
    drop(slow);
    follower.end().unwrap();
}

#[test]
fn joined_files_and_a_snapshot() {
    let (_dir, path) = place();
    let mut source = Source::new(1024, LEDGER);
    let store = source.replica.store.clone();
    let follower = start(store.clone(), &path);
    follower.restored(1);
    let txid = transfer(&mut source, 1);
    follower.step(txid);
    follower.end().unwrap();
    // It was away, and files of level 0 are gone; a joined one begins before its state.
    for now in 2..=20 {
        transfer(&mut source, now);
    }
    source.replica.compact(1, 2, 15);
    (2..=15).for_each(|txid| source.replica.delete(key(0, txid, txid)));
    let follower = start(store.clone(), &path);
    follower.resumed(2);
    follower.step(15);
    (16..=21).for_each(|txid| follower.step(txid));
    assert_is(&path, &source.replica.states[21]);
    follower.end().unwrap();
    // Nothing but a snapshot is left: what differs from it is written.
    for now in 21..=29 {
        transfer(&mut source, now);
    }
    source.replica.snapshot(9, 30);
    source.replica.delete(key(1, 2, 15));
    (16..=30).for_each(|txid| source.replica.delete(key(0, txid, txid)));
    let follower = start(store, &path);
    follower.resumed(21);
    let why = follower.whole(30);
    assert!(why.contains("no files any more that lead on"), "{why}");
    assert_is(&path, &source.replica.states[30]);
    let txid = transfer(&mut source, 30);
    follower.step(txid);
    follower.end().unwrap();
    assert!(!path.with_file_name("copy.db-walferry").join("new").exists());
}

#[test]
fn a_copy_that_somebody_wrote_to_is_refused() {
    let (_dir, path) = place();
    let mut source = Source::new(1024, LEDGER);
    let store = source.replica.store.clone();
    let follower = start(store.clone(), &path);
    follower.restored(1);
    // A checkpoint changes nothing.
    let other = Connection::open(&path).unwrap();
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    for now in 1..=3 {
        let txid = transfer(&mut source, now);
        follower.step(txid);
        other.query_row(checkpoint, [], |_| Ok(())).unwrap();
    }
    // Between two steps of a follower that is at work: found with the next one.
    other.execute_batch("UPDATE clock SET now = 77").unwrap();
    transfer(&mut source, 4);
    let error = follower.fails();
    assert!(matches!(error, Error::Changed(_)), "{error:?}");
    assert!(error.advice().unwrap().contains("only to be read"));
    // While nobody was at work: found at the start, and what was written stays.
    let error = start(store.clone(), &path).fails();
    assert!(matches!(error, Error::Changed(_)), "{error:?}");
    let now: u32 = other.query_row("SELECT now FROM clock", [], |row| row.get(0)).unwrap();
    assert_eq!(now, 77);
    // Put back as it was, it is the copy again.
    other.execute_batch("UPDATE clock SET now = 3").unwrap();
    let follower = start(store, &path);
    follower.resumed(4);
    follower.step(5);
    follower.end().unwrap();
}

#[test]
fn one_follower_at_a_time_and_only_of_a_copy() {
    let (dir, path) = place();
    let source = Source::new(1024, LEDGER);
    let store = source.replica.store.clone();
    let follower = start(store.clone(), &path);
    follower.restored(1);
    let error = start(store.clone(), &path).fails();
    assert!(matches!(error, Error::Busy { pid: Some(pid), .. } if pid == std::process::id()));
    follower.end().unwrap();
    let other = FileStore::new(dir.path().join("other"));
    let error = start(other, &path).fails();
    assert!(matches!(error, Error::OtherReplica { .. }), "{error:?}");
    // A database that is just there.
    let stranger = dir.path().join("stranger.db");
    Connection::open(&stranger).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let error = start(store.clone(), &stranger).fails();
    assert!(matches!(error, Error::Unknown(_)), "{error:?}");
    // The WAL of a database that is gone.
    let gone = dir.path().join("gone.db");
    fs::write(dir.path().join("gone.db-wal"), "x").unwrap();
    let error = start(store, &gone).fails();
    assert!(matches!(error, Error::Restore(restore::Error::Exists { .. })), "{error:?}");
}

#[test]
fn a_restored_database_becomes_a_copy() {
    let (_dir, path) = place();
    let mut source = Source::new(1024, &format!("PRAGMA auto_vacuum=FULL; {LEDGER}"));
    let store = source.replica.store.clone();
    let restored = restore_with_state(Arc::new(store.clone()), restore::Options::new(&path));
    block_on(restored).unwrap();
    let follower = start(store.clone(), &path);
    follower.resumed(1);
    let txid = transfer(&mut source, 1);
    follower.step(txid);
    assert_is(&path, &source.replica.states[2]);
    follower.end().unwrap();
    // Its state would tell a replication of another database.
    assert!(!path.with_file_name("copy.db-walferry").join("state").exists());
}

#[test]
fn a_damaged_file_changes_nothing() {
    let (_dir, path) = place();
    let mut source = Source::new(1024, LEDGER);
    let store = source.replica.store.clone();
    let follower = start(store.clone(), &path);
    follower.restored(1);
    let txid = transfer(&mut source, 1);
    follower.step(txid);
    let mut other = Source::new(1024, LEDGER);
    transfer(&mut other, 1);
    other.run("UPDATE clock SET now = 5");
    let mut bytes = other.replica.bytes(key(0, 3, 3)).to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    put(&store, key(0, 3, 3), bytes);
    let said = follower.trouble();
    assert!(said.contains("0000000000000003-0000000000000003.ltx"), "{said}");
    assert_is(&path, &source.replica.states[2]);
    follower.end().unwrap();
}

/// SQLite would vacuum at the commit of a step that takes a database out of auto-vacuum mode.
#[test]
fn free_pages_behind_auto_vacuum() {
    let (_dir, path) = place();
    let mut source = Source::new(1024, &format!("PRAGMA auto_vacuum=FULL; {LEDGER}"));
    let follower = start(source.replica.store.clone(), &path);
    follower.restored(1);
    let more = "CREATE TABLE more AS SELECT hex(randomblob(400)) AS x FROM accounts;";
    let txid = source.run(more);
    follower.step(txid);
    let txid = source.run("PRAGMA auto_vacuum=INCREMENTAL; DELETE FROM more; DROP TABLE more;");
    let free: u32 = source.db.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap();
    assert!(free > 50, "{free}");
    follower.step(txid);
    assert_is(&path, &source.replica.states[txid as usize]);
    let txid = source.run("PRAGMA auto_vacuum=FULL; INSERT INTO clock VALUES (1);");
    follower.step(txid);
    assert_is(&path, &source.replica.states[txid as usize]);
    follower.end().unwrap();
}

/// A file that is whole, but names another database than comes out.
#[test]
fn a_step_that_proves_wrong_is_not_committed() {
    let (_dir, path) = place();
    let mut source = Source::new(1024, LEDGER);
    let follower = start(source.replica.store.clone(), &path);
    follower.restored(1);
    source.db.execute_batch("UPDATE clock SET now = 5").unwrap();
    let image = pages(&source.db);
    let old = &source.replica.states[1];
    let changed: Vec<Pgno> = (1..)
        .zip(image.iter().zip(old))
        .filter(|(_, (new, old))| new != old)
        .map(|(pgno, _)| pgno)
        .collect();
    assert_eq!(image.len(), old.len());
    source.replica.states.push(image);
    let other = source.replica.checksum(1);
    source.replica.put_pages(0, 2, 2, &changed, |header| {
        header.tag.as_mut().unwrap().post_apply = other;
    });
    let said = follower.trouble();
    assert!(said.contains("checksum"), "{said}");
    assert_is(&path, &source.replica.states[1]);
    follower.end().unwrap();
}

/// A file of another history, sound in itself, and a full image of that history behind it.
#[test]
fn another_history_is_taken_as_a_whole() {
    let (_dir, path) = place();
    let mut source = Source::new(1024, LEDGER);
    let store = source.replica.store.clone();
    let follower = start(store.clone(), &path);
    follower.restored(1);
    let txid = transfer(&mut source, 1);
    follower.step(txid);
    let mut other = Source::new(1024, &format!("{LEDGER} CREATE TABLE other (x);"));
    transfer(&mut other, 1);
    transfer(&mut other, 2);
    other.replica.snapshot(9, 3);
    let bytes = |key: Key| other.replica.bytes(key).to_vec();
    put(&store, key(9, 1, 3), bytes(key(9, 1, 3)));
    put(&store, key(0, 3, 3), bytes(key(0, 3, 3)));
    let why = follower.whole(3);
    assert!(why.contains("another database"), "{why}");
    assert_is(&path, &other.replica.states[3]);
    follower.end().unwrap();
}

#[test]
fn another_page_size_waits_for_the_readers() {
    let (_dir, path) = place();
    let source = Source::new(1024, LEDGER);
    let store = source.replica.store.clone();
    let follower = start(store.clone(), &path);
    follower.restored(1);
    let reading = reader(&path);
    reading.query_row("SELECT now FROM clock", [], |_| Ok(())).unwrap();
    // As VACUUM does it outside of WAL mode.
    let mode = |mode: &str| {
        source.db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(())).unwrap();
    };
    mode("DELETE");
    source.db.execute_batch("PRAGMA page_size=4096; VACUUM; UPDATE clock SET now = 9").unwrap();
    mode("WAL");
    let image = pages(&source.db);
    let mut replica = Replica::new(4096);
    replica.states = vec![Vec::new(), image.clone(), image.clone()];
    let mut header = replica.header(2, 2);
    let tag = header.tag.as_mut().unwrap();
    tag.pre_apply = source.replica.checksum(1);
    tag.full_image = true;
    let numbered = || (1..).zip(image.iter().map(Vec::as_slice));
    put(&store, key(0, 2, 2), to_vec(&header, numbered()).unwrap());
    header.min_txid = Txid(1);
    put(&store, key(9, 1, 2), to_vec(&header, numbered()).unwrap());
    let said = follower.trouble();
    assert!(said.contains("page size") && said.contains("has it open"), "{said}");
    assert_eq!(image[0].len(), 4096);
    drop(reading);
    loop {
        match follower.hear() {
            Said::Trouble(_) => {}
            Said::Step { txid: 2, whole: Some(_) } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_is(&path, &image);
    follower.end().unwrap();
}

/// Litestream's files name no checksum of the database.
#[test]
fn what_litestream_wrote_is_followed() {
    let (_dir, path) = place();
    let mut source = Source::new(4096, LEDGER);
    source.replica.tagged = false;
    let follower = start(source.replica.store.clone(), &path);
    follower.restored(1);
    for now in 1..=10 {
        let txid = transfer(&mut source, now);
        follower.step(txid);
        assert_is(&path, &source.replica.states[txid as usize]);
    }
    follower.end().unwrap();
    let (_dir, path) = place();
    let follower = start(FileStore::new(golden("litestream-0.5.17")), &path);
    follower.restored(8);
    follower.end().unwrap();
}

#[test]
fn long_files_wait_on_the_disk() {
    let (_dir, path) = place();
    let mut source = Source::new(4096, LEDGER);
    let follower = start(source.replica.store.clone(), &path);
    follower.restored(1);
    let noise = "CREATE TABLE noise AS SELECT randomblob(1 << 20) AS x
         FROM (SELECT 1 FROM accounts LIMIT 20)";
    let txid = source.run(noise);
    assert!(source.replica.bytes(key(0, txid, txid)).len() > 16 << 20);
    follower.step(txid);
    assert_is(&path, &source.replica.states[txid as usize]);
    follower.end().unwrap();
}

/// Number of transactions of [`a_kill_at_any_instant_leaves_a_state`].
const LAST: u64 = 201;

fn txid_in(line: &str) -> Option<u64> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    u64::from_str_radix(line["txid"].as_str()?, 16).ok()
}

/// Killed at any moment: what is left is one of the states, and the next one goes on from it.
#[test]
fn a_kill_at_any_instant_leaves_a_state() {
    let (dir, path) = place();
    let mut source = Source::new(1024, LEDGER);
    let replica = FileStore::new(dir.path().join("replica"));
    for now in 1..LAST {
        transfer(&mut source, now);
    }
    let original = &source.replica;
    let send = |txid: u64| {
        put(&replica, key(0, txid, txid), original.bytes(key(0, txid, txid)).to_vec());
    };
    send(1);
    let (mut seed, mut kills, mut moved, mut last) = (20_261_123u64, 0, 0, 0);
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 40) % below
    };
    std::thread::scope(|scope| {
        // Files keep coming, so that steps are being made all the time.
        scope.spawn(|| (2..=LAST).for_each(send));
        while last < LAST {
            let mut program = Command::new(env!("CARGO_BIN_EXE_walferry"))
                .env_clear()
                .args(["restore", "--follow", "--follow-interval", "10ms", "--json", "-o"])
                .arg(&path)
                .arg(dir.path().join("replica"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            // It dies somewhere behind one of its first words, in the middle of whatever comes next.
            let mut said = BufReader::new(program.stdout.take().unwrap()).lines();
            let mut told: Vec<String> = Vec::new();
            for _ in 0..random(9) {
                told.push(said.next().unwrap().unwrap());
                if told.last().is_some_and(|line| txid_in(line) == Some(LAST)) {
                    break;
                }
            }
            (0..random(1 << 21)).for_each(|_| std::hint::spin_loop());
            program.kill().unwrap();
            assert_eq!(program.wait().unwrap().code(), None);
            told.extend(said.map_while(Result::ok));
            kills += 1;
            if !path.exists() {
                continue;
            }
            let now: u32 = Connection::open(&path)
                .and_then(|db| db.query_row("SELECT now FROM clock", [], |row| row.get(0)))
                .unwrap();
            let at = u64::from(now) + 1;
            assert_is(&path, &original.states[at as usize]);
            let told = told.iter().filter_map(|line| txid_in(line)).max();
            assert!(told.unwrap_or(0) <= at, "what was told is durable");
            assert!(at >= last, "it never goes back");
            moved += u64::from(at > last);
            last = at;
        }
    });
    assert!(kills > 5 && moved > 3, "{kills} kills, {moved} with progress");
}
