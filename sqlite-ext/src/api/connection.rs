//! Connections of our own.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_int};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libsqlite3_sys as ffi;

use super::file::RawFile;
use super::{Api, Connection, SQLITE_OK, SQLITE_OPEN_PRIVATECACHE, SQLITE_OPEN_READWRITE};

thread_local! {
    /// True while this thread opens a connection of our own.
    static OPENS: Cell<bool> = const { Cell::new(false) };
}

/// True if the connection that this thread opens is one of our own.
pub fn is_own() -> bool {
    OPENS.get()
}

/// A connection of our own.
pub struct OwnConnection {
    db: Connection,
    api: &'static Api,
}

// SAFETY: a SQLite with threads (the others are refused at load) lets a connection be used by any
// thread, one at a time.
unsafe impl Send for OwnConnection {}

/// Checkpoints on connections of our own that are under way. Only threads inside the host's SQLite take this
/// lock, and the thread that keeps them out. So no thread holds the lock at a fork that has waited for all of
/// them.
static CHECKPOINTING: Mutex<Vec<Checkpointing>> = Mutex::new(Vec::new());

struct Checkpointing {
    db: usize,
    api: &'static Api,
}

fn checkpointing() -> MutexGuard<'static, Vec<Checkpointing>> {
    CHECKPOINTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the checkpoints on connections of our own. The frames that they have copied so far stay copied.
pub fn interrupt_checkpoints() {
    for Checkpointing { db, api } in checkpointing().iter() {
        // SAFETY: a live connection: its owner takes the checkpoint off the list before it closes the
        // connection.
        unsafe { (api.interruptx)(*db as Connection) };
    }
}

/// With a private cache. In the application's shared cache, SQLite would take our locks for the application's
/// own.
const FLAGS: c_int = SQLITE_OPEN_READWRITE | SQLITE_OPEN_PRIVATECACHE;
/// `SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE`.
const NO_CKPT_ON_CLOSE: c_int = 1006;

impl OwnConnection {
    /// Opens a database through a VFS. Its close neither checkpoints nor removes the WAL.
    pub fn open(
        api: &'static Api,
        vfs: NonNull<ffi::sqlite3_vfs>,
        path: &Path,
    ) -> Result<OwnConnection, String> {
        use std::os::unix::ffi::OsStrExt;
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        let mut db: Connection = ptr::null_mut();
        OPENS.set(true);
        // SAFETY: nul-terminated names; the connection is closed by Drop in any case.
        let rc = unsafe { (api.open_v2)(name.as_ptr(), &raw mut db, FLAGS, vfs.as_ref().zName) };
        OPENS.set(false);
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

    /// Closes the connection as SQLite closes one of the application: the last connection removes the WAL.
    pub fn close_as_any_other(self) {
        // SAFETY: a live connection; this setting takes an int and a pointer that may be null.
        unsafe {
            (self.api.db_config)(self.db, NO_CKPT_ON_CLOSE, 0 as c_int, ptr::null_mut::<c_int>());
        }
    }

    /// Runs a statement, and returns the first column of its first row.
    pub fn query(&self, sql: &CStr) -> Result<Option<String>, String> {
        self.api.query(self.db, sql)
    }

    /// Runs a checkpoint, which a fork may interrupt. Returns the first column of the answer: whether the
    /// checkpoint was busy.
    pub fn checkpoint(&self, sql: &CStr) -> Result<Option<String>, String> {
        let db = self.db as usize;
        checkpointing().push(Checkpointing { db, api: self.api });
        let busy = self.query(sql);
        checkpointing().retain(|other| other.db != db);
        busy
    }

    /// Returns the main database's file.
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
