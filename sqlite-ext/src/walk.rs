//! The walks under way. A walk has a database open and reads it as a whole, in one state.
//!
//! A walk may be in the way of a fork, or of a connection that asks for exclusive use. It may also be in the
//! way of the last close, or of the first connection after that. The walk is then ended, and starts again
//! later.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use walferry::local;
use walferry::local::state::Fingerprint;
use walferry::wal::WalIndex;
use walferry::withheld::{self, Deadline, Guard, Mutex, MutexGuard};

use crate::alive;
use crate::api::{OwnConnection, OwnFile, RawFile, SQLITE_LOCK_NONE};
use crate::pin::{BACKFILLED, read_index};

/// The walks under way. A lock of the standard library, since it is held around a fork. Taken before the lock
/// of a walk, never after.
static WALKS: std::sync::Mutex<Walks> =
    std::sync::Mutex::new(Walks { under_way: Vec::new(), ended: BTreeMap::new() });

/// Number of walks of a database, one after the other, that are ended because a process opens or closes it.
/// The next walk goes on. Otherwise a program that opens and closes all the time would never have its
/// database read.
const ENDED_MAX: u32 = 2;

/// The walks under way, and how many were ended.
pub struct Walks {
    under_way: Vec<Weak<Walk>>,
    /// Number of walks of each database that were ended in that way since a walk was completed.
    ended: BTreeMap<PathBuf, u32>,
}

impl Walks {
    fn ended(&self, path: &Path) -> u32 {
        self.ended.get(path).copied().unwrap_or(0)
    }
}

/// A read of a whole database in one state, until ended.
pub struct Walk {
    path: PathBuf,
    /// Locked while the walk begins, since its file is known only after that.
    open: Mutex<Option<Open>>,
}

/// A walk under way: its source, its file, and how it may end.
pub struct Open {
    /// The connection or file object that reads the pages.
    pub source: Source,
    /// Device and inode of the database.
    pub id: (u64, u64),
    /// State of the files when the application had none of them open. `None` if a connection of the
    /// application has been opened since.
    pub left: Option<Left>,
    /// The application has closed the database during the walk, and SQLite could not do the work of a last
    /// close.
    pub outlasts_close: bool,
}

/// The connection or file object of a walk.
pub enum Source {
    /// A read transaction of a connection.
    Transaction(OwnConnection, RawFile),
    /// A database that no process has open, with a SHARED lock on its file, and the fingerprint of the file.
    /// A process that opens the database meanwhile makes a WAL, which no process removes while that lock is
    /// held.
    Closed(OwnFile, Fingerprint),
}

impl Source {
    /// Returns the database's file.
    pub fn file(&self) -> RawFile {
        match self {
            Source::Transaction(_, file) => *file,
            Source::Closed(file, _) => file.raw(),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        match self {
            Source::Transaction(connection, _) => {
                let _ = connection.query(c"ROLLBACK");
            }
            Source::Closed(file, _) => {
                file.raw().unlock(SQLITE_LOCK_NONE);
            }
        }
    }
}

/// State of a database file and its WAL, with the state that the wal-index has of them.
pub struct Left {
    files: [Option<Fingerprint>; 2],
    index: (Option<WalIndex>, u32),
}

impl Left {
    /// Returns the state now.
    pub fn at(path: &Path, file: RawFile) -> Left {
        let look = |path: &Path| Fingerprint::of(path).ok();
        let shm = file.shm_header(false);
        let index = (shm.and_then(read_index), shm.map_or(0, |shm| shm.word(BACKFILLED)));
        Left { files: [look(path), look(&local::wal_path(path))], index }
    }

    /// True if a program has replaced the content of a file since. A file has changed then, and the wal-index
    /// shows no commit or checkpoint that changed it.
    fn is_replaced(&self, path: &Path, file: RawFile) -> bool {
        let now = Left::at(path, file);
        now.files != self.files && now.index == self.index
    }

    /// True if the database file has changed since, and no checkpoint changed it. Does not look at the WAL:
    /// another process's commit writes the WAL before the wal-index shows the commit.
    fn is_overwritten(&self, path: &Path, file: RawFile) -> bool {
        let now = Left::at(path, file);
        now.files[0] != self.files[0] && now.index == self.index
    }
}

impl Open {
    /// True if the walk keeps SQLite from the work of a last close.
    fn is_in_the_way(&self, path: &Path) -> bool {
        match &self.source {
            Source::Closed(..) => !is_closed(path),
            Source::Transaction(..) => self.outlasts_close && !self.is_replaced(path),
        }
    }

    /// True if the content of a file was replaced since the application had the database open.
    fn is_replaced(&self, path: &Path) -> bool {
        self.left.as_ref().is_some_and(|left| left.is_replaced(path, self.source.file()))
    }

