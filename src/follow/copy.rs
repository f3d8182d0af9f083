//! The copy: a database in WAL mode that other programs read, and to which only the follower writes.
//!
//! The follower writes pages through SQLite's own table `sqlite_dbpage` (<https://sqlite.org/dbpage.html>), a
//! step in one transaction. So a reader, whatever program it is, sees the state before or after the step. No
//! reader waits for the follower, and the follower waits for no reader. A long read transaction only makes the
//! WAL grow. SQLite recovers the copy after a kill.
//!
//! Each step has a connection of its own. SQLite's b-tree keeps data that it has found in a page, and does not
//! notice that `sqlite_dbpage` has written the page. A new connection has no such data yet. The connection
//! before it stays open for a step: its `PRAGMA data_version` tells if any other connection has committed since
//! (<https://sqlite.org/pragma.html#pragma_data_version>).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::Null;
use rusqlite::{Connection, ErrorCode, OpenFlags, Statement};

use super::Stop;
use super::error::Error;
use super::fetch::Pages;
use super::first_page::{self, Original};
use super::record::{Place, Record};
use crate::local;
use crate::local::folder::{self, Folder, Like};
use crate::local::lock::{Attempt, Lock};
use crate::local::state::State;
use crate::ltx::{DatabaseChecksum, checksum};
use crate::restore::{self, rename_new};
use crate::units::{PageSize, Pgno, Timestamp, Txid};

/// Longest wait for a lock of SQLite. Readers hold a lock that the follower needs only while they recover or
/// checkpoint the WAL.
const BUSY: Duration = Duration::from_secs(5);
/// Pages between two checks of [`Stop`].
const LOOK_EVERY: u32 = 256;

/// The copy, with the lock of its follower or shipper.
pub(super) struct Copy {
    path: PathBuf,
    dir: PathBuf,
    stop: Arc<Stop>,
    record: Record,
    watch: Option<Watch>,
    _lock: Lock,
}

/// The connection of the last step, and the data version in that step. The version changes if another
/// connection commits.
struct Watch {
    db: Connection,
    version: i64,
}

/// State of the copy's path.
pub(super) enum Found {
    /// No database is there, and a copy may be made.
    Nothing(Room),
    /// A copy from which the follower can go on.
    Copy(Box<Copy>),
}

/// The place of a copy that does not exist yet.
pub(super) struct Room {
    path: PathBuf,
    dir: PathBuf,
    stop: Arc<Stop>,
    replica: String,
    lock: Lock,
}

/// A state of the original to which the copy is brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct To {
    pub(super) txid: Txid,
    pub(super) timestamp: Timestamp,
    pub(super) page_size: PageSize,
    pub(super) commit: u32,
    /// Checksum of the database that the pages were made for, if the file names it.
    pub(super) from: Option<DatabaseChecksum>,
    /// Checksum of the result, if the file names it.
    pub(super) checksum: Option<DatabaseChecksum>,
}

/// Result of a step.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The step is done; it wrote this many pages.
    Done(u64),
    /// The pages do not fit this copy. The copy is unchanged.
    Unfit(String),
}

/// Takes the lock, and looks for a copy at the path.
pub(super) fn look(path: &Path, replica: &str, stop: &Arc<Stop>) -> Result<Found, Error> {
    // SQLite follows links, too, and the state folder is beside the file itself.
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(_) => std::path::absolute(path).map_err(Error::local("cannot find", path))?,
    };
    let there = path.symlink_metadata().is_ok();
    if !there {
        match restore::check_output(&restore::Options::new(&path)) {
            // The folder may belong to a follower that has begun, or is running.
            Err(restore::Error::Exists { path: found }) if found == local::state_dir(&path) => {}
            checked => checked?,
        }
    }
    let dir = local::state_dir(&path);
    if there && !dir.is_dir() {
        return Err(Error::Unknown(path));
    }
    Folder::make(&dir)?;
    let lock = match Lock::try_take(&dir)? {
        Attempt::Taken(lock) => lock,
        Attempt::HeldBy(pid) => return Err(Error::Busy { path, pid }),
    };
    let (stop, replica) = (stop.clone(), replica.to_string());
    let room = Room { path, dir, stop, replica, lock };
    if there { room.resume().map(|copy| Found::Copy(Box::new(copy))) } else { room.empty() }
}

