//! The host's SQLite: its API pointers, and safe methods for the objects behind pointers.
//!
//! This is one of the two folders with `unsafe`; the other is `ffi/`. The pointers come from the
//! `sqlite3_api_routines` that the host hands to the entry point. Each is checked for null, so that one
//! library file serves every host from SQLite 3.34 on.

mod connection;
mod file;
mod output;
mod process;
mod shm;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use libsqlite3_sys as ffi;
use walferry::shown;

pub use ffi::{
    SQLITE_BUSY, SQLITE_ERROR, SQLITE_FCNTL_CKPT_DONE, SQLITE_FCNTL_CKPT_START,
    SQLITE_FCNTL_COMMIT_PHASETWO, SQLITE_FCNTL_FILE_POINTER, SQLITE_FCNTL_HAS_MOVED,
    SQLITE_FCNTL_VFS_POINTER, SQLITE_FCNTL_VFSNAME, SQLITE_IOERR, SQLITE_LOCK_EXCLUSIVE,
    SQLITE_LOCK_NONE, SQLITE_LOCK_SHARED, SQLITE_OK, SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_PRIVATECACHE,
    SQLITE_OPEN_READONLY, SQLITE_OPEN_READWRITE, SQLITE_OPEN_URI, SQLITE_OPEN_WAL, SQLITE_ROW,
    SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_SHARED, SQLITE_SHM_UNLOCK,
};

pub use self::connection::{OwnConnection, interrupt_checkpoints, is_own};
pub use self::file::{OwnFile, RawFile};
pub use self::output::{Written, open_to_append, to_file, to_stderr};
pub use self::process::{
    FileId, at_exit, at_fork, close_inherited, file_of, is_set_uid, read_descriptor,
    without_signals,
};
pub use self::shm::Shm;

/// The oldest SQLite that has every API field read here.
const VERSION_MIN: c_int = 3_034_000;

/// Callers that SQLite allows for an SQL function.
#[derive(Clone, Copy)]
pub enum Trust {
    /// Only the application's own statements, never a view or trigger of a database.
    Direct,
    /// All callers: the function has no effect and reveals nothing.
    Innocuous,
}

/// A database connection of the host.
pub type Connection = *mut ffi::sqlite3;

macro_rules! api {
    ($($name:ident: $type:ty),* $(,)?) => {
        /// The API pointers that walferry uses, none of them null.
        pub struct Api { $($name: $type,)* }

        /// A line for the host's log, and the function that takes it.
struct LogLine {
    log: unsafe extern "C" fn(c_int, Text, ...),
    code: c_int,
    message: Text,
}

/// Gives a [`LogLine`] to the host's log. Nothing here is to be cleaned up, since the log may unwind through it.
unsafe extern "C-unwind" fn give_line(line: *mut c_void) -> *mut c_void {
    type Log = unsafe extern "C-unwind" fn(c_int, Text, ...);
    // SAFETY: the argument is the line of `Api::log`; the two types of functions differ in what may unwind alone, and
    // the message is an argument, never the format.
    unsafe {
        let line = &*line.cast::<LogLine>();
        let log: Log = std::mem::transmute(line.log);
        log(line.code, c"%s".as_ptr(), line.message);
    }
    std::ptr::null_mut()
}

impl Api {
            /// Reads the pointers.
            ///
            /// # Safety
            /// `routines` is what SQLite gave to an extension's entry point.
            unsafe fn read(routines: *const ffi::sqlite3_api_routines) -> Result<Api, String> {
                // SAFETY: the caller vouches for the pointer; the structure only grows at its end,
                // and the version was checked to have all fields read here.
                let routines = unsafe { &*routines };
                Ok(Api { $($name: routines.$name.ok_or_else(|| {
                    format!("this SQLite has no sqlite3_{}", stringify!($name))
                })?,)* })
            }
        }
    };
}

type Text = *const c_char;
type Callback =
    unsafe extern "C" fn(*mut ffi::sqlite3_context, c_int, *mut *mut ffi::sqlite3_value);
