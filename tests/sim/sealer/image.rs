//! A full image: the database as one file, sent to the store (`src/sealer/image.rs`).

use walferry::engine::{Event, Failure};
use walferry::local::state::{Base, Clean, Fingerprint, Image};
use walferry::ltx::encode::to_vec;
use walferry::ltx::{self, DatabaseChecksum, FileName, Header, Tag};
use walferry::store::Key;
use walferry::units::{Level, Pgno, Salts, Timestamp, Txid};

use super::files::Span;
use super::scan::Scan;
use super::work::Job;
use super::{Cursor, Point};
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, sh, state};
use crate::process::Gate;
use crate::store::{Request, Upload};
use crate::world::Cx;

#[derive(Clone, Copy)]
pub struct Head {
    level: Level,
    txid: Txid,
    pre_apply: DatabaseChecksum,
    timestamp: Timestamp,
}

pub enum Stage {
    Opening,
    Sending(Box<Sending>),
    Completing(Box<Done>),
}

pub struct Sending {
    scan: Scan,
    pages: Vec<(Pgno, Vec<u8>)>,
    seq: usize,
    attached: bool,
    epoch: u64,
    fingerprint: Fingerprint,
}

pub struct Done {
    image: Image,
    seq: usize,
    cursor: Cursor,
    attached: bool,
    epoch: u64,
    fingerprint: Option<Fingerprint>,
}

impl Host {
    pub fn begin_image(
        &mut self,
        cx: &mut Cx,
        p: usize,
        level: Level,
        txid: Txid,
        pre_apply: Option<DatabaseChecksum>,
    ) -> Result<(), Stop> {
        let pre_apply = pre_apply.unwrap_or(DatabaseChecksum::EMPTY);
        let head = Head { level, txid, pre_apply, timestamp: Timestamp(cx.now.cast_signed()) };
        let replica = re!(self, p);
        replica.upload += 1;
        let number = replica.upload;
        replica.job = Job::Image { number, head, stage: Stage::Opening };
        self.ship(cx, p, Request::OpenUpload { job: number })
    }

    /// Takes in what the shipper says of an upload.
    pub fn upload_event(
        &mut self,
        cx: &mut Cx,
        p: usize,
        number: u64,
        outcome: Upload,
    ) -> Result<(), Stop> {
        let replica = re!(self, p);
        let (of, head, stage) = match std::mem::replace(&mut replica.job, Job::None) {
            Job::Image { number, head, stage } => (number, head, stage),
            job => {
                replica.job = job;
                return Ok(());
            }
        };
        if of != number && cx.bug != Bug::LateUploadBelieved {
            // The end of an upload that was given up.
            replica.job = Job::Image { number: of, head, stage };
            return Ok(());
        }
        match (outcome, stage) {
            (Upload::Opened, Stage::Opening) => match self.begin_sending(cx, p) {
                Ok(sending) => {
                    let stage = Stage::Sending(Box::new(sending));
                    re!(self, p).job = Job::Image { number, head, stage };
                }
                Err(Stop::Failed(message) | Stop::Diverged(message)) => {
                    self.give_up_upload(cx, p, number)?;
                    self.image_failed(cx, p, message);
                }
                Err(stop) => return Err(stop),
            },
            (Upload::Done, Stage::Completing(done)) => self.image_sent(cx, p, &done)?,
            (Upload::Refused | Upload::Failed(_), Stage::Completing(done))
                if cx.bug == Bug::UnsureImageBelieved =>
            {
                self.image_sent(cx, p, &done)?;
            }
            (Upload::Refused | Upload::Failed(_), Stage::Completing(done)) => {
                let (level, min) = (head.level, Txid(done.image.min_txid));
                let txid = done.image.base.txid();
                re!(self, p).engine.handle(cx.now, Event::ImageUnsure { level, min, txid });
            }
            (Upload::Refused, stage) => {
                self.end_stage(p, &stage);
                state!(self, p).image = None;
                let state = state!(self, p).clone();
                self.disk.save_if_possible(&state, false)?;
                re!(self, p).engine.handle(cx.now, Event::ImageRefused);
            }
            (Upload::Failed(failure), stage) => {
                self.end_stage(p, &stage);
                re!(self, p).engine.handle(cx.now, Event::ImageFailed(failure));
            }
            (_, stage) => {
                self.end_stage(p, &stage);
                self.image_failed(cx, p, "the store and the sealer lost step".into());
            }
        }
        self.set_gate(p);
        Ok(())
    }

