//! The model's long jobs, which read the whole database: the full image (`src/sealer/image.rs`) and
//! the comparison with the page table (`src/sealer/resync.rs`), each in slices.

use std::collections::BTreeMap;

use walferry::engine::{Event, Failure};
use walferry::local::state::{Base, Image};
use walferry::ltx::encode::to_vec;
use walferry::ltx::{self, DatabaseChecksum, FileName, Header, Tag};
use walferry::store::Key;
use walferry::units::{Level, Pgno, Timestamp, Txid, WalPosition};
use walferry::wal::{self, FrameSet, WalIndex};

use crate::capture::Span;
use crate::database::page_size;
use crate::disk::Stop;
use crate::host::{Cursor, Gate, Host, Point, mem};
use crate::store::{Answer, Request};
use crate::world::{Bug, Cx};

/// Pages of one slice.
const SLICE: u32 = 4;

pub enum Job {
    None,
    Image {
        head: Head,
        stage: Stage,
    },
    Resync {
        txid: Txid,
        claim: bool,
        scan: Scan,
        differs: Vec<(Pgno, Vec<u8>)>,
        sum: DatabaseChecksum,
    },
}

pub struct Head {
    level: Level,
    txid: Txid,
    pre_apply: DatabaseChecksum,
    timestamp: Timestamp,
}

pub enum Stage {
    Opening,
    Sending { scan: Scan, pages: Vec<(Pgno, Vec<u8>)> },
    Completing { image: Image, cursor: Cursor, seq: usize },
}

impl Job {
    pub fn is_none(&self) -> bool {
        matches!(self, Job::None)
    }

    pub fn can_step(&self) -> bool {
        matches!(self, Job::Resync { .. } | Job::Image { stage: Stage::Sending { .. }, .. })
    }

    pub fn holds_wal(&self) -> bool {
        match self {
            Job::None | Job::Image { stage: Stage::Opening, .. } => false,
            Job::Resync { .. } | Job::Image { .. } => true,
        }
    }
}

/// A walk over all pages, in a read transaction.
pub struct Scan {
    index: Option<WalIndex>,
    newest: BTreeMap<Pgno, u32>,
    position: Option<WalPosition>,
    count: u32,
    next: Pgno,
    seq: usize,
}

impl Host {
    fn open_scan(&mut self) -> Scan {
        let index = self.db.index;
        let frames = index.map_or(0, |index| index.max_frame);
        let mut set = FrameSet::default();
        set.extend(self.db.wal(), page_size(), 1, frames).expect("the WAL can be read");
        let position = index.filter(|_| frames > 0).map(|index| WalPosition {
            salts: index.salts,
            frame: frames,
            checksum: set.checksum,
        });
        self.db.reader = Some(frames);
        let count = self.db.now().len() as u32;
        Scan { index, newest: set.newest, position, count, next: 1, seq: mem!(self).seq() }
    }

    fn page(&self, scan: &Scan, pgno: Pgno) -> Vec<u8> {
        let mut page = vec![0; 512];
        match scan.newest.get(&pgno) {
            Some(frame) => {
                wal::read_frame_page(self.db.wal(), page_size(), *frame, &mut page)
                    .expect("the frame can be read");
            }
            None => page.copy_from_slice(self.db.main_page(pgno).expect("the page is in the file")),
        }
        page
    }

    fn next_pages(&self, scan: &mut Scan) -> Vec<(Pgno, Vec<u8>)> {
        let last = scan.count.min(scan.next + SLICE - 1);
        let pages = (scan.next..=last).map(|pgno| (pgno, self.page(scan, pgno))).collect();
        scan.next = last + 1;
        pages
    }

    fn check_generation(&self, scan: &Scan) -> Result<(), String> {
        let before = scan.index.filter(|index| index.max_frame > 0);
        match (before, self.db.index) {
            (Some(before), Some(now)) if before.salts != now.salts => {
                Err("the WAL was begun anew while the database was read".into())
            }
            _ => Ok(()),
        }
    }

