//! What must hold at every step, judged from outside: from the bytes at the store and the history of
//! the databases, never from what the processes believe.

mod history;
mod published;
mod told;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use walferry::plan::retain::Policy;
use walferry::store::Key;
use walferry::units::{Level, Txid};

use crate::host::Host;
use crate::sqlite::State;
use crate::store::Store;

/// A TXID that can be restored, as it was when its file appeared.
pub struct Restorable {
    pub state: State,
    pub host: usize,
    pub writer: u64,
    /// Which commit of that host's database it is.
    pub commit: usize,
    /// When the log says that it was committed.
    pub at: i64,
    /// Checksum of its file.
    bytes: String,
    plan: Vec<Key>,
}

#[derive(Default)]
pub struct Checks {
    pub states: BTreeMap<Txid, Restorable>,
    /// Which host each writer id belongs to.
    pub writers: HashMap<u64, usize>,
    /// The newest commit of each host's database that is at the store.
    pub newest: HashMap<usize, usize>,
    /// Writers that were told that the log is another's.
    fenced: BTreeSet<u64>,
    /// By host, life of the process, and when it became the shipper.
    acked: HashMap<(usize, u64, u64), Txid>,
    /// By host, what it was last told to be at the store.
    ever_acked: HashMap<usize, Txid>,
    /// Files that were there at the last look.
    files: usize,
    /// Files that were joined, and that were deleted.
    pub joined: u64,
    /// What was kept by the strictest policy so far.
    kept: Option<Policy>,
    pub removed: u64,
}

impl Checks {
    /// After each step.
    pub fn step(&mut self, now: u64, store: &mut Store, hosts: &mut [Host]) -> Result<(), String> {
        for host in hosts.iter() {
            // A process may be dead before it is seen here, and its put still come.
            for writer in &host.born {
                self.writers.entry(*writer).or_insert(host.id);
            }
            for process in &host.procs {
                let replica = process.replica.as_ref();
                if let Some(local) = replica.and_then(|replica| replica.local.as_ref()) {
                    self.writers.insert(local.state.writer, host.id);
                }
            }
        }
        for key in std::mem::take(&mut store.arrived) {
            self.files += 1;
            let is_joined = key.level > Level::L0 && self.states.contains_key(&key.name.max);
            if is_joined {
                self.joined(store, key)?;
            } else {
                self.arrived(store, hosts, key)?;
            }
        }
        for removed in std::mem::take(&mut store.removed) {
            self.files -= 1;
            self.removed(store, &removed)?;
        }
        if store.files.len() != self.files {
            return Err("a file of the replica is gone".into());
        }
        for host in hosts {
            self.confirmed(host)?;
            for p in 0..host.procs.len() {
                self.told(now, host, p)?;
            }
        }
        Ok(())
    }
}
