//! The engine decides, for one database, what is done next. Nothing else decides this.
//!
//! The engine is a state machine without I/O, clock, thread or randomness of its own. [`Engine::handle`]
//! takes events, [`Engine::poll`] returns actions, and [`Engine::wakeup`] returns the time of the next poll.
//! Times are milliseconds on any clock that does not go back. The shell (`sealer`, `shipper`) carries out the
//! actions and reports the end of each as an event. The simulation does the same with a model of disk and
//! store.
//!
//! Invariants:
//!
//! - At most one local job (close, resync, image) and one store request are under way.
//! - TXIDs are given out one by one; a closed file's TXID and bytes never change.
//! - The file with TXID n+1 is put only after the store confirmed n, so the log has no gaps.
//! - A file is released locally only after the store confirmed it as ours, or when an image replaces it.
//! - Once fenced, nothing is put any more, and nothing unshipped is released.

mod action;
pub(crate) mod audit;
pub(crate) mod backoff;
mod event;
mod status;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use action::Action;
pub use backoff::Backoff;
pub use event::{Closed, Event, Failure, Head, Need, Opened, Verdict};
pub use status::{Phase, Status};

use crate::units::{Level, Txid, WriterId};

/// Milliseconds on the caller's clock.
pub type Millis = u64;

/// Settings of the user.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Shortest time between two closed files; 0 closes one for each batch of commits.
    pub sync_interval: Millis,
    /// Seed of the backoff's jitter, so that databases do not retry in step.
    pub jitter_seed: u64,
}

/// State machine of one database.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    writer: WriterId,
    mode: Mode,
    /// True if a file of this lineage is in the log.
    claimed: bool,
    /// Last TXID that the store has from us, or had when we took over.
    acked: Txid,
    /// Closed files not yet acked, oldest first.
    queue: VecDeque<Closed>,
    /// Commits that are in no closed file.
    unclosed: Waiting,
    /// Commits that the local job under way takes in.
    closing: Waiting,
    /// True if the database must be compared with the page table before any other file is closed.
    resync: bool,
    /// True if the log is known to end where we left it: a file of this process found its TXID free.
    sure: bool,
    /// True if a caller has waited since the database was opened.
    asked: bool,
    /// Time of the oldest commit that seems to be at the store, while that is not certain.
    unlooked: Option<Millis>,
    /// True if the replica lacks files that it had confirmed. The next image then needs no predecessor.
    lost: bool,
    /// True if the last image was not sent. Its failure stays visible, and its wait grows, until an image is
    /// sent.
    image_failed: bool,
    /// True if capture lost its position again during a comparison.
    diverged_meanwhile: bool,
    /// Time at which the last file was closed.
    closed_at: Option<Millis>,
    job: Job,
    request: Request,
    local_backoff: Backoff,
    store_backoff: Backoff,
    failure: Option<Failure>,
}

/// Commits that are not in a closed file.
#[derive(Clone, Copy, Default, Debug)]
struct Waiting {
    /// Time of the oldest commit; `None` if there is none.
    since: Option<Millis>,
    /// True if a caller waits for the commits. They are then closed at once, without regard to the interval.
    hurry: bool,
}

impl Waiting {
    fn add(&mut self, at: Millis) {
        self.since = earlier(self.since, Some(at));
    }

    /// Adds the commits back that a job was to take in.
    fn take_back(&mut self, job: &mut Waiting) {
        let job = std::mem::take(job);
        self.since = earlier(self.since, job.since);
        self.hurry |= job.hurry;
    }
}

/// State of the database as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// The shell has not yet reported what it found on the disk.
    Opening,
    /// There is no usable base: the store must report the next TXID, then an image is taken.
    Locating { head: Option<Found> },
    /// An earlier process sent an image; the store must report whether the image arrived.
    Confirming { level: Level, min: Txid, txid: Txid },
    /// The log continues from the acked TXID.
    Streaming,
    /// Another writer owns the log.
    Fenced { by: WriterId, at: Txid },
}

/// The store's answer: its newest file, if there is one.
type Found = Option<Head>;

