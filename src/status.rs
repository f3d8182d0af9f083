//! Report on a database: the single form behind SQL functions, logs and the program.

use std::path::Path;

use serde_json::{Value, json};

use crate::history;
use crate::units::{Timestamp, Txid};

/// The words for a database's state.
pub const STATES: [&str; 9] = [
    "opening",
    "imaging",
    "streaming",
    "waiting",
    "fenced",
    "standby",
    "error",
    "not-wal",
    "closed",
];

/// How the replication of one database stands.
#[derive(Clone, Debug)]
pub struct Report {
    /// Path of the database.
    pub database: String,
    /// URL of the replica, without secrets.
    pub replica: String,
    /// Word of [`STATES`].
    pub state: &'static str,
    /// Process that ships the database, if it is another one.
    pub shipper: Option<u32>,
    /// Last TXID given to a closed file.
    pub sealed: Txid,
    /// Last TXID that the store confirmed.
    pub acked: Txid,
    /// Time of the oldest unconfirmed commit, in milliseconds of the process's clock.
    pub unacked_since: Option<u64>,
    /// Age of that commit; 0 if every commit is confirmed, and while the age is unknown.
    pub lag_ms: u64,
    /// True if this process stands by, and the shipper is missing, silent, or does not know the lag itself. A
    /// lag of 0 then says nothing.
    pub unheard: bool,
    /// Bytes in the spool.
    pub pending_bytes: u64,
    /// Files in the spool.
    pub spool_files: u64,
    /// Calls made to the store since the process started.
    pub requests: u64,
    /// Full images sent.
    pub images: u64,
    /// Progress of a full image: bytes of the database that are read, and all of its bytes.
    pub imaging: Option<(u64, u64)>,
    /// Comparisons of the whole database with the page table.
    pub resyncs: u64,
    /// State of the replica's history.
    pub history: history::Status,
    /// True while work on the history is under way.
    pub keeping: bool,
    /// While this process ships the database and has its WAL open: true if other processes are kept from
    /// restarting the WAL.
    pub pinned: Option<bool>,
    /// Result of the audits in this process.
    pub audit: Option<Audited>,
    /// Number of open connections of this process.
    pub connections: usize,
    /// Name of the last finding ([`crate::finding`]).
    pub found: Option<&'static str>,
    /// Reason why the last attempt failed, until an attempt succeeds.
    pub last_error: Option<String>,
}

/// Result of the audits: comparisons of the database with its page table that are made although no finding
/// asks for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Audited {
    /// Time at which the last audit ended.
    pub at: Timestamp,
    /// Pages that the last audit compared.
    pub pages: u64,
    /// Pages that differed, in all audits since the process started.
    pub differed: u64,
}

/// Returns the lag in milliseconds, for an oldest waiting commit made at `oldest`. A lag of 0 says that no
/// commit waits, so a commit of this same millisecond counts as one millisecond.
pub(crate) fn lag_of(oldest: Option<u64>, now: u64) -> u64 {
    oldest.map_or(0, |since| now.saturating_sub(since).max(1))
}

/// Returns the lag in this state, if known. A database that is not looked at, or not yet, is not up to date.
/// While a database is opened, commits of an earlier process may be older than any commit that this process
/// knows.
pub(crate) fn lag_known(state: &str, lag_ms: u64) -> Option<u64> {
    let is_told = match state {
        "opening" => false,
        "error" | "not-wal" => lag_ms > 0,
        _ => true,
    };
    is_told.then_some(lag_ms)
}

impl Report {
    pub(crate) fn new(database: &Path, replica: &str) -> Report {
        Report {
            database: database.display().to_string(),
            replica: crate::store::url::redacted(replica),
            state: "opening",
            shipper: None,
            sealed: Txid::ZERO,
            acked: Txid::ZERO,
            unacked_since: None,
            lag_ms: 0,
            unheard: false,
            pending_bytes: 0,
            spool_files: 0,
            requests: 0,
            images: 0,
            imaging: None,
            resyncs: 0,
            history: history::Status::default(),
            keeping: false,
            pinned: None,
            audit: None,
            connections: 0,
            found: None,
            last_error: None,
        }
    }

