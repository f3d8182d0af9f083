//! One connection's file on a replicated database, with its state.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use walferry::local::state::Fingerprint;
use walferry::replications::Replications;
use walferry::units::{PageSize, Salts};
use walferry::wal::evidence::Guard;
use walferry::wal::{self, WalIndex};

use crate::alive;
use crate::api::{self, RawFile, Shm};
use crate::beneath;
use crate::ffi::Target;
use crate::header::{self, Header};
use crate::inside;
use crate::pin::{new_guard, read_index};
use crate::registry::{self, Replicated, Shimmed};
use crate::walk;

/// One connection's file on a replicated database.
pub struct Handle {
    pub(crate) this: Weak<Handle>,
    pub(crate) shimmed: Arc<Shimmed>,
    pub(crate) real: RawFile,
    /// First region of the wal-index, as this connection has it mapped.
    pub(crate) shm: AtomicPtr<u8>,
    /// SQLite has unmapped the wal-index.
    pub(crate) unmapped: AtomicBool,
    /// The file was open before the extension was loaded, so the calls of its WAL are not seen.
    pub(crate) adopted: bool,
    /// The connection holds the checkpoint lock.
    pub(crate) checkpoints: AtomicBool,
    /// True between the two file controls that bracket the copying of frames.
    pub(crate) copies: AtomicBool,
    /// Held while another thread reads the wal-index through this connection's mapping, and while that
    /// mapping is removed.
    pub(crate) mapping: Mutex<()>,
    /// The last file control asked whether the file was moved, as SQLite does just before it closes the file.
    pub(crate) closes: AtomicBool,
    /// The connection holds a lock on the file, of any level.
    pub(crate) locked: AtomicBool,
    /// The connection holds the file's EXCLUSIVE lock.
    pub(crate) exclusive: AtomicBool,
    /// The connection holds a read lock of the wal-index.
    pub(crate) reads: AtomicBool,
    /// Guard of the EXCLUSIVE lock, while the connection holds that lock.
    pub(crate) guard: Mutex<Option<Guard>>,
    /// Fingerprint of the file just after the EXCLUSIVE lock was taken; `None` once the connection has
    /// written to the file.
    pub(crate) before: Mutex<Option<Fingerprint>>,
    /// The wal-index after the connection's last commit under the EXCLUSIVE lock, or when that lock was
    /// taken.
    pub(crate) last: Mutex<Option<WalIndex>>,
    /// Index, file and guard just before the pin was dropped for this connection, whose request for EXCLUSIVE
    /// was then refused.
    pub(crate) gap: Mutex<Option<Gap>>,
    /// The wal-index when this connection asked for all read slots, which it now holds.
    pub(crate) restarting: Mutex<Option<WalIndex>>,
    /// The connection's own writes to the WAL. Nothing else is known of a WAL without shared memory.
    pub(crate) written: Mutex<WalWrites>,
    /// True if the sealer may read the file, while this connection has the database exclusively. Locked
    /// during each such read, so that the file is not closed meanwhile.
    pub(crate) readable: Mutex<bool>,
    /// Counts this connection's writes to the database file, its checkpoints, and its restarts of the WAL.
    pub(crate) disturbances: AtomicU32,
    /// State of the change to WAL mode ([`fresh`]).
    pub(crate) fresh: AtomicU8,
    /// The connection counts as one that has the database open.
    counts: AtomicBool,
    /// Generation of the process ([`inside::generation`]) that opened the connection.
    generation: u32,
    /// Message about a replica that this connection asked for, and that the database does not have.
    unheeded: Option<String>,
    /// The application wants the WAL to stay after the last close (`SQLITE_FCNTL_PERSIST_WAL`).
    pub(crate) persists: AtomicBool,
}

/// State just before the pin is given up. If index and file are the same when the pin is held again, no
/// connection has committed in between. The guard is then the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) index: WalIndex,
    pub(crate) file: Fingerprint,
    pub(crate) guard: Guard,
}

