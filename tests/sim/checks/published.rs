//! The replica: after each new file, what can be restored from it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use walferry::ltx::{Decoder, Header};
use walferry::plan::Target;
use walferry::plan::restore::{Run, coverage, restorable, restore};
use walferry::store::Key;
use walferry::units::Txid;

use super::{Checks, Restorable};
use crate::host::Host;
use crate::sqlite::{State, checksum};
use crate::store::Store;

impl Checks {
    /// A file appeared: nothing that could be restored may change, the new TXID must be a state
    /// that was committed, later than what is there, and the log must have no hole.
    pub fn arrived(&mut self, store: &Store, hosts: &[Host], key: Key) -> Result<(), String> {
        let txid = key.name.max;
        if let Some(known) = self.states.get(&txid) {
            // The put of a dead process, or one that was repeated, came when the file was joined and
            // removed already: it is the same file.
            if self.removed > 0 && known.bytes == crc(&store.files[&key]) {
                return Ok(());
            }
            return Err(format!("{key}: there is a file for this TXID already"));
        }
        let listing = store.listing();
        let whole = [Run { first: Txid(1), last: txid }];
        if coverage(&listing) != whole && self.removed == 0 {
            return Err(format!("{key}: the log is {:?}", coverage(&listing)));
        }
        let plan = restore(&listing, Target::Txid(txid)).map_err(|error| error.to_string())?;
        let plan: Vec<Key> = plan.files.iter().map(|file| file.key).collect();
        let before = self.states.get(&key.name.min.prev());
        let expected = before.map(|before| before.plan.as_slice()).unwrap_or_default();
        let (last, way) = plan.split_last().ok_or("an empty plan")?;
        // Once files are joined, the way to the state before is another.
        if *last != key || (way != expected && self.joined == 0) {
            return Err(format!("{key}: unexpected plan {plan:?}"));
        }
        let none = Vec::new();
        let base = before.map_or(&none, |before| &before.state);
        let Applied { header, state, pages } = apply(&store.files[&key], base)
            .map_err(|why| format!("{key} cannot be applied: {why}"))?;
        let (writer, at) = (header.writer.0, header.timestamp.0);
        let bytes = crc(&store.files[&key]);
        if self.fenced.contains(&writer) {
            return Err(format!("{key}: its writer was told that it is fenced"));
        }
        let host = *self.writers.get(&writer).ok_or(format!("{key}: unknown writer"))?;
        if let Some(before) = before.filter(|before| before.writer != writer) {
            // Who was in the log already and lost it must not take it back.
            if self.writers[&before.writer] != host && !hosts[host].born.contains(&writer) {
                return Err(format!("{key} takes the log from its new owner"));
            }
            if pages == 0 && before.state == state {
                // It says whose the log is from here on, and nothing else.
                let (commit, host) = (before.commit, before.host);
                self.states
                    .insert(txid, Restorable { state, host, writer, commit, at, bytes, plan });
                return Ok(());
            }
        }
        let last = self.newest.get(&host).copied().unwrap_or(0);
        let commit = hosts[host].db.commit_of(&state, last).ok_or_else(|| {
            match hosts[host].db.commit_of(&state, 0) {
                Some(commit) => format!("{key} goes back from commit {last} to {commit}"),
                None => format!("{key} of host {host} gives a state that never was"),
            }
        })?;
        self.newest.insert(host, commit);
        self.states.insert(txid, Restorable { state, host, writer, commit, at, bytes, plan });
        Ok(())
    }

    /// Restores each TXID anew from the files alone, by the production's plan. Where nothing was
    /// removed, those are all.
    pub fn restore_all(&self, store: &Store) -> Result<(), String> {
        let listing = store.listing();
        let points: BTreeSet<Txid> = restorable(&listing).into_iter().collect();
        for (txid, known) in &self.states {
            if self.removed > 0 && !points.contains(txid) {
                continue;
            }
            let plan = restore(&listing, Target::Txid(*txid)).map_err(|error| error.to_string())?;
            let mut state = State::new();
            for file in &plan.files {
                state = apply(&store.files[&file.key], &state)
                    .map_err(|why| format!("{} cannot be applied: {why}", file.key))?
                    .state;
            }
            if state != known.state {
                return Err(format!("{txid} restores to something else than before"));
            }
        }
        Ok(())
    }
}

/// Tells files from each other.
fn crc(bytes: &[u8]) -> String {
    let mut digest = walferry::ltx::checksum::FileDigest::new();
    digest.update(bytes);
    digest.checksum().to_string()
}

/// What a file makes of the state before it.
pub struct Applied {
    header: Header,
    pub state: State,
    /// How many it holds.
    pages: usize,
}

/// Applies a file to a state, as a restore does, and proves the chain.
pub fn apply(bytes: &[u8], before: &State) -> Result<Applied, String> {
    let mut decoder = Decoder::new(bytes).map_err(|error| error.to_string())?;
    let header = *decoder.header();
    let tag = header.tag.ok_or("no tag")?;
    let mut pages: BTreeMap<u32, Rc<Vec<u8>>> = BTreeMap::new();
    if tag.full_image {
        // Whatever was before is superseded.
    } else if tag.pre_apply != checksum(before) {
        return Err("the chain is broken before it".into());
    } else {
        pages.extend((1..).zip(before.iter().cloned()));
    }
    let mut count = 0;
    while let Some(page) = decoder.next_page().map_err(|error| error.to_string())? {
        count += 1;
        pages.insert(page.pgno, Rc::new(page.data.to_vec()));
    }
    decoder.finish().map_err(|error| error.to_string())?;
    let state: Option<State> = (1..=header.commit).map(|pgno| pages.get(&pgno).cloned()).collect();
    let state = state.ok_or("a page is missing")?;
    if tag.post_apply != checksum(&state) {
        return Err("its own checksum of the result is wrong".into());
    }
    Ok(Applied { header, state, pages: count })
}
