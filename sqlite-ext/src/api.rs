//! The host's SQLite: its API pointers, and the objects behind pointers, as methods.
//!
//! One of the two rooms with `unsafe`; the other is `ffi/`. The pointers come from the
//! `sqlite3_api_routines` that the host hands to the entry point, each checked for null, so that one
//! library file serves every host from SQLite 3.34 on.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use libsqlite3_sys as ffi;

pub use ffi::{
    SQLITE_BUSY, SQLITE_ERROR, SQLITE_FCNTL_CKPT_DONE, SQLITE_FCNTL_CKPT_START,
    SQLITE_FCNTL_COMMIT_PHASETWO, SQLITE_FCNTL_FILE_POINTER, SQLITE_FCNTL_VFSNAME, SQLITE_IOERR,
    SQLITE_LOCK_EXCLUSIVE, SQLITE_LOCK_NONE, SQLITE_LOCK_SHARED, SQLITE_OK, SQLITE_OPEN_MAIN_DB,
    SQLITE_OPEN_READWRITE, SQLITE_OPEN_WAL, SQLITE_ROW, SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK,
    SQLITE_SHM_SHARED, SQLITE_SHM_UNLOCK,
};

/// The oldest SQLite that has every API field read here.
const VERSION_MIN: c_int = 3_034_000;

/// Bytes of one region of the wal-index (`WALINDEX_PGSZ` in `wal.c`).
pub const SHM_REGION: c_int = 32768;

/// A database connection of the host.
pub type Connection = *mut ffi::sqlite3;

macro_rules! api {
    ($($name:ident: $type:ty),* $(,)?) => {
        /// The API pointers that are used, none of them null.
        pub struct Api { $($name: $type,)* }

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
    database_file_object: unsafe extern "C" fn(Text) -> *mut ffi::sqlite3_file,
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
    busy_timeout: unsafe extern "C" fn(Connection, c_int) -> c_int,
    malloc64: unsafe extern "C" fn(u64) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    log: unsafe extern "C" fn(c_int, Text, ...),
    auto_extension: unsafe extern "C" fn(Option<unsafe extern "C" fn()>) -> c_int,
    create_function_v2: unsafe extern "C" fn(Connection, Text, c_int, c_int, *mut c_void, Option<Callback>, Option<Callback>, Option<unsafe extern "C" fn(*mut ffi::sqlite3_context)>, Destructor) -> c_int,
    context_db_handle: unsafe extern "C" fn(*mut ffi::sqlite3_context) -> Connection,
    value_int64: unsafe extern "C" fn(*mut ffi::sqlite3_value) -> i64,
    result_text: unsafe extern "C" fn(*mut ffi::sqlite3_context, Text, c_int, Destructor),
    result_int64: unsafe extern "C" fn(*mut ffi::sqlite3_context, i64),
    result_null: unsafe extern "C" fn(*mut ffi::sqlite3_context),
    result_error: unsafe extern "C" fn(*mut ffi::sqlite3_context, Text, c_int),
    compileoption_used: unsafe extern "C" fn(Text) -> c_int,
}

static API: OnceLock<Api> = OnceLock::new();

/// The host's API; `None` before the extension was loaded.
pub fn api() -> Option<&'static Api> {
    API.get()
}

/// Takes the host's API in. A second copy of SQLite in the same process is refused: the library is
/// mapped once, and its state belongs to the first.
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
    let find = given.vfs_find as usize;
    let api = API.get_or_init(|| given);
    if api.vfs_find as usize != find {
        return Err("walferry is already loaded in this process by another copy of SQLite; \
             load it in one of the two only"
            .into());
    }
    Ok(api)
}

impl Api {
    fn has_option(&self, name: &CStr) -> bool {
        // SAFETY: a nul-terminated name.
        unsafe { (self.compileoption_used)(name.as_ptr()) != 0 }
    }

    /// The VFS of this name, or the default one.
    pub fn find_vfs(&self, name: Option<&CStr>) -> Option<NonNull<ffi::sqlite3_vfs>> {
        // SAFETY: null asks for the default.
        NonNull::new(unsafe { (self.vfs_find)(name.map_or(ptr::null(), CStr::as_ptr)) })
    }

