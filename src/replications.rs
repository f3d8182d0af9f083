//! All replications of one database file: one [`Database`] for each of its replicas, with a position,
//! a spool and failures of its own. What the border sees happen it tells to all of them; what must not
//! happen before something is captured waits for all of them.

use std::path::Path;
use std::sync::Arc;

use crate::border::Border;
use crate::database::{Attach, Database, ReadIndex, WaitError, WalEnd};
use crate::finding::Finding;
use crate::units::Txid;
use crate::wait::Patience;
use crate::wal::WalIndex;
use crate::wal::evidence::Restart;

/// The replications of one database; never none.
#[derive(Clone)]
pub struct Replications {
    first: Arc<Database>,
    others: Arc<[Arc<Database>]>,
    /// Why nothing goes to some replica that is set beside these.
    refused: Option<Arc<str>>,
}

impl Replications {
    /// In the order in which the replicas are set. `refused` says why nothing goes to another that is set:
    /// the commits of a connection are not all where they should be then, whatever these have.
    pub(crate) fn new(
        first: Arc<Database>,
        others: Vec<Arc<Database>>,
        refused: Option<&str>,
    ) -> Replications {
        Replications { first, others: others.into(), refused: refused.map(Arc::from) }
    }

    /// Each of them.
    pub fn each(&self) -> impl Iterator<Item = &Arc<Database>> {
        std::iter::once(&self.first).chain(self.others.iter())
    }

    /// That of the replica which is named first.
    pub fn first(&self) -> &Arc<Database> {
        &self.first
    }

    /// Whether these are the same.
    pub fn is_same(&self, other: &Replications) -> bool {
        Arc::ptr_eq(&self.first, &other.first)
    }

    /// Whether nobody has it but whoever asks: no connection, no thread.
    pub(crate) fn is_unused(&self) -> bool {
        Arc::strong_count(&self.others) == 1
            && self.each().all(|database| Arc::strong_count(database) == 1)
    }

    /// Path of the database file.
    pub fn path(&self) -> &Path {
        self.first.path()
    }

    /// Tells each how to reach the host's SQLite, by its number among them.
    pub fn set_border(&self, border: impl Fn(usize) -> Arc<dyn Border>) {
        for (number, database) in self.each().enumerate() {
            database.set_border(border(number));
        }
    }

    /// [`Database::refuse`] of all.
    pub fn refuse(&self, why: &str) {
        self.each().for_each(|database| database.refuse(why));
    }

    /// [`Database::connect`] of all.
    pub fn connect(&self) {
        self.each().for_each(|database| database.connect());
    }

    /// [`Database::disconnect`] of all.
    pub fn disconnect(&self) {
        for database in self.each() {
            database.disconnect();
        }
    }

    /// [`Database::attaching`] of all.
    pub fn attaching(&self) {
        self.each().for_each(|database| database.attaching());
    }

    /// [`Database::attached`] of all.
    pub fn attached(&self, attach: Attach, read: ReadIndex<'_>) {
        self.each().for_each(|database| database.attached(attach, read));
    }

    /// [`Database::detached`] of all.
    pub fn detached(&self, end: Option<WalEnd>) {
        self.each().for_each(|database| database.detached(end));
    }

    /// [`Database::committed`] of all.
    pub fn committed(&self, read: ReadIndex<'_>) {
        self.each().for_each(|database| database.committed(read));
    }

    /// [`Database::checkpoint_begins`] of all.
    pub fn checkpoint_begins(&self) {
        self.each().for_each(|database| database.checkpoint_begins());
    }

    /// [`Database::found_outside_wal`] of all.
    pub fn found_outside_wal(&self) {
        self.each().for_each(|database| database.found_outside_wal());
    }

    /// [`Database::written_outside_wal`] of all.
    pub fn written_outside_wal(&self) {
        self.each().for_each(|database| database.written_outside_wal());
    }

    /// [`Database::diverged`] of all.
    pub fn diverged(&self, found: Finding) {
        self.each().for_each(|database| database.diverged(found));
    }

    /// [`Database::make_room`] of all.
    pub fn make_room(&self) -> bool {
        self.each().filter(|database| database.make_room()).count() > 0
    }

    /// Whether any gate stays shut ([`Database::gate_stays_shut`]).
    pub fn gate_stays_shut(&self) -> bool {
        self.each().any(|database| database.gate_stays_shut())
    }

    /// The gate ([`Database::may_restart`]): all must have captured what the WAL has.
    pub fn may_restart(&self, index: WalIndex) -> bool {
        for (allowed, database) in self.each().enumerate() {
            if !database.may_restart(index) {
                // Those that were asked before have let go of the WAL.
                self.each().take(allowed).for_each(|database| database.restart_failed());
                return false;
            }
        }
        true
    }

    /// [`Database::restart_begins`] of all.
    pub fn restart_begins(&self) {
        self.each().for_each(|database| database.restart_begins());
    }

    /// [`Database::restart_failed`] of all.
    pub fn restart_failed(&self) {
        self.each().for_each(|database| database.restart_failed());
    }

    /// [`Database::restarted`] of all.
    pub fn restarted(&self, restart: Option<Restart>) {
        self.each().for_each(|database| database.restarted(restart));
    }

    /// [`Database::wait_followed`] of all.
    pub fn wait_followed(&self, restart: &Restart) {
        self.each().for_each(|database| database.wait_followed(restart));
    }

    /// Waits until all have captured everything up to `index`; whether they have. Says so in the log
    /// where one that this process ships has not.
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

    /// Asks for what is committed to be shipped to every replica, and does not wait for it.
    pub fn hurry(&self) {
        self.each().for_each(|database| database.hurry());
    }

    /// Waits until every replica has what the connection sees committed ([`Database::wait`]); the TXID
    /// of the first.
    pub fn wait(
        &self,
        patience: Patience<'_>,
        hurry: bool,
        read: ReadIndex<'_>,
    ) -> Result<Txid, WaitError> {
        if hurry {
            // All begin at once, and are then waited for in turn.
            self.others.iter().for_each(|database| database.hurry());
        }
        let first = self.first.wait(patience, hurry, read);
        for database in self.others.iter() {
            database.wait(patience, hurry, read)?;
        }
        // After the others were waited for: their commits are to go, although this is no success.
        match &self.refused {
            Some(why) => first.and(Err(WaitError::Stopped(why.to_string()))),
            None => first,
        }
    }

    /// The last TXID that the first replica's log has given to a file.
    pub fn sealed(&self) -> Txid {
        self.first.report().sealed
    }

    /// Why commits do not go to some replica, if that is for good.
    pub fn stopped(&self) -> Option<String> {
        let refused = || self.refused.as_deref().map(str::to_string);
        self.each().find_map(|database| database.report().stopped()).or_else(refused)
    }

    /// Age in milliseconds of the oldest commit that some replica does not have; 0 where all have all,
    /// `None` where that is not known.
    pub fn lag_ms(&self) -> Option<u64> {
        let refused = self.refused.iter().map(|_| None);
        worst_lag(self.each().map(|database| database.report().lag_known()).chain(refused))
    }
}

/// The longest of several lags. One that is behind for certain says more than one of which nothing is
/// known, and one of which nothing is known says more than one that is not behind.
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
