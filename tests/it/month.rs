//! A month of traffic on a replica whose history keeps itself up, on a virtual clock: what is kept is
//! what the policy says, all of it restores to what was committed, and the requests of each kind of
//! day are those that `docs/cost.md` names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use walferry::history::{Event, History, Options, Work, perform};
use walferry::local::copies::Copies;
use walferry::ltx::encode::to_vec;
use walferry::ltx::{DatabaseChecksum, FileName, Tag, checksum};
use walferry::plan::restore::restorable;
use walferry::plan::retain::{Keep, Own};
use walferry::restore::{self, Point, list_in_turn};
use walferry::store::memory::MemoryStore;
use walferry::store::{Body, Error, ErrorKind, FileInfo, Key, Store, Upload};
use walferry::units::{Level, PageSize, Timestamp, Txid};

use crate::support::{block_on, header, page_of, run};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;

/// Requests by kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Requests {
    put: u64,
    get: u64,
    list: u64,
    delete: u64,
}

/// A store that counts as a bucket's bill does, and fails each n-th call of a kind if told to.
#[derive(Clone, Default)]
struct Counting {
    inner: MemoryStore,
    made: Arc<Mutex<Requests>>,
    /// Fails this share of the calls, in percent, by a generator's state.
    fails: Arc<Mutex<(u64, u64)>>,
}

impl Counting {
    fn count(&self, count: impl FnOnce(&mut Requests)) -> Result<(), Error> {
        count(&mut self.made.lock());
        let (percent, state) = &mut *self.fails.lock();
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if *percent > (*state >> 33) % 100 {
            return Err(Error::new(ErrorKind::Unavailable, "no answer"));
        }
        Ok(())
    }

    fn take(&self) -> Requests {
        std::mem::take(&mut self.made.lock())
    }
}

#[async_trait]
impl Store for Counting {
    fn url(&self) -> &'static str {
        "memory:"
    }

    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error> {
        let files = self.inner.list(level).await?;
        self.count(|made| made.list += (files.len() as u64).div_ceil(1000).max(1))?;
        Ok(files)
    }

    async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        self.count(|made| made.get += 1)?;
        self.inner.get(key, range).await
    }

    async fn put_new(&self, key: Key, body: Body, timestamp: Timestamp) -> Result<(), Error> {
        self.count(|made| made.put += 1)?;
        self.inner.put_new(key, body, timestamp).await
    }

    async fn upload_new(
        &self,
        key: Key,
        timestamp: Timestamp,
        len: u64,
    ) -> Result<Box<dyn Upload>, Error> {
        self.count(|made| made.put += 3)?;
        self.inner.upload_new(key, timestamp, len).await
    }

    async fn delete(&self, key: Key) -> Result<(), Error> {
        self.count(|made| made.delete += 1)?;
        self.inner.delete(key).await
    }
}

/// A database of some pages and the machine that keeps its replica's history up.
struct Driver {
    store: Counting,
    options: Options,
    history: History,
    copies: Copies,
    dir: TempDir,
    pages: Vec<Vec<u8>>,
    sum: DatabaseChecksum,
    txid: u64,
    now: i64,
    looked_at: i64,
    /// Of each transaction: when it was committed, and the checksum of the database.
    states: BTreeMap<Txid, (i64, DatabaseChecksum)>,
}

fn options() -> Options {
    Options {
        levels: vec![30_000, 300_000, 3_600_000],
        snapshot: DAY.cast_unsigned(),
        keep: Some(Keep { all: Some(WEEK.cast_unsigned()), l0: DAY.cast_unsigned() }),
        check: HOUR.cast_unsigned(),
        validation: 0,
        jitter_seed: 1,
    }
}

const PAGES: u32 = 40;

impl Driver {
    fn new(options: Options) -> Driver {
        let dir = TempDir::new_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" });
        let dir = dir.unwrap();
        let mut driver = Driver {
            store: Counting::default(),
            history: History::new(options.clone()),
            options,
            copies: Copies::open(dir.path(), 16 << 20).unwrap(),
            dir,
            pages: Vec::new(),
            sum: DatabaseChecksum::EMPTY,
            txid: 0,
            now: 1_800_000_000_000 - 1_800_000_000_000 % DAY,
            looked_at: 0,
            states: BTreeMap::new(),
        };
        driver.write(&(1..=PAGES).collect::<Vec<_>>(), Level::SNAPSHOT);
        driver
    }

