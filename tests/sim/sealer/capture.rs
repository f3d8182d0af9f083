//! Taking committed frames out of the WAL (`src/sealer/frames.rs`).

use std::cell::Cell;
use std::io;

use walferry::engine::Event;
use walferry::local::spool::Entry;
use walferry::units::{PageSize, WalPosition};
use walferry::wal::evidence::{self, Account, Guard, Proven, Sight};
use walferry::wal::{self, FrameHeader, NO_WAL, ReadAt, Tail, WalHeader, WalIndex};

use super::Cursor;
use super::files::Span;
use super::work::earlier;
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, sh, state};
use crate::process::{Gate, stands_at};
use crate::sqlite::WalFile;
use crate::world::Cx;

/// Open pieces are joined when so many have gathered; few, so that it happens often.
const OPEN_PIECES_MAX: usize = 4;

/// How often index and file are looked at before they count as two that never meet.
const LOOKS_MAX: usize = 3;
/// After so long they are looked at once more, and for so long at most.
const UNCLEAR_AGAIN: u64 = 10;
const UNCLEAR_MAX: u64 = 2000;

/// Index and file do not fit together for now.
#[derive(Clone, Copy)]
pub struct Unclear {
    since: u64,
    pub again_at: Option<u64>,
}

/// A look at the wal-index.
#[derive(Clone, Copy, Debug)]
struct Look {
    index: WalIndex,
    guard: Option<Guard>,
    seq: usize,
    since: Option<u64>,
    is_old: bool,
}

/// A WAL's file that others write to after so many reads.
struct Racing {
    before: Option<Vec<u8>>,
    after: WalFile,
    left: Cell<u32>,
}

impl ReadAt for Racing {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match (&self.before, self.left.get()) {
            (Some(before), left @ 1..) => {
                self.left.set(left - 1);
                before.as_slice().read_exact_at(buffer, offset)
            }
            _ => self.after.borrow().as_slice().read_exact_at(buffer, offset),
        }
    }
}

/// What frames are taken for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Gate,
    Close,
}

impl Host {
    /// Captures because somebody waits at the gate.
    pub fn capture_now(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        if !self.is_shipper(p) || !re!(self, p).attached {
            return Ok(());
        }
        self.take_in(cx, p);
        match self.capture(cx, p, Purpose::Gate) {
            Err(stop) => self.stopped(cx, p, stop),
            Ok(()) => Ok(()),
        }
    }

    /// Capture did not succeed: tells the engine, and the gate not to wait for it.
    pub fn stopped(&mut self, cx: &mut Cx, p: usize, stop: Stop) -> Result<(), Stop> {
        match stop {
            Stop::Diverged(why) => self.diverge(cx, p, &why),
            Stop::Failed(message) => {
                sh!(self, p).gate = Gate::Shut;
                re!(self, p).engine.handle(cx.now, Event::Committed { at: cx.now });
                self.local_failed(cx, p, message);
            }
            other => return Err(other),
        }
        Ok(())
    }

    /// Makes the newest published frames a piece, unless there are none.
    pub fn capture(&mut self, cx: &mut Cx, p: usize, purpose: Purpose) -> Result<(), Stop> {
        let seq = self.take_frames(cx, p, purpose)?;
        if !re!(self, p).frames.is_empty() {
            let entry = self.next_entry(p, None);
            self.write_frames(cx, p, entry)?;
            if re!(self, p).open.len() >= OPEN_PIECES_MAX {
                let joined = self.join_pieces(cx, p, None)?;
                re!(self, p).open.push(joined);
            }
            // What is being closed is sent now: it does not wait.
            if purpose == Purpose::Gate || cx.bug == Bug::CapWhileClosing {
                self.check_cap(cx, p)?;
            }
        }
        self.set_captured(p, seq);
        Ok(())
    }

