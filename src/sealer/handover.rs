//! Gives up the shipper's place, and ensures that another process takes it and ships the rest.
//!
//! The shared page says that a process stands by. That word may be wrong: the process was killed since, or is
//! stopped, or the word is from an earlier boot. Only the lock shows the truth. So this process must ship the
//! rest until another process holds the lock and says that it ships. If no process does so in time, this
//! process takes the place back.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::attach::STANDBY_RETRY_MS;
use super::capture::Cursor;
use super::open::{Found, Opening};
use super::replica::{LocalJob, Replica};
use crate::engine::{Engine, Event, Need};
use crate::local::shared::SharedPage;
use crate::units::WriterId;

/// Milliseconds within which another process must take the place. A standby asks for it every
/// [`STANDBY_RETRY_MS`].
const OFFER_MS: u64 = 1000;
/// Milliseconds between two looks whether a process has taken the place.
const LOOK_MS: u64 = 20;
/// Milliseconds for which a place that no process took is not offered again, unless everything is shipped
/// earlier.
const KEEP_MS: u64 = 30_000;

/// The shipper's place after this process has no more use for it.
#[derive(Default)]
pub(super) enum Handover {
    /// No place was given up with anything left to ship.
    #[default]
    Kept,
    /// The place is free, and the rest is in the local state.
    Offered(Offer),
    /// Another process holds the lock and says that it ships.
    Given,
}

/// A place that another process may take.
pub(super) struct Offer {
    /// Time at which this process takes the place back.
    until: u64,
    /// Time of the next look whether another process has taken the place.
    look_at: u64,
    page: Option<Arc<SharedPage>>,
    left: Left,
}

/// The rest that is to be shipped, as far as the local state does not name it.
struct Left {
    need: Need,
    /// Last piece that was captured, and its end in the WAL.
    piece: u64,
    cursor: Cursor,
    /// Time of the oldest commit of the rest.
    since: Option<u64>,
}

impl Handover {
    pub(super) fn is_offered(&self) -> bool {
        matches!(self, Handover::Offered(_))
    }

    /// Returns the time of the next look whether another process has taken the place.
    pub(super) fn look_at(&self) -> Option<u64> {
        match self {
            Handover::Offered(offer) => Some(offer.look_at),
            _ => None,
        }
    }
}

impl Offer {
    /// True if a process says that it ships. This is only a reason to ask for the lock.
    fn is_said_to_be_taken(&self) -> bool {
        self.page.as_ref().and_then(|page| page.view()).is_some_and(|view| view.term != 0)
    }

    /// True if the process that has the lock says that it ships. Without the page no process can say so, and
    /// the lock is enough.
    fn is_taken(&self, dir: &Path) -> bool {
        let page = self.page.as_ref().filter(|page| page.is_in_place(dir));
        page.is_none() || self.is_said_to_be_taken()
    }

    fn put_off(&mut self, now: u64) {
        self.until = now + STANDBY_RETRY_MS;
        self.look_at = self.until;
    }
}

impl Replica {
    /// True if no connection has the database open, and everything is shipped or can be left to another
    /// process. A process that has the database open outside WAL mode ships nothing. It leaves the place to a
    /// process that would.
    pub(super) fn may_leave(&self) -> bool {
        let (closed, quiet) =
            self.database.with(|shared| (shared.connections == 0, shared.transitions.is_empty()));
        let idle = matches!(self.job, LocalJob::None);
        if !quiet || !idle || self.attached || self.dead.is_some() {
            return false;
        }
        match self.handover {
            Handover::Given => closed || self.is_outside_wal(),
            Handover::Kept if closed || self.is_outside_wal() && self.are_waiting() => {
                let left = || self.engine.is_idle() && self.may_offer();
                // If no process took the place although commits were reported, a second release would only
                // cause a second comparison.
                let early = !self.drains && self.process.now() < self.keep_until;
                let waits = || early && self.is_word_there();
                let shipped = || self.has_shipped() && !waits();
                let done = || (shipped() || left()) && self.nothing_uncaptured();
                self.local.is_none() || done()
            }
            Handover::Offered(_) | Handover::Kept => false,
        }
    }

    fn has_shipped(&self) -> bool {
        self.open.is_empty() && self.engine.is_drained()
    }

    fn may_offer(&self) -> bool {
        self.are_waiting() && self.process.now() >= self.keep_until
    }

    /// Gives up the place, with the local state complete for the next process.
    pub(super) fn release(&mut self) {
        // A process that never opened the local state, and knows of no shipper, cannot report that all is well.
        let now = self.process.now();
        let had_place = self.local.is_some();
        let well = had_place
            || matches!(self.handover, Handover::Given)
            || self.database.shipper_is_well(now);
        let page = self.database.with(|shared| shared.page.clone()).filter(|_| had_place);
        let mut owes = had_place && !self.has_shipped();
        let since = self.engine.status().unacked_since;
        let left = Left { need: self.need(), piece: self.piece, cursor: self.cursor, since };
        self.hold(false);
        self.leaves();
        self.save_history();
        if let Some(mut local) = self.local.take() {
            let saved = local.table.sync().and_then(|()| local.save(true));
            if let Err(error) = saved {
                log::error!("{}: {error}", self.database.label());
            }
        }
        // Another process may have committed after this process closed the database, and no process has
        // captured that. The report is read only now: from here on a process that commits finds no shipper.
        let unheard = page.as_ref().is_some_and(|page| page.peek_unreported().is_some())
            && !self.is_outside_wal();
        owes |= unheard;
        if owes {
            let need = if unheard { worse(left.need) } else { left.need };
            let waits = page.as_ref().and_then(|page| page.peek_unreported());
            let since = [left.since, waits].into_iter().flatten().min();
            return self.offer(page, Left { need, since, ..left });
        }
        self.database.with(|shared| {
            shared.captured = None;
            let told = shared.outside.is_some() || shared.report.state == "error";
            shared.settled = well && !told && shared.connections == 0;
        });
    }

