//! The callbacks that SQLite calls: the VFS's and the files' methods, the SQL functions, and the
//! entry point. Each only finds its object, runs safe code behind `catch_unwind`, and answers with
//! an SQLite code. What is not walferry's business goes straight to the VFS underneath.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libsqlite3_sys as sys;

use crate::api::{self, Api, RawFile, SQLITE_ERROR, SQLITE_IOERR, SQLITE_OK, Shm};
use crate::fork;
use crate::functions;
use crate::handle::Handle;
use crate::main_file::MainFile;
use crate::registry;
use crate::wal_file::WalFile;

type File = *mut sys::sqlite3_file;
type Vfs = *mut sys::sqlite3_vfs;

/// What stands where SQLite expects a file of ours: our own part, then the real file.
#[repr(C, align(8))]
struct ShimFile {
    base: sys::sqlite3_file,
    /// An `Arc<Handle>` turned into a pointer.
    handle: *const Handle,
}

/// Where in our file object the real one begins.
const REAL_OFFSET: usize = size_of::<ShimFile>();

/// How a method finds its handle: in the file object itself, or, for the file of the connection
/// that loaded the extension, in a list.
trait Locate {
    /// # Safety
    /// `file` is an open file with methods of this kind.
    unsafe fn real(file: File) -> RawFile;
    /// # Safety
    /// As above; the handle lives until the file is closed.
    unsafe fn handle<'a>(file: File) -> Option<HandleRef<'a>>;
}

/// A handle for the time of one call; borrowed where that is possible, since these calls are many.
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
}

impl Locate for Adopted {
    unsafe fn real(file: File) -> RawFile {
        match registry::adopted(file as usize) {
            Some(handle) => handle.real(),
            // Cannot be: the methods are put back before the entry is removed.
            None => RawFile { file, methods: &raw const DEAD },
        }
    }

    unsafe fn handle<'a>(file: File) -> Option<HandleRef<'a>> {
        registry::adopted(file as usize).filter(|h| h.is_current()).map(HandleRef::Shared)
    }
}

/// Methods of a file that is gone: none.
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

/// Runs safe code; a panic becomes this answer instead of crossing into SQLite.
fn guarded<T>(on_panic: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(on_panic)
}

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
    pass!(L, f, xWrite(from, n, at) else SQLITE_IOERR)
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
    }
    pass!(L, f, xUnlock(level) else SQLITE_OK)
}

unsafe extern "C" fn main_control<L: Locate>(f: File, op: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(handle) = unsafe { L::handle(f) } {
        guarded((), || MainFile(&handle).before_control(op));
    }
    let rc = pass!(L, f, xFileControl(op, argument) else sys::SQLITE_NOTFOUND);
    if op == api::SQLITE_FCNTL_VFSNAME && rc == SQLITE_OK {
        // SAFETY: this control's argument is where the VFS underneath stored a text of SQLite's.
        guarded((), || unsafe { prefix_name(argument.cast()) });
    }
    rc
}

/// Puts our name before that of the VFS underneath.
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
                guarded((), fork::warn_of_inherited);
            }
            pass!(L, f, xShmLock(offset, count, flags) else SQLITE_IOERR)
        }
    }
}

unsafe extern "C" fn main_shm_unmap<L: Locate>(f: File, delete: c_int) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(handle) = unsafe { L::handle(f) } {
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
        if !handle.is_null() {
            let handle = Arc::from_raw(handle);
            close_handle(handle);
        }
        let rc = real.close();
        (*f).pMethods = ptr::null();
        rc
    }
}

/// Ends what a handle is to the library. One that a fork has brought here is the parent's.
fn close_handle(handle: Arc<Handle>) {
    if handle.is_current() {
        guarded((), || MainFile(&handle).before_close());
    } else {
        std::mem::forget(handle);
    }
}

unsafe extern "C" fn adopted_main_close(f: File) -> c_int {
    let Some(handle) = registry::adopted(f as usize) else { return SQLITE_OK };
    let real = handle.real();
    close_handle(handle);
    // SAFETY: the file gets its own methods back before it is closed with them.
    unsafe { (*f).pMethods = real.methods };
    registry::forget_adopted(f as usize);
    real.close()
}

unsafe extern "C" fn wal_write(f: File, from: *const c_void, n: c_int, at: i64) -> c_int {
    // SAFETY: an open file of ours; SQLite gives `n` readable bytes.
    unsafe {
        if let Some(handle) = Embedded::handle(f).filter(|handle| handle.is_exclusive()) {
            let len = usize::try_from(n).unwrap_or(0).min(32);
            let front = std::slice::from_raw_parts(from.cast::<u8>(), len);
            let at = u64::try_from(at).unwrap_or(0);
            guarded((), || WalFile(&handle).before_write(front, n, at));
        }
    }
    pass!(Embedded, f, xWrite(from, n, at) else SQLITE_IOERR)
}

