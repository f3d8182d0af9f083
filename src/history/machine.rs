//! The state machine that decides when to compact, delete and prove files. It runs beside the engine.
//!
//! Like the engine, [`History`] has no I/O, clock or thread of its own: [`History::handle`] takes events,
//! and [`History::poll`] returns work. `History` knows the files of the replica that decide about the
//! next compactions ([`crate::plan::compact::needed`]). It knows them from the files that this process
//! uploaded, and from a listing where these leave a gap.
//!
//! Time is the time of the log. A chore becomes due when the store confirms a transaction whose commit
//! time lies in a later window than the transaction before. The chore then compacts the files before that
//! transaction. So a database without commits causes no requests. If the time of the log stands still, a
//! chore becomes due with the first transaction after the length of a window.
//!
//! Failed work is tried again with a later transaction. Work that cannot be planned, or whose files
//! contradict each other, is tried again once in each window.
//!
//! Once a file is known to be damaged, plans do without the file if other files cover its transactions.
//! Retention then does not count the file as covering others.

use serde::{Deserialize, Serialize};

use crate::engine::{Backoff, Failure, Millis};
use crate::ltx::FileName;
use crate::plan::compact::{self, Ladder, Step};
use crate::plan::restore::Error;
use crate::plan::retain::{Keep, Own};
use crate::store::{ErrorKind, FileInfo, Key};
use crate::units::{Level, Timestamp, Txid};

/// Largest number of files to remember. With more files, `History` lists the replica again.
const FILES_MAX: usize = 20_000;

/// Settings of the user.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Options {
    /// Windows of level 1 and up, at most 8 of them, in milliseconds; 0 leaves a level out.
    pub levels: Vec<Millis>,
    /// Window of snapshots; 0 for none.
    pub snapshot: Millis,
    /// Retention times; `None` deletes nothing.
    pub keep: Option<Keep>,
    /// Window for one deletion of expired files.
    pub check: Millis,
    /// Window for one proof of the replica; 0 for none.
    pub validation: Millis,
    /// Seed of the backoff's jitter.
    pub jitter_seed: u64,
}

/// One piece of work. The caller reports its end as an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// List the replica; ends with `Surveyed`.
    Survey,
    /// Compact files into one; ends with `Joined`.
    Join(Step),
    /// Delete expired files; ends with `Retained`.
    Retain {
        /// Retention times.
        keep: Keep,
        /// Time from which the retention times count back.
        at: Timestamp,
        /// The caller's own files of level 0.
        own: Own,
        /// Damaged files, which cover no other file.
        damaged: Vec<Key>,
    },
    /// Read the files that lead to a state and prove them, like a snapshot that is not written; ends with
    /// `Proved`.
    Prove(Step),
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The store confirmed a file of ours. The file's time is the time of its last commit.
    Acked(FileInfo),
    /// The replica holds these files.
    Surveyed(Vec<FileInfo>),
    /// The compacted file is at the store.
    Joined {
        /// The compacted file.
        file: FileInfo,
        /// True if another process has made a file of this name.
        existed: bool,
        /// True if the file is a whole database, proven by its checksum.
        proven: bool,
    },
    /// Expired files were deleted.
    Retained {
        /// All remaining files of the replica.
        left: Vec<FileInfo>,
        /// Number of deleted files.
        removed: u64,
    },
    /// The state was read and proven; `None` if no file names its checksum.
    Proved(Option<Txid>),
    /// The work failed.
    Failed(Failure),
    /// A file that the work had to read is damaged.
    Damaged {
        /// The damaged file.
        key: Key,
        /// Description of the damage.
        message: String,
    },
    /// Files of the replica contradict each other.
    Contradicted(String),
    /// The replica has changed unexpectedly, or belongs to another writer: nothing is known about it.
    Forget,
}

/// Status of the history.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Status {
    /// Number of compacted files made.
    pub joined: u64,
    /// Number of deleted files.
    pub removed: u64,
    /// The newest state that was read from the store's files and proven, and the time of the log then.
    pub proven: Option<(Txid, Timestamp)>,
    /// All current failures.
    pub failure: Option<String>,
}

