//! Making one file of several, from store to store.
//!
//! Memory: 32 MiB for what is read of all inputs together, a page for each, and two parts of the
//! upload. Compressed pages are copied as they are.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::ltx::{self, DatabaseChecksum, Decoder, HEADER_LEN, Header, Tag};
use crate::plan::compact::Step;
use crate::restore::Error;
use crate::store::reader::StoreReader;
use crate::store::{self, Body, ErrorKind, Key, Store, Upload};
use crate::units::Timestamp;

/// What is read ahead of all inputs together, in bytes; and at the least and at the most of each.
const READ_AHEAD: u64 = 32 << 20;
const CHUNK: (u64, u64) = (64 << 10, 4 << 20);
/// A file up to this length goes up at once, in bytes.
const AT_ONCE: usize = 1 << 20;

/// What became of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joined {
    /// The file.
    pub key: Key,
    /// Its length in bytes.
    pub len: u64,
    /// Pages in it.
    pub pages: u64,
    /// Bytes read for it.
    pub fetched: u64,
    /// Whether a file of this name was there first: then somebody else has joined these.
    pub existed: bool,
}

/// Joins the files of a step to one. Needs a Tokio runtime; the work is done on a thread of its own.
pub async fn join(store: Arc<dyn Store>, step: Step) -> Result<Joined, Error> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || run(store.as_ref(), &runtime, &step))
        .await
        .map_err(|_| Error::Internal("a thread broke off"))?
}

fn run(store: &dyn Store, runtime: &Handle, step: &Step) -> Result<Joined, Error> {
    let fetched = std::cell::Cell::new(0u64);
    let told = |bytes| fetched.set(fetched.get().saturating_add(bytes));
    let share = READ_AHEAD / (step.inputs.len() as u64).max(1);
    let chunk = share.clamp(CHUNK.0, CHUNK.1);
    let mut readers: Vec<StoreReader<'_>> = step
        .inputs
        .iter()
        .map(|file| StoreReader::new(store, runtime, file.key, (file.len, chunk), &told))
        .collect();
    let result = merge(store, runtime, step, &mut readers);
    // What the store did not give says more than what the decoder made of that.
    if let Some(error) = readers.iter_mut().find_map(StoreReader::failure) {
        return Err(error.into());
    }
    let (len, pages, existed) = result?;
    Ok(Joined { key: step.key, len, pages, fetched: fetched.get(), existed })
}

