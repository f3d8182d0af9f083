//! Reads the outer parts of a file: its header, its page index, its trailer.
//!
//! [`Opener`] opens files a few ahead of their turn, so that many small files do not cost a round trip each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::error::Error;
use super::record::Left;
use crate::ltx::index::{self, Entry, Mark, Reader, TAIL_LEN};
use crate::ltx::{self, Checksum, HEADER_LEN, Header, MIN_FILE_LEN, PAGE_HEADER_LEN, page};
use crate::store::{FileInfo, Key, Store};

/// Length in bytes at which a stretch of page frames is cut.
pub(super) const STRETCH_LEN: u64 = 4 << 20;

/// Files up to this length in bytes are read in one request.
const WHOLE_LEN: u64 = 1 << 20;

/// Files up to this length in bytes are read in one request even if the output already has pages of them. The
/// outer parts alone would take two requests.
const WHOLE_AGAIN_LEN: u64 = 64 << 10;

/// Returns the number of requests that a file of this length takes.
///
/// The number is too small for pages that compress to almost nothing.
pub fn requests(file: &FileInfo) -> u64 {
    if file.len <= WHOLE_LEN { 1 } else { 2 + file.len.div_ceil(STRETCH_LEN) }
}

/// Most bytes that are read from a file's end in the hope that they contain the whole index.
const TAIL_MAX: u64 = 2 << 20;

/// Bytes of a long index that are read at a time.
const INDEX_PIECE: u64 = 1 << 20;

/// Most bytes of an index entry: a page number of 32 bits, an offset and a length.
const ENTRY_MAX: u64 = 20;

/// A store, with counters of the bytes and requests.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) store: Arc<dyn Store>,
    fetched: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
}

impl Source {
    pub(super) fn new(store: Arc<dyn Store>) -> Source {
        Source { store, fetched: Arc::default(), requests: Arc::default() }
    }

    /// Returns the number of bytes read so far.
    pub(super) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Returns the number of requests for files so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Reads exactly the bytes of this range. Fewer or more bytes mean that the file differs from the listing.
    pub(super) async fn get(&self, key: Key, start: u64, end: u64) -> Result<Bytes, Error> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = self.store.get(key, Some(start..end)).await?;
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        match (bytes.len() as u64).cmp(&(end - start)) {
            std::cmp::Ordering::Equal => Ok(bytes),
            std::cmp::Ordering::Less => Err(Error::truncated(key, "bytes")),
            std::cmp::Ordering::Greater => {
                Err(Error::corrupt(key, "the store sent more of it than was asked for"))
            }
        }
    }

    /// Reads from `start` to the end of the file, which must have the length of the listing.
    async fn get_end(&self, file: FileInfo, start: u64) -> Result<Bytes, Error> {
        let range = start..file.len.saturating_add(1);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = self.store.get(file.key, Some(range)).await?;
        self.check_end(file, start, bytes)
    }

    /// Reads each of these files as a whole.
    async fn get_whole(&self, files: &[FileInfo]) -> Vec<Result<Bytes, Error>> {
        // The range asks for one byte more than the listing's length, which shows whether the file is longer.
        let wanted = files.iter().map(|file| (file.key, 0..file.len.saturating_add(1))).collect();
        self.requests.fetch_add(files.len() as u64, Ordering::Relaxed);
        let each = self.store.get_each(wanted).await;
        files.iter().zip(each).map(|(file, bytes)| self.check_end(*file, 0, bytes?)).collect()
    }

    fn check_end(&self, file: FileInfo, start: u64, bytes: Bytes) -> Result<Bytes, Error> {
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        match (bytes.len() as u64).cmp(&(file.len - start)) {
            std::cmp::Ordering::Equal => Ok(bytes),
            std::cmp::Ordering::Less => Err(Error::truncated(file.key, "bytes")),
            std::cmp::Ordering::Greater => {
                Err(Error::corrupt(file.key, "it is longer than the listing says"))
            }
        }
    }
}

/// The outer parts of a file, checked against each other and against its name.
pub(super) struct Opened {
    pub(super) key: Key,
    /// Length of the file in bytes.
    pub(super) len: u64,
    pub(super) header: Header,
    pub(super) header_bytes: [u8; HEADER_LEN],
    /// The bytes from the six zero bytes behind the pages to the end of the file.
    pub(super) tail: Bytes,
    /// Offset at which the page frames end and the tail begins.
    pub(super) frames_end: u64,
    /// The whole file, if the file is small.
    pub(super) whole: Option<Bytes>,
}

