//! The databases that are to be replicated: opened when they are there, let go when they are not.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde_json::Value;

use super::super::Error;
use super::super::failure::Failure;
use super::candidate::{self, Candidate, FileId};
use super::limits;
use super::owner;
use super::wanted::{Place, Wanted};
use crate::local;

/// How often a folder is read.
const READ_FOLDERS: Duration = Duration::from_secs(2);
/// How long a connection waits for a lock when it is opened. Others wait for it meanwhile.
const BUSY: Duration = Duration::from_millis(200);
/// How long it is waited for locks in all while each database is looked at once: the others come late
/// meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a look takes before the caller is let do something else.
const LOOK: Duration = Duration::from_millis(200);
/// How long the last look takes, at most: whoever waits for the end is not kept by a lock that stays.
const LAST_LOOK: Duration = Duration::from_secs(3);
/// Between two attempts of it.
const PAUSE: Duration = Duration::from_millis(50);
/// When one that could not be opened is tried again, at first and at last.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(8);

const ABSENT: &str = "it does not exist yet";
const EMPTY: &str = "it is empty as yet";
const NO_TEXT: &str = "its name is not UTF-8, so that its replica in the configured folder has no name: it is not replicated";
const BESIDE_REMOVED: &str = "its -wal or -shm was removed or replaced while it was open here, and other programs may use another one: it is opened again and compared; end walferry before these files are removed";
const OTHER_MODE: &str = "it is not in WAL mode and not replicated: run PRAGMA journal_mode=WAL, or set journal-mode to wal";

/// All databases.
pub(super) struct Fleet {
    wanted: Vec<Wanted>,
    /// Folders that could not be read when they were read last, with the reasons.
    unread: BTreeMap<PathBuf, Unread>,
    /// Of each database that was named: where its path led at first, and where it does now.
    led: BTreeMap<PathBuf, (PathBuf, PathBuf)>,
    members: BTreeMap<PathBuf, Member>,
    /// Asked for what the whole process knows.
    asking: Connection,
    read_at: Option<Instant>,
    limit_told: bool,
    /// Where the next look goes on, if the last one did not see all.
    next: Option<PathBuf>,
    /// What is left of [`PATIENCE`].
    patience: Duration,
    /// Whether each database was looked at once.
    pub(super) all_seen: bool,
}

/// One of them.
pub(super) struct Member {
    uri: String,
    /// The URL of its replica, where that is not from environment or file.
    replica: Option<String>,
    set_wal: bool,
    /// Whether it is forgotten when its file is gone, as it was found in a folder.
    found: bool,
    open: Option<Open>,
    /// A file that was in WAL mode when it was opened: its header is not read again.
    known: Option<FileId>,
    /// Set while it could not be opened.
    failed: Option<Failed>,
    /// What was said last of why it is not open.
    said: Option<String>,
    /// True until the extension was asked whether it refuses the open database.
    unasked: bool,
}

/// A database that is open.
struct Open {
    db: Connection,
    file: FileId,
    /// The files of its WAL and wal-index, which nobody removes while the connection is open.
    beside: [Option<FileId>; 2],
}

/// Why a folder could not be read.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Unread {
    why: String,
    /// True if the folder does not exist.
    pub(super) missing: bool,
}

impl Unread {
    fn of(error: &std::io::Error) -> Unread {
        Unread { why: error.to_string(), missing: error.kind() == ErrorKind::NotFound }
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it cannot be read, and its databases are not replicated: {}", self.why)
    }
}

/// A database that is open and not replicated.
struct Refusal {
    why: String,
    /// True if no replica has the database.
    of_all: bool,
}

/// An attempt to open a database that came to nothing.
struct Failed {
    /// None where the file's metadata could not be read either.
    file: Option<FileId>,
    again: Instant,
    /// How long it was from the attempt to `again`.
    pause: Duration,
    /// Whether it may well succeed soon, as with a lock.
    soon: bool,
}