/// State of a WAL, as its writes show it.
#[derive(Clone, Copy, Default)]
pub(crate) struct WalWrites {
    pub(crate) page_size: Option<PageSize>,
    pub(crate) salts: Option<Salts>,
    /// Last frame with a commit mark, and the size of the database in it.
    pub(crate) committed: Option<(u32, u32)>,
    /// Checksum in the header of that frame.
    pub(crate) checksum: (u32, u32),
    pub(crate) changes: u32,
    /// The transaction that is being written is counted in `changes`.
    counted: bool,
}

impl WalWrites {
    /// Notes a frame with a commit mark. The first such frame ends the transaction. Later ones are copies of
    /// it, up to the next sector boundary, where a write may damage neighbouring bytes (`psow=0`).
    pub(crate) fn add_commit(&mut self, frame: u32, page_count: u32, checksum: (u32, u32)) {
        self.committed = Some((frame, page_count));
        self.checksum = checksum;
        if !std::mem::replace(&mut self.counted, true) {
            self.changes = self.changes.wrapping_add(1);
        }
    }

    /// Notes that the transaction is committed. Later frames belong to the next one.
    pub(crate) fn end_commit(&mut self) {
        self.counted = false;
    }

    /// Reads the commits that SQLite recovers from a WAL that no other connection has open. SQLite continues
    /// to count from these in memory. Returns an error if the content of the WAL cannot be determined.
    fn recovered(path: &std::path::Path) -> io::Result<WalWrites> {
        let nothing = Ok(WalWrites::default());
        let wal = match std::fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return nothing,
            opened => opened?,
        };
        match wal.read_exact_at(&mut [0; wal::WAL_HEADER_LEN as usize], 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return nothing,
            read => read?,
        }
        let found = wal::recover(&wal).zip(wal::WalHeader::read(&wal));
        let Some((recovered, header)) = found else { return nothing };
        let last = recovered.last;
        let checksum = match last {
            0 => None,
            last => Some(wal::checksum_at(&wal, header.page_size, last)?),
        };
        Ok(WalWrites {
            page_size: Some(header.page_size),
            salts: Some(header.salts),
            committed: checksum.map(|_| (last, recovered.commit)),
            checksum: checksum.unwrap_or_default(),
            changes: 0,
            counted: false,
        })
    }
}

/// State of a connection's database on its way to WAL mode. An empty database gets WAL mode after its first
/// content, since WAL mode would fix page size and auto-vacuum. If readers have prevented WAL mode, walferry
/// tries again after the next write.
pub(crate) mod fresh {
    /// The database has WAL mode, or is not to have it.
    pub(crate) const NO: u8 = 0;
    /// The database was empty, or in another mode.
    pub(crate) const NOT_YET: u8 = 1;
    /// This connection has written to the database outside the WAL.
    pub(crate) const WRITTEN: u8 = 2;
}

impl Handle {
    /// Takes over a main database's file. `None` if it cannot be replicated.
    pub fn open_main(target: Target, real: RawFile, adopted: bool) -> Option<Arc<Handle>> {
        let Target::Main(Replicated { shimmed, unheeded }) = target else { return None };
        if let Some(why) = unfit(real) {
            shimmed.database.refuse(why);
            return None;
        }
        let shimmed = registry::of_file_now(shimmed);
        if shimmed.is_known_changed_beneath() {
            return None;
        }
        let fresh = if has_wal_mode(real) { fresh::NO } else { fresh::NOT_YET };
        shimmed.handles.fetch_add(1, Ordering::AcqRel);
        let file = *shimmed.file.lock();
        walk::opens(shimmed.database.path(), file);
        shimmed.database.connect();
        let handle = Arc::new_cyclic(|this| Handle {
            this: this.clone(),
            shimmed,
            real,
            shm: AtomicPtr::default(),
            unmapped: AtomicBool::new(false),
            adopted,
            checkpoints: AtomicBool::new(false),
            copies: AtomicBool::new(false),
            mapping: Mutex::new(()),
            closes: AtomicBool::new(false),
            locked: AtomicBool::new(false),
            exclusive: AtomicBool::new(false),
            reads: AtomicBool::new(false),
            guard: Mutex::new(None),
            before: Mutex::new(None),
            last: Mutex::new(None),
            gap: Mutex::new(None),
            restarting: Mutex::new(None),
            written: Mutex::new(WalWrites::default()),
            readable: Mutex::new(false),
            disturbances: AtomicU32::new(0),
            fresh: AtomicU8::new(fresh),
            counts: AtomicBool::new(true),
            generation: inside::generation(),
            unheeded,
            persists: AtomicBool::new(false),
        });
        if let Some(api) = api::api() {
            alive::mark(api);
        }
        alive::opened();
        handle.shimmed.opened(&handle.this);
        if handle.shimmed.is_orphaned() {
            handle.leave();
        }
        Some(handle)
    }