impl Room {
    /// Checks that no unshipped data of an earlier database is left, and removes that database's state.
    fn empty(self) -> Result<Found, Error> {
        // A damaged state is no state of the new copy's either.
        let has_state = !matches!(State::load(&self.dir), Ok(None));
        let unshipped = |dir: &PathBuf| {
            let spool = local::spool::Spool::existing(dir);
            spool.is_some_and(|spool| !spool.is_empty().unwrap_or(false)) || local::has_kept(dir)
        };
        if local::replicas::existing(&self.path).iter().any(unshipped) {
            return Err(Error::Original(self.path));
        }
        if has_state {
            self.forget_state()?;
        }
        Ok(Found::Nothing(self))
    }

    /// Goes on with the copy, if the database is a copy and only the follower has written to it.
    fn resume(self) -> Result<Copy, Error> {
        if let Some(record) = Record::load(&self.dir)? {
            if record.replica != self.replica {
                let (path, replica) = (self.path, record.replica);
                return Err(Error::OtherReplica { path, replica });
            }
            let mut copy = self.copy(record);
            copy.prove()?;
            return Ok(copy);
        }
        // A restore has left the database, and no process has replicated it since.
        let Some(state) = State::load(&self.dir)? else { return Err(Error::Unknown(self.path)) };
        if state.claimed {
            return Err(Error::Original(self.path));
        }
        if state.replica != self.replica {
            return Err(Error::OtherReplica { path: self.path, replica: state.replica });
        }
        let known = state.base.and_then(|base| Some((base, PageSize::new(base.page_size)?)));
        let Some((base, page_size)) = known else { return Err(Error::Unknown(self.path)) };
        let db = open(&self.path)?;
        let original = Original::of(&first_page(&db, &self.path)?.unwrap_or_default());
        drop(db);
        let place = Place::new(
            (base.txid(), Timestamp(base.timestamp)),
            (page_size, base.commit),
            DatabaseChecksum::from_stored(base.checksum),
            original,
        );
        let record = Record { replica: self.replica.clone(), at: place, next: None };
        let mut copy = self.copy(record);
        copy.attach_proven()?;
        copy.record.save(&copy.dir)?;
        remove(&copy.dir.join("state"))?;
        remove(&copy.dir.join("pages"))?;
        copy.adapt()?;
        Ok(copy)
    }

    /// Returns the path at which a database is restored before it becomes the copy.
    pub(super) fn scratch(&self) -> PathBuf {
        self.dir.join("new")
    }

    /// Makes the proven database at [`Room::scratch`] the copy.
    pub(super) fn fill(self, restored: &restore::Report) -> Result<Copy, Error> {
        let new = self.scratch();
        let at = adapt_file(&new, restored)?;
        let record = Record { replica: self.replica.clone(), at, next: None };
        record.save(&self.dir)?;
        rename_new(&new, &self.path).map_err(Error::local("cannot name", &self.path))?;
        sync_parent(&self.path)?;
        let mut copy = self.copy(record);
        copy.attach()?;
        Ok(copy)
    }

    fn copy(self, record: Record) -> Copy {
        let Room { path, dir, stop, lock, .. } = self;
        Copy { path, dir, stop, record, watch: None, _lock: lock }
    }

    fn forget_state(&self) -> Result<(), Error> {
        ["state", "pages", "history"].iter().try_for_each(|name| remove(&self.dir.join(name)))
    }
}

impl Copy {
    /// Returns the state of the original that the copy has.
    pub(super) fn at(&self) -> Txid {
        self.record.at.txid()
    }

    /// Returns the commit time of that state.
    pub(super) fn timestamp(&self) -> Timestamp {
        self.record.at.timestamp()
    }