/// Why a database is not open.
enum NotOpen {
    OtherMode,
    /// The file cannot be read.
    Unread(String),
    /// The extension refuses to replicate it, or it is another user's.
    Refused(String),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for NotOpen {
    fn from(error: rusqlite::Error) -> NotOpen {
        NotOpen::Sqlite(error)
    }
}

impl Fleet {
    /// With nothing open yet. The extension is loaded.
    pub(super) fn new(wanted: Vec<Wanted>) -> Result<Fleet, Error> {
        let asking = Connection::open_in_memory()
            .map_err(|error| Failure::sqlite("cannot open a database in memory", error))?;
        let members = BTreeMap::new();
        let (read_at, next, patience) = (None, None, PATIENCE);
        let (limit_told, all_seen) = (false, false);
        let led = BTreeMap::new();
        let unread = BTreeMap::new();
        Ok(Fleet {
            wanted,
            unread,
            led,
            members,
            asking,
            read_at,
            limit_told,
            next,
            patience,
            all_seen,
        })
    }

    /// Opens what is there, closes what is gone; `false` if that took so long that it ended before
    /// each database was looked at. The next call goes on.
    pub(super) fn look(&mut self) -> bool {
        let begun = Instant::now();
        if self.next.is_none() {
            self.patience = PATIENCE;
            if self.read_at.is_none_or(|at| at <= begun) {
                self.take_in();
                self.read_at = Some(begun + READ_FOLDERS);
            }
        }
        let next = self.next.take();
        let from = next.as_deref().map_or(Bound::Unbounded, Bound::Included);
        let mut forgotten = Vec::new();
        for (path, member) in self.members.range_mut::<Path, _>((from, Bound::Unbounded)) {
            if begun.elapsed() >= LOOK {
                self.next = Some(path.clone());
                break;
            }
            if !member.look(path, &mut self.patience) {
                forgotten.push(path.clone());
            }
        }
        for path in forgotten {
            self.members.remove(&path);
        }
        self.ask_of_new();
        if !self.limit_told
            && let Some((limit, needed)) = limits::too_low_for(self.members.len())
        {
            self.limit_told = true;
            log::error!(
                "{} databases need about {needed} open files, and the limit is {limit}: raise it (ulimit -n, LimitNOFILE=)",
                self.members.len()
            );
        }
        self.all_seen |= self.next.is_none();
        self.next.is_none()
    }

    /// Adds databases that are new.
    fn take_in(&mut self) {
        let first = self.read_at.is_none();
        let mut unread = BTreeMap::new();
        for wanted in &self.wanted {
            match &wanted.place {
                Place::Database(path) => {
                    let leads = crate::config::canonical(path);
                    if first {
                        add(&mut self.members, wanted, path, None);
                    }
                    let first_time = || (leads.clone(), leads.clone());
                    let (led, told) = self.led.entry(path.clone()).or_insert_with(first_time);
                    if *told != leads && leads.exists() {
                        told.clone_from(&leads);
                        let same = candidate::file_id(led) == candidate::file_id(&leads);
                        if !same && !self.members.contains_key(&leads) {
                            log::error!(
                                "{}: this leads to {} now, which is not replicated; what is replicated is the database to which it led: end and begin again",
                                path.display(),
                                leads.display()
                            );
                        }
                    }
                }
                Place::Folder { path, pattern, recursive, watch } if first || *watch => {
                    let mut files = Vec::new();
                    find(path, pattern, *recursive, &mut files, &mut unread);
                    for file in files {
                        let within = file.strip_prefix(path).ok().map(Path::to_path_buf);
                        add(&mut self.members, wanted, &file, within.as_deref());
                    }
                }
                Place::Folder { path, .. } => {
                    // This folder is read once, and its errors stay.
                    let known = self.unread.iter().filter(|(folder, _)| folder.starts_with(path));
                    unread.extend(known.map(|(folder, why)| (folder.clone(), why.clone())));
                }
            }
        }
        for (folder, why) in &unread {
            if self.unread.get(folder) != Some(why) {
                log::error!("{}: {why}", folder.display());
            }
        }
        self.unread = unread;
    }

