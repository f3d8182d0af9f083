//! What makes a fork harmless, in parent and child.
//!
//! A child inherits SQLite's notes on which locks the process holds, but not the locks. So before a
//! fork everything of ours gives its locks up: the pins, and the connections that checkpoint a database,
//! or read it as a whole. The parent takes the pins again; a walk that was under way begins anew. Our threads do
//! not exist in the child, and what they had is abandoned there: a database that is opened in the
//! child starts threads of its own. Connections that were open at the fork must not be used in the
//! child, as SQLite says (<https://sqlite.org/howtocorrupt.html#_carrying_an_open_database_across_a_fork_>);
//! there they are passed through, so that closing them does no harm.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, RwLockWriteGuard, Weak};

use walferry::process::{self, Forking};

use crate::alive;
use crate::api;
use crate::configured::{self, Known};
use crate::ffi;
use crate::inherited;
use crate::inside;
use crate::reader;
use crate::registry::{self, Adopted, Databases, Shimmed};

thread_local! {
    /// What the forking thread holds until the fork is done.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Locks of the standard library's kind: unlike others they can be given up in the child without
/// touching anything that another thread may have held at the fork.
struct Held {
    pinned: Vec<Arc<Shimmed>>,
    library: Forking,
    databases: MutexGuard<'static, Databases>,
    _adopted: RwLockWriteGuard<'static, Adopted>,
    _configured: MutexGuard<'static, Known>,
    _in_sqlite: RwLockWriteGuard<'static, ()>,
    _inherited: MutexGuard<'static, Option<inherited::Known>>,
    _mark: MutexGuard<'static, ()>,
    _renewal: MutexGuard<'static, ()>,
    _registering: MutexGuard<'static, ()>,
    _walks: MutexGuard<'static, reader::Walks>,
}

/// Says, once, that a connection of the parent is used to write: called for connections that are
/// passed through.
pub fn warn_if_inherited() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if inside::generation() > 0 && !TOLD.swap(true, Ordering::Relaxed) {
        log::error!(
            "a connection that was opened before fork() is written to in the child: this is not \
             replicated from here, and SQLite forbids it; open databases after the fork"
        );
    }
}

/// Before the fork, in the thread that forks.
pub fn prepare() {
    let registering = ffi::registering();
    let renewal = registry::renewal();
    let inherited = inherited::known();
    let in_sqlite = inside::outside();
    let mark = alive::turn();
    let adopted = registry::adopted_files();
    let databases = registry::databases();
    let all = databases.iter().flat_map(|databases| databases.values());
    let mut pinned = Vec::new();
    for shimmed in all.filter_map(Weak::upgrade) {
        *shimmed.keeper.lock() = None;
        if shimmed.pin.lock().take().is_some() {
            pinned.push(shimmed);
        }
    }
    let walks = reader::end_walks();
    let configured = configured::known();
    let library = process::before_fork();
    let held = Held {
        pinned,
        library,
        databases,
        _adopted: adopted,
        _configured: configured,
        _in_sqlite: in_sqlite,
        _inherited: inherited,
        _mark: mark,
        _renewal: renewal,
        _registering: registering,
        _walks: walks,
    };
    HELD.with(|cell| *cell.borrow_mut() = Some(held));
}

/// After it, in the parent.
pub fn in_parent() {
    let Some(held) = HELD.with(|cell| cell.borrow_mut().take()) else { return };
    for shimmed in &held.pinned {
        shimmed.repin();
    }
}

/// After it, in the child.
pub fn in_child() {
    inside::next_generation();
    alive::in_child();
    let Some(held) = HELD.with(|cell| cell.borrow_mut().take()) else { return };
    let Held { pinned, library, mut databases, .. } = held;
    // Not dropped: what they hold is the parent's.
    std::mem::forget(pinned);
    *databases = None;
    api::close_inherited(&library.in_child());
}
