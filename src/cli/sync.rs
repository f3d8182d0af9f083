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

use super::failure::Failure;
use super::{Error, Exit, configured, extension, print, progress, standing};
use crate::config::values::parse_duration;
use crate::local::state::State;
use crate::local::{replicas, state_dir};
use crate::restore::Step;
use crate::settings::Settings;
use crate::shown;
use crate::store::{self, Access};

/// How long the end of the program may take when the store is silent: what it must do then is local.
const SHUTDOWN: &str = "1s";
/// How often to look how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Arguments of `walferry sync`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry sync app.db",
    "walferry sync app.db --replica s3://bucket/app --timeout 2m",
]))]
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
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_timeout)]
    timeout: Duration,
    /// Litestream's way to say what this command always does
    #[arg(long, hide = true)]
    wait: bool,
    /// The extension, walferry.so; else WALFERRY_EXTENSION, else the one beside this program or in
    /// ../lib/walferry/
    #[arg(long, value_name = "PATH")]
    extension: Option<PathBuf>,
    /// Report in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: progress::Args,
}

/// As any length of time; a bare number is seconds, as Litestream has them.
pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => parse_duration(text),
    }
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let database = existing(&args.database)?;
    let replicas = replicas_of(&database, args)?;
    // A wrong URL is reported before any file is touched.
    for (url, access) in &replicas {
        let identity = store::url::identity(&*store::open_with(url, access)?);
        refuse_another_replica(&database, &identity)?;
    }
    if let Some(file) = &args.file.config {
        extension::set_config(file, args.file.no_expand_env);
    }
    extension::load_named(args.extension.as_deref())?;
    // Several replicas are the replicas that file or environment name. The extension reads them there, too.
    let one = match replicas.as_slice() {
        [(url, _)] => Some(url.as_str()),
        _ => None,
    };
    let db = open(&database, one, args.timeout)?;
    let txid = watched(args, &database, || sync(&db, &database, args.timeout));
    let status = status_of(&db, &database)?;
    let txid = txid?;
    super::on_runtime(standing::confirm(&database, &replicas, args.timeout))?;
    report(args, &database, &replicas, &txid, &status)
}

/// Shows meanwhile how far a full image is.
fn watched<T>(args: &Args, database: &Path, work: impl FnOnce() -> T) -> T {
    let progress = args.progress.show(args.json);
    let (done, ended) = crossbeam_channel::bounded::<()>(0);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The status is the same for every connection of the process.
            let Ok(asks) = Connection::open_in_memory() else { return };
            while let Err(crossbeam_channel::RecvTimeoutError::Timeout) =
                ended.recv_timeout(LOOK_EVERY)
            {
                let status = status_of(&asks, database).unwrap_or_default();
                let sum =
                    |name: &str| status.iter().filter_map(|one| one[name].as_u64()).sum::<u64>();
                if sum("image_total") > 0 {
                    progress.tell(Step::Send, sum("image_bytes"), sum("image_total"));
                }
            }
        });
        let result = work();
        drop(done);
        result
    });
    progress.end();
    result
}

/// The database's path with links resolved, so that all processes mean the same file.
fn existing(path: &Path) -> Result<PathBuf, Error> {
    super::not_a_url(path)?;
    let about = |why: String| Failure::because(Exit::Usage, format!("{}: {why}", path.display()));
    let found = path.canonicalize().map_err(|error| about(error.to_string()))?;
    if found.is_file() { Ok(found) } else { Err(about("this is no file".into())) }
}

