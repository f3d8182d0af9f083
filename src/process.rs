//! The two main threads of the process, and the ways to reach them.
//!
//! `walferry-seal` reads committed frames back from the WALs and writes the spool: CPU and local disk.
//! `walferry-ship` talks to the stores. Both serve all databases of the process, start with the first
//! replicated database, and live until the process ends.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard as StdMutexGuard, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::database::{CommittedFrames, Database};
use crate::local;
use crate::replications::Replications;
use crate::sealer;
use crate::settings::Settings;
use crate::shipper::{self, Order, Outcome};
use crate::status::Report;
use crate::store::s3::Servers;
use crate::store::url::redacted;
use crate::watched::Watched;
use crate::withheld::{Deadline, Guard, lock};

/// Most messages about commits that wait in the channel. Further messages are dropped without loss: the
/// database keeps the newest position, and the sealer reads on from its own.
const COMMITS_WAITING: usize = 16 * 1024;

/// Messages to the sealer, apart from commits.
#[derive(Debug)]
pub(crate) enum Control {
    /// A database has one more connection.
    Connected(u64),
    /// A database has no connection left, or was written outside the WAL for the first time.
    Disconnected(u64),
    /// The WAL of the database was seen for the first time.
    Attached(u64),
    /// The WAL of the database is closed, or one connection has exclusive use of it.
    Detached(u64),
    /// Capture everything published, now.
    Capture(u64),
    /// Capture, close and ship, now.
    Hurry(u64),
    /// Another process asks for something.
    Called(u64),
    /// A job at the store has ended: database, tenure, outcome.
    Shipped(u64, u64, Outcome),
    /// A write of the application found no room. The answer says whether there is more now.
    MakeRoom(u64, Sender<bool>),
    /// The process ends: ship everything.
    Drain,
    /// Asks for an answer that shows that the thread is well.
    Ping(Sender<()>),
}

/// Runs a closure that starts threads. The border uses it to block all signals in them.
pub type SpawnGuard = fn(&mut dyn FnMut());

static SPAWN_GUARD: OnceLock<SpawnGuard> = OnceLock::new();
/// A lock of the standard library, like [`REFUSED`]: both are held across a fork.
static CURRENT: StdMutex<Option<Arc<Process>>> = StdMutex::new(None);

/// Sets the function that wraps every start of a thread.
pub fn set_spawn_guard(guard: SpawnGuard) {
    let _ = SPAWN_GUARD.set(guard);
}

/// Databases that should be replicated and are not, with the reasons.
static REFUSED: StdMutex<Vec<Report>> = StdMutex::new(Vec::new());
/// Most refusals that are remembered; the latest stay.
const REFUSED_MAX: usize = 1000;

/// Locks of this library that are held while the process forks.
pub struct Forking {
    current: Guard<Option<Arc<Process>>>,
    _refused: Guard<Vec<Report>>,
    locks: StdMutexGuard<'static, Vec<RawFd>>,
}

/// Takes the locks before a fork, in the thread that forks. `None` if they cannot be had in time.
///
/// The caller drops the result in the parent, and calls [`Forking::in_child`] in the child.
pub fn before_fork(deadline: Deadline) -> Option<Forking> {
    Some(Forking {
        current: deadline.lock(&CURRENT)?,
        _refused: deadline.lock(&REFUSED)?,
        // Other threads hold this lock only for moments.
        locks: crate::local::lock::held(),
    })
}

impl Forking {
    /// Abandons the inherited instance without dropping it: the child has none. Returns the descriptors that
    /// the child must close.
    pub fn in_child(mut self) -> Vec<RawFd> {
        std::mem::forget(self.current.take());
        std::mem::take(&mut *self.locks)
    }
}

