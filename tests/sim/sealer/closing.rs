//! Closing files, and following them to the store until they are confirmed
//! (`src/sealer/closing.rs`).

use walferry::engine::{Event, Head};
use walferry::local::spool::Entry;
use walferry::local::state::{Base, State};
use walferry::units::{Txid, WriterId};

use super::ClosedFile;
use super::capture::Purpose;
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, sh, state};
use crate::process::Gate;
use crate::store::{Claim, Request};
use crate::world::Cx;

impl Host {
    /// Closes what was captured as this TXID.
    pub fn close_file(&mut self, cx: &mut Cx, p: usize, txid: Txid) -> Result<(), Stop> {
        match self.close_captured(cx, p, txid) {
            Ok(closed) => re!(self, p).engine.handle(cx.now, Event::Closed(closed)),
            Err(Stop::Diverged(why)) => {
                if cx.bug == Bug::LagForgotten {
                    re!(self, p).engine.handle(cx.now, Event::Closed(None));
                    self.diverge(cx, p, &why);
                    return Ok(());
                }
                self.diverge(cx, p, &why);
                re!(self, p).engine.handle(cx.now, Event::Closed(None));
            }
            Err(Stop::Failed(message)) => {
                sh!(self, p).gate = Gate::Shut;
                self.local_failed(cx, p, message);
            }
            Err(stop) => return Err(stop),
        }
        Ok(())
    }

    pub fn close_captured(
        &mut self,
        cx: &mut Cx,
        p: usize,
        txid: Txid,
    ) -> Result<Option<Txid>, Stop> {
        if re!(self, p).open.is_empty() {
            let seq = self.take_frames(cx, p, Purpose::Close)?;
            let replica = re!(self, p);
            if replica.open.is_empty() && replica.frames.is_empty() {
                self.set_captured(p, seq);
                self.nothing_to_close(p, seq, cx.bug);
                return Ok(None);
            }
            let before = std::mem::replace(&mut replica.captured_seq, seq);
            // What was left of the generation before is a piece by now.
            let alone = replica.open.is_empty();
            if !replica.frames.is_empty() {
                let entry = self.next_entry(p, alone.then_some(txid));
                let written = self.write_frames(cx, p, entry);
                if written.is_err() && cx.bug != Bug::CapturedBeforeWritten {
                    re!(self, p).captured_seq = before;
                }
                written?;
            }
            self.set_captured(p, seq);
            if alone {
                return Ok(Some(txid));
            }
        } else {
            self.capture(cx, p, Purpose::Close)?;
        }
        if re!(self, p).open.is_empty() {
            return Ok(None);
        }
        let closed = self.join_pieces(cx, p, Some(txid))?;
        self.add_closed(cx, p, closed);
        Ok(Some(txid))
    }

    /// Everything that was committed is with the store already.
    pub fn nothing_to_close(&mut self, p: usize, seq: usize, bug: Bug) {
        let replica = re!(self, p);
        let is_sure = replica.engine.is_sure() || bug == Bug::LogEndNotLookedAt;
        if replica.closed.is_empty() && replica.open.is_empty() && is_sure {
            self.show(p);
            let shared = &mut sh!(self, p);
            shared.acked_seq = shared.acked_seq.max(seq);
        }
    }

    pub fn add_closed(&mut self, cx: &mut Cx, p: usize, entry: Entry) {
        let (checksum, commit) = (self.disk.table.checksum(), self.disk.table.commit());
        let timestamp = self.timestamp(cx.now, p).0;
        let replica = re!(self, p);
        let seq = replica.captured_seq;
        let point = replica.point.as_mut().expect("there is a point to go on from");
        point.txid = entry.txid.expect("a closed file has a TXID");
        point.checksum = checksum;
        point.timestamp = timestamp;
        let base = Base {
            txid: point.txid.0,
            piece: entry.pieces.1,
            page_size: point.page_size.get(),
            commit,
            checksum: checksum.get(),
            timestamp,
            position: entry.position.map(Into::into),
        };
        replica.closed.push_back(ClosedFile { entry, base, seq });
    }

    /// The store confirmed a file: the state passes it, then it is removed.
    pub fn acked(&mut self, cx: &mut Cx, p: usize, txid: Txid) -> Result<(), Stop> {
        let is_sure = re!(self, p).engine.is_sure();
        let (mut seq, boot) = (0, self.boot().filter(|_| is_sure));
        loop {
            let replica = re!(self, p);
            let Some(file) = replica.closed.pop_front_if(|file| file.entry.txid <= Some(txid))
            else {
                break;
            };
            let state = &mut state!(self, p);
            // Once a lineage is in the log it must never forget that.
            let unsaved = self.claimed != Some(state.writer);
            let first = unsaved && cx.bug != Bug::ClaimNotSynced;
            state.confirm(file.base, boot.or(state.boot));
            let state = state.clone();
            self.confirmed.push(file.base.txid());
            self.add_l0_to_history(cx, p, file.base.txid(), file.base.timestamp);
            seq = seq.max(file.seq);
            if self.disk.save_if_possible(&state, first)? {
                self.claimed = Some(state.writer);
                self.disk.remove(&file.entry)?;
            } else {
                self.leftover = true;
            }
        }
        cx.log(format_args!("host {}.{p}: acked {txid}", self.id));
        self.show(p);
        let shared = &mut sh!(self, p);
        shared.acked_seq = shared.acked_seq.max(seq);
        self.report(cx, p)
    }

