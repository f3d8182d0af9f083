//! What people are told of a database: the one shape behind SQL functions, logs and the program.

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
    /// One of [`STATES`].
    pub state: &'static str,
    /// The process that ships it, if it is another one.
    pub shipper: Option<u32>,
    /// Last TXID given to a closed file.
    pub sealed: Txid,
    /// Last TXID that the store confirmed.
    pub acked: Txid,
    /// When the oldest unconfirmed commit was made, in milliseconds of the process's clock.
    pub unacked_since: Option<u64>,
    /// How long ago that was; 0 when nothing is unconfirmed, and while nobody knows.
    pub lag_ms: u64,
    /// Another process ships it and is not heard of: a lag of 0 says nothing.
    pub unheard: bool,
    /// Bytes in the spool.
    pub pending_bytes: u64,
    /// Files in the spool.
    pub spool_files: u64,
    /// Calls made to the store since the process started.
    pub requests: u64,
    /// Full images sent.
    pub images: u64,
    /// Of a full image on its way: bytes of the database that are read, of how many.
    pub imaging: Option<(u64, u64)>,
    /// Comparisons of the whole database with the page table.
    pub resyncs: u64,
    /// How the replica's history stands.
    pub history: history::Status,
    /// Whether something is being done for it.
    pub keeping: bool,
    /// While this process ships it and has its WAL open: true if other processes are kept from
    /// restarting that WAL.
    pub pinned: Option<bool>,
    /// What audits came to in this process.
    pub audit: Option<Audited>,
    /// Connections of this process.
    pub connections: usize,
    /// What did not fit last ([`crate::finding`]), by its name.
    pub found: Option<&'static str>,
    /// Why the last attempt failed, until one succeeds.
    pub last_error: Option<String>,
}

/// What comparisons of the database with its page table came to, which are made though all is well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Audited {
    /// When the last one ended.
    pub at: Timestamp,
    /// Pages that it compared.
    pub pages: u64,
    /// Pages that differed, in all of them since the process started.
    pub differed: u64,
}

/// The lag in milliseconds, where the oldest commit that waits was made at `oldest`. 0 says that nothing
/// waits, so what was committed in this same millisecond counts as one.
pub(crate) fn lag_of(oldest: Option<u64>, now: u64) -> u64 {
    oldest.map_or(0, |since| now.saturating_sub(since).max(1))
}

/// The lag in a state, if it is known: a database that is not looked at, or not yet, is not up to date. While
/// it is opened, what an earlier process left may be older than all that this one knows.
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

    /// Why waiting is pointless, if it is.
    pub(crate) fn stopped(&self) -> Option<String> {
        matches!(self.state, "fenced" | "error")
            .then(|| self.last_error.clone().unwrap_or_else(|| self.state.to_string()))
    }

    /// What keeps the next file from the store.
    pub(crate) fn in_the_way(&self) -> String {
        match &self.last_error {
            Some(error) => error.clone(),
            None => format!("{} has not confirmed it yet", self.replica),
        }
    }

    /// The lag, if it is known.
    pub(crate) fn lag_known(&self) -> Option<u64> {
        lag_known(self.state, self.lag_ms).filter(|lag| *lag > 0 || !self.unheard)
    }

    /// The JSON object of a connection's database that is not replicated, with the same keys as
    /// [`Report::to_json`] and the name that the connection has for it.
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

    /// The report as a JSON object.
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
