//! The host's SQLite as alive or shut down: threads of walferry call it only while it is alive.
//!
//! An application may call `sqlite3_shutdown()` once it has closed all its connections, and then configure
//! SQLite anew. Nobody is told of that, and almost any call initializes SQLite again. While a connection of the
//! application is open there is no shutdown. Without one, a mark tells: an automatic extension that does
//! nothing. `sqlite3_shutdown()` forgets it with all others, and to ask for it initializes nothing.
//!
//! Where the mark is gone nothing is called until the application opens or loads something again. So it is,
//! too, where the application has called `sqlite3_reset_auto_extension()` and nothing else.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

use walferry::withheld::{self, Guard};

use crate::api::{self, Api};
use crate::ffi;

/// The application's open connections in this process, and its open files of replicated databases.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Locked while the mark is away for a moment, and while something is opened. SQLite calls the automatic
/// extensions of a new connection in turn, and must not pass one over because the mark was moved.
pub static TURN: Mutex<()> = Mutex::new(());

fn turn() -> Guard<()> {
    withheld::lock(&TURN)
}

/// Something of the application's was opened.
pub fn opened() {
    let _turn = turn();
    OPEN.fetch_add(1, Ordering::AcqRel);
}

/// Something of the application's was closed.
pub fn closed() {
    let less = |open: usize| Some(open.saturating_sub(1));
    let _ = OPEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
}

/// Sets the mark. Called by threads of the application alone, while they load or open something.
pub fn mark(api: &Api) {
    let _turn = turn();
    ffi::set_mark(api);
}

/// True if SQLite may be called by a thread that holds none of its connections.
pub fn may_call() -> bool {
    OPEN.load(Ordering::Acquire) > 0 || is_marked(&turn())
}

/// The same for a line of the log, which may be written while the mark is looked for: then it is false.
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

/// The mark can only be looked for by taking it away.
fn is_marked(_turn: &impl Deref<Target = ()>) -> bool {
    // What was opened before the turn may not have been called by all extensions yet.
    if OPEN.load(Ordering::Acquire) > 0 {
        return true;
    }
    api::api().is_some_and(|api| ffi::take_mark(api) && ffi::set_mark(api))
}

/// Nothing of the parent's is the child's to close.
pub fn in_child() {
    OPEN.store(0, Ordering::Release);
}