/// The local job under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Job {
    None,
    Close,
    Resync,
    Image { txid: Txid },
}

/// The store request under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Request {
    None,
    FindHead,
    Confirm,
    Put {
        txid: Txid,
    },
    /// The put found a file of that name. The inspection finds its writer.
    Inspect {
        txid: Txid,
    },
}

impl Engine {
    /// Returns the engine of a database that was just opened. It does nothing before [`Event::Opened`].
    pub fn new(options: Options, writer: WriterId) -> Engine {
        Engine {
            options,
            writer,
            mode: Mode::Opening,
            claimed: false,
            acked: Txid::ZERO,
            queue: VecDeque::new(),
            unclosed: Waiting::default(),
            closing: Waiting::default(),
            resync: false,
            sure: false,
            asked: false,
            unlooked: None,
            lost: false,
            image_failed: false,
            diverged_meanwhile: false,
            closed_at: None,
            job: Job::None,
            request: Request::None,
            local_backoff: Backoff::new(options.jitter_seed),
            store_backoff: Backoff::new(options.jitter_seed ^ 0x9e37_79b9_7f4a_7c15),
            failure: None,
        }
    }

    /// Handles an event at time `now`.
    pub fn handle(&mut self, now: Millis, event: Event) {
        match event {
            Event::Opened(opened) => self.on_opened(opened),
            Event::Committed { at } => {
                self.unclosed.add(at);
            }
            Event::TakenIn { at } => self.closing.add(at),
            Event::Asked => self.asked = true,
            Event::Hurry => {
                self.asked = true;
                // The contents of the disk are still unknown.
                self.unclosed.hurry = self.mode == Mode::Opening || self.unclosed.since.is_some();
                self.failure = None;
                self.local_backoff.reset();
                self.store_backoff.reset();
            }
            Event::Diverged => {
                self.resync = true;
                self.diverged_meanwhile = self.job == Job::Resync;
                // The job under way may not take in its commits. The commits that the comparison will find were
                // made by now at the latest.
                self.unclosed.take_back(&mut self.closing);
                self.unclosed.since.get_or_insert(now);
            }
            Event::Closed(closed) => self.on_closed(now, closed),
            Event::FoundNothing => self.unclosed = Waiting::default(),
            Event::LocalFailed(failure) => {
                // An image ends with an event of its own, so this failure is of a capture beside it.
                if !matches!(self.job, Job::Image { .. }) {
                    self.give_up_job();
                }
                self.local_backoff.fail(now, failure.is_lasting());
                self.failure = Some(failure);
            }
            Event::ImageSent { txid, complete } => self.on_image_sent(now, txid, complete),
            Event::ImageRefused => {
                // A file has that name, and may be ours: find the end of the log again.
                self.give_up_job();
                self.mode = Mode::Locating { head: None };
                self.store_backoff.fail(now, false);
            }
            Event::ImageUnsure { level, min, txid } => {
                self.give_up_job();
                self.mode = Mode::Confirming { level, min, txid };
                self.store_backoff.fail(now, false);
            }
            Event::ImageFailed(failure) => {
                self.give_up_job();
                self.image_failed = true;
                // Another writer may have started on an empty replica while the image was uploaded.
                if let Mode::Locating { head } = &mut self.mode {
                    *head = None;
                }
                self.store_backoff.fail(now, failure.is_lasting());
                self.failure = Some(failure);
            }
            Event::HeadFound(head) => self.on_head_found(head),
            Event::ImageNeeded => {
                self.drop_queue();
                // The job under way will not take in its commits.
                self.unclosed.take_back(&mut self.closing);
                self.unclosed.since.get_or_insert(now);
                if !matches!(self.mode, Mode::Fenced { .. }) {
                    self.mode = Mode::Locating { head: None };
                }
            }
            Event::ReplicaLost => {
                self.request = Request::None;
                self.lost = true;
                self.drop_queue();
                self.unclosed.since.get_or_insert(now);
                self.mode = Mode::Locating { head: None };
            }
            Event::Confirmed { arrived } => self.on_confirmed(arrived),
            Event::PutDone { txid } => {
                // The TXID was free, so the log ended where we left it.
                self.is_sure_now();
                self.on_acked(txid);
            }
            Event::PutRefused { txid } => {
                self.request = Request::None;
                self.store_backoff.reset();
                self.queue_inspection(txid);
            }
            Event::Inspected { txid, verdict } => self.on_inspected(now, txid, verdict),
            Event::RequestFailed(failure) => {
                if let Request::Inspect { txid } = self.request {
                    // Ask again which writer holds the TXID. The put itself must not be forgotten.
                    self.request = Request::None;
                    self.queue_inspection(txid);
                } else {
                    self.request = Request::None;
                }
                self.store_backoff.fail(now, failure.is_lasting());
                self.failure = Some(failure);
            }
        }
    }

