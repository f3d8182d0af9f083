//! One database and one replica of it as the border sees it: what an application's thread may call.
//!
//! Nothing here waits for the network but [`Database::wait`]. A commit costs one short lock and one
//! message of some forty bytes; the lock is never held over I/O.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crate::border::Border;
use crate::finding::Finding;
use crate::gate::WritersTurn;
use crate::local::shared::{Call, Place, SharedPage};
use crate::local::state::Fingerprint;
use crate::process::{Control, Process};
use crate::settings::Settings;
use crate::status::{Report, lag_of};
use crate::store;
use crate::units::Salts;
use crate::wal::WalIndex;
use crate::wal::evidence::{Guard, Proven, Restart};
use crate::watched::Watched;

/// The sealer is woken each time that so many frames were committed, to look at them ahead.
const FRAMES_AHEAD: u32 = 4096;
/// How long a write that found no room waits for the sealer to make some, on a machine that is busy: it fails
/// otherwise.
const MAKE_ROOM: Duration = Duration::from_secs(10);
/// Fewer frames than this are left for the gate, where they take less than a millisecond.
const CAPTURE_AHEAD: u32 = 100;

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

/// The replication of a database of this process to one replica.
pub struct Database {
    /// Number within the process.
    pub id: u64,
    path: PathBuf,
    label: String,
    dir: PathBuf,
    settings: Settings,
    pub(crate) process: Weak<Process>,
    border: OnceLock<Arc<dyn Border>>,
    pub(crate) shared: Watched<Shared>,
}

/// What application threads and the sealer both see.
pub(crate) struct Shared {
    /// Connections of this process.
    pub connections: usize,
    /// The sealer is done with it since its last connection was closed, and this process owes nothing.
    pub settled: bool,
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
    /// The same with all that is known of it: recovery may bring other frames to the same place.
    pub captured_end: Option<Proven>,
    pub(crate) gate: Gate,
    /// How long application threads may still wait, all in all, for a shut gate to open.
    pub patience: Duration,
    /// The file could not be replicated when it was opened last.
    pub refused: bool,
    /// Replication has ended for this process: nobody will open the gate again.
    pub given_up: bool,
    /// The last restart of the WAL that a thread of this process made or let happen.
    pub restart: Option<Restart>,
    /// A thread of this process is making one: the end of it is not known yet.
    pub restarts: bool,
    /// Turn of a writer to take the read slots.
    pub turn: WritersTurn,
    /// How the WAL came and went, as far as the sealer has not taken it in; in order.
    pub transitions: VecDeque<Transition>,
    /// Capture cannot vouch for completeness any more, and why.
    pub diverged: Option<Finding>,
    /// How often that was so.
    pub lost_track: u64,
    pub report: Report,
    /// It is not in WAL mode.
    pub outside: Option<Outside>,
    /// Who ships.
    pub role: Role,
    /// What the processes of this database tell each other, once it is open.
    pub page: Option<Arc<SharedPage>>,
    /// Our term as the shipper.
    pub term: u64,
    /// Other processes have the database open too.
    pub others: bool,
    /// The WAL was let go for another process: where, and the number of its wish.
    pub released: (Option<Place>, u64),
    /// The shipper did not answer when it was last alive at this time.
    pub silent: Option<u64>,
}

impl Shared {
    /// What is known of the database, with what the sealer has not taken in.
    pub(crate) fn known(&self) -> Report {
        let mut report = self.report.clone();
        let outside = self.outside.and_then(|outside| outside.written_since);
        report.unacked_since =
            [report.unacked_since, self.unreported_since, outside].into_iter().flatten().min();
        if self.outside.is_some() && !matches!(report.state, "error" | "fenced") {
            report.state = "not-wal";
            report.last_error =
                Some("only WAL mode is replicated: set PRAGMA journal_mode=WAL".to_string());
        }
        report
    }

    /// Takes in what a connection sees committed, read under the lock of this, so that it is never
    /// older than what was published before. Gives, if it is news, when the oldest commit was made of
    /// which the sealer does not know, and whether the sealer is to be woken.
    pub(crate) fn observe(&mut self, index: WalIndex, now: u64) -> Option<(u64, bool)> {
        if self.published == Some(index) {
            return None;
        }
        self.published = Some(index);
        self.commit_seq += 1;
        let at = *self.unreported_since.get_or_insert(now);
        Some((at, self.is_to_ring(index.max_frame)))
    }

    /// Returns when the oldest commit was made of those that this process ships and has not heard of yet.
    fn unheard(&self) -> Option<u64> {
        let ships = self.role == Role::Ships && self.outside.is_none();
        self.page.as_ref().filter(|_| ships).and_then(|page| page.peek_unreported())
    }

