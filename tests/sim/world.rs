//! The world: one clock, hosts, a store, and what happens to them. Everything follows from the seed.

use std::fmt::Arguments;

use walferry::local::state::{Base, Clean, State};
use walferry::ltx;
use walferry::units::WriterId;

use crate::bug::Bug;
use crate::checks::Checks;
use crate::disk::Stop;
use crate::host::Host;
use crate::process::Control;
use crate::rng::Rng;
use crate::sqlite::{Database, checksum};
use crate::store::Store;

/// A part of the whole that some histories have more of than others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stress {
    None,
    /// Captures for the gate while the store is away, and deaths in their midst.
    Pieces,
    /// Images, by losses of what they replace, on a disk that fails.
    Images,
    /// Attempts to have the file alone, with outsiders at work meanwhile.
    Unpinned,
    /// Processes that come and go, with others that wait for their place.
    Places,
}

/// What everybody shares.
pub struct Cx {
    pub now: u64,
    pub rng: Rng,
    /// What keeps the replica's history up draws from here.
    pub history_rng: Rng,
    /// It is kept up at all.
    pub keeps_history: bool,
    pub store: Store,
    pub bug: Bug,
    /// The faults have stopped.
    pub calm: bool,
    /// Something happens in the midst of a step: not again within.
    pub within: bool,
    /// What this history is made to have more of.
    pub stress: Stress,
    /// Show each line at once: a history may end in a panic.
    pub prints: bool,
    lines: Vec<String>,
}

impl Cx {
    pub fn log(&mut self, what: Arguments<'_>) {
        let line = format!("{:>7} {what}", self.now);
        if self.prints {
            println!("{line}");
        }
        self.lines.push(line);
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
    pub histories: u64,
    pub commits: u64,
    pub crashes: u64,
    pub power_losses: u64,
    pub takeovers: u64,
    /// Recoveries that took commits away, and tails that were taken of a generation before.
    pub cut_off: u64,
    pub tails: u64,
    pub files: u64,
    pub joined: u64,
    pub removed: u64,
    pub images: u64,
    pub resyncs: u64,
    pub fenced: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.histories += other.histories;
        self.commits += other.commits;
        self.crashes += other.crashes;
        self.power_losses += other.power_losses;
        self.takeovers += other.takeovers;
        self.cut_off += other.cut_off;
        self.tails += other.tails;
        self.files += other.files;
        self.joined += other.joined;
        self.removed += other.removed;
        self.images += other.images;
        self.resyncs += other.resyncs;
        self.fenced += other.fenced;
    }
}

pub fn run(seed: u64, bug: Bug) -> Outcome {
    run_and(seed, bug, false)
}

/// Runs a history, and prints what happens in it.
pub fn run_and(seed: u64, bug: Bug, prints: bool) -> Outcome {
    let mut world = World::new(seed, bug);
    world.cx.prints = prints;
    let verdict = world.run();
    world.tally.histories = 1;
    world.tally.files = world.cx.store.files.len() as u64;
    (world.tally.joined, world.tally.removed) = (world.checks.joined, world.checks.removed);
    for host in &world.hosts {
        world.tally.images += host.images;
        world.tally.cut_off += host.db.cut_off;
        world.tally.tails += host.tails;
        world.tally.resyncs += host.resyncs;
        world.tally.commits += host.db.head() as u64;
    }
    Outcome { verdict, lines: world.cx.lines, tally: world.tally }
}

pub struct World {
    pub cx: Cx,
    pub hosts: Vec<Host>,
    pub checks: Checks,
    rivals: bool,
    pub tally: Tally,
}

