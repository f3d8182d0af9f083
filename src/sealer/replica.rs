//! One database in the sealer's hands: its engine, its local state, and the carrying out of the
//! engine's actions.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use super::WATCH_INTERVAL_MS;
use super::capture::{self, Cursor, Maker, Stop};
use super::image::ImageJob;
use super::open::{self, Found, Local, Opening, Point, Resume};
use super::resync::ResyncJob;
use crate::database::{Attach, Database, Gate, Transition};
use crate::engine::{Action, Engine, Event, Failure, Need, Opened, Options, Phase};
use crate::local;
use crate::local::spool::Entry;
use crate::local::state::{Base, Clean, Fingerprint, Position};
use crate::ltx::{FileName, Header};
use crate::process::Process;
use crate::shipper::{self, Job, Outcome, Task};
use crate::store::{Body, Key, Store};
use crate::units::{Level, Salts, Timestamp, Txid, WalPosition};
use crate::wal::{FrameSet, WalIndex};

/// How long to wait before the shipper's place is asked for again.
const STANDBY_RETRY_MS: u64 = 1000;
/// Open pieces are joined when so many have gathered, so that closing never opens too many files.
const OPEN_PIECES_MAX: usize = 64;
/// Frames whose headers are read ahead.
const READ_AHEAD: u32 = 128;
/// The spool's least cap, if none is set.
const SPOOL_CAP_DEFAULT: u64 = 10 << 30;

pub(super) struct Replica {
    pub(super) process: Arc<Process>,
    pub(super) database: Arc<Database>,
    pub(super) store: Option<Arc<dyn Store>>,
    pub(super) engine: Engine,
    pub(super) local: Option<Local>,
    /// The database's WAL, through a descriptor of our own: no locks live on that file.
    pub(super) wal: Option<File>,
    pub(super) cursor: Cursor,
    /// Committed frames that are in no piece yet.
    frames: FrameSet,
    frames_salts: Salts,
    /// Open pieces, oldest first.
    pub(super) open: Vec<Entry>,
    /// Closed files that the store has not confirmed, oldest first.
    closed: VecDeque<ClosedFile>,
    pub(super) point: Option<Point>,
    pub(super) piece: u64,
    pub(super) job: LocalJob,
    /// What the newest captured commit's count is.
    captured_seq: u64,
    attached: bool,
    holder: Option<u32>,
    fence_told: bool,
    retry_at: Option<u64>,
    watch_at: u64,
    awake: bool,
    dead: Option<String>,
    counters: Counters,
    /// How often the WAL came, went, or was lost track of.
    epoch: u64,
    /// Number of the last upload.
    upload: u64,
    /// Time passed between an attach and the opening of our state: what was seen then is old.
    late: bool,
}

/// A file on its way to the store.
struct ClosedFile {
    entry: Entry,
    base: Base,
    seq: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub requests: u64,
    pub images: u64,
    pub resyncs: u64,
}

/// What frames are taken for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// They go into a piece: somebody waits at the gate.
    Gate,
    /// They go into the file that is being closed.
    Close,
}

/// The local job under way, if it is one that takes more than one step.
pub(super) enum LocalJob {
    None,
    Image(Box<ImageJob>),
    Resync(Box<ResyncJob>),
}

impl Replica {
    pub(super) fn new(process: Arc<Process>, database: Arc<Database>) -> Replica {
        let store = match crate::store::url::open(&database.settings().replica) {
            Ok(store) => Some(store),
            Err(error) => {
                log::error!("{}: {error}", database.path().display());
                database.with(|shared| shared.report.last_error = Some(error.to_string()));
                None
            }
        };
        let options = Self::options(&database);
        let mut replica = Replica {
            process,
            engine: Engine::new(options, crate::units::WriterId::default()),
            database,
            store,
            local: None,
            wal: None,
            cursor: Cursor::Unknown,
            frames: FrameSet::default(),
            frames_salts: Salts::default(),
            open: Vec::new(),
            closed: VecDeque::new(),
            point: None,
            piece: 0,
            job: LocalJob::None,
            captured_seq: 0,
            attached: false,
            holder: None,
            fence_told: false,
            retry_at: None,
            watch_at: 0,
            awake: true,
            dead: None,
            counters: Counters::default(),
            epoch: 0,
            upload: 0,
            late: false,
        };
        if replica.store.is_none() {
            let why = replica.database.with(|shared| shared.report.last_error.clone());
            replica.give_up(&why.unwrap_or_default());
        }
        replica
    }

    fn options(database: &Database) -> Options {
        Options {
            sync_interval: database.settings().sync_interval.as_millis() as u64,
            jitter_seed: local::state::random_id(),
        }
    }

    // What the thread's loop asks.

    pub(super) fn wake(&mut self) {
        self.awake = true;
    }

    pub(super) fn is_due(&self, now: u64) -> bool {
        self.awake || self.due_at().is_some_and(|at| at <= now)
    }

    pub(super) fn due_at(&self) -> Option<u64> {
        if self.dead.is_some() {
            return None;
        }
        let slice = self.has_slice().then_some(0);
        let watch = (self.attached && self.local.is_some()).then_some(self.watch_at);
        let engine = self.engine.wakeup(self.process.now());
        [slice, watch, engine, self.retry_at].into_iter().flatten().min()
    }

