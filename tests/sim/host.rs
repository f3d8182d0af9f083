//! The model of one host: a database, a disk, and the process that replicates.
//!
//! The engine is the production's. What carries its actions out follows the sealer write for write
//! (`src/sealer/`), on the model's disk; every file goes through the production's codec. A process
//! may die before any write, and then keeps what the disk has.

use std::collections::VecDeque;

use walferry::engine::{Closed, Engine, Event, Failure, Need, Opened, Options, Phase};
use walferry::local::spool::Entry;
use walferry::local::state::{Base, Clean, State};
use walferry::ltx::DatabaseChecksum;
use walferry::units::{Level, Salts, Timestamp, Txid, WalPosition, WriterId};
use walferry::wal::{FrameHeader, FrameSet, WalHeader, WalIndex};

use crate::database::{Database, page_size};
use crate::disk::{Disk, Stop};
use crate::store::header;
use crate::whole::Job;
use crate::world::{Bug, Cx};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    Capturing,
    Shut,
    Open,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cursor {
    Unknown,
    Fresh,
    At(WalPosition),
}

/// The end of the last closed file.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub txid: Txid,
    pub checksum: DatabaseChecksum,
    pub timestamp: i64,
}

impl Point {
    pub fn of(base: &Base) -> Point {
        Point {
            txid: base.txid(),
            checksum: DatabaseChecksum::from_stored(base.checksum),
            timestamp: base.timestamp,
        }
    }
}

pub struct ClosedFile {
    pub entry: Entry,
    pub base: Base,
    pub seq: usize,
}

/// What dies with the process.
pub struct Memory {
    pub engine: Engine,
    pub state: State,
    pub open: Vec<Entry>,
    pub closed: VecDeque<ClosedFile>,
    pub point: Option<Point>,
    pub piece: u64,
    pub cursor: Cursor,
    pub frames: FrameSet,
    pub frames_salts: Salts,
    pub job: Job,
    pub published: Option<WalIndex>,
    /// For each count of commits, the newest commit of the database at that moment.
    pub seqs: Vec<usize>,
    pub captured_seq: usize,
    pub acked_seq: usize,
    pub unreported_since: Option<u64>,
    pub captured: Option<(Salts, u32)>,
    pub gate: Gate,
    pub grant: Option<(Salts, u32)>,
    keeps_grant: bool,
    pub watch_at: u64,
    pub started_at: u64,
}

impl Memory {
    pub fn seq(&self) -> usize {
        self.seqs.len() - 1
    }

    /// A restart that was let through did not come: the generation went on instead.
    fn end_grant(&mut self) {
        if self.keeps_grant {
            return;
        }
        if let (Some((salts, frame)), Some(index)) = (self.grant, self.published)
            && salts == index.salts
            && frame < index.max_frame
        {
            self.grant = None;
        }
    }
}

pub struct Host {
    pub id: usize,
    pub incarnation: u64,
    pub db: Database,
    pub disk: Disk,
    pub up: Option<Memory>,
    pub sync_interval: u64,
    /// Something happened that may cost a full image.
    pub image_allowed: bool,
    pub images: u64,
    /// TXIDs that the store confirmed as ours, with the writer that we were.
    pub confirmed: Vec<(Txid, u64)>,
    /// A full disk kept the state from passing a file: the file stays until the next start.
    pub leftover: bool,
    /// Nobody else writes to the replica.
    pub alone: bool,
    /// The database was restored from the replica.
    pub is_copy: bool,
}

/// The process's memory; only called while it is up.
macro_rules! mem {
    ($host:expr) => {
        $host.up.as_mut().expect("the process is up")
    };
}
pub(crate) use mem;

impl Host {
    pub fn new(id: usize, db: Database, sync_interval: u64) -> Host {
        Host {
            id,
            incarnation: 0,
            db,
            disk: Disk::default(),
            up: None,
            sync_interval,
            image_allowed: true,
            images: 0,
            confirmed: Vec::new(),
            leftover: false,
            alone: false,
            is_copy: false,
        }
    }

    // A process's life.

