//! A store that counts what is read of it, and breaks down when told to.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use walferry::store::memory::MemoryStore;
use walferry::store::{self, Body, ErrorKind, FileInfo, Key, Store, Upload};
use walferry::units::{Level, Timestamp};

/// Clones share their counts.
#[derive(Clone)]
pub struct Watched {
    inner: MemoryStore,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    requests: AtomicU64,
    left: AtomicU64,
}

impl Watched {
    /// Answers so many reads, then none.
    pub fn new(inner: MemoryStore, reads: u64) -> Watched {
        let counts = Counts { left: AtomicU64::new(reads), ..Counts::default() };
        Watched { inner, counts: Arc::new(counts) }
    }

    /// Bytes and requests so far.
    pub fn read(&self) -> (u64, u64) {
        let Counts { bytes, requests, .. } = &*self.counts;
        (bytes.load(Ordering::Relaxed), requests.load(Ordering::Relaxed))
    }
}

#[async_trait]
impl Store for Watched {
    fn url(&self) -> &'static str {
        "memory:"
    }

    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, store::Error> {
        self.inner.list(level).await
    }

    async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, store::Error> {
        let left = |left: u64| left.checked_sub(1);
        if self.counts.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_err() {
            return Err(store::Error::new(ErrorKind::Unavailable, "the network is gone"));
        }
        let bytes = self.inner.get(key, range).await?;
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    async fn put_new(&self, _: Key, _: Body, _: Timestamp) -> Result<(), store::Error> {
        unreachable!("a restore writes nothing to the store")
    }

    async fn upload_new(
        &self,
        _: Key,
        _: Timestamp,
        _: u64,
    ) -> Result<Box<dyn Upload>, store::Error> {
        unreachable!("a restore writes nothing to the store")
    }

    async fn delete(&self, _: Key) -> Result<(), store::Error> {
        unreachable!("a restore deletes nothing in the store")
    }
}
