//! The methods of files that were opened through our VFS, and of files that were open before the extension
//! was loaded.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use libsqlite3_sys as sys;

use super::vfs::alone_with;
use super::{File, guarded};
use crate::alive;
use crate::api::{self, RawFile, SQLITE_IOERR, SQLITE_OK, Shm};
use crate::fork;
use crate::handle::Handle;
use crate::inherited;
use crate::main_file::MainFile;
use crate::opening;
use crate::registry::{self, Shimmed};
use crate::wal_file::WalFile;

/// Our file object of a main database. The real file object follows behind it in memory.
#[repr(C, align(8))]
pub(super) struct ShimFile {
    base: sys::sqlite3_file,
    /// An `Arc<Handle>` turned into a pointer.
    pub(super) handle: *const Handle,
}

/// Our file object of a WAL.
#[repr(C, align(8))]
pub(super) struct WalShim {
    base: sys::sqlite3_file,
    /// An `Arc<Shimmed>` turned into a pointer: the database of the WAL. A name that a VFS above ours made
    /// does not tell which connection has opened the WAL.
    pub(super) of: *const Shimmed,
}

/// Number of times that a write which found no room is repeated. The first time copies are dropped, the
/// second time captured transactions.
const ROOM_ATTEMPTS: usize = 2;

const _: () = assert!(size_of::<WalShim>() == size_of::<ShimFile>());

/// Offset of the real file object behind ours.
pub(super) const REAL_OFFSET: usize = size_of::<ShimFile>();

/// Finds the handle of a file: in the file object itself, or, for the file of the connection that loaded the
/// extension, in a list.
trait Locate {
    /// # Safety
    /// `file` is an open file with methods of this kind.
    unsafe fn real(file: File) -> RawFile;
    /// # Safety
    /// As above; the handle lives until the file is closed.
    unsafe fn handle<'a>(file: File) -> Option<HandleRef<'a>>;
    /// Returns the handle, even if it is not replicated any more.
    ///
    /// # Safety
    /// As above.
    unsafe fn any_handle(file: File) -> Option<Arc<Handle>>;
}

/// A handle for the time of one call. Borrowed where possible, since these calls are frequent.
enum HandleRef<'a> {
    Borrowed(&'a Handle),
    Shared(Arc<Handle>),
}

impl std::ops::Deref for HandleRef<'_> {
    type Target = Handle;
    fn deref(&self) -> &Handle {
        match self {
            HandleRef::Borrowed(handle) => handle,
            HandleRef::Shared(handle) => handle,
        }
    }
}

struct Embedded;
struct Adopted;

impl Locate for Embedded {
    unsafe fn real(file: File) -> RawFile {
        // SAFETY: xOpen laid the real file out behind our part.
        unsafe {
            let real: File = file.cast::<u8>().add(REAL_OFFSET).cast();
            RawFile { file: real, methods: (*real).pMethods }
        }
    }

    unsafe fn handle<'a>(file: File) -> Option<HandleRef<'a>> {
        // SAFETY: xOpen stored a pointer from Arc::into_raw, which xClose takes back last.
        let handle = unsafe { (*file.cast::<ShimFile>()).handle.as_ref() };
        handle.filter(|handle| handle.is_current()).map(HandleRef::Borrowed)
    }

    unsafe fn any_handle(file: File) -> Option<Arc<Handle>> {
        // SAFETY: as above; the count grows by the reference that is returned.
        unsafe {
            let handle = (*file.cast::<ShimFile>()).handle;
            if handle.is_null() {
                return None;
            }
            Arc::increment_strong_count(handle);
            Some(Arc::from_raw(handle))
        }
    }
}

impl Locate for Adopted {
    unsafe fn real(file: File) -> RawFile {
        match registry::adopted(file as usize) {
            Some(handle) => handle.real(),
            // Not possible: the methods are put back before the entry is removed.
            None => RawFile { file, methods: &raw const DEAD },
        }
    }

    unsafe fn handle<'a>(file: File) -> Option<HandleRef<'a>> {
        registry::adopted(file as usize).filter(|h| h.is_current()).map(HandleRef::Shared)
    }

    unsafe fn any_handle(file: File) -> Option<Arc<Handle>> {
        registry::adopted(file as usize)
    }
}