    /// Returns the next action, if any. The caller repeats the call until it returns `None`.
    pub fn poll(&mut self, now: Millis) -> Option<Action> {
        self.poll_store(now).or_else(|| self.poll_local(now))
    }

    fn poll_store(&mut self, now: Millis) -> Option<Action> {
        if self.request != Request::None || !self.store_backoff.is_due(now) {
            return None;
        }
        match self.mode {
            Mode::Locating { head: None } => {
                self.request = Request::FindHead;
                Some(Action::FindHead)
            }
            Mode::Confirming { level, min, txid } => {
                self.request = Request::Confirm;
                Some(Action::Confirm { level, min, max: txid })
            }
            Mode::Streaming => {
                let front = self.queue.front()?;
                let txid = front.txid;
                if front.refused {
                    self.request = Request::Inspect { txid };
                    return Some(Action::Inspect { txid });
                }
                self.request = Request::Put { txid };
                Some(Action::Put { txid })
            }
            _ => None,
        }
    }

    fn poll_local(&mut self, now: Millis) -> Option<Action> {
        if self.job != Job::None {
            return None;
        }
        match self.mode {
            Mode::Locating { head: Some(head) } => {
                if !self.store_backoff.is_due(now) || !self.local_backoff.is_due(now) {
                    return None;
                }
                // A log that ends before a confirmed file has lost files. Then the next file needs no
                // predecessor. Its TXID stays above every TXID ever used, so that a late put of an old file
                // finds no free TXID ahead of the log.
                let whole = |head: &Head| !self.lost && (head.txid >= self.acked || !self.claimed);
                let txid = match head {
                    Some(head) if whole(&head) => head.txid.next(),
                    head => head.map_or(self.acked, |head| head.txid.max(self.acked)).next(),
                };
                let head = head.filter(whole);
                self.job = Job::Image { txid };
                self.closing = std::mem::take(&mut self.unclosed);
                let level = if head.is_none() { Level::SNAPSHOT } else { Level::L0 };
                Some(Action::Image {
                    level,
                    txid,
                    pre_apply: head.and_then(|head| head.post_apply),
                })
            }
            Mode::Streaming => self.poll_close(now),
            _ => None,
        }
    }

    /// Closes a file if one is due. While a file is being uploaded, new commits wait for the next file. A slow
    /// store makes larger files, not a longer queue.
    fn poll_close(&mut self, now: Millis) -> Option<Action> {
        if !self.queue.is_empty() || !self.local_backoff.is_due(now) {
            return None;
        }
        let txid = self.acked.next();
        if self.resync || self.owes_file() {
            self.job = Job::Resync;
            self.closing = std::mem::take(&mut self.unclosed);
            return Some(Action::Resync { txid, scan: self.resync, claim: self.owes_file() });
        }
        self.unclosed.since?;
        if !self.unclosed.hurry && self.close_due() > now {
            return None;
        }
        self.job = Job::Close;
        self.closing = std::mem::take(&mut self.unclosed);
        Some(Action::Close { txid })
    }

    fn close_due(&self) -> Millis {
        self.closed_at.map_or(0, |at| at.saturating_add(self.options.sync_interval))
    }

