//! Takes committed frames out of the WAL, for the gate and ahead of it.

use std::fs::File;

use super::WATCH_INTERVAL_MS;
use super::capture::{self, Cursor, Stop, Stretch, finding_of};
use super::open::Local;
use super::replica::{LocalJob, Purpose, Replica, earlier, maker};
use crate::database::Gate;
use crate::engine::{Event, Failure};
use crate::finding::Finding;
use crate::local;
use crate::local::spool::Entry;
use crate::units::{PageSize, Salts, Txid, WalPosition};
use crate::wal::evidence::{self, Account, Gap, Guard, Proven, Restart, Sight};
use crate::wal::{FrameHeader, FrameSet, NO_WAL, Tail, WalIndex, checksum_at, reaches};

/// Number of open pieces at which they are merged, so that closing never opens too many files.
const OPEN_PIECES_MAX: usize = 64;
/// Number of uncaptured frames from which their headers are read ahead.
const READ_AHEAD: u32 = 128;
/// Most looks at index and file before they count as two that do not match.
const LOOKS_MAX: usize = 10;
/// Milliseconds until index and file are looked at once more, and milliseconds for which this is repeated.
const UNCLEAR_AGAIN_MS: u64 = 10;
const UNCLEAR_MAX_MS: u64 = 2000;

/// Index and file that do not match for now.
#[derive(Clone, Copy)]
pub(super) struct Unclear {
    since: u64,
    /// Time of the next look; `None` once that time has passed.
    pub again_at: Option<u64>,
}

/// A look at the wal-index.
#[derive(Clone, Copy, Debug)]
struct Look {
    index: WalIndex,
    /// Guard held from before the look until after it.
    guard: Option<Guard>,
    /// Value of `commit_seq` at this look.
    seq: u64,
    /// Time of the oldest of these commits that the engine was not told of.
    since: Option<u64>,
    /// True if the wal-index cannot be read now; `index` is then the last published one.
    is_old: bool,
}

impl Replica {
    /// Looks for commits of processes that do not report them.
    pub(super) fn watch(&mut self, now: u64) {
        if !self.watches() || self.watch_at > now {
            return;
        }
        self.watch_at = now + WATCH_INTERVAL_MS;
        if !self.attached {
            return self.look_for_others(now);
        }
        if !self.is_in_place() {
            return;
        }
        self.look_for_others(now);
        if !self.has_let_go() {
            self.hold_wal();
        }
        self.refresh_published();
        let shut = self.database.with(|shared| shared.is_shut());
        let idle = matches!(self.job, LocalJob::None) && self.cursor != Cursor::Unknown;
        if shut && idle && self.engine.may_try_local(now) {
            self.capture_now();
        }
    }

    /// True if database and local state are still in the places where they were opened.
    fn is_in_place(&mut self) -> bool {
        if self.is_astray() {
            return false;
        }
        let state = self.local.as_ref().is_none_or(Local::is_in_place);
        if !state {
            self.state_is_gone();
        }
        state
    }

    /// True if another file has taken the place of the database. The WAL may then belong to that file. Frames
    /// that were read before a `false` answer are of the right database.
    pub(super) fn is_astray(&mut self) -> bool {
        let astray = self.database.border().is_some_and(|border| !border.is_in_place());
        if astray && !std::mem::replace(&mut self.astray, true) {
            self.note(Finding::FileReplaced);
        }
        astray
    }

    /// Keeps other processes from restarting the WAL, unless the gate is open. Then nothing is captured, and a
    /// WAL that cannot be restarted would only slow writers down.
    pub(super) fn hold_wal(&self) {
        self.hold(self.database.with(|shared| shared.gate != Gate::Open));
    }

    /// Keeps other processes from restarting the WAL, or allows it.
    pub(super) fn hold(&self, hold: bool) {
        if let Some(border) = self.database.border() {
            border.hold(hold);
        }
    }

    /// Reads the headers of committed frames in advance, so that only the rest is left to do at the gate.
    pub(super) fn read_ahead(&mut self) {
        let known = self.cursor != Cursor::Unknown && matches!(self.job, LocalJob::None);
        let published = self.database.with(|shared| shared.published);
        let behind = match (published, self.cursor) {
            (Some(index), Cursor::At(end)) if index.salts == end.at.salts => {
                index.max_frame.saturating_sub(end.at.frame.max(self.frames.last))
            }
            _ => 0,
        };
        if known
            && behind >= READ_AHEAD
            && let Err(stop) = self.take_frames(Purpose::Gate)
        {
            self.stopped(stop);
        }
    }

