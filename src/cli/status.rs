//! `walferry status`: what is to be seen beside a database of its replication.
//!
//! Only files of walferry's own are looked at, by reading them: no lock is taken, no process asked,
//! and neither the database nor its wal-index is opened. What a process says is as old as its last
//! word, at most a second while it is well.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Error, print, table};
use crate::follow;
use crate::local::shared::{self, Glance};
use crate::local::spool::Spool;
use crate::local::state::State;
use crate::local::{self, replicas};
use crate::shown;
use crate::standby::{is_gone, silence, silent_for, state_of};
use crate::status::{lag_known, lag_of};
use crate::units::{Timestamp, Txid, WriterId};

/// Arguments of `walferry status`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry status app.db",
    "walferry status --json app.db other.db",
]))]
pub(super) struct Args {
    /// The databases; they are not touched
    #[arg(required = true, value_name = "DB")]
    databases: Vec<PathBuf>,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let (mut found, mut missing) = (Vec::new(), None);
    for database in &args.databases {
        super::not_a_url(database)?;
        let path = match fs::canonicalize(database) {
            Ok(path) => path,
            Err(_) => std::path::absolute(database).unwrap_or(database.clone()),
        };
        let dirs = replicas::existing(&path);
        if dirs.is_empty() {
            if !path.exists() {
                // The other databases are reported all the same.
                missing.get_or_insert(Error::NoDatabase(path));
                continue;
            }
            found.push(Seen::nothing(&path));
        }
        for dir in dirs {
            found.push(Seen::look(&path, &dir)?);
        }
    }
    if args.json && (!found.is_empty() || missing.is_none()) {
        let all: Value = found.iter().map(Seen::json).collect();
        print(&format!("{all}\n"))?;
    } else {
        print(&found.iter().map(Seen::text).collect::<String>())?;
    }
    missing.map_or(Ok(()), Err)
}

/// One database at one replica.
pub(super) struct Seen {
    database: String,
    wal_bytes: u64,
    /// One of [`crate::status::STATES`] as the shipper says; `closed` where nobody ships it, `following`
    /// for a copy, `none` where nothing is kept.
    pub(super) state: &'static str,
    pub(super) replica: Option<String>,
    writer: Option<WriterId>,
    pub(super) shipper: Option<u32>,
    pub(super) sealed: Txid,
    acked: Txid,
    committed: Option<Timestamp>,
    /// Age of the oldest commit that is not confirmed, in milliseconds; `None` while nobody watches.
    pub(super) lag_ms: Option<u64>,
    /// For how long the shipper was not heard of, in milliseconds, if it is silent.
    pub(super) silent_ms: Option<u64>,
    pub(super) spool_files: u64,
    spool_bytes: u64,
    last_error: Option<String>,
}

impl Seen {
    fn nothing(database: &Path) -> Seen {
        Seen {
            database: database.display().to_string(),
            wal_bytes: fs::metadata(local::wal_path(database)).map_or(0, |meta| meta.len()),
            state: "none",
            replica: None,
            writer: None,
            shipper: None,
            sealed: Txid::ZERO,
            acked: Txid::ZERO,
            committed: None,
            lag_ms: None,
            silent_ms: None,
            spool_files: 0,
            spool_bytes: 0,
            last_error: None,
        }
    }

    pub(super) fn look(database: &Path, dir: &Path) -> Result<Seen, Error> {
        let mut seen = Seen { state: "closed", ..Seen::nothing(database) };
        if let Some(copy) = follow::position(dir)? {
            seen.state = "following";
            seen.replica = Some(copy.replica);
            (seen.sealed, seen.acked) = (copy.txid, copy.txid);
            seen.committed = Some(copy.timestamp);
            return Ok(seen);
        }
        let mut done = 0;
        match State::load(dir) {
            Ok(Some(state)) => {
                seen.writer = Some(WriterId(state.writer));
                if let Some(base) = state.base {
                    done = base.piece;
                    (seen.acked, seen.committed) = (base.txid(), Some(Timestamp(base.timestamp)));
                }
                seen.replica = Some(state.replica);
            }
            Ok(None) => {}
            Err(error) => seen.last_error = Some(error.to_string()),
        }
        if let Some(spool) = Spool::existing(dir) {
            let waiting = spool.look(done)?;
            seen.spool_files = waiting.len() as u64;
            seen.spool_bytes = waiting.iter().map(|entry| entry.len).sum();
            seen.sealed = waiting.iter().filter_map(|entry| entry.txid).max().unwrap_or(seen.acked);
        }
        seen.sealed = seen.sealed.max(seen.acked);
        if let Some(glance) = shared::glance(dir)? {
            seen.hear(&glance, crate::clock::since_boot());
        }
        Ok(seen)
    }

