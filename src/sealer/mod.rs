//! The sealer thread reads committed frames back from the WALs and writes the spool.
//!
//! The sealer carries out the engines' local actions and passes the other actions to the shipper. It does long
//! work (images, comparisons) in slices, so that no database waits long for another.

mod age;
mod attach;
mod audit;
mod capture;
mod closing;
mod due;
mod failing;
mod frames;
mod handover;
mod history;
mod image;
mod looks;
mod open;
mod others;
mod replica;
mod resync;
mod room;
mod scan;
mod unreadable;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::process::{Control, Inbox, Process};
use replica::Replica;

/// Interval at which the sealer reads the wal-index of an open database, to find commits of other processes.
pub(super) const WATCH_INTERVAL_MS: u64 = 1000;

/// Runs the thread; the loop ends only with the process.
pub(crate) fn run(process: &Arc<Process>, inbox: &Inbox) {
    let mut sealer = Sealer { process: process.clone(), replicas: HashMap::new(), draining: false };
    loop {
        sealer.receive(inbox);
        let next = sealer.work();
        if sealer.draining && sealer.is_drained() {
            sealer.draining = false;
            sealer.replicas.values().for_each(Replica::tell_what_is_left);
            process.set_drained();
        }
        if next != Some(0) {
            process.bell().wait(next.map(Duration::from_millis));
        }
    }
}

struct Sealer {
    process: Arc<Process>,
    replicas: HashMap<u64, Replica>,
    draining: bool,
}

impl Sealer {
    fn receive(&mut self, inbox: &Inbox) {
        if let Some(why) = self.process.ended() {
            self.replicas.values_mut().for_each(|replica| replica.end(&why));
        }
        // The message of a commit says only that there is work: the position is in the state of the database.
        // So a message that did not fit into the channel is no loss.
        while let Ok(frames) = inbox.commits.try_recv() {
            if let Some(replica) = self.replicas.get_mut(&frames.database) {
                replica.wake();
            }
        }
        while let Ok(control) = inbox.controls.try_recv() {
            self.control(control);
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Drain => {
                self.draining = true;
                for replica in self.replicas.values_mut() {
                    guard(replica, Replica::drain);
                }
            }
            Control::MakeRoom(id, answer) => {
                let mut made = false;
                let mut device = None;
                if let Some(replica) = self.replicas.get_mut(&id) {
                    guard(replica, |replica| {
                        made = replica.make_room();
                        device = replica.device();
                    });
                }
                if let Some(device) = device.filter(|_| !made) {
                    for replica in self.replicas.values_mut() {
                        guard(replica, |replica| made |= replica.gives_reserve_of(device));
                    }
                }
                let _ = answer.try_send(made);
            }
            Control::Ping(answer) => {
                let _ = answer.try_send(());
            }
            // There is no work for a database before its first read or write.
            Control::Connected(id) if !self.replicas.contains_key(&id) => {}
            Control::Connected(id) | Control::Attached(id) => {
                if let Some(replica) = self.replica(id) {
                    guard(replica, Replica::look_now);
                }
            }
            Control::Capture(id) => {
                if let Some(replica) = self.replica(id) {
                    guard(replica, Replica::asked);
                }
            }
            Control::Hurry(id) => {
                if let Some(replica) = self.replica(id) {
                    guard(replica, Replica::hurry);
                }
            }
            Control::Called(id) => {
                if let Some(replica) = self.replicas.get_mut(&id) {
                    guard(replica, Replica::called);
                }
            }
            Control::Detached(id) => {
                if let Some(replica) = self.replicas.get_mut(&id) {
                    guard(replica, Replica::follow);
                }
            }
            Control::Disconnected(id) => {
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.wake();
                }
            }
            Control::Shipped(id, tenure, outcome) => {
                let replica = self.replicas.get_mut(&id);
                // After the end of a replica its error must stay visible, so answers to earlier requests are
                // dropped.
                let waits =
                    |replica: &&mut Replica| replica.tenure == tenure && replica.dead.is_none();
                if let Some(replica) = replica.filter(waits) {
                    guard(replica, |replica| replica.shipped(outcome));
                }
            }
        }
    }

    fn replica(&mut self, id: u64) -> Option<&mut Replica> {
        if !self.replicas.contains_key(&id) {
            let database = self.process.by_id(id)?;
            let (process, known) = (self.process.clone(), database.clone());
            match catch_unwind(AssertUnwindSafe(|| Replica::new(process, known))) {
                Ok(replica) => self.replicas.insert(id, replica),
                Err(_) => {
                    log::error!("{}: replication stopped: {PANIC}", database.label());
                    database.end(PANIC);
                    return None;
                }
            };
        }
        self.replicas.get_mut(&id)
    }

    /// Does the work that is due. Returns the milliseconds until the next work is due, 0 for at once.
    fn work(&mut self) -> Option<u64> {
        let now = self.process.now();
        let (mut next, mut finished): (Option<u64>, _) = (None, Vec::new());
        self.replicas.retain(|_, replica| {
            if self.draining {
                guard(replica, Replica::hurry_late);
            }
            if replica.is_due(now) {
                guard(replica, |replica| replica.work(now));
            }
            // Control messages may have opened files even if no work was due.
            guard(replica, Replica::rest);
            if replica.may_leave() && guard(replica, Replica::release) && replica.has_left() {
                finished.push(replica.database.path().to_path_buf());
                return false;
            }
            next = [next, replica.due_at()].into_iter().flatten().min();
            true
        });
        // Only now does no part of this thread refer to these databases any more.
        for path in &finished {
            self.process.forget_settled(path);
        }
        next.map(|at| at.saturating_sub(self.process.now()))
    }

    fn is_drained(&self) -> bool {
        self.replicas.values().all(Replica::is_drained_or_stuck)
    }
}

/// Reason that is reported for a database whose step panicked.
const PANIC: &str = "an internal error of walferry (a panic in the sealer); please report it";

/// Runs a step for one database; returns false after a panic. A panic ends the replication of this database,
/// with an error in the log. The application and the other databases continue.
fn guard(replica: &mut Replica, step: impl FnOnce(&mut Replica)) -> bool {
    if catch_unwind(AssertUnwindSafe(|| step(replica))).is_ok() {
        return true;
    }
    // The step may panic again during `give_up`, and later. The error is reported once.
    let is_news = replica.dead.is_none();
    if is_news && catch_unwind(AssertUnwindSafe(|| replica.give_up(PANIC))).is_err() {
        replica.dead.get_or_insert_with(|| PANIC.to_string());
        replica.database.end(PANIC);
    }
    false
}
