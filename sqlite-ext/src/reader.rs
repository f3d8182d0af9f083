//! Reads a database as a whole, through the host's SQLite and the VFS underneath. Reads in a read transaction
//! on a connection of our own, or without a connection if no process has the database open.
//!
//! A connection would create a WAL and a wal-index beside a database whose program has closed it. That
//! program may be about to copy or remove the database.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use walferry::border::{Reader, Snapshot};
use walferry::local;
use walferry::local::state::Fingerprint;
use walferry::units::PageSize;
use walferry::wal::WalIndex;

use crate::api::{Api, BaseVfs, OwnConnection, OwnFile, SQLITE_LOCK_SHARED, SQLITE_OK};
use crate::header::{self, Header};
use crate::inside;
use crate::leftovers;
use crate::pin::read_index;
use crate::registry::{self, Shimmed};
use crate::walk::{self, Left, Open, Source, Walk};

/// Reads the state that a walk sees.
pub struct SnapshotReader {
    walk: Arc<Walk>,
    snapshot: Snapshot,
    /// The database, if a replicated one is registered at this path.
    shimmed: Option<Arc<Shimmed>>,
    /// The walk's connection has made the WAL: there was none before.
    made_wal: bool,
    /// Everything was read, in one state.
    is_whole: Cell<bool>,
    api: &'static Api,
    vfs: BaseVfs,
}

/// A walk that has begun.
struct Begun {
    open: Open,
    snapshot: Snapshot,
    shimmed: Option<Arc<Shimmed>>,
    made_wal: bool,
}

impl SnapshotReader {
    /// Begins the walk. Reads the snapshot after the transaction began, so that the snapshot is never older
    /// than the state that the transaction keeps in place.
    pub fn begin(api: &'static Api, vfs: BaseVfs, path: &Path) -> io::Result<SnapshotReader> {
        let _inside = inside::in_sqlite().ok_or_else(inside::shut_down)?;
        let may_be_ended = walk::may_be_ended(path);
        let walk = Walk::register(path);
        let mut open = walk.open();
        let closed = if may_be_ended { begin_closed(api, vfs, path)? } else { None };
        let begun = match closed {
            Some(begun) => begun,
            None => begin_transaction(api, vfs, path).map_err(io::Error::other)?,
        };
        let Begun { open: is_open, snapshot, shimmed, made_wal } = begun;
        *open = Some(is_open);
        drop(open);
        let is_whole = Cell::new(false);
        Ok(SnapshotReader { walk, snapshot, shimmed, made_wal, is_whole, api, vfs })
    }
}

/// Returns device and inode of the file that the path names now.
fn id_of(path: &Path) -> Option<(u64, u64)> {
    Fingerprint::of(path).map(|now| now.file).ok()
}

/// Opens a database that no process has open. `None` if a process may have it open, or if it is not in WAL
/// mode.
fn begin_closed(api: &'static Api, vfs: BaseVfs, path: &Path) -> io::Result<Option<Begun>> {
    let is_open = || registry::find(path).is_some_and(|shimmed| shimmed.is_open());
    if is_open() || !walk::is_closed(path) {
        return Ok(None);
    }
    let Some(id) = id_of(path) else { return Ok(None) };
    let Some(file) = OwnFile::open(api, vfs.0, path) else { return Ok(None) };
    if file.raw().lock(SQLITE_LOCK_SHARED) != SQLITE_OK {
        return Err(gave_way("a connection is just closing it, or has it to itself"));
    }
    // Read after the lock was taken and after the first look for connections: see `walk::opens`.
    let now = Fingerprint::of(path)?;
    let source = Source::Closed(file, now);
    if is_open() || !walk::is_closed(path) || now.file != id {
        return Ok(None);
    }
    if now.may_change_unseen() {
        return Err(gave_way("it was written a moment ago"));
    }
    let mut head = [0; header::LEN];
    if source.file().read(&mut head, 0).is_err() {
        return Ok(None);
    }
    let header = Header(&head);
    let size = header.page_size().zip(header.page_count());
    let size = size.filter(|(_, count)| header.has_wal_mode() && *count > 0);
    Ok(size.map(|(page_size, page_count)| Begun {
        open: Open { source, id, left: None, outlasts_close: false },
        snapshot: Snapshot { page_size, page_count, index: None },
        shimmed: None,
        made_wal: false,
    }))
}