    /// Publishes the current wal-index. It is read under the lock under which the application's threads
    /// publish, so it is never older than a published one.
    pub(super) fn refresh_published(&self) {
        let Some(border) = self.database.border() else { return };
        let now = self.process.now();
        self.database.with(|shared| {
            let index = border.wal_index();
            if index.is_some() && shared.published != index {
                shared.published = index;
                shared.commit_seq += 1;
                shared.unreported_since.get_or_insert(now);
            }
        });
    }

    /// Forgets frames that are in no piece. A later step takes them in another way.
    pub(super) fn clear_frames(&mut self) {
        self.frames = FrameSet::default();
        self.frames_end = None;
        self.frames_seq = 0;
        self.judged = None;
        self.unclear = None;
    }

    /// Processes attaches and detaches of the WAL, and captures its frames.
    pub(super) fn look_now(&mut self) {
        self.wake();
        self.follow();
        self.capture_now();
    }

    /// As [`Replica::look_now`], for a caller that waits at the gate or for the store.
    pub(super) fn asked(&mut self) {
        self.look_now();
        self.engine.handle(self.process.now(), Event::Asked);
    }

    /// Captures the published frames into a piece, because a caller waits at the gate.
    pub(super) fn capture_now(&mut self) {
        if self.local.is_none() || !self.attached || self.dead.is_some() {
            return;
        }
        self.take_in(self.process.now());
        if let Err(stop) = self.capture(Purpose::Gate) {
            self.stopped(stop);
        }
        self.database.notify();
    }

    /// Writes the newest published frames as a piece, if there are any.
    pub(super) fn capture(&mut self, purpose: Purpose) -> Result<(), Stop> {
        let seq = self.take_frames(purpose)?;
        if !self.frames.is_empty() {
            let entry = self.next_entry(None);
            self.frames_seq = self.frames_seq.max(seq);
            self.write_frames(&entry)?;
            if self.open.len() >= OPEN_PIECES_MAX {
                self.join_open()?;
            }
            if purpose == Purpose::Gate {
                self.check_cap();
            }
        }
        // Frames that an earlier look took count with the value of that look, if no look was possible now.
        self.set_captured(seq.max(self.captured_seq));
        Ok(())
    }

    /// Reads the headers of frames committed since the last call. Returns the value of `commit_seq` at their
    /// end.
    pub(super) fn take_frames(&mut self, purpose: Purpose) -> Result<u64, Stop> {
        self.hear();
        self.follow_restart();
        let mut told = None;
        for _ in 0..LOOKS_MAX {
            let Some(look) = self.look_at_index() else { return Ok(self.captured_seq) };
            told = earlier(told, look.since);
            self.tell_engine(look.since, purpose);
            let Cursor::At(cursor) = self.cursor else { return Ok(self.captured_seq) };
            if !self.attached {
                return taken_before_the_end(cursor, &look);
            }
            if self.is_judged(&look) {
                return Ok(look.seq);
            }
            if look.is_old && !self.is_end_there(&look.index) {
                // A writer died while it wrote the wal-index. The recovery that follows may cut off published
                // frames.
                break;
            }
            if self.take_seen(cursor, &look)? {
                self.unclear = None;
                self.frames_seq = look.seq;
                return Ok(look.seq);
            }
            // The file is of another moment than the index, or is another file by now.
            self.wal = None;
        }
        self.look_again_soon(told)
    }

    /// True if the WAL still has the last frame of this index in its place.
    fn is_end_there(&self, index: &WalIndex) -> bool {
        let wal = File::open(local::wal_path(self.database.path())).ok();
        let last =
            wal.and_then(|wal| FrameHeader::read(&wal, index.page_size, index.max_frame).ok());
        index.max_frame == 0 || last.is_some_and(|last| last.is_end_of(index))
    }

