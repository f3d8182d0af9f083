//! The model's capture and closing: from committed frames to files in the spool, as
//! `src/sealer/capture.rs` and the closing half of `src/sealer/replica.rs` do it.

use walferry::engine::Event;
use walferry::local::spool::Entry;
use walferry::local::state::Base;
use walferry::ltx::encode::to_vec;
use walferry::ltx::merge::merge;
use walferry::ltx::{self, DatabaseChecksum, Decoder, HEADER_LEN, Header, Tag};
use walferry::units::{Pgno, Salts, Txid, WalPosition};
use walferry::wal::{self, FrameSet};

use crate::database::page_size;
use crate::disk::Stop;
use crate::host::{ClosedFile, Cursor, Gate, Host, mem};
use crate::world::{Bug, Cx};

/// Open pieces are joined when so many have gathered; few, so that it happens often.
const OPEN_PIECES_MAX: usize = 4;

/// The stretch of WAL that a header names.
#[derive(Clone, Copy)]
pub struct Span {
    offset: u64,
    len: u64,
    salts: Salts,
}

impl Span {
    pub const NONE: Span = Span { offset: 32, len: 0, salts: Salts(0, 0) };

    pub fn frames(salts: Salts, first: u32, last: u32) -> Span {
        let offset = wal::frame_offset(page_size(), first);
        Span { offset, len: wal::frame_offset(page_size(), last + 1) - offset, salts }
    }

    pub fn name_in(self, header: Header) -> Header {
        Header { wal_offset: self.offset, wal_size: self.len, salts: self.salts, ..header }
    }
}

/// The bytes in the WAL are still those of this generation.
fn check_generation(cx: &Cx, bytes: &[u8], salts: Salts) -> Result<(), Stop> {
    let same = wal::WalHeader::read(bytes).is_some_and(|header| header.salts == salts);
    if same || cx.bug == Bug::GenerationUnchecked {
        return Ok(());
    }
    Err(Stop::Diverged("the WAL has another generation's frames".into()))
}

impl Host {
    /// Captures because somebody waits at the gate.
    pub fn capture_now(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        self.take_in(cx.now);
        match self.capture(cx) {
            Ok(()) => Ok(()),
            Err(Stop::Crash) => Err(Stop::Crash),
            Err(Stop::Diverged(why)) => {
                self.diverge(cx, &why);
                Ok(())
            }
            Err(Stop::Failed(message)) => {
                let memory = mem!(self);
                memory.gate = Gate::Shut;
                memory.engine.handle(cx.now, Event::Committed { at: cx.now });
                self.local_failed(cx.now, message);
                Ok(())
            }
        }
    }

    /// Makes the newest published frames a piece, unless there are none.
    pub fn capture(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        let seq = self.take_frames(cx)?;
        if !mem!(self).frames.is_empty() {
            let entry = self.next_entry(None);
            self.write_frames(cx, entry)?;
            if mem!(self).open.len() >= OPEN_PIECES_MAX {
                self.join_open(cx)?;
            }
        }
        self.set_captured(seq);
        Ok(())
    }

    fn take_frames(&mut self, cx: &Cx) -> Result<usize, Stop> {
        let memory = mem!(self);
        let seq = memory.seq();
        let Some(index) = memory.published.filter(|index| index.max_frame > 0) else {
            return Ok(seq);
        };
        let first = match memory.cursor {
            Cursor::Unknown => return Ok(memory.captured_seq),
            Cursor::Fresh => 1,
            Cursor::At(at) if at.salts == index.salts => {
                if index.max_frame < at.frame.max(memory.frames.last) {
                    return Err(Stop::Diverged("the WAL went back".into()));
                }
                at.frame + 1
            }
            Cursor::At(at)
                if memory.grant == Some((at.salts, at.frame)) && memory.frames.is_empty() =>
            {
                1
            }
            Cursor::At(_) => return Err(Stop::Diverged("the WAL was begun anew".into())),
        };
        if index.max_frame < first || index.max_frame == memory.frames.last {
            return Ok(seq);
        }
        check_generation(cx, self.db.wal(), index.salts)?;
        memory
            .frames
            .extend(self.db.wal(), page_size(), first, index.max_frame)
            .map_err(|error| Stop::Failed(error.to_string()))?;
        memory.frames_salts = index.salts;
        if memory.cursor == Cursor::Fresh {
            let (salts, frame, checksum) = (index.salts, 0, (0, 0));
            memory.cursor = Cursor::At(WalPosition { salts, frame, checksum });
        }
        Ok(seq)
    }

