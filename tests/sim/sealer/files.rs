//! Writing spool files (`src/sealer/capture.rs`).

use walferry::local::spool::Entry;
use walferry::local::state::Base;
use walferry::ltx::encode::to_vec;
use walferry::ltx::merge::merge;
use walferry::ltx::{self, DatabaseChecksum, Decoder, HEADER_LEN, Header, Tag};
use walferry::units::{PageSize, Pgno, Salts, Txid};
use walferry::wal;

use super::Cursor;
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, state};
use crate::world::Cx;

/// The stretch of WAL that a header names.
#[derive(Clone, Copy)]
pub struct Span {
    offset: u64,
    len: u64,
    salts: Salts,
}

impl Span {
    pub const NONE: Span = Span { offset: 32, len: 0, salts: Salts(0, 0) };

    pub fn frames(page_size: PageSize, salts: Salts, first: u32, last: u32) -> Span {
        let offset = wal::frame_offset(page_size, first);
        Span { offset, len: wal::frame_offset(page_size, last + 1) - offset, salts }
    }

    pub fn name_in(self, header: Header) -> Header {
        Header { wal_offset: self.offset, wal_size: self.len, salts: self.salts, ..header }
    }
}

impl Host {
    pub fn next_entry(&mut self, p: usize, txid: Option<Txid>) -> Entry {
        let replica = re!(self, p);
        let position = match replica.cursor {
            Cursor::At(end) if end.at.frame > 0 => Some(end.at),
            _ => None,
        };
        let piece = replica.piece + 1;
        Entry { txid, pieces: (piece, piece), position, len: 0 }
    }

    /// Writes a spool file, publishes it, and makes the page table follow. An open one waits to be
    /// joined with others.
    pub fn write_piece(
        &mut self,
        cx: &mut Cx,
        p: usize,
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
        let header = self.header(cx.now, p, commit, after.checksum(), span)?;
        let bytes = to_vec(&header, pages.iter().map(|(pgno, page)| (*pgno, page.as_slice())))
            .map_err(|error| Stop::Failed(error.to_string()))?;
        if cx.bug == Bug::StateBeforeSpool
            && let Some(txid) = entry.txid
        {
            state!(self, p).base = Some(Base {
                txid: txid.0,
                piece: entry.pieces.1,
                page_size: header.page_size.get(),
                commit,
                checksum: after.checksum().get(),
                timestamp: header.timestamp.0,
                position: entry.position.map(Into::into),
            });
            let state = state!(self, p).clone();
            self.disk.save(&state, false)?;
        }
        let entry = Entry { len: bytes.len() as u64, ..entry };
        cx.log(format_args!(
            "host {}.{p}: {} holds {:?}",
            self.id,
            entry.file_name(),
            sums.iter().map(|(pgno, _)| *pgno).collect::<Vec<_>>()
        ));
        self.disk.publish(&entry, bytes)?;
        for (pgno, sum) in sums {
            self.disk.set(pgno, Some(sum))?;
        }
        self.disk.set_commit(commit)?;
        let replica = re!(self, p);
        replica.piece = entry.pieces.1;
        if entry.txid.is_none() {
            replica.open.push(entry.clone());
        }
        Ok(entry)
    }

    fn header(
        &mut self,
        now: u64,
        p: usize,
        commit: u32,
        post_apply: DatabaseChecksum,
        span: Span,
    ) -> Result<Header, Stop> {
        let timestamp = self.timestamp(now, p);
        let replica = re!(self, p);
        let point = replica.point.ok_or(Stop::Failed("the database is not open".into()))?;
        Ok(Header {
            page_size: point.page_size,
            commit,
            min_txid: point.txid.next(),
            max_txid: point.txid.next(),
            timestamp,
            wal_offset: span.offset,
            wal_size: span.len,
            salts: span.salts,
            writer: replica.engine.writer(),
            tag: Some(Tag { pre_apply: point.checksum, post_apply, full_image: false }),
        })
    }

    /// Joins the open pieces into one file, closed or open still; the parts go.
    pub fn join_pieces(
        &mut self,
        cx: &mut Cx,
        p: usize,
        txid: Option<Txid>,
    ) -> Result<Entry, Stop> {
        let open = re!(self, p).open.clone();
        let (first, last) = (open.first().unwrap(), open.last().unwrap());
        let pieces = (first.pieces.0, last.pieces.1);
        let entry = Entry { txid, pieces, position: last.position, len: 0 };
        let mut span = Span::NONE;
        let (commit, post) = (self.disk.table.commit(), self.disk.table.checksum());
        let mut inputs = Vec::new();
        for piece in &open {
            let bytes = self.disk.read(piece).ok_or(Stop::Failed("a piece is gone".into()))?;
            let decoder = Decoder::new(std::io::Cursor::new(bytes.clone()))
                .map_err(|error| Stop::Diverged(error.to_string()))?;
            let head = decoder.header();
            span = Span { offset: head.wal_offset, len: head.wal_size, salts: head.salts };
            inputs.push(decoder);
        }
        let header = self.header(cx.now, p, commit, post, span)?;
        let (mut bytes, encoded) = merge(inputs, &header, vec![0; HEADER_LEN])
            .map_err(|error| Stop::Diverged(error.to_string()))?;
        bytes[..HEADER_LEN].copy_from_slice(&encoded.header);
        let entry = Entry { len: bytes.len() as u64, ..entry };
        self.disk.publish(&entry, bytes)?;
        for piece in std::mem::take(&mut re!(self, p).open) {
            if piece.file_name() != entry.file_name() {
                self.disk.remove(&piece)?;
            }
        }
        Ok(entry)
    }
}