    fn has_slice(&self) -> bool {
        match &self.job {
            LocalJob::None => false,
            LocalJob::Image(image) => image.can_step(),
            LocalJob::Resync(_) => true,
        }
    }

    pub(super) fn is_drained_or_stuck(&self) -> bool {
        self.dead.is_some()
            || self.local.is_none()
            || self.engine.is_stuck()
            || (self.engine.is_drained() && self.nothing_uncaptured())
    }

    fn nothing_uncaptured(&self) -> bool {
        self.database.with(|shared| shared.unreported_since.is_none() && shared.diverged.is_none())
    }

    /// Whether nobody has the database open and everything is shipped.
    pub(super) fn is_finished(&self) -> bool {
        let unused =
            self.database.with(|shared| shared.connections == 0 && shared.transitions.is_empty());
        let idle = matches!(self.job, LocalJob::None);
        unused
            && idle
            && self.open.is_empty()
            && !self.attached
            && self.dead.is_none()
            && (self.local.is_none() || (self.engine.is_drained() && self.nothing_uncaptured()))
    }

    /// Leaves the local state whole for the next process.
    pub(super) fn release(&mut self) {
        self.hold(false);
        if let Some(local) = self.local.take() {
            let saved = local.table.sync().and_then(|()| local.state.save(&local.dir, true));
            if let Err(error) = saved {
                log::error!("{}: {error}", self.database.path().display());
            }
        }
        self.database.with(|shared| shared.captured = None);
    }

    /// Ends the replication of this database for this process. The application goes on.
    pub(super) fn give_up(&mut self, why: &str) {
        log::error!("{}: replication stopped: {why}", self.database.path().display());
        self.dead = Some(why.to_string());
        self.job = LocalJob::None;
        self.database.with(|shared| {
            shared.set_gate(Gate::Open);
            shared.report.state = "error";
            shared.report.last_error = Some(why.to_string());
        });
        self.database.notify();
    }

    // Opening and closing.

    /// Takes in how the WAL came and went, in order.
    pub(super) fn follow(&mut self) {
        while self.dead.is_none() {
            let next = self.database.with(|shared| shared.transitions.front().copied());
            let Some(next) = next else { return };
            match next {
                Transition::Attached(attach) => {
                    if self.local.is_none() && !self.open_local() {
                        // Tried again later; until then nothing is captured.
                        self.late = true;
                        return self.skip_what_is_over();
                    }
                    let attach = self.brought_up_to_date(attach);
                    self.attach(&attach);
                }
                Transition::Detached(clean) => self.detach(clean),
            }
            self.database.with(|shared| shared.transitions.pop_front());
        }
    }

    /// What is seen of the WAL now, if what was seen at first is old: then nothing can be said of
    /// the file without a WAL.
    fn brought_up_to_date(&mut self, attach: Attach) -> Attach {
        if !std::mem::replace(&mut self.late, false) {
            return attach;
        }
        let index = self.database.border().and_then(|border| border.wal_index());
        Attach { index, fingerprint: None }
    }

    /// While another process ships: a WAL that came and went is none of our business.
    fn skip_what_is_over(&mut self) {
        self.database.with(|shared| {
            while shared.transitions.len() >= 2 {
                shared.transitions.drain(..2);
            }
        });
    }

    fn attach(&mut self, attach: &Attach) {
        self.database.with(|shared| shared.diverged = None);
        self.epoch += 1;
        self.attached = true;
        self.frames = FrameSet::default();
        self.wal = File::open(local::wal_path(self.database.path())).ok();
        self.resume(attach);
        self.set_gate();
    }

    /// Reads the local state; `false` when another process has it, or it cannot be read now.
    fn open_local(&mut self) -> bool {
        let now = self.process.now();
        let Some(store) = self.store.as_deref() else { return false };
        let replica = crate::store::url::identity(store);
        let found = match open::open(self.database.path(), &replica) {
            Ok(Opening::Ours(found)) => *found,
            Ok(Opening::HeldBy(pid)) => {
                self.stand_by(pid);
                return false;
            }
            Err(error) => {
                self.retry_at = Some(now + STANDBY_RETRY_MS);
                self.note_open_failure(&error.to_string());
                return false;
            }
        };
        self.retry_at = None;
        self.holder = None;
        self.take_over(found);
        true
    }

    fn stand_by(&mut self, pid: Option<u32>) {
        self.retry_at = Some(self.process.now() + STANDBY_RETRY_MS);
        if self.holder != pid || pid.is_none() {
            let who = pid.map_or("another process".to_string(), |pid| format!("process {pid}"));
            let path = self.database.path().display();
            log::info!("{path} is shipped by {who}; this process stands by");
            self.database.with(|shared| {
                shared.set_gate(Gate::Shut);
                shared.report.state = "standby";
                shared.report.last_error = Some(format!("{who} ships this database"));
            });
            self.database.notify();
        }
        self.holder = pid;
    }