/// Methods of a file that is closed: none.
static DEAD: sys::sqlite3_io_methods = sys::sqlite3_io_methods {
    iVersion: 1,
    xClose: None,
    xRead: None,
    xWrite: None,
    xTruncate: None,
    xSync: None,
    xFileSize: None,
    xLock: None,
    xUnlock: None,
    xCheckReservedLock: None,
    xFileControl: None,
    xSectorSize: None,
    xDeviceCharacteristics: None,
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

macro_rules! pass {
    ($locate:ident, $file:ident, $method:ident($($argument:expr),*) else $default:expr) => {
        // SAFETY: SQLite calls with an open file of ours and arguments that fit the method.
        unsafe {
            let real = $locate::real($file);
            match (*real.methods).$method {
                Some(method) => method(real.file, $($argument),*),
                None => $default,
            }
        }
    };
}

unsafe extern "C" fn read<L: Locate>(f: File, to: *mut c_void, n: c_int, at: i64) -> c_int {
    pass!(L, f, xRead(to, n, at) else SQLITE_IOERR)
}

unsafe extern "C" fn sync<L: Locate>(f: File, flags: c_int) -> c_int {
    pass!(L, f, xSync(flags) else SQLITE_OK)
}

unsafe extern "C" fn file_size<L: Locate>(f: File, size: *mut i64) -> c_int {
    pass!(L, f, xFileSize(size) else SQLITE_IOERR)
}

unsafe extern "C" fn check_reserved<L: Locate>(f: File, out: *mut c_int) -> c_int {
    pass!(L, f, xCheckReservedLock(out) else SQLITE_OK)
}

unsafe extern "C" fn sector_size<L: Locate>(f: File) -> c_int {
    pass!(L, f, xSectorSize() else 0)
}

unsafe extern "C" fn characteristics<L: Locate>(f: File) -> c_int {
    pass!(L, f, xDeviceCharacteristics() else 0)
}

unsafe extern "C" fn shm_barrier<L: Locate>(f: File) {
    pass!(L, f, xShmBarrier() else ());
}

unsafe extern "C" fn fetch<L: Locate>(f: File, at: i64, n: c_int, to: *mut *mut c_void) -> c_int {
    pass!(L, f, xFetch(at, n, to) else SQLITE_OK)
}

unsafe extern "C" fn unfetch<L: Locate>(f: File, at: i64, p: *mut c_void) -> c_int {
    pass!(L, f, xUnfetch(at, p) else SQLITE_OK)
}

unsafe extern "C" fn main_write<L: Locate>(
    f: File,
    from: *const c_void,
    n: c_int,
    at: i64,
) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(handle) = unsafe { L::handle(f) } {
        guarded((), || MainFile(&handle).before_write());
    }
    let rc = pass!(L, f, xWrite(from, n, at) else SQLITE_IOERR);
    if !may_lack_room(rc) {
        return rc;
    }
    // SAFETY: as above.
    let of = unsafe { L::handle(f) }.map(|handle| handle.shimmed.clone());
    with_room(of.as_deref(), rc, || pass!(L, f, xWrite(from, n, at) else SQLITE_IOERR))
}

/// True if a write with this result may have found no room. SQLite reports SQLITE_FULL for a full disk, but
/// not for a quota that is used up.
fn may_lack_room(rc: c_int) -> bool {
    matches!(rc, sys::SQLITE_FULL | sys::SQLITE_IOERR_WRITE)
}

/// Repeats a write that found no room, at most [`ROOM_ATTEMPTS`] times, while the spool gives room back.
/// Without walferry, the write would have had that room.
fn with_room(of: Option<&Shimmed>, first: c_int, write: impl Fn() -> c_int) -> c_int {
    let Some(of) = of.filter(|of| !of.is_inherited()) else { return first };
    for _ in 0..ROOM_ATTEMPTS {
        let made = guarded(false, || of.database.make_room());
        // Even if no room was made now: the room may have been freed just before.
        let rc = write();
        if !may_lack_room(rc) || !made {
            return rc;
        }
    }
    first
}

unsafe extern "C" fn main_truncate<L: Locate>(f: File, size: i64) -> c_int {
    pass!(L, f, xTruncate(size) else SQLITE_IOERR)
}

