//! The exchange with the process that ships a database, seen from another process that stands by.
//!
//! All questions and answers go through the shared page ([`SharedPage`]), and take microseconds while the
//! shipper is well. If the shipper is gone, its lock is free: the sealer of a standby takes over. If the
//! shipper is there but silent (stopped, swapped out), writers append to the WAL and lose nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::database::{Database, Gate, ReadIndex, Role, Shared, WaitError};
use crate::gate::GATE_TIMEOUT;
use crate::local::shared::{Call, Place, SharedPage, View, pid_namespace};
use crate::process::Control;
use crate::status::{Report, STATES, lag_known, lag_of};
use crate::units::Txid;
use crate::wait::Patience;
use crate::wal::WalIndex;
use crate::wal::evidence::Restart;

/// Values of the gate in a [`View`]: capture goes on, and the gate is shut.
const CAPTURING: u32 = 0;
pub(crate) const SHUT: u32 = 1;
/// How long to wait for the shipper before checking whether it is alive and still the shipper.
const LOOK_AROUND: Duration = Duration::from_millis(50);
/// The shipper gives a sign of life once a second. After this many milliseconds without one, a standby asks
/// for its lock.
const WELL_MS: u64 = 3000;
/// After this many milliseconds without a sign of life, a shipper is reported as silent.
const SILENT_MS: u64 = 5000;

impl Shared {
    /// Returns the page through which to reach the shipper, if another process ships.
    pub(crate) fn shippers_page(&self) -> Option<Arc<SharedPage>> {
        self.page.clone().filter(|_| self.role == Role::StandsBy)
    }

    fn view(&self) -> View {
        let report = self.known();
        let state = STATES.iter().position(|state| *state == report.state).unwrap_or(0);
        let change = self.captured_end.and_then(|end| end.change);
        View {
            term: self.term,
            pid: std::process::id(),
            namespace: pid_namespace(),
            gate: match self.gate {
                Gate::Capturing => CAPTURING,
                Gate::Shut => SHUT,
                Gate::Open => 2,
            },
            captured: self.captured.filter(|_| change.is_some()),
            captured_change: change.unwrap_or(0),
            captured_seq: self.captured_seq,
            acked_seq: self.acked_seq,
            released: self.released.0,
            answered: self.released.1,
            sealed: report.sealed.0,
            acked: report.acked.0,
            unacked_since: report.unacked_since.map_or(0, |since| since + 1),
            state: state as u64,
            pending_bytes: report.pending_bytes,
            spool_files: report.spool_files,
            error: report.last_error.unwrap_or_default(),
        }
    }
}

impl Database {
    /// True if another process ships the database.
    pub fn is_standing_by(&self) -> bool {
        self.with(|shared| shared.role == Role::StandsBy)
    }

    /// Publishes this process's view, if it ships and other processes have the database open.
    pub(crate) fn tell_others(&self) {
        self.with(|shared| {
            if shared.role == Role::Ships && shared.others {
                publish_view(shared);
            }
        });
    }

    /// Asks the shipper whether the WAL may be restarted at this position. `None` if this process has become
    /// the shipper itself.
    pub(crate) fn ask_shipper(&self, page: &SharedPage, index: WalIndex) -> Option<bool> {
        // The caller holds the write lock, so it does not wait for a shipper that does not hear.
        if !page.listens() || self.with(|shared| shared.silent == Some(page.last_alive())) {
            page.call(Call::CAPTURE);
            return Some(false);
        }
        let place: Place = (index.salts, index.max_frame);
        let wish = page.want(place);
        page.call(Call::RELEASE);
        let deadline = Instant::now() + GATE_TIMEOUT;
        loop {
            let mark = page.mark();
            match page.view() {
                Some(view) if view.term == 0 => {
                    self.send(Control::Capture(self.id));
                    return Some(false);
                }
                Some(view) if view.answered == wish => {
                    log::debug!(
                        "{}: wish {wish} for frame {}: {:?}, gate {}",
                        self.label(),
                        place.1,
                        view.released.map(|place| place.1),
                        view.gate
                    );
                    return Some(view.released == Some(place));
                }
                _ => {}
            }
            if self.with(|shared| shared.role != Role::StandsBy) {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.with(|shared| shared.silent = Some(page.last_alive()));
                return Some(false);
            }
            let asked = Instant::now();
            page.wait(mark, left.min(LOOK_AROUND));
            if asked.elapsed() >= LOOK_AROUND && self.is_gone(page) {
                self.send(Control::Capture(self.id));
                return Some(false);
            }
        }
    }

