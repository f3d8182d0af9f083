//! The world: one clock, hosts, a store, and what happens to them. Everything follows from the seed.

use std::fmt::Arguments;

use walferry::local::state::{Base, Clean, State};
use walferry::ltx;
use walferry::units::WriterId;

use crate::checks::Checks;
use crate::database::{Database, checksum};
use crate::disk::{Stop, Table};
use crate::host::{Cursor, Host};
use crate::rng::Rng;
use crate::store::Store;

/// Mistakes that the checks must find: each is made in the model of the shell, never in the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    None,
    /// A put that failed counts as done.
    AckBeforeDurable,
    /// The state passes a file before it is in the spool.
    StateBeforeSpool,
    /// The spool forgets a file when it is sent.
    ReleaseBeforeAck,
    /// The log may get a hole.
    SkipTxid,
    /// The WAL is begun anew before it was captured, and nobody notices.
    GateOpenEarly,
    /// A file lacks a page that was changed.
    DropPage,
    /// A WAL that does not go on from the log is taken as if it did.
    ForgetDivergence,
    /// Another writer's file counts as ours.
    FenceIgnored,
    /// After a comparison the newest known wal-index is older than what was compared.
    StaleIndex,
    /// A restart that was let through and did not come counts for the next that nobody asked for.
    StaleGrant,
    /// Frames are read from the WAL without a look at its header.
    GenerationUnchecked,
    /// After a crash while pieces were joined, the joined one may be read after its parts.
    JoinedComesLater,
    /// A close that lost its place in the WAL forgets how long its commits have waited.
    LagForgotten,
    /// A close in peace vouches for the database file although a comparison is due.
    CleanWhileUnknown,
}

/// What everybody shares.
pub struct Cx {
    pub now: u64,
    pub rng: Rng,
    pub store: Store,
    pub bug: Bug,
    lines: Vec<String>,
}

impl Cx {
    pub fn log(&mut self, what: Arguments<'_>) {
        self.lines.push(format!("{:>7} {what}", self.now));
    }
}

/// How a history ended.
pub struct Outcome {
    pub verdict: Result<(), String>,
    pub lines: Vec<String>,
    pub tally: Tally,
}

/// What a history was made of, to see that it is worth its time.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub commits: u64,
    pub crashes: u64,
    pub files: u64,
    pub images: u64,
    pub fenced: u64,
}

pub fn run(seed: u64, bug: Bug) -> Outcome {
    let mut world = World::new(seed, bug);
    let verdict = world.run();
    world.tally.files = world.cx.store.files.len() as u64;
    for host in &world.hosts {
        world.tally.images += host.images;
        world.tally.commits += host.db.head() as u64;
    }
    Outcome { verdict, lines: world.cx.lines, tally: world.tally }
}

struct World {
    cx: Cx,
    hosts: Vec<Host>,
    checks: Checks,
    rivals: bool,
    tally: Tally,
}

/// Longest time in which everything must arrive once the faults have stopped, in milliseconds: the
/// longest backoff, a few times over.
const CATCH_UP: u64 = 180_000;

impl World {
    fn new(seed: u64, bug: Bug) -> World {
        let mut rng = Rng::new(seed);
        let rivals = seed.is_multiple_of(3);
        let interval = [0, 100, 1000][rng.below(3) as usize];
        let mut store = Store::default();
        store.faults = true;
        let cx = Cx { now: 0, rng, store, bug, lines: Vec::new() };
        let mut host = Host::new(0, Database::new(0, None), interval);
        host.alone = !rivals;
        World { cx, hosts: vec![host], checks: Checks::default(), rivals, tally: Tally::default() }
    }

    fn run(&mut self) -> Result<(), String> {
        let end = 10_000 + self.cx.rng.below(30_000);
        let rival_at = if self.rivals { self.cx.rng.below(end) } else { u64::MAX };
        let mut next_event = 0;
        while self.cx.now < end {
            if self.cx.now >= rival_at && self.hosts.len() == 1 {
                self.add_rival();
            }
            if next_event <= self.cx.now {
                let host = self.cx.rng.below(self.hosts.len() as u64) as usize;
                self.event(host)?;
                self.after_step()?;
                next_event = self.cx.now + self.cx.rng.below(500);
            }
            self.work_until(next_event)?;
        }
        self.settle()
    }

