//! From page frames to pages in the output: stretches of a file's frames are handed to workers,
//! which fetch, expand, check and write them, or find them in the output, where an earlier restore
//! has written them.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::error::Error;
use super::fetch::{self, Opened, Source};
use super::output::failed;
use super::progress::Meter;
use super::record::{self, Record, Written};
use super::verify::{Claims, FileProof};
use crate::ltx::checksum::{self, Digested, FileDigest};
use crate::ltx::header::page_header;
use crate::ltx::index::Reader;
use crate::ltx::page::{self, BLOCK_SIZE_LEN, FLAG_BLOCK};
use crate::ltx::{Checksum, DatabaseChecksum, HEADER_LEN, PAGE_HEADER_LEN};
use crate::store::Key;
use crate::units::{PageSize, Pgno};

/// A stretch is cut when it is this long in bytes.
pub(super) const STRETCH_LEN: u64 = 4 << 20;

/// A stretch is cut when it holds this many pages, however well they compress.
const STRETCH_PAGES: usize = 16 << 10;

/// Pages that lie side by side are written together, up to this many bytes.
const RUN_LEN: usize = 256 << 10;

/// Consecutive page frames of one file.
pub(super) struct Stretch {
    proof: Arc<FileProof>,
    file: record::Source,
    /// Its place among the stretches of the file's digest.
    number: usize,
    /// Where its frames are in the file.
    range: (u64, u64),
    frames: Frames,
    pages: Vec<Piece>,
}

enum Frames {
    /// Said to be in the output; fetched if it is not.
    There(Written, Source),
    /// Cut from a file that was read whole.
    Here(Bytes),
    /// On their way since the stretch was cut, so that there are more requests than threads.
    Coming(JoinHandle<Result<Bytes, Error>>),
}

impl Frames {
    fn come(source: Source, key: Key, (start, end): (u64, u64), runtime: &Handle) -> Frames {
        Frames::Coming(runtime.spawn(async move { source.get(key, start, end).await }))
    }

    fn wait(self, key: Key, range: (u64, u64), runtime: &Handle) -> Result<Bytes, Error> {
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

struct Piece {
    pgno: Pgno,
    len: u32,
    newest: bool,
}

/// What the cutting of files into stretches needs to know.
pub(super) struct Cutter<'a> {
    pub(super) source: &'a Source,
    pub(super) runtime: &'a Handle,
    pub(super) proven: &'a AtomicUsize,
    pub(super) record: Option<&'a Record>,
    pub(super) meter: &'a Meter,
    pub(super) workers: Sender<Stretch>,
}

impl Cutter<'_> {
    /// Cuts a file into stretches and sends them to the workers. `Ok(false)`: nobody takes them.
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

/// The two encodings of a page frame ([`crate::ltx::page`]).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block,
    Frame,
}

impl Kind {
    fn of(frame: &[u8]) -> Kind {
        let flags = frame.get(PAGE_HEADER_LEN - 2..PAGE_HEADER_LEN);
        if flags == Some(&FLAG_BLOCK.to_be_bytes()) { Kind::Block } else { Kind::Frame }
    }

    /// Length of what the file's checksum covers before the page.
    fn prefix_len(self) -> u64 {
        match self {
            Kind::Block => (PAGE_HEADER_LEN + BLOCK_SIZE_LEN) as u64,
            Kind::Frame => PAGE_HEADER_LEN as u64,
        }
    }

    /// Digests what a frame of this length begins with.
    fn digest_prefix(self, pgno: Pgno, frame_len: u32, digest: &mut FileDigest) {
        match self {
            Kind::Block => {
                let before = (PAGE_HEADER_LEN + BLOCK_SIZE_LEN) as u32;
                digest.update(&page::block_prefix(pgno, frame_len.saturating_sub(before)));
            }
            Kind::Frame => digest.update(&page_header(pgno, 0)),
        }
    }
}

/// Whether the frames of a stretch are all of one kind: Litestream and we write files of one.
#[derive(Default)]
struct Kinds {
    first: Option<Kind>,
    mixed: bool,
}

impl Kinds {
    fn add(&mut self, frame: &[u8]) -> Kind {
        let kind = Kind::of(frame);
        self.mixed |= *self.first.get_or_insert(kind) != kind;
        kind
    }

    fn only(&self) -> Option<Kind> {
        self.first.filter(|_| !self.mixed)
    }
}

/// Where the pages go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) page_size: PageSize,
    pub(super) database: &'a File,
    pub(super) path: &'a Path,
    pub(super) page_table: Option<(&'a File, &'a Path)>,
}

/// What the workers have in common.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    pub(super) runtime: &'a Handle,
    pub(super) proven: &'a AtomicUsize,
    pub(super) target: Target<'a>,
    pub(super) record: Option<&'a Record>,
    /// Bytes of page frames that were found in the output.
    pub(super) reused: &'a AtomicU64,
    pub(super) meter: &'a Meter,
}

