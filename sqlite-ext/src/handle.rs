//! One connection's file on a replicated database, and what is known of it.

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
    /// SQLite unmapped it.
    pub(crate) unmapped: AtomicBool,
    /// The file was open before the extension was loaded: its WAL is not seen.
    pub(crate) adopted: bool,
    /// It holds the checkpoint lock.
    pub(crate) checkpoints: AtomicBool,
    /// Between the two file controls that bracket the copying of frames.
    pub(crate) copies: AtomicBool,
    /// Held while another thread looks into the wal-index as this connection has it mapped, and
    /// while that mapping goes.
    pub(crate) mapping: Mutex<()>,
    /// SQLite has asked whether the file was moved, as it does just before it closes it.
    pub(crate) closes: AtomicBool,
    /// True while this connection holds a lock on the file, of any level.
    pub(crate) locked: AtomicBool,
    /// It holds the file's EXCLUSIVE lock.
    pub(crate) exclusive: AtomicBool,
    /// True while this connection holds a read lock of the wal-index.
    pub(crate) reads: AtomicBool,
    /// The guard that the EXCLUSIVE lock is, while this connection holds that lock.
    pub(crate) guard: Mutex<Option<Guard>>,
    /// How the file looked just after that lock was taken.
    pub(crate) before: Mutex<Option<Fingerprint>>,
    /// The wal-index after its last commit under that lock, or when it was taken.
    pub(crate) last: Mutex<Option<WalIndex>>,
    /// The look at index, file and guard just before the pin was dropped for this connection, whose
    /// request for EXCLUSIVE was then refused.
    pub(crate) gap: Mutex<Option<Gap>>,
    /// The wal-index when this connection asked for all read slots, which it has.
    pub(crate) restarting: Mutex<Option<WalIndex>>,
    /// What it wrote to the WAL itself: all that is known of one without shared memory.
    pub(crate) written: Mutex<WalWrites>,
    /// Whether the file may be read by the sealer: while this connection has it to itself. Held
    /// during each such read, so that the file is not closed meanwhile.
    pub(crate) readable: Mutex<bool>,
    /// Checkpoints and new beginnings of the WAL by this connection.
    pub(crate) disturbances: AtomicU32,
    /// Whether it was opened on an empty file, and has written to it since.
    pub(crate) fresh: AtomicU8,
    /// True while it counts as a connection that has the database open.
    counts: AtomicBool,
    /// In which process of a line of forks it was opened.
    generation: u32,
    /// Names a replica that this connection asked for, and that the database does not have.
    unheeded: Option<String>,
    /// The application wants the WAL to stay after the last close (`SQLITE_FCNTL_PERSIST_WAL`).
    pub(crate) persists: AtomicBool,
}

/// What is seen before the pin is given up. If the same is seen when it is held again, nobody has
/// committed in between, and the guard is the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) index: WalIndex,
    pub(crate) file: Fingerprint,
    pub(crate) guard: Guard,
}

/// What is seen of a WAL in its writes.
#[derive(Clone, Copy, Default)]
pub(crate) struct WalWrites {
    pub(crate) page_size: Option<PageSize>,
    pub(crate) salts: Option<Salts>,
    /// Last frame with a commit mark, and the database's size in it.
    pub(crate) committed: Option<(u32, u32)>,
    /// The checksum in the header of that frame.
    pub(crate) checksum: (u32, u32),
    pub(crate) changes: u32,
    /// The transaction that is being written is in `changes`.
    counted: bool,
}

impl WalWrites {
    /// A frame with a commit mark is written. The first one of a transaction ends it; others are copies
    /// of that up to the next sector boundary, where a write may harm what is near it (`psow=0`).
    pub(crate) fn add_commit(&mut self, frame: u32, page_count: u32, checksum: (u32, u32)) {
        self.committed = Some((frame, page_count));
        self.checksum = checksum;
        if !std::mem::replace(&mut self.counted, true) {
            self.changes = self.changes.wrapping_add(1);
        }
    }

    /// The transaction is committed: what follows belongs to the next one.
    pub(crate) fn end_commit(&mut self) {
        self.counted = false;
    }

    /// The commits that SQLite recovers of a WAL which nobody else has open, and counts on from in memory.
    /// An error where there is no telling what it holds.
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

/// Of a connection to a database that did not have WAL mode when it was opened. To an empty one that
/// comes once there is something in it, since it would end the time in which page size and auto-vacuum
/// can be chosen; to one that readers kept from it, after the next write.
pub(crate) mod fresh {
    /// It had WAL mode, or has it by now, or is not to have it.
    pub(crate) const NO: u8 = 0;
    /// It was empty, or in another mode.
    pub(crate) const NOT_YET: u8 = 1;
    /// This connection has written to it, outside the WAL.
    pub(crate) const WRITTEN: u8 = 2;
}

impl Handle {
    /// Takes a main database's file over. `None` if it cannot be replicated.
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

