//! Taking committed frames out of the WAL: for the gate, and ahead of it.

use std::fs::File;

use super::WATCH_INTERVAL_MS;
use super::capture::{self, Cursor, Stop};
use super::open::Local;
use super::replica::{LocalJob, Purpose, Replica, earlier, maker};
use crate::database::Gate;
use crate::engine::{Event, Failure};
use crate::finding::Finding;
use crate::local;
use crate::local::spool::Entry;
use crate::units::{PageSize, Txid, WalPosition};
use crate::wal::{self, FrameHeader, FrameSet, Tail, WalHeader, WalIndex};

/// Open pieces are joined when so many have gathered, so that closing never opens too many files.
const OPEN_PIECES_MAX: usize = 64;
/// Frames whose headers are read ahead.
const READ_AHEAD: u32 = 128;
/// The spool's least cap, if none is set.
const SPOOL_CAP_DEFAULT: u64 = 10 << 30;

impl Replica {
    /// Looks for commits of processes that do not tell us.
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

    /// Whether database and local state are where they were when they were opened.
    fn is_in_place(&mut self) -> bool {
        let database = self.database.border().is_none_or(|border| border.is_in_place());
        if !database {
            if !std::mem::replace(&mut self.astray, true) {
                self.note(Finding::FileReplaced);
            }
            return false;
        }
        let state = self.local.as_ref().is_none_or(Local::is_in_place);
        if !state {
            self.state_is_gone();
        }
        state
    }

    /// Keeps other processes from beginning the WAL anew, unless the gate is open: then nothing is
    /// captured of it, and a writer whose WAL cannot be begun anew would be slow for nothing.
    pub(super) fn hold_wal(&self) {
        self.hold(self.database.with(|shared| shared.gate != Gate::Open));
    }

    /// Keeps other processes from beginning the WAL anew, or lets them.
    pub(super) fn hold(&self, hold: bool) {
        if let Some(border) = self.database.border() {
            border.hold(hold);
        }
    }