    fn note_open_failure(&mut self, why: &str) {
        let known = self.database.with(|shared| {
            // Nothing can be captured: the application must not wait for it.
            shared.set_gate(Gate::Open);
            shared.report.state = "waiting";
            shared.report.last_error.replace(why.to_string()).as_deref() == Some(why)
        });
        if !known {
            log::error!("{}: {why}; trying again", self.database.path().display());
        }
        self.database.notify();
    }

    fn take_over(&mut self, found: Found) {
        let Found { local, closed, open, point, position, piece } = found;
        let writer = crate::units::WriterId(local.state.writer);
        self.engine = Engine::new(Self::options(&self.database), writer);
        let now = self.process.now();
        let need = match (point, local.state.image) {
            (Some(_), _) => Need::Nothing,
            (None, Some(image)) => Need::Confirm {
                level: Level::new(image.level).unwrap_or(Level::SNAPSHOT),
                min: Txid(image.min_txid),
                txid: image.base.txid(),
            },
            (None, None) => Need::Image,
        };
        let acked = local.state.base.map_or(Txid::ZERO, |base| base.txid());
        let opened = Opened {
            claimed: local.state.claimed,
            acked,
            closed: closed
                .iter()
                .filter_map(|entry| entry.txid)
                .map(|txid| crate::engine::Closed::new(txid, now))
                .collect(),
            uncommitted_since_close: !open.is_empty(),
            need,
        };
        self.closed = closed
            .into_iter()
            .filter_map(|entry| {
                let base = base_of_closed(&local, &entry)?;
                Some(ClosedFile { entry, base, seq: 0 })
            })
            .collect();
        self.open = open;
        self.point = point;
        self.piece = piece;
        self.cursor = position.map_or(Cursor::Unknown, Cursor::At);
        self.local = Some(local);
        self.hold(true);
        self.engine.handle(now, Event::Opened(opened));
    }

