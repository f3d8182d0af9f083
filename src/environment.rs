//! The process's environment, as far as it is believed.
//!
//! In a set-uid program, whoever starts it sets the variables, and walferry has the rights of another
//! user: a variable that names a replica, a log or a file of credentials would read and write files of
//! that user. The extension asks the kernel (`AT_SECURE`) and has every variable ignored there.

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};

/// First part of the names of variables that walferry and its libraries look at.
const OURS: [&str; 3] = ["WALFERRY_", "AWS_", "LITESTREAM_"];

static IGNORED: AtomicBool = AtomicBool::new(false);

/// Has every variable ignored from now on, in this process.
pub fn ignore() {
    IGNORED.store(true, Ordering::Relaxed);
}

/// True if variables are ignored.
pub fn is_ignored() -> bool {
    IGNORED.load(Ordering::Relaxed)
}

/// True if a variable is set that walferry would look at.
pub fn is_meant_for_us() -> bool {
    std::env::vars_os().any(|(name, _)| {
        let name = name.as_encoded_bytes();
        OURS.iter().any(|ours| name.starts_with(ours.as_bytes()))
    })
}

/// Returns the value of a variable.
pub fn variable(name: &str) -> Option<OsString> {
    if is_ignored() { None } else { std::env::var_os(name) }
}

/// Returns the value of a variable that is text.
pub fn text(name: &str) -> Option<String> {
    variable(name)?.into_string().ok()
}
