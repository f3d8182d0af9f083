//! What must hold at every step, judged from outside: from the bytes at the store and the history of
//! the databases, never from what the processes believe.

mod published;
mod told;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use walferry::store::Key;
use walferry::units::Txid;

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
}

impl Checks {
    /// After each step.
    pub fn step(&mut self, now: u64, store: &mut Store, hosts: &mut [Host]) -> Result<(), String> {
        for host in hosts.iter() {
            for process in &host.procs {
                let replica = process.replica.as_ref();
                if let Some(local) = replica.and_then(|replica| replica.local.as_ref()) {
                    self.writers.insert(local.state.writer, host.id);
                }
            }
        }
        for key in std::mem::take(&mut store.arrived) {
            self.arrived(store, hosts, key)?;
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
