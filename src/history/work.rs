//! What the state machine asks for, done at a store.

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

/// Files that a store lists in one answer.
const PAGE_LEN: u64 = 1000;

/// How a piece of work ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// What the machine is told.
    pub event: Event,
    /// Requests made for it, about.
    pub requests: u64,
    /// How long the store asked to be left alone.
    pub retry_after: Option<Duration>,
}

impl Done {
    /// Work that failed for this reason, before it made any request that is known of.
    pub(crate) fn failed(failure: Failure) -> Done {
        Done { event: Event::Failed(failure), requests: 0, retry_after: None }
    }
}

/// Does one piece of work. Needs a Tokio runtime. `copies` is a folder with some of the store's files.
pub async fn perform(store: Arc<dyn Store>, work: Work, copies: Option<PathBuf>) -> Done {
    let result = match work {
        Work::Survey => survey(&*store).await,
        // A snapshot proves what the store has: from the copies it would prove nothing.
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
                // Of the replica it says nothing.
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

/// How many requests a listing of all levels takes.
fn count_listings(files: &[FileInfo]) -> u64 {
    let count = |level| files.iter().filter(|file| file.key.level == level).count() as u64;
    Level::all().map(|level| count(level).div_ceil(PAGE_LEN).max(1)).sum()
}