    /// Reads the headers of what was committed while there is time: at the gate only the rest is
    /// left to do.
    pub(super) fn read_ahead(&mut self) {
        let known = self.cursor != Cursor::Unknown && matches!(self.job, LocalJob::None);
        let published = self.database.with(|shared| shared.published);
        let behind = match (published, self.cursor) {
            (Some(index), Cursor::At(at)) if index.salts == at.salts => {
                index.max_frame.saturating_sub(at.frame.max(self.frames.last))
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

    /// Publishes the wal-index as it is now. It is read under the lock under which the application's
    /// threads publish, so that it is never older than what they said.
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

    /// Forgets frames that are in no piece: what comes next takes them in another way.
    pub(super) fn clear_frames(&mut self) {
        self.frames = FrameSet::default();
    }

    /// Captures what is published, into a piece, because somebody waits at the gate.
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

    /// Makes the newest published frames a piece, unless there are none.
    pub(super) fn capture(&mut self, purpose: Purpose) -> Result<(), Stop> {
        let seq = self.take_frames(purpose)?;
        if !self.frames.is_empty() {
            let entry = self.next_entry(None);
            self.write_frames(&entry)?;
            if self.open.len() >= OPEN_PIECES_MAX {
                self.join_open()?;
            }
            if purpose == Purpose::Gate {
                self.check_cap();
            }
        }
        self.set_captured(seq);
        Ok(())
    }

    /// Reads the headers of the frames published since; gives the count of commits that they end
    /// with.
    pub(super) fn take_frames(&mut self, purpose: Purpose) -> Result<u64, Stop> {
        self.hear();
        let taken = self.database.with(|shared| {
            if !shared.transitions.is_empty() {
                // What is published may belong to a WAL that came after the one that is read.
                return None;
            }
            let known = self.cursor != Cursor::Unknown;
            let since = if known { shared.unreported_since.take() } else { None };
            shared.report.unacked_since = earlier(shared.report.unacked_since, since);
            Some((shared.published, shared.commit_seq, shared.grant, since))
        });
        let Some((published, seq, grant, since)) = taken else { return Ok(self.captured_seq) };
        if let Some(at) = since {
            let event = match purpose {
                Purpose::Gate => Event::Committed { at },
                Purpose::Close => Event::TakenIn { at },
            };
            self.engine.handle(self.process.now(), event);
        }
        let Some(index) = published.filter(|index| index.max_frame > 0) else { return Ok(seq) };
        let first = match self.cursor {
            Cursor::Unknown => return Ok(self.captured_seq),
            Cursor::Fresh => 1,
            Cursor::At(at) if at.salts == index.salts => {
                if index.max_frame < at.frame.max(self.frames.last) {
                    return Err(Stop::Diverged(Finding::WalWentBack));
                }
                at.frame + 1
            }
            Cursor::At(at)
                if self.frames.is_empty()
                    && grant
                        .is_some_and(|grant| grant.covers((at.salts, at.frame), index.salts)) =>
            {
                1
            }
            // The new generation's first frames are taken, and not written yet.
            Cursor::At(_) if !self.frames.is_empty() && self.frames_salts == index.salts => {
                if index.max_frame < self.frames.last {
                    return Err(Stop::Diverged(Finding::WalWentBack));
                }
                1
            }
            Cursor::At(at) => {
                self.take_tail(at, &index)?;
                1
            }
        };
        if index.max_frame < first || index.max_frame == self.frames.last {
            self.seen = Some(index);
            return Ok(seq);
        }
        if self.wal.is_none() {
            self.wal = File::open(local::wal_path(self.database.path())).ok();
        }
        let (Some(wal), Some(point)) = (&self.wal, self.point) else {
            return Err(Stop::Failed("the WAL is not there".into()));
        };
        // A generation is known by the header in the file: the index may be ahead of it.
        if first == 1 && WalHeader::read(wal).is_some_and(|header| header.salts != index.salts) {
            return Err(Stop::Diverged(Finding::WalOfAnother));
        }
        if index.page_size != point.page_size {
            self.note(Finding::PageSizeChanged);
            self.need_image();
            return Ok(self.captured_seq);
        }
        let from = if self.frames.is_empty() { first } else { self.frames.last + 1 };
        let border = self.database.border();
        let known = border.and_then(|border| border.frame_pages(&index, from, index.max_frame));
        let added = known.is_some_and(|pages| {
            self.frames.extend_known(wal, point.page_size, from, &pages).is_ok()
        });
        if !added {
            // Without shared memory the headers in the file are all there is.
            self.frames
                .extend(wal, point.page_size, first, index.max_frame)
                .map_err(|error| Stop::Failed(format!("cannot read the WAL: {error}")))?;
        }
        self.frames_salts = index.salts;
        self.seen = Some(index);
        // A grant is for one new beginning.
        self.database.with(|shared| shared.grant = shared.grant.filter(|_| first > 1));
        if self.cursor == Cursor::Fresh {
            // Only now is it known which generation it is.
            self.cursor =
                Cursor::At(WalPosition { salts: index.salts, frame: 0, checksum: (0, 0) });
        }
        Ok(seq)
    }

    /// The WAL was begun anew and nobody asked: takes what the generation before has left behind
    /// `at`, if it is proven to be all. The wal-index counts commits, across generations (`iChange` in
    /// `wal.c`): as many as it counted since it was last seen must be found, in what is left of the
    /// one and in what there is of the other.
    fn take_tail(&mut self, at: WalPosition, index: &WalIndex) -> Result<(), Stop> {
        let unseen = Stop::Diverged(Finding::WalRestartedUnseen);
        let (Some(seen), Some(wal), Some(point)) = (self.seen, &self.wal, self.point) else {
            return Err(unseen);
        };
        if index.page_size != point.page_size {
            return Err(unseen);
        }
        let tail = wal::tail(wal, point.page_size, at);
        let begun = count_commits(wal, point.page_size, index.max_frame)
            .map_err(|error| Stop::Failed(format!("cannot read the WAL: {error}")))?;
        log::debug!(
            "{}: begun anew behind frame {} (seen {}): to frame {}, and {begun} commits, of {}",
            self.database.label(),
            at.frame,
            seen.max_frame,
            tail.frames.last,
            index.change.wrapping_sub(seen.change)
        );
        if !is_all(&seen, at, &tail, begun, index) {
            return Err(unseen);
        }
        self.frames = tail.frames;
        if self.frames.is_empty() {
            return Ok(());
        }
        log::debug!(
            "{}: frames {} to {} of the generation before",
            self.database.label(),
            self.frames.first,
            self.frames.last
        );
        self.frames_salts = at.salts;
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
        let entry = Entry { position: Some(position), ..entry.clone() };
        let written = capture::write_frames(
            &local.spool,
            &mut local.table,
            wal,
            &self.frames,
            salts,
            &maker,
            entry,
        )?;
        self.piece = written.pieces.1;
        self.cursor = Cursor::At(position);
        self.frames = FrameSet::default();
        match written.txid {
            None => self.open.push(written),
            Some(_) => self.add_closed(written, maker.timestamp),
        }
        Ok(())
    }

    pub(super) fn next_entry(&self, txid: Option<Txid>) -> Entry {
        let position = match self.cursor {
            Cursor::At(at) if at.frame > 0 => Some(at),
            _ => None,
        };
        Entry { txid, pieces: (self.piece + 1, self.piece + 1), position, len: 0 }
    }

    /// Publishes how far capture has come. The gate looks at it.
    pub(super) fn set_captured(&mut self, seq: u64) {
        let complete = match self.cursor {
            Cursor::At(at) if self.frames.is_empty() => Some((at.salts, at.frame)),
            _ => None,
        };
        self.captured_seq = seq;
        let busy = !matches!(self.job, LocalJob::None);
        self.database.with(|shared| {
            shared.captured = complete;
            shared.captured_seq = seq;
            if complete.is_some() && !busy {
                shared.set_gate(Gate::Capturing);
            }
        });
    }

    /// Capture did not succeed: tells the engine, and the gate not to wait for it.
    pub(super) fn stopped(&mut self, stop: Stop) {
        match stop {
            Stop::Diverged(found) => self.diverge(found),
            Stop::Failed(message) => {
                log::error!("{}: {message}", self.database.label());
                self.database.with(|shared| shared.set_gate(Gate::Shut));
                let now = self.process.now();
                self.engine.handle(now, Event::Committed { at: now });
                self.engine.handle(now, Event::LocalFailed(Failure::Local { message }));
            }
        }
    }

    /// Drops the captured pieces when they take too much room: the database is compared later.
    pub(super) fn check_cap(&mut self) {
        let pending: u64 = self.pending_bytes();
        let Some((local, point)) = self.local.as_mut().zip(self.point) else { return };
        let database = u64::from(local.table.commit()) * u64::from(point.page_size.get());
        let cap = match self.database.settings().spool_cap {
            0 => SPOOL_CAP_DEFAULT.max(2 * database),
            cap => cap,
        };
        if pending <= cap || self.open.is_empty() {
            return;
        }
        log::warn!(
            "{}: {pending} bytes wait in the spool, more than its cap of {cap}",
            self.database.label()
        );
        for entry in std::mem::take(&mut self.open) {
            if let Err(error) = forget(local, &entry) {
                log::error!("{}: {error}", self.database.label());
            }
        }
        self.piece = match (self.closed.back(), local.state.base) {
            (Some(file), _) => file.entry.pieces.1,
            (None, base) => base.map_or(0, |base| base.piece),
        };
        self.cursor = Cursor::Unknown;
        self.epoch += 1;
        self.database.with(|shared| {
            shared.captured = None;
            shared.set_gate(Gate::Open);
        });
        self.note(Finding::SpoolFull);
        self.engine.handle(self.process.now(), Event::Diverged);
    }

    pub(super) fn pending_bytes(&self) -> u64 {
        let open = self.open.iter().map(|entry| entry.len).sum::<u64>();
        open + self.closed.iter().map(|file| file.entry.len).sum::<u64>()
    }
}

/// Whether the tail behind `at`, and the `begun` commits of the generation after it, are all commits
/// since `seen`.
fn is_all(seen: &WalIndex, at: WalPosition, tail: &Tail, begun: u32, now: &WalIndex) -> bool {
    let later = tail.commits.iter().filter(|frame| **frame > seen.max_frame).count();
    let found = u32::try_from(later).unwrap_or(u32::MAX).wrapping_add(begun);
    let direct = now.salts.0 == at.salts.0.wrapping_add(1);
    let reached = seen.max_frame <= tail.frames.last.max(at.frame);
    let known = seen.salts == at.salts && seen.max_frame >= at.frame;
    direct && known && reached && now.change == seen.change.wrapping_add(found)
}

/// How many transactions the first frames of the WAL end.
fn count_commits(wal: &File, page_size: PageSize, last: u32) -> std::io::Result<u32> {
    let mut commits = 0;
    for frame in 1..=last {
        commits += u32::from(FrameHeader::read(wal, page_size, frame)?.commit != 0);
    }
    Ok(commits)
}

/// Takes an open piece out of the spool and out of the page table.
fn forget(local: &mut Local, entry: &Entry) -> Result<(), String> {
    let path = local.spool.path(entry);
    let unreadable = |error: crate::ltx::Error| format!("cannot read {}: {error}", path.display());
    let file = File::open(&path).map_err(|error| unreadable(error.into()))?;
    let mut decoder =
        crate::ltx::Decoder::new(std::io::BufReader::new(file)).map_err(unreadable)?;
    while let Some(page) = decoder.next_page().map_err(unreadable)? {
        if page.pgno <= local.table.commit() {
            local.table.set(page.pgno, None).map_err(|error| error.to_string())?;
        }
    }
    local.spool.remove(entry).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Salts;

    #[test]
    fn a_tail_is_all_only_if_every_commit_is_found() {
        let page_size = PageSize::new(4096).unwrap();
        let index = |salts, max_frame, change| WalIndex {
            change,
            max_frame,
            page_count: 9,
            page_size,
            frame_checksum: (0, 0),
            salts: Salts(salts, 7),
        };
        let at = WalPosition { salts: Salts(u32::MAX, 7), frame: 10, checksum: (1, 2) };
        let tail = |commits: &[u32]| {
            let last = commits.last().copied().unwrap_or(0);
            Tail { frames: FrameSet { last, ..FrameSet::default() }, commits: commits.to_vec() }
        };
        let seen = index(u32::MAX, 12, u32::MAX);
        // Frame 12 was seen; 13 and 15 were not, and neither were two of the new generation.
        let good = tail(&[12, 13, 15]);
        assert!(is_all(&seen, at, &good, 2, &index(0, 4, 3)));
        assert!(!is_all(&seen, at, &good, 2, &index(0, 4, 4)), "one is missing");
        assert!(!is_all(&seen, at, &good, 2, &index(0, 4, 2)), "one was never committed");
        assert!(!is_all(&seen, at, &good, 2, &index(1, 4, 3)), "begun anew twice");
        assert!(!is_all(&seen, at, &tail(&[11]), 4, &index(0, 4, 3)), "overwritten");
        let other = index(5, 12, u32::MAX);
        assert!(!is_all(&other, at, &good, 2, &index(0, 4, 3)), "seen in another generation");
        assert!(
            !is_all(&index(u32::MAX, 9, u32::MAX), at, &good, 3, &index(0, 4, 5)),
            "seen before"
        );
        let all = index(u32::MAX, 10, 50);
        assert!(is_all(&all, at, &tail(&[]), 1, &index(0, 1, 51)), "nothing was left");
    }
}
