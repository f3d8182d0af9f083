//! The database in the restore's folder, until it gets its final name.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::failed;
use super::handover::Staging;
use super::opened;
use super::output::{Place, Temporary, Workplace};
use super::pages::Target;
use super::{Error, Report};
use crate::local;
use crate::local::state::Fingerprint;
use crate::units::PageSize;

/// The database that the restore is making, its page table and its state.
pub(super) struct Making<'a> {
    pub(super) work: &'a Workplace,
    pub(super) place: Place,
    /// Name of the database's entry in the restore's folder.
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    pub(super) database: &'a File,
    pub(super) table: Option<Temporary>,
    pub(super) staging: Option<Result<Staging, String>>,
}

impl Making<'_> {
    pub(super) fn target(&self, page_size: PageSize) -> Target<'_> {
        Target {
            page_size,
            database: self.database,
            path: &self.path,
            page_table: self.table.as_ref().map(|table| (&table.file, table.path())),
        }
    }

    /// Gives all files their names. Returns the reason if a state was to be left and is not.
    pub(super) fn publish(
        self,
        output: &Path,
        replica: &str,
        report: &Report,
    ) -> Result<Option<String>, Error> {
        if let Some(table) = &self.table {
            table.sync()?;
        }
        let before = Fingerprint::of(&self.path).map_err(failed("looking at", &self.path))?;
        if self.place == Place::Copy {
            // A program may have opened the copy since the first check.
            opened::refuse(output)?;
        }
        self.work.publish(self.name, self.database, self.place)?;
        let scratch = self.work.entry("pages");
        if let Some(table) = self.table.filter(|table| table.path() != scratch) {
            table.keep();
        }
        let left = self.staging.map(|staging| {
            let staging = staging?;
            staging.fill(before, output, replica, report)?;
            staging.publish(&local::state_dir(output), self.place)
        });
        Ok(left.and_then(Result::err))
    }
}

/// Fills the lock page with zeros, whatever was written there before.
pub(super) fn clear_lock_page(target: &Target<'_>, commit: u32) -> Result<(), Error> {
    let lock_page = target.page_size.lock_page();
    if lock_page > commit {
        return Ok(());
    }
    let zeros = vec![0; target.page_size.bytes()];
    let at = target.page_size.offset_of(lock_page);
    target.database.write_all_at(&zeros, at).map_err(failed("writing", target.path))
}

/// Gives the files their lengths. Every page is known to be there by now, so only the lock page was not
/// written; it reads as zeros.
pub(super) fn set_lengths(target: &Target<'_>, commit: u32) -> Result<(), Error> {
    let len = u64::from(commit) * u64::from(target.page_size.get());
    target.database.set_len(len).map_err(failed("setting the length of", target.path))?;
    if let Some((file, path)) = target.page_table {
        file.set_len(u64::from(commit) * 8).map_err(failed("setting the length of", path))?;
    }
    Ok(())
}