    /// Decides how the log goes on with the WAL that was found.
    fn resume(&mut self, attach: &Attach) {
        let now = self.process.now();
        let (Some(local), Some(point)) = (&self.local, self.point) else {
            self.cursor = Cursor::Unknown;
            return;
        };
        let position = match self.cursor {
            Cursor::At(position) => Some(position),
            _ => None,
        };
        let path = self.database.path().display();
        let wal = self.wal.as_ref();
        match open::resume(position, self.piece, &local.state, point.page_size, attach, wal) {
            Resume::At(cursor) => {
                self.cursor = cursor;
                log::debug!("{path}: the log goes on after {}", point.txid);
            }
            Resume::Compare(why) => {
                log::info!("{path}: {why}; comparing the database with the page table");
                self.cursor = Cursor::Unknown;
                self.engine.handle(now, Event::Diverged);
            }
            Resume::OtherPageSize => {
                log::info!("{path}: the page size changed; sending a full image");
                self.need_image();
            }
        }
        if attach.index.is_some_and(|index| self.is_behind(&index)) {
            self.engine.handle(now, Event::Committed { at: now });
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.upload += 1;
        self.upload
    }

    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    pub(super) fn published_is_ahead(&self) -> bool {
        self.database.with(|shared| shared.published).is_some_and(|index| self.is_behind(&index))
    }

    /// Says what may be done with the WAL: while the database is read as a whole it must stay;
    /// while nothing can be captured it need not, since a comparison or an image is due anyway.
    pub(super) fn set_gate(&mut self) {
        let gate = match (&self.job, self.cursor) {
            _ if self.dead.is_some() || self.is_fenced() => Gate::Open,
            (LocalJob::Resync(_), _) => Gate::Shut,
            (LocalJob::Image(image), _) if image.is_reading() || image.is_completing() => {
                Gate::Shut
            }
            (_, Cursor::Unknown) => Gate::Open,
            _ => Gate::Capturing,
        };
        self.database.with(|shared| shared.set_gate(gate));
        self.database.notify();
    }

    fn is_fenced(&self) -> bool {
        matches!(self.engine.status().phase, Phase::Fenced { .. })
    }

    fn is_behind(&self, index: &WalIndex) -> bool {
        if index.max_frame == 0 {
            return false;
        }
        match self.cursor {
            Cursor::At(at) => at.salts != index.salts || at.frame < index.max_frame,
            Cursor::Fresh => index.max_frame > 0,
            Cursor::Unknown => false,
        }
    }

    pub(super) fn need_image(&mut self) {
        self.cursor = Cursor::Unknown;
        self.point = None;
        self.frames = FrameSet::default();
        self.engine.handle(self.process.now(), Event::ImageNeeded);
        self.set_gate();
    }

    fn detach(&mut self, clean: Option<Fingerprint>) {
        let known = self.attached && self.frames.is_empty() && self.cursor != Cursor::Unknown;
        let clean = clean.filter(|_| known);
        self.epoch += 1;
        self.attached = false;
        // A walk that is under way goes on: it has a connection of its own.
        if matches!(self.job, LocalJob::None) {
            self.wal = None;
        }
        self.frames = FrameSet::default();
        if let Some(local) = &mut self.local {
            local.state.clean = clean.map(|fingerprint| Clean { fingerprint, piece: self.piece });
            if let Err(error) = local.state.save(&local.dir, false) {
                log::error!("{}: {error}", self.database.path().display());
            }
        }
        self.wake();
    }

    // Work.

    /// Does what is due at `now`.
    pub(super) fn work(&mut self, now: u64) {
        self.awake = false;
        if self.dead.is_some() {
            return;
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.follow();
        }
        if self.local.is_none() {
            return;
        }
        self.watch(now);
        self.take_in(now);
        self.read_ahead();
        while let Some(action) = self.engine.poll(self.process.now()) {
            self.perform(action);
        }
        self.slice();
        self.publish();
    }

    /// Looks for commits of processes that do not tell us.
    fn watch(&mut self, now: u64) {
        if !self.attached || self.watch_at > now {
            return;
        }
        self.watch_at = now + WATCH_INTERVAL_MS;
        self.hold(true);
        self.refresh_published();
        let shut = self.database.with(|shared| shared.is_shut());
        let idle = matches!(self.job, LocalJob::None) && self.cursor != Cursor::Unknown;
        if shut && idle && self.engine.may_try_local(now) {
            // Capture failed or was too slow: the gate opens again once it has caught up.
            self.capture_now();
        }
    }

    /// Keeps other processes from beginning the WAL anew, or lets them.
    fn hold(&self, hold: bool) {
        if let Some(border) = self.database.border() {
            border.hold(hold);
        }
    }

    /// Reads the headers of what was committed while there is time: at the gate only the rest is
    /// left to do.
    fn read_ahead(&mut self) {
        let known = self.cursor != Cursor::Unknown && matches!(self.job, LocalJob::None);
        let published = self.database.with(|shared| shared.published);
        let behind = match (published, self.cursor) {
            (Some(index), Cursor::At(at)) if index.salts == at.salts => {
                index.max_frame.saturating_sub(at.frame.max(self.frames.last))
            }
            _ => 0,
        };
        if known
            && behind >= READ_AHEAD
            && let Err(stop) = self.take_frames(Purpose::Gate)
        {
            self.stopped(stop);
        }
    }

    /// Publishes the wal-index as it is now. It is read under the lock under which the application's
    /// threads publish, so that it is never older than what they said.
    pub(super) fn refresh_published(&self) {
        let Some(border) = self.database.border() else { return };
        let now = self.process.now();
        self.database.with(|shared| {
            let index = border.wal_index();
            if index.is_some() && shared.published != index {
                shared.published = index;
                shared.commit_seq += 1;
                shared.unreported_since.get_or_insert(now);
            }
        });
    }

    /// Forgets frames that are in no piece: what comes next takes them in another way.
    pub(super) fn clear_frames(&mut self) {
        self.frames = FrameSet::default();
    }

    /// Tells the engine what the application did since.
    fn take_in(&mut self, now: u64) {
        let (since, diverged) = self.database.with(|shared| {
            let since = shared.unreported_since.take();
            shared.report.unacked_since = earlier(shared.report.unacked_since, since);
            (since, shared.diverged.take())
        });
        if let Some(why) = diverged {
            self.diverge(&why);
        }
        if let Some(at) = since {
            self.engine.handle(now, Event::Committed { at });
        }
        let quiet = !self.engine.has_unclosed();
        self.database.with(|shared| {
            shared.wants_bell = quiet || shared.unreported_since.is_some();
        });
    }

    fn diverge(&mut self, why: &str) {
        log::info!(
            "{}: {why}; comparing the database with the page table",
            self.database.path().display()
        );
        self.epoch += 1;
        self.cursor = Cursor::Unknown;
        self.frames = FrameSet::default();
        self.database.with(|shared| shared.captured = None);
        self.engine.handle(self.process.now(), Event::Diverged);
        self.set_gate();
    }

    pub(super) fn hurry(&mut self) {
        self.wake();
        self.follow();
        let now = self.process.now();
        self.take_in(now);
        self.engine.handle(now, Event::Hurry);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Close { txid } => self.close(txid),
            Action::Resync { txid, scan, claim } => self.begin_resync(txid, scan, claim),
            Action::Image { level, txid, pre_apply } => self.begin_image(level, txid, pre_apply),
            Action::FindHead => self.ship(Task::FindHead),
            Action::Put { txid } => self.put(txid),
            Action::Inspect { txid } => self.inspect(txid),
            Action::Confirm { level, min, max } => {
                let image = self.local.as_ref().and_then(|local| local.state.image);
                let checksum = image.map_or(0, |image| image.base.checksum);
                let key = Key { level, name: FileName { min, max } };
                self.ship(Task::Confirm { key, writer: self.engine.writer(), checksum });
            }
        }
    }

    pub(super) fn ship(&mut self, task: Task) {
        let Some(store) = self.store.clone() else { return };
        self.counters.requests += match task {
            Task::FindHead => 11,
            Task::Inspect { .. } => 2,
            _ => 1,
        };
        self.process.ship(Job { database: self.database.id, store, task });
    }

    fn slice(&mut self) {
        match std::mem::replace(&mut self.job, LocalJob::None) {
            LocalJob::None => {}
            LocalJob::Image(image) => self.step_image(image),
            LocalJob::Resync(resync) => self.step_resync(resync),
        }
    }

