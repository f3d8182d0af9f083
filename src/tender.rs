//! Care for WALs that other processes write, while this one ships and writes nothing: the sidecar.
//!
//! The pin keeps those processes from beginning the WAL anew. A writer whose WAL is past its
//! auto-checkpoint size checkpoints after every commit, at two fsyncs each, so that it must not stay
//! there for long. Therefore commits are looked for many times a second; a WAL that is about to get
//! so large is captured and checkpointed from here, and then the pin gives way for one new beginning:
//!
//! - *Narrow*, when nobody is writing: all is captured and in the database, and the checkpoint lock
//!   is held, without which the WAL can begin anew only right there. It may stay so for hours.
//! - *Wide*, when somebody writes without a pause: no checkpoint of ours ever catches up, so the
//!   writer's own does, at its next commit, and the commit after that begins the WAL anew. That takes
//!   milliseconds, and is looked at closely meanwhile. What was committed last is then read from what
//!   is left in the file, and proven to be all by the count of commits (`sealer/frames.rs`).
//!
//! A writer that checkpoints at shorter WALs by itself would do so at each commit from there on. It is
//! kept from that until its WAL is as long as the others, or nobody has written for a moment.
//!
//! Where a replica has no use for what is in the WAL, since a comparison or an image is due, the pin is
//! not held for it, and others begin the WAL anew as ever. While an image or a comparison is made all of
//! it must stay, however long that takes: then nobody checkpoints but we, now and then.
//!
//! The write lock is not taken where a program has the database open: a writer without a busy timeout never
//! fails because of us. Once no program has, the WAL is emptied: whoever then puts another database into the
//! place of this one would have it overlaid with what is left of a WAL that is not its own. The wal-index is
//! made to forget the size of the database, too: the other one would be read as if it had that.

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

/// A WAL of so many frames is taken care of: before SQLite's own auto-checkpoint, at 1000.
const FRAMES: u32 = 800;
/// Most frames that the WAL may have behind what is captured when it is let go: the generation that
/// follows takes a while to overwrite them, as what is captured comes before them.
const TAIL: u32 = 300;
/// A shorter WAL is let go only when all of it is captured; a longer one too, if the writer is fast.
const WIDE_MIN: u32 = 600;
/// How often a WAL is looked at: while it grows, shortly after, and when nothing happens.
const HOT: Duration = Duration::from_millis(1);
const WARM: Duration = Duration::from_millis(10);
const COLD: Duration = Duration::from_millis(50);
/// How long it counts as growing, or as having grown.
const HOT_FOR: Duration = Duration::from_millis(100);
const WARM_FOR: Duration = Duration::from_secs(10);
/// So many databases are looked at in a round without making the rounds rarer.
const ROUND: u32 = 200;
/// How often it is looked at while it is let go and somebody writes, and for how long at most.
const CLOSELY: Duration = Duration::from_micros(100);
/// How long to wait where a fast writer's WAL is to grow.
const SHORTLY: Duration = Duration::from_millis(1);
const WIDE_FOR: Duration = Duration::from_secs(2);
/// Checkpoints that have failed for so long are told of. A program that closes has the file to itself
/// for a moment, and for longer on a busy machine.
const FAILURE_TOLD: Duration = Duration::from_secs(10);
/// Nobody writes who has not done so for so long: a checkpoint of a slow disk's takes less.
const QUIET: Duration = Duration::from_millis(100);
/// The wide way ends when so many frames are not captured.
const TAIL_MAX: u32 = 600;
/// After so long without a wal-index that can be read, something is done about it.
const BLIND_FOR: Duration = Duration::from_secs(1);
/// How long capture may take, which is waited for.
const CAPTURE_FOR: Duration = Duration::from_secs(5);
/// Time from the wide way until what is not captured is overwritten. Longer after that was too short.
const MARGIN: Duration = Duration::from_millis(100);
const MARGIN_MAX: Duration = Duration::from_mins(1);
/// An attempt ends after so many ways that nobody took, and after so long.
const IN_VAIN_MAX: u32 = 2;
/// An attempt in vain is followed by another after so long, then ever longer.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const RELIEVE_FOR: Duration = Duration::from_secs(10);
/// How often it is looked whether a WAL that must stay may go.
const STAY: Duration = Duration::from_millis(20);
/// How often a database is looked at that nobody has open here.
const CLOSED: Duration = Duration::from_millis(200);
/// A WAL to which nothing was added for so long may be emptied, and so often it is asked whether it may.
const EMPTY_AFTER: Duration = Duration::from_millis(300);
const EMPTY_AGAIN: Duration = Duration::from_millis(500);
/// How often it is looked whether the file changes while nothing is in the WAL.
const REST: Duration = Duration::from_millis(200);
/// WALs that are taken care of at the same time.
const HANDS: usize = 3;