unsafe extern "C" fn wal_truncate(f: File, size: i64) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(handle) = unsafe { Embedded::handle(f) } {
        guarded((), || WalFile(&handle).before_overwrite());
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
        let shim = f.cast::<ShimFile>();
        let handle = std::mem::replace(&mut (*shim).handle, ptr::null());
        let real = Embedded::real(f);
        if !handle.is_null() {
            let main = Arc::from_raw(handle);
            if main.is_current() {
                guarded((), || drop(main));
            } else {
                std::mem::forget(main);
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

static EMBEDDED_2: sys::sqlite3_io_methods = main_methods::<Embedded>(2, embedded_main_close);
static EMBEDDED_3: sys::sqlite3_io_methods = main_methods::<Embedded>(3, embedded_main_close);
static ADOPTED_2: sys::sqlite3_io_methods = main_methods::<Adopted>(2, adopted_main_close);
static ADOPTED_3: sys::sqlite3_io_methods = main_methods::<Adopted>(3, adopted_main_close);
/// A WAL has neither shared memory nor memory-mapped pages.
static WAL_1: sys::sqlite3_io_methods = sys::sqlite3_io_methods {
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

fn is_ours(methods: *const sys::sqlite3_io_methods) -> bool {
    [&EMBEDDED_2, &EMBEDDED_3, &ADOPTED_2, &ADOPTED_3].iter().any(|ours| ptr::eq(*ours, methods))
}

// The VFS.

/// The VFS underneath.
///
/// # Safety
/// `vfs` is ours.
unsafe fn base_of(vfs: Vfs) -> Vfs {
    // SAFETY: set when it was registered, never changed.
    unsafe { (*vfs).pAppData.cast() }
}

unsafe extern "C" fn vfs_open(
    vfs: Vfs,
    name: *const c_char,
    file: File,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives a name of its own, memory of szOsFile bytes, and our own VFS.
    unsafe {
        let base = base_of(vfs);
        let Some(open) = (*base).xOpen else { return SQLITE_ERROR };
        (*file).pMethods = ptr::null();
        let handle = guarded(None, || handle_for(base, name, flags));
        let Some(handle) = handle else {
            // Not ours to look at: SQLite gets the real file itself.
            return open(base, name, file, flags, out_flags);
        };
        let real: File = file.cast::<u8>().add(REAL_OFFSET).cast();
        ptr::write_bytes(real.cast::<u8>(), 0, usize::try_from((*base).szOsFile).unwrap_or(0));
        let rc = open(base, name, real, flags, out_flags);
        let methods = (*real).pMethods;
        if rc != SQLITE_OK || methods.is_null() {
            if !methods.is_null() {
                RawFile { file: real, methods }.close();
            }
            return rc;
        }
        let is_main = flags & api::SQLITE_OPEN_MAIN_DB != 0;
        let real = RawFile { file: real, methods };
        let shim = file.cast::<ShimFile>();
        (*shim).handle = ptr::null();
        if is_main {
            let made = guarded(None, || Handle::open_main(handle, real, false));
            let version = real.version().min(3);
            (*file).pMethods =
                if version >= 3 { &raw const EMBEDDED_3 } else { &raw const EMBEDDED_2 };
            // Without a handle, as when the VFS cannot share memory, the methods pass all on.
            (*shim).handle = made.map_or(ptr::null(), Arc::into_raw);
        } else {
            (*file).pMethods = &raw const WAL_1;
            let Target::Wal(main) = handle else { return rc };
            (*shim).handle = Arc::into_raw(main);
        }
        rc
    }
}

/// What a file that is being opened belongs to.
pub enum Target {
    /// A database to be replicated.
    Main(registry::Replicated),
    /// The WAL of one that is.
    Wal(Arc<Handle>),
}

/// # Safety
/// `base` is the VFS underneath and `name` comes from SQLite.
unsafe fn handle_for_unchecked(base: Vfs, name: *const c_char, flags: c_int) -> Option<Target> {
    let api = api::api()?;
    // SAFETY: vouched for by the caller.
    unsafe {
        if flags & api::SQLITE_OPEN_MAIN_DB != 0 {
            let path = api::path_of(name)?;
            let lookup = registry::UriLookup::new(|key| api.uri_parameter(name, key));
            let base = NonNull::new(base)?;
            return registry::replicated(&path, &lookup, api::BaseVfs(base)).map(Target::Main);
        }
        if flags & api::SQLITE_OPEN_WAL != 0 {
            let main = api.database_file(name);
            if main.is_null() || !is_ours((*main).pMethods) || is_adopted((*main).pMethods) {
                return None;
            }
            let handle = (*main.cast::<ShimFile>()).handle;
            if handle.is_null() {
                return None;
            }
            Arc::increment_strong_count(handle);
            return Some(Target::Wal(Arc::from_raw(handle)));
        }
    }
    None
}

fn handle_for(base: Vfs, name: *const c_char, flags: c_int) -> Option<Target> {
    if name.is_null() {
        return None;
    }
    // SAFETY: called by vfs_open alone, with what SQLite gave it.
    unsafe { handle_for_unchecked(base, name, flags) }
}

fn is_adopted(methods: *const sys::sqlite3_io_methods) -> bool {
    ptr::eq(&raw const ADOPTED_2, methods) || ptr::eq(&raw const ADOPTED_3, methods)
}

macro_rules! pass_vfs {
    ($vfs:ident.$method:ident($($argument:expr),*) else $default:expr) => {
        // SAFETY: SQLite calls with our VFS and arguments that fit the method.
        unsafe {
            let base = base_of($vfs);
            match (*base).$method {
                Some(method) => method(base, $($argument),*),
                None => $default,
            }
        }
    };
}

unsafe extern "C" fn vfs_delete(vfs: Vfs, name: *const c_char, sync: c_int) -> c_int {
    pass_vfs!(vfs.xDelete(name, sync) else SQLITE_ERROR)
}

unsafe extern "C" fn vfs_access(
    vfs: Vfs,
    name: *const c_char,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    pass_vfs!(vfs.xAccess(name, flags, out) else SQLITE_ERROR)
}

unsafe extern "C" fn vfs_full_pathname(
    vfs: Vfs,
    name: *const c_char,
    n: c_int,
    out: *mut c_char,
) -> c_int {
    pass_vfs!(vfs.xFullPathname(name, n, out) else SQLITE_ERROR)
}

unsafe extern "C" fn vfs_dl_open(vfs: Vfs, name: *const c_char) -> *mut c_void {
    pass_vfs!(vfs.xDlOpen(name) else ptr::null_mut())
}

unsafe extern "C" fn vfs_dl_error(vfs: Vfs, n: c_int, out: *mut c_char) {
    pass_vfs!(vfs.xDlError(n, out) else ());
}

type Symbol = Option<unsafe extern "C" fn(Vfs, *mut c_void, *const c_char)>;

unsafe extern "C" fn vfs_dl_sym(vfs: Vfs, library: *mut c_void, name: *const c_char) -> Symbol {
    pass_vfs!(vfs.xDlSym(library, name) else None)
}

unsafe extern "C" fn vfs_dl_close(vfs: Vfs, library: *mut c_void) {
    pass_vfs!(vfs.xDlClose(library) else ());
}

unsafe extern "C" fn vfs_randomness(vfs: Vfs, n: c_int, out: *mut c_char) -> c_int {
    pass_vfs!(vfs.xRandomness(n, out) else 0)
}

unsafe extern "C" fn vfs_sleep(vfs: Vfs, microseconds: c_int) -> c_int {
    pass_vfs!(vfs.xSleep(microseconds) else 0)
}

unsafe extern "C" fn vfs_current_time(vfs: Vfs, out: *mut f64) -> c_int {
    pass_vfs!(vfs.xCurrentTime(out) else SQLITE_ERROR)
}

unsafe extern "C" fn vfs_last_error(vfs: Vfs, n: c_int, out: *mut c_char) -> c_int {
    pass_vfs!(vfs.xGetLastError(n, out) else 0)
}

unsafe extern "C" fn vfs_current_time_64(vfs: Vfs, out: *mut i64) -> c_int {
    pass_vfs!(vfs.xCurrentTimeInt64(out) else SQLITE_ERROR)
}

unsafe extern "C" fn vfs_set_call(
    vfs: Vfs,
    name: *const c_char,
    call: sys::sqlite3_syscall_ptr,
) -> c_int {
    pass_vfs!(vfs.xSetSystemCall(name, call) else sys::SQLITE_NOTFOUND)
}

unsafe extern "C" fn vfs_get_call(vfs: Vfs, name: *const c_char) -> sys::sqlite3_syscall_ptr {
    pass_vfs!(vfs.xGetSystemCall(name) else None)
}

unsafe extern "C" fn vfs_next_call(vfs: Vfs, name: *const c_char) -> *const c_char {
    pass_vfs!(vfs.xNextSystemCall(name) else ptr::null())
}

/// Registers our VFS around the host's default one, once.
pub fn register_vfs(api: &'static Api, default: bool) -> Result<(), String> {
    const NAME: &CStr = c"walferry";
    if api.find_vfs(Some(NAME)).is_some() {
        return Ok(());
    }
    let base = api.find_vfs(None).ok_or("this SQLite has no VFS")?;
    // SAFETY: a registered VFS.
    let under = unsafe { base.as_ref() };
    let has = |version: c_int| under.iVersion >= version;
    let vfs = Box::leak(Box::new(sys::sqlite3_vfs {
        iVersion: under.iVersion.min(3),
        szOsFile: under.szOsFile.saturating_add(c_int::try_from(REAL_OFFSET).unwrap_or(64)),
        mxPathname: under.mxPathname,
        pNext: ptr::null_mut(),
        zName: NAME.as_ptr(),
        pAppData: base.as_ptr().cast(),
        xOpen: Some(vfs_open),
        xDelete: Some(vfs_delete),
        xAccess: Some(vfs_access),
        xFullPathname: Some(vfs_full_pathname),
        xDlOpen: under.xDlOpen.map(|_| vfs_dl_open as _),
        xDlError: under.xDlError.map(|_| vfs_dl_error as _),
        xDlSym: under.xDlSym.map(|_| vfs_dl_sym as _),
        xDlClose: under.xDlClose.map(|_| vfs_dl_close as _),
        xRandomness: Some(vfs_randomness),
        xSleep: Some(vfs_sleep),
        xCurrentTime: Some(vfs_current_time),
        xGetLastError: under.xGetLastError.map(|_| vfs_last_error as _),
        xCurrentTimeInt64: (has(2) && under.xCurrentTimeInt64.is_some())
            .then_some(vfs_current_time_64 as _),
        xSetSystemCall: has(3).then_some(vfs_set_call as _),
        xGetSystemCall: has(3).then_some(vfs_get_call as _),
        xNextSystemCall: has(3).then_some(vfs_next_call as _),
    }));
    match api.register_vfs(vfs, default) {
        SQLITE_OK => Ok(()),
        rc => Err(format!("SQLite refused the VFS walferry (error {rc})")),
    }
}

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
        let Some(base) = registry::base_vfs(api) else { return };
        let lookup = registry::UriLookup::new(|key| api.uri_parameter(name, key));
        let Some(replicated) = registry::replicated(&path, &lookup, base) else { return };
        let real = RawFile { file, methods };
        let Some(handle) = Handle::open_main(Target::Main(replicated), real, true) else { return };
        registry::adopt(file as usize, handle);
        (*file).pMethods =
            if real.version() >= 3 { &raw const ADOPTED_3 } else { &raw const ADOPTED_2 };
    }
}

// SQL functions and entry points.

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
            let panicked = Err("an internal error of walferry".to_string());
            api.result(context, guarded(panicked, || $body(&call, &arguments)));
        }
    };
}

