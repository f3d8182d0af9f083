//! Compacts several files of a store into one.
//!
//! Memory: 32 MiB for reading all inputs together, a page for each input, and two parts of the upload.
//! Compressed pages are copied as they are.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::blocking::{Broken, blocking};
use crate::buffer::Buffer;
use crate::local::{copies, spool};
use crate::ltx::encode::Encoded;
use crate::ltx::{self, DatabaseChecksum, Decoder, Encoder, Header, Tag};
use crate::plan::compact::Step;
use crate::restore::Error;
use crate::scratch::Place;
use crate::store::reader::StoreReader;
use crate::store::{self, Body, ErrorKind, FileInfo, Key, Store, Upload};
use crate::units::Timestamp;

/// Bytes to read ahead, for all inputs together.
const READ_AHEAD: u64 = 32 << 20;
/// Least and greatest number of bytes to read ahead for one input.
const CHUNK: (u64, u64) = (64 << 10, 4 << 20);
/// Files up to this length in bytes are uploaded in one request.
const AT_ONCE: usize = 1 << 20;

/// Result of a compaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joined {
    /// The compacted file.
    pub key: Key,
    /// Length in bytes; 0 if the file existed and the store refused the upload early.
    pub len: u64,
    /// Number of pages; 0 in the same case.
    pub pages: u64,
    /// Bytes fetched from the store.
    pub fetched: u64,
    /// Approximate number of requests made.
    pub requests: u64,
    /// Commit time of the state that the file leads to.
    pub timestamp: Timestamp,
    /// True if a file of this name existed already: another process has made the same compaction.
    pub existed: bool,
    /// True if the file is a whole database, proven by the checksum in its last input.
    pub proven: bool,
}

/// Use of the compacted file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Create the file at the store.
    Publish,
    /// Discard the file: the compaction only proves its inputs.
    Prove,
}

/// Compacts the inputs of a step into one file. Needs a Tokio runtime; the work runs on a thread of its
/// own.
///
/// Reads inputs from the folder `copies` if it has them under the name of their key
/// ([`crate::local::copies`]). If the compaction fails with these copies, a second attempt reads all
/// inputs from the store.
pub async fn join(
    store: Arc<dyn Store>,
    step: Step,
    purpose: Purpose,
    copies: Option<PathBuf>,
) -> Result<Joined, Error> {
    let runtime = Handle::current();
    let job = move || {
        // The second attempt does not use the local disk.
        let run = |copies: Option<&Path>| {
            let place = copies.map(spool::scratch);
            Job { store: &*store, runtime: &runtime, step: &step, purpose, copies, place }.run()
        };
        match (run(copies.as_deref()), &copies) {
            (Err(Error::Store(error)), _) => Err(error.into()),
            (Err(_), Some(_)) => run(None),
            (result, _) => result,
        }
    };
    match blocking(job).await {
        Ok(joined) => joined,
        Err(Broken::NoThread) => Err(Error::Store(Broken::NoThread.into())),
        Err(Broken::GivenUp) => Err(Error::Internal("a thread broke off")),
        Err(Broken::Panicked) => Err(Error::Internal("a panic while files were joined")),
    }
}

struct Job<'a> {
    store: &'a dyn Store,
    runtime: &'a Handle,
    step: &'a Step,
    purpose: Purpose,
    copies: Option<&'a Path>,
    /// Place for data that does not fit in memory.
    place: Option<Place>,
}

/// Source of an input's bytes.
enum Source<'a> {
    Copy(io::Cursor<Vec<u8>>),
    Store(StoreReader<'a>),
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::Copy(copy) => copy.read(buffer),
            Source::Store(reader) => reader.read(buffer),
        }
    }
}