    /// Nobody does so once a second while there is no WAL.
    fn tell_those_who_look(&self) {
        if self.role == Role::Ships {
            crate::standby::publish_view(self);
        }
    }

    /// True if nobody has read the database in this process, or written to it, and nothing is wrong with it.
    fn has_seen_nothing(&self) -> bool {
        let found = self.outside.is_some() || self.diverged.is_some();
        self.commit_seq == 0 && !found && self.report.state != "error"
    }

    /// What the report says is of a file that was replaced, and the one in its place was opened since:
    /// the sealer has not taken that in.
    pub(crate) fn is_opened_again(&self) -> bool {
        let replaced = Finding::FileReplaced.to_string();
        let waiting = self.transitions.back();
        matches!(waiting, Some(Transition::Attached(_)))
            && self.report.last_error.as_deref() == Some(replaced.as_str())
    }

    /// Whether the sealer is to be woken for a commit that ends with this frame.
    fn is_to_ring(&mut self, frame: u32) -> bool {
        let ahead = frame.wrapping_sub(self.bell_frame) >= FRAMES_AHEAD;
        if ahead {
            self.bell_frame = frame;
        }
        std::mem::replace(&mut self.wants_bell, false) || ahead
    }
}

/// What is known of a database that is not in WAL mode.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Outside {
    /// When this process first wrote to it.
    pub written_since: Option<u64>,
}

/// Which process ships a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Not known yet.
    Unknown,
    /// This one.
    Ships,
    /// Another one, which has the lock.
    StandsBy,
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
    Detached(Option<WalEnd>),
}

/// What was there when the WAL was seen first, in the order in which it was looked at.
#[derive(Clone, Copy, Default, Debug)]
pub struct Attach {
    /// What kept other processes from restarting the WAL by then.
    pub guard: Option<Guard>,
    /// The wal-index.
    pub index: Option<WalIndex>,
    /// The database file.
    pub fingerprint: Option<Fingerprint>,
}

/// Reads what a connection sees committed, through its own mapping of the wal-index; `None` where it
/// has none.
pub type ReadIndex<'a> = &'a dyn Fn() -> Option<WalIndex>;

/// How a WAL ended that was checkpointed whole and removed by a connection that had the database to
/// itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalEnd {
    /// The last wal-index.
    pub index: WalIndex,
    /// The database file without it.
    pub fingerprint: Fingerprint,
}

/// How the text of [`WaitError::TimedOut`] begins.
pub(crate) const NOT_IN_TIME: &str = "not replicated in time";

/// Why a wait ended without success.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitError {
    /// Time is up; the text says what stands in the way.
    TimedOut(String),
    /// It can not succeed.
    Stopped(String),
    /// The connection's wal-index cannot be read: nothing is known of its commits.
    Unseen,
    /// The application has interrupted it.
    Interrupted,
}

impl std::fmt::Display for WaitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WaitError::TimedOut(why) => write!(f, "{NOT_IN_TIME}: {why}"),
            WaitError::Stopped(why) => write!(f, "not replicated: {why}"),
            WaitError::Interrupted => f.write_str("interrupted"),
            WaitError::Unseen => f.write_str(
                "not replicated: the WAL cannot be seen, so nothing is known of this connection's commits",
            ),
        }
    }
}

impl std::error::Error for WaitError {}

/// How many frames of the WAL are not captured.
fn behind(index: &WalIndex, captured: Option<Place>) -> u32 {
    match captured {
        Some((salts, frame)) if salts == index.salts => index.max_frame.saturating_sub(frame),
        _ => index.max_frame,
    }
}

impl Database {
    pub(crate) fn new(
        id: u64,
        path: PathBuf,
        dir: PathBuf,
        settings: Settings,
        alone: bool,
        process: Weak<Process>,
    ) -> Database {
        let mut label = path.display().to_string();
        if !alone {
            let replica = settings.name.clone();
            let replica = replica.unwrap_or_else(|| store::url::redacted(&settings.replica));
            label = format!("{label} (replica {replica})");
        }
        let report = Report::new(&path, &settings.replica);
        Database {
            id,
            path,
            label,
            dir,
            settings,
            process,
            border: OnceLock::new(),
            shared: Watched::new(Shared {
                connections: 0,
                settled: true,
                published: None,
                commit_seq: 0,
                captured_seq: 0,
                acked_seq: 0,
                unreported_since: None,
                wants_bell: true,
                bell_frame: 0,
                captured: None,
                captured_end: None,
                gate: Gate::Capturing,
                patience: Duration::ZERO,
                refused: false,
                given_up: false,
                restart: None,
                restarts: false,
                turn: WritersTurn::default(),
                transitions: VecDeque::new(),
                diverged: None,
                lost_track: 0,
                report,
                role: Role::Unknown,
                page: None,
                term: 0,
                others: false,
                released: (None, 0),
                silent: None,
                outside: None,
            }),
        }
    }

