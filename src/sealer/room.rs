//! Room on the local disk: how much the spool may take, and giving it back.
//!
//! Where both are on one disk, the database comes first: the spool takes at most half of the room that there
//! would be without it, so that its pieces can always be joined into a file to be shipped, and copies of what
//! was shipped go first. A file for which there is no room waits for it, but not for ever: the spool's own
//! pieces may be what takes it. A crash after they were dropped costs a full image.

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

/// So long, in milliseconds, a file that is to be closed waits for room.
const WAITS_FOR_ROOM_MS: u64 = 10_000;
/// Room that was made for the application's write is left alone for so long, in milliseconds.
const LEFT_FREE_MS: u64 = 500;
/// Room that was missing so long ago, in milliseconds, came meanwhile.
const FORGOTTEN_MS: u64 = 300_000;
/// The spool's least cap, if none is set.
const SPOOL_CAP_DEFAULT: u64 = 10 << 30;

impl Replica {
    /// Drops the captured pieces when they take too much room: the database is compared later.
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

    /// Gives room back to the application, whose write found none. True if there is more of it now.
    pub(super) fn make_room(&mut self) -> bool {
        let made = self.shares_disk() && self.gives_room();
        if !made {
            self.free_wal();
        }
        made
    }

    /// Gives up files of ours that take room which the database could have; false if there are none.
    fn gives_room(&mut self) -> bool {
        // Its file is open, and takes room until it ends.
        let ended = self.end_comparison() || self.gives_reserve();
        self.discard_unfinished();
        let made = ended || self.drops_copies() || self.drops_open();
        if made {
            self.leave_room();
        }
        made
    }

    /// Leaves room alone that was made: else the next attempt would take it before the application's write
    /// does.
    pub(super) fn leave_room(&mut self) {
        let now = self.process.now();
        self.engine.hold_local_until(now.saturating_add(LEFT_FREE_MS));
        self.set_gate();
    }

    /// Ends a comparison under way, which begins anew later; false if there is none.
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

    /// Keeps room for the application while the database is read as a whole, if it could have that: the
    /// programs beside a sidecar cannot ask.
    pub(super) fn reserve(&self) -> Option<Reserve> {
        let asks = !self.database.settings().tend;
        let local = self.local.as_ref().filter(|_| asks && self.shares_disk())?;
        let database = self.database.path().symlink_metadata().map_or(0, |found| found.len());
        local.spool.reserve(database)
    }

    /// Gives up what this database keeps of a disk for the sake of another one on it; false if that is nothing.
    pub(super) fn gives_reserve_of(&mut self, device: u64) -> bool {
        let keeps = match &self.job {
            LocalJob::None => None,
            LocalJob::Image(image) => image.reserve(),
            LocalJob::Resync(resync) => resync.reserve(),
        };
        keeps.is_some_and(|reserve| reserve.device() == device) && self.gives_room()
    }

    /// The number of the file system that the database is on.
    pub(super) fn device(&self) -> Option<u64> {
        self.database.path().metadata().map(|found| found.dev()).ok()
    }

    /// Removes a file that was begun.
    pub(super) fn discard_unfinished(&self) {
        if let Some(local) = &self.local {
            local.spool.discard();
        }
    }

    /// Removes the copies of what was shipped; false if there are none.
    fn drops_copies(&mut self) -> bool {
        let copies = self.local.as_mut().map(|local| &mut local.copies);
        copies.filter(|copies| copies.bytes() > 0).map(Copies::clear).is_some()
    }

    /// Drops what stands in the way of a file for which there is no room; false if there is nothing, if it
    /// was only copies, or if room may come: then that file is tried again first.
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

    /// Drops the captured pieces. What the database has by then is found by comparison.
    fn drop_pieces(&mut self) {
        // Pages that it had found equal are unknown from here on.
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
            // A number that is given again would name two files: only what begins behind all of them
            // is certain.
            self.need_image();
        }
        self.no_room = None;
        // What was read of the WAL is no sequel to what is left.
        self.lose_place();
        self.database.with(|shared| shared.set_gate(Gate::Open));
        self.note(Finding::SpoolFull);
        if forgotten {
            self.engine.handle(self.process.now(), Event::Diverged);
        }
    }
}

/// Gives the bytes that the spool may take, by its setting and those of the database.
pub(super) fn spool_cap(set: u64, database: u64) -> u64 {
    match set {
        0 => SPOOL_CAP_DEFAULT.max(2 * database),
        cap => cap,
    }
}

/// True if the local state takes room that the database could have.
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
