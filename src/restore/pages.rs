//! From page frames to pages in the output: stretches of a file's frames are handed to workers,
//! which fetch, expand, check and write them.

use std::fs::File;
use std::mem::size_of;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::error::Error;
use super::fetch::{self, Opened, Source};
use super::output::failed;
use super::verify::{Claims, FileProof};
use crate::ltx::checksum::{self, FileDigest};
use crate::ltx::index::Reader;
use crate::ltx::{DatabaseChecksum, page};
use crate::units::{PageSize, Pgno};

/// A stretch is cut when it is this long in bytes.
const STRETCH_LEN: u64 = 4 << 20;

/// A stretch is cut when it holds this many pages, however well they compress.
const STRETCH_PAGES: usize = 16 << 10;

/// Pages that lie side by side are written together, up to this many bytes.
const RUN_LEN: usize = 256 << 10;

/// Consecutive page frames of one file.
pub(super) struct Stretch {
    proof: Arc<FileProof>,
    /// Its place among the stretches of the file's digest.
    number: usize,
    frames: Frames,
    pages: Vec<Piece>,
}

enum Frames {
    /// Cut from a file that was read whole.
    Here(Bytes),
    /// On their way since the stretch was cut, so that there are more requests than threads.
    Coming(JoinHandle<Result<Bytes, Error>>),
}

impl Frames {
    fn wait(self, runtime: &Handle) -> Result<Bytes, Error> {
        match self {
            Frames::Here(bytes) => Ok(bytes),
            Frames::Coming(task) => runtime
                .block_on(task)
                .unwrap_or(Err(Error::Internal("reading a file's pages broke off"))),
        }
    }
}

struct Piece {
    pgno: Pgno,
    len: u32,
    newest: bool,
}

/// Cuts a file into stretches and sends them to the workers. `Ok(false)`: nobody takes them.
pub(super) fn cut(
    source: &Source,
    runtime: &Handle,
    opened: &Opened,
    claims: &mut Claims,
    proven: &AtomicUsize,
    workers: &Sender<Stretch>,
) -> Result<bool, Error> {
    let key = opened.key;
    let proof = Arc::new(FileProof::new(key));
    let mut head = FileDigest::new();
    head.update(&opened.header_bytes);
    proof.add(0, head, proven)?;

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
            let frames = if let Some(whole) = &opened.whole {
                Frames::Here(whole.slice(start as usize..end as usize))
            } else {
                let source = source.clone();
                Frames::Coming(runtime.spawn(async move { source.get(key, start, end).await }))
            };
            let pages = std::mem::take(&mut pages);
            let stretch = Stretch { proof: proof.clone(), number, frames, pages };
            if workers.send(stretch).is_err() {
                return Ok(false);
            }
            (number, start) = (number + 1, end);
        }
        if entry.is_none() {
            break;
        }
    }
    if start != opened.frames_end {
        return Err(Error::corrupt(key, "the page index does not reach to the end of the pages"));
    }
    let (covered, stored) = opened.trailer()?;
    let mut tail = FileDigest::new();
    tail.update(covered);
    proof.expect(number, stored);
    proof.add(number, tail, proven)?;
    Ok(true)
}

/// Where the pages go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) page_size: PageSize,
    pub(super) database: &'a File,
    pub(super) path: &'a Path,
    pub(super) page_table: Option<(&'a File, &'a Path)>,
}

/// One of the threads that do the work, with its buffers.
pub(super) struct Worker<'a> {
    runtime: &'a Handle,
    proven: &'a AtomicUsize,
    run: Run<'a>,
    scratch: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        runtime: &'a Handle,
        proven: &'a AtomicUsize,
        target: Target<'a>,
    ) -> Worker<'a> {
        let scratch = vec![0; target.page_size.bytes()];
        Worker { runtime, proven, run: Run::new(target), scratch }
    }

    pub(super) fn work(&mut self, stretch: Stretch) -> Result<(), Error> {
        let key = stretch.proof.key();
        let bytes = stretch.frames.wait(self.runtime)?;
        let mut digest = FileDigest::new();
        let mut rest = &bytes[..];
        for Piece { pgno, len, newest } in stretch.pages {
            let Some((frame, behind)) = rest.split_at_checked(len as usize) else {
                return Err(Error::truncated(key, "page frames"));
            };
            rest = behind;
            let page = if newest { self.run.slot(pgno)? } else { &mut self.scratch[..] };
            page::decode(frame, pgno, page, &mut digest)
                .map_err(|source| Error::File { key, source })?;
            if newest {
                self.run.filled(pgno);
            }
        }
        self.run.flush()?;
        stretch.proof.add(stretch.number, digest, self.proven)
    }

    /// The checksum of the pages that this worker has written.
    pub(super) fn finish(self) -> DatabaseChecksum {
        self.run.checksum
    }
}

/// Neighbouring pages on their way to the output.
struct Run<'a> {
    target: Target<'a>,
    pages: Vec<u8>,
    first: Pgno,
    count: usize,
    /// Page checksums of the run, as the page table stores them.
    table: Vec<u8>,
    checksum: DatabaseChecksum,
}

impl<'a> Run<'a> {
    fn new(target: Target<'a>) -> Run<'a> {
        Run {
            target,
            pages: vec![0; RUN_LEN.max(target.page_size.bytes())],
            first: 0,
            count: 0,
            table: Vec::new(),
            checksum: DatabaseChecksum::EMPTY,
        }
    }

    /// Room for this page.
    fn slot(&mut self, pgno: Pgno) -> Result<&mut [u8], Error> {
        let page_len = self.target.page_size.bytes();
        let continues = u64::from(pgno) == u64::from(self.first) + self.count as u64;
        if !continues || (self.count + 1) * page_len > self.pages.len() {
            self.flush()?;
            self.first = pgno;
        }
        Ok(&mut self.pages[self.count * page_len..][..page_len])
    }

    /// Takes the page that now stands in the slot.
    fn filled(&mut self, pgno: Pgno) {
        let page_len = self.target.page_size.bytes();
        let sum = checksum::page(pgno, &self.pages[self.count * page_len..][..page_len]);
        self.checksum.toggle(sum);
        if self.target.page_table.is_some() {
            self.table.extend_from_slice(&sum.0.to_le_bytes());
        }
        self.count += 1;
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        let Target { page_size, database, path, page_table } = self.target;
        let pages = &self.pages[..self.count * page_size.bytes()];
        database
            .write_all_at(pages, page_size.offset_of(self.first))
            .map_err(failed("writing", path))?;
        if let Some((file, path)) = page_table {
            let at = (u64::from(self.first) - 1) * size_of::<u64>() as u64;
            file.write_all_at(&self.table, at).map_err(failed("writing", path))?;
            self.table.clear();
        }
        self.count = 0;
        Ok(())
    }
}