    // Capture.

    /// Captures what is published, into a piece, because somebody waits at the gate.
    pub(super) fn capture_now(&mut self) {
        if self.local.is_none() || !self.attached || self.dead.is_some() {
            return;
        }
        self.take_in(self.process.now());
        if let Err(stop) = self.capture(Purpose::Gate) {
            self.stopped(stop);
        }
        self.database.notify();
    }

    /// Makes the newest published frames a piece, unless there are none.
    pub(super) fn capture(&mut self, purpose: Purpose) -> Result<(), Stop> {
        let seq = self.take_frames(purpose)?;
        if !self.frames.is_empty() {
            let entry = self.next_entry(None);
            self.write_frames(&entry)?;
            if self.open.len() >= OPEN_PIECES_MAX {
                self.join_open()?;
            }
            self.check_cap();
        }
        self.set_captured(seq);
        Ok(())
    }

    /// Reads the headers of the frames published since; gives the count of commits that they end
    /// with.
    fn take_frames(&mut self, purpose: Purpose) -> Result<u64, Stop> {
        let (published, seq, grant, since) = self.database.with(|shared| {
            let known = self.cursor != Cursor::Unknown;
            let since = if known { shared.unreported_since.take() } else { None };
            shared.report.unacked_since = earlier(shared.report.unacked_since, since);
            (shared.published, shared.commit_seq, shared.grant, since)
        });
        if let Some(at) = since {
            let event = match purpose {
                Purpose::Gate => Event::Committed { at },
                Purpose::Close => Event::TakenIn { at },
            };
            self.engine.handle(self.process.now(), event);
        }
        let Some(index) = published.filter(|index| index.max_frame > 0) else { return Ok(seq) };
        let first = match self.cursor {
            Cursor::Unknown => return Ok(self.captured_seq),
            Cursor::Fresh => 1,
            Cursor::At(at) if at.salts == index.salts => {
                if index.max_frame < at.frame.max(self.frames.last) {
                    return Err(Stop::Diverged("the WAL went back".into()));
                }
                at.frame + 1
            }
            Cursor::At(at) if grant == Some((at.salts, at.frame)) && self.frames.is_empty() => 1,
            Cursor::At(_) => {
                return Err(Stop::Diverged("the WAL was begun anew without our knowing".into()));
            }
        };
        if index.max_frame < first || index.max_frame == self.frames.last {
            return Ok(seq);
        }
        if self.wal.is_none() {
            self.wal = File::open(local::wal_path(self.database.path())).ok();
        }
        let (Some(wal), Some(point)) = (&self.wal, self.point) else {
            return Err(Stop::Failed("the WAL is not there".into()));
        };
        // A generation is known by the header in the file: the index may be ahead of it.
        if first == 1
            && crate::wal::WalHeader::read(wal).is_some_and(|header| header.salts != index.salts)
        {
            return Err(Stop::Diverged("the WAL's file is of another generation".into()));
        }
        if index.page_size != point.page_size {
            self.need_image();
            return Ok(self.captured_seq);
        }
        self.frames
            .extend(wal, point.page_size, first, index.max_frame)
            .map_err(|error| Stop::Failed(format!("cannot read the WAL: {error}")))?;
        self.frames_salts = index.salts;
        // A grant is for one new beginning.
        self.database.with(|shared| shared.grant = shared.grant.filter(|_| first > 1));
        if self.cursor == Cursor::Fresh {
            // Only now is it known which generation it is.
            self.cursor =
                Cursor::At(WalPosition { salts: index.salts, frame: 0, checksum: (0, 0) });
        }
        Ok(seq)
    }

    fn write_frames(&mut self, entry: &Entry) -> Result<(), Stop> {
        let (Some(local), Some(point), Some(wal)) = (&mut self.local, self.point, &self.wal) else {
            return Err(Stop::Failed("the database is not open".into()));
        };
        let maker = maker(&self.engine, &point);
        let salts = self.frames_salts;
        let position =
            WalPosition { salts, frame: self.frames.last, checksum: self.frames.checksum };
        let entry = Entry { position: Some(position), ..entry.clone() };
        let written = capture::write_frames(
            &local.spool,
            &mut local.table,
            wal,
            &self.frames,
            salts,
            &maker,
            entry,
        )?;
        self.piece = written.pieces.1;
        self.cursor = Cursor::At(position);
        self.frames = FrameSet::default();
        match written.txid {
            None => self.open.push(written),
            Some(_) => self.add_closed(written, maker.timestamp),
        }
        Ok(())
    }

    pub(super) fn next_entry(&self, txid: Option<Txid>) -> Entry {
        let position = match self.cursor {
            Cursor::At(at) if at.frame > 0 => Some(at),
            _ => None,
        };
        Entry { txid, pieces: (self.piece + 1, self.piece + 1), position, len: 0 }
    }

