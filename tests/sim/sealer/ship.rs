//! The engine's actions on their way out, the store's answers on their way in
//! (`src/sealer/replica.rs`, `src/sealer/closing.rs`, `src/shipper.rs`).

use walferry::engine::{Action, Event, Failure, Verdict};
use walferry::local::spool::Entry;
use walferry::local::state::Base;
use walferry::ltx::FileName;
use walferry::plan::retain::Own;
use walferry::store::Key;
use walferry::units::{Level, Timestamp, Txid, WriterId};

use super::image::Stage;
use super::work::Job;
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, PAGE_SIZE_CHANGED, re, state};
use crate::store::{Answer, Claim, Request};
use crate::world::Cx;

impl Host {
    /// Carries an action of the engine out.
    pub fn perform(&mut self, cx: &mut Cx, p: usize, action: Action) -> Result<(), Stop> {
        match action {
            Action::Close { txid } => self.close_file(cx, p, txid),
            Action::Resync { txid, scan, claim } => self.begin_resync(cx, p, txid, scan, claim),
            Action::Image { level, txid, pre_apply } => {
                if self.alone && self.image_reason.is_none() {
                    return Err(Stop::Broken("an image without need".into()));
                }
                self.images += 1;
                self.begin_image(cx, p, level, txid, pre_apply)
            }
            Action::FindHead => {
                let engine = &re!(self, p).engine;
                let (writer, claims) = (engine.writer(), !engine.has_claimed());
                let former = state!(self, p).former.map(WriterId);
                let from = former.filter(|_| cx.bug != Bug::TwinTakesAny);
                let announced = former.is_some() || cx.bug == Bug::ClaimNotAnnounced;
                let claim = (claims && announced).then_some(Claim { writer, from });
                self.ship(cx, p, Request::FindHead { claim })
            }
            Action::Put { txid } => self.put(cx, p, txid),
            Action::Inspect { txid } => {
                let (entry, _) = self.find_closed(p, txid)?;
                let ours = self.disk.read(&entry).cloned().unwrap_or_default();
                self.ship(cx, p, Request::Inspect { txid, ours })
            }
            Action::Confirm { level, min, max } => {
                let checksum = state!(self, p).image.map_or(0, |image| image.base.checksum);
                let key = Key { level, name: FileName { min, max } };
                let writer = re!(self, p).engine.writer();
                self.ship(cx, p, Request::Confirm { key, writer, checksum })
            }
        }
    }

    fn put(&mut self, cx: &mut Cx, p: usize, txid: Txid) -> Result<(), Stop> {
        let (entry, base) = self.find_closed(p, txid)?;
        let bytes = self.disk.read(&entry).cloned();
        let bytes = bytes.ok_or(Stop::Broken("a closed file is gone".into()))?;
        let key = Key { level: Level::L0, name: FileName::single(txid) };
        let engine = &re!(self, p).engine;
        let first = !engine.has_claimed();
        let look = !re!(self, p).looked;
        let own = Own { first: state!(self, p).first.map(Txid), last: txid.prev() };
        let boot = self.boot();
        let known = state!(self, p).is_sure(boot);
        let behind = look && !known && cx.bug != Bug::BeginningTakenForEnd;
        let first = first || (behind && own.may_outlast(txid.prev()));
        self.ship(cx, p, Request::Put { key, bytes, first, look, behind })?;
        if cx.bug == Bug::ReleaseBeforeAck {
            state!(self, p).base = Some(base);
            let state = state!(self, p).clone();
            self.disk.save(&state, false)?;
            self.disk.remove(&entry)?;
        }
        Ok(())
    }

    fn find_closed(&mut self, p: usize, txid: Txid) -> Result<(Entry, Base), Stop> {
        let file = re!(self, p).closed.iter().find(|file| file.entry.txid == Some(txid));
        file.map(|file| (file.entry.clone(), file.base))
            .ok_or(Stop::Broken(format!("no closed file {txid}")))
    }

    pub fn ship(&mut self, cx: &mut Cx, p: usize, request: Request) -> Result<(), Stop> {
        let incarnation = self.procs[p].incarnation;
        cx.store.submit(&mut cx.rng, cx.now, (self.id, incarnation), request).map_err(Stop::Broken)
    }

    /// The upload is dropped: the shipper aborts it, and says so some time.
    pub fn give_up_upload(&mut self, cx: &mut Cx, p: usize, number: u64) -> Result<(), Stop> {
        self.ship(cx, p, Request::AbortUpload { job: number })
    }

