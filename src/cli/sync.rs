//! `walferry sync`: ships what a database has and its replica has not.
//!
//! The program opens the database through the extension, as any other process would, and so needs
//! no rules of its own: if nobody ships it, this process does for a moment; if a running program
//! does, that one is asked.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::{Error, Exit, extension, print};
use crate::local::state::State;
use crate::local::state_dir;
use crate::settings::{Lookup, Settings, parse_duration};
use crate::store;

/// How long the end of the program may take when the store is silent: what it must do then is local.
const SHUTDOWN: &str = "1s";

/// Arguments of `walferry sync`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help())]
pub(super) struct Args {
    /// The database, which some program may have open, or none
    database: PathBuf,
    /// The replica; else the one that the database was replicated to, else WALFERRY_REPLICA
    #[arg(long, value_name = "URL")]
    replica: Option<String>,
    /// How long to wait for the store
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// The extension, walferry.so; else WALFERRY_EXTENSION, else the one beside this program or in
    /// ../lib/walferry/
    #[arg(long, value_name = "PATH")]
    extension: Option<PathBuf>,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

/// Why a sync failed, with what the exit status says of it.
#[derive(Debug)]
pub(super) struct Failure {
    message: String,
    exit: Exit,
    source: Option<rusqlite::Error>,
}

impl Failure {
    pub(super) fn because(exit: Exit, message: impl Into<String>) -> Error {
        Error::Sync(Failure { message: message.into(), exit, source: None })
    }

    pub(super) fn sqlite(message: impl Into<String>, source: rusqlite::Error) -> Error {
        Error::Sync(Failure { message: message.into(), exit: Exit::Failure, source: Some(source) })
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let database = existing(&args.database)?;
    let replica = replica_of(&database, args.replica.as_deref())?;
    // What is wrong with the URL is better said before anything is touched.
    let identity = store::url::identity(&*store::url::open(&replica)?);
    extension::load_named(args.extension.as_deref())?;
    let db = open(&database, &replica, args.timeout)?;
    let txid = sync(&db, &database, args.timeout);
    let status = status_of(&db, &database)?;
    refuse_another_replica(&database, &identity, &status)?;
    report(args, &database, &replica, &txid?, &status)
}

/// The database's path with links resolved, so that all processes mean the same file.
fn existing(path: &Path) -> Result<PathBuf, Error> {
    let about = |why: String| Failure::because(Exit::Usage, format!("{}: {why}", path.display()));
    let found = path.canonicalize().map_err(|error| about(error.to_string()))?;
    if found.is_file() { Ok(found) } else { Err(about("this is no file".into())) }
}

/// A path with links resolved, also while there is no file.
pub(super) fn canonical(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let found = path.canonicalize().ok();
    let beside = || Some(parent.canonicalize().ok()?.join(path.file_name()?));
    found.or_else(beside).unwrap_or_else(|| path.to_path_buf())
}

/// The given replica, else that of the local state, else that of the environment.
fn replica_of(database: &Path, given: Option<&str>) -> Result<String, Error> {
    if let Some(given) = given {
        return Ok(given.to_string());
    }
    let named = Settings::resolve(database, &Environment)
        .map_err(|why| Failure::because(Exit::Usage, why))?
        .map(|settings| settings.replica);
    let state = State::load(&state_dir(database))
        .map_err(|error| Failure::because(Exit::Failure, error.to_string()))?;
    let Some(state) = state else {
        return named.ok_or_else(|| {
            let text = "it was never replicated from here: name its replica with --replica";
            Failure::because(Exit::Usage, format!("{}: {text}", database.display()))
        });
    };
    // The state keeps no options of a URL, such as an endpoint; the environment may know them.
    let same = |url: &String| {
        store::url::open(url).is_ok_and(|store| store::url::identity(&*store) == state.replica)
    };
    Ok(named.filter(same).unwrap_or(state.replica))
}

struct Environment;

impl Lookup for Environment {
    fn parameter(&self, _: &str) -> Option<String> {
        None
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

fn open(database: &Path, replica: &str, timeout: Duration) -> Result<Connection, Error> {
    let uri = format!(
        "file:{}?vfs=walferry&replica={}&shutdown-timeout={SHUTDOWN}",
        encoded(database.as_os_str().as_bytes()),
        encoded(replica.as_bytes())
    );
    // Without CREATE: nothing comes into being that was not there.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags)
        .and_then(|db| db.busy_timeout(timeout).map(|()| db))
        .map_err(|error| Failure::sqlite(format!("cannot open {}", database.display()), error))
}

/// A part of a URI, with everything encoded that could mean something in one.
pub(super) fn encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

pub(super) fn sync(db: &Connection, database: &Path, timeout: Duration) -> Result<String, Error> {
    let ms = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
    let got = db.query_row("SELECT walferry_sync(?1)", [ms], |row| row.get(0));
    got.map_err(|error| {
        // The function's own words say all; "in time" is what it says of a store without answer.
        let said = error.to_string();
        let late = said.starts_with(crate::database::NOT_IN_TIME);
        let exit = if late { Exit::Unreachable } else { Exit::Failure };
        Failure::because(exit, format!("{}: {said}", database.display()))
    })
}

/// The object of `walferry_status()` for this database.
fn status_of(db: &Connection, database: &Path) -> Result<Value, Error> {
    let text: String = db
        .query_row("SELECT walferry_status()", [], |row| row.get(0))
        .map_err(|error| Failure::sqlite("cannot ask for the status", error))?;
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    let path = database.to_string_lossy();
    let found = all.into_iter().find(|one| one["database"] == path.as_ref());
    Ok(found.unwrap_or_default())
}

/// A running program that ships the database ships it to a replica of its own choice.
fn refuse_another_replica(database: &Path, wanted: &str, status: &Value) -> Result<(), Error> {
    let Some(pid) = status["shipper"].as_u64() else { return Ok(()) };
    let Ok(Some(state)) = State::load(&state_dir(database)) else { return Ok(()) };
    if state.replica == wanted {
        return Ok(());
    }
    let text = format!(
        "{}: process {pid} replicates it to {}, not to {wanted}; nothing was sent there",
        database.display(),
        state.replica
    );
    Err(Failure::because(Exit::Failure, text))
}

fn report(
    args: &Args,
    database: &Path,
    replica: &str,
    txid: &str,
    status: &Value,
) -> Result<(), Error> {
    let replica = store::url::redacted(replica);
    let path = database.display().to_string();
    let lag = status["lag_ms"].as_u64().unwrap_or(0);
    if args.json {
        let text = json!({
            "database": path,
            "replica": replica,
            "txid": txid,
            "lag_ms": lag,
            "shipper": status["shipper"],
        });
        return print(&format!("{text}\n"));
    }
    let by = status["shipper"].as_u64().map(|pid| format!(" by process {pid}")).unwrap_or_default();
    print(&format!("synced {path} to {replica}{by}: TXID {txid}, lag {lag} ms\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_path_means_anything_in_a_uri() {
        assert_eq!(encoded(b"/a b?c&d=%41#\xff"), "/a%20b%3Fc%26d%3D%2541%23%FF");
    }
}