    fn end_stage(&mut self, p: usize, stage: &Stage) {
        if let Stage::Sending(_) = stage {
            self.end_scan(p);
        }
    }

    fn image_failed(&mut self, cx: &mut Cx, p: usize, message: String) {
        cx.log(format_args!("host {}.{p}: no image: {message}", self.id));
        let failure = Failure::Local { message };
        re!(self, p).engine.handle(cx.now, Event::ImageFailed(failure));
    }

    fn begin_sending(&mut self, cx: &mut Cx, p: usize) -> Result<Sending, Stop> {
        let shared = &mut sh!(self, p);
        shared.gate = Gate::Shut;
        shared.captured = None;
        self.hold_wal(p);
        let seq = self.seq_before_scan(p);
        let scan = self.open_scan(cx, p)?;
        self.refresh_published(cx, p);
        self.disk.set_commit(0)?;
        let fingerprint = self.db.fingerprint();
        let replica = re!(self, p);
        replica.cursor = Cursor::Unknown;
        replica.clear_frames();
        self.clear_spool(p)?;
        let replica = re!(self, p);
        let (attached, epoch) = (replica.attached, replica.epoch);
        Ok(Sending { scan, pages: Vec::new(), seq, attached, epoch, fingerprint })
    }

    /// One slice.
    pub fn step_image(
        &mut self,
        cx: &mut Cx,
        p: usize,
        number: u64,
        head: Head,
        mut sending: Box<Sending>,
    ) -> Result<(), Stop> {
        match self.step_sending(cx, p, head, &mut sending) {
            Ok(None) => {
                re!(self, p).job = Job::Image { number, head, stage: Stage::Sending(sending) };
            }
            Ok(Some((done, bytes))) => {
                self.end_scan(p);
                let min = Txid(done.image.min_txid);
                let key = Key { level: head.level, name: FileName { min, max: head.txid } };
                let stage = Stage::Completing(Box::new(done));
                re!(self, p).job = Job::Image { number, head, stage };
                self.ship(cx, p, Request::CompleteUpload { job: number, key, bytes })?;
            }
            Err(Stop::Failed(message) | Stop::Diverged(message)) => {
                self.end_scan(p);
                self.give_up_upload(cx, p, number)?;
                self.image_failed(cx, p, message);
            }
            Err(stop) => return Err(stop),
        }
        self.set_gate(p);
        Ok(())
    }

    fn step_sending(
        &mut self,
        cx: &mut Cx,
        p: usize,
        head: Head,
        sending: &mut Sending,
    ) -> Result<Option<(Done, Vec<u8>)>, Stop> {
        for (pgno, page) in self.next_pages(cx, p, &mut sending.scan)? {
            self.disk.set(pgno, Some(ltx::checksum::page(pgno, &page)))?;
            sending.pages.push((pgno, page));
        }
        if !sending.scan.is_done() {
            return Ok(None);
        }
        self.finish_sending(cx, p, head, sending).map(Some)
    }

