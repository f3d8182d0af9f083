//! Takes care of WALs that other processes write, while this process ships and writes nothing: the sidecar.
//!
//! The pin keeps those processes from restarting the WAL. A writer whose WAL is past its auto-checkpoint size
//! checkpoints after every commit, at two fsyncs each. So the WAL must not stay at that size for long. The
//! tender therefore looks for commits many times a second. It captures and checkpoints a WAL that is about to
//! get so large. Then the pin gives way for one restart:
//!
//! - *Narrow*, when no process is writing: all frames are captured and in the database. The tender holds the
//!   checkpoint lock, so the WAL can only be restarted right there. The way may stay narrow for hours.
//! - *Wide*, when a process writes without a pause: no checkpoint of ours ever catches up. The writer's own
//!   checkpoint does, at its next commit, and the commit after that restarts the WAL. This takes
//!   milliseconds, and the tender looks closely meanwhile. Capture then reads the last commits from the rest
//!   of the old generation in the file. The count of commits proves that none is missing
//!   ([`crate::wal::evidence`]).
//!
//! A writer that itself checkpoints at shorter WALs would do so at each commit from there on. The tender
//! prevents this until the WAL is as long as other WALs, or no process has written for a moment.
//!
//! If a comparison or an image is due, a replica does not need the frames in the WAL. The pin is then not
//! held for that replica, and other processes restart the WAL as usual. While the image or the comparison
//! runs, the whole WAL must stay, however long that takes. Then only the tender checkpoints, now and then.
//!
//! The tender does not take the write lock while a program has the database open. So a writer without a busy
//! timeout never fails because of the tender. Once no program has the database open, the tender empties the
//! WAL. Otherwise a program that then replaces the database would have the new one overlaid with frames of
//! the old WAL. The tender also removes the size of the database from the wal-index, since the new database
//! would be read with the old size.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::border::{Border, Way};
use crate::database::{Database, Gate, Role, Shared};
use crate::finding::Finding;
use crate::local::shared::Place;
use crate::local::state::Fingerprint;
use crate::neighbours::{self, Locks};
use crate::process::{Control, Process, spawn};
use crate::replications::Replications;
use crate::units::Salts;
use crate::wal::WalIndex;

/// Frames from which on the tender relieves a WAL: before SQLite's own auto-checkpoint, at 1000.
const FRAMES: u32 = 800;
/// Most frames that the WAL may have behind the captured frames when it is let go. The next generation takes
/// a while to overwrite them, since it overwrites the captured frames first.
const TAIL: u32 = 300;
/// Captured frames from which on a WAL with uncaptured frames may be let go (the wide way). Even then, the
/// writer must be so slow that it does not overwrite those frames within the margin.
const WIDE_MIN: u32 = 600;
/// Intervals between looks at a WAL: while it grows, shortly after, and when nothing happens.
const HOT: Duration = Duration::from_millis(1);
const WARM: Duration = Duration::from_millis(10);
const COLD: Duration = Duration::from_millis(50);
/// How long after a change a WAL counts as growing, and as having grown.
const HOT_FOR: Duration = Duration::from_millis(100);
const WARM_FOR: Duration = Duration::from_secs(10);
/// Open databases for which the plain intervals hold. With more, `WARM` and `COLD` grow in whole multiples.
const ROUND: u32 = 200;
/// Interval between looks at a WAL whose way is wide.
const CLOSELY: Duration = Duration::from_micros(100);
/// Pause while the WAL of a fast writer is to grow.
const SHORTLY: Duration = Duration::from_millis(1);
/// Longest time that the way is wide.
const WIDE_FOR: Duration = Duration::from_secs(2);
/// Checkpoints that fail for this long are logged. A program that closes the database has exclusive use of it
/// for a moment, and for longer on a busy machine.
const FAILURE_TOLD: Duration = Duration::from_secs(10);
/// After this time without a commit, no process counts as writing. A checkpoint on a slow disk takes less.
const QUIET: Duration = Duration::from_millis(100);
/// The wide way ends when more frames than this are not captured.
const TAIL_MAX: u32 = 600;
/// After this time without a readable wal-index, the tender acts.
const BLIND_FOR: Duration = Duration::from_secs(1);
/// Longest wait for capture.
const CAPTURE_FOR: Duration = Duration::from_secs(5);
/// Least time that the next generation must take to reach the uncaptured frames. It grows up to `MARGIN_MAX`
/// each time that it was too short.
const MARGIN: Duration = Duration::from_millis(100);
const MARGIN_MAX: Duration = Duration::from_mins(1);
/// An attempt ends after this many ways that no process took, or after `RELIEVE_FOR`.
const IN_VAIN_MAX: u32 = 2;
/// Pause after an attempt in vain: it begins with `PAUSE_MIN`, and doubles up to `PAUSE_MAX`.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest time that an attempt takes.
const RELIEVE_FOR: Duration = Duration::from_secs(10);
/// Interval between looks whether a WAL that must stay may go.
const STAY: Duration = Duration::from_millis(20);
/// Interval between looks at a database that has no open connection in this process.
const CLOSED: Duration = Duration::from_millis(200);
/// A WAL without a new frame for `EMPTY_AFTER` may be emptied. The check whether it may is repeated after
/// `EMPTY_AGAIN`.
const EMPTY_AFTER: Duration = Duration::from_millis(300);
const EMPTY_AGAIN: Duration = Duration::from_millis(500);
/// Interval between looks whether the database file changes while the WAL is empty.
const REST: Duration = Duration::from_millis(200);
/// Worker threads, and so the WALs that are worked on at the same time.
const HANDS: usize = 3;