    /// Publishes how far capture has come. The gate looks at it.
    fn set_captured(&mut self, seq: u64) {
        let complete = match self.cursor {
            Cursor::At(at) if self.frames.is_empty() => Some((at.salts, at.frame)),
            _ => None,
        };
        self.captured_seq = seq;
        let busy = !matches!(self.job, LocalJob::None);
        self.database.with(|shared| {
            shared.captured = complete;
            shared.captured_seq = seq;
            if complete.is_some() && !busy {
                shared.set_gate(Gate::Capturing);
            }
        });
    }

    /// Capture did not succeed: tells the engine, and the gate not to wait for it.
    pub(super) fn stopped(&mut self, stop: Stop) {
        match stop {
            Stop::Diverged(why) => self.diverge(&why),
            Stop::Failed(message) => {
                log::error!("{}: {message}", self.database.path().display());
                self.database.with(|shared| shared.set_gate(Gate::Shut));
                let now = self.process.now();
                self.engine.handle(now, Event::Committed { at: now });
                self.engine.handle(now, Event::LocalFailed(Failure::Local { message }));
            }
        }
    }

    /// Drops the captured pieces when they take too much room: the database is compared later.
    fn check_cap(&mut self) {
        let pending: u64 = self.pending_bytes();
        let Some((local, point)) = self.local.as_mut().zip(self.point) else { return };
        let database = u64::from(local.table.commit()) * u64::from(point.page_size.get());
        let cap = match self.database.settings().spool_cap {
            0 => SPOOL_CAP_DEFAULT.max(2 * database),
            cap => cap,
        };
        if pending <= cap || self.open.is_empty() {
            return;
        }
        log::warn!(
            "{}: {pending} bytes wait in the spool, more than its cap of {cap}: they are dropped, and what differs is sent when the store answers again",
            self.database.path().display()
        );
        for entry in std::mem::take(&mut self.open) {
            if let Err(error) = forget(local, &entry) {
                log::error!("{}: {error}", self.database.path().display());
            }
        }
        self.piece = match (self.closed.back(), local.state.base) {
            (Some(file), _) => file.entry.pieces.1,
            (None, base) => base.map_or(0, |base| base.piece),
        };
        self.cursor = Cursor::Unknown;
        self.epoch += 1;
        self.database.with(|shared| {
            shared.captured = None;
            shared.set_gate(Gate::Open);
        });
        self.engine.handle(self.process.now(), Event::Diverged);
    }

    fn pending_bytes(&self) -> u64 {
        let open = self.open.iter().map(|entry| entry.len).sum::<u64>();
        open + self.closed.iter().map(|file| file.entry.len).sum::<u64>()
    }

    // Closing.

    /// Closes what was captured as this TXID.
    fn close(&mut self, txid: Txid) {
        let result = self.close_captured(txid);
        let now = self.process.now();
        match result {
            Ok(closed) => self.engine.handle(now, Event::Closed(closed)),
            Err(Stop::Diverged(why)) => {
                self.diverge(&why);
                self.engine.handle(now, Event::Closed(None));
            }
            Err(Stop::Failed(message)) => {
                self.database.with(|shared| shared.set_gate(Gate::Shut));
                log::error!("{}: {message}", self.database.path().display());
                self.engine.handle(now, Event::LocalFailed(Failure::Local { message }));
            }
        }
        self.database.notify();
    }

    pub(super) fn close_captured(&mut self, txid: Txid) -> Result<Option<Txid>, Stop> {
        if self.open.is_empty() {
            // The common case: straight from the WAL into the file that is shipped.
            let seq = self.take_frames(Purpose::Close)?;
            if self.frames.is_empty() {
                self.set_captured(seq);
                self.nothing_to_close(seq);
                return Ok(None);
            }
            self.captured_seq = seq;
            let entry = self.next_entry(Some(txid));
            self.write_frames(&entry)?;
            self.set_captured(seq);
            return Ok(Some(txid));
        }
        self.capture(Purpose::Close)?;
        if self.open.is_empty() {
            return Ok(None);
        }
        let (Some(local), Some(point)) = (&mut self.local, self.point) else {
            return Err(Stop::Failed("the database is not open".into()));
        };
        let maker = maker(&self.engine, &point);
        let (first, last) = match (self.open.first(), self.open.last()) {
            (Some(first), Some(last)) => (first.pieces.0, last.pieces.1),
            _ => return Ok(None),
        };
        let position = self.open.last().and_then(|entry| entry.position);
        let entry = Entry { txid: Some(txid), pieces: (first, last), position, len: 0 };
        let (commit, post) = (local.table.commit(), local.table.checksum());
        let closed = capture::merge(&local.spool, &self.open, commit, post, &maker, entry)?;
        for piece in std::mem::take(&mut self.open) {
            local.spool.remove(&piece)?;
        }
        self.add_closed(closed, maker.timestamp);
        Ok(Some(txid))
    }

    /// Everything that was committed is with the store already.
    fn nothing_to_close(&mut self, seq: u64) {
        if self.closed.is_empty() && self.open.is_empty() {
            self.show();
            self.database.with(|shared| shared.acked_seq = shared.acked_seq.max(seq));
        }
    }

