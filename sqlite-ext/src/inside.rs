//! Being inside the host's SQLite, in this process and not in the child of another.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::alive;

/// Held by our threads while they are in the host's SQLite, and across a fork: the child of a fork
/// that happened in the middle of SQLite would find its mutexes locked for ever.
static IN_SQLITE: RwLock<()> = RwLock::new(());
/// How many forks lie between this process and the one that loaded the extension.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Enters the host's SQLite, as a thread of ours. `None` where the application has shut it down.
pub fn in_sqlite() -> Option<RwLockReadGuard<'static, ()>> {
    let inside = IN_SQLITE.read().unwrap_or_else(PoisonError::into_inner);
    alive::may_call().then_some(inside)
}

/// The error of work that needs the host's SQLite.
pub fn shut_down() -> io::Error {
    io::Error::other(
        "the application has shut SQLite down (sqlite3_shutdown); it goes on once the database is opened again",
    )
}

/// The number of this process in the line of forks.
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Waits until none of our threads is in the host's SQLite, and keeps them out.
pub fn outside() -> RwLockWriteGuard<'static, ()> {
    IN_SQLITE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Counts the process among the children of forks.
pub fn next_generation() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}
