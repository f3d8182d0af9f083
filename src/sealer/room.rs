//! Limits the room that the spool takes on the local disk, and gives room back.
//!
//! If both are on one disk, the database comes first. The spool takes at most half of the room that would be
//! free without it: its pieces can then always be merged into a file for upload. Copies of shipped files are
//! removed first. A file for which there is no room waits for a limited time only, since the spool's own pieces
//! may take the room. A crash after the pieces were dropped costs a full image.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::open::Local;
use super::replica::{LocalJob, Replica};
use crate::database::Gate;
use crate::engine::Event;
use crate::finding::Finding;
use crate::local::copies::Copies;
use crate::local::reserve::Reserve;
use crate::local::spool::Entry;

/// Milliseconds for which a file that is to be closed waits for room.
const WAITS_FOR_ROOM_MS: u64 = 10_000;
/// Milliseconds for which room that was freed for the application's write is left alone.
const LEFT_FREE_MS: u64 = 500;
/// Milliseconds after which a lack of room counts as over.
const FORGOTTEN_MS: u64 = 300_000;
/// Least cap of the spool in bytes, if none is set.
const SPOOL_CAP_DEFAULT: u64 = 10 << 30;

impl Replica {
    /// Drops the captured pieces if they take too much room. The database is compared later.
    pub(super) fn check_cap(&mut self) {
        let pending: u64 = self.pending_bytes();
        let Some((local, point)) = self.local.as_mut().zip(self.point) else { return };
        let database = u64::from(local.table.commit()) * u64::from(point.page_size.get());
        let cap = spool_cap(self.database.settings().spool_cap, database);
        let shared = shares_disk(local, self.database.path());
        let crowded =
            |local: &Local| shared && local.spool.free().is_some_and(|free| pending > free);
        if crowded(local) {
            local.copies.clear();
        }
        let cap = match local.spool.free() {
            Some(free) if crowded(local) => cap.min(free),
            _ => cap,
        };
        if pending <= cap || self.open.is_empty() {
            return;
        }
        log::warn!(
            "{}: {pending} bytes wait in the spool, more than its cap of {cap}",
            self.database.label()
        );
        self.drop_pieces();
    }

    /// Frees room for the application, whose write found none. True if more room is free now.
    pub(super) fn make_room(&mut self) -> bool {
        let made = self.shares_disk() && self.gives_room();
        if !made {
            self.free_wal();
        }
        made
    }

    /// Gives up files of ours whose room the database could use; false if there are none.
    fn gives_room(&mut self) -> bool {
        // The comparison's file is open and takes room until the comparison ends.
        let ended = self.end_comparison() || self.gives_reserve();
        self.discard_unfinished();
        let made = ended || self.drops_copies() || self.drops_open();
        if made {
            self.leave_room();
        }
        made
    }

    /// Leaves freed room alone for a while. Otherwise the next attempt would take the room before the
    /// application's write does.
    pub(super) fn leave_room(&mut self) {
        let now = self.process.now();
        self.engine.hold_local_until(now.saturating_add(LEFT_FREE_MS));
        self.set_gate();
    }

    /// Ends a comparison in progress, which is repeated later; false if there is none.
    pub(super) fn end_comparison(&mut self) -> bool {
        if !matches!(self.job, LocalJob::Resync(_)) {
            return false;
        }
        self.job = LocalJob::None;
        let now = self.process.now();
        self.engine.handle(now, Event::Diverged);
        self.engine.handle(now, Event::Closed(None));
        true
    }

    pub(super) fn shares_disk(&self) -> bool {
        self.local.as_ref().is_some_and(|local| shares_disk(local, self.database.path()))
    }

    /// Reserves room for the application while the whole database is read, if they share a disk. Not in a
    /// sidecar: the programs beside it cannot ask for the room.
    pub(super) fn reserve(&self) -> Option<Reserve> {
        let asks = !self.database.settings().tend;
        let local = self.local.as_ref().filter(|_| asks && self.shares_disk())?;
        let database = self.database.path().symlink_metadata().map_or(0, |found| found.len());
        local.spool.reserve(database)
    }

