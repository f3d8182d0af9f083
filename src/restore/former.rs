//! Replaces the database at the output's path, for a restore with `force`: checks that it may go, and removes
//! it.
//!
//! The old database is replaced at the last moment, when the new one is proven. The files that SQLite keeps
//! beside a database are the danger. SQLite would play a WAL or a hot journal into any file that has the
//! database's name. So [`Former::finish`] has SQLite finish the old database first. SQLite takes the lock of
//! the file and removes the WAL and the journal. `finish` returns the connection, which holds the lock until
//! the new database has the name.
//!
//! SQLite may be unable to open the old file as a database; the file may be replaced for this reason. Then
//! `finish` removes the WAL and the journal before the new database gets its name. A kill in between loses
//! nothing, because the old file is no database.
//!
//! A program that has the old file open would go on with a file that has lost its name. The program would
//! remove or write journals under names that belong to the new database. No precaution helps against this, so
//! the restore refuses, with `--force` once or twice.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::error::{Error, Refusal, failed};
use super::opened;
use crate::local::lock::{Attempt, Lock};
use crate::local::spool::{Entry, Spool};
use crate::local::state::{Fingerprint, State};
use crate::local::{self, replicas};
use crate::units::WalPosition;
use crate::wal;

/// Suffixes of the files that SQLite keeps beside a database.
const JOURNALS: [&str; 3] = ["-journal", "-wal", "-shm"];

/// The database that is to be replaced, with the locks of its shippers.
#[derive(Debug)]
pub(super) struct Former {
    path: PathBuf,
    /// The state folders beside the database, one for each of its replicas.
    kept: Vec<Kept>,
}

/// A folder of local state, with the shipper's lock.
#[derive(Debug)]
struct Kept {
    dir: PathBuf,
    /// Files of the spool that were not shipped.
    waiting: Vec<Entry>,
    _lock: Lock,
}

impl Kept {
    fn look(path: &Path, dir: PathBuf, unshipped: bool) -> Result<Kept, Error> {
        let refuse = |why| Error::Copy { path: path.into(), why };
        let local_error = |error: local::Error| Error::Output {
            path: dir.clone(),
            doing: "looking at what is kept in",
            source: error.source,
        };
        let lock = match Lock::try_take(&dir).map_err(local_error)? {
            Attempt::Taken(lock) => lock,
            Attempt::HeldBy(pid) => return Err(refuse(Refusal::Shipped(pid))),
        };
        let state = State::load(&dir);
        let done = state.as_ref().ok().and_then(|state| state.as_ref()?.base);
        let waiting = match Spool::existing(&dir) {
            Some(spool) => spool.look(done.map_or(0, |base| base.piece)).map_err(local_error)?,
            None => Vec::new(),
        };
        let shipped = waiting.is_empty()
            && match state {
                Ok(None) => true,
                Ok(Some(state)) => !state.claimed || has_all(path, &state),
                Err(_) => false,
            };
        if !shipped && !unshipped {
            return Err(refuse(Refusal::NotShipped));
        }
        Ok(Kept { dir, waiting, _lock: lock })
    }
}

impl Former {
    /// Checks that the database may be replaced, and takes its shippers' locks.
    ///
    /// With `unshipped`, a database may also be replaced if it holds data that its replica may not have.
    pub(super) fn look(path: &Path, unshipped: bool) -> Result<Former, Error> {
        opened::refuse(path)?;
        let mut kept = Vec::new();
        for dir in replicas::existing(path) {
            kept.push(Kept::look(path, dir, unshipped)?);
        }
        Ok(Former { path: path.into(), kept })
    }

    /// Removes the files that SQLite keeps beside the database.
    ///
    /// The returned connection holds a lock that keeps other processes from opening the database. Hold it until
    /// the name is the new file's.
    pub(super) fn finish(&self) -> Result<Option<Connection>, Error> {
        // This check comes before SQLite has the file open: closing any descriptor of the file drops this
        // process's locks.
        opened::refuse(&self.path)?;
        let len = fs::metadata(&self.path).map_or(0, |meta| meta.len());
        let held = if len == 0 { None } else { self.lock()? };
        for suffix in JOURNALS {
            let path = local::beside(&self.path, suffix);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("removing", &path)(error));
                }
                _ => {}
            }
        }
        Ok(held)
    }

    /// Finishes the database and locks it. Returns `Ok(None)` if the file is no database.
    fn lock(&self) -> Result<Option<Connection>, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let locked = Connection::open_with_flags(&self.path, flags).and_then(|db| {
            db.busy_timeout(Duration::ZERO)?;
            // Plays back a hot journal, checkpoints the WAL into the file, and removes both.
            let mode = "PRAGMA journal_mode=DELETE";
            let mode: String = db.query_row(mode, [], |row| row.get(0))?;
            db.execute_batch("BEGIN EXCLUSIVE")?;
            Ok((db, mode))
        });
        match locked {
            Ok((db, mode)) if mode == "delete" => Ok(Some(db)),
            Ok(_) => Err(Error::Copy { path: self.path.clone(), why: Refusal::Open(None) }),
            Err(error) => match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Ok(None),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    Err(Error::Copy { path: self.path.clone(), why: Refusal::Open(None) })
                }
                _ => Err(failed("finishing", &self.path)(io::Error::other(error))),
            },
        }
    }

    /// Gives up the local state beside the database. Files that were not shipped are moved to `kept-<n>`.
    pub(super) fn forget(&self) -> Result<(), local::Error> {
        self.kept
            .iter()
            .try_for_each(|kept| local::given_up::give_up(&kept.dir, &kept.waiting).map(drop))
    }
}

