//! One database in the sealer's hands: its engine, its local state, and the execution of the engine's actions.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use super::age::Clocks;
use super::attach::STANDBY_RETRY_MS;
use super::capture::{Cursor, Maker};
use super::failing::Failing;
use super::frames::Unclear;
use super::handover::Handover;
use super::image::ImageJob;
use super::looks::Looks;
use super::open::{Local, Point};
use super::others::Others;
use super::resync::ResyncJob;
use crate::claim::Claim;
use crate::database::{Database, Gate, Role};
use crate::engine::audit::Audit;
use crate::engine::{Action, Engine, Event, Options, Phase};
use crate::finding::{Answer, Finding};
use crate::history::History;
use crate::local;
use crate::local::spool::Entry;
use crate::local::state::Base;
use crate::ltx::FileName;
use crate::process::Process;
use crate::shipper::{Job, Order, Task};
use crate::store::{Key, Store};
use crate::units::{Salts, Timestamp, Txid, WriterId};
use crate::wal::evidence::Proven;
use crate::wal::{FrameSet, WalIndex};

pub(super) struct Replica {
    pub(super) process: Arc<Process>,
    pub(super) database: Arc<Database>,
    pub(super) store: Option<Arc<dyn Store>>,
    pub(super) engine: Engine,
    pub(super) history: History,
    pub(super) local: Option<Local>,
    /// The database's WAL, through a descriptor of our own. Closing it is safe: SQLite takes no locks on the
    /// WAL file.
    pub(super) wal: Option<File>,
    pub(super) cursor: Cursor,
    /// Headers of committed frames that are in no piece yet.
    pub(super) frames: FrameSet,
    pub(super) frames_salts: Salts,
    /// Position at which those frames end.
    pub(super) frames_end: Option<Proven>,
    /// Last wal-index up to which every commit is accounted for.
    pub(super) judged: Option<WalIndex>,
    /// Set if index and file did not match at the last look.
    pub(super) unclear: Option<Unclear>,
    /// Open pieces, oldest first.
    pub(super) open: Vec<Entry>,
    /// Closed files that the store has not confirmed, oldest first.
    pub(super) closed: VecDeque<ClosedFile>,
    pub(super) point: Option<Point>,
    pub(super) piece: u64,
    pub(super) job: LocalJob,
    /// Value of `commit_seq` up to which everything is captured.
    pub(super) captured_seq: u64,
    /// Value of `commit_seq` for the frames that were read and are in no piece.
    pub(super) frames_seq: u64,
    /// Counts how often the local state was opened. An answer of the store to a request of an earlier tenure is
    /// useless.
    pub(super) tenure: u64,
    pub(super) attached: bool,
    pub(super) holder: Option<u32>,
    pub(super) fence_told: bool,
    pub(super) retry_at: Option<u64>,
    pub(super) watch_at: u64,
    pub(super) awake: bool,
    pub(super) dead: Option<String>,
    pub(super) counters: Counters,
    /// Counts how often the WAL came, went, or was lost track of.
    pub(super) epoch: u64,
    /// Number of the last upload.
    pub(super) upload: u64,
    /// True while the first claim of the log from its last writer is unanswered.
    pub(super) claiming: bool,
    /// TXID of the file with which the log was taken over.
    pub(super) claimed_at: Txid,
    /// Commit time of the log's last file, as of the last request for it.
    pub(super) log_time: Timestamp,
    pub(super) looks: Looks,
    /// True if time passed between an attach and the opening of our state: the `Attach` is old then.
    pub(super) late: bool,
    pub(super) others: Others,
    pub(super) handover: Handover,
    /// Time until which the shipper's place is not offered to other processes.
    pub(super) keep_until: u64,
    /// True if the process is ending and waits until the rest is shipped.
    pub(super) drains: bool,
    /// True if the database's path names another file now.
    pub(super) astray: bool,
    /// Schedule of the comparisons of database and page table that run although nothing is wrong.
    pub(super) audit: Audit,
    /// Time until which a failure is no reason to read the spool.
    pub(super) spool_sound_until: u64,
    /// Counts findings that were noted in the state ([`super::due`]).
    pub(super) remembered: u64,
    /// The file that answers those findings, and the count of findings when the file's contents were read.
    pub(super) answered: Option<(Txid, u64)>,
    /// Time up to which the former shipper reported all commits; 0 if unknown.
    pub(super) heard: u64,
    /// First and last time at which no file could be closed for lack of room.
    pub(super) no_room: Option<(u64, u64)>,
    pub(super) failing: Failing,
}