    /// True unless this process still has to look after the place.
    pub(super) fn has_left(&self) -> bool {
        !self.handover.is_offered()
    }

    /// Returns the need that the engine or capture knows of and the local state does not.
    fn need(&self) -> Need {
        match self.engine.need() {
            Need::Nothing if self.published_is_ahead() => Need::Resync,
            need => need,
        }
    }

    fn offer(&mut self, page: Option<Arc<SharedPage>>, left: Left) {
        // Saving and syncing the state may take a while, and others can take the place only from now on.
        let now = self.process.now();
        self.forget_local();
        // Answers of the store to earlier requests are useless.
        self.tenure += 1;
        self.engine = Engine::new(Self::options(&self.database), WriterId::default());
        self.database.with(|shared| {
            shared.captured = None;
            shared.report.unacked_since = left.since;
        });
        let wait = if self.drains { self.offer_while_draining() } else { OFFER_MS };
        self.handover = Handover::Offered(Offer { until: now + wait, look_at: now, page, left });
    }

    /// Returns the time for which the place is offered while the process ends. The process must end within its
    /// timeout. If it takes the place back, it ships the rest in the time that is left.
    fn offer_while_draining(&self) -> u64 {
        let timeout = self.database.settings().shutdown_timeout.as_millis();
        OFFER_MS.min(u64::try_from(timeout / 2).unwrap_or(OFFER_MS))
    }

    /// Ships the rest, since the process is ending.
    pub(super) fn drain(&mut self) {
        self.drains = true;
        let until = self.process.now() + self.offer_while_draining();
        if let Handover::Offered(offer) = &mut self.handover {
            offer.until = offer.until.min(until);
            offer.look_at = offer.look_at.min(until);
        }
        self.hurry();
    }

    /// Looks whether another process has taken the offered place. Takes the place back if none has in time.
    pub(super) fn look_for_taker(&mut self, now: u64) {
        let Handover::Offered(offer) = &mut self.handover else { return };
        if offer.look_at > now {
            return;
        }
        if now < offer.until && !offer.is_said_to_be_taken() {
            offer.look_at = offer.until.min(now + LOOK_MS);
            return;
        }
        if crate::descriptors::scarce().is_some() {
            return offer.put_off(now);
        }
        let is_taken = offer.is_taken(self.database.dir());
        match self.take_place() {
            // A process that has only just taken the lock may fail to open the local state.
            Some(Ok(Opening::HeldBy(_))) if !is_taken => self.put_off_offer(now),
            Some(Ok(Opening::HeldBy(_))) => {
                self.handover = Handover::Given;
                self.database.with(|shared| shared.report.unacked_since = None);
            }
            Some(Ok(Opening::Ours(found))) => self.take_back_place(*found, now),
            Some(Err(error)) => self.cannot_take_back(&error.to_string(), now),
            None => self.handover = Handover::Kept,
        }
    }

    fn cannot_take_back(&mut self, why: &str, now: u64) {
        let found = self.database.path().symlink_metadata();
        if found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            // The state is gone with the database, so nothing is left to ship.
            self.handover = Handover::Given;
            return;
        }
        self.note_open_failure(why);
        self.put_off_offer(now);
    }

    fn put_off_offer(&mut self, now: u64) {
        if let Handover::Offered(offer) = &mut self.handover {
            offer.put_off(now);
        }
    }

    fn take_back_place(&mut self, found: Found, now: u64) {
        let Handover::Offered(offer) = std::mem::take(&mut self.handover) else { return };
        let left = offer.left;
        // Another process may have taken the place meanwhile, and left it again after it did all the work.
        let same = found.piece == left.piece;
        self.take_over(found);
        log::info!(
            "{}: nobody took the place that was left; what is left is shipped from here",
            self.database.label()
        );
        self.keep_until = now + KEEP_MS;
        self.cursor = if same { left.cursor } else { Cursor::Unknown };
        let page = self.database.with(|shared| shared.page.clone());
        let word = page.and_then(|page| page.peek_unreported());
        let since = left.since.filter(|_| same && self.engine.has_unclosed());
        match left.need {
            Need::Resync if same || word.is_some() => {
                self.forget_word();
                self.engine.handle(now, Event::Diverged);
            }
            Need::Image if same => self.need_image(),
            _ => {}
        }
        let of_word = word.or(left.since).filter(|_| left.need == Need::Resync);
        if let Some(at) = [since, of_word].into_iter().flatten().min() {
            self.engine.handle(now, Event::Committed { at });
        }
        self.engine.handle(now, Event::Hurry);
    }
}

/// Adds to a need that commits were not captured.
fn worse(need: Need) -> Need {
    match need {
        Need::Nothing => Need::Resync,
        need => need,
    }
}
