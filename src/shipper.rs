//! The shipper thread, which talks to the stores: one runtime with any number of jobs. The thread reports the
//! end of each job to the sealer.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use crate::claim::Claim;
use crate::engine::{Failure, Head, Verdict};
use crate::history;
use crate::local::{folder, shared};
pub(crate) use crate::log_end::Look;
use crate::log_end::{Plan, Seen, find_head, head_of, newest, outrun, see};
use crate::ltx::{FileName, HEADER_LEN, Header, MIN_FILE_LEN, TRAILER_LEN};
use crate::process::{Control, Process};
use crate::rooms::Rooms;
use crate::store::{Body, ErrorKind, Key, Store, Upload, read_header};
use crate::units::{Level, Timestamp, Txid, WriterId};

/// Parts of an image that wait for their upload. With the part being filled and the part being sent, this
/// bounds the memory of an image.
const PARTS_WAITING: usize = 1;
/// Most threads that wait for files or compact some. At most three jobs of the history run at once
/// ([`Rooms::for_joins`]), so one thread is left to read for them.
const BLOCKING_MAX: usize = 4;

/// Message to the shipper thread.
pub(crate) enum Order {
    /// Does a job at the store.
    Job(Job),
    /// Passes on the calls of other processes, until `until` ends.
    Listen { database: u64, bell: PathBuf, until: oneshot::Receiver<()> },
    /// Asks for an answer that shows that the thread is well.
    Ping(crossbeam_channel::Sender<()>),
}

/// One job at a store.
pub(crate) struct Job {
    pub database: u64,
    /// Tenure of the replica's local state, which may be another one when the answer comes.
    pub tenure: u64,
    pub store: Arc<dyn Store>,
    pub task: Task,
}

/// Task of a job.
pub(crate) enum Task {
    /// Finds the head of the log. Looks for the file of `acked` by its name too, so that a late listing does
    /// not look like a log that has lost files. With `claim`, takes over another writer's log.
    FindHead {
        acked: Txid,
        claim: Option<Claim>,
    },
    /// Puts a file, but only if the replica still holds the files before it, as far as `look` asks.
    Put {
        key: Key,
        body: Body,
        timestamp: Timestamp,
        look: Look,
    },
    /// Compares the file of this name with our file: its first and last bytes and its length.
    Inspect {
        txid: Txid,
        ours: Identity,
    },
    Confirm {
        key: Key,
        writer: WriterId,
        checksum: u64,
    },
    /// Uploads an image. `job` comes back with every outcome, so a late outcome of an earlier job is
    /// recognized. `len` is the approximate size of the database in bytes.
    OpenUpload {
        job: u64,
        key: Key,
        timestamp: Timestamp,
        len: u64,
        plan: Plan,
    },
    /// Maintains the history, beside all other tasks. The folder `copies` holds some of the store's files.
    History {
        work: history::Work,
        copies: Option<PathBuf>,
    },
}

/// Bytes that tell our file from any other: the header with writer, time and checksums, and the trailer with
/// the checksum of the contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub head: [u8; HEADER_LEN],
    pub trailer: [u8; TRAILER_LEN],
    pub len: u64,
}

/// Message from the sealer to the upload of an image.
#[derive(Debug)]
pub(crate) enum Part {
    Data { number: u32, bytes: Bytes },
    Complete,
}

/// Result of a job.
#[derive(Debug)]
pub(crate) enum Outcome {
    Head(Option<Head>),
    /// The log's end is the file with which this writer took over the log.
    Claimed(Head),
    PutDone,
    PutRefused,
    /// The replica lost transactions that it had confirmed. It ends with this transaction.
    Lost(Option<Txid>),
    /// The store asks for a pause of this length. The job's own end follows.
    SlowDown(Duration),
    Inspected {
        txid: Txid,
        verdict: Verdict,
    },
    Confirmed {
        arrived: bool,
    },
    Upload {
        job: u64,
        outcome: UploadOutcome,
    },
    Failed(Failure),
    History(history::Done),
}