unsafe extern "C" fn main_lock<L: Locate>(f: File, level: c_int) -> c_int {
    // SAFETY: an open file of ours.
    match unsafe { L::handle(f) } {
        Some(handle) => guarded(SQLITE_IOERR, || MainFile(&handle).lock(level)),
        None => pass!(L, f, xLock(level) else SQLITE_OK),
    }
}

unsafe extern "C" fn main_unlock<L: Locate>(f: File, level: c_int) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(handle) = unsafe { L::handle(f) } {
        guarded((), || MainFile(&handle).before_unlock(level));
        let rc = pass!(L, f, xUnlock(level) else SQLITE_OK);
        guarded((), || MainFile(&handle).after_unlock(level));
        return rc;
    }
    pass!(L, f, xUnlock(level) else SQLITE_OK)
}

/// A file control of our own. Returns the handle of a main database's file as a counted pointer.
pub(super) const CONTROL_HANDLE: c_int = c_int::from_be_bytes(*b"WalF");

unsafe extern "C" fn main_control<L: Locate>(f: File, op: c_int, argument: *mut c_void) -> c_int {
    if op == CONTROL_HANDLE {
        // SAFETY: an open file of ours; every caller that knows this control gives room for a pointer.
        guarded((), || unsafe {
            let handle = L::any_handle(f).map_or(ptr::null(), Arc::into_raw);
            *argument.cast::<*const Handle>() = handle;
        });
        return SQLITE_OK;
    }
    // SAFETY: an open file of ours.
    if let Some(handle) = unsafe { L::handle(f) } {
        guarded((), || MainFile(&handle).before_control(op));
    }
    let rc = pass!(L, f, xFileControl(op, argument) else sys::SQLITE_NOTFOUND);
    if op == api::SQLITE_FCNTL_VFSNAME && rc == SQLITE_OK {
        // SAFETY: this control's argument is where the VFS underneath stored a text of SQLite's.
        guarded((), || unsafe { prefix_name(argument.cast()) });
    }
    if op == sys::SQLITE_FCNTL_PERSIST_WAL && rc == SQLITE_OK {
        // SAFETY: an open file of ours; this control's argument is an int, which tells how it is set.
        unsafe {
            if let Some(handle) = L::handle(f) {
                handle.persists.store(*argument.cast::<c_int>() > 0, Ordering::Release);
            }
        }
    }
    rc
}

/// Puts our name before the name of the VFS underneath.
///
/// # Safety
/// `name` holds null or a text allocated by SQLite.
unsafe fn prefix_name(name: *mut *mut c_char) {
    let Some(api) = api::api() else { return };
    // SAFETY: vouched for by the caller; the old text is freed and replaced by one of SQLite's own.
    unsafe {
        if name.is_null() || (*name).is_null() {
            return;
        }
        let prefixed = format!("walferry/{}", CStr::from_ptr(*name).to_string_lossy());
        let replacement = api.allocate_text(&prefixed);
        if !replacement.is_null() {
            api.free_text(*name);
            *name = replacement;
        }
    }
}

unsafe extern "C" fn main_shm_map<L: Locate>(
    f: File,
    region: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    let rc = pass!(L, f, xShmMap(region, size, extend, out) else SQLITE_IOERR);
    if region == 0 && rc == SQLITE_OK {
        // SAFETY: on success the region's address, or null, is stored.
        let shm = Shm::from_pointer(unsafe { *out }.cast_const().cast_mut());
        // SAFETY: an open file of ours.
        if let Some(handle) = unsafe { L::handle(f) } {
            guarded((), || handle.set_shm(shm));
        }
    }
    rc
}

unsafe extern "C" fn main_shm_lock<L: Locate>(
    f: File,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: an open file of ours.
    match unsafe { L::handle(f) } {
        Some(handle) => guarded(SQLITE_IOERR, || MainFile(&handle).shm_lock(offset, count, flags)),
        None => {
            if (offset, flags) == (0, api::SQLITE_SHM_UNLOCK | api::SQLITE_SHM_EXCLUSIVE) {
                guarded((), fork::warn_if_inherited);
            }
            pass!(L, f, xShmLock(offset, count, flags) else SQLITE_IOERR)
        }
    }
}

