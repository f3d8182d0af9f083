//! Does the state machine's work at a store.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::join::{Joined, Purpose, join};
use super::machine::{Event, Work};
use super::remove;
use crate::engine::Failure;
use crate::plan::compact::Step;
use crate::plan::retain::{Keep, Own};
use crate::restore::{Error, list_in_turn};
use crate::store::{FileInfo, Key, Store};
use crate::units::{Level, Timestamp};

/// Number of files that a store lists in one response.
const PAGE_LEN: u64 = 1000;

/// Result of a piece of work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// Event for the state machine.
    pub event: Event,
    /// Approximate number of requests made.
    pub requests: u64,
    /// Time for which the store asked for no requests.
    pub retry_after: Option<Duration>,
}

impl Done {
    /// Returns the result of work that failed before any known request.
    pub(crate) fn failed(failure: Failure) -> Done {
        Done { event: Event::Failed(failure), requests: 0, retry_after: None }
    }
}

/// Does one piece of work. `copies` is a folder with copies of some of the store's files. Needs a Tokio
/// runtime.
pub async fn perform(store: Arc<dyn Store>, work: Work, copies: Option<PathBuf>) -> Done {
    let result = match work {
        Work::Survey => survey(&*store).await,
        // A snapshot proves the store's files, so the local copies must not be used.
        Work::Join(step) if step.key.level == Level::SNAPSHOT => {
            joined(store, step, Purpose::Publish, None).await
        }
        Work::Join(step) => joined(store, step, Purpose::Publish, copies).await,
        Work::Prove(step) => joined(store, step, Purpose::Prove, None).await,
        Work::Retain { keep, at, own, damaged } => retained(&store, keep, at, own, &damaged).await,
    };
    match result {
        Ok((event, requests)) => Done { event, requests, retry_after: None },
        Err(error) => {
            let retry_after = match &error {
                Error::Store(error) => error.retry_after,
                _ => None,
            };
            let event = match &error {
                Error::Store(error) => Event::Failed(Failure::of_store(error)),
                Error::File { key, source } => {
                    Event::Damaged { key: *key, message: format!("{error}: {source}") }
                }
                // This error says nothing about the replica.
                Error::Internal(_) => Event::Failed(Failure::Local { message: error.to_string() }),
                other => Event::Contradicted(other.to_string()),
            };
            Done { event, requests: 1, retry_after }
        }
    }
}

async fn retained(
    store: &Arc<dyn Store>,
    keep: Keep,
    at: Timestamp,
    own: Own,
    damaged: &[Key],
) -> Result<(Event, u64), Error> {
    let files = list_in_turn(&**store).await?;
    let listings = count_listings(&files);
    let removed = remove(store, &files, keep.at(at, &files), own, damaged).await?;
    let gone: BTreeSet<Key> = removed.iter().map(|file| file.key).collect();
    let left = files.into_iter().filter(|file| !gone.contains(&file.key)).collect();
    let removed = removed.len() as u64;
    let again = if removed > 0 { listings } else { 0 };
    Ok((Event::Retained { left, removed }, listings + removed + again))
}

async fn survey(store: &dyn Store) -> Result<(Event, u64), Error> {
    let files = list_in_turn(store).await?;
    let requests = count_listings(&files);
    Ok((Event::Surveyed(files), requests))
}

async fn joined(
    store: Arc<dyn Store>,
    step: Step,
    purpose: Purpose,
    copies: Option<PathBuf>,
) -> Result<(Event, u64), Error> {
    let joined = join(store, step, purpose, copies).await?;
    let Joined { key, len, timestamp, existed, proven, requests, .. } = joined;
    let event = match purpose {
        Purpose::Publish => {
            let file = FileInfo { key, len, modified: timestamp, stored: timestamp };
            Event::Joined { file, existed, proven }
        }
        Purpose::Prove => Event::Proved(proven.then_some(key.name.max)),
    };
    Ok((event, requests))
}

/// Returns the number of requests that a listing of all levels takes.
fn count_listings(files: &[FileInfo]) -> u64 {
    let count = |level| files.iter().filter(|file| file.key.level == level).count() as u64;
    Level::all().map(|level| count(level).div_ceil(PAGE_LEN).max(1)).sum()
}