type Destructor = Option<unsafe extern "C" fn(*mut c_void)>;

api! {
    vfs_find: unsafe extern "C" fn(Text) -> *mut ffi::sqlite3_vfs,
    vfs_register: unsafe extern "C" fn(*mut ffi::sqlite3_vfs, c_int) -> c_int,
    uri_parameter: unsafe extern "C" fn(Text, Text) -> Text,
    uri_key: unsafe extern "C" fn(Text, c_int) -> Text,
    create_filename: unsafe extern "C" fn(Text, Text, Text, c_int, *mut Text) -> *mut c_char,
    free_filename: unsafe extern "C" fn(*mut c_char),
    open_v2: unsafe extern "C" fn(Text, *mut Connection, c_int, Text) -> c_int,
    close: unsafe extern "C" fn(Connection) -> c_int,
    prepare_v2: unsafe extern "C" fn(Connection, Text, c_int, *mut *mut ffi::sqlite3_stmt, *mut Text) -> c_int,
    step: unsafe extern "C" fn(*mut ffi::sqlite3_stmt) -> c_int,
    finalize: unsafe extern "C" fn(*mut ffi::sqlite3_stmt) -> c_int,
    column_text: unsafe extern "C" fn(*mut ffi::sqlite3_stmt, c_int) -> *const u8,
    errmsg: unsafe extern "C" fn(Connection) -> Text,
    file_control: unsafe extern "C" fn(Connection, Text, c_int, *mut c_void) -> c_int,
    db_config: unsafe extern "C" fn(Connection, c_int, ...) -> c_int,
    db_filename: unsafe extern "C" fn(Connection, Text) -> Text,
    db_readonly: unsafe extern "C" fn(Connection, Text) -> c_int,
    interruptx: unsafe extern "C" fn(Connection),
    busy_timeout: unsafe extern "C" fn(Connection, c_int) -> c_int,
    malloc64: unsafe extern "C" fn(u64) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    log: unsafe extern "C" fn(c_int, Text, ...),
    auto_extension: unsafe extern "C" fn(Option<unsafe extern "C" fn()>) -> c_int,
    cancel_auto_extension: unsafe extern "C" fn(Option<unsafe extern "C" fn()>) -> c_int,
    create_function_v2: unsafe extern "C" fn(Connection, Text, c_int, c_int, *mut c_void, Option<Callback>, Option<Callback>, Option<unsafe extern "C" fn(*mut ffi::sqlite3_context)>, Destructor) -> c_int,
    context_db_handle: unsafe extern "C" fn(*mut ffi::sqlite3_context) -> Connection,
    value_int64: unsafe extern "C" fn(*mut ffi::sqlite3_value) -> i64,
    result_text: unsafe extern "C" fn(*mut ffi::sqlite3_context, Text, c_int, Destructor),
    result_int64: unsafe extern "C" fn(*mut ffi::sqlite3_context, i64),
    result_null: unsafe extern "C" fn(*mut ffi::sqlite3_context),
    result_error: unsafe extern "C" fn(*mut ffi::sqlite3_context, Text, c_int),
    result_error_code: unsafe extern "C" fn(*mut ffi::sqlite3_context, c_int),
    compileoption_used: unsafe extern "C" fn(Text) -> c_int,
    mutex_alloc: unsafe extern "C" fn(c_int) -> *mut ffi::sqlite3_mutex,
    mutex_free: unsafe extern "C" fn(*mut ffi::sqlite3_mutex),
    mutex_enter: unsafe extern "C" fn(*mut ffi::sqlite3_mutex),
    mutex_leave: unsafe extern "C" fn(*mut ffi::sqlite3_mutex),
}

static API: OnceLock<Api> = OnceLock::new();

/// Returns the host's API; `None` before the extension was loaded.
pub fn api() -> Option<&'static Api> {
    API.get()
}

