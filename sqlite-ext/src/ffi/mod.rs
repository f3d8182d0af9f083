//! The callbacks that SQLite calls: the methods of the VFS and of files, the SQL functions, and the entry
//! point. Each callback only finds its object, runs safe code behind `catch_unwind`, and answers with an
//! SQLite code. All other calls go straight to the VFS underneath.

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

/// Runs safe code. After a panic, returns `on_panic` instead of unwinding into SQLite. The host gets the log
/// lines of the code at its end, when no lock of walferry is held.
fn guarded<T>(on_panic: T, body: impl FnOnce() -> T) -> T {
    let _withheld = Withheld::new();
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(on_panic)
}
