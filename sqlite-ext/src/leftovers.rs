//! The empty WAL that a connection of ours leaves behind.
//!
//! Our connections put databases into WAL mode, and read them as a whole. SQLite removes -wal and -shm with
//! the last connection that has the WAL open; where that is one of ours, and the application's has read
//! nothing, they would stay. An empty WAL holds no commit: a connection that closes as any other does has
//! SQLite remove both.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use walferry::local::state::Fingerprint;

use crate::api::{Api, BaseVfs, OwnConnection};
use crate::{ffi, inside, registry, walk};

/// A removal is repeated where another connection of ours was just closing.
const ATTEMPTS: u32 = 3;

/// Removals under way, and begun.
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);
static BEGUN: AtomicU32 = AtomicU32::new(0);

/// Has SQLite remove an empty WAL that no connection of this process has open. Any other process that has it
/// open keeps it, as from every close.
pub fn remove(api: &'static Api, vfs: BaseVfs, path: &Path) {
    remove_if(api, vfs, path, is_left);
}

/// Does what SQLite could not do when the last connection was closed, as a walk had the database open: copies all
/// of the WAL into it, and removes the WAL. Not where another file than `id` has its name by now.
pub fn close_for_others(api: &'static Api, vfs: BaseVfs, path: &Path, id: (u64, u64)) {
    let is_it = |path: &Path| Fingerprint::of(path).is_ok_and(|now| now.file == id);
    let is_there = |path: &Path| walferry::local::shm_path(path).exists() && is_it(path);
    if let Some(_inside) = inside::in_sqlite() {
        // Most of the work, which a fork may end, before it is anybody's way.
        walk::in_turn(path, || {
            if is_there(path)
                && !is_open(path)
                && !ffi::stands_above(api)
                && let Ok(connection) = OwnConnection::open(api, vfs.0, path)
                && is_it(path)
            {
                let _ = connection.checkpoint(c"PRAGMA main.wal_checkpoint(PASSIVE)");
            }
        });
    }
    remove_if(api, vfs, path, is_there);
}

fn remove_if(api: &'static Api, vfs: BaseVfs, path: &Path, is_there: impl Fn(&Path) -> bool) {
    if !is_there(path) || is_open(path) || ffi::stands_above(api) {
        return;
    }
    let Some(_inside) = inside::in_sqlite() else { return };
    UNDER_WAY.fetch_add(1, Ordering::AcqRel);
    BEGUN.fetch_add(1, Ordering::AcqRel);
    for _ in 0..ATTEMPTS {
        walk::in_turn(path, || {
            if is_there(path)
                && !is_open(path)
                && let Ok(connection) = OwnConnection::open(api, vfs.0, path)
                && connection.query(c"SELECT count(*) FROM sqlite_master").is_ok()
            {
                connection.close_as_any_other();
            }
        });
    }
    UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
}

/// True if an empty WAL is there, or a wal-index without a WAL: another thread of ours had that mapped when
/// the WAL was removed.
fn is_left(path: &Path) -> bool {
    match std::fs::metadata(walferry::local::wal_path(path)) {
        Ok(wal) => wal.len() == 0,
        Err(_) => walferry::local::shm_path(path).exists(),
    }
}

fn is_open(path: &Path) -> bool {
    registry::find(path).is_some_and(|shimmed| shimmed.is_open())
}

/// Returns a mark for [`is_in_the_way`].
pub fn mark() -> u32 {
    BEGUN.load(Ordering::Acquire)
}

/// True if a removal took place since the mark, whose locks a connection may have met. Waits for its end.
pub fn is_in_the_way(mark: u32) -> bool {
    let met = UNDER_WAY.load(Ordering::Acquire) > 0 || BEGUN.load(Ordering::Acquire) != mark;
    while met && UNDER_WAY.load(Ordering::Acquire) > 0 {
        std::thread::yield_now();
    }
    met
}
