//! All replications of one database file: one [`Database`] for each of its replicas, with its own position,
//! spool and failures. Every event that the border sees goes to all of them. An action that must wait for
//! capture waits for all of them.

use std::path::Path;
use std::sync::Arc;

use crate::border::Border;
use crate::database::{Attach, Database, ReadIndex, WaitError, WalEnd};
use crate::finding::Finding;
use crate::units::Txid;
use crate::wait::Patience;
use crate::wal::WalIndex;
use crate::wal::evidence::Restart;

/// The replications of one database, at least one.
#[derive(Clone)]
pub struct Replications {
    first: Arc<Database>,
    others: Arc<[Arc<Database>]>,
    /// Reason why the commits do not go to another replica of the settings.
    refused: Option<Arc<str>>,
}

impl Replications {
    /// Makes the replications, in the order of the settings. `refused` is the reason why another replica of
    /// the settings gets nothing. A connection's commits are then never at all their replicas.
    pub(crate) fn new(
        first: Arc<Database>,
        others: Vec<Arc<Database>>,
        refused: Option<&str>,
    ) -> Replications {
        Replications { first, others: others.into(), refused: refused.map(Arc::from) }
    }

    /// Iterates over the replications.
    pub fn each(&self) -> impl Iterator<Item = &Arc<Database>> {
        std::iter::once(&self.first).chain(self.others.iter())
    }

    /// Returns the replication to the replica that the settings name first.
    pub fn first(&self) -> &Arc<Database> {
        &self.first
    }

    /// True if both are the same replications.
    pub fn is_same(&self, other: &Replications) -> bool {
        Arc::ptr_eq(&self.first, &other.first)
    }

    /// True if only the caller has these replications: no connection and no thread has them.
    pub(crate) fn is_unused(&self) -> bool {
        Arc::strong_count(&self.others) == 1
            && self.each().all(|database| Arc::strong_count(database) == 1)
    }

    /// Returns the path of the database file.
    pub fn path(&self) -> &Path {
        self.first.path()
    }

    /// Sets the border to the host's SQLite for each replication. `border` gets the replication's number.
    pub fn set_border(&self, border: impl Fn(usize) -> Arc<dyn Border>) {
        for (number, database) in self.each().enumerate() {
            database.set_border(border(number));
        }
    }

    /// Calls [`Database::refuse`] on each.
    pub fn refuse(&self, why: &str) {
        self.each().for_each(|database| database.refuse(why));
    }

    /// Calls [`Database::connect`] on each.
    pub fn connect(&self) {
        self.each().for_each(|database| database.connect());
    }

    /// Calls [`Database::disconnect`] on each.
    pub fn disconnect(&self) {
        for database in self.each() {
            database.disconnect();
        }
    }

    /// Calls [`Database::attaching`] on each.
    pub fn attaching(&self) {
        self.each().for_each(|database| database.attaching());
    }

    /// Calls [`Database::attached`] on each.
    pub fn attached(&self, attach: Attach, read: ReadIndex<'_>) {
        self.each().for_each(|database| database.attached(attach, read));
    }

    /// Calls [`Database::detached`] on each.
    pub fn detached(&self, end: Option<WalEnd>) {
        self.each().for_each(|database| database.detached(end));
    }

    /// Calls [`Database::committed`] on each.
    pub fn committed(&self, read: ReadIndex<'_>) {
        self.each().for_each(|database| database.committed(read));
    }

    /// Calls [`Database::checkpoint_begins`] on each.
    pub fn checkpoint_begins(&self) {
        self.each().for_each(|database| database.checkpoint_begins());
    }

    /// Calls [`Database::found_outside_wal`] on each.
    pub fn found_outside_wal(&self) {
        self.each().for_each(|database| database.found_outside_wal());
    }

    /// Calls [`Database::written_outside_wal`] on each.
    pub fn written_outside_wal(&self) {
        self.each().for_each(|database| database.written_outside_wal());
    }

    /// Calls [`Database::diverged`] on each.
    pub fn diverged(&self, found: Finding) {
        self.each().for_each(|database| database.diverged(found));
    }

    /// Calls [`Database::make_room`] on each. True if any made room.
    pub fn make_room(&self) -> bool {
        self.each().filter(|database| database.make_room()).count() > 0
    }

    /// True if any gate stays shut ([`Database::gate_stays_shut`]).
    pub fn gate_stays_shut(&self) -> bool {
        self.each().any(|database| database.gate_stays_shut())
    }