/// Notes that a database is not replicated although its settings ask for it.
pub fn refuse(path: &Path, replica: &str, why: &str) {
    let mut report = Report::new(path, replica);
    report.state = "error";
    report.last_error = Some(why.to_string());
    let mut refused = lock(&REFUSED);
    let is_it =
        |known: &Report| (&known.database, &known.replica) == (&report.database, &report.replica);
    // A program that opens the database again and again is told once.
    let told = refused.iter().any(|known| is_it(known) && known.last_error == report.last_error);
    if !told {
        log::error!("{} is not replicated: {why}", path.display());
    }
    refused.retain(|known| !is_it(known));
    if refused.len() >= REFUSED_MAX {
        refused.remove(0);
    }
    refused.push(report);
}

/// Forgets the refusals of a database that is opened again.
fn forget_refusals(path: &Path) {
    let path = path.display().to_string();
    lock(&REFUSED).retain(|known| known.database != path);
}

/// Names a replica in these settings to which the open database is not replicated. Refused replicas are
/// reported elsewhere.
fn unheeded(known: &Replications, settings: &[Settings]) -> Option<String> {
    let path = known.path().display().to_string();
    let refused = refused();
    let is_known = |replica: &str| {
        known.each().any(|database| database.settings().replica == replica)
            || refused
                .iter()
                .any(|report| report.database == path && report.replica == redacted(replica))
    };
    let other = settings.iter().find(|settings| !is_known(&settings.replica))?;
    Some(format!(
        "this process replicates the database to {} already, and not to {}, which this connection names; \
         close all connections to the database before it gets another replica",
        redacted(&known.first().settings().replica),
        redacted(&other.replica)
    ))
}

/// Number of databases from which on those with a missing file are forgotten.
const FORGET_MIN: usize = 64;

/// Returns the databases that are not replicated although their settings ask for it.
pub fn refused() -> Vec<Report> {
    lock(&REFUSED).clone()
}

/// Everything in this process that replicates.
pub struct Process {
    pid: u32,
    next_id: AtomicU64,
    databases: Mutex<HashMap<PathBuf, Replications>>,
    /// Number of databases at which those with a missing file are forgotten next.
    forget_at: AtomicUsize,
    commits: Sender<CommittedFrames>,
    controls: Sender<Control>,
    bell: Bell,
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    /// State that the replicas of this process share. A child of a fork abandons it with everything else.
    servers: Servers,
    tender: OnceLock<crate::tender::Tender>,
    drained: Watched<bool>,
    /// Reason why this process replicates nothing any more.
    ended: Mutex<Option<String>>,
}

/// The ends of the channels that the sealer thread owns.
pub(crate) struct Inbox {
    pub commits: Receiver<CommittedFrames>,
    pub controls: Receiver<Control>,
}

impl Process {
    /// Returns the process's instance, if a replicated database was opened in the process. A child of `fork`
    /// has none: threads do not survive the fork.
    pub fn current() -> Option<Arc<Process>> {
        lock(&CURRENT).as_ref().filter(|process| process.pid == std::process::id()).cloned()
    }

    /// Returns the process's instance, and starts it if needed.
    pub fn start() -> Result<Arc<Process>, String> {
        let mut current = lock(&CURRENT);
        if let Some(process) = current.as_ref().filter(|p| p.pid == std::process::id()) {
            return Ok(process.clone());
        }
        let runtime = shipper::runtime()?;
        let (process, inbox, orders_out) = Process::new();
        // Either both threads run or neither: each waits for a signal, and ends when the channel closes
        // without one.
        let (begin, told) = crossbeam_channel::bounded(2);
        spawn("walferry-seal", {
            let (process, told) = (process.clone(), told.clone());
            move || {
                if told.recv().is_ok() {
                    process.guard("walferry-seal", || sealer::run(&process, &inbox));
                }
            }
        })?;
        spawn("walferry-ship", {
            let process = process.clone();
            move || {
                if told.recv().is_ok() {
                    let ships = process.clone();
                    process.guard("walferry-ship", || shipper::run(ships, &runtime, orders_out));
                }
            }
        })?;
        for () in [(), ()] {
            let _ = begin.send(());
        }
        *current = Some(process.clone());
        Ok(process)
    }