/// The threads of the tender.
pub(crate) struct Tender {
    new: Sender<Replications>,
}

impl Tender {
    /// Starts the threads.
    pub(crate) fn start(process: &Arc<Process>) -> Result<Tender, String> {
        let (new, arriving) = crossbeam_channel::unbounded();
        let (jobs, waiting) = crossbeam_channel::unbounded();
        for _ in 0..HANDS {
            let waiting: Receiver<(Arc<Tended>, Job)> = waiting.clone();
            let tend = move || waiting.iter().for_each(|(tended, job)| tended.work(job));
            spawn_guarded(process, "walferry-tend", tend)?;
        }
        spawn_guarded(process, "walferry-watch", move || watch(&arriving, &jobs))?;
        Ok(Tender { new })
    }

    /// Takes care of another database from now on.
    pub(crate) fn tend(&self, database: &Replications) {
        let _ = self.new.send(database.clone());
    }
}

/// Starts a thread whose panic ends replication in this process.
fn spawn_guarded(
    process: &Arc<Process>,
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), String> {
    let process = process.clone();
    spawn(name, move || process.guard(name, body))
}

/// Job of a worker thread. A database has at most one job at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Job {
    /// The WAL is captured and checkpointed, and may then be restarted.
    Relieve,
    /// The WAL is emptied and the size of the database forgotten, since no program has the database open.
    Empty,
}

/// A database that the tender takes care of.
struct Tended {
    database: Replications,
    /// True while a job for it waits or runs.
    busy: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The narrow way is open: other processes may restart the WAL, but only right behind this position.
    way: Option<Place>,
    /// After an attempt in vain: the time of the next attempt, and the length of the pause before it.
    again: Option<(Instant, Duration)>,
    /// Least time that the next generation must take to overwrite uncaptured frames; `None` for [`MARGIN`].
    margin: Option<Duration>,
    /// Frames a second that were written in the last attempt, and the time of that measurement.
    pace: Option<(f64, Instant)>,
    /// Generation of the WAL, and how many of its frames the tender copied to the database or found there.
    copied: Option<(Salts, u32)>,
    /// Frames at which another process has checkpointed a WAL that the tender does not relieve yet.
    early: Option<u32>,
    /// True while the tender blocks checkpoints although no attempt is under way.
    held: bool,
    /// True if no process has written for a moment.
    quiet: bool,
    /// Generation of an empty WAL, the database file then, and the time of that look. SQLite does not change
    /// the file before the WAL has frames.
    rest: Option<(Salts, Fingerprint, Instant)>,
    /// Time since which all checkpoints have failed, and whether the log says so.
    failing: Option<(Instant, bool)>,
}

