//! Reading a database as a whole: a read transaction on a connection of our own, through the host's
//! SQLite and the VFS underneath.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use walferry::border::{Reader, Snapshot};
use walferry::units::PageSize;
use walferry::wal::WalIndex;
use walferry::withheld::{self, Deadline, Guard, Mutex};

use crate::api::{Api, BaseVfs, OwnConnection, RawFile};
use crate::inside;
use crate::leftovers;
use crate::pin::read_index;
use crate::registry::{self, Shimmed};

/// The walks under way. Of the standard library's kind, as it is locked around a fork.
static WALKS: std::sync::Mutex<Walks> = std::sync::Mutex::new(Vec::new());

/// Walks, as long as they go on.
pub type Walks = Vec<Weak<Walk>>;

/// A read transaction on a connection of our own, until it is ended, as before a fork.
pub struct Walk {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

struct Open {
    connection: OwnConnection,
    file: RawFile,
}

impl Walk {
    /// Ends the transaction and closes the connection.
    pub fn end(&self) {
        *self.open.lock() = None;
    }

    /// Leaves the connection as it is: it is one of an SQLite that was shut down.
    fn abandon(&self) {
        std::mem::forget(self.open.lock().take());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.connection.query(c"ROLLBACK");
    }
}

/// Has a walk ended by a fork, or for a connection that asks for the database to itself.
fn register_walk(walk: &Arc<Walk>) {
    let mut walks = withheld::lock(&WALKS);
    walks.retain(|known| known.strong_count() > 0);
    walks.push(Arc::downgrade(walk));
}

/// Ends all walks, as before a fork; no other one is begun until the answer is dropped. `None` where that
/// cannot be done in time.
pub fn end_walks(deadline: Deadline) -> Option<Guard<Walks>> {
    let mut walks = deadline.lock(&WALKS)?;
    let goes_on =
        |walk: Arc<Walk>| walk.open.lock_until(deadline).map(|mut open| *open = None).is_none();
    walks.retain(|walk| walk.upgrade().is_some_and(goes_on));
    walks.is_empty().then_some(walks)
}

/// Ends the walks of one database, as before a connection gets it to itself: each holds a lock on the
/// file.
pub fn end_walks_of(path: &Path) {
    let walks = withheld::lock(&WALKS).clone();
    let of_it = walks.iter().filter_map(Weak::upgrade).filter(|walk| walk.path == path);
    of_it.for_each(|walk| walk.end());
}

/// Reads the state that a walk sees.
pub struct SnapshotReader {
    walk: Arc<Walk>,
    snapshot: Snapshot,
    /// The database, if a connection of the application has it open.
    shimmed: Option<Arc<Shimmed>>,
    /// There was no WAL before.
    made_wal: bool,
    api: &'static Api,
    vfs: BaseVfs,
}

impl SnapshotReader {
    /// Begins the transaction. What the snapshot says is read afterwards, so that it is never
    /// older than what the transaction keeps in place.
    pub fn begin(api: &'static Api, vfs: BaseVfs, path: &Path) -> io::Result<SnapshotReader> {
        SnapshotReader::try_begin(api, vfs, path).map_err(io::Error::other)
    }

    fn try_begin(api: &'static Api, vfs: BaseVfs, path: &Path) -> Result<SnapshotReader, String> {
        let _inside = inside::in_sqlite().ok_or_else(|| inside::shut_down().to_string())?;
        let made_wal = !walferry::local::wal_path(path).exists();
        let shimmed = registry::find(path);
        let connection = OwnConnection::open(api, vfs.0, path)?;
        connection.query(c"BEGIN")?;
        connection.query(c"SELECT count(*) FROM sqlite_master")?;
        let mode = connection.query(c"PRAGMA journal_mode")?;
        if mode.as_deref() != Some("wal") {
            let mode = mode.unwrap_or_default();
            return Err(format!(
                "it is in journal mode {mode}, not WAL; set it with PRAGMA journal_mode=WAL"
            ));
        }
        let number = |sql| -> Result<u32, String> {
            let text = connection.query(sql)?.unwrap_or_default();
            text.parse().map_err(|_| format!("SQLite answered '{text}'"))
        };
        let page_size = number(c"PRAGMA page_size")?;
        let page_size =
            PageSize::new(page_size).ok_or_else(|| format!("a page size of {page_size}"))?;
        let mut page_count = number(c"PRAGMA page_count")?;
        let file = connection.file().ok_or("its file is not there")?;
        // Without it the frames of the WAL would be missing in what is read.
        let index = file.shm_header(false).and_then(read_index);
        let index = index.ok_or("its wal-index cannot be read just now")?;
        if index.max_frame > 0 {
            page_count = index.page_count;
        }
        if page_count == 0 {
            return Err("it is empty: there is nothing to replicate yet".into());
        }
        let snapshot = Snapshot { page_size, page_count, index: Some(index) };
        let open = Mutex::new(Some(Open { connection, file }));
        let walk = Arc::new(Walk { path: path.to_path_buf(), open });
        register_walk(&walk);
        Ok(SnapshotReader { walk, snapshot, shimmed, made_wal, api, vfs })
    }
}

impl Reader for SnapshotReader {
    fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    fn index_now(&self) -> Option<WalIndex> {
        let _inside = inside::in_sqlite()?;
        self.walk.open.lock().as_ref()?.file.shm_header(false).and_then(read_index)
    }

    fn read_main(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let _inside = inside::in_sqlite().ok_or_else(inside::shut_down)?;
        match self.walk.open.lock().as_ref() {
            Some(open) => open.file.read(buffer, offset),
            None => Err(io::Error::other(
                "the process forked while it was read, or a connection asked for it to itself",
            )),
        }
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        match inside::in_sqlite() {
            Some(_inside) => self.walk.end(),
            None => return self.walk.abandon(),
        }
        // It may have been the last connection that had the WAL open.
        let left = |shimmed: &Arc<Shimmed>| shimmed.left.load(Ordering::Acquire);
        if self.made_wal || self.shimmed.as_ref().is_some_and(left) {
            leftovers::remove(self.api, self.vfs, &self.walk.path);
        }
    }
}