/// A closed file that the store has not confirmed.
pub(super) struct ClosedFile {
    pub(super) entry: Entry,
    pub(super) base: Base,
    pub(super) seq: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub requests: u64,
    pub images: u64,
    pub resyncs: u64,
}

/// Reason to take frames.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The frames go into a piece: an application's thread waits at the gate.
    Gate,
    /// The frames go into the file that is being closed.
    Close,
}

/// The local job in progress, if it takes more than one step.
pub(super) enum LocalJob {
    None,
    Image(Box<ImageJob>),
    Resync(Box<ResyncJob>),
}

impl Replica {
    pub(super) fn new(process: Arc<Process>, database: Arc<Database>) -> Replica {
        let settings = database.settings();
        let opened = crate::store::open_at(&settings.replica, &settings.access, process.servers());
        let store = match opened {
            Ok(store) => Some(store),
            Err(error) => {
                log::error!("{}: {error}", database.label());
                database.with(|shared| shared.report.last_error = Some(error.to_string()));
                None
            }
        };
        let options = Self::options(&database);
        let audit = super::audit::of(database.settings(), process.now(), None);
        let mut replica = Replica {
            process,
            engine: Engine::new(options, crate::units::WriterId::default()),
            history: History::new(crate::history::Options::default()),
            database,
            store,
            local: None,
            wal: None,
            cursor: Cursor::Unknown,
            frames: FrameSet::default(),
            frames_salts: Salts::default(),
            frames_end: None,
            judged: None,
            unclear: None,
            open: Vec::new(),
            closed: VecDeque::new(),
            point: None,
            piece: 0,
            job: LocalJob::None,
            captured_seq: 0,
            frames_seq: 0,
            tenure: 0,
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
            claiming: false,
            claimed_at: Txid::ZERO,
            log_time: Timestamp(0),
            looks: Looks::default(),
            late: false,
            others: Others::default(),
            handover: Handover::default(),
            keep_until: 0,
            drains: false,
            astray: false,
            audit,
            spool_sound_until: 0,
            remembered: 0,
            answered: None,
            heard: 0,
            no_room: None,
            failing: Failing::default(),
        };
        if replica.store.is_none() {
            let why = replica.database.with(|shared| shared.report.last_error.clone());
            replica.give_up(&why.unwrap_or_default());
        }
        replica
    }

