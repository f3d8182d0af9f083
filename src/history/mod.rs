//! Keeping a replica's history in order: joining files, and removing what is not needed any more.
//! What is done is decided in [`crate::plan::compact`] and [`crate::plan::retain`].
//!
//! Any process may do this at any time, beside the writer and beside others that do the same: a
//! joined file is created only if its name is free, holds what its name says, and leads to the same
//! database as the files that it was made from.

mod join;

use std::sync::Arc;

pub use join::{Joined, join};

use crate::plan::retain::{Policy, expired};
use crate::restore::list_in_turn;
use crate::store::{Error, ErrorKind, FileInfo, Store};

/// Removes what the policy does not keep, oldest first, and looks afterwards whether it is gone. Gives
/// what was removed.
///
/// `files` is a listing made before: what came since is not touched.
pub async fn remove(
    store: &Arc<dyn Store>,
    files: &[FileInfo],
    policy: Policy,
) -> Result<Vec<FileInfo>, Error> {
    let expired = expired(files, policy);
    for file in &expired {
        store.delete(file.key).await?;
    }
    if expired.is_empty() {
        return Ok(expired);
    }
    let left = list_in_turn(store.as_ref()).await?;
    match expired.iter().find(|gone| left.iter().any(|file| file.key == gone.key)) {
        None => Ok(expired),
        Some(still) => Err(Error::new(
            ErrorKind::Other,
            format!(
                "{} said that {} was deleted, and still lists it: does the bucket lock its objects?",
                store.url(),
                still.key
            ),
        )),
    }
}
