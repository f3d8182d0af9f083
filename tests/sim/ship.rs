//! The model's half that talks to the store: the engine's actions on their way out, the answers on
//! their way in, as `src/sealer/replica.rs` and `src/shipper.rs` do it.

use walferry::engine::{Action, Event, Verdict};
use walferry::local::spool::Entry;
use walferry::local::state::Base;
use walferry::ltx::FileName;
use walferry::store::Key;
use walferry::units::{Level, Txid};

use crate::disk::Stop;
use crate::host::{Host, mem};
use crate::store::{Answer, Request};
use crate::world::{Bug, Cx};

impl Host {
    /// Carries an action of the engine out.
    pub fn perform(&mut self, cx: &mut Cx, action: Action) -> Result<(), Stop> {
        match action {
            Action::Close { txid } => self.close_file(cx, txid)?,
            Action::Resync { txid, scan, claim } => self.begin_resync(cx, txid, scan, claim)?,
            Action::Image { level, txid, pre_apply } => {
                if self.alone && !self.image_allowed {
                    return Err(Stop::Failed("an image without need".into()));
                }
                self.images += 1;
                self.begin_image(cx, level, txid, pre_apply)?;
            }
            Action::FindHead => self.ship(cx, Request::FindHead)?,
            Action::Put { txid } => {
                let file = self.find_closed(txid)?;
                let bytes = self.disk.read(&file.0).cloned();
                let bytes = bytes.ok_or(Stop::Failed("a closed file is gone".into()))?;
                let key = Key { level: Level::L0, name: FileName::single(txid) };
                self.ship(cx, Request::Put { key, bytes })?;
                if cx.bug == Bug::ReleaseBeforeAck {
                    mem!(self).state.base = Some(file.1);
                    self.disk.save(&mem!(self).state.clone())?;
                    self.disk.remove(&file.0)?;
                }
            }
            Action::Inspect { txid } => {
                let file = self.find_closed(txid)?;
                let ours = self.disk.read(&file.0).cloned().unwrap_or_default();
                self.ship(cx, Request::Inspect { txid, ours })?;
            }
            Action::Confirm { level, min, max } => {
                let memory = mem!(self);
                let checksum = memory.state.image.map_or(0, |image| image.base.checksum);
                let key = Key { level, name: FileName { min, max } };
                let writer = memory.engine.writer();
                self.ship(cx, Request::Confirm { key, writer, checksum })?;
            }
        }
        Ok(())
    }

    fn find_closed(&mut self, txid: Txid) -> Result<(Entry, Base), Stop> {
        let file = mem!(self).closed.iter().find(|file| file.entry.txid == Some(txid));
        file.map(|file| (file.entry.clone(), file.base))
            .ok_or(Stop::Failed(format!("no closed file {txid}")))
    }

    pub fn ship(&mut self, cx: &mut Cx, request: Request) -> Result<(), Stop> {
        let (id, incarnation) = (self.id, self.incarnation);
        cx.store.submit(&mut cx.rng, cx.now, id, incarnation, request).map_err(Stop::Failed)
    }

    /// Takes in the end of a request.
    pub fn shipped(&mut self, cx: &mut Cx, answer: Answer) -> Result<(), Stop> {
        let front = mem!(self).closed.front().and_then(|file| file.entry.txid);
        cx.log(format_args!("host {}: {answer:?}", self.id));
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
                // What somebody else has written costs an image.
                Event::HeadFound(head)
            }
            Answer::PutDone => {
                let Some(txid) = front else { return Ok(()) };
                mem!(self).engine.handle(cx.now, Event::PutDone { txid });
                return self.acked(cx, txid);
            }
            Answer::PutRefused => {
                let Some(txid) = front else { return Ok(()) };
                Event::PutRefused { txid }
            }
            Answer::Inspected { txid, verdict } => {
                if matches!(verdict, Verdict::Foreign { .. }) {
                    self.image_allowed = true;
                }
                let memory = mem!(self);
                memory.engine.handle(cx.now, Event::Inspected { txid, verdict });
                if memory.engine.status().acked >= txid {
                    self.acked(cx, txid)?;
                }
                return Ok(());
            }
            Answer::Confirmed { arrived } => {
                self.confirmed(cx, arrived)?;
                Event::Confirmed { arrived }
            }
            Answer::Failed(failure) => Event::RequestFailed(failure),
            upload => return self.upload_event(cx, upload),
        };
        mem!(self).engine.handle(cx.now, event);
        Ok(())
    }

    /// The store confirmed a file: the state passes it, then it is removed.
    fn acked(&mut self, cx: &mut Cx, txid: Txid) -> Result<(), Stop> {
        loop {
            let memory = mem!(self);
            let Some(file) = memory.closed.pop_front_if(|file| file.entry.txid <= Some(txid))
            else {
                break;
            };
            memory.state.base = Some(file.base);
            memory.state.claimed = true;
            memory.state.image = None;
            self.confirmed.push((file.base.txid(), memory.state.writer));
            memory.acked_seq = memory.acked_seq.max(file.seq);
            match self.disk.save(&memory.state.clone()) {
                Ok(()) => self.disk.remove(&file.entry)?,
                Err(Stop::Crash) => return Err(Stop::Crash),
                Err(_) => self.leftover = true,
            }
        }
        cx.log(format_args!("host {}: acked {txid}", self.id));
        self.settle();
        Ok(())
    }
}