    pub(super) fn options(database: &Database) -> Options {
        Options {
            sync_interval: database.settings().sync_interval.as_millis() as u64,
            jitter_seed: local::state::random_id(),
        }
    }

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
        let watch = self.watches().then_some(self.watch_at);
        let engine = self.engine.wakeup(self.process.now());
        let unclear = self.unclear.and_then(|unclear| unclear.again_at);
        let audit = self.audit_due();
        let offer = self.handover.look_at();
        let kept = self.keep_until > self.process.now() && self.is_word_there();
        let kept = kept.then_some(self.keep_until);
        let all = [slice, watch, engine, unclear, audit, offer, kept, self.retry_at];
        all.into_iter().flatten().min()
    }

    /// True if the sealer looks for commits once a second. It also does so after the database left WAL mode:
    /// the shipper keeps its place until another process wants it.
    pub(super) fn watches(&self) -> bool {
        self.local.is_some() && (self.attached || self.is_outside_wal())
    }

    pub(super) fn is_outside_wal(&self) -> bool {
        self.database.with(|shared| shared.outside.is_some())
    }

    fn has_slice(&self) -> bool {
        match &self.job {
            LocalJob::None => false,
            LocalJob::Image(image) => image.can_step(),
            LocalJob::Resync(_) => true,
        }
    }

    pub(super) fn is_drained_or_stuck(&self) -> bool {
        // A place that was given up counts as shipped only when another process has taken it.
        let ended = || self.local.is_none() && !self.handover.is_offered();
        let shipped = || self.engine.is_drained() && self.nothing_uncaptured();
        self.dead.is_some() || ended() || self.engine.is_stuck() || shipped()
    }

    /// Warns that the process ends with commits left to ship, after a failure that cannot be mended now.
    pub(super) fn tell_what_is_left(&self) {
        let shipped = self.engine.is_drained() && self.nothing_uncaptured();
        let ours = self.dead.is_none() && self.local.is_some() && !self.is_fenced();
        if let Some(failure) = self.engine.status().failure.filter(|_| ours && !shipped) {
            log::warn!(
                "{}: the process ends, and what is left is shipped by the next one: {}",
                self.database.label(),
                failure.message()
            );
        }
    }

    pub(super) fn nothing_uncaptured(&self) -> bool {
        self.database.with(|shared| shared.unreported_since.is_none() && shared.diverged.is_none())
    }

    /// Ends the replication of this database in this process. The application continues.
    pub(super) fn give_up(&mut self, why: &str) {
        log::error!("{}: replication stopped: {why}", self.database.label());
        self.end(why);
    }

    /// As [`Replica::give_up`], but for a reason that was logged already. Does nothing the second time.
    pub(super) fn end(&mut self, why: &str) {
        if self.dead.is_none() {
            self.dead = Some(why.to_string());
            self.job = LocalJob::None;
            self.database.end(why);
            self.hold(false);
            self.database.notify();
        }
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.upload += 1;
        self.upload
    }

    pub(super) fn published_is_ahead(&self) -> bool {
        self.database.with(|shared| shared.published).is_some_and(|index| self.is_behind(&index))
    }

    /// Sets the gate, which says what may be done with the WAL.
    ///
    /// The WAL must stay while the whole database is read. It need not stay while nothing can be captured,
    /// since a comparison or an image is due anyway.
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
        if self.attached && !self.has_let_go() {
            self.hold_wal();
        }
        self.database.notify();
    }

    pub(super) fn is_fenced(&self) -> bool {
        matches!(self.engine.status().phase, Phase::Fenced { .. })
    }

    pub(super) fn is_behind(&self, index: &WalIndex) -> bool {
        if index.max_frame == 0 {
            return false;
        }
        match self.cursor {
            Cursor::At(end) => end.at.salts != index.salts || end.at.frame < index.max_frame,
            Cursor::Unknown => false,
        }
    }

    /// Does the work that is due at `now`.
    pub(super) fn work(&mut self, now: u64) {
        self.awake = false;
        if self.dead.is_some() {
            return;
        }
        self.look_for_taker(now);
        if let Some(unclear) = &mut self.unclear {
            unclear.again_at = unclear.again_at.filter(|at| *at > now);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            if self.database.shipper_is_well(now) {
                self.retry_at = Some(now + STANDBY_RETRY_MS);
            } else {
                self.retry_at = None;
                self.follow();
                let taken_in = self.database.with(|shared| shared.transitions.is_empty());
                if self.local.is_none() && self.attached && taken_in {
                    self.open_again();
                }
            }
        }
        if self.local.is_none() {
            return self.copy_standing_wal();
        }
        self.follow();
        self.watch(now);
        self.take_in(now);
        self.read_ahead();
        self.let_go_in_time();
        while let Some(action) = self.engine.poll(self.process.now()) {
            self.perform(action);
        }
        self.keep_history(now);
        self.slice();
        self.audit();
        self.publish();
    }

    /// Closes files that the next work opens again, since descriptors are scarce with hundreds of databases.
    /// The WAL stays open while frames are taken but not written: another WAL may have its name later.
    pub(super) fn rest(&mut self) {
        if self.frames.is_empty() {
            self.wal = None;
        }
        if let Some(local) = &mut self.local {
            local.table.rest();
        }
        // A standby reads the page at each commit. So only a shipper without standbys closes the page.
        let page = self.database.with(|shared| {
            shared.page.clone().filter(|_| shared.role == Role::Ships && !shared.others)
        });
        if let Some(page) = page {
            page.rest();
        }
    }

    /// Tells the engine about the application's commits since the last call.
    pub(super) fn take_in(&mut self, now: u64) {
        self.hear();
        let (since, diverged) = self.database.with(|shared| {
            let since = shared.unreported_since.take();
            shared.report.unacked_since = earlier(shared.report.unacked_since, since);
            (since, shared.diverged.take())
        });
        if let Some(found) = diverged {
            self.diverge(found);
        }
        if let Some(at) = since {
            self.engine.handle(now, Event::Committed { at });
            self.audit.written(now);
        }
        let quiet = !self.engine.has_unclosed();
        self.database.with(|shared| {
            shared.wants_bell = quiet || shared.unreported_since.is_some();
        });
    }

    /// Logs a finding and its answer.
    pub(super) fn note(&mut self, found: Finding) {
        let path = self.database.label();
        // A new database has no state, so this finding is no warning.
        let level = match found {
            Finding::NoState => log::Level::Info,
            _ => log::Level::Warn,
        };
        log::log!(level, "{path}: {found}");
        self.database.with(|shared| shared.report.found = Some(found.name()));
    }

    /// Forgets the position of capture in the WAL, with the frames that were read and are in no piece.
    pub(super) fn lose_place(&mut self) {
        self.epoch += 1;
        self.cursor = Cursor::Unknown;
        self.clear_frames();
        self.database.with(|shared| {
            shared.captured = None;
            shared.lost_track += 1;
            // Until the comparison, it is unknown whether the store has the commits.
            shared.commit_seq += 1;
        });
    }

    pub(super) fn diverge(&mut self, found: Finding) {
        self.remember(found);
        self.note(found);
        let image = found.answer() == Answer::Image;
        self.lose_place();
        if image {
            return self.need_image();
        }
        self.engine.handle(self.process.now(), Event::Diverged);
        self.set_gate();
    }

    pub(super) fn hurry(&mut self) {
        self.wake();
        self.follow();
        if self.local.is_none() {
            // The shipping process handles these commits.
            return;
        }
        let now = self.process.now();
        self.take_in(now);
        self.engine.handle(now, Event::Hurry);
    }

    /// Ships commits that were found after the process was told to end, without regard to the interval.
    pub(super) fn hurry_late(&mut self) {
        if self.engine.waits_for_interval() {
            self.wake();
            self.engine.handle(self.process.now(), Event::Hurry);
        }
    }

    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Close { txid } => self.close(txid),
            Action::Resync { txid, scan, claim } => self.begin_resync(txid, scan, claim),
            Action::Image { level, txid, pre_apply } => self.begin_image(level, txid, pre_apply),
            Action::FindHead => {
                // The log may be taken over only from the writer that the state names: see `begin_claim`.
                let former = self.local.as_ref().and_then(|local| local.state.former);
                let former = former.filter(|_| !self.engine.has_claimed());
                let writer = self.engine.writer();
                let claim = former.map(|former| Claim { writer, from: Some(WriterId(former)) });
                self.ship(Task::FindHead { acked: self.engine.status().acked, claim });
            }
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
            Task::FindHead { .. } => 11,
            Task::Put { look, .. } => {
                let looks = u64::from(look.last.is_some()) + u64::from(look.earlier.is_some());
                1 + looks + if look.first { 11 } else { u64::from(look.behind) }
            }
            Task::Inspect { .. } => 2,
            _ => 1,
        };
        self.process.order(Order::Job(Job {
            database: self.database.id,
            tenure: self.tenure,
            store,
            task,
        }));
    }

    pub(super) fn slice(&mut self) {
        match std::mem::replace(&mut self.job, LocalJob::None) {
            LocalJob::None => {}
            LocalJob::Image(image) => self.step_image(image),
            LocalJob::Resync(resync) => self.step_resync(resync),
        }
    }

    pub(super) fn fenced(&mut self, by: &str, at: Txid) {
        let why = format!(
            "another writer ({by}) has written transaction {at} to {}; this process ships no more, so that the replica stays whole. What it did not ship is in {}. Let only one writer use a replica, or give this database another URL",
            crate::store::url::redacted(&self.database.settings().replica),
            self.database.dir().join("spool").display()
        );
        log::error!("{}: {why}", self.database.label());
        self.database.with(|shared| {
            shared.set_gate(Gate::Open);
            shared.report.last_error = Some(why);
        });
    }

    pub(super) fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Publishes the current status.
    pub(super) fn publish(&mut self) {
        if self.attached && matches!(self.job, LocalJob::None) && self.frames.is_empty() {
            self.settle();
        }
        self.show();
        self.database.notify();
    }

    /// Brings the report up to date. Called before a waiter is told that its commits are acked.
    pub(super) fn show(&mut self) {
        let (status, history) = (self.engine.status(), self.history.status());
        // The reason is set before the state, so that a waiter sees both or neither.
        if let Phase::Fenced { by, at } = status.phase
            && !std::mem::replace(&mut self.fence_told, true)
        {
            self.fenced(&by.to_string(), at);
        }
        let imaging = match &self.job {
            LocalJob::Image(image) => image.progress(),
            _ => None,
        };
        let keeping = self.history.is_busy();
        let passed = self.local.as_ref().map_or(0, |local| local.passed.len());
        let files = (self.open.len() + self.closed.len() + passed) as u64;
        let bytes = self.pending_bytes();
        self.database.with(|shared| {
            let report = &mut shared.report;
            report.state = match status.phase {
                Phase::Opening => "opening",
                Phase::Imaging => "imaging",
                Phase::Streaming => "streaming",
                Phase::Waiting => "waiting",
                Phase::Fenced { .. } => "fenced",
            };
            if self.astray {
                report.state = "error";
                report.last_error = Some(Finding::FileReplaced.to_string());
            } else if !matches!(status.phase, Phase::Fenced { .. }) {
                report.last_error = status.failure.as_ref().map(|f| f.message().to_string());
            }
            report.sealed = status.sealed;
            report.acked = status.acked;
            report.unacked_since = status.unacked_since;
            report.pending_bytes = bytes;
            report.spool_files = files;
            report.requests = self.counters.requests;
            report.images = self.counters.images;
            report.imaging = imaging;
            report.resyncs = self.counters.resyncs;
            report.history = history;
            report.keeping = keeping;
        });
    }

    /// Ends a wait at once if the WAL's evidence shows that nothing is left to ship. A restart of the WAL looks
    /// like a commit, but is none.
    pub(super) fn settle(&mut self) {
        let told = self.engine.has_unclosed();
        if !self.engine.has_shipped_all_closed() || (told && !self.is_at_published()) {
            return;
        }
        if !self.open.is_empty() || self.cursor == Cursor::Unknown || !self.nothing_uncaptured() {
            return;
        }
        match self.take_frames(Purpose::Gate) {
            Ok(seq)
                if self.frames.is_empty()
                    && self.open.is_empty()
                    && self.cursor != Cursor::Unknown =>
            {
                self.set_captured(seq);
                // Not if there was a commit since.
                if told && self.database.with(|shared| shared.commit_seq == seq) {
                    self.engine.handle(self.process.now(), Event::FoundNothing);
                }
                self.nothing_to_close(seq);
            }
            // These commits were not reported yet.
            Ok(_) if self.engine.is_drained() => {
                let now = self.process.now();
                self.engine.handle(now, Event::Committed { at: now });
                self.wake();
            }
            Ok(_) => {}
            Err(stop) => self.stopped(stop),
        }
    }

    /// True if the newest wal-index lists no frame behind the cursor.
    fn is_at_published(&self) -> bool {
        let Cursor::At(end) = self.cursor else { return false };
        let published = self.database.with(|shared| shared.published);
        published.is_some_and(|index| {
            index.max_frame == 0 || (index.salts == end.at.salts && index.max_frame == end.at.frame)
        })
    }
}

/// Returns the values that the next file of a database is made with.
pub(super) fn maker(engine: &Engine, point: &Point) -> Maker {
    let now = crate::clock::wall();
    let clocks = Clocks { now: crate::clock::since_boot(), wall: now };
    Maker {
        writer: engine.writer(),
        page_size: point.page_size,
        txid: point.txid.next(),
        timestamp: Timestamp(now.0.max(point.timestamp.0 + 1)),
        oldest: engine.unclosed_since().map_or(now, |since| clocks.wall_at(since)),
        pre_apply: point.checksum,
    }
}

pub(super) fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    [a, b].into_iter().flatten().min()
}