/// Need of all replicas of a database together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Care {
    /// The WAL is captured, and may then go.
    Capture,
    /// The WAL must stay, to be read.
    Stay,
    /// No replica needs the WAL.
    None,
}

impl State {
    /// Returns the pace of the writer from the pace seen just now. The writer may be in a checkpoint of its
    /// own, so an earlier pace counts too, halved after each second.
    fn pace(&mut self, seen: f64) -> f64 {
        let before =
            self.pace.map_or(0.0, |(pace, at)| pace * (-at.elapsed().as_secs_f64()).exp2());
        let pace = seen.max(before);
        self.pace = Some((pace, Instant::now()));
        pace
    }

    fn margin(&self) -> Duration {
        self.margin.unwrap_or(MARGIN)
    }
}

/// State of a database in the watching thread.
struct Watched {
    tended: Arc<Tended>,
    seen: Option<WalIndex>,
    changed: Instant,
    /// When the tender last acted on an unreadable wal-index.
    cared: Instant,
    /// When the tender last checked whether the WAL may be emptied.
    asked: Instant,
    next: Instant,
    /// True if this process has no open connection to the database.
    closed: bool,
    over: bool,
}

/// Runs the watching thread, which ends with the process.
fn watch(arriving: &Receiver<Replications>, jobs: &Sender<(Arc<Tended>, Job)>) {
    let mut all: Vec<Watched> = Vec::new();
    let mut seen = LocksSeen::default();
    loop {
        let next = all.iter().map(|watched| watched.next).min();
        let arrived = match next {
            None => arriving.recv().ok(),
            Some(next) => arriving.recv_deadline(next).ok(),
        };
        let now = Instant::now();
        for database in arrived.into_iter().chain(arriving.try_iter()) {
            if all.iter().any(|watched| watched.tended.database.is_same(&database)) {
                continue;
            }
            let busy = AtomicBool::new(false);
            let tended = Arc::new(Tended { database, busy, state: Mutex::default() });
            all.push(Watched {
                tended,
                seen: None,
                changed: now,
                cared: now,
                asked: now,
                next: now,
                closed: false,
                over: false,
            });
        }
        let open = all.iter().filter(|watched| !watched.closed).count();
        let rarer = (u32::try_from(open).unwrap_or(u32::MAX) / ROUND).max(1);
        for watched in all.iter_mut().filter(|watched| watched.next <= now) {
            watched.closed = watched.tended.is_closed();
            watched.over = watched.is_over(now);
            watched.look(now, &mut seen, jobs);
            watched.next = now
                + match now.duration_since(watched.changed) {
                    _ if watched.closed => CLOSED,
                    since if since < HOT_FOR => HOT,
                    since if since < WARM_FOR => WARM * rarer,
                    _ => COLD * rarer,
                };
        }
        all.retain(|watched| !watched.over);
    }
}

/// The locks of all processes, read for many databases at once.
#[derive(Default)]
struct LocksSeen(Option<(Instant, Option<Locks>)>);

impl LocksSeen {
    fn at(&mut self, now: Instant) -> Option<&Locks> {
        let is_old = |at: &Instant| now.duration_since(*at) >= EMPTY_AGAIN;
        if self.0.as_ref().is_none_or(|(at, _)| is_old(at)) {
            self.0 = Some((now, Locks::read()));
        }
        self.0.as_ref()?.1.as_ref()
    }
}

impl Watched {
    /// True if the database needs no more care: its file is gone, and so are all connections of this process.
    /// A new file at the path arrives as a new database.
    fn is_over(&self, now: Instant) -> bool {
        self.closed
            && now.duration_since(self.changed) >= WARM_FOR
            && !self.tended.busy.load(Ordering::Acquire)
            && !self.tended.database.path().exists()
    }

