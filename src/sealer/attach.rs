//! Handles attaches and detaches of the WAL: takes the shipper's place, opens the local state, and decides
//! where the log continues.

use std::fs::File;

use super::age;
use super::capture::Cursor;
use super::failing::Failing;
use super::handover::Handover;
use super::open::{self, Found, Local, Opening, Resume};
use super::replica::{ClosedFile, LocalJob, Replica};
use crate::database::{Attach, Gate, Transition, WalEnd};
use crate::engine::{Closed, Engine, Event, Need, Opened};
use crate::finding::{Answer, Finding};
use crate::local;
use crate::local::spool::Entry;
use crate::local::state::{Base, Clean, Position};
use crate::ltx::Header;
use crate::shipper;
use crate::units::{Level, Timestamp, Txid, WriterId};
use crate::wal::evidence::Proven;

/// Interval at which a standby asks for the shipper's place, in milliseconds.
pub(super) const STANDBY_RETRY_MS: u64 = 500;

impl Replica {
    /// Processes attaches and detaches of the WAL in order.
    pub(super) fn follow(&mut self) {
        while self.dead.is_none() {
            let next = self.database.with(|shared| shared.transitions.front().copied());
            let Some(next) = next else { return };
            match next {
                Transition::Attached(attach) => {
                    if self.local.is_none() && !self.open_local() {
                        // Opening is tried again later. Nothing is captured until then.
                        self.late = true;
                        return self.skip_what_is_over();
                    }
                    let attach = self.brought_up_to_date(attach);
                    self.attach(&attach);
                }
                Transition::Detached(clean) => self.detach(clean),
            }
            self.database.with(|shared| shared.transitions.pop_front());
        }
    }

    /// Replaces an old `Attach` by the WAL as it is now. A late look says nothing about the database file
    /// without a WAL, so the fingerprint is left out.
    pub(super) fn brought_up_to_date(&mut self, attach: Attach) -> Attach {
        if !std::mem::replace(&mut self.late, false) {
            return attach;
        }
        self.refresh_published();
        let index = self.database.border().and_then(|border| border.wal_index());
        Attach { index, ..Attach::default() }
    }

    /// On standby, drops pairs of attach and detach that are over, since only the shipper handles them.
    pub(super) fn skip_what_is_over(&mut self) {
        self.database.with(|shared| {
            while shared.transitions.len() >= 2 {
                shared.transitions.drain(..2);
            }
        });
    }

    pub(super) fn attach(&mut self, attach: &Attach) {
        let astray = std::mem::replace(&mut self.astray, false);
        self.database.with(|shared| {
            shared.diverged = None;
            if astray {
                shared.report.state = "opening";
                shared.report.last_error = None;
            }
        });
        self.epoch += 1;
        self.attached = true;
        self.clear_frames();
        self.wal = File::open(local::wal_path(self.database.path())).ok();
        self.hold(true);
        self.resume(attach);
        self.set_gate();
    }

    /// Opens the local state; `false` if another process has it, or if it cannot be read now.
    pub(super) fn open_local(&mut self) -> bool {
        let now = self.process.now();
        if let Some(limit) = crate::descriptors::scarce() {
            self.retry_at = Some(now + STANDBY_RETRY_MS);
            self.note_open_failure(&format!(
                "too few descriptors are left of the {limit} that the process may have open, and the \
                 application needs them: raise that limit (ulimit -n, LimitNOFILE)"
            ));
            return false;
        }
        let found = match self.take_place() {
            None => return false,
            Some(Ok(Opening::Ours(found))) => *found,
            Some(Ok(Opening::HeldBy(pid))) => {
                self.stand_by(pid);
                return false;
            }
            Some(Err(error)) => {
                self.retry_at = Some(now + STANDBY_RETRY_MS);
                self.note_open_failure(&error.to_string());
                return false;
            }
        };
        self.retry_at = None;
        self.holder = None;
        self.take_over(found);
        true
    }

    /// Takes the shipper's place, if it is free, and reads the local state. `None` without a store.
    pub(super) fn take_place(&self) -> Option<Result<Opening, local::Error>> {
        let replica = crate::store::url::identity(self.store.as_deref()?);
        let cap = self.database.settings().history.copies_cap;
        Some(open::open(self.database.path(), self.database.dir(), &replica, cap))
    }

