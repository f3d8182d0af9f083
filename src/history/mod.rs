//! Maintains a replica's history: compacts files, and deletes expired files.
//!
//! [`machine`] decides when. [`crate::plan::compact`] and [`crate::plan::retain`] choose the files.
//!
//! Any process may do this at any time, beside the writer and beside other processes that do the same. A
//! compacted file is created only if its name is free. The file holds the transactions of its name, and
//! leads to the same database as its inputs.

mod join;
pub mod machine;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use join::{Inputs, Joined, Purpose, join};
pub use machine::{Event, History, Options, Saved, Status, Work};
pub use work::{Done, perform};

use tokio::task::JoinSet;

use crate::plan::compact::Step;
use crate::plan::retain::{
    Doomed, Own, Policy, begun, doomed, expired, keeps_the_newest, predecessors, stand_ins,
    stripped,
};
use crate::restore;
use crate::store::{Error, ErrorKind, FileInfo, Key, Store, read_header};
use crate::units::WriterId;

/// Largest number of concurrent deletes, or of concurrent reads of headers before them.
const AT_A_TIME: usize = 8;

/// Returns the files that can be deleted by this policy: the expired files, except the first file of each
/// lineage.
///
/// Reads the headers of expired files of level 0 that are not `own`. `damaged` files cover no other file.
/// Fails if the newest state could not be restored afterwards.
pub async fn removable(
    store: &Arc<dyn Store>,
    files: &[FileInfo],
    policy: Policy,
    own: Own,
    damaged: &[Key],
) -> Result<Vec<FileInfo>, Error> {
    let files = &stripped(files, damaged);
    let expired = expired(files, policy);
    if !keeps_the_newest(files, &expired) {
        return Err(Error::new(
            ErrorKind::Other,
            format!(
                "{}: of what is left the newest state could not be restored; nothing was removed. Files \
                 may be damaged or missing: walferry verify says which",
                store.url()
            ),
        ));
    }
    let Doomed { sure, unsure } = doomed(expired.clone(), own);
    let before = predecessors(&unsure, files);
    let of_unsure = unsure.iter().map(|file| file.key);
    let writers = writers(store, of_unsure.chain(before.iter().map(|(_, end)| *end))).await?;
    let writer = |key: &Key| writers.get(key).copied();
    // Files that are gone already need no decision.
    let written = unsure.iter().filter_map(|file| Some((*file, writer(&file.key)?)));
    let written: Vec<_> = written.collect();
    let before = before.iter().filter_map(|(key, end)| Some((*key, writer(end)??)));
    let stays: BTreeSet<Key> = begun(&written, &before.collect()).into_iter().collect();
    let may: BTreeSet<Key> = sure.iter().chain(&unsure).map(|file| file.key).collect();
    let goes = |file: &&FileInfo| may.contains(&file.key) && !stays.contains(&file.key);
    Ok(expired.iter().filter(goes).copied().collect())
}

/// Returns the writer of each file by its header; `None` if the header is not valid. Leaves out files
/// that do not exist any more.
async fn writers(
    store: &Arc<dyn Store>,
    files: impl IntoIterator<Item = Key>,
) -> Result<BTreeMap<Key, Option<WriterId>>, Error> {
    let mut writers = BTreeMap::new();
    let (mut waiting, mut reads) = (files.into_iter(), JoinSet::new());
    loop {
        while reads.len() < AT_A_TIME
            && let Some(key) = waiting.next()
        {
            let store = store.clone();
            reads.spawn(async move { (key, read_header(store.as_ref(), key).await) });
        }
        let Some(read) = reads.join_next().await else { return Ok(writers) };
        let (key, header) = read.map_err(broken_off)?;
        match header {
            Ok(header) => writers.insert(key, header.ok().map(|header| header.writer)),
            Err(error) if error.kind == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
    }
}

fn broken_off(error: tokio::task::JoinError) -> Error {
    Error::caused(ErrorKind::Other, "a request broke off", error)
}

/// Reads all files that cover the files expired by this policy, and returns the damaged ones. Calls `told`
/// with each file before reading the file. Needs a Tokio runtime.
pub async fn damaged(
    store: &Arc<dyn Store>,
    files: &[FileInfo],
    policy: Policy,
    mut told: impl FnMut(&FileInfo),
) -> Result<Vec<Key>, restore::Error> {
    let (mut damaged, mut read) = (Vec::new(), BTreeSet::new());
    loop {
        let known = damaged.len();
        for file in stand_ins(&stripped(files, &damaged), policy) {
            if !read.insert(file.key) {
                continue;
            }
            told(&file);
            let step = Step { key: file.key, inputs: vec![file] };
            match join(store.clone(), step, Purpose::Prove, None).await {
                Ok(_) => {}
                Err(restore::Error::File { .. } | restore::Error::Database { .. }) => {
                    damaged.push(file.key);
                }
                Err(error) => return Err(error),
            }
        }
        // Other files may cover the same transactions as a damaged file; the next round reads those.
        if damaged.len() == known {
            return Ok(damaged);
        }
    }
}

/// Deletes the files that [`removable`] returns, and returns them. Starts the deletes oldest first.
/// Afterwards lists the levels again, and fails if a deleted file is still listed.
///
/// `files` is an earlier listing; later files stay. Needs a Tokio runtime.
pub async fn remove(
    store: &Arc<dyn Store>,
    files: &[FileInfo],
    policy: Policy,
    own: Own,
    damaged: &[Key],
) -> Result<Vec<FileInfo>, Error> {
    let expired = removable(store, files, policy, own, damaged).await?;
    let mut waiting = expired.iter().map(|file| file.key);
    let mut deletes = JoinSet::new();
    loop {
        while deletes.len() < AT_A_TIME
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