    /// Returns the path of a file beside the copy that may be overwritten.
    pub(super) fn scratch(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the page size of the copy.
    pub(super) fn page_size(&self) -> Option<PageSize> {
        self.record.at.page_size()
    }

    /// Writes these pages, which bring the copy to the state `to`, in one transaction.
    pub(super) fn step(&mut self, to: To, pages: &mut dyn Pages) -> Result<Outcome, Error> {
        let at = self.record.at;
        if self.page_size() != Some(to.page_size) {
            return Ok(Outcome::Unfit(format!("its pages have {} bytes", to.page_size)));
        }
        if to.from.is_some_and(|from| from != at.checksum()) {
            return Ok(Outcome::Unfit("it was made from another database".into()));
        }
        let failed = |doing| Error::sqlite(&self.path, doing);
        let db = open(&self.path)?;
        db.execute_batch("BEGIN IMMEDIATE").map_err(failed("taking the write lock of"))?;
        // From here on no other connection can commit.
        let ours = self.watch.as_ref().is_some_and(|watch| {
            data_version(&watch.db).is_ok_and(|version| version == watch.version)
        });
        if !ours {
            drop(db);
            self.prove()?;
            return match self.at() {
                now if now == at.txid() => self.step(to, pages),
                now => Ok(Outcome::Unfit(format!("the copy was at TXID {now} already"))),
            };
        }
        let version = data_version(&db).map_err(failed("reading from"))?;
        let change = Change { copy: self, db: &db, at, to };
        let (next, written) = match change.write(pages)? {
            Ok(done) => done,
            Err(why) => return Ok(Outcome::Unfit(why)),
        };
        // The record is saved before the commit. If this process ends between the two, the copy itself shows
        // its state.
        let mut record = Record { next: Some(next), ..self.record.clone() };
        record.save(&self.dir)?;
        db.execute_batch("COMMIT").map_err(failed("committing to"))?;
        (record.at, record.next) = (next, Some(next));
        self.record = record;
        self.watch = Some(Watch { db, version });
        Ok(Outcome::Done(written))
    }

    /// Records that the last step is done, when the follower ends.
    pub(super) fn rest(&mut self) -> Result<(), Error> {
        self.watch = None;
        self.record.next = None;
        Ok(self.record.save(&self.dir)?)
    }

    /// Replaces the copy by another file, since its page size has changed. No program may have the copy open.
    ///
    /// Such a program would go on with a file that has lost its name, and with a WAL of the same name.
    pub(super) fn replace(&mut self, restored: &restore::Report) -> Result<(), Error> {
        let new = self.scratch("new");
        let next = adapt_file(&new, restored)?;
        self.watch = None;
        let db = open(&self.path)?;
        let busy = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Error::Readers(self.path.clone())
            }
            _ => Error::sqlite(&self.path, "taking the lock of")(source),
        };
        db.busy_timeout(Duration::ZERO).map_err(busy)?;
        // This statement takes the file's exclusive lock, checkpoints the WAL into the file and removes the
        // WAL.
        let mode: String =
            db.query_row("PRAGMA journal_mode=DELETE", [], |row| row.get(0)).map_err(busy)?;
        if mode != "delete" {
            return Err(Error::Readers(self.path.clone()));
        }
        db.execute_batch("BEGIN EXCLUSIVE").map_err(busy)?;
        let mut record = Record { next: Some(next), ..self.record.clone() };
        record.save(&self.dir)?;
        Like::of(&self.path)
            .and_then(|like| like.give(&folder::open(&new)?))
            .map_err(Error::local("cannot set the mode of", &new))?;
        fs::rename(&new, &self.path).map_err(Error::local("cannot replace", &self.path))?;
        sync_parent(&self.path)?;
        drop(db);
        record.at = next;
        self.record = record;
        self.attach()
    }

    /// Opens the copy and checks that it is in one of the places on record. Reads every page.
    fn prove(&mut self) -> Result<(), Error> {
        self.attach_proven()?;
        self.adapt()
    }

    fn attach_proven(&mut self) -> Result<(), Error> {
        self.watch = None;
        let watch = attach(&self.path)?;
        let sum = self.sum(&watch.db)?;
        watch.db.execute_batch("COMMIT").map_err(Error::sqlite(&self.path, "reading from"))?;
        let places = [Some(self.record.at), self.record.next];
        let Some(place) = places.into_iter().flatten().find(|place| sum.is_that_of(place)) else {
            return Err(Error::Changed(self.path.clone()));
        };
        self.record.at = place;
        self.watch = Some(watch);
        Ok(())
    }

    /// Opens the copy after the file got its name.
    fn attach(&mut self) -> Result<(), Error> {
        let watch = attach(&self.path)?;
        watch.db.execute_batch("COMMIT").map_err(Error::sqlite(&self.path, "reading from"))?;
        self.watch = Some(watch);
        Ok(())
    }

    /// Adapts page 1 to a copy, if it is still the original's.
    fn adapt(&mut self) -> Result<(), Error> {
        let failed = |doing| Error::sqlite(&self.path, doing);
        let Some(watch) = &self.watch else { return Ok(()) };
        let Some(mut first) = first_page(&watch.db, &self.path)? else { return Ok(()) };
        if first_page::is_adapted(&first) {
            return Ok(());
        }
        first_page::adapt(&mut first);
        let db = open(&self.path)?;
        db.execute_batch("BEGIN IMMEDIATE").map_err(failed("taking the write lock of"))?;
        if !data_version(&watch.db).is_ok_and(|version| version == watch.version) {
            return Err(Error::Changed(self.path.clone()));
        }
        let version = data_version(&db).map_err(failed("reading from"))?;
        db.execute(WRITE, (1, &first))
            .and_then(|_| db.execute_batch("COMMIT"))
            .map_err(failed("writing to"))?;
        self.watch = Some(Watch { db, version });
        Ok(())
    }

    fn sum(&self, db: &Connection) -> Result<Sum, Error> {
        let failed = |doing| Error::sqlite(&self.path, doing);
        let mut sum =
            Sum { pages: 0, page_size: 0, rest: DatabaseChecksum::EMPTY, first: Vec::new() };
        let mut read =
            db.prepare("SELECT pgno, data FROM sqlite_dbpage").map_err(failed("reading from"))?;
        let mut rows = read.query([]).map_err(failed("reading from"))?;
        while let Some(row) = rows.next().map_err(failed("reading from"))? {
            let pgno: Pgno = row.get(0).map_err(failed("reading from"))?;
            let data = row.get_ref(1).and_then(|data| Ok(data.as_blob()?));
            let data = data.map_err(failed("reading from"))?;
            (sum.pages, sum.page_size) = (pgno, data.len() as u32);
            if pgno == 1 {
                sum.first = data.to_vec();
            } else if PageSize::new(sum.page_size).is_some_and(|size| size.lock_page() != pgno) {
                sum.rest.toggle(checksum::page(pgno, data));
            }
            if pgno.is_multiple_of(LOOK_EVERY) && self.stop.is_set() {
                return Err(Error::Stopped);
            }
        }
        Ok(sum)
    }
}