    fn commit(&mut self) {
        let page = |seed: u64| 1 + (seed.wrapping_mul(2_654_435_761) >> 7) as u32 % PAGES;
        let changed: BTreeSet<u32> = [1, page(self.txid), page(self.txid ^ 0x55)].into();
        self.write(&changed.into_iter().collect::<Vec<_>>(), Level::L0);
    }

    /// Writes these pages, ships the file, and lets the history do what is due.
    fn write(&mut self, changed: &[u32], level: Level) {
        let size = PageSize::new(512).unwrap();
        self.txid += 1;
        let before = self.sum;
        self.pages.resize(PAGES as usize, Vec::new());
        for pgno in changed {
            let page = &mut self.pages[*pgno as usize - 1];
            if !page.is_empty() {
                self.sum.toggle(checksum::page(*pgno, page));
            }
            *page = page_of(*pgno, self.txid, size);
            self.sum.toggle(checksum::page(*pgno, page));
        }
        self.states.insert(Txid(self.txid), (self.now, self.sum));
        let (full_image, timestamp) = (level == Level::SNAPSHOT, Timestamp(self.now));
        let tag = Some(Tag { pre_apply: before, post_apply: self.sum, full_image });
        let header = header(size, PAGES, self.txid, self.txid);
        let header = walferry::ltx::Header { timestamp, tag, ..header };
        let pages = changed.iter().map(|pgno| (*pgno, self.pages[*pgno as usize - 1].as_slice()));
        let bytes = to_vec(&header, pages).unwrap();
        let key = Key { level, name: FileName::single(Txid(self.txid)) };
        let len = bytes.len() as u64;
        // The writer looks once a minute whether the replica holds still what it confirmed.
        if self.now - self.looked_at >= MINUTE {
            self.looked_at = self.now;
            self.store.made.lock().get += 2;
        }
        let temp = self.copies.dir().join("next");
        std::fs::write(&temp, &bytes).unwrap();
        self.store.made.lock().put += 1;
        block_on(self.store.inner.put_new(key, Body::Bytes(bytes.into()), timestamp)).unwrap();
        self.copies.take(&temp, key, len).unwrap();
        self.history.handle(
            self.now.cast_unsigned(),
            Event::Acked(FileInfo { key, len, modified: timestamp, stored: timestamp }),
        );
        self.work();
    }

    fn work(&mut self) {
        while let Some(work) = self.history.poll(self.now.cast_unsigned(), self.own()) {
            self.judge(&work);
            let copies = Some(self.copies.dir().to_path_buf());
            let done = block_on(perform(Arc::new(self.store.clone()), work, copies));
            if let Event::Joined { file, .. } = &done.event
                && file.key.level == Level::L1
            {
                self.copies.remove_up_to(file.key.name.max);
            }
            self.history.handle(self.now.cast_unsigned(), done.event);
        }
    }

    fn own(&self) -> Own {
        Own { first: Some(Txid(1)), last: Txid(self.txid) }
    }

    fn judge(&self, work: &Work) {
        if let Work::Join(step) = work {
            assert!(step.inputs.len() > 1 || step.key.level != Level::SNAPSHOT, "{step:?}");
            assert!(step.key.name.max < Txid(self.txid), "what just came waits: {step:?}");
        }
    }

    /// Another process goes on, which may know what this one knew.
    fn restart(&mut self, saved: bool) {
        let saved = self.history.saved().filter(|_| saved);
        self.history = History::new(self.options.clone());
        if let Some(saved) = saved {
            let text = serde_json::to_string(&saved).unwrap();
            self.history.resume(&serde_json::from_str(&text).unwrap());
        }
    }

    fn files(&self) -> Vec<FileInfo> {
        block_on(list_in_turn(&self.store.inner)).unwrap()
    }

    /// Every point of the listing restores to what was committed, and the points are those that the
    /// policy keeps.
    fn check(&self, each: usize) {
        let points = restorable(&self.files());
        let kept_since = self.now - self.options.keep.unwrap().all.unwrap().cast_signed();
        let l0_since = self.now - self.options.keep.unwrap().l0.cast_signed();
        let oldest = self.states.range(points[0]..).next().unwrap().1.0;
        assert!(oldest <= kept_since.max(self.states[&Txid(1)].0), "from {oldest}");
        let listed: BTreeSet<Txid> = points.iter().copied().collect();
        for (txid, (at, _)) in self.states.iter().rev().take_while(|(_, (at, _))| *at > l0_since) {
            assert!(listed.contains(txid), "{txid} of {at} can not be restored by itself");
        }
        for txid in points.iter().step_by(each).chain(points.last()) {
            let out = self.dir.path().join("out.db");
            let options =
                restore::Options { point: Point::Txid(*txid), ..restore::Options::new(&out) };
            let report = run(self.store.inner.clone(), options).unwrap();
            assert!(report.proven && report.checksum == self.states[txid].1, "TXID {txid}");
            std::fs::remove_file(out).unwrap();
        }
    }
}

