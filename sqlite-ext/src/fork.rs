//! Makes a fork harmless, in parent and child.
//!
//! A child inherits SQLite's notes on which locks the process holds, but not the locks. So walferry gives up
//! its locks before a fork: the pins, and the connections that checkpoint a database or read it. The parent
//! takes the pins again, and a walk that was under way starts again.
//!
//! walferry's threads do not exist in the child, and the child abandons what they had. A database that is
//! opened in the child starts new threads. Connections that were open at the fork must not be used in the
//! child, as SQLite says (<https://sqlite.org/howtocorrupt.html#_carrying_an_open_database_across_a_fork_>).
//! In the child their calls pass through, so that closing them does no harm.
//!
//! A fork waits for a limited time. If something is not given up in time, the parent continues as if it had
//! not forked. The child then refuses to open the parent's databases ([`inside::is_cut_off`]). Without that
//! error, the child's SQLite would rely on locks that the child does not have.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLockWriteGuard, Weak};
use std::time::Duration;

use walferry::process::{self, Forking};
use walferry::withheld::{self, Deadline, Guard};

use crate::alive;
use crate::api;
use crate::configured::{self, Known};
use crate::ffi;
use crate::inherited;
use crate::inside::{self, Outside};
use crate::registry::{self, Adopted, Databases, Shimmed};
use crate::walk;

thread_local! {
    /// Locks that the forking thread holds until the fork is done.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Locks that are held during a fork. They are of the standard library's kind, since the child can unlock
/// those without touching a lock that another thread had at the fork. A field is `None` if the lock could not
/// be taken in time.
struct Held {
    pinned: Vec<Arc<Shimmed>>,
    /// True if all locks were taken and no lock of SQLite's is left.
    is_whole: bool,
    library: Option<Forking>,
    databases: Option<Guard<Databases>>,
    _adopted: Option<withheld::Held<RwLockWriteGuard<'static, Adopted>>>,
    _configured: Option<Guard<Known>>,
    in_sqlite: Option<Outside>,
    _inherited: Option<Guard<Option<inherited::Known>>>,
    _mark: Option<Guard<()>>,
    _renewal: Option<Guard<()>>,
    _registering: Option<Guard<()>>,
    _walks: Option<Guard<walk::Walks>>,
}

/// How long a fork waits for work that other threads of the process have begun. The child is cut off from its
/// parent's databases after that. Such work can last for ever: SQLite may call the host's log meanwhile, and
/// that function may wait for a lock of the forking thread.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a fork waits, even after [`PATIENCE`] is used up, for locks that are only held for moments.
const MOMENT: Duration = Duration::from_millis(200);

/// Logs, once, that a connection of the parent is used to write. Called for connections whose calls pass
/// through.
pub fn warn_if_inherited() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if inside::generation() > 0 && !TOLD.swap(true, Ordering::Relaxed) {
        log::error!(
            "a connection that was opened before fork() is written to in the child: this is not \
             replicated from here, and SQLite forbids it; open databases after the fork"
        );
    }
}

/// Runs before the fork, in the thread that forks.
pub fn prepare() {
    if inside::is_cut_off() {
        return;
    }
    let deadline = Deadline::after(PATIENCE);
    let registering = deadline.lock(&ffi::REGISTERING);
    let renewal = deadline.lock(&registry::RENEWAL);
    let inherited = deadline.lock(&inherited::KNOWN);
    let in_sqlite = inside::outside_until(deadline);
    let deadline = Deadline::after(deadline.left().max(MOMENT));
    let mark = deadline.lock(&alive::TURN);
    let adopted = deadline.write(&registry::ADOPTED);
    let databases = deadline.lock(&registry::DATABASES);
    let (pinned, are_given_up) = match databases.as_deref() {
        Some(Some(databases)) => give_up(databases, deadline),
        found => (Vec::new(), found.is_some()),
    };
    let walks = walk::end_all(deadline);
    let configured = deadline.lock(&configured::CONFIGURED);
    let library = process::before_fork(deadline);
    let is_whole = are_given_up
        && registering.is_some()
        && renewal.is_some()
        && inherited.is_some()
        && in_sqlite.is_some()
        && mark.is_some()
        && adopted.is_some()
        && walks.is_some()
        && configured.is_some()
        && library.is_some();
    let held = Held {
        pinned,
        is_whole,
        library,
        databases,
        _adopted: adopted,
        _configured: configured,
        in_sqlite,
        _inherited: inherited,
        _mark: mark,
        _renewal: renewal,
        _registering: registering,
        _walks: walks,
    };
    HELD.with(|cell| *cell.borrow_mut() = Some(held));
}

/// Gives up the checkpointing connection and the pin of each database. Returns the databases that had a pin,
/// and whether everything was given up in time.
fn give_up(
    databases: &HashMap<PathBuf, Weak<Shimmed>>,
    deadline: Deadline,
) -> (Vec<Arc<Shimmed>>, bool) {
    let (mut pinned, mut is_whole) = (Vec::new(), true);
    for shimmed in databases.values().filter_map(Weak::upgrade) {
        let keeper = shimmed.keeper.lock_until(deadline).map(|mut keeper| *keeper = None);
        let pin = shimmed.pin.lock_until(deadline).map(|mut pin| pin.take().is_some());
        is_whole &= keeper.is_some() && pin.is_some();
        if pin == Some(true) {
            pinned.push(shimmed);
        }
    }
    (pinned, is_whole)
}

/// Runs after the fork, in the parent.
pub fn in_parent() {
    let Some(held) = HELD.with(|cell| cell.borrow_mut().take()) else { return };
    if !held.is_whole {
        log::warn!(
            "a fork did not wait for what other threads had begun, which had not ended in {PATIENCE:?}; \
             the child opens no database that is replicated"
        );
    }
    let deadline = Deadline::after(MOMENT);
    for shimmed in &held.pinned {
        shimmed.repin_until(deadline);
    }
}

/// Runs after the fork, in the child.
pub fn in_child() {
    withheld::forget();
    inside::next_generation();
    alive::in_child();
    let Some(held) = HELD.with(|cell| cell.borrow_mut().take()) else { return };
    let Held { pinned, is_whole, library, mut databases, mut in_sqlite, .. } = held;
    // Not dropped: these entries hold resources of the parent.
    std::mem::forget(pinned);
    if is_whole {
        if let Some(databases) = databases.as_deref_mut() {
            *databases = None;
        }
    } else {
        // The parent's databases stay in the list, since the child must not open them.
        inside::cut_off();
    }
    if let Some(outside) = &mut in_sqlite {
        outside.in_child();
    }
    if let Some(library) = library {
        api::close_inherited(&library.in_child());
    }
}
