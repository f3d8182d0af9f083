//! Reading a database as a whole: a read transaction on a connection of our own, through the host's
//! SQLite and the VFS underneath.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use walferry::border::{Reader, Snapshot};
use walferry::local::state::Fingerprint;
use walferry::units::PageSize;
use walferry::wal::WalIndex;
use walferry::withheld::{self, Deadline, Guard, Mutex};

use crate::api::{Api, BaseVfs, OwnConnection, RawFile};
use crate::inside;
use crate::leftovers;
use crate::pin::read_index;
use crate::registry::{self, Shimmed};

/// The walks under way. Of the standard library's kind, as it is locked around a fork.
static WALKS: std::sync::Mutex<Walks> =
    std::sync::Mutex::new(Walks { under_way: Vec::new(), closes: BTreeMap::new() });

/// So many walks after each other are ended by the close of the last connection. Then one goes on: a program
/// that opens and closes all the time would never have its database read.
const ENDED_BY_CLOSES: u32 = 2;

/// Walks, as long as they go on.
pub struct Walks {
    under_way: Vec<Weak<Walk>>,
    /// How many walks of a database were ended by closes since one came to its end.
    closes: BTreeMap<PathBuf, u32>,
}

/// A read transaction on a connection of our own, until it is ended, as before a fork.
pub struct Walk {
    path: PathBuf,
    /// Locked while it begins: only then it is known which file it has.
    open: Mutex<Option<Open>>,
}

struct Open {
    connection: OwnConnection,
    file: RawFile,
    /// Device and inode of the database.
    id: (u64, u64),
    /// The files as the application left them, if none of its connections has been opened since.
    left: Option<Left>,
    /// The application has closed the database meanwhile, and SQLite could not do what it does then.
    outlasts_close: bool,
}

/// How a database and its WAL look.
#[derive(PartialEq, Eq)]
struct Left {
    main: Option<Fingerprint>,
    wal: Option<Fingerprint>,
}

impl Left {
    fn at(path: &Path) -> Left {
        let look = |path: &Path| Fingerprint::of(path).ok();
        Left { main: look(path), wal: look(&walferry::local::wal_path(path)) }
    }
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

    /// A walk that has not begun.
    fn register(path: &Path) -> Arc<Walk> {
        let walk = Arc::new(Walk { path: path.to_path_buf(), open: Mutex::new(None) });
        let mut walks = withheld::lock(&WALKS);
        walks.under_way.retain(|known| known.strong_count() > 0);
        walks.under_way.push(Arc::downgrade(&walk));
        walk
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.connection.query(c"ROLLBACK");
    }
}

/// Ends all walks, as before a fork; no other one is begun until the answer is dropped. `None` where that
/// cannot be done in time.
pub fn end_walks(deadline: Deadline) -> Option<Guard<Walks>> {
    let mut walks = deadline.lock(&WALKS)?;
    let goes_on =
        |walk: Arc<Walk>| walk.open.lock_until(deadline).map(|mut open| *open = None).is_none();
    walks.under_way.retain(|walk| walk.upgrade().is_some_and(goes_on));
    walks.under_way.is_empty().then_some(walks)
}

fn walks_of(path: &Path) -> Vec<Arc<Walk>> {
    let walks = withheld::lock(&WALKS);
    let under_way = walks.under_way.iter().filter_map(Weak::upgrade);
    under_way.filter(|walk| walk.path == path).collect()
}

/// Ends the walks of one database, as before a connection gets it to itself: each holds a lock on the
/// file.
pub fn end_walks_of(path: &Path) {
    for walk in walks_of(path) {
        walk.end();
    }
}

/// The last connection of the application is being closed. Without a walk SQLite now copies all of the WAL
/// into the database and removes it, and whoever copies or replaces the file next relies on that.
pub fn closes(path: &Path) {
    let ended = withheld::lock(&WALKS).closes.get(path).copied().unwrap_or(0);
    for walk in walks_of(path) {
        let mut open = walk.open.lock();
        match open.as_mut() {
            None => {}
            Some(_) if ended < ENDED_BY_CLOSES => {
                *open = None;
                // Locked before that of a walk, as at a fork.
                drop(open);
                withheld::lock(&WALKS).closes.insert(path.to_path_buf(), ended + 1);
            }
            Some(goes_on) => {
                goes_on.outlasts_close = true;
                goes_on.left = Some(Left::at(path));
            }
        }
    }
}

/// A connection of the application has opened this file, and knows nothing of its WAL yet. A walk over another
/// file of that name, or over one whose content somebody has replaced while nobody had it open, has the wal-index
/// mapped too: SQLite would truncate it beneath the walk, or take it for that of the new content.
pub fn opens(path: &Path, id: Option<(u64, u64)>, is_first: bool) {
    for walk in walks_of(path) {
        let mut open = walk.open.lock();
        let Some(goes_on) = open.as_mut() else { continue };
        let left = goes_on.left.take().filter(|_| is_first);
        if id != Some(goes_on.id) || left.is_some_and(|left| left != Left::at(path)) {
            *open = None;
        }
    }
}

/// Runs what opens a database that the application has closed: a connection of the application to another file
/// of that name looks at no WAL meanwhile ([`opens`]).
pub fn in_turn<T>(path: &Path, work: impl FnOnce() -> T) -> T {
    let walk = Walk::register(path);
    let _begins = walk.open.lock();
    work()
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
        let walk = Walk::register(path);
        let mut begins = walk.open.lock();
        let before = Fingerprint::of(path).map(|now| now.file).ok();
        let connection = OwnConnection::open(api, vfs.0, path)?;
        // Looked for behind the opening: whoever has opened another file since waits for this one's end.
        let shimmed = registry::find(path);
        let is_open = shimmed.as_ref().is_some_and(|known| known.is_open());
        let left = (!is_open).then(|| Left::at(path));
        let id = Fingerprint::of(path).map(|now| now.file).ok().filter(|now| before == Some(*now));
        let others = shimmed.as_ref().filter(|_| is_open).and_then(|known| *known.file.lock());
        let id = id.filter(|id| others.is_none_or(|other| other == *id));
        let id = id.ok_or("the file was deleted or replaced while it was opened")?;
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
        *begins = Some(Open { connection, file, id, left, outlasts_close: false });
        drop(begins);
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
                "the process forked while it was read, or a connection asked for it to itself or closed it",
            )),
        }
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        let Some(_inside) = inside::in_sqlite() else { return self.walk.abandon() };
        let path = &self.walk.path;
        let mut open = self.walk.open.lock();
        let (goes_on, outlasts_close) =
            (open.is_some(), open.as_ref().is_some_and(|open| open.outlasts_close));
        // Closed before that lock is given back: see `opens`.
        *open = None;
        drop(open);
        if goes_on {
            withheld::lock(&WALKS).closes.remove(path);
        }
        // It may have been the last connection that had the WAL open.
        let left = |shimmed: &Arc<Shimmed>| shimmed.left.load(Ordering::Acquire);
        if outlasts_close {
            leftovers::close_for_application(self.api, self.vfs, path);
        } else if self.made_wal || self.shimmed.as_ref().is_some_and(left) {
            leftovers::remove(self.api, self.vfs, path);
        }
    }
}
