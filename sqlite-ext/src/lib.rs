//! The border between SQLite and walferry: a VFS around the host's own.
//!
//! What passes through: every call of every file. What is acted on: the locks of a replicated
//! database's wal-index (a commit is the moment in which the write lock is given up; a restart of
//! the WAL is a request for all read slots at once), its file lock, and writes outside the WAL.
//!
//! `ffi/` holds the callbacks, `api/` the host's functions. `opening.rs` says what becomes of a
//! database that is being opened. `main_file.rs` and `wal_file.rs` decide, on what `handle.rs` knows
//! of a connection and `registry.rs` of a database. `edge.rs` is the sealer's way to a database:
//! `pin.rs` keeps other processes from overwriting the WAL, `reader.rs` and `alone.rs` read the database as
//! a whole, in walks that `walk.rs` ends where they are in the way. `fork.rs` makes a fork harmless, for
//! what is `inside.rs` the host's SQLite, which nothing of ours calls once it is not `alive.rs` any more.

mod alive;
mod alone;
mod api;
mod beneath;
mod configured;
mod edge;
mod ffi;
mod fork;
mod functions;
mod handle;
mod header;
mod inherited;
mod inside;
mod leftovers;
mod log_file;
mod log_sink;
mod main_file;
mod opening;
mod pin;
mod pinned_reader;
mod reader;
mod registry;
mod wal_file;
mod walk;

use std::sync::Once;

pub use ffi::{sqlite3_extension_init, sqlite3_walferry_init};

/// What happens once in a process when the extension is loaded: no thread, no file, no request.
fn start(api: &'static api::Api) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if api::is_set_uid() {
            walferry::environment::ignore();
        }
        configured::remember_environment();
        log_sink::install();
        walferry::process::set_spawn_guard(api::without_signals);
        api.keep_mapped();
        api::at_fork(ffi::before_fork, ffi::after_fork_in_parent, ffi::after_fork_in_child);
    });
}

/// Registers the VFS.
fn register(api: &'static api::Api) -> Result<(), String> {
    ffi::register_vfs(api, is_default())
}

/// Whether walferry is to be the default VFS.
fn is_default() -> bool {
    // Set to nothing it says nothing.
    !walferry::environment::text("WALFERRY_DEFAULT")
        .is_some_and(|value| walferry::settings::is_off(&value))
}

/// Has what is not shipped yet shipped when the process exits; once.
fn drain_at_exit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| api::at_exit(ffi::at_exit));
}

fn drain() {
    log_sink::leave_host_log();
    if inside::is_cut_off() {
        return;
    }
    if let Some(process) = walferry::process::Process::current() {
        process.drain();
    }
}
