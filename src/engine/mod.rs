//! The engine: the one place that decides, for one database, what is done next.
//!
//! A state machine without I/O, clock, thread or randomness of its own: [`Engine::handle`] takes
//! what happened, [`Engine::poll`] gives what to do, [`Engine::wakeup`] says when to ask again.
//! Times are milliseconds on any clock that does not go back. The shell (`runner`, `sealer`,
//! `shipper`) carries the actions out and reports each one's end as an event; the simulation does
//! the same with a model of disk and store.
//!
//! What holds at all times:
//!
//! - At most one local job (close, resync, image) and one store request are under way.
//! - TXIDs are given out one by one; a closed file's TXID and bytes never change.
//! - The file with TXID n+1 is put only after the store confirmed n, so the log has no holes.
//! - A file is released locally only after the store confirmed it as ours.
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

/// What the user can set.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Shortest time between two closed files; 0 closes one for each batch of commits.
    pub sync_interval: Millis,
    /// Seed of the backoff's jitter, so that databases do not retry in step.
    pub jitter_seed: u64,
}

/// The state machine of one database.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    writer: WriterId,
    mode: Mode,
    /// A file of this lineage is in the log.
    claimed: bool,
    /// Last TXID that the store has from us, or had when we took over.
    acked: Txid,
    /// Closed files not yet acked, oldest first.
    queue: VecDeque<Closed>,
    /// The commits that are in no closed file.
    unclosed: Waiting,
    /// Commits that the local job under way takes in.
    closing: Waiting,
    /// The database must be compared with the page table before anything else is closed.
    resync: bool,
    /// The log is known to end where we left it: the place for a file of this process's was free.
    sure: bool,
    /// A caller has waited since the database was opened.
    asked: bool,
    /// When the oldest commit was made that seems to be with the store, while that is not known.
    unlooked: Option<Millis>,
    /// The replica was found not to hold what it had confirmed: the next image needs no predecessor.
    lost: bool,
    /// The last image was not sent. Its failure shows, and its wait grows, until one is sent.
    image_failed: bool,
    /// Capture lost its place again while a comparison was under way.
    diverged_meanwhile: bool,
    /// When the last file was closed.
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
    /// Time of the oldest, if there is one.
    since: Option<Millis>,
    /// True if somebody waits for the commits, which are then closed at once, interval or not.
    hurry: bool,
}

impl Waiting {
    fn add(&mut self, at: Millis) {
        self.since = earlier(self.since, Some(at));
    }

    /// Commits that a job was to take in wait again.
    fn take_back(&mut self, job: &mut Waiting) {
        let job = std::mem::take(job);
        self.since = earlier(self.since, job.since);
        self.hurry |= job.hurry;
    }
}

/// Where the database stands as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// The shell has not yet said what it found on the disk.
    Opening,
    /// There is no usable base: the store must say which TXID is next, then an image is taken.
    Locating { head: Option<Found> },
    /// An image was sent by an earlier process; the store must say whether it arrived.
    Confirming { level: Level, min: Txid, txid: Txid },
    /// The log goes on from the acked TXID.
    Streaming,
    /// Another writer owns the log.
    Fenced { by: WriterId, at: Txid },
}

/// The store's answer: its newest file, if it has any.
type Found = Option<Head>;

/// The local job under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Job {
    None,
    Close,
    Resync,
    Image { txid: Txid },
}

/// The request under way at the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Request {
    None,
    FindHead,
    Confirm,
    Put {
        txid: Txid,
    },
    /// The put found a file there: whose is it?
    Inspect {
        txid: Txid,
    },
}

impl Engine {
    /// A database that was just opened. Nothing happens before [`Event::Opened`].
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