    /// The VFS under ours, by which a connection was opened before ours was there.
    pub fn find_base_vfs(&self) -> Option<BaseVfs> {
        let ours = self.find_vfs(Some(c"walferry"))?;
        // SAFETY: our own VFS, which is never freed, keeps the one underneath as its data.
        NonNull::new(unsafe { ours.as_ref().pAppData }.cast()).map(BaseVfs)
    }

    /// Path of a connection's main database.
    pub fn main_path(&self, db: Connection) -> Option<std::path::PathBuf> {
        // SAFETY: null or a nul-terminated path of SQLite's.
        unsafe { path_of(self.file_name(db, c"main")) }
    }

    /// Registers a VFS that lives as long as the process.
    pub fn register_vfs(&self, vfs: &'static mut ffi::sqlite3_vfs, default: bool) -> c_int {
        // SAFETY: the structure is never freed.
        unsafe { (self.vfs_register)(vfs, c_int::from(default)) }
    }

    /// A URI parameter of a file name that SQLite passed to `xOpen`.
    ///
    /// # Safety
    /// `name` comes from SQLite itself: behind it stand the parameters.
    pub unsafe fn uri_parameter(&self, name: Text, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        // SAFETY: vouched for by the caller.
        let value = unsafe { (self.uri_parameter)(name, key.as_ptr()) };
        text(value)
    }

    /// The main database's file object that goes with a WAL's name.
    ///
    /// # Safety
    /// `name` was passed to `xOpen` for a WAL by SQLite itself.
    pub unsafe fn database_file(&self, name: Text) -> *mut ffi::sqlite3_file {
        // SAFETY: vouched for by the caller.
        unsafe { (self.database_file_object)(name) }
    }

    /// Writes to the host's error log.
    pub fn log(&self, code: c_int, message: &str) {
        let Ok(message) = CString::new(message.replace('\0', " ")) else { return };
        // SAFETY: the message is an argument, never the format.
        unsafe { (self.log)(code, c"%s".as_ptr(), message.as_ptr()) }
    }

    /// Has a function called for each connection that is opened from now on.
    pub fn on_open(&self, entry: unsafe extern "C" fn()) -> c_int {
        // SAFETY: the function stays mapped: the library is never unloaded.
        unsafe { (self.auto_extension)(Some(entry)) }
    }

    /// Defines an SQL function.
    pub fn define(
        &self,
        db: Connection,
        name: &CStr,
        arguments: c_int,
        function: Callback,
    ) -> c_int {
        const SQLITE_UTF8: c_int = 1;
        // SAFETY: a live connection, and a function that stays mapped.
        unsafe {
            (self.create_function_v2)(
                db,
                name.as_ptr(),
                arguments,
                SQLITE_UTF8,
                ptr::null_mut(),
                Some(function),
                None,
                None,
                None,
            )
        }
    }

    /// Path of a connection's database, as SQLite has it: with the parameters behind it.
    pub fn file_name(&self, db: Connection, schema: &CStr) -> Text {
        // SAFETY: a live connection.
        unsafe { (self.db_filename)(db, schema.as_ptr()) }
    }

    /// Whether a connection's database can only be read.
    pub fn is_read_only(&self, db: Connection, schema: &CStr) -> bool {
        // SAFETY: a live connection.
        unsafe { (self.db_readonly)(db, schema.as_ptr()) != 0 }
    }

    /// The file object of a connection's database.
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

    /// The connection in which an SQL function runs.
    pub fn connection_of(&self, context: *mut ffi::sqlite3_context) -> Connection {
        // SAFETY: the context is that of a running function.
        unsafe { (self.context_db_handle)(context) }
    }

    /// The integer arguments of an SQL function.
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
    pub fn result(&self, context: *mut ffi::sqlite3_context, value: Result<Value, String>) {
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
                Err(message) => (self.result_error)(
                    context,
                    message.as_ptr().cast(),
                    c_int::try_from(message.len()).unwrap_or(0),
                ),
            }
        }
    }

    /// Memory of SQLite's own, for a text that SQLite frees.
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

    /// Frees a text of SQLite's own.
    ///
    /// # Safety
    /// The text was allocated by SQLite, and nobody uses it any more.
    pub unsafe fn free_text(&self, value: *mut c_char) {
        // SAFETY: vouched for by the caller.
        unsafe { (self.free)(value.cast()) }
    }

    /// Runs a statement; gives the first column of its first row.
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

    fn message(&self, db: Connection, rc: c_int) -> String {
        // SAFETY: a live connection.
        let message = text(unsafe { (self.errmsg)(db) });
        message.unwrap_or_else(|| format!("SQLite error {rc}"))
    }
}

