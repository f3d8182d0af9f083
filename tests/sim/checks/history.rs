//! Joined files, and what was removed.

use std::collections::BTreeSet;

use walferry::plan::restore::restorable;
use walferry::plan::retain::Policy;
use walferry::store::Key;
use walferry::units::Txid;

use super::Checks;
use super::published::apply;
use crate::sqlite::State;
use crate::store::{Removed, Store};

impl Checks {
    /// A joined file leads from each state that it says to the same state as what it is made of.
    pub fn joined(&mut self, store: &Store, key: Key) -> Result<(), String> {
        self.joined += 1;
        let none = State::new();
        let before = self.states.get(&key.name.min.prev()).map_or(&none, |before| &before.state);
        let after = &self.states[&key.name.max].state;
        let applied = apply(&store.files[&key], before)
            .map_err(|why| format!("joined {key} cannot be applied: {why}"))?;
        if applied.state != *after {
            return Err(format!("joined {key} leads to another state"));
        }
        Ok(())
    }

    /// After each deletion, what the policy keeps can be restored.
    pub fn removed(&mut self, store: &Store, removed: &Removed) -> Result<(), String> {
        let Removed { key, policy } = removed;
        // A deletion may come late: others have gone by a later time since.
        let before = self.kept.unwrap_or(*policy);
        let kept = Policy { all: policy.all.max(before.all), l0: policy.l0.max(before.l0) };
        let policy = self.kept.insert(kept);
        self.removed += 1;
        let points: BTreeSet<Txid> = restorable(&store.listing()).into_iter().collect();
        let newest = self.states.keys().last();
        if newest.is_some_and(|newest| !points.contains(newest)) {
            return Err(format!("{key} was removed, and the newest state needs it"));
        }
        let since = policy.all.map_or(i64::MIN, |all| all.0).max(policy.l0.0);
        let lost =
            self.states.iter().find(|(txid, stored)| stored.at > since && !points.contains(txid));
        if let Some((txid, _)) = lost {
            return Err(format!("{key} was removed, and {txid} needs it"));
        }
        // Of the time before there is something at or before each moment that is kept.
        let all = policy.all.map_or(i64::MIN, |all| all.0);
        let oldest = self.states.iter().find(|(_, stored)| stored.at >= all).map(|(txid, _)| *txid);
        if oldest.is_some_and(|oldest| !points.iter().any(|point| *point <= oldest)) {
            return Err(format!("{key} was removed, and states of the time that is kept need it"));
        }
        Ok(())
    }
}