/// Checksum of the copy's pages except the first, the first page itself, and the size.
struct Sum {
    pages: u32,
    page_size: u32,
    rest: DatabaseChecksum,
    first: Vec<u8>,
}

impl Sum {
    fn is_that_of(&self, place: &Place) -> bool {
        let mut first = self.first.clone();
        place.original.restore(&mut first);
        let mut sum = self.rest;
        sum.toggle(checksum::page(1, &first));
        let page_size = place.page_size().map(PageSize::get);
        sum == place.checksum() && self.pages == place.commit && page_size == Some(self.page_size)
    }
}

/// One step, inside its transaction.
struct Change<'a> {
    copy: &'a Copy,
    db: &'a Connection,
    at: Place,
    to: To,
}

impl Change<'_> {
    /// Writes the pages and proves the result. Returns `Ok(Err)` if the pages do not fit.
    fn write(&self, pages: &mut dyn Pages) -> Result<Result<(Place, u64), String>, Error> {
        let (at, to) = (self.at, self.to);
        let failed = |doing| Error::sqlite(&self.copy.path, doing);
        let mut sum = at.checksum();
        let (mut original, mut written, mut expected) = (at.original, 0, at.commit);
        let mut write = self.db.prepare(WRITE).map_err(failed("writing to"))?;
        let mut read = self.db.prepare(READ).map_err(failed("reading from"))?;
        let lock_page = to.page_size.lock_page();
        let mut adapted = Vec::new();
        let mut seen = 0u32;
        while let Some((pgno, page)) = pages.next()? {
            if pgno > expected {
                // Every page by which the database grows must be in the file.
                let next = expected + 1 + u32::from(expected + 1 == lock_page);
                if pgno != next {
                    return Ok(Err(format!("page {next} is missing")));
                }
                expected = pgno;
            }
            let old = self.original_page(&mut read, pgno)?;
            if let Some(old) = &old {
                sum.toggle(checksum::page(pgno, old));
            }
            sum.toggle(checksum::page(pgno, page));
            if old.as_deref() != Some(page) {
                let page = if pgno == 1 {
                    original = Original::of(page);
                    adapted.clear();
                    adapted.extend_from_slice(page);
                    first_page::adapt(&mut adapted);
                    &adapted
                } else {
                    page
                };
                write.execute((pgno, page)).map_err(failed("writing to"))?;
                written += 1;
            }
            seen = seen.wrapping_add(1);
            if seen.is_multiple_of(LOOK_EVERY) && self.copy.stop.is_set() {
                return Err(Error::Stopped);
            }
        }
        if expected + u32::from(expected + 1 == lock_page) < to.commit {
            return Ok(Err(format!("page {} is missing", expected + 1)));
        }
        for pgno in to.commit.saturating_add(1)..=at.commit {
            if let Some(old) = self.original_page(&mut read, pgno)? {
                sum.toggle(checksum::page(pgno, &old));
            }
        }
        if to.commit < at.commit {
            // NULL cuts the database off before this page.
            write.execute((to.commit + 1, Null)).map_err(failed("shortening"))?;
        }
        if to.checksum.is_some_and(|checksum| checksum != sum) {
            return Ok(Err("what came out has another checksum".into()));
        }
        let size = (to.page_size, to.commit);
        Ok(Ok((Place::new((to.txid, to.timestamp), size, sum, original), written)))
    }

    /// Returns a page as the original has it before the step. `None` if the original does not have the page,
    /// and for the lock page.
    fn original_page(
        &self,
        read: &mut Statement<'_>,
        pgno: Pgno,
    ) -> Result<Option<Vec<u8>>, Error> {
        if pgno > self.at.commit || pgno == self.to.page_size.lock_page() {
            return Ok(None);
        }
        let mut found = page(read, pgno).map_err(Error::sqlite(&self.copy.path, "reading from"))?;
        if pgno == 1
            && let Some(first) = &mut found
        {
            self.at.original.restore(first);
        }
        Ok(found)
    }
}

