//! One replicated database as the border sees it: what an application's thread may call.
//!
//! Nothing here waits for the network but [`Database::wait`]. A commit costs one short lock and one
//! message of some forty bytes; the lock is never held over I/O.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::border::Border;
use crate::local::state::Fingerprint;
use crate::process::{Control, Process};
use crate::settings::Settings;
use crate::status::Report;
use crate::units::{Salts, Txid};
use crate::wal::WalIndex;

/// Longest time that a writer waits at the gate for local work to end.
const GATE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long application threads wait, all in all, each time that the gate is shut: most images and
/// comparisons of small databases are done by then, and nobody notices.
const SHUT_PATIENCE: Duration = Duration::from_millis(250);

/// The sealer is woken each time that so many frames were committed, to look at them ahead.
const FRAMES_AHEAD: u32 = 4096;

/// Committed frames, by reference: what the application's thread hands to the sealer. The bytes
/// stay in the WAL, which gate and pin keep from being overwritten.
#[derive(Clone, Copy, Debug)]
pub struct CommittedFrames {
    /// Which database.
    pub database: u64,
    /// The wal-index just after the commit.
    pub index: WalIndex,
    /// When the oldest commit was made that the sealer did not know of, in milliseconds of the
    /// process's clock.
    pub at: u64,
}

/// A replicated database of this process.
pub struct Database {
    /// Number within the process.
    pub id: u64,
    path: PathBuf,
    settings: Settings,
    process: Weak<Process>,
    border: OnceLock<Arc<dyn Border>>,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// What application threads and the sealer both see.
pub(crate) struct Shared {
    /// Connections of this process.
    pub connections: usize,
    /// The newest wal-index that was seen.
    pub published: Option<WalIndex>,
    /// Counts the changes of `published`.
    pub commit_seq: u64,
    /// Everything up to this count is captured, or acked by the store.
    pub captured_seq: u64,
    pub acked_seq: u64,
    /// When the oldest commit was made of which the sealer does not know yet.
    pub unreported_since: Option<u64>,
    /// The next commit must wake the sealer; else it comes by itself.
    pub wants_bell: bool,
    /// Last frame at which the sealer was woken.
    pub bell_frame: u32,
    /// Capture is complete up to this frame of this generation.
    pub captured: Option<(Salts, u32)>,
    gate: Gate,
    /// How long application threads may still wait, all in all, for a shut gate to open.
    patience: Duration,
    /// A restart of the WAL was let through at this position.
    pub grant: Option<(Salts, u32)>,
    /// How the WAL came and went, as far as the sealer has not taken it in; in order.
    pub transitions: VecDeque<Transition>,
    /// Capture cannot vouch for completeness any more, and why.
    pub diverged: Option<String>,
    pub report: Report,
}

/// Whether the WAL may be overwritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// As soon as everything in it is captured, which takes milliseconds.
    Capturing,
    /// Not for now: an image is being taken, another process ships, or the spool cannot be written.
    Shut,
    /// At once: capture has given up until the database can be compared as a whole.
    Open,
}

/// How the WAL comes and goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transition {
    /// It was seen for the first time since nobody of this process had it.
    Attached(Attach),
    /// Nobody of this process has it any more. If it was captured, checkpointed whole and removed:
    /// how the database file was left.
    Detached(Option<Fingerprint>),
}

/// What was there when the WAL was seen first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attach {
    pub index: Option<WalIndex>,
    pub fingerprint: Option<Fingerprint>,
}

/// Why a wait ended without success.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitError {
    /// Time is up; the text says what stands in the way.
    TimedOut(String),
    /// It can not succeed.
    Stopped(String),
}

impl std::fmt::Display for WaitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WaitError::TimedOut(why) => write!(f, "not replicated in time: {why}"),
            WaitError::Stopped(why) => write!(f, "not replicated: {why}"),
        }
    }
}

impl std::error::Error for WaitError {}

impl Shared {
    pub(crate) fn is_shut(&self) -> bool {
        self.gate == Gate::Shut
    }

    pub(crate) fn set_gate(&mut self, gate: Gate) {
        if gate == Gate::Shut && self.gate != Gate::Shut {
            self.patience = SHUT_PATIENCE;
        }
        self.gate = gate;
    }
}

