//! The local state of a database that nobody ships from: what is in it, and how it is given up
//! without losing a commit.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Error, table};
use crate::follow;
use crate::local;
use crate::local::lock::{Attempt, Lock};
use crate::local::spool::{Entry, Spool};
use crate::local::state::{Fingerprint, State};
use crate::units::{PageSize, Txid, WalPosition, WriterId};
use crate::wal;

/// The state folder, with the shipper's place taken: nobody else works in it meanwhile.
pub(super) struct Held {
    _lock: Lock,
    database: PathBuf,
    dir: PathBuf,
    /// `None` when there is none, or none that can be read.
    pub(super) state: Option<State>,
    /// Captured transactions that the store has not confirmed, oldest first.
    unshipped: Vec<Entry>,
    /// The database is known to hold all of them.
    contained: bool,
}

/// Takes the shipper's place of a database at each of its replicas. None when walferry keeps nothing
/// beside it.
pub(super) fn hold(database: &Path) -> Result<Vec<Held>, Error> {
    super::not_a_url(database)?;
    // SQLite follows links, too, and the state folder is beside the file itself.
    let database = match fs::canonicalize(database) {
        Ok(path) => path,
        Err(_) => std::path::absolute(database).unwrap_or(database.to_path_buf()),
    };
    let dirs = local::replicas::existing(&database);
    if dirs.is_empty() && !database.exists() {
        return Err(Error::NoDatabase(database));
    }
    dirs.into_iter().map(|dir| hold_at(&database, dir)).collect()
}

fn hold_at(database: &Path, dir: PathBuf) -> Result<Held, Error> {
    let database = database.to_path_buf();
    let lock = match Lock::try_take(&dir)? {
        Attempt::Taken(lock) => lock,
        Attempt::HeldBy(pid) => {
            // A process whose folder has a follower's record follows a replica, and ships nothing.
            let follows = matches!(follow::position(&dir), Ok(Some(_)));
            return Err(Error::InUse { database, pid, follows });
        }
    };
    let state = match State::load(&dir) {
        Ok(state) => state,
        // A damaged state has no use, and the user asked to give it up.
        Err(error) if error.source.kind() == std::io::ErrorKind::InvalidData => None,
        Err(error) => return Err(error.into()),
    };
    let base = state.as_ref().and_then(|state| state.base);
    let unshipped = match Spool::existing(&dir) {
        Some(spool) => spool.look(base.map_or(0, |base| base.piece))?,
        None => Vec::new(),
    };
    let contained = match (&state, unshipped.last()) {
        (_, None) => true,
        (Some(state), Some(last)) => holds_all(&database, state, last),
        (None, Some(_)) => false,
    };
    Ok(Held { _lock: lock, database, dir, state, unshipped, contained })
}

/// Whether the database as it lies there holds everything up to the end of `last`. Only a proof
/// counts: the WAL with an unbroken chain of frames up to the place where the file ends, or the
/// very file, untouched since, whose WAL was captured and then checkpointed.
///
/// An older copy that was put back, a WAL of which a power loss took the end, or a file that a
/// program without walferry has written since, give no such proof.
fn holds_all(database: &Path, state: &State, last: &Entry) -> bool {
    let wal = local::wal_path(database);
    let no_wal = fs::metadata(&wal).map_or(true, |wal| wal.len() == 0);
    let untouched = state.clean.is_some_and(|clean| {
        clean.piece == last.pieces.1
            && Fingerprint::of(database).is_ok_and(|now| now == clean.fingerprint)
    });
    if no_wal && untouched {
        return true;
    }
    let page_size = state.base.and_then(|base| PageSize::new(base.page_size));
    let (Some(position), Some(page_size)) = (last.position, page_size) else { return false };
    // A WAL without a database proves nothing.
    database.exists() && reaches(&wal, page_size, position)
}

fn reaches(wal: &Path, page_size: PageSize, position: WalPosition) -> bool {
    File::open(wal).is_ok_and(|wal| wal::reaches(&wal, page_size, position))
}

impl Held {
    pub(super) fn database(&self) -> &Path {
        &self.database
    }

    /// Whether nothing is left to be given up, as after a reset: the lock alone, and files that were kept.
    pub(super) fn is_given_up(&self) -> bool {
        local::given_up::is_given_up(&self.dir)
    }

    /// Last TXID that the store confirmed.
    pub(super) fn acked(&self) -> Txid {
        let base = self.state.as_ref().and_then(|state| state.base);
        base.map_or(Txid::ZERO, |base| base.txid())
    }

    pub(super) fn writer(&self) -> Option<WriterId> {
        self.state.as_ref().map(|state| WriterId(state.writer))
    }

    fn bytes(&self) -> u64 {
        self.unshipped.iter().map(|entry| entry.len).sum()
    }

    /// Where the unshipped files go; `None` if they need not be kept.
    pub(super) fn keep_at(&self) -> Option<PathBuf> {
        if self.must_stay().is_empty() { None } else { local::given_up::kept_next(&self.dir) }
    }

    fn must_stay(&self) -> &[Entry] {
        if self.contained { &[] } else { &self.unshipped }
    }

    /// Removes what is kept beside the database ([`local::given_up::give_up`]). Files that it may not hold are
    /// moved aside first; where to, is the answer.
    pub(super) fn give_up(&self) -> Result<Option<PathBuf>, Error> {
        Ok(local::given_up::give_up(&self.dir, self.must_stay())?)
    }

    /// Makes a state of a lineage that begins with a full image.
    pub(super) fn begin(&self, state: &State) -> Result<(), Error> {
        Ok(state.save(&self.dir, true)?)
    }

    pub(super) fn json(&self) -> Value {
        let txid = |txid: Txid| (txid != Txid::ZERO).then(|| txid.to_string());
        json!({
            "txid": txid(self.acked()),
            "writer": self.writer().map(|writer| writer.to_string()),
            "unshipped": self.unshipped.iter().map(|entry| json!({
                "txid": entry.txid.map(|txid| txid.to_string()),
                "bytes": entry.len,
            })).collect::<Vec<_>>(),
            "unshipped_bytes": self.bytes(),
            "in_database": self.contained,
        })
    }

    /// What has not been shipped, and where it is or would be kept, for people.
    pub(super) fn lines(&self, kept: Option<&Path>, dry_run: bool) -> Vec<String> {
        if self.unshipped.is_empty() {
            return vec!["not shipped: nothing is in the spool".to_string()];
        }
        let closed: Vec<Txid> = self.unshipped.iter().filter_map(|entry| entry.txid).collect();
        let open = self.unshipped.len() - closed.len();
        let mut what: Vec<String> = closed.iter().map(|txid| format!("TXID {txid}")).collect();
        if open > 0 {
            what.push(format!("{} without a TXID yet", table::count(open, "file")));
        }
        let count = table::count(self.unshipped.len(), "file");
        let fate = match kept.map(Path::display) {
            None => "the database holds what is in them; they go".to_string(),
            Some(kept) if dry_run => format!("they would be moved to {kept}"),
            Some(kept) => format!("they were moved to {kept}"),
        };
        let bytes = self.bytes();
        vec![format!("not shipped: {count} with {bytes} bytes ({}); {fate}", what.join(", "))]
    }
}