/// Stores the host's API. Refuses a second copy of SQLite in the same process: the library is mapped once,
/// and its state belongs to the first copy.
///
/// # Safety
/// `routines` is what SQLite gave to an extension's entry point.
pub unsafe fn load(routines: *const ffi::sqlite3_api_routines) -> Result<&'static Api, String> {
    if routines.is_null() {
        return Err("SQLite gave no API".into());
    }
    // SAFETY: the pointer is the host's; libversion_number is one of the structure's oldest fields.
    let version = unsafe { (*routines).libversion_number }.map_or(0, |version| {
        // SAFETY: a function without arguments of the host's API.
        unsafe { version() }
    });
    if version < VERSION_MIN {
        return Err(format!(
            "walferry needs SQLite 3.34.0 or later, and this is {}.{}.{}",
            version / 1_000_000,
            version / 1000 % 1000,
            version % 1000
        ));
    }
    // SAFETY: as vouched for by the caller, and of a version that has all fields.
    let given = unsafe { Api::read(routines)? };
    if given.has_option(c"THREADSAFE=0") {
        return Err("this SQLite was built without threads (SQLITE_THREADSAFE=0)".into());
    }
    match given.has_mutexes() {
        Some(true) => {}
        Some(false) => {
            return Err(
                "this SQLite was configured without threads (SQLITE_CONFIG_SINGLETHREAD), and \
                 walferry reads the database in threads of its own"
                    .into(),
            );
        }
        None => return Err("out of memory".into()),
    }
    let find = given.vfs_find as usize;
    let api = API.get_or_init(|| given);
    if api.vfs_find as usize != find {
        return Err("walferry is already loaded in this process by another copy of SQLite; \
             load it in one of the two only"
            .into());
    }
    Ok(api)
}

/// Returns a message of the entry point, in memory that SQLite has allocated. Also works with a SQLite that
/// [`load`] refuses.
///
/// # Safety
/// As [`load`].
pub unsafe fn message(routines: *const ffi::sqlite3_api_routines, text: &str) -> *mut c_char {
    // SAFETY: the pointer is the host's, or null; malloc is one of the structure's oldest fields, and
    // the block is as long as what is written into it.
    unsafe {
        let Some(malloc) = routines.as_ref().and_then(|routines| routines.malloc) else {
            return ptr::null_mut();
        };
        let block = malloc(c_int::try_from(text.len() + 1).unwrap_or(0)).cast::<u8>();
        if !block.is_null() {
            ptr::copy_nonoverlapping(text.as_ptr(), block, text.len());
            *block.add(text.len()) = 0;
        }
        block.cast()
    }
}

impl Api {
    fn has_option(&self, name: &CStr) -> bool {
        // SAFETY: a nul-terminated name.
        unsafe { (self.compileoption_used)(name.as_ptr()) != 0 }
    }

    /// False if the program has turned SQLite's mutexes off: SQLite then hands out the same one each time.
    /// `None` if there is no memory for two mutexes.
    fn has_mutexes(&self) -> Option<bool> {
        const SQLITE_MUTEX_FAST: c_int = 0;
        // SAFETY: both mutexes are given back; SQLite ignores null.
        unsafe {
            let (one, other) =
                ((self.mutex_alloc)(SQLITE_MUTEX_FAST), (self.mutex_alloc)(SQLITE_MUTEX_FAST));
            (self.mutex_free)(one);
            (self.mutex_free)(other);
            (!one.is_null() && !other.is_null()).then_some(one != other)
        }
    }

    /// Keeps SQLite's library mapped for as long as the process lives. A host may unload it while threads of
    /// walferry are in it, as PHP does at its end.
    pub fn keep_mapped(&self) {
        process::keep_mapped(self.vfs_find as *const c_void);
    }

    /// Returns the VFS of this name, or the default VFS.
    pub fn find_vfs(&self, name: Option<&CStr>) -> Option<NonNull<ffi::sqlite3_vfs>> {
        // SAFETY: null asks for the default.
        NonNull::new(unsafe { (self.vfs_find)(name.map_or(ptr::null(), CStr::as_ptr)) })
    }

