//! Talks to the other processes of a database: says which process ships, and answers calls.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::replica::Replica;
use crate::database::{Gate, Role};
use crate::engine::Event;
use crate::local::shared::{self, Call, SharedPage};
use crate::process::Control;
use crate::shipper::Order;
use crate::standby::publish_view;

/// Milliseconds for which a process that stood by still counts as present.
const STANDBY_FRESH_MS: u64 = 5000;
/// Milliseconds for which a standby counts as present now. A standby shows itself every
/// [`super::attach::STANDBY_RETRY_MS`].
const STANDBY_THERE_MS: u64 = 3 * super::attach::STANDBY_RETRY_MS;
/// Milliseconds that a process has to report its restart, after the WAL was let go for it.
const RELEASE_MS: u64 = 1000;

/// State that the shipper keeps about the other processes.
#[derive(Default)]
pub(super) struct Others {
    /// Dropped to stop listening.
    listening: Option<oneshot::Sender<()>>,
    /// The pipe could not be made; reported once.
    deaf: bool,
    /// Reason why the shared page cannot be opened; reported once.
    mute: Option<String>,
    /// Time at which the WAL was last let go for another process.
    released_at: Option<u64>,
    /// Time at which a standby was last present before this process took the place.
    last_before: u64,
}

/// True if a process stood by within `age`. `last` may be of an earlier boot, or a little ahead of `now`.
fn is_fresh(last: u64, now: u64, age: u64) -> bool {
    last != 0 && now.abs_diff(last) <= age
}

impl Replica {
    /// Opens the shared page once the folder of local state exists. Opens it again if its file was replaced.
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
                        // There was no page when this process took the place.
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

    /// Forgets the page, which is gone with its folder.
    pub(super) fn forget_page(&mut self) {
        self.others = Others::default();
        self.database.with(|shared| {
            shared.role = Role::Unknown;
            shared.page = None;
        });
    }

    /// Notes that this process ships from now on.
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
                // That error was about a file that has been replaced since.
                shared.report.state = "opening";
            }
            if let Some(page) = &shared.page {
                shared.term = page.begin_term(now);
            }
        });
        if let Some(page) = self.database.with(|shared| shared.page.clone()) {
            // The time may be of this process, or of a process that has ended. A standby sets it again.
            self.others.last_before = page.last_standby();
            page.standing_by(0);
        }
        self.look_for_others(now);
    }

    /// Notes that another process ships.
    pub(super) fn stands_by(&mut self) {
        self.open_page();
        self.others = Others { mute: self.others.mute.take(), ..Others::default() };
        let now = self.process.now();
        let told = self.database.with(|shared| {
            // The commits that this process has seen are passed to the shipper, if there is a page for it.
            let page = shared.page.clone();
            let since = page.as_ref().and_then(|_| shared.unreported_since.take());
            if let (Some(page), Some(since)) = (&page, since) {
                page.unreported(since);
            }
            // Without a page no process can be asked, so writers only append to the WAL.
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

    /// Gives up the place as the shipper, or as a standby.
    pub(super) fn leaves(&mut self) {
        self.others = Others::default();
        self.database.with(|shared| {
            match (shared.role, &shared.page) {
                (Role::Ships, _) => {
                    shared.term = 0;
                    publish_view(shared);
                }
                // Other standbys set the time again.
                (Role::StandsBy, Some(page)) => page.standing_by(0),
                _ => {}
            }
            shared.role = Role::Unknown;
            // The page's file is closed with it: a closed database costs no descriptor.
            shared.page = None;
        });
    }

    /// Once a second: looks whether other processes are present, and shows them a sign of life.
    pub(super) fn look_for_others(&mut self, now: u64) {
        self.open_page();
        let page = self.database.with(|shared| shared.page.clone());
        let Some(page) = page else { return };
        page.alive(now);
        page.set_listens(self.others.listening.is_some());
        let (last, before) = (page.last_standby(), self.others.last_before);
        let there = [last, before].iter().any(|at| is_fresh(*at, now, STANDBY_FRESH_MS));
        if !there && self.attached && page.peek_unreported().is_some() {
            // Another process committed and ended before this process listened.
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
            // Also published once a second for processes that only observe.
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
        // Earlier calls, perhaps to another shipper, ring no more.
        self.process.control(Control::Called(self.database.id));
    }

    /// True if another process would ship at once in this process's place. That process gets the place,
    /// whatever is in the spool, when this process has closed the database: only a process that has it open can
    /// capture commits.
    pub(super) fn are_waiting(&self) -> bool {
        let page = self.database.with(|shared| shared.page.clone());
        page.is_some_and(|page| is_fresh(page.last_standby(), self.process.now(), STANDBY_THERE_MS))
    }

    /// True if the WAL was let go for another process that has not yet reported the result.
    pub(super) fn has_let_go(&self) -> bool {
        self.others.released_at.is_some()
    }

    /// Answers the calls of other processes.
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
            // The caller may want to checkpoint, which needs the checkpoint lock.
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

    /// Takes in the commits that other processes have reported. While the WAL is closed here, those commits
    /// cannot be captured. Then the report stays for a process that can.
    pub(super) fn hear(&mut self) {
        let page = self.database.with(|shared| shared.page.clone().filter(|_| shared.others));
        let Some(page) = page.filter(|_| self.attached) else { return };
        if !self.engine.has_unclosed() {
            // Called before the look, so that a commit right after the look rings.
            page.listen();
        }
        if let Some(since) = page.peek_unreported() {
            self.database.with(|shared| {
                let known = shared.unreported_since.unwrap_or(since);
                shared.unreported_since = Some(known.min(since));
                // Published before the report is forgotten. In between, no process would know of the commit.
                publish_view(shared);
            });
            page.forget_unreported();
        }
        // Read after the report is forgotten. A commit that found an earlier report still there shows in the
        // wal-index.
        self.refresh_published();
    }

    /// True if another process has reported a commit that is not taken in yet.
    pub(super) fn is_word_there(&self) -> bool {
        let page = self.database.with(|shared| shared.page.clone());
        page.is_some_and(|page| page.peek_unreported().is_some())
    }

    /// Forgets the reported commits of other processes, because they are known in another way.
    pub(super) fn forget_word(&self) {
        let page = self.database.with(|shared| shared.page.clone());
        if let Some(page) = page.filter(|page| page.peek_unreported().is_some()) {
            page.forget_unreported();
        }
    }

    /// Lets another process, which holds the write lock, restart the WAL, if all frames are captured or the
    /// gate is open.
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

    /// Keeps other processes from restarting the WAL again.
    fn take_back(&mut self) {
        self.others.released_at = None;
        self.database.with(|shared| shared.released.0 = None);
        self.hold(true);
        // The earlier a restart is noticed, the less of the old generation is overwritten.
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
