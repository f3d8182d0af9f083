//! Brings page frames as pages to the output.
//!
//! Workers take stretches of a file's frames. A worker expands, checks and writes the pages of a stretch, or
//! finds them in the output, where an earlier restore has written them.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::runtime::Handle;

use super::cut::{Frames, Piece, Stretch};
use super::error::{Error, failed};
use super::progress::Meter;
use super::record::{Record, Written};
use crate::ltx::checksum::{self, Digested, FileDigest};
use crate::ltx::header::page_header;
use crate::ltx::page::{self, BLOCK_SIZE_LEN, FLAG_BLOCK};
use crate::ltx::{Checksum, DatabaseChecksum, PAGE_HEADER_LEN};
use crate::units::{PageSize, Pgno};

/// Most bytes of neighbouring pages that are written together.
const RUN_LEN: usize = 256 << 10;

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

    /// Returns the length of the part before the page that the file's checksum covers.
    fn prefix_len(self) -> u64 {
        match self {
            Kind::Block => (PAGE_HEADER_LEN + BLOCK_SIZE_LEN) as u64,
            Kind::Frame => PAGE_HEADER_LEN as u64,
        }
    }

    /// Digests the prefix of a frame of this length.
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

/// Finds out if the frames of a stretch are all of one kind. Litestream and walferry write files of one kind.
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

/// Files that the pages go to.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) page_size: PageSize,
    pub(super) database: &'a File,
    pub(super) path: &'a Path,
    pub(super) page_table: Option<(&'a File, &'a Path)>,
}

/// Data that all workers use.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    pub(super) runtime: &'a Handle,
    pub(super) proven: &'a AtomicUsize,
    pub(super) target: Target<'a>,
    pub(super) record: Option<&'a Record>,
    /// Bytes of page frames whose pages were found in the output.
    pub(super) reused: &'a AtomicU64,
    pub(super) meter: &'a Meter,
}

/// A thread's state, with its buffers.
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

    /// Writes the stretch's newest pages to the output.
    fn expand(&mut self, stretch: Stretch) -> Result<Digested, Error> {
        let Stretch { file, number, range, frames, pages, .. } = stretch;
        let key = file.key;
        let bytes = frames.wait(key, range, self.shared.runtime)?;
        let mut digest = FileDigest::new();
        // Digest for the record, without the pages that go to the output. Most stretches have no other pages.
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

    /// Looks for the stretch's newest pages in the output. Returns `None` if the output differs from the
    /// record.
    fn find(&mut self, pages: &[Piece], written: Written) -> Result<Option<Digested>, Error> {
        let kind = if written.blocks { Kind::Block } else { Kind::Frame };
        let page_len = self.shared.target.page_size.bytes();
        let mut digest = FileDigest::new();
        let mut sum = DatabaseChecksum::EMPTY;
        let mut rest = pages;
        while let Some(Piece { pgno: first, newest, .. }) = rest.first() {
            // A run of pages that are side by side in the output; all of them are newest, or none.
            let most = (RUN_LEN / page_len).max(1);
            let together = rest.iter().zip(0u64..).take(most);
            let count = together
                .take_while(|(piece, place)| {
                    let pgno = u64::from(*first) + place;
                    piece.newest == *newest && u64::from(piece.pgno) == pgno
                })
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

    /// Returns the checksum of the pages that this worker wrote or found.
    pub(super) fn finish(self) -> DatabaseChecksum {
        self.run.checksum
    }
}

/// Neighbouring pages that are to be written to the output.
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

    /// Returns the buffer for this page.
    fn slot(&mut self, pgno: Pgno) -> Result<&mut [u8], Error> {
        let page_len = self.target.page_size.bytes();
        let continues = u64::from(pgno) == u64::from(self.first) + self.count as u64;
        if !continues || (self.count + 1) * page_len > self.pages.len() {
            self.flush()?;
            self.first = pgno;
        }
        Ok(&mut self.pages[self.count * page_len..][..page_len])
    }

    /// Adds the page that the buffer now holds.
    fn filled(&mut self, pgno: Pgno) {
        let page_len = self.target.page_size.bytes();
        let sum = checksum::page(pgno, &self.pages[self.count * page_len..][..page_len]);
        self.checksum.toggle(sum);
        self.enter(sum);
        self.count += 1;
    }

    /// Adds a page's checksum for the page table.
    fn enter(&mut self, sum: Checksum) {
        if self.target.page_table.is_some() {
            self.table.extend_from_slice(&sum.0.to_le_bytes());
        }
    }

    /// Reads pages back from the output. Returns `false` if the output is shorter.
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
