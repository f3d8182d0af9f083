//! Fetches the objects of a plan, a few requests ahead, and expands them into files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use lz4_flex::frame::FrameDecoder;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::super::error::{Error, failed};
use crate::ltx::lz4::{self, End, Tail};
use crate::store::{self, Object, Store};

/// Bytes of one request.
const CHUNK: u64 = 4 << 20;

const CUT_SHORT: &str = "it is cut short";

/// Bit of a frame's fifth byte: a checksum of the content follows the end mark.
const CONTENT_CHECKSUM: u8 = 0x04;

/// The objects of a plan. Each is expanded once, in the plan's order.
pub(super) struct Source<'a> {
    /// One decoder for all objects, since a decoder allocates buffers of the size of the largest block.
    frame: FrameDecoder<Tail<Reader<'a>>>,
}

impl<'a> Source<'a> {
    /// At most `ahead` requests are made at a time.
    pub(super) fn new(
        store: Arc<dyn Store>,
        runtime: Handle,
        objects: impl Iterator<Item = &'a Object> + 'a,
        ahead: usize,
    ) -> Source<'a> {
        let chunks = |object: &'a Object| {
            let starts = (0..object.len).step_by(CHUNK as usize);
            starts.map(move |at| (object, at..at.saturating_add(CHUNK).min(object.len)))
        };
        let reader = Reader {
            store,
            runtime,
            waiting: Box::new(objects.flat_map(chunks)),
            ahead: ahead.max(1),
            fetching: VecDeque::new(),
            fetched: 0,
            left: 0,
            chunk: Bytes::new(),
            failure: None,
        };
        Source { frame: FrameDecoder::new(Tail::new(reader)) }
    }

    /// Returns the number of bytes that were read from the store.
    pub(super) fn fetched(&self) -> u64 {
        self.frame.get_ref().get_ref().fetched
    }

    /// Expands the next object into a file, from byte `from` on. Returns the number of expanded bytes. After an
    /// error there is no next object.
    ///
    /// Litestream writes an object as one LZ4 frame with a checksum of its content, and nothing else. `expand`
    /// refuses objects of any other form.
    pub(super) fn expand(
        &mut self,
        object: &Object,
        to: &File,
        from: u64,
        path: &Path,
    ) -> Result<u64, Error> {
        let len = self.expand_frame(object, |bytes, at| {
            to.write_all_at(bytes, from.saturating_add(at)).map_err(failed("writing", path))
        })?;
        if self.reader().is_at_end() {
            Ok(len)
        } else {
            Err(Error::object(object, "there are bytes behind its end"))
        }
    }

    /// Expands the frame at the beginning of an object. `write` gets each part and its offset.
    fn expand_frame(
        &mut self,
        object: &Object,
        mut write: impl FnMut(&[u8], u64) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        match self.reader().begin(object) {
            Ok([magic @ .., flags]) if magic == lz4::MAGIC && flags & CONTENT_CHECKSUM != 0 => {}
            Ok(_) => {
                let what = "it is no LZ4 frame with a checksum of its content";
                return Err(Error::object(object, what));
            }
            Err(error) => return Err(self.failed(object, &error)),
        }
        let mut written: u64 = 0;
        loop {
            let before = self.frame.get_ref().count();
            let bytes = match self.frame.fill_buf() {
                Ok([]) => break self.end(object, before).map(|()| written),
                Ok(bytes) => bytes,
                Err(error) => break Err(self.failed(object, &error)),
            };
            write(bytes, written)?;
            let n = bytes.len();
            written = written.saturating_add(n as u64);
            self.frame.consume(n);
        }
    }

    /// Checks that the decoder, which gives no more bytes, has come to the end of the frame. The decoder had
    /// read `before` bytes before its last step.
    fn end(&self, object: &Object, before: u64) -> Result<(), Error> {
        match self.frame.get_ref().end(before) {
            End::Checksum => Ok(()),
            End::Early => Err(Error::object(object, CUT_SHORT)),
            End::Mark | End::Other => Err(Error::object(object, "its LZ4 frame has no end")),
        }
    }

    /// Turns an I/O error of the decoder into the error of the store or the object.
    fn failed(&mut self, object: &Object, error: &io::Error) -> Error {
        match self.reader().failure.take() {
            Some(failure) => failure.into(),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Error::object(object, CUT_SHORT)
            }
            None => Error::object(object, format!("it cannot be expanded: {error}")),
        }
    }

    fn reader(&mut self) -> &mut Reader<'a> {
        self.frame.get_mut().get_mut()
    }
}

/// Reads the objects one after the other and fetches a few requests ahead.
struct Reader<'a> {
    store: Arc<dyn Store>,
    runtime: Handle,
    waiting: Box<dyn Iterator<Item = (&'a Object, Range<u64>)> + 'a>,
    ahead: usize,
    fetching: VecDeque<JoinHandle<Result<Bytes, store::Error>>>,
    fetched: u64,
    /// Bytes of the current object that `chunk` has not received yet.
    left: u64,
    chunk: Bytes,
    /// Error of the store, if a request failed.
    failure: Option<store::Error>,
}

impl Reader<'_> {
    /// Goes on to the next object and returns its first bytes, which remain to be read.
    fn begin(&mut self, object: &Object) -> io::Result<[u8; 5]> {
        self.left = object.len;
        self.chunk = Bytes::new();
        self.fill()?;
        self.chunk.first_chunk().copied().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn is_at_end(&self) -> bool {
        self.left == 0 && self.chunk.is_empty()
    }

    /// Fills the chunk if it is empty, except at the end of the object.
    fn fill(&mut self) -> io::Result<()> {
        if !self.chunk.is_empty() || self.left == 0 {
            return Ok(());
        }
        match self.next() {
            Some(Ok(chunk)) => {
                let len = chunk.len() as u64;
                self.left = self.left.saturating_sub(len);
                self.fetched = self.fetched.saturating_add(len);
                self.chunk = chunk;
                Ok(())
            }
            Some(Err(error)) => {
                let text = error.to_string();
                self.failure = Some(error);
                Err(io::Error::other(text))
            }
            None => Err(io::Error::other("it is not in the plan")),
        }
    }

    /// Returns the next chunk, or `None` behind the last object.
    fn next(&mut self) -> Option<Result<Bytes, store::Error>> {
        while self.fetching.len() < self.ahead
            && let Some((object, range)) = self.waiting.next()
        {
            let (store, path) = (Arc::clone(&self.store), object.path.clone());
            self.fetching.push_back(self.runtime.spawn(fetch(store, path, range)));
        }
        let fetched = self.runtime.block_on(self.fetching.pop_front()?);
        Some(fetched.unwrap_or_else(|error| {
            let text = "a read was given up because the program is stopping";
            Err(store::Error::caused(store::ErrorKind::Other, text, error))
        }))
    }
}

/// Fetches exactly the bytes of this range.
async fn fetch(
    store: Arc<dyn Store>,
    path: String,
    range: Range<u64>,
) -> Result<Bytes, store::Error> {
    let len = range.end.saturating_sub(range.start);
    let bytes = store.object(&path, range).await?;
    if bytes.len() as u64 == len {
        return Ok(bytes);
    }
    let text = format!("{path} of {} is shorter than it was when it was listed", store.url());
    Err(store::Error::new(store::ErrorKind::Other, text))
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let n = self.chunk.as_ref().read(buffer)?;
        bytes::Buf::advance(&mut self.chunk, n);
        Ok(n)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        for fetching in &self.fetching {
            fetching.abort();
        }
    }
}