impl Opened {
    /// Returns the varints of the index.
    pub(super) fn index(&self) -> &[u8] {
        let end = self.tail.len().saturating_sub(TAIL_LEN);
        self.tail.get(PAGE_HEADER_LEN..end).unwrap_or_default()
    }

    /// Returns the part of the tail that the file checksum covers, and the checksum.
    pub(super) fn trailer(&self) -> Result<(&[u8], Checksum), Error> {
        match self.tail.split_last_chunk::<8>() {
            Some((covered, stored)) => Ok((covered, Checksum(u64::from_be_bytes(*stored)))),
            None => Err(Error::truncated(self.key, "trailer")),
        }
    }
}

/// Reads a file's header, which must name the same TXIDs as the file's name.
pub(super) async fn header(source: &Source, key: Key) -> Result<Header, Error> {
    let bytes = source.get(key, 0, HEADER_LEN as u64).await?;
    let head = bytes.first_chunk::<HEADER_LEN>().ok_or(Error::truncated(key, "header"))?;
    decode_header(head, key)
}

fn decode_header(bytes: &[u8; HEADER_LEN], key: Key) -> Result<Header, Error> {
    let header = Header::decode(bytes).map_err(|source| Error::File { key, source })?;
    if (header.min_txid, header.max_txid) != (key.name.min, key.name.max) {
        return Err(Error::corrupt(
            key,
            format!("it says that it holds {} to {}", header.min_txid, header.max_txid),
        ));
    }
    Ok(header)
}

/// Opens files one after the other. Small files are read with one call of the store.
async fn open_batch(
    source: Source,
    batch: Vec<(FileInfo, bool)>,
) -> VecDeque<Result<Opened, Error>> {
    let is_whole = |(file, again): &&(FileInfo, bool)| {
        check_len(file).is_ok() && file.len <= if *again { WHOLE_AGAIN_LEN } else { WHOLE_LEN }
    };
    let small: Vec<FileInfo> = batch.iter().filter(is_whole).map(|(file, _)| *file).collect();
    let mut whole = source.get_whole(&small).await.into_iter();
    let mut opened = VecDeque::with_capacity(batch.len());
    for entry in &batch {
        let bytes = if is_whole(&entry) { whole.next() } else { None };
        opened.push_back(open(&source, entry.0, bytes).await);
    }
    opened
}

fn check_len(file: &FileInfo) -> Result<(), Error> {
    match file.len {
        0 => Err(Error::corrupt(file.key, "it is empty, or a folder or link and no file")),
        len if len < MIN_FILE_LEN => Err(Error::truncated(file.key, "header")),
        _ => Ok(()),
    }
}

/// Opens a file. `whole` is its contents, if they were read already.
async fn open(
    source: &Source,
    file: FileInfo,
    whole: Option<Result<Bytes, Error>>,
) -> Result<Opened, Error> {
    let key = file.key;
    let refuse = |source| Error::File { key, source };
    check_len(&file)?;
    let (end_start, end, front) = if let Some(whole) = whole.transpose()? {
        (0, whole.clone(), whole)
    } else {
        let start = file.len - (file.len / 64 + 4096).min(TAIL_MAX);
        let (end, front) =
            tokio::try_join!(source.get_end(file, start), source.get(key, 0, HEADER_LEN as u64))?;
        (start, end, front)
    };
    let Some(header_bytes) = front.first_chunk::<HEADER_LEN>() else {
        return Err(Error::truncated(key, "header"));
    };
    let header = decode_header(header_bytes, key)?;
    let (index_start, index_len) = index::locate(file.len, &end).map_err(refuse)?;
    // The index is the one part that is held whole in memory. It may be as long as the pages need, and no
    // longer.
    let most = (u64::from(header.commit) + 1).saturating_mul(ENTRY_MAX).min(index_start);
    if index_len > most {
        return Err(Error::corrupt(key, format!("a page index of {index_len} bytes")));
    }
    let frames_end = index_start - PAGE_HEADER_LEN as u64;
    let tail = if let Some(at) = frames_end.checked_sub(end_start) {
        end.slice(at as usize..)
    } else {
        let mut tail = index_front(source, key, &header, frames_end, end_start).await?;
        tail.extend_from_slice(&end);
        Bytes::from(tail)
    };
    if !tail.starts_with(&[0; PAGE_HEADER_LEN]) {
        return Err(Error::corrupt(key, "its pages do not end where the index begins"));
    }
    let whole = (end_start == 0).then_some(end);
    Ok(Opened { key, len: file.len, header, header_bytes: *header_bytes, tail, frames_end, whole })
}