    /// Starts again as for a database without local state, because the folder was deleted or moved while we had
    /// it. The contents are lost, and a process cannot hold two places at once.
    pub(super) fn state_is_gone(&mut self) {
        let waits_since = self.engine.status().unacked_since;
        self.forget_local();
        self.forget_page();
        self.open_again();
        if let Some(at) = waits_since.filter(|_| self.local.is_some()) {
            // The image brings these commits to the replica.
            self.engine.handle(self.process.now(), Event::Committed { at });
        }
        self.note(Finding::StateDeleted);
    }

    /// Forgets the local state and everything derived from it.
    pub(super) fn forget_local(&mut self) {
        self.job = LocalJob::None;
        self.local = None;
        self.open.clear();
        self.closed.clear();
        self.point = None;
        self.piece = 0;
        self.cursor = Cursor::Unknown;
        self.clear_frames();
        self.epoch += 1;
    }

    /// Opens the local state for a WAL whose attach was processed before.
    pub(super) fn open_again(&mut self) {
        if self.open_local() && self.attached {
            let index = self.database.border().and_then(|border| border.wal_index());
            self.attach(&Attach { index, ..Attach::default() });
        }
    }

    pub(super) fn stand_by(&mut self, pid: Option<u32>) {
        self.retry_at = Some(self.process.now() + STANDBY_RETRY_MS);
        if self.holder != pid || pid.is_none() {
            let who = pid.map_or("another process".to_string(), |pid| format!("process {pid}"));
            let path = self.database.label();
            log::info!("{path} is shipped by {who}; this process stands by");
        }
        self.holder = pid;
        self.handover = Handover::Kept;
        self.stands_by();
        self.hold(false);
        self.database.notify();
    }

    pub(super) fn note_open_failure(&mut self, why: &str) {
        let now = self.process.now();
        let known = self.database.with(|shared| {
            // Nothing can be captured, so the application must not wait for capture.
            shared.set_gate(Gate::Open);
            shared.report.state = "waiting";
            // It is unknown which commits the store lacks.
            shared.report.unacked_since.get_or_insert(now);
            shared.report.last_error.replace(why.to_string()).as_deref() == Some(why)
        });
        self.hold_wal();
        if !known {
            log::error!("{}: {why}; trying again", self.database.label());
        }
        self.database.notify();
    }

    pub(super) fn take_over(&mut self, found: Found) {
        let Found { mut local, closed, open, point, position, piece, misfit } = found;
        let database = self.database.clone();
        local.is_closed = Box::new(move || database.with(|shared| shared.connections == 0));
        let due = local.due();
        for found in misfit.into_iter().chain(due) {
            self.note(found);
        }
        // A page table that was disproved stays useless, whatever its checksum is now.
        let point = point.filter(|_| due != Some(Finding::TableDisproved));
        let writer = WriterId(local.state.writer);
        self.engine = Engine::new(Self::options(&self.database), writer);
        let need = match (point, local.state.image) {
            (Some(_), _) if due.is_some_and(|due| due.answer() == Answer::Compare) => Need::Resync,
            (Some(_), _) => Need::Nothing,
            (None, Some(image)) => Need::Confirm {
                level: Level::new(image.level).unwrap_or(Level::SNAPSHOT),
                min: Txid(image.min_txid),
                txid: image.base.txid(),
            },
            (None, None) => Need::Image,
        };
        let (claimed, base) = (local.state.claimed, local.state.base);
        let sure = local.state.is_sure(crate::clock::boot());
        let acked = base.map_or(Txid::ZERO, |base| base.txid());
        let stored = base.map(|base| Timestamp(base.timestamp));
        let clocks = self.clocks();
        let since = |entry: &Entry| {
            let newest = header_of(&local, entry)?.timestamp;
            let oldest = age::oldest_in(&local.spool.path(entry), newest);
            Some(clocks.since_oldest(oldest, stored))
        };
        let committed =
            |entry: &Entry| Some(Closed::new(entry.txid?, since(entry).unwrap_or(clocks.now)));
        let committed: Vec<_> = closed.iter().filter_map(committed).collect();
        let captured_since = open.first().and_then(since);
        self.closed = closed
            .into_iter()
            .filter_map(|entry| {
                let base = base_of_closed(&local, &entry)?;
                // The file holds no commit of this process, so its upload ends no wait.
                Some(ClosedFile { entry, base, seq: 0 })
            })
            .collect();
        self.open = open;
        self.point = point;
        self.piece = piece;
        self.answered = None;
        self.claiming = false;
        self.fence_told = false;
        // Earlier failures belong to another shipper, or to an earlier tenure of this process.
        self.failing = Failing::default();
        self.cursor = position.map_or(Cursor::Unknown, |at| Cursor::At(Proven::position(at)));
        self.clear_frames();
        self.tenure += 1;
        self.handover = Handover::Kept;
        self.local = Some(local);
        self.resume_history();
        self.resume_audit();
        self.hear_the_last();
        let opened = Opened {
            claimed,
            acked,
            closed: committed,
            uncommitted_since_close: !self.open.is_empty(),
            since: captured_since.unwrap_or_else(|| self.unknown_since()),
            need,
            sure,
        };
        self.ships();
        self.hold(true);
        self.engine.handle(clocks.now, Event::Opened(opened));
    }