    fn write_frames(&mut self, cx: &mut Cx, entry: Entry) -> Result<(), Stop> {
        let memory = mem!(self);
        let (frames, salts) = (memory.frames.clone(), memory.frames_salts);
        check_generation(cx, self.db.wal(), salts)?;
        let position = WalPosition { salts, frame: frames.last, checksum: frames.checksum };
        let grown = self.disk.table.commit() + 1..=frames.commit;
        if grown.clone().any(|pgno| !frames.newest.contains_key(&pgno)) {
            return Err(Stop::Diverged("a page of the grown database is not in the WAL".into()));
        }
        let mut pages = Vec::new();
        for (pgno, frame) in &frames.newest {
            if *pgno <= frames.commit {
                let mut page = vec![0; 512];
                wal::read_frame_page(self.db.wal(), page_size(), *frame, &mut page)
                    .map_err(|error| Stop::Failed(error.to_string()))?;
                pages.push((*pgno, page));
            }
        }
        let span = Span::frames(salts, frames.first, frames.last);
        let entry = Entry { position: Some(position), ..entry };
        let written = self.write_piece(cx, pages, frames.commit, span, entry)?;
        let memory = mem!(self);
        memory.cursor = Cursor::At(position);
        memory.frames = FrameSet::default();
        if written.txid.is_some() {
            self.add_closed(cx, written);
        }
        Ok(())
    }

    pub fn next_entry(&mut self, txid: Option<Txid>) -> Entry {
        let memory = mem!(self);
        let position = match memory.cursor {
            Cursor::At(at) if at.frame > 0 => Some(at),
            _ => None,
        };
        let piece = memory.piece + 1;
        Entry { txid, pieces: (piece, piece), position, len: 0 }
    }

    /// Writes a spool file, publishes it, and makes the page table follow.
    pub fn write_piece(
        &mut self,
        cx: &mut Cx,
        mut pages: Vec<(Pgno, Vec<u8>)>,
        commit: u32,
        span: Span,
        entry: Entry,
    ) -> Result<Entry, Stop> {
        if cx.bug == Bug::DropPage && pages.len() > 1 && cx.rng.chance(20) {
            pages.pop();
        }
        let sums: Vec<_> =
            pages.iter().map(|(pgno, page)| (*pgno, ltx::checksum::page(*pgno, page))).collect();
        let mut after = self.disk.table.clone();
        for (pgno, sum) in &sums {
            after.set(*pgno, Some(*sum));
        }
        after.set_commit(commit);
        let header = self.header(cx.now, commit, after.checksum(), span);
        let bytes = to_vec(&header, pages.iter().map(|(pgno, page)| (*pgno, page.as_slice())))
            .map_err(|error| Stop::Failed(error.to_string()))?;
        if cx.bug == Bug::StateBeforeSpool
            && let Some(txid) = entry.txid
        {
            let memory = mem!(self);
            memory.state.base = Some(Base {
                txid: txid.0,
                piece: entry.pieces.1,
                page_size: 512,
                commit,
                checksum: after.checksum().get(),
                timestamp: header.timestamp.0,
                position: entry.position.map(Into::into),
            });
            self.disk.save(&memory.state.clone())?;
        }
        let entry = Entry { len: bytes.len() as u64, ..entry };
        cx.log(format_args!(
            "host {}: {} holds {:?}",
            self.id,
            entry.file_name(),
            sums.iter().map(|(pgno, _)| *pgno).collect::<Vec<_>>()
        ));
        self.disk.publish(entry.clone(), bytes)?;
        for (pgno, sum) in sums {
            self.disk.set(pgno, sum)?;
        }
        self.disk.set_commit(commit)?;
        let memory = mem!(self);
        memory.piece = entry.pieces.1;
        if entry.txid.is_none() {
            memory.open.push(entry.clone());
        }
        Ok(entry)
    }

    fn header(
        &mut self,
        now: u64,
        commit: u32,
        post_apply: DatabaseChecksum,
        span: Span,
    ) -> Header {
        let timestamp = self.timestamp(now);
        let memory = mem!(self);
        let point = memory.point.expect("there is a point to go on from");
        Header {
            page_size: page_size(),
            commit,
            min_txid: point.txid.next(),
            max_txid: point.txid.next(),
            timestamp,
            wal_offset: span.offset,
            wal_size: span.len,
            salts: span.salts,
            writer: memory.engine.writer(),
            tag: Some(Tag { pre_apply: point.checksum, post_apply, full_image: false }),
        }
    }

