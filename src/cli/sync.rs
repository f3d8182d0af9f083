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

use super::{Error, Exit, configured, extension, print};
use crate::local::state::State;
use crate::local::state_dir;
use crate::settings::{Settings, parse_duration};
use crate::store::{self, Access};

/// How long the end of the program may take when the store is silent: what it must do then is local.
const SHUTDOWN: &str = "1s";

/// Arguments of `walferry sync`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help())]
pub(super) struct Args {
    /// The database, which some program may have open, or none
    database: PathBuf,
    /// The replica, or what the configuration file calls it; else the one that the database was
    /// replicated to, else WALFERRY_REPLICA, else that of the configuration file
    #[arg(long, value_name = "NAME|URL")]
    replica: Option<String>,
    #[command(flatten)]
    file: configured::File,
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
    fn because(exit: Exit, message: impl Into<String>) -> Error {
        Error::Sync(Failure { message: message.into(), exit, source: None })
    }

    fn sqlite(message: impl Into<String>, source: rusqlite::Error) -> Error {
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
    let (replica, access) = replica_of(&database, args)?;
    // What is wrong with the URL is better said before anything is touched.
    let identity = store::url::identity(&*store::url::open_with(&replica, &access)?);
    if let Some(file) = &args.file.config {
        extension::set_config(file, args.file.no_expand_env);
    }
    let named = args.extension.clone();
    let named = named.or_else(|| std::env::var_os("WALFERRY_EXTENSION").map(PathBuf::from));
    let extension = extension::find(named.as_deref()).map_err(|places| {
        let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        let text = "the extension is not at";
        let advice = "name it with --extension or WALFERRY_EXTENSION";
        Failure::because(Exit::Usage, format!("{text} {}: {advice}", places.join(" nor at ")))
    })?;
    extension::load(&extension).map_err(|error| {
        Failure::sqlite(format!("cannot load the extension {}", extension.display()), error)
    })?;
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

/// The given replica, else that of the local state, else that of environment or file.
fn replica_of(database: &Path, args: &Args) -> Result<(String, Access), Error> {
    let state = State::load(&state_dir(database))
        .map_err(|error| Failure::because(Exit::Failure, error.to_string()))?;
    let known = state.map(|state| state.replica);
    if args.replica.is_none() {
        // The state keeps no options of a URL, such as an endpoint; the environment may know them.
        let named = configured::File::settings(database, None)?.into_iter().next();
        let same = |settings: &Settings| {
            known.is_none() || store::url::check(&settings.replica, &settings.access).ok() == known
        };
        if let Some(settings) = named.filter(same) {
            return Ok((settings.replica, settings.access));
        }
    }
    let found = args.file.replica(database, args.replica.as_deref(), known.as_deref())?;
    found.ok_or_else(|| {
        let text = "it was never replicated from here: name its replica with --replica";
        Failure::because(Exit::Usage, format!("{}: {text}", database.display()))
    })
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
fn encoded(bytes: &[u8]) -> String {
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

fn sync(db: &Connection, database: &Path, timeout: Duration) -> Result<String, Error> {
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