sql_function!(version => functions::version);
sql_function!(txid => functions::txid);
sql_function!(lag => functions::lag);
sql_function!(status => functions::status);
sql_function!(sync_now => functions::sync);
sql_function!(wait => functions::wait);

fn define_functions(api: &Api, db: api::Connection) {
    api.define(db, c"walferry_version", 0, version);
    api.define(db, c"walferry_txid", 0, txid);
    api.define(db, c"walferry_lag", 0, lag);
    api.define(db, c"walferry_status", 0, status);
    api.define(db, c"walferry_sync", -1, sync_now);
    api.define(db, c"walferry_wait", -1, wait);
}

/// Called by SQLite for each connection that is opened after the extension was loaded.
unsafe extern "C" fn on_open(
    db: api::Connection,
    _message: *mut *mut c_char,
    _routines: *const sys::sqlite3_api_routines,
) -> c_int {
    if let Some(api) = api::api() {
        guarded((), || {
            define_functions(api, db);
            functions::prepare_connection(api, db);
        });
    }
    SQLITE_OK
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
        crate::start(api)?;
        define_functions(api, db);
        adopt(api, db, c"main");
        functions::prepare_connection(api, db);
        // SAFETY: SQLite calls an automatic extension with an entry point's arguments, whatever
        // type the registration asks for (https://sqlite.org/c3ref/auto_extension.html).
        let entry = unsafe {
            std::mem::transmute::<
                unsafe extern "C" fn(
                    api::Connection,
                    *mut *mut c_char,
                    *const sys::sqlite3_api_routines,
                ) -> c_int,
                unsafe extern "C" fn(),
            >(on_open)
        };
        match api.on_open(entry) {
            SQLITE_OK => Ok(()),
            rc => Err(format!("SQLite refused the automatic extension (error {rc})")),
        }
    });
    match result {
        Ok(()) => sys::SQLITE_OK_LOAD_PERMANENTLY,
        Err(why) => {
            // SAFETY: SQLite frees the message, so it must be of SQLite's own memory.
            unsafe {
                let api = api::api();
                if let (false, Some(api)) = (message.is_null(), api) {
                    *message = api.allocate_text(&why);
                }
            }
            SQLITE_ERROR
        }
    }
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
