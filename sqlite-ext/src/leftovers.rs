//! Removes the empty WAL that a connection of our own leaves behind.
//!
//! Our connections put databases into WAL mode, and read them as a whole. SQLite removes -wal and -shm with
//! the last connection that has the WAL open. If that is one of ours, and the application's has read nothing,
//! both files would stay. An empty WAL holds no commit, so a connection of ours that closes normally makes
//! SQLite remove both files.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use walferry::local::state::Fingerprint;

use crate::api::{Api, BaseVfs, OwnConnection};
use crate::{ffi, inside, registry, walk};

/// A removal is repeated, since another connection of ours may have been closing.
const ATTEMPTS: u32 = 3;

/// Numbers of removals under way, and of removals begun.
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);
static BEGUN: AtomicU32 = AtomicU32::new(0);

/// Makes SQLite remove an empty WAL that no connection of this process has open. If another process has the
/// WAL open, the WAL stays, as after any close.
pub fn remove(api: &'static Api, vfs: BaseVfs, path: &Path) {
    remove_if(api, vfs, path, is_left);
}

/// Copies all of the WAL into the database and removes the WAL, as SQLite does when the last connection
/// closes. SQLite could not do so then, because a walk had the database open. Does nothing if the path now
/// names another file than `id`.
pub fn close_for_others(api: &'static Api, vfs: BaseVfs, path: &Path, id: (u64, u64)) {
    let is_it = |path: &Path| Fingerprint::of(path).is_ok_and(|now| now.file == id);
    let is_there = |path: &Path| walferry::local::shm_path(path).exists() && is_it(path);
    if let Some(_inside) = inside::in_sqlite() {
        // Does most of the work while no other connection has to wait for it. A fork may interrupt this
        // checkpoint.
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

/// True if there is an empty WAL, or a wal-index without a WAL. The wal-index stays if another thread of ours
/// had it mapped when the WAL was removed.
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

/// True if a removal ran since the mark, so that a connection may have met the locks of the removal. Waits
/// until no removal is under way.
pub fn is_in_the_way(mark: u32) -> bool {
    let met = UNDER_WAY.load(Ordering::Acquire) > 0 || BEGUN.load(Ordering::Acquire) != mark;
    while met && UNDER_WAY.load(Ordering::Acquire) > 0 {
        std::thread::yield_now();
    }
    met
}
