//! The replicated databases of this process.

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
    /// Connections of this process that have the file open through the shim.
    pub(crate) handles: AtomicUsize,
    /// Those of them that hold a lock on the file.
    pub(crate) locked: AtomicUsize,
    /// All of them, to look at the wal-index through.
    connections: Mutex<Vec<Weak<Handle>>>,
    /// Connections that ask for the file's EXCLUSIVE lock, or have it. Changed with the pin locked:
    /// it is not taken meanwhile.
    pub(crate) exclusive: AtomicUsize,
    /// The pin was held since the WAL was attached: SQLite has kept its descriptor, if it had to close it.
    had_pin: AtomicBool,
    /// When the pin was last asked for in vain.
    refused_at: Mutex<Option<Instant>>,
    /// Whether the sealer was told of the WAL.
    pub(crate) attached: AtomicBool,
    /// The file was written outside the WAL since it was attached.
    pub(crate) written: AtomicBool,
    /// The WAL was made by walferry: a program without it would have found none.
    pub(crate) left: AtomicBool,
    /// The log has the warning about writes outside the WAL.
    pub(crate) told: AtomicBool,
    /// Last frame at the last checkpoint that was let through with the gate shut.
    pub(crate) checkpointed: AtomicU32,
    /// A writer of this process is asking for all read slots: the pin takes none. Changed with the pin locked.
    asks: AtomicBool,
    /// The last frame up to which a checkpoint lets a read transaction of the pin's go on; `u32::MAX` while
    /// none is under way.
    pub(crate) reads_until: AtomicU32,
    /// Locked after what the threads of walferry share of a database, never before.
    pub(crate) pin: withheld::Mutex<Option<Pin>>,
    /// A connection of our own for checkpoints, once one was made.
    pub(crate) keeper: withheld::Mutex<Option<OwnConnection>>,
    /// Whether this process ships, and so keeps others from beginning the WAL anew.
    pub(crate) holds: Holds,
    /// The beginning of a walk and a request for the database to itself take turns.
    pub(crate) walks: Mutex<()>,
    /// Attaching and detaching take turns.
    pub(crate) turn: Mutex<()>,
    /// The connection that has the database to itself.
    pub(crate) alone: Mutex<Option<Arc<Handle>>>,
    /// Which file it is: device and inode.
    pub(crate) file: Mutex<Option<(u64, u64)>>,
    /// While attached, the files of its WAL and wal-index when that began.
    beside: Mutex<Option<Beside>>,
    /// The path names another file by now: connections to this one are passed through.
    orphaned: AtomicBool,
    /// The file was held against what the VFS reads of it.
    beneath: Mutex<Beneath>,
    /// In which process of a line of forks it was made.
    generation: u32,
}

/// The result of holding a file's bytes against those that the VFS gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beneath {
    /// Nothing yet.
    Unknown,
    /// They are those that the VFS gives.
    Same,
    /// The VFS makes others of them.
    Other,
}

/// A database that is to be replicated, not yet open.
pub struct Replicated {
    pub(crate) shimmed: Arc<Shimmed>,
    /// Names a replica of the connection's settings that the database does not have.
    pub(crate) unheeded: Option<String>,
}

/// By canonical path.
pub type Databases = Option<HashMap<PathBuf, Weak<Shimmed>>>;

/// Of the standard library's kind, as its locks can be held across a fork ([`fork`]).
pub static DATABASES: std::sync::Mutex<Databases> = std::sync::Mutex::new(None);
pub static ADOPTED: std::sync::RwLock<Adopted> = std::sync::RwLock::new(None);

/// Held while a database gives another its place, from the end of the one to the beginning of the other.
pub static RENEWAL: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// By the address of the file.
pub type Adopted = Option<HashMap<usize, Arc<Handle>>>;