    /// Reads the headers of the frames that were committed since; gives the count of commits that
    /// they end with.
    pub fn take_frames(&mut self, cx: &mut Cx, p: usize, purpose: Purpose) -> Result<usize, Stop> {
        self.follow_restart(p);
        let mut told = None;
        for _ in 0..LOOKS_MAX {
            let captured_seq = re!(self, p).captured_seq;
            let Some(look) = self.look_at_index(cx, p) else { return Ok(captured_seq) };
            told = earlier(told, look.since);
            self.tell_engine(cx, p, look.since, purpose);
            let cursor = match re!(self, p).cursor {
                Cursor::At(cursor) => cursor,
                Cursor::Unknown if cx.bug == Bug::UnknownIsCaptured => return Ok(look.seq),
                Cursor::Unknown => return Ok(captured_seq),
            };
            if !re!(self, p).attached {
                if stands_at(cx.bug, re!(self, p).captured(), &look.index) {
                    return Ok(look.seq);
                }
                return Err(Stop::Failed("the WAL was closed before it was captured".into()));
            }
            if self.is_judged(cx.bug, p, &look) {
                return Ok(look.seq);
            }
            if look.is_old && !self.is_end_there(&look.index) {
                break;
            }
            if self.take_seen(cx, p, cursor, &look)? {
                re!(self, p).unclear = None;
                return Ok(look.seq);
            }
            // The file is of another moment than the index, or another file by now.
            re!(self, p).wal = None;
        }
        self.look_again_soon(cx, p, told)
    }

    /// True if the WAL still has the last frame of this index in its place.
    fn is_end_there(&self, index: &WalIndex) -> bool {
        let last = self.db.open_wal().and_then(|wal| {
            FrameHeader::read(wal.borrow().as_slice(), index.page_size, index.max_frame).ok()
        });
        index.max_frame == 0 || last.is_some_and(|last| last.is_end_of(index))
    }

    fn look_again_soon(&mut self, cx: &mut Cx, p: usize, told: Option<u64>) -> Result<usize, Stop> {
        let now = cx.now;
        let replica = re!(self, p);
        let since = replica.unclear.map_or(now, |unclear| unclear.since);
        if now - since >= UNCLEAR_MAX {
            replica.unclear = None;
            return Err(Stop::Diverged("file and wal-index are of two generations".into()));
        }
        replica.unclear = Some(Unclear { since, again_at: Some(now + UNCLEAR_AGAIN) });
        let captured_seq = replica.captured_seq;
        let shared = &mut sh!(self, p);
        if cx.bug == Bug::UnclearIsCaptured {
            return Ok(shared.seq());
        }
        // Until then it waits as if the engine had not been told, of what it was told before too: a
        // close that takes nothing makes it forget that.
        let since = match cx.bug {
            Bug::UnclearLagForgotten => told,
            _ => earlier(told, shared.unacked_since),
        };
        shared.unreported_since = earlier(shared.unreported_since, since.or(Some(now)));
        Ok(captured_seq)
    }

    /// The wal-index as it is now, or was last published, with the count of commits up to it.
    fn look_at_index(&mut self, cx: &mut Cx, p: usize) -> Option<Look> {
        let known = re!(self, p).cursor != Cursor::Unknown;
        if !sh!(self, p).transitions.is_empty() && cx.bug != Bug::TransitionsPassed {
            return None;
        }
        let guard = self.guard(p);
        self.meanwhile_locked(cx, p);
        let blind = cx.bug == Bug::StandbyForgotten;
        let seen = self.wal_index(p).filter(|_| !blind);
        self.note_published(cx.now, p, seen);
        let (index, seq) = (sh!(self, p).published, sh!(self, p).seq());
        self.meanwhile_locked(cx, p);
        let guard = guard.filter(|_| self.guard(p) == guard);
        let shared = &mut sh!(self, p);
        let since = if known { shared.unreported_since.take() } else { None };
        shared.unacked_since = earlier(shared.unacked_since, since);
        let is_old = seen.is_none();
        index.map(|index| Look { index, guard, seq, since, is_old })
    }

    fn tell_engine(&mut self, cx: &Cx, p: usize, since: Option<u64>, purpose: Purpose) {
        if let Some(at) = since {
            let event = match purpose {
                Purpose::Gate => Event::Committed { at },
                Purpose::Close => Event::TakenIn { at },
            };
            re!(self, p).engine.handle(cx.now, event);
        }
    }

    /// True if everything up to this look was accounted for before.
    fn is_judged(&mut self, bug: Bug, p: usize, look: &Look) -> bool {
        let replica = re!(self, p);
        let end = match (&mut replica.frames_end, &mut replica.cursor) {
            (Some(end), _) if !replica.frames.is_empty() => end,
            (_, Cursor::At(end)) => end,
            _ => return false,
        };
        let size = self.db.page_size();
        let is_there = |wal: &WalFile| {
            let wal = wal.borrow();
            wal::checksum_at(wal.as_slice(), size, end.at.frame).ok() == Some(end.at.checksum)
        };
        let known = replica.judged == Some(look.index)
            && end.change == Some(look.index.change)
            && (bug == Bug::EqualIndexBelieved
                || end.at.frame == 0
                || replica.wal.as_ref().is_some_and(is_there));
        if known {
            end.guard = look.guard;
        }
        known
    }