    /// True if all gates allow a restart ([`Database::may_restart`]): each must have captured the WAL.
    pub fn may_restart(&self, index: WalIndex) -> bool {
        for (allowed, database) in self.each().enumerate() {
            if !database.may_restart(index) {
                // The replications asked before have let go of the WAL.
                self.each().take(allowed).for_each(|database| database.restart_failed());
                return false;
            }
        }
        true
    }

    /// Calls [`Database::restart_begins`] on each.
    pub fn restart_begins(&self) {
        self.each().for_each(|database| database.restart_begins());
    }

    /// Calls [`Database::restart_failed`] on each.
    pub fn restart_failed(&self) {
        self.each().for_each(|database| database.restart_failed());
    }

    /// Calls [`Database::restarted`] on each.
    pub fn restarted(&self, restart: Option<Restart>) {
        self.each().for_each(|database| database.restarted(restart));
    }

    /// Calls [`Database::wait_followed`] on each.
    pub fn wait_followed(&self, restart: &Restart) {
        self.each().for_each(|database| database.wait_followed(restart));
    }

    /// Waits until all have captured everything up to `index`; returns whether they have. Logs each
    /// replication of this process that has not.
    pub fn wait_captured(&self, index: WalIndex) -> bool {
        let mut captured = true;
        for database in self.each().filter(|database| !database.wait_captured(index)) {
            captured = false;
            if database.is_standing_by() {
                continue;
            }
            let (label, state) = (database.label(), database.report().state);
            if state == "imaging" {
                log::info!(
                    "{label}: the WAL may go while the full image is read, which then begins anew"
                );
            } else {
                log::warn!(
                    "{label}: the WAL may go before all of it is captured; what is missing is found by comparison"
                );
            }
        }
        captured
    }

    /// Asks for committed transactions to be shipped to every replica, without waiting.
    pub fn hurry(&self) {
        self.each().for_each(|database| database.hurry());
    }

    /// Waits until every replica has the commits that the connection sees ([`Database::wait`]). Returns the
    /// TXID of the first replica.
    pub fn wait(
        &self,
        patience: Patience<'_>,
        hurry: bool,
        read: ReadIndex<'_>,
    ) -> Result<Txid, WaitError> {
        if hurry {
            // All begin at once, and the caller then waits for one after another.
            self.others.iter().for_each(|database| database.hurry());
        }
        let first = self.first.wait(patience, hurry, read);
        for database in self.others.iter() {
            database.wait(patience, hurry, read)?;
        }
        // Only after the waits for the others: their commits must go out, although the result is no success.
        match &self.refused {
            Some(why) => first.and(Err(WaitError::Stopped(why.to_string()))),
            None => first,
        }
    }

    /// Returns the last TXID that the first replica's log has given to a file.
    pub fn sealed(&self) -> Txid {
        self.first.report().sealed
    }

    /// Returns the reason why commits never reach some replica, if there is one.
    pub fn stopped(&self) -> Option<String> {
        let refused = || self.refused.as_deref().map(str::to_string);
        self.each().find_map(|database| database.report().stopped()).or_else(refused)
    }

    /// Returns the age in milliseconds of the oldest commit that some replica lacks; 0 if all replicas have
    /// everything, `None` if unknown.
    pub fn lag_ms(&self) -> Option<u64> {
        let refused = self.refused.iter().map(|_| None);
        worst_lag(self.each().map(|database| database.report().lag_known()).chain(refused))
    }
}

/// Returns the worst of several lags. A lag that is certain counts more than an unknown lag, and an unknown
/// lag counts more than zero.
pub fn worst_lag(all: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    all.reduce(|one, other| match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (known, None) | (None, known) => known.filter(|lag| *lag > 0),
    })
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_that_is_not_known_is_not_passed_over() {
        for (all, worst) in [
            (vec![], None),
            (vec![Some(0)], Some(0)),
            (vec![None], None),
            (vec![Some(0), Some(7), Some(3)], Some(7)),
            (vec![Some(0), None], None),
            (vec![None, Some(0)], None),
            (vec![Some(7), None, Some(0)], Some(7)),
            (vec![Some(0), None, Some(7)], Some(7)),
            (vec![Some(0), None, Some(0)], None),
        ] {
            assert_eq!(worst_lag(all.iter().copied()), worst, "{all:?}");
        }
    }
}
