//! The border between SQLite and walferry: a VFS around the host's own.
//!
//! What passes through: every call of every file. What is acted on: the locks of a replicated
//! database's wal-index (a commit is the moment in which the write lock is given up; a restart of
//! the WAL is a request for all read slots at once), its file lock, and writes outside the WAL.
//!
//! `ffi.rs` holds the callbacks, `api.rs` the host's functions; `shim.rs` decides, `pin.rs` keeps
//! other processes from overwriting the WAL, `reader.rs` reads the database as a whole.

mod api;
mod ffi;
mod functions;
mod log_sink;
mod pin;
mod reader;
mod shim;

use std::sync::Once;

pub use ffi::sqlite3_walferry_init;

/// What happens once in a process when the extension is loaded: no thread, no file, no request.
fn start(api: &'static api::Api) -> Result<(), String> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log_sink::install();
        walferry::process::set_spawn_guard(api::without_signals);
    });
    let default = std::env::var("WALFERRY_DEFAULT").map_or(true, |value| value != "0");
    ffi::register_vfs(api, default)
}

/// Has what is not shipped yet shipped when the process exits; once.
fn drain_at_exit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| api::at_exit(ffi::at_exit));
}

fn drain() {
    log_sink::leave_host_log();
    if let Some(process) = walferry::process::Process::current() {
        process.drain();
    }
}
