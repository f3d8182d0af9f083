//! When history is kept up: the state machine beside the engine.
//!
//! As the engine it has no I/O, clock or thread of its own: [`History::handle`] takes what happened,
//! [`History::poll`] gives what to do. It knows the replica's files as far as they decide about the
//! next joins ([`crate::plan::compact::needed`]), from what this process shipped and, where that
//! leaves a hole, from a listing.
//!
//! Time is that of the log, unless that stands still: a chore is due when a transaction is confirmed
//! whose commit time lies in another window than the one before it, and joins what came before that
//! transaction. So a database that nobody writes to makes no request, and a clock is never asked.
//! What failed is tried again with a later transaction; what could not be planned or contradicts itself,
//! once in each window.
//!
//! A file that turned out to be damaged is passed over from then on where others have what is in it, and
//! stands in for nothing when it is decided what can go.

use serde::{Deserialize, Serialize};

use crate::engine::{Backoff, Failure, Millis};
use crate::ltx::FileName;
use crate::plan::compact::{self, Ladder, Step};
use crate::plan::restore::Error;
use crate::plan::retain::{Keep, Own};
use crate::store::{ErrorKind, FileInfo, Key};
use crate::units::{Level, Timestamp, Txid};

/// Most files that are remembered: with more that nobody joins the replica is listed again.
const FILES_MAX: usize = 20_000;

/// What the user can set.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Options {
    /// Windows of level 1 and those above, at most 8, in milliseconds; 0 leaves a level out.
    pub levels: Vec<Millis>,
    /// Window of snapshots; 0 for none.
    pub snapshot: Millis,
    /// What is kept; `None` deletes nothing.
    pub keep: Option<Keep>,
    /// Window in which what is not kept is looked for once.
    pub check: Millis,
    /// Window in which the replica is proven once; 0 for never.
    pub validation: Millis,
    /// Seed of the backoff's jitter.
    pub jitter_seed: u64,
}

/// One thing to do. Its end is reported as an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// List the replica: `Surveyed`.
    Survey,
    /// Join files to one: `Joined`.
    Join(Step),
    /// Delete what is not kept: `Retained`.
    Retain {
        /// What is kept,
        keep: Keep,
        /// as of this time.
        at: Timestamp,
        /// Whose files are the caller's.
        own: Own,
        /// Files that are damaged: what they have is not taken for kept.
        damaged: Vec<Key>,
    },
    /// Read what leads to a state, and prove it, as a snapshot would that is not written: `Proved`.
    Prove(Step),
}

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The store confirmed a file of ours; its time is that of its last commit.
    Acked(FileInfo),
    /// The replica holds these files.
    Surveyed(Vec<FileInfo>),
    /// The joined file is at the store.
    Joined {
        /// It.
        file: FileInfo,
        /// Somebody else has made a file of this name.
        existed: bool,
        /// It is a whole database, and was proven by its checksum.
        proven: bool,
    },
    /// What is not kept was deleted, and these are left.
    Retained {
        /// All files of the replica.
        left: Vec<FileInfo>,
        /// How many are gone.
        removed: u64,
    },
    /// The state was read as a whole, and proven; or `None`, where no file tells its checksum.
    Proved(Option<Txid>),
    /// What was to be done failed.
    Failed(Failure),
    /// A file of the replica that was to be read is damaged.
    Damaged {
        /// It.
        key: Key,
        /// What is wrong with it.
        message: String,
    },
    /// Files of the replica do not fit each other.
    Contradicted(String),
    /// The replica is not what it was, or somebody else's: nothing is known of it.
    Forget,
}

/// How history stands.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Status {
    /// Files joined.
    pub joined: u64,
    /// Files removed.
    pub removed: u64,
    /// The newest state that was put together from the store's files and proven, and the time of the
    /// log then.
    pub proven: Option<(Txid, Timestamp)>,
    /// What fails.
    pub failure: Option<String>,
}

/// The state machine of one replica.
#[derive(Debug)]
pub struct History {
    options: Options,
    /// `None`: the replica must be listed before anything is planned.
    files: Option<Vec<FileInfo>>,
    /// Files that are not among those, since they are damaged.
    damaged: Vec<Damaged>,
    /// Why the newest state could not be restored when the replica was listed last.
    broken: Option<String>,
    chores: Vec<Chore>,
    doing: Option<Doing>,
    /// What was confirmed since then, if that is a listing.
    since: Vec<FileInfo>,
    /// Time of the newest confirmed transaction.
    at: Timestamp,
    /// How many were confirmed.
    acks: u64,
    joined: u64,
    removed: u64,
    proven: Option<(Txid, Timestamp)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Level(Level),
    Retain,
    Prove,
}

