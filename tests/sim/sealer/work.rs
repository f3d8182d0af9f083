//! What the sealer does when it wakes (`src/sealer/mod.rs`, `src/sealer/replica.rs`).

use walferry::engine::{Engine, Event, Failure, Options, Phase};
use walferry::units::{Timestamp, WriterId};

use super::capture::Purpose;
use super::image::{Head, Stage};
use super::resync::Comparison;
use super::{Cursor, Replica};
use crate::disk::Stop;
use crate::host::{Host, re, sh, state};
use crate::process::{Control, Gate, Process};
use crate::world::Cx;

/// How often the wal-index of an open database is looked at for commits of other processes.
const WATCH_INTERVAL: u64 = 1000;

/// The local job under way, if it is one that takes more than one step.
pub enum Job {
    None,
    Image { number: u64, head: Head, stage: Stage },
    Resync(Box<Comparison>),
}

impl Job {
    pub fn is_none(&self) -> bool {
        matches!(self, Job::None)
    }

    pub fn is_image(&self) -> bool {
        matches!(self, Job::Image { .. })
    }

    pub fn can_step(&self) -> bool {
        matches!(self, Job::Resync(_) | Job::Image { stage: Stage::Sending(_), .. })
    }

    fn holds_wal(&self) -> bool {
        match self {
            Job::None | Job::Image { stage: Stage::Opening, .. } => false,
            Job::Resync(_) | Job::Image { .. } => true,
        }
    }
}

impl Host {
    fn new_engine(&self, cx: &mut Cx, writer: WriterId) -> Engine {
        let options = Options { sync_interval: self.sync_interval, jitter_seed: cx.rng.next() };
        Engine::new(options, writer)
    }

    pub fn reset_engine(&mut self, cx: &mut Cx, p: usize, writer: u64) {
        let engine = self.new_engine(cx, WriterId(writer));
        re!(self, p).engine = engine;
    }

    /// One turn of the sealer's thread.
    pub fn run_sealer(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        self.procs[p].wake_at = None;
        while let Some(control) = self.procs[p].controls.pop_front() {
            self.receive(cx, p, control)?;
        }
        self.meanwhile(cx, p);
        let Some(replica) = &self.procs[p].replica else { return Ok(()) };
        let (index, free) = (self.wal_index(p), self.lock.is_none());
        if replica.due_at(&self.procs[p], cx.now, index, free).is_some_and(|at| at <= cx.now) {
            self.work(cx, p)?;
        }
        let (process, others) = (&self.procs[p], self.others_wait(cx.now, p));
        if process.replica.as_ref().is_some_and(|replica| replica.is_finished(process, others)) {
            self.release(cx, p)?;
        }
        Ok(())
    }

    fn receive(&mut self, cx: &mut Cx, p: usize, control: Control) -> Result<(), Stop> {
        let creates = matches!(
            control,
            Control::Connected | Control::Attached | Control::Capture | Control::Hurry
        );
        if self.procs[p].replica.is_none() {
            if !creates {
                return Ok(());
            }
            let engine = self.new_engine(cx, WriterId::default());
            self.procs[p].replica = Some(Replica::new(engine, cx.now));
        }
        match control {
            Control::Connected | Control::Attached | Control::Capture => {
                re!(self, p).awake = true;
                self.follow(cx, p)?;
                self.capture_now(cx, p)?;
                if matches!(control, Control::Capture) {
                    re!(self, p).engine.handle(cx.now, Event::Asked);
                }
            }
            Control::Hurry | Control::Drain => {
                re!(self, p).awake = true;
                self.follow(cx, p)?;
                // While this process stands by, its engine is one that will be thrown away.
                if self.is_shipper(p) || cx.bug == crate::bug::Bug::StandbyLagForgotten {
                    self.take_in(cx, p);
                    re!(self, p).engine.handle(cx.now, Event::Hurry);
                }
            }
            Control::Detached => self.follow(cx, p)?,
            Control::Disconnected => re!(self, p).awake = true,
            Control::Shipped(answer) => self.shipped(cx, p, answer)?,
        }
        Ok(())
    }

    /// Whether another process would ship at once if this one did not.
    fn others_wait(&self, now: u64, p: usize) -> bool {
        let waits = |process: &Process| {
            let stands_by = process.replica.as_ref().is_some_and(|r| r.retry_at.is_some());
            process.alive && stands_by && process.busy_until <= now
        };
        self.procs.iter().enumerate().any(|(other, process)| other != p && waits(process))
    }

    /// Leaves the local state whole for the next process.
    fn release(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let shipper = self.is_shipper(p);
        if re!(self, p).dropped {
            self.may_cost_image("it was handed over while dropped pieces were not compared");
        }
        self.hold(p, false);
        if shipper {
            self.disk.sync_table()?;
            let state = state!(self, p).clone();
            self.disk.save_if_possible(&state, true)?;
            self.save_history(cx, p)?;
            self.leave_state();
            self.lock = None;
        }
        self.procs[p].replica = None;
        self.procs[p].left_at = cx.now;
        sh!(self, p).captured = None;
        cx.log(format_args!("host {}.{p}: released", self.id));
        Ok(())
    }

