//! Keeping a replica's history in order: joining files, and removing what is not needed any more.
//! When that is due is decided in [`machine`], what is done in [`crate::plan::compact`] and
//! [`crate::plan::retain`].
//!
//! Any process may do this at any time, beside the writer and beside others that do the same: a
//! joined file is created only if its name is free, holds what its name says, and leads to the same
//! database as the files that it was made from.

mod join;
pub mod machine;
mod work;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use join::{Joined, Purpose, join};
pub use machine::{Event, History, Options, Saved, Status, Work};
pub use work::{Done, perform};

use tokio::task::JoinSet;

use crate::plan::retain::{Policy, expired};
use crate::store::{Error, ErrorKind, FileInfo, Key, Store};

/// How many deletes are under way at a time.
const DELETES: usize = 8;

/// Removes what the policy does not keep, oldest first, and looks afterwards whether it is gone. Gives
/// what was removed.
///
/// `files` is a listing made before: what came since is not touched. Needs a Tokio runtime.
pub async fn remove(
    store: &Arc<dyn Store>,
    files: &[FileInfo],
    policy: Policy,
) -> Result<Vec<FileInfo>, Error> {
    let expired = expired(files, policy);
    let mut waiting = expired.iter().map(|file| file.key);
    let mut deletes = JoinSet::new();
    loop {
        while deletes.len() < DELETES
            && let Some(key) = waiting.next()
        {
            let store = store.clone();
            deletes.spawn(async move { store.delete(key).await });
        }
        match deletes.join_next().await {
            None => break,
            Some(deleted) => deleted
                .map_err(|error| Error::caused(ErrorKind::Other, "a delete broke off", error))??,
        }
    }
    let keys: BTreeSet<Key> = expired.iter().map(|file| file.key).collect();
    let levels: BTreeSet<_> = keys.iter().map(|key| key.level).collect();
    for level in levels {
        let left = store.list(level).await?;
        if let Some(still) = left.iter().find(|file| keys.contains(&file.key)) {
            return Err(Error::new(
                ErrorKind::Other,
                format!(
                    "{} said that {} was deleted, and still lists it: does the bucket lock its objects? Then set deletes=off",
                    store.url(),
                    still.key
                ),
            ));
        }
    }
    Ok(expired)
}