/// Something that is done once in each window in which there is data.
#[derive(Debug)]
struct Chore {
    kind: Kind,
    every: Millis,
    /// The window of the newest transaction.
    window: Option<i64>,
    /// When that window was entered, by a clock that nobody sets.
    entered: Option<Millis>,
    /// It is to be done, for what came before this transaction.
    due: Option<Txid>,
    /// The replica was listed for that.
    looked: bool,
    backoff: Backoff,
    failure: Option<(String, u64)>,
}

/// A damaged file.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
struct Damaged {
    level: u8,
    min: u64,
    max: u64,
    /// Length and times in the first listing since: with others it is another file.
    listed: Option<(u64, i64, i64)>,
}

impl Damaged {
    fn new(key: Key) -> Damaged {
        let FileName { min, max } = key.name;
        Damaged { level: key.level.get(), min: min.0, max: max.0, listed: None }
    }

    fn key(&self) -> Option<Key> {
        let name = FileName { min: Txid(self.min), max: Txid(self.max) };
        Some(Key { level: Level::new(self.level)?, name })
    }

    /// Whether a listing has it still.
    fn is_in(&mut self, files: &[FileInfo]) -> bool {
        let key = self.key();
        let Some(file) = files.iter().find(|file| Some(file.key) == key) else { return false };
        let now = (file.len, file.modified.0, file.stored.0);
        *self.listed.get_or_insert(now) == now
    }
}

/// What is under way, and for which chore.
#[derive(Debug)]
struct Doing {
    chore: usize,
    /// The file to be made.
    target: Option<Key>,
}

/// What outlives the process: without it the next one would have to list the replica.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Saved {
    /// Level, first and last transaction, length, and time of each file.
    files: Vec<(u8, u64, u64, u64, i64)>,
    /// Of each chore: length of the windows, number of the last one, transaction for which it is due.
    chores: Vec<(u64, Option<i64>, Option<u64>)>,
    proven: Option<(u64, i64)>,
    #[serde(default)]
    damaged: Vec<Damaged>,
    /// Why the newest state could not be restored.
    #[serde(default)]
    broken: Option<String>,
}

impl History {
    /// Of a replica of which nothing is known yet.
    pub fn new(options: Options) -> History {
        let mut chores = Vec::new();
        let levels = Level::all().skip(1).take(8).zip(&options.levels);
        let levels = levels.map(|(level, every)| (Kind::Level(level), *every));
        let retain = options.keep.map_or(0, |_| options.check);
        let rest = [
            (Kind::Level(Level::SNAPSHOT), options.snapshot),
            (Kind::Retain, retain),
            (Kind::Prove, options.validation),
        ];
        for (kind, every) in levels.chain(rest).filter(|(_, every)| *every > 0) {
            let seed = options.jitter_seed ^ (chores.len() as u64).wrapping_mul(0x9e37_79b9);
            chores.push(Chore {
                kind,
                every,
                window: None,
                entered: None,
                due: None,
                looked: false,
                backoff: Backoff::new(seed),
                failure: None,
            });
        }
        History {
            options,
            files: None,
            damaged: Vec::new(),
            broken: None,
            chores,
            doing: None,
            since: Vec::new(),
            at: Timestamp(0),
            acks: 0,
            joined: 0,
            removed: 0,
            proven: None,
        }
    }

    /// Goes on from what an earlier process knew. What it did not hear of shows as a hole behind it.
    pub fn resume(&mut self, saved: &Saved) {
        let file = |&(level, min, max, len, time): &(u8, u64, u64, u64, i64)| {
            let name = FileName { min: Txid(min), max: Txid(max) };
            let key = Key { level: Level::new(level)?, name };
            let time = Timestamp(time);
            Some(FileInfo { key, len, modified: time, stored: time })
        };
        self.files = saved.files.iter().map(file).collect();
        self.damaged.clone_from(&saved.damaged);
        self.broken.clone_from(&saved.broken);
        self.proven = saved.proven.map(|(txid, at)| (Txid(txid), Timestamp(at)));
        for (chore, (every, window, due)) in self.chores.iter_mut().zip(&saved.chores) {
            if chore.every == *every {
                (chore.window, chore.due) = (*window, due.map(Txid));
            }
        }
    }