    fn join_pieces(&mut self, cx: &mut Cx, txid: Option<Txid>) -> Result<Entry, Stop> {
        let memory = mem!(self);
        let open = memory.open.clone();
        let (first, last) = (open.first().unwrap(), open.last().unwrap());
        let entry = Entry {
            txid,
            pieces: (first.pieces.0, last.pieces.1),
            position: last.position,
            len: 0,
        };
        let mut span = Span::NONE;
        let (commit, post) = (self.disk.table.commit(), self.disk.table.checksum());
        let mut inputs = Vec::new();
        for piece in &open {
            let bytes = self.disk.read(piece).expect("an open piece is in the spool").clone();
            let decoder = Decoder::new(std::io::Cursor::new(bytes))
                .map_err(|error| Stop::Failed(error.to_string()))?;
            let head = decoder.header();
            span = Span { offset: head.wal_offset, len: head.wal_size, salts: head.salts };
            inputs.push(decoder);
        }
        let header = self.header(cx.now, commit, post, span);
        let (mut bytes, encoded) = merge(inputs, &header, vec![0; HEADER_LEN])
            .map_err(|error| Stop::Failed(error.to_string()))?;
        bytes[..HEADER_LEN].copy_from_slice(&encoded.header);
        let entry = Entry { len: bytes.len() as u64, ..entry };
        self.disk.publish(entry.clone(), bytes)?;
        for piece in std::mem::take(&mut mem!(self).open) {
            if piece.file_name() != entry.file_name() {
                self.disk.remove(&piece)?;
            }
        }
        Ok(entry)
    }

    fn join_open(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        let joined = self.join_pieces(cx, None)?;
        mem!(self).open.push(joined);
        Ok(())
    }

    /// Closes what was captured as this TXID.
    pub fn close_file(&mut self, cx: &mut Cx, txid: Txid) -> Result<(), Stop> {
        match self.close_captured(cx, txid) {
            Ok(closed) => mem!(self).engine.handle(cx.now, Event::Closed(closed)),
            Err(Stop::Crash) => return Err(Stop::Crash),
            Err(Stop::Diverged(why)) => {
                if cx.bug == Bug::LagForgotten {
                    mem!(self).engine.handle(cx.now, Event::Closed(None));
                    self.diverge(cx, &why);
                    return Ok(());
                }
                self.diverge(cx, &why);
                mem!(self).engine.handle(cx.now, Event::Closed(None));
            }
            Err(Stop::Failed(message)) => {
                mem!(self).gate = Gate::Shut;
                self.local_failed(cx.now, message);
            }
        }
        Ok(())
    }

    pub fn close_captured(&mut self, cx: &mut Cx, txid: Txid) -> Result<Option<Txid>, Stop> {
        if mem!(self).open.is_empty() {
            let seq = self.take_frames(cx)?;
            if mem!(self).frames.is_empty() {
                self.set_captured(seq);
                self.nothing_to_close(seq);
                return Ok(None);
            }
            mem!(self).captured_seq = seq;
            let entry = self.next_entry(Some(txid));
            self.write_frames(cx, entry)?;
            self.set_captured(seq);
            return Ok(Some(txid));
        }
        self.capture(cx)?;
        let closed = self.join_pieces(cx, Some(txid))?;
        self.add_closed(cx, closed);
        Ok(Some(txid))
    }

    fn add_closed(&mut self, cx: &mut Cx, entry: Entry) {
        let table = &self.disk.table;
        let (checksum, commit) = (table.checksum(), table.commit());
        let timestamp = self.timestamp(cx.now).0;
        let memory = mem!(self);
        let point = memory.point.as_mut().expect("there is a point to go on from");
        point.txid = entry.txid.expect("a closed file has a TXID");
        point.checksum = checksum;
        point.timestamp = timestamp;
        let base = Base {
            txid: point.txid.0,
            piece: entry.pieces.1,
            page_size: 512,
            commit,
            checksum: checksum.get(),
            timestamp,
            position: entry.position.map(Into::into),
        };
        let seq = memory.captured_seq;
        memory.closed.push_back(ClosedFile { entry, base, seq });
    }
}