    /// Goes on to the next generation if this process has seen it begin right behind the cursor.
    pub fn follow_restart(&mut self, p: usize) {
        let restart = sh!(self, p).restart;
        let replica = re!(self, p);
        let Cursor::At(cursor) = replica.cursor else { return };
        if replica.frames.is_empty()
            && let Some(begun) = restart.and_then(|restart| cursor.restarted(&restart))
        {
            replica.cursor = Cursor::At(begun);
        }
    }

    /// Takes what the evidence says was committed since; `false` when index and file are to be looked
    /// at again.
    fn take_seen(
        &mut self,
        cx: &mut Cx,
        p: usize,
        cursor: Proven,
        look: &Look,
    ) -> Result<bool, Stop> {
        let index = &look.index;
        if re!(self, p).wal.is_none() {
            re!(self, p).wal = self.db.open_wal();
        }
        let Some(point) = re!(self, p).point else {
            return Err(Stop::Failed("it is not open".into()));
        };
        if index.max_frame > 0 && index.page_size != point.page_size {
            cx.log(format_args!("host {}.{p}: the page size changed", self.id));
            self.need_image(cx, p);
            return Ok(false);
        }
        let page_size = point.page_size;
        let replica = re!(self, p);
        let mut end = replica.frames_end.filter(|_| !replica.frames.is_empty()).unwrap_or(cursor);
        let mut account = self.account(cx, p, &end, look, page_size)?;
        if account != Account::Continues && !re!(self, p).frames.is_empty() {
            // What is taken and not written may be overwritten: it is looked for once more.
            re!(self, p).clear_frames();
            end = cursor;
            account = self.account(cx, p, &end, look, page_size)?;
        }
        let first = match account {
            Account::Continues => end.at.frame + 1,
            Account::Begun { tail, change } => {
                self.take_tail(cx, p, cursor, tail)?;
                end = Proven::beginning(index.salts, change, look.guard);
                re!(self, p).cursor = Cursor::At(end);
                1
            }
            Account::Overtaken => return Ok(false),
            Account::NotProven(gap) => {
                return Err(Stop::Diverged(format!("{gap:?} from {cursor:?} to {look:?}")));
            }
        };
        if index.max_frame >= first {
            let wal = self.racing(cx, p);
            let replica = re!(self, p);
            let Some(wal) = wal else { return Err(Stop::Failed("the WAL is not there".into())) };
            replica
                .frames
                .extend(&wal, page_size, first, index.max_frame)
                .map_err(|error| Stop::Failed(error.to_string()))?;
        }
        let replica = re!(self, p);
        let (frame, checksum) = (replica.frames.last, replica.frames.checksum);
        let taken = WalPosition { salts: index.salts, frame, checksum };
        let at = if replica.frames.is_empty() { end.at } else { taken };
        let end = Proven::end_of(index, at, look.guard);
        if replica.frames.is_empty() {
            replica.cursor = Cursor::At(end);
        } else {
            replica.frames_salts = index.salts;
            replica.frames_end = Some(end);
        }
        replica.judged = Some(*index);
        replica.ends_with = Some(*index);
        Ok(true)
    }

    /// Asks the production's evidence.
    fn account(
        &mut self,
        cx: &mut Cx,
        p: usize,
        end: &Proven,
        look: &Look,
        page_size: PageSize,
    ) -> Result<Account, Stop> {
        let wal = self.racing(cx, p);
        let Look { index, guard, .. } = look;
        if let Some(wrong) = self.believed(cx.bug, p, end, look, page_size) {
            return Ok(wrong);
        }
        let (mut end, mut guard, mut counted) = (*end, *guard, *index);
        match cx.bug {
            Bug::CopiesCounted if index.salts != end.at.salts => {
                counted.change -= self.copies(&end, index, page_size);
            }
            Bug::DroppedGuardBelieved if end.guard.is_some() => guard = end.guard,
            Bug::RecoveryForgotten if end.at.frame > 0 => {
                (end.guard, guard) = (Some(Guard(u64::MAX)), Some(Guard(u64::MAX)));
            }
            _ => {}
        }
        let index = &counted;
        let account = match &wal {
            Some(wal) => evidence::account(&end, &Sight { index, wal, page_size, guard }),
            None => evidence::account(&end, &Sight { index, wal: NO_WAL, page_size, guard }),
        };
        if cx.prints {
            cx.log(format_args!("host {}.{p}: {end:?} {look:?}: {account:?}", self.id));
        }
        account.map_err(|error| Stop::Failed(format!("cannot read the WAL: {error}")))
    }