    /// Returns the time at which [`Engine::poll`] may have an action without a new event; `None` for never.
    pub fn wakeup(&self, now: Millis) -> Option<Millis> {
        let store =
            (self.request == Request::None && self.wants_store()).then(|| self.store_backoff.due());
        let local = (self.job == Job::None && self.wants_local()).then(|| {
            let interval = match self.mode {
                Mode::Streaming if !self.resync && !self.owes_file() && !self.unclosed.hurry => {
                    self.close_due()
                }
                _ => 0,
            };
            let store = match self.mode {
                Mode::Locating { .. } => self.store_backoff.due(),
                _ => 0,
            };
            interval.max(store).max(self.local_backoff.due())
        });
        let next = [store, local].into_iter().flatten().min();
        next.map(|at| at.max(now))
    }

    fn wants_store(&self) -> bool {
        match self.mode {
            Mode::Locating { head } => head.is_none(),
            Mode::Confirming { .. } => true,
            Mode::Streaming => !self.queue.is_empty(),
            _ => false,
        }
    }

    /// True if the next file is due even if it is empty. Either the file starts our lineage. Or a caller waits,
    /// and a free TXID for the file shows that the log ends where we left it.
    fn owes_file(&self) -> bool {
        !self.claimed || self.asked && !self.sure
    }

    fn wants_local(&self) -> bool {
        match self.mode {
            Mode::Locating { head } => head.is_some(),
            Mode::Streaming => {
                let work = self.resync || self.owes_file() || self.unclosed.since.is_some();
                self.queue.is_empty() && work
            }
            _ => false,
        }
    }

    fn on_opened(&mut self, opened: Opened) {
        self.claimed = opened.claimed;
        self.sure = opened.sure;
        self.acked = opened.acked;
        self.queue = opened.closed.into();
        // A file found in the spool may have been put before, so its name may be taken, by us.
        self.mode = match opened.need {
            Need::Nothing => Mode::Streaming,
            Need::Resync => {
                self.resync = true;
                Mode::Streaming
            }
            Need::Image => Mode::Locating { head: None },
            Need::Confirm { level, min, txid } => Mode::Confirming { level, min, txid },
        };
        // While a comparison or an image is due, it is unknown which commits the store lacks.
        if opened.uncommitted_since_close || opened.need != Need::Nothing {
            self.unclosed.add(opened.since);
        }
        if opened.need == Need::Image {
            self.drop_queue();
        }
        self.unclosed.hurry &= self.unclosed.since.is_some();
    }

    fn on_closed(&mut self, now: Millis, closed: Option<Txid>) {
        let was = std::mem::replace(&mut self.job, Job::None);
        let since = std::mem::take(&mut self.closing).since;
        self.local_backoff.reset();
        self.forget_failure(Failure::is_local);
        if was == Job::Resync {
            self.resync = std::mem::take(&mut self.diverged_meanwhile);
        }
        if closed.is_none() && !self.sure {
            self.unlooked = earlier(self.unlooked, since);
            self.asked |= since.is_some();
        }
        if let Some(txid) = closed {
            self.closed_at = Some(now);
            self.queue.push_back(Closed::new(txid, since.unwrap_or(now)));
        }
    }

    /// Drops the closed files, since an image replaces them. Their commits wait for that image.
    fn drop_queue(&mut self) {
        let oldest = self.queue.front().map(|front| front.committed_at);
        self.unclosed.since = earlier(oldest, self.unclosed.since);
        self.queue.clear();
    }

    /// Ends the local job without a result. Its commits wait for the next job.
    fn give_up_job(&mut self) {
        self.job = Job::None;
        self.diverged_meanwhile = false;
        self.unclosed.take_back(&mut self.closing);
    }

    fn on_image_sent(&mut self, now: Millis, txid: Txid, complete: bool) {
        self.job = Job::None;
        self.closing = Waiting::default();
        if complete {
            self.unclosed = Waiting::default();
        }
        self.acked = txid;
        self.claimed = true;
        self.is_sure_now();
        self.lost = false;
        self.image_failed = false;
        self.resync = false;
        self.diverged_meanwhile = false;
        self.closed_at = Some(now);
        self.mode = Mode::Streaming;
        self.store_backoff.reset();
        self.local_backoff.reset();
        self.failure = None;
    }

