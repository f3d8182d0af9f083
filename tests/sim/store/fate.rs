//! What the store, the network and the client underneath may do to a request, each by a number of
//! percent while faults are on:
//!
//! - fail before anything happened: throttled, unavailable, or denied for a while; a body that was
//!   cut on its way is the same, since a file appears whole or not at all;
//! - take effect and lose the answer;
//! - answer with an error and take effect later, even seconds after the next attempt, or after the
//!   process died and its successor began;
//! - be sent twice by the client underneath, so that a create finds its own file;
//! - lose an upload between its parts, or complete it and say that it is not known;
//! - be slow, on the way there or on the way back: what an answer tells is old when it comes.

use walferry::engine::Failure;
use walferry::store::ErrorKind;

use super::{Answer, Request, Store, Upload};
use crate::rng::Rng;

/// When a request takes effect and when its answer comes; what it is, if not what the effect gives.
pub struct Fate {
    pub effect_at: Option<u64>,
    pub answer_at: u64,
    pub answer: Option<Answer>,
}

impl Store {
    pub(super) fn draw(&self, rng: &mut Rng, now: u64, request: &Request) -> Fate {
        let effect = now + 1 + slow(rng, 60);
        let answer_at = effect + slow(rng, 30);
        let sure = |answer| Fate { effect_at: Some(effect), answer_at, answer };
        let lost = |answer| Fate { effect_at: None, answer_at, answer: Some(answer) };
        if !self.faults {
            return sure(None);
        }
        if matches!(request, Request::AbortUpload { .. }) {
            let answer_at = if rng.chance(50) { effect + rng.below(3000) } else { answer_at };
            return Fate { effect_at: Some(effect), answer_at, answer: None };
        }
        if now < self.down_until {
            let kind = if self.denied { ErrorKind::Denied } else { ErrorKind::Unavailable };
            return lost(failed(request, kind));
        }
        match rng.below(100) {
            0..8 => {
                let kind =
                    if rng.chance(30) { ErrorKind::Throttled } else { ErrorKind::Unavailable };
                lost(failed(request, kind))
            }
            8..16 => sure(Some(failed(request, ErrorKind::Unavailable))),
            16..22 => {
                let answer_at = now + 1 + rng.below(50);
                let effect_at = Some(answer_at + late(rng, self.late_max));
                Fate { effect_at, answer_at, answer: Some(failed(request, ErrorKind::Unavailable)) }
            }
            // The client underneath had no answer and sent it again.
            22..26 => sure(match request {
                Request::Put { .. } => Some(Answer::PutRefused),
                Request::CompleteUpload { job, .. } => {
                    let outcome = if rng.chance(50) {
                        Upload::Refused
                    } else {
                        // The upload's id is not known any more: it is complete.
                        let message = "NoSuchUpload".to_string();
                        Upload::Failed(Failure::Store { kind: ErrorKind::Other, message })
                    };
                    Some(Answer::Upload { job: *job, outcome })
                }
                _ => None,
            }),
            _ => sure(None),
        }
    }
}

fn slow(rng: &mut Rng, usual: u64) -> u64 {
    if rng.chance(8) { rng.below(3000) } else { rng.below(usual) }
}

/// How long after its answer a request may take effect. Whatever is removed has to be older than that.
pub fn late(rng: &mut Rng, most: u64) -> u64 {
    rng.below(20_000) % most
}

/// The answer that says that a request failed.
pub fn failed(request: &Request, kind: ErrorKind) -> Answer {
    let failure = Failure::Store { kind, message: format!("{kind:?}") };
    match request {
        Request::OpenUpload { job } | Request::CompleteUpload { job, .. } => {
            Answer::Upload { job: *job, outcome: Upload::Failed(failure) }
        }
        _ => Answer::Failed(failure),
    }
}