    fn look(&mut self, now: Instant, locks: &mut LocksSeen, jobs: &Sender<(Arc<Tended>, Job)>) {
        let index = self.tended.look();
        if index != self.seen {
            self.seen = index;
            self.changed = now;
        }
        if self.tended.busy.load(Ordering::Acquire) {
            return;
        }
        let since = self.changed.max(self.cared);
        let blind = index.is_none() && now.duration_since(since) >= BLIND_FOR;
        if blind {
            self.cared = now;
        }
        let quiet = now.duration_since(self.changed) >= HOT_FOR;
        let job = if self.tended.needs_care(index, quiet) || blind && self.tended.is_ours() {
            Job::Relieve
        } else if self.may_be_emptied(now, locks) {
            Job::Empty
        } else {
            return;
        };
        self.tended.busy.store(true, Ordering::Release);
        let _ = jobs.send((self.tended.clone(), job));
    }

    /// True if no program has the database open, as far as the last look at the locks shows.
    fn may_be_emptied(&mut self, now: Instant, locks: &mut LocksSeen) -> bool {
        let holds = self.seen.is_some_and(|index| index.max_frame > 0 || index.page_count > 0);
        let idle = now.duration_since(self.changed) >= EMPTY_AFTER;
        if !holds || !idle || now.duration_since(self.asked) < EMPTY_AGAIN {
            return false;
        }
        self.asked = now;
        let path = self.tended.database.path();
        locks.at(now).is_some_and(|locks| locks.are_ours_alone(path)) && self.tended.is_ours()
    }
}

impl Tended {
    /// True if the WAL must be relieved. Ends a way that was used, or that leads elsewhere by now.
    fn needs_care(&self, index: Option<WalIndex>, quiet: bool) -> bool {
        let mut state = self.state.lock();
        if let Some(place) = state.way {
            let still = index.is_some_and(|index| (index.salts, index.max_frame) == place);
            if still {
                return false;
            }
            self.end_way(&mut state);
            return false;
        }
        let Some(index) = index else {
            self.let_others_checkpoint(&mut state);
            return false;
        };
        if index.max_frame == 0 {
            self.look_at_rest(&mut state, &index);
        }
        if index.max_frame < FRAMES {
            self.spare(&mut state, &index);
        }
        state.quiet = quiet;
        let due = index.max_frame >= FRAMES || (state.held && quiet);
        due && state.again.is_none_or(|(at, _)| at <= Instant::now())
    }

    /// Looks for changes of the file while the WAL is empty: no other sign shows them.
    fn look_at_rest(&self, state: &mut State, index: &WalIndex) {
        let known = state.rest.filter(|(salts, _, _)| *salts == index.salts);
        if known.is_some_and(|(_, _, at)| at.elapsed() < REST) {
            return;
        }
        let Ok(now) = Fingerprint::of(self.database.path()) else { return };
        // A commit may have been written, and copied to the file, since the index was read.
        if self.border().and_then(|border| border.wal_index()).as_ref() != Some(index) {
            return;
        }
        state.rest = Some((index.salts, now, Instant::now()));
        // A replaced or renamed file is handled elsewhere.
        if known.is_some_and(|(_, then, _)| then.file == now.file && !then.is_renamed(&now)) {
            for database in self.database.each() {
                database.diverged(Finding::ChangedWhileIdle);
            }
        }
    }

    /// Keeps a writer that checkpoints early from doing so at each commit. The writer cannot restart a pinned
    /// WAL, so each such checkpoint would cost it two fsyncs.
    fn spare(&self, state: &mut State, index: &WalIndex) {
        let Some(border) = self.border() else { return };
        let Some(copied) = border.copied() else { return };
        let known = match state.copied {
            Some((salts, known)) if salts == index.salts => known,
            // The frames may have been copied before the tender came.
            None => copied,
            Some(_) => 0,
        };
        state.copied = Some((index.salts, copied));
        if copied > known {
            state.early = Some(state.early.map_or(copied, |early| early.min(copied)));
        }
        let early = state.early.is_some_and(|early| index.max_frame >= early / 2);
        if early && !state.held && self.care() == Care::Capture {
            // If the writer is checkpointing just now, the tender tries again later.
            state.held = border.hold_checkpoints(true);
        }
    }

