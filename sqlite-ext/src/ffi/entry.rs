//! Where SQLite enters: the extension's entry point, its SQL functions, and what is called at the
//! start of a connection, at a fork and at the end of the process.

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

/// Wraps the file of a database that was opened before the extension was loaded.
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
        // Not the one underneath ours: this connection may have named another, which changes what is written.
        let Some(vfs) = api.vfs_of(db, schema).or_else(|| api.find_base_vfs()) else { return };
        let lookup = UriLookup::new(|key| api.uri_parameter(name, key));
        opening::look_at_parameters(&path, &api.uri_keys(name));
        // It is open already: what cannot work is in the log and in the status.
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

/// The handle of a connection's own file, by the file and not by its path. `None` where the file was
/// not opened through walferry, or cannot be replicated.
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
            // An error may hold a name, or words of a server.
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

/// Defines the SQL functions of a connection of the application's, and counts it until it is closed.
fn define_functions(api: &Api, db: api::Connection) -> Result<(), String> {
    use api::Trust::{Direct, Innocuous};
    let (name, counted) = (c"walferry_version", Some(closed as _));
    alive::opened();
    // SAFETY: the function that is called at the end takes this data for a number, and stays mapped.
    let first = unsafe { api.define_until(db, name, 0, Innocuous, version, generation(), counted) };
    // Those that wait, or tell of this machine and its replicas, are not for a view or trigger of a
    // database that somebody else made.
    let all = [
        first,
        api.define(db, c"walferry_txid", 0, Direct, txid),
        api.define(db, c"walferry_lag", 0, Direct, lag),
        api.define(db, c"walferry_status", 0, Direct, status),
        api.define(db, c"walferry_ping", -1, Direct, ping),
        api.define(db, c"walferry_sync", -1, Direct, sync_now),
        api.define(db, c"walferry_wait", -1, Direct, wait),
    ];
    // Busy: the connection has them, and is running a statement, which may be the one that loads.
    match all.into_iter().find(|rc| !matches!(*rc, SQLITE_OK | SQLITE_BUSY)) {
        None => Ok(()),
        Some(rc) => Err(format!("SQLite refused walferry's SQL functions (error {rc})")),
    }
}

/// The process in the line of forks.
fn generation() -> *mut c_void {
    std::ptr::without_provenance_mut(inside::generation() as usize)
}

/// Called by SQLite when a connection is closed of this process in the line of forks.
unsafe extern "C" fn closed(of: *mut c_void) {
    if of == generation() {
        guarded((), alive::closed);
    }
}

/// The mark of [`alive`].
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

/// Takes it away. False where it was not there.
pub fn take_mark(api: &Api) -> bool {
    api.not_on_open(as_extension(nothing))
}

type OnOpen = unsafe extern "C" fn(
    api::Connection,
    *mut *mut c_char,
    *const sys::sqlite3_api_routines,
) -> c_int;

/// An automatic extension, as it is registered.
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
            // Where that fails, the connection remembers the error, and is not opened.
            let _ = define_functions(api, db);
            functions::prepare_connection(api, db);
        });
    }
    SQLITE_OK
}

/// Takes part in what is opened from now on, or in nothing.
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
        // Behind the others: it is moved when it is looked for.
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

/// The same under the name that SQLite tries first, so that the library loads whatever its file is called.
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

/// Called by the thread that forks, before and after.
pub extern "C" fn before_fork() {
    guarded((), fork::prepare);
}

/// See [`before_fork`].
pub extern "C" fn after_fork_in_parent() {
    guarded((), fork::in_parent);
}

/// See [`before_fork`].
pub extern "C" fn after_fork_in_child() {
    guarded((), fork::in_child);
}

/// Called when the process exits.
pub extern "C" fn at_exit() {
    guarded((), crate::drain);
}