/// One of the threads that do the work, with its buffers.
pub(super) struct Worker<'a> {
    shared: Shared<'a>,
    run: Run<'a>,
    scratch: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: Shared<'a>) -> Worker<'a> {
        let scratch = vec![0; shared.target.page_size.bytes()];
        Worker { shared, run: Run::new(shared.target), scratch }
    }

    pub(super) fn work(&mut self, stretch: Stretch) -> Result<(), Error> {
        let (proof, number) = (stretch.proof.clone(), stretch.number);
        let len = stretch.range.1 - stretch.range.0;
        let found = match (&stretch.frames, self.shared.record) {
            (Frames::There(written, _), Some(record)) => {
                let found = self.find(&stretch.pages, *written)?;
                if found.is_some() {
                    record.keep(len);
                    self.shared.reused.fetch_add(len, Ordering::Relaxed);
                }
                found
            }
            _ => None,
        };
        let digest = match found {
            Some(digest) => digest,
            None => self.expand(stretch)?,
        };
        self.shared.meter.add(len);
        proof.add(number, digest, self.shared.proven)
    }

    /// Brings the stretch's newest pages to the output.
    fn expand(&mut self, stretch: Stretch) -> Result<Digested, Error> {
        let Stretch { file, number, range, frames, pages, .. } = stretch;
        let key = file.key;
        let bytes = frames.wait(key, range, self.shared.runtime)?;
        let mut digest = FileDigest::new();
        // For the record: without the pages that go to the output. Most stretches have no others.
        let superseded = pages.iter().any(|piece| !piece.newest);
        let mut others = self.shared.record.filter(|_| superseded).map(|_| FileDigest::new());
        let mut kinds = Kinds::default();
        let mut rest = &bytes[..];
        for Piece { pgno, len, newest } in pages {
            let Some((frame, behind)) = rest.split_at_checked(len as usize) else {
                return Err(Error::truncated(key, "page frames"));
            };
            rest = behind;
            let page = if newest { self.run.slot(pgno)? } else { &mut self.scratch[..] };
            page::decode(frame, pgno, page, &mut digest)
                .map_err(|source| Error::File { key, source })?;
            let kind = kinds.add(frame);
            if let Some(others) = &mut others {
                others.update_zeros(kind.prefix_len());
                if newest {
                    others.update_zeros(page.len() as u64);
                } else {
                    others.update(page);
                }
            }
            if newest {
                self.run.filled(pgno);
            }
        }
        self.run.flush()?;
        let digest = digest.digested();
        if let (Some(record), Some(kind)) = (self.shared.record, kinds.only()) {
            let others = others.map(|others| others.digested().crc);
            let written = Written { blocks: kind == Kind::Block, digest: digest.crc, others };
            record.note(&file, number, written, range.1 - range.0);
        }
        Ok(digest)
    }

    /// Looks for the stretch's newest pages in the output. `None` if what is there is not what was
    /// written.
    fn find(&mut self, pages: &[Piece], written: Written) -> Result<Option<Digested>, Error> {
        let kind = if written.blocks { Kind::Block } else { Kind::Frame };
        let page_len = self.shared.target.page_size.bytes();
        let mut digest = FileDigest::new();
        let mut sum = DatabaseChecksum::EMPTY;
        let mut rest = pages;
        while let Some(Piece { pgno: first, newest, .. }) = rest.first() {
            // As many as lie side by side in the output, or none of which is there.
            let most = (RUN_LEN / page_len).max(1);
            let together = rest.iter().zip(*first..).take(most);
            let count = together
                .take_while(|(piece, pgno)| piece.newest == *newest && piece.pgno == *pgno)
                .count();
            let (run, behind) = rest.split_at(count);
            rest = behind;
            if *newest && !self.run.read(*first, count)? {
                return Ok(None);
            }
            for (place, Piece { pgno, len, .. }) in run.iter().enumerate() {
                kind.digest_prefix(*pgno, *len, &mut digest);
                if *newest {
                    let page = &self.run.pages[place * page_len..][..page_len];
                    digest.update(page);
                    let page_sum = checksum::page(*pgno, page);
                    sum.toggle(page_sum);
                    self.run.enter(page_sum);
                } else {
                    digest.update_zeros(page_len as u64);
                }
            }
            self.run.first = *first;
            self.run.write_table()?;
        }
        let ours = digest.digested();
        let whole = match written.others {
            Some(crc) => ours.over(Digested { crc, ..ours }),
            None => ours,
        };
        if whole.crc != written.digest {
            return Ok(None);
        }
        self.run.checksum.merge(sum);
        Ok(Some(whole))
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
        self.enter(sum);
        self.count += 1;
    }

    /// Takes a page's checksum for the page table.
    fn enter(&mut self, sum: Checksum) {
        if self.target.page_table.is_some() {
            self.table.extend_from_slice(&sum.0.to_le_bytes());
        }
    }

    /// Reads pages back from the output. `false` if it is shorter.
    fn read(&mut self, first: Pgno, count: usize) -> Result<bool, Error> {
        let Target { page_size, database, path, .. } = self.target;
        let pages = &mut self.pages[..count * page_size.bytes()];
        match database.read_exact_at(pages, page_size.offset_of(first)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(failed("reading", path)(error)),
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        let Target { page_size, database, path, .. } = self.target;
        let pages = &self.pages[..self.count * page_size.bytes()];
        database
            .write_all_at(pages, page_size.offset_of(self.first))
            .map_err(failed("writing", path))?;
        self.count = 0;
        self.write_table()
    }

    fn write_table(&mut self) -> Result<(), Error> {
        if let Some((file, path)) = self.target.page_table {
            let at = (u64::from(self.first) - 1) * size_of::<u64>() as u64;
            file.write_all_at(&self.table, at).map_err(failed("writing", path))?;
            self.table.clear();
        }
        Ok(())
    }
}