    /// Does what is due up to a time, in order.
    fn work_until(&mut self, until: u64) -> Result<(), String> {
        let mut spins = 0;
        while let Some(at) = self.due().filter(|at| *at <= until) {
            if at > self.cx.now {
                (self.cx.now, spins) = (at, 0);
            }
            spins += 1;
            if spins > 500 {
                return Err("time stands still: something asks for a turn and does nothing".into());
            }
            if self.cx.store.due().is_some_and(|at| at <= self.cx.now) {
                if let Some((host, incarnation, answer)) = self.cx.store.step(self.cx.now) {
                    let host = &mut self.hosts[host];
                    if host.up.is_some() && host.incarnation == incarnation {
                        let done = host.shipped(&mut self.cx, answer);
                        let done = done.and_then(|()| host.work(&mut self.cx));
                        let id = host.id;
                        self.judge(id, done)?;
                    }
                }
            } else {
                for id in 0..self.hosts.len() {
                    let host = &mut self.hosts[id];
                    if host.due_at(self.cx.now).is_some_and(|at| at <= self.cx.now) {
                        let done = host.work(&mut self.cx);
                        self.judge(id, done)?;
                    }
                }
            }
            self.after_step()?;
        }
        self.cx.now = self.cx.now.max(until);
        Ok(())
    }

    fn due(&self) -> Option<u64> {
        let hosts = self.hosts.iter().filter_map(|host| host.due_at(self.cx.now));
        hosts.chain(self.cx.store.due()).min()
    }

    fn after_step(&mut self) -> Result<(), String> {
        for host in &self.hosts {
            if let Some(memory) = &host.up {
                self.checks.writers.insert(memory.state.writer, host.id);
            }
        }
        self.checks.step(&mut self.cx.store, &mut self.hosts)
    }

    /// A process that came to its end at a write dies; any other failure is one of the model's
    /// promises broken.
    fn judge(&mut self, host: usize, done: Result<(), Stop>) -> Result<(), String> {
        match done {
            Ok(()) => Ok(()),
            Err(Stop::Crash) => {
                self.tally.crashes += 1;
                self.hosts[host].crash(&mut self.cx);
                Ok(())
            }
            Err(Stop::Failed(why) | Stop::Diverged(why)) => Err(format!("host {host}: {why}")),
        }
    }

    /// Another host begins on the same replica: with a database of its own, or with a restored copy
    /// and what a restore leaves beside it.
    fn add_rival(&mut self) {
        let interval = self.hosts[0].sync_interval;
        let copy = self.checks.states.last_key_value().filter(|_| self.cx.rng.chance(50));
        let host = match copy {
            None => Host::new(1, Database::new(1, None), interval),
            Some((txid, stored)) => {
                let mut host = Host::new(1, Database::new(1, Some(stored.state.clone())), interval);
                let mut table = Table::default();
                for (pgno, page) in (1..).zip(&stored.state) {
                    table.set(pgno, Some(ltx::checksum::page(pgno, page)));
                }
                host.disk.table = table;
                let mut state = State::new(WriterId(self.cx.rng.next() | 1), "sim");
                state.base = Some(Base {
                    txid: txid.0,
                    piece: 0,
                    page_size: 512,
                    commit: stored.state.len() as u32,
                    checksum: checksum(&stored.state).get(),
                    timestamp: 0,
                    position: None,
                });
                state.clean = Some(Clean { fingerprint: host.db.fingerprint(), piece: 0 });
                host.disk.state = Some(state);
                host.is_copy = true;
                host
            }
        };
        self.cx.log(format_args!("host 1 is there, copy: {}", host.is_copy));
        self.hosts.push(host);
    }