    fn on_head_found(&mut self, head: Option<Head>) {
        if self.image_failed && self.request == Request::FindHead {
            self.request = Request::None;
        }
        self.request_done(Request::FindHead);
        if !matches!(self.mode, Mode::Locating { .. }) {
            return;
        }
        // The log may have our own files behind the last TXID known to be acked: their answers were lost, or a
        // crash made us forget them. A file of another writer there means that the log is no longer ours. A log
        // that ends earlier, with another writer's file, was started again and is not ours either. A log that
        // was started again may also end at the same TXID as ours.
        self.mode = match head {
            Some(Head { txid, writer, .. })
                if self.claimed && (txid != self.acked || self.lost) && writer != self.writer =>
            {
                Mode::Fenced { by: writer, at: txid }
            }
            head => Mode::Locating { head: Some(head) },
        };
    }

    fn is_sure_now(&mut self) {
        self.sure = true;
        self.unlooked = None;
    }

    fn on_confirmed(&mut self, arrived: bool) {
        self.request_done(Request::Confirm);
        // The log is ours even if the image is useless here and another image was requested.
        self.claimed |= arrived;
        if let Mode::Confirming { txid, .. } = self.mode {
            self.mode = if arrived {
                self.acked = txid;
                self.image_failed = false;
                Mode::Streaming
            } else {
                Mode::Locating { head: None }
            };
        }
    }

    /// Handles the store's confirmation of a file.
    fn on_acked(&mut self, txid: Txid) {
        let is_front = self.queue.front().is_some_and(|front| front.txid == txid);
        if is_front {
            self.queue.pop_front();
        }
        // The queue may have been dropped for an image meanwhile. The file is in the log all the same.
        if is_front || txid == self.acked.next() {
            self.acked = txid;
            self.claimed = true;
        }
        self.request = Request::None;
        self.store_backoff.reset();
        self.forget_failure(Failure::is_store);
    }

    fn on_inspected(&mut self, now: Millis, txid: Txid, verdict: Verdict) {
        self.request = Request::None;
        match verdict {
            Verdict::Ours => self.on_acked(txid),
            Verdict::Missing => {
                if let Some(front) = self.queue.front_mut() {
                    front.refused = false;
                }
                self.store_backoff.fail(now, false);
            }
            Verdict::Foreign { writer } if self.claimed && writer != self.writer => {
                self.mode = Mode::Fenced { by: writer, at: txid };
            }
            // If we have no file in the log yet, there is nothing of ours to protect: the image goes behind the
            // other file. Or the file is our own and the disk forgot it, as after a power loss. The answer is
            // the same, as long as the end of the log is still ours.
            Verdict::Foreign { writer } => {
                self.claimed |= writer == self.writer;
                self.drop_queue();
                self.mode = Mode::Locating { head: None };
            }
        }
    }

    fn queue_inspection(&mut self, txid: Txid) {
        if let Some(front) = self.queue.front_mut().filter(|front| front.txid == txid) {
            front.refused = true;
        }
    }

    fn request_done(&mut self, request: Request) {
        if self.request == request {
            self.request = Request::None;
            self.store_backoff.reset();
            self.forget_failure(Failure::is_store);
        }
    }

    fn forget_failure(&mut self, which: impl Fn(&Failure) -> bool) {
        if self.failure.as_ref().is_some_and(which) {
            self.failure = None;
        }
    }

    /// True if every commit is at the store.
    pub fn is_drained(&self) -> bool {
        let waits = self.unclosed.since.or(self.unlooked);
        waits.is_none() && self.has_shipped_all_closed()
    }

    /// True if every commit that is not at the store is in no closed file and in no job.
    pub fn has_shipped_all_closed(&self) -> bool {
        let empty = self.queue.is_empty() && !self.resync;
        self.mode == Mode::Streaming && self.is_idle() && empty && self.claimed
    }