    /// Returns all registered VFSes.
    pub fn all_vfs(&self) -> Vec<NonNull<ffi::sqlite3_vfs>> {
        /// The mutex under which SQLite changes the list (`sqlite3_vfs_register` in `os.c`).
        const SQLITE_MUTEX_STATIC_MAIN: c_int = 2;
        let mut all = Vec::new();
        // SAFETY: a mutex of SQLite's own, which is never freed; under it the list stays as it is, and each
        // of its members is a structure that is registered.
        unsafe {
            let mutex = (self.mutex_alloc)(SQLITE_MUTEX_STATIC_MAIN);
            let first = (self.vfs_find)(ptr::null());
            (self.mutex_enter)(mutex);
            let mut next = NonNull::new(first);
            while let Some(vfs) = next {
                all.push(vfs);
                next = NonNull::new(vfs.as_ref().pNext);
            }
            (self.mutex_leave)(mutex);
        }
        all
    }

    /// Returns the VFS underneath ours. Most likely, a connection that was open before the extension was
    /// loaded uses this VFS.
    pub fn find_base_vfs(&self) -> Option<BaseVfs> {
        let ours = self.find_vfs(Some(c"walferry"))?;
        // SAFETY: our own VFS, which is never freed, keeps the one underneath as its data.
        NonNull::new(unsafe { ours.as_ref().pAppData }.cast()).map(BaseVfs)
    }

    /// Returns the path of a connection's database; `None` for one in memory or a temporary one.
    pub fn path(&self, db: Connection, schema: &CStr) -> Option<std::path::PathBuf> {
        // SAFETY: null or a nul-terminated path of SQLite's.
        unsafe { path_of(self.file_name(db, schema)) }
    }

    /// Registers a VFS that lives as long as the process, or moves it in the list of VFSes.
    pub fn register_vfs(&self, vfs: NonNull<ffi::sqlite3_vfs>, default: bool) -> c_int {
        // SAFETY: the structure is never freed; SQLite alone writes to it, under its own mutex.
        unsafe { (self.vfs_register)(vfs.as_ptr(), c_int::from(default)) }
    }

    /// Returns a URI parameter of a file name that SQLite passed to `xOpen`.
    ///
    /// # Safety
    /// `name` comes from SQLite itself, with its parameters behind it.
    pub unsafe fn uri_parameter(&self, name: Text, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        // SAFETY: vouched for by the caller.
        let value = unsafe { (self.uri_parameter)(name, key.as_ptr()) };
        text(value)
    }

    /// Returns the names of the URI parameters of a file name that SQLite passed to `xOpen`.
    ///
    /// # Safety
    /// `name` comes from SQLite itself, with its parameters behind it.
    pub unsafe fn uri_keys(&self, name: Text) -> Vec<String> {
        // SAFETY: vouched for by the caller; the answer behind the last name is null.
        (0..).map_while(|number| text(unsafe { (self.uri_key)(name, number) })).collect()
    }

    /// Writes to the host's error log.
    ///
    /// The log may be a function that ends its thread: Python does so with a thread that asks for the interpreter while
    /// that ends. On a thread of walferry's another thread makes the call, so that the end costs one line.
    pub fn log(&self, code: c_int, message: &str) {
        let Ok(message) = CString::new(message.replace('\0', " ")) else { return };
        let mut line = LogLine { log: self.log, code, message: message.as_ptr() };
        // SAFETY: the line and its message live until the call has ended.
        let given = process::is_own_thread()
            && unsafe { process::run_apart(give_line, (&raw mut line).cast()) };
        if !given {
            // SAFETY: the message is an argument, never the format.
            unsafe { (self.log)(code, c"%s".as_ptr(), message.as_ptr()) }
        }
    }

    /// Registers a function that SQLite calls for each connection opened from now on. A second registration
    /// changes nothing.
    pub fn on_open(&self, entry: unsafe extern "C" fn()) -> c_int {
        // SAFETY: the function stays mapped: the library is never unloaded.
        unsafe { (self.auto_extension)(Some(entry)) }
    }

