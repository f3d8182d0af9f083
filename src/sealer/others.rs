//! The other processes of a database: saying who ships, and answering what they ask.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::replica::Replica;
use crate::database::{Gate, Role};
use crate::engine::Event;
use crate::local::shared::{self, Call, SharedPage};
use crate::process::Control;
use crate::shipper::Order;
use crate::standby::publish_view;

/// A process that stood by so lately, in milliseconds, counts as there.
const STANDBY_FRESH_MS: u64 = 5000;
/// One that did so is there now: it does that every [`super::attach::STANDBY_RETRY_MS`].
const STANDBY_THERE_MS: u64 = 3 * super::attach::STANDBY_RETRY_MS;
/// A process that was let through and does not say what became of it has so long, in milliseconds.
const RELEASE_MS: u64 = 1000;

/// What the shipper keeps of the others.
#[derive(Default)]
pub(super) struct Others {
    /// Dropped to end listening.
    listening: Option<oneshot::Sender<()>>,
    /// The pipe could not be made: said once.
    deaf: bool,
    /// Why there is no page to talk by: said once.
    mute: Option<String>,
    /// When the WAL was last let go for one of them.
    released_at: Option<u64>,
    /// When one was last there before this process took the place.
    last_before: u64,
}

/// True if a process stood by so lately: at `last`, which may be of an earlier boot, or a little ahead.
fn is_fresh(last: u64, now: u64, age: u64) -> bool {
    last != 0 && now.abs_diff(last) <= age
}

impl Replica {
    /// Opens the shared page, once the folder of local state is there; anew if it was replaced.
    fn open_page(&mut self) {
        let dir = self.database.dir();
        let known = self.database.with(|shared| shared.page.clone());
        if known.as_ref().is_some_and(|page| page.is_in_place(dir)) {
            return;
        }
        let opened = match known {
            Some(page) => page.renew().map(|()| page),
            None => SharedPage::open(dir).map(Arc::new),
        };
        match opened {
            Ok(page) => {
                self.others.mute = None;
                let now = self.process.now();
                self.database.with(|shared| {
                    if shared.role == Role::Ships && shared.term == 0 {
                        // There was none when the place was taken.
                        shared.term = page.begin_term(now);
                    }
                    shared.page = Some(page);
                });
            }
            Err(error) => {
                let (path, why) = (self.database.label(), Some(error.to_string()));
                if self.others.mute != why {
                    log::warn!("{path}: {error}; its processes cannot talk to each other");
                    self.others.mute = why;
                }
            }
        }
    }

    /// The page is gone with its folder.
    pub(super) fn forget_page(&mut self) {
        self.others = Others::default();
        self.database.with(|shared| {
            shared.role = Role::Unknown;
            shared.page = None;
        });
    }

    /// This process ships from now on.
    pub(super) fn ships(&mut self) {
        self.open_page();
        let now = self.process.now();
        self.database.with(|shared| {
            shared.role = Role::Ships;
            shared.others = false;
            shared.released = (None, 0);
            shared.report.shipper = None;
            shared.report.last_error = None;
            if shared.report.state == "error" {
                // It was said of a file that has been replaced since.
                shared.report.state = "opening";
            }
            if let Some(page) = &shared.page {
                shared.term = page.begin_term(now);
            }
        });
        if let Some(page) = self.database.with(|shared| shared.page.clone()) {
            // It may be this process's own, or of one that is no more. Who stands by says so again.
            self.others.last_before = page.last_standby();
            page.standing_by(0);
        }
        self.look_for_others(now);
    }

