//! What walferry does at the border: when a commit is seen, when the WAL may be overwritten, when
//! the pin is held. Safe code; the calls come from `ffi.rs`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use walferry::border::{Border, Reader, Snapshot};
use walferry::database::Database;
use walferry::local::state::Fingerprint;
use walferry::process::{self, Process};
use walferry::settings::{Lookup, Settings};
use walferry::units::{PageSize, Salts};
use walferry::wal::{FRAME_HEADER_LEN, WAL_HEADER_LEN, WalIndex};

use crate::api::{
    self, Api, BaseVfs, Connection, RawFile, SQLITE_BUSY, SQLITE_FCNTL_CKPT_DONE,
    SQLITE_FCNTL_CKPT_START, SQLITE_FCNTL_COMMIT_PHASETWO, SQLITE_LOCK_EXCLUSIVE, SQLITE_OK,
    SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_SHARED, SQLITE_SHM_UNLOCK, Shm,
};
use crate::ffi::Target;
use crate::pin::{Pin, read_index};
use crate::reader::SnapshotReader;

/// Locks of the wal-index (`wal.c`): write, checkpoint, and the first read slot but one.
const WRITE_LOCK: i32 = 0;
const CKPT_LOCK: i32 = 1;
const READ_LOCK_0: i32 = 3;
const READ_LOCK_1: i32 = 4;
/// Read slots 1 to 4: asked for at once only to begin the WAL anew.
const READERS: i32 = 4;
/// While the gate is shut, a checkpoint is let through for so many new frames: each one costs two
/// fsyncs and cannot shorten the WAL.
const CHECKPOINT_EVERY: u32 = 1000;

/// A replicated database in this process.
pub struct Shimmed {
    database: Arc<Database>,
    vfs: BaseVfs,
    /// Connections of this process that have the file open through the shim.
    handles: AtomicUsize,
    /// Whether the sealer was told of the WAL.
    attached: AtomicBool,
    /// The file was written outside the WAL since it was attached.
    written: AtomicBool,
    /// Last frame at the last checkpoint that was let through with the gate shut.
    checkpointed: AtomicU32,
    pin: Mutex<Option<Pin>>,
    /// Whether this process ships, and so keeps others from beginning the WAL anew.
    holds: AtomicBool,
    /// Attaching and detaching take turns.
    turn: Mutex<()>,
    /// The connection that has the database to itself.
    alone: Mutex<Option<Arc<Handle>>>,
}

/// A database that is to be replicated, not yet open.
pub struct Replicated(Arc<Shimmed>);

static DATABASES: Mutex<Option<HashMap<PathBuf, Weak<Shimmed>>>> = Mutex::new(None);
static ADOPTED: RwLock<Option<HashMap<usize, Arc<Handle>>>> = RwLock::new(None);

/// Looks settings up: URI parameters, then the environment.
pub struct UriLookup<F>(F);

impl<F: Fn(&str) -> Option<String>> UriLookup<F> {
    /// With the URI parameters of a database.
    pub fn new(parameter: F) -> Self {
        UriLookup(parameter)
    }
}