    /// Removes that function. `false` if the function was not registered. Unlike all other calls of SQLite,
    /// this one does not initialize SQLite.
    pub fn not_on_open(&self, entry: unsafe extern "C" fn()) -> bool {
        // SAFETY: a function's address, which is compared with others.
        unsafe { (self.cancel_auto_extension)(Some(entry)) != 0 }
    }

    /// Defines an SQL function.
    pub fn define(
        &self,
        db: Connection,
        name: &CStr,
        arguments: c_int,
        trust: Trust,
        function: Callback,
    ) -> c_int {
        // SAFETY: no function is called at the end.
        unsafe { self.define_until(db, name, arguments, trust, function, ptr::null_mut(), None) }
    }

    /// Defines an SQL function, with a function `end`. SQLite calls `end` once, when the connection is closed
    /// or if the SQL function cannot be defined.
    ///
    /// # Safety
    /// `end` may be called with `data` at any time, and stays mapped.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn define_until(
        &self,
        db: Connection,
        name: &CStr,
        arguments: c_int,
        trust: Trust,
        function: Callback,
        data: *mut c_void,
        end: Destructor,
    ) -> c_int {
        const SQLITE_UTF8: c_int = 1;
        let trust = match trust {
            Trust::Direct => ffi::SQLITE_DIRECTONLY,
            Trust::Innocuous => ffi::SQLITE_INNOCUOUS,
        };
        // SAFETY: a live connection, and a function that stays mapped.
        unsafe {
            (self.create_function_v2)(
                db,
                name.as_ptr(),
                arguments,
                SQLITE_UTF8 | trust,
                data,
                Some(function),
                None,
                None,
                end,
            )
        }
    }

    /// Returns SQLite's own text of the path of a connection's database, which has the URI parameters behind
    /// it.
    pub fn file_name(&self, db: Connection, schema: &CStr) -> Text {
        // SAFETY: a live connection.
        unsafe { (self.db_filename)(db, schema.as_ptr()) }
    }

    /// True if a connection's database can only be read.
    pub fn is_read_only(&self, db: Connection, schema: &CStr) -> bool {
        // SAFETY: a live connection.
        unsafe { (self.db_readonly)(db, schema.as_ptr()) != 0 }
    }

    /// Returns the file object of a connection's database.
    pub fn file_of(&self, db: Connection, schema: &CStr) -> Option<NonNull<ffi::sqlite3_file>> {
        let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
        // SAFETY: a live connection; this control stores a file pointer.
        let rc = unsafe {
            (self.file_control)(
                db,
                schema.as_ptr(),
                SQLITE_FCNTL_FILE_POINTER,
                (&raw mut file).cast(),
            )
        };
        NonNull::new(file).filter(|_| rc == SQLITE_OK)
    }

    /// Returns the VFS through which a connection opened a database.
    pub fn vfs_of(&self, db: Connection, schema: &CStr) -> Option<BaseVfs> {
        let mut vfs: *mut ffi::sqlite3_vfs = ptr::null_mut();
        let out = (&raw mut vfs).cast();
        // SAFETY: a live connection; this control stores a pointer to a VFS.
        let rc = unsafe { (self.file_control)(db, schema.as_ptr(), SQLITE_FCNTL_VFS_POINTER, out) };
        NonNull::new(vfs).filter(|_| rc == SQLITE_OK).map(BaseVfs)
    }

    /// Asks the file of a connection's database for a pointer, with a file control of our own. VFSes above
    /// ours pass the question down. `None` if no file of ours answers.
    pub fn ask_file<T>(&self, db: Connection, schema: &CStr, control: c_int) -> Option<*const T> {
        let mut answer: *const T = ptr::null();
        let out = (&raw mut answer).cast();
        // SAFETY: a live connection; only our files know this control, and they store a pointer.
        let rc = unsafe { (self.file_control)(db, schema.as_ptr(), control, out) };
        (rc == SQLITE_OK).then_some(answer)
    }

    /// Returns the connection in which an SQL function runs.
    pub fn connection_of(&self, context: *mut ffi::sqlite3_context) -> Connection {
        // SAFETY: the context is that of a running function.
        unsafe { (self.context_db_handle)(context) }
    }

    /// Returns the integer arguments of an SQL function.
    ///
    /// # Safety
    /// `values` has `count` values of a running function.
    pub unsafe fn integers(&self, count: c_int, values: *mut *mut ffi::sqlite3_value) -> Vec<i64> {
        (0..usize::try_from(count).unwrap_or(0))
            // SAFETY: vouched for by the caller.
            .map(|at| unsafe { (self.value_int64)(*values.add(at)) })
            .collect()
    }

    /// Ends an SQL function with a value or an error.
    pub fn result(&self, context: *mut ffi::sqlite3_context, value: Result<Value, Failure>) {
        // SAFETY: the context is that of a running function; texts are copied by SQLite.
        unsafe {
            match value {
                Ok(Value::Null) => (self.result_null)(context),
                Ok(Value::Integer(value)) => (self.result_int64)(context, value),
                Ok(Value::Text(value)) => (self.result_text)(
                    context,
                    value.as_ptr().cast(),
                    c_int::try_from(value.len()).unwrap_or(0),
                    ffi::SQLITE_TRANSIENT(),
                ),
                Err(Failure::Said(message)) => (self.result_error)(
                    context,
                    message.as_ptr().cast(),
                    c_int::try_from(message.len()).unwrap_or(0),
                ),
                Err(Failure::Interrupted) => {
                    (self.result_error_code)(context, ffi::SQLITE_INTERRUPT);
                }
            }
        }
    }

    /// Returns a copy of a text in memory that SQLite has allocated, for SQLite to free.
    pub fn allocate_text(&self, value: &str) -> *mut c_char {
        // SAFETY: the block is as long as what is written into it.
        unsafe {
            let block = (self.malloc64)(value.len() as u64 + 1).cast::<u8>();
            if !block.is_null() {
                ptr::copy_nonoverlapping(value.as_ptr(), block, value.len());
                *block.add(value.len()) = 0;
            }
            block.cast()
        }
    }

    /// Frees a text that SQLite has allocated.
    ///
    /// # Safety
    /// The text was allocated by SQLite, and is not used any more.
    pub unsafe fn free_text(&self, value: *mut c_char) {
        // SAFETY: vouched for by the caller.
        unsafe { (self.free)(value.cast()) }
    }

    /// Runs a statement, and returns the first column of its first row.
    pub fn query(&self, db: Connection, sql: &CStr) -> Result<Option<String>, String> {
        let mut statement = ptr::null_mut();
        // SAFETY: a live connection of ours, or the host's in its own thread; the statement is
        // finalised before the connection is closed.
        unsafe {
            let rc = (self.prepare_v2)(db, sql.as_ptr(), -1, &raw mut statement, ptr::null_mut());
            if rc != SQLITE_OK {
                return Err(self.message(db, rc));
            }
            let mut rc = (self.step)(statement);
            let value =
                if rc == SQLITE_ROW { text((self.column_text)(statement, 0).cast()) } else { None };
            while rc == SQLITE_ROW {
                rc = (self.step)(statement);
            }
            let finalized = (self.finalize)(statement);
            if finalized == SQLITE_OK { Ok(value) } else { Err(self.message(db, finalized)) }
        }
    }

    /// True if this connection was interrupted and has a statement under way, which ends because of that.
    /// Asks with a statement of its own, since SQLite before 3.41 has no function for this.
    pub fn is_interrupted(&self, db: Connection) -> bool {
        let mut statement = ptr::null_mut();
        // SAFETY: the host's connection in its own thread; the statement is finalised in any case.
        unsafe {
            let sql = c"SELECT 1".as_ptr();
            let prepared = (self.prepare_v2)(db, sql, -1, &raw mut statement, ptr::null_mut());
            let rc = if prepared == SQLITE_OK { (self.step)(statement) } else { prepared };
            (self.finalize)(statement);
            rc == ffi::SQLITE_INTERRUPT
        }
    }

    /// Returns the names of a connection's databases: the main one first.
    pub fn schemas(&self, db: Connection) -> Result<Vec<CString>, String> {
        const NAME: c_int = 1;
        let mut statement = ptr::null_mut();
        let mut names = Vec::new();
        // SAFETY: the host's connection in its own thread; a column's text is copied before the
        // next step, and the statement is finalised in any case.
        let finalized = unsafe {
            let sql = c"PRAGMA database_list".as_ptr();
            let rc = (self.prepare_v2)(db, sql, -1, &raw mut statement, ptr::null_mut());
            if rc != SQLITE_OK {
                return Err(self.message(db, rc));
            }
            while (self.step)(statement) == SQLITE_ROW {
                let name = (self.column_text)(statement, NAME).cast::<c_char>();
                if !name.is_null() {
                    names.push(CStr::from_ptr(name).to_owned());
                }
            }
            (self.finalize)(statement)
        };
        if finalized == SQLITE_OK { Ok(names) } else { Err(self.message(db, finalized)) }
    }

    fn message(&self, db: Connection, rc: c_int) -> String {
        // SAFETY: a live connection.
        let message = text(unsafe { (self.errmsg)(db) });
        message.unwrap_or_else(|| format!("SQLite error {rc}"))
    }
}