    /// Schedules another look, because the wal-index cannot be read, or file and index do not match. This
    /// happens in the middle of a writer's change. Gives up after `UNCLEAR_MAX_MS`.
    fn look_again_soon(&mut self, told: Option<u64>) -> Result<u64, Stop> {
        let now = self.process.now();
        let since = self.unclear.map_or(now, |unclear| unclear.since);
        if now.saturating_sub(since) >= UNCLEAR_MAX_MS {
            self.unclear = None;
            return Err(Stop::Diverged(Finding::WalOfAnother));
        }
        self.unclear = Some(Unclear { since, again_at: Some(now + UNCLEAR_AGAIN_MS) });
        // Until then the commits wait as if the engine had not been told of any, including earlier ones.
        self.database.with(|shared| {
            let told = earlier(told, shared.report.unacked_since).or(Some(now));
            shared.unreported_since = earlier(shared.unreported_since, told);
        });
        Ok(self.captured_seq)
    }

    /// Returns the current wal-index, or the last published one, with the value of `commit_seq` up to it.
    /// `None` if no index is known, or if the index may belong to a WAL whose attach was not processed yet.
    fn look_at_index(&self) -> Option<Look> {
        let border = self.database.border();
        let known = self.cursor != Cursor::Unknown;
        let now = self.process.now();
        self.database.with(|shared| {
            if !shared.transitions.is_empty() {
                return None;
            }
            let guard = border.and_then(|border| border.guard());
            let seen = border.and_then(|border| border.wal_index());
            let guard = guard.filter(|_| border.and_then(|border| border.guard()) == guard);
            if seen.is_some() && shared.published != seen {
                shared.published = seen;
                shared.commit_seq += 1;
                shared.unreported_since.get_or_insert(now);
            }
            let since = if known { shared.unreported_since.take() } else { None };
            shared.report.unacked_since = earlier(shared.report.unacked_since, since);
            let (seq, is_old) = (shared.commit_seq, seen.is_none());
            let look = |index| Look { index, guard, seq, since, is_old };
            shared.published.map(look)
        })
    }

    /// True if everything up to this look was accounted for before. The guard of this look then holds from here
    /// on.
    ///
    /// An equal index is not enough: recovery sets `iChange` to 0, and later commits may bring back the same
    /// values with other frames.
    fn is_judged(&mut self, look: &Look) -> bool {
        let end = match (&mut self.frames_end, &mut self.cursor) {
            (Some(end), _) if !self.frames.is_empty() => end,
            (_, Cursor::At(end)) => end,
            _ => return false,
        };
        let is_there = |wal: &File| {
            let size = look.index.page_size;
            checksum_at(wal, size, end.at.frame).is_ok_and(|now| now == end.at.checksum)
        };
        let known = self.judged == Some(look.index)
            && end.change == Some(look.index.change)
            && (end.at.frame == 0 || self.wal.as_ref().is_some_and(is_there));
        if known {
            end.guard = look.guard;
        }
        known
    }

    fn tell_engine(&mut self, since: Option<u64>, purpose: Purpose) {
        if let Some(at) = since {
            let event = match purpose {
                Purpose::Gate => Event::Committed { at },
                Purpose::Close => Event::TakenIn { at },
            };
            let now = self.process.now();
            self.engine.handle(now, event);
            self.audit.written(now);
        }
    }

    /// Moves the cursor to the next generation, if this process saw the restart right behind the cursor.
    pub(super) fn follow_restart(&mut self) {
        let Cursor::At(cursor) = self.cursor else { return };
        let restart = self.database.with(|shared| shared.restart);
        if self.frames.is_empty()
            && let Some(begun) = restart.and_then(|restart| cursor.restarted(&restart))
        {
            self.cursor = Cursor::At(begun);
        }
    }

    /// True if this process is making a restart, or has noted one right behind the cursor.
    fn is_told_of_restart(&self, cursor: &Proven) -> bool {
        let is_next = |restart: &Restart| cursor.restarted(restart).is_some();
        self.database.with(|shared| shared.restarts || shared.restart.as_ref().is_some_and(is_next))
    }

    /// Returns the position of capture, including frames that are taken but not written yet.
    fn taken_end(&self, cursor: Proven) -> Proven {
        self.frames_end.filter(|_| !self.frames.is_empty()).unwrap_or(cursor)
    }

