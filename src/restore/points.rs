//! Describes the states of a replica from the files' headers alone.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::error::Error;
use super::fetch::{self, Source};
use crate::plan::points::Point;
use crate::store::Store;
use crate::units::{PageSize, Timestamp, Txid};

/// Data of a file's header about the state that the file leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// TXID of the state.
    pub txid: Txid,
    /// Commit time of the state; for a snapshot, the time at which it was made.
    pub timestamp: Timestamp,
    /// Size of the database in pages.
    pub commit: u32,
    /// Page size.
    pub page_size: PageSize,
}

impl Known {
    /// Returns the size of the database in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.commit) * u64::from(self.page_size.get())
    }
}

/// Reads the headers of these states' files, `parallelism` at a time. The results are in the same order. A file
/// that cannot be used gives an error.
pub async fn known(
    store: &Arc<dyn Store>,
    points: &[Point],
    parallelism: usize,
) -> Vec<Result<Known, Error>> {
    let source = Source::new(store.clone());
    let mut reading = JoinSet::new();
    let mut waiting = points.iter().enumerate();
    let mut found: Vec<Result<Known, Error>> = Vec::new();
    found.resize_with(points.len(), || Err(Error::Internal("reading a header broke off")));
    loop {
        while reading.len() < parallelism.max(1)
            && let Some((place, point)) = waiting.next()
        {
            let (source, key) = (source.clone(), point.file.key);
            reading.spawn(async move { (place, fetch::header(&source, key).await) });
        }
        let Some(read) = reading.join_next().await else { return found };
        let Ok((place, header)) = read else { continue };
        let header = header.map(|header| Known {
            txid: header.max_txid,
            timestamp: header.timestamp,
            commit: header.commit,
            page_size: header.page_size,
        });
        if let Some(slot) = found.get_mut(place) {
            *slot = header;
        }
    }
}
