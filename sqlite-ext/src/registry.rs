//! Registry of the replicated databases of this process.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use walferry::config::canonical;
use walferry::database::{Attach, WalEnd};
use walferry::descriptors;
use walferry::local::state::{Fingerprint, is_replaced};
use walferry::local::{Beside, files_beside};
use walferry::replications::Replications;
use walferry::wal::WalIndex;
use walferry::wal::evidence::Guard;
use walferry::withheld::{self, Deadline, Held};

use crate::api::{self, BaseVfs, OwnConnection};
use crate::beneath::{self, PageOne};
use crate::handle::{self, Gap, Handle};
use crate::inside;
use crate::pin::Pin;
use crate::walk;

/// A replicated database in this process.
pub struct Shimmed {
    pub(crate) database: Replications,
    pub(crate) vfs: BaseVfs,
    /// Number of connections of this process that have the file open through walferry's VFS.
    pub(crate) handles: AtomicUsize,
    /// Number of these connections that hold a lock on the file.
    pub(crate) locked: AtomicUsize,
    /// These connections, to read the wal-index through one of them.
    connections: Mutex<Vec<Weak<Handle>>>,
    /// Number of connections that ask for the file's EXCLUSIVE lock, or have it; the pin is not taken
    /// meanwhile. Changed while the pin is locked.
    pub(crate) exclusive: AtomicUsize,
    /// The pin was held since the WAL was attached. SQLite then still has the pin's descriptor, so a new pin
    /// needs none.
    had_pin: AtomicBool,
    /// Time at which the pin could last not be taken.
    refused_at: Mutex<Option<Instant>>,
    /// The sealer was told of the WAL.
    pub(crate) attached: AtomicBool,
    /// The file was written outside the WAL since the WAL was attached.
    pub(crate) written: AtomicBool,
    /// walferry made the WAL: a program without walferry would have found none.
    pub(crate) left: AtomicBool,
    /// The log has the warning about writes outside the WAL.
    pub(crate) told: AtomicBool,
    /// Last frame at the last checkpoint that was allowed while the gate was shut.
    pub(crate) checkpointed: AtomicU32,
    /// A thread of this process is asking for all read slots; the pin takes none meanwhile. Changed while the
    /// pin is locked.
    asks: AtomicBool,
    /// Last frame up to which a checkpoint leaves a read transaction of the pin alone; `u32::MAX` without a
    /// transaction.
    pub(crate) reads_until: AtomicU32,
    /// The pin. Locked after the state of a database that walferry's threads share, never before.
    pub(crate) pin: withheld::Mutex<Option<Pin>>,
    /// A connection of our own for checkpoints, once one was opened.
    pub(crate) keeper: withheld::Mutex<Option<OwnConnection>>,
    /// Replications for which this process keeps other processes from restarting the WAL.
    pub(crate) holds: Holds,
    /// Held while a walk begins, and while pin and walks make way for exclusive use.
    pub(crate) walks: Mutex<()>,
    /// Held while the WAL is attached or detached.
    pub(crate) turn: Mutex<()>,
    /// The connection that has the database exclusively.
    pub(crate) alone: Mutex<Option<Arc<Handle>>>,
    /// Device and inode of the file.
    pub(crate) file: Mutex<Option<(u64, u64)>>,
    /// Files of WAL and wal-index when the WAL was attached; `None` while it is not attached.
    beside: Mutex<Option<Beside>>,
    /// The path now names another file. Calls of connections to the old file pass through.
    orphaned: AtomicBool,
    /// Result of the comparison of the file's bytes with those from the VFS.
    beneath: Mutex<Beneath>,
    /// Generation of the process ([`inside::generation`]) that made this value.
    generation: u32,
}

/// Result of the comparison of a file's bytes with those from the VFS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beneath {
    /// Not compared yet.
    Unknown,
    /// The VFS returns the file's bytes.
    Same,
    /// The VFS returns other bytes.
    Other,
}

/// A database that is to be replicated, but is not open yet.
pub struct Replicated {
    pub(crate) shimmed: Arc<Shimmed>,
    /// Message about a replica in the connection's settings that the database does not have.
    pub(crate) unheeded: Option<String>,
}

/// Replicated databases by canonical path.
pub type Databases = Option<HashMap<PathBuf, Weak<Shimmed>>>;

/// The replicated databases. A lock of the standard library, since those can be held across a fork
/// (`fork.rs`).
pub static DATABASES: std::sync::Mutex<Databases> = std::sync::Mutex::new(None);
pub static ADOPTED: std::sync::RwLock<Adopted> = std::sync::RwLock::new(None);