    pub fn slice(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        match std::mem::replace(&mut mem!(self).job, Job::None) {
            Job::None => {}
            Job::Image { head, stage: Stage::Sending { mut scan, mut pages } } => {
                for (pgno, page) in self.next_pages(&mut scan) {
                    self.disk.set(pgno, ltx::checksum::page(pgno, &page))?;
                    pages.push((pgno, page));
                }
                if scan.next <= scan.count {
                    mem!(self).job = Job::Image { head, stage: Stage::Sending { scan, pages } };
                } else {
                    self.finish_sending(cx, head, &scan, &pages)?;
                }
                self.set_gate();
            }
            Job::Resync { txid, claim, mut scan, mut differs, mut sum } => {
                for (pgno, page) in self.next_pages(&mut scan) {
                    let page_sum = ltx::checksum::page(pgno, &page);
                    sum.toggle(page_sum);
                    let known = self.disk.table.get(pgno) == Some(page_sum);
                    if !known || (claim && pgno == 1) {
                        differs.push((pgno, page));
                    }
                }
                if scan.next <= scan.count {
                    mem!(self).job = Job::Resync { txid, claim, scan, differs, sum };
                } else {
                    self.db.reader = None;
                    match self.finish_comparison(cx, txid, &scan, differs, sum) {
                        Err(Stop::Failed(why) | Stop::Diverged(why)) => {
                            self.resync_failed(cx, why, true);
                        }
                        other => other?,
                    }
                }
                self.set_gate();
            }
            job @ Job::Image { .. } => mem!(self).job = job,
        }
        Ok(())
    }

    // The comparison.

    pub fn begin_resync(
        &mut self,
        cx: &mut Cx,
        txid: Txid,
        scan: bool,
        claim: bool,
    ) -> Result<(), Stop> {
        if scan {
            self.begin_comparison(cx, txid, claim);
        } else {
            match self.claim(cx, txid) {
                Err(Stop::Failed(why) | Stop::Diverged(why)) => self.resync_failed(cx, why, false),
                other => other?,
            }
        }
        self.set_gate();
        Ok(())
    }

    fn resync_failed(&mut self, cx: &mut Cx, message: String, scan: bool) {
        cx.log(format_args!("host {}: {message}", self.id));
        if scan {
            mem!(self).engine.handle(cx.now, Event::Diverged);
        }
        self.local_failed(cx.now, message);
    }

    fn claim(&mut self, cx: &mut Cx, txid: Txid) -> Result<(), Stop> {
        if let Err(stop) = self.capture(cx) {
            let Stop::Diverged(why) = stop else { return Err(stop) };
            cx.log(format_args!("host {}: {why}", self.id));
            self.begin_comparison(cx, txid, true);
            return Ok(());
        }
        if mem!(self).open.is_empty() {
            let scan = self.open_scan();
            self.db.reader = None;
            let page = self.page(&scan, 1);
            if self.disk.table.get(1) != Some(ltx::checksum::page(1, &page)) {
                self.begin_comparison(cx, txid, true);
                return Ok(());
            }
            let (entry, commit) = (self.next_entry(None), self.disk.table.commit());
            self.write_piece(cx, vec![(1, page)], commit, Span::NONE, entry)?;
        }
        let closed = self.close_captured(cx, txid)?;
        mem!(self).engine.handle(cx.now, Event::Closed(closed));
        Ok(())
    }

    fn begin_comparison(&mut self, cx: &mut Cx, txid: Txid, claim: bool) {
        if cx.bug != Bug::StaleIndex {
            self.publish(cx.now);
        }
        let memory = mem!(self);
        memory.gate = Gate::Shut;
        memory.captured = None;
        memory.cursor = Cursor::Unknown;
        let scan = self.open_scan();
        let sum = DatabaseChecksum::EMPTY;
        mem!(self).job = Job::Resync { txid, claim, scan, differs: Vec::new(), sum };
    }