/// The files of connections that were open before the extension was loaded.
fn adopted_files() -> Held<std::sync::RwLockWriteGuard<'static, Adopted>> {
    Held::new(|| ADOPTED.write().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// No database gives another its place meanwhile. Taken before any other lock.
pub fn renewal() -> withheld::Guard<()> {
    withheld::lock(&RENEWAL)
}

/// The databases that were opened through the shim. What is shared of one is never locked while this
/// is: it is looked into by those who have locked that.
pub fn databases() -> withheld::Guard<Databases> {
    withheld::lock(&DATABASES)
}

/// The database to which a file belongs that was just opened by its path: another one than we knew
/// if the file was replaced meanwhile.
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

/// The database of a WAL, by the WAL's path.
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

/// A pin that cannot be had is asked for again after so long, or when something changes.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// For which of a database's replications this process keeps others from restarting the WAL. Until
/// any of them has said so it does: what is seen at first must not be gone when they are ready.
#[derive(Default)]
pub struct Holds(Mutex<Option<BTreeSet<usize>>>);

impl Holds {
    /// True if it does so for any.
    pub fn any(&self) -> bool {
        self.0.lock().as_ref().is_none_or(|held| !held.is_empty())
    }

    /// Notes that it does, or does not, for this one; and whether it still does for any.
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

    /// True if it is the parent's, from before a fork.
    pub(crate) fn is_inherited(&self) -> bool {
        self.generation != inside::generation()
    }

    /// The connection that has the database to itself.
    pub(crate) fn alone(&self) -> Option<Arc<Handle>> {
        if !self.is_asked_for() {
            return None;
        }
        self.alone.lock().clone()
    }

    /// Whether the path has got another file since it was opened.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Acquire)
    }

    /// The file was deleted or replaced while it was open: SQLite goes on with a file that no path
    /// names, and nobody could ever restore to it.
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
        // None of them keeps the shipper's place from who has the file that is there now.
        let connections: Vec<_> =
            self.connections.lock().iter().filter_map(Weak::upgrade).collect();
        connections
            .iter()
            .filter(|handle| !handle.is_inherited())
            .for_each(|handle| handle.leave());
    }

    /// The WAL was seen: pin it and tell the sealer. Called by a thread that holds a read lock.
    ///
    /// The index is read under the pin, and the file is looked at after it: whatever is committed
    /// from then on counts in the index.
    pub(crate) fn attach(&self, index: impl Fn() -> Option<WalIndex>) {
        self.attach_through(None, index);
    }

    /// The same through the connection that has the database to itself: its lock is the guard, and there is
    /// nobody to pin the WAL against.
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
        // How the file was left before: known of one that was not written under the lock.
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

    /// True if the path has the file still that was opened, as far as is known.
    pub(crate) fn is_where_it_was(&self) -> bool {
        let opened = *self.file.lock();
        !opened.is_some_and(|opened| is_replaced(opened, self.database.path()))
    }

    /// True if WAL and wal-index are the files that this process has open, as far as is known. Others may use
    /// other ones, and a checkpoint by a wal-index that nobody else has would overwrite what they wrote.
    pub(crate) fn has_its_wal(&self) -> bool {
        let beside = *self.beside.lock();
        beside.is_none_or(|beside| beside == files_beside(self.database.path()))
    }

    /// True if that was found out.
    pub(crate) fn is_known_changed_beneath(&self) -> bool {
        *self.beneath.lock() == Beneath::Other
    }

    /// True if the file has other bytes than SQLite wrote: such a database is passed through.
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

    /// Takes the pin if it is not held; whether it is held now. Not while a connection of this process
    /// has, or asks for, the database to itself.
    pub(crate) fn repin(&self) -> bool {
        self.repin_with(self.pin.lock())
    }

    /// The same, unless another thread keeps the lock on the pin for longer: then whoever asks next takes it.
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

    /// The same after it was given up in vain.
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

    /// What is seen now, while the pin is held.
    pub(crate) fn before_gap(&self) -> Option<Gap> {
        let (guard, index) = {
            let pin = self.pin.lock();
            (pin.as_ref()?.guard()?, pin.as_ref()?.index()?)
        };
        let file = Fingerprint::of(self.database.path()).ok()?;
        Some(Gap { index, file, guard })
    }

    /// The same for who asks often: a pin that was just refused is not asked for again at once.
    pub(crate) fn repin_in_time(&self) {
        let refused = *self.refused_at.lock();
        if refused.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            self.repin();
        }
    }

    /// What keeps other processes from restarting or removing the WAL.
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

    /// The wal-index, through whatever has it mapped.
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

    /// A checkpoint is about to copy the frames up to this one: ends a read transaction of the pin's that
    /// began too long ago.
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

    /// Gives the pin up for a connection that asks for the database to itself. Walks are ended; one that only
    /// asks because it closes ends them for the most part ([`walk::closes`]).
    pub(crate) fn make_way(&self, closes: bool) {
        let _turn = self.walks.lock();
        {
            let mut pin = self.pin.lock();
            self.exclusive.fetch_add(1, Ordering::AcqRel);
            *pin = None;
        }
        // There is none again before the end of that.
        *self.keeper.lock() = None;
        if closes {
            walk::closes(self.database.path());
        } else {
            walk::end_of(self.database.path());
        }
    }

    /// True if a connection asks for the database to itself, or has it.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.exclusive.load(Ordering::Acquire) > 0
    }

    /// The end of that.
    pub(crate) fn end_way(&self) {
        let _pin = self.pin.lock();
        self.exclusive.fetch_sub(1, Ordering::AcqRel);
    }

    /// Warns, once, that the database is written to outside WAL mode.
    pub(crate) fn tell_outside_wal(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            log::warn!(
                "{}: it is written to in another journal mode than WAL, and nothing of that is \
                 replicated until it is in WAL mode",
                self.database.path().display()
            );
        }
    }

    /// A connection found another journal mode than WAL, unless it could only not look.
    pub(crate) fn found_outside_wal(&self) {
        let _turn = self.turn.lock();
        if !self.is_attached() {
            self.database.found_outside_wal();
        }
    }

    /// Asks for all read slots as a writer of this process that begins the WAL anew, with the pin's given up.
    /// The pin is not locked meanwhile: an SQLite that was built to wait for locks may wait here for another
    /// process, and connections of this one need the pin when they are closed.
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

    /// True if the pin, which the caller has locked, may take read slots.
    pub(crate) fn may_take_slots(&self) -> bool {
        !self.asks.load(Ordering::Acquire)
    }

    /// After a new beginning that was let through, or failed.
    pub(crate) fn hold_again(&self) {
        if self.holds.any()
            && let Some(pin) = self.pin.lock().as_mut()
            && self.may_take_slots()
        {
            pin.hold_slot();
        }
    }

    /// Gives the WAL free for good: somebody takes it over exclusively, or the last connection goes.
    pub(crate) fn unpin(&self) {
        *self.keeper.lock() = None;
        *self.pin.lock() = None;
    }

    pub(crate) fn detach(&self, end: Option<WalEnd>) {
        let _turn = self.turn.lock();
        // Not attached first: then nobody takes the pin again.
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

/// Remembers the file of a connection that was open before the extension was loaded.
pub fn adopt(file: usize, handle: Arc<Handle>) {
    adopted_files().get_or_insert_with(HashMap::new).insert(file, handle);
}

/// The handle of such a file.
pub fn adopted(file: usize) -> Option<Arc<Handle>> {
    let adopted = Held::new(|| ADOPTED.read().unwrap_or_else(std::sync::PoisonError::into_inner));
    adopted.as_ref()?.get(&file).cloned()
}

/// Forgets such a file.
pub fn forget_adopted(file: usize) {
    if let Some(adopted) = adopted_files().as_mut() {
        adopted.remove(&file);
    }
}
