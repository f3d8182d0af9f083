//! Compares the database with the page table: the pages that differ become the next file.
//!
//! This comparison answers every way in which the WAL and the log can lose each other. History stays one line,
//! and only pages that differ are sent.

use super::capture::{Cursor, PieceWriter, Span, Stop};
use super::replica::{LocalJob, Purpose, Replica, maker};
use super::scan::Scan;
use crate::database::Gate;
use crate::engine::{Event, Failure};
use crate::finding::{Answer, Finding};
use crate::local::reserve::Reserve;
use crate::ltx::{self, Checksum, DatabaseChecksum};
use crate::units::Txid;

/// A comparison in progress.
pub(super) struct ResyncJob {
    txid: Txid,
    claim: bool,
    scan: Scan,
    writer: Option<PieceWriter>,
    /// Checksum of all pages read so far.
    total: DatabaseChecksum,
    /// Value of `commit_seq` up to which the pages read hold every commit.
    seq: u64,
    attached: bool,
    /// Value of the replica's `epoch` when the walk began.
    epoch: u64,
    /// Value of the replica's `remembered` when the walk began.
    remembered: u64,
    /// Room reserved for a write of the application that finds no room.
    reserve: Option<Reserve>,
}

impl ResyncJob {
    pub(super) fn reserve(&self) -> Option<&Reserve> {
        self.reserve.as_ref()
    }
}

impl Replica {
    pub(super) fn begin_resync(&mut self, txid: Txid, scan: bool, claim: bool) {
        let result = if scan { self.begin_comparison(txid, claim) } else { self.claim(txid) };
        if let Err(message) = result {
            // A claim that lost its position needs the comparison, too.
            self.resync_failed(message, scan || self.cursor == Cursor::Unknown);
        }
        self.set_gate();
    }

    fn resync_failed(&mut self, message: String, scan: bool) {
        log::warn!("{}: {message}; trying again", self.database.label());
        self.comparison_fails();
        let now = self.process.now();
        if scan {
            self.engine.handle(now, Event::Diverged);
        }
        self.engine.handle(now, Event::LocalFailed(Failure::Local { message }));
        self.discard_unfinished();
        if scan {
            self.shorten_wal();
        }
        self.suspect_spool();
    }

    /// Makes one file without a comparison, because the log continues but has no file of our lineage yet. The
    /// file holds the commits made so far, or else page 1 as it is.
    fn claim(&mut self, txid: Txid) -> Result<(), String> {
        match self.capture(Purpose::Close) {
            Ok(()) => {}
            Err(stop @ (Stop::Failed(_) | Stop::NoRoom(_))) => return self.other_answer(stop),
            Err(Stop::Diverged(found)) if found.answer() == Answer::Compare => {
                self.note(found);
                return self.begin_comparison(txid, true);
            }
            Err(Stop::Diverged(found)) => {
                self.cannot_compare(found);
                return Ok(());
            }
        }
        if self.open.is_empty() {
            let mut scan = self.open_scan().map_err(|stopped| stopped.why)?;
            let page = scan.page(1).map_err(|error| error.to_string())?;
            let sum = ltx::checksum::page(1, &page);
            match self.write_page_one(&page, sum) {
                Ok(true) => {}
                Ok(false) => {
                    // Page 1 was changed by a commit meanwhile.
                    drop(scan);
                    return self.begin_comparison(txid, true);
                }
                Err(stop) => return self.other_answer(stop),
            }
        }
        match self.close_captured(txid) {
            Ok(attempt) => {
                self.ended(attempt);
                Ok(())
            }
            Err(stop) => self.other_answer(stop),
        }
    }

    /// Writes page 1 as a piece of its own. Returns false if the page table has another checksum for page 1.
    fn write_page_one(&mut self, page: &[u8], sum: Checksum) -> Result<bool, Stop> {
        let entry = self.next_entry(None);
        let (Some(local), Some(point)) = (&mut self.local, self.point) else {
            return Err(Stop::Failed("the local state is not open".into()));
        };
        if local.table.get(1)? != Some(sum) {
            return Ok(false);
        }
        let maker = maker(&self.engine, &point);
        let commit = local.table.commit();
        let mut writer = PieceWriter::begin(&local.spool, point.page_size)?;
        writer.page(1, page)?;
        let entry =
            writer.finish(&local.spool, &mut local.table, commit, Span::NONE, &maker, entry)?;
        self.piece = entry.pieces.1;
        self.open.push(entry);
        Ok(true)
    }

    /// Handles a stop: `Err` is a reason to try again, `Ok` means that another answer is under way.
    fn other_answer(&mut self, stop: Stop) -> Result<(), String> {
        match stop {
            // The pieces themselves may take the room that is needed to merge them.
            Stop::NoRoom(why) if self.gives_up_pieces() => {
                log::error!("{}: {why}", self.database.label());
                self.engine.handle(self.process.now(), Event::Closed(None));
                Ok(())
            }
            Stop::Failed(why) | Stop::NoRoom(why) => Err(why),
            Stop::Diverged(found) => {
                self.cannot_compare(found);
                Ok(())
            }
        }
    }

    /// Ends the attempt, because the finding needs another answer than the one under way.
    fn cannot_compare(&mut self, found: Finding) {
        self.diverge(found);
        self.engine.handle(self.process.now(), Event::Closed(None));
    }