/// What an SQL function gives.
pub enum Value {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A text.
    Text(String),
}

/// A nul-terminated text as a string.
fn text(value: Text) -> Option<String> {
    if value.is_null() {
        return None;
    }
    // SAFETY: SQLite's texts are nul-terminated.
    Some(unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}

/// The path that SQLite passes to `xOpen`.
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

// SAFETY: a registered VFS is never freed, and its methods may be called from any thread.
unsafe impl Send for BaseVfs {}
// SAFETY: as above.
unsafe impl Sync for BaseVfs {}

/// A file of the VFS underneath: its object and the methods to call it with.
#[derive(Clone, Copy)]
pub struct RawFile {
    /// The object.
    pub file: *mut ffi::sqlite3_file,
    /// Its methods.
    pub methods: *const ffi::sqlite3_io_methods,
}

// SAFETY: both pointers stay valid as long as the file is open; SQLite's file methods may be called
// from any thread as long as two do not call at once, which the holders of a `RawFile` see to.
unsafe impl Send for RawFile {}
// SAFETY: as above.
unsafe impl Sync for RawFile {}

macro_rules! forward {
    ($self:ident.$method:ident($($argument:expr),*) else $default:expr) => {
        // SAFETY: the file is open, and the arguments are those that SQLite gave, or buffers of ours
        // of the length given.
        unsafe {
            match (*$self.methods).$method {
                Some(method) => method($self.file, $($argument),*),
                None => $default,
            }
        }
    };
}

impl RawFile {
    /// Version of the methods' structure.
    pub fn version(&self) -> c_int {
        // SAFETY: the file is open, so its methods are set.
        unsafe { (*self.methods).iVersion }
    }

    /// Whether the file can have a wal-index in shared memory.
    pub fn has_shm(&self) -> bool {
        // SAFETY: as above; the field exists from version 2 on.
        self.version() >= 2 && unsafe { (*self.methods).xShmMap.is_some() }
    }

    /// `xLock`.
    pub fn lock(&self, level: c_int) -> c_int {
        forward!(self.xLock(level) else SQLITE_OK)
    }

    /// `xUnlock`.
    pub fn unlock(&self, level: c_int) -> c_int {
        forward!(self.xUnlock(level) else SQLITE_OK)
    }

    /// `xClose`.
    pub fn close(&self) -> c_int {
        forward!(self.xClose() else SQLITE_OK)
    }

    /// `xShmLock`.
    pub fn shm_lock(&self, offset: c_int, count: c_int, flags: c_int) -> c_int {
        forward!(self.xShmLock(offset, count, flags) else SQLITE_ERROR)
    }

    /// `xShmBarrier`.
    pub fn shm_barrier(&self) {
        forward!(self.xShmBarrier() else ());
    }

    /// `xShmUnmap`.
    pub fn shm_unmap(&self, delete: bool) -> c_int {
        forward!(self.xShmUnmap(c_int::from(delete)) else SQLITE_OK)
    }

    /// `xShmMap` of the first region, where the wal-index header is.
    pub fn shm_header(&self, extend: bool) -> Option<Shm> {
        self.shm_region(0, extend)
    }

    /// `xShmMap`; `None` for a region that does not exist, unless it may be made.
    pub fn shm_region(&self, number: c_int, extend: bool) -> Option<Shm> {
        let mut region: *mut c_void = ptr::null_mut();
        let out = (&raw mut region).cast();
        let rc = forward!(self.xShmMap(number, SHM_REGION, c_int::from(extend), out)
            else SQLITE_ERROR);
        NonNull::new(region.cast::<u8>()).filter(|_| rc == SQLITE_OK).map(Shm)
    }

    /// Whether reads may go through a memory map, which another thread must not touch.
    pub fn is_mapped(&self) -> bool {
        const SQLITE_FCNTL_MMAP_SIZE: c_int = 18;
        let mut limit: i64 = -1;
        let rc = forward!(self.xFileControl(SQLITE_FCNTL_MMAP_SIZE, (&raw mut limit).cast())
            else SQLITE_ERROR);
        rc == SQLITE_OK && limit > 0
    }

    /// `xRead` into a buffer.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let too_large = |_| std::io::Error::from(std::io::ErrorKind::InvalidInput);
        let len = c_int::try_from(buffer.len()).map_err(too_large)?;
        let offset = i64::try_from(offset).map_err(too_large)?;
        let rc = forward!(self.xRead(buffer.as_mut_ptr().cast(), len, offset) else SQLITE_IOERR);
        match rc {
            SQLITE_OK => Ok(()),
            rc => Err(std::io::Error::other(format!("SQLite error {rc} at byte {offset}"))),
        }
    }
}