    /// True if a walk that began with a closed database still has it closed: no process has opened or written
    /// it since. Always true for a walk with a transaction.
    pub fn is_still_closed(&self, path: &Path) -> bool {
        match &self.source {
            Source::Closed(_, before) => {
                is_closed(path) && Fingerprint::of(path).is_ok_and(|now| now == *before)
            }
            Source::Transaction(..) => true,
        }
    }

    /// True if everything that the walk has read belongs to the state that it began with. A transaction's
    /// lock does not keep a program from copying another file over the database.
    pub fn is_intact(&self, path: &Path) -> bool {
        let overwritten = |left: &Left| left.is_overwritten(path, self.source.file());
        self.is_still_closed(path) && !self.left.as_ref().is_some_and(overwritten)
    }
}

/// True if no WAL, wal-index or journal is beside the database. The file then has everything committed, and
/// no connection that has read the database has it open.
pub fn is_closed(path: &Path) -> bool {
    let beside = [local::wal_path(path), local::shm_path(path), local::journal_path(path)];
    beside.iter().all(|path| {
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    })
}

impl Walk {
    /// Registers a walk that has not begun.
    pub fn register(path: &Path) -> Arc<Walk> {
        let walk = Arc::new(Walk { path: path.to_path_buf(), open: Mutex::new(None) });
        let mut walks = withheld::lock(&WALKS);
        walks.under_way.retain(|known| known.strong_count() > 0);
        walks.under_way.push(Arc::downgrade(&walk));
        walk
    }

    /// Returns the path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the walk's state; `None` once the walk was ended.
    pub fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock()
    }

    /// Ends the walk. With `is_whole`, the walk has read the whole database. If the walk was in the way of a
    /// last close, returns the file for which the caller must do the work of that close.
    pub fn end(&self, is_whole: bool) -> Option<(u64, u64)> {
        let mut open = self.open.lock();
        let left = open.as_ref().filter(|open| open.is_in_the_way(&self.path)).map(|open| open.id);
        // Closed before the lock is given back: see `opens`.
        *open = None;
        drop(open);
        if is_whole {
            withheld::lock(&WALKS).ended.remove(&self.path);
        }
        left
    }

    /// Leaves the walk's connection or file open, since it belongs to a SQLite that was shut down.
    pub fn abandon(&self) {
        std::mem::forget(self.open.lock().take());
    }
}

/// Ends all walks, as before a fork. No walk begins until the result is dropped. `None` if a walk cannot be
/// ended in time.
pub fn end_all(deadline: Deadline) -> Option<Guard<Walks>> {
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

/// Counts a walk that was ended because a process opened or closed the database.
pub fn count_ended(path: &Path) {
    *withheld::lock(&WALKS).ended.entry(path.to_path_buf()).or_default() += 1;
}

/// True if the application's next connection may end a walk of this database.
pub fn may_be_ended(path: &Path) -> bool {
    withheld::lock(&WALKS).ended(path) < ENDED_MAX
}

/// Ends the walks of one database, as before a connection gets exclusive use: each walk holds a lock on the
/// file.
pub fn end_of(path: &Path) {
    for walk in walks_of(path) {
        *walk.open.lock() = None;
    }
}

/// Handles the close of the application's last connection. Without a walk, SQLite now copies all of the WAL
/// into the database and removes the WAL. A program that copies or replaces the file next relies on this.
pub fn closes(path: &Path) {
    let may_be_ended = may_be_ended(path);
    for walk in walks_of(path) {
        let mut open = walk.open.lock();
        match open.as_mut() {
            None => {}
            Some(_) if may_be_ended => {
                *open = None;
                drop(open);
                count_ended(path);
            }
            Some(goes_on) => {
                goes_on.outlasts_close = true;
                goes_on.left = Some(Left::at(path, goes_on.source.file()));
            }
        }
    }
}

/// Handles the open of this file by a connection of the application that does not know its WAL yet.
///
/// A walk may have another file of that name open. Or its file may have got other content while no connection
/// had it open. Such a walk has the wal-index mapped too. SQLite would truncate that wal-index during the
/// walk, or use it for the new content. A walk without a transaction cannot keep its file from being
/// overwritten.
pub fn opens(path: &Path, id: Option<(u64, u64)>) {
    for walk in walks_of(path) {
        if !alive::may_call() {
            walk.abandon();
            continue;
        }
        let mut open = walk.open.lock();
        let Some(goes_on) = open.as_mut() else { continue };
        let (left, file) = (goes_on.left.take(), goes_on.source.file());
        if matches!(goes_on.source, Source::Closed(..)) {
            *open = None;
            drop(open);
            count_ended(path);
        } else if id != Some(goes_on.id) || left.is_some_and(|left| left.is_replaced(path, file)) {
            *open = None;
        }
    }
}

/// Runs work that opens a database which the application has closed. Meanwhile, a connection of the
/// application to another file of that name does not look at the WAL ([`opens`]).
pub fn in_turn<T>(path: &Path, work: impl FnOnce() -> T) -> T {
    let walk = Walk::register(path);
    let _begins = walk.open.lock();
    work()
}