impl<F: Fn(&str) -> Option<String>> Lookup for UriLookup<F> {
    fn parameter(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// A path with links resolved, also when the file does not exist yet.
pub fn canonical(path: &Path) -> PathBuf {
    if let Ok(path) = std::fs::canonicalize(path) {
        return path;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            std::fs::canonicalize(parent).map_or_else(|_| path.to_path_buf(), |dir| dir.join(name))
        }
        _ => path.to_path_buf(),
    }
}

/// The VFS under ours: the default one, or what ours wraps if ours is the default.
pub fn base_vfs(api: &'static Api) -> Option<BaseVfs> {
    api.find_base_vfs()
}

/// Whether this database is to be replicated, and where to.
pub fn replicated(path: &Path, lookup: &dyn Lookup, vfs: BaseVfs) -> Option<Replicated> {
    let path = canonical(path);
    let settings = match Settings::resolve(&path, lookup) {
        Ok(settings) => settings?,
        Err(why) => {
            process::refuse(&path, "", &why);
            return None;
        }
    };
    let url = settings.replica.clone();
    let opened = walferry::store::url::open(&url).map_err(|error| error.to_string());
    let database = opened.and_then(|_| Process::start()?.database(&path, settings));
    match database {
        Ok(database) => {
            crate::drain_at_exit();
            Some(Replicated(shimmed(&database, vfs)))
        }
        Err(why) => {
            process::refuse(&path, &url, &why);
            None
        }
    }
}

fn shimmed(database: &Arc<Database>, vfs: BaseVfs) -> Arc<Shimmed> {
    let mut databases = DATABASES.lock();
    let databases = databases.get_or_insert_with(HashMap::new);
    if let Some(known) = databases.get(database.path()).and_then(Weak::upgrade)
        && Arc::ptr_eq(&known.database, database)
    {
        return known;
    }
    let shimmed = Arc::new(Shimmed {
        database: database.clone(),
        vfs,
        handles: AtomicUsize::new(0),
        attached: AtomicBool::new(false),
        written: AtomicBool::new(false),
        checkpointed: AtomicU32::new(0),
        pin: Mutex::new(None),
        holds: AtomicBool::new(false),
        turn: Mutex::new(()),
        alone: Mutex::new(None),
    });
    databases.insert(database.path().to_path_buf(), Arc::downgrade(&shimmed));
    database.set_border(Arc::new(Edge { path: database.path().to_path_buf(), vfs }));
    shimmed
}

fn find(path: &Path) -> Option<Arc<Shimmed>> {
    DATABASES.lock().as_ref()?.get(path).and_then(Weak::upgrade)
}

/// The replicated database that a connection has as its main one.
pub fn database_of(api: &Api, db: Connection) -> Option<Arc<Database>> {
    let path = api.main_path(db)?;
    find(&canonical(&path)).map(|shimmed| shimmed.database.clone())
}

/// The sealer's way to the database.
struct Edge {
    path: PathBuf,
    vfs: BaseVfs,
}

impl Border for Edge {
    fn hold(&self, hold: bool) {
        let Some(shimmed) = find(&self.path) else { return };
        shimmed.holds.store(hold, Ordering::Release);
        if let Some(pin) = shimmed.pin.lock().as_mut() {
            if hold { pin.hold_slot() } else { pin.drop_slot() }
        }
    }

    fn wal_index(&self) -> Option<WalIndex> {
        find(&self.path)?.pin.lock().as_ref().and_then(Pin::index)
    }

    fn frame_pages(&self, index: &WalIndex, first: u32, last: u32) -> Option<Vec<u32>> {
        find(&self.path)?.pin.lock().as_mut()?.frame_pages(index, first, last)
    }

    fn open_reader(&self) -> std::io::Result<Box<dyn Reader>> {
        let alone = find(&self.path).and_then(|shimmed| shimmed.alone.lock().clone());
        if let Some(handle) = alone {
            return Ok(Box::new(AloneReader::begin(handle)?));
        }
        let api = api::api().ok_or_else(|| std::io::Error::other("SQLite is not there"))?;
        Ok(Box::new(SnapshotReader::begin(api, self.vfs, &self.path)?))
    }
}

impl Shimmed {
    /// The WAL was seen: pin it and tell the sealer. Called by a thread that holds a read lock.
    fn attach(&self, index: Option<WalIndex>) {
        let _turn = self.turn.lock();
        if self.attached.swap(true, Ordering::AcqRel) {
            return;
        }
        let fingerprint = Fingerprint::of(self.database.path()).ok();
        self.written.store(false, Ordering::Release);
        if let Some(api) = api::api() {
            let hold = self.holds.load(Ordering::Acquire);
            let pin = Pin::take(api, self.vfs, self.database.path(), hold);
            if pin.is_none() {
                log::warn!(
                    "{}: its WAL cannot be protected from other processes",
                    self.database.path().display()
                );
            }
            *self.pin.lock() = pin;
        }
        self.database.attached(index, fingerprint);
    }