    fn finish_comparison(
        &mut self,
        cx: &mut Cx,
        txid: Txid,
        scan: &Scan,
        differs: Vec<(Pgno, Vec<u8>)>,
        sum: DatabaseChecksum,
    ) -> Result<(), Stop> {
        self.check_generation(scan).map_err(Stop::Failed)?;
        let mut entry = self.next_entry(None);
        entry.position = scan.position;
        if !differs.is_empty() || scan.count != self.disk.table.commit() {
            let span = match scan.position {
                Some(at) => Span::frames(at.salts, 1, at.frame),
                None => Span::NONE,
            };
            self.write_piece(cx, differs, scan.count, span, entry)?;
        }
        if self.disk.table.checksum() != sum {
            self.image_allowed = true;
            let memory = mem!(self);
            memory.engine.handle(cx.now, Event::Closed(None));
            memory.cursor = Cursor::Unknown;
            memory.point = None;
            memory.engine.handle(cx.now, Event::ImageNeeded);
            return Ok(());
        }
        mem!(self).cursor = scan.position.map_or(Cursor::Fresh, Cursor::At);
        let closed = match self.close_captured(cx, txid) {
            Ok(closed) => closed,
            Err(Stop::Diverged(why)) => {
                let memory = mem!(self);
                memory.engine.handle(cx.now, Event::Diverged);
                memory.engine.handle(cx.now, Event::Closed(None));
                cx.log(format_args!("host {}: {why}", self.id));
                return Ok(());
            }
            Err(stop) => return Err(stop),
        };
        mem!(self).engine.handle(cx.now, Event::Closed(closed));
        if closed.is_none() {
            self.mark_acked(scan.seq);
        }
        Ok(())
    }

    // The image.

    pub fn begin_image(
        &mut self,
        cx: &mut Cx,
        level: Level,
        txid: Txid,
        pre_apply: Option<DatabaseChecksum>,
    ) -> Result<(), Stop> {
        let pre_apply = pre_apply.unwrap_or(DatabaseChecksum::EMPTY);
        let head = Head { level, txid, pre_apply, timestamp: Timestamp(cx.now.cast_signed()) };
        mem!(self).job = Job::Image { head, stage: Stage::Opening };
        self.ship(cx, Request::OpenUpload)
    }

    pub fn upload_event(&mut self, cx: &mut Cx, answer: Answer) -> Result<(), Stop> {
        let job = std::mem::replace(&mut mem!(self).job, Job::None);
        let Job::Image { head, stage } = job else {
            mem!(self).job = job;
            return Ok(());
        };
        match (answer, stage) {
            (Answer::UploadOpened, Stage::Opening) => {
                mem!(self).gate = Gate::Shut;
                let scan = self.open_scan();
                self.disk.set_commit(0)?;
                let memory = mem!(self);
                memory.cursor = Cursor::Unknown;
                memory.frames = FrameSet::default();
                let open = memory.open.drain(..);
                let closed = memory.closed.drain(..).map(|file| file.entry);
                for entry in open.chain(closed).collect::<Vec<_>>() {
                    self.disk.remove(&entry)?;
                }
                let stage = Stage::Sending { scan, pages: Vec::new() };
                mem!(self).job = Job::Image { head, stage };
            }
            (Answer::UploadDone, Stage::Completing { image, cursor, seq }) => {
                self.image_sent(cx, image, cursor, seq)?;
            }
            (Answer::UploadRefused, _) => {
                let memory = mem!(self);
                memory.state.image = None;
                self.save_if_possible()?;
                mem!(self).engine.handle(cx.now, Event::ImageRefused);
            }
            (Answer::UploadFailed(failure), _) => {
                mem!(self).engine.handle(cx.now, Event::ImageFailed(failure));
            }
            (answer, _) => return Err(Stop::Failed(format!("{answer:?} for an image"))),
        }
        self.set_gate();
        Ok(())
    }

    pub fn save_if_possible(&mut self) -> Result<(), Stop> {
        match self.disk.save(&mem!(self).state.clone()) {
            Err(Stop::Crash) => Err(Stop::Crash),
            _ => Ok(()),
        }
    }