    fn begin_comparison(&mut self, txid: Txid, claim: bool) -> Result<(), String> {
        if let Err(stop) = self.try_spool() {
            return self.other_answer(stop);
        }
        self.database.with(|shared| {
            shared.set_gate(Gate::Shut);
            shared.captured = None;
        });
        self.hold_wal();
        let seq = self.database.with(|shared| shared.commit_seq);
        self.cursor = Cursor::Unknown;
        self.clear_frames();
        let scan = self.open_scan().map_err(|stopped| stopped.why)?;
        self.refresh_published();
        let Some(point) = self.point else { return Err("there is no base to compare with".into()) };
        if scan.page_size() != point.page_size {
            self.note(Finding::PageSizeChanged);
            self.need_image();
            self.engine.handle(self.process.now(), Event::Closed(None));
            return Ok(());
        }
        self.counters().resyncs += 1;
        let total = DatabaseChecksum::EMPTY;
        let attached = self.is_attached();
        let epoch = self.epoch();
        let remembered = self.remembered;
        let reserve = self.reserve();
        let writer = None;
        let job = ResyncJob {
            txid,
            claim,
            scan,
            writer,
            total,
            seq,
            attached,
            epoch,
            remembered,
            reserve,
        };
        self.job = LocalJob::Resync(Box::new(job));
        Ok(())
    }

    pub(super) fn step_resync(&mut self, mut job: Box<ResyncJob>) {
        match self.step_comparison(&mut job) {
            Ok(true) => self.job = LocalJob::Resync(job),
            Ok(false) => {
                let result = self.finish_comparison(*job);
                if let Err(message) = result {
                    self.resync_failed(message, true);
                }
            }
            Err(stop) => {
                // Dropping the job also ends the read transaction, which keeps the WAL.
                drop(job);
                if let Err(message) = self.other_answer(stop) {
                    self.resync_failed(message, true);
                }
            }
        }
        self.set_gate();
        self.database.notify();
    }

    fn step_comparison(&mut self, job: &mut ResyncJob) -> Result<bool, Stop> {
        let Some(local) = &mut self.local else {
            return Err(Stop::Failed("the local state is gone".into()));
        };
        let page_size = job.scan.page_size();
        let (writer, total, claim) = (&mut job.writer, &mut job.total, job.claim);
        job.scan.step(|pgno, page| -> Result<(), Stop> {
            let sum = ltx::checksum::page(pgno, page);
            total.toggle(sum);
            if local.table.get(pgno)? == Some(sum) && !(claim && pgno == 1) {
                return Ok(());
            }
            if writer.is_none() {
                *writer = Some(PieceWriter::begin(&local.spool, page_size)?);
            }
            match writer {
                Some(writer) => writer.page(pgno, page),
                None => Ok(()),
            }
        })
    }

    fn finish_comparison(&mut self, mut job: ResyncJob) -> Result<(), String> {
        Self::check_generation(&job.scan)?;
        // The file to be written may need the reserved room, and capture may soon continue with the WAL.
        job.reserve = None;
        let snapshot = job.scan.snapshot();
        let position = job.scan.position();
        let mut entry = self.next_entry(None);
        entry.position = position;
        let (Some(local), Some(point)) = (&mut self.local, self.point) else {
            return Err("the local state is gone".into());
        };
        let shorter = snapshot.page_count != local.table.commit();
        if shorter && job.writer.is_none() {
            let begun = PieceWriter::begin(&local.spool, point.page_size);
            job.writer = Some(begun.map_err(|stop| stop.to_string())?);
        }
        let differs = job.writer.is_some();
        if let Some(writer) = job.writer {
            log::debug!("pages differ: {}", !writer.is_empty());
            let span = match position {
                Some(at) => Span::frames(snapshot.page_size, at.salts, 1, at.frame),
                None => Span::NONE,
            };
            let maker = maker(&self.engine, &point);
            let (spool, table) = (&local.spool, &mut local.table);
            let written = writer.finish(spool, table, snapshot.page_count, span, &maker, entry);
            match written {
                Ok(entry) => {
                    self.piece = entry.pieces.1;
                    self.open.push(entry);
                }
                Err(stop) => return self.other_answer(stop),
            }
        }
        let proven = self.local.as_ref().is_some_and(|l| l.table.checksum() == job.total);
        let now = self.process.now();
        if !proven {
            self.remember(Finding::TableDisproved);
            self.note(Finding::TableDisproved);
            self.need_image();
            self.engine.handle(now, Event::Closed(None));
            return Ok(());
        }
        self.cursor = job.scan.end();
        let seen = self.cursor != Cursor::Unknown;
        let same_wal = seen && job.attached && job.epoch == self.epoch();
        if !same_wal {
            // The pages that were read are right, but the WAL at the end of the walk is not the WAL of now.
            self.cursor = Cursor::Unknown;
        }
        self.captured_seq = self.captured_seq.max(job.seq);
        let path = self.database.label();
        log::info!("{path}: compared; {}", if differs { "what differs is sent" } else { "equal" });
        let attempt = match self.close_captured(job.txid) {
            Ok(attempt) => attempt,
            Err(stop) => return self.other_answer(stop),
        };
        // The walk's read transaction ends only now. Until capture has taken the frames behind the walk, none
        // of them may be overwritten.
        drop(job.scan);
        let later = self.database.with(|shared| shared.commit_seq > job.seq);
        if !same_wal && (self.is_attached() || later) {
            self.engine.handle(now, Event::Diverged);
        }
        self.compared(job.remembered, attempt.made());
        let nothing = attempt.made().is_none();
        self.ended(attempt);
        if nothing && self.engine.is_sure() {
            self.mark_acked(job.seq);
        }
        Ok(())
    }
}