fn begin_transaction(api: &'static Api, vfs: BaseVfs, path: &Path) -> Result<Begun, String> {
    let made_wal = !local::wal_path(path).exists();
    let before = id_of(path);
    let connection = OwnConnection::open(api, vfs.0, path)?;
    // Looked up after the open: a connection that has opened another file since then waits for the end of
    // this walk.
    let shimmed = registry::find(path);
    let is_open = shimmed.as_ref().is_some_and(|known| known.is_open());
    let others = shimmed.as_ref().filter(|_| is_open).and_then(|known| *known.file.lock());
    let is_it = |id: &(u64, u64)| before == Some(*id) && others.is_none_or(|other| other == *id);
    let id = || id_of(path).filter(is_it).ok_or("the file was deleted or replaced meanwhile");
    id()?;
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
    // Without the wal-index, the frames of the WAL would be missing from the state that is read.
    let index = file.shm_header(false).and_then(read_index);
    let index = index.ok_or("its wal-index cannot be read just now")?;
    if index.max_frame > 0 {
        page_count = index.page_count;
    }
    if page_count == 0 {
        return Err("it is empty: there is nothing to replicate yet".into());
    }
    // Checked again: another process may have put another file there, and the wal-index would be that file's.
    let id = id()?;
    let left = (!is_open).then(|| Left::at(path, file));
    let source = Source::Transaction(connection, file);
    Ok(Begun {
        open: Open { source, id, left, outlasts_close: false },
        snapshot: Snapshot { page_size, page_count, index: Some(index) },
        shimmed,
        made_wal,
    })
}

fn ended() -> io::Error {
    gave_way("the process forked, or a connection asked for it to itself, closed or opened it")
}

fn gave_way(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

impl Reader for SnapshotReader {
    fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    fn index_now(&self) -> Option<WalIndex> {
        let _inside = inside::in_sqlite()?;
        match &self.walk.open().as_ref()?.source {
            Source::Transaction(_, file) => file.shm_header(false).and_then(read_index),
            Source::Closed(..) => None,
        }
    }

    fn read_main(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let _inside = inside::in_sqlite().ok_or_else(inside::shut_down)?;
        let open = self.walk.open();
        let walk = open.as_ref().ok_or_else(ended)?;
        if walk.is_still_closed(self.walk.path()) {
            return walk.source.file().read(buffer, offset);
        }
        // The list of walks is never locked while a walk is.
        drop(open);
        walk::count_ended(self.walk.path());
        Err(gave_way("another process opened it, or replaced its content"))
    }

    fn is_intact(&self) -> bool {
        let Some(_inside) = inside::in_sqlite() else { return false };
        let open = self.walk.open();
        self.is_whole.set(open.as_ref().is_some_and(|walk| walk.is_intact(self.walk.path())));
        self.is_whole.get()
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        let ended = match inside::in_sqlite() {
            Some(_inside) => self.walk.end(self.is_whole.get()),
            None => return self.walk.abandon(),
        };
        // The walk's connection may have been the last one that had the WAL open.
        let left = |shimmed: &Arc<Shimmed>| shimmed.left.load(Ordering::Acquire);
        if let Some(id) = ended {
            leftovers::close_for_others(self.api, self.vfs, self.walk.path(), id);
        } else if self.made_wal || self.shimmed.as_ref().is_some_and(left) {
            leftovers::remove(self.api, self.vfs, self.walk.path());
        }
    }
}