    /// Joins the open pieces into one, still open.
    fn join_open(&mut self) -> Result<(), Stop> {
        let (Some(local), Some(point)) = (&mut self.local, self.point) else { return Ok(()) };
        let (Some(first), Some(last)) = (self.open.first(), self.open.last()) else {
            return Ok(());
        };
        let entry = Entry {
            txid: None,
            pieces: (first.pieces.0, last.pieces.1),
            position: last.position,
            len: 0,
        };
        let maker = maker(&self.engine, &point);
        let (commit, post) = (local.table.commit(), local.table.checksum());
        let joined = capture::merge(&local.spool, &self.open, commit, post, &maker, entry)?;
        for piece in std::mem::take(&mut self.open) {
            if piece.pieces != joined.pieces {
                local.spool.remove(&piece)?;
            }
        }
        self.open.push(joined);
        Ok(())
    }

    fn add_closed(&mut self, entry: Entry, timestamp: Timestamp) {
        let (Some(local), Some(point), Some(txid)) = (&self.local, &mut self.point, entry.txid)
        else {
            return;
        };
        point.txid = txid;
        point.checksum = local.table.checksum();
        point.timestamp = timestamp;
        let base = base(&local.table, point, &entry);
        self.closed.push_back(ClosedFile { entry, base, seq: self.captured_seq });
    }

    // The store's side.

    fn put(&mut self, txid: Txid) {
        let (Some(local), Some(file)) = (&self.local, self.find_closed(txid)) else {
            return self.lost_file(txid);
        };
        let body = Body::File(local.spool.path(&file.entry));
        let timestamp = Timestamp(file.base.timestamp);
        let key = Key { level: Level::L0, name: FileName::single(txid) };
        self.ship(Task::Put { key, body, timestamp });
    }

    fn inspect(&mut self, txid: Txid) {
        let (Some(local), Some(file)) = (&self.local, self.find_closed(txid)) else {
            return self.lost_file(txid);
        };
        match shipper::identity(&local.spool.path(&file.entry)) {
            Ok(ours) => self.ship(Task::Inspect { txid, ours }),
            Err(error) => {
                let path = local.spool.path(&file.entry);
                let message = format!("cannot read {}: {error}", path.display());
                let failure = Event::RequestFailed(Failure::Local { message });
                self.engine.handle(self.process.now(), failure);
            }
        }
    }

    /// Cannot be: the engine asks only for files that it was told of. Said rather than ignored.
    fn lost_file(&mut self, txid: Txid) {
        let message = format!("the file of transaction {txid} is not in the spool");
        log::error!("{}: {message}", self.database.path().display());
        let failure = Event::RequestFailed(Failure::Local { message });
        self.engine.handle(self.process.now(), failure);
    }

    fn find_closed(&self, txid: Txid) -> Option<&ClosedFile> {
        self.closed.iter().find(|file| file.entry.txid == Some(txid))
    }

    /// Takes in the end of a job at the store.
    pub(super) fn shipped(&mut self, outcome: Outcome) {
        self.wake();
        let now = self.process.now();
        let event = match outcome {
            Outcome::Head(head) => Event::HeadFound(head),
            Outcome::PutDone => {
                let Some(txid) = self.closed.front().and_then(|file| file.entry.txid) else {
                    return;
                };
                self.engine.handle(now, Event::PutDone { txid });
                self.acked(txid);
                return;
            }
            Outcome::PutRefused => {
                let Some(txid) = self.closed.front().and_then(|file| file.entry.txid) else {
                    return;
                };
                Event::PutRefused { txid }
            }
            Outcome::Inspected { txid, verdict } => {
                self.engine.handle(now, Event::Inspected { txid, verdict });
                self.after_inspection(txid);
                return;
            }
            Outcome::Confirmed { arrived } => {
                self.confirmed(arrived);
                Event::Confirmed { arrived }
            }
            Outcome::Failed(failure) => {
                log::warn!("{}: {}", self.database.path().display(), failure.message());
                Event::RequestFailed(failure)
            }
            Outcome::Upload { job, outcome } => return self.upload_event(job, outcome),
        };
        self.engine.handle(now, event);
    }

    fn after_inspection(&mut self, txid: Txid) {
        if self.engine.status().acked >= txid {
            self.acked(txid);
        }
    }

    fn fenced(&mut self, by: &str, at: Txid) {
        let why = format!(
            "another writer ({by}) has written transaction {at} to {}; this process ships no more, so that the replica stays whole. What it did not ship is in {}. Let only one writer use a replica, or give this database another URL",
            crate::store::url::redacted(&self.database.settings().replica),
            local::state_dir(self.database.path()).join("spool").display()
        );
        log::error!("{}: {why}", self.database.path().display());
        self.database.with(|shared| {
            shared.set_gate(Gate::Open);
            shared.report.last_error = Some(why);
        });
    }

    /// The store confirmed a file: the state passes it, then it is removed.
    fn acked(&mut self, txid: Txid) {
        let Some(local) = &mut self.local else { return };
        let mut seq = 0;
        while self.closed.front().is_some_and(|file| file.entry.txid <= Some(txid)) {
            let Some(file) = self.closed.pop_front() else { break };
            local.state.base = Some(file.base);
            local.state.claimed = true;
            local.state.image = None;
            let removed =
                local.state.save(&local.dir, false).and_then(|()| local.spool.remove(&file.entry));
            if let Err(error) = removed {
                log::error!("{}: {error}", self.database.path().display());
            }
            seq = seq.max(file.seq);
        }
        self.show();
        self.database.with(|shared| shared.acked_seq = shared.acked_seq.max(seq));
        self.publish();
    }