    /// Returns the folders that could not be read when they were read last.
    pub(super) fn unread(&self) -> impl Iterator<Item = (&Path, &Unread)> {
        self.unread.iter().map(|(folder, why)| (folder.as_path(), why))
    }

    /// Lets go of databases that the extension refuses, among those that were opened just now.
    fn ask_of_new(&mut self) {
        if !self.members.values().any(|member| member.unasked) {
            return;
        }
        let refusals = self.refusals();
        for (path, member) in self.members.iter_mut().filter(|(_, member)| member.unasked) {
            member.unasked = false;
            let refusal = refusals.get(&path.display().to_string());
            match refusal.filter(|refusal| refusal.of_all) {
                None => {
                    (member.said, member.failed) = (None, None);
                    log::info!("{}: opened", path.display());
                }
                Some(refusal) => {
                    let file = member.open.as_ref().map(|open| open.file);
                    member.close(path);
                    member.note_failure(path, file, &NotOpen::Refused(refusal.why.clone()));
                }
            }
        }
    }

    /// Returns why databases are not replicated, by their paths as the status has them.
    fn refusals(&self) -> HashMap<String, Refusal> {
        let mut states: HashMap<String, HashMap<String, (bool, String)>> = HashMap::new();
        for one in self.status() {
            let text = |name: &str| one[name].as_str().unwrap_or_default().to_string();
            // A refusal stays in the status beside a later success with the same replica.
            let replicas = states.entry(text("database")).or_default();
            let replica = replicas.entry(text("replica")).or_insert((true, String::new()));
            replica.0 &= one["state"] == "error";
            replica.1 = text("last_error");
        }
        let refusals = states.into_iter().filter_map(|(database, replicas)| {
            let of_all = replicas.values().all(|(refused, _)| *refused);
            let why = replicas.into_values().find(|(refused, _)| *refused)?.1;
            Some((database, Refusal { why, of_all }))
        });
        refusals.collect()
    }

    /// Before the end: what came since the last look, and what could not be opened until now. Gives
    /// those that are there all the same and are not replicated.
    pub(super) fn look_at_last(&mut self) -> Vec<PathBuf> {
        let until = Instant::now() + LAST_LOOK;
        (self.next, self.read_at) = (None, self.read_at.map(|_| Instant::now()));
        loop {
            for failed in self.members.values_mut().filter_map(|member| member.failed.as_mut()) {
                failed.again = Instant::now();
            }
            while !self.look() && Instant::now() < until {}
            // That one is in another mode was said, and is no failure.
            let is_failed = |member: &Member| {
                member.failed.is_some() && member.said.as_deref() != Some(OTHER_MODE)
            };
            let soon = |member: &Member| member.failed.as_ref().is_some_and(|failed| failed.soon);
            let comes_soon = |member: &Member| is_failed(member) && soon(member);
            if !self.members.values().any(comes_soon) || Instant::now() >= until {
                // Where there was no time for all, the first of those that are left.
                let unseen = self.next.iter().cloned();
                let refusals = self.refusals();
                let failed = self.members.iter().filter(|(path, member)| {
                    let refused = refusals.contains_key(&path.display().to_string());
                    is_failed(member) || refused && member.open.is_some()
                });
                let failed = failed.map(|(path, _)| path.clone());
                return failed.chain(unseen).chain(self.unread.keys().cloned()).collect();
            }
            std::thread::park_timeout(PAUSE);
        }
    }

    /// Whether every database that can be opened is replicated: its WAL is kept, and what is
    /// committed is seen. One that is locked now may be opened soon.
    pub(super) fn is_ready(&self) -> bool {
        let soon = |member: &Member| member.failed.as_ref().is_some_and(|failed| failed.soon);
        if !self.all_seen || self.members.values().any(soon) {
            return false;
        }
        let states: HashMap<String, String> = self
            .status()
            .into_iter()
            .filter_map(|one| {
                Some((one["database"].as_str()?.to_string(), one["state"].as_str()?.to_string()))
            })
            .collect();
        self.members.iter().filter(|(_, member)| member.open.is_some()).all(|(path, _)| {
            states.get(&path.display().to_string()).is_some_and(|state| state != "opening")
        })
    }