    /// Gives up room that this database takes on a disk, for another database on that disk; false if it takes
    /// none.
    pub(super) fn gives_reserve_of(&mut self, device: u64) -> bool {
        let keeps = match &self.job {
            LocalJob::None => None,
            LocalJob::Image(image) => image.reserve(),
            LocalJob::Resync(resync) => resync.reserve(),
        };
        keeps.is_some_and(|reserve| reserve.device() == device) && self.gives_room()
    }

    /// Returns the device number of the database's file system.
    pub(super) fn device(&self) -> Option<u64> {
        self.database.path().metadata().map(|found| found.dev()).ok()
    }

    /// Removes an unfinished file from the spool.
    pub(super) fn discard_unfinished(&self) {
        if let Some(local) = &self.local {
            local.spool.discard();
        }
    }

    /// Removes the copies of shipped files; false if there are none.
    fn drops_copies(&mut self) -> bool {
        let copies = self.local.as_mut().map(|local| &mut local.copies);
        copies.filter(|copies| copies.bytes() > 0).map(Copies::clear).is_some()
    }

    /// Drops the pieces if no room comes for a file. False if there are none, if copies could be removed
    /// instead, or if room may still come. In the last two cases the file is tried again first.
    pub(super) fn gives_up_pieces(&mut self) -> bool {
        self.discard_unfinished();
        let now = self.process.now();
        let recent = self.no_room.filter(|(_, last)| now.saturating_sub(*last) < FORGOTTEN_MS);
        let since = recent.map_or(now, |(since, _)| since);
        self.no_room = Some((since, now));
        let waits = now.saturating_sub(since) < WAITS_FOR_ROOM_MS;
        !self.drops_copies() && !waits && self.drops_open()
    }

    fn drops_open(&mut self) -> bool {
        if self.open.is_empty() {
            return false;
        }
        log::warn!(
            "{}: the disk is full: {} bytes of captured transactions are dropped",
            self.database.label(),
            self.open.iter().map(|entry| entry.len).sum::<u64>()
        );
        self.drop_pieces();
        true
    }

    /// Drops the captured pieces. A comparison later finds what the database has by then.
    fn drop_pieces(&mut self) {
        // The pages that the comparison had found equal are unknown from here on.
        self.end_comparison();
        let Some(local) = self.local.as_mut() else { return };
        let mut forgotten = true;
        for entry in std::mem::take(&mut self.open) {
            if let Err(error) = forget(local, &entry) {
                log::error!("{}: {error}", self.database.label());
                forgotten = false;
            }
        }
        let last = match (self.closed.back(), local.state.base) {
            (Some(file), _) => file.entry.pieces.1,
            (None, base) => base.map_or(0, |base| base.piece),
        };
        if forgotten {
            self.piece = last;
        } else {
            // A number that is given out again would name two files. So an image must follow, which makes all
            // of them irrelevant.
            self.need_image();
        }
        self.no_room = None;
        // The frames that were read from the WAL do not follow what is left.
        self.lose_place();
        self.database.with(|shared| shared.set_gate(Gate::Open));
        self.note(Finding::SpoolFull);
        if forgotten {
            self.engine.handle(self.process.now(), Event::Diverged);
        }
    }
}

/// Returns the bytes that the spool may take: as set, or by the size of the database.
pub(super) fn spool_cap(set: u64, database: u64) -> u64 {
    match set {
        0 => SPOOL_CAP_DEFAULT.max(2 * database),
        cap => cap,
    }
}

/// True if local state and database are on the same disk.
fn shares_disk(local: &Local, database: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|found| found.dev()).ok();
    device(&local.dir) == device(database)
}

/// Takes an open piece out of the spool and out of the page table.
fn forget(local: &mut Local, entry: &Entry) -> Result<(), String> {
    let path = local.spool.path(entry);
    let unreadable = |error: crate::ltx::Error| format!("cannot read {}: {error}", path.display());
    let file = crate::local::folder::read(&path).map_err(|error| unreadable(error.into()))?;
    let mut decoder =
        crate::ltx::Decoder::new(std::io::BufReader::new(file)).map_err(unreadable)?;
    while let Some(page) = decoder.next_page().map_err(unreadable)? {
        if page.pgno <= local.table.commit() {
            local.table.set(page.pgno, None).map_err(|error| error.to_string())?;
        }
    }
    local.spool.remove(entry).map_err(|error| error.to_string())
}