    /// How many frames behind a position, and of the generation that has begun since, may be copies.
    fn copies(&self, end: &Proven, index: &WalIndex, page_size: PageSize) -> u32 {
        let wal = self.db.open_wal().map(|wal| wal.borrow().clone()).unwrap_or_default();
        let left = wal::tail(wal.as_slice(), page_size, end.at).commits;
        let begun = wal::count_commits(wal.as_slice(), page_size, 1, index.max_frame);
        let found = left + begun.unwrap_or_default();
        (found.most - found.least).min(index.change)
    }

    /// The planted beliefs, each of which once lost commits.
    fn believed(
        &self,
        bug: Bug,
        p: usize,
        end: &Proven,
        look: &Look,
        page_size: PageSize,
    ) -> Option<Account> {
        let index = &look.index;
        let same = index.salts == end.at.salts;
        let begun = || {
            let wal = self.db.open_wal();
            let wal = wal.as_ref().map(|wal| wal.borrow().clone()).unwrap_or_default();
            let count = wal::count_commits(wal.as_slice(), page_size, 1, index.max_frame).ok()?;
            let (tail, change) = (Tail::default(), index.change.wrapping_sub(count.least));
            Some(Account::Begun { tail, change })
        };
        match bug {
            Bug::FirstGenerationBelieved if !same && end.at.frame == 0 => begun(),
            Bug::StaleRestart if !same => {
                if sh!(self, p).granted == Some(end.place()) {
                    begun()
                } else {
                    None
                }
            }
            Bug::PositionBelieved if same && index.max_frame >= end.at.frame => {
                Some(Account::Continues)
            }
            _ => None,
        }
    }

    /// The WAL's file, as others write to it while it is read.
    fn racing(&mut self, cx: &mut Cx, p: usize) -> Option<Racing> {
        let wal = re!(self, p).wal.clone()?;
        if cx.calm || cx.within || self.writing || self.exclusive || !cx.rng.chance(20) {
            return Some(Racing { before: None, after: wal, left: Cell::new(0) });
        }
        let before = Some(wal.borrow().clone());
        self.meanwhile(cx, p);
        let left = Cell::new(cx.rng.below(12) as u32);
        Some(Racing { before, after: wal, left })
    }

    /// Makes a piece of what the generation before has left behind the cursor.
    fn take_tail(&mut self, cx: &mut Cx, p: usize, cursor: Proven, tail: Tail) -> Result<(), Stop> {
        let replica = re!(self, p);
        replica.frames = tail.frames;
        if replica.frames.is_empty() {
            return Ok(());
        }
        let (frame, checksum) = (replica.frames.last, replica.frames.checksum);
        replica.frames_salts = cursor.at.salts;
        let at = WalPosition { salts: cursor.at.salts, frame, checksum };
        replica.frames_end = Some(Proven::position(at));
        let entry = self.next_entry(p, None);
        self.tails += 1;
        self.write_frames(cx, p, entry)
    }

    /// Recovery may have cut off frames without a checksum, and all that followed them, and writers
    /// replaced some: the last frame's checksum says nothing of those.
    fn is_in_place<R: ReadAt>(&self, bug: Bug, p: usize, wal: &R, position: WalPosition) -> bool {
        if matches!(bug, Bug::GenerationUnchecked | Bug::UnmarkedBelieved) {
            return true;
        }
        let taken = self.procs[p].replica.as_ref().and_then(|replica| replica.ends_with);
        let of = |taken: &WalIndex| (taken.salts, taken.max_frame);
        match (
            taken.filter(|taken| of(taken) == (position.salts, position.frame)),
            self.wal_index(p),
        ) {
            (Some(taken), Some(now)) => now.salts != taken.salts || now.follows(&taken),
            (Some(_), None) => wal::reaches(wal, self.db.page_size(), position),
            (None, _) => true,
        }
    }

