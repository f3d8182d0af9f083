//! The extension beside the program: where it is found, and how it gets into the program's own
//! SQLite. Loading foreign code cannot be shown to be safe, so this is a room of `unsafe`.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::failure::Failure;
use super::{Error, Exit};
use crate::logging::Format;

const FILE: &str = "walferry.so";

/// Where the extension is: the given place, else beside the program or in `../lib/walferry/`.
/// On failure the places that were looked at.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf, Vec<PathBuf>> {
    let places = match given {
        Some(given) => vec![given.to_path_buf()],
        None => beside_the_program(),
    };
    // The path is absolute: the loader would look for a bare name among the system's libraries.
    let found = places.iter().find(|place| place.is_file());
    found.and_then(|place| place.canonicalize().ok()).ok_or(places)
}

fn beside_the_program() -> Vec<PathBuf> {
    // Links are resolved: the program may be started by a link in another folder.
    let program = std::env::current_exe().and_then(|program| program.canonicalize());
    let Some(folder) = program.ok().and_then(|p| p.parent().map(Path::to_path_buf)) else {
        return Vec::new();
    };
    vec![folder.join(FILE), folder.join("../lib/walferry").join(FILE)]
}

/// Says which configuration file the extension reads. To be called while the process has one
/// thread.
pub(super) fn set_config(file: &Path, no_expand_env: bool) {
    // SAFETY: no other thread reads the environment, as there is none yet.
    unsafe {
        std::env::set_var("WALFERRY_CONFIG", file);
        if no_expand_env {
            std::env::set_var("WALFERRY_NO_EXPAND_ENV", "1");
        }
    }
}

/// Loads the extension of this name, else that of `WALFERRY_EXTENSION`, else the one beside the
/// program. To be called while the process has one thread.
pub(super) fn load_named(given: Option<&Path>) -> Result<(), Error> {
    let named = given.map(Path::to_path_buf);
    let named = named.or_else(|| std::env::var_os("WALFERRY_EXTENSION").map(PathBuf::from));
    let extension = find(named.as_deref()).map_err(|places| {
        let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        let text = "the extension is not at";
        let advice = "name it with --extension or WALFERRY_EXTENSION";
        Failure::because(Exit::Usage, format!("{text} {}: {advice}", places.join(" nor at ")))
    })?;
    believing_uris(|| load(&extension)).map_err(|error| {
        Failure::sqlite(format!("cannot load the extension {}", extension.display()), error)
    })
}

/// Has the extension, which reads this when it is loaded, believe all parameters of URIs: this program
/// writes them itself, from its arguments, and runs nobody's SQL. A program that it starts later gets
/// the variable as it was.
fn believing_uris<T>(load: impl FnOnce() -> T) -> T {
    let before = std::env::var_os(crate::uri::VARIABLE);
    // SAFETY: no other thread reads the environment, as there is none yet, and loading starts none.
    unsafe { std::env::set_var(crate::uri::VARIABLE, "all") };
    let loaded = load();
    // SAFETY: as above.
    unsafe {
        match before {
            Some(value) => std::env::set_var(crate::uri::VARIABLE, value),
            None => std::env::remove_var(crate::uri::VARIABLE),
        }
    }
    loaded
}

/// Says where the extension logs to, and how. To be called while the process has one thread.
pub(super) fn set_log(file: Option<&Path>, level: &str, format: Format) {
    let format = match format {
        Format::Text => "text",
        Format::Json => "json",
    };
    // SAFETY: no other thread reads the environment, as there is none yet.
    unsafe {
        std::env::remove_var("WALFERRY_LOG");
        std::env::remove_var("WALFERRY_LOG_FILE");
        match file {
            Some(file) => std::env::set_var("WALFERRY_LOG_FILE", file),
            None => std::env::set_var("WALFERRY_LOG", "stderr"),
        }
        std::env::set_var("WALFERRY_LOG_LEVEL", level.to_ascii_lowercase());
        std::env::set_var("WALFERRY_LOG_FORMAT", format);
    }
}

/// Loads it; from then on the VFS `walferry` is there for the whole process.
fn load(path: &Path) -> Result<(), rusqlite::Error> {
    let loader = Connection::open_in_memory()?;
    // SAFETY: the file was named by the user, or is where our own package puts it. This program trusts its code
    // as its own. Loading is allowed on this connection only, which runs no SQL.
    unsafe {
        loader.load_extension_enable()?;
        loader.load_extension(path, Some("sqlite3_walferry_init"))
    }
}
