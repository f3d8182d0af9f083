//! The extension's entry point, its SQL functions, and the callbacks for a new connection, a fork and the end
//! of the process.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use libsqlite3_sys as sys;

use super::file::{ADOPTED_2, ADOPTED_3, CONTROL_HANDLE, is_ours};
use super::{Target, guarded, vfs};
use crate::alive;
use crate::api::{self, Api, Failure, RawFile, SQLITE_BUSY, SQLITE_ERROR, SQLITE_OK};
use crate::fork;
use crate::functions;
use crate::handle::Handle;
use crate::inside;
use crate::opening::{self, Opening, UriLookup};
use crate::registry;

/// Takes over the file of a database that was opened before the extension was loaded.
fn adopt(api: &'static Api, db: api::Connection, schema: &CStr) {
    let name = api.file_name(db, schema);
    // SAFETY: the name is SQLite's own, with its parameters behind it; the file is open, and its
    // connection is in the hands of this thread while the extension is loaded.
    unsafe {
        let Some(path) = api::path_of(name) else { return };
        let Some(file) = api.file_of(db, schema).map(NonNull::as_ptr) else { return };
        let methods = (*file).pMethods;
        if methods.is_null() || is_ours(methods) {
            return;
        }
        // Not always the VFS underneath ours: the connection may have named another VFS, which changes the
        // bytes that are written.
        let Some(vfs) = api.vfs_of(db, schema).or_else(|| api.find_base_vfs()) else { return };
        let lookup = UriLookup::new(|key| api.uri_parameter(name, key));
        opening::look_at_parameters(&path, &api.uri_keys(name));
        // The database is open already, so an error is only in the log and in the status.
        let Opening::Replicated(replicated) = opening::replicated(&path, &lookup, vfs) else {
            return;
        };
        let real = RawFile { file, methods };
        let Some(handle) = Handle::open_main(Target::Main(replicated), real, true) else { return };
        registry::adopt(file as usize, handle);
        (*file).pMethods =
            if real.version() >= 3 { &raw const ADOPTED_3 } else { &raw const ADOPTED_2 };
    }
}

/// Returns the handle of a connection's own file. Found by the file and not by its path. `None` if the file
/// was not opened through walferry, or cannot be replicated.
pub fn handle_of(api: &Api, db: api::Connection, schema: &CStr) -> Option<Arc<Handle>> {
    let handle: *const Handle = api.ask_file(db, schema, CONTROL_HANDLE)?;
    // SAFETY: our own files answer with a counted pointer, or null.
    (!handle.is_null()).then(|| unsafe { Arc::from_raw(handle) })
}

/// True if a replica is named for a connection's file, by its URI, the environment or the
/// configuration file.
pub fn names_replica(api: &Api, db: api::Connection, schema: &CStr) -> bool {
    let name = api.file_name(db, schema);
    // SAFETY: the name is SQLite's own, with its parameters behind it.
    unsafe {
        let lookup = UriLookup::new(|key| api.uri_parameter(name, key));
        api::path_of(name).is_some_and(|path| opening::names_replica(&path, &lookup))
    }
}

macro_rules! sql_function {
    ($name:ident => $body:path) => {
        unsafe extern "C" fn $name(
            context: *mut sys::sqlite3_context,
            count: c_int,
            values: *mut *mut sys::sqlite3_value,
        ) {
            let Some(api) = api::api() else { return };
            // SAFETY: SQLite gives as many values as it says.
            let arguments = unsafe { api.integers(count, values) };
            let call = functions::Call { api, db: api.connection_of(context) };
            let panicked = Err("an internal error of walferry".into());
            let answer = guarded(panicked, || match inside::is_cut_off() {
                true => Err(opening::CUT_OFF.into()),
                false => $body(&call, &arguments),
            });
            // The message may hold a file name, or words of a server.
            api.result(context, answer.map_err(Failure::shown));
        }
    };
}

sql_function!(version => functions::version);
sql_function!(txid => functions::txid);
sql_function!(lag => functions::lag);
sql_function!(status => functions::status);
sql_function!(ping => functions::ping);
sql_function!(sync_now => functions::sync);
sql_function!(wait => functions::wait);

/// Defines the SQL functions of one of the application's connections, and counts the connection until it is
/// closed.
fn define_functions(api: &Api, db: api::Connection) -> Result<(), String> {
    use api::Trust::{Direct, Innocuous};
    let (name, counted) = (c"walferry_version", Some(closed as _));
    alive::opened();
    // SAFETY: the function that is called at the end takes this data for a number, and stays mapped.
    let first = unsafe { api.define_until(db, name, 0, Innocuous, version, generation(), counted) };
    // Functions that wait, or that tell of this machine and its replicas, are not for a view or trigger of a
    // foreign database.
    let all = [
        first,
        api.define(db, c"walferry_txid", 0, Direct, txid),
        api.define(db, c"walferry_lag", 0, Direct, lag),
        api.define(db, c"walferry_status", 0, Direct, status),
        api.define(db, c"walferry_ping", -1, Direct, ping),
        api.define(db, c"walferry_sync", -1, Direct, sync_now),
        api.define(db, c"walferry_wait", -1, Direct, wait),
    ];
    // SQLITE_BUSY: the connection has the functions already, and runs a statement, perhaps the one that loads
    // the extension.
    match all.into_iter().find(|rc| !matches!(*rc, SQLITE_OK | SQLITE_BUSY)) {
        None => Ok(()),
        Some(rc) => Err(format!("SQLite refused walferry's SQL functions (error {rc})")),
    }
}