    /// Starts a process: local state, spool, page table and WAL are held against each other.
    pub fn start(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        self.incarnation += 1;
        let fresh = |cx: &mut Cx| State::new(WriterId(cx.rng.next() | 1), "sim");
        let state = match self.disk.state.clone() {
            Some(state) => state,
            None => fresh(cx),
        };
        let options = Options { sync_interval: self.sync_interval, jitter_seed: cx.rng.next() };
        let engine = Engine::new(options, WriterId(state.writer));
        cx.log(format_args!("host {}: start, writer {:x}", self.id, state.writer & 0xffff));
        self.up = Some(Memory {
            engine,
            state,
            open: Vec::new(),
            closed: VecDeque::new(),
            point: None,
            piece: 0,
            cursor: Cursor::Unknown,
            frames: FrameSet::default(),
            frames_salts: Salts::default(),
            job: Job::None,
            published: None,
            seqs: vec![0],
            captured_seq: 0,
            acked_seq: 0,
            unreported_since: None,
            captured: None,
            gate: Gate::Capturing,
            grant: None,
            keeps_grant: cx.bug == Bug::StaleGrant,
            watch_at: cx.now,
            started_at: cx.now,
        });
        self.read_local(cx)?;
        let index = self.db.index;
        let head = self.db.head();
        let memory = mem!(self);
        memory.published = index;
        memory.seqs.push(head);
        self.resume(cx);
        self.set_gate();
        Ok(())
    }

    fn read_local(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        let memory = mem!(self);
        let mut closed = Vec::new();
        match memory.state.base {
            None => {
                for entry in self.disk.scan(cx, 0)? {
                    self.disk.remove(&entry)?;
                }
                self.disk.set_commit(0)?;
                self.image_allowed = true;
            }
            Some(base) => {
                self.disk.table.set_commit(base.commit);
                let entries = self.disk.scan(cx, base.piece)?;
                let (mut expected, mut broken) =
                    (DatabaseChecksum::from_stored(base.checksum), false);
                let mut position = base.position.map(WalPosition::from);
                let mut point = Point::of(&base);
                memory.piece = base.piece;
                for entry in entries {
                    let follows = entry.pieces.0 == memory.piece + 1
                        && entry.txid.is_none_or(|txid| txid == point.txid.next());
                    if broken || !follows {
                        cx.log(format_args!("host {}: {} is not used", self.id, entry.file_name()));
                        broken = true;
                        continue;
                    }
                    let bytes = self.disk.read(&entry).unwrap().clone();
                    self.disk.write()?;
                    self.disk.table.apply(&bytes).map_err(|e| Stop::Failed(e.to_string()))?;
                    let head = header(&bytes);
                    expected = head.tag.unwrap().post_apply;
                    position = entry.position;
                    memory.piece = entry.pieces.1;
                    match entry.txid {
                        Some(txid) => {
                            point = Point { txid, checksum: expected, timestamp: head.timestamp.0 };
                            let base = Base {
                                txid: txid.0,
                                piece: entry.pieces.1,
                                page_size: 512,
                                commit: head.commit,
                                checksum: expected.get(),
                                timestamp: head.timestamp.0,
                                position: entry.position.map(Into::into),
                            };
                            closed.push(Closed::new(txid, cx.now));
                            memory.closed.push_back(ClosedFile { entry, base, seq: 0 });
                        }
                        None => memory.open.push(entry),
                    }
                }
                if broken {
                    position = None;
                }
                let proven = self.disk.table.checksum() == expected;
                if !proven {
                    cx.log(format_args!("host {}: the page table does not fit", self.id));
                }
                memory.point = proven.then_some(point);
                memory.cursor = position.map_or(Cursor::Unknown, Cursor::At);
            }
        }
        let need = match (memory.point, memory.state.image) {
            (Some(_), _) => Need::Nothing,
            (None, Some(image)) => Need::Confirm {
                level: Level::new(image.level).unwrap(),
                min: Txid(image.min_txid),
                txid: image.base.txid(),
            },
            (None, None) => Need::Image,
        };
        let opened = Opened {
            claimed: memory.state.claimed,
            acked: memory.state.base.map_or(Txid::ZERO, |base| base.txid()),
            closed,
            uncommitted_since_close: !memory.open.is_empty(),
            need,
        };
        cx.log(format_args!("host {}: {opened:?}", self.id));
        memory.engine.handle(cx.now, Event::Opened(opened));
        Ok(())
    }

    /// Decides how the log goes on with the WAL that was found.
    fn resume(&mut self, cx: &mut Cx) {
        let memory = mem!(self);
        if memory.point.is_none() {
            memory.cursor = Cursor::Unknown;
            return;
        }
        let position = match memory.cursor {
            Cursor::At(position) => Some(position),
            _ => None,
        };
        match resume(position, memory.piece, &memory.state, &self.db) {
            Ok(cursor) => memory.cursor = cursor,
            Err(_) if cx.bug == Bug::ForgetDivergence => {
                memory.cursor = Cursor::Fresh;
            }
            Err(why) => {
                cx.log(format_args!("host {}: {why}", self.id));
                memory.cursor = Cursor::Unknown;
                memory.engine.handle(cx.now, Event::Diverged);
            }
        }
        if self.db.index.is_some_and(|index| self.is_behind(&index)) {
            mem!(self).engine.handle(cx.now, Event::Committed { at: cx.now });
        }
    }

