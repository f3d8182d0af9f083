//! Opens the local state of a database: compares state file, spool, page table and WAL with each other.
//!
//! Every disagreement has one of three answers: the log continues with the WAL; the database must be compared
//! with the page table; or no page table is usable and a full image is due.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use crate::database::Attach;
use crate::finding::Finding;
use crate::local::copies::Copies;
use crate::local::folder::{self, Folder};
use crate::local::lock::{Attempt, Lock};
use crate::local::pages::{ApplyError, PageTable};
use crate::local::spool::{Entry, Spool};
use crate::local::state::{Base, Clean, State, random_id};
use crate::local::{Context as _, Error};
use crate::ltx::{DatabaseChecksum, Decoder};
use crate::units::{PageSize, Timestamp, Txid, WalPosition, WriterId};
use crate::wal::evidence::{self, Account, Gap, Proven, Sight};
use crate::wal::{NO_WAL, ReadAt, WalHeader, WalIndex, count_commits};

/// The local state of a database that this process ships.
pub(super) struct Local {
    lock: Lock,
    pub dir: PathBuf,
    pub state: State,
    pub table: PageTable,
    pub spool: Spool,
    pub copies: Copies,
    /// Files that the store has, but that no saved state covers yet.
    pub passed: Vec<(Entry, Base)>,
    /// State in the state file; `None` if unknown.
    saved: Option<State>,
    /// True if the state file was written after its last sync.
    unsynced: bool,
    /// True if a state that had to be durable is not on the disk yet.
    owes_sync: bool,
    /// True if no connection of this process has the database open. A program that no longer needs the database
    /// may then be removing the folder of local state.
    pub is_closed: Box<dyn Fn() -> bool + Send>,
}

impl Local {
    /// True if the folder is still the folder whose lock we hold.
    pub(super) fn is_in_place(&self) -> bool {
        self.lock.is_in_place(&self.dir)
    }

    /// Writes the state file, unless the file has this state already. If a durable save fails, every later save
    /// is durable too, until one succeeds.
    pub(super) fn save(&mut self, durable: bool) -> Result<(), Error> {
        self.owes_sync |= durable;
        if !self.is_there() {
            let before = self.saved.take();
            let is_written = self
                .state
                .save_if(&self.dir, self.owes_sync, || self.may_write_after(before.is_some()))?;
            if !is_written {
                self.saved = before;
                return Ok(());
            }
            self.saved = Some(self.state.clone());
            self.unsynced = !self.owes_sync;
        } else if self.owes_sync && self.unsynced {
            State::sync(&self.dir)?;
            self.unsynced = false;
        }
        self.owes_sync = false;
        Ok(())
    }

    /// False if the folder seems to be under removal: the folder then gets no new files.
    pub(super) fn may_write(&self) -> bool {
        self.may_write_after(self.saved.is_some())
    }

    fn may_write_after(&self, saved: bool) -> bool {
        !(self.is_closed)() || self.is_in_place() && (!saved || State::is_in(&self.dir))
    }

    /// True if the state file has this state. A program may have removed or damaged the file.
    fn is_there(&self) -> bool {
        let is_known = self.saved.as_ref() == Some(&self.state);
        is_known && State::load(&self.dir).is_ok_and(|found| found.as_ref() == Some(&self.state))
    }
}

/// Result of reading state and spool together.
pub(super) struct Found {
    pub local: Local,
    /// Closed files, oldest first.
    pub closed: Vec<Entry>,
    /// Open pieces behind the closed files, oldest first.
    pub open: Vec<Entry>,
    /// End of the last closed file, if state and page table prove it.
    pub point: Option<Point>,
    /// Position in the WAL at which the last captured piece ends.
    pub position: Option<WalPosition>,
    /// Number of the last captured piece.
    pub piece: u64,
    /// Disagreement that was found, if any.
    pub misfit: Option<Finding>,
}