    /// Asks the shipper to let the WAL go, for a write of this process that found no room. The shipper does
    /// so if it keeps the WAL only because it cannot capture, or because it reads. Waits for that, since the
    /// next write would find no room either.
    pub(crate) fn ask_for_room(&self) {
        let Some(page) = self.with(|shared| shared.shippers_page()) else { return };
        if !page.listens() || self.with(|shared| shared.silent == Some(page.last_alive())) {
            return;
        }
        // A capture that only now begins to fail must be known to fail before the shipper makes room.
        page.call(Call::CAPTURE.and(Call::ROOM));
        let deadline = Instant::now() + GATE_TIMEOUT;
        loop {
            let mark = page.mark();
            let is_shut = page.view().is_some_and(|view| view.term != 0 && view.gate == SHUT);
            let left = deadline.saturating_duration_since(Instant::now());
            if !is_shut || left.is_zero() {
                return;
            }
            page.wait(mark, left.min(LOOK_AROUND));
        }
    }

    /// Waits until the shipper has seen the new generation begin, after a restart by this process.
    ///
    /// The caller holds the write lock, so the new generation stays empty meanwhile. Once the new generation
    /// is longer than the old one, no frame of the file shows where the old one ended.
    pub fn wait_followed(&self, restart: &Restart) {
        let Some(page) = self.with(|shared| shared.shippers_page()) else { return };
        let deadline = Instant::now() + GATE_TIMEOUT;
        loop {
            let mark = page.mark();
            if !page.view().is_some_and(|view| is_before(&view, restart)) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.with(|shared| shared.silent = Some(page.last_alive()));
            }
            let asked = Instant::now();
            page.wait(mark, left.min(LOOK_AROUND));
            if asked.elapsed() >= LOOK_AROUND && self.is_gone(&page) {
                return;
            }
        }
    }

    fn is_gone(&self, page: &SharedPage) -> bool {
        let now = self.process.upgrade().map_or(0, |process| process.now());
        is_gone(page.view().as_ref(), page.last_alive(), now)
    }

    /// True if the shipper gave a sign of life lately, so that asking for its lock is useless. Tells the
    /// shipper that this process stands by.
    pub(crate) fn shipper_is_well(&self, now: u64) -> bool {
        let Some(page) = self.with(|shared| shared.shippers_page()) else { return false };
        page.standing_by(now);
        !is_gone(page.view().as_ref(), page.last_alive(), now)
            && now.saturating_sub(page.last_alive()) <= WELL_MS
    }

    /// If the shipper is gone, waits until this process has become the shipper.
    pub(crate) fn takes_over(&self, page: &SharedPage) -> bool {
        if !self.is_gone(page) {
            return false;
        }
        self.send(Control::Capture(self.id));
        let deadline = Instant::now() + GATE_TIMEOUT;
        let mut shared = self.shared.lock();
        while shared.role != Role::Ships {
            let news;
            (shared, news) = self.shared.wait_until(shared, deadline);
            if !news {
                return false;
            }
        }
        true
    }

    /// Waits until the commits that a connection of this process sees are at the store. `None` if this
    /// process has become the shipper itself.
    pub(crate) fn wait_for_shipper(
        &self,
        page: &SharedPage,
        patience: Patience<'_>,
        hurry: bool,
        read: ReadIndex<'_>,
    ) -> Option<Result<Txid, WaitError>> {
        let Some(mut committed) = read() else { return Some(Err(WaitError::Unseen)) };
        page.call(if hurry { Call::HURRY.and(Call::CAPTURE) } else { Call::CAPTURE });
        // The term in which our commits were captured, and the number of the capture that took them in.
        let mut target: Option<(u64, u64)> = None;
        let mut cut_off: Option<(u64, u64)> = None;
        loop {
            let mark = page.mark();
            let view = page.view().filter(|view| view.term != 0);
            if let Some(view) = &view {
                if matches!(state_of(view), "fenced" | "error") {
                    return Some(Err(WaitError::Stopped(view.error.clone())));
                }
                if target.is_none_or(|(term, _)| term != view.term) {
                    let (now, capture) = (read(), (view.term, view.captured_seq));
                    if now.is_some_and(|now| is_ahead(view.captured, &now)) {
                        cut_off = Some(capture);
                    }
                    if let Some(now) = now.filter(|now| now.salts != committed.salts) {
                        // The WAL was restarted. A capture that covers the new generation covers our commits.
                        committed = now;
                    }
                    let counts = cut_off != Some(capture) && covers(view, &committed);
                    target = counts.then_some(capture);
                    if hurry && target.is_some_and(|(_, seq)| view.acked_seq < seq) {
                        // The files that our first call closed may end before the capture seen here.
                        page.call(Call::HURRY);
                    }
                }
                if target.is_some_and(|(_, seq)| view.acked_seq >= seq) {
                    return Some(Ok(Txid(view.acked)));
                }
            }
            if self.with(|shared| shared.role != Role::StandsBy) {
                return None;
            }
            let left = patience.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let why = match view {
                    Some(view) if !view.error.is_empty() => view.error,
                    Some(view) => format!("process {}, which ships it, has not done so", view.pid),
                    None => "no process ships it at the moment".to_string(),
                };
                return Some(Err(WaitError::TimedOut(why)));
            }
            page.wait(mark, left.min(LOOK_AROUND));
            if (patience.interrupted)() {
                return Some(Err(WaitError::Interrupted));
            }
            if self.is_gone(page) {
                self.send(Control::Capture(self.id));
            }
        }
    }
}