    /// Makes an instance without threads, with the channel ends that the threads read.
    fn new() -> (Arc<Process>, Inbox, UnboundedReceiver<Order>) {
        let (commits, commits_out) = crossbeam_channel::bounded(COMMITS_WAITING);
        let (controls, controls_out) = crossbeam_channel::unbounded();
        let (orders, orders_out) = tokio::sync::mpsc::unbounded_channel();
        let process = Arc::new(Process {
            pid: std::process::id(),
            next_id: AtomicU64::new(1),
            databases: Mutex::new(HashMap::new()),
            forget_at: AtomicUsize::new(FORGET_MIN),
            commits,
            controls,
            bell: Bell::default(),
            orders,
            servers: Servers::limited(),
            tender: OnceLock::new(),
            drained: Watched::new(false),
            ended: Mutex::new(None),
        });
        (process, Inbox { commits: commits_out, controls: controls_out }, orders_out)
    }

    /// Runs a thread's body. A panic in it ends replication in this process, and the report of each database
    /// says so.
    pub(crate) fn guard(&self, thread: &str, body: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            self.end(&format!(
                "an internal error of walferry (its thread {thread} ended with a panic); please report it, \
                 and start the program again"
            ));
        }
    }

    fn end(&self, why: &str) {
        log::error!("replication stopped: {why}");
        *self.ended.lock() = Some(why.to_string());
        self.databases().iter().for_each(|database| database.end(why));
        self.bell.ring();
    }

    /// Returns the reason why this process replicates nothing any more, if so.
    pub(crate) fn ended(&self) -> Option<String> {
        self.ended.lock().clone()
    }

    /// Returns the milliseconds since the machine started, including the time that it slept. This clock never
    /// goes back, and is the same in all processes.
    #[allow(clippy::unused_self)] // time is asked of the process, so that there is one clock
    pub fn now(&self) -> u64 {
        crate::clock::since_boot()
    }

    /// Returns the database at this canonical path, registered if new, with a replication to each usable
    /// replica.
    ///
    /// Reasons against the other replicas are reported; with `strict`, one such reason is an error for all. A
    /// replica that another database of this process has is refused, since the two would fight over it.
    ///
    /// An open database keeps its replicas. The text names a replica of these settings that it does not have.
    pub fn database(
        self: &Arc<Self>,
        path: &Path,
        settings: Vec<Settings>,
        strict: bool,
    ) -> Result<(Replications, Option<String>), String> {
        if let Some(why) = self.ended() {
            return Err(why);
        }
        let mut databases = self.databases.lock();
        self.forget_gone(&mut databases);
        if let Some(known) = databases.get(path) {
            self.tend(known)?;
            let unheeded = unheeded(known, &settings);
            if let Some(why) = &unheeded {
                if strict {
                    return Err(why.clone());
                }
                log::warn!("{}: {why}", path.display());
            }
            return Ok((known.clone(), unheeded));
        }
        let mut wanted: Vec<(Settings, String)> = Vec::new();
        let mut refused = Vec::new();
        for settings in settings {
            let taken = || {
                let mut all = databases.values().flat_map(Replications::each);
                let other = all.find(|db| db.settings().replica == settings.replica);
                let twice = wanted.iter().any(|(other, _)| other.replica == settings.replica);
                other.map(|other| other.path()).or(twice.then_some(path)).map(|other| {
                    // With the same file name for both, `{name}` would not tell the two apart.
                    let named = path.file_name() != other.file_name();
                    let how = if named { ", for instance with {name} in the URL" } else { "" };
                    format!(
                        "{} and {} have the same replica {}: give each its own{how}",
                        path.display(),
                        other.display(),
                        redacted(&settings.replica)
                    )
                })
            };
            let store = crate::store::open_with(&settings.replica, &settings.access);
            match store.map_err(|error| error.to_string()) {
                Ok(store) => match local::misplaced(path, &settings.replica).or_else(taken) {
                    None => {
                        let identity = crate::store::url::identity(&*store);
                        wanted.push((settings, identity));
                    }
                    Some(why) => refused.push((settings.replica, why)),
                },
                Err(why) => refused.push((settings.replica, why)),
            }
        }
        let identities: Vec<&str> = wanted.iter().map(|(_, identity)| identity.as_str()).collect();
        let dirs = local::replicas::dirs(path, &identities);
        let alone = wanted.len() == 1;
        let new = |(settings, dir)| {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let process = Arc::downgrade(self);
            Arc::new(Database::new(id, path.to_path_buf(), dir, settings, alone, process))
        };
        let settings = wanted.into_iter().map(|(settings, _)| settings);
        let mut all: Vec<Arc<Database>> = settings.zip(dirs).map(new).collect();
        if all.is_empty() || strict && !refused.is_empty() {
            let why = refused.into_iter().next().map(|(_, why)| why);
            return Err(why.unwrap_or_else(|| "it has no replica".to_string()));
        }
        forget_refusals(path);
        for (replica, why) in &refused {
            refuse(path, replica, why);
        }
        let first_refused = refused.first().map(|(_, why)| why.as_str());
        let replications = Replications::new(all.remove(0), all, first_refused);
        databases.insert(path.to_path_buf(), replications.clone());
        // A thread that ended meanwhile may have told all databases before this one was registered.
        if let Some(why) = self.ended() {
            replications.each().for_each(|database| database.end(&why));
        }
        self.tend(&replications)?;
        Ok((replications, None))
    }

    /// Starts the tender for a database whose settings ask for it.
    fn tend(self: &Arc<Self>, replications: &Replications) -> Result<(), String> {
        if replications.first().settings().tend {
            if self.tender.get().is_none() {
                let _ = self.tender.set(crate::tender::Tender::start(self)?);
            }
            self.tender.get().into_iter().for_each(|tender| tender.tend(replications));
        }
        Ok(())
    }

    /// Forgets databases whose file is gone and which are not used any more. Otherwise a process that creates
    /// and deletes databases would grow with each. The others stay, with their last report.
    fn forget_gone(&self, databases: &mut HashMap<PathBuf, Replications>) {
        if databases.len() < self.forget_at.load(Ordering::Relaxed) {
            return;
        }
        databases.retain(|path, known| !known.is_unused() || path.exists());
        self.forget_at.store(FORGET_MIN.max(2 * databases.len()), Ordering::Relaxed);
    }

    /// Forgets a database that is closed and owes nothing, or that was never opened or read. Its local state
    /// stays with its files, where the next opening reads it. The replica is free for another database.
    pub fn forget_settled(&self, path: &Path) {
        let mut databases = self.databases.lock();
        let settled = databases.get(path).is_some_and(|known| {
            known.is_unused() && known.each().all(|database| database.is_settled())
        });
        if settled {
            databases.remove(path);
        }
    }

    /// Returns the database at this canonical path, if it is replicated.
    pub fn at(&self, path: &Path) -> Option<Replications> {
        self.databases.lock().get(path).cloned()
    }

    /// Returns the replications of this process.
    pub fn databases(&self) -> Vec<Arc<Database>> {
        self.databases.lock().values().flat_map(Replications::each).cloned().collect()
    }

    /// Returns the reports of all databases, sorted by path.
    pub fn reports(&self) -> Vec<Report> {
        let mut reports: Vec<Report> = self.databases().iter().map(|db| db.report()).collect();
        reports.sort_by(|a, b| (&a.database, &a.replica).cmp(&(&b.database, &b.replica)));
        reports
    }

    pub(crate) fn by_id(&self, id: u64) -> Option<Arc<Database>> {
        let databases = self.databases.lock();
        let mut all = databases.values().flat_map(Replications::each);
        all.find(|database| database.id == id).cloned()
    }

    pub(crate) fn commit(&self, frames: CommittedFrames, ring: bool) {
        // A full channel loses nothing: the database keeps the newest position.
        let _ = self.commits.try_send(frames);
        if ring {
            self.bell.ring();
        }
    }

    pub(crate) fn control(&self, control: Control) {
        let _ = self.controls.send(control);
        self.bell.ring();
    }

    pub(crate) fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Waits at the end of the process until everything is shipped, as long as shipping makes progress. Waits
    /// for at most the longest shutdown timeout of all databases. The rest stays in the spool.
    pub fn drain(&self) {
        let timeout = self.databases().iter().map(|db| db.settings().shutdown_timeout).max();
        let Some(timeout) = timeout else { return };
        let deadline = Instant::now() + timeout;
        let mut drained = self.drained.lock();
        *drained = false;
        self.control(Control::Drain);
        while !*drained {
            let news;
            (drained, news) = self.drained.wait_until(drained, deadline);
            if !news {
                log::warn!(
                    "not everything was shipped in {timeout:?}; the rest stays in the spool"
                );
                return;
            }
        }
    }

    /// True if both threads answer in time, as healthy threads do.
    pub fn answers(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let (sealer, sealed) = crossbeam_channel::bounded(1);
        let (shipper, shipped) = crossbeam_channel::bounded(1);
        self.control(Control::Ping(sealer));
        self.order(Order::Ping(shipper));
        sealed.recv_deadline(deadline).is_ok() && shipped.recv_deadline(deadline).is_ok()
    }

    pub(crate) fn set_drained(&self) {
        *self.drained.lock() = true;
        self.drained.notify_all();
    }
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let mut body = Some(body);
    let mut result = Ok(());
    let mut start = || {
        if let Some(body) = body.take() {
            let thread = std::thread::Builder::new().name(name.to_string());
            result = thread.spawn(body).map(drop);
        }
    };
    match SPAWN_GUARD.get() {
        Some(guard) => guard(&mut start),
        None => start(),
    }
    result.map_err(|error| format!("cannot start the thread {name}: {error}"))
}

