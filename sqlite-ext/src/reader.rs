//! Reading a database as a whole, through the host's SQLite and the VFS underneath: in a read transaction on a
//! connection of our own; or, where nobody has the database open, without one. A connection would make a WAL and
//! a wal-index beside a database whose program has closed it, and may be about to copy or remove it.

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
    /// The database, if a connection of the application has it open.
    shimmed: Option<Arc<Shimmed>>,
    /// There was no WAL before.
    made_wal: bool,
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
    /// Begins the walk. What the snapshot says is read afterwards, so that it is never older than what the
    /// transaction keeps in place.
    pub fn begin(api: &'static Api, vfs: BaseVfs, path: &Path) -> io::Result<SnapshotReader> {
        let _inside = inside::in_sqlite().ok_or_else(inside::shut_down)?;
        let walk = Walk::register(path);
        let mut open = walk.open();
        let closed = walk::may_be_ended(path).then(|| begin_closed(api, vfs, path)).flatten();
        let begun = match closed {
            Some(begun) => begun,
            None => begin_transaction(api, vfs, path).map_err(io::Error::other)?,
        };
        let Begun { open: is_open, snapshot, shimmed, made_wal } = begun;
        *open = Some(is_open);
        drop(open);
        Ok(SnapshotReader { walk, snapshot, shimmed, made_wal, api, vfs })
    }
}

/// Device and inode of the file that the path names now.
fn id_of(path: &Path) -> Option<(u64, u64)> {
    Fingerprint::of(path).map(|now| now.file).ok()
}

/// Opens what nobody has open; `None` where somebody may have, or it is not in WAL mode.
fn begin_closed(api: &'static Api, vfs: BaseVfs, path: &Path) -> Option<Begun> {
    let is_open = || registry::find(path).is_some_and(|shimmed| shimmed.is_open());
    if is_open() || !is_closed(path) {
        return None;
    }
    let id = id_of(path)?;
    let file = OwnFile::open(api, vfs.0, path)?;
    if file.raw().lock(SQLITE_LOCK_SHARED) != SQLITE_OK {
        return None;
    }
    let source = Source::Closed(file);
    // Behind the lock, and behind the look for connections: see `walk::opens`.
    if is_open() || !is_closed(path) || id_of(path) != Some(id) {
        return None;
    }
    let mut head = [0; header::LEN];
    source.file().read(&mut head, 0).ok()?;
    let header = Header(&head);
    let (page_size, page_count) = (header.page_size()?, header.page_count()?);
    if !header.has_wal_mode() || page_count == 0 {
        return None;
    }
    Some(Begun {
        open: Open { source, id, left: None, outlasts_close: false },
        snapshot: Snapshot { page_size, page_count, index: None },
        shimmed: None,
        made_wal: false,
    })
}

/// True if no WAL, wal-index or journal is beside the database: then its file has all that was committed, and
/// nobody has it open who has read it.
fn is_closed(path: &Path) -> bool {
    let beside = [local::wal_path(path), local::shm_path(path), local::journal_path(path)];
    beside.iter().all(|path| {
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    })
}

fn begin_transaction(api: &'static Api, vfs: BaseVfs, path: &Path) -> Result<Begun, String> {
    let made_wal = !local::wal_path(path).exists();
    let before = id_of(path);
    let connection = OwnConnection::open(api, vfs.0, path)?;
    // Looked for behind the opening: whoever has opened another file since waits for this one's end.
    let shimmed = registry::find(path);
    let is_open = shimmed.as_ref().is_some_and(|known| known.is_open());
    let left = (!is_open).then(|| Left::at(path));
    let id = id_of(path).filter(|now| before == Some(*now));
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
    let source = Source::Transaction(connection, file);
    Ok(Begun {
        open: Open { source, id, left, outlasts_close: false },
        snapshot: Snapshot { page_size, page_count, index: Some(index) },
        shimmed,
        made_wal,
    })
}

fn ended() -> io::Error {
    io::Error::other(
        "the process forked while it was read, or a connection asked for it to itself, closed or opened it",
    )
}

/// True if what is read has still the state that it had: nobody has opened a closed database meanwhile.
fn is_untouched(path: &Path, open: &Open) -> bool {
    match &open.source {
        Source::Transaction(..) => true,
        Source::Closed(_) => is_closed(path) && id_of(path) == Some(open.id),
    }
}

impl Reader for SnapshotReader {
    fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    fn index_now(&self) -> Option<WalIndex> {
        let _inside = inside::in_sqlite()?;
        match &self.walk.open().as_ref()?.source {
            Source::Transaction(_, file) => file.shm_header(false).and_then(read_index),
            Source::Closed(_) => None,
        }
    }

    fn read_main(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let _inside = inside::in_sqlite().ok_or_else(inside::shut_down)?;
        let open = self.walk.open();
        let open = open.as_ref().ok_or_else(ended)?;
        if !is_untouched(self.walk.path(), open) {
            return Err(io::Error::other("another process opened it while it was read"));
        }
        open.source.file().read(buffer, offset)
    }

    fn is_intact(&self) -> bool {
        let open = self.walk.open();
        match open.as_ref() {
            Some(open) => is_untouched(self.walk.path(), open),
            None => self.snapshot.index.is_some(),
        }
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        let ended = match inside::in_sqlite() {
            Some(_inside) => self.walk.end(),
            None => return self.walk.abandon(),
        };
        // It may have been the last connection that had the WAL open.
        let left = |shimmed: &Arc<Shimmed>| shimmed.left.load(Ordering::Acquire);
        if ended.outlasts_close {
            leftovers::close_for_application(self.api, self.vfs, self.walk.path());
        } else if self.made_wal || self.shimmed.as_ref().is_some_and(left) {
            leftovers::remove(self.api, self.vfs, self.walk.path());
        }
    }
}