    pub fn crash(&mut self, cx: &mut Cx) {
        cx.log(format_args!("host {}: dead", self.id));
        if self.up.as_ref().is_some_and(|m| m.state.image.is_some() || !m.job.is_none()) {
            self.image_allowed = true;
        }
        self.up = None;
        self.disk.fuse = None;
        self.db.recover();
        cx.store.abandon(&mut cx.rng, self.id, self.incarnation);
    }

    /// The last connection is closed in peace: SQLite checkpoints and removes the WAL.
    pub fn close(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        if let Some(index) = self.db.index.filter(|index| index.max_frame > 0) {
            self.wait_captured(cx, index)?;
        }
        self.capture_now(cx)?;
        self.db.reader = None;
        self.db.close();
        let fingerprint = self.db.fingerprint();
        let memory = mem!(self);
        if !memory.job.is_none() {
            self.image_allowed = true;
        }
        let known = memory.cursor != Cursor::Unknown || cx.bug == Bug::CleanWhileUnknown;
        let clean = memory.frames.is_empty() && known;
        memory.state.clean = clean.then_some(Clean { fingerprint, piece: memory.piece });
        self.save_if_possible()?;
        cx.log(format_args!("host {}: closed", self.id));
        Ok(())
    }

    // The application.

    pub fn commit(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        if self.db.may_begin_anew() && cx.rng.chance(70) {
            let index = self.db.index.unwrap();
            if self.wait_captured(cx, index)? {
                mem!(self).grant = Some((index.salts, index.max_frame));
                // Now and then a reader has a slot, and the WAL is appended to after all.
                if self.db.may_begin_anew() && cx.rng.chance(80) {
                    self.db.restart(&mut cx.rng);
                }
            }
        }
        self.db.commit(&mut cx.rng, cx.now, false);
        self.publish(cx.now);
        cx.log(format_args!("host {}: commit {}", self.id, self.db.head()));
        Ok(())
    }

    pub fn publish(&mut self, at: u64) {
        let (index, head) = (self.db.index, self.db.head());
        let memory = mem!(self);
        if memory.published != index {
            memory.published = index;
            memory.end_grant();
            memory.seqs.push(head);
            memory.unreported_since.get_or_insert(at);
        }
    }

    /// The gate.
    fn wait_captured(&mut self, cx: &mut Cx, index: WalIndex) -> Result<bool, Stop> {
        let head = self.db.head();
        let memory = mem!(self);
        if memory.published != Some(index) {
            memory.published = Some(index);
            memory.seqs.push(head);
        }
        if cx.bug == Bug::GateOpenEarly && memory.gate == Gate::Capturing {
            if let Cursor::At(_) = memory.cursor {
                let frame = FrameHeader::read(self.db.wal(), page_size(), index.max_frame).unwrap();
                let (salts, checksum) = (index.salts, frame.checksum);
                memory.cursor = Cursor::At(WalPosition { salts, frame: index.max_frame, checksum });
            }
            return Ok(true);
        }
        let complete = Some((index.salts, index.max_frame));
        for asked in [false, true] {
            let memory = mem!(self);
            if memory.gate == Gate::Open || memory.captured == complete {
                return Ok(true);
            }
            if memory.gate == Gate::Shut || asked {
                return Ok(false);
            }
            self.capture_now(cx)?;
        }
        Ok(false)
    }

    pub fn hurry(&mut self, cx: &mut Cx) {
        self.take_in(cx.now);
        let memory = mem!(self);
        if !memory.engine.is_stuck() {
            memory.engine.handle(cx.now, Event::Hurry);
        }
    }

    // Work.

    pub fn due_at(&self, now: u64) -> Option<u64> {
        let memory = self.up.as_ref()?;
        let slice = memory.job.can_step().then_some(now);
        let report = memory.unreported_since.map(|_| now);
        let watch = (memory.published != self.db.index).then_some(memory.watch_at.max(now));
        [slice, report, watch, memory.engine.wakeup(now)].into_iter().flatten().min()
    }

    pub fn work(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        self.watch(cx.now);
        self.take_in(cx.now);
        while let Some(action) = mem!(self).engine.poll(cx.now) {
            cx.log(format_args!("host {}: {action:?}", self.id));
            self.perform(cx, action)?;
        }
        self.slice(cx)?;
        self.settle();
        Ok(())
    }

    fn watch(&mut self, now: u64) {
        let (index, head) = (self.db.index, self.db.head());
        let memory = mem!(self);
        if memory.watch_at <= now {
            memory.watch_at = now + 1000;
            if index.is_some() && memory.published != index {
                memory.published = index;
                memory.end_grant();
                memory.seqs.push(head);
                memory.unreported_since.get_or_insert(now);
            }
        }
    }

