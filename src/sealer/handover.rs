//! Gives up the shipper's place, and makes sure that somebody has it who ships the rest.
//!
//! The shared page says that a process stands by. That may be wrong: it was killed since, or is
//! stopped, or the word is of an earlier boot. Only the lock tells. So what is left is this process's
//! to ship until another one holds the lock and says that it ships; if none does in time, the place is
//! taken back.

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

/// Longest time, in milliseconds, in which another process must have taken the place: it asks for it
/// every [`STANDBY_RETRY_MS`].
const OFFER_MS: u64 = 1000;
/// How often it is looked whether one says that it has.
const LOOK_MS: u64 = 20;
/// A place that nobody took is offered to nobody for so long, unless everything is shipped before.
const KEEP_MS: u64 = 30_000;

/// The shipper's place once this process has no use for it.
#[derive(Default)]
pub(super) enum Handover {
    /// No place was given up with anything left to ship.
    #[default]
    Kept,
    /// The place is free, and the rest is in the local state.
    Offered(Offer),
    /// Another process holds the lock, and says that it ships.
    Given,
}

/// A place that another process may take.
pub(super) struct Offer {
    /// When it is taken back.
    until: u64,
    /// When it is looked next whether somebody has it.
    look_at: u64,
    page: Option<Arc<SharedPage>>,
    left: Left,
}

/// The rest, as far as the local state does not tell.
struct Left {
    need: Need,
    /// Last piece that was captured, and where in the WAL.
    piece: u64,
    cursor: Cursor,
    /// When the oldest commit of it was made.
    since: Option<u64>,
}

impl Handover {
    pub(super) fn is_offered(&self) -> bool {
        matches!(self, Handover::Offered(_))
    }

    /// Returns when it is to be looked whether it was taken.
    pub(super) fn look_at(&self) -> Option<u64> {
        match self {
            Handover::Offered(offer) => Some(offer.look_at),
            _ => None,
        }
    }
}

impl Offer {
    /// True if a process says that it ships. A reason to ask for the lock, and nothing more.
    fn is_said_to_be_taken(&self) -> bool {
        self.page.as_ref().and_then(|page| page.view()).is_some_and(|view| view.term != 0)
    }

    /// The same of a process that has the lock. Without the page nobody can say so.
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
    /// True if nobody has the database open and everything is shipped, or can be left to another
    /// process. One that has it open in another mode than WAL ships nothing, and leaves the place to who
    /// would.
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
                // A word that nobody took the place for would only have it compared again.
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

    /// Gives up the place, with the local state whole for the next process.
    pub(super) fn release(&mut self) {
        // A process that never got at the local state, and knows of no shipper, cannot say that all is
        // well.
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
        // What another process committed after this one was closed, which nobody has captured. It is
        // looked for only now: from here on who commits finds no shipper.
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

    /// True unless the place is still to be looked after.
    pub(super) fn has_left(&self) -> bool {
        !self.handover.is_offered()
    }

    /// Names what the engine or capture knows to be due and the local state does not.
    fn need(&self) -> Need {
        match self.engine.need() {
            Need::Nothing if self.published_is_ahead() => Need::Resync,
            need => need,
        }
    }

    fn offer(&mut self, page: Option<Arc<SharedPage>>, left: Left) {
        // After the state was synced, which may take its time: others can have the place only from now on.
        let now = self.process.now();
        self.forget_local();
        // What the store answers to what was asked before is of no use.
        self.tenure += 1;
        self.engine = Engine::new(Self::options(&self.database), WriterId::default());
        self.database.with(|shared| {
            shared.captured = None;
            shared.report.unacked_since = left.since;
        });
        let wait = if self.drains { self.offer_while_draining() } else { OFFER_MS };
        self.handover = Handover::Offered(Offer { until: now + wait, look_at: now, page, left });
    }

    /// The end of the process waits no longer than it may, and what is taken back is to be shipped in that time.
    fn offer_while_draining(&self) -> u64 {
        let timeout = self.database.settings().shutdown_timeout.as_millis();
        OFFER_MS.min(u64::try_from(timeout / 2).unwrap_or(OFFER_MS))
    }

    /// Ships what is left, now that the process ends.
    pub(super) fn drain(&mut self) {
        self.drains = true;
        let until = self.process.now() + self.offer_while_draining();
        if let Handover::Offered(offer) = &mut self.handover {
            offer.until = offer.until.min(until);
            offer.look_at = offer.look_at.min(until);
        }
        self.hurry();
    }

    /// Looks whether another process has taken the place that was offered; takes it back when none has
    /// in time.
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
            // One that has just the lock may not get at the local state.
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
            // With the database its state is gone: there is nothing left to ship.
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
        // Somebody may have taken it meanwhile, and left it again: with all that was to be done done.
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

/// Adds that commits were not captured.
fn worse(need: Need) -> Need {
    match need {
        Need::Nothing => Need::Resync,
        need => need,
    }
}
