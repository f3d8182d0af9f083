//! The walks under way: what of ours has a database open to read it as a whole, in one state.
//!
//! Each is in somebody's way now and then: of a fork, of a connection that asks for the database to itself, of
//! the last close, and of the first connection after it. Then it is ended, and begins anew later.

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

/// The walks under way. Of the standard library's kind, as it is locked around a fork; and before that of a
/// walk, never after it.
static WALKS: std::sync::Mutex<Walks> =
    std::sync::Mutex::new(Walks { under_way: Vec::new(), ended: BTreeMap::new() });

/// So many walks after each other are ended when the application closes its last connection or opens its first.
/// Then one goes on: a program that opens and closes all the time would never have its database read.
const ENDED_MAX: u32 = 2;

/// Walks, as long as they go on.
pub struct Walks {
    under_way: Vec<Weak<Walk>>,
    /// How many walks of a database were ended in that way since one came to its end.
    ended: BTreeMap<PathBuf, u32>,
}

impl Walks {
    fn ended(&self, path: &Path) -> u32 {
        self.ended.get(path).copied().unwrap_or(0)
    }
}

/// A database that is read in one state, until that is ended.
pub struct Walk {
    path: PathBuf,
    /// Locked while it begins: only then it is known which file it has.
    open: Mutex<Option<Open>>,
}

/// A walk under way: its source, its file, and how it may end.
pub struct Open {
    /// The connection or file object that the pages are read with.
    pub source: Source,
    /// Device and inode of the database.
    pub id: (u64, u64),
    /// The files as they were when the application had none of them open, if no connection of its has been
    /// opened since.
    pub left: Option<Left>,
    /// The application has closed the database meanwhile, and SQLite could not do what it does then.
    pub outlasts_close: bool,
}

/// The connection or file object of a walk.
pub enum Source {
    /// A read transaction of a connection.
    Transaction(OwnConnection, RawFile),
    /// A database that no process has open: a SHARED lock on its file, and how the file was. A process that opens
    /// the database meanwhile makes a WAL, which no process removes as long as that lock is held.
    Closed(OwnFile, Fingerprint),
}

impl Source {
    /// The database's file.
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

/// How a database and its WAL look, and what the wal-index says of them.
pub struct Left {
    files: [Option<Fingerprint>; 2],
    index: (Option<WalIndex>, u32),
}

impl Left {
    /// As they are now.
    pub fn at(path: &Path, file: RawFile) -> Left {
        let look = |path: &Path| Fingerprint::of(path).ok();
        let shm = file.shm_header(false);
        let index = (shm.and_then(read_index), shm.map_or(0, |shm| shm.word(BACKFILLED)));
        Left { files: [look(path), look(&local::wal_path(path))], index }
    }

    /// True if somebody has replaced the content of a file since: one of them is another one, and no commit or
    /// checkpoint has made it so, of which the wal-index would tell.
    fn is_replaced(&self, path: &Path, file: RawFile) -> bool {
        let now = Left::at(path, file);
        now.files != self.files && now.index == self.index
    }

    /// True if the database file has changed since, and no checkpoint has done that. The WAL is not looked at: a
    /// commit of another process writes it before the wal-index tells of that commit.
    fn is_overwritten(&self, path: &Path, file: RawFile) -> bool {
        let now = Left::at(path, file);
        now.files[0] != self.files[0] && now.index == self.index
    }
}

impl Open {
    /// True if it keeps SQLite from what it does when the last connection is closed.
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

    /// True unless the walk began with a closed database, and a process has opened or written it since.
    pub fn is_still_closed(&self, path: &Path) -> bool {
        match &self.source {
            Source::Closed(_, before) => {
                is_closed(path) && Fingerprint::of(path).is_ok_and(|now| now == *before)
            }
            Source::Transaction(..) => true,
        }
    }

    /// True if all that the walk has read belongs to the state that it began with. The lock of a transaction does
    /// not keep a program from copying another file over the database.
    pub fn is_intact(&self, path: &Path) -> bool {
        let overwritten = |left: &Left| left.is_overwritten(path, self.source.file());
        self.is_still_closed(path) && !self.left.as_ref().is_some_and(overwritten)
    }
}

/// True if no WAL, wal-index or journal is beside the database: then its file has all that was committed, and
/// nobody has it open who has read it.
pub fn is_closed(path: &Path) -> bool {
    let beside = [local::wal_path(path), local::shm_path(path), local::journal_path(path)];
    beside.iter().all(|path| {
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    })
}

impl Walk {
    /// A walk that has not begun.
    pub fn register(path: &Path) -> Arc<Walk> {
        let walk = Arc::new(Walk { path: path.to_path_buf(), open: Mutex::new(None) });
        let mut walks = withheld::lock(&WALKS);
        walks.under_way.retain(|known| known.strong_count() > 0);
        walks.under_way.push(Arc::downgrade(&walk));
        walk
    }

    /// The path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the walk's state; `None` once the walk was ended.
    pub fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock()
    }

    /// Ends it, which has come to its end if `is_whole`. Returns which file a last connection is still to be closed
    /// of, as the walk was in the way of that.
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

    /// Leaves what is open as it is: it is of an SQLite that was shut down.
    pub fn abandon(&self) {
        std::mem::forget(self.open.lock().take());
    }
}

/// Ends all walks, as before a fork; no other one is begun until the answer is dropped. `None` where that
/// cannot be done in time.
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

/// Counts a walk that was ended because somebody opened or closed the database.
pub fn count_ended(path: &Path) {
    *withheld::lock(&WALKS).ended.entry(path.to_path_buf()).or_default() += 1;
}

/// True if a walk of this database may be one that the next connection of the application ends.
pub fn may_be_ended(path: &Path) -> bool {
    withheld::lock(&WALKS).ended(path) < ENDED_MAX
}

/// Ends the walks of one database, as before a connection gets it to itself: each holds a lock on the
/// file.
pub fn end_of(path: &Path) {
    for walk in walks_of(path) {
        *walk.open.lock() = None;
    }
}

/// The last connection of the application is being closed. Without a walk SQLite now copies all of the WAL
/// into the database and removes it, and whoever copies or replaces the file next relies on that.
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

/// A connection of the application has opened this file, and knows nothing of its WAL yet.
///
/// A walk over another file of that name, or over one whose content somebody has replaced while nobody had it
/// open, has the wal-index mapped too: SQLite would truncate it beneath the walk, or take it for that of the new
/// content. One without a transaction cannot keep what it reads from being overwritten.
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

/// Runs what opens a database that the application has closed: a connection of the application to another file
/// of that name looks at no WAL meanwhile ([`opens`]).
pub fn in_turn<T>(path: &Path, work: impl FnOnce() -> T) -> T {
    let walk = Walk::register(path);
    let _begins = walk.open.lock();
    work()
}