/// Progress or end of an upload.
#[derive(Debug)]
pub(crate) enum UploadOutcome {
    Opened {
        part_len: usize,
        parts: mpsc::Sender<Part>,
    },
    /// There is room for another part.
    Ready,
    Done,
    Refused,
    Failed(Failure),
}

/// Makes the runtime of the shipper thread. The runtime needs descriptors, so it is made before the thread.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let built = crate::blocking::ask(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .thread_name("walferry-io")
            .max_blocking_threads(BLOCKING_MAX)
            .build()
    });
    match built {
        Some(Ok(runtime)) => Ok(runtime),
        Some(Err(error)) => Err(format!("cannot begin to reach the stores: {error}")),
        None => {
            Err("cannot begin to reach the stores: too few open files are left for it".to_string())
        }
    }
}

/// Runs the shipper thread.
pub(crate) fn run(
    process: Arc<Process>,
    runtime: &tokio::runtime::Runtime,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let local = tokio::task::LocalSet::new();
    local.block_on(runtime, async move {
        let images = Rc::new(Rooms::for_images());
        let joins = Rc::new(Rooms::for_joins());
        while let Some(order) = orders.recv().await {
            let (process, images, joins) = (process.clone(), images.clone(), joins.clone());
            tokio::task::spawn_local(async move {
                match order {
                    Order::Job(job) => {
                        let (database, tenure, on_panic) =
                            (job.database, job.tenure, on_panic(&job.task));
                        // The job runs as its own task. If the task panics, the job ends and the sealer hears
                        // of it.
                        let job = perform(process.clone(), images, joins, job);
                        let outcome = tokio::task::spawn_local(job).await.unwrap_or(on_panic);
                        process.control(Control::Shipped(database, tenure, outcome));
                    }
                    Order::Ping(answer) => {
                        let _ = answer.try_send(());
                    }
                    Order::Listen { database, bell, until } => {
                        listen(&process, database, &bell, until).await;
                    }
                }
            });
        }
    });
}

/// Listens to the bell of a database's other processes. Without the bell, the sealer looks by itself once a
/// second.
async fn listen(process: &Process, database: u64, bell: &Path, mut until: oneshot::Receiver<()>) {
    let opened = shared::make_bell(bell).map_err(|error| error.to_string());
    let opened =
        opened.and_then(|bell| pipe::Receiver::from_file(bell).map_err(|error| error.to_string()));
    let receiver = match opened {
        Ok(receiver) => receiver,
        Err(error) => {
            log::warn!("cannot listen to other processes at {}: {error}", bell.display());
            return;
        }
    };
    let mut rings = [0; 256];
    loop {
        tokio::select! {
            _ = &mut until => return,
            ready = receiver.readable() => {
                if ready.is_err() {
                    return;
                }
                while receiver.try_read(&mut rings).is_ok_and(|read| read == rings.len()) {}
                process.control(Control::Called(database));
            }
        }
    }
}

/// Returns the outcome that the sealer gets for a job that panicked.
fn on_panic(task: &Task) -> Outcome {
    let message =
        "an internal error of walferry (a panic in its work at the store); please report it";
    let failure = Failure::Store { kind: ErrorKind::Other, message: message.to_string() };
    match task {
        Task::OpenUpload { job, .. } => {
            Outcome::Upload { job: *job, outcome: UploadOutcome::Failed(failure) }
        }
        Task::History { .. } => Outcome::History(history::Done::failed(failure)),
        _ => Outcome::Failed(failure),
    }
}