    /// What the next process should know; `None` when nothing is known.
    pub fn saved(&self) -> Option<Saved> {
        let file = |file: &FileInfo| {
            let FileName { min, max } = file.key.name;
            (file.key.level.get(), min.0, max.0, file.len, file.modified.0)
        };
        let chore = |chore: &Chore| (chore.every, chore.window, chore.due.map(|before| before.0));
        Some(Saved {
            files: self.files.as_ref()?.iter().map(file).collect(),
            chores: self.chores.iter().map(chore).collect(),
            proven: self.proven.map(|(txid, at)| (txid.0, at.0)),
            damaged: self.damaged.clone(),
            broken: self.broken.clone(),
        })
    }

    /// Takes in what happened at `now`, in milliseconds of a clock that does not go back.
    pub fn handle(&mut self, now: Millis, event: Event) {
        match event {
            Event::Acked(file) => self.on_acked(now, file),
            Event::Surveyed(files) => {
                self.take_over(files);
                // That it could be listed says nothing of what failed.
                self.doing = None;
            }
            Event::Joined { file, existed, proven } => self.on_joined(file, existed, proven),
            Event::Retained { left, removed } => {
                self.removed += removed;
                self.take_over(left);
                self.finish();
            }
            Event::Proved(txid) => {
                self.proven = self.proven.max(txid.map(|txid| (txid, self.at)));
                self.finish();
            }
            Event::Failed(failure) => self.on_failed(now, &failure),
            Event::Damaged { key, message } => self.on_damaged(now, key, message),
            Event::Contradicted(why) => {
                if let Some(doing) = self.doing.take() {
                    self.give_up(doing.chore, why);
                }
            }
            Event::Forget => {
                self.files = None;
                self.damaged.clear();
                self.broken = None;
            }
        }
    }

    fn on_acked(&mut self, now: Millis, file: FileInfo) {
        self.acks += 1;
        self.at = self.at.max(file.modified);
        let txid = file.key.name.max;
        let first = file.key == Key { level: Level::SNAPSHOT, name: FileName::single(Txid(1)) };
        let known = self.head();
        match &mut self.files {
            // The replica is empty but for this.
            _ if first => {
                self.files = Some(vec![file]);
                self.damaged.clear();
            }
            Some(files) if known.next() == txid && files.len() < FILES_MAX => files.push(file),
            _ => self.files = None,
        }
        if file.key.level == Level::SNAPSHOT {
            // Whatever is missing or contradicts itself before it.
            self.broken = None;
            for chore in self.chores.iter_mut().filter(|chore| chore.due.is_none()) {
                chore.failure = None;
            }
        }
        if self.doing.as_ref().is_some_and(|doing| doing.target.is_none()) {
            self.since.push(file);
        }
        for chore in &mut self.chores {
            let every = i64::try_from(chore.every).unwrap_or(i64::MAX);
            let window = file.modified.0.div_euclid(every);
            // The windows of an unknown past may hold anything.
            let passed = chore.window.map_or(!first, |before| before < window);
            // After a clock that was set far ahead the log's time stands still for as long.
            let entered = *chore.entered.get_or_insert(now);
            if passed || now.saturating_sub(entered) >= chore.every {
                chore.looked = false;
                chore.due = Some(txid);
                chore.entered = Some(now);
            }
            chore.window = chore.window.max(Some(window));
        }
    }

    fn on_joined(&mut self, file: FileInfo, existed: bool, proven: bool) {
        match &mut self.files {
            Some(files) if !existed => files.push(file),
            // Its length is not known.
            files => *files = None,
        }
        self.joined += u64::from(!existed);
        if proven {
            self.proven = self.proven.max(Some((file.key.name.max, self.at)));
        }
        if file.key.level == Level::SNAPSHOT {
            // What it makes superfluous need not wait.
            let due = self.due_of(Kind::Level(Level::SNAPSHOT));
            for chore in self.chores.iter_mut().filter(|chore| chore.kind == Kind::Retain) {
                chore.due = chore.due.max(due);
            }
        }
        self.reduce();
        self.done();
    }

