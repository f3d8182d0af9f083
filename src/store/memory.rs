//! A replica in memory, for tests and simulation of the code above the store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::parts::Parts;
use super::{Body, Error, ErrorKind, FileInfo, Key, Store, Upload, range};
use crate::units::{Level, Timestamp};

/// Length in bytes of the parts of an upload; small, so that tests need little data.
const PART_LEN: usize = 64 << 10;

/// Files in memory. Clones share the files, so that a test can stop one user of the replica and start
/// another. The modification time of a file is its LTX timestamp.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    files: Arc<Mutex<BTreeMap<Key, (Timestamp, Bytes)>>>,
}

impl MemoryStore {
    /// Returns an empty replica.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Returns all files of all levels, ascending.
    pub fn files(&self) -> Vec<(Key, Bytes)> {
        self.files.lock().iter().map(|(key, (_, bytes))| (*key, bytes.clone())).collect()
    }

    fn create(&self, key: Key, bytes: Bytes, timestamp: Timestamp) -> Result<(), Error> {
        match self.files.lock().entry(key) {
            std::collections::btree_map::Entry::Occupied(_) => {
                Err(Error::new(ErrorKind::AlreadyExists, format!("{key} exists in memory")))
            }
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert((timestamp, bytes));
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> &'static str {
        "memory:"
    }

    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error> {
        let files = self.files.lock();
        let of_level = files.iter().filter(|(key, _)| key.level == level);
        Ok(of_level
            .map(|(&key, (modified, bytes))| FileInfo {
                key,
                len: bytes.len() as u64,
                modified: *modified,
                stored: *modified,
            })
            .collect())
    }

    async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        let files = self.files.lock();
        let Some((_, bytes)) = files.get(&key) else {
            return Err(Error::new(ErrorKind::NotFound, format!("{key} does not exist in memory")));
        };
        let range = range::within(range.as_ref(), bytes.len() as u64, key)?;
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn put_new(&self, key: Key, body: Body, timestamp: Timestamp) -> Result<(), Error> {
        let bytes = match body {
            Body::Bytes(bytes) => bytes,
            Body::File(path) => std::fs::read(&path)
                .map_err(|err| {
                    let message = format!("cannot read the local file {}", path.display());
                    Error::caused(ErrorKind::Local, message, err)
                })?
                .into(),
        };
        self.create(key, bytes, timestamp)
    }

    async fn upload_new(
        &self,
        key: Key,
        timestamp: Timestamp,
        _len: u64,
    ) -> Result<Box<dyn Upload>, Error> {
        let (checked, sent) = (Parts::new(key, PART_LEN), BTreeMap::new());
        Ok(Box::new(MemoryUpload { store: self.clone(), key, timestamp, checked, sent }))
    }

    async fn delete(&self, key: Key) -> Result<(), Error> {
        self.files.lock().remove(&key);
        Ok(())
    }
}

struct MemoryUpload {
    store: MemoryStore,
    key: Key,
    timestamp: Timestamp,
    checked: Parts,
    sent: BTreeMap<u32, Bytes>,
}

#[async_trait]
impl Upload for MemoryUpload {
    fn part_len(&self) -> usize {
        PART_LEN
    }

    async fn part(&mut self, number: u32, bytes: Bytes) -> Result<(), Error> {
        self.checked.add(number, bytes.len())?;
        self.sent.insert(number, bytes);
        Ok(())
    }

    async fn complete(self: Box<Self>) -> Result<(), Error> {
        self.checked.check()?;
        let mut whole = BytesMut::new();
        self.sent.values().for_each(|part| whole.extend_from_slice(part));
        self.store.create(self.key, whole.freeze(), self.timestamp)
    }

    async fn abort(self: Box<Self>) {}
}
