//! Walks over all pages of a database in one state, one slice at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use super::capture::Cursor;
use crate::border::{Reader, Snapshot};
use crate::scratch::Place;
use crate::units::{PageSize, Pgno, WalPosition};
use crate::wal::evidence::{Guard, Proven};
use crate::wal::{self, FrameHeader, FrameSet, Newest, WalHeader, WalIndex, Walk};

/// Length of a slice in bytes.
pub(super) const SLICE: usize = 1 << 20;

/// Returns the number of pages in a slice.
fn slice_pages(page_size: PageSize) -> u32 {
    (SLICE / page_size.bytes()).max(1) as u32
}

/// Returns the WAL if it exists and has the index's generation.
fn of_generation<'a>(wal: Option<&'a File>, index: &WalIndex) -> io::Result<&'a File> {
    let wal = wal.ok_or_else(|| io::Error::other("the WAL is not there"))?;
    if WalHeader::read(wal).is_none_or(|header| header.salts != index.salts) {
        return Err(io::Error::other("the WAL's file is of another generation"));
    }
    Ok(wal)
}

/// A walk in ascending page order, which holds a read transaction.
pub(super) struct Scan {
    reader: Box<dyn Reader>,
    /// The WAL that belongs to the reader's state. The walk opens the file itself, since capture's descriptor
    /// may be of an earlier WAL.
    wal: Option<File>,
    snapshot: Snapshot,
    newest: Newest,
    /// Position of the walk in `newest`, and the first page with a frame behind the slice.
    walk: Walk,
    ahead: Option<(Pgno, u32)>,
    /// Frames of the pages of the slice.
    frames: BTreeMap<Pgno, u32>,
    position: Option<WalPosition>,
    /// Guard that kept other processes from the WAL when the walk began.
    guard: Option<Guard>,
    next: Pgno,
    buffer: Vec<u8>,
}

impl Scan {
    /// Begins a walk; `wal` is the path of the WAL. Data that does not fit in memory goes to `place`.
    pub(super) fn begin(
        reader: Box<dyn Reader>,
        wal: &Path,
        guard: Option<Guard>,
        place: Option<&Place>,
    ) -> io::Result<Scan> {
        let snapshot = reader.snapshot();
        let mut frames = FrameSet::default();
        if let Some(place) = place {
            frames.spill_to(place);
        }
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
        let scan = Scan::of(reader, wal, snapshot, frames.newest, 1);
        Ok(Scan { position, guard, ..scan })
    }

    /// Begins a walk of one slice, from page `first` on. `pages` lists the page of each frame of the state, if
    /// known. Otherwise the frames' headers are read.
    pub(super) fn begin_at(
        first: Pgno,
        reader: Box<dyn Reader>,
        wal: &Path,
        pages: impl FnOnce(&WalIndex, &mut dyn FnMut(u32, Pgno)) -> bool,
    ) -> io::Result<Scan> {
        let snapshot = reader.snapshot();
        let wal = File::open(wal).ok();
        let last = first.saturating_add(slice_pages(snapshot.page_size) - 1);
        let mut frames = BTreeMap::new();
        if let (Some(index), true) = (snapshot.index, snapshot.frames() > 0) {
            let wal = of_generation(wal.as_ref(), &index)?;
            let is_in_slice = |pgno: Pgno| (first..=last).contains(&pgno);
            let known = pages(&index, &mut |frame, pgno| {
                if is_in_slice(pgno) {
                    frames.insert(pgno, frame);
                }
            });
            if !known {
                frames.clear();
                for frame in 1..=index.max_frame {
                    let pgno = FrameHeader::read(wal, snapshot.page_size, frame)?.pgno;
                    if is_in_slice(pgno) {
                        frames.insert(pgno, frame);
                    }
                }
            }
        }
        let scan = Scan::of(reader, wal, snapshot, Newest::default(), first);
        Ok(Scan { frames, ..scan })
    }