    fn on_failed(&mut self, now: Millis, failure: &Failure) {
        let Some(doing) = self.doing.take() else { return };
        let Some(chore) = self.chores.get_mut(doing.chore) else { return };
        let kind = match failure {
            Failure::Store { kind, .. } => *kind,
            Failure::Local { .. } => ErrorKind::Other,
        };
        chore.backoff.fail(now, !kind.is_transient());
        chore.failure = Some((failure.message().to_string(), self.acks));
        if !kind.is_transient() {
            // Perhaps what was planned with is not there any more.
            chore.looked = false;
            self.files = None;
        }
    }

    fn on_damaged(&mut self, now: Millis, key: Key, message: String) {
        let Some(doing) = self.doing.take() else { return };
        if self.is_damaged(key) {
            return self.give_up(doing.chore, message);
        }
        self.damaged.push(Damaged::new(key));
        if let Some(files) = &mut self.files {
            files.retain(|file| file.key != key);
        }
        if let Some(chore) = self.chores.get_mut(doing.chore) {
            // The next plan does without; what it needs instead may not be among what is known.
            chore.looked = false;
            chore.backoff.fail(now, false);
        }
    }

    fn is_damaged(&self, key: Key) -> bool {
        self.damaged.iter().any(|damaged| damaged.key() == Some(key))
    }

    /// Leaves a chore until its next window, and says why.
    fn give_up(&mut self, chore: usize, why: String) {
        if let Some(chore) = self.chores.get_mut(chore) {
            chore.due = None;
            chore.backoff.reset();
            chore.failure = Some((why, self.acks));
        }
    }

    /// A step is done, and its chore perhaps is not.
    fn done(&mut self) {
        let Some(doing) = self.doing.take() else { return };
        if let Some(chore) = self.chores.get_mut(doing.chore) {
            chore.backoff.reset();
            chore.failure = None;
        }
    }

    /// A chore is done.
    fn finish(&mut self) {
        if let Some(doing) = &self.doing
            && let Some(chore) = self.chores.get_mut(doing.chore)
        {
            chore.due = None;
        }
        self.done();
    }

    fn take_over(&mut self, mut files: Vec<FileInfo>) {
        // What was confirmed while the listing was made may not be in it.
        for file in std::mem::take(&mut self.since) {
            if head(&files).next() == file.key.name.min || file.key.name.min == Txid(1) {
                files.push(file);
            }
        }
        // One that was mended is another file.
        self.damaged.retain_mut(|damaged| damaged.is_in(&files));
        files.retain(|file| !self.is_damaged(file.key));
        self.broken = compact::whole(&files).err().map(|error| error.to_string());
        self.files = Some(files);
        self.reduce();
    }

    fn reduce(&mut self) {
        let ladder = self.ladder();
        if let Some(files) = &mut self.files {
            *files = compact::needed(files, &ladder);
        }
    }

    /// The levels that are made.
    fn ladder(&self) -> Ladder {
        Ladder::new(self.chores.iter().filter_map(|chore| match chore.kind {
            Kind::Level(level) => Some(level),
            _ => None,
        }))
    }

    fn due_of(&self, kind: Kind) -> Option<Txid> {
        self.chores.iter().find(|chore| chore.kind == kind).and_then(|chore| chore.due)
    }

    /// The next thing to do, if any; one thing at a time.
    pub fn poll(&mut self, now: Millis, own: Own) -> Option<Work> {
        if self.doing.is_some() {
            return None;
        }
        self.since.clear();
        for at in 0..self.chores.len() {
            let Some((kind, before)) = self.is_due(at, now) else { continue };
            let planned = match &self.files {
                Some(files) => self.plan(files, kind, before, own),
                None => return self.survey(at),
            };
            match planned {
                Ok(Some(work)) => {
                    let target = match &work {
                        Work::Join(step) => Some(step.key),
                        _ => None,
                    };
                    self.doing = Some(Doing { chore: at, target });
                    return Some(work);
                }
                Ok(None) => {
                    if let Some(chore) = self.chores.get_mut(at) {
                        chore.due = None;
                        chore.backoff.reset();
                        chore.failure = None;
                    }
                }
                // What is missing may be there by now.
                Err(_) if self.chores.get(at).is_some_and(|chore| !chore.looked) => {
                    return self.survey(at);
                }
                // The whole listing says more of it than what is kept of that.
                Err(error) => {
                    let why = self.broken.clone().unwrap_or_else(|| error.to_string());
                    self.give_up(at, why);
                }
            }
        }
        None
    }