/// The threads that do all this.
pub(crate) struct Tender {
    new: Sender<Replications>,
}

impl Tender {
    /// Starts them.
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

    /// Takes care of another database, from now on.
    pub(crate) fn tend(&self, database: &Replications) {
        let _ = self.new.send(database.clone());
    }
}

/// Starts a thread whose panic is the end of replication in this process.
fn spawn_guarded(
    process: &Arc<Process>,
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), String> {
    let process = process.clone();
    spawn(name, move || process.guard(name, body))
}

/// What is done for a database, one at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Job {
    /// Its WAL is captured and checkpointed, and may then be begun anew.
    Relieve,
    /// Its WAL is emptied and the size of the database forgotten, as no program has it open.
    Empty,
}

/// A database that is taken care of.
struct Tended {
    database: Replications,
    /// Somebody is at it.
    busy: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Others have the narrow way, right behind this place.
    way: Option<Place>,
    /// An attempt was in vain: when to try again, and how long that was put off.
    again: Option<(Instant, Duration)>,
    /// How long the next generation is to take, at least, to overwrite what is not captured; `None`
    /// for [`MARGIN`].
    margin: Option<Duration>,
    /// Frames a second that were written in the last attempt, and when that was.
    pace: Option<(f64, Instant)>,
    /// The WAL of which this is known: how many frames we have copied to the database, or found copied.
    copied: Option<(Salts, u32)>,
    /// At how many frames somebody else has checkpointed a WAL that we leave alone as yet.
    early: Option<u32>,
    /// Nobody checkpoints, because of us, while no attempt is under way.
    held: bool,
    /// Nobody has written for a moment.
    quiet: bool,
    /// The file when nothing was in this generation of the WAL, and when it was looked at: nobody changes it
    /// before something is in that.
    rest: Option<(Salts, Fingerprint, Instant)>,
    /// Since when all checkpoints have failed, and whether that was told.
    failing: Option<(Instant, bool)>,
}

/// What the replicas ask for together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Care {
    /// The WAL is captured, and may then go.
    Capture,
    /// It must stay, to be read.
    Stay,
    /// Nobody here has a use for it.
    None,
}

impl State {
    /// The pace of the writer, of which this was seen just now. It may be in a checkpoint of its own:
    /// what was seen before counts too, half after each second.
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

/// What the watching thread keeps of a database.
struct Watched {
    tended: Arc<Tended>,
    seen: Option<WalIndex>,
    changed: Instant,
    /// When something was done last about a wal-index that cannot be read.
    cared: Instant,
    /// When it was asked last whether the WAL may be emptied.
    asked: Instant,
    next: Instant,
    /// Nobody has it open in this process.
    closed: bool,
    over: bool,
}

/// The watching thread's body; it ends with the process.
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
    /// Whether nobody needs it any more: the file is gone, and so is everybody who had it. If there is one
    /// again, it comes anew.
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

    /// Whether no program has the database open, as far as was seen lately.
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
    /// Whether there is something to do. Ends a way that was used, or that leads elsewhere by now.
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

    /// Looks whether the file changes though nothing is in the WAL: nobody tells of that.
    fn look_at_rest(&self, state: &mut State, index: &WalIndex) {
        let known = state.rest.filter(|(salts, _, _)| *salts == index.salts);
        if known.is_some_and(|(_, _, at)| at.elapsed() < REST) {
            return;
        }
        let Ok(now) = Fingerprint::of(self.database.path()) else { return };
        // Something may have been written, and copied to the file, since the index was read.
        if self.border().and_then(|border| border.wal_index()).as_ref() != Some(index) {
            return;
        }
        state.rest = Some((index.salts, now, Instant::now()));
        // Another file is another matter.
        if known.is_some_and(|(_, then, _)| then.file == now.file && !then.is_renamed(&now)) {
            for database in self.database.each() {
                database.diverged(Finding::ChangedWhileIdle);
            }
        }
    }

