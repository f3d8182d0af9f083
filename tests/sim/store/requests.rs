//! Requests under way.

use walferry::store::ErrorKind;
use walferry::units::Level;

use super::fate::{Fate, failed, late};
use super::{Answer, Client, Request, Store, Upload, claim_key, header, unchanged};
use crate::rng::Rng;
use walferry::engine::Head;

pub struct Pending {
    client: Client,
    request: Request,
    effect_at: Option<u64>,
    answer_at: Option<u64>,
    answer: Option<Answer>,
}

impl Pending {
    fn is_upload(&self) -> bool {
        matches!(
            self.request,
            Request::OpenUpload { .. }
                | Request::CompleteUpload { .. }
                | Request::AbortUpload { .. }
        )
    }

    fn due(&self) -> Option<u64> {
        [self.effect_at, self.answer_at].into_iter().flatten().min()
    }
}

impl Store {
    /// Takes a request; its fate is drawn at once.
    pub fn submit(
        &mut self,
        rng: &mut Rng,
        now: u64,
        client: Client,
        request: Request,
    ) -> Result<(), String> {
        let Fate { effect_at, answer_at, answer } = self.draw(rng, now, &request);
        let (breaks, opens) = (rng.chance(10), matches!(request, Request::OpenUpload { .. }));
        let broken = failed(&request, ErrorKind::Unavailable);
        let answer_at = Some(answer_at);
        let pending = Pending { client, request, effect_at, answer_at, answer };
        let in_flight = self
            .pending
            .iter()
            .any(|other| other.client == client && other.answer_at.is_some() && !other.is_upload());
        if let Request::CompleteUpload { job, .. } = &pending.request
            && !self.uploads.contains(&(client, *job))
        {
            return Err(format!("host {} completes an upload that is not under way", client.0));
        }
        if in_flight && !pending.is_upload() {
            return Err(format!("host {} has two requests in flight", client.0));
        }
        if self.faults && opens && breaks && pending.answer.is_none() {
            // A part is lost later on: the upload fails in its midst, or when it is completed.
            let later = pending.answer_at.unwrap_or_default() + 1 + rng.below(200);
            self.pending.push(Pending {
                client,
                request: pending.request.clone(),
                effect_at: None,
                answer_at: Some(later),
                answer: Some(broken),
            });
        }
        self.pending.push(pending);
        Ok(())
    }

    /// Whether an upload was begun that nobody completes or gives up.
    pub fn has_upload(&self, client: Client) -> bool {
        self.uploads.iter().any(|(other, _)| *other == client)
    }

    /// The process died: nobody waits for answers any more, but what it sent may still land.
    pub fn abandon(&mut self, rng: &mut Rng, host: usize, incarnation: u64) {
        let most = self.late_max;
        for pending in &mut self.pending {
            if pending.client == (host, incarnation) {
                pending.answer_at = None;
                match rng.below(3) {
                    0 => pending.effect_at = None,
                    1 => pending.effect_at = pending.effect_at.map(|at| at + late(rng, most)),
                    _ => {}
                }
            }
        }
        self.pending.retain(|pending| pending.due().is_some());
    }

    pub fn due(&self) -> Option<u64> {
        self.pending.iter().filter_map(Pending::due).chain(self.chore_due()).min()
    }

    pub fn is_awaited(&self, client: Client) -> bool {
        self.pending.iter().any(|p| p.client == client && p.answer_at.is_some())
    }