    /// What messages call it: its path, and which replica is meant if it has several.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// Path of the database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of its local state.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
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

    /// Lets waiting threads look again, those of other processes too.
    pub(crate) fn notify(&self) {
        self.shared.notify_all();
        self.tell_others();
    }

    /// The file cannot be replicated, for this reason: the report says so, and the log once.
    pub fn refuse(&self, why: &str) {
        let told = self.with(|shared| {
            shared.refused = true;
            shared.report.state = "error";
            shared.report.last_error.replace(why.to_string()).as_deref() == Some(why)
        });
        if !told {
            log::error!("{} is not replicated: {why}", self.label);
        }
    }

    /// A connection was opened.
    pub fn connect(&self) {
        self.with(|shared| {
            shared.connections += 1;
            shared.settled = false;
            if std::mem::take(&mut shared.refused) {
                shared.report.state = "opening";
                shared.report.last_error = None;
            }
        });
        self.send(Control::Connected(self.id));
    }

    /// True if nobody of this process has it open, and all that was committed is at the store or another
    /// process's to ship.
    pub(crate) fn is_settled(&self) -> bool {
        self.with(|shared| shared.settled && shared.connections == 0)
    }

    /// A connection is gone. The answer is whether it was the last of this process.
    pub fn disconnect(&self) -> bool {
        let last = self.with(|shared| {
            shared.connections = shared.connections.saturating_sub(1);
            let last = shared.connections == 0;
            shared.settled |= last && shared.has_seen_nothing();
            last
        });
        if last {
            self.send(Control::Disconnected(self.id));
        }
        last
    }

    /// The WAL is about to be looked at for the first time since nobody of this process had it: what
    /// connections publish from now on is of this one.
    pub fn attaching(&self) {
        self.with(|shared| shared.published = None);
    }

    /// The WAL was opened and its index read for the first time since nobody of this process had
    /// it: called under a read lock. Others may have committed since that was read, and published it.
    pub fn attached(&self, attach: Attach, read: ReadIndex<'_>) {
        self.with(|shared| {
            shared.transitions.push_back(Transition::Attached(attach));
            shared.published = shared.published.or(attach.index);
            shared.captured = None;
            shared.restart = None;
            shared.commit_seq += 1;
            // What was written meanwhile is found by comparison, and late until then.
            let since = shared.outside.take().and_then(|outside| outside.written_since);
            shared.unreported_since = [shared.unreported_since, since].into_iter().flatten().min();
            if shared.gate == Gate::Open && !shared.given_up {
                // It was opened for the WAL before.
                shared.set_gate(Gate::Capturing);
            }
        });
        self.send(Control::Attached(self.id));
        self.committed(read);
    }

    /// Looks at the wal-index for commits of others, and has them taken in like this process's own.
    /// `None` when another process ships it, or nothing of it can be seen.
    pub(crate) fn look(&self) -> Option<WalIndex> {
        let process = self.process.upgrade()?;
        let border = self.border()?;
        let (index, news) = self.with(|shared| {
            if shared.role != Role::Ships {
                return None;
            }
            // Under the lock under which commits are published, so that it is not older than they are.
            let index = border.wal_index()?;
            if shared.published == Some(index) {
                return Some((index, None));
            }
            shared.published = Some(index);
            shared.commit_seq += 1;
            let at = *shared.unreported_since.get_or_insert_with(|| process.now());
            Some((index, Some((at, shared.is_to_ring(index.max_frame)))))
        })?;
        if let Some((at, ring)) = news {
            process.commit(CommittedFrames { database: self.id, index, at }, ring);
        }
        Some(index)
    }

    /// The write lock is about to be given up: if the wal-index has moved, something was committed. It
    /// is read under the lock of this, so that what is published never goes back.
    pub fn committed(&self, read: ReadIndex<'_>) {
        let Some(process) = self.process.upgrade() else { return };
        enum News {
            None,
            Ours { index: WalIndex, at: u64, ring: bool },
            Shippers(Arc<SharedPage>),
        }
        let news = self.with(|shared| {
            let Some(index) = read().filter(|index| shared.published != Some(*index)) else {
                return News::None;
            };
            shared.published = Some(index);
            shared.commit_seq += 1;
            if let Some(page) = shared.shippers_page() {
                return News::Shippers(page);
            }
            let at = *shared.unreported_since.get_or_insert_with(|| process.now());
            News::Ours { index, at, ring: shared.is_to_ring(index.max_frame) }
        });
        match news {
            News::None => {}
            News::Ours { index, at, ring } => {
                process.commit(CommittedFrames { database: self.id, index, at }, ring);
            }
            News::Shippers(page) => {
                page.unreported(process.now());
                page.call(Call::LOOK);
            }
        }
    }