    /// Gives the WAL free for good: somebody takes it over exclusively, or the last connection goes.
    fn unpin(&self) {
        *self.pin.lock() = None;
    }

    fn detach(&self, clean: Option<Fingerprint>) {
        let _turn = self.turn.lock();
        self.unpin();
        if self.attached.swap(false, Ordering::AcqRel) {
            self.database.detached(clean);
        }
    }

    fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }
}

/// Reads a database that one connection of this process has to itself, through the file of that
/// connection: no other can be opened on it. What the connection writes meanwhile is found out at
/// the end.
struct AloneReader {
    handle: Arc<Handle>,
    snapshot: Snapshot,
    disturbances: u32,
}

impl AloneReader {
    fn begin(handle: Arc<Handle>) -> std::io::Result<AloneReader> {
        let disturbances = handle.disturbances.load(Ordering::Acquire);
        let index = handle.exclusive_index().filter(|index| index.max_frame > 0);
        if handle.adopted && index.is_none() {
            return Err(std::io::Error::other(
                "it is held exclusively by the connection that loaded walferry; set \
                 PRAGMA locking_mode=NORMAL there, or load walferry before the database is opened",
            ));
        }
        let mut header = [0; 100];
        read_alone(&handle, 0, &mut header)?;
        let not_wal = || std::io::Error::other("it is not in WAL mode");
        // Offset 19: file format read version, 2 for WAL (https://sqlite.org/fileformat2.html).
        if index.is_none() && header.get(19) != Some(&2) {
            return Err(not_wal());
        }
        let field = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok());
        let in_file = field(28).map_or(0, u32::from_be_bytes);
        let size = header.get(16..18).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes);
        let page_size = match index {
            Some(index) => Some(index.page_size),
            None => size.and_then(PageSize::from_u16),
        };
        let page_count = index.map_or(in_file, |index| index.page_count);
        let snapshot = Snapshot { page_size: page_size.ok_or_else(not_wal)?, page_count, index };
        Ok(AloneReader { handle, snapshot, disturbances })
    }
}

fn read_alone(handle: &Handle, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    let readable = handle.readable.lock();
    if !*readable {
        return Err(std::io::Error::other("the connection that had it to itself has let it go"));
    }
    if handle.real.is_mapped() {
        return Err(std::io::Error::other(
            "it is held exclusively by a connection with memory-mapped I/O; set \
             PRAGMA mmap_size=0 or PRAGMA locking_mode=NORMAL there",
        ));
    }
    handle.real.read(buffer, offset)
}

impl Reader for AloneReader {
    fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    fn read_main(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        read_alone(&self.handle, offset, buffer)
    }

    fn index_now(&self) -> Option<WalIndex> {
        self.handle.exclusive_index()
    }

    fn is_intact(&self) -> bool {
        self.disturbances == self.handle.disturbances.load(Ordering::Acquire)
    }
}

/// One connection's file on a replicated database.
pub struct Handle {
    this: Weak<Handle>,
    shimmed: Arc<Shimmed>,
    real: RawFile,
    /// First region of the wal-index, as this connection has it mapped.
    shm: AtomicPtr<u8>,
    /// SQLite unmapped it.
    unmapped: AtomicBool,
    /// The file was open before the extension was loaded: its WAL is not seen.
    adopted: bool,
    /// It holds the checkpoint lock.
    checkpoints: AtomicBool,
    /// Between the two file controls that bracket the copying of frames.
    copies: AtomicBool,
    /// It holds the file's EXCLUSIVE lock.
    exclusive: AtomicBool,
    /// Everything in the WAL was captured when that lock was taken.
    complete: AtomicBool,
    /// How the file looked when that lock was taken.
    before: Mutex<Option<Fingerprint>>,
    /// What it wrote to the WAL itself: all that is known of one without shared memory.
    written: Mutex<WalWrites>,
    /// Whether the file may be read by the sealer: while this connection has it to itself. Held
    /// during each such read, so that the file is not closed meanwhile.
    readable: Mutex<bool>,
    /// Checkpoints and new beginnings of the WAL by this connection.
    disturbances: AtomicU32,
}