    /// `walferry_status()`.
    pub(super) fn status(&self) -> Vec<Value> {
        let text = self.asking.query_row("SELECT walferry_status()", [], |row| row.get(0));
        let text: String = text.unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Whether the extension's threads answer in this time.
    pub(super) fn answers(&self, within: Duration) -> bool {
        let ms = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
        let well = self.asking.query_row("SELECT walferry_ping(?1)", [ms], |row| row.get(0));
        well.is_ok_and(|well: i64| well == 1)
    }

    /// Every database with its connection; none while it is not open.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Path, Result<&Connection, &str>)> {
        self.members.iter().map(|(path, member)| {
            let said = member.said.as_deref().unwrap_or(ABSENT);
            (path.as_path(), member.open.as_ref().map(|open| &open.db).ok_or(said))
        })
    }

    /// Whether it is a file of a folder that nothing was written to.
    pub(super) fn is_empty_in_folder(&self, path: &Path) -> bool {
        let is_empty = |member: &Member| member.found && member.said.as_deref() == Some(EMPTY);
        self.members.get(path).is_some_and(is_empty)
    }

    /// The URL of a database's replica, if it was given.
    pub(super) fn replica(&self, path: &Path) -> Option<&str> {
        self.members.get(path)?.replica.as_deref()
    }

    /// Closes all of them.
    pub(super) fn close(&mut self) {
        for (path, member) in &mut self.members {
            member.close(path);
        }
    }
}

fn add(
    members: &mut BTreeMap<PathBuf, Member>,
    wanted: &Wanted,
    path: &Path,
    within: Option<&Path>,
) {
    let path = crate::config::canonical(path);
    if members.contains_key(&path) {
        return;
    }
    let member = Member {
        uri: wanted.uri(&path, within),
        replica: wanted.replica(within),
        set_wal: wanted.set_wal,
        found: within.is_some(),
        open: None,
        known: None,
        failed: None,
        said: None,
        unasked: false,
    };
    members.insert(path, member);
}

/// The files of a folder whose names fit. What SQLite and walferry have beside a database is none.
fn find(
    folder: &Path,
    pattern: &str,
    recursive: bool,
    files: &mut Vec<PathBuf>,
    unread: &mut BTreeMap<PathBuf, Unread>,
) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            unread.insert(folder.to_path_buf(), Unread::of(&error));
            return;
        }
    };
    for entry in entries {
        let kind = entry.and_then(|entry| Ok((entry.file_type()?, entry)));
        let (kind, entry) = match kind {
            Ok(found) => found,
            // A file that was deleted since the folder was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                unread.insert(folder.to_path_buf(), Unread::of(&error));
                continue;
            }
        };
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let ours = name.ends_with("-walferry") || name.ends_with("-restoring");
        let beside = ["-wal", "-shm", "-journal"].iter().any(|end| name.ends_with(end));
        if kind.is_dir() && recursive && !ours {
            find(&path, pattern, recursive, files, unread);
            // A folder that was deleted since its parent was listed.
            unread.retain(|folder, why| *folder != path || !why.missing || path.exists());
        } else if kind.is_file() && !beside && fits(pattern, &name) {
            // A link leads to a database that has a place of its own.
            files.push(path);
        }
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    crate::config::pattern::matches(pattern, name).unwrap_or(false)
}