    /// Ends this connection's having the database open: it is being closed, or the file is another one.
    pub(crate) fn leave(&self) {
        if self.counts.swap(false, Ordering::AcqRel) {
            self.database().disconnect();
        }
    }

    /// True if the database had WAL mode when this connection opened it.
    pub fn has_wal_mode(&self) -> bool {
        !self.adopted && self.fresh.load(Ordering::Acquire) == fresh::NO
    }

    /// Whether it was opened by the parent, before a fork.
    pub fn is_inherited(&self) -> bool {
        self.generation != inside::generation()
    }

    /// Whether it is replicated: it is this process's, and its file is where it was.
    pub fn is_current(&self) -> bool {
        !self.is_inherited() && !self.shimmed.is_orphaned()
    }

    /// Why what this connection commits does not go to its replica, if that is so: looked at now.
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

    /// Names a replica that this connection asked for, and that the database does not have.
    pub fn unheeded(&self) -> Option<&str> {
        self.unheeded.as_deref()
    }

    /// What this connection sees committed, however it sees it.
    pub fn committed_index(&self) -> Option<WalIndex> {
        if self.is_exclusive() { self.exclusive_index() } else { self.index() }
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
        let _mapping = self.mapping.lock();
        self.unmapped.store(true, Ordering::Release);
        self.set_shm(None);
        // The sealer may just be looking at it.
        drop(self.readable.lock());
    }

    /// The wal-index header, for another thread than that of the connection.
    pub(crate) fn index_from_outside(&self) -> Option<WalIndex> {
        let _mapping = self.mapping.lock();
        Shm::from_pointer(self.shm.load(Ordering::Acquire).cast()).and_then(read_index)
    }

    /// The wal-index header as it is now.
    pub(crate) fn index(&self) -> Option<WalIndex> {
        let mut shm = Shm::from_pointer(self.shm.load(Ordering::Acquire).cast());
        // The connection had it mapped before it was adopted. Any other tells when it maps it: one that has
        // not may keep its wal-index in memory, and what -shm has is of an earlier time then.
        let may_map =
            self.adopted && !self.is_exclusive() && !self.unmapped.load(Ordering::Acquire);
        if shm.is_none() && self.shimmed.is_attached() && may_map {
            shm = self.real.shm_header(false);
            self.set_shm(shm);
        }
        shm.and_then(read_index)
    }

    /// Whether this connection has the database to itself.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive.load(Ordering::Acquire)
    }

    pub(crate) fn database(&self) -> &Replications {
        &self.shimmed.database
    }

    /// Everything committed so far, if the sealer takes part: waits until it is captured.
    pub(crate) fn wait_captured(&self) -> bool {
        let Some(index) = self.committed_index().filter(|_| self.shimmed.is_attached()) else {
            return true;
        };
        self.database().wait_captured(index)
    }

    /// Lets the sealer read the file, or ends that.
    pub(crate) fn set_readable(&self, readable: bool) {
        *self.guard.lock() = readable.then(new_guard);
        *self.shimmed.alone.lock() = self.this.upgrade().filter(|_| readable);
        *self.readable.lock() = readable;
    }

    pub(crate) fn disturb(&self) {
        self.disturbances.fetch_add(1, Ordering::AcqRel);
    }

    /// What was committed last while this connection has the database to itself.
    pub(crate) fn exclusive_index(&self) -> Option<WalIndex> {
        *self.last.lock()
    }

    /// This connection has got the database to itself. Without a wal-index in shared memory it makes
    /// one of its own from the WAL. What an adopted connection does to the WAL then is not seen: its
    /// index is not known.
    /// Tells whether it is known what the WAL holds.
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

    /// The same as the wal-index has it now, or what was written where there is none in shared
    /// memory.
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

/// Why a file cannot be replicated as a database.
fn unfit(file: RawFile) -> Option<&'static str> {
    if !file.has_shm() {
        return Some("its VFS has no shared memory, which WAL mode needs");
    }
    let mut head = [0; header::LEN];
    let encrypted = file.read(&mut head, 0).is_ok() && beneath::is_encrypted(&head);
    encrypted.then_some(ENCRYPTED)
}

/// Why an encrypted database is refused.
pub const ENCRYPTED: &str = "it is encrypted, or no database: it does not begin as SQLite's files do, and \
                             what a codec encrypts cannot be replicated";

/// True if the file's header says that it is in WAL mode.
pub(crate) fn has_wal_mode(file: RawFile) -> bool {
    let mut head = [0; header::LEN];
    file.read(&mut head, 0).is_ok() && Header(&head).has_wal_mode()
}
