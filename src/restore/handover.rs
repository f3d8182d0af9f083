//! Leaves local state beside a restored database: the page table and the position in the log. Replication then
//! goes on without a full image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::output::{Place, Workplace};
use super::{Error, Options, Report, restore_and};
use crate::local;
use crate::local::folder::{Folder, Like};
use crate::local::state::{Base, Clean, Fingerprint, State};
use crate::store::Store;
use crate::units::WriterId;

/// Restores, and leaves the state of a new writer beside the database. The writer takes over the log when the
/// database is first opened for replication.
///
/// The restore succeeds even if the state cannot be written. The second value then gives the reason, and the
/// first replication begins with a full image.
pub async fn restore_with_state(
    store: Arc<dyn Store>,
    options: Options,
) -> Result<(Report, Option<String>), Error> {
    restore_and(store, options, true).await
}

/// The state folder before it has its name. It is in the restore's folder.
pub(super) struct Staging {
    dir: PathBuf,
}

impl Staging {
    pub(super) fn create(work: &Workplace) -> Result<Staging, String> {
        let dir = work.make_state().map_err(|error| error.to_string())?;
        Ok(Staging { dir })
    }

    /// Path of the page table.
    pub(super) fn pages(&self) -> PathBuf {
        self.dir.join("pages")
    }

    /// Adds the state to the page table. `before` is the database's fingerprint before the rename.
    ///
    /// The database has its final name by now. The rename changes one of the file's times.
    pub(super) fn fill(
        &self,
        before: Fingerprint,
        database: &Path,
        replica: &str,
        report: &Report,
    ) -> Result<(), String> {
        let now = Fingerprint::of(database).map_err(|error| error.to_string())?;
        // If a process has opened and changed the file since then, a comparison finds the change.
        let fingerprint = if before.is_renamed(&now) { now } else { before };
        let base = Base {
            txid: report.txid.0,
            piece: 0,
            page_size: report.page_size.get(),
            commit: report.commit,
            checksum: report.checksum.get(),
            timestamp: report.timestamp.0,
            position: None,
        };
        let state = State {
            base: Some(base),
            clean: Some(Clean { fingerprint, piece: 0 }),
            ..State::new(WriterId(local::state::random_id()), replica)
        };
        state.save(&self.dir, true).map_err(|error| error.to_string())?;
        // The owner of the replaced database owns the folder, too.
        Folder::open(&self.dir)
            .and_then(|folder| folder.hand_over(Like::of(database)?))
            .map_err(|error| error.to_string())
    }

    /// Gives the folder its name. If a copy is replaced, the new files take the place of the files in the old
    /// folder, whose lock we hold.
    ///
    /// Between the two renames the old state stands beside the new database. A process that reads the state
    /// finds that it does not fit.
    pub(super) fn publish(self, dir: &Path, place: Place) -> Result<(), String> {
        let moved = match place {
            Place::Copy => self.move_into(dir),
            #[cfg(feature = "cli")]
            Place::Any { .. } if dir.is_dir() => self.move_into(dir),
            #[cfg(feature = "cli")]
            Place::Any { .. } => std::fs::rename(&self.dir, dir),
            Place::Free => {
                let spent = dir.exists() && local::is_spent(dir);
                let cleared = if spent { std::fs::remove_dir_all(dir) } else { Ok(()) };
                cleared.and_then(|()| std::fs::rename(&self.dir, dir))
            }
        };
        moved.map_err(|error| error.to_string())?;
        Folder::make(dir).map(drop).map_err(|error| error.to_string())
    }

    fn move_into(&self, dir: &Path) -> std::io::Result<()> {
        ["pages", "state"]
            .iter()
            .try_for_each(|name| std::fs::rename(self.dir.join(name), dir.join(name)))
    }
}