/// The end of the last closed file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub txid: Txid,
    pub page_size: PageSize,
    pub checksum: DatabaseChecksum,
    pub timestamp: Timestamp,
}

/// Result of an attempt to open the local state.
pub(super) enum Opening {
    Ours(Box<Found>),
    HeldBy(Option<u32>),
}

/// Takes the shipper's lock and reads the local state.
pub(super) fn open(
    database: &Path,
    dir: &Path,
    replica: &str,
    copies_cap: u64,
) -> Result<Opening, Error> {
    let dir = dir.to_path_buf();
    // If the database is gone, its folder was removed too, and must not be created again.
    std::fs::metadata(database).context("cannot find", database)?;
    Folder::make(&dir).map_err(|Error { message, source }| Error {
        message: format!(
            "{message}: walferry keeps its state beside the database and must be able to write there"
        ),
        source,
    })?;
    let lock = match Lock::try_take(&dir)? {
        Attempt::Taken(lock) => lock,
        Attempt::HeldBy(pid) => return Ok(Opening::HeldBy(pid)),
    };
    let mut misfit = None;
    let state = match State::load(&dir) {
        Ok(Some(state)) if state.replica == replica => state,
        Ok(Some(state)) => {
            log::warn!(
                "{} was replicated to {}; its log is not continued at {replica}",
                database.display(),
                state.replica
            );
            misfit.get_or_insert(Finding::OtherReplica);
            State::new(new_writer(), replica)
        }
        Ok(None) => {
            misfit.get_or_insert(Finding::NoState);
            State::new(new_writer(), replica)
        }
        Err(error) if error.source.kind() == std::io::ErrorKind::InvalidData => {
            log::error!("{error}");
            misfit.get_or_insert(Finding::StateDamaged);
            State::new(new_writer(), replica)
        }
        Err(error) => return Err(error),
    };
    let spool = Spool::open(&dir)?;
    let mut copies = Copies::open(&dir, copies_cap)?;
    if misfit.is_some() {
        // The state that these copies belong to is unknown.
        copies.clear();
    }
    // The page table of an image that is being uploaded exists already.
    let base = state.base.or(state.image.map(|image| image.base));
    let table = PageTable::open(&dir, base.map_or(0, |base| base.commit))?;
    let saved = misfit.is_none().then(|| state.clone());
    let unsynced = State::may_be_unsynced(&dir);
    let local = Local {
        lock,
        dir,
        state,
        table,
        spool,
        copies,
        passed: Vec::new(),
        saved,
        unsynced,
        owes_sync: false,
        is_closed: Box::new(|| false),
    };
    let mut read = read(local)?;
    read.misfit = misfit.or(read.misfit);
    Ok(Opening::Ours(Box::new(read)))
}

fn new_writer() -> WriterId {
    WriterId(random_id())
}

/// Reads the spool on top of the state and proves the page table.
fn read(mut local: Local) -> Result<Found, Error> {
    let Some(base) = local.state.base else {
        // Without a base the files in the spool have no meaning.
        for entry in local.spool.scan(0)? {
            local.spool.remove(&entry)?;
        }
        if local.state.image.is_none() {
            local.table.reset()?;
        }
        let found = Found {
            local,
            closed: Vec::new(),
            open: Vec::new(),
            point: None,
            position: None,
            piece: 0,
            misfit: None,
        };
        return Ok(found);
    };
    let entries = local.spool.scan(base.piece)?;
    let mut walk = Walk::from(&base);
    let mut kept = Vec::new();
    for entry in entries {
        match walk.follow(&mut local, &entry) {
            Ok(()) => kept.push(entry),
            Err(why) => {
                // The file is moved away, because the number of its piece will be given out again.
                let aside = local.spool.set_aside(&entry)?;
                log::error!(
                    "{} is not used: {why}; what it holds is captured anew, and it is kept as {}",
                    local.spool.path(&entry).display(),
                    aside.display()
                );
                walk.broken = true;
            }
        }
    }
    if walk.broken {
        // The page table may be ahead of the remaining files. Then the table proves nothing, unless its
        // checksum matches below.
        walk.position = None;
    }
    let (closed, open): (Vec<_>, Vec<_>) = kept.into_iter().partition(|e| e.txid.is_some());
    let proven = local.table.checksum() == walk.expected;
    let misfit = match (proven, walk.broken) {
        (false, _) => Some(Finding::TableDisproved),
        (true, true) => Some(Finding::SpoolDamaged),
        (true, false) => None,
    };
    let point = proven.then_some(walk.point).flatten();
    Ok(Found { local, closed, open, point, position: walk.position, piece: walk.piece, misfit })
}

