//! What SQL can ask, and what is done with a new connection.

#![allow(clippy::unnecessary_wraps)]

use std::ffi::{CStr, CString};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use walferry::config::canonical;
use walferry::database::WaitError;
use walferry::process::{self, Process};
use walferry::replications::{Replications, worst_lag};
use walferry::settings::JournalMode;
use walferry::shown;
use walferry::status::Report;
use walferry::wait::Patience;

use crate::api::{self, Api, Connection, Failure, OwnConnection, Value};
use crate::ffi;
use crate::handle::Handle;
use crate::pin::read_index;
use crate::registry::Shimmed;

/// All functions answer alike, whether or not they can fail.
type Answer = Result<Value, Failure>;

/// Wait of `walferry_sync` and `walferry_wait` without an argument.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// The connection in which a function runs.
pub struct Call<'a> {
    /// The host's SQLite.
    pub api: &'a Api,
    /// The connection.
    pub db: Connection,
}

/// A database of the connection that is a file: the main one, or an attached one.
struct Schema {
    name: CString,
    path: PathBuf,
    is_main: bool,
    file: File,
}

/// The connection's own file of a database.
enum File {
    /// Opened through walferry; commits of this connection are replicated.
    Replicated(Arc<Handle>),
    /// No replica is named for it.
    Plain,
    /// Its replica was refused when it was opened, and why: the status has that already.
    Refused(String),
    /// A replica is named, and commits of this connection do not reach it; the text says why.
    Astray(String),
}

impl Schema {
    fn handle(&self) -> Option<&Arc<Handle>> {
        match &self.file {
            File::Replicated(handle) => Some(handle),
            File::Plain | File::Refused(_) | File::Astray(_) => None,
        }
    }

    /// A message about it: which database is meant is said where that is not the main one.
    fn tells(&self, why: impl Display) -> String {
        if self.is_main {
            return why.to_string();
        }
        format!("{why} (attached as {}: {})", self.name.to_string_lossy(), self.path.display())
    }

    /// An SQL statement about it, which has `{}` in the place of its name.
    fn sql(&self, statement: &str) -> Result<CString, String> {
        let quoted = format!("\"{}\"", self.name.to_string_lossy().replace('"', "\"\""));
        CString::new(statement.replace("{}", &quoted)).map_err(|error| error.to_string())
    }

    /// An error where this connection's commits do not go to the replica: looked at now.
    fn check(&self) -> Result<(), String> {
        let why = match &self.file {
            File::Plain => None,
            File::Refused(why) | File::Astray(why) => Some(why.as_str()),
            File::Replicated(handle) => handle.misplaced(),
        };
        why.map_or(Ok(()), |why| Err(self.tells(format_args!("not replicated: {why}"))))
    }
}

impl Call<'_> {
    /// The connection's databases that are files: by its own file objects, since a path may name
    /// another file than the one that the connection has open.
    fn schemas(&self) -> Result<Vec<Schema>, String> {
        let names = self.api.schemas(self.db)?;
        let all = names.into_iter().enumerate().filter_map(|(number, name)| {
            let path = self.api.path(self.db, &name)?;
            let file = self.file(&name, &path);
            Some(Schema { name, path, is_main: number == 0, file })
        });
        Ok(all.collect())
    }

    fn file(&self, schema: &CStr, path: &Path) -> File {
        if let Some(handle) = ffi::handle_of(self.api, self.db, schema) {
            return File::Replicated(handle);
        }
        let path = canonical(path);
        let shown = path.display().to_string();
        let refused = process::refused().into_iter().find(|report| report.database == shown);
        if let Some(why) = refused.and_then(|report| report.last_error) {
            return File::Refused(why);
        }
        let known = Process::current().and_then(|process| process.at(&path));
        if let Some(why) = known.as_ref().and_then(Replications::stopped) {
            return File::Refused(why);
        }
        let is_named = || {
            crate::is_default() && path.exists() && ffi::names_replica(self.api, self.db, schema)
        };
        if known.is_some() || is_named() {
            let why = "this connection's file was not opened through walferry, but by another VFS or \
                       before walferry was loaded; open the database again";
            return File::Astray(why.to_string());
        }
        File::Plain
    }

    /// The databases whose commits a replica gets. Errors say why one that has a replica is not among
    /// them. An attached one without a replica is passed over, and so is one that can only be read,
    /// since this connection commits nothing there. The main one is not.
    fn replicated(&self) -> Result<Vec<Schema>, String> {
        let mut all = self.schemas()?;
        all.retain(|schema| schema.is_main || !self.api.is_read_only(self.db, &schema.name));
        all.iter().try_for_each(Schema::check)?;
        all.retain(|schema| schema.is_main || schema.handle().is_some());
        Ok(all)
    }
}

