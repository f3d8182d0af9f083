//! Reads a file of the store as a stream, for threads that may block.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{Error, Key, Store};

/// Reads a file from its start, chunk by chunk.
pub(crate) struct StoreReader<'a> {
    store: &'a dyn Store,
    runtime: &'a Handle,
    key: Key,
    len: u64,
    chunk_len: u64,
    at: u64,
    chunk: Bytes,
    told: &'a dyn Fn(u64),
    failure: Option<Error>,
}

impl<'a> StoreReader<'a> {
    /// Reads `len` bytes, `chunk_len` at a time. Calls `told` with each chunk's length.
    pub(crate) fn new(
        store: &'a dyn Store,
        runtime: &'a Handle,
        key: Key,
        (len, chunk_len): (u64, u64),
        told: &'a dyn Fn(u64),
    ) -> StoreReader<'a> {
        let chunk = Bytes::new();
        StoreReader { store, runtime, key, len, chunk_len, at: 0, chunk, told, failure: None }
    }

    /// Takes the store's error, if a request failed. Then nothing is known of the file.
    pub(crate) fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    fn fetch(&mut self) -> io::Result<()> {
        let end = self.at.saturating_add(self.chunk_len).min(self.len);
        let answer = self.runtime.block_on(self.store.get(self.key, Some(self.at..end)));
        match answer {
            Ok(chunk) => {
                self.at = self.at.saturating_add(chunk.len() as u64);
                (self.told)(chunk.len() as u64);
                self.chunk = chunk;
                Ok(())
            }
            Err(error) => {
                let text = error.to_string();
                self.failure = Some(error);
                Err(io::Error::other(text))
            }
        }
    }
}

impl Read for StoreReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() && self.at < self.len {
            self.fetch()?;
        }
        let n = self.chunk.as_ref().read(buffer)?;
        bytes::Buf::advance(&mut self.chunk, n);
        Ok(n)
    }
}