    pub fn slice(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        match std::mem::replace(&mut re!(self, p).job, Job::None) {
            Job::None => Ok(()),
            Job::Image { number, head, stage: Stage::Sending(sending) } => {
                self.step_image(cx, p, number, head, sending)
            }
            Job::Resync(comparison) => self.step_resync(cx, p, comparison),
            job @ Job::Image { .. } => {
                re!(self, p).job = job;
                Ok(())
            }
        }
    }

    /// Takes in the end of a request.
    pub fn shipped(&mut self, cx: &mut Cx, p: usize, answer: Answer) -> Result<(), Stop> {
        cx.log(format_args!("host {}.{p}: {answer:?}", self.id));
        let replica = re!(self, p);
        replica.awake = true;
        let front = replica.closed.front().and_then(|file| file.entry.txid);
        let answer = match answer {
            Answer::Failed(_) if cx.bug == Bug::AckBeforeDurable && front.is_some() => {
                Answer::PutDone
            }
            Answer::Inspected { txid, .. } if cx.bug == Bug::FenceIgnored => {
                Answer::Inspected { txid, verdict: Verdict::Ours }
            }
            Answer::Head(Some(mut head)) if cx.bug == Bug::SkipTxid => {
                head.txid = head.txid.next();
                Answer::Head(Some(head))
            }
            answer => answer,
        };
        let event = match answer {
            Answer::Head(head) => {
                match self.begin_claim(cx, p, head) {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(Stop::Failed(message)) => {
                        let failed = Event::RequestFailed(Failure::Local { message });
                        re!(self, p).engine.handle(cx.now, failed);
                        return Ok(());
                    }
                    Err(stop) => return Err(stop),
                }
                self.tell_lost_log(cx, p, head);
                if self.tell_own_twin(cx, p, head)? {
                    Event::HeadFound(head)
                } else {
                    let message = "the state cannot be saved".to_string();
                    Event::RequestFailed(Failure::Local { message })
                }
            }
            Answer::Claimed(head) => {
                self.claimed(cx, p, head.txid)?;
                Event::HeadFound(Some(head))
            }
            Answer::PutDone => {
                let Some(txid) = front else { return Ok(()) };
                // The end of the log is ours: what might have cost an image did not.
                self.image_reason = self.image_reason.filter(|why| *why == PAGE_SIZE_CHANGED);
                re!(self, p).looked = true;
                re!(self, p).engine.handle(cx.now, Event::PutDone { txid });
                return self.acked(cx, p, txid);
            }
            Answer::PutRefused => {
                let Some(txid) = front else { return Ok(()) };
                Event::PutRefused { txid }
            }
            Answer::Inspected { txid, verdict } => {
                if let Verdict::Foreign { writer } = verdict {
                    let found = walferry::engine::Head {
                        txid,
                        post_apply: None,
                        timestamp: Timestamp(0),
                        writer,
                    };
                    self.tell_own_twin(cx, p, Some(found))?;
                }
                re!(self, p).engine.handle(cx.now, Event::Inspected { txid, verdict });
                if re!(self, p).engine.status().acked >= txid {
                    self.acked(cx, p, txid)?;
                }
                return self.note_claim(cx, p);
            }
            Answer::Confirmed { arrived } => {
                self.confirmed_image(cx, p, arrived)?;
                Event::Confirmed { arrived }
            }
            Answer::Failed(failure) => {
                re!(self, p).claiming = false;
                Event::RequestFailed(failure)
            }
            Answer::History(event) => return self.history_done(cx, p, event),
            Answer::Upload { job, outcome } => return self.upload_event(cx, p, job, outcome),
        };
        re!(self, p).engine.handle(cx.now, event);
        self.note_claim(cx, p)?;
        self.note_sure(p)
    }

    /// Remembers that the log was seen to end where the state says.
    fn note_sure(&mut self, p: usize) -> Result<(), Stop> {
        let boot = self.boot();
        let replica = re!(self, p);
        let is_sure = replica.engine.is_sure();
        let Some(local) =
            replica.local.as_mut().filter(|local| is_sure && local.state.boot != boot)
        else {
            return Ok(());
        };
        local.state.boot = boot;
        let state = local.state.clone();
        self.disk.save_if_possible(&state, false)?;
        Ok(())
    }

    /// Remembers that the log was found to be ours.
    fn note_claim(&mut self, cx: &Cx, p: usize) -> Result<(), Stop> {
        if re!(self, p).local.is_none() || !re!(self, p).engine.has_claimed() {
            return Ok(());
        }
        let state = &mut state!(self, p);
        if cx.bug == Bug::ClaimNotNoted || std::mem::replace(&mut state.claimed, true) {
            return Ok(());
        }
        let state = state.clone();
        if self.disk.save_if_possible(&state, true)? {
            self.claimed = Some(state.writer);
        }
        Ok(())
    }
}
