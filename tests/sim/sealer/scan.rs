//! A walk over all pages of a database in one state (`src/sealer/scan.rs`).

use std::collections::BTreeMap;

use walferry::units::{PageSize, Pgno, WalPosition};
use walferry::wal::evidence::{Guard, Proven};
use walferry::wal::{self, FrameSet, WalHeader, WalIndex};

use super::Cursor;
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, sh};
use crate::sqlite::{ReaderId, WalFile};
use crate::world::Cx;

/// Pages of one slice.
const SLICE: u32 = 4;

/// A walk, in a read transaction.
pub struct Scan {
    index: Option<WalIndex>,
    guard: Option<Guard>,
    pub page_size: PageSize,
    newest: BTreeMap<Pgno, u32>,
    wal: Option<WalFile>,
    pub position: Option<WalPosition>,
    pub count: u32,
    next: Pgno,
}

impl Scan {
    /// Where capture goes on behind the state.
    pub fn end(&self) -> Cursor {
        let Some(index) = self.index else { return Cursor::Unknown };
        Cursor::At(match self.position {
            Some(at) => Proven::end_of(&index, at, self.guard),
            None => Proven::beginning(index.salts, index.change, self.guard),
        })
    }

    /// The wal-index up to which it accounts for everything.
    pub fn index(&self) -> Option<WalIndex> {
        self.index
    }

    pub fn is_done(&self) -> bool {
        self.next > self.count
    }
}

impl Host {
    /// Begins a walk on a connection of the sealer's own.
    pub fn open_scan(&mut self, cx: &mut Cx, p: usize) -> Result<Scan, Stop> {
        if self.exclusive {
            return Err(Stop::Failed("the database is locked".into()));
        }
        let guard = self.guard(p);
        self.db.open(cx.now);
        self.db.read(ReaderId::Scan(p));
        // What the snapshot says is read after the transaction began.
        self.meanwhile(cx, p);
        let index = self.db.index();
        let page_size = self.db.page_size();
        let wal = self.db.open_wal();
        let replica = re!(self, p);
        // Without the transaction the WAL may have gone and come since its file was opened.
        let stale = cx.bug == Bug::StaleWalFile && replica.wal.is_some();
        let wal = if stale { replica.wal.clone() } else { wal };
        if index.is_none() && cx.bug != Bug::UnseenIndex {
            self.end_scan(p);
            return Err(Stop::Failed("the wal-index cannot be read".into()));
        }
        let mut set = FrameSet::default();
        let mut position = None;
        if let Some(index) = index.filter(|index| index.max_frame > 0) {
            let same = |wal: &WalFile| {
                let header = WalHeader::read(wal.borrow().as_slice());
                header.is_some_and(|header| header.salts == index.salts) || stale
            };
            let read = match wal.as_ref().filter(|wal| same(wal)) {
                Some(wal) => set.extend(wal.borrow().as_slice(), page_size, 1, index.max_frame),
                None => Err(std::io::Error::other("the WAL is not there, or another")),
            };
            if let Err(error) = read {
                self.end_scan(p);
                return Err(Stop::Failed(error.to_string()));
            }
            let (salts, frame) = (index.salts, index.max_frame);
            position = Some(WalPosition { salts, frame, checksum: set.checksum });
        }
        // The transaction's own view, where there is no WAL; else the wal-index knows.
        let begun = index.filter(|index| index.max_frame > 0);
        let count = begun.map_or(self.db.main_len(), |index| index.page_count);
        let newest = set.newest.iter().map(|found| found.expect("it is in memory")).collect();
        Ok(Scan { index, guard, page_size, newest, wal, position, count, next: 1 })
    }

    /// The connection is closed: its close neither checkpoints nor removes the WAL.
    pub fn end_scan(&mut self, p: usize) {
        self.db.readers.remove(&ReaderId::Scan(p));
        if !self.is_open() {
            self.db.abandon();
        }
    }

    pub fn page(&self, scan: &Scan, pgno: Pgno) -> Result<Vec<u8>, Stop> {
        let mut page = vec![0; scan.page_size.bytes()];
        let failed = |why: &str| Stop::Failed(format!("page {pgno} cannot be read: {why}"));
        match (scan.newest.get(&pgno), &scan.wal) {
            (Some(frame), Some(wal)) => {
                let wal = wal.borrow();
                wal::read_frame_page(wal.as_slice(), scan.page_size, *frame, &mut page)
                    .map_err(|error| failed(&error.to_string()))?;
            }
            _ => {
                let stored = self.db.main_page(pgno).filter(|stored| stored.len() == page.len());
                page.copy_from_slice(stored.ok_or_else(|| failed("the file ends before it"))?);
            }
        }
        Ok(page)
    }

    pub fn next_pages(
        &self,
        cx: &mut Cx,
        p: usize,
        scan: &mut Scan,
    ) -> Result<Vec<(Pgno, Vec<u8>)>, Stop> {
        if !cx.calm && cx.rng.chance(2) {
            return Err(Stop::Failed("input/output error".into()));
        }
        self.is_intact(p)?;
        let last = scan.count.min(scan.next + SLICE - 1);
        let pages = (scan.next..=last)
            .map(|pgno| Ok((pgno, self.page(scan, pgno)?)))
            .collect::<Result<_, Stop>>()?;
        scan.next = last + 1;
        Ok(pages)
    }

    /// Whether its transaction is still there.
    fn is_intact(&self, p: usize) -> Result<(), Stop> {
        if self.db.readers.contains_key(&ReaderId::Scan(p)) {
            Ok(())
        } else {
            Err(Stop::Failed("the process forked while the database was read".into()))
        }
    }

    /// While the walk went on, the WAL must not have been begun anew.
    pub fn check_generation(&self, bug: Bug, p: usize, scan: &Scan) -> Result<(), Stop> {
        self.is_intact(p)?;
        let has_last = || {
            let (Some(wal), Some(at)) = (&scan.wal, scan.position) else { return false };
            let last = wal::checksum_at(wal.borrow().as_slice(), scan.page_size, at.frame);
            last.is_ok_and(|last| last == at.checksum)
        };
        match (scan.index.filter(|index| index.max_frame > 0), self.db.index()) {
            (None, _) => Ok(()),
            (Some(before), Some(now)) if bug == Bug::WalkUnproven && before.salts == now.salts => {
                Ok(())
            }
            // Recovery may have cut frames off that have no checksum. Until others are in all of their
            // places, the index ends before them; from then on the count may be what it was, but not the
            // last frame.
            (Some(before), Some(now)) if now.follows(&before) && has_last() => Ok(()),
            _ => Err(Stop::Failed("the WAL was begun anew while the database was read".into())),
        }
    }

    /// The count of commits before a walk begins: all of them are in what is read.
    pub fn seq_before_scan(&self, p: usize) -> usize {
        sh!(self, p).seq()
    }
}