    /// Stops counting this connection as one that has the database open: it is being closed, or the path
    /// names another file.
    pub(crate) fn leave(&self) {
        if self.counts.swap(false, Ordering::AcqRel) {
            self.database().disconnect();
        }
    }

    /// True if the database had WAL mode when this connection opened it. Always false for a connection that
    /// was open before the extension was loaded.
    pub fn has_wal_mode(&self) -> bool {
        !self.adopted && self.fresh.load(Ordering::Acquire) == fresh::NO
    }

    /// True if the parent opened the connection before a fork.
    pub fn is_inherited(&self) -> bool {
        self.generation != inside::generation()
    }

    /// True if the connection is replicated: this process opened it, and the path still names its file.
    pub fn is_current(&self) -> bool {
        !self.is_inherited() && !self.shimmed.is_orphaned()
    }

    /// Returns why this connection's commits do not go to the replica, if they do not. Looks at the file at
    /// each call.
    pub fn misplaced(&self) -> Option<&str> {
        if self.is_inherited() {
            return Some(
                "the connection was opened before a fork(), and SQLite forbids its use in the \
                 child; open the database after the fork",
            );
        }
        let opened = *self.shimmed.file.lock();
        let now = Fingerprint::of(self.shimmed.database.path()).ok().map(|now| now.file);
        let elsewhere = opened.is_none() || opened != now || self.real.has_moved();
        if elsewhere || self.shimmed.is_orphaned() {
            return Some(
                "the file was deleted, renamed or replaced while it was open, and this connection \
                 writes to the old one; open the database again",
            );
        }
        self.unheeded()
    }

    /// Returns the message about a replica that this connection asked for, and that the database does not
    /// have.
    pub fn unheeded(&self) -> Option<&str> {
        self.unheeded.as_deref()
    }

    /// Returns the wal-index of the last commit that this connection sees.
    pub fn committed_index(&self) -> Option<WalIndex> {
        if self.is_exclusive() { self.exclusive_index() } else { self.index() }
    }

    /// Returns the file underneath.
    pub fn real(&self) -> RawFile {
        self.real
    }

    /// Notes the address at which this connection has the wal-index mapped.
    pub fn set_shm(&self, shm: Option<Shm>) {
        if shm.is_some() {
            self.unmapped.store(false, Ordering::Release);
        }
        self.shm.store(shm.map_or(std::ptr::null_mut(), Shm::as_pointer), Ordering::Release);
    }

    /// Notes that SQLite unmaps the wal-index. walferry does not map it again: that mapping would outlive the
    /// file.
    pub fn unmap_shm(&self) {
        let _mapping = self.mapping.lock();
        self.unmapped.store(true, Ordering::Release);
        self.set_shm(None);
        // Waits for the sealer, which may be reading the wal-index.
        drop(self.readable.lock());
    }

    /// Returns the wal-index header. For threads other than that of the connection.
    pub(crate) fn index_from_outside(&self) -> Option<WalIndex> {
        let _mapping = self.mapping.lock();
        Shm::from_pointer(self.shm.load(Ordering::Acquire).cast()).and_then(read_index)
    }