/// The state machine of one replica.
#[derive(Debug)]
pub struct History {
    options: Options,
    /// Files that decide about the next work; `None` if the replica must be listed before any plan.
    files: Option<Vec<FileInfo>>,
    /// Damaged files, which are not in `files`.
    damaged: Vec<Damaged>,
    /// Reason why the newest state could not be restored, as of the last listing.
    broken: Option<String>,
    chores: Vec<Chore>,
    doing: Option<Doing>,
    /// Files confirmed since the start of the work in `doing`, if that work may list the replica.
    since: Vec<FileInfo>,
    /// Time of the newest confirmed transaction.
    at: Timestamp,
    /// Number of confirmed files.
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

/// Work that is done once in each window that has transactions.
#[derive(Debug)]
struct Chore {
    kind: Kind,
    /// Length of a window in milliseconds.
    every: Millis,
    /// Number of the newest transaction's window.
    window: Option<i64>,
    /// Time at which the chore became due last, by a monotonic clock; at first the time of the first
    /// transaction.
    entered: Option<Millis>,
    /// If set, the chore is due, for the files before this transaction.
    due: Option<Txid>,
    /// True if the replica was listed for this due chore.
    looked: bool,
    backoff: Backoff,
    /// Last failure, and the value of `History::acks` then.
    failure: Option<(String, u64)>,
}

/// A damaged file.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
struct Damaged {
    level: u8,
    min: u64,
    max: u64,
    /// Length and times of the file in the first listing after the damage was found. A file with another
    /// length or other times is a new file.
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

    /// True if the listing still has the damaged file. Records its length and times at the first call.
    fn is_in(&mut self, files: &[FileInfo]) -> bool {
        let key = self.key();
        let Some(file) = files.iter().find(|file| Some(file.key) == key) else { return false };
        let now = (file.len, file.modified.0, file.stored.0);
        *self.listed.get_or_insert(now) == now
    }
}

/// The work that is under way.
#[derive(Debug)]
struct Doing {
    /// Index of the chore that the work is for.
    chore: usize,
    /// The file that a compaction makes; `None` for other work.
    target: Option<Key>,
}

/// State that outlives the process. Without this state, the next process would have to list the replica.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Saved {
    /// Level, first and last transaction, length, and time of each file.
    files: Vec<(u8, u64, u64, u64, i64)>,
    /// For each chore: length of its windows, number of the last window, transaction that made it due.
    chores: Vec<(u64, Option<i64>, Option<u64>)>,
    proven: Option<(u64, i64)>,
    #[serde(default)]
    damaged: Vec<Damaged>,
    /// Reason why the newest state could not be restored.
    #[serde(default)]
    broken: Option<String>,
}

impl History {
    /// Starts without any knowledge of the replica.
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

    /// Continues from the state of an earlier process. Files that this process did not know of show later
    /// as a gap behind its newest file.
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

    /// Returns the state for the next process; `None` if the replica's files are unknown.
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