    /// Takes the frames committed since, as far as the evidence proves them. `false` if index and file must be
    /// looked at again.
    fn take_seen(&mut self, cursor: Proven, look: &Look) -> Result<bool, Stop> {
        let index = &look.index;
        if self.wal.is_none() {
            let path = local::wal_path(self.database.path());
            self.wal = match File::open(&path) {
                Ok(wal) => Some(wal),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => {
                    let message = format!("cannot open {}: {error}", path.display());
                    return Err(Stop::Failed(message));
                }
            };
        }
        let Some(point) = self.point else { return Err(Stop::Failed("it is not open".into())) };
        if index.max_frame > 0 && index.page_size != point.page_size {
            self.note(Finding::PageSizeChanged);
            self.need_image();
            return Ok(false);
        }
        let page_size = point.page_size;
        let mut end = self.taken_end(cursor);
        let mut account = self.account(&end, look, page_size)?;
        if account != Account::Continues && !self.frames.is_empty() {
            // Frames that are taken but not written may be overwritten, so they are looked for once more.
            self.clear_frames();
            end = cursor;
            account = self.account(&end, look, page_size)?;
        }
        let first = match account {
            Account::Continues => end.at.frame.saturating_add(1),
            Account::Begun { tail, change } => {
                self.take_tail(cursor, tail)?;
                end = Proven::beginning(index.salts, change, look.guard);
                self.cursor = Cursor::At(end);
                1
            }
            Account::Overtaken => return Ok(false),
            // The thread that makes the restart has seen both sides of it. That thread will report the restart
            // in a moment, or has reported it since the last look.
            Account::NotProven(Gap::Restarted) if self.is_told_of_restart(&cursor) => {
                return Ok(false);
            }
            Account::NotProven(gap) => {
                log::debug!("{}: {gap:?} from {cursor:?} to {look:?}", self.database.label());
                return Err(Stop::Diverged(finding_of(gap)));
            }
        };
        if index.max_frame >= first {
            self.add_frames(index, page_size, first)?;
        }
        let at = if self.frames.is_empty() { end.at } else { self.frames_position(index.salts) };
        let end = Proven::end_of(index, at, look.guard);
        if self.frames.is_empty() {
            self.cursor = Cursor::At(end);
        } else {
            self.frames_salts = index.salts;
            self.frames_end = Some(end);
        }
        self.judged = Some(*index);
        Ok(true)
    }

    fn frames_position(&self, salts: Salts) -> WalPosition {
        WalPosition { salts, frame: self.frames.last, checksum: self.frames.checksum }
    }

    fn account(&self, end: &Proven, look: &Look, page_size: PageSize) -> Result<Account, Stop> {
        let Look { index, guard, .. } = look;
        let account = match &self.wal {
            Some(wal) => evidence::account(end, &Sight { index, wal, page_size, guard: *guard }),
            None => evidence::account(end, &Sight { index, wal: NO_WAL, page_size, guard: *guard }),
        };
        account.map_err(|error| Stop::Failed(format!("cannot read the WAL: {error}")))
    }

    /// Adds the frames from `first` up to the index's last.
    fn add_frames(
        &mut self,
        index: &WalIndex,
        page_size: PageSize,
        first: u32,
    ) -> Result<(), Stop> {
        let Some(wal) = &self.wal else {
            return Err(Stop::Failed("the WAL is not there".into()));
        };
        let border = self.database.border();
        let pages = |first, last| border.and_then(|border| border.frame_pages(index, first, last));
        if let Some(local) = &self.local {
            self.frames.spill_to(&local.spool.scratch());
        }
        let frames = (first, index.max_frame);
        let mut added = self.frames.extend_known(wal, page_size, frames, pages);
        if added.as_ref().is_err_and(|error| !capture::is_for_want_of_room(error.kind())) {
            // Without shared memory the frames' headers in the file are the only source.
            added = self.frames.extend(wal, page_size, first, index.max_frame);
        }
        let why = |error: &std::io::Error| format!("cannot read the WAL: {error}");
        added.map_err(|error| capture::stop(error.kind(), why(&error)))
    }

    /// Writes the frames that the old generation has behind the cursor as a piece.
    fn take_tail(&mut self, cursor: Proven, tail: Tail) -> Result<(), Stop> {
        log::debug!(
            "{}: restarted behind frame {}; left is up to frame {}",
            self.database.label(),
            cursor.at.frame,
            tail.frames.last
        );
        self.frames = tail.frames;
        if self.frames.is_empty() {
            return Ok(());
        }
        self.frames_salts = cursor.at.salts;
        self.frames_end = Some(Proven::position(self.frames_position(cursor.at.salts)));
        let entry = self.next_entry(None);
        self.write_frames(&entry)
    }