unsafe extern "C" fn main_shm_unmap<L: Locate>(f: File, delete: c_int) -> c_int {
    // SAFETY: an open file of ours.
    let handle = unsafe { L::any_handle(f) };
    // Also for a handle that is not replicated any more: other threads may read the wal-index through it.
    if let Some(handle) = handle.filter(|handle| !handle.is_inherited()) {
        guarded((), || handle.unmap_shm());
    }
    pass!(L, f, xShmUnmap(delete) else SQLITE_OK)
}

unsafe extern "C" fn embedded_main_close(f: File) -> c_int {
    // SAFETY: an open file of ours; the Arc is taken back exactly once, here.
    unsafe {
        let shim = f.cast::<ShimFile>();
        let handle = std::mem::replace(&mut (*shim).handle, ptr::null());
        let real = Embedded::real(f);
        let handle = (!handle.is_null()).then(|| Arc::from_raw(handle));
        let closing = handle.map(close_handle);
        let rc = real.close();
        (*f).pMethods = ptr::null();
        after_close(closing);
        rc
    }
}

/// Ends the handle, after the file was closed.
fn after_close(handle: Option<Arc<Handle>>) {
    let Some(handle) = handle else { return };
    if handle.is_inherited() {
        guarded((), || {
            if let Some(api) = api::api() {
                inherited::closed(api, handle.shimmed.vfs, handle.database().path());
            }
        });
        // Never dropped: the handle belongs to the parent.
        std::mem::forget(handle);
    } else {
        guarded((), || {
            MainFile(&handle).after_close();
            alive::closed();
            let shimmed = handle.shimmed.clone();
            drop(handle);
            opening::closed(shimmed);
        });
    }
}

/// Does the work that is due before the file is closed, unless the handle is from before a fork. Returns the
/// handle.
fn close_handle(handle: Arc<Handle>) -> Arc<Handle> {
    if !handle.is_inherited() {
        guarded((), || MainFile(&handle).before_close());
    }
    handle
}

unsafe extern "C" fn adopted_main_close(f: File) -> c_int {
    let Some(handle) = registry::adopted(f as usize) else { return SQLITE_OK };
    let real = handle.real();
    let closing = close_handle(handle);
    // SAFETY: the file gets its own methods back before it is closed with them.
    unsafe { (*f).pMethods = real.methods };
    registry::forget_adopted(f as usize);
    let rc = real.close();
    after_close(Some(closing));
    rc
}

/// Returns the connection that has the WAL's database exclusively. No other connection writes to the WAL
/// then.
///
/// # Safety
/// `f` is an open WAL of ours.
unsafe fn alone_in(f: File) -> Option<Arc<Handle>> {
    // SAFETY: xOpen stored a pointer from Arc::into_raw, which xClose takes back last.
    let of = unsafe { (*f.cast::<WalShim>()).of.as_ref() };
    alone_with(of?)
}

unsafe extern "C" fn wal_write(f: File, from: *const c_void, n: c_int, at: i64) -> c_int {
    // SAFETY: an open file of ours; SQLite gives `n` readable bytes.
    unsafe {
        if let Some(handle) = alone_in(f) {
            let len = usize::try_from(n).unwrap_or(0).min(32);
            let front = std::slice::from_raw_parts(from.cast::<u8>(), len);
            let at = u64::try_from(at).unwrap_or(0);
            guarded((), || WalFile(&handle).before_write(front, n, at));
        }
    }
    let rc = pass!(Embedded, f, xWrite(from, n, at) else SQLITE_IOERR);
    if !may_lack_room(rc) {
        return rc;
    }
    // SAFETY: xOpen stored a pointer from Arc::into_raw, which xClose takes back last.
    let of = unsafe { (*f.cast::<WalShim>()).of.as_ref() };
    with_room(of, rc, || pass!(Embedded, f, xWrite(from, n, at) else SQLITE_IOERR))
}

unsafe extern "C" fn wal_truncate(f: File, size: i64) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(handle) = unsafe { alone_in(f) } {
        guarded((), || WalFile(&handle).before_truncate(size));
    }
    pass!(Embedded, f, xTruncate(size) else SQLITE_IOERR)
}