    /// A checkpoint begins: a restart of the WAL may follow, so capture goes ahead meanwhile, unless so
    /// little is left that it can wait for the gate. While several processes write without a pause there
    /// is a checkpoint at each commit, and none that is followed by a restart.
    pub fn checkpoint_begins(&self) {
        let (published, captured, page) = self.with(|shared| {
            let captured = (shared.gate == Gate::Capturing).then_some(shared.captured);
            (shared.published, captured, shared.shippers_page())
        });
        let left = |captured| published.map_or(0, |index| behind(&index, captured));
        match page {
            Some(page) => {
                let left = left(page.view().and_then(|view| view.captured));
                // With nothing left the shipper may have the checkpoint's lock, until it is called.
                if left == 0 || left >= CAPTURE_AHEAD {
                    page.call(Call::CAPTURE);
                }
            }
            None if captured.is_some_and(|captured| left(captured) >= CAPTURE_AHEAD) => {
                self.send(Control::Capture(self.id));
            }
            None => {}
        }
    }

    /// The database was written outside the WAL, or the WAL was overwritten without our knowing:
    /// capture must compare the whole database before it goes on.
    pub fn diverged(&self, found: Finding) {
        let first = self.with(|shared| {
            let first = shared.diverged.is_none();
            shared.diverged.get_or_insert(found);
            first
        });
        if first {
            self.send(Control::Capture(self.id));
        }
    }

    /// Has room given back that captured transactions take, for a write that found none. True if there is
    /// more of it now.
    pub fn make_room(&self) -> bool {
        self.ask_for_room();
        let (answer, made) = crossbeam_channel::bounded(1);
        self.send(Control::MakeRoom(self.id, answer));
        made.recv_timeout(MAKE_ROOM).unwrap_or(false)
    }

    /// Nobody of this process has the WAL open any more, or somebody has it exclusively. `end` is
    /// how the WAL ended, if it was checkpointed whole and removed.
    pub fn detached(&self, end: Option<WalEnd>) {
        self.with(|shared| {
            shared.captured = None;
            shared.transitions.push_back(Transition::Detached(end));
        });
        self.send(Control::Detached(self.id));
    }

    /// The database was found in a journal mode other than WAL.
    pub fn found_outside_wal(&self) {
        self.with(|shared| {
            shared.outside.get_or_insert_default();
            shared.tell_those_who_look();
        });
    }

    /// The file was written in such a mode: nobody sees those commits but by comparison, once it is in
    /// WAL mode again.
    pub fn written_outside_wal(&self) {
        let Some(process) = self.process.upgrade() else { return };
        let first = self.with(|shared| {
            let outside = shared.outside.get_or_insert_default();
            let first = outside.written_since.is_none();
            if first {
                outside.written_since = Some(process.now());
                shared.tell_those_who_look();
            }
            first
        });
        if first {
            // From now on it is looked whether another process wants to ship it.
            self.send(Control::Disconnected(self.id));
        }
    }

    /// How the replication of this database stands.
    pub fn report(&self) -> Report {
        let now = self.process.upgrade().map_or(0, |process| process.now());
        self.with(|shared| {
            let mut report = shared.known();
            report.connections = shared.connections;
            report.pinned = self.is_pinned(shared);
            match shared.shippers_page() {
                Some(page) if shared.outside.is_none() => {
                    crate::standby::overlay(&mut report, &page, now);
                }
                _ => {
                    let unheard = shared.unheard();
                    report.unacked_since =
                        [report.unacked_since, unheard].into_iter().flatten().min();
                    report.lag_ms = lag_of(report.unacked_since, now);
                }
            }
            report
        })
    }

    fn is_pinned(&self, shared: &Shared) -> Option<bool> {
        let border = self.border().filter(|_| shared.role == Role::Ships)?;
        border.wal_index().map(|_| border.guard().is_some())
    }

    /// Nothing is replicated any more: nobody waits for the gate, and the report says why.
    pub(crate) fn end(&self, why: &str) {
        self.with(|shared| {
            shared.given_up = true;
            shared.set_gate(Gate::Open);
            shared.report.state = "error";
            shared.report.last_error = Some(why.to_string());
        });
        self.shared.notify_all();
    }

    pub(crate) fn send(&self, control: Control) {
        if let Some(process) = self.process.upgrade() {
            process.control(control);
        }
    }
}
