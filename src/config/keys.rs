//! The table of all keys of a file: the place, the kind, and the meaning of each key.
//!
//! The parser, the documentation and the tests use this table.

/// Part of the file that has a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The top of the file: the key applies to all databases.
    Global,
    /// An entry of `dbs`.
    Database,
    /// `replica`, or an entry of `replicas`.
    Replica,
}

/// Kind of a key's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A length of time.
    Time,
    /// A length of time, `off`, or 0 for `off`.
    TimeOrOff,
    /// A size in bytes.
    Size,
    /// A whole number.
    Number,
    /// True or false.
    Switch,
    /// A text.
    Text,
    /// A text that is never shown.
    Secret,
    /// A path: `~/` is the home directory.
    Path,
    /// Permission bits in octal.
    Mode,
    /// A word of this list.
    Word(&'static [&'static str]),
    /// Rising lengths of time: `30s,5m,1h`, a list of these, or a list of `interval: 30s`.
    Levels,
    /// An option of the S3 store, which the store checks.
    Option,
    /// A list, or a group of keys.
    Structure,
}

/// Effect of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// The key has its usual effect.
    Supported,
    /// The key has no effect, for this reason.
    Note(&'static str),
    /// The file is refused. The text gives the reason and an alternative.
    Refused(&'static str),
    /// Only the first value is allowed; any other is refused. The second text gives the reason and an
    /// alternative.
    Only(&'static str, &'static str),
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Name of the key, with the names of its groups and dots in front.
    pub name: &'static str,
    /// Places of the file that may have the key.
    pub places: &'static [Place],
    /// Types of replicas that have the key; empty for all types.
    pub types: &'static [&'static str],
    /// Kind of the value.
    pub kind: Kind,
    /// Effect of the key.
    pub meaning: Meaning,
    /// The setting that the key sets, by the setting's name as a URI parameter.
    pub sets: Option<&'static str>,
    /// Value that applies without the key, as the documentation shows it.
    pub default: &'static str,
    /// Description of the key for the documentation.
    pub text: &'static str,
}

use Kind::{
    Levels, Mode, Number, Path, Secret, Size, Structure, Switch, Text, Time, TimeOrOff, Word,
};
use Meaning::{Note, Only, Refused, Supported};

const G: &[Place] = &[Place::Global];
const D: &[Place] = &[Place::Database];
const R: &[Place] = &[Place::Replica];
const GD: &[Place] = &[Place::Global, Place::Database];
const GR: &[Place] = &[Place::Global, Place::Replica];
const GDR: &[Place] = &[Place::Global, Place::Database, Place::Replica];
const S3: &[&str] = &["s3"];
const FILE: &[&str] = &["file"];

const fn row(name: &'static str, places: &'static [Place], kind: Kind) -> Row {
    let meaning = Supported;
    Row { name, places, types: &[], kind, meaning, sets: None, default: "", text: "" }
}

impl Row {
    const fn sets(self, setting: &'static str) -> Row {
        Row { sets: Some(setting), ..self }
    }

    const fn of(self, types: &'static [&'static str]) -> Row {
        Row { types, ..self }
    }

    const fn says(self, default: &'static str, text: &'static str) -> Row {
        Row { default, text, ..self }
    }

    const fn note(self, why: &'static str) -> Row {
        Row { meaning: Note(why), ..self }
    }

    const fn refused(self, why: &'static str) -> Row {
        Row { meaning: Refused(why), ..self }
    }

    const fn only(self, value: &'static str, why: &'static str) -> Row {
        Row { meaning: Only(value, why), ..self }
    }
}

/// Returns the row of an option of the S3 store.
const fn option(name: &'static str) -> Row {
    row(name, GR, Kind::Option).of(S3)
}