/// True if the replica has every commit of the database.
///
/// If there is no WAL, the file must be as it was when everything was shipped. If there is one, its last commit
/// must be at the replica's position.
fn has_all(path: &Path, state: &State) -> bool {
    let Some(base) = state.base else { return false };
    let wal = local::wal_path(path);
    if fs::metadata(&wal).map_or(true, |wal| wal.len() == 0) {
        return state.clean.is_some_and(|clean| {
            clean.piece <= base.piece
                && Fingerprint::of(path).is_ok_and(|now| now == clean.fingerprint)
        });
    }
    let (Some(position), Ok(wal)) = (base.position, File::open(&wal)) else { return false };
    let position: WalPosition = position.into();
    wal::recover(&wal).is_some_and(|found| {
        found.last == position.frame && wal::reaches(&wal, found.page_size, position)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn database(path: &Path, wal: bool) -> Connection {
        let db = Connection::open(path).unwrap();
        let mode = if wal { "WAL" } else { "DELETE" };
        db.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(())).unwrap();
        db.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
        db
    }

    fn beside(path: &Path) -> Vec<PathBuf> {
        JOURNALS.iter().map(|suffix| local::beside(path, suffix)).filter(|p| p.exists()).collect()
    }

    #[test]
    fn a_database_is_finished_before_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
        let db = database(&path, true);
        // A crash leaves such files: the commits are in the WAL only.
        fs::copy(&path, &copy).unwrap();
        fs::copy(local::beside(&path, "-wal"), local::beside(&copy, "-wal")).unwrap();
        let former = Former::look(&copy, false).unwrap();
        let held = former.finish().unwrap().unwrap();
        assert_eq!(beside(&copy), [""; 0].map(PathBuf::from));
        // No other connection gets in until the lock is dropped.
        let other = Connection::open(&copy).unwrap();
        other.busy_timeout(Duration::ZERO).unwrap();
        let count =
            |db: &Connection| db.query_row("SELECT x FROM t", [], |row| row.get::<_, u8>(0));
        assert!(count(&other).is_err());
        drop(held);
        assert_eq!(count(&other).unwrap(), 1);
        drop(db);
    }

    #[test]
    fn what_is_open_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let db = database(&path, true);
        let former = Former { path: path.clone(), kept: Vec::new() };
        let error = former.finish().unwrap_err();
        assert!(matches!(error, Error::Copy { why: Refusal::Open(_), .. }), "{error}");
        assert!(local::beside(&path, "-wal").exists());
        drop(db);
        former.finish().unwrap();
    }

    #[test]
    fn a_connection_that_does_nothing_is_seen_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        drop(database(&path, false));
        let mut reader = std::process::Command::new("sleep")
            .arg("60")
            .stdin(File::open(&path).unwrap())
            .spawn()
            .unwrap();
        let error = Former::look(&path, true).unwrap_err();
        let pid = reader.id();
        reader.kill().unwrap();
        reader.wait().unwrap();
        assert!(
            matches!(error, Error::Copy { why: Refusal::Open(Some(found)), .. } if found == pid),
            "{error}"
        );
        Former::look(&path, false).unwrap();
    }

    #[test]
    fn what_is_no_database_takes_its_leftovers_along() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        for broken in [&b"no database at all"[..], b""] {
            fs::write(&path, broken).unwrap();
            for suffix in JOURNALS {
                fs::write(local::beside(&path, suffix), "leftover").unwrap();
            }
            assert!(Former::look(&path, false).unwrap().finish().unwrap().is_none());
            assert_eq!(beside(&path), [""; 0].map(PathBuf::from));
        }
    }
}