impl World {
    fn new(seed: u64, bug: Bug) -> World {
        let mut rng = Rng::new(seed);
        let stress = match rng.below(8) {
            0 => Stress::Pieces,
            1 => Stress::Images,
            2 => Stress::Places,
            3 => Stress::Unpinned,
            _ => Stress::None,
        };
        let rivals = seed.is_multiple_of(3);
        let interval = [0, 100, 1000][rng.below(3) as usize];
        let processes = match stress {
            Stress::Places => 3,
            Stress::Unpinned => 2,
            Stress::Pieces => 1,
            _ => 1 + rng.below(3) as usize,
        };
        let mut store = Store::default();
        store.faults = true;
        let keeps_history = matches!(seed % 10, 5 | 6);
        store.late_max = if keeps_history { 3000 } else { 20_000 };
        let mut host = Host::new(0, Database::new(0, None), processes, interval);
        host.alone = !rivals;
        host.db.synchronous = rng.chance(30);
        host.db.leaves_unmarked = rng.chance(35);
        host.keeps_pending = rng.chance(40);
        host.slots_taken = [0, 0, 5, 40][rng.below(4) as usize];
        host.pin_rng = Rng::new(rng.next());
        host.db.sector_rng = Rng::new(seed ^ 0x2b99_2ddf_a232_49d6);
        if host.db.sector_rng.chance(25) {
            host.db.sector = [512, 1024, 4096][host.db.sector_rng.below(3) as usize];
        }
        if rng.chance(25) {
            host.spool_cap = 300 + rng.below(900);
        }
        let cx = Cx {
            now: 0,
            rng,
            history_rng: Rng::new(seed ^ 0x5851_f42d_4c95_7f2d),
            keeps_history,
            store,
            bug,
            calm: false,
            within: false,
            stress,
            prints: false,
            lines: Vec::new(),
        };
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
    pub fn work_until(&mut self, until: u64) -> Result<(), String> {
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
                self.answer();
            } else {
                self.turn()?;
            }
            self.after_step()?;
        }
        self.cx.now = self.cx.now.max(until);
        Ok(())
    }

    /// The store does what is due; an answer goes to who asked, if that process lives.
    fn answer(&mut self) {
        let Some(((host, incarnation), answer)) = self.cx.store.step(&mut self.cx.rng, self.cx.now)
        else {
            return;
        };
        let host = &mut self.hosts[host];
        let asker = (0..host.procs.len())
            .find(|p| host.procs[*p].alive && host.procs[*p].incarnation == incarnation);
        if let Some(p) = asker {
            host.control(&mut self.cx, p, Control::Shipped(answer));
        }
    }

    /// The sealers that are due have their turn, and processes that were to end do.
    fn turn(&mut self) -> Result<(), String> {
        for id in 0..self.hosts.len() {
            for p in 0..self.hosts[id].procs.len() {
                let host = &mut self.hosts[id];
                let index = host.wal_index(p);
                let due = host.procs[p].due_at(self.cx.now, index, host.lock.is_none());
                if due.is_none_or(|at| at > self.cx.now) {
                    continue;
                }
                let shipped = host.shipper();
                if host.procs[p].busy_until <= self.cx.now {
                    let done = host.run_sealer(&mut self.cx, p);
                    self.judge(id, p, done)?;
                }
                let host = &mut self.hosts[id];
                if shipped.is_none() && host.shipper() == Some(p) {
                    self.tally.takeovers += 1;
                }
                if host.procs[p].alive && host.may_end(self.cx.now, p) {
                    host.kill(&mut self.cx, p);
                }
            }
        }
        Ok(())
    }

    fn due(&self) -> Option<u64> {
        let now = self.cx.now;
        let hosts = self.hosts.iter().flat_map(|host| {
            let free = host.lock.is_none();
            host.procs
                .iter()
                .enumerate()
                .filter_map(move |(p, process)| process.due_at(now, host.wal_index(p), free))
        });
        hosts.chain(self.cx.store.due()).min()
    }

    pub fn after_step(&mut self) -> Result<(), String> {
        self.checks.step(self.cx.now, &mut self.cx.store, &mut self.hosts)
    }

    /// A process that came to its end at a write dies, or its whole host does; any other failure is
    /// one of the model's promises broken.
    pub fn judge(&mut self, id: usize, p: usize, done: Result<(), Stop>) -> Result<(), String> {
        self.cx.within = false;
        let host = &mut self.hosts[id];
        match done {
            Ok(()) => Ok(()),
            Err(Stop::Crash) if host.power_fails => {
                self.tally.power_losses += 1;
                host.lose_power(&mut self.cx);
                Ok(())
            }
            Err(Stop::Crash) => {
                self.tally.crashes += 1;
                host.kill(&mut self.cx, p);
                Ok(())
            }
            Err(Stop::Failed(why) | Stop::Diverged(why) | Stop::Broken(why)) => {
                Err(format!("host {id}.{p}: {why}"))
            }
        }
    }

    /// Another host begins on the same replica: with a database of its own, or with a restored copy
    /// and what a restore leaves beside it.
    fn add_rival(&mut self) {
        let interval = self.hosts[0].sync_interval;
        let copy = self.checks.states.last_key_value().filter(|_| self.cx.rng.chance(50));
        let host = match copy {
            None => Host::new(1, Database::new(1, None), 1, interval),
            Some((txid, stored)) => {
                let db = Database::new(1, Some(stored.state.clone()));
                let mut host = Host::new(1, db, 1, interval);
                for (pgno, page) in (1..).zip(&stored.state) {
                    host.disk.table.set(pgno, Some(ltx::checksum::page(pgno, page)));
                }
                let mut state = State::new(WriterId(self.cx.rng.next() | 1), "sim");
                state.base = Some(Base {
                    txid: txid.0,
                    piece: 0,
                    page_size: host.db.page_size().get(),
                    commit: stored.state.len() as u32,
                    checksum: checksum(&stored.state).get(),
                    timestamp: 0,
                    position: None,
                });
                state.clean = Some(Clean { fingerprint: host.db.fingerprint(), piece: 0 });
                let _ = host.disk.save(&state, true);
                host.disk.write_back();
                host.born.insert(state.writer);
                host.is_copy = true;
                host
            }
        };
        self.cx.log(format_args!("host 1 is there, copy: {}", host.is_copy));
        self.hosts.push(host);
    }
}