/// Returns the row of a key that belongs to a type of store that walferry does not have.
const fn other(name: &'static str, kind: Kind, types: &'static [&'static str]) -> Row {
    row(name, GR, kind).of(types).refused(NO_STORE)
}

/// Types of replicas that walferry has.
pub(super) const TYPES: [&str; 2] = ["s3", "file"];
/// Further types that Litestream has.
pub(super) const OTHER_TYPES: [&str; 8] =
    ["gs", "gcs", "abs", "sftp", "nats", "webdav", "webdavs", "oss"];
/// Message about these types.
pub(super) const NO_STORE: &str = "this version has stores of the types s3 and file only; use a \
     bucket with an S3 interface (Google Cloud Storage, Oracle, Alibaba OSS, MinIO and many others \
     have one: type s3 with its endpoint), or a folder (type file), which may be mounted";

const NOTHING_POLLS: &str =
    "nothing polls here: a commit is seen in the moment in which it is made";
const SQLITE_CHECKPOINTS: &str = "SQLite checkpoints by itself, by PRAGMA wal_autocheckpoint, which \
     must not be 0; walferry only keeps the WAL from being overwritten too early";
const STATE_BESIDE: &str = "walferry keeps its state beside the database, in a folder with -walferry \
     behind its name, where every process looks that opens the database; remove the key, and use \
     spool-cap to bound what that folder takes";
const BY_STATUS: &str = "this version serves no metrics; use walferry_status() in SQL, which has the \
     state, TXIDs, lag and errors of each database";
const NO_SOCKET: &str = "there is no control socket: databases are replicated by the process that \
     opens them; use walferry_status() and walferry_sync() in SQL, or `walferry sync`";
const ENCRYPTION: &str = "walferry does not encrypt with age, and Litestream 0.5 does not either; use \
     the bucket's encryption: sse, sse-kms-key-id or sse-customer-key-path";
const HEARTBEAT: &str = "walferry sends no heartbeats; use walferry_lag() in SQL, from a job that \
     tells your monitor when it is small";

/// All keys.
pub const KEYS: &[Row] = &[
    // Databases.
    row("dbs", G, Structure).says("none", "the databases, a list"),
    row("path", D, Path).says("", "a database; relative to the working directory of the process"),
    row("dir", D, Path).says("", "a folder of databases, instead of `path`"),
    row("pattern", D, Text).says("", "with `dir`: which names in it are databases, such as `*.db`"),
    row("recursive", D, Switch).says("false", "with `dir`: also in the folders below it"),
    row("watch", D, Switch).says(
        "false",
        "with `dir`: also databases that are made later; the extension looks at each one that is \
         opened in any case",
    ),
    row("replica", D, Structure).says("none", "where it is replicated to"),
    row("replicas", D, Structure).says("none", "the same for several, a list, instead of `replica`"),
    row("strict", GD, Switch).sets("strict").says(
        "false",
        "a database whose settings cannot work is not opened, instead of not being replicated",
    ),
    row("journal-mode", GD, Word(&["wal", "keep"])).sets("journal-mode").says(
        "wal",
        "`wal`: a database is put into WAL mode when it is opened, and a new one once there is \
         something in it; `keep`: it stays as it is, and is replicated only in WAL mode",
    ),
    row("uri-parameters", G, Word(crate::uri::WORDS)).says(
        "listed",
        "which parameters of walferry's count in the URI of a database: `all`; `listed`, those that \
         name what file or environment name for that database; `off`, none \
         ([more](#uris-and-sql-that-is-not-trusted))",
    ),
    // Replicas.
    row("type", R, Word(&["s3", "file", "gs", "gcs", "abs", "sftp", "nats", "webdav", "webdavs", "oss"]))
        .says("by the URL, else `s3` with a bucket, else `file`", "`s3` or `file`"),
    row("url", R, Text).says("", "`s3://bucket/path` or `file:///path`, instead of `bucket` and `path`"),
    row("path", R, Path).says("", "the folder of the replica, or its path in the bucket"),
    row("name", R, Text).says("its type", "what `--replica` and `walferry databases` call it"),
    row("bucket", GR, Text).of(&["s3", "gs", "gcs", "abs", "nats", "oss"]).says("", "the bucket"),
    option("allow-plain-http").says(
        "false",
        "requests may go over plain http to another machine, where everybody on the way can read \
         them; never with a session token or a customer's key",
    ),
    option("region").of(&["s3", "oss"]).says("of the environment or profile, else us-east-1", "its region"),
    option("endpoint").of(&["s3", "abs"]).says("AWS", "URL of a server that is not AWS"),
    row("access-key-id", GR, Secret).of(&["s3", "oss"]).says(
        "`AWS_ACCESS_KEY_ID`, profiles, roles",
        "the credentials; they go before those of the environment",
    ),
    row("secret-access-key", GR, Secret).of(&["s3", "oss"]).says("`AWS_SECRET_ACCESS_KEY`", "the same"),
    row("session-token", GR, Secret).of(S3).says("", "the token of temporary credentials"),
    option("profile").says("`AWS_PROFILE`", "the profile in `~/.aws` that has the credentials"),
    option("force-path-style").says("true with an endpoint", "the bucket is in the path, not in the host name"),
    option("storage-class").says("the bucket's", "such as `STANDARD_IA`"),
    option("part-size").of(&["s3", "oss"]).says("8MiB and more, by length", "of an upload; at least 5MiB"),
    option("concurrency").of(&["s3", "oss"]).says("4", "how many parts of a file are sent at once"),
    option("sse").says("the bucket's", "encryption by the server: `AES256`, `aws:kms` or `aws:kms:dsse`"),
    option("sse-kms-key-id").says("", "the key for that"),
    option("sse-customer-algorithm").says("AES256", "of the customer's key; no other is known"),
    row("sse-customer-key", GR, Secret).of(S3).says("", "the customer's key for it, 32 bytes in base64"),
    option("sse-customer-key-path").says("", "the file that has it"),
    option("skip-verify").of(&["s3", "webdav", "webdavs"]).only(
        "false",
        "without checking the certificate anybody on the way could read and replace the backup; use \
         the system's certificates, or name the server's in SSL_CERT_FILE",
    ),
    option("sign-payload").note("what is sent is always signed, or sent over TLS"),
    option("require-content-md5").note("what is sent always has a CRC32"),
    row("file-mode", GR, Mode).of(FILE).says(
        "600",
        "permission bits of the files in a folder, which hold what the database holds, whatever the umask is; \
         folders that are made for them can be searched by those who may read the files. At least 600",
    ),
    // Pace and history.
    row("sync-interval", GDR, Time).sets("sync-interval").says("1s", "shortest time between two files; 0 sends each commit"),
    row("shutdown-timeout", GD, Time).sets("shutdown-timeout").says("5s", "how long the end of the process waits for the store"),
    row("shutdown-sync-timeout", G, Time).sets("shutdown-timeout").says("5s", "the same"),
    row("spool-cap", GD, Size).sets("spool-cap").says("10 GiB, or twice the database", "how much may wait on the local disk"),
    row("levels", GDR, Levels).sets("levels").says("30s,5m,1h", "what time becomes one file at level 1, 2, and so on, up to 8: `off`, or a list of `interval: 30s`"),
    row("retention", GDR, TimeOrOff).sets("retention").says("168h", "how far back states can be restored; `off` keeps all"),
    row("snapshot.retention", GDR, TimeOrOff).sets("retention").says("168h", "the same"),
    row("retention.enabled", GDR, Switch).sets("deletes").says("true", "the same as `deletes`"),
    row("l0-retention", GDR, TimeOrOff).sets("l0-retention").says("24h", "how far back states can be restored one by one; `off` keeps all"),
    row("snapshot.interval", GDR, TimeOrOff).sets("snapshot-interval").says("24h", "at most one snapshot in this time"),
    row("snapshot-interval", GDR, TimeOrOff).sets("snapshot-interval").says("24h", "the same"),
    row("validation.interval", GDR, TimeOrOff).sets("validation-interval").says("off", "at most once in this time the newest state is proven from the store's files"),
    row("validation-interval", GDR, TimeOrOff).sets("validation-interval").says("off", "the same"),
    row("deletes", GDR, Switch).sets("deletes").says("true", "`false`: nothing is deleted from the store"),
    row("shrink-images", GDR, Switch).sets("shrink-images").says("false", "a file that makes the database smaller holds all of its pages; Litestream's VFS needs that"),
    row("copies-cap", GDR, Size).sets("copies-cap").says("16MB", "how much of what was shipped is kept on this disk, to be joined without being fetched"),
    row("audit-interval", GDR, TimeOrOff).sets("audit-interval").says("24h", "at most once in this time, while it is written, the database is compared with what was captured of it"),
    row("audit-rate", GDR, Size).sets("audit-rate").says("8MB", "how much of the database that comparison reads in a second"),
    // The log.
    row("logging.level", G, Word(&["off", "error", "warn", "info", "debug", "trace"])).says("info", "what is logged: `off`, `error`, `warn`, `info`, `debug`"),
    row("logging.type", G, Word(&["text", "json", "pretty"])).says("text", "of a log file and of standard error: `text` or `json`; `pretty` is `text`"),
    row("logging.stderr", G, Switch).says("false", "the extension logs to standard error instead of to SQLite's log"),
    row("logging.file", G, Path).says("", "the extension logs to this file instead"),
    row("logging.source", G, Switch).note("lines of the log name the database, not a place in the code"),
    // Litestream's process, polling and checkpoints.
    row("exec", G, Text).says("", "the program that `walferry replicate` runs"),
    row("addr", G, Text).note(BY_STATUS),
    row("mcp-addr", G, Text).refused("there is no server for MCP; use the program's commands with --json"),
    row("socket.enabled", G, Switch).only("false", NO_SOCKET),
    row("socket.path", G, Path).note(NO_SOCKET),
    row("socket.permissions", G, Text).note(NO_SOCKET),
    row("heartbeat-url", G, Text).refused(HEARTBEAT),
    row("heartbeat-interval", G, Time).note(HEARTBEAT),
    row("verify-compaction", G, Switch).note("every file that is joined is always checked"),
    row("l0-retention-check-interval", G, Time).note("it is looked at when a transaction comes, not by the clock"),
    row("retention-check-interval", GR, Time).note("it is looked at when a transaction comes, not by the clock"),
    row("shutdown-sync-interval", G, Time).note("what fails at the end is tried again as ever, until shutdown-timeout is over"),
    row("meta-path", D, Path).refused(STATE_BESIDE),
    row("meta-dir", D, Path).refused(STATE_BESIDE),
    row("monitor-interval", D, Time).note(NOTHING_POLLS),
    row("busy-timeout", D, Time).note("walferry takes no lock that somebody could have to wait for"),
    row("checkpoint-interval", D, Time).note(SQLITE_CHECKPOINTS),
    row("min-checkpoint-page-count", D, Number).note(SQLITE_CHECKPOINTS),
    row("max-checkpoint-page-count", D, Number).note(SQLITE_CHECKPOINTS),
    row("truncate-page-n", D, Number).note(SQLITE_CHECKPOINTS),
    row("max-sync-wal-bytes", D, Size).note("memory is bounded without it: pages are packed to the disk"),
    row("restore-if-db-not-exists", D, Switch).says(
        "false",
        "with `path`: `walferry replicate` restores the database before it begins, if it is missing \
         and a replica exists. The extension does not: use `walferry restore --if-db-not-exists \
         --if-replica-exists` before the program starts",
    ),
    row("restore-mode", GD, Mode).sets("restore-mode").says(
        "600",
        "permission bits of a database that `walferry restore` makes where there is none; `--mode` goes before",
    ),
    row("max-sync-ltx-files", GR, Number).note("files go to the store one by one, in order"),
    row("auto-recover", GR, Switch).note("walferry always compares and goes on by itself, and no file of the replica is ever changed for it"),
    row("age.identities", GR, Structure).refused(ENCRYPTION),
    row("age.recipients", GR, Structure).refused(ENCRYPTION),
    // Types of stores that walferry does not have.
    other("account-name", Text, &["abs"]),
    other("account-key", Secret, &["abs"]),
    other("sas-token", Secret, &["abs"]),
    other("host", Text, &["sftp"]),
    other("user", Text, &["sftp"]),
    other("password", Secret, &["sftp", "nats"]),
    other("key-path", Path, &["sftp"]),
    other("host-key", Text, &["sftp"]),
    other("concurrent-writes", Switch, &["sftp"]),
    other("jwt", Secret, &["nats"]),
    other("seed", Secret, &["nats"]),
    other("creds", Secret, &["nats"]),
    other("nkey", Secret, &["nats"]),
    other("username", Text, &["nats"]),
    other("token", Secret, &["nats"]),
    other("tls", Switch, &["nats"]),
    other("root-cas", Structure, &["nats"]),
    other("client-cert", Path, &["nats"]),
    other("client-key", Path, &["nats"]),
    other("max-reconnects", Number, &["nats"]),
    other("reconnect-wait", Time, &["nats"]),
    other("timeout", Time, &["nats"]),
    other("webdav-url", Text, &["webdav", "webdavs"]),
    other("webdav-username", Text, &["webdav", "webdavs"]),
    other("webdav-password", Secret, &["webdav", "webdavs"]),
];

/// Returns the row of the key with this name at this place.
pub(super) fn find(place: Place, name: &str) -> Option<&'static Row> {
    KEYS.iter().find(|row| row.name == name && row.places.contains(&place))
}

