//! Leaving local state beside a restored database, so that replication goes on from it without a
//! full image: the page table, and where the log stands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Error, Options, Report, restore};
use crate::local;
use crate::local::state::{Base, Clean, Fingerprint, State};
use crate::store::{self, Store};
use crate::units::WriterId;

/// Restores, and leaves the state of a new lineage beside the database. That lineage claims its
/// place in the log when the database is first opened for replication.
///
/// A state that cannot be written does not spoil the restore: the second value says why, and the
/// first replication begins with a full image.
pub async fn restore_with_state(
    store: Arc<dyn Store>,
    mut options: Options,
) -> Result<(Report, Option<String>), Error> {
    let output = options.output.clone();
    let staging = Staging::create(&output);
    options.page_table = staging.as_ref().ok().map(|staging| staging.dir.join("pages"));
    let replica = store::url::identity(store.as_ref());
    let report = restore(store, options).await?;
    let left = staging
        .map_err(|error| error.to_string())
        .and_then(|staging| staging.publish(&output, &replica, &report));
    Ok((report, left.err()))
}

/// The state folder before it has its name; removed unless it is published.
struct Staging {
    dir: PathBuf,
}

impl Staging {
    fn create(output: &Path) -> std::io::Result<Staging> {
        let mut name = local::state_dir(output).into_os_string();
        name.push(format!(".tmp-{}", std::process::id()));
        let dir = PathBuf::from(name);
        std::fs::create_dir(&dir)?;
        Ok(Staging { dir })
    }

    fn publish(self, output: &Path, replica: &str, report: &Report) -> Result<(), String> {
        let fingerprint = Fingerprint::of(output).map_err(|error| error.to_string())?;
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
        let dir = local::state_dir(output);
        if dir.exists() && local::is_spent(&dir) {
            std::fs::remove_dir_all(&dir).map_err(|error| error.to_string())?;
        }
        std::fs::rename(&self.dir, dir).map_err(|error| error.to_string())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After it was published nothing of this name is there.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