/// Failure of an SQL function.
pub enum Failure {
    /// Fails with this message.
    Said(String),
    /// The application has interrupted the function (`sqlite3_interrupt`).
    Interrupted,
}

impl Failure {
    /// Returns the failure without characters that have an effect in a terminal.
    pub fn shown(self) -> Failure {
        match self {
            Failure::Said(message) => Failure::Said(shown::line(&message).into_owned()),
            Failure::Interrupted => self,
        }
    }
}

impl<T: Into<String>> From<T> for Failure {
    fn from(message: T) -> Failure {
        Failure::Said(message.into())
    }
}

/// Result of an SQL function.
pub enum Value {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A text.
    Text(String),
}

/// Returns a nul-terminated text as a string.
fn text(value: Text) -> Option<String> {
    if value.is_null() {
        return None;
    }
    // SAFETY: SQLite's texts are nul-terminated.
    Some(unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}

/// Returns the path in a name that SQLite passes to `xOpen`.
///
/// # Safety
/// `name` is null or a nul-terminated path.
pub unsafe fn path_of(name: Text) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    if name.is_null() {
        return None;
    }
    // SAFETY: vouched for by the caller.
    let bytes = unsafe { CStr::from_ptr(name) }.to_bytes();
    (!bytes.is_empty()).then(|| Path::new(std::ffi::OsStr::from_bytes(bytes)).to_path_buf())
}

/// The VFS underneath ours.
#[derive(Clone, Copy)]
pub struct BaseVfs(pub NonNull<ffi::sqlite3_vfs>);

/// SQLite's own VFSes that write to a file exactly the bytes that they are given.
const PLAIN: [&str; 4] = ["unix", "unix-excl", "unix-dotfile", "unix-none"];

impl BaseVfs {
    /// Returns the name of the VFS.
    pub fn name(self) -> String {
        // SAFETY: a registered VFS is never freed, and its name is a nul-terminated text.
        unsafe { text(self.0.as_ref().zName) }.unwrap_or_default()
    }

    /// True if a file has exactly the bytes that SQLite wrote. walferry reads files directly, and so bypasses
    /// a VFS that encrypts or adds checksums.
    pub fn is_plain(self) -> bool {
        PLAIN.contains(&self.name().as_str())
    }
}

// SAFETY: a registered VFS is never freed, and its methods may be called from any thread.
unsafe impl Send for BaseVfs {}
// SAFETY: as above.
unsafe impl Sync for BaseVfs {}
