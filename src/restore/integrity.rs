//! SQLite's own check of the restored database, before the database gets its name.

use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::Integrity;
use super::error::{Error, failed};

/// SQLite stops after this many findings: a person reads them.
const FINDINGS_MAX: usize = 20;

/// Runs the check on a database file that no other process uses. Leaves no files beside it.
pub(super) fn check(path: &Path, integrity: Integrity) -> Result<(), Error> {
    let pragma = match integrity {
        Integrity::None => return Ok(()),
        Integrity::Quick => "quick_check",
        Integrity::Full => "integrity_check",
    };
    let findings = run(path, pragma).map_err(|error| {
        if error.sqlite_error_code().is_some_and(is_damage) {
            return Error::Integrity { findings: vec![error.to_string()] };
        }
        failed("checking", path)(io::Error::other(error))
    })?;
    if findings == ["ok"] { Ok(()) } else { Err(Error::Integrity { findings }) }
}

fn is_damage(code: rusqlite::ErrorCode) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(code, DatabaseCorrupt | NotADatabase)
}

fn run(path: &Path, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri(path), flags)?;
    let mut statement = connection.prepare(&format!("PRAGMA {pragma}({FINDINGS_MAX})"))?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.collect()
}

/// Returns a URI with `immutable=1`: SQLite takes no lock and makes no -wal and no -shm, even in WAL mode.
fn uri(path: &Path) -> String {
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(uri, "%{byte:02x}");
        }
    }
    uri.push_str("?immutable=1");
    uri
}
