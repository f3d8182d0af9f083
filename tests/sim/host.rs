//! One host: a database, a disk, and the processes that have walferry in them.

use std::collections::BTreeSet;

use walferry::units::Txid;

use crate::disk::Disk;
use crate::process::Process;
use crate::rng::Rng;
use crate::sqlite::Database;
use crate::world::Cx;

/// The one reason for an image that lasts until there is one.
pub const PAGE_SIZE_CHANGED: &str = "the page size changed";

pub struct Host {
    pub id: usize,
    pub db: Database,
    pub disk: Disk,
    pub procs: Vec<Process>,
    /// Which process holds the lock in the state folder.
    pub lock: Option<usize>,
    pub sync_interval: u64,
    pub spool_cap: u64,
    /// Why a full image may be sent; `None` when nothing happened that costs one.
    pub image_reason: Option<&'static str>,
    pub images: u64,
    pub resyncs: u64,
    /// TXIDs that the store confirmed as ours.
    pub confirmed: Vec<Txid>,
    /// The same, of which the checks had not heard when the power went.
    pub confirmed_before_loss: Vec<Txid>,
    /// A full disk kept the state from passing a file: the file stays until the next start.
    pub leftover: bool,
    /// Nobody else writes to the replica.
    pub alone: bool,
    /// The lineage that the disk may not forget: it was saved, durably, that it is in the log. A save
    /// that failed is made up for by the next.
    pub claimed: Option<u64>,
    /// Lineages that began because nothing was known of an earlier one.
    pub born: BTreeSet<u64>,
    /// The database was restored from the replica.
    pub is_copy: bool,
    /// Somebody has the database file to himself: nobody can commit.
    pub exclusive: bool,
    /// Somebody holds the WAL's write lock for longer than a commit.
    pub writing: bool,
    /// The next end of the process is one of the whole host.
    pub power_fails: bool,
    /// How often the power was lost.
    pub boots: u64,
    /// Lives of processes so far.
    pub lives: u64,
    /// Guards so far: none comes back.
    pub guards: u64,
    /// How often, in percent, no read slot is to be had.
    pub slots_taken: u64,
    pub pin_rng: Rng,
    /// SQLite up to 3.40.1: after a refused EXCLUSIVE lock nobody of the process gets SHARED until the
    /// connection that asked has unlocked.
    pub keeps_pending: bool,
    /// Pieces that were made of what a generation had left.
    pub tails: u64,
}

/// What a process's threads share; only called while the process is there.
macro_rules! sh {
    ($host:expr, $p:expr) => {
        $host.procs[$p].shared
    };
}
pub(crate) use sh;

/// The sealer's half for the database; only called while there is one.
macro_rules! re {
    ($host:expr, $p:expr) => {
        $host.procs[$p].replica.as_mut().expect("the sealer knows the database")
    };
}
pub(crate) use re;

/// The state that the shipper has open; only called while it has.
macro_rules! state {
    ($host:expr, $p:expr) => {
        re!($host, $p).local.as_mut().expect("the local state is open").state
    };
}
pub(crate) use state;

impl Host {
    pub fn new(id: usize, db: Database, processes: usize, sync_interval: u64) -> Host {
        Host {
            id,
            db,
            disk: Disk::default(),
            procs: (0..processes).map(|_| Process::default()).collect(),
            lock: None,
            sync_interval,
            spool_cap: u64::MAX,
            image_reason: Some("there was none yet"),
            images: 0,
            resyncs: 0,
            confirmed: Vec::new(),
            confirmed_before_loss: Vec::new(),
            leftover: false,
            alone: false,
            claimed: None,
            born: BTreeSet::new(),
            is_copy: false,
            exclusive: false,
            writing: false,
            power_fails: false,
            boots: 0,
            lives: 0,
            guards: 0,
            slots_taken: 0,
            pin_rng: Rng::new(id as u64),
            keeps_pending: false,
            tails: 0,
        }
    }

    /// Names the time since the power was lost last, on this host.
    pub fn boot(&self) -> Option<u64> {
        Some(((self.id as u64) << 32) | self.boots)
    }

    /// Something happened that may cost an image.
    pub fn may_cost_image(&mut self, why: &'static str) {
        if self.image_reason != Some(PAGE_SIZE_CHANGED) {
            self.image_reason = Some(why);
        }
    }

    /// Whether a process with walferry, or its sealer's walk, has the database open.
    pub fn is_open(&self) -> bool {
        self.is_open_but(usize::MAX) || self.procs.iter().any(Process::has_open)
    }

    pub fn is_open_but(&self, except: usize) -> bool {
        let others = self.procs.iter().enumerate().filter(|(p, _)| *p != except);
        others.map(|(_, process)| process).any(Process::has_open) || !self.db.readers.is_empty()
    }

    /// Whether anybody but this process keeps the WAL from being begun anew.
    pub fn is_pinned_but(&self, except: usize) -> bool {
        self.procs.iter().enumerate().any(|(p, process)| p != except && process.slot)
    }

    /// The process that ships, if one does.
    pub fn shipper(&self) -> Option<usize> {
        (0..self.procs.len()).find(|p| self.is_shipper(*p))
    }

    pub fn is_shipper(&self, p: usize) -> bool {
        self.procs[p].replica.as_ref().is_some_and(|replica| replica.local.is_some())
    }

    /// A process dies, whatever it was doing.
    pub fn kill(&mut self, cx: &mut Cx, p: usize) {
        cx.log(format_args!("host {}.{p}: dead", self.id));
        let process = std::mem::take(&mut self.procs[p]);
        let imaging = process.replica.as_ref().is_some_and(|replica| {
            let sent = replica.local.as_ref().is_some_and(|local| local.state.image.is_some());
            sent || replica.job.is_image()
        });
        if imaging {
            self.may_cost_image("a process died while it sent one");
        }
        if process.replica.as_ref().is_some_and(|replica| replica.dropped) {
            self.may_cost_image("a process died while dropped pieces were not compared");
        }
        if process.replica.as_ref().is_some_and(|replica| replica.local.is_some()) {
            self.leave_state();
        }
        if self.lock == Some(p) {
            self.lock = None;
        }
        self.disk.fuse = None;
        self.db.readers.remove(&crate::sqlite::ReaderId::Scan(p));
        self.exclusive = false;
        self.writing = false;
        if !self.is_open() {
            self.db.abandon();
        }
        cx.store.abandon(&mut cx.rng, self.id, process.incarnation);
        cx.store.abandon_chores(&mut cx.history_rng, (self.id, process.incarnation));
    }

    /// The shipper leaves the state as the disk has it. If that knows of an image only that it was sent, who
    /// comes next asks for it, and has no use for what was closed behind it.
    pub fn leave_state(&mut self) {
        if self.disk.is_unsure_of_image() {
            self.may_cost_image("a full disk could not note that the image is there");
        }
    }

    /// The power goes.
    pub fn lose_power(&mut self, cx: &mut Cx) {
        cx.log(format_args!("host {}: the power is lost", self.id));
        for p in 0..self.procs.len() {
            if self.procs[p].alive {
                self.kill(cx, p);
            }
        }
        self.power_fails = false;
        self.boots += 1;
        self.confirmed_before_loss.append(&mut self.confirmed);
        self.may_cost_image("the power was lost");
        let before = self.db.head();
        self.db.lose_power(&mut cx.rng, cx.now);
        self.disk.lose_power(&mut cx.rng);
        cx.log(format_args!("host {}: commit {before}, now {}", self.id, self.db.head()));
    }
}
