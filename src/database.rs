//! One database and one replica of it, with the calls that an application's thread may make.
//!
//! Only [`Database::wait`] waits for the network. A commit costs one short lock and one message of about
//! fifty bytes, and does no I/O under that lock.

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

/// The sealer is woken after this many committed frames, to capture ahead.
const FRAMES_AHEAD: u32 = 4096;
/// How long a write that found no room waits for the sealer to make some, even on a busy machine. The write
/// fails after that.
const MAKE_ROOM: Duration = Duration::from_secs(10);
/// Fewer frames than this are not captured ahead: the gate captures them in less than a millisecond.
const CAPTURE_AHEAD: u32 = 100;

/// Reference to committed frames, which the application's thread sends to the sealer. The bytes stay in the
/// WAL; gate and pin keep them from being overwritten.
#[derive(Clone, Copy, Debug)]
pub struct CommittedFrames {
    /// Number of the database ([`Database::id`]).
    pub database: u64,
    /// The wal-index just after the commit.
    pub index: WalIndex,
    /// Time of the oldest commit that the sealer did not know of, in milliseconds of the process's clock.
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

/// State that application threads and the sealer share.
pub(crate) struct Shared {
    /// Number of open connections of this process.
    pub connections: usize,
    /// The sealer has finished its work since the last connection was closed, and this process owes nothing.
    pub settled: bool,
    /// The newest wal-index that was seen.
    pub published: Option<WalIndex>,
    /// Counts changes of `published`, attaches of the WAL, and losses of capture's position.
    pub commit_seq: u64,
    /// Value of `commit_seq` up to which everything is captured.
    pub captured_seq: u64,
    /// Value of `commit_seq` up to which the store has everything.
    pub acked_seq: u64,
    /// Time of the oldest commit that the sealer does not know of yet.
    pub unreported_since: Option<u64>,
    /// The next commit must wake the sealer; otherwise the sealer looks by itself.
    pub wants_bell: bool,
    /// Last frame at which the sealer was woken for [`FRAMES_AHEAD`].
    pub bell_frame: u32,
    /// Capture is complete up to this frame of this generation.
    pub captured: Option<(Salts, u32)>,
    /// The same position with its proof, since a recovery can put other frames at the same position.
    pub captured_end: Option<Proven>,
    pub(crate) gate: Gate,
    /// Time that all application threads together may still wait for a shut gate to open.
    pub patience: Duration,
    /// The file could not be replicated when it was opened last.
    pub refused: bool,
    /// Replication has ended for this process, and the gate stays open.
    pub given_up: bool,
    /// The last restart of the WAL that a thread of this process made.
    pub restart: Option<Restart>,
    /// A thread of this process is restarting the WAL, with an unknown outcome as yet.
    pub restarts: bool,
    /// A writer's turn to take the read slots.
    pub turn: WritersTurn,
    /// Attaches and detaches of the WAL that the sealer has not processed yet, in order.
    pub transitions: VecDeque<Transition>,
    /// Reason why capture cannot vouch for completeness any more.
    pub diverged: Option<Finding>,
    /// Counts how often capture has lost its position in the WAL.
    pub lost_track: u64,
    pub report: Report,
    /// Set while the database is not in WAL mode.
    pub outside: Option<Outside>,
    /// Which process ships the database.
    pub role: Role,
    /// Page through which the processes of this database talk to each other, once it is open.
    pub page: Option<Arc<SharedPage>>,
    /// Our term as the shipper.
    pub term: u64,
    /// True if other processes have the database open, as far as the sealer last saw.
    pub others: bool,
    /// Position at which the WAL was let go for another process, and the number of that process's wish.
    pub released: (Option<Place>, u64),
    /// The shipper left a question unanswered when it had last been alive at this time.
    pub silent: Option<u64>,
}

impl Shared {
    /// Returns the report, with the news that the sealer has not taken in.
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

    /// Publishes the wal-index of a connection. The caller reads it under the lock of this state, so the
    /// index is never older than one published before.
    ///
    /// Returns `None` if nothing is new; otherwise the time of the oldest commit unknown to the sealer, and
    /// whether to wake the sealer.
    pub(crate) fn observe(&mut self, index: WalIndex, now: u64) -> Option<(u64, bool)> {
        if self.published == Some(index) {
            return None;
        }
        self.published = Some(index);
        self.commit_seq += 1;
        let at = *self.unreported_since.get_or_insert(now);
        Some((at, self.is_to_ring(index.max_frame)))
    }