    fn survey(&mut self, chore: usize) -> Option<Work> {
        self.chores.get_mut(chore)?.looked = true;
        self.doing = Some(Doing { chore, target: None });
        Some(Work::Survey)
    }

    fn is_due(&self, at: usize, now: Millis) -> Option<(Kind, Txid)> {
        let chore = self.chores.get(at)?;
        let news = chore.failure.as_ref().is_none_or(|(_, acks)| *acks < self.acks);
        let before = chore.due.filter(|_| news && chore.backoff.is_due(now))?;
        Some((chore.kind, before))
    }

    fn plan(
        &self,
        files: &[FileInfo],
        kind: Kind,
        before: Txid,
        own: Own,
    ) -> Result<Option<Work>, Error> {
        let ladder = self.ladder();
        let work = match kind {
            Kind::Level(Level::SNAPSHOT) => compact::snapshot(files, &ladder, before)?
                .filter(|step| compact::is_worth_it(step) || self.is_outlived(step))
                .map(|step| Work::Join(compact::in_turn(step, &ladder))),
            Kind::Level(level) => compact::next(files, &ladder, level, before).map(Work::Join),
            Kind::Retain => {
                let damaged = self.damaged.iter().filter_map(Damaged::key).collect();
                let keep = self.options.keep;
                keep.map(|keep| Work::Retain { keep, at: self.at, own, damaged })
            }
            Kind::Prove => compact::whole(files)?.map(|whole| {
                let step = compact::in_turn(whole.clone(), &ladder);
                if step == whole { Work::Prove(step) } else { Work::Join(step) }
            }),
        };
        Ok(match work {
            Some(Work::Join(step)) => self.under_a_free_name(step).map(Work::Join),
            other => other,
        })
    }

    /// The step, without its newest files if a damaged file has the name.
    fn under_a_free_name(&self, mut step: Step) -> Option<Step> {
        while self.is_damaged(step.key) {
            step = step.shorter()?;
        }
        Some(step)
    }

    /// Whether the snapshot before this one is so old that, with this one, it could go.
    fn is_outlived(&self, step: &Step) -> bool {
        let all = self.options.keep.and_then(|keep| keep.all);
        let all = all.map(|all| i64::try_from(all).unwrap_or(i64::MAX));
        let base = step.inputs.first();
        all.zip(base).is_some_and(|(all, base)| base.modified.0.saturating_add(all) < self.at.0)
    }

    /// The store asks for no request before `at`.
    pub fn hold_until(&mut self, at: Millis) {
        for chore in &mut self.chores {
            chore.backoff.hold_until(at);
        }
    }

    /// The file that is being made.
    pub fn making(&self) -> Option<Key> {
        self.doing.as_ref().and_then(|doing| doing.target)
    }

    /// Whether something is under way.
    pub fn is_busy(&self) -> bool {
        self.doing.is_some()
    }

    /// A summary for people.
    pub fn status(&self) -> Status {
        let of_chores = self.chores.iter().filter_map(|chore| chore.failure.as_ref());
        let of_chores = of_chores.map(|(message, _)| message.clone());
        let mut failures: Vec<String> = self.damage().into_iter().collect();
        for failure in self.broken.clone().into_iter().chain(of_chores) {
            if !failures.contains(&failure) {
                failures.push(failure);
            }
        }
        Status {
            joined: self.joined,
            removed: self.removed,
            proven: self.proven,
            failure: (!failures.is_empty()).then(|| failures.join("; ")),
        }
    }

    /// What is known to be damaged, for people.
    fn damage(&self) -> Option<String> {
        let first = self.damaged.first()?.key()?;
        let all = match self.damaged.len() {
            1 => format!("file {first} of the replica is damaged"),
            n => format!("{n} files of the replica are damaged, such as {first}"),
        };
        Some(format!("{all}: walferry verify shows what can be restored without"))
    }

    /// The newest transaction that any known file holds.
    fn head(&self) -> Txid {
        let damaged = self.damaged.iter().map(|damaged| Txid(damaged.max)).max();
        head(self.files.as_deref().unwrap_or_default()).max(damaged.unwrap_or(Txid::ZERO))
    }
}

fn head(files: &[FileInfo]) -> Txid {
    files.iter().map(|file| file.key.name.max).max().unwrap_or(Txid::ZERO)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