    /// Returns the reason why waiting is pointless, if there is one.
    pub(crate) fn stopped(&self) -> Option<String> {
        matches!(self.state, "fenced" | "error")
            .then(|| self.last_error.clone().unwrap_or_else(|| self.state.to_string()))
    }

    /// Returns the reason why the next file does not reach the store.
    pub(crate) fn in_the_way(&self) -> String {
        match &self.last_error {
            Some(error) => error.clone(),
            None => format!("{} has not confirmed it yet", self.replica),
        }
    }

    /// Returns the lag, if known.
    pub(crate) fn lag_known(&self) -> Option<u64> {
        lag_known(self.state, self.lag_ms).filter(|lag| *lag > 0 || !self.unheard)
    }

    /// Returns the JSON object of a connection's database that is not replicated. It has the keys of
    /// [`Report::to_json`], and the connection's name for the database.
    pub fn not_replicated(database: &Path, schema: &str, why: Option<String>) -> Value {
        let mut report = Report::new(database, "");
        report.state = "not-replicated";
        report.last_error = why;
        let mut object = report.to_json();
        object["replica"] = Value::Null;
        object["lag_ms"] = Value::Null;
        object["schema"] = schema.into();
        object
    }

    /// Returns the report as a JSON object.
    pub fn to_json(&self) -> Value {
        let txid = |txid: Txid| (txid != Txid::ZERO).then(|| txid.to_string());
        json!({
            "database": self.database,
            "replica": self.replica,
            "state": self.state,
            "shipper": self.shipper,
            "txid": txid(self.sealed),
            "acked": txid(self.acked),
            "lag_ms": self.lag_known(),
            "pending_bytes": self.pending_bytes,
            "spool_files": self.spool_files,
            "requests": self.requests,
            "images": self.images,
            "image_bytes": self.imaging.map(|(done, _)| done),
            "image_total": self.imaging.map(|(_, total)| total),
            "resyncs": self.resyncs,
            "joined": self.history.joined,
            "removed": self.history.removed,
            "proven": self.history.proven.map(|(txid, _)| txid.to_string()),
            "proven_at": self.history.proven.map(|(_, at)| at.to_string()),
            "keeping": self.keeping,
            "history_error": self.history.failure,
            "pinned": self.pinned,
            "audit": self.audit.map(|audit| json!({
                "at": audit.at.to_string(),
                "pages": audit.pages,
                "differed": audit.differed,
            })),
            "connections": self.connections,
            "found": self.found,
            "last_error": self.last_error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_that_nobody_knows_is_not_zero() {
        let mut report = Report::new(Path::new("/a.db"), "s3://b/p");
        for (state, unheard, lag_ms, shown) in [
            ("opening", false, 0, Value::Null),
            ("opening", false, 7, Value::Null),
            ("error", false, 0, Value::Null),
            ("error", false, 7, 7.into()),
            ("streaming", false, 0, 0.into()),
            ("standby", false, 5, 5.into()),
            ("standby", false, 0, 0.into()),
            ("standby", true, 0, Value::Null),
            ("standby", true, 5, 5.into()),
        ] {
            (report.state, report.unheard, report.lag_ms) = (state, unheard, lag_ms);
            assert_eq!(report.to_json()["lag_ms"], shown, "{state} {unheard} {lag_ms}");
        }
    }

    #[test]
    fn a_lag_of_nothing_means_that_nothing_waits() {
        assert_eq!(lag_of(None, 5), 0);
        assert_eq!(lag_of(Some(5), 5), 1, "committed in this same millisecond");
        assert_eq!(lag_of(Some(5), 4), 1, "by another process's clock");
        assert_eq!(lag_of(Some(5), 105), 100);
    }

    #[test]
    fn an_unreplicated_database_has_the_keys_of_a_report() {
        let report = Report::new(Path::new("/a.db"), "s3://b/p").to_json();
        let other = Report::not_replicated(Path::new("/b.db"), "b", None);
        let mut keys: Vec<&String> = report.as_object().unwrap().keys().collect();
        let schema = "schema".to_string();
        keys.push(&schema);
        keys.sort();
        let mut got: Vec<&String> = other.as_object().unwrap().keys().collect();
        got.sort();
        assert_eq!(got, keys);
        assert_eq!((&other["state"], &other["lag_ms"]), (&"not-replicated".into(), &Value::Null));
    }
}