    /// All pages are read: makes the header, and remembers what is about to appear at the store.
    fn finish_sending(
        &mut self,
        cx: &mut Cx,
        p: usize,
        head: Head,
        sending: &Sending,
    ) -> Result<(Done, Vec<u8>), Stop> {
        let scan = &sending.scan;
        self.check_generation(cx.bug, p, scan)?;
        self.disk.set_commit(scan.count)?;
        let post_apply = self.disk.table.checksum();
        let span = match scan.position {
            Some(at) => Span::frames(scan.page_size, at.salts, 1, at.frame),
            None => Span::NONE,
        };
        let min = if head.level == Level::SNAPSHOT { Txid(1) } else { head.txid };
        let replica = re!(self, p);
        let header = span.name_in(Header {
            page_size: scan.page_size,
            commit: scan.count,
            min_txid: min,
            max_txid: head.txid,
            timestamp: head.timestamp,
            wal_offset: 32,
            wal_size: 0,
            salts: Salts(0, 0),
            writer: replica.engine.writer(),
            tag: Some(Tag { pre_apply: head.pre_apply, post_apply, full_image: true }),
        });
        let pages = sending.pages.iter().map(|(pgno, page)| (*pgno, page.as_slice()));
        let bytes = to_vec(&header, pages).map_err(|error| Stop::Failed(error.to_string()))?;
        let base = Base {
            txid: head.txid.0,
            piece: replica.piece,
            page_size: scan.page_size.get(),
            commit: scan.count,
            checksum: post_apply.get(),
            timestamp: head.timestamp.0,
            position: scan.position.map(Into::into),
        };
        let image = Image { level: head.level.get(), min_txid: min.0, base };
        let state = &mut state!(self, p);
        state.base = None;
        state.clean = None;
        state.image = Some(image);
        let state = state.clone();
        self.disk.save(&state, true)?;
        let cursor = scan.end();
        let done = Done {
            image,
            seq: sending.seq,
            cursor,
            attached: sending.attached,
            epoch: sending.epoch,
            fingerprint: Some(sending.fingerprint).filter(|_| scan.position.is_none()),
        };
        Ok((done, bytes))
    }

    fn image_sent(&mut self, cx: &mut Cx, p: usize, done: &Done) -> Result<(), Stop> {
        let base = done.image.base;
        let boot = self.boot();
        let state = &mut state!(self, p);
        state.confirm(base, boot);
        state.clean = done
            .fingerprint
            .filter(|_| !done.attached)
            .map(|fingerprint| Clean { fingerprint, piece: base.piece });
        let state = state.clone();
        self.confirmed.push(base.txid());
        let level = Level::new(done.image.level).unwrap();
        let name = FileName { min: Txid(done.image.min_txid), max: base.txid() };
        let key = Key { level, name };
        let len = cx.store.files.get(&key).map_or(1000, |bytes| bytes.len() as u64);
        self.add_to_history(cx, p, key, len, base.timestamp);
        if self.disk.save_if_possible(&state, true)? {
            self.claimed = Some(state.writer);
        }
        self.image_reason = None;
        let replica = re!(self, p);
        replica.dropped = false;
        replica.point = Some(Point::of(&base));
        let seen = done.cursor != Cursor::Unknown;
        let same_wal = seen
            && (replica.attached && done.attached && done.epoch == replica.epoch
                || cx.bug == Bug::EpochIgnored);
        if same_wal {
            replica.cursor = done.cursor;
        }
        let later = sh!(self, p).seq() > done.seq;
        let ahead = sh!(self, p).published.is_some_and(|index| re!(self, p).is_behind(&index));
        let complete = !later && !ahead;
        let replica = re!(self, p);
        replica.engine.handle(cx.now, Event::ImageSent { txid: base.txid(), complete });
        self.mark_acked(p, done.seq);
        let replica = re!(self, p);
        if !complete {
            replica.engine.handle(cx.now, Event::Committed { at: cx.now });
        }
        let later = !complete && cx.bug != Bug::LaterCommitsLeft;
        if !same_wal && (replica.attached || later) {
            replica.engine.handle(cx.now, Event::Diverged);
        }
        Ok(())
    }

    /// The store said whether an image that was sent before is there.
    pub fn confirmed_image(&mut self, cx: &mut Cx, p: usize, arrived: bool) -> Result<(), Stop> {
        let Some(image) = state!(self, p).image.take() else { return Ok(()) };
        if arrived {
            let state = &mut state!(self, p);
            state.confirm(image.base, state.boot);
            self.confirmed.push(image.base.txid());
            re!(self, p).piece = image.base.piece;
            self.disk.set_commit(image.base.commit)?;
            let replica = re!(self, p);
            if self.disk.table.checksum().get() == image.base.checksum {
                replica.point = Some(Point::of(&image.base));
                replica.engine.handle(cx.now, Event::Diverged);
            } else {
                replica.engine.handle(cx.now, Event::ImageNeeded);
                self.may_cost_image("the page table is not that of the image");
            }
        }
        let state = state!(self, p).clone();
        if self.disk.save_if_possible(&state, true)? && arrived {
            self.claimed = Some(state.writer);
        }
        Ok(())
    }
}
