//! What SQL can ask, and what is done with a new connection.

#![allow(clippy::unnecessary_wraps)]

use std::path::Path;
use std::time::Duration;

use walferry::process::{self, Process};
use walferry::replications::Replications;

use walferry::settings::JournalMode;

use crate::api::{self, Api, Connection, OwnConnection, Value};
use crate::registry::{self, Shimmed};

/// All functions answer alike, whether or not they can fail.
type Answer = Result<Value, String>;

/// Wait of `walferry_sync` and `walferry_wait` without an argument.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// The connection in which a function runs.
pub struct Call<'a> {
    /// The host's SQLite.
    pub api: &'a Api,
    /// The connection.
    pub db: Connection,
}

impl Call<'_> {
    /// The connection's main database, if it is replicated.
    fn database(&self) -> Option<Replications> {
        Process::current()?.at(&walferry::config::canonical(&self.api.main_path(self.db)?))
    }
}

/// `walferry_version()`
pub fn version(_: &Call<'_>, _: &[i64]) -> Answer {
    Ok(Value::Text(env!("CARGO_PKG_VERSION").to_string()))
}

/// `walferry_txid()`: the last TXID given to a file of this database's log, of the first replica.
pub fn txid(call: &Call<'_>, _: &[i64]) -> Answer {
    let sealed = call.database().map(|database| database.sealed());
    Ok(match sealed {
        Some(txid) if txid.0 > 0 => Value::Text(txid.to_string()),
        _ => Value::Null,
    })
}

/// `walferry_lag()`: age in milliseconds of the oldest commit that some replica does not have.
pub fn lag(call: &Call<'_>, _: &[i64]) -> Answer {
    let lag = call.database().and_then(|database| database.lag_ms());
    Ok(lag.map_or(Value::Null, |lag| Value::Integer(i64::try_from(lag).unwrap_or(i64::MAX))))
}

/// `walferry_status()`: a JSON array, an object for each replica of each database of the process.
pub fn status(_: &Call<'_>, _: &[i64]) -> Answer {
    let mut reports = Process::current().map_or_else(Vec::new, |process| process.reports());
    reports.extend(process::refused());
    let reports: Vec<_> = reports.iter().map(walferry::status::Report::to_json).collect();
    Ok(Value::Text(serde_json::Value::Array(reports).to_string()))
}

/// `walferry_ping([timeout in ms])`: 1 if the threads that replicate answer in time, or there are
/// none; else 0.
pub fn ping(_: &Call<'_>, arguments: &[i64]) -> Answer {
    let timeout = timeout(arguments)?;
    let well = Process::current().is_none_or(|process| process.answers(timeout));
    Ok(Value::Integer(well.into()))
}

/// `walferry_sync([timeout in ms])`: ships now, and waits for the store.
pub fn sync(call: &Call<'_>, arguments: &[i64]) -> Answer {
    wait_for(call, arguments, true)
}

/// `walferry_wait([timeout in ms])`: waits for the store at the natural pace.
pub fn wait(call: &Call<'_>, arguments: &[i64]) -> Answer {
    wait_for(call, arguments, false)
}

fn timeout(arguments: &[i64]) -> Result<Duration, String> {
    match arguments {
        [] => Ok(WAIT_DEFAULT),
        [ms] => Ok(Duration::from_millis(u64::try_from(*ms).unwrap_or(0))),
        _ => Err("give one argument at the most: a time-out in milliseconds".into()),
    }
}

fn wait_for(call: &Call<'_>, arguments: &[i64], hurry: bool) -> Answer {
    let timeout = timeout(arguments)?;
    let Some(database) = call.database() else {
        let refused = process::refused().into_iter().find_map(|report| report.last_error);
        return Err(refused.unwrap_or_else(|| "this database is not replicated".into()));
    };
    // A read makes sure that the WAL is open and its state known.
    call.api.query(call.db, c"SELECT count(*) FROM main.sqlite_master")?;
    let mode = call.api.query(call.db, c"PRAGMA main.journal_mode")?.unwrap_or_default();
    if mode != "wal" {
        return Err(format!(
            "not replicated: the database is in journal mode {mode}; only WAL mode is replicated \
             (PRAGMA journal_mode=WAL)"
        ));
    }
    match database.wait(timeout, hurry) {
        Ok(txid) => Ok(Value::Text(txid.to_string())),
        Err(error) => Err(error.to_string()),
    }
}

/// Puts a database that is to be replicated, and has something in it, into WAL mode. A new one is
/// left alone: its page size may still be chosen, which WAL mode would end.
pub fn prepare_connection(api: &Api, db: Connection) {
    let Some(shimmed) = registry::shimmed_of(api, db) else { return };
    let path = shimmed.database.path();
    if api.is_read_only(db, c"main") || !has_pages(path) {
        return;
    }
    if shimmed.database.first().settings().journal_mode == JournalMode::Keep {
        match api.query(db, c"PRAGMA main.journal_mode") {
            Ok(mode) if mode.as_deref() != Some("wal") => shimmed.found_outside_wal(),
            Ok(_) => {}
            Err(_) => forget_error(api, db),
        }
        return;
    }
    match api.query(db, c"PRAGMA main.journal_mode=WAL") {
        Ok(Some(mode)) if mode == "wal" => {}
        Ok(mode) => {
            log::warn!(
                "{}: it stays in journal mode {}; only WAL mode is replicated",
                path.display(),
                mode.unwrap_or_default()
            );
            shimmed.found_outside_wal();
        }
        Err(why) => {
            log::warn!(
                "{}: it cannot be put into WAL mode, and only WAL mode is replicated: {why}; it is tried again after the next write",
                path.display()
            );
            shimmed.found_outside_wal();
            forget_error(api, db);
        }
    }
}

/// SQLite would take the error that the connection remembers for one of its opening, and refuse the
/// application a database that is only busy. Success clears it, of what reads nothing.
fn forget_error(api: &Api, db: Connection) {
    let _ = api.query(db, c"PRAGMA busy_timeout");
}

fn has_pages(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0)
}

/// Puts a database that was new, or could not be switched when it was opened, into WAL mode after it
/// was written to, by a connection of our own; the application's notices with its next transaction, as
/// if another program had done it.
/// Whether that is settled: it has WAL mode, or is not to have it.
pub fn into_wal_mode(shimmed: &Shimmed) -> bool {
    let path = shimmed.database.path();
    if shimmed.database.first().settings().journal_mode == JournalMode::Keep
        || shimmed.is_orphaned()
    {
        return true;
    }
    let Some(api) = api::api() else { return true };
    if !has_pages(path) {
        return false;
    }
    let mode = OwnConnection::open(api, shimmed.vfs.0, path)
        .and_then(|connection| connection.query(c"PRAGMA main.journal_mode=WAL"));
    match mode {
        Ok(Some(mode)) if mode == "wal" => true,
        Ok(mode) => {
            let mode = mode.unwrap_or_default();
            log::warn!(
                "{}: it stays in journal mode {mode}; only WAL mode is replicated",
                path.display()
            );
            true
        }
        Err(why) => {
            log::info!("{}: it cannot be put into WAL mode yet: {why}", path.display());
            false
        }
    }
}
