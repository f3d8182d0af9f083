//! The process's environment, unless it must be ignored.
//!
//! In a set-uid program, the calling user sets the variables, and walferry has the rights of another user. A
//! variable that names a replica, a log or a file of credentials would read and write files of that other
//! user. The extension asks the kernel (`AT_SECURE`) and then ignores every variable.

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};

/// Prefixes of the variables that walferry and its libraries read.
const OURS: [&str; 3] = ["WALFERRY_", "AWS_", "LITESTREAM_"];

static IGNORED: AtomicBool = AtomicBool::new(false);

/// Makes this process ignore every variable from now on.
pub fn ignore() {
    IGNORED.store(true, Ordering::Relaxed);
}

/// True if variables are ignored.
pub fn is_ignored() -> bool {
    IGNORED.load(Ordering::Relaxed)
}

/// True if a variable is set that walferry would read.
pub fn is_meant_for_us() -> bool {
    std::env::vars_os().any(|(name, _)| {
        let name = name.as_encoded_bytes();
        OURS.iter().any(|ours| name.starts_with(ours.as_bytes()))
    })
}

/// Returns the value of a variable; `None` if variables are ignored.
pub fn variable(name: &str) -> Option<OsString> {
    if is_ignored() { None } else { std::env::var_os(name) }
}

/// Returns the value of a variable if that is UTF-8.
pub fn text(name: &str) -> Option<String> {
    variable(name)?.into_string().ok()
}