/// Publishes this process's view. The caller holds the lock of `shared`, so an older view never follows a
/// newer one.
pub(crate) fn publish_view(shared: &Shared) {
    if let Some(page) = &shared.page {
        page.publish(&shared.view());
    }
}

/// Puts the shipper's view over this process's own report.
pub(crate) fn overlay(report: &mut Report, page: &SharedPage, now: u64) {
    report.state = "standby";
    // Read before the view: the shipper clears this word once its view says the same.
    let unheard = page.peek_unreported();
    let view = page.view().filter(|view| view.term != 0);
    let unacked = view.as_ref().and_then(|view| view.unacked_since.checked_sub(1));
    let opening = view.as_ref().is_some_and(|view| state_of(view) == "opening");
    // Commits that the previous shipper left may be older than everything that this shipper knows.
    let oldest = [unacked, unheard].into_iter().flatten().min();
    let oldest = oldest.filter(|_| !opening);
    report.unacked_since = oldest;
    report.lag_ms = lag_of(oldest, now);
    let silent = silent_for(page.last_alive(), now);
    report.unheard =
        view.as_ref().is_none_or(|view| silent.is_some() || lag_known(state_of(view), 0).is_none());
    let Some(view) = view else {
        report.shipper = None;
        report.last_error = Some("no process ships this database at the moment".to_string());
        return;
    };
    report.shipper = Some(view.pid);
    report.sealed = Txid(view.sealed);
    report.acked = Txid(view.acked);
    report.pending_bytes = view.pending_bytes;
    report.spool_files = view.spool_files;
    report.last_error = match (silent, state_of(&view)) {
        (Some(silent), _) => Some(silence(view.pid, silent)),
        (None, "fenced" | "error") => Some(format!("process {}: {}", view.pid, view.error)),
        _ if view.error.is_empty() => None,
        _ => Some(view.error),
    };
}

/// Returns the milliseconds for which a shipper was silent; `None` if it gave a sign of life within
/// [`SILENT_MS`]. A sign of life far ahead of `now` is from an earlier boot. A sign a little ahead came after
/// the caller had read the clock.
pub(crate) fn silent_for(last_alive: u64, now: u64) -> Option<u64> {
    let silent = now.abs_diff(last_alive) > SILENT_MS;
    silent.then(|| now.checked_sub(last_alive).unwrap_or(now))
}

/// Returns the message that a shipper is silent.
pub(crate) fn silence(pid: u32, silent_ms: u64) -> String {
    let seconds = silent_ms / 1000;
    format!(
        "process {pid} ships this database, but was not heard of for {seconds} s: is it stopped?"
    )
}

/// True if the captured frames reach the end of this wal-index. A capture of another generation proves
/// nothing. At exactly the same frame, a recovery may have put another commit there, so `iChange` must be
/// equal too.
fn covers(view: &View, index: &WalIndex) -> bool {
    view.captured.is_some_and(|(of, up_to)| {
        let at = up_to == index.max_frame && view.captured_change == index.change;
        of == index.salts && (at || up_to > index.max_frame)
    })
}

/// True if the shipper has let the WAL go for this restart and has not looked at it since. Also true if it
/// captures and still stands at the end of the old generation.
fn is_before(view: &View, restart: &Restart) -> bool {
    let end = Some((restart.from.salts, restart.from.max_frame));
    view.term != 0 && (view.released == end || (view.gate == CAPTURING && view.captured == end))
}

/// True if a capture went beyond the end of a wal-index that was read after it. Recovery has cut those frames
/// off since, and the frames that took their place were not captured.
fn is_ahead(captured: Option<Place>, now: &WalIndex) -> bool {
    captured.is_some_and(|(of, up_to)| of == now.salts && up_to > now.max_frame)
}

pub(crate) fn state_of(view: &View) -> &'static str {
    STATES.get(view.state as usize).copied().unwrap_or("opening")
}