    /// Another process ships.
    pub(super) fn stands_by(&mut self) {
        self.open_page();
        self.others = Others { mute: self.others.mute.take(), ..Others::default() };
        let now = self.process.now();
        let told = self.database.with(|shared| {
            // What this process has seen committed is the shipper's business, once it can be told.
            let page = shared.page.clone();
            let since = page.as_ref().and_then(|_| shared.unreported_since.take());
            if let (Some(page), Some(since)) = (&page, since) {
                page.unreported(since);
            }
            // Without a page nobody can be asked: writers append.
            let alone = shared.page.is_none();
            shared.role = if alone { Role::Unknown } else { Role::StandsBy };
            shared.set_gate(Gate::Shut);
            if let Some(page) = &page {
                page.standing_by(now);
            }
            page.filter(|_| since.is_some())
        });
        if let Some(page) = told {
            page.call(Call::LOOK);
        }
    }

    /// The place is given up, at the shipper's side or in the line behind it.
    pub(super) fn leaves(&mut self) {
        self.others = Others::default();
        self.database.with(|shared| {
            match (shared.role, &shared.page) {
                (Role::Ships, _) => {
                    shared.term = 0;
                    publish_view(shared);
                }
                // If others stand by too, they will say so again.
                (Role::StandsBy, Some(page)) => page.standing_by(0),
                _ => {}
            }
            shared.role = Role::Unknown;
            // Its file is closed with it: a database that nobody has open costs no descriptor.
            shared.page = None;
        });
    }

    /// Once a second: whether others are there, and a sign of life for them.
    pub(super) fn look_for_others(&mut self, now: u64) {
        self.open_page();
        let page = self.database.with(|shared| shared.page.clone());
        let Some(page) = page else { return };
        page.alive(now);
        page.set_listens(self.others.listening.is_some());
        let (last, before) = (page.last_standby(), self.others.last_before);
        let there = [last, before].iter().any(|at| is_fresh(*at, now, STANDBY_FRESH_MS));
        if !there && self.attached && page.peek_unreported().is_some() {
            // One that came and went before it was heard.
            self.process.control(Control::Called(self.database.id));
        }
        if there && self.others.listening.is_none() {
            self.listen(&page);
        }
        if !there && self.others.listening.take().is_some() {
            page.set_listens(false);
        }
        self.database.with(|shared| {
            shared.others = there;
            // Once a second for those who only look, too.
            publish_view(shared);
        });
        if self.others.released_at.is_some_and(|at| now.saturating_sub(at) >= RELEASE_MS) {
            self.take_back();
        }
    }

    fn listen(&mut self, page: &SharedPage) {
        if self.others.deaf {
            return;
        }
        if let Err(error) = shared::make_bell(page.bell_path()) {
            let path = self.database.label();
            log::warn!("{path}: {error}; other processes' commits are looked for once a second");
            self.others.deaf = true;
            return;
        }
        let (listening, until) = oneshot::channel();
        let bell = page.bell_path().to_path_buf();
        self.process.order(Order::Listen { database: self.database.id, bell, until });
        self.others.listening = Some(listening);
        page.set_listens(true);
        // What was asked for before, perhaps of another shipper, rings no more.
        self.process.control(Control::Called(self.database.id));
    }

    /// Whether another process would ship at once if this one did not. It is given the place when
    /// nobody here has the database open any more, whatever is in the spool: only who has it open
    /// can capture what is committed.
    pub(super) fn are_waiting(&self) -> bool {
        let page = self.database.with(|shared| shared.page.clone());
        page.is_some_and(|page| is_fresh(page.last_standby(), self.process.now(), STANDBY_THERE_MS))
    }

    /// Whether the WAL was let go for another process, which has not yet said what came of it.
    pub(super) fn has_let_go(&self) -> bool {
        self.others.released_at.is_some()
    }

