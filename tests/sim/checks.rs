//! What must hold at every step, judged from outside: from the bytes at the store and the history of
//! the databases, never from what the hosts believe.

use std::collections::{BTreeMap, HashMap};

use walferry::engine::Phase;
use walferry::ltx::{Decoder, Header};
use walferry::plan::Target;
use walferry::plan::restore::{Run, coverage, restore};
use walferry::store::Key;
use walferry::units::Txid;

use crate::database::{State, checksum};
use crate::host::Host;
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
    acked: HashMap<(usize, u64), Txid>,
}

impl Checks {
    /// After each step.
    pub fn step(&mut self, store: &mut Store, hosts: &mut [Host]) -> Result<(), String> {
        for key in std::mem::take(&mut store.arrived) {
            self.arrived(store, hosts, key)?;
        }
        for host in hosts {
            self.confirmed(host)?;
            self.memory(host)?;
        }
        Ok(())
    }

    /// A file appeared: nothing that could be restored may change, the new TXID must be a state
    /// that was committed, and the log must have no hole.
    fn arrived(&mut self, store: &Store, hosts: &[Host], key: Key) -> Result<(), String> {
        let txid = key.name.max;
        if self.states.contains_key(&txid) {
            return Err(format!("{key}: there is a file for this TXID already"));
        }
        let listing = store.listing();
        let whole = [Run { first: Txid(1), last: txid }];
        if coverage(&listing) != whole {
            return Err(format!("{key}: the log is {:?}", coverage(&listing)));
        }
        let plan = restore(&listing, Target::Txid(txid)).map_err(|error| error.to_string())?;
        let plan: Vec<Key> = plan.files.iter().map(|file| file.key).collect();
        let before = self.states.get(&key.name.min.prev());
        let expected = before.map(|before| before.plan.as_slice()).unwrap_or_default();
        if plan.split_last() != Some((&key, expected)) {
            return Err(format!("{key}: unexpected plan {plan:?}"));
        }
        let none = Vec::new();
        let before = before.map_or(&none, |before| &before.state);
        let (header, state) = apply(&store.files[&key], before)
            .map_err(|why| format!("{key} cannot be applied: {why}"))?;
        let writer = header.writer.0;
        let host = *self.writers.get(&writer).ok_or(format!("{key}: unknown writer"))?;
        let commit = hosts[host]
            .db
            .commit_of(&state)
            .ok_or(format!("{key} of host {host} gives a state that never was"))?;
        let last = self.newest.entry(host).or_insert(commit);
        if commit < *last {
            return Err(format!("{key} goes back from commit {last} to {commit}"));
        }
        *last = commit;
        self.states.insert(txid, Restorable { state, host, writer, commit, plan });
        Ok(())
    }

    /// What was reported as confirmed is at the store, and is the reporter's own.
    fn confirmed(&mut self, host: &mut Host) -> Result<(), String> {
        for (txid, writer) in host.confirmed.drain(..) {
            match self.states.get(&txid) {
                None => return Err(format!("host {}: {txid} acked, but not stored", host.id)),
                Some(stored) if stored.writer != writer => {
                    return Err(format!("host {}: {txid} acked, but another's", host.id));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// What a process believes and shows.
    fn memory(&mut self, host: &Host) -> Result<(), String> {
        let Some(memory) = &host.up else { return Ok(()) };
        let id = host.id;
        let status = memory.engine.status();
        if status.acked > Txid::ZERO && !self.states.contains_key(&status.acked) {
            return Err(format!("host {id}: acked {}, which is not stored", status.acked));
        }
        if status.sealed < status.acked {
            return Err(format!("host {id}: sealed {} behind acked", status.sealed));
        }
        let last = self.acked.entry((id, host.incarnation)).or_insert(status.acked);
        if status.acked < *last {
            return Err(format!("host {id}: acked went back from {last}"));
        }
        *last = status.acked;
        let newest = self.newest.get(&id).copied();
        let promised = memory.seqs[memory.acked_seq];
        if memory.acked_seq > 0 && newest.is_none_or(|newest| newest < promised) {
            return Err(format!(
                "host {id}: a wait ended for commit {promised}, stored {newest:?}"
            ));
        }
        if let Phase::Fenced { .. } = status.phase {
            let writer = memory.state.writer;
            if !self.states.values().any(|stored| stored.writer != writer) {
                return Err(format!("host {id} is fenced, but nobody else wrote"));
            }
        }
        self.lag(host)
    }

    /// While a commit is not acked, somebody can see since when.
    fn lag(&self, host: &Host) -> Result<(), String> {
        let Some(memory) = &host.up else { return Ok(()) };
        if memory.published != host.db.index {
            return Ok(());
        }
        let status = memory.engine.status();
        let known = self.states.range(..=status.acked);
        let known = known.rev().find(|(_, stored)| stored.host == host.id);
        // A restored copy begins with a state that is at the store.
        let first = if host.is_copy { Some(0) } else { None };
        let known = known.map(|(_, stored)| stored.commit).or(first);
        let oldest = known.map_or(0, |known| known + 1);
        if oldest > host.db.head() {
            return Ok(());
        }
        let since = [status.unacked_since, memory.unreported_since].into_iter().flatten().min();
        let Some(since) = since else {
            return Err(format!("host {}: commit {oldest} is unacked, but no lag shows", host.id));
        };
        let ours = host.db.history[oldest..]
            .iter()
            .find(|commit| !commit.outside && commit.at >= memory.started_at);
        match ours {
            Some(commit) if commit.at < since => Err(format!(
                "host {}: unacked since {}, but the lag shows {since}",
                host.id, commit.at
            )),
            _ => Ok(()),
        }
    }
}

/// Applies a file to a state, as a restore does, and proves the chain.
fn apply(bytes: &[u8], before: &State) -> Result<(Header, State), String> {
    let mut decoder = Decoder::new(bytes).map_err(|error| error.to_string())?;
    let header = *decoder.header();
    let tag = header.tag.ok_or("no tag")?;
    let mut pages: BTreeMap<u32, std::rc::Rc<Vec<u8>>> = BTreeMap::new();
    if tag.full_image {
        // Whatever was before is superseded.
    } else if tag.pre_apply != checksum(before) {
        return Err("the chain is broken before it".into());
    } else {
        pages.extend((1..).zip(before.iter().cloned()));
    }
    while let Some(page) = decoder.next_page().map_err(|error| error.to_string())? {
        pages.insert(page.pgno, std::rc::Rc::new(page.data.to_vec()));
    }
    decoder.finish().map_err(|error| error.to_string())?;
    let state: Option<State> = (1..=header.commit).map(|pgno| pages.get(&pgno).cloned()).collect();
    let state = state.ok_or("a page is missing")?;
    if tag.post_apply != checksum(&state) {
        return Err("its own checksum of the result is wrong".into());
    }
    Ok((header, state))
}