/// True if there is no shipper, or its process has ended. That is a reason to ask for the lock, and nothing
/// more. In another container the process id says nothing, so only silence counts.
pub(crate) fn is_gone(view: Option<&View>, last_alive: u64, now: u64) -> bool {
    let Some(view) = view.filter(|view| view.term != 0) else { return true };
    if view.namespace != pid_namespace() {
        return silent_for(last_alive, now).is_some();
    }
    let pid = i32::try_from(view.pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Salts;

    fn index(salts: Salts, max_frame: u32, change: u32) -> WalIndex {
        let page_size = crate::units::PageSize::SMALLEST;
        WalIndex { change, max_frame, page_count: 9, page_size, frame_checksum: (0, 0), salts }
    }

    #[test]
    fn a_capture_covers_a_place_of_its_own_generation_alone() {
        let (ours, next) = (Salts(1, 7), Salts(2, 9));
        let captured = |captured| View { captured, captured_change: 3, ..View::default() };
        assert!(covers(&captured(Some((ours, 5))), &index(ours, 5, 3)));
        assert!(!covers(&captured(Some((ours, 5))), &index(ours, 5, 1)), "recovery was in between");
        assert!(covers(&captured(Some((ours, 6))), &index(ours, 5, 2)));
        assert!(!covers(&captured(Some((ours, 4))), &index(ours, 5, 3)));
        assert!(!covers(&captured(Some((next, 9))), &index(ours, 5, 3)), "of another generation");
        assert!(!covers(&captured(None), &index(ours, 5, 3)));
        assert!(covers(&captured(Some((ours, 0))), &index(ours, 0, 3)));
        assert!(!covers(&captured(Some((next, 0))), &index(ours, 0, 3)), "empty ones have one too");
        assert!(!covers(&captured(None), &index(ours, 0, 3)), "it may follow what is not captured");
    }

    #[test]
    fn a_capture_of_frames_that_were_cut_off_is_ahead_of_the_wal() {
        let (ours, next) = (Salts(1, 7), Salts(2, 9));
        assert!(is_ahead(Some((ours, 100)), &index(ours, 61, 1)));
        assert!(!is_ahead(Some((ours, 61)), &index(ours, 61, 1)));
        assert!(!is_ahead(Some((ours, 60)), &index(ours, 61, 1)));
        assert!(!is_ahead(Some((ours, 100)), &index(next, 1, 1)), "it was begun anew");
        assert!(!is_ahead(None, &index(ours, 1, 1)));
    }

    #[test]
    fn a_shipper_is_before_a_restart_until_it_has_looked_at_the_new_generation() {
        let (old, new) = (Salts(1, 7), Salts(2, 9));
        let restart = Restart { from: index(old, 5, 3), to: new, guard: None };
        let is_before = |captured, released, gate| {
            is_before(&View { term: 1, captured, released, gate, ..View::default() }, &restart)
        };
        assert!(is_before(Some((old, 5)), Some((old, 5)), CAPTURING), "it has let the WAL go");
        assert!(is_before(None, Some((old, 5)), 2), "with nothing captured too");
        assert!(is_before(Some((old, 5)), None, CAPTURING), "it has not looked yet");
        assert!(!is_before(Some((new, 0)), None, CAPTURING));
        assert!(!is_before(Some((old, 5)), None, SHUT), "it cannot capture for now");
        assert!(!is_before(None, None, CAPTURING));
        assert!(!super::is_before(&View::default(), &restart), "nobody ships");
    }

    #[test]
    fn a_shipper_is_silent_after_its_last_word_or_since_the_machine_was_started() {
        assert_eq!(silent_for(1000, 1000), None);
        assert_eq!(silent_for(1000, 1000 + SILENT_MS), None);
        assert_eq!(silent_for(1000, 1001 + SILENT_MS), Some(SILENT_MS + 1));
        assert_eq!(silent_for(1003, 1000), None, "a word that came after the clock was read");
        assert_eq!(silent_for(90_000_000, 7000), Some(7000), "a word of an earlier boot");
    }

    #[test]
    fn a_shipper_that_is_not_heard_of_vouches_for_no_lag() {
        let dir = tempfile::tempdir().unwrap();
        let page = SharedPage::open(dir.path()).unwrap();
        let report = |now| {
            let mut report = Report::new(std::path::Path::new("/a.db"), "s3://b/p");
            overlay(&mut report, &page, now);
            report
        };
        assert_eq!(report(1).lag_known(), None, "nobody ships it");
        let term = page.begin_term(1000);
        assert_eq!(report(1000).lag_known(), None, "it is just being opened");
        let streaming = STATES.iter().position(|state| *state == "streaming").unwrap_or(0) as u64;
        page.publish(&View { term, pid: 7, state: streaming, ..View::default() });
        assert_eq!(report(1000).lag_known(), Some(0));
        assert_eq!(report(1001 + SILENT_MS).lag_known(), None, "it is stopped");
        page.unreported(2000);
        assert_eq!(report(2000).lag_known(), Some(1), "0 would say that nothing waits");
        assert_eq!(report(1001 + SILENT_MS).lag_known(), Some(SILENT_MS - 999));
    }
}