unsafe extern "C" fn wal_lock(f: File, level: c_int) -> c_int {
    pass!(Embedded, f, xLock(level) else SQLITE_OK)
}

unsafe extern "C" fn wal_unlock(f: File, level: c_int) -> c_int {
    pass!(Embedded, f, xUnlock(level) else SQLITE_OK)
}

unsafe extern "C" fn wal_control(f: File, op: c_int, argument: *mut c_void) -> c_int {
    pass!(Embedded, f, xFileControl(op, argument) else sys::SQLITE_NOTFOUND)
}

unsafe extern "C" fn wal_close(f: File) -> c_int {
    // SAFETY: an open file of ours; the Arc is taken back exactly once, here.
    unsafe {
        let shim = f.cast::<WalShim>();
        let of = std::mem::replace(&mut (*shim).of, ptr::null());
        let real = Embedded::real(f);
        if !of.is_null() {
            let of = Arc::from_raw(of);
            if of.is_inherited() {
                std::mem::forget(of);
            } else {
                guarded((), || drop(of));
            }
        }
        let rc = real.close();
        (*f).pMethods = ptr::null();
        rc
    }
}

const fn main_methods<L: Locate>(
    version: c_int,
    close: unsafe extern "C" fn(File) -> c_int,
) -> sys::sqlite3_io_methods {
    sys::sqlite3_io_methods {
        iVersion: version,
        xClose: Some(close),
        xRead: Some(read::<L>),
        xWrite: Some(main_write::<L>),
        xTruncate: Some(main_truncate::<L>),
        xSync: Some(sync::<L>),
        xFileSize: Some(file_size::<L>),
        xLock: Some(main_lock::<L>),
        xUnlock: Some(main_unlock::<L>),
        xCheckReservedLock: Some(check_reserved::<L>),
        xFileControl: Some(main_control::<L>),
        xSectorSize: Some(sector_size::<L>),
        xDeviceCharacteristics: Some(characteristics::<L>),
        xShmMap: Some(main_shm_map::<L>),
        xShmLock: Some(main_shm_lock::<L>),
        xShmBarrier: Some(shm_barrier::<L>),
        xShmUnmap: Some(main_shm_unmap::<L>),
        xFetch: Some(fetch::<L>),
        xUnfetch: Some(unfetch::<L>),
    }
}

/// Methods for a file whose VFS has no shared memory. SQLite then allows no WAL mode.
pub(super) static NO_SHM: sys::sqlite3_io_methods = sys::sqlite3_io_methods {
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    ..main_methods::<Embedded>(1, embedded_main_close)
};
pub(super) static EMBEDDED_2: sys::sqlite3_io_methods =
    main_methods::<Embedded>(2, embedded_main_close);
pub(super) static EMBEDDED_3: sys::sqlite3_io_methods =
    main_methods::<Embedded>(3, embedded_main_close);
pub(super) static ADOPTED_2: sys::sqlite3_io_methods =
    main_methods::<Adopted>(2, adopted_main_close);
pub(super) static ADOPTED_3: sys::sqlite3_io_methods =
    main_methods::<Adopted>(3, adopted_main_close);
/// Methods of a WAL, which has neither shared memory nor memory-mapped pages.
pub(super) static WAL_1: sys::sqlite3_io_methods = sys::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(wal_close),
    xRead: Some(read::<Embedded>),
    xWrite: Some(wal_write),
    xTruncate: Some(wal_truncate),
    xSync: Some(sync::<Embedded>),
    xFileSize: Some(file_size::<Embedded>),
    xLock: Some(wal_lock),
    xUnlock: Some(wal_unlock),
    xCheckReservedLock: Some(check_reserved::<Embedded>),
    xFileControl: Some(wal_control),
    xSectorSize: Some(sector_size::<Embedded>),
    xDeviceCharacteristics: Some(characteristics::<Embedded>),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

pub(super) fn is_ours(methods: *const sys::sqlite3_io_methods) -> bool {
    [&NO_SHM, &EMBEDDED_2, &EMBEDDED_3, &ADOPTED_2, &ADOPTED_3]
        .iter()
        .any(|ours| ptr::eq(*ours, methods))
}