/// Walks along the spool's files, starting at the base.
struct Walk {
    point: Option<Point>,
    expected: DatabaseChecksum,
    position: Option<WalPosition>,
    piece: u64,
    broken: bool,
}

impl Walk {
    fn from(base: &Base) -> Walk {
        let checksum = DatabaseChecksum::from_stored(base.checksum);
        let point = PageSize::new(base.page_size).map(|page_size| Point {
            txid: base.txid(),
            page_size,
            checksum,
            timestamp: Timestamp(base.timestamp),
        });
        Walk {
            point,
            expected: checksum,
            position: base.position.map(WalPosition::from),
            piece: base.piece,
            broken: false,
        }
    }

    fn follow(&mut self, local: &mut Local, entry: &Entry) -> Result<(), String> {
        if self.broken {
            return Err("a file before it is not usable".into());
        }
        if entry.pieces.0 != self.piece + 1 {
            return Err(format!("piece {} is missing", self.piece + 1));
        }
        let point = self.point.ok_or("there is nothing that it could follow")?;
        if entry.txid.is_some_and(|txid| txid != point.txid.next()) {
            return Err(format!("transaction {} is missing", point.txid.next()));
        }
        let file = folder::read(&local.spool.path(entry)).map_err(|error| error.to_string())?;
        let reader = BufReader::with_capacity(128 * 1024, file);
        let mut decoder = Decoder::new(reader).map_err(|error| error.to_string())?;
        let header = *decoder.header();
        let tag = header.tag.ok_or("it is not a file of walferry's")?;
        if header.page_size != point.page_size {
            return Err("it is of another page size".into());
        }
        local.table.apply(&mut decoder).map_err(|error| match error {
            ApplyError::File(error) => error.to_string(),
            ApplyError::Table(error) => error.to_string(),
        })?;
        decoder.finish().map_err(|error| error.to_string())?;
        self.expected = tag.post_apply;
        self.position = entry.position;
        self.piece = entry.pieces.1;
        if let Some(txid) = entry.txid {
            self.point = Some(Point {
                txid,
                checksum: tag.post_apply,
                timestamp: header.timestamp,
                ..point
            });
        }
        Ok(())
    }
}

/// How the log continues with the WAL, as the WAL was when it was first seen.
pub(super) enum Resume {
    /// The log continues at this position.
    At(Proven),
    /// The log does not continue; the database must be compared.
    Compare(Finding),
    /// The page size has changed; the page table is useless.
    OtherPageSize,
}

/// Compares the end of the log with the WAL.
pub(super) fn resume(
    found_position: Option<WalPosition>,
    piece: u64,
    state: &State,
    page_size: PageSize,
    attach: &Attach,
    wal: Option<&File>,
) -> Resume {
    let clean = state.clean.filter(|clean| clean.piece == piece);
    let Some(index) = attach.index else {
        return Resume::Compare(Finding::WalUnseen);
    };
    if index.max_frame > 0 && index.page_size != page_size {
        return Resume::OtherPageSize;
    }
    match wal {
        Some(wal) => resume_in(found_position, clean, page_size, attach, &index, wal),
        None => resume_in(found_position, clean, page_size, attach, &index, NO_WAL),
    }
}