    /// Keeps a writer that checkpoints early from doing so at each commit: it cannot begin a WAL anew that
    /// is pinned, so that each would cost it two fsyncs.
    fn spare(&self, state: &mut State, index: &WalIndex) {
        let Some(border) = self.border() else { return };
        let Some(copied) = border.copied() else { return };
        let known = match state.copied {
            Some((salts, known)) if salts == index.salts => known,
            // It may have been so before we came.
            None => copied,
            Some(_) => 0,
        };
        state.copied = Some((index.salts, copied));
        if copied > known {
            state.early = Some(state.early.map_or(copied, |early| early.min(copied)));
        }
        let early = state.early.is_some_and(|early| index.max_frame >= early / 2);
        if early && !state.held && self.care() == Care::Capture {
            // If the writer is at it just now, another time.
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

    /// Looks at the wal-index for every replica ([`Database::look`]); `None` where another process
    /// ships to one of them.
    fn look(&self) -> Option<WalIndex> {
        let mut looked = self.database.each().map(|database| database.look());
        let first = looked.next().flatten();
        // All look, whatever one sees.
        looked.fold(first, Option::and)
    }

    /// Waits for news of the sealer, but not longer than this: of other processes there is none, so the
    /// wal-index has to be looked at again.
    fn pause(&self, time: Duration) {
        let database = self.database.first();
        drop(database.shared.wait_for(database.shared.lock(), time));
    }

    fn capture(&self) {
        for database in self.database.each() {
            database.send(Control::Capture(database.id));
        }
    }

    /// How often capture had to give up, for all replicas.
    fn lost_track(&self) -> u64 {
        self.database.each().map(|database| database.with(|shared| shared.lost_track)).sum()
    }

    /// Takes the pin back, and has what came meanwhile captured.
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

    /// Leaves nothing in the WAL and its index, if all of it is captured and no program has the database open.
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
        // The last question comes last: a program that begins now reads before it writes.
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

    /// Has the WAL captured and checkpointed, and lets it be begun anew.
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
            // A writer died while it wrote the wal-index: this makes SQLite mend it.
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
            // How long the next generation takes to reach what is not captured, at this pace.
            let pace = f64::from(now.max_frame.saturating_sub(begun.max_frame));
            let pace = state.pace(pace / begun_at.elapsed().as_secs_f64());
            // Where nobody writes there is no such thing, and the narrow way will do.
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
            // Perhaps nobody writes just now, or a reader is in the way.
            in_vain += 1;
            copied = false;
        }
        border.hold_checkpoints(false);
        let pause = match self.care() {
            Care::Capture => state.again.map_or(PAUSE_MIN, |(_, last)| PAUSE_MAX.min(last * 2)),
            // That changed meanwhile.
            Care::Stay | Care::None => Duration::ZERO,
        };
        state.again = Some((Instant::now() + pause, pause));
    }

    /// The WAL must stay. A writer would checkpoint at each commit: nobody does, but for one checkpoint
    /// of ours for as many frames as others make theirs at.
    fn keep(&self, border: &dyn Border, state: &mut State, index: &WalIndex) {
        let copied = state.copied.filter(|(salts, _)| *salts == index.salts);
        if index.max_frame >= copied.map_or(0, |(_, frame)| frame).saturating_add(FRAMES) {
            border.hold_checkpoints(false);
            self.checkpoint(border, state);
            // Readers may have kept it from copying all: it was tried, and costs the same once more.
            state.copied = Some((index.salts, index.max_frame));
        }
        state.held = border.hold_checkpoints(true);
        let again = if state.held { STAY } else { SHORTLY };
        state.again = Some((Instant::now() + again, PAUSE_MIN));
    }

    /// While the way is wide: until it was used, nobody writes, or too much is not captured. Whether it
    /// was used.
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
        // Its first commit follows at once: with it, what is left of the generation before is taken.
        let is_empty = || border.wal_index().is_some_and(|index| index.max_frame == 0);
        let until = Instant::now() + QUIET;
        while begun && is_empty() && Instant::now() < until {
            self.pause(CLOSELY);
        }
        if begun {
            // So that it is known whether something was missed.
            self.captured();
        }
        begun
    }

    /// `false` when it is impossible.
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

    /// Waits until what is committed now is captured for every replica that has a use for it; gives how far
    /// capture has come. `None` when it does not go on for now.
    fn captured(&self) -> Option<Place> {
        self.capture();
        let mut least: Option<Place> = None;
        for database in self.database.each() {
            if database.with(|shared| shared.gate == Gate::Open) {
                continue;
            }
            let place = captured(database)?;
            // One that has seen a new beginning says so for all.
            least = match least {
                Some(least) if place.0 == least.0 && place.1 > least.1 => Some(least),
                _ => Some(place),
            };
        }
        least
    }
}

/// The same for one replica.
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
            // Begun anew meanwhile.
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

/// Nobody here has a use for the WAL, and the pin is not held: others do with it as they like.
fn let_be(border: &dyn Border, state: &mut State) {
    border.hold_checkpoints(false);
    state.held = false;
    state.again = Some((Instant::now() + PAUSE_MAX, PAUSE_MIN));
}