    pub(super) fn mark_acked(&mut self, seq: u64) {
        self.captured_seq = seq;
        self.show();
        self.database.with(|shared| {
            shared.captured_seq = seq;
            shared.acked_seq = shared.acked_seq.max(seq);
        });
    }

    /// Forgets everything that waits: an image supersedes it.
    pub(super) fn clear_spool(&mut self) -> Result<(), Stop> {
        let Some(local) = &self.local else { return Ok(()) };
        for entry in self.open.drain(..).chain(self.closed.drain(..).map(|file| file.entry)) {
            local.spool.remove(&entry)?;
        }
        Ok(())
    }

    pub(super) fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Shows how things stand.
    fn publish(&mut self) {
        let status = self.engine.status();
        if let Phase::Fenced { by, at } = status.phase
            && !self.fence_told
        {
            self.fence_told = true;
            self.fenced(&by.to_string(), at);
        }
        if self.attached && matches!(self.job, LocalJob::None) && self.frames.is_empty() {
            self.settle();
        }
        self.show();
        self.database.notify();
    }

    /// Brings the report up to date: always before a waiter is told that its commits are acked.
    fn show(&mut self) {
        let status = self.engine.status();
        let (bytes, files) = (self.pending_bytes(), (self.open.len() + self.closed.len()) as u64);
        self.database.with(|shared| {
            let report = &mut shared.report;
            report.state = match status.phase {
                Phase::Opening => "opening",
                Phase::Imaging => "imaging",
                Phase::Streaming => "streaming",
                Phase::Waiting => "waiting",
                Phase::Fenced { .. } => "fenced",
            };
            if !matches!(status.phase, Phase::Fenced { .. }) {
                report.last_error = status.failure.as_ref().map(|f| f.message().to_string());
            }
            report.sealed = status.sealed;
            report.acked = status.acked;
            report.unacked_since = status.unacked_since;
            report.pending_bytes = bytes;
            report.spool_files = files;
            report.requests = self.counters.requests;
            report.images = self.counters.images;
            report.resyncs = self.counters.resyncs;
        });
    }

    /// A wait that began when nothing was left to ship is over at once.
    fn settle(&mut self) {
        if !self.engine.is_drained() {
            return;
        }
        let (published, seq, quiet) = self.database.with(|shared| {
            let quiet = shared.unreported_since.is_none() && shared.diverged.is_none();
            (shared.published, shared.commit_seq, quiet)
        });
        let behind = published.is_some_and(|index| self.is_behind(&index));
        if !self.open.is_empty() {
            return;
        }
        if quiet && !behind && self.cursor != Cursor::Unknown {
            self.set_captured(seq);
            self.nothing_to_close(seq);
        }
    }
}

/// What the next file of a database is made with.
pub(super) fn maker(engine: &Engine, point: &Point) -> Maker {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_millis() as i64);
    Maker {
        writer: engine.writer(),
        page_size: point.page_size,
        txid: point.txid.next(),
        timestamp: Timestamp(now.max(point.timestamp.0 + 1)),
        pre_apply: point.checksum,
    }
}

/// The point that a closed file makes.
pub(super) fn base(table: &crate::local::pages::PageTable, point: &Point, entry: &Entry) -> Base {
    Base {
        txid: point.txid.0,
        piece: entry.pieces.1,
        page_size: point.page_size.get(),
        commit: table.commit(),
        checksum: point.checksum.get(),
        timestamp: point.timestamp.0,
        position: entry.position.map(Position::from),
    }
}

/// The point that a closed file in the spool makes, by its own header.
fn base_of_closed(local: &Local, entry: &Entry) -> Option<Base> {
    let identity = shipper::identity(&local.spool.path(entry)).ok()?;
    let header = Header::decode(&identity.head).ok()?;
    Some(Base {
        txid: entry.txid?.0,
        piece: entry.pieces.1,
        page_size: header.page_size.get(),
        commit: header.commit,
        checksum: header.tag?.post_apply.get(),
        timestamp: header.timestamp.0,
        position: entry.position.map(Position::from),
    })
}

/// Takes an open piece out of the spool and out of the page table.
fn forget(local: &mut Local, entry: &Entry) -> Result<(), String> {
    let path = local.spool.path(entry);
    let file = File::open(&path).map_err(|error| error.to_string())?;
    let mut decoder = crate::ltx::Decoder::new(std::io::BufReader::new(file))
        .map_err(|error| error.to_string())?;
    while let Some(page) = decoder.next_page().map_err(|error| error.to_string())? {
        if page.pgno <= local.table.commit() {
            local.table.set(page.pgno, None).map_err(|error| error.to_string())?;
        }
    }
    local.spool.remove(entry).map_err(|error| error.to_string())
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    [a, b].into_iter().flatten().min()
}