impl Job<'_> {
    fn run(&self) -> Result<Joined, Error> {
        let (fetched, requests) = (Cell::new(0u64), Cell::new(0u64));
        let told = |bytes| {
            fetched.set(fetched.get().saturating_add(bytes));
            requests.set(requests.get().saturating_add(1));
        };
        let share = READ_AHEAD / (self.step.inputs.len() as u64).max(1);
        let chunk = share.clamp(CHUNK.0, CHUNK.1);
        let open = |file: &FileInfo| match self.copy(file) {
            Some(copy) => Source::Copy(io::Cursor::new(copy)),
            None => {
                let len = (file.len, chunk);
                Source::Store(StoreReader::new(self.store, self.runtime, file.key, len, &told))
            }
        };
        let mut sources: Vec<Source<'_>> = self.step.inputs.iter().map(open).collect();
        let result = self.merge(&mut sources);
        // An error of the store is more precise than the decoder's error that follows from it.
        let failed = sources.iter_mut().find_map(|source| match source {
            Source::Copy(_) => None,
            Source::Store(reader) => reader.failure(),
        });
        drop(sources);
        if let Some(error) = failed {
            return Err(error.into());
        }
        let joined = result?;
        Ok(Joined { fetched: fetched.get(), requests: joined.requests + requests.get(), ..joined })
    }

    /// Returns a file's whole local copy, if there is one of the same length. Copies are few and short.
    fn copy(&self, file: &FileInfo) -> Option<Vec<u8>> {
        let bytes = copies::read(self.copies?, file.key)?;
        (bytes.len() as u64 == file.len).then_some(bytes)
    }

    fn merge(&self, sources: &mut [Source<'_>]) -> Result<Joined, Error> {
        let key = self.step.key;
        let inputs = Inputs::open(self.step, sources.iter_mut())?;
        let timestamp = inputs.header.timestamp;
        let len = self.step.inputs.iter().map(|file| file.len).fold(0, u64::saturating_add);
        let mut out = match self.purpose {
            Purpose::Publish => Out::new(self.store, self.runtime, key, timestamp, len),
            Purpose::Prove => Out::nowhere(self.store, self.runtime, key, timestamp),
        };
        let joined = Joined {
            key,
            len: 0,
            pages: 0,
            fetched: 0,
            requests: 1,
            timestamp,
            existed: true,
            proven: false,
        };
        // A whole database is proven before the file becomes visible at the store.
        let (encoded, proven) = match inputs.join(&mut out, self.place.clone()) {
            Ok(joined) => joined,
            Err(error) => {
                return match out.give_up() {
                    Some(why) if why.kind == ErrorKind::AlreadyExists => Ok(joined),
                    Some(why) => Err(Error::Store(why)),
                    None => Err(error),
                };
            }
        };
        let (existed, requests) = out.publish()?;
        let (len, pages) = (encoded.len, encoded.pages);
        Ok(Joined { len, pages, requests, existed, proven, ..joined })
    }
}

/// Inputs of a compaction with their headers read and checked against each other.
pub struct Inputs<R> {
    key: Key,
    /// Header of the compacted file.
    header: Header,
    /// Inputs to read, in order.
    decoders: Vec<Decoder<R>>,
    /// Keys of the same inputs.
    keys: Vec<Key>,
}

impl<R: Read> Inputs<R> {
    /// Reads and checks the headers of a step's inputs. `sources` must have the order of the inputs.
    pub fn open(step: &Step, sources: impl IntoIterator<Item = R>) -> Result<Inputs<R>, Error> {
        let (mut headers, mut decoders) = (Vec::new(), Vec::new());
        for (file, source) in step.inputs.iter().zip(sources) {
            let decoder =
                Decoder::new(source).map_err(|source| Error::File { key: file.key, source })?;
            let header = *decoder.header();
            if (header.min_txid, header.max_txid) != (file.key.name.min, file.key.name.max) {
                return Err(Error::corrupt(file.key, "its header names other transactions"));
            }
            headers.push((file.key, header));
            decoders.push(decoder);
        }
        let (header, superseded) = joined_header(step.key, &headers)?;
        // Files before a full image are not read; they may even have another page size.
        decoders.drain(..superseded);
        let keys = headers.iter().skip(superseded).map(|(key, _)| *key).collect();
        Ok(Inputs { key: step.key, header, decoders, keys })
    }

    /// Writes the compacted file. Returns true if the file is a whole database that was proven.
    ///
    /// If the whole database does not have the checksum that its last input names, this is an error; `out`
    /// has the complete file then. Spills the index to `place`; without a place, the index stays in
    /// memory, at some four bytes a page.
    pub fn join(
        self,
        out: &mut impl Write,
        place: Option<Place>,
    ) -> Result<(Encoded, bool), Error> {
        let Inputs { key, header, decoders, keys } = self;
        let broken = |source| Error::File { key, source };
        let head = header.encode().map_err(broken)?;
        out.write_all(&head).map_err(ltx::Error::from).map_err(broken)?;
        let mut sum = DatabaseChecksum::EMPTY;
        let encoder = match place {
            Some(place) => Encoder::spilling(out, header.page_size, place),
            None => Encoder::new(out, header.page_size),
        };
        let merged = ltx::merge::merge_into(decoders, &header, encoder, |pgno, page| {
            sum.toggle(ltx::checksum::page(pgno, page));
        });
        let (_, encoded) = merged.map_err(|found| {
            let input = found.input.and_then(|at| keys.get(at));
            Error::File { key: input.copied().unwrap_or(key), source: found.source }
        })?;
        match header.tag.filter(|tag| tag.full_image) {
            Some(tag) if tag.post_apply != sum => {
                Err(Error::Database { key, expected: tag.post_apply, found: sum })
            }
            whole => Ok((encoded, whole.is_some())),
        }
    }
}

