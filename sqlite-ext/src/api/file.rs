//! Files of the VFS underneath.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};

use libsqlite3_sys as ffi;

use super::shm::{SHM_REGION, Shm};
use super::{
    Api, SQLITE_ERROR, SQLITE_IOERR, SQLITE_OK, SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_READWRITE,
};

/// A file of the VFS underneath: its object and its methods.
#[derive(Clone, Copy)]
pub struct RawFile {
    /// The file object.
    pub file: *mut ffi::sqlite3_file,
    /// The methods of the file object.
    pub methods: *const ffi::sqlite3_io_methods,
}

// SAFETY: both pointers stay valid as long as the file is open; SQLite's file methods may be called from any
// thread as long as two do not call at once, and the holders of a `RawFile` ensure that.
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
    /// Returns the version of the methods' structure.
    pub fn version(&self) -> c_int {
        // SAFETY: the file is open, so its methods are set.
        unsafe { (*self.methods).iVersion }
    }

    /// True if the file can have a wal-index in shared memory.
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

    /// `xShmMap`. `None` if the region does not exist and `extend` is false.
    pub fn shm_region(&self, number: c_int, extend: bool) -> Option<Shm> {
        let mut region: *mut c_void = ptr::null_mut();
        let out = (&raw mut region).cast();
        let rc = forward!(self.xShmMap(number, SHM_REGION, c_int::from(extend), out)
            else SQLITE_ERROR);
        NonNull::new(region.cast::<u8>()).filter(|_| rc == SQLITE_OK).map(Shm)
    }

    /// True if reads may go through a memory map, which another thread must not touch.
    pub fn is_mapped(&self) -> bool {
        const SQLITE_FCNTL_MMAP_SIZE: c_int = 18;
        let mut limit: i64 = -1;
        let rc = forward!(self.xFileControl(SQLITE_FCNTL_MMAP_SIZE, (&raw mut limit).cast())
            else SQLITE_ERROR);
        rc == SQLITE_OK && limit > 0
    }

    /// True if the VFS reports that the path of this file now names another file, or none.
    pub fn has_moved(&self) -> bool {
        const SQLITE_FCNTL_HAS_MOVED: c_int = 20;
        let mut moved: c_int = 0;
        let rc = forward!(self.xFileControl(SQLITE_FCNTL_HAS_MOVED, (&raw mut moved).cast())
            else SQLITE_ERROR);
        rc == SQLITE_OK && moved != 0
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

/// A file of the VFS underneath that walferry has opened, with its memory.
pub struct OwnFile {
    raw: RawFile,
    _memory: Vec<u64>,
    name: *mut c_char,
    api: &'static Api,
}

// SAFETY: as for `RawFile`; the drop frees the name.
unsafe impl Send for OwnFile {}

impl OwnFile {
    /// Opens a main database through this VFS.
    pub fn open(api: &'static Api, vfs: NonNull<ffi::sqlite3_vfs>, path: &Path) -> Option<OwnFile> {
        OwnFile::open_with(api, vfs, path, SQLITE_OPEN_READWRITE)
    }

    /// Opens a main database with flags of `xOpen`.
    pub fn open_with(
        api: &'static Api,
        vfs: NonNull<ffi::sqlite3_vfs>,
        path: &Path,
        flags: c_int,
    ) -> Option<OwnFile> {
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
            let flags = SQLITE_OPEN_MAIN_DB | flags;
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

    /// Returns the file object and its methods.
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