    /// Handles an event at the time `now`, in milliseconds of a monotonic clock.
    pub fn handle(&mut self, now: Millis, event: Event) {
        match event {
            Event::Acked(file) => self.on_acked(now, file),
            Event::Surveyed(files) => {
                self.take_over(files);
                // A successful listing does not clear the chore's failure.
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
            // This image is the only file of the replica.
            _ if first => {
                self.files = Some(vec![file]);
                self.damaged.clear();
            }
            Some(files) if known.next() == txid && files.len() < FILES_MAX => files.push(file),
            _ => self.files = None,
        }
        if file.key.level == Level::SNAPSHOT {
            // Missing or contradictory files before a full image do not matter any more.
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
            // Without a known window, earlier windows may hold files that still wait for this chore.
            let passed = chore.window.map_or(!first, |before| before < window);
            // If the wall clock was set far ahead and back, the time of the log stands still until the
            // clock has caught up. So the chore also becomes due after the length of a window.
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
            // The length of the existing file is not known.
            files => *files = None,
        }
        self.joined += u64::from(!existed);
        if proven {
            self.proven = self.proven.max(Some((file.key.name.max, self.at)));
        }
        if file.key.level == Level::SNAPSHOT {
            // Files that this snapshot replaces can be deleted at once.
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
            // The files of the plan may not exist any more, so list the replica again.
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
            // The next plan does without the file. That plan may need files that `files` does not hold, so
            // a listing must be allowed again.
            chore.looked = false;
            chore.backoff.fail(now, false);
        }
    }

    fn is_damaged(&self, key: Key) -> bool {
        self.damaged.iter().any(|damaged| damaged.key() == Some(key))
    }

    /// Drops a chore until its next window, and records the reason.
    fn give_up(&mut self, chore: usize, why: String) {
        if let Some(chore) = self.chores.get_mut(chore) {
            chore.due = None;
            chore.backoff.reset();
            chore.failure = Some((why, self.acks));
        }
    }

    /// Ends a piece of work without a failure. Its chore may have more work.
    fn done(&mut self) {
        let Some(doing) = self.doing.take() else { return };
        if let Some(chore) = self.chores.get_mut(doing.chore) {
            chore.backoff.reset();
            chore.failure = None;
        }
    }

    /// Ends a piece of work and its chore.
    fn finish(&mut self) {
        if let Some(doing) = &self.doing
            && let Some(chore) = self.chores.get_mut(doing.chore)
        {
            chore.due = None;
        }
        self.done();
    }

    fn take_over(&mut self, mut files: Vec<FileInfo>) {
        // The listing may lack files that were confirmed while it was made.
        for file in std::mem::take(&mut self.since) {
            if head(&files).next() == file.key.name.min || file.key.name.min == Txid(1) {
                files.push(file);
            }
        }
        // A repaired file has another time or length, and counts as a new file.
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

    /// Returns the levels in use.
    fn ladder(&self) -> Ladder {
        Ladder::new(self.chores.iter().filter_map(|chore| match chore.kind {
            Kind::Level(level) => Some(level),
            _ => None,
        }))
    }

    fn due_of(&self, kind: Kind) -> Option<Txid> {
        self.chores.iter().find(|chore| chore.kind == kind).and_then(|chore| chore.due)
    }

    /// Returns the next piece of work, if any. There is none while a piece of work is under way.
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
                // Missing files may have arrived since the last listing.
                Err(_) if self.chores.get(at).is_some_and(|chore| !chore.looked) => {
                    return self.survey(at);
                }
                // `broken` comes from the whole listing and is more precise than `error`, which comes from
                // the few files kept of the listing.
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

    /// Returns the step. While a damaged file has its name, drops the step's newest input; `None` if no
    /// input is left.
    fn under_a_free_name(&self, mut step: Step) -> Option<Step> {
        while self.is_damaged(step.key) {
            step = step.shorter()?;
        }
        Some(step)
    }

    /// True if the step's first input is older than the retention time. For a snapshot step this is the
    /// previous snapshot, which the new snapshot would help to expire.
    fn is_outlived(&self, step: &Step) -> bool {
        let all = self.options.keep.and_then(|keep| keep.all);
        let all = all.map(|all| i64::try_from(all).unwrap_or(i64::MAX));
        let base = step.inputs.first();
        all.zip(base).is_some_and(|(all, base)| base.modified.0.saturating_add(all) < self.at.0)
    }

    /// Holds all chores back until `at`, as the store has asked for.
    pub fn hold_until(&mut self, at: Millis) {
        for chore in &mut self.chores {
            chore.backoff.hold_until(at);
        }
    }

    /// Returns the file that a compaction is making.
    pub fn making(&self) -> Option<Key> {
        self.doing.as_ref().and_then(|doing| doing.target)
    }

    /// True if a piece of work is under way.
    pub fn is_busy(&self) -> bool {
        self.doing.is_some()
    }

    /// Returns a summary for users.
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

    /// Returns a text for users about the damaged files, if there are any.
    fn damage(&self) -> Option<String> {
        let first = self.damaged.first()?.key()?;
        let all = match self.damaged.len() {
            1 => format!("file {first} of the replica is damaged"),
            n => format!("{n} files of the replica are damaged, such as {first}"),
        };
        Some(format!("{all}: walferry verify shows what can be restored without"))
    }

    /// Returns the newest transaction that any known file holds, damaged files included.
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