    /// Takes over a log that was found to be another's; `true` if that is under way. From whom is on the
    /// disk before anything of ours is in the log.
    pub fn begin_claim(&mut self, cx: &mut Cx, p: usize, head: Option<Head>) -> Result<bool, Stop> {
        let engine = &re!(self, p).engine;
        let (writer, claimed) = (engine.writer(), engine.has_claimed());
        let Some(head) = head.filter(|head| !claimed && head.writer != writer) else {
            return Ok(false);
        };
        let announced = State { former: Some(head.writer.0), ..state!(self, p).clone() };
        let may_be_there = state!(self, p).former.is_some() && !re!(self, p).claiming;
        if may_be_there || cx.bug == Bug::ClaimNotAnnounced {
            return Ok(false);
        }
        self.disk.save(&announced, true)?;
        state!(self, p) = announced;
        re!(self, p).claiming = true;
        let from = Some(head.writer);
        self.ship(cx, p, Request::FindHead { claim: Some(Claim { writer, from }) })?;
        Ok(true)
    }

    /// The log of another writer was taken over: from here on, whoever takes it from us fences us.
    /// What our own log was based on is of no use there.
    pub fn claimed(&mut self, cx: &mut Cx, p: usize, at: Txid) -> Result<(), Stop> {
        let replica = re!(self, p);
        replica.claiming = false;
        replica.claimed_at = at;
        replica.engine.claim();
        let writer = replica.engine.writer();
        let state = &mut state!(self, p);
        *state = State { claimed: true, first: Some(at.0), ..State::new(writer, "sim") };
        let state = state.clone();
        self.may_cost_image("the log was taken over");
        self.forget_history(cx, p);
        if self.disk.save_if_possible(&state, cx.bug != Bug::ClaimNotSynced)? {
            self.claimed = Some(writer.0);
        }
        Ok(())
    }

    /// A lineage that goes on for another, or may have taken its log, may not take it from a third.
    pub fn tell_lost_log(&mut self, cx: &Cx, p: usize, head: Option<Head>) {
        let former = state!(self, p).former;
        let engine = &mut re!(self, p).engine;
        let ours = engine.writer();
        let lost = head.zip(former).is_some_and(|(head, former)| {
            head.writer != ours && head.writer.0 != former && cx.bug != Bug::TwinTakesAny
        });
        if lost {
            engine.claim();
        }
    }

    /// The log ends with a file that has our own id, but is not one that we know: the disk forgot
    /// it, or a copy of it writes too. From here on we have another id.
    pub fn tell_own_twin(
        &mut self,
        cx: &mut Cx,
        p: usize,
        head: Option<Head>,
    ) -> Result<bool, Stop> {
        let replica = re!(self, p);
        let acked = replica.engine.status().acked;
        let (known, ours) = (acked.max(replica.claimed_at), replica.engine.writer());
        let twin = head.is_some_and(|head| head.txid > known && head.writer == ours);
        if !twin || acked == Txid::ZERO || !state!(self, p).claimed {
            return Ok(true);
        }
        let writer = WriterId(cx.rng.next() | 1);
        cx.log(format_args!("host {}.{p}: goes on as another writer", self.id));
        let renamed = State { former: Some(ours.0), ..State::new(writer, "sim") };
        if !self.disk.save_if_possible(&renamed, true)? {
            // What the disk does not know must not be in the log: later, then.
            return Ok(false);
        }
        self.claimed = None;
        state!(self, p) = renamed;
        re!(self, p).engine.begin_lineage(writer);
        self.forget_history(cx, p);
        Ok(true)
    }

    pub fn mark_acked(&mut self, p: usize, seq: usize) {
        re!(self, p).captured_seq = seq;
        self.show(p);
        let shared = &mut sh!(self, p);
        shared.captured_seq = seq;
        shared.acked_seq = shared.acked_seq.max(seq);
    }

    /// Forgets everything that waits: an image supersedes it.
    pub fn clear_spool(&mut self, p: usize) -> Result<(), Stop> {
        let replica = re!(self, p);
        let open = replica.open.drain(..);
        let closed = replica.closed.drain(..).map(|file| file.entry);
        for entry in open.chain(closed).collect::<Vec<_>>() {
            self.disk.remove(&entry)?;
        }
        Ok(())
    }
}