    pub fn write_frames(&mut self, cx: &mut Cx, p: usize, entry: Entry) -> Result<(), Stop> {
        self.meanwhile(cx, p);
        let wal = self.racing(cx, p);
        let replica = re!(self, p);
        let (Some(wal), Some(point)) = (wal, replica.point) else {
            return Err(Stop::Failed("the database is not open".into()));
        };
        let (frames, salts) = (replica.frames.clone(), replica.frames_salts);
        let position = WalPosition { salts, frame: frames.last, checksum: frames.checksum };
        let end = replica.frames_end.filter(|end| end.at == position);
        if frames.commit == 0 {
            return Err(Stop::Diverged("the WAL commits an empty database".into()));
        }
        let mut grown = self.disk.table.commit() + 1..=frames.commit;
        if grown.any(|pgno| frames.newest.get(pgno).expect("it is in memory").is_none()) {
            return Err(Stop::Diverged("a page of the grown database is not in the WAL".into()));
        }
        let mut pages = Vec::new();
        for found in frames.newest.iter() {
            let (pgno, frame) = found.expect("it is in memory");
            if pgno <= frames.commit {
                let mut page = vec![0; point.page_size.bytes()];
                wal::read_frame_page(&wal, point.page_size, frame, &mut page)
                    .map_err(|error| Stop::Failed(error.to_string()))?;
                pages.push((pgno, page));
            }
        }
        if cx.bug != Bug::GenerationUnchecked {
            // A later generation overwrites from the front: what is behind a frame that is in its place
            // is in place too.
            let same = WalHeader::read(&wal).is_some_and(|header| header.salts == salts);
            let first = || FrameHeader::read(&wal, point.page_size, frames.first);
            if !same && first().map_or(true, |header| header.salts != salts) {
                return Err(Stop::Diverged("the WAL was written over while it was read".into()));
            }
            // Recovery may have cut the generation, and a writer gone on with it.
            let last = wal::checksum_at(&wal, point.page_size, frames.last);
            if last.map_or(true, |checksum| checksum != frames.checksum) {
                return Err(Stop::Diverged("other frames came while they were read".into()));
            }
        }
        if !self.is_in_place(cx.bug, p, &wal, position) {
            return Err(Stop::Diverged("frames without checksums may be others by now".into()));
        }
        let span = Span::frames(point.page_size, salts, frames.first, frames.last);
        let entry = Entry { position: Some(position), ..entry };
        let written = self.write_piece(cx, p, pages, frames.commit, span, entry)?;
        let replica = re!(self, p);
        replica.cursor = Cursor::At(end.unwrap_or(Proven::position(position)));
        replica.clear_frames();
        if written.txid.is_some() {
            self.add_closed(cx, p, written);
        }
        Ok(())
    }

    /// Publishes how far capture has come. The gate looks at it.
    pub fn set_captured(&mut self, p: usize, seq: usize) {
        let replica = re!(self, p);
        let complete = replica.captured();
        replica.captured_seq = seq;
        let busy = !replica.job.is_none();
        let shared = &mut sh!(self, p);
        shared.captured = complete;
        shared.captured_seq = seq;
        if complete.is_some() && !busy {
            shared.gate = Gate::Capturing;
        }
    }

    /// Drops the captured pieces when they take too much room: the database is compared later.
    fn check_cap(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let replica = re!(self, p);
        let open: u64 = replica.open.iter().map(|entry| entry.len).sum();
        let closed: u64 = replica.closed.iter().map(|file| file.entry.len).sum();
        if open + closed <= self.spool_cap || replica.open.is_empty() {
            return Ok(());
        }
        cx.log(format_args!("host {}.{p}: the spool's cap is reached", self.id));
        replica.dropped = true;
        for entry in std::mem::take(&mut re!(self, p).open) {
            self.forget(&entry)?;
        }
        let base = state!(self, p).base;
        let replica = re!(self, p);
        replica.piece = match (replica.closed.back(), base) {
            (Some(file), _) => file.entry.pieces.1,
            (None, base) => base.map_or(0, |base| base.piece),
        };
        if cx.bug == Bug::CapForgotten {
            return Ok(());
        }
        replica.cursor = Cursor::Unknown;
        replica.epoch += 1;
        replica.engine.handle(cx.now, Event::Diverged);
        let shared = &mut sh!(self, p);
        shared.captured = None;
        shared.gate = Gate::Open;
        Ok(())
    }

    /// Takes an open piece out of the spool and out of the page table.
    fn forget(&mut self, entry: &Entry) -> Result<(), Stop> {
        let Some(bytes) = self.disk.read(entry).cloned() else { return Ok(()) };
        let Ok(mut decoder) = walferry::ltx::Decoder::new(bytes.as_slice()) else { return Ok(()) };
        while let Ok(Some(page)) = decoder.next_page() {
            let pgno = page.pgno;
            if pgno <= self.disk.table.commit() {
                self.disk.set(pgno, None)?;
            }
        }
        self.disk.remove(entry)
    }
}
