//! Follows a replica: keeps a local, read-only copy of a database at the newest state of the replica.
//!
//! [`next`] decides on plain values which request the store gets. [`fetch`] proves a file before a page of the
//! file is used. [`copy`] writes a file as one transaction. Inside the transaction `copy` computes the checksum
//! of the whole database and compares it with the checksum that the file names. [`record`] notes the copy's
//! state beside the copy, and the copy itself shows its state, too. So a follower goes on after a kill.
//!
//! If no files lead on from the copy's state, the follower restores the whole database beside the copy and
//! proves it. Then the follower writes the pages that differ, again as one transaction. Only if the page size
//! has changed does another file take the copy's place.

mod copy;
mod error;
mod fetch;
mod first_page;
pub mod next;
mod record;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

pub use error::Error;

use crate::engine::Millis;
use crate::local::state::random_id;
use crate::restore::{self, Integrity, Point, Report, list_in_turn, restore};
use crate::store::{self, FileInfo, Store};
use crate::units::{Timestamp, Txid};
use copy::{Copy, Found, Outcome, Room, To};
use fetch::{DatabasePages, Proven};
use next::{Next, Schedule, Way, way};
use record::Record;

/// Replica's copy, and settings of a follower.
#[derive(Clone, Debug)]
pub struct Options {
    /// Path of the copy. The path must be free, or have a copy of the same replica that only the follower has
    /// written to.
    pub output: PathBuf,
    /// Time between two requests while the replica has no new files.
    pub interval: Duration,
    /// Number of requests at a time while the whole database is restored.
    pub parallelism: usize,
    /// SQLite's check before a copy that was restored as a whole gets its name.
    pub integrity: Integrity,
    /// Permission bits of a new copy; if `None`, 0600.
    pub mode: Option<u32>,
    /// Receives the progress while the whole database is restored.
    pub watch: Option<restore::Watch>,
}

/// Ends a follower from another thread or task.
#[derive(Debug, Default)]
pub struct Stop {
    set: AtomicBool,
    told: Notify,
}

impl Stop {
    /// Tells the follower to end as soon as the copy is whole. A step that is not committed is rolled back.
    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    async fn wait(&self) {
        let told = self.told.notified();
        tokio::pin!(told);
        // The waiter registers before the check, so that a call of `set` between the two wakes it.
        told.as_mut().enable();
        if !self.is_set() {
            told.await;
        }
    }

    /// Runs `work` to its end. Returns `None` if the follower is stopped first; `work` is dropped then.
    async fn or<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.wait() => None,
            done = work => Some(done),
        }
    }
}

/// Event of a follower.
#[derive(Debug)]
pub enum Event<'a> {
    /// There was no copy, and the follower restored it.
    Restored(&'a Report),
    /// The copy is intact, and in this state.
    Resumed {
        /// The state.
        txid: Txid,
        /// Commit time of the state.
        timestamp: Timestamp,
    },
    /// The copy is in this state now.
    Step {
        /// The state.
        txid: Txid,
        /// Commit time of the state.
        timestamp: Timestamp,
        /// Number of pages that were written.
        pages: u64,
        /// Reason why the whole database was restored for the step, if it was.
        whole: Option<String>,
    },
    /// The follower failed, and tries again.
    Trouble {
        /// The error.
        error: &'a Error,
    },
}