    fn let_others_checkpoint(&self, state: &mut State) {
        if std::mem::take(&mut state.held)
            && let Some(border) = self.border()
        {
            border.hold_checkpoints(false);
        }
    }

    fn is_closed(&self) -> bool {
        self.database.each().all(|database| database.with(|shared| shared.connections == 0))
    }

    fn care(&self) -> Care {
        let gate = |database: &Arc<Database>| database.with(|shared| shared.gate);
        self.database.each().map(gate).fold(Care::None, |care, gate| match (care, gate) {
            (Care::Stay, _) | (_, Gate::Shut) => Care::Stay,
            (Care::Capture, _) | (_, Gate::Capturing) => Care::Capture,
            (Care::None, Gate::Open) => Care::None,
        })
    }

    fn is_ours(&self) -> bool {
        let is_ours = |shared: &mut Shared| shared.role == Role::Ships && shared.connections > 0;
        self.database.each().all(|database| database.with(is_ours))
    }

    fn border(&self) -> Option<&Arc<dyn Border>> {
        self.database.first().border()
    }

    /// Looks at the wal-index for every replica ([`Database::look`]); `None` if another process ships to one
    /// of them.
    fn look(&self) -> Option<WalIndex> {
        let mut looked = self.database.each().map(|database| database.look());
        let first = looked.next().flatten();
        // Every replica must look, whatever the others see.
        looked.fold(first, Option::and)
    }

    /// Waits for news of the sealer, for this long at most. Other processes give no news, so the caller must
    /// look at the wal-index again.
    fn pause(&self, time: Duration) {
        let database = self.database.first();
        drop(database.shared.wait_for(database.shared.lock(), time));
    }

    fn capture(&self) {
        for database in self.database.each() {
            database.send(Control::Capture(database.id));
        }
    }

    /// Returns how often capture has lost its position, for all replicas together.
    fn lost_track(&self) -> u64 {
        self.database.each().map(|database| database.with(|shared| shared.lost_track)).sum()
    }

    /// Takes the pin back, and asks for capture of the frames committed meanwhile.
    fn end_way(&self, state: &mut State) {
        if self.border().is_none_or(|border| border.take_back()) {
            state.way = None;
            self.look();
            self.capture();
        }
    }

    fn work(&self, job: Job) {
        match job {
            Job::Relieve => self.relieve(),
            Job::Empty => self.empty(&mut self.state.lock()),
        }
        self.busy.store(false, Ordering::Release);
    }

    /// Empties the WAL and its index, if the whole WAL is captured and no program has the database open.
    fn empty(&self, state: &mut State) {
        let Some(border) = self.border() else { return };
        if self.look().is_some_and(|index| index.max_frame == 0) {
            if neighbours::is_alone(self.database.path()) {
                border.forget_size();
            }
            return;
        }
        if self.care() != Care::Capture {
            return;
        }
        if state.way.is_some() {
            self.end_way(state);
        }
        self.let_others_checkpoint(state);
        let (Some(captured), Some(index)) = (self.captured(), self.look()) else { return };
        let is_all = (index.salts, index.max_frame) == captured;
        if !is_all || !self.checkpoint(border.as_ref(), state) {
            return;
        }
        // The locks are read last: a program that opens the database after that reads before it writes.
        if border.copied() != Some(index.max_frame)
            || self.look() != Some(index)
            || !neighbours::is_alone(self.database.path())
        {
            return;
        }
        let path = self.database.path().display();
        match border.empty_wal() {
            Ok(true) => {
                border.forget_size();
                log::debug!("{path}: no program has it open: its WAL is emptied");
                self.look();
                self.capture();
            }
            Ok(false) => {}
            Err(error) => log::debug!("{path}: its WAL cannot be emptied: {error}"),
        }
    }