/// Held while the database of a replaced file is orphaned, until the database of the new file is registered.
pub static RENEWAL: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Connections that were open before the extension was loaded, by the address of their file object.
pub type Adopted = Option<HashMap<usize, Arc<Handle>>>;

/// Locks the connections that were open before the extension was loaded, to change the list.
fn adopted_files() -> Held<std::sync::RwLockWriteGuard<'static, Adopted>> {
    Held::new(|| ADOPTED.write().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Keeps other threads from orphaning a database or registering its successor. Taken before any other lock.
pub fn renewal() -> withheld::Guard<()> {
    withheld::lock(&RENEWAL)
}

/// Locks the databases that were opened through walferry's VFS. The state that walferry's threads share of a
/// database is never locked after this: a thread that has locked that state takes this lock.
pub fn databases() -> withheld::Guard<Databases> {
    withheld::lock(&DATABASES)
}

/// Returns the database of a file that was just opened by its path. This is a new database if the file was
/// replaced meanwhile.
pub fn of_file_now(known: Arc<Shimmed>) -> Arc<Shimmed> {
    let path = known.database.path();
    let Ok(now) = Fingerprint::of(path) else { return known };
    let renewal = renewal();
    let known = find(path).unwrap_or(known);
    let before = *known.file.lock().get_or_insert(now.file);
    if before == now.file && !known.is_orphaned() {
        return known;
    }
    known.orphan_in(&renewal);
    let renewed = Shimmed::new(&known.database, known.vfs);
    *renewed.file.lock() = Some(now.file);
    let mut databases = databases();
    let all = databases.get_or_insert_with(HashMap::new);
    all.insert(known.database.path().to_path_buf(), Arc::downgrade(&renewed));
    renewed
}

/// Returns the database of a WAL, found by the WAL's path.
pub fn of_wal(path: &Path) -> Option<Arc<Shimmed>> {
    use std::os::unix::ffi::OsStrExt;
    let main = path.as_os_str().as_bytes().strip_suffix(b"-wal")?;
    if databases().as_ref().is_none_or(HashMap::is_empty) {
        return None;
    }
    find(&canonical(Path::new(std::ffi::OsStr::from_bytes(main))))
}

pub(crate) fn find(path: &Path) -> Option<Arc<Shimmed>> {
    databases().as_ref()?.get(path).and_then(Weak::upgrade)
}

/// Time after which a refused pin is asked for again. It is asked for sooner if something changes.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The replications of a database for which this process keeps other processes from restarting the WAL.
/// Before the first call of [`Holds::set`] the process always does so: frames that it saw at first must still
/// be there for the replications.
#[derive(Default)]
pub struct Holds(Mutex<Option<BTreeSet<usize>>>);

impl Holds {
    /// True if the process holds the WAL for any replication.
    pub fn any(&self) -> bool {
        self.0.lock().as_ref().is_none_or(|held| !held.is_empty())
    }

    /// Notes whether the process holds the WAL for this replication. Returns `true` if it holds the WAL for
    /// any.
    pub(crate) fn set(&self, number: usize, hold: bool) -> bool {
        let mut held = self.0.lock();
        let held = held.get_or_insert_default();
        if hold {
            held.insert(number);
        } else {
            held.remove(&number);
        }
        !held.is_empty()
    }
}

impl Shimmed {
    pub(crate) fn new(database: &Replications, vfs: BaseVfs) -> Arc<Shimmed> {
        Arc::new(Shimmed {
            database: database.clone(),
            vfs,
            handles: AtomicUsize::new(0),
            locked: AtomicUsize::new(0),
            connections: Mutex::new(Vec::new()),
            exclusive: AtomicUsize::new(0),
            had_pin: AtomicBool::new(false),
            refused_at: Mutex::new(None),
            attached: AtomicBool::new(false),
            written: AtomicBool::new(false),
            left: AtomicBool::new(false),
            told: AtomicBool::new(false),
            checkpointed: AtomicU32::new(0),
            asks: AtomicBool::new(false),
            reads_until: AtomicU32::new(u32::MAX),
            pin: withheld::Mutex::new(None),
            keeper: withheld::Mutex::new(None),
            holds: Holds::default(),
            walks: Mutex::new(()),
            turn: Mutex::new(()),
            alone: Mutex::new(None),
            file: Mutex::new(None),
            beside: Mutex::new(None),
            orphaned: AtomicBool::new(false),
            beneath: Mutex::new(Beneath::Unknown),
            generation: inside::generation(),
        })
    }

    /// True if the parent of a fork made this value.
    pub(crate) fn is_inherited(&self) -> bool {
        self.generation != inside::generation()
    }

    /// Returns the connection that has the database exclusively.
    pub(crate) fn alone(&self) -> Option<Arc<Handle>> {
        if !self.is_asked_for() {
            return None;
        }
        self.alone.lock().clone()
    }

    /// True if the path now names another file than the opened one.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Acquire)
    }

    /// Marks the database as orphaned and detaches it: the file was deleted or replaced while open. SQLite
    /// goes on with a file that no path names, and to which no restore could go.
    pub(crate) fn orphan_in(&self, _: &withheld::Guard<()>) {
        if self.orphaned.swap(true, Ordering::AcqRel) {
            return;
        }
        log::error!(
            "{}: the file was deleted or replaced while it was open; connections that were opened \
             before write to the old file, which is not replicated: open the database again",
            self.database.path().display()
        );
        self.detach(None);
        // These connections do not count any more, so that a process with the new file can become the
        // shipper.
        let connections: Vec<_> =
            self.connections.lock().iter().filter_map(Weak::upgrade).collect();
        connections
            .iter()
            .filter(|handle| !handle.is_inherited())
            .for_each(|handle| handle.leave());
    }

    /// Attaches the WAL: takes the pin and tells the sealer. Called by a thread that holds a read lock.
    ///
    /// Reads the index under the pin, and the fingerprint of the file after the index. Every later commit
    /// changes the index.
    pub(crate) fn attach(&self, index: impl Fn() -> Option<WalIndex>) {
        self.attach_through(None, index);
    }

    /// Attaches the WAL through the connection that has the database exclusively. That connection's lock is
    /// the guard, and no pin is needed.
    pub(crate) fn attach_alone(&self, handle: &Handle, index: WalIndex) {
        self.attach_through(Some(handle), || Some(index));
    }

    fn attach_through(&self, alone: Option<&Handle>, index: impl Fn() -> Option<WalIndex>) {
        let _turn = self.turn.lock();
        if self.is_attached() || self.is_changed_beneath() {
            return;
        }
        self.database.attaching();
        *self.beside.lock() = Some(files_beside(self.database.path()));
        self.attached.store(true, Ordering::Release);
        self.written.store(false, Ordering::Release);
        self.told.store(false, Ordering::Release);
        if alone.is_none() && !self.repin() {
            log::warn!(
                "{}: its WAL cannot be protected from other processes for now",
                self.database.path().display()
            );
        }
        let guard = self.guard();
        let seen = index();
        let guard = guard.filter(|_| guard == self.guard());
        let now = Fingerprint::of(self.database.path()).ok();
        // The file is known to be as it was left only if this connection has not written it since it got the
        // lock.
        let fingerprint = match alone.map(|handle| handle.before.lock().take()) {
            Some(before) => now.filter(|now| before.as_ref() == Some(now)),
            None => now,
        };
        self.database.attached(Attach { guard, index: seen, fingerprint }, &index);
    }

    /// True if a connection of this process has the file open.
    pub(crate) fn is_open(&self) -> bool {
        self.handles.load(Ordering::Acquire) > 0
    }

    /// True if the path still names the opened file, as far as is known.
    pub(crate) fn is_where_it_was(&self) -> bool {
        let opened = *self.file.lock();
        !opened.is_some_and(|opened| is_replaced(opened, self.database.path()))
    }

    /// True if WAL and wal-index are still the files that this process has open, as far as is known. Other
    /// processes may use other files. A checkpoint with a wal-index that no other process has would overwrite
    /// what they wrote.
    pub(crate) fn has_its_wal(&self) -> bool {
        let beside = *self.beside.lock();
        beside.is_none_or(|beside| beside == files_beside(self.database.path()))
    }

    /// True if [`Shimmed::is_changed_beneath`] has found other bytes.
    pub(crate) fn is_known_changed_beneath(&self) -> bool {
        *self.beneath.lock() == Beneath::Other
    }

    /// True if the file has other bytes than SQLite wrote. Such a database is not replicated.
    pub(crate) fn is_changed_beneath(&self) -> bool {
        let mut beneath = self.beneath.lock();
        if *beneath == Beneath::Unknown
            && let Some(api) = api::api()
        {
            *beneath = match beneath::look(api, self.vfs, self.database.path()) {
                None => Beneath::Unknown,
                Some(PageOne::Same) => Beneath::Same,
                Some(PageOne::Changed) => {
                    self.database.refuse(&format!(
                        "the VFS {} gives other bytes for page 1 than the file has, as encryption \
                         does; only a database that SQLite's own VFS writes can be replicated",
                        self.vfs.name()
                    ));
                    Beneath::Other
                }
                Some(PageOne::Encrypted) => {
                    self.database.refuse(handle::ENCRYPTED);
                    Beneath::Other
                }
            };
        }
        *beneath == Beneath::Other
    }

    /// Takes the pin if it is not held, and returns whether it is held now. Does not take it while a
    /// connection of this process has exclusive use of the database, or asks for it.
    pub(crate) fn repin(&self) -> bool {
        self.repin_with(self.pin.lock())
    }

    /// Takes the pin like [`Shimmed::repin`], unless another thread keeps the pin locked until `deadline`. A
    /// later caller takes it then.
    pub(crate) fn repin_until(&self, deadline: Deadline) {
        if let Some(pin) = self.pin.lock_until(deadline) {
            self.repin_with(pin);
        }
    }

    fn repin_with(&self, mut pin: withheld::MutexGuard<'_, Option<Pin>>) -> bool {
        if pin.is_some() {
            return true;
        }
        let free = self.is_attached() && !self.is_asked_for();
        let Some(api) = api::api().filter(|_| free) else { return false };
        let path = self.database.path();
        let opened = *self.file.lock();
        if opened.is_some() && Fingerprint::of(path).map(|now| now.file).ok() != opened {
            return false;
        }
        if self.had_pin.load(Ordering::Acquire) || descriptors::scarce().is_none() {
            let in_place = || self.is_where_it_was();
            let hold = self.may_take_slots() && self.holds.any();
            *pin = Pin::take(api, self.vfs, path, hold, in_place);
        }
        self.had_pin.fetch_or(pin.is_some(), Ordering::AcqRel);
        *self.refused_at.lock() = pin.is_none().then(Instant::now);
        pin.is_some()
    }

    /// Takes the pin again after it was given up for a refused request. If index and file are as in `gap`,
    /// the pin continues the guard of `gap`.
    pub(crate) fn repin_after(&self, gap: &Mutex<Option<Gap>>) {
        if !self.repin() {
            return;
        }
        let Some(gap) = gap.lock().take() else { return };
        let file = Fingerprint::of(self.database.path()).ok();
        if let Some(pin) = self.pin.lock().as_mut()
            && (pin.index(), file) == (Some(gap.index), Some(gap.file))
        {
            pin.goes_on_as(gap.guard);
        }
    }

    /// Returns index, file and guard as they are while the pin is held.
    pub(crate) fn before_gap(&self) -> Option<Gap> {
        let (guard, index) = {
            let pin = self.pin.lock();
            (pin.as_ref()?.guard()?, pin.as_ref()?.index()?)
        };
        let file = Fingerprint::of(self.database.path()).ok()?;
        Some(Gap { index, file, guard })
    }

    /// Takes the pin like [`Shimmed::repin`], but not soon after it was refused. For callers that ask often.
    pub(crate) fn repin_in_time(&self) {
        let refused = *self.refused_at.lock();
        if refused.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            self.repin();
        }
    }

    /// Returns the guard that keeps other processes from restarting or removing the WAL.
    pub(crate) fn guard(&self) -> Option<Guard> {
        if let Some(pin) = self.pin.lock().as_ref() {
            return pin.guard();
        }
        let alone = self.alone.lock().clone();
        alone.and_then(|handle| *handle.guard.lock())
    }

    /// Notes a connection of this process.
    pub(crate) fn opened(&self, handle: &Weak<Handle>) {
        let mut connections = self.connections.lock();
        connections.retain(|known| known.strong_count() > 0);
        connections.push(handle.clone());
    }

    /// Returns the wal-index, read through the pin or through a connection.
    pub(crate) fn index(&self) -> Option<WalIndex> {
        if let Some(pin) = self.pin.lock().as_ref() {
            return pin.index();
        }
        let alone = self.alone.lock().clone();
        if let Some(handle) = alone {
            return handle.exclusive_index();
        }
        let connections: Vec<_> =
            self.connections.lock().iter().filter_map(Weak::upgrade).collect();
        connections
            .iter()
            .filter(|handle| !handle.is_inherited())
            .find_map(|handle| handle.index_from_outside())
    }

    /// Ends a read transaction of the pin that began too far back. Called when a checkpoint is about to copy
    /// the frames up to `frame`.
    pub(crate) fn make_room(&self, frame: u32) {
        if frame <= self.reads_until.load(Ordering::Acquire) {
            return;
        }
        let mut pin = self.pin.lock();
        if let Some(pin) = pin.as_mut()
            && pin.reads_until().is_some_and(|until| until < frame)
        {
            pin.end_read();
        }
    }

    /// Gives up the pin for a connection that asks for exclusive use, and ends the walks. If the connection
    /// asks because it closes, a walk may continue ([`walk::closes`]).
    pub(crate) fn make_way(&self, closes: bool) {
        let _turn = self.walks.lock();
        {
            let mut pin = self.pin.lock();
            self.exclusive.fetch_add(1, Ordering::AcqRel);
            *pin = None;
        }
        // None is opened again before [`Shimmed::end_way`].
        *self.keeper.lock() = None;
        if closes {
            walk::closes(self.database.path());
        } else {
            walk::end_of(self.database.path());
        }
    }

    /// True if a connection has exclusive use of the database, or asks for it.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.exclusive.load(Ordering::Acquire) > 0
    }

    /// Notes that a connection has given up its exclusive use, or was refused it.
    pub(crate) fn end_way(&self) {
        let _pin = self.pin.lock();
        self.exclusive.fetch_sub(1, Ordering::AcqRel);
    }

    /// Warns, once, that the database is written outside WAL mode.
    pub(crate) fn tell_outside_wal(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            log::warn!(
                "{}: it is written to in another journal mode than WAL, and nothing of that is \
                 replicated until it is in WAL mode",
                self.database.path().display()
            );
        }
    }

    /// Notes that a connection found a journal mode other than WAL. Ignored while the WAL is attached: the
    /// connection then only failed to look.
    pub(crate) fn found_outside_wal(&self) {
        let _turn = self.turn.lock();
        if !self.is_attached() {
            self.database.found_outside_wal();
        }
    }

    /// Gives up the pin's read slot, and runs `ask`, with which a thread of this process asks for all read
    /// slots to restart the WAL. The pin is not locked during `ask`. A SQLite that was built to wait for
    /// locks may wait there for another process. Connections of this process need the pin when they close.
    pub(crate) fn ask_for_slots<T>(&self, ask: impl FnOnce() -> T) -> T {
        {
            let mut pin = self.pin.lock();
            self.asks.store(true, Ordering::Release);
            if let Some(pin) = pin.as_mut() {
                pin.drop_slot();
            }
        }
        let answer = ask();
        let _pin = self.pin.lock();
        self.asks.store(false, Ordering::Release);
        answer
    }

    /// True if the pin may take read slots. The caller has locked the pin.
    pub(crate) fn may_take_slots(&self) -> bool {
        !self.asks.load(Ordering::Acquire)
    }

    /// Takes the pin's read slot again, after a restart that was made or failed.
    pub(crate) fn hold_again(&self) {
        if self.holds.any()
            && let Some(pin) = self.pin.lock().as_mut()
            && self.may_take_slots()
        {
            pin.hold_slot();
        }
    }

    /// Drops the pin and the connection for checkpoints.
    pub(crate) fn unpin(&self) {
        *self.keeper.lock() = None;
        *self.pin.lock() = None;
    }

    pub(crate) fn detach(&self, end: Option<WalEnd>) {
        let _turn = self.turn.lock();
        // Cleared first, so that no thread takes the pin again.
        let attached = self.attached.swap(false, Ordering::AcqRel);
        *self.beside.lock() = None;
        self.unpin();
        self.had_pin.store(false, Ordering::Release);
        if attached {
            self.database.detached(end);
        }
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }
}

/// Remembers a connection that was open before the extension was loaded, by its file object.
pub fn adopt(file: usize, handle: Arc<Handle>) {
    adopted_files().get_or_insert_with(HashMap::new).insert(file, handle);
}

/// Returns the connection with this file object, if it was open before the extension was loaded.
pub fn adopted(file: usize) -> Option<Arc<Handle>> {
    let adopted = Held::new(|| ADOPTED.read().unwrap_or_else(std::sync::PoisonError::into_inner));
    adopted.as_ref()?.get(&file).cloned()
}

/// Forgets the connection with this file object.
pub fn forget_adopted(file: usize) {
    if let Some(adopted) = adopted_files().as_mut() {
        adopted.remove(&file);
    }
}