    /// Answers what other processes ask for.
    pub(super) fn called(&mut self) {
        let page = self.database.with(|shared| {
            let page = shared.page.clone().filter(|_| shared.role == Role::Ships);
            shared.others |= page.is_some();
            page
        });
        let Some(page) = page else { return };
        let calls = page.take_calls();
        if calls.has(Call::RESTARTED.and(Call::FAILED)) {
            let now = self.process.now();
            self.database.with(|shared| {
                if calls.has(Call::FAILED) {
                    shared.turn.refused(now);
                } else {
                    shared.turn.taken();
                }
            });
            self.take_back();
        }
        self.hear();
        if calls.has(Call::CAPTURE) {
            self.engine.handle(self.process.now(), Event::Asked);
        }
        if calls.has(Call::CAPTURE.and(Call::RELEASE)) {
            // It may be a checkpoint, for which the lock must be free.
            if let Some(border) = self.database.border() {
                border.take_back();
            }
            self.capture_now();
        }
        if calls.has(Call::ROOM) {
            self.make_room();
        }
        if calls.has(Call::RELEASE) {
            self.let_go(&page);
        }
        if calls.has(Call::HURRY) {
            self.hurry();
        }
        self.wake();
    }

    /// Takes in what other processes have committed. While the WAL is closed here it cannot be captured:
    /// then the word of it stays for whoever can.
    pub(super) fn hear(&mut self) {
        let page = self.database.with(|shared| shared.page.clone().filter(|_| shared.others));
        let Some(page) = page.filter(|_| self.attached) else { return };
        if !self.engine.has_unclosed() {
            // Before the look, so that a commit just after it rings.
            page.listen();
        }
        if let Some(since) = page.peek_unreported() {
            self.database.with(|shared| {
                let known = shared.unreported_since.unwrap_or(since);
                shared.unreported_since = Some(known.min(since));
                // Before the word is forgotten: in between nobody would know of the commit.
                publish_view(shared);
            });
            page.forget_unreported();
        }
        // Behind that: of a commit that found the word there, the wal-index tells.
        self.refresh_published();
    }

    /// True if another process says that it has committed.
    pub(super) fn is_word_there(&self) -> bool {
        let page = self.database.with(|shared| shared.page.clone());
        page.is_some_and(|page| page.peek_unreported().is_some())
    }

    /// Forgets the word that other processes have committed: what they did is known otherwise.
    pub(super) fn forget_word(&self) {
        let page = self.database.with(|shared| shared.page.clone());
        if let Some(page) = page.filter(|page| page.peek_unreported().is_some()) {
            page.forget_unreported();
        }
    }

    /// Lets another process, which holds the write lock, begin the WAL anew: if all is captured.
    fn let_go(&mut self, page: &SharedPage) {
        let (place, wish) = page.wanted();
        let free = self.attached
            && self.database.with(|shared| {
                shared.gate == Gate::Open
                    || (shared.gate == Gate::Capturing && shared.captured == Some(place))
            });
        if free {
            self.hold(false);
            self.others.released_at = Some(self.process.now());
        }
        if !free {
            self.database.with(|shared| {
                log::debug!(
                    "{}: the WAL cannot be let go at {place:?}: captured {:?}, published {:?}, gate {:?}",
                    self.database.label(),
                    shared.captured,
                    shared.published.map(|index| (index.salts, index.max_frame)),
                    shared.gate
                );
            });
        }
        self.database.with(|shared| shared.released = (free.then_some(place), wish));
        self.database.notify();
    }

    /// Keeps other processes from beginning the WAL anew again.
    fn take_back(&mut self) {
        self.others.released_at = None;
        self.database.with(|shared| shared.released.0 = None);
        self.hold(true);
        // The sooner the restart is looked at, the less of the generation before is overwritten.
        self.capture_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_far_ahead_of_the_clock_is_of_an_earlier_boot() {
        let is_there = |last| is_fresh(last, 10_000, STANDBY_THERE_MS);
        assert!(is_there(10_000) && is_there(10_000 - STANDBY_THERE_MS));
        assert!(is_there(10_003), "said after the clock was read");
        assert!(!is_there(9999 - STANDBY_THERE_MS), "long ago");
        assert!(!is_there(500_000_000), "before the machine was started");
        assert!(!is_fresh(0, 10, STANDBY_THERE_MS), "nobody has said so");
    }
}
