//! The sealer's half of a process: what carries the engine's actions out, write for write as
//! `src/sealer/` does it, on the model's disk. Every file goes through the production's codec.
//!
//! A process may die before any write. Now and then something happens in the midst of a step
//! ([`Host::meanwhile`]), since in production the application's threads run beside the sealer's.

mod attach;
mod capture;
mod closing;
mod files;
mod history;
mod image;
mod open;
mod resync;
mod scan;
mod ship;
mod work;

use std::collections::VecDeque;

use walferry::engine::Engine;
use walferry::history::History;
use walferry::local::spool::Entry;
use walferry::local::state::{Base, State};
use walferry::ltx::DatabaseChecksum;
use walferry::units::{PageSize, Salts, Txid};
use walferry::wal::evidence::Proven;
use walferry::wal::{FrameSet, WalIndex};

use crate::process::{Gate, Process};
use crate::sqlite::WalFile;
use capture::Unclear;
pub use work::Job;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cursor {
    /// Not known: the database has to be compared first.
    Unknown,
    /// Behind this position.
    At(Proven),
}

/// The end of the last closed file.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub txid: Txid,
    pub page_size: PageSize,
    pub checksum: DatabaseChecksum,
    pub timestamp: i64,
}

impl Point {
    pub fn of(base: &Base) -> Point {
        Point {
            txid: base.txid(),
            page_size: PageSize::new(base.page_size).unwrap(),
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

/// The local state, while this process ships.
pub struct Local {
    pub state: State,
}

pub struct Replica {
    pub engine: Engine,
    pub history: Option<History>,
    pub local: Option<Local>,
    pub wal: Option<WalFile>,
    pub cursor: Cursor,
    pub frames: FrameSet,
    pub frames_salts: Salts,
    pub frames_end: Option<Proven>,
    /// The last wal-index up to which everything is accounted for.
    pub judged: Option<WalIndex>,
    /// The wal-index that what was taken last ended with.
    pub ends_with: Option<WalIndex>,
    pub unclear: Option<Unclear>,
    /// What the newest captured commit's count is.
    pub captured_seq: usize,
    pub open: Vec<Entry>,
    pub closed: VecDeque<ClosedFile>,
    pub point: Option<Point>,
    pub piece: u64,
    pub job: Job,
    pub attached: bool,
    pub retry_at: Option<u64>,
    pub watch_at: u64,
    pub awake: bool,
    pub epoch: u64,
    pub upload: u64,
    pub late: bool,
    /// The file that took the log over.
    pub claimed_at: Txid,
    /// The first claim of the log from its last writer was not answered yet.
    pub claiming: bool,
    /// The spool's cap was reached: the page table lacks pages until the next comparison.
    pub dropped: bool,
    pub took_over_at: u64,
    /// The replica was seen to hold what it had confirmed.
    pub looked: bool,
}

impl Replica {
    fn new(engine: Engine, now: u64) -> Replica {
        Replica {
            engine,
            history: None,
            local: None,
            wal: None,
            cursor: Cursor::Unknown,
            frames: FrameSet::default(),
            frames_salts: Salts::default(),
            frames_end: None,
            judged: None,
            ends_with: None,
            unclear: None,
            captured_seq: 0,
            open: Vec::new(),
            closed: VecDeque::new(),
            point: None,
            piece: 0,
            job: Job::None,
            attached: false,
            retry_at: None,
            watch_at: 0,
            awake: true,
            epoch: 0,
            upload: 0,
            late: false,
            claimed_at: Txid::ZERO,
            claiming: false,
            dropped: false,
            took_over_at: now,
            looked: false,
        }
    }

    /// When there is something to do. What would be done without any effect is left out: a look at
    /// a wal-index that is known, an attempt at a lock that is held.
    pub fn due_at(
        &self,
        process: &Process,
        now: u64,
        index: Option<WalIndex>,
        lock_is_free: bool,
    ) -> Option<u64> {
        let slice = (self.awake || self.job.can_step()).then_some(now);
        let news = process.attached && index.is_some() && process.shared.published != index;
        let holds = process.shared.gate != Gate::Open;
        let to_see =
            news || process.shared.gate == Gate::Shut || !process.pinned || process.slot != holds;
        let watches = self.attached && self.local.is_some() && to_see;
        let watch = watches.then(|| self.watch_at.max(now));
        let retry = self.retry_at.filter(|_| lock_is_free);
        let engine = self.engine.wakeup(now);
        let unclear = self.unclear.and_then(|unclear| unclear.again_at);
        [slice, watch, retry, engine, unclear].into_iter().flatten().min()
    }

    /// Where capture stands, if all that was taken is written.
    pub fn captured(&self) -> Option<Proven> {
        match self.cursor {
            Cursor::At(end) if self.frames.is_empty() => Some(end),
            _ => None,
        }
    }

    /// Forgets frames that are in no piece: what comes next takes them in another way.
    pub fn clear_frames(&mut self) {
        self.frames = FrameSet::default();
        self.frames_end = None;
        self.judged = None;
        self.unclear = None;
    }

    pub fn is_behind(&self, index: &WalIndex) -> bool {
        if index.max_frame == 0 {
            return false;
        }
        match self.cursor {
            Cursor::At(end) => end.at.salts != index.salts || end.at.frame < index.max_frame,
            Cursor::Unknown => false,
        }
    }

    pub fn is_drained_or_stuck(&self, process: &Process) -> bool {
        self.local.is_none()
            || self.engine.is_stuck()
            || (self.engine.is_drained() && nothing_uncaptured(process))
    }

    /// Whether nobody has the database open and everything is shipped, or left to another process.
    pub fn is_finished(&self, process: &Process, others_wait: bool) -> bool {
        let shipped = self.open.is_empty() && self.engine.is_drained();
        let left = self.engine.is_idle() && others_wait;
        process.connections == 0
            && process.shared.transitions.is_empty()
            && self.job.is_none()
            && !self.attached
            && (self.local.is_none() || ((shipped || left) && nothing_uncaptured(process)))
    }
}

fn nothing_uncaptured(process: &Process) -> bool {
    process.shared.unreported_since.is_none() && process.shared.diverged.is_none()
}