    /// What the shipper says of itself, if it is there.
    fn hear(&mut self, glance: &Glance, now: u64) {
        let Some(view) = &glance.view else { return };
        if is_gone(Some(view), glance.last_alive, now) {
            return;
        }
        self.state = state_of(view);
        self.shipper = Some(view.pid);
        self.sealed = self.sealed.max(Txid(view.sealed));
        self.acked = self.acked.max(Txid(view.acked));
        let oldest = [view.unacked_since.checked_sub(1), glance.unreported_since];
        let oldest = oldest.into_iter().flatten().min();
        self.silent_ms = silent_for(glance.last_alive, now);
        self.lag_ms = lag_known(self.state, lag_of(oldest, now))
            .filter(|lag| *lag > 0 || self.silent_ms.is_none());
        if let Some(silent) = self.silent_ms {
            self.last_error = Some(silence(view.pid, silent));
        } else if !view.error.is_empty() {
            self.last_error = Some(view.error.clone());
        }
    }

    fn json(&self) -> Value {
        let txid = |txid: Txid| (txid != Txid::ZERO).then(|| txid.to_string());
        json!({
            "database": self.database,
            "replica": self.replica,
            "state": self.state,
            "shipper": self.shipper,
            "writer": self.writer.map(|writer| writer.to_string()),
            "txid": txid(self.sealed),
            "acked": txid(self.acked),
            "acked_at": self.committed.map(|time| time.to_string()),
            "lag_ms": self.lag_ms,
            "pending_bytes": self.spool_bytes,
            "spool_files": self.spool_files,
            "wal_bytes": self.wal_bytes,
            "last_error": self.last_error,
        })
    }

    fn text(&self) -> String {
        let path = &self.database;
        let replica = self.replica.as_deref().unwrap_or("a replica that is not known");
        let mut lines = Vec::new();
        match self.state {
            "none" => {
                return shown::lines([format!(
                    "{path}: not replicated, walferry keeps nothing beside it"
                )]);
            }
            "following" => {
                let time = self.committed.map(|time| format!(" of {time}")).unwrap_or_default();
                let text = format!("{path}: a copy of {replica}, at TXID {}{time}", self.acked);
                return shown::lines([text]);
            }
            "closed" => lines.push(format!("{path}: no process replicates it; last to {replica}")),
            state => {
                let by = self.shipper.map(|pid| format!(", by process {pid}")).unwrap_or_default();
                let when = if self.silent_ms.is_some() { ", when last heard of" } else { "" };
                lines.push(format!("{path}: {state} to {replica}{by}{when}"));
            }
        }
        let lag = self.lag_ms.map(|lag| format!(", lag {lag} ms")).unwrap_or_default();
        lines.push(format!("  TXID {} packed, {} confirmed{lag}", self.sealed, self.acked));
        lines.push(format!(
            "  waiting in the spool: {} with {} bytes; WAL {} bytes",
            table::count(usize::try_from(self.spool_files).unwrap_or(usize::MAX), "file"),
            self.spool_bytes,
            self.wal_bytes
        ));
        if let Some(error) = &self.last_error {
            lines.push(format!("  {error}"));
        }
        shown::lines(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::shared::{View, pid_namespace};
    use crate::status::STATES;

    /// The page of a shipper that is there, as a process sees it at `now`.
    fn heard(last_alive: u64, unreported_since: Option<u64>, now: u64) -> Seen {
        let streaming = STATES.iter().position(|state| *state == "streaming").unwrap() as u64;
        let (pid, namespace) = (std::process::id(), pid_namespace());
        let view = View { term: 1, pid, namespace, state: streaming, ..View::default() };
        let mut seen = Seen::nothing(Path::new("/a.db"));
        seen.hear(&Glance { view: Some(view), last_alive, unreported_since }, now);
        seen
    }

    #[test]
    fn the_lag_of_a_silent_shipper_is_known_only_if_something_waits() {
        assert_eq!(heard(50_000, None, 51_000).lag_ms, Some(0));
        assert_eq!(heard(50_000, None, 51_000).last_error, None);
        for (last_alive, now, seconds) in [(50_000, 60_000, 10), (90_000_000, 7000, 7)] {
            let seen = heard(last_alive, None, now);
            assert_eq!(seen.lag_ms, None, "{last_alive} {now}");
            let said = format!("was not heard of for {seconds} s");
            assert!(seen.text().contains(&said), "{}", seen.text());
            assert!(seen.last_error.is_some_and(|error| error.contains(&said)));
        }
        assert_eq!(heard(50_000, Some(53_000), 60_000).lag_ms, Some(7000));
    }
}
