//! Handles spool files that are lost while the process runs: the disk failed, or a program removed or replaced
//! a file.
//!
//! The database holds the contents of such a file too. But the page table has the file's pages already, so a
//! comparison would find no difference. Therefore a full image brings all pages to the replica. A start that
//! finds such a file does the same.

use std::io::BufReader;
use std::path::Path;

use rustix::io::Errno;

use super::replica::{ClosedFile, Replica};
use crate::finding::Finding;
use crate::local::folder;
use crate::local::spool::Entry;
use crate::local::state::Base;
use crate::ltx::{self, Decoder, Header};
use crate::shipper::{self, Identity};

/// Milliseconds for which a spool that was readable counts as sound.
const SOUND_MS: u64 = 5 * 60 * 1000;

impl Replica {
    /// Checks the spool after a failure that may come from reading the spool. Does nothing if the spool was
    /// checked lately: the spool may be large, and other databases wait meanwhile.
    pub(super) fn suspect_spool(&mut self) {
        let now = self.process.now();
        if self.spool_sound_until <= now {
            self.give_up_unreadable();
            self.spool_sound_until = self.process.now().saturating_add(SOUND_MS);
        }
    }

    /// Reads every file that waits in the spool, after one could not be read. If a file is lost, an image
    /// replaces all of them.
    pub(super) fn give_up_unreadable(&mut self) {
        let Some(local) = &self.local else { return };
        let closed = self.closed.iter().map(|file| (&file.entry, Some(&file.base)));
        let open = self.open.iter().map(|entry| (entry, None));
        let mut is_lost = false;
        for (entry, base) in closed.chain(open) {
            let path = local.spool.path(entry);
            let Err(Lost(why)) = look(&path, entry, base) else { continue };
            is_lost = true;
            let kept = match local.spool.set_aside(entry) {
                Ok(aside) => format!(", and the file is kept as {}", aside.display()),
                // The file is missing, or stays where it is.
                Err(_) => String::new(),
            };
            log::error!(
                "{}: {} is not used: {why}; what it holds is in the database{kept}",
                self.database.label(),
                path.display()
            );
        }
        if is_lost {
            self.discard_unfinished();
            self.diverge(Finding::SpoolUnreadable);
        }
    }
}

/// Reason why a file is lost.
struct Lost(String);

impl Lost {
    /// Judges a failed read. If the system or the process lacked a resource, the file may be fine.
    fn of(error: &std::io::Error) -> Result<(), Lost> {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR) => Ok(()),
            _ => Err(Lost(error.to_string())),
        }
    }
}

/// Reads a file to its end.
fn look(path: &Path, entry: &Entry, base: Option<&Base>) -> Result<(), Lost> {
    if let Some(base) = base {
        match shipper::identity(path) {
            Ok(found) => is_as_closed(&found, entry, base).map_err(Lost)?,
            Err(error) => return Lost::of(&error),
        }
    }
    let read = || -> Result<(), ltx::Error> {
        let file = folder::read(path)?;
        let mut decoder = Decoder::new(BufReader::with_capacity(128 * 1024, file))?;
        while decoder.next_page()?.is_some() {}
        decoder.finish().map(drop)
    };
    match read() {
        Ok(()) => Ok(()),
        Err(ltx::Error::Io(error)) => Lost::of(&error),
        Err(error) => Err(Lost(error.to_string())),
    }
}

/// Returns an error if the file is not the file that was closed, by its header and length.
fn is_as_closed(found: &Identity, entry: &Entry, base: &Base) -> Result<(), String> {
    let header = Header::decode(&found.head).map_err(|error| error.to_string())?;
    let is_its = header.tag.is_some_and(|tag| tag.post_apply.get() == base.checksum);
    if (header.max_txid.0, found.len) != (base.txid, entry.len) || !is_its {
        return Err("it is not the file that was written there".to_string());
    }
    Ok(())
}

/// Returns an error if a file that is to be uploaded cannot be read, or is not the file that was closed.
pub(super) fn check(path: &Path, file: &ClosedFile) -> Result<(), String> {
    let found = shipper::identity(path).map_err(|error| error.to_string());
    let checked = found.and_then(|found| is_as_closed(&found, &file.entry, &file.base));
    checked.map_err(|why| format!("cannot read {}: {why}", path.display()))
}