    /// One thing that an application, an operator or fate does to a host.
    fn event(&mut self, id: usize) -> Result<(), String> {
        let cx = &mut self.cx;
        let host = &mut self.hosts[id];
        let roll = cx.rng.below(100);
        let mut done = Ok(());
        if host.up.is_none() {
            match roll {
                0..60 => {
                    done = host.start(cx).and_then(|()| host.work(cx));
                }
                60..75 => {
                    host.db.commit(&mut cx.rng, cx.now, true);
                    if cx.rng.chance(50) {
                        host.db.checkpoint();
                        if cx.rng.chance(50) {
                            host.db.restart(&mut cx.rng);
                        }
                    }
                    if cx.rng.chance(50) {
                        host.db.close();
                    }
                    cx.log(format_args!("host {id}: commit {} while down", host.db.head()));
                }
                75..78 => {
                    host.disk.table = Table::default();
                    host.image_allowed = true;
                    cx.log(format_args!("host {id}: the page table is lost"));
                }
                78..79 => {
                    host.disk.state = None;
                    host.image_allowed = true;
                    cx.log(format_args!("host {id}: the state is lost"));
                }
                _ => {}
            }
            return self.judge(id, done);
        }
        match roll {
            0..50 => done = host.commit(cx),
            50..53 => host.db.roll_back(&mut cx.rng),
            53..67 => host.db.checkpoint(),
            67..71 => done = Err(Stop::Crash),
            71..76 => host.disk.fuse = Some(cx.rng.below(12)),
            76..80 => {
                done = host.close(cx).and(Err(Stop::Crash));
            }
            80..85 => host.hurry(cx),
            85..89 => {
                host.db.commit(&mut cx.rng, cx.now, true);
                cx.log(format_args!("host {id}: commit {} from outside", host.db.head()));
            }
            89..91 => {
                // The pin keeps others from this. When the pin was lost, only a cursor that is in the
                // WAL's generation notices.
                let salts = host.db.index.map(|index| index.salts);
                let placed = host.up.as_ref().is_some_and(|memory| match memory.cursor {
                    Cursor::At(at) => Some(at.salts) == salts,
                    Cursor::Fresh => false,
                    Cursor::Unknown => memory.job.is_none(),
                });
                host.db.checkpoint();
                if host.db.may_begin_anew() && placed {
                    host.db.restart(&mut cx.rng);
                    host.db.commit(&mut cx.rng, cx.now, true);
                    cx.log(format_args!("host {id}: the WAL is begun anew from outside"));
                }
            }
            91..94 => host.disk.full = !host.disk.full,
            94..97 => {
                cx.store.denied = cx.rng.chance(30);
                cx.store.down_until = cx.now + cx.rng.below(8000);
            }
            _ => {}
        }
        if host.disk.full && cx.rng.chance(30) {
            host.disk.full = false;
        }
        let done = done.and_then(|()| self.hosts[id].work(&mut self.cx));
        self.judge(id, done)
    }

    /// The faults stop: everything arrives, the loser is fenced, and then nothing happens.
    fn settle(&mut self) -> Result<(), String> {
        self.cx.log(format_args!("the faults stop"));
        self.cx.store.faults = false;
        for _ in 0..3 {
            for id in 0..self.hosts.len() {
                let host = &mut self.hosts[id];
                host.disk.full = false;
                host.disk.fuse = None;
                let mut done = Ok(());
                if host.up.is_none() {
                    done = host.start(&mut self.cx);
                }
                let done = done.and_then(|()| host.commit(&mut self.cx));
                let done = done.and_then(|()| host.work(&mut self.cx));
                self.judge(id, done)?;
                self.after_step()?;
            }
            self.work_until(self.cx.now + CATCH_UP)?;
        }
        self.all_arrived()
    }

    fn all_arrived(&mut self) -> Result<(), String> {
        let mut owner = None;
        for host in &self.hosts {
            let Some(memory) = &host.up else { continue };
            let id = host.id;
            if host.is_fenced() {
                self.tally.fenced += 1;
                continue;
            }
            if owner.replace(id).is_some() {
                return Err("two hosts ship to one replica".into());
            }
            let status = memory.engine.status();
            if !memory.engine.is_drained() || status.unacked_since.is_some() {
                return Err(format!("host {id} is not drained: {status:?}"));
            }
            let idle = (memory.engine.wakeup(self.cx.now), host.due_at(self.cx.now));
            if idle != (None, None) || self.cx.store.is_awaited(id, host.incarnation) {
                return Err(format!("host {id} has all done and still wants {idle:?}"));
            }
            if host.disk.spool_len() > 0 && !host.leftover {
                return Err(format!("host {id} keeps files that are acked"));
            }
            if self.checks.newest.get(&id) != Some(&host.db.head()) {
                return Err(format!("host {id}: its last commit is not at the store"));
            }
            let last = self.checks.states.last_key_value();
            if last.is_none_or(|(_, stored)| stored.state != *host.db.now()) {
                return Err(format!("host {id}: the replica's newest state is not its own"));
            }
        }
        if owner.is_none() { Err("everybody is fenced".into()) } else { Ok(()) }
    }
}