/// Reads the part of a file's index that is before `end_start`, and the end mark of the pages in front of it.
///
/// The index comes in pieces, and each piece is checked before the next is requested. So a false length takes
/// no memory, even if the index lies in a hole of a sparse file.
async fn index_front(
    source: &Source,
    key: Key,
    header: &Header,
    frames_end: u64,
    end_start: u64,
) -> Result<Vec<u8>, Error> {
    let refuse = |source| Error::File { key, source };
    let (mut bytes, mut mark) = (Vec::new(), Mark::default());
    let (mut at, mut walked) = (frames_end, PAGE_HEADER_LEN);
    while at < end_start {
        let next = end_start.min(at.saturating_add(INDEX_PIECE));
        bytes.extend_from_slice(&source.get(key, at, next).await?);
        at = next;
        let rest = bytes.get(walked..).unwrap_or_default();
        let check = |entry: Entry| check_entry(&entry, header, frames_end);
        mark = Reader::resume(rest, mark).skip_whole(check).map_err(refuse)?;
        walked += mark.walked;
    }
    Ok(bytes)
}

/// Checks that an entry of the index can stand for a page frame of this file.
pub(super) fn check_entry(
    entry: &Entry,
    header: &Header,
    frames_end: u64,
) -> Result<(), ltx::Error> {
    let Entry { pgno, offset, len } = *entry;
    let corrupt = |what: String| Err(ltx::Error::Corrupt(what));
    let possible = page::min_page_frame_len(header.page_size)
        ..=page::max_page_frame_len(header.page_size) as u64;
    if !possible.contains(&len) || offset.saturating_add(len) > frames_end {
        return corrupt(format!("the page index gives page {pgno} {len} bytes"));
    }
    if pgno > header.commit {
        return corrupt(format!("it holds page {pgno} of a database of {} pages", header.commit));
    }
    if pgno == header.page_size.lock_page() {
        return corrupt(format!("it holds page {pgno}, the lock page"));
    }
    Ok(())
}

/// Opens files in order, a few ahead of the file that is asked for.
pub(super) struct Opener<'a> {
    source: &'a Source,
    runtime: &'a Handle,
    waiting: VecDeque<FileInfo>,
    left: &'a Left,
    ahead: usize,
    opening: VecDeque<JoinHandle<VecDeque<Result<Opened, Error>>>>,
    opened: VecDeque<Result<Opened, Error>>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(
        source: &'a Source,
        runtime: &'a Handle,
        files: impl IntoIterator<Item = FileInfo>,
        left: &'a Left,
        ahead: usize,
    ) -> Opener<'a> {
        let waiting = files.into_iter().collect();
        let (opening, opened) = (VecDeque::new(), VecDeque::new());
        Opener { source, runtime, waiting, left, ahead, opening, opened }
    }

    pub(super) fn next(&mut self) -> Option<Result<Opened, Error>> {
        if let Some(opened) = self.opened.pop_front() {
            return Some(opened);
        }
        while self.opening.len() < self.ahead.max(1)
            && let Some(batch) = self.next_batch()
        {
            self.opening.push_back(self.runtime.spawn(open_batch(self.source.clone(), batch)));
        }
        let opening = self.opening.pop_front()?;
        match self.runtime.block_on(opening) {
            Ok(opened) => self.opened = opened,
            Err(_) => return Some(Err(Error::Internal("reading a file's index broke off"))),
        }
        self.opened.pop_front()
    }

    /// Takes the files of the next batch: as many as the store reads best at a time, and as memory allows.
    ///
    /// The flag of a file is true if the output already has pages of it. Perhaps only its outer parts are
    /// needed then.
    fn next_batch(&mut self) -> Option<Vec<(FileInfo, bool)>> {
        let (mut batch, mut bytes) = (Vec::new(), 0u64);
        while let Some(file) = self.waiting.front() {
            bytes = file.len.saturating_add(bytes);
            let more = batch.len() < self.source.store.at_a_time() && bytes <= WHOLE_LEN;
            if !batch.is_empty() && !more {
                break;
            }
            let again = self.left.has(file.key, file.len);
            batch.extend(self.waiting.pop_front().map(|file| (file, again)));
        }
        (!batch.is_empty()).then_some(batch)
    }
}

impl Drop for Opener<'_> {
    fn drop(&mut self) {
        for opening in &self.opening {
            opening.abort();
        }
    }
}