const READ: &str = "SELECT data FROM sqlite_dbpage WHERE pgno = ?1";
const WRITE: &str = "INSERT INTO sqlite_dbpage (pgno, data) VALUES (?1, ?2)";

fn first_page(db: &Connection, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let read = db.prepare(READ).and_then(|mut read| page(&mut read, 1));
    read.map_err(Error::sqlite(path, "reading from"))
}

fn page(read: &mut Statement<'_>, pgno: Pgno) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut rows = read.query([pgno])?;
    rows.next()?.map(|row| row.get(0)).transpose()
}

/// Opens the copy in WAL mode, with durable commits.
fn open(path: &Path) -> Result<Connection, Error> {
    let failed = |doing| Error::sqlite(path, doing);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(failed("opening"))?;
    db.busy_timeout(BUSY).map_err(failed("opening"))?;
    // With writable_schema, SQLite opens the copy even if it does not understand the schema.
    db.execute_batch(
        "PRAGMA writable_schema=ON; PRAGMA trusted_schema=OFF; PRAGMA synchronous=FULL;",
    )
    .map_err(failed("opening"))?;
    let able = "SELECT sqlite_compileoption_used('ENABLE_DBPAGE_VTAB')";
    let able: bool = db.query_row(able, [], |row| row.get(0)).map_err(failed("opening"))?;
    if !able {
        return Err(Error::Build);
    }
    let mode = |db: &Connection, sql| db.query_row(sql, [], |row| row.get::<_, String>(0));
    if mode(&db, "PRAGMA journal_mode").map_err(failed("opening"))? != "wal" {
        mode(&db, "PRAGMA journal_mode=WAL").map_err(failed("opening"))?;
    }
    Ok(db)
}

/// Returns a connection in a read transaction, with its data version.
fn attach(path: &Path) -> Result<Watch, Error> {
    let failed = |doing| Error::sqlite(path, doing);
    let db = open(path)?;
    db.execute_batch("BEGIN; SELECT 1 FROM sqlite_dbpage WHERE pgno = 1;")
        .map_err(failed("reading from"))?;
    let version = data_version(&db).map_err(failed("reading from"))?;
    Ok(Watch { db, version })
}

fn data_version(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("PRAGMA data_version", [], |row| row.get(0))
}

/// Adapts page 1 of a restored database to a copy, durably, before SQLite opens the file. Returns the place.
fn adapt_file(path: &Path, restored: &restore::Report) -> Result<Place, Error> {
    use std::os::unix::fs::FileExt;
    let failed = || Error::local("cannot write", path);
    let file = folder::open(path).map_err(failed())?;
    let mut first = vec![0; restored.page_size.bytes()];
    file.read_exact_at(&mut first, 0).map_err(failed())?;
    let original = Original::of(&first);
    first_page::adapt(&mut first);
    file.write_all_at(&first, 0).and_then(|()| file.sync_all()).map_err(failed())?;
    let (state, size) =
        ((restored.txid, restored.timestamp), (restored.page_size, restored.commit));
    Ok(Place::new(state, size, restored.checksum, original))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::local("cannot remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    local::sync_folder(parent).map_err(Error::local("cannot sync", parent))
}
