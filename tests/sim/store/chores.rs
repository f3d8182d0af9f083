//! What keeps the history up, at the store: requests beside all others (`src/history/work.rs`), whose
//! chances come from a generator of their own, so that histories without them stay what they are.

use walferry::engine::Failure;
use walferry::history::{Event, Inputs, Work};
use walferry::plan::compact::Step;
use walferry::plan::retain::{
    Doomed, Own, Policy, begun, doomed, expired, keeps_the_newest, predecessors,
};
use walferry::store::{ErrorKind, FileInfo, Key};
use walferry::units::{Level, Timestamp};

use super::fate::late;
use super::{Answer, Client, Store, header};
use crate::bug::Bug;
use crate::rng::Rng;

/// One piece of work under way.
pub struct Chore {
    client: Client,
    work: Work,
    /// What a deletion goes by, as it was when it was asked for.
    listing: Vec<FileInfo>,
    effect_at: Option<u64>,
    answer_at: Option<u64>,
    answer: Option<Event>,
    /// How many deletes come to pass before the process or the store breaks off.
    deletes: usize,
    bug: Bug,
}

impl Chore {
    fn due(&self) -> Option<u64> {
        [self.effect_at, self.answer_at].into_iter().flatten().min()
    }
}

/// A file that was deleted, and by what policy.
pub struct Removed {
    pub key: Key,
    pub policy: Policy,
}

impl Store {
    pub fn submit_chore(&mut self, rng: &mut Rng, now: u64, client: Client, work: Work, bug: Bug) {
        let slow = |rng: &mut Rng| if rng.chance(10) { rng.below(5000) } else { rng.below(200) };
        let effect = now + 1 + slow(rng);
        let answer_at = effect + slow(rng);
        let fails = || Some(failed(ErrorKind::Unavailable));
        let deletes =
            if self.faults && rng.chance(30) { rng.below(6) as usize } else { usize::MAX };
        let (effect_at, answer) = match rng.below(100) {
            _ if !self.faults => (Some(effect), None),
            _ if now < self.down_until && self.denied => (None, Some(failed(ErrorKind::Denied))),
            _ if now < self.down_until => (None, fails()),
            0..8 => (None, fails()),
            8..16 => (Some(effect), fails()),
            // The answer is an error, and it takes effect when others have tried again.
            16..24 => (Some(answer_at + late(rng, self.late_max)), fails()),
            _ => (Some(effect), None),
        };
        let (listing, answer_at) = (self.listing(), Some(answer_at));
        let chore = Chore { client, work, listing, effect_at, answer_at, answer, deletes, bug };
        self.chores.push(chore);
    }

    pub fn abandon_chores(&mut self, rng: &mut Rng, client: Client) {
        let most = self.late_max;
        for chore in self.chores.iter_mut().filter(|chore| chore.client == client) {
            chore.answer_at = None;
            match rng.below(3) {
                0 => chore.effect_at = None,
                1 => chore.effect_at = chore.effect_at.map(|at| at + late(rng, most)),
                _ => {}
            }
        }
        self.chores.retain(|chore| chore.due().is_some());
    }

    pub fn chore_due(&self) -> Option<u64> {
        self.chores.iter().filter_map(Chore::due).min()
    }

    /// Does the earliest thing that is due.
    pub fn step_chore(&mut self, now: u64) -> Option<(Client, Answer)> {
        let at = (0..self.chores.len())
            .filter(|i| self.chores[*i].due().is_some_and(|at| at <= now))
            .min_by_key(|i| (self.chores[*i].due(), *i))?;
        let mut chore = self.chores.remove(at);
        if chore.effect_at.is_some() && chore.effect_at == chore.due() {
            chore.effect_at = None;
            let natural = self.do_chore(&chore);
            chore.answer.get_or_insert(natural);
            if chore.answer_at.is_some() {
                self.chores.insert(at, chore);
            }
            return None;
        }
        chore.answer_at = None;
        let (client, answer) = (chore.client, chore.answer.take());
        if chore.effect_at.is_some() {
            self.chores.insert(at, chore);
        }
        answer.map(|event| (client, Answer::History(event)))
    }