fn resume_in<R: ReadAt + ?Sized>(
    found_position: Option<WalPosition>,
    clean: Option<Clean>,
    page_size: PageSize,
    attach: &Attach,
    index: &WalIndex,
    wal: &R,
) -> Resume {
    match (clean, attach.fingerprint) {
        (Some(clean), Some(now)) if clean.fingerprint == now => {
            if let Some(begun) = begun_since_close(attach, index, page_size, wal) {
                return Resume::At(begun);
            }
        }
        _ => {}
    }
    let Some(at) = found_position.filter(|_| index.max_frame > 0) else {
        return Resume::Compare(match clean {
            _ if index.max_frame > 0 => Finding::UnknownWal,
            Some(_) => Finding::ChangedWhileClosed,
            None => Finding::WalGone,
        });
    };
    let sight = Sight { index, wal, page_size, guard: None };
    match evidence::account(&Proven::position(at), &sight) {
        Ok(Account::Continues) => Resume::At(Proven::position(at)),
        Ok(Account::NotProven(Gap::WentBack)) => Resume::Compare(Finding::WalCutShort),
        Ok(Account::NotProven(Gap::OtherFrames)) => Resume::Compare(Finding::OtherFrames),
        Ok(Account::Begun { .. } | Account::NotProven(Gap::Restarted)) => {
            Resume::Compare(Finding::WalRestarted)
        }
        // The WAL was restarted since the index was read, so its generation is not that of the position.
        Ok(Account::Overtaken) => Resume::Compare(Finding::WalRestarted),
        Err(error) => {
            log::warn!("the WAL cannot be read: {error}");
            Resume::Compare(Finding::WalUnreadable)
        }
    }
}

/// Returns the start of the current WAL, if this WAL has every commit since the clean close. The database file
/// must be as the clean close left it.
///
/// The first process to open the database recovered the WAL, so `iChange` counts from that recovery. Frames
/// that may be copies do not count as commits: a copy that was counted could hide a missing commit.
fn begun_since_close<R: ReadAt + ?Sized>(
    attach: &Attach,
    index: &WalIndex,
    page_size: PageSize,
    wal: &R,
) -> Option<Proven> {
    if index.max_frame > 0 && WalHeader::read(wal).is_none_or(|head| head.salts != index.salts) {
        return None;
    }
    let commits = count_commits(wal, page_size, 1, index.max_frame).ok()?;
    (commits.least == index.change).then(|| Proven::beginning(index.salts, 0, attach.guard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_removed_with_its_database_is_not_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let (database, dir) = (folder.path().join("app.db"), folder.path().join("app.db-walferry"));
        let gone = open(&database, &dir, "file:///replica", 0);
        assert!(gone.is_err_and(|error| error.to_string().contains("app.db")));
        assert!(!dir.exists());
        std::fs::write(&database, "").unwrap();
        let ours = open(&database, &dir, "file:///replica", 0).unwrap();
        assert!(matches!(ours, Opening::Ours(_)) && dir.exists());
    }

    #[test]
    fn a_folder_that_is_removed_after_the_last_close_gets_no_new_state() {
        for (removed, had_state, closed, is_written) in [
            ("state", true, true, false),
            ("state", true, false, true),
            ("lock", false, true, false),
            ("pages", false, true, true),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (database, dir) =
                (folder.path().join("app.db"), folder.path().join("app.db-walferry"));
            std::fs::write(&database, "").unwrap();
            let Opening::Ours(found) = open(&database, &dir, "file:///replica", 0).unwrap() else {
                panic!("another process has it")
            };
            let mut local = found.local;
            if had_state {
                local.save(true).unwrap();
            }
            std::fs::remove_file(dir.join(removed)).unwrap();
            local.is_closed = Box::new(move || closed);
            local.state.claimed = true;
            local.save(true).unwrap();
            assert_eq!(State::is_in(&dir), is_written, "{removed}, closed: {closed}");
            assert_eq!(local.may_write(), is_written, "{removed}, closed: {closed}");
            assert!(!dir.join("state.tmp").exists());
        }
    }
}