/// Wakes the sealer. A ring while the sealer is awake is remembered.
#[derive(Default)]
pub(crate) struct Bell(Watched<bool>);

impl Bell {
    pub(crate) fn ring(&self) {
        *self.0.lock() = true;
        self.0.notify_all();
    }

    /// Sleeps until rung, or for this long.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let mut rung = self.0.lock();
        rung = match timeout {
            _ if *rung => rung,
            Some(timeout) => self.0.wait_for(rung, timeout).0,
            None => self.0.wait(rung),
        };
        *rung = false;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ops::Range;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::border::{Border, Reader, Way};
    use crate::claim::Claim;
    use crate::database::Attach;
    use crate::engine::Failure;
    use crate::history::{self, Work};
    use crate::log_end::{Look, Plan};
    use crate::ltx::FileName;
    use crate::plan::compact::Step;
    use crate::settings::Lookup;
    use crate::shipper::{Identity, Job, Task, UploadOutcome};
    use crate::store::memory::MemoryStore;
    use crate::store::{Body, Error, FileInfo, Key, Store, Upload};
    use crate::units::{Level, Pgno, Salts, Timestamp, Txid, WriterId};
    use crate::wal::WalIndex;
    use crate::wal::evidence::Guard;

    /// Settings with the URL of a replica alone.
    struct Only(String);