    /// Returns the time of the oldest commit of another process that this process ships and does not know of
    /// yet.
    fn unheard(&self) -> Option<u64> {
        let ships = self.role == Role::Ships && self.outside.is_none();
        self.page.as_ref().filter(|_| ships).and_then(|page| page.peek_unreported())
    }

    /// Publishes this process's view in the shared page, for `walferry status`. The sealer publishes it once
    /// a second, but not while no WAL is open.
    fn tell_those_who_look(&self) {
        if self.role == Role::Ships {
            crate::standby::publish_view(self);
        }
    }

    /// True if no connection of this process has read or written the database, and nothing is wrong with it.
    fn has_seen_nothing(&self) -> bool {
        let found = self.outside.is_some() || self.diverged.is_some();
        self.commit_seq == 0 && !found && self.report.state != "error"
    }

    /// True if the report still speaks of a replaced file, and the file in its place was opened since then.
    /// The sealer has not processed that opening yet.
    pub(crate) fn is_opened_again(&self) -> bool {
        let replaced = Finding::FileReplaced.to_string();
        let waiting = self.transitions.back();
        matches!(waiting, Some(Transition::Attached(_)))
            && self.report.last_error.as_deref() == Some(replaced.as_str())
    }

    /// True if a commit that ends with this frame must wake the sealer.
    fn is_to_ring(&mut self, frame: u32) -> bool {
        let ahead = frame.wrapping_sub(self.bell_frame) >= FRAMES_AHEAD;
        if ahead {
            self.bell_frame = frame;
        }
        std::mem::replace(&mut self.wants_bell, false) || ahead
    }
}

/// State of a database that is not in WAL mode.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Outside {
    /// Time at which this process first wrote to it.
    pub written_since: Option<u64>,
}

/// Which process ships a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Not known yet.
    Unknown,
    /// This process.
    Ships,
    /// Another process, which holds the lock.
    StandsBy,
}

/// Rule for when the WAL may be overwritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// As soon as everything in the WAL is captured, which takes milliseconds.
    Capturing,
    /// Not for now: an image is being taken, another process ships, or the spool cannot be written.
    Shut,
    /// At once: capture has given up until the whole database can be compared.
    Open,
}

/// An attach or a detach of the WAL.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transition {
    /// A connection of this process saw the WAL, and none had it open before.
    Attached(Attach),
    /// No connection of this process has the WAL open any more. If the WAL was captured, checkpointed whole
    /// and removed, the value holds how it ended.
    Detached(Option<WalEnd>),
}

/// State of WAL and database file when the WAL was first seen, with the fields in the order of the reads.
#[derive(Clone, Copy, Default, Debug)]
pub struct Attach {
    /// Guard that kept other processes from restarting the WAL by then.
    pub guard: Option<Guard>,
    /// The wal-index.
    pub index: Option<WalIndex>,
    /// The database file.
    pub fingerprint: Option<Fingerprint>,
}

/// Reads the wal-index through the mapping of one connection; `None` if the connection has no mapping.
pub type ReadIndex<'a> = &'a dyn Fn() -> Option<WalIndex>;

/// End of a WAL that was checkpointed whole and removed by a connection with exclusive use of the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalEnd {
    /// The last wal-index.
    pub index: WalIndex,
    /// The database file without the WAL.
    pub fingerprint: Fingerprint,
}

/// First words of the text of [`WaitError::TimedOut`].
pub(crate) const NOT_IN_TIME: &str = "not replicated in time";

/// Reason why a wait ended without success.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitError {
    /// The time is up; the text says what stands in the way.
    TimedOut(String),
    /// The wait cannot succeed, for this reason.
    Stopped(String),
    /// The connection's wal-index cannot be read, so its commits are unknown.
    Unseen,
    /// The application has interrupted the wait.
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