    /// Captures and checkpoints the WAL, and lets other processes restart it.
    fn relieve(&self) {
        let mut state = self.state.lock();
        let before = self.lost_track();
        self.try_to_relieve(&mut state);
        let missed = self.lost_track() != before;
        let margin = state.margin();
        state.margin = Some(if missed {
            MARGIN_MAX.min(margin * 4)
        } else {
            MARGIN.max(margin.mul_f64(0.95))
        });
    }

    fn try_to_relieve(&self, state: &mut State) {
        let Some(border) = self.border() else { return };
        let Some(begun) = self.look() else {
            // A writer died while it wrote the wal-index. The checkpoint makes SQLite repair it.
            self.checkpoint(border.as_ref(), state);
            return;
        };
        match self.care() {
            Care::Capture => {}
            Care::Stay => return self.keep(border.as_ref(), state, &begun),
            Care::None => return let_be(border.as_ref(), state),
        }
        state.held = false;
        let begun_at = Instant::now();
        let (mut in_vain, mut copied) = (0, false);
        self.capture();
        while in_vain < IN_VAIN_MAX && begun_at.elapsed() < RELIEVE_FOR {
            let (Some(captured), Some(now)) = (self.captured(), self.look()) else {
                break;
            };
            if captured.0 != begun.salts || now.salts != begun.salts {
                state.again = None;
                break;
            }
            // The time that the next generation takes to reach the uncaptured frames, at this pace.
            let pace = f64::from(now.max_frame.saturating_sub(begun.max_frame));
            let pace = state.pace(pace / begun_at.elapsed().as_secs_f64());
            // Without a writer there are no such frames, and the narrow way will do.
            let still = state.quiet && now.max_frame == begun.max_frame;
            let far = still || f64::from(captured.1) >= pace * state.margin().as_secs_f64();
            if !far {
                // A writer that checkpointed after each commit would be slow meanwhile.
                border.hold_checkpoints(true);
                self.pause(SHORTLY);
                copied = false;
                continue;
            }
            if !std::mem::replace(&mut copied, true) {
                border.hold_checkpoints(false);
                if !self.checkpoint(border.as_ref(), state) {
                    break;
                }
                continue;
            }
            let tail = if captured.1 >= WIDE_MIN && !still { TAIL } else { 0 };
            let way = border.give_way(captured, tail);
            if way != Way::Shut {
                log::debug!(
                    "{}: {way:?} way behind frame {}, at {pace:.0} frames a second",
                    self.database.path().display(),
                    captured.1
                );
            }
            if way == Way::Narrow {
                state.way = Some(captured);
                state.again = None;
                return;
            }
            if way == Way::Wide && self.watch_closely(border.as_ref(), captured) {
                state.again = None;
                return;
            }
            // Perhaps no process writes just now, or a reader prevents the restart.
            in_vain += 1;
            copied = false;
        }
        border.hold_checkpoints(false);
        let pause = match self.care() {
            Care::Capture => state.again.map_or(PAUSE_MIN, |(_, last)| PAUSE_MAX.min(last * 2)),
            // The need has changed meanwhile.
            Care::Stay | Care::None => Duration::ZERO,
        };
        state.again = Some((Instant::now() + pause, pause));
    }

    /// Keeps the whole WAL. A writer would checkpoint at each commit, so the tender blocks checkpoints. For
    /// each [`FRAMES`] new frames, the tender makes one checkpoint itself.
    fn keep(&self, border: &dyn Border, state: &mut State, index: &WalIndex) {
        let copied = state.copied.filter(|(salts, _)| *salts == index.salts);
        if index.max_frame >= copied.map_or(0, |(_, frame)| frame).saturating_add(FRAMES) {
            border.hold_checkpoints(false);
            self.checkpoint(border, state);
            // Readers may have kept the checkpoint from copying all frames. A second try would cost as much,
            // so the frames count as copied.
            state.copied = Some((index.salts, index.max_frame));
        }
        state.held = border.hold_checkpoints(true);
        let again = if state.held { STAY } else { SHORTLY };
        state.again = Some((Instant::now() + again, PAUSE_MIN));
    }