    fn of(
        reader: Box<dyn Reader>,
        wal: Option<File>,
        snapshot: Snapshot,
        newest: Newest,
        next: Pgno,
    ) -> Scan {
        let (walk, ahead, frames) = (newest.walk(), None, BTreeMap::new());
        let (position, guard, buffer) = (None, None, Vec::new());
        Scan { reader, wal, snapshot, newest, walk, ahead, frames, position, guard, next, buffer }
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

    /// Returns the next page of the walk.
    pub(super) fn next(&self) -> Pgno {
        self.next
    }

    /// True if this page is in the next slice.
    pub(super) fn may_step_to(&self, pgno: Pgno) -> bool {
        let slice = slice_pages(self.page_size());
        (self.next..=self.next.saturating_add(slice - 1)).contains(&pgno)
    }

    /// Returns the bytes of the database that were walked, and the bytes in all.
    pub(super) fn walked(&self) -> (u64, u64) {
        let page_len = self.page_size().bytes() as u64;
        let done = u64::from(self.next.saturating_sub(1));
        (
            done.saturating_mul(page_len),
            u64::from(self.snapshot.page_count).saturating_mul(page_len),
        )
    }

    /// Returns the position in the WAL at which the state ends; `None` if there is no frame.
    pub(super) fn position(&self) -> Option<WalPosition> {
        self.position
    }

    /// True if the last frame of the state is still in place, by its checksum.
    pub(super) fn has_last(&self) -> bool {
        let (Some(wal), Some(at)) = (&self.wal, self.position) else { return false };
        wal::checksum_at(wal, self.page_size(), at.frame).is_ok_and(|now| now == at.checksum)
    }

    /// Returns the position at which capture continues behind the state.
    pub(super) fn end(&self) -> Cursor {
        let Some(index) = self.snapshot.index else { return Cursor::Unknown };
        Cursor::At(match self.position {
            Some(at) => Proven::end_of(&index, at, self.guard),
            None => Proven::beginning(index.salts, index.change, self.guard),
        })
    }

    /// Passes the next slice of pages to `each`, without the lock page. `false` when all pages are done.
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
        self.take_frames(last)?;
        let pages = (last - self.next + 1) as usize;
        self.buffer.resize(pages * page_len, 0);
        self.read_main()?;
        let lock_page = self.page_size().lock_page();
        for (pgno, page) in (self.next..=last).zip(self.buffer.chunks_exact_mut(page_len)) {
            if let (Some(frame), Some(wal)) = (self.frames.get(&pgno), &self.wal) {
                wal::read_frame_page(wal, self.snapshot.page_size, *frame, page)?;
            }
            if pgno != lock_page {
                each(pgno, page)?;
            }
        }
        self.next = last.saturating_add(1);
        self.frames.clear();
        Ok(self.next <= count)
    }

    /// Takes the frames of the pages up to this page.
    fn take_frames(&mut self, last: Pgno) -> io::Result<()> {
        loop {
            self.ahead = match self.ahead.take() {
                None => self.walk.next(&self.newest)?,
                ahead => ahead,
            };
            match self.ahead {
                Some((pgno, frame)) if pgno <= last => self.frames.insert(pgno, frame),
                _ => return Ok(()),
            };
            self.ahead = None;
        }
    }

    /// Fills the buffer from the database file. Skips pages that have a frame in the WAL: the file may end
    /// before them.
    fn read_main(&mut self) -> io::Result<()> {
        let page_len = self.page_size().bytes();
        let lock_page = self.page_size().lock_page();
        let in_file = |pgno: Pgno| !self.frames.contains_key(&pgno) && pgno != lock_page;
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
        match (self.newest.get(pgno)?, &self.wal) {
            (Some(frame), Some(wal)) => {
                wal::read_frame_page(wal, self.snapshot.page_size, frame, &mut page)?;
            }
            _ => {
                let offset = self.snapshot.page_size.offset_of(pgno);
                self.reader.read_main(offset, &mut page)?;
            }
        }
        Ok(page)
    }
}