    pub(super) fn write_frames(&mut self, entry: &Entry) -> Result<(), Stop> {
        let (Some(local), Some(point), Some(wal)) = (&mut self.local, self.point, &self.wal) else {
            return Err(Stop::Failed("the database is not open".into()));
        };
        let maker = maker(&self.engine, &point);
        let salts = self.frames_salts;
        let position =
            WalPosition { salts, frame: self.frames.last, checksum: self.frames.checksum };
        let end = self.frames_end.filter(|end| end.at == position);
        let entry = Entry { position: Some(position), ..entry.clone() };
        // Recovery may have put other frames in these places. SQLite before 3.50.2 wrote some frames without a
        // checksum, and then only `iChange` tells.
        let taken =
            self.judged.filter(|taken| (taken.salts, taken.max_frame) == (salts, position.frame));
        let border = self.database.border();
        let now = || border.and_then(|border| border.wal_index());
        let in_place = || match (taken, now()) {
            (Some(taken), Some(now)) => now.salts != taken.salts || now.follows(&taken),
            // A writer died while it wrote the header of the wal-index. Processes that recovered may have died
            // likewise.
            (Some(_), None) => reaches(wal, point.page_size, position),
            (None, _) => true,
        };
        let stretch = Stretch { wal, frames: &self.frames, salts, in_place: &in_place };
        let (spool, table) = (&local.spool, &mut local.table);
        let written = capture::write_frames(spool, table, &stretch, &maker, entry)?;
        self.piece = written.pieces.1;
        self.cursor = Cursor::At(end.unwrap_or(Proven::position(position)));
        self.captured_seq = self.captured_seq.max(self.frames_seq);
        self.clear_frames();
        match written.txid {
            None => self.open.push(written),
            Some(_) => self.add_closed(written, maker.timestamp),
        }
        Ok(())
    }

    pub(super) fn next_entry(&self, txid: Option<Txid>) -> Entry {
        let position = match self.cursor {
            Cursor::At(end) if end.at.frame > 0 => Some(end.at),
            _ => None,
        };
        Entry { txid, pieces: (self.piece + 1, self.piece + 1), position, len: 0 }
    }

    /// Publishes the position of capture, which the gate reads.
    pub(super) fn set_captured(&mut self, seq: u64) {
        let complete = match self.cursor {
            Cursor::At(end) if self.frames.is_empty() => Some(end),
            _ => None,
        };
        self.captured_seq = seq;
        if complete.is_some() {
            self.capture_succeeds();
        }
        let busy = !matches!(self.job, LocalJob::None);
        self.database.with(|shared| {
            shared.captured = complete.map(|end| end.place());
            shared.captured_end = complete;
            shared.captured_seq = seq;
            if complete.is_some() && !busy {
                shared.set_gate(Gate::Capturing);
            }
        });
    }

    /// Handles a failed capture: tells the engine, and tells the gate not to wait.
    pub(super) fn stopped(&mut self, stop: Stop) {
        match stop {
            Stop::Diverged(found) => self.diverge(found),
            Stop::NoRoom(message) if self.gives_up_pieces() => {
                log::error!("{}: {message}", self.database.label());
            }
            stop @ (Stop::Failed(_) | Stop::NoRoom(_)) => {
                self.capture_fails(&stop);
                let may_be_lost = matches!(stop, Stop::Failed(_));
                let message = stop.to_string();
                self.discard_unfinished();
                self.tell_why_it_fails(&message);
                self.database.with(|shared| shared.set_gate(Gate::Shut));
                let now = self.process.now();
                self.engine.handle(now, Event::Committed { at: now });
                self.engine.handle(now, Event::LocalFailed(Failure::Local { message }));
                if may_be_lost {
                    self.suspect_spool();
                }
            }
        }
    }

    pub(super) fn pending_bytes(&self) -> u64 {
        let open = self.open.iter();
        let closed = self.closed.iter().map(|file| &file.entry);
        let passed = self.local.iter().flat_map(|local| &local.passed).map(|(entry, _)| entry);
        open.chain(closed).chain(passed).map(|entry| entry.len).sum()
    }
}

/// Checks a WAL that is closed: either all of it is captured, or the next process to open the database finds
/// the missing commits.
fn taken_before_the_end(cursor: Proven, look: &Look) -> Result<u64, Stop> {
    if cursor.is_at(&look.index) {
        return Ok(look.seq);
    }
    Err(Stop::Failed("its WAL was closed before all of it was captured".into()))
}
