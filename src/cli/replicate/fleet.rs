//! The databases that are to be replicated: opened when they are there, let go when they are not.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::super::Error;
use super::super::failure::Failure;
use super::candidate::{self, Candidate, FileId};
use super::limits;
use super::wanted::{Place, Wanted};

/// How often a folder is read.
const READ_FOLDERS: Duration = Duration::from_secs(2);
/// How long a connection waits for a lock when it is opened. Others wait for it meanwhile.
const BUSY: Duration = Duration::from_millis(200);

/// All databases.
pub(super) struct Fleet {
    wanted: Vec<Wanted>,
    members: BTreeMap<PathBuf, Member>,
    /// Asked for what the whole process knows.
    asking: Connection,
    read_at: Option<Instant>,
    limit_told: bool,
}

/// One of them.
pub(super) struct Member {
    uri: String,
    set_wal: bool,
    /// Whether it is forgotten when its file is gone, as it was found in a folder.
    found: bool,
    open: Option<(Connection, FileId)>,
    /// A file that was in WAL mode when it was opened: its header is not read again.
    known: Option<FileId>,
    /// What was said last of why it is not open.
    said: Option<String>,
}

impl Fleet {
    /// With nothing open yet. The extension is loaded.
    pub(super) fn new(wanted: Vec<Wanted>) -> Result<Fleet, Error> {
        let asking = Connection::open_in_memory()
            .map_err(|error| Failure::sqlite("cannot open a database in memory", error))?;
        let members = BTreeMap::new();
        Ok(Fleet { wanted, members, asking, read_at: None, limit_told: false })
    }

    /// Opens what is there, closes what is gone.
    pub(super) fn look(&mut self) {
        let now = Instant::now();
        if self.read_at.is_none_or(|at| at <= now) {
            self.take_in();
            self.read_at = Some(now + READ_FOLDERS);
        }
        self.members.retain(|path, member| member.look(path));
        if !self.limit_told
            && let Some((limit, needed)) = limits::too_low_for(self.members.len())
        {
            self.limit_told = true;
            log::error!(
                "{} databases need about {needed} open files, and the limit is {limit}: raise it (ulimit -n, LimitNOFILE=)",
                self.members.len()
            );
        }
    }

    /// Adds databases that are new.
    fn take_in(&mut self) {
        let first = self.read_at.is_none();
        for wanted in &self.wanted {
            match &wanted.place {
                Place::Database(path) if first => add(&mut self.members, wanted, path, None),
                Place::Folder { path, pattern, recursive, watch } if first || *watch => {
                    let mut files = Vec::new();
                    find(path, pattern, *recursive, &mut files);
                    for file in files {
                        let within = file.strip_prefix(path).ok().map(Path::to_path_buf);
                        add(&mut self.members, wanted, &file, within.as_deref());
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether every database that could be opened is replicated: its WAL is kept, and what is
    /// committed is seen.
    pub(super) fn is_ready(&self) -> bool {
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
            let said = member.said.as_deref().unwrap_or("it does not exist");
            (path.as_path(), member.open.as_ref().map(|(db, _)| db).ok_or(said))
        })
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
        set_wal: wanted.set_wal,
        found: within.is_some(),
        open: None,
        known: None,
        said: None,
    };
    members.insert(path, member);
}

/// The files of a folder whose names fit. What SQLite and walferry have beside a database is none.
fn find(folder: &Path, pattern: &str, recursive: bool, files: &mut Vec<PathBuf>) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return log::debug!("{}: {error}", folder.display()),
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let ours = name.ends_with("-walferry") || name.ends_with("-restoring");
        let beside = ["-wal", "-shm", "-journal"].iter().any(|end| name.ends_with(end));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && recursive && !ours => {
                find(&path, pattern, recursive, files);
            }
            Ok(_) if !beside && fits(pattern, &name) && path.is_file() => files.push(path),
            _ => {}
        }
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    crate::config::pattern::matches(pattern, name).unwrap_or(false)
}

impl Member {
    /// Opens or closes it as its file is now; `false` when it is to be forgotten.
    fn look(&mut self, path: &Path) -> bool {
        if let Some((_, open)) = &self.open {
            let now = candidate::file_id(path);
            if now == Some(*open) {
                return true;
            }
            log::info!(
                "{}: the file {}; it is let go",
                path.display(),
                if now.is_some() { "was replaced" } else { "is gone" }
            );
            self.close(path);
        }
        let known = candidate::file_id(path).filter(|file| self.known == Some(*file));
        match known.map_or_else(|| candidate::look(path), Candidate::Wal) {
            Candidate::Nothing => {
                if self.found && !path.exists() {
                    return false;
                }
                self.say(path, log::Level::Info, "it does not exist yet");
            }
            Candidate::NotOne(why) => self.say(path, log::Level::Warn, &why),
            Candidate::OtherMode(_) if !self.set_wal => {
                let text = "it is not in WAL mode and not replicated: run PRAGMA journal_mode=WAL, or set journal-mode to wal";
                self.say(path, log::Level::Warn, text);
            }
            Candidate::Wal(file) | Candidate::OtherMode(file) => match self.open(path) {
                Ok(db) => {
                    self.said = None;
                    self.known = Some(file);
                    self.open = Some((db, file));
                    log::info!("{}: opened", path.display());
                }
                Err(error) => self.say(path, log::Level::Error, &error.to_string()),
            },
        }
        true
    }

    fn open(&self, path: &Path) -> Result<Connection, rusqlite::Error> {
        // Without CREATE: nothing comes into being that was not there.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(&self.uri, flags)?;
        db.busy_timeout(BUSY)?;
        // A read opens the WAL, and keeps it open.
        let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        db.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
        if mode != "wal" {
            log::debug!("{}: journal mode {mode}", path.display());
        }
        Ok(db)
    }

    fn close(&mut self, path: &Path) {
        if let Some((db, _)) = self.open.take()
            && let Err((_, error)) = db.close()
        {
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
