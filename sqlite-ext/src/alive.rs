//! Tells whether the host's SQLite is alive or shut down. Threads of walferry call SQLite only while it is
//! alive.
//!
//! An application may call `sqlite3_shutdown()` after it has closed all its connections, and then configure
//! SQLite again. SQLite announces no shutdown, and almost any call initializes SQLite again. While a
//! connection of the application is open, SQLite is not shut down. Without an open connection, a mark tells:
//! an automatic extension that does nothing. `sqlite3_shutdown()` forgets all automatic extensions, and a
//! query for the mark initializes nothing.
//!
//! If the mark is gone, walferry's threads do not call SQLite until the application opens or loads something
//! again. The mark is also gone if the application has called only `sqlite3_reset_auto_extension()`.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

use walferry::withheld::{self, Guard};

use crate::api::{self, Api};
use crate::ffi;

/// Number of the application's open connections in this process, plus its open files of replicated databases.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Held while the mark is removed for a moment, and while an opened connection or file is counted. SQLite
/// calls the automatic extensions of a new connection in turn, and must not skip one because the mark was
/// moved.
pub static TURN: Mutex<()> = Mutex::new(());

fn turn() -> Guard<()> {
    withheld::lock(&TURN)
}

/// Notes that the application has opened a connection or a file.
pub fn opened() {
    let _turn = turn();
    OPEN.fetch_add(1, Ordering::AcqRel);
}

/// Notes that the application has closed a connection or a file.
pub fn closed() {
    let less = |open: usize| Some(open.saturating_sub(1));
    let _ = OPEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
}

/// Sets the mark. Only threads of the application call this, while they load the extension or open a file.
pub fn mark(api: &Api) {
    let _turn = turn();
    ffi::set_mark(api);
}

/// True if a thread without a SQLite connection of the application may call SQLite.
pub fn may_call() -> bool {
    OPEN.load(Ordering::Acquire) > 0 || is_marked(&turn())
}

/// True if a line may go to the host's log. Does not wait: the thread that looks for the mark may log a line
/// itself, and gets `false`.
pub fn may_log() -> bool {
    if OPEN.load(Ordering::Acquire) > 0 {
        return true;
    }
    match TURN.try_lock() {
        Ok(turn) => is_marked(&turn),
        Err(TryLockError::Poisoned(turn)) => is_marked(turn.get_ref()),
        Err(TryLockError::WouldBlock) => false,
    }
}

/// Looks for the mark. The only way to find the mark is to remove it and set it again.
fn is_marked(_turn: &impl Deref<Target = ()>) -> bool {
    // SQLite may still be calling the extensions of a connection that was counted before this turn.
    if OPEN.load(Ordering::Acquire) > 0 {
        return true;
    }
    api::api().is_some_and(|api| ffi::take_mark(api) && ffi::set_mark(api))
}

/// Forgets the parent's connections and files: the child does not close them.
pub fn in_child() {
    OPEN.store(0, Ordering::Release);
}