impl Database {
    pub(crate) fn new(
        id: u64,
        path: PathBuf,
        settings: Settings,
        process: Weak<Process>,
    ) -> Database {
        let report = Report::new(&path, &settings.replica);
        Database {
            id,
            path,
            settings,
            process,
            border: OnceLock::new(),
            shared: Mutex::new(Shared {
                connections: 0,
                published: None,
                commit_seq: 0,
                captured_seq: 0,
                acked_seq: 0,
                unreported_since: None,
                wants_bell: true,
                bell_frame: 0,
                captured: None,
                gate: Gate::Capturing,
                patience: SHUT_PATIENCE,
                grant: None,
                transitions: VecDeque::new(),
                diverged: None,
                report,
            }),
            changed: Condvar::new(),
        }
    }

    /// Path of the database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Tells how to reach the host's SQLite. Only the first call counts.
    pub fn set_border(&self, border: Arc<dyn Border>) {
        let _ = self.border.set(border);
    }

    pub(crate) fn border(&self) -> Option<&Arc<dyn Border>> {
        self.border.get()
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Shared) -> T) -> T {
        f(&mut self.shared.lock())
    }

    /// Lets waiting threads look again.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// A connection was opened.
    pub fn connect(&self) {
        self.with(|shared| shared.connections += 1);
        self.send(Control::Connected(self.id));
    }

    /// A connection is gone. The answer is whether it was the last of this process.
    pub fn disconnect(&self) -> bool {
        let last = self.with(|shared| {
            shared.connections = shared.connections.saturating_sub(1);
            shared.connections == 0
        });
        if last {
            self.send(Control::Disconnected(self.id));
        }
        last
    }

    /// The WAL was opened and its index read for the first time since nobody of this process had
    /// it: called under a read lock, with the file's looks taken before.
    pub fn attached(&self, index: Option<WalIndex>, fingerprint: Option<Fingerprint>) {
        self.with(|shared| {
            let attach = Attach { index, fingerprint };
            shared.transitions.push_back(Transition::Attached(attach));
            shared.published = index;
            shared.captured = None;
            shared.grant = None;
            shared.commit_seq += 1;
        });
        self.send(Control::Attached(self.id));
    }

    /// The write lock is about to be given up with the wal-index like this: if it has moved,
    /// something was committed.
    pub fn committed(&self, index: WalIndex) {
        let Some(process) = self.process.upgrade() else { return };
        let sent = self.with(|shared| {
            if shared.published == Some(index) {
                return None;
            }
            shared.published = Some(index);
            shared.commit_seq += 1;
            let at = *shared.unreported_since.get_or_insert_with(|| process.now());
            let ahead = index.max_frame.wrapping_sub(shared.bell_frame) >= FRAMES_AHEAD;
            if ahead {
                shared.bell_frame = index.max_frame;
            }
            Some((at, std::mem::replace(&mut shared.wants_bell, false) || ahead))
        });
        if let Some((at, ring)) = sent {
            process.commit(CommittedFrames { database: self.id, index, at }, ring);
        }
    }

    /// A checkpoint begins: a restart of the WAL may follow, so capture goes ahead meanwhile.
    pub fn checkpoint_begins(&self) {
        let pending = self.with(|shared| {
            let seen = shared.published.map(|index| (index.salts, index.max_frame));
            shared.gate == Gate::Capturing && shared.captured != seen
        });
        if pending {
            self.send(Control::Capture(self.id));
        }
    }

    /// Whether the gate stays shut for longer than an application's thread should wait, so that
    /// checkpoints should be held back too.
    pub fn gate_stays_shut(&self) -> bool {
        let mut shared = self.shared.lock();
        while shared.gate == Gate::Shut {
            if !self.wait_shut(&mut shared) {
                return true;
            }
        }
        false
    }

    /// Waits a while for a shut gate; `false` when patience is used up.
    fn wait_shut(&self, shared: &mut parking_lot::MutexGuard<'_, Shared>) -> bool {
        if shared.patience.is_zero() || self.process.strong_count() == 0 {
            return false;
        }
        let began = Instant::now();
        let patience = shared.patience;
        self.changed.wait_for(shared, patience);
        shared.patience = shared.patience.saturating_sub(began.elapsed());
        true
    }

    /// The gate: may the WAL, complete up to `index`, be overwritten? Waits for capture, which is
    /// local work; never for the network.
    pub fn may_restart(&self, index: WalIndex) -> bool {
        let reached = self.wait_captured(index);
        if reached {
            self.with(|shared| shared.grant = Some((index.salts, index.max_frame)));
        }
        reached
    }

    /// Waits until everything up to `index` is captured; gives up when the gate is shut or local
    /// work takes too long.
    pub fn wait_captured(&self, index: WalIndex) -> bool {
        let mut shared = self.shared.lock();
        if index.max_frame == 0 {
            return true;
        }
        if shared.published != Some(index) {
            shared.published = Some(index);
            shared.commit_seq += 1;
            let now = self.process.upgrade().map_or(0, |process| process.now());
            shared.unreported_since.get_or_insert(now);
        }
        let deadline = Instant::now() + GATE_TIMEOUT;
        let mut asked = false;
        loop {
            if shared.gate == Gate::Open || shared.captured == Some((index.salts, index.max_frame))
            {
                return true;
            }
            if self.process.strong_count() == 0 {
                return false;
            }
            if shared.gate == Gate::Shut {
                if self.wait_shut(&mut shared) {
                    continue;
                }
                return false;
            }
            if !asked {
                asked = true;
                parking_lot::MutexGuard::unlocked(&mut shared, || {
                    self.send(Control::Capture(self.id));
                });
                continue;
            }
            if self.changed.wait_until(&mut shared, deadline).timed_out() {
                // Nobody else waits in vain: the gate opens again when capture has caught up.
                shared.set_gate(Gate::Shut);
                shared.patience = Duration::ZERO;
                return false;
            }
        }
    }

    /// The new beginning that was let through did not come about.
    pub fn restart_failed(&self) {
        self.with(|shared| shared.grant = None);
    }

    /// The database was written outside the WAL, or the WAL was overwritten without our knowing:
    /// capture must compare the whole database before it goes on.
    pub fn diverged(&self, why: &str) {
        let first = self.with(|shared| {
            let first = shared.diverged.is_none();
            shared.diverged.get_or_insert_with(|| why.to_string());
            first
        });
        if first {
            self.send(Control::Capture(self.id));
        }
    }

    /// Nobody of this process has the WAL open any more, or somebody has it exclusively. `clean` is
    /// how the database file was left, if the WAL was captured, checkpointed whole and removed.
    pub fn detached(&self, clean: Option<Fingerprint>) {
        self.with(|shared| {
            shared.captured = None;
            shared.transitions.push_back(Transition::Detached(clean));
        });
        self.send(Control::Detached(self.id));
    }

    /// The file was written in a journal mode other than WAL: nobody sees such commits but by
    /// comparison, once it is in WAL mode again.
    pub fn outside_wal(&self) {
        self.with(|shared| {
            shared.report.state = "not-wal";
            shared.report.last_error =
                Some("only WAL mode is replicated: set PRAGMA journal_mode=WAL".to_string());
        });
    }

    /// Waits until everything committed before the call is at the store; gives the TXID that the
    /// store confirmed last. `hurry` ships at once instead of at the next interval.
    pub fn wait(&self, timeout: Duration, hurry: bool) -> Result<Txid, WaitError> {
        let deadline = Instant::now() + timeout;
        // What other processes committed counts too.
        if let Some(index) = self.border().and_then(|border| border.wal_index()) {
            self.committed(index);
        }
        let mut shared = self.shared.lock();
        let target = shared.commit_seq;
        if shared.acked_seq < target {
            let control = if hurry { Control::Hurry(self.id) } else { Control::Capture(self.id) };
            parking_lot::MutexGuard::unlocked(&mut shared, || self.send(control));
        }
        loop {
            if shared.acked_seq >= target {
                return Ok(shared.report.acked);
            }
            if let Some(why) = shared.report.stopped() {
                return Err(WaitError::Stopped(why));
            }
            if self.changed.wait_until(&mut shared, deadline).timed_out() {
                log::debug!(
                    "{}: a wait for commit {target} ended at {}: captured {} at {:?}, published {:?}, gate {:?}",
                    self.path.display(),
                    shared.acked_seq,
                    shared.captured_seq,
                    shared.captured,
                    shared.published,
                    shared.gate
                );
                return Err(WaitError::TimedOut(shared.report.in_the_way()));
            }
        }
    }

    /// How the replication of this database stands.
    pub fn report(&self) -> Report {
        let now = self.process.upgrade().map_or(0, |process| process.now());
        self.with(|shared| {
            let mut report = shared.report.clone();
            let oldest =
                [report.unacked_since, shared.unreported_since].into_iter().flatten().min();
            report.unacked_since = oldest;
            report.lag_ms = oldest.map_or(0, |since| now.saturating_sub(since));
            report.connections = shared.connections;
            report
        })
    }

    fn send(&self, control: Control) {
        if let Some(process) = self.process.upgrade() {
            process.control(control);
        }
    }
}