/// What is seen of a WAL in its writes.
#[derive(Clone, Copy, Default)]
struct WalWrites {
    page_size: Option<PageSize>,
    salts: Option<Salts>,
    /// The WAL's header was written: frames count from 1.
    begun: bool,
    /// Last frame with a commit mark, and the database's size in it.
    committed: Option<(u32, u32)>,
    changes: u32,
}

impl Handle {
    /// Takes a main database's file over. `None` if it cannot be replicated.
    pub fn open_main(target: Target, real: RawFile, adopted: bool) -> Option<Arc<Handle>> {
        let Target::Main(Replicated(shimmed)) = target else { return None };
        if !real.has_shm() {
            let why = "its VFS has no shared memory, which WAL mode needs";
            log::error!("{}: {why}", shimmed.database.path().display());
            return None;
        }
        shimmed.handles.fetch_add(1, Ordering::AcqRel);
        shimmed.database.connect();
        Some(Arc::new_cyclic(|this| Handle {
            this: this.clone(),
            shimmed,
            real,
            shm: AtomicPtr::default(),
            unmapped: AtomicBool::new(false),
            adopted,
            checkpoints: AtomicBool::new(false),
            copies: AtomicBool::new(false),
            exclusive: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            before: Mutex::new(None),
            written: Mutex::new(WalWrites::default()),
            readable: Mutex::new(false),
            disturbances: AtomicU32::new(0),
        }))
    }

    /// The file underneath.
    pub fn real(&self) -> RawFile {
        self.real
    }

    /// Notes where this connection has the wal-index mapped.
    pub fn set_shm(&self, shm: Option<Shm>) {
        if shm.is_some() {
            self.unmapped.store(false, Ordering::Release);
        }
        self.shm.store(shm.map_or(std::ptr::null_mut(), Shm::as_pointer), Ordering::Release);
    }

    /// The wal-index is unmapped for good: mapping it again would outlive the file.
    pub fn unmap_shm(&self) {
        self.unmapped.store(true, Ordering::Release);
        self.set_shm(None);
    }

    /// The wal-index header as it is now.
    fn index(&self) -> Option<WalIndex> {
        let mut shm = Shm::from_pointer(self.shm.load(Ordering::Acquire).cast());
        let may_map = !self.is_exclusive() && !self.unmapped.load(Ordering::Acquire);
        if shm.is_none() && self.shimmed.is_attached() && may_map {
            // The connection had it mapped before it was adopted.
            shm = self.real.shm_header(false);
            self.set_shm(shm);
        }
        shm.and_then(read_index)
    }

    /// Whether this connection has the database to itself.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive.load(Ordering::Acquire)
    }

    fn database(&self) -> &Database {
        &self.shimmed.database
    }

    /// Everything committed so far, if the sealer takes part: waits until it is captured.
    fn wait_captured(&self) -> bool {
        let index = if self.is_exclusive() { self.exclusive_index() } else { self.index() };
        let Some(index) = index.filter(|_| self.shimmed.is_attached()) else { return true };
        let captured = self.database().wait_captured(index);
        if !captured && !self.database().is_standing_by() {
            log::warn!(
                "{}: the WAL may go before all of it is captured; what is missing is found by comparison",
                self.database().path().display()
            );
        }
        captured
    }

    /// Lets the sealer read the file, or ends that.
    fn set_readable(&self, readable: bool) {
        *self.shimmed.alone.lock() = self.this.upgrade().filter(|_| readable);
        *self.readable.lock() = readable;
    }

    fn disturb(&self) {
        self.disturbances.fetch_add(1, Ordering::AcqRel);
    }

    /// What was committed while this connection has the database to itself.
    fn exclusive_index(&self) -> Option<WalIndex> {
        if let Some(index) = self.index() {
            return Some(index);
        }
        let written = *self.written.lock();
        let (max_frame, page_count) = written.committed?;
        Some(WalIndex {
            change: written.changes,
            max_frame,
            page_count,
            page_size: written.page_size?,
            salts: written.salts?,
        })
    }
}