fn merge(
    store: &dyn Store,
    runtime: &Handle,
    step: &Step,
    readers: &mut [StoreReader<'_>],
) -> Result<(u64, u64, bool), Error> {
    let broken = |source| Error::File { key: step.key, source };
    let mut inputs = Vec::new();
    let mut headers = Vec::new();
    for (file, reader) in step.inputs.iter().zip(readers) {
        let decoder =
            Decoder::new(reader).map_err(|source| Error::File { key: file.key, source })?;
        let header = *decoder.header();
        if (header.min_txid, header.max_txid) != (file.key.name.min, file.key.name.max) {
            return Err(Error::corrupt(file.key, "its header names other transactions"));
        }
        headers.push((file.key, header));
        inputs.push(decoder);
    }
    let header = joined_header(step.key, &headers)?;
    let mut out = Out::new(store, runtime, step.key, header.timestamp);
    let head = header.encode().map_err(broken)?;
    let mut sum = DatabaseChecksum::EMPTY;
    let merged = out.write_all(&head).map_err(ltx::Error::from).and_then(|()| {
        ltx::merge::merge_seen(inputs, &header, &mut out, |pgno, page| {
            sum.toggle(ltx::checksum::page(pgno, page));
        })
    });
    let encoded = match merged {
        Ok((_, encoded)) => encoded,
        Err(source) => return Err(out.give_up().map_or_else(|| broken(source), Error::Store)),
    };
    // A whole database is proven before anybody can see it.
    let whole = header.tag.filter(|tag| tag.full_image);
    if let Some(tag) = whole.filter(|tag| tag.post_apply != sum) {
        out.give_up();
        let (expected, found) = (tag.post_apply, sum);
        return Err(Error::Database { key: step.key, expected, found });
    }
    match out.publish() {
        Ok(()) => Ok((encoded.len, encoded.pages, false)),
        Err(error) if error.kind == ErrorKind::AlreadyExists => {
            Ok((encoded.len, encoded.pages, true))
        }
        Err(error) => Err(error.into()),
    }
}

/// The header of the whole, if the files lead from one to the next.
fn joined_header(key: Key, headers: &[(Key, Header)]) -> Result<Header, Error> {
    let (Some((_, first)), Some((_, last))) = (headers.first(), headers.last()) else {
        return Err(Error::Internal("nothing to join"));
    };
    // What is older than a full image does not count.
    let full = headers.iter().rposition(|(_, h)| h.tag.is_some_and(|tag| tag.full_image));
    let counts = headers.get(full.unwrap_or(0)..).unwrap_or_default();
    for pair in counts.windows(2) {
        let [(older, before), (newer, after)] = pair else { continue };
        if before.page_size != after.page_size {
            return Err(Error::PageSize { older: *older, newer: *newer });
        }
        if let (Some(tag), Some(next)) = (before.tag, after.tag)
            && before.max_txid.next() == after.min_txid
            && tag.post_apply != next.pre_apply
        {
            return Err(Error::Chain { older: *older, newer: *newer });
        }
    }
    let whole = key.name.min == crate::units::Txid(1);
    let pre_apply = match first.tag {
        _ if whole => Some(DatabaseChecksum::EMPTY),
        tag => tag.map(|tag| tag.pre_apply),
    };
    let tag = last.tag.zip(pre_apply).map(|(tag, pre_apply)| Tag {
        pre_apply,
        post_apply: tag.post_apply,
        full_image: whole || full.is_some(),
    });
    Ok(Header {
        min_txid: key.name.min,
        max_txid: key.name.max,
        wal_offset: 0,
        wal_size: 0,
        salts: crate::units::Salts::default(),
        tag,
        ..*last
    })
}

/// What is written goes up part by part, and at once if it is short.
struct Out<'a> {
    store: &'a dyn Store,
    runtime: &'a Handle,
    key: Key,
    timestamp: Timestamp,
    buffer: Vec<u8>,
    upload: Option<(Box<dyn Upload>, u32)>,
    failure: Option<store::Error>,
}

impl<'a> Out<'a> {
    fn new(store: &'a dyn Store, runtime: &'a Handle, key: Key, timestamp: Timestamp) -> Out<'a> {
        let buffer = Vec::with_capacity(HEADER_LEN);
        Out { store, runtime, key, timestamp, buffer, upload: None, failure: None }
    }

    fn send(&mut self) -> Result<(), store::Error> {
        if self.upload.is_none() {
            let upload = self.runtime.block_on(self.store.upload_new(self.key, self.timestamp))?;
            self.upload = Some((upload, 0));
        }
        let Some((upload, number)) = &mut self.upload else { return Ok(()) };
        while self.buffer.len() >= upload.part_len() {
            let rest = self.buffer.split_off(upload.part_len());
            let part = std::mem::replace(&mut self.buffer, rest);
            self.runtime.block_on(upload.part(*number, Bytes::from(part)))?;
            *number += 1;
        }
        Ok(())
    }

    /// Takes back what was sent. Gives why the store took no more, if that is how it ended.
    fn give_up(&mut self) -> Option<store::Error> {
        if let Some((upload, _)) = self.upload.take() {
            self.runtime.block_on(upload.abort());
        }
        self.failure.take()
    }

    fn publish(mut self) -> Result<(), store::Error> {
        let rest = Bytes::from(std::mem::take(&mut self.buffer));
        match self.upload.take() {
            None => {
                let put = self.store.put_new(self.key, Body::Bytes(rest), self.timestamp);
                self.runtime.block_on(put)
            }
            Some((mut upload, number)) => self.runtime.block_on(async {
                if !rest.is_empty()
                    && let Err(error) = upload.part(number, rest).await
                {
                    upload.abort().await;
                    return Err(error);
                }
                upload.complete().await
            }),
        }
    }
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() > AT_ONCE
            && let Err(error) = self.send()
        {
            let text = error.to_string();
            self.failure = Some(error);
            return Err(io::Error::other(text));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