async fn perform(process: Arc<Process>, images: Rc<Rooms>, joins: Rc<Rooms>, job: Job) -> Outcome {
    let Job { database, tenure, store, task } = job;
    let report = |outcome| process.control(Control::Shipped(database, tenure, outcome));
    let slow_down = |wait| report(Outcome::SlowDown(wait));
    let result = match task {
        Task::FindHead { acked, claim } => find_or_claim(&*store, acked, claim).await,
        Task::Put { key, body, timestamp, look } => put(&*store, key, body, timestamp, look).await,
        Task::Inspect { txid, ours } => {
            inspect(&*store, txid, &ours).await.map(|verdict| Outcome::Inspected { txid, verdict })
        }
        Task::Confirm { key, writer, checksum } => confirm(&*store, key, writer, checksum)
            .await
            .map(|arrived| Outcome::Confirmed { arrived }),
        Task::History { work, copies } => {
            let len = match &work {
                history::Work::Join(step) | history::Work::Prove(step) => {
                    step.inputs.iter().map(|file| file.len).fold(0, u64::saturating_add)
                }
                history::Work::Survey | history::Work::Retain { .. } => 0,
            };
            let _room = joins.enter("", len).await;
            return Outcome::History(history::perform(store, work, copies).await);
        }
        Task::OpenUpload { job, key, timestamp, len, plan } => {
            let _room = images.enter(store.server().unwrap_or_default(), len).await;
            let tell = |outcome| report(Outcome::Upload { job, outcome });
            let outcome = upload(&*store, key, timestamp, len, plan, &tell).await;
            return Outcome::Upload {
                job,
                outcome: outcome.unwrap_or_else(|error| {
                    error.retry_after.into_iter().for_each(slow_down);
                    ended(&error)
                }),
            };
        }
    };
    result.unwrap_or_else(|error| {
        error.retry_after.into_iter().for_each(slow_down);
        Outcome::Failed(Failure::of_store(&error))
    })
}

/// Creates a file, if the file before it is still in its place.
async fn put(
    store: &dyn Store,
    key: Key,
    body: Body,
    timestamp: Timestamp,
    look: Look,
) -> Result<Outcome, crate::store::Error> {
    match see(store, look, key.name.min).await? {
        Seen::AsExpected => {}
        Seen::Lost(end) => return Ok(Outcome::Lost(end)),
        Seen::GoneOn(head) => {
            let (next, writer) = (key.name.min, head.writer);
            // For a file with our writer id that this process does not know, the outcome names the TXID that
            // we have not used.
            let txid = if writer == look.writer { next } else { next.min(head.txid) };
            return Ok(Outcome::Inspected { txid, verdict: Verdict::Foreign { writer } });
        }
    }
    match store.put_new(key, body, timestamp).await {
        // A process that was stopped since the look may find a TXID free that was taken before.
        Ok(()) if look.first && outrun(store, key).await?.is_some() => {
            let head = find_head(store, Txid::ZERO).await?;
            let writer = head.map(|head| head.writer).unwrap_or_default();
            let verdict = Verdict::Foreign { writer };
            Ok(Outcome::Inspected { txid: key.name.min, verdict })
        }
        Ok(()) => Ok(Outcome::PutDone),
        Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(Outcome::PutRefused),
        Err(error) => Err(error),
    }
}

/// Finds the end of the log. Takes the log over as `claim` says, if another writer made the end.
async fn find_or_claim(
    store: &dyn Store,
    acked: Txid,
    claim: Option<Claim>,
) -> Result<Outcome, crate::store::Error> {
    if let Some(claim) = claim
        && let Some((_, Some(last))) = newest(store).await?
        && claim.is_due(&last)
    {
        let last = claim.take_over(store, &last).await?;
        let head = head_of(last.max_txid, Some(last));
        return Ok(if last.writer == claim.writer {
            Outcome::Claimed(head)
        } else {
            Outcome::Head(Some(head))
        });
    }
    find_head(store, acked).await.map(Outcome::Head)
}