/// `walferry_version()`
pub fn version(_: &Call<'_>, _: &[i64]) -> Answer {
    Ok(Value::Text(env!("CARGO_PKG_VERSION").to_string()))
}

/// `walferry_txid()`: the last TXID given to a file of the main database's log, of the first replica.
pub fn txid(call: &Call<'_>, _: &[i64]) -> Answer {
    let main = call.schemas()?.into_iter().find(|schema| schema.is_main);
    let Some(main) = main else { return Ok(Value::Null) };
    main.check()?;
    Ok(match main.handle().map(|handle| handle.database().sealed()) {
        Some(txid) if txid.0 > 0 => Value::Text(txid.to_string()),
        _ => Value::Null,
    })
}

/// `walferry_lag()`: age in milliseconds of the oldest commit that some replica does not have.
pub fn lag(call: &Call<'_>, _: &[i64]) -> Answer {
    let all = call.replicated()?;
    let lag = worst_lag(all.iter().filter_map(Schema::handle).map(|one| one.database().lag_ms()));
    Ok(lag.map_or(Value::Null, |lag| Value::Integer(i64::try_from(lag).unwrap_or(i64::MAX))))
}

/// `walferry_status()`: a JSON array, an object for each replica of each database of the process, and
/// one for each database that this connection has beside a replicated one and that is not.
pub fn status(call: &Call<'_>, _: &[i64]) -> Answer {
    let mut reports = Process::current().map_or_else(Vec::new, |process| process.reports());
    reports.extend(process::refused());
    let mut reports: Vec<_> = reports.iter().map(Report::to_json).collect();
    // The status is told even if the connection may not be asked for its databases.
    let schemas = call.schemas().unwrap_or_default();
    let any = schemas.iter().any(|schema| schema.handle().is_some());
    reports.extend(schemas.iter().filter_map(|schema| {
        let why = match &schema.file {
            File::Plain if any => None,
            File::Astray(why) => Some(why.clone()),
            File::Replicated(handle) => Some(handle.unheeded()?.to_string()),
            File::Plain | File::Refused(_) => return None,
        };
        Some(Report::not_replicated(&schema.path, &schema.name.to_string_lossy(), why))
    }));
    let text = serde_json::Value::Array(reports).to_string();
    Ok(Value::Text(shown::text(&text).into_owned()))
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

/// Success means that each replica of each of the connection's replicated databases has the
/// connection's last commit: one COMMIT may write to several.
fn wait_for(call: &Call<'_>, arguments: &[i64], hurry: bool) -> Answer {
    let deadline = Instant::now() + timeout(arguments)?;
    let all = call.replicated()?;
    let handles: Vec<(&Schema, &Arc<Handle>)> =
        all.iter().filter_map(|schema| Some((schema, schema.handle()?))).collect();
    // A main database in memory is not among them, and has nothing to lose.
    if handles.is_empty() || all.len() > handles.len() {
        return Err("not replicated: no replica is named for this database".into());
    }
    let mut seen = Vec::with_capacity(handles.len());
    for (schema, handle) in handles {
        if see_wal(call, schema)? {
            seen.push((schema, handle));
        }
    }
    let handles = seen;
    if hurry && handles.len() > 1 {
        // All begin at once, and are then waited for in turn.
        for (_, handle) in &handles {
            handle.database().hurry();
        }
    }
    let interrupted = || call.api.is_interrupted(call.db);
    let patience = Patience { deadline, interrupted: &interrupted };
    let mut first = None;
    for (schema, handle) in &handles {
        let read = || handle.committed_index();
        let txid = handle.database().wait(patience, hurry, &read);
        first.get_or_insert(txid.map_err(|error| match error {
            WaitError::Interrupted => Failure::Interrupted,
            error => schema.tells(error).into(),
        })?);
    }
    // What was waited for is worth nothing if the file went away meanwhile.
    all.iter().try_for_each(Schema::check)?;
    Ok(first.map_or(Value::Null, |txid| Value::Text(txid.to_string())))
}

/// Reads from a database, so that its WAL is open and its state known. `false` for an attached one that
/// was never written to; an error if another one has no WAL.
fn see_wal(call: &Call<'_>, schema: &Schema) -> Result<bool, String> {
    let query = |sql: &str| {
        let answer = call.api.query(call.db, &schema.sql(sql)?);
        answer.map_err(|error| schema.tells(format_args!("not replicated: {error}")))
    };
    query("SELECT count(*) FROM {}.sqlite_master")?;
    let mode = query("PRAGMA {}.journal_mode")?.unwrap_or_default();
    if mode == "wal" {
        return Ok(true);
    }
    if !schema.is_main && query("PRAGMA {}.page_count")?.as_deref() == Some("0") {
        return Ok(false);
    }
    Err(schema.tells(format_args!(
        "not replicated: the database is in journal mode {mode}; only WAL mode is replicated \
         (PRAGMA journal_mode=WAL)"
    )))
}

/// Puts a database that is to be replicated, and has something in it, into WAL mode. A new one is
/// left alone: its page size may still be chosen, which WAL mode would end. One that has WAL mode, or
/// stays in another mode, is not read: the first read plays a hot journal back, and from then on a
/// connection keeps others from having the database to themselves, and from another journal mode.
pub fn prepare_connection(api: &Api, db: Connection) {
    let Some(handle) = ffi::handle_of(api, db, c"main") else { return };
    let shimmed = &handle.shimmed;
    let path = shimmed.database.path();
    if api.is_read_only(db, c"main") || !has_pages(path) || handle.has_wal_mode() {
        return;
    }
    if shimmed.database.first().settings().journal_mode == JournalMode::Keep {
        if handle.adopted {
            match api.query(db, c"PRAGMA main.journal_mode") {
                Ok(mode) if mode.as_deref() != Some("wal") => shimmed.found_outside_wal(),
                Ok(_) => {}
                Err(_) => forget_error(api, db),
            }
        } else {
            // The header of the file names another mode.
            shimmed.found_outside_wal();
        }
        return;
    }
    match api.query(db, c"PRAGMA main.journal_mode=WAL") {
        Ok(Some(mode)) if mode == "wal" => shimmed.left.store(true, Ordering::Release),
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
    if shimmed.is_changed_beneath() {
        return true;
    }
    if ffi::stands_above(api) {
        log::warn!(
            "{}: it is not put into WAL mode, since a VFS was registered that may stand above \
             walferry's; only WAL mode is replicated: set PRAGMA journal_mode=WAL",
            path.display()
        );
        return true;
    }
    let switched = OwnConnection::open(api, shimmed.vfs.0, path).and_then(|connection| {
        if !shimmed.is_where_it_was() {
            return Err("the file was deleted or replaced".into());
        }
        let mode = connection.query(c"PRAGMA main.journal_mode=WAL")?;
        if mode.as_deref() == Some("wal") {
            // The application may read nothing more: what it has written is taken in now, with a
            // wal-index that this read makes.
            connection.query(c"SELECT count(*) FROM main.sqlite_master")?;
            let index = || connection.file()?.shm_header(false).and_then(read_index);
            shimmed.attach(index);
            shimmed.left.store(true, Ordering::Release);
        }
        Ok(mode)
    });
    match switched {
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
            log::warn!(
                "{}: it cannot be put into WAL mode yet, and only WAL mode is replicated: {why}",
                path.display()
            );
            false
        }
    }
}