/// Returns the header of the compacted file, and the number of first files that a full image supersedes.
/// Fails if the files do not lead from one to the next.
fn joined_header(key: Key, headers: &[(Key, Header)]) -> Result<(Header, usize), Error> {
    let (Some((_, first)), Some((_, last))) = (headers.first(), headers.last()) else {
        return Err(Error::Internal("nothing to join"));
    };
    // Files before the last full image do not count.
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
    let header = Header {
        min_txid: key.name.min,
        max_txid: key.name.max,
        wal_offset: 0,
        wal_size: 0,
        salts: crate::units::Salts::default(),
        tag,
        ..*last
    };
    Ok((header, full.unwrap_or(0)))
}

/// Writer that uploads a file part by part, or in one request if the file is short.
struct Out<'a> {
    store: &'a dyn Store,
    runtime: &'a Handle,
    key: Key,
    timestamp: Timestamp,
    /// Approximate length of the file in bytes.
    len: u64,
    buffer: Buffer,
    upload: Option<(Box<dyn Upload>, u32)>,
    failure: Option<store::Error>,
    /// True if all bytes are discarded.
    nowhere: bool,
}

impl<'a> Out<'a> {
    fn new(
        store: &'a dyn Store,
        runtime: &'a Handle,
        key: Key,
        timestamp: Timestamp,
        len: u64,
    ) -> Out<'a> {
        let buffer = Buffer::with_capacity(2 * AT_ONCE);
        let (upload, failure) = (None, None);
        Out { store, runtime, key, timestamp, len, buffer, upload, failure, nowhere: false }
    }

    fn nowhere(store: &'a dyn Store, runtime: &'a Handle, key: Key, at: Timestamp) -> Out<'a> {
        Out { nowhere: true, ..Out::new(store, runtime, key, at, 0) }
    }

    fn send(&mut self) -> Result<(), store::Error> {
        if self.upload.is_none() {
            let upload = self.store.upload_new(self.key, self.timestamp, self.len);
            let upload = self.runtime.block_on(upload)?;
            self.upload = Some((upload, 0));
        }
        let Some((upload, number)) = &mut self.upload else { return Ok(()) };
        while self.buffer.len() >= upload.part_len() {
            let rest = self.buffer.split_off(upload.part_len());
            let rest = rest.map_err(|error| {
                store::Error::new(ErrorKind::Other, format!("no memory for a part: {error}"))
            })?;
            let part = std::mem::replace(&mut self.buffer, rest);
            self.runtime.block_on(upload.part(*number, Bytes::from(part)))?;
            *number += 1;
        }
        Ok(())
    }

    /// Aborts the upload. Returns the store's error, if the store refused a part.
    fn give_up(&mut self) -> Option<store::Error> {
        if let Some((upload, _)) = self.upload.take() {
            self.runtime.block_on(upload.abort());
        }
        self.failure.take()
    }

    /// Makes the file visible. Returns true if a file of its name existed already, and the number of
    /// requests made.
    fn publish(mut self) -> Result<(bool, u64), store::Error> {
        if self.nowhere {
            return Ok((false, 0));
        }
        let rest = Bytes::from(std::mem::replace(&mut self.buffer, Buffer::with_capacity(0)));
        let (result, requests) = match self.upload.take() {
            None => {
                let put = self.store.put_new(self.key, Body::Bytes(rest), self.timestamp);
                (self.runtime.block_on(put), 1)
            }
            Some((mut upload, number)) => {
                let complete = async {
                    if !rest.is_empty()
                        && let Err(error) = upload.part(number, rest).await
                    {
                        upload.abort().await;
                        return Err(error);
                    }
                    upload.complete().await
                };
                (self.runtime.block_on(complete), 3 + u64::from(number))
            }
        };
        match result {
            Ok(()) => Ok((false, requests)),
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok((true, requests)),
            Err(error) => Err(error),
        }
    }
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.nowhere {
            return Ok(bytes.len());
        }
        self.buffer.write_all(bytes)?;
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
