//! The methods of our VFS. All but `xOpen` pass their calls on.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::num::NonZeroUsize;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use libsqlite3_sys as sys;

use super::file::{EMBEDDED_2, EMBEDDED_3, NO_SHM, REAL_OFFSET, ShimFile, WAL_1, WalShim};
use super::{File, Vfs, guarded};
use crate::api::{self, Api, RawFile, SQLITE_ERROR, SQLITE_OK};
use crate::handle::Handle;
use crate::inherited;
use crate::inside;
use crate::log_sink;
use crate::main_file::MainFile;
use crate::opening::{self, Opening, UriLookup};
use crate::registry::{self, Shimmed};

/// Returns the VFS underneath.
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
    // SAFETY: the caller, SQLite or a VFS above, gives a name, memory of szOsFile bytes, and our own VFS.
    unsafe {
        let base = base_of(vfs);
        let Some(open) = (*base).xOpen else { return SQLITE_ERROR };
        (*file).pMethods = ptr::null();
        let handle = guarded(None, || handle_for(base, name, flags));
        if matches!(handle, Some(Target::Refused)) {
            return sys::SQLITE_CANTOPEN;
        }
        let Some(handle) = handle else {
            // The file does not matter to walferry: SQLite gets the real file object.
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
            guarded((), || opening::failed(handle));
            return rc;
        }
        let is_main = flags & api::SQLITE_OPEN_MAIN_DB != 0;
        let real = RawFile { file: real, methods };
        let shim = file.cast::<ShimFile>();
        (*shim).handle = ptr::null();
        if is_main {
            let made = guarded(None, || Handle::open_main(handle, real, false));
            (*file).pMethods = match real.version() {
                _ if !real.has_shm() => &raw const NO_SHM,
                ..=2 => &raw const EMBEDDED_2,
                _ => &raw const EMBEDDED_3,
            };
            // Without a handle, as when the VFS cannot share memory, the methods pass all calls on.
            (*shim).handle = made.map_or(ptr::null(), Arc::into_raw);
        } else {
            (*file).pMethods = &raw const WAL_1;
            let Target::Wal(of) = handle else { return rc };
            guarded((), || {
                if let Some(handle) = alone_with(&of) {
                    MainFile(&handle).opened_wal_alone();
                }
            });
            (*file.cast::<WalShim>()).of = Arc::into_raw(of);
        }
        rc
    }
}

/// Returns the connection that has a database exclusively. No other connection opens the WAL, or writes to
/// it, then.
pub(super) fn alone_with(of: &Shimmed) -> Option<Arc<Handle>> {
    of.alone().filter(|handle| handle.is_current() && handle.is_exclusive())
}

/// Role of a file that is being opened.
pub enum Target {
    /// A database that is to be replicated.
    Main(registry::Replicated),
    /// The WAL of a replicated database.
    Wal(Arc<Shimmed>),
    /// A database that is not opened, since its settings make replication impossible.
    Refused,
}

/// # Safety
/// `base` is the VFS underneath, and `name` the name of a file. With `SQLITE_OPEN_URI` in the flags, the
/// parameters stand behind the name, as in names of SQLite's own. A VFS that stands above gives names of its
/// own.
unsafe fn handle_for_unchecked(base: Vfs, name: *const c_char, flags: c_int) -> Option<Target> {
    let api = api::api()?;
    // SAFETY: vouched for by the caller.
    unsafe {
        if flags & api::SQLITE_OPEN_MAIN_DB != 0 {
            let path = api::path_of(name)?;
            log_sink::opens(&path);
            if inside::is_cut_off() {
                let has_parameters = flags & api::SQLITE_OPEN_URI != 0;
                let parameter = |key: &str| {
                    if has_parameters { api.uri_parameter(name, key) } else { None }
                };
                let opening = opening::cut_off(&path, &UriLookup::new(parameter));
                return matches!(opening, Opening::Refused).then_some(Target::Refused);
            }
            // Also for a database that is not replicated here: the parent may replicate it.
            inherited::set_aside(api, api::BaseVfs(NonNull::new(base)?), &path);
            let has_parameters = flags & api::SQLITE_OPEN_URI != 0;
            let lookup =
                UriLookup::new(
                    |key| {
                        if has_parameters { api.uri_parameter(name, key) } else { None }
                    },
                );
            if has_parameters {
                opening::look_at_parameters(&path, &api.uri_keys(name));
            }
            let base = NonNull::new(base)?;
            return match opening::replicated(&path, &lookup, api::BaseVfs(base)) {
                Opening::Plain => None,
                Opening::Replicated(replicated) => Some(Target::Main(replicated)),
                Opening::Refused => Some(Target::Refused),
            };
        }
        if flags & api::SQLITE_OPEN_WAL != 0 && !inside::is_cut_off() {
            return registry::of_wal(&api::path_of(name)?).map(Target::Wal);
        }
    }
    None
}