    /// True if neither a local job nor a request is under way.
    pub fn is_idle(&self) -> bool {
        self.job == Job::None && self.request == Request::None
    }

    /// True if trying is pointless for now: fenced, or waiting after a failure. A failed local job is first
    /// repeated a few times, since a WAL that is being closed cannot be read for a moment.
    pub fn is_stuck(&self) -> bool {
        let failed = self.failure.as_ref();
        let image = self.image_failed && self.store_backoff.may_pass();
        let may_pass = image || self.local_backoff.may_pass();
        let passes = |failure: &Failure| failure.is_local() && may_pass;
        matches!(self.mode, Mode::Fenced { .. }) || failed.is_some_and(|failure| !passes(failure))
    }

    /// Returns the work that must be done besides shipping captured frames, and that no state on the disk
    /// names.
    pub fn need(&self) -> Need {
        match self.mode {
            Mode::Locating { .. } => Need::Image,
            Mode::Streaming if self.resync => Need::Resync,
            _ => Need::Nothing,
        }
    }

    /// True if a local job may be tried at `now`, after earlier failures.
    pub fn may_try_local(&self, now: Millis) -> bool {
        self.local_backoff.is_due(now)
    }

    /// True if commits wait for the end of the interval, and no caller waits for them.
    pub fn waits_for_interval(&self) -> bool {
        self.unclosed.since.is_some() && !self.unclosed.hurry
    }

    /// True if a commit is known that no closed file has yet.
    pub fn has_unclosed(&self) -> bool {
        self.unclosed.since.is_some()
    }

    /// Returns the time of the oldest known commit that is in no closed file.
    pub fn unclosed_since(&self) -> Option<Millis> {
        earlier(self.closing.since, self.unclosed.since)
    }

    /// Returns the end of the log, while an image is due or under way.
    pub fn located(&self) -> Option<Head> {
        match self.mode {
            Mode::Locating { head } => head.flatten(),
            _ => None,
        }
    }

    /// Returns the lineage's id.
    pub fn writer(&self) -> WriterId {
        self.writer
    }

    /// True if the log is known to end where we left it.
    pub fn is_sure(&self) -> bool {
        self.sure
    }

    /// Continues as a new lineage, which has no file in the log yet.
    pub fn begin_lineage(&mut self, writer: WriterId) {
        self.writer = writer;
        self.claimed = false;
    }

    /// True if a file of this lineage is in the log.
    pub fn has_claimed(&self) -> bool {
        self.claimed
    }

    /// Notes that the log has a file of this lineage: a claim without pages, which an image follows.
    pub fn claim(&mut self) {
        self.claimed = true;
    }

    /// Shows a failure that ends no request or job, until a request or job succeeds.
    pub fn note(&mut self, failure: Failure) {
        self.failure = Some(failure);
    }

    /// Allows no request before `at`, not even for a caller that waits: the store has asked for this.
    pub fn hold_store_until(&mut self, at: Millis) {
        self.store_backoff.hold_until(at);
    }

    /// Allows no new local job before `at`, since the application needs the disk.
    pub fn hold_local_until(&mut self, at: Millis) {
        self.local_backoff.hold_until(at);
    }

    /// Returns a summary for people.
    pub fn status(&self) -> Status {
        let oldest = self.queue.front().map(|front| front.committed_at);
        Status {
            phase: match self.mode {
                Mode::Opening => Phase::Opening,
                Mode::Locating { .. } | Mode::Confirming { .. } => Phase::Imaging,
                Mode::Fenced { by, at } => Phase::Fenced { by, at },
                Mode::Streaming if self.failure.is_some() => Phase::Waiting,
                Mode::Streaming => Phase::Streaming,
            },
            sealed: self.queue.back().map_or(self.acked, |back| back.txid),
            acked: self.acked,
            unacked_since: earlier(earlier(oldest, self.unclosed_since()), self.unlooked),
            failure: self.failure.clone(),
        }
    }
}

/// Returns the earlier of two times, of those that are there.
fn earlier(a: Option<Millis>, b: Option<Millis>) -> Option<Millis> {
    [a, b].into_iter().flatten().min()
}
