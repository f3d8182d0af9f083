//! Comparing the database with the page table (`src/sealer/resync.rs`).

use walferry::engine::Event;
use walferry::ltx::{self, DatabaseChecksum};
use walferry::units::{Pgno, Txid};

use super::Cursor;
use super::capture::Purpose;
use super::files::Span;
use super::scan::Scan;
use super::work::Job;
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, sh};
use crate::process::Gate;
use crate::world::Cx;

/// A comparison under way.
pub struct Comparison {
    txid: Txid,
    claim: bool,
    scan: Scan,
    differs: Vec<(Pgno, Vec<u8>)>,
    total: DatabaseChecksum,
    seq: usize,
    attached: bool,
    epoch: u64,
}

impl Host {
    pub fn begin_resync(
        &mut self,
        cx: &mut Cx,
        p: usize,
        txid: Txid,
        scan: bool,
        claim: bool,
    ) -> Result<(), Stop> {
        let begun =
            if scan { self.begin_comparison(cx, p, txid, claim) } else { self.claim(cx, p, txid) };
        self.or_fail(cx, p, begun, scan)?;
        self.set_gate(p);
        Ok(())
    }

    /// A comparison that did not succeed is tried again.
    fn or_fail(
        &mut self,
        cx: &mut Cx,
        p: usize,
        result: Result<(), Stop>,
        scan: bool,
    ) -> Result<(), Stop> {
        let Err(Stop::Failed(message) | Stop::Diverged(message)) = result else { return result };
        cx.log(format_args!("host {}.{p}: {message}", self.id));
        if scan {
            re!(self, p).engine.handle(cx.now, Event::Diverged);
        }
        self.local_failed(cx, p, message);
        Ok(())
    }

    /// One file at once, with whatever was committed, or page 1 as it stands.
    fn claim(&mut self, cx: &mut Cx, p: usize, txid: Txid) -> Result<(), Stop> {
        if let Err(stop) = self.capture(cx, p, Purpose::Close) {
            let Stop::Diverged(why) = stop else { return Err(stop) };
            cx.log(format_args!("host {}.{p}: {why}", self.id));
            return self.begin_comparison(cx, p, txid, true);
        }
        if re!(self, p).open.is_empty() {
            let scan = self.open_scan(cx, p)?;
            let page = self.page(&scan, 1);
            self.end_scan(p);
            let page = page?;
            if self.disk.table.get(1) != Some(ltx::checksum::page(1, &page)) {
                // Something was committed meanwhile.
                return self.begin_comparison(cx, p, txid, true);
            }
            let (entry, commit) = (self.next_entry(p, None), self.disk.table.commit());
            self.write_piece(cx, p, vec![(1, page)], commit, Span::NONE, entry)?;
        }
        let closed = self.close_captured(cx, p, txid)?;
        re!(self, p).engine.handle(cx.now, Event::Closed(closed));
        Ok(())
    }

    fn begin_comparison(
        &mut self,
        cx: &mut Cx,
        p: usize,
        txid: Txid,
        claim: bool,
    ) -> Result<(), Stop> {
        let shared = &mut sh!(self, p);
        shared.gate = Gate::Shut;
        shared.captured = None;
        self.hold_wal(p);
        let seq = self.seq_before_scan(p);
        re!(self, p).cursor = Cursor::Unknown;
        let scan = self.open_scan(cx, p)?;
        re!(self, p).clear_frames();
        self.refresh_published(cx, p);
        let replica = re!(self, p);
        let Some(point) = replica.point else {
            self.end_scan(p);
            return Err(Stop::Failed("there is no base to compare with".into()));
        };
        if scan.page_size != point.page_size {
            cx.log(format_args!("host {}.{p}: the page size changed", self.id));
            self.end_scan(p);
            self.image_instead(cx, p);
            return Ok(());
        }
        let (attached, epoch) = (replica.attached, replica.epoch);
        let total = DatabaseChecksum::EMPTY;
        let differs = Vec::new();
        let job = Comparison { txid, claim, scan, differs, total, seq, attached, epoch };
        replica.job = Job::Resync(Box::new(job));
        self.resyncs += 1;
        Ok(())
    }