async fn inspect(
    store: &dyn Store,
    txid: Txid,
    ours: &Identity,
) -> Result<Verdict, crate::store::Error> {
    let key = Key { level: Level::L0, name: FileName::single(txid) };
    let head = match store.get(key, Some(0..HEADER_LEN as u64)).await {
        Ok(head) => head,
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(Verdict::Missing),
        Err(error) => return Err(error),
    };
    let head = head.first_chunk::<HEADER_LEN>();
    if head == Some(&ours.head) {
        // Asks for one byte more than our file has, to detect a longer file.
        let tail = ours.len.saturating_sub(TRAILER_LEN as u64)..ours.len.saturating_add(1);
        match store.get(key, Some(tail)).await {
            Ok(tail) if tail.as_ref() == ours.trailer.as_slice() => return Ok(Verdict::Ours),
            Ok(_) => {}
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(Verdict::Missing),
            // In a shorter file the range is past the end. No store has an error kind for that.
            Err(error) if error.kind == ErrorKind::Other => {
                let files = store.list(Level::L0).await?;
                let file = files.iter().find(|file| file.key == key);
                if file.is_none_or(|file| file.len >= ours.len) {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    let writer = head.and_then(|head| Header::decode(head).ok()).map(|header| header.writer);
    Ok(Verdict::Foreign { writer: writer.unwrap_or_default() })
}

async fn confirm(
    store: &dyn Store,
    key: Key,
    writer: WriterId,
    checksum: u64,
) -> Result<bool, crate::store::Error> {
    match read_header(store, key).await {
        Ok(Ok(header)) => Ok(header.writer == writer
            && header.tag.is_some_and(|tag| tag.post_apply.get() == checksum)),
        Ok(Err(_)) => Ok(false),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Uploads an image from the sealer to the store. After a failure, the sealer's next send finds the channel
/// closed.
async fn upload(
    store: &dyn Store,
    key: Key,
    timestamp: Timestamp,
    len: u64,
    plan: Plan,
    tell: &dyn Fn(UploadOutcome),
) -> Result<UploadOutcome, crate::store::Error> {
    let mut upload = store.upload_new(key, timestamp, len).await?;
    let (parts, mut waiting) = mpsc::channel(PARTS_WAITING);
    tell(UploadOutcome::Opened { part_len: upload.part_len(), parts });
    let received = match receive(&mut *upload, &mut waiting, tell).await {
        // The upload of the parts may have taken hours.
        Ok(true) => plan.holds(store, key).await.map(Some),
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    match received {
        Ok(Some(true)) => {
            upload.complete().await?;
            if plan.is_crossed(store, key).await? {
                // Left in place, the image would block the states that the other writer's files lead to.
                store.delete(key).await?;
                return Ok(UploadOutcome::Refused);
            }
            Ok(UploadOutcome::Done)
        }
        Ok(Some(false)) => {
            upload.abort().await;
            Ok(UploadOutcome::Refused)
        }
        Ok(None) => {
            upload.abort().await;
            let message = "the image was given up".to_string();
            Ok(UploadOutcome::Failed(Failure::Local { message }))
        }
        Err(error) => {
            upload.abort().await;
            Err(error)
        }
    }
}

/// Sends parts until the sealer says that the image is complete; `false` if the sealer gave up.
async fn receive(
    upload: &mut dyn Upload,
    waiting: &mut mpsc::Receiver<Part>,
    tell: &dyn Fn(UploadOutcome),
) -> Result<bool, crate::store::Error> {
    loop {
        match waiting.recv().await {
            Some(Part::Data { number, bytes }) => {
                tell(UploadOutcome::Ready);
                upload.part(number, bytes).await?;
            }
            Some(Part::Complete) => return Ok(true),
            None => return Ok(false),
        }
    }
}

fn ended(error: &crate::store::Error) -> UploadOutcome {
    match error.kind {
        ErrorKind::AlreadyExists => UploadOutcome::Refused,
        _ => UploadOutcome::Failed(Failure::of_store(error)),
    }
}

/// Reads the identity of a local file.
pub(crate) fn identity(path: &std::path::Path) -> std::io::Result<Identity> {
    use std::os::unix::fs::FileExt;
    let file = folder::read(path)?;
    let len = file.metadata()?.len();
    if len < MIN_FILE_LEN {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let (mut head, mut trailer) = ([0; HEADER_LEN], [0; TRAILER_LEN]);
    file.read_exact_at(&mut head, 0)?;
    file.read_exact_at(&mut trailer, len - TRAILER_LEN as u64)?;
    Ok(Identity { head, trailer, len })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;
    use std::ops::Range;

    use async_trait::async_trait;
    use parking_lot::Mutex;

    use super::*;
    use crate::log_end::tests::{OURS, THEIRS, add, file, key, on_runtime};
    use crate::store::memory::MemoryStore;
    use crate::store::{Error, FileInfo};

    /// A store in which another writer's files appear just before ours, once.
    struct Overtaken {
        store: MemoryStore,
        by: Arc<Mutex<Vec<Key>>>,
        /// Error of each read that does not begin at the first byte of a file.
        second_read: Option<ErrorKind>,
    }

    impl Overtaken {
        fn new(by: &[Key]) -> Overtaken {
            let by = Arc::new(Mutex::new(by.to_vec()));
            Overtaken { store: MemoryStore::new(), by, second_read: None }
        }

        fn keys(&self) -> Vec<Key> {
            self.store.files().into_iter().map(|(key, _)| key).collect()
        }
    }

    async fn overtake(store: &MemoryStore, by: &Mutex<Vec<Key>>) {
        let by = std::mem::take(&mut *by.lock());
        for key in by {
            add(store, key, THEIRS, Some(9)).await;
        }
    }

    #[async_trait]
    impl Store for Overtaken {
        fn url(&self) -> &str {
            self.store.url()
        }

        async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error> {
            self.store.list(level).await
        }

        async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
            match self.second_read {
                Some(kind) if range.as_ref().is_some_and(|range| range.start > 0) => {
                    Err(Error::new(kind, "no"))
                }
                _ => self.store.get(key, range).await,
            }
        }

        async fn put_new(&self, key: Key, body: Body, timestamp: Timestamp) -> Result<(), Error> {
            overtake(&self.store, &self.by).await;
            self.store.put_new(key, body, timestamp).await
        }

        async fn upload_new(
            &self,
            key: Key,
            timestamp: Timestamp,
            len: u64,
        ) -> Result<Box<dyn Upload>, Error> {
            let upload = self.store.upload_new(key, timestamp, len).await?;
            let (store, by) = (self.store.clone(), self.by.clone());
            Ok(Box::new(OvertakenUpload { upload, store, by }))
        }

        async fn delete(&self, key: Key) -> Result<(), Error> {
            self.store.delete(key).await
        }
    }

    struct OvertakenUpload {
        upload: Box<dyn Upload>,
        store: MemoryStore,
        by: Arc<Mutex<Vec<Key>>>,
    }

    #[async_trait]
    impl Upload for OvertakenUpload {
        fn part_len(&self) -> usize {
            self.upload.part_len()
        }

        async fn part(&mut self, number: u32, bytes: Bytes) -> Result<(), Error> {
            self.upload.part(number, bytes).await
        }

        async fn complete(self: Box<Self>) -> Result<(), Error> {
            overtake(&self.store, &self.by).await;
            self.upload.complete().await
        }

        async fn abort(self: Box<Self>) {
            self.upload.abort().await;
        }
    }

    const IMAGE: Plan = Plan { head: None, writer: OURS };

    /// Uploads an image into an empty replica, in which another writer's files appear during the upload.
    async fn image(
        store: &dyn Store,
        key: Key,
        meanwhile: &[Key],
        to: &MemoryStore,
    ) -> UploadOutcome {
        let opened = RefCell::new(None);
        let tell = |outcome| {
            if let UploadOutcome::Opened { parts, .. } = outcome {
                *opened.borrow_mut() = Some(parts);
            }
        };
        let sends = async {
            let parts = loop {
                let parts = opened.borrow_mut().take();
                if let Some(parts) = parts {
                    break parts;
                }
                tokio::task::yield_now().await;
            };
            for key in meanwhile {
                add(to, *key, THEIRS, Some(9)).await;
            }
            let bytes = file(key, OURS, Some(4)).into();
            parts.send(Part::Data { number: 0, bytes }).await.unwrap();
            parts.send(Part::Complete).await.unwrap();
        };
        let (outcome, ()) = tokio::join!(upload(store, key, Timestamp(1), 1, IMAGE, &tell), sends);
        outcome.unwrap()
    }

    #[test]
    fn an_image_does_not_complete_in_the_log_that_another_began_meanwhile() {
        on_runtime(async {
            let (ours, theirs) = (key(9, 1, 4), [key(9, 1, 1), key(0, 2, 2)]);
            let store = Overtaken::new(&[]);
            assert!(matches!(image(&store, ours, &[], &store.store).await, UploadOutcome::Done));
            assert_eq!(store.keys(), [ours]);
            let store = Overtaken::new(&[]);
            let outcome = image(&store, ours, &theirs, &store.store).await;
            assert!(matches!(outcome, UploadOutcome::Refused), "{outcome:?}");
            assert_eq!(store.keys(), [theirs[1], theirs[0]]);
            // Between the look and the completion.
            let store = Overtaken::new(&theirs);
            let outcome = image(&store, ours, &[], &store.store).await;
            assert!(matches!(outcome, UploadOutcome::Refused), "{outcome:?}");
            assert_eq!(store.keys(), [theirs[1], theirs[0]]);
        });
    }

    #[test]
    fn a_file_is_another_only_if_its_bytes_were_read() {
        on_runtime(async {
            let key = key(0, 5, 5);
            let bytes = file(key, OURS, Some(5));
            let head = *bytes.first_chunk().unwrap();
            let trailer = *bytes.last_chunk().unwrap();
            let ours = Identity { head, trailer, len: bytes.len() as u64 };
            let foreign = Verdict::Foreign { writer: OURS };
            let longer = Identity { len: ours.len + 500, ..ours.clone() };
            let other = Identity { trailer: [7; TRAILER_LEN], ..ours.clone() };
            let mut store = Overtaken::new(&[]);
            add(&store.store, key, OURS, Some(5)).await;
            for (ours, verdict) in [(&ours, Verdict::Ours), (&longer, foreign), (&other, foreign)] {
                assert_eq!(inspect(&store, Txid(5), ours).await.unwrap(), verdict);
            }
            for kind in [ErrorKind::Denied, ErrorKind::Unauthenticated, ErrorKind::Other] {
                store.second_read = Some(kind);
                assert_eq!(inspect(&store, Txid(5), &ours).await.unwrap_err().kind, kind);
            }
            store.second_read = Some(ErrorKind::NotFound);
            assert_eq!(inspect(&store, Txid(5), &ours).await.unwrap(), Verdict::Missing);
        });
    }

    #[test]
    fn a_first_file_in_a_place_that_was_joined_and_removed_is_no_success() {
        on_runtime(async {
            let (ours, joined, end) = (key(0, 6, 6), key(1, 6, 20), key(0, 20, 20));
            let body = || Body::Bytes(file(ours, OURS, Some(6)).into());
            let look = Look { first: true, writer: OURS, ..Look::default() };
            let store = Overtaken::new(&[joined, end]);
            let outcome = put(&store, ours, body(), Timestamp(1), look).await.unwrap();
            let Outcome::Inspected { txid, verdict } = outcome else { panic!("{outcome:?}") };
            assert_eq!((txid, verdict), (Txid(6), Verdict::Foreign { writer: THEIRS }));
            assert_eq!(store.keys(), [end, joined]);
            let store = Overtaken::new(&[]);
            let outcome = put(&store, ours, body(), Timestamp(1), look).await.unwrap();
            assert!(matches!(outcome, Outcome::PutDone), "{outcome:?}");
        });
    }
}