    pub fn take_in(&mut self, now: u64) {
        let memory = mem!(self);
        if let Some(at) = memory.unreported_since.take() {
            memory.engine.handle(now, Event::Committed { at });
        }
    }

    pub fn diverge(&mut self, cx: &mut Cx, why: &str) {
        cx.log(format_args!("host {}: diverged: {why}", self.id));
        let memory = mem!(self);
        memory.cursor = Cursor::Unknown;
        memory.frames = FrameSet::default();
        memory.captured = None;
        memory.engine.handle(cx.now, Event::Diverged);
        self.set_gate();
    }

    /// A wait that began when nothing was left to ship is over at once.
    pub fn settle(&mut self) {
        let memory = mem!(self);
        let whole = memory.job.is_none() && memory.frames.is_empty();
        let quiet = memory.unreported_since.is_none() && memory.engine.is_drained();
        let seq = memory.seq();
        let known = memory.cursor != Cursor::Unknown;
        let behind = memory.published.is_some_and(|index| self.is_behind(&index));
        if whole && quiet && known && !behind {
            self.set_captured(seq);
            self.nothing_to_close(seq);
        }
    }

    pub fn nothing_to_close(&mut self, seq: usize) {
        let memory = mem!(self);
        if memory.closed.is_empty() {
            memory.acked_seq = memory.acked_seq.max(seq);
        }
    }

    pub fn mark_acked(&mut self, seq: usize) {
        let memory = mem!(self);
        memory.captured_seq = seq;
        memory.acked_seq = memory.acked_seq.max(seq);
    }

    pub fn is_behind(&self, index: &WalIndex) -> bool {
        let Some(memory) = &self.up else { return false };
        if index.max_frame == 0 {
            return false;
        }
        match memory.cursor {
            Cursor::At(at) => at.salts != index.salts || at.frame < index.max_frame,
            Cursor::Fresh => true,
            Cursor::Unknown => false,
        }
    }

    pub fn is_fenced(&self) -> bool {
        self.up.as_ref().is_some_and(|m| matches!(m.engine.status().phase, Phase::Fenced { .. }))
    }

    pub fn set_gate(&mut self) {
        let fenced = self.is_fenced();
        let memory = mem!(self);
        memory.gate = match (&memory.job, memory.cursor) {
            _ if fenced => Gate::Open,
            (job, _) if job.holds_wal() => Gate::Shut,
            (_, Cursor::Unknown) => Gate::Open,
            _ => Gate::Capturing,
        };
    }

    pub fn set_captured(&mut self, seq: usize) {
        let memory = mem!(self);
        let complete = match memory.cursor {
            Cursor::At(at) if memory.frames.is_empty() => Some((at.salts, at.frame)),
            _ => None,
        };
        memory.captured_seq = seq;
        memory.captured = complete;
        if complete.is_some() && memory.job.is_none() {
            memory.gate = Gate::Capturing;
        }
    }

    pub fn local_failed(&mut self, now: u64, message: String) {
        mem!(self).engine.handle(now, Event::LocalFailed(Failure::Local { message }));
    }

    pub fn timestamp(&self, now: u64) -> Timestamp {
        let after = self.up.as_ref().and_then(|m| m.point).map_or(0, |point| point.timestamp + 1);
        Timestamp(now.cast_signed().max(after))
    }
}

/// Holds the end of the log against the WAL, as the sealer does.
fn resume(
    position: Option<WalPosition>,
    piece: u64,
    state: &State,
    db: &Database,
) -> Result<Cursor, &'static str> {
    let Some(index) = db.index.filter(|index| index.max_frame > 0) else {
        return match state.clean.filter(|clean| clean.piece == piece) {
            Some(clean) if clean.fingerprint == db.fingerprint() => Ok(Cursor::Fresh),
            Some(_) => Err("the database file changed while it was closed"),
            None => Err("the WAL is gone, and we did not see it go"),
        };
    };
    let position = position.ok_or("there is a WAL of which the log knows nothing")?;
    if position.salts != index.salts {
        return Err("the WAL was begun anew while nobody watched");
    }
    if position.frame > index.max_frame {
        return Err("the WAL ends before the log does");
    }
    let same = WalHeader::read(db.wal()).is_some_and(|header| header.salts == position.salts);
    let frame = FrameHeader::read(db.wal(), page_size(), position.frame);
    match frame {
        Ok(frame) if same && frame.checksum == position.checksum => Ok(Cursor::At(position)),
        _ => Err("the WAL has other frames than those in the log"),
    }
}
