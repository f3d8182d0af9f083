//! The border between SQLite and walferry: a VFS around the host's own.
//!
//! Every call of every file passes through this VFS. walferry acts on three kinds of calls of a replicated
//! database:
//! - Locks of the wal-index. The end of the write lock shows a commit. A request for all read slots at once
//!   shows a restart of the WAL.
//! - The lock of the database file.
//! - Writes outside the WAL.
//!
//! Modules:
//! - `ffi/` holds the callbacks, `api/` the host's functions.
//! - `opening.rs` decides whether a database that is being opened is replicated.
//! - `main_file.rs` and `wal_file.rs` act on the calls. `handle.rs` has the state of a connection,
//!   `registry.rs` that of a database.
//! - `edge.rs` gives the sealer access to a database.
//! - `pin.rs` keeps other processes from overwriting the WAL.
//! - `reader.rs` and `alone.rs` read the database as a whole, in walks. `walk.rs` ends a walk that is in the
//!   way of a connection or a fork.
//! - `fork.rs` makes a fork harmless for the threads that are in the host's SQLite, which `inside.rs` counts.
//! - `alive.rs` tells whether the application has shut SQLite down. walferry's threads do not call SQLite
//!   then.

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

/// Runs once per process, when the extension is loaded. Starts no thread, opens no file and sends no request.
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

fn register(api: &'static api::Api) -> Result<(), String> {
    ffi::register_vfs(api, is_default())
}

/// True if walferry is to be the default VFS.
fn is_default() -> bool {
    // An empty value counts as not set.
    !walferry::environment::text("WALFERRY_DEFAULT")
        .is_some_and(|value| walferry::settings::is_off(&value))
}

/// Registers, once, the function that ships the rest when the process exits.
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