/// A region of a wal-index, mapped; most often the first.
#[derive(Clone, Copy)]
pub struct Shm(NonNull<u8>);

// SAFETY: the mapping is shared memory by design; it is read and written only through volatile
// accesses below, and its owner drops it before the file is closed.
unsafe impl Send for Shm {}
// SAFETY: as above.
unsafe impl Sync for Shm {}

// A region is mapped at a page boundary, so its words are aligned.
#[allow(clippy::cast_ptr_alignment)]
impl Shm {
    /// A region that SQLite was given by `xShmMap`.
    pub fn from_pointer(region: *mut c_void) -> Option<Shm> {
        NonNull::new(region.cast::<u8>()).map(Shm)
    }

    /// As a plain pointer, to be kept in an atomic.
    pub fn as_pointer(self) -> *mut u8 {
        self.0.as_ptr()
    }

    /// The two copies of the header (`WalIndexHdr` twice, 96 bytes).
    pub fn header(self) -> [u8; 96] {
        let mut copy = [0u8; 96];
        for (at, bytes) in copy.chunks_exact_mut(8).enumerate() {
            // SAFETY: a region has 32768 bytes and is aligned to a page.
            let word = unsafe { self.0.as_ptr().cast::<u64>().add(at).read_volatile() };
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        copy
    }

    /// A word of the region, of its 8192; 0 beyond them.
    pub fn word(self, at: usize) -> u32 {
        if at >= SHM_REGION as usize / size_of::<u32>() {
            return 0;
        }
        // SAFETY: within a region's 32768 bytes, and aligned.
        unsafe { self.0.as_ptr().cast::<u32>().add(at).read_volatile() }
    }

    /// The read mark of a read slot (`aReadMark` at byte 100).
    pub fn read_mark(self, slot: usize) -> u32 {
        // SAFETY: as above; slots are 0 to 4.
        unsafe { self.0.as_ptr().cast::<u32>().add(25 + slot.min(4)).read_volatile() }
    }

    /// Sets the read mark of a slot whose exclusive lock the caller holds.
    pub fn set_read_mark(self, slot: usize, mark: u32) {
        // SAFETY: as above; the lock keeps all others from the mark.
        unsafe { self.0.as_ptr().cast::<u32>().add(25 + slot.min(4)).write_volatile(mark) }
    }
}

/// A file of the VFS underneath, opened by ourselves, with the memory for it.
pub struct OwnFile {
    raw: RawFile,
    _memory: Vec<u64>,
    name: *mut c_char,
    api: &'static Api,
}

// SAFETY: as for `RawFile`; the name is freed by whoever drops it.
unsafe impl Send for OwnFile {}

impl OwnFile {
    /// Opens a main database through this VFS.
    pub fn open(api: &'static Api, vfs: NonNull<ffi::sqlite3_vfs>, path: &Path) -> Option<OwnFile> {
        let cstring = |suffix: &str| {
            use std::os::unix::ffi::OsStrExt;
            let mut bytes = path.as_os_str().as_bytes().to_vec();
            bytes.extend_from_slice(suffix.as_bytes());
            CString::new(bytes).ok()
        };
        let (database, journal, wal) = (cstring("")?, cstring("-journal")?, cstring("-wal")?);
        // SAFETY: the VFS is registered for good; the name is made by SQLite for this purpose and
        // freed after the file; the memory is as large as the VFS asks for, zeroed and aligned.
        unsafe {
            let name = (api.create_filename)(
                database.as_ptr(),
                journal.as_ptr(),
                wal.as_ptr(),
                0,
                ptr::null_mut(),
            );
            if name.is_null() {
                return None;
            }
            let bytes = usize::try_from(vfs.as_ref().szOsFile).unwrap_or(0);
            let mut memory = vec![0u64; bytes / 8 + 1];
            let file: *mut ffi::sqlite3_file = memory.as_mut_ptr().cast();
            let flags = SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE;
            let rc = match vfs.as_ref().xOpen {
                Some(open) => open(vfs.as_ptr(), name, file, flags, ptr::null_mut()),
                None => SQLITE_ERROR,
            };
            let methods = (*file).pMethods;
            if rc != SQLITE_OK || methods.is_null() {
                if !methods.is_null() {
                    RawFile { file, methods }.close();
                }
                (api.free_filename)(name);
                return None;
            }
            Some(OwnFile { raw: RawFile { file, methods }, _memory: memory, name, api })
        }
    }