impl Member {
    /// Opens or closes it as its file is now; `false` when it is to be forgotten.
    fn look(&mut self, path: &Path, patience: &mut Duration) -> bool {
        if self.found && self.replica.is_none() && path.to_str().is_none() {
            self.say(path, log::Level::Error, NO_TEXT);
            return path.exists();
        }
        let now = (self.open.is_some() || self.failed.is_some() || self.known.is_some())
            .then(|| candidate::file_id(path))
            .flatten();
        if let Some(open) = &self.open {
            if now != Some(open.file) {
                log::info!(
                    "{}: the file {}; it is let go",
                    path.display(),
                    if now.is_some() { "was replaced" } else { "is gone" }
                );
            } else if open.beside == beside(path) {
                return true;
            } else {
                log::error!("{}: {BESIDE_REMOVED}", path.display());
            }
            self.close(path);
        }
        if let Some(failed) = &self.failed
            && now == failed.file
            && Instant::now() < failed.again
        {
            return true;
        }
        let known = now.filter(|file| self.known == Some(*file));
        match known.map_or_else(|| candidate::look(path), Candidate::Wal) {
            Candidate::Nothing => {
                self.failed = None;
                if self.found && !path.exists() {
                    return false;
                }
                self.say(path, log::Level::Info, if path.exists() { EMPTY } else { ABSENT });
            }
            Candidate::NotOne(why) => {
                self.failed = None;
                self.say(path, log::Level::Warn, &why);
            }
            Candidate::Unread(file, why) => {
                self.note_failure(path, file, &NotOpen::Unread(why));
            }
            Candidate::OtherMode(_) if !self.set_wal => {
                self.failed = None;
                self.say(path, log::Level::Warn, OTHER_MODE);
            }
            Candidate::Wal(file) | Candidate::OtherMode(file) => {
                let begun = Instant::now();
                let opened = match owner::shuts_out(path) {
                    Some(why) => Err(NotOpen::Refused(why)),
                    None => self.open(path, BUSY.min(*patience)),
                };
                match opened {
                    Ok(db) => {
                        self.known = Some(file);
                        self.open = Some(Open { db, file, beside: beside(path) });
                        self.unasked = true;
                    }
                    Err(why) => {
                        *patience = patience.saturating_sub(begun.elapsed());
                        self.note_failure(path, Some(file), &why);
                    }
                }
            }
        }
        true
    }

    /// Opens it with the extension. Only in WAL mode it is replicated: a connection to another one
    /// would be kept for nothing.
    fn open(&self, path: &Path, busy: Duration) -> Result<Connection, NotOpen> {
        // Without CREATE: nothing comes into being that was not there.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(&self.uri, flags)?;
        db.busy_timeout(busy)?;
        let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            log::debug!("{}: journal mode {mode}", path.display());
            return Err(NotOpen::OtherMode);
        }
        // A read opens the WAL, and keeps it open.
        db.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
        db.busy_timeout(BUSY)?;
        Ok(db)
    }

    /// It could not be opened: says why, and when it is tried again.
    fn note_failure(&mut self, path: &Path, file: Option<FileId>, why: &NotOpen) {
        if matches!(why, NotOpen::OtherMode) {
            // It changed while it was away. No lock of ours is on it, so that its header may be read.
            self.known = None;
        }
        let soon = match why {
            NotOpen::OtherMode if self.set_wal => {
                let text = "it is not in WAL mode and not replicated: it could not be put into it, which is tried again";
                self.say(path, log::Level::Warn, text);
                true
            }
            NotOpen::OtherMode => {
                self.say(path, log::Level::Warn, OTHER_MODE);
                false
            }
            NotOpen::Unread(why) | NotOpen::Refused(why) => {
                self.say(path, log::Level::Error, why);
                false
            }
            NotOpen::Sqlite(error) => {
                self.say(path, log::Level::Error, &error.to_string());
                let locked = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked];
                error.sqlite_error_code().is_some_and(|code| locked.contains(&code))
            }
        };
        let before = self.failed.as_ref().filter(|failed| failed.file == file);
        let pause = before.map_or(AGAIN, |failed| (failed.pause * 2).min(AGAIN_MAX));
        self.failed = Some(Failed { file, again: Instant::now() + pause, pause, soon });
    }

    fn close(&mut self, path: &Path) {
        let Some(open) = self.open.take() else { return };
        // The wal-index of this process is of a WAL that others have gone on with since: a checkpoint by it
        // would write other pages over the database.
        let closed = if open.beside == beside(path) {
            open.db.close()
        } else {
            let off = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            match open.db.set_db_config(off, true) {
                Ok(_) => open.db.close(),
                Err(error) => Err((open.db, error)),
            }
        };
        if let Err((_, error)) = closed {
            log::warn!("{}: {error}", path.display());
        }
    }

    /// Says why it is not replicated, once for each reason.
    fn say(&mut self, path: &Path, level: log::Level, why: &str) {
        if self.said.as_deref() != Some(why) {
            log::log!(level, "{}: {why}", path.display());
            self.said = Some(why.to_string());
        }
    }
}