/// True if walferry or Litestream has this type of replica.
pub(super) fn is_type(word: &str) -> bool {
    TYPES.contains(&word) || OTHER_TYPES.contains(&word)
}

/// True if this name is a group of keys.
pub(super) fn is_group(place: Place, name: &str) -> bool {
    KEYS.iter().any(|row| {
        row.places.contains(&place)
            && row.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
    })
}

/// Returns the names of a group's keys without the prefix. `prefix` is the group's name and a dot, or empty.
pub(super) fn names(place: Place, prefix: &str) -> impl Iterator<Item = &'static str> {
    let at = KEYS.iter().filter(move |row| row.places.contains(&place));
    at.filter_map(move |row| row.name.strip_prefix(prefix))
        .map(|rest| rest.split('.').next().unwrap_or_default())
}

/// Describes the places at which a key of this name is allowed.
pub(super) fn elsewhere(name: &str) -> Option<&'static str> {
    let row = KEYS.iter().find(|row| row.name.split('.').next() == Some(name))?;
    Some(match row.places {
        [Place::Global] => "at the top of the file",
        [Place::Database] => "in an entry of dbs",
        [Place::Replica] => "in a replica",
        [Place::Global, Place::Database] => "at the top of the file or in an entry of dbs",
        _ => "at the top of the file or in a replica",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        for row in KEYS {
            let twice = KEYS.iter().filter(|other| {
                other.name == row.name && other.places.iter().any(|at| row.places.contains(at))
            });
            assert_eq!(twice.count(), 1, "{}", row.name);
            match row.meaning {
                Supported => assert!(!row.text.is_empty(), "{}", row.name),
                Note(why) => assert!(why.len() > 30, "{}", row.name),
                Refused(why) | Only(_, why) => assert!(why.contains("use "), "{}: {why}", row.name),
            }
        }
    }
}