/// The methods of a main database that are acted on.
pub struct MainFile<'a>(pub &'a Handle);

impl MainFile<'_> {
    /// `xShmLock`.
    pub fn shm_lock(&self, offset: i32, count: i32, flags: i32) -> i32 {
        const LOCK_EXCL: i32 = SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE;
        const UNLOCK_EXCL: i32 = SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE;
        const LOCK_SHARED: i32 = SQLITE_SHM_LOCK | SQLITE_SHM_SHARED;
        let handle = self.0;
        let forward = || handle.real.shm_lock(offset, count, flags);
        match (offset, count, flags) {
            (WRITE_LOCK, 1, UNLOCK_EXCL) => {
                self.publish();
                forward()
            }
            (CKPT_LOCK, 1, LOCK_EXCL) => {
                if self.holds_back_checkpoint() {
                    return SQLITE_BUSY;
                }
                handle.database().checkpoint_begins();
                let rc = forward();
                handle.checkpoints.store(rc == SQLITE_OK, Ordering::Release);
                rc
            }
            (CKPT_LOCK, _, UNLOCK_EXCL) => {
                handle.checkpoints.store(false, Ordering::Release);
                handle.copies.store(false, Ordering::Release);
                forward()
            }
            (READ_LOCK_1, READERS, LOCK_EXCL) => self.restart(forward),
            (READ_LOCK_1, READERS, UNLOCK_EXCL) => {
                let rc = forward();
                handle.database().restarted();
                if handle.shimmed.holds.load(Ordering::Acquire)
                    && let Some(pin) = handle.shimmed.pin.lock().as_mut()
                {
                    pin.hold_slot();
                }
                rc
            }
            (offset, 1, LOCK_SHARED) if offset >= READ_LOCK_0 => {
                let rc = forward();
                if rc == SQLITE_OK && !handle.shimmed.is_attached() {
                    let shm = Shm::from_pointer(handle.shm.load(Ordering::Acquire).cast())
                        .or_else(|| handle.real.shm_header(false));
                    handle.set_shm(shm);
                    handle.shimmed.attach(shm.and_then(read_index));
                    // Another connection may have committed while the pin was being taken.
                    self.publish();
                }
                rc
            }
            _ => forward(),
        }
    }

    /// The write lock is about to be given up: what was committed under it is final, in order, and
    /// nobody else can be writing.
    fn publish(&self) {
        let handle = self.0;
        if handle.shimmed.is_attached()
            && let Some(index) = handle.index()
        {
            handle.database().committed(index);
        }
    }

    /// Somebody who holds the write lock wants to begin the WAL anew.
    fn restart(&self, forward: impl Fn() -> i32) -> i32 {
        let handle = self.0;
        if !handle.shimmed.is_attached() {
            return forward();
        }
        let allowed = match handle.index() {
            Some(index) if index.max_frame > 0 => handle.database().may_restart(index),
            _ => true,
        };
        if !allowed {
            // A writer then appends without an error, and a checkpoint says that it was busy.
            return SQLITE_BUSY;
        }
        let mut pin = handle.shimmed.pin.lock();
        if let Some(pin) = pin.as_mut() {
            pin.drop_slot();
        }
        let rc = forward();
        if rc != SQLITE_OK {
            handle.database().restart_failed();
            if handle.shimmed.holds.load(Ordering::Acquire)
                && let Some(pin) = pin.as_mut()
            {
                pin.hold_slot();
            }
        }
        rc
    }

    /// With the gate shut the WAL grows, and SQLite would checkpoint at every commit.
    fn holds_back_checkpoint(&self) -> bool {
        let handle = self.0;
        if !handle.shimmed.is_attached() || !handle.database().gate_stays_shut() {
            return false;
        }
        let Some(index) = handle.index() else { return false };
        let last = handle.shimmed.checkpointed.load(Ordering::Acquire);
        let grown = index.max_frame.checked_sub(last).is_none_or(|by| by >= CHECKPOINT_EVERY);
        if grown {
            handle.shimmed.checkpointed.store(index.max_frame, Ordering::Release);
        }
        !grown
    }

    /// `xLock`. EXCLUSIVE is asked for at the last close, at a change of the journal mode, and for
    /// `locking_mode=EXCLUSIVE`: our own SHARED lock must not be in the way, and the WAL may go.
    pub fn lock(&self, level: i32) -> i32 {
        let handle = self.0;
        if level < SQLITE_LOCK_EXCLUSIVE || handle.is_exclusive() {
            return handle.real.lock(level);
        }
        let complete = handle.wait_captured();
        handle.complete.store(complete, Ordering::Release);
        handle.shimmed.unpin();
        let fingerprint = Fingerprint::of(handle.database().path()).ok();
        let rc = handle.real.lock(level);
        if rc == SQLITE_OK {
            *handle.before.lock() = fingerprint;
            handle.exclusive.store(true, Ordering::Release);
            handle.set_readable(true);
        } else if handle.shimmed.is_attached()
            && let Some(api) = api::api()
        {
            let path = handle.database().path();
            let hold = handle.shimmed.holds.load(Ordering::Acquire);
            *handle.shimmed.pin.lock() = Pin::take(api, handle.shimmed.vfs, path, hold);
        }
        rc
    }

    /// Before `xUnlock`.
    pub fn before_unlock(&self, level: i32) {
        let handle = self.0;
        if level >= SQLITE_LOCK_EXCLUSIVE || !handle.is_exclusive() {
            return;
        }
        let captured = handle.wait_captured();
        handle.set_readable(false);
        handle.exclusive.store(false, Ordering::Release);
        *handle.written.lock() = WalWrites::default();
        if !handle.shimmed.is_attached() {
            return;
        }
        // Still alone: if the WAL is gone, all of it is in the file, and this is how that looks.
        let path = handle.database().path();
        let wal_is_gone = std::fs::metadata(walferry::local::wal_path(path)).is_err();
        let written = handle.shimmed.written.load(Ordering::Acquire);
        let clean = wal_is_gone && !written && captured && handle.complete.load(Ordering::Acquire);
        let fingerprint = Fingerprint::of(path).ok().filter(|_| clean);
        handle.shimmed.detach(fingerprint);
    }

    /// Before `xWrite`.
    pub fn before_write(&self) {
        let handle = self.0;
        handle.disturb();
        let checkpoint =
            handle.checkpoints.load(Ordering::Acquire) || handle.copies.load(Ordering::Acquire);
        if checkpoint {
            return;
        }
        if !handle.shimmed.is_attached() {
            handle.database().outside_wal();
        }
        if !handle.shimmed.written.swap(true, Ordering::AcqRel) {
            log::debug!("{}: written outside the WAL", handle.database().path().display());
        }
    }

    /// Before `xFileControl`.
    pub fn before_control(&self, op: i32) {
        let handle = self.0;
        match op {
            SQLITE_FCNTL_CKPT_START => {
                handle.disturb();
                handle.copies.store(true, Ordering::Release);
            }
            SQLITE_FCNTL_CKPT_DONE => handle.copies.store(false, Ordering::Release),
            // With the database to itself a connection takes no wal-index locks: this is the only
            // sign of a commit.
            SQLITE_FCNTL_COMMIT_PHASETWO if handle.is_exclusive() => self.publish_exclusive(),
            _ => {}
        }
    }

    fn publish_exclusive(&self) {
        let handle = self.0;
        let Some(index) = handle.exclusive_index() else {
            if handle.adopted {
                handle
                    .database()
                    .diverged("it is held exclusively by the connection that loaded walferry");
            }
            return;
        };
        if !handle.shimmed.is_attached() {
            let begun = handle.written.lock().begun;
            let before = handle.before.lock().take();
            handle.shimmed.attached.store(true, Ordering::Release);
            let seen = if begun { None } else { Some(index) };
            handle.database().attached(seen, before);
        }
        handle.database().committed(index);
    }

    /// Before `xClose`.
    pub fn before_close(&self) {
        let handle = self.0;
        let shimmed = &handle.shimmed;
        if handle.is_exclusive() {
            handle.set_readable(false);
        }
        if shimmed.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            if shimmed.is_attached() {
                handle.wait_captured();
            }
            shimmed.detach(None);
        }
        handle.database().disconnect();
    }
}

