//! Walking over all pages of a database in one state, a slice at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use super::capture::Cursor;
use crate::border::{Reader, Snapshot};
use crate::units::{PageSize, Pgno, WalPosition};
use crate::wal::evidence::{Guard, Proven};
use crate::wal::{self, FrameSet, WalHeader, WalIndex};

/// Pages of one slice, in bytes.
pub(super) const SLICE: usize = 1 << 20;

/// How many pages a slice has.
fn slice_pages(page_size: PageSize) -> u32 {
    (SLICE / page_size.bytes()).max(1) as u32
}

/// The WAL, if it is there and of the index's generation.
fn of_generation<'a>(wal: Option<&'a File>, index: &WalIndex) -> io::Result<&'a File> {
    let wal = wal.ok_or_else(|| io::Error::other("the WAL is not there"))?;
    if WalHeader::read(wal).is_none_or(|header| header.salts != index.salts) {
        return Err(io::Error::other("the WAL's file is of another generation"));
    }
    Ok(wal)
}

/// A walk in ascending page order; holds a read transaction.
pub(super) struct Scan {
    reader: Box<dyn Reader>,
    /// The WAL that belongs to the reader's state: opened for this walk, since the one that capture
    /// has may be of an earlier time.
    wal: Option<File>,
    snapshot: Snapshot,
    newest: BTreeMap<Pgno, u32>,
    position: Option<WalPosition>,
    /// What kept others from the WAL when the walk began.
    guard: Option<Guard>,
    next: Pgno,
    buffer: Vec<u8>,
}

impl Scan {
    /// Begins a walk; the WAL is at this path.
    pub(super) fn begin(
        reader: Box<dyn Reader>,
        wal: &Path,
        guard: Option<Guard>,
    ) -> io::Result<Scan> {
        let snapshot = reader.snapshot();
        let mut frames = FrameSet::default();
        let mut position = None;
        let wal = File::open(wal).ok();
        if let (Some(index), true) = (snapshot.index, snapshot.frames() > 0) {
            let wal = of_generation(wal.as_ref(), &index)?;
            frames.extend(wal, snapshot.page_size, 1, index.max_frame)?;
            position = Some(WalPosition {
                salts: index.salts,
                frame: index.max_frame,
                checksum: frames.checksum,
            });
        }
        let newest = frames.newest;
        Ok(Scan { reader, wal, snapshot, newest, position, guard, next: 1, buffer: Vec::new() })
    }

    /// Begins a walk of one slice, from page `first` on. `pages` gives the pages that the frames of the
    /// state hold, from the first frame on, if they are known; else the frames' headers are read.
    pub(super) fn begin_at(
        first: Pgno,
        reader: Box<dyn Reader>,
        wal: &Path,
        pages: impl FnOnce(&WalIndex) -> Option<Vec<Pgno>>,
    ) -> io::Result<Scan> {
        let snapshot = reader.snapshot();
        let wal = File::open(wal).ok();
        let last = first.saturating_add(slice_pages(snapshot.page_size) - 1);
        let is_in_slice = |pgno: &Pgno| (first..=last).contains(pgno);
        let mut newest = BTreeMap::new();
        if let (Some(index), true) = (snapshot.index, snapshot.frames() > 0) {
            let wal = of_generation(wal.as_ref(), &index)?;
            if let Some(pages) = pages(&index) {
                let numbered = pages.into_iter().zip(1..);
                newest.extend(numbered.filter(|(pgno, _)| is_in_slice(pgno)));
            } else {
                let mut frames = FrameSet::default();
                frames.extend(wal, snapshot.page_size, 1, index.max_frame)?;
                newest = frames.newest;
                newest.retain(|pgno, _| is_in_slice(pgno));
            }
        }
        let (position, guard, buffer) = (None, None, Vec::new());
        Ok(Scan { reader, wal, snapshot, newest, position, guard, next: first, buffer })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.snapshot.page_size
    }

    pub(super) fn index_now(&self) -> Option<WalIndex> {
        self.reader.index_now()
    }

    pub(super) fn is_intact(&self) -> bool {
        self.reader.is_intact()
    }

    /// The page behind those that were walked.
    pub(super) fn next(&self) -> Pgno {
        self.next
    }

    /// How many bytes of the database were walked, of how many.
    pub(super) fn walked(&self) -> (u64, u64) {
        let page_len = self.page_size().bytes() as u64;
        let done = u64::from(self.next.saturating_sub(1));
        (
            done.saturating_mul(page_len),
            u64::from(self.snapshot.page_count).saturating_mul(page_len),
        )
    }

    /// Where in the WAL the state ends; `None` when there is no frame.
    pub(super) fn position(&self) -> Option<WalPosition> {
        self.position
    }

    /// Where capture goes on behind the state.
    pub(super) fn end(&self) -> Cursor {
        let Some(index) = self.snapshot.index else { return Cursor::Unknown };
        Cursor::At(match self.position {
            Some(at) => Proven::end_of(&index, at, self.guard),
            None => Proven::beginning(index.salts, index.change, self.guard),
        })
    }

    /// Hands the next slice of pages to `each`, without the lock page. `false` when all are done.
    pub(super) fn step<E: From<io::Error>>(
        &mut self,
        mut each: impl FnMut(Pgno, &[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let page_len = self.page_size().bytes();
        let count = self.snapshot.page_count;
        let slice = slice_pages(self.page_size());
        let last = count.min(self.next.saturating_add(slice - 1));
        if self.next > count {
            return Ok(false);
        }
        let pages = (last - self.next + 1) as usize;
        self.buffer.resize(pages * page_len, 0);
        self.read_main()?;
        let lock_page = self.page_size().lock_page();
        for (pgno, page) in (self.next..=last).zip(self.buffer.chunks_exact_mut(page_len)) {
            if let (Some(frame), Some(wal)) = (self.newest.get(&pgno), &self.wal) {
                wal::read_frame_page(wal, self.snapshot.page_size, *frame, page)?;
            }
            if pgno != lock_page {
                each(pgno, page)?;
            }
        }
        self.next = last.saturating_add(1);
        Ok(self.next <= count)
    }

    /// Fills the buffer from the database file, without the pages that the WAL has: the file may
    /// end before them.
    fn read_main(&mut self) -> io::Result<()> {
        let page_len = self.page_size().bytes();
        let lock_page = self.page_size().lock_page();
        let in_file = |pgno: Pgno| !self.newest.contains_key(&pgno) && pgno != lock_page;
        let pages = self.buffer.len() / page_len;
        let mut at = 0;
        while at < pages {
            let first = self.next + at as u32;
            let run = (0..pages - at).take_while(|i| in_file(first + *i as u32)).count();
            if run > 0 {
                let offset = self.snapshot.page_size.offset_of(first);
                let bytes = &mut self.buffer[at * page_len..(at + run) * page_len];
                self.reader.read_main(offset, bytes)?;
            }
            at += run.max(1);
        }
        Ok(())
    }

    /// Reads one page of the state.
    pub(super) fn page(&mut self, pgno: Pgno) -> io::Result<Vec<u8>> {
        let mut page = vec![0; self.page_size().bytes()];
        match (self.newest.get(&pgno), &self.wal) {
            (Some(frame), Some(wal)) => {
                wal::read_frame_page(wal, self.snapshot.page_size, *frame, &mut page)?;
            }
            _ => {
                let offset = self.snapshot.page_size.offset_of(pgno);
                self.reader.read_main(offset, &mut page)?;
            }
        }
        Ok(page)
    }
}
