//! What several modules need: a replica that is built transaction by transaction beside a model of
//! the database, and a runtime to restore on.

pub mod raw;
pub mod watched;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use walferry::ltx::encode::to_vec;
use walferry::ltx::merge::merge;
use walferry::ltx::{DatabaseChecksum, Decoder, FileName, Header, Tag, checksum};
use walferry::restore::{Error, Options, Report, list_in_turn, restore};
use walferry::store::memory::MemoryStore;
use walferry::store::{Body, FileInfo, Key, Store};
use walferry::units::{Level, PageSize, Pgno, Salts, Timestamp, Txid, WriterId};

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    });
    RUNTIME.block_on(work)
}

pub fn run(store: impl Store + 'static, options: Options) -> Result<Report, Error> {
    block_on(restore(Arc::new(store), options))
}

/// As [`run`], with the requests made one after the other in the order in which they are asked for:
/// on several threads a later one may overtake, and take the last answer of a store that breaks down.
pub fn run_in_order(store: impl Store + 'static, options: Options) -> Result<Report, Error> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(restore(Arc::new(store), options))
}

pub fn key(level: u8, min: u64, max: u64) -> Key {
    let name = FileName { min: Txid(min), max: Txid(max) };
    Key { level: Level::new(level).unwrap(), name }
}

/// A page that differs by number and version. The first begins as that of a database.
pub fn page_of(pgno: Pgno, version: u64, page_size: PageSize) -> Vec<u8> {
    let mut page = vec![0; page_size.bytes()];
    let mut seed = version.wrapping_mul(31).wrapping_add(u64::from(pgno));
    for byte in &mut page[32..220] {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (seed >> 56) as u8;
    }
    page[20..28].copy_from_slice(&version.to_be_bytes());
    page[28..32].copy_from_slice(&pgno.to_be_bytes());
    if pgno == 1 {
        begin_database(&mut page, page_size);
    }
    page
}

/// What SQLite writes at the beginning of a database: its name, and the page size.
pub fn begin_database(page: &mut [u8], page_size: PageSize) {
    page[..16].copy_from_slice(b"SQLite format 3\0");
    // 65536 is written as 1.
    let size = u16::try_from(page_size.get()).unwrap_or(1);
    page[16..18].copy_from_slice(&size.to_be_bytes());
}

pub fn header(page_size: PageSize, commit: u32, min: u64, max: u64) -> Header {
    Header {
        page_size,
        commit,
        min_txid: Txid(min),
        max_txid: Txid(max),
        timestamp: Timestamp(1_795_351_714_000 + max.cast_signed()),
        wal_offset: 0,
        wal_size: 0,
        salts: Salts(0, 0),
        writer: WriterId(7),
        tag: None,
    }
}

/// A replica in memory with the history of its database.
pub struct Replica {
    pub store: MemoryStore,
    pub page_size: PageSize,
    /// The pages after each transaction; entry 0 is the empty database.
    pub states: Vec<Vec<Vec<u8>>>,
    /// Whether files carry database checksums.
    pub tagged: bool,
}

impl Replica {
    pub fn new(page_size: u32) -> Replica {
        Replica {
            store: MemoryStore::new(),
            page_size: PageSize::new(page_size).unwrap(),
            states: vec![Vec::new()],
            tagged: true,
        }
    }