/// The files of a database's WAL and wal-index now.
fn beside(path: &Path) -> [Option<FileId>; 2] {
    [local::wal_path(path), local::shm_path(path)].map(|path| candidate::file_id(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Databases that somebody else has to themselves, opened without the extension.
    fn held(folder: &Path, number: usize) -> (Fleet, Vec<Connection>) {
        let mut fleet = Fleet::new(Vec::new()).unwrap();
        let holders = (0..number).map(|number| {
            let path = folder.join(format!("{number:02}.db"));
            let db = Connection::open(&path).unwrap();
            let to_itself = "PRAGMA journal_mode=WAL; PRAGMA locking_mode=EXCLUSIVE";
            db.execute_batch(&format!("{to_itself}; CREATE TABLE t (x)")).unwrap();
            let member = Member {
                uri: format!("file:{}", path.display()),
                replica: None,
                set_wal: false,
                found: true,
                open: None,
                known: None,
                failed: None,
                said: None,
                unasked: false,
            };
            fleet.members.insert(path, member);
            db
        });
        let holders = holders.collect();
        (fleet, holders)
    }

    #[test]
    fn locked_databases_do_not_keep_the_caller() {
        let folder = tempfile::tempdir().unwrap();
        let (mut fleet, holders) = held(folder.path(), 20);
        assert!(!fleet.look(), "it goes on for all of them");
        assert!(!fleet.is_ready());
        let tried = fleet.members.values().filter(|member| member.failed.is_some()).count();
        assert!((1..20).contains(&tried), "{tried}");
        while !fleet.look() {}
        assert!(fleet.members.values().all(|member| member.failed.is_some()));
        // It was waited for few of them.
        assert!(fleet.patience.is_zero());
        assert!(!fleet.is_ready(), "they may be opened soon");

        drop(holders);
        for member in fleet.members.values_mut() {
            member.failed.as_mut().unwrap().again = Instant::now();
        }
        while !fleet.look() {}
        assert!(fleet.members.values().all(|member| member.open.is_some()));
    }

    #[test]
    fn each_attempt_that_fails_makes_the_next_one_later() {
        let folder = tempfile::tempdir().unwrap();
        let (mut fleet, holders) = held(folder.path(), 1);
        let (path, member) = fleet.members.iter_mut().next().unwrap();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            member.look(path, &mut Duration::default());
            let failed = member.failed.as_mut().unwrap();
            pauses.push(failed.pause);
            failed.again = Instant::now();
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 8000].map(Duration::from_millis));

        // Before its time nothing is tried.
        member.failed.as_mut().unwrap().again += Duration::from_hours(1);
        drop(holders);
        member.look(path, &mut Duration::default());
        assert!(member.open.is_none());
        // Another file is.
        member.failed.as_mut().unwrap().file = None;
        member.look(path, &mut Duration::default());
        assert!(member.open.is_some());
    }

    #[test]
    fn a_database_that_left_wal_mode_is_not_held_open() {
        let folder = tempfile::tempdir().unwrap();
        let (mut fleet, holders) = held(folder.path(), 1);
        drop(holders);
        while !fleet.look() {}
        let (path, member) = fleet.members.iter_mut().next().unwrap();
        member.close(path);
        let db = Connection::open(path).unwrap();
        db.execute_batch("PRAGMA journal_mode=DELETE").unwrap();
        member.look(path, &mut BUSY.clone());
        assert!(member.open.is_none() && member.known.is_none());
        assert_eq!(member.said.as_deref(), Some(OTHER_MODE));
        db.execute_batch("PRAGMA journal_mode=WAL").unwrap();
        member.failed = None;
        member.look(path, &mut BUSY.clone());
        assert!(member.open.is_some());
    }
}
