//! The SQL functions, and the preparation of a new connection.

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

/// Result of every SQL function, also of those that cannot fail.
type Answer = Result<Value, Failure>;

/// Timeout of `walferry_sync` and `walferry_wait` without an argument.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// The call of an SQL function.
pub struct Call<'a> {
    /// The host's SQLite.
    pub api: &'a Api,
    /// The connection in which the function runs.
    pub db: Connection,
}

/// A database of the connection, main or attached, that is a file.
struct Schema {
    name: CString,
    path: PathBuf,
    is_main: bool,
    file: File,
}

/// The connection's own file object of a database.
enum File {
    /// Opened through walferry; commits of this connection are replicated.
    Replicated(Arc<Handle>),
    /// No replica is named for the database.
    Plain,
    /// The replica was refused when the database was opened, for this reason. The status has a report of that
    /// already.
    Refused(String),
    /// A replica is named, but commits of this connection do not reach it, for this reason.
    Astray(String),
}

impl Schema {
    fn handle(&self) -> Option<&Arc<Handle>> {
        match &self.file {
            File::Replicated(handle) => Some(handle),
            File::Plain | File::Refused(_) | File::Astray(_) => None,
        }
    }

    /// Returns a message about the database. Names the database if it is not the main one.
    fn tells(&self, why: impl Display) -> String {
        if self.is_main {
            return why.to_string();
        }
        format!("{why} (attached as {}: {})", self.name.to_string_lossy(), self.path.display())
    }

    /// Returns an SQL statement with the quoted name of the database in place of `{}`.
    fn sql(&self, statement: &str) -> Result<CString, String> {
        let quoted = format!("\"{}\"", self.name.to_string_lossy().replace('"', "\"\""));
        CString::new(statement.replace("{}", &quoted)).map_err(|error| error.to_string())
    }

    /// Returns an error if this connection's commits do not go to the replica. Looks at the file at each
    /// call.
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
    /// Returns the connection's databases that are files. Looks at the connection's file objects, since a
    /// path may name another file than the one that the connection has open.
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

    /// Returns the databases whose commits go to a replica. The error says why a database with a replica is
    /// not among them.
    ///
    /// Leaves out an attached database that has no replica, or that this connection can only read and so not
    /// commit to. The main database is always included, if it is a file.
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

/// `walferry_txid()`: the last TXID that the main database's log for the first replica has given to a file.
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

/// `walferry_status()`: a JSON array with an object for each replica of each database of the process. Also
/// has an object for each database of this connection whose commits do not reach a replica that is named for
/// it. A database without a replica gets an object if another database of the connection is replicated.
pub fn status(call: &Call<'_>, _: &[i64]) -> Answer {
    let mut reports = Process::current().map_or_else(Vec::new, |process| process.reports());
    reports.extend(process::refused());
    let mut reports: Vec<_> = reports.iter().map(Report::to_json).collect();
    // The status works even if this connection cannot list its databases, as an authorizer may forbid that.
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

/// `walferry_ping([timeout in ms])`: 1 if the threads that replicate answer in time, or if there are none;
/// else 0.
pub fn ping(_: &Call<'_>, arguments: &[i64]) -> Answer {
    let timeout = timeout(arguments)?;
    let well = Process::current().is_none_or(|process| process.answers(timeout));
    Ok(Value::Integer(well.into()))
}

/// `walferry_sync([timeout in ms])`: ships now, and waits for the store.
pub fn sync(call: &Call<'_>, arguments: &[i64]) -> Answer {
    wait_for(call, arguments, true)
}

/// `walferry_wait([timeout in ms])`: waits for the store, without making walferry ship sooner.
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

/// Waits until each replica of each replicated database of the connection has the connection's last commit.
/// One COMMIT may write to several databases.
fn wait_for(call: &Call<'_>, arguments: &[i64], hurry: bool) -> Answer {
    let deadline = Instant::now() + timeout(arguments)?;
    let all = call.replicated()?;
    let handles: Vec<(&Schema, &Arc<Handle>)> =
        all.iter().filter_map(|schema| Some((schema, schema.handle()?))).collect();
    // A main database in memory is not in the list: there is nothing to replicate of it.
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
        // All databases start to ship at once; the waits below follow one after the other.
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
    // Success means nothing if a file was deleted or replaced during the wait.
    all.iter().try_for_each(Schema::check)?;
    Ok(first.map_or(Value::Null, |txid| Value::Text(txid.to_string())))
}

/// Reads from a database, so that its WAL is open and its state known. Returns `false` for an attached
/// database that is empty, and an error for any other database that is not in WAL mode.
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

/// Puts a database that is to be replicated into WAL mode, unless it is empty. WAL mode would fix the page
/// size of an empty database, which the application may still choose.
///
/// Does not read a database that has WAL mode already. Nor does it read one that keeps another mode, except
/// through a connection that was open before the extension was loaded. The first read plays a hot journal
/// back. After that read, the connection keeps others from exclusive use of the database, and from another
/// journal mode.
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

/// Clears the error that the connection remembers, with a successful query that reads nothing. SQLite would
/// take that error for a failed open, and refuse the application a database that is only busy.
fn forget_error(api: &Api, db: Connection) {
    let _ = api.query(db, c"PRAGMA busy_timeout");
}

fn has_pages(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0)
}

/// Puts a database into WAL mode that was empty, or could not be switched, when it was opened. Runs after a
/// write, on a connection of our own. The application's connection notices the change with its next
/// transaction, as if another program had made it.
///
/// Returns `true` if that is settled: the database has WAL mode, or is not to have it.
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
            // The application may read nothing more. So walferry takes in now what the application has
            // written, with the wal-index that this read makes.
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