    /// Returns the wal-index header as it is now.
    pub(crate) fn index(&self) -> Option<WalIndex> {
        let mut shm = Shm::from_pointer(self.shm.load(Ordering::Acquire).cast());
        // An adopted connection mapped the wal-index before it was adopted. Any other connection tells when
        // it maps the wal-index. One that has not may have its wal-index in memory, and then -shm is out of
        // date.
        let may_map =
            self.adopted && !self.is_exclusive() && !self.unmapped.load(Ordering::Acquire);
        if shm.is_none() && self.shimmed.is_attached() && may_map {
            shm = self.real.shm_header(false);
            self.set_shm(shm);
        }
        shm.and_then(read_index)
    }

    /// True if this connection has the database exclusively.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive.load(Ordering::Acquire)
    }

    pub(crate) fn database(&self) -> &Replications {
        &self.shimmed.database
    }

    /// Waits until everything committed so far is captured. Returns `true` at once if the WAL is not attached
    /// or no commit is known.
    pub(crate) fn wait_captured(&self) -> bool {
        let Some(index) = self.committed_index().filter(|_| self.shimmed.is_attached()) else {
            return true;
        };
        self.database().wait_captured(index)
    }

    /// Lets the sealer read the file, or stops that.
    pub(crate) fn set_readable(&self, readable: bool) {
        *self.guard.lock() = readable.then(new_guard);
        *self.shimmed.alone.lock() = self.this.upgrade().filter(|_| readable);
        *self.readable.lock() = readable;
    }

    pub(crate) fn disturb(&self) {
        self.disturbances.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns the wal-index of the last commit under the EXCLUSIVE lock.
    pub(crate) fn exclusive_index(&self) -> Option<WalIndex> {
        *self.last.lock()
    }

    /// Finds the last commit when this connection gets exclusive use of the database. If the wal-index is not
    /// in shared memory, SQLite makes one from the WAL, and this function does the same. An adopted
    /// connection's writes to the WAL are not seen then, so its index is unknown.
    ///
    /// Returns `true` if the content of the WAL is known.
    pub(crate) fn begin_alone(&self) -> bool {
        if !self.shm.load(Ordering::Acquire).is_null() {
            let index = self.index();
            *self.last.lock() = index;
            return index.is_some();
        }
        if self.adopted {
            return false;
        }
        match WalWrites::recovered(&walferry::local::wal_path(self.database().path())) {
            Ok(written) => {
                *self.written.lock() = written;
                *self.last.lock() = self.index_alone();
                true
            }
            Err(error) => {
                log::warn!(
                    "{}: its WAL cannot be read by walferry: {error}",
                    self.database().path().display()
                );
                false
            }
        }
    }

    /// Returns the current wal-index of a connection with exclusive use. If the wal-index is not in shared
    /// memory, makes it from the connection's writes.
    pub(crate) fn index_alone(&self) -> Option<WalIndex> {
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
            frame_checksum: written.checksum,
            salts: written.salts?,
        })
    }
}

/// Returns why a file cannot be replicated as a database.
fn unfit(file: RawFile) -> Option<&'static str> {
    if !file.has_shm() {
        return Some("its VFS has no shared memory, which WAL mode needs");
    }
    let mut head = [0; header::LEN];
    let encrypted = file.read(&mut head, 0).is_ok() && beneath::is_encrypted(&head);
    encrypted.then_some(ENCRYPTED)
}

/// Reason why an encrypted database is refused.
pub const ENCRYPTED: &str = "it is encrypted, or no database: it does not begin as SQLite's files do, and \
                             what a codec encrypts cannot be replicated";

/// True if the file's header names WAL mode.
pub(crate) fn has_wal_mode(file: RawFile) -> bool {
    let mut head = [0; header::LEN];
    file.read(&mut head, 0).is_ok() && Header(&head).has_wal_mode()
}