fn handle_for(base: Vfs, name: *const c_char, flags: c_int) -> Option<Target> {
    if name.is_null() {
        return None;
    }
    // SAFETY: only vfs_open calls this, with the arguments that it was called with.
    unsafe { handle_for_unchecked(base, name, flags) }
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

const NAME: &CStr = c"walferry";

/// Our VFS, once it was registered. It lives as long as the process.
static OURS: AtomicPtr<sys::sqlite3_vfs> = AtomicPtr::new(ptr::null_mut());
/// Addresses of the VFSes that were registered before ours.
static OLDER: OnceLock<Vec<NonZeroUsize>> = OnceLock::new();

/// Keeps two threads that load the extension at once from wrapping one VFS around the other. Locked around a
/// fork.
pub static REGISTERING: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Registers our VFS around the host's default one. At a later load, makes our VFS the default again if
/// `sqlite3_shutdown()` has ended that.
pub fn register_vfs(api: &'static Api, default: bool) -> Result<(), String> {
    let _turn = walferry::withheld::lock(&REGISTERING);
    match NonNull::new(OURS.load(Ordering::Acquire)) {
        Some(ours) => register_again(api, ours, default),
        None => register_first(api, default),
    }
}

fn register_again(
    api: &'static Api,
    ours: NonNull<sys::sqlite3_vfs>,
    default: bool,
) -> Result<(), String> {
    let registered = api.find_vfs(Some(NAME));
    if registered.is_some_and(|registered| registered != ours) {
        return Err("another VFS is called walferry".into());
    }
    // SAFETY: our own VFS; the one underneath was set when it was registered, and never changed.
    let base = unsafe { base_of(ours.as_ptr()) };
    // A VFS that has become the default since then, and stands above ours, stays the default.
    let now = api.find_vfs(None);
    let wanted = default && now.is_none_or(|now| now.as_ptr() == base);
    let is_older = |now: NonNull<_>| OLDER.get().is_some_and(|older| older.contains(&now.addr()));
    if default && !wanted && now.is_some_and(is_older) {
        tell_not_default();
    }
    if registered.is_some() && !wanted {
        return Ok(());
    }
    registered_with(api.register_vfs(ours, wanted))
}

/// Warns, once, that walferry does not become the default VFS again. The default is another VFS than at the
/// first load: through walferry, a database would get other locks and files than the application asked for.
fn tell_not_default() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        log::warn!(
            "walferry is not the default VFS again, since the default is another one than it was when \
             walferry was loaded first: nothing is replicated but what is opened with vfs=walferry"
        );
    }
}

/// True if a VFS was registered after ours. Such a VFS may stand above the default VFS or one that a
/// connection names, and change the bytes. Connections of our own would bypass it.
pub fn stands_above(api: &Api) -> bool {
    let Some(ours) = NonNull::new(OURS.load(Ordering::Acquire)) else { return false };
    let older = OLDER.get().map(Vec::as_slice).unwrap_or_default();
    api.all_vfs().into_iter().any(|vfs| vfs != ours && !older.contains(&vfs.addr()))
}

/// True if our VFS was registered, perhaps before a `sqlite3_shutdown()`.
pub(super) fn is_registered() -> bool {
    !OURS.load(Ordering::Acquire).is_null()
}

fn registered_with(rc: c_int) -> Result<(), String> {
    match rc {
        SQLITE_OK => Ok(()),
        rc => Err(format!("SQLite refused the VFS walferry (error {rc})")),
    }
}

fn register_first(api: &'static Api, default: bool) -> Result<(), String> {
    if api.find_vfs(Some(NAME)).is_some() {
        return Err("another VFS is called walferry".into());
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
    let ours = NonNull::from(vfs);
    OLDER.get_or_init(|| api.all_vfs().into_iter().map(NonNull::addr).collect());
    registered_with(api.register_vfs(ours, default))?;
    OURS.store(ours.as_ptr(), Ordering::Release);
    Ok(())
}
