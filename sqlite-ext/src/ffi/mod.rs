//! The callbacks that SQLite calls: the VFS's and the files' methods, the SQL functions, and the
//! entry point. Each only finds its object, runs safe code behind `catch_unwind`, and answers with
//! an SQLite code. What is not walferry's business goes straight to the VFS underneath.

mod entry;
mod file;
mod vfs;

use std::panic::{AssertUnwindSafe, catch_unwind};

use libsqlite3_sys as sys;
use walferry::withheld::Withheld;

pub use entry::{
    after_fork_in_child, after_fork_in_parent, at_exit, before_fork, handle_of, names_replica,
    set_mark, sqlite3_extension_init, sqlite3_walferry_init, take_mark,
};
pub use vfs::{REGISTERING, Target, register_vfs, stands_above};

type File = *mut sys::sqlite3_file;
type Vfs = *mut sys::sqlite3_vfs;

/// Runs safe code; a panic becomes this answer instead of crossing into SQLite. What it logs is given to the
/// host at its end, when none of our locks is held.
fn guarded<T>(on_panic: T, body: impl FnOnce() -> T) -> T {
    let _withheld = Withheld::new();
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(on_panic)
}
