//! What is due, and would be due to nobody if this process ended.
//!
//! Most findings are found again: nothing is captured before they are answered, so the next start meets the
//! same evidence. The others are named in the state before anything else is said of them, and stay there
//! until the replica has the answer.

use super::open::Local;
use super::replica::Replica;
use crate::finding::{Answer, Finding};
use crate::units::Txid;

impl Local {
    /// What an earlier process found and did not answer. A name of another version calls for the answer that
    /// is right for all.
    pub(super) fn due(&self) -> Option<Finding> {
        let name = self.state.due.as_deref()?;
        Some(Finding::named(name).unwrap_or(Finding::TableDisproved))
    }
}

impl Replica {
    /// Notes on the disk what was found, if the next start would not come to it by itself.
    pub(super) fn remember(&mut self, found: Finding) {
        if found.is_found_again() {
            return;
        }
        // What was read before does not answer it.
        self.remembered += 1;
        let Some(local) = &mut self.local else { return };
        let known = local.due();
        let covered = known.is_some_and(|due| due.answer() == Answer::Image);
        if covered || known == Some(found) {
            return;
        }
        local.state.due = Some(found.name().to_string());
        if let Err(error) = local.save(true) {
            log::error!("{}: {error}", self.database.label());
        }
    }

    /// A comparison has read all pages, after so many findings were noted: what differs is in the file of
    /// this TXID, if anything does.
    pub(super) fn compared(&mut self, remembered: u64, file: Option<Txid>) {
        self.answered = file.map(|txid| (txid, remembered));
        if file.is_some() {
            return;
        }
        if self.is_answered(remembered)
            && let Some(local) = &mut self.local
            && let Err(error) = local.save(false)
        {
            log::error!("{}: {error}", self.database.label());
        }
    }

    /// The store has confirmed a file: it may be the one that answers what was found.
    pub(super) fn answers(&mut self, txid: Txid) {
        if let Some((_, remembered)) = self.answered.take_if(|(file, _)| *file <= txid) {
            self.is_answered(remembered);
        }
    }

    /// Takes what is due out of the state, where nothing was found since so much was noted; true if there
    /// was something. The caller saves the state.
    pub(super) fn is_answered(&mut self, remembered: u64) -> bool {
        let is_all = remembered == self.remembered;
        let due = self.local.as_mut().filter(|_| is_all).map(|local| local.state.due.take());
        due.flatten().is_some()
    }
}