    /// The file.
    pub fn raw(&self) -> RawFile {
        self.raw
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        self.raw.close();
        // SAFETY: made by create_filename, and the file that used it is closed.
        unsafe { (self.api.free_filename)(self.name) }
    }
}

/// A connection of our own.
pub struct OwnConnection {
    db: Connection,
    api: &'static Api,
}

// SAFETY: a SQLite with threads (the others are refused at load) lets a connection be used by any
// thread, one at a time.
unsafe impl Send for OwnConnection {}

impl OwnConnection {
    /// Opens a database through a VFS; its close neither checkpoints nor removes the WAL.
    pub fn open(
        api: &'static Api,
        vfs: NonNull<ffi::sqlite3_vfs>,
        path: &Path,
    ) -> Result<OwnConnection, String> {
        use std::os::unix::ffi::OsStrExt;
        const NO_CKPT_ON_CLOSE: c_int = 1006;
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        let mut db: Connection = ptr::null_mut();
        // SAFETY: nul-terminated names; the connection is closed by Drop in any case.
        let rc = unsafe {
            (api.open_v2)(name.as_ptr(), &raw mut db, SQLITE_OPEN_READWRITE, vfs.as_ref().zName)
        };
        if db.is_null() {
            return Err("out of memory".into());
        }
        let connection = OwnConnection { db, api };
        if rc != SQLITE_OK {
            return Err(api.message(db, rc));
        }
        // SAFETY: a live connection; this setting takes an int and a pointer that may be null.
        unsafe {
            (api.db_config)(db, NO_CKPT_ON_CLOSE, 1 as c_int, ptr::null_mut::<c_int>());
            (api.busy_timeout)(db, 0);
        }
        Ok(connection)
    }

    /// Runs a statement; gives the first column of its first row.
    pub fn query(&self, sql: &CStr) -> Result<Option<String>, String> {
        self.api.query(self.db, sql)
    }

    /// The main database's file.
    pub fn file(&self) -> Option<RawFile> {
        let file = self.api.file_of(self.db, c"main")?;
        // SAFETY: an open file.
        let methods = unsafe { file.as_ref().pMethods };
        (!methods.is_null()).then_some(RawFile { file: file.as_ptr(), methods })
    }
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        // SAFETY: opened by us; all statements are finalised.
        unsafe { (self.api.close)(self.db) };
    }
}

/// Starts threads with all signals blocked: they are the application's business.
pub fn without_signals(start: &mut dyn FnMut()) {
    // SAFETY: plain signal-set calls on local sets; the mask is put back as it was.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        start();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
    }
}

/// Has a function called when the process exits.
pub fn at_exit(function: extern "C" fn()) {
    // SAFETY: the function stays mapped: the library is never unloaded.
    unsafe { libc::atexit(function) };
}

/// Has functions called around each fork: before it, after it in the parent, and in the child.
pub fn at_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: the functions stay mapped: the library is never unloaded.
    unsafe {
        libc::pthread_atfork(Some(before), Some(parent), Some(child));
    }
}

/// Closes descriptors of the parent in the child of a fork. What owned them is abandoned.
pub fn close_inherited(descriptors: &[std::os::fd::RawFd]) {
    for descriptor in descriptors {
        // SAFETY: their owners are on the stacks of threads that do not exist in this process, so
        // nobody uses or closes them again.
        unsafe { libc::close(*descriptor) };
    }
}
