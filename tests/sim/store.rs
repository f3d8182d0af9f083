//! The model of an object store.
//!
//! What it may do to a request, each by a number of percent while faults are on:
//!
//! - fail before anything happened: throttled, unavailable, or denied for a while;
//! - take effect and lose the answer;
//! - answer with an error and take effect later, even seconds after the next attempt, or after the
//!   process died (a zombie);
//! - be sent twice by the client underneath, so that a create finds its own file;
//! - be slow.
//!
//! What it never does: tear a file, forget one that it confirmed, or let two conditional creates of
//! one name succeed. Listings show what is there.

use std::collections::BTreeMap;

use walferry::engine::{Failure, Head, Verdict};
use walferry::ltx::{FileName, HEADER_LEN, Header};
use walferry::store::{ErrorKind, FileInfo, Key};
use walferry::units::{Level, Timestamp, Txid, WriterId};

use crate::rng::Rng;

/// What is asked.
#[derive(Clone, Debug)]
pub enum Request {
    FindHead,
    Put { key: Key, bytes: Vec<u8> },
    Inspect { txid: Txid, ours: Vec<u8> },
    Confirm { key: Key, writer: WriterId, checksum: u64 },
    OpenUpload,
    CompleteUpload { key: Key, bytes: Vec<u8> },
}

/// What comes back.
#[derive(Clone, Debug)]
pub enum Answer {
    Head(Option<Head>),
    PutDone,
    PutRefused,
    Inspected { txid: Txid, verdict: Verdict },
    Confirmed { arrived: bool },
    UploadOpened,
    UploadDone,
    UploadRefused,
    UploadFailed(Failure),
    Failed(Failure),
}

struct Pending {
    host: usize,
    incarnation: u64,
    request: Request,
    effect_at: Option<u64>,
    answer_at: Option<u64>,
    answer: Option<Answer>,
}

#[derive(Default)]
pub struct Store {
    pub files: BTreeMap<Key, Vec<u8>>,
    /// Files in the order in which they appeared, since somebody last looked.
    pub arrived: Vec<Key>,
    pending: Vec<Pending>,
    pub down_until: u64,
    pub denied: bool,
    pub faults: bool,
}

impl Store {
    /// Takes a request; its fate is drawn at once.
    pub fn submit(
        &mut self,
        rng: &mut Rng,
        now: u64,
        host: usize,
        incarnation: u64,
        request: Request,
    ) -> Result<(), String> {
        if self
            .pending
            .iter()
            .any(|p| p.host == host && p.incarnation == incarnation && p.answer_at.is_some())
        {
            return Err(format!("host {host} has two requests in flight"));
        }
        let is_upload = matches!(request, Request::OpenUpload | Request::CompleteUpload { .. });
        let failed = |kind| {
            let failure = Failure::Store { kind, message: format!("{kind:?}") };
            if is_upload { Answer::UploadFailed(failure) } else { Answer::Failed(failure) }
        };
        let effect = now + 1 + if rng.chance(10) { rng.below(3000) } else { rng.below(60) };
        let answer = effect + rng.below(30);
        let (mut effect_at, mut answer_at, mut fixed) = (Some(effect), answer, None);
        let fate = if self.faults { rng.below(100) } else { 100 };
        if self.faults && now < self.down_until {
            let kind = if self.denied { ErrorKind::Denied } else { ErrorKind::Unavailable };
            (effect_at, fixed) = (None, Some(failed(kind)));
        } else if fate < 8 {
            let kind = if rng.chance(30) { ErrorKind::Throttled } else { ErrorKind::Unavailable };
            (effect_at, fixed) = (None, Some(failed(kind)));
        } else if fate < 16 {
            fixed = Some(failed(ErrorKind::Unavailable));
        } else if fate < 22 {
            answer_at = now + 1 + rng.below(50);
            effect_at = Some(answer_at + rng.below(20_000));
            fixed = Some(failed(ErrorKind::Unavailable));
        } else if fate < 26 {
            // The client underneath had no answer and sent it again.
            match &request {
                Request::Put { .. } => fixed = Some(Answer::PutRefused),
                Request::CompleteUpload { .. } => fixed = Some(Answer::UploadRefused),
                _ => {}
            }
        }
        self.pending.push(Pending {
            host,
            incarnation,
            request,
            effect_at,
            answer_at: Some(answer_at),
            answer: fixed,
        });
        Ok(())
    }