    /// Looks closely while the way is wide, until a process has used the way, no process writes, or too many
    /// frames are not captured. True if the way was used.
    fn watch_closely(&self, border: &dyn Border, captured: Place) -> bool {
        let (salts, mut last) = captured;
        let until = Instant::now() + WIDE_FOR;
        let mut moved = Instant::now();
        let begun = loop {
            let now = Instant::now();
            match border.wal_index() {
                Some(index) if index.salts != salts => break true,
                Some(index) if index.max_frame.saturating_sub(captured.1) > TAIL_MAX => {
                    break false;
                }
                Some(index) if index.max_frame != last => (last, moved) = (index.max_frame, now),
                Some(_) if now < until && now < moved + QUIET => {}
                _ => break false,
            }
            self.pause(CLOSELY);
        };
        while !border.take_back() {
            self.pause(CLOSELY);
        }
        // The first commit of the new generation follows at once. Capture takes it together with the rest of
        // the old generation.
        let is_empty = || border.wal_index().is_some_and(|index| index.max_frame == 0);
        let until = Instant::now() + QUIET;
        while begun && is_empty() && Instant::now() < until {
            self.pause(CLOSELY);
        }
        if begun {
            // Waits for capture, so that the caller knows whether commits were missed.
            self.captured();
        }
        begun
    }

    /// Checkpoints the WAL; `false` after an error.
    fn checkpoint(&self, border: &dyn Border, state: &mut State) -> bool {
        match border.checkpoint() {
            Ok(_) => {
                state.failing = None;
                let copied = border.wal_index().zip(border.copied());
                state.copied = copied.map(|(index, copied)| (index.salts, copied));
            }
            Err(error) => {
                let (since, told) = state.failing.get_or_insert((Instant::now(), false));
                if since.elapsed() >= FAILURE_TOLD && !std::mem::replace(told, true) {
                    let path = self.database.path().display();
                    log::warn!("{path}: its WAL cannot be checkpointed: {error}");
                }
                return false;
            }
        }
        true
    }

    /// Waits until all current commits are captured for every replica that needs them. Returns the position
    /// of the capture that is least far; `None` if capture makes no progress for now.
    fn captured(&self) -> Option<Place> {
        self.capture();
        let mut least: Option<Place> = None;
        for database in self.database.each() {
            if database.with(|shared| shared.gate == Gate::Open) {
                continue;
            }
            let place = captured(database)?;
            // Positions of two generations cannot be compared: then the later replica's counts.
            least = match least {
                Some(least) if place.0 == least.0 && place.1 > least.1 => Some(least),
                _ => Some(place),
            };
        }
        least
    }
}

/// Does the same as [`Tended::captured`] for one replica.
fn captured(database: &Arc<Database>) -> Option<Place> {
    let index = database.look().filter(|index| index.max_frame > 0)?;
    database.send(Control::Capture(database.id));
    let deadline = Instant::now() + CAPTURE_FOR;
    let mut shared = database.shared.lock();
    loop {
        if shared.role != Role::Ships || shared.gate != Gate::Capturing {
            return None;
        }
        match shared.captured {
            Some(at) if at.0 == index.salts && at.1 >= index.max_frame => return Some(at),
            // The WAL was restarted meanwhile.
            at if shared.published.is_some_and(|now| now.salts != index.salts) => return at,
            _ => {}
        }
        let news;
        (shared, news) = database.shared.wait_until(shared, deadline);
        if !news {
            return None;
        }
    }
}

/// Leaves the WAL to other processes: no replica needs it, and the pin is not held.
fn let_be(border: &dyn Border, state: &mut State) {
    border.hold_checkpoints(false);
    state.held = false;
    state.again = Some((Instant::now() + PAUSE_MAX, PAUSE_MIN));
}