#[test]
fn a_month_of_traffic() {
    let mut driver = Driver::new(options());
    let begin = driver.now;
    let mut bill: BTreeMap<&str, Vec<Requests>> = BTreeMap::new();
    for day in 0..30 {
        let kind = match day {
            3 | 10 | 17 => "idle",
            5 => "busy",
            _ => "bursts",
        };
        driver.store.take();
        let midnight = begin + day * DAY;
        match kind {
            "busy" => {
                // Fifty commits a second make one file a second.
                for second in 1..86_400 {
                    driver.now = midnight + second * SECOND;
                    driver.commit();
                }
            }
            "bursts" => {
                // Forty times a day somebody works for half a minute.
                for burst in 0..40 {
                    for second in 0..30 {
                        driver.now = midnight + (36 * burst + 3) * MINUTE + second * SECOND;
                        driver.commit();
                    }
                }
            }
            _ => {}
        }
        bill.entry(kind).or_default().push(driver.store.take());
        driver.now = midnight + DAY - 1;
        if day == 6 || day == 16 {
            driver.check(500);
        }
    }
    driver.check(1);
    let left = driver.files();
    let count = |level: u8| left.iter().filter(|file| file.key.level.get() == level).count();
    // A day's files one by one; of a week, and of the day before its first snapshot, what was joined.
    let per_burst_day = 40 * 30;
    assert!((per_burst_day..=2 * per_burst_day + 60).contains(&count(0)), "{}", count(0));
    assert!((7 * 40..=8 * 40).contains(&count(1)), "{}", count(1));
    assert!((7 * 40 - 1..=8 * 40).contains(&count(2)), "{}", count(2));
    assert!((7 * 23 - 1..=8 * 24).contains(&count(3)), "{}", count(3));
    assert!((7..=9).contains(&count(9)), "{}", count(9));
    // A joined file is not larger than the database, however many commits are in it.
    let most =
        |level: Level| if level == Level::L0 { 2_000 } else { u64::from(PAGES) * 512 + 2_000 };
    assert!(left.iter().all(|file| file.len <= most(file.key.level)));
    assert_eq!(driver.history.status().failure, None);
    compare_with_the_docs(&bill);
}

/// The table in `docs/cost.md` is what was counted here.
fn compare_with_the_docs(bill: &BTreeMap<&str, Vec<Requests>>) {
    let mut table = String::new();
    for (kind, text) in [
        ("idle", "nobody writes"),
        ("bursts", "40 times half a minute of work"),
        ("busy", "50 commits a second, all day"),
    ] {
        // Of days of a kind the last, when what was kept has come to its full size.
        let Requests { put, get, list, delete } = *bill[kind].last().unwrap();
        let _ = writeln!(table, "| {text} | {put} | {get} | {list} | {delete} |");
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cost.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    assert!(docs.contains(&table), "docs/cost.md should have this table:\n{table}");
}

#[test]
fn a_store_that_fails_costs_nothing_but_time() {
    for seed in 0..6 {
        let keep = Keep { all: Some(4 * HOUR.cast_unsigned()), l0: HOUR.cast_unsigned() / 2 };
        let options = Options {
            snapshot: HOUR.cast_unsigned(),
            check: HOUR.cast_unsigned() / 4,
            validation: HOUR.cast_unsigned() / 2,
            keep: Some(keep),
            ..options()
        };
        let mut driver = Driver::new(options);
        let mut random = seed * 77 + 5;
        for _ in 0..3000 {
            random = (random * 48_271 + seed + 1) % 2_147_483_647;
            driver.now += [1, 1, 1, 2, 10, 100][(random % 6) as usize] * SECOND;
            let percent = if random % 1000 < 300 { 30 } else { 0 };
            *driver.store.fails.lock() = (percent, random);
            if random % 97 == 0 {
                driver.restart(random % 2 == 0);
            }
            driver.commit();
        }
        driver.store.fails.lock().0 = 0;
        for _ in 0..10 {
            driver.now += HOUR;
            driver.commit();
        }
        driver.check(1);
        let left = driver.files().len();
        assert!(left < 700, "{left} files are left");
        let status = driver.history.status();
        assert_eq!(status.failure, None);
        assert!(status.proven.is_some_and(|(txid, _)| txid.0 + 3 > driver.txid), "{status:?}");
    }
}