    /// Does the earliest thing that is due; an answer goes to its process, if that lives.
    pub fn step(&mut self, rng: &mut Rng, now: u64) -> Option<(Client, Answer)> {
        self.now = now;
        let requests = self.pending.iter().filter_map(Pending::due).min();
        if requests.is_none_or(|at| at > now) {
            return self.step_chore(now);
        }
        let at = (0..self.pending.len())
            .filter(|i| self.pending[*i].due().is_some_and(|at| at <= now))
            .min_by_key(|i| (self.pending[*i].due(), *i))?;
        let mut pending = self.pending.remove(at);
        let effect_first = pending
            .effect_at
            .is_some_and(|effect| pending.answer_at.is_none_or(|answer| effect <= answer));
        if effect_first {
            pending.effect_at = None;
            if let (Some(natural), None) = (self.perform(&pending.request), &pending.answer) {
                pending.answer = Some(natural);
            }
            if pending.answer_at.is_some() {
                self.pending.insert(at, pending);
            }
            return None;
        }
        pending.answer_at = None;
        let client = pending.client;
        let request = pending.request.clone();
        let answer = match pending.answer.take().map(|answer| self.at_last(answer)) {
            Some(Answer::Head(Some(head))) => match self.claim_behind(&request, head) {
                Some(claim) => {
                    self.go_on(rng, now, client, claim);
                    None
                }
                None => Some(Answer::Head(Some(head))),
            },
            None if pending.effect_at.is_none() => match self.claim_again(&request) {
                Some(claim) => {
                    self.go_on(rng, now, client, claim);
                    None
                }
                None => Some(failed(&request, ErrorKind::Unavailable)),
            },
            answer => answer,
        };
        if pending.effect_at.is_some() {
            self.pending.insert(at, pending);
        }
        if let Some(Answer::Upload { job, outcome }) = &answer {
            self.end_upload(client, *job, outcome);
        }
        answer.map(|answer| (client, answer))
    }

    /// A job of the shipper that takes more than one request has its next.
    fn go_on(&mut self, rng: &mut Rng, now: u64, client: Client, request: Request) {
        let Fate { effect_at, answer_at, answer } = self.draw(rng, now, &request);
        let answer_at = Some(answer_at);
        self.pending.push(Pending { client, request, effect_at, answer_at, answer });
    }

    /// The file that takes over the log which ends with `head`, if it was asked for and the log is
    /// another's.
    fn claim_behind(&self, request: &Request, head: Head) -> Option<Request> {
        let Request::FindHead { claim: Some(claim) } = request else { return None };
        let last = self.files.iter().find(|(key, _)| key.name.max == head.txid);
        let (_, last) = last.filter(|_| claim.takes(head.writer))?;
        let header = Box::new(unchanged(&header(last), claim.writer));
        Some(Request::TakeOver { header, claim: *claim })
    }

    /// Another was faster: behind its file, then.
    fn claim_again(&self, request: &Request) -> Option<Request> {
        let Request::TakeOver { header: ours, claim } = request else { return None };
        let last = header(self.files.get(&claim_key(ours))?);
        if !claim.takes(last.writer) {
            return None;
        }
        let header = Box::new(unchanged(&last, claim.writer));
        Some(Request::TakeOver { header, claim: *claim })
    }

    /// The levels of a replica are listed one after the other, and the snapshots last.
    fn at_last(&self, answer: Answer) -> Answer {
        let Answer::Head(first) = answer else { return answer };
        let last = self.head(&[Level::SNAPSHOT]);
        let newest =
            [first, last].into_iter().flatten().reduce(|a, b| if b.txid > a.txid { b } else { a });
        Answer::Head(newest)
    }

    /// An upload ends once: after that nothing more is heard of it, and a completion that was under
    /// way comes to nothing or is done.
    fn end_upload(&mut self, client: Client, job: u64, outcome: &Upload) {
        if matches!(outcome, Upload::Opened) {
            self.uploads.insert((client, job));
            return;
        }
        self.uploads.remove(&(client, job));
        for pending in &mut self.pending {
            let of_job = match &pending.request {
                Request::OpenUpload { job: other }
                | Request::AbortUpload { job: other }
                | Request::CompleteUpload { job: other, .. } => *other == job,
                _ => false,
            };
            if of_job && pending.client == client {
                pending.answer_at = None;
            }
        }
        self.pending.retain(|pending| pending.due().is_some());
    }
}