/// The methods of a WAL that are acted on: all that tells of commits and restarts while a
/// connection has the database to itself.
pub struct WalFile<'a>(pub &'a Handle);

impl WalFile<'_> {
    /// Before `xWrite`: `front` holds the first bytes of what is written at `offset`.
    pub fn before_write(&self, front: &[u8], len: i32, offset: u64) {
        let handle = self.0;
        if !handle.is_exclusive() {
            return;
        }
        let word = |at: usize| {
            front.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
        };
        if offset == 0 {
            self.before_overwrite();
            let mut written = handle.written.lock();
            written.page_size = PageSize::new(word(8));
            written.salts = Some(Salts(word(16), word(20)));
            written.begun = true;
            written.committed = None;
            return;
        }
        let mut written = handle.written.lock();
        if written.page_size.is_none() {
            // The WAL was there before: its header was written by somebody else.
            let path = walferry::local::wal_path(handle.database().path());
            let header =
                std::fs::File::open(path).ok().and_then(|wal| walferry::wal::WalHeader::read(&wal));
            written.page_size = header.map(|header| header.page_size);
            written.salts = header.map(|header| header.salts);
        }
        let Some(page_size) = written.page_size else { return };
        let frame_len = u64::from(page_size.get()) + FRAME_HEADER_LEN as u64;
        let is_header = usize::try_from(len) == Ok(FRAME_HEADER_LEN)
            && offset >= WAL_HEADER_LEN
            && (offset - WAL_HEADER_LEN).is_multiple_of(frame_len);
        if is_header && word(4) != 0 {
            let frame = u32::try_from((offset - WAL_HEADER_LEN) / frame_len + 1).unwrap_or(0);
            written.committed = Some((frame, word(4)));
            written.changes = written.changes.wrapping_add(1);
        }
    }

    /// Before the WAL is begun anew or cut off without a word to the gate.
    pub fn before_overwrite(&self) {
        let handle = self.0;
        handle.disturb();
        if !handle.is_exclusive() || !handle.shimmed.is_attached() {
            return;
        }
        if let Some(index) = handle.exclusive_index().filter(|index| index.max_frame > 0)
            && !handle.database().may_restart(index)
        {
            handle.database().diverged("the WAL was begun anew under an exclusive lock");
        }
    }
}

/// Remembers the file of a connection that was open before the extension was loaded.
pub fn adopt(file: usize, handle: Arc<Handle>) {
    ADOPTED.write().get_or_insert_with(HashMap::new).insert(file, handle);
}

/// The handle of such a file.
pub fn adopted(file: usize) -> Option<Arc<Handle>> {
    ADOPTED.read().as_ref()?.get(&file).cloned()
}

/// Forgets such a file.
pub fn forget_adopted(file: usize) {
    if let Some(adopted) = ADOPTED.write().as_mut() {
        adopted.remove(&file);
    }
}