/// Returns the generation of the process ([`inside::generation`]) as a pointer.
fn generation() -> *mut c_void {
    std::ptr::without_provenance_mut(inside::generation() as usize)
}

/// Called by SQLite when a connection is closed. Ignores connections from before a fork.
unsafe extern "C" fn closed(of: *mut c_void) {
    if of == generation() {
        guarded((), alive::closed);
    }
}

/// Does nothing: this extension is the mark of [`alive`].
unsafe extern "C" fn nothing(
    _db: api::Connection,
    _message: *mut *mut c_char,
    _routines: *const sys::sqlite3_api_routines,
) -> c_int {
    SQLITE_OK
}

/// Sets the mark of [`alive`]. May initialize SQLite.
pub fn set_mark(api: &Api) -> bool {
    api.on_open(as_extension(nothing)) == SQLITE_OK
}

/// Removes the mark of [`alive`]. `false` if it was not set.
pub fn take_mark(api: &Api) -> bool {
    api.not_on_open(as_extension(nothing))
}

type OnOpen = unsafe extern "C" fn(
    api::Connection,
    *mut *mut c_char,
    *const sys::sqlite3_api_routines,
) -> c_int;

/// Returns the function with the type that a registration asks for.
fn as_extension(called: OnOpen) -> unsafe extern "C" fn() {
    // SAFETY: SQLite calls an automatic extension with an entry point's arguments, whatever type the
    // registration asks for (https://sqlite.org/c3ref/auto_extension.html).
    unsafe { std::mem::transmute::<OnOpen, unsafe extern "C" fn()>(called) }
}

/// Called by SQLite for each connection that is opened after the extension was loaded.
unsafe extern "C" fn on_open(
    db: api::Connection,
    _message: *mut *mut c_char,
    _routines: *const sys::sqlite3_api_routines,
) -> c_int {
    if let Some(api) = api::api().filter(|_| !api::is_own() && !inside::is_cut_off()) {
        guarded((), || {
            // If this fails, the connection remembers the error, and its open fails.
            let _ = define_functions(api, db);
            functions::prepare_connection(api, db);
        });
    }
    SQLITE_OK
}

/// Registers the automatic extension and the VFS. If the VFS cannot be registered, removes the extension
/// again, unless an earlier load has registered both.
fn take_part(api: &'static Api) -> Result<(), String> {
    let known = vfs::is_registered();
    match api.on_open(as_extension(on_open)) {
        SQLITE_OK => {}
        rc => return Err(format!("SQLite refused the automatic extension (error {rc})")),
    }
    crate::register(api).inspect_err(|_| {
        if !known {
            api.not_on_open(as_extension(on_open));
        }
    })
}

/// The extension's entry point: `load_extension('walferry')` finds it by this name.
///
/// # Safety
/// Called by SQLite, as <https://sqlite.org/loadext.html> says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_walferry_init(
    db: api::Connection,
    message: *mut *mut c_char,
    routines: *const sys::sqlite3_api_routines,
) -> c_int {
    let result = guarded(Err("an internal error of walferry".to_string()), || {
        // SAFETY: vouched for by SQLite.
        let api = unsafe { api::load(routines)? };
        crate::start(api);
        define_functions(api, db)?;
        if inside::is_cut_off() {
            return Ok(());
        }
        take_part(api)?;
        // Set after the other automatic extensions, since each look for the mark moves it to the end.
        alive::mark(api);
        adopt(api, db, c"main");
        functions::prepare_connection(api, db);
        Ok(())
    });
    match result {
        Ok(()) => sys::SQLITE_OK_LOAD_PERMANENTLY,
        Err(why) => {
            // SAFETY: SQLite frees the message, so it must be of SQLite's own memory.
            unsafe {
                if !message.is_null() {
                    *message = api::message(routines, &why);
                }
            }
            SQLITE_ERROR
        }
    }
}

/// The entry point under the name that SQLite tries first, so that the library loads under any file name.
///
/// # Safety
/// As [`sqlite3_walferry_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_extension_init(
    db: api::Connection,
    message: *mut *mut c_char,
    routines: *const sys::sqlite3_api_routines,
) -> c_int {
    // SAFETY: vouched for by the caller.
    unsafe { sqlite3_walferry_init(db, message, routines) }
}

/// Called by the forking thread, before the fork.
pub extern "C" fn before_fork() {
    guarded((), fork::prepare);
}

/// Called by the forking thread after the fork, in the parent.
pub extern "C" fn after_fork_in_parent() {
    guarded((), fork::in_parent);
}

/// Called by the forking thread after the fork, in the child.
pub extern "C" fn after_fork_in_child() {
    guarded((), fork::in_child);
}

/// Called when the process exits.
pub extern "C" fn at_exit() {
    guarded((), crate::drain);
}
