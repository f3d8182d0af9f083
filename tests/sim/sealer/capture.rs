//! Taking committed frames out of the WAL (`src/sealer/frames.rs`).

use walferry::engine::Event;
use walferry::local::spool::Entry;
use walferry::units::WalPosition;
use walferry::wal::{self, FrameSet, WalHeader};

use super::Cursor;
use super::files::Span;
use super::work::earlier;
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, sh, state};
use crate::process::Gate;
use crate::world::Cx;

/// Open pieces are joined when so many have gathered; few, so that it happens often.
const OPEN_PIECES_MAX: usize = 4;

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
            Err(Stop::Diverged(why)) => self.diverge(cx, p, &why),
            Err(Stop::Failed(message)) => {
                sh!(self, p).gate = Gate::Shut;
                re!(self, p).engine.handle(cx.now, Event::Committed { at: cx.now });
                self.local_failed(cx, p, message);
            }
            other => other?,
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

    pub fn take_frames(&mut self, cx: &mut Cx, p: usize, purpose: Purpose) -> Result<usize, Stop> {
        let process = &mut self.procs[p];
        let shared = &mut process.shared;
        let replica = process.replica.as_mut().expect("the sealer knows the database");
        let known = replica.cursor != Cursor::Unknown;
        if !shared.transitions.is_empty() && cx.bug != Bug::TransitionsPassed && known {
            // What is published may be of a WAL that was not taken in yet.
            return Ok(shared.captured_seq);
        }
        if let Some(at) = shared.unreported_since.filter(|_| known) {
            shared.unreported_since = None;
            shared.unacked_since = earlier(shared.unacked_since, Some(at));
            let event = match purpose {
                Purpose::Gate => Event::Committed { at },
                Purpose::Close => Event::TakenIn { at },
            };
            replica.engine.handle(cx.now, event);
        }
        let seq = shared.seq();
        let Some(index) = shared.published.filter(|index| index.max_frame > 0) else {
            return Ok(seq);
        };
        let first = match replica.cursor {
            Cursor::Unknown => return Ok(shared.captured_seq),
            Cursor::Fresh => 1,
            Cursor::At(at) if at.salts == index.salts => {
                if index.max_frame < at.frame.max(replica.frames.last) {
                    let now = self.db.index.filter(|now| now.salts == at.salts);
                    if now.is_some_and(|now| now.max_frame >= at.frame) {
                        let why = "what was captured is newer than what was published";
                        return Err(Stop::Broken(why.into()));
                    }
                    return Err(Stop::Diverged("the WAL went back".into()));
                }
                at.frame + 1
            }
            Cursor::At(at)
                if shared.grant == Some((at.salts, at.frame)) && replica.frames.is_empty() =>
            {
                1
            }
            Cursor::At(_) => return Err(Stop::Diverged("the WAL was begun anew".into())),
        };
        if index.max_frame < first || index.max_frame == replica.frames.last {
            return Ok(seq);
        }
        if replica.wal.is_none() {
            replica.wal = self.db.open_wal();
        }
        let (Some(wal), Some(point)) = (replica.wal.clone(), replica.point) else {
            return Err(Stop::Failed("the WAL is not there".into()));
        };
        let header = WalHeader::read(wal.borrow().as_slice());
        if first == 1
            && header.is_some_and(|header| header.salts != index.salts)
            && cx.bug != Bug::GenerationUnchecked
        {
            return Err(Stop::Diverged("the WAL's file is of another generation".into()));
        }
        if index.page_size != point.page_size {
            let seq = shared.captured_seq;
            self.need_image(cx, p);
            return Ok(seq);
        }
        replica
            .frames
            .extend(wal.borrow().as_slice(), point.page_size, first, index.max_frame)
            .map_err(|error| Stop::Failed(error.to_string()))?;
        replica.frames_salts = index.salts;
        shared.grant = shared.grant.filter(|_| first > 1 || cx.bug == Bug::StaleGrant);
        if replica.cursor == Cursor::Fresh {
            let (salts, frame, checksum) = (index.salts, 0, (0, 0));
            replica.cursor = Cursor::At(WalPosition { salts, frame, checksum });
        }
        Ok(seq)
    }

    pub fn write_frames(&mut self, cx: &mut Cx, p: usize, entry: Entry) -> Result<(), Stop> {
        self.meanwhile(cx, p);
        let replica = re!(self, p);
        let (Some(wal), Some(point)) = (replica.wal.clone(), replica.point) else {
            return Err(Stop::Failed("the database is not open".into()));
        };
        let (frames, salts) = (replica.frames.clone(), replica.frames_salts);
        let position = WalPosition { salts, frame: frames.last, checksum: frames.checksum };
        if frames.commit == 0 {
            return Err(Stop::Diverged("the WAL commits an empty database".into()));
        }
        let mut grown = self.disk.table.commit() + 1..=frames.commit;
        if grown.any(|pgno| !frames.newest.contains_key(&pgno)) {
            return Err(Stop::Diverged("a page of the grown database is not in the WAL".into()));
        }
        let mut pages = Vec::new();
        for (pgno, frame) in &frames.newest {
            if *pgno <= frames.commit {
                let mut page = vec![0; point.page_size.bytes()];
                wal::read_frame_page(wal.borrow().as_slice(), point.page_size, *frame, &mut page)
                    .map_err(|error| Stop::Failed(error.to_string()))?;
                pages.push((*pgno, page));
            }
        }
        // A new generation's header is written before its frames: if it is still ours, all that was
        // read is.
        let header = WalHeader::read(wal.borrow().as_slice());
        if header.is_none_or(|header| header.salts != salts) && cx.bug != Bug::GenerationUnchecked {
            return Err(Stop::Diverged("the WAL was written over while it was read".into()));
        }
        let span = Span::frames(point.page_size, salts, frames.first, frames.last);
        let entry = Entry { position: Some(position), ..entry };
        let written = self.write_piece(cx, p, pages, frames.commit, span, entry)?;
        let replica = re!(self, p);
        replica.cursor = Cursor::At(position);
        replica.frames = FrameSet::default();
        if written.txid.is_some() {
            self.add_closed(cx, p, written);
        }
        Ok(())
    }

    /// Publishes how far capture has come. The gate looks at it.
    pub fn set_captured(&mut self, p: usize, seq: usize) {
        let replica = re!(self, p);
        let complete = match replica.cursor {
            Cursor::At(at) if replica.frames.is_empty() => Some((at.salts, at.frame)),
            _ => None,
        };
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