    fn finish_sending(
        &mut self,
        cx: &mut Cx,
        head: Head,
        scan: &Scan,
        pages: &[(Pgno, Vec<u8>)],
    ) -> Result<(), Stop> {
        self.db.reader = None;
        if let Err(message) = self.check_generation(scan) {
            let failure = Failure::Local { message };
            mem!(self).engine.handle(cx.now, Event::ImageFailed(failure));
            return Ok(());
        }
        self.disk.set_commit(scan.count)?;
        let post_apply = self.disk.table.checksum();
        let span = match scan.position {
            Some(at) => Span::frames(at.salts, 1, at.frame),
            None => Span::NONE,
        };
        let min = if head.level == Level::SNAPSHOT { Txid(1) } else { head.txid };
        let memory = mem!(self);
        let header = Header {
            page_size: page_size(),
            commit: scan.count,
            min_txid: min,
            max_txid: head.txid,
            timestamp: head.timestamp,
            wal_offset: 32,
            wal_size: 0,
            salts: walferry::units::Salts(0, 0),
            writer: memory.engine.writer(),
            tag: Some(Tag { pre_apply: head.pre_apply, post_apply, full_image: true }),
        };
        let header = span.name_in(header);
        let bytes = to_vec(&header, pages.iter().map(|(pgno, page)| (*pgno, page.as_slice())))
            .map_err(|error| Stop::Failed(error.to_string()))?;
        let base = Base {
            txid: head.txid.0,
            piece: memory.piece,
            page_size: 512,
            commit: scan.count,
            checksum: post_apply.get(),
            timestamp: head.timestamp.0,
            position: scan.position.map(Into::into),
        };
        let image = Image { level: head.level.get(), min_txid: min.0, base };
        memory.state.base = None;
        memory.state.clean = None;
        memory.state.image = Some(image);
        let saved = self.disk.save(&mem!(self).state.clone());
        match saved {
            Ok(()) => {}
            Err(Stop::Crash) => return Err(Stop::Crash),
            Err(Stop::Failed(message) | Stop::Diverged(message)) => {
                let failure = Failure::Local { message };
                mem!(self).engine.handle(cx.now, Event::ImageFailed(failure));
                return Ok(());
            }
        }
        let cursor = scan.position.map_or(Cursor::Fresh, Cursor::At);
        let key = Key { level: head.level, name: FileName { min, max: head.txid } };
        let stage = Stage::Completing { image, cursor, seq: scan.seq };
        mem!(self).job = Job::Image { head, stage };
        self.ship(cx, Request::CompleteUpload { key, bytes })
    }

    fn image_sent(
        &mut self,
        cx: &mut Cx,
        image: Image,
        cursor: Cursor,
        seq: usize,
    ) -> Result<(), Stop> {
        let memory = mem!(self);
        memory.state.image = None;
        memory.state.base = Some(image.base);
        memory.state.claimed = true;
        memory.state.clean = None;
        memory.point = Some(Point::of(&image.base));
        self.confirmed.push((image.base.txid(), memory.state.writer));
        self.save_if_possible()?;
        self.image_allowed = false;
        let memory = mem!(self);
        memory.engine.handle(cx.now, Event::ImageSent { txid: image.base.txid(), complete: false });
        self.mark_acked(seq);
        let memory = mem!(self);
        memory.cursor = cursor;
        let later = memory.seq() > seq;
        let ahead = memory.published.is_some_and(|index| self.is_behind(&index));
        if later || ahead {
            mem!(self).engine.handle(cx.now, Event::Committed { at: cx.now });
        }
        Ok(())
    }

    /// The store said whether the image of an earlier process arrived.
    pub fn confirmed(&mut self, cx: &mut Cx, arrived: bool) -> Result<(), Stop> {
        let memory = mem!(self);
        let Some(image) = memory.state.image.take() else { return Ok(()) };
        if arrived {
            memory.state.base = Some(image.base);
            memory.state.claimed = true;
            memory.piece = image.base.piece;
            self.disk.set_commit(image.base.commit)?;
            let memory = mem!(self);
            if self.disk.table.checksum().get() == image.base.checksum {
                memory.point = Some(Point::of(&image.base));
                memory.engine.handle(cx.now, Event::Diverged);
            } else {
                self.image_allowed = true;
                memory.engine.handle(cx.now, Event::ImageNeeded);
            }
        }
        self.save_if_possible()
    }
}