    pub fn head(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    /// The database file after a transaction.
    pub fn image(&self, txid: u64) -> Vec<u8> {
        self.states[txid as usize].concat()
    }

    /// A transaction that leaves `commit` pages and changes these, and all that are new.
    pub fn commit(&mut self, commit: u32, changed: &[Pgno]) {
        let txid = self.head() + 1;
        let mut state = self.states[self.head() as usize].clone();
        let old = state.len() as u32;
        state.resize(commit as usize, Vec::new());
        for pgno in 1..=commit {
            if pgno > old || changed.contains(&pgno) {
                state[pgno as usize - 1] = page_of(pgno, txid, self.page_size);
            }
        }
        let pages: Vec<Pgno> =
            (1..=commit).filter(|pgno| *pgno > old || changed.contains(pgno)).collect();
        self.states.push(state);
        self.put_pages(0, txid, txid, &pages, |_| ());
    }

    pub fn header(&self, min: u64, max: u64) -> Header {
        let state = &self.states[max as usize];
        let mut header = header(self.page_size, state.len() as u32, min, max);
        header.tag = self.tagged.then(|| Tag {
            pre_apply: self.checksum(min - 1),
            post_apply: self.checksum(max),
            full_image: false,
        });
        header
    }

    pub fn checksum(&self, txid: u64) -> DatabaseChecksum {
        let mut sum = DatabaseChecksum::EMPTY;
        for (page, pgno) in self.states[txid as usize].iter().zip(1..) {
            sum.toggle(checksum::page(pgno, page));
        }
        sum
    }

    /// Puts a file with these pages as of `max`.
    pub fn put_pages(
        &self,
        level: u8,
        min: u64,
        max: u64,
        pages: &[Pgno],
        change: impl FnOnce(&mut Header),
    ) {
        let state = &self.states[max as usize];
        let mut header = self.header(min, max);
        change(&mut header);
        let pages = pages.iter().map(|pgno| (*pgno, state[*pgno as usize - 1].as_slice()));
        self.put(key(level, min, max), to_vec(&header, pages).unwrap());
    }

    pub fn snapshot(&self, level: u8, txid: u64) {
        let pages: Vec<Pgno> = (1..=self.states[txid as usize].len() as u32).collect();
        self.put_pages(level, 1, txid, &pages, |_| ());
    }

    /// Joins the level-0 files of a range.
    pub fn compact(&self, level: u8, min: u64, max: u64) {
        let files: Vec<Bytes> = (min..=max).map(|txid| self.bytes(key(0, txid, txid))).collect();
        let decoders = files.iter().map(|file| Decoder::new(&file[..]).unwrap()).collect();
        let (body, encoded) = merge(decoders, &self.header(min, max), Vec::new()).unwrap();
        self.put(key(level, min, max), [&encoded.header[..], &body].concat());
    }

    pub fn bytes(&self, key: Key) -> Bytes {
        block_on(self.store.get(key, None)).unwrap()
    }

    pub fn put(&self, key: Key, bytes: Vec<u8>) {
        put(&self.store, key, bytes);
    }

    pub fn delete(&self, key: Key) {
        block_on(self.store.delete(key)).unwrap();
    }
}

/// Five transactions with growth, a shrink and growth again.
pub fn five() -> Replica {
    let mut replica = Replica::new(512);
    replica.commit(4, &[]);
    replica.commit(6, &[1, 2]);
    replica.commit(3, &[1]);
    replica.commit(8, &[1, 3]);
    replica.commit(8, &[1, 5]);
    replica
}

/// A page that does not compress.
pub fn noise(pgno: Pgno, version: u64, page_size: PageSize) -> Vec<u8> {
    let mut page = vec![0; page_size.bytes()];
    let mut seed = u64::from(pgno) << 32 | version;
    for byte in &mut page {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (seed >> 56) as u8;
    }
    page
}

/// A snapshot of several stretches and a small file on top.
pub fn large() -> Replica {
    let mut replica = Replica::new(65536);
    replica.commit(2, &[]);
    let size = replica.page_size;
    replica.states.push((1..=150).map(|pgno| noise(pgno, 2, size)).collect());
    replica.snapshot(9, 2);
    replica.commit(150, &[3, 70, 71]);
    replica
}

pub fn put(store: &impl Store, key: Key, bytes: Vec<u8>) {
    let body = Body::Bytes(bytes.into());
    block_on(async {
        store.delete(key).await.unwrap();
        store.put_new(key, body, Timestamp(0)).await.unwrap();
    });
}

pub fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The names in a directory, ascending.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A directory with a copy of one folder of a golden replica.
pub fn copy_golden(name: &str, folder: &str) -> TempDir {
    fn copy_dir(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() {
                copy_dir(&path, &to.join(name));
            } else {
                fs::copy(&path, to.join(name)).unwrap();
            }
        }
    }
    let dir = TempDir::new().unwrap();
    copy_dir(&golden(name).join(folder), &dir.path().join(folder));
    dir
}

/// A copy of what Litestream 0.3 wrote.
pub struct Generations {
    pub replica: TempDir,
    /// The one generation in it.
    pub folder: PathBuf,
}

impl Generations {
    /// The times of its objects are seconds after 2023-11-14T22:13:20Z, in the order in which they
    /// were made.
    pub fn new() -> Generations {
        let replica = copy_golden("litestream-0.3.13", "generations");
        let folder = replica.path().join("generations/ebcc5c9659d4a37f");
        let generations = Generations { replica, folder };
        for (path, second) in generations.objects().iter().zip(1_700_000_000..) {
            set_time(&generations.folder.join(path), second);
        }
        generations
    }

    /// The paths of all objects below the folder, in the order in which they were made: a snapshot
    /// when its WAL begins.
    pub fn objects(&self) -> Vec<String> {
        let mut objects: Vec<String> = ["snapshots", "wal"]
            .iter()
            .flat_map(|kind| {
                names(&self.folder.join(kind)).into_iter().map(move |n| format!("{kind}/{n}"))
            })
            .collect();
        objects.sort_by_key(|path| {
            let (kind, name) = path.split_once('/').unwrap();
            (name[..8].to_string(), kind == "wal", name.to_string())
        });
        objects
    }
}

/// Sets when a file was made, in seconds after the epoch.
pub fn set_time(path: &Path, second: u64) {
    let time = UNIX_EPOCH + Duration::from_secs(second);
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
}

/// The files of all levels.
pub fn listed(store: &impl Store) -> Vec<FileInfo> {
    block_on(list_in_turn(store)).unwrap()
}