    /// The process died: nobody waits for answers any more, but what it sent may still land.
    pub fn abandon(&mut self, rng: &mut Rng, host: usize, incarnation: u64) {
        for pending in &mut self.pending {
            if pending.host == host && pending.incarnation == incarnation {
                pending.answer_at = None;
                match rng.below(3) {
                    0 => pending.effect_at = None,
                    1 => pending.effect_at = pending.effect_at.map(|at| at + rng.below(20_000)),
                    _ => {}
                }
            }
        }
    }

    pub fn due(&self) -> Option<u64> {
        let times = self.pending.iter().flat_map(|p| [p.effect_at, p.answer_at]);
        times.flatten().min()
    }

    pub fn is_awaited(&self, host: usize, incarnation: u64) -> bool {
        self.pending
            .iter()
            .any(|p| p.host == host && p.incarnation == incarnation && p.answer_at.is_some())
    }

    /// Does the earliest thing that is due; an answer goes to its host, if that process lives.
    pub fn step(&mut self, now: u64) -> Option<(usize, u64, Answer)> {
        let due = |p: &Pending| [p.effect_at, p.answer_at].into_iter().flatten().min();
        let at = (0..self.pending.len())
            .filter(|i| due(&self.pending[*i]).is_some_and(|at| at <= now))
            .min_by_key(|i| (due(&self.pending[*i]), *i))?;
        let mut pending = self.pending.remove(at);
        let effect_first = pending
            .effect_at
            .is_some_and(|effect| pending.answer_at.is_none_or(|answer| effect <= answer));
        if effect_first {
            pending.effect_at = None;
            let natural = self.perform(&pending.request);
            pending.answer.get_or_insert(natural);
            if pending.answer_at.is_some() {
                self.pending.insert(at, pending);
            }
            return None;
        }
        pending.answer_at = None;
        let result = pending.answer.clone().map(|a| (pending.host, pending.incarnation, a));
        if pending.effect_at.is_some() {
            self.pending.insert(at, pending);
        }
        result
    }

    fn perform(&mut self, request: &Request) -> Answer {
        match request {
            Request::FindHead => Answer::Head(self.head()),
            Request::Put { key, bytes } => {
                if self.create(*key, bytes) {
                    Answer::PutDone
                } else {
                    Answer::PutRefused
                }
            }
            Request::Inspect { txid, ours } => {
                Answer::Inspected { txid: *txid, verdict: self.inspect(*txid, ours) }
            }
            Request::Confirm { key, writer, checksum } => {
                let header = self.files.get(key).map(|bytes| header(bytes));
                let arrived = header.is_some_and(|header| {
                    header.writer == *writer
                        && header.tag.is_some_and(|tag| tag.post_apply.get() == *checksum)
                });
                Answer::Confirmed { arrived }
            }
            Request::OpenUpload => Answer::UploadOpened,
            Request::CompleteUpload { key, bytes } => {
                if self.create(*key, bytes) {
                    Answer::UploadDone
                } else {
                    Answer::UploadRefused
                }
            }
        }
    }

    fn create(&mut self, key: Key, bytes: &[u8]) -> bool {
        if self.files.contains_key(&key) {
            return false;
        }
        self.files.insert(key, bytes.to_vec());
        self.arrived.push(key);
        true
    }

    /// As the shipper finds it: the newest over all levels, of equals the lowest level's.
    fn head(&self) -> Option<Head> {
        let mut newest: Option<(Key, &Vec<u8>)> = None;
        for (key, bytes) in &self.files {
            if newest.is_none_or(|(other, _)| other.name.max < key.name.max) {
                newest = Some((*key, bytes));
            }
        }
        let (key, bytes) = newest?;
        let header = header(bytes);
        Some(Head {
            txid: key.name.max,
            post_apply: header.tag.map(|tag| tag.post_apply),
            writer: header.writer,
        })
    }

    fn inspect(&self, txid: Txid, ours: &[u8]) -> Verdict {
        let key = Key { level: Level::L0, name: FileName::single(txid) };
        match self.files.get(&key) {
            None => Verdict::Missing,
            Some(bytes) if bytes.as_slice() == ours => Verdict::Ours,
            Some(bytes) => Verdict::Foreign { writer: header(bytes).writer },
        }
    }

    pub fn listing(&self) -> Vec<FileInfo> {
        let info = |(key, bytes): (&Key, &Vec<u8>)| FileInfo {
            key: *key,
            len: bytes.len() as u64,
            modified: Timestamp(0),
        };
        self.files.iter().map(info).collect()
    }
}

pub fn header(bytes: &[u8]) -> Header {
    Header::decode(bytes.first_chunk::<HEADER_LEN>().unwrap()).unwrap()
}
