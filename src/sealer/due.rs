//! Saves findings that would be forgotten if this process ended.
//!
//! Most findings are found again: nothing is captured before they are answered, so the next start meets the
//! same evidence. The other findings are named in the state before any report of them. They stay there until
//! the replica has the answer.

use super::open::Local;
use super::replica::Replica;
use crate::finding::{Answer, Finding};
use crate::units::Txid;

impl Local {
    /// Returns the finding that an earlier process did not answer. A name of another version gets the answer
    /// that is right for every finding.
    pub(super) fn due(&self) -> Option<Finding> {
        let name = self.state.due.as_deref()?;
        Some(Finding::named(name).unwrap_or(Finding::TableDisproved))
    }
}

impl Replica {
    /// Saves a finding if the next start would not find it by itself.
    pub(super) fn remember(&mut self, found: Finding) {
        if found.is_found_again() {
            return;
        }
        // Pages that were read before do not answer this finding.
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

    /// Notes that a comparison has read all pages. `remembered` is the count of findings at its start; `file`
    /// has the pages that differ, if any.
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

    /// Notes that the store confirmed a file, which may answer a finding.
    pub(super) fn answers(&mut self, txid: Txid) {
        if let Some((_, remembered)) = self.answered.take_if(|(file, _)| *file <= txid) {
            self.is_answered(remembered);
        }
    }

    /// Removes the finding from the state, if none was noted since the count was `remembered`; true if there
    /// was one. The caller saves the state.
    pub(super) fn is_answered(&mut self, remembered: u64) -> bool {
        let is_all = remembered == self.remembered;
        let due = self.local.as_mut().filter(|_| is_all).map(|local| local.state.due.take());
        due.flatten().is_some()
    }
}
