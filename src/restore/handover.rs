//! Leaving local state beside a restored database, so that replication goes on from it without a
//! full image: the page table, and where the log stands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::output::{Place, Workplace};
use super::{Error, Options, Report, restore_and};
use crate::local;
use crate::local::folder::{Folder, Like};
use crate::local::state::{Base, Clean, Fingerprint, State};
use crate::store::Store;
use crate::units::WriterId;

/// Restores, and leaves the state of a new lineage beside the database. That lineage claims its
/// place in the log when the database is first opened for replication.
///
/// A state that cannot be written does not spoil the restore: the second value says why, and the
/// first replication begins with a full image.
pub async fn restore_with_state(
    store: Arc<dyn Store>,
    options: Options,
) -> Result<(Report, Option<String>), Error> {
    restore_and(store, options, true).await
}

/// The state folder before it has its name, in the restore's folder.
pub(super) struct Staging {
    dir: PathBuf,
}

impl Staging {
    pub(super) fn create(work: &Workplace) -> Result<Staging, String> {
        let dir = work.make_state().map_err(|error| error.to_string())?;
        Ok(Staging { dir })
    }

    /// Where the page table goes.
    pub(super) fn pages(&self) -> PathBuf {
        self.dir.join("pages")
    }

    /// Adds the state to the page table that is there. The database has its name by now, which changes
    /// the file's times in one place; `before` is how it looked.
    pub(super) fn fill(
        &self,
        before: Fingerprint,
        database: &Path,
        replica: &str,
        report: &Report,
    ) -> Result<(), String> {
        let now = Fingerprint::of(database).map_err(|error| error.to_string())?;
        // Who has opened and changed it since then is found by a comparison.
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
        // The user whose database is replaced goes on with it.
        Folder::open(&self.dir)
            .and_then(|folder| folder.hand_over(Like::of(database)?))
            .map_err(|error| error.to_string())
    }

    /// Gives the folder its name. Where a copy is replaced, its files take the place of those that are
    /// there, whose lock we hold. Between the two the old state stands beside the new database, and
    /// whoever reads it finds that they do not fit.
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