    /// Decides how the log continues with the WAL that was found.
    pub(super) fn resume(&mut self, attach: &Attach) {
        let (now, since) = (self.process.now(), self.unknown_since());
        let (Some(local), Some(point)) = (&self.local, self.point) else {
            self.cursor = Cursor::Unknown;
            return;
        };
        if matches!(self.job, LocalJob::Resync(_)) {
            // Capture would now take older pages than the comparison has read already.
            self.lose_place();
            return self.engine.handle(now, Event::Diverged);
        }
        let position = match self.cursor {
            Cursor::At(end) => Some(end.at),
            Cursor::Unknown => None,
        };
        let wal = self.wal.as_ref();
        match open::resume(position, self.piece, &local.state, point.page_size, attach, wal) {
            Resume::At(end) => {
                self.cursor = Cursor::At(end);
                let path = self.database.label();
                log::debug!("{path}: the log goes on after {}", point.txid);
            }
            Resume::Compare(found) => {
                self.note(found);
                self.cursor = Cursor::Unknown;
                self.clear_frames();
                self.engine.handle(now, Event::Committed { at: since });
                self.engine.handle(now, Event::Diverged);
            }
            Resume::OtherPageSize => {
                self.engine.handle(now, Event::Committed { at: since });
                self.note(Finding::PageSizeChanged);
                self.need_image();
            }
        }
        if attach.index.is_some_and(|index| self.is_behind(&index)) {
            self.engine.handle(now, Event::Committed { at: since });
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    pub(super) fn need_image(&mut self) {
        self.cursor = Cursor::Unknown;
        self.point = None;
        self.clear_frames();
        self.engine.handle(self.process.now(), Event::ImageNeeded);
        self.set_gate();
    }

    pub(super) fn detach(&mut self, end: Option<WalEnd>) {
        // Otherwise the database file would count as known, although it does not match.
        if let Some(found) = self.database.with(|shared| shared.diverged.take()) {
            self.diverge(found);
        }
        self.follow_restart();
        let captured = match self.cursor {
            Cursor::At(captured) if self.attached && self.frames.is_empty() => Some(captured),
            _ => None,
        };
        // The database file is known only if the WAL was captured up to its last frame.
        let clean = end.filter(|end| captured.is_some_and(|captured| captured.is_at(&end.index)));
        if let (Some(end), None) = (end, clean) {
            let path = self.database.label();
            log::debug!("{path}: the WAL ended at {:?}, captured is {captured:?}", end.index);
        }
        if clean.is_some() {
            // No other connection had the database open, so no other process has committed since.
            self.forget_word();
        }
        self.epoch += 1;
        self.attached = false;
        // A walk in progress continues: it has its own connection and its own descriptor of the WAL.
        self.wal = None;
        self.clear_frames();
        let piece = self.piece;
        if let Some(local) = &mut self.local {
            local.state.clean = clean.map(|end| Clean { fingerprint: end.fingerprint, piece });
            if let Err(error) = local.save(false) {
                log::error!("{}: {error}", self.database.label());
            }
        }
        self.wake();
    }
}

fn header_of(local: &Local, entry: &Entry) -> Option<Header> {
    let identity = shipper::identity(&local.spool.path(entry)).ok()?;
    Header::decode(&identity.head).ok()
}

/// Returns the base that a closed file in the spool makes, from the file's own header.
fn base_of_closed(local: &Local, entry: &Entry) -> Option<Base> {
    let header = header_of(local, entry)?;
    Some(Base {
        txid: entry.txid?.0,
        piece: entry.pieces.1,
        page_size: header.page_size.get(),
        commit: header.commit,
        checksum: header.tag?.post_apply.get(),
        timestamp: header.timestamp.0,
        position: entry.position.map(Position::from),
    })
}
