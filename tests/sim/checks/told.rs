//! What processes say: to those who wait, who ask for the lag, and who look at the status.

use walferry::engine::Phase;
use walferry::units::Txid;

use super::Checks;
use crate::host::Host;
use crate::process::Process;

/// A commit of another process is seen, and shows as lag, within this time: the watch's interval,
/// and what the sealer may be kept from its work.
const SEEN_AFTER: u64 = 8000;

impl Checks {
    /// What was reported as confirmed is at the store, and is the reporter's own.
    pub fn confirmed(&mut self, host: &mut Host) -> Result<(), String> {
        let before_loss = std::mem::take(&mut host.confirmed_before_loss);
        let all = before_loss.into_iter().map(|txid| (txid, true));
        for (txid, forgotten) in all.chain(host.confirmed.drain(..).map(|txid| (txid, false))) {
            match self.states.get(&txid) {
                None => return Err(format!("host {}: {txid} acked, but not stored", host.id)),
                Some(stored) if stored.host != host.id => {
                    return Err(format!("host {}: {txid} acked, but another's", host.id));
                }
                Some(_) => {
                    host.forgot &= forgotten
                        || self.states.last_key_value().is_some_and(|(last, _)| *last > txid);
                    self.ever_acked.insert(host.id, txid);
                }
            }
        }
        let shippers = (0..host.procs.len()).filter(|p| host.is_shipper(*p)).count();
        if shippers > 1 {
            return Err(format!("host {} has {shippers} shippers", host.id));
        }
        Ok(())
    }

    /// What a process believes and shows.
    pub fn told(&mut self, now: u64, host: &Host, p: usize) -> Result<(), String> {
        let (process, id) = (&host.procs[p], host.id);
        if !process.alive {
            return Ok(());
        }
        let acked_seq = process.shared.acked_seq;
        let promised = process.shared.seqs[acked_seq];
        if acked_seq > 0 && promised > 0 && !self.is_stored(host, promised) {
            let newest = self.newest.get(&id);
            return Err(format!(
                "host {id}.{p}: a wait ended for commit {promised}, stored {newest:?}"
            ));
        }
        if host.is_shipper(p) {
            self.status(host, p)?;
        }
        self.lag(now, host, p)
    }

    /// Whether the newest state of a host that is at the store is this commit or a later one. Of
    /// commits with the same content any will do.
    pub fn is_stored(&self, host: &Host, commit: usize) -> bool {
        self.is_undone(host, commit)
            || self.newest.get(&host.id).is_some_and(|newest| {
                *newest >= commit
                    || host.db.commit_of(&host.db.history[*newest].state, commit).is_some()
            })
    }

    /// A loss of power may take the newest commits from the database and from the local state alike:
    /// then the replica is ahead, and only the next commit that changes a page shows it. One that writes
    /// pages as they were leaves nothing that a comparison could find.
    fn is_undone(&self, host: &Host, commit: usize) -> bool {
        let content = &host.db.history[commit].state;
        let is_same = |number: &usize| host.db.history[*number].state == *content;
        let mut same = (0..=commit).rev().take_while(is_same);
        same.any(|number| host.undone.contains(&number))
            && self.states.values().any(|s| s.host == host.id && s.state == *content)
    }

    fn status(&mut self, host: &Host, p: usize) -> Result<(), String> {
        let process = &host.procs[p];
        let id = host.id;
        let Some(replica) = &process.replica else { return Ok(()) };
        let status = replica.engine.status();
        if status.acked > Txid::ZERO && !self.states.contains_key(&status.acked) {
            return Err(format!("host {id}: acked {}, which is not stored", status.acked));
        }
        if status.sealed < status.acked {
            return Err(format!("host {id}: sealed {} behind acked", status.sealed));
        }
        // A full disk may keep the state from what was acked, until the next one that opens it.
        let term = (id, process.incarnation, replica.took_over_at);
        let last = self.acked.entry(term).or_insert(status.acked);
        if status.acked < *last {
            return Err(format!("host {id}: acked went back from {last}"));
        }
        *last = status.acked;
        if let Phase::Fenced { .. } = status.phase {
            let writer = replica.engine.writer().0;
            if !self.states.values().any(|stored| stored.writer != writer) {
                return Err(format!("host {id} is fenced, but nobody else wrote"));
            }
            self.fenced.insert(writer);
        }
        Ok(())
    }

    /// While a commit is not acked, somebody can see since when.
    fn lag(&self, now: u64, host: &Host, p: usize) -> Result<(), String> {
        let process = &host.procs[p];
        let oldest = self.oldest_unacked(host, process);
        let missing = &host.db.history[oldest..];
        let own = (oldest..).zip(missing).find(|(number, commit)| {
            let is_own = commit.by == Some((p, process.incarnation));
            is_own && commit.at > process.left_at && !self.is_undone(host, *number)
        });
        let own = own.map(|(_, commit)| commit);
        match (process.shared.lag_since(), own) {
            (None, Some(commit)) => {
                Err(format!("host {}.{p}: unacked since {}, no lag shows", host.id, commit.at))
            }
            (Some(since), Some(commit)) if commit.at < since => Err(format!(
                "host {}.{p}: unacked since {}, but the lag shows {since}",
                host.id, commit.at
            )),
            (None, None) => {
                let ships = process.attached && host.is_shipper(p);
                let took_over = process.replica.as_ref().map_or(now, |r| r.took_over_at);
                let old = |at: u64| at + SEEN_AFTER <= now && process.busy_until + 1000 < now;
                if ships && old(took_over) && missing.iter().any(|commit| old(commit.at)) {
                    return Err(format!("host {}.{p}: others' commits show no lag", host.id));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The oldest commit that the process may not take for acked. One that the store has, and whose
    /// answer is on its way, still counts.
    fn oldest_unacked(&self, host: &Host, process: &Process) -> usize {
        // What was acked before may be forgotten with a full disk, and is acked all the same.
        let ever = self.ever_acked.get(&host.id).copied().unwrap_or(Txid::ZERO);
        // A restored copy begins with a state that is at the store.
        let first = if host.is_copy { 1 } else { 0 };
        let ships = process.replica.as_ref().filter(|replica| replica.local.is_some());
        let acked = ships.map_or(Txid(u64::MAX), |replica| replica.engine.status().acked.max(ever));
        let known = self.states.range(..=acked).rev().find(|(_, stored)| stored.host == host.id);
        let known = known.map_or(first, |(_, stored)| {
            let same = |number: &usize| host.db.history[*number].state == stored.state;
            (stored.commit..=host.db.head()).rev().find(same).unwrap_or(stored.commit) + 1
        });
        known.min(host.db.history.len())
    }
}