    fn do_chore(&mut self, chore: &Chore) -> Event {
        match &chore.work {
            Work::Survey => Event::Surveyed(self.listing()),
            Work::Join(step) => self.join(step, chore.bug),
            Work::Prove(step) => match self.joined(step) {
                Ok((_, proven)) => Event::Proved(proven.then_some(step.key.name.max)),
                Err(event) => event,
            },
            Work::Retain { keep, at, own, .. } => {
                let policy = keep.at(*at, &chore.listing);
                let gone = expired(&chore.listing, policy);
                assert!(keeps_the_newest(&chore.listing, &gone), "the newest state would go");
                let mut gone = self.removable(&chore.listing, gone, *own);
                match chore.bug {
                    Bug::UncoveredRemoved => {
                        let is_old = |file: &&FileInfo| {
                            file.key.level == Level::L0 && file.stored < policy.l0
                        };
                        gone.extend(chore.listing.iter().filter(is_old));
                    }
                    Bug::YoungRemoved => {
                        let all = Some(Timestamp(i64::MAX));
                        gone = expired(&chore.listing, Policy { all, ..policy });
                    }
                    _ => {}
                }
                let removed = gone.len() as u64;
                let broken = gone.len() > chore.deletes;
                for file in gone.iter().take(chore.deletes) {
                    if self.files.remove(&file.key).is_some() {
                        self.removed.push(Removed { key: file.key, policy });
                    }
                }
                if broken {
                    return failed(ErrorKind::Unavailable);
                }
                let left = chore.listing.iter().filter(|file| !gone.contains(file));
                Event::Retained { left: left.copied().collect(), removed }
            }
        }
    }

    /// Without the first file of each lineage.
    fn removable(&self, files: &[FileInfo], expired: Vec<FileInfo>, own: Own) -> Vec<FileInfo> {
        let Doomed { mut sure, unsure } = doomed(expired, own);
        let writer = |key| self.files.get(key).map(|bytes: &Vec<u8>| header(bytes).writer);
        let written: Vec<_> = unsure.iter().map(|file| (*file, writer(&file.key))).collect();
        let before = predecessors(&unsure, files);
        let before = before.iter().filter_map(|(file, end)| Some((*file, writer(end)?)));
        let stays = begun(&written, &before.collect());
        sure.extend(unsure.into_iter().filter(|file| !stays.contains(&file.key)));
        sure
    }

    fn join(&mut self, step: &Step, bug: Bug) -> Event {
        let mut inputs = step.inputs.clone();
        if bug == Bug::InputSkipped && inputs.len() > 2 {
            inputs.remove(1);
        }
        let (bytes, proven) = match self.joined(&Step { key: step.key, inputs }) {
            Ok(joined) => joined,
            Err(event) => return event,
        };
        let modified = header(&bytes).timestamp;
        let file = FileInfo { key: step.key, len: bytes.len() as u64, modified, stored: modified };
        let existed = !self.create(step.key, &bytes);
        Event::Joined { file, existed, proven }
    }

    fn joined(&self, step: &Step) -> Result<(Vec<u8>, bool), Event> {
        let inputs: Option<Vec<&[u8]>> =
            step.inputs.iter().map(|file| self.files.get(&file.key).map(Vec::as_slice)).collect();
        let inputs = inputs.ok_or_else(|| failed(ErrorKind::NotFound))?;
        let mut out = Vec::new();
        let joined = Inputs::open(step, inputs).and_then(|inputs| inputs.join(&mut out, None));
        let (encoded, proven) = joined.map_err(|error| {
            let message = error.to_string();
            Event::Failed(Failure::Store { kind: ErrorKind::Other, message })
        })?;
        out[..encoded.header.len()].copy_from_slice(&encoded.header);
        Ok((out, proven))
    }
}

fn failed(kind: ErrorKind) -> Event {
    Event::Failed(Failure::Store { kind, message: format!("{kind:?}") })
}
