//! Cuts the page frames of a file into stretches, which are fetched and expanded independently.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::error::Error;
use super::fetch::{self, Opened, STRETCH_LEN, Source};
use super::progress::Meter;
use super::record::{self, Record, Written};
use super::verify::{Claims, FileProof};
use crate::ltx::HEADER_LEN;
use crate::ltx::checksum::FileDigest;
use crate::ltx::index::Reader;
use crate::store::Key;
use crate::units::Pgno;

/// A stretch is cut when it holds this many pages, however well the pages compress.
const STRETCH_PAGES: usize = 16 << 10;

/// Consecutive page frames of one file.
pub(super) struct Stretch {
    pub(super) proof: Arc<FileProof>,
    pub(super) file: record::Source,
    /// Number of its digest among the digests of the file; the header has number 0.
    pub(super) number: usize,
    /// First byte of its frames in the file, and the byte behind them.
    pub(super) range: (u64, u64),
    pub(super) frames: Frames,
    pub(super) pages: Vec<Piece>,
}

pub(super) enum Frames {
    /// The record says that the pages are in the output. The frames are fetched if the pages are not there.
    There(Written, Source),
    /// Cut from a file that was read whole.
    Here(Bytes),
    /// Requested when the stretch was cut, so that there are more requests than threads.
    Coming(JoinHandle<Result<Bytes, Error>>),
}

impl Frames {
    fn come(source: Source, key: Key, (start, end): (u64, u64), runtime: &Handle) -> Frames {
        Frames::Coming(runtime.spawn(async move { source.get(key, start, end).await }))
    }

    pub(super) fn wait(
        self,
        key: Key,
        range: (u64, u64),
        runtime: &Handle,
    ) -> Result<Bytes, Error> {
        match self {
            Frames::There(_, source) => {
                Frames::come(source, key, range, runtime).wait(key, range, runtime)
            }
            Frames::Here(bytes) => Ok(bytes),
            Frames::Coming(task) => runtime
                .block_on(task)
                .unwrap_or(Err(Error::Internal("reading a file's pages broke off"))),
        }
    }
}

/// One frame of a stretch.
pub(super) struct Piece {
    pub(super) pgno: Pgno,
    /// Length of the frame in bytes.
    pub(super) len: u32,
    /// True if no newer file has the page.
    pub(super) newest: bool,
}

/// Cuts files into stretches for the workers.
pub(super) struct Cutter<'a> {
    pub(super) source: &'a Source,
    pub(super) runtime: &'a Handle,
    pub(super) proven: &'a AtomicUsize,
    pub(super) record: Option<&'a Record>,
    pub(super) meter: &'a Meter,
    pub(super) workers: Sender<Stretch>,
}

impl Cutter<'_> {
    /// Cuts a file into stretches and sends them to the workers. Returns `Ok(false)` if no worker takes them.
    pub(super) fn cut(&self, opened: &Opened, claims: &mut Claims) -> Result<bool, Error> {
        let key = opened.key;
        let proof = Arc::new(FileProof::new(key));
        let mut head = FileDigest::new();
        head.update(&opened.header_bytes);
        proof.add(0, head.digested(), self.proven)?;
        let (covered, stored) = opened.trailer()?;
        let file = record::Source { key, len: opened.len, checksum: stored };

        claims.next_file(opened.header.commit);
        let mut reader = Reader::new(opened.index());
        let mut number = 1;
        let mut start = reader.end_offset();
        let mut pages = Vec::new();
        loop {
            let entry = reader.next().transpose().map_err(|source| Error::File { key, source })?;
            if let Some(entry) = entry {
                fetch::check_entry(&entry, &opened.header, opened.frames_end)
                    .map_err(|source| Error::File { key, source })?;
                let newest = claims.claim(entry.pgno);
                pages.push(Piece { pgno: entry.pgno, len: entry.len as u32, newest });
            }
            let end = reader.end_offset();
            let full = end - start >= STRETCH_LEN || pages.len() >= STRETCH_PAGES;
            if full || (entry.is_none() && !pages.is_empty()) {
                let frames = self.frames(opened, &file, number, (start, end));
                let (proof, pages) = (proof.clone(), std::mem::take(&mut pages));
                let stretch = Stretch { proof, file, number, range: (start, end), frames, pages };
                if self.workers.send(stretch).is_err() {
                    return Ok(false);
                }
                (number, start) = (number + 1, end);
            }
            if entry.is_none() {
                break;
            }
        }
        if start != opened.frames_end {
            let what = "the page index does not reach to the end of the pages";
            return Err(Error::corrupt(key, what));
        }
        let mut tail = FileDigest::new();
        tail.update(covered);
        proof.expect(number, stored);
        proof.add(number, tail.digested(), self.proven)?;
        self.meter.add((HEADER_LEN + opened.tail.len()) as u64);
        Ok(true)
    }

    fn frames(
        &self,
        opened: &Opened,
        file: &record::Source,
        number: usize,
        range: (u64, u64),
    ) -> Frames {
        if let Some(whole) = &opened.whole {
            return Frames::Here(whole.slice(range.0 as usize..range.1 as usize));
        }
        match self.record.and_then(|record| record.find(file, number)) {
            Some(written) => Frames::There(written, self.source.clone()),
            None => Frames::come(self.source.clone(), file.key, range, self.runtime),
        }
    }
}