/// The given replica, else those of environment or file, else that of the local state.
fn replicas_of(database: &Path, args: &Args) -> Result<Vec<(String, Access)>, Error> {
    let state = State::load(&state_dir(database))
        .map_err(|error| Failure::because(Exit::Failure, error.to_string()))?;
    let known = state.map(|state| state.replica);
    if args.replica.is_none() {
        // The state keeps no options of a URL, such as an endpoint. The environment may have them.
        let config = args.file.load();
        let config = if args.file.config.is_some() { config? } else { config.ok().flatten() };
        let named = configured::File::settings(database, config.as_ref())?;
        let is_known = |settings: &Settings| {
            store::check_url(&settings.replica, &settings.access).ok() == known
        };
        if known.is_none() || named.iter().any(is_known) {
            let all: Vec<_> = named.into_iter().map(|one| (one.replica, one.access)).collect();
            if !all.is_empty() {
                return Ok(all);
            }
        }
    }
    let found = args.file.replica(database, args.replica.as_deref(), known.as_deref())?;
    found.map(|one| vec![one]).ok_or_else(|| {
        let text = "it was never replicated from here: name its replica with --replica";
        Failure::because(Exit::Usage, format!("{}: {text}", database.display()))
    })
}

fn open(database: &Path, replica: Option<&str>, timeout: Duration) -> Result<Connection, Error> {
    let replica = replica.map(|url| format!("&replica={}", encoded(url.as_bytes())));
    let uri = format!(
        "file:{}?vfs=walferry&shutdown-timeout={SHUTDOWN}{}",
        encoded(database.as_os_str().as_bytes()),
        replica.unwrap_or_default()
    );
    // Without CREATE, SQLite creates no database that was missing.
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
        // The function's message is complete. `NOT_IN_TIME` begins its message about a store that does not
        // answer.
        let said = error.to_string();
        let late = said.starts_with(crate::database::NOT_IN_TIME);
        let exit = if late { Exit::Unreachable } else { Exit::Failure };
        Failure::because(exit, format!("{}: {said}", database.display()))
    })
}

/// The objects of `walferry_status()` for this database, one for each replica.
fn status_of(db: &Connection, database: &Path) -> Result<Vec<Value>, Error> {
    let text: String = db
        .query_row("SELECT walferry_status()", [], |row| row.get(0))
        .map_err(|error| Failure::sqlite("cannot ask for the status", error))?;
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    let path = database.to_string_lossy();
    Ok(all.into_iter().filter(|one| one["database"] == path.as_ref()).collect())
}

/// A running program that ships the database ships it to a replica of its own choice.
fn refuse_another_replica(database: &Path, wanted: &str) -> Result<(), Error> {
    let Some((pid, other)) = replicas::shipped_elsewhere(database, wanted) else { return Ok(()) };
    let who = pid.map_or("another process".to_string(), |pid| format!("process {pid}"));
    let text = format!(
        "{}: {who} replicates it to {other}, not to {wanted}; nothing was sent there",
        database.display()
    );
    Err(Failure::because(Exit::Failure, text))
}

/// A line for each replica.
fn report(
    args: &Args,
    database: &Path,
    replicas: &[(String, Access)],
    txid: &str,
    status: &[Value],
) -> Result<(), Error> {
    let path = database.display().to_string();
    for (url, _) in replicas {
        let replica = store::url::redacted(url);
        let one = status.iter().find(|one| one["replica"] == replica).or(status.first());
        let one = one.cloned().unwrap_or_default();
        let txid = if replicas.len() > 1 { one["acked"].as_str().unwrap_or(txid) } else { txid };
        let lag = one["lag_ms"].as_u64().unwrap_or(0);
        let text = if args.json {
            let text = json!({
                "database": path,
                "replica": replica,
                "txid": txid,
                "lag_ms": lag,
                "shipper": one["shipper"],
            });
            format!("{text}\n")
        } else {
            let by = one["shipper"].as_u64().map(|pid| format!(" by process {pid}"));
            let by = by.unwrap_or_default();
            shown::lines([format!("synced {path} to {replica}{by}: TXID {txid}, lag {lag} ms")])
        };
        print(&text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_path_means_anything_in_a_uri() {
        assert_eq!(encoded(b"/a b?c&d=%41#\xff"), "/a%20b%3Fc%26d%3D%2541%23%FF");
    }
}