    /// Takes in what happened at time `now`.
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
                // Of what is on the disk nothing is known yet.
                self.unclosed.hurry = self.mode == Mode::Opening || self.unclosed.since.is_some();
                self.failure = None;
                self.local_backoff.reset();
                self.store_backoff.reset();
            }
            Event::Diverged => {
                self.resync = true;
                self.diverged_meanwhile = self.job == Job::Resync;
                // The job under way may not take in what it was to, and what the comparison will
                // find was committed at the latest now.
                self.unclosed.take_back(&mut self.closing);
                self.unclosed.since.get_or_insert(now);
            }
            Event::Closed(closed) => self.on_closed(now, closed),
            Event::FoundNothing => self.unclosed = Waiting::default(),
            Event::LocalFailed(failure) => {
                // An image has an end of its own: this was a capture beside it.
                if !matches!(self.job, Job::Image { .. }) {
                    self.give_up_job();
                }
                self.local_backoff.fail(now, failure.is_lasting());
                self.failure = Some(failure);
            }
            Event::ImageSent { txid, complete } => self.on_image_sent(now, txid, complete),
            Event::ImageRefused => {
                // A file has that name, perhaps ours: look again where the log stands.
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
                // Another writer may have begun on an empty replica while the image was on its way.
                if let Mode::Locating { head } = &mut self.mode {
                    *head = None;
                }
                self.store_backoff.fail(now, failure.is_lasting());
                self.failure = Some(failure);
            }
            Event::HeadFound(head) => self.on_head_found(head),
            Event::ImageNeeded => {
                self.drop_queue();
                // The job under way will not take in what it was to.
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
                // Its place was free.
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
                    // Ask again who holds the TXID: the put itself must not be forgotten.
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

    /// The next thing to do, if any. The caller asks until it gets `None`.
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
                // A log that ends before what was confirmed has lost files. What comes next needs
                // no predecessor then, and its number stays beyond all that were ever used: a late
                // put of an old file finds no free place ahead of the log.
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

    /// Whether to close a file now. While one is on its way to the store, what comes meanwhile
    /// waits for the next: a slow store makes larger files, not a longer queue.
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

    /// When [`Engine::poll`] may have something to do although nothing happens; `None` for never.
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

    /// True if the next file is due even with nothing in it: it begins our lineage; or somebody waits, and
    /// whether the log ends where we left it is shown by a place for it that is free.
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
        // A file found in the spool may have been put before: its name may be taken, by us.
        self.mode = match opened.need {
            Need::Nothing => Mode::Streaming,
            Need::Resync => {
                self.resync = true;
                Mode::Streaming
            }
            Need::Image => Mode::Locating { head: None },
            Need::Confirm { level, min, txid } => Mode::Confirming { level, min, txid },
        };
        // What the store lacks is not known while a comparison or an image is due.
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

    /// An image takes the place of the closed files: what is in them waits for it.
    fn drop_queue(&mut self) {
        let oldest = self.queue.front().map(|front| front.committed_at);
        self.unclosed.since = earlier(oldest, self.unclosed.since);
        self.queue.clear();
    }

    /// The local job came to nothing: its commits wait for the next.
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
        // Behind what we know to be acked there may be files of our own whose answers were lost, or
        // that a crash made us forget. One of another writer's means that the log is no longer ours;
        // and so does a log that ends before it with another writer's file: it was begun anew. One that
        // was begun anew may end where ours did.
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
        // The log is ours also when the image is of no use here, and another one was asked for.
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

    /// The store confirmed a file.
    fn on_acked(&mut self, txid: Txid) {
        let is_front = self.queue.front().is_some_and(|front| front.txid == txid);
        if is_front {
            self.queue.pop_front();
        }
        // The queue may have been dropped meanwhile for an image: the file is in the log all the same.
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
            // Not in the log yet: there is nothing of ours to protect, so start behind the other.
            // Or a file of our own that the disk has forgotten, as after a power loss: the same, as
            // long as the log is still ours at its end.
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

    /// Whether everything that was committed is at the store.
    pub fn is_drained(&self) -> bool {
        let waits = self.unclosed.since.or(self.unlooked);
        waits.is_none() && self.has_shipped_all_closed()
    }

    /// Whether what is not at the store yet, if anything, is in no closed file and no job's hands.
    pub fn has_shipped_all_closed(&self) -> bool {
        let empty = self.queue.is_empty() && !self.resync;
        self.mode == Mode::Streaming && self.is_idle() && empty && self.claimed
    }

    /// Whether neither a local job nor a request is under way.
    pub fn is_idle(&self) -> bool {
        self.job == Job::None && self.request == Request::None
    }

    /// True if trying has become pointless for now: fenced, or waiting after a failure. A local job that
    /// failed is tried a few times more first: a WAL that is being closed cannot be read for a moment.
    pub fn is_stuck(&self) -> bool {
        let failed = self.failure.as_ref();
        let image = self.image_failed && self.store_backoff.may_pass();
        let may_pass = image || self.local_backoff.may_pass();
        let passes = |failure: &Failure| failure.is_local() && may_pass;
        matches!(self.mode, Mode::Fenced { .. }) || failed.is_some_and(|failure| !passes(failure))
    }

    /// Says what must happen besides the shipping of what is captured, as far as no state on the disk does.
    pub fn need(&self) -> Need {
        match self.mode {
            Mode::Locating { .. } => Need::Image,
            Mode::Streaming if self.resync => Need::Resync,
            _ => Need::Nothing,
        }
    }

    /// Whether a local job may be tried at `now`, after what failed before.
    pub fn may_try_local(&self, now: Millis) -> bool {
        self.local_backoff.is_due(now)
    }

    /// True if commits wait for the end of the interval, and nobody asked for them.
    pub fn waits_for_interval(&self) -> bool {
        self.unclosed.since.is_some() && !self.unclosed.hurry
    }

    /// Whether a commit is known that no closed file has yet.
    pub fn has_unclosed(&self) -> bool {
        self.unclosed.since.is_some()
    }

    /// When the oldest commit was made that is known and in no closed file.
    pub fn unclosed_since(&self) -> Option<Millis> {
        earlier(self.closing.since, self.unclosed.since)
    }

    /// Where the log was found to end, while an image is due or on its way.
    pub fn located(&self) -> Option<Head> {
        match self.mode {
            Mode::Locating { head } => head.flatten(),
            _ => None,
        }
    }

    /// The lineage's id.
    pub fn writer(&self) -> WriterId {
        self.writer
    }

    /// True if the log is known to end where we left it.
    pub fn is_sure(&self) -> bool {
        self.sure
    }

    /// Goes on as a new lineage, which has nothing in the log yet.
    pub fn begin_lineage(&mut self, writer: WriterId) {
        self.writer = writer;
        self.claimed = false;
    }

    /// Whether a file of this lineage is in the log.
    pub fn has_claimed(&self) -> bool {
        self.claimed
    }

    /// A file of this lineage is in the log now: one that only says so, and an image follows.
    pub fn claim(&mut self) {
        self.claimed = true;
    }

    /// Something failed that is no end of a request or job: it shows until one succeeds.
    pub fn note(&mut self, failure: Failure) {
        self.failure = Some(failure);
    }

    /// The store asks for no request before `at`, not even for somebody who waits.
    pub fn hold_store_until(&mut self, at: Millis) {
        self.store_backoff.hold_until(at);
    }

    /// No local job is begun before `at`: the application needs the disk.
    pub fn hold_local_until(&mut self, at: Millis) {
        self.local_backoff.hold_until(at);
    }

    /// A summary for people.
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

/// The earlier of two times, where there is one.
fn earlier(a: Option<Millis>, b: Option<Millis>) -> Option<Millis> {
    [a, b].into_iter().flatten().min()
}