    pub fn work(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let replica = re!(self, p);
        replica.awake = false;
        if let Some(unclear) = &mut replica.unclear {
            unclear.again_at = unclear.again_at.filter(|at| *at > cx.now);
        }
        let retries = replica.retry_at.is_some_and(|at| at <= cx.now);
        if retries {
            replica.retry_at = None;
        }
        if retries || (self.is_shipper(p) && cx.bug != crate::bug::Bug::TransitionsPassed) {
            self.follow(cx, p)?;
        }
        if !self.is_shipper(p) {
            return Ok(());
        }
        self.watch(cx, p)?;
        self.take_in(cx, p);
        self.meanwhile(cx, p);
        while let Some(action) = re!(self, p).engine.poll(cx.now) {
            cx.log(format_args!("host {}.{p}: {action:?}", self.id));
            self.perform(cx, p, action)?;
        }
        self.keep_history(cx, p);
        self.slice(cx, p)?;
        self.report(cx, p)
    }

    /// Looks for commits of processes that do not tell us.
    fn watch(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let replica = re!(self, p);
        if !replica.attached || replica.watch_at > cx.now {
            return Ok(());
        }
        replica.watch_at = cx.now + WATCH_INTERVAL;
        self.hold_wal(p);
        if cx.bug != crate::bug::Bug::StandbyForgotten {
            self.refresh_published(cx, p);
        }
        let shut = sh!(self, p).gate == Gate::Shut;
        let replica = re!(self, p);
        let idle = replica.job.is_none() && replica.cursor != Cursor::Unknown;
        if shut && idle && replica.engine.may_try_local(cx.now) {
            self.capture_now(cx, p)?;
        }
        Ok(())
    }

    /// Keeps other processes from beginning the WAL anew, unless the gate is open.
    pub fn hold_wal(&mut self, p: usize) {
        self.hold(p, sh!(self, p).gate != Gate::Open);
    }

    /// Publishes the wal-index as it is now.
    pub fn refresh_published(&mut self, cx: &mut Cx, p: usize) {
        let index = self.wal_index(p);
        self.note_published(cx.now, p, index);
    }

    /// Tells the engine what the application did since.
    pub fn take_in(&mut self, cx: &mut Cx, p: usize) {
        let shared = &mut sh!(self, p);
        let since = shared.unreported_since.take();
        shared.unacked_since = earlier(shared.unacked_since, since);
        if let Some(why) = shared.diverged.take() {
            self.diverge(cx, p, why);
        }
        if let Some(at) = since {
            re!(self, p).engine.handle(cx.now, Event::Committed { at });
        }
    }

    pub fn diverge(&mut self, cx: &mut Cx, p: usize, why: &str) {
        cx.log(format_args!("host {}.{p}: diverged: {why}", self.id));
        let replica = re!(self, p);
        replica.epoch += 1;
        replica.cursor = Cursor::Unknown;
        replica.clear_frames();
        replica.engine.handle(cx.now, Event::Diverged);
        sh!(self, p).captured = None;
        self.set_gate(p);
    }

    pub fn set_gate(&mut self, p: usize) {
        let fenced = self.is_fenced(p);
        let replica = re!(self, p);
        let attached = replica.attached;
        sh!(self, p).gate = match (&replica.job, replica.cursor) {
            _ if fenced => Gate::Open,
            (job, _) if job.holds_wal() => Gate::Shut,
            (_, Cursor::Unknown) => Gate::Open,
            _ => Gate::Capturing,
        };
        if attached {
            self.hold_wal(p);
        }
    }

    pub fn is_fenced(&self, p: usize) -> bool {
        let replica = self.procs[p].replica.as_ref();
        replica.is_some_and(|r| matches!(r.engine.status().phase, Phase::Fenced { .. }))
    }

    /// Shows how things stand (`publish`).
    pub fn report(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        if self.is_fenced(p) {
            sh!(self, p).gate = Gate::Open;
        }
        let replica = re!(self, p);
        if replica.attached && replica.job.is_none() && replica.frames.is_empty() {
            self.settle(cx, p)?;
        }
        self.show(p);
        Ok(())
    }

    pub fn show(&mut self, p: usize) {
        sh!(self, p).unacked_since = re!(self, p).engine.status().unacked_since;
    }

    /// A wait that began when nothing was left to ship is over at once, if the evidence says so.
    fn settle(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let replica = re!(self, p);
        let idle = replica.engine.is_drained() && replica.open.is_empty();
        if !idle || replica.cursor == Cursor::Unknown {
            return Ok(());
        }
        if sh!(self, p).unreported_since.is_some() || sh!(self, p).diverged.is_some() {
            return Ok(());
        }
        match self.take_frames(cx, p, Purpose::Gate) {
            Ok(seq) => {
                let replica = re!(self, p);
                if replica.frames.is_empty() && replica.cursor != Cursor::Unknown {
                    self.set_captured(p, seq);
                    self.nothing_to_close(p, seq, cx.bug);
                } else if replica.engine.is_drained() {
                    // Nobody has told of them yet.
                    replica.engine.handle(cx.now, Event::Committed { at: cx.now });
                    replica.awake = true;
                }
                Ok(())
            }
            Err(stop) => self.stopped(cx, p, stop),
        }
    }

    pub fn local_failed(&mut self, cx: &Cx, p: usize, message: String) {
        let failure = Failure::Local { message };
        re!(self, p).engine.handle(cx.now, Event::LocalFailed(failure));
    }

    pub fn timestamp(&self, now: u64, p: usize) -> Timestamp {
        let point = self.procs[p].replica.as_ref().and_then(|replica| replica.point);
        Timestamp(now.cast_signed().max(point.map_or(0, |point| point.timestamp + 1)))
    }
}

pub fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    [a, b].into_iter().flatten().min()
}