    impl Lookup for Only {
        fn parameter(&self, name: &str) -> Option<String> {
            (name == "replica").then(|| self.0.clone())
        }

        fn variable(&self, _: &str) -> Option<String> {
            None
        }
    }

    /// Opens a database in a folder, with its replica beside it.
    fn open(process: &Arc<Process>, dir: &Path, name: &str) -> Result<Replications, String> {
        let path = dir.join(name);
        std::fs::write(&path, "").unwrap();
        let replica = format!("file://{}", dir.join(format!("{name}-replica")).display());
        let settings = Settings::resolve(&path, &Only(replica), None).unwrap();
        process.database(&path, settings, false).map(|(database, _)| database)
    }

    #[test]
    fn a_thread_that_panics_ends_replication_and_all_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start().unwrap();
        let known = open(&process, dir.path(), "a.db").unwrap();
        process.guard("walferry-ship", || panic!("on purpose"));
        let report = known.first().report();
        assert_eq!(report.state, "error");
        assert!(report.last_error.unwrap().contains("walferry-ship"));
        let later = open(&process, dir.path(), "b.db").err().unwrap();
        assert!(later.contains("walferry-ship"), "one that comes later");
    }

    const KEY: Key = Key { level: Level::L0, name: FileName { min: Txid(1), max: Txid(1) } };

    /// A store in which every call panics.
    struct Panics;

    #[async_trait]
    impl Store for Panics {
        fn url(&self) -> &'static str {
            "file:///panics"
        }

        async fn list(&self, _: Level) -> Result<Vec<FileInfo>, Error> {
            panic!("on purpose")
        }

        async fn get(&self, _: Key, _: Option<Range<u64>>) -> Result<Bytes, Error> {
            panic!("on purpose")
        }

        async fn put_new(&self, _: Key, _: Body, _: Timestamp) -> Result<(), Error> {
            panic!("on purpose")
        }

        async fn upload_new(&self, _: Key, _: Timestamp, _: u64) -> Result<Box<dyn Upload>, Error> {
            panic!("on purpose")
        }

        async fn delete(&self, _: Key) -> Result<(), Error> {
            panic!("on purpose")
        }
    }

    fn every_task() -> Vec<Task> {
        let file = FileInfo { key: KEY, len: 1, modified: Timestamp(1), stored: Timestamp(1) };
        let step = Step { key: Key { level: Level::L1, ..KEY }, inputs: vec![file] };
        let claim = Some(Claim { writer: WriterId(1), from: None });
        let ours = Identity { head: [0; _], trailer: [0; _], len: 0 };
        let history = |work| Task::History { work, copies: None };
        let plan = Plan { head: None, writer: WriterId(1) };
        vec![
            Task::FindHead { acked: Txid(1), claim: None },
            Task::FindHead { acked: Txid(1), claim },
            Task::Put {
                key: KEY,
                body: Body::Bytes(Bytes::new()),
                timestamp: Timestamp(1),
                look: Look::default(),
            },
            Task::Inspect { txid: Txid(1), ours },
            Task::Confirm { key: KEY, writer: WriterId(1), checksum: 0 },
            Task::OpenUpload { job: 7, key: KEY, timestamp: Timestamp(1), len: 1, plan },
            history(Work::Survey),
            history(Work::Join(step.clone())),
            history(Work::Prove(step)),
        ]
    }

    /// Returns the failure of a job.
    fn failure(outcome: Outcome) -> Option<Failure> {
        match outcome {
            Outcome::Failed(failure)
            | Outcome::Upload { job: 7, outcome: UploadOutcome::Failed(failure) }
            | Outcome::History(history::Done { event: history::Event::Failed(failure), .. }) => {
                Some(failure)
            }
            _ => None,
        }
    }

    #[test]
    fn a_job_that_panics_ends_with_an_error_and_keeps_no_place() {
        let (process, inbox, orders) = Process::new();
        let runtime = shipper::runtime().unwrap();
        let ships = process.clone();
        std::thread::spawn(move || shipper::run(ships, &runtime, orders));
        let ends = |store: Arc<dyn Store>, task| {
            process.order(Order::Job(Job { database: 1, tenure: 2, store, task }));
            match inbox.controls.recv_timeout(Duration::from_mins(1)) {
                Ok(Control::Shipped(1, 2, outcome)) => outcome,
                other => panic!("{other:?}"),
            }
        };
        // More jobs than there are places for images and compactions.
        for _ in 0..20 {
            for (number, task) in every_task().into_iter().enumerate() {
                let failure = failure(ends(Arc::new(Panics), task));
                let failure = failure.unwrap_or_else(|| panic!("job {number} did not fail"));
                assert!(failure.message().contains("panic"), "{number}: {}", failure.message());
            }
        }
        let task = Task::FindHead { acked: Txid::ZERO, claim: None };
        let well = ends(Arc::new(MemoryStore::new()), task);
        assert!(matches!(well, Outcome::Head(None)), "{well:?}");
    }

    /// A border in which every call panics, except the call that a report makes.
    struct Broken;

    impl Border for Broken {
        fn wal_index(&self) -> Option<WalIndex> {
            None
        }

        fn guard(&self) -> Option<Guard> {
            panic!("on purpose")
        }

        fn frame_pages(&self, _: &WalIndex, _: u32, _: u32) -> Option<Vec<Pgno>> {
            panic!("on purpose")
        }

        fn hold(&self, _: bool) {
            panic!("on purpose")
        }

        fn checkpoint(&self) -> std::io::Result<bool> {
            panic!("on purpose")
        }

        fn empty_wal(&self) -> std::io::Result<bool> {
            panic!("on purpose")
        }

        fn forget_size(&self) {
            panic!("on purpose")
        }

        fn copied(&self) -> Option<u32> {
            panic!("on purpose")
        }

        fn hold_checkpoints(&self, _: bool) -> bool {
            panic!("on purpose")
        }

        fn give_way(&self, _: (Salts, u32), _: u32) -> Way {
            panic!("on purpose")
        }

        fn take_back(&self) -> bool {
            panic!("on purpose")
        }

        fn is_in_place(&self) -> bool {
            panic!("on purpose")
        }

        fn open_reader(&self) -> std::io::Result<Box<dyn Reader>> {
            panic!("on purpose")
        }
    }

    /// Waits until the sealer has processed all its messages.
    fn taken_in(process: &Process) {
        let (answer, answered) = crossbeam_channel::bounded(1);
        process.control(Control::Ping(answer));
        answered.recv_timeout(Duration::from_mins(1)).expect("the sealer is there");
    }

    #[test]
    fn a_panic_of_the_sealer_is_the_end_of_one_database_and_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (process, inbox, _orders) = Process::new();
        let broken = open(&process, dir.path(), "broken.db").unwrap();
        broken.set_border(|_| Arc::new(Broken));
        let well = open(&process, dir.path(), "well.db").unwrap();
        let seals = process.clone();
        std::thread::spawn(move || {
            seals.guard("walferry-seal", || sealer::run(&seals, &inbox));
        });
        for database in [&broken, &well] {
            database.first().connect();
            database.first().attached(Attach::default(), &|| None);
        }
        taken_in(&process);
        let report = broken.first().report();
        assert_eq!(report.state, "error");
        assert!(report.last_error.unwrap().contains("panic in the sealer"));
        let report = well.first().report();
        assert!(report.state != "error" && report.last_error.is_none(), "{report:?}");
        // The store's answer to an earlier question comes late, and changes nothing.
        let tenures = 0..3;
        for tenure in tenures {
            let id = broken.first().id;
            process.control(Control::Shipped(id, tenure, Outcome::Head(None)));
        }
        taken_in(&process);
        assert_eq!(broken.first().report().state, "error");
        assert_eq!(process.ended(), None);
    }

    #[test]
    fn the_latest_refusals_are_remembered() {
        let path = |number: usize| PathBuf::from(format!("/{number}.db"));
        (0..=REFUSED_MAX).for_each(|number| refuse(&path(number), "s3://", "no bucket"));
        let refused = refused();
        assert_eq!(refused.len(), REFUSED_MAX);
        assert_eq!(
            refused.last().map(|one| one.database.clone()),
            Some(path(REFUSED_MAX).display().to_string())
        );
    }
}
