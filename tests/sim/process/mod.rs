//! One process: what its application's threads and its sealer share (`src/database.rs`,
//! `src/process.rs`), and what the VFS knows (`sqlite-ext/src/shim.rs`).

pub mod application;
pub mod close;
pub mod gate;
pub mod pin;

use std::collections::VecDeque;

use walferry::local::state::Fingerprint;
use walferry::units::Salts;
use walferry::wal::WalIndex;
use walferry::wal::evidence::{Guard, Proven, Restart};

use crate::bug::Bug;
use crate::sealer::Replica;
use crate::store::Answer;

/// Whether the WAL may be overwritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    Capturing,
    Shut,
    Open,
}

/// How the WAL comes and goes.
#[derive(Clone, Copy, Debug)]
pub enum Transition {
    Attached(Attach),
    Detached(Option<WalEnd>),
}

/// What was there when the WAL was seen first, in the order in which it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Attach {
    pub guard: Option<Guard>,
    pub index: Option<WalIndex>,
    pub fingerprint: Option<Fingerprint>,
}

/// How a WAL ended that was checkpointed whole and removed.
#[derive(Clone, Copy, Debug)]
pub struct WalEnd {
    pub index: WalIndex,
    pub fingerprint: Fingerprint,
}

/// A connection has the database to itself.
#[derive(Clone, Copy, Debug)]
pub struct Alone {
    pub guard: Guard,
    /// What was committed last, as far as this connection has told.
    pub last: Option<WalIndex>,
}

/// True if capture stands at a wal-index.
pub fn stands_at(bug: Bug, captured: Option<Proven>, index: &WalIndex) -> bool {
    captured.is_some_and(|end| {
        if bug == Bug::PlaceBelieved {
            let (salts, frame) = end.place();
            return salts == index.salts && frame >= index.max_frame;
        }
        end.is_known_at(index)
    })
}

/// What the sealer is told, apart from commits.
#[derive(Clone, Debug)]
pub enum Control {
    Connected,
    Disconnected,
    Attached,
    Detached,
    Capture,
    Hurry,
    Drain,
    Shipped(Answer),
}

/// What application threads and the sealer both see.
pub struct Shared {
    pub published: Option<WalIndex>,
    /// For each change of `published`, the newest commit of the database at that moment.
    pub seqs: Vec<usize>,
    pub captured_seq: usize,
    pub acked_seq: usize,
    pub unreported_since: Option<u64>,
    /// Up to where capture is complete.
    pub captured: Option<Proven>,
    pub gate: Gate,
    /// The last restart that a thread of this process made.
    pub restart: Option<Restart>,
    /// Where somebody was let through, for a planted mistake.
    pub granted: Option<(Salts, u32)>,
    pub transitions: VecDeque<Transition>,
    pub diverged: Option<&'static str>,
    /// As the report shows it.
    pub unacked_since: Option<u64>,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            published: None,
            seqs: vec![0],
            captured_seq: 0,
            acked_seq: 0,
            unreported_since: None,
            captured: None,
            gate: Gate::Capturing,
            restart: None,
            granted: None,
            transitions: VecDeque::new(),
            diverged: None,
            unacked_since: None,
        }
    }
}

impl Shared {
    pub fn seq(&self) -> usize {
        self.seqs.len() - 1
    }

    /// Whether capture stands at this index.
    pub fn has_captured(&self, bug: Bug, index: &WalIndex) -> bool {
        stands_at(bug, self.captured, index)
    }

    /// The lag's beginning, as `walferry_lag()` takes it.
    pub fn lag_since(&self) -> Option<u64> {
        [self.unacked_since, self.unreported_since].into_iter().flatten().min()
    }
}

#[derive(Default)]
pub struct Process {
    pub alive: bool,
    /// Which life of the host's processes it is.
    pub incarnation: u64,
    pub started_at: u64,
    pub connections: u32,
    /// When it gave up the shipper's place: the lag of what it had committed is another's to tell.
    pub left_at: u64,
    /// The WAL was seen.
    pub attached: bool,
    /// The pin's lock on the main file, and on a read slot.
    pub pinned: bool,
    pub slot: bool,
    /// Whether this process is to hold a read slot.
    pub holds: bool,
    /// What holding the slot is, from when it was taken until it is dropped.
    pub guard: Option<Guard>,
    /// A connection asks for the file to itself, or has it: the pin is not taken.
    pub makes_way: bool,
    pub alone: Option<Alone>,
    /// There is no descriptor for the pin.
    pub starved: bool,
    pub shared: Shared,
    pub replica: Option<Replica>,
    pub controls: VecDeque<Control>,
    /// The bell rang: when the sealer comes to look.
    pub wake_at: Option<u64>,
    /// The sealer is kept from its work until then, by other databases or the system.
    pub busy_until: u64,
    /// It drains, and then ends in any case at this time.
    pub ends_at: Option<u64>,
}

impl Process {
    /// Whether it holds a lock on the database's file, which a connection does from its first read on.
    pub fn has_open(&self) -> bool {
        (self.connections > 0 && self.attached) || self.pinned
    }

    /// When the sealer has something to do.
    pub fn due_at(&self, now: u64, index: Option<WalIndex>, lock_is_free: bool) -> Option<u64> {
        if !self.alive {
            return None;
        }
        let replica = self.replica.as_ref();
        let work = replica.and_then(|replica| replica.due_at(self, now, index, lock_is_free));
        let due = [self.wake_at, work].into_iter().flatten().min();
        [due.map(|at| at.max(self.busy_until)), self.ends_at].into_iter().flatten().min()
    }
}