/// Returns how many frames of the WAL are not captured.
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

    /// Returns the name of the database in messages: its path, with the replica if there are several.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// Path of the database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder of the local state.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the settings of the replica.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sets the border to the host's SQLite. Only the first call counts.
    pub fn set_border(&self, border: Arc<dyn Border>) {
        let _ = self.border.set(border);
    }

    pub(crate) fn border(&self) -> Option<&Arc<dyn Border>> {
        self.border.get()
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Shared) -> T) -> T {
        f(&mut self.shared.lock())
    }

    /// Wakes all threads that wait for news of this database, in other processes too.
    pub(crate) fn notify(&self) {
        self.shared.notify_all();
        self.tell_others();
    }

    /// Notes why the file cannot be replicated, in the report and once in the log.
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

    /// Notes that a connection was opened.
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

    /// True if no connection of this process is open, and every commit is at the store or is another
    /// process's to ship.
    pub(crate) fn is_settled(&self) -> bool {
        self.with(|shared| shared.settled && shared.connections == 0)
    }

    /// Notes that a connection is gone. Returns `true` if it was the last of this process.
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

    /// Forgets the published wal-index, just before a WAL is read that no connection of this process had
    /// open. What connections publish from now on belongs to that WAL.
    pub fn attaching(&self) {
        self.with(|shared| shared.published = None);
    }

    /// Notes that the WAL was opened and its index read, when no connection of this process had it open
    /// before. The caller holds a read lock. Other connections may have committed since that read, and
    /// published the commit.
    pub fn attached(&self, attach: Attach, read: ReadIndex<'_>) {
        self.with(|shared| {
            shared.transitions.push_back(Transition::Attached(attach));
            shared.published = shared.published.or(attach.index);
            shared.captured = None;
            shared.restart = None;
            shared.commit_seq += 1;
            // The comparison finds writes that were made outside the WAL. Until then they count as lag.
            let since = shared.outside.take().and_then(|outside| outside.written_since);
            shared.unreported_since = [shared.unreported_since, since].into_iter().flatten().min();
            if shared.gate == Gate::Open && !shared.given_up {
                // The gate was opened for the previous WAL.
                shared.set_gate(Gate::Capturing);
            }
        });
        self.send(Control::Attached(self.id));
        self.committed(read);
    }

    /// Looks for commits of other processes in the wal-index, and publishes them like this process's own.
    /// `None` if another process ships the database, or if the wal-index cannot be read.
    pub(crate) fn look(&self) -> Option<WalIndex> {
        let process = self.process.upgrade()?;
        let border = self.border()?;
        let (index, news) = self.with(|shared| {
            if shared.role != Role::Ships {
                return None;
            }
            // Read under the lock under which commits are published, so the index is not older than a
            // published one.
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

    /// Publishes the wal-index if it has moved, just before a writer gives up the write lock. The index is
    /// read under the lock of the shared state, so the published index never goes back.
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

    /// Captures ahead when a checkpoint begins, since a restart of the WAL may follow.
    ///
    /// Fewer than `CAPTURE_AHEAD` frames are left to the gate. While several processes write without a pause,
    /// every commit brings a checkpoint, and no restart follows.
    pub fn checkpoint_begins(&self) {
        let (published, captured, page) = self.with(|shared| {
            let captured = (shared.gate == Gate::Capturing).then_some(shared.captured);
            (shared.published, captured, shared.shippers_page())
        });
        let left = |captured| published.map_or(0, |index| behind(&index, captured));
        match page {
            Some(page) => {
                let left = left(page.view().and_then(|view| view.captured));
                // With nothing left to capture, the shipper may hold the checkpoint lock. The call makes the
                // shipper give it up.
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

    /// Notes that the database was written outside the WAL, or that the WAL was overwritten unseen. Capture
    /// must compare the whole database before it goes on.
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

    /// Asks the sealer to free room that captured transactions take, for a write that found none. Returns
    /// `true` if there is more room now.
    pub fn make_room(&self) -> bool {
        self.ask_for_room();
        let (answer, made) = crossbeam_channel::bounded(1);
        self.send(Control::MakeRoom(self.id, answer));
        made.recv_timeout(MAKE_ROOM).unwrap_or(false)
    }

    /// Notes that no connection of this process has the WAL open any more, or that a connection holds it
    /// exclusively. `end` tells how the WAL ended, if it was checkpointed whole and removed.
    pub fn detached(&self, end: Option<WalEnd>) {
        self.with(|shared| {
            shared.captured = None;
            shared.transitions.push_back(Transition::Detached(end));
        });
        self.send(Control::Detached(self.id));
    }

    /// Notes that the database is in a journal mode other than WAL.
    pub fn found_outside_wal(&self) {
        self.with(|shared| {
            shared.outside.get_or_insert_default();
            shared.tell_those_who_look();
        });
    }

    /// Notes a write in a journal mode other than WAL. Only a comparison can find such commits, once the
    /// database is in WAL mode again.
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
            // From now on the sealer looks whether another process wants to ship the database.
            self.send(Control::Disconnected(self.id));
        }
    }

    /// Returns how the replication of this database stands.
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

    /// Ends the replication: opens the gate for all waiting threads, and puts the reason into the report.
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