    pub fn step_resync(
        &mut self,
        cx: &mut Cx,
        p: usize,
        mut job: Box<Comparison>,
    ) -> Result<(), Stop> {
        let done = match self.step_comparison(cx, p, &mut job) {
            Ok(()) if !job.scan.is_done() => {
                re!(self, p).job = Job::Resync(job);
                self.set_gate(p);
                return Ok(());
            }
            Ok(()) => self.finish_comparison(cx, p, *job),
            Err(stop) => {
                self.end_scan(p);
                Err(stop)
            }
        };
        self.or_fail(cx, p, done, true)?;
        self.set_gate(p);
        Ok(())
    }

    fn step_comparison(&mut self, cx: &mut Cx, p: usize, job: &mut Comparison) -> Result<(), Stop> {
        for (pgno, page) in self.next_pages(cx, p, &mut job.scan)? {
            let sum = ltx::checksum::page(pgno, &page);
            job.total.toggle(sum);
            let known = self.disk.table.get(pgno) == Some(sum);
            if !known || (job.claim && pgno == 1) {
                job.differs.push((pgno, page));
            }
        }
        Ok(())
    }

    fn finish_comparison(&mut self, cx: &mut Cx, p: usize, job: Comparison) -> Result<(), Stop> {
        let intact = self.check_generation(cx.bug, p, &job.scan);
        let written = match intact {
            Ok(()) => self.write_differences(cx, p, &job),
            Err(stop) => Err(stop),
        };
        if written.is_err() {
            self.end_scan(p);
        }
        written?;
        let cursor = job.scan.end();
        let replica = re!(self, p);
        if self.disk.table.checksum() != job.total {
            cx.log(format_args!("host {}.{p}: the page table does not add up", self.id));
            self.end_scan(p);
            self.image_instead(cx, p);
            return Ok(());
        }
        replica.dropped = false;
        replica.cursor = cursor;
        replica.ends_with = job.scan.index();
        let seen = cursor != Cursor::Unknown;
        let same_wal =
            seen && ((job.attached && job.epoch == replica.epoch) || cx.bug == Bug::EpochIgnored);
        if !same_wal {
            // What was read is right, but the WAL that it ends in is not the one that goes on.
            replica.cursor = Cursor::Unknown;
        }
        let closed = self.close_captured(cx, p, job.txid);
        // Only now: until the frames behind the walk are taken, none of them may be overwritten.
        self.end_scan(p);
        let closed = match closed {
            Err(Stop::Diverged(why)) => {
                let replica = re!(self, p);
                replica.engine.handle(cx.now, Event::Diverged);
                replica.engine.handle(cx.now, Event::Closed(None));
                cx.log(format_args!("host {}.{p}: {why}", self.id));
                return Ok(());
            }
            closed => closed?,
        };
        let later = sh!(self, p).seq() > job.seq && cx.bug != Bug::LaterCommitsLeft;
        let replica = re!(self, p);
        if !same_wal && (replica.attached || later) {
            // What was committed behind the walk is in no WAL that goes on.
            replica.engine.handle(cx.now, Event::Diverged);
        }
        replica.engine.handle(cx.now, Event::Closed(closed));
        let is_sure = replica.engine.is_sure() || cx.bug == Bug::LogEndNotLookedAt;
        if closed.is_none() && is_sure {
            self.mark_acked(p, job.seq);
        }
        Ok(())
    }

    /// The comparison ends, and its commits wait for the image.
    fn image_instead(&mut self, cx: &mut Cx, p: usize) {
        if cx.bug == Bug::LagForgottenByImage {
            re!(self, p).engine.handle(cx.now, Event::Closed(None));
        }
        self.need_image(cx, p);
        re!(self, p).engine.handle(cx.now, Event::Closed(None));
    }

    fn write_differences(&mut self, cx: &mut Cx, p: usize, job: &Comparison) -> Result<(), Stop> {
        if job.differs.is_empty() && job.scan.count == self.disk.table.commit() {
            return Ok(());
        }
        let mut entry = self.next_entry(p, None);
        entry.position = job.scan.position;
        let span = match job.scan.position {
            Some(at) => Span::frames(job.scan.page_size, at.salts, 1, at.frame),
            None => Span::NONE,
        };
        self.write_piece(cx, p, job.differs.clone(), job.scan.count, span, entry)?;
        Ok(())
    }
}