/// Keeps the copy current until `stop`. Returns the last state, or `None` if there was no copy yet.
///
/// An error ends the follower at the start. Later the follower reports an error and tries again after a while,
/// unless the error cannot pass without a restart.
pub async fn follow(
    store: Arc<dyn Store>,
    options: Options,
    stop: Arc<Stop>,
    tell: impl FnMut(Event<'_>),
) -> Result<Option<Txid>, Error> {
    let (begun, reached) = (Instant::now(), false);
    let mut follower = Follower { store, options, stop, tell, begun, reached };
    let Some(mut copy) = follower.begin().await? else { return Ok(None) };
    let result = follower.run(&mut copy).await;
    let at = copy.as_ref().map(Copy::at);
    match result {
        Ok(()) | Err(Error::Stopped) => {
            copy.as_mut().map_or(Ok(()), Copy::rest)?;
            Ok(at)
        }
        Err(error) => Err(error),
    }
}

struct Follower<T> {
    store: Arc<dyn Store>,
    options: Options,
    stop: Arc<Stop>,
    tell: T,
    begun: Instant,
    /// True if the replica was ever reached.
    reached: bool,
}

/// The copy; `None` while a thread has it.
type Held = Option<Copy>;

impl<T: FnMut(Event<'_>)> Follower<T> {
    /// Finds the copy or makes it. Returns `Ok(None)` if the follower was stopped.
    async fn begin(&mut self) -> Result<Option<Held>, Error> {
        let replica = store::url::identity(self.store.as_ref());
        let (path, stop) = (self.options.output.clone(), self.stop.clone());
        let found = blocking(move || copy::look(&path, &replica, &stop)).await;
        let copy = match found {
            Ok(Found::Copy(copy)) => {
                let (txid, timestamp) = (copy.at(), copy.timestamp());
                (self.tell)(Event::Resumed { txid, timestamp });
                *copy
            }
            Ok(Found::Nothing(room)) => match self.restore_first(room).await? {
                Some(copy) => copy,
                None => return Ok(None),
            },
            Err(Error::Stopped) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Some(copy)))
    }

    async fn restore_first(&mut self, room: Room) -> Result<Option<Copy>, Error> {
        let Some(restored) = self.restore_to(room.scratch()).await else { return Ok(None) };
        let report = match restored {
            Err(Error::Restore(restore::Error::Plan(crate::plan::Error::Empty)))
                if !restore::generations::list(self.store.as_ref()).await?.is_empty() =>
            {
                return Err(Error::Generations);
            }
            other => other?,
        };
        let (copy, report) = blocking(move || Ok((room.fill(&report)?, report))).await?;
        self.reached = true;
        (self.tell)(Event::Restored(&report));
        Ok(Some(copy))
    }

    /// Restores the newest state, proven. Returns `None` if the follower was stopped.
    async fn restore_to(&self, path: PathBuf) -> Option<Result<Report, Error>> {
        // A follower that ended just before the database became the copy has left these files.
        for name in ["new", "new-wal", "new-shm", "new-journal"] {
            let left = path.with_file_name(name);
            if let Err(error) = std::fs::remove_file(&left)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Some(Err(Error::local("cannot remove", &left)(error)));
            }
        }
        let options = restore::Options {
            point: Point::Latest,
            parallelism: self.options.parallelism,
            integrity: self.options.integrity,
            mode: self.options.mode,
            watch: self.options.watch.clone(),
            ..restore::Options::new(path)
        };
        let restored = self.stop.or(restore(self.store.clone(), options)).await?;
        Some(restored.map_err(Error::Restore))
    }

    async fn run(&mut self, held: &mut Held) -> Result<(), Error> {
        let at = held.as_ref().map_or(Txid::ZERO, Copy::at);
        let interval = self.options.interval.as_millis() as Millis;
        let mut schedule = Schedule::new(at, interval, random_id());
        while !self.stop.is_set() {
            let next = schedule.next(self.now());
            if let Next::Wait(ms) = next {
                self.stop.or(tokio::time::sleep(Duration::from_millis(ms))).await;
                continue;
            }
            match self.go(next, held, &mut schedule).await {
                Ok(()) => self.reached = true,
                // A program that has the copy open proves nothing about the replica.
                Err(error)
                    if error.passes() && (self.reached || matches!(error, Error::Readers(_))) =>
                {
                    (self.tell)(Event::Trouble { error: &error });
                    let (lasting, hold) = match &error {
                        Error::Store(error) => (!error.kind.is_transient(), error.retry_after),
                        _ => (true, None),
                    };
                    schedule.failed(self.now(), lasting, hold.map(|hold| hold.as_millis() as u64));
                    schedule.look_again();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn go(
        &mut self,
        next: Next,
        held: &mut Held,
        schedule: &mut Schedule,
    ) -> Result<(), Error> {
        match next {
            Next::Wait(_) => Ok(()),
            Next::Get(key) => match self.fetch(held, key).await? {
                Some(file) => self.take(held, file, schedule).await,
                None => {
                    schedule.missing(self.now());
                    Ok(())
                }
            },
            Next::List => self.list(held, schedule).await,
        }
    }

    async fn list(&mut self, held: &mut Held, schedule: &mut Schedule) -> Result<(), Error> {
        let listing = self.stop.or(list_in_turn(self.store.as_ref())).await;
        let files: Vec<FileInfo> = listing.ok_or(Error::Stopped)??;
        let at = held.as_ref().map_or(Txid::ZERO, Copy::at);
        match way(&files, at)? {
            Way::There => schedule.nothing_new(self.now()),
            Way::Steps(plan) => {
                for file in plan.files {
                    match self.fetch(held, file.key).await? {
                        Some(file) => self.take(held, file, schedule).await?,
                        // The file was compacted and removed meanwhile.
                        None => {
                            schedule.look_again();
                            break;
                        }
                    }
                }
            }
            Way::Whole(instead) => self.whole(held, instead.to_string(), schedule).await?,
            Way::Back(head) => return Err(Error::Back { at, head: Some(head) }),
            Way::Empty => return Err(Error::Back { at, head: None }),
        }
        Ok(())
    }

    async fn fetch(&self, held: &Held, key: crate::store::Key) -> Result<Option<Proven>, Error> {
        let scratch = held.as_ref().map(|copy| copy.scratch("incoming"));
        let scratch = scratch.ok_or(Error::Internal("the copy was lost"))?;
        let fetched = self.stop.or(fetch::fetch(self.store.as_ref(), key, &scratch)).await;
        fetched.ok_or(Error::Stopped)?
    }

    /// Applies a file. If the file does not fit, restores the replica's newest state as a whole.
    async fn take(
        &mut self,
        held: &mut Held,
        file: Proven,
        schedule: &mut Schedule,
    ) -> Result<(), Error> {
        let key = file.key;
        if held.as_ref().is_some_and(|copy| key.name.max <= copy.at()) {
            // A restore of the whole has brought the copy there in between.
            return Ok(());
        }
        let outcome = with(held, move |copy| {
            let header = &file.header;
            let tag =
                header.tag.filter(|tag| !tag.full_image && header.min_txid == copy.at().next());
            let to = To {
                txid: header.max_txid,
                timestamp: header.timestamp,
                page_size: header.page_size,
                commit: header.commit,
                from: tag.map(|tag| tag.pre_apply),
                checksum: header.tag.map(|tag| tag.post_apply),
            };
            copy.step(to, &mut file.pages()?)
        })
        .await?;
        match outcome {
            Outcome::Done(pages) => {
                self.moved(held, pages, None, schedule);
                Ok(())
            }
            Outcome::Unfit(why) => self.whole(held, format!("file {key}: {why}"), schedule).await,
        }
    }

    async fn whole(
        &mut self,
        held: &mut Held,
        why: String,
        schedule: &mut Schedule,
    ) -> Result<(), Error> {
        let at = held.as_ref().map_or(Txid::ZERO, Copy::at);
        let path = held.as_ref().map(|copy| copy.scratch("new"));
        let path = path.ok_or(Error::Internal("the copy was lost"))?;
        let report = self.restore_to(path.clone()).await.ok_or(Error::Stopped)??;
        if report.txid < at {
            return Err(Error::Back { at, head: Some(report.txid) });
        }
        let pages = with(held, move |copy| {
            if copy.page_size() != Some(report.page_size) {
                copy.replace(&report)?;
                return Ok(u64::from(report.commit));
            }
            let to = To {
                txid: report.txid,
                timestamp: report.timestamp,
                page_size: report.page_size,
                commit: report.commit,
                from: None,
                checksum: Some(report.checksum),
            };
            let mut pages = DatabasePages::open(&path, report.page_size, report.commit)?;
            let outcome = copy.step(to, &mut pages)?;
            std::fs::remove_file(&path).map_err(Error::local("cannot remove", &path))?;
            match outcome {
                Outcome::Done(pages) => Ok(pages),
                // The outcome of an earlier step was not known, and that step was done.
                Outcome::Unfit(_) if copy.at() > at => Ok(0),
                Outcome::Unfit(_) => Err(Error::Internal("a proven database did not fit")),
            }
        })
        .await?;
        self.moved(held, pages, Some(why), schedule);
        Ok(())
    }

    fn moved(&mut self, held: &Held, pages: u64, whole: Option<String>, schedule: &mut Schedule) {
        let Some(copy) = held else { return };
        let (txid, timestamp) = (copy.at(), copy.timestamp());
        schedule.moved(txid, self.now());
        (self.tell)(Event::Step { txid, timestamp, pages, whole });
    }

    fn now(&self) -> Millis {
        self.begun.elapsed().as_millis() as Millis
    }
}

/// State of a copy, as the record beside it gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Position {
    /// URL of the replica, without secrets.
    pub replica: String,
    /// State of the copy.
    pub txid: Txid,
    /// Commit time of the state.
    pub timestamp: Timestamp,
}

/// Reads the record in a folder of local state. Returns `Ok(None)` if no copy has the folder.
///
/// The function takes no lock and proves nothing. While a follower runs, and after a kill, the copy may be one
/// step further.
pub fn position(dir: &Path) -> Result<Option<Position>, crate::local::Error> {
    let record = Record::load(dir)?;
    Ok(record.map(|record| Position {
        txid: record.at.txid(),
        timestamp: record.at.timestamp(),
        replica: record.replica,
    }))
}

/// Lends the copy to a thread that may block.
async fn with<T: Send + 'static>(
    held: &mut Held,
    work: impl FnOnce(&mut Copy) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let mut copy = held.take().ok_or(Error::Internal("the copy was lost"))?;
    let (copy, result) = blocking(move || {
        let result = work(&mut copy);
        Ok((copy, result))
    })
    .await?;
    *held = Some(copy);
    result
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Internal("a thread broke off"))?
}
