//! One database that is to be replicated: opened when it is there, let go when it is not.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::candidate::{self, Candidate, FileId};
use super::owner;
use super::wanted::Wanted;
use crate::local;

/// How long a connection waits for a lock when it is opened. Others wait for it meanwhile.
const BUSY: Duration = Duration::from_millis(200);
/// When one that could not be opened is tried again, at first and at last.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(8);

pub(super) const ABSENT: &str = "it does not exist yet";
pub(super) const EMPTY: &str = "it is empty as yet";
const NO_TEXT: &str = "its name is not UTF-8, so that its replica in the configured folder has no name: it is not replicated";
const BESIDE_REMOVED: &str = "its -wal or -shm was removed or replaced while it was open here, and other programs may use another one: it is opened again and compared; end walferry before these files are removed";
pub(super) const OTHER_MODE: &str = "it is not in WAL mode and not replicated: run PRAGMA journal_mode=WAL, or set journal-mode to wal";

/// A database that is to be replicated.
pub(super) struct Member {
    uri: String,
    /// The URL of its replica, where that is not from environment or file.
    pub(super) replica: Option<String>,
    set_wal: bool,
    /// True if the database is forgotten when its file is gone, as it was found in a folder.
    pub(super) found: bool,
    pub(super) open: Option<Open>,
    /// A file that was in WAL mode when it was opened: its header is not read again.
    known: Option<FileId>,
    /// Set while it could not be opened.
    pub(super) failed: Option<Failed>,
    /// The reason said last for which the database is not open.
    pub(super) said: Option<String>,
    /// True until the extension was asked whether it refuses the open database.
    pub(super) unasked: bool,
}

/// A database that is open.
pub(super) struct Open {
    pub(super) db: Connection,
    pub(super) file: FileId,
    /// The files of its WAL and wal-index, which nobody removes while the connection is open.
    beside: local::Beside,
}

/// An attempt to open a database that came to nothing.
pub(super) struct Failed {
    /// None where the file's metadata could not be read either.
    file: Option<FileId>,
    pub(super) again: Instant,
    /// How long it was from the attempt to `again`.
    pause: Duration,
    /// True if the next attempt may well succeed soon, as with a lock.
    pub(super) soon: bool,
}

/// Why a database is not open.
pub(super) enum NotOpen {
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

impl Member {
    pub(super) fn new(wanted: &Wanted, path: &Path, within: Option<&Path>) -> Member {
        Member {
            uri: wanted.uri(path, within),
            replica: wanted.replica(within),
            set_wal: wanted.set_wal,
            found: within.is_some(),
            open: None,
            known: None,
            failed: None,
            said: None,
            unasked: false,
        }
    }

    /// Opened without the extension.
    #[cfg(test)]
    pub(super) fn plain(path: &Path) -> Member {
        let wanted = Wanted {
            place: super::wanted::Place::Database(path.to_path_buf()),
            parameters: Vec::new(),
            set_wal: false,
            restore: false,
        };
        let uri = format!("file:{}", path.display());
        Member { uri, found: true, ..Member::new(&wanted, path, None) }
    }

    /// Opens or closes it as its file is now; `false` when it is to be forgotten.
    pub(super) fn look(&mut self, path: &Path, patience: &mut Duration) -> bool {
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
            } else if open.beside == local::files_beside(path) {
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
                        self.open = Some(Open { db, file, beside: local::files_beside(path) });
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
        // Without CREATE, SQLite creates no database that was missing.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(&self.uri, flags)?;
        db.busy_timeout(busy)?;
        let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            log::debug!("{}: journal mode {mode}", path.display());
            return Err(NotOpen::OtherMode);
        }
        // A read opens the WAL, and the connection keeps the WAL open.
        db.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
        db.busy_timeout(BUSY)?;
        Ok(db)
    }

    /// It could not be opened: says why, and when it is tried again.
    pub(super) fn note_failure(&mut self, path: &Path, file: Option<FileId>, why: &NotOpen) {
        if matches!(why, NotOpen::OtherMode) {
            // The mode changed while the database was closed. This process holds no lock on the file, so the
            // next look may read its header.
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

    pub(super) fn close(&mut self, path: &Path) {
        let Some(open) = self.open.take() else { return };
        // If the files beside the database have changed, this process has the wal-index of an old WAL. A
        // checkpoint with that wal-index would write wrong pages into the database.
        let closed = if open.beside == local::files_beside(path) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A database that somebody else has to themselves.
    fn held(path: &Path) -> (Member, Connection) {
        let db = Connection::open(path).unwrap();
        let to_itself = "PRAGMA journal_mode=WAL; PRAGMA locking_mode=EXCLUSIVE";
        db.execute_batch(&format!("{to_itself}; CREATE TABLE t (x)")).unwrap();
        (Member::plain(path), db)
    }

    #[test]
    fn each_attempt_that_fails_makes_the_next_one_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = &folder.path().join("app.db");
        let (mut member, holder) = held(path);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            member.look(path, &mut Duration::default());
            let failed = member.failed.as_mut().unwrap();
            pauses.push(failed.pause);
            failed.again = Instant::now();
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 8000].map(Duration::from_millis));

        // No attempt is made before its time.
        member.failed.as_mut().unwrap().again += Duration::from_hours(1);
        drop(holder);
        member.look(path, &mut Duration::default());
        assert!(member.open.is_none());
        // Another file at the path is tried at once.
        member.failed.as_mut().unwrap().file = None;
        member.look(path, &mut Duration::default());
        assert!(member.open.is_some());
    }

    #[test]
    fn a_database_that_left_wal_mode_is_not_held_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = &folder.path().join("app.db");
        let (mut member, holder) = held(path);
        drop(holder);
        member.look(path, &mut BUSY.clone());
        assert!(member.open.is_some());
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
