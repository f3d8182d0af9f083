//! Which files to read to get the database as of a transaction.
//!
//! A file `min-max` takes any state from `min - 1` to `max - 1` to state `max`, since it holds the
//! newest image of every page that changed in between. A file with min TXID 1 needs no
//! predecessor. Files may overlap, and levels do not matter. What is never allowed is a hole in
//! the numbers: a plan that steps over one would give a database that never was.

use std::cmp::Reverse;
use std::fmt;

use crate::ltx::MIN_FILE_LEN;
use crate::store::{FileInfo, Key};
use crate::units::{Level, Txid};

/// What to restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The newest state that the replica knows of.
    Latest,
    /// The state after exactly this transaction.
    Txid(Txid),
}

/// The files to read, oldest first. The first has min TXID 1, the last ends at the target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The files.
    pub files: Vec<FileInfo>,
    /// The state that they lead to.
    pub txid: Txid,
}

impl Plan {
    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).fold(0, u64::saturating_add)
    }
}

/// Why there is no plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The replica holds no files at all.
    Empty,
    /// Files exist, but none begins with transaction 1.
    NoBase {
        /// The lowest min TXID there is.
        first: Txid,
    },
    /// Transactions on the way to the target are in no file.
    Gap {
        /// The newest state that can be restored before the hole.
        after: Txid,
        /// The first transaction behind the hole.
        next: Txid,
    },
    /// No file ends at the target.
    NotReachable {
        /// What was asked for.
        target: Txid,
        /// The newest restorable state before it.
        below: Option<Txid>,
        /// The oldest restorable state after it.
        above: Option<Txid>,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Empty => f.write_str("the replica holds no files"),
            Error::NoBase { first } => write!(
                f,
                "the replica has no file that begins with transaction 1; its first is {first}"
            ),
            Error::Gap { after, next } => write!(
                f,
                "transactions {} to {} are missing in the replica; the newest TXID before them \
                 that can be restored is {after}",
                after.next(),
                next.prev()
            ),
            Error::NotReachable { target, below, above } => {
                write!(f, "no file of the replica ends at TXID {target}")?;
                match (below, above) {
                    (Some(below), Some(above)) => {
                        write!(f, "; the nearest that can be restored are {below} and {above}")
                    }
                    (Some(near), None) => write!(f, "; the newest that can be restored is {near}"),
                    (None, Some(near)) => write!(f, "; the oldest that can be restored is {near}"),
                    (None, None) => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for Error {}

/// Chooses the fewest files that lead to the target. `files` may come in any order, of any levels.
pub fn restore(files: &[FileInfo], target: Target) -> Result<Plan, Error> {
    let Some(head) = head(files) else {
        return Err(Error::Empty);
    };
    let end = match target {
        Target::Latest => head,
        Target::Txid(txid) => txid,
    };
    let chosen = walk(files, Txid::ZERO, end);
    let reached = chosen.last().map_or(Txid::ZERO, |file| file.key.name.max);
    if reached == end && end > Txid::ZERO {
        return Ok(Plan { files: chosen, txid: end });
    }
    Err(why_not(files, end, reached))
}

/// The fewest files that lead from state `from` on to the target, for a database that is in that state;
/// none if it is there already. `None` if the target is not reached from there: it lies before, or
/// only a file from the first transaction on leads to it.
pub fn forward(files: &[FileInfo], from: Txid, target: Txid) -> Option<Plan> {
    let steps: Vec<FileInfo> =
        files.iter().filter(|file| file.key.name.min > Txid(1)).copied().collect();
    let chosen = walk(&steps, from, target);
    let reached = chosen.last().map_or(from, |file| file.key.name.max);
    (reached == target).then_some(Plan { files: chosen, txid: target })
}

/// From state `start` towards `end`, always with the file that leads furthest. That gives the fewest
/// files, and reaches the end if anything does, since whatever follows a state also follows every
/// later one.
fn walk(files: &[FileInfo], start: Txid, end: Txid) -> Vec<FileInfo> {
    let mut by_min: Vec<&FileInfo> = files.iter().filter(|f| f.key.name.max <= end).collect();
    by_min.sort_by_key(|file| file.key.name.min);
    let mut waiting = by_min.into_iter().peekable();
    let mut chosen: Vec<FileInfo> = Vec::new();
    let mut best: Option<&FileInfo> = None;
    let mut reached = start;
    loop {
        while let Some(file) = waiting.next_if(|file| file.key.name.min <= reached.next()) {
            if best.is_none_or(|best| preference(best) < preference(file)) {
                best = Some(file);
            }
        }
        match best {
            Some(file) if file.key.name.max > reached => {
                if file.key.name.min == Txid(1) {
                    chosen.clear();
                }
                chosen.push(*file);
                reached = file.key.name.max;
            }
            _ => return chosen,
        }
    }
}

/// The greater is chosen: the one that leads furthest, then the one that repeats the least, is the
/// shortest, and is at the level where files live longest. One that is too short to be a file is
/// taken only when no other leads as far, so that it is missed rather than passed over.
fn preference(file: &FileInfo) -> impl Ord + use<> {
    let key = file.key;
    (key.name.max, file.len >= MIN_FILE_LEN, key.name.min, Reverse(file.len), key.level)
}

fn why_not(files: &[FileInfo], end: Txid, reached: Txid) -> Error {
    let names = || files.iter().map(|file| file.key.name);
    let first = names().map(|name| name.min).min().unwrap_or(Txid::ZERO);
    if first > Txid(1) {
        return Error::NoBase { first };
    }
    // Whatever leads on from here was taken, so these begin behind a hole.
    let behind = names().filter(|name| name.max > reached && name.max <= end);
    match behind.map(|name| name.min).min() {
        Some(next) if reached > Txid::ZERO => Error::Gap { after: reached, next },
        _ => {
            let points = restorable(files);
            let above = points.partition_point(|point| *point <= end);
            Error::NotReachable {
                target: end,
                below: (reached > Txid::ZERO).then_some(reached),
                above: points.get(above).copied(),
            }
        }
    }
}

/// The newest transaction that any file of the replica holds.
pub fn head(files: &[FileInfo]) -> Option<Txid> {
    files.iter().map(|file| file.key.name.max).max()
}

/// Every TXID for which [`restore`] finds a plan of whole files, ascending.
pub fn restorable(files: &[FileInfo]) -> Vec<Txid> {
    let mut by_max: Vec<&FileInfo> = files.iter().filter(|f| f.len >= MIN_FILE_LEN).collect();
    by_max.sort_by_key(|file| (file.key.name.max, file.key.name.min));
    let mut points: Vec<Txid> = Vec::new();
    for file in by_max {
        let name = file.key.name;
        // The lowest min of a group comes first; the others of the group add nothing.
        let before = points.last().copied().unwrap_or(Txid::ZERO);
        if before < name.max && name.min <= before.next() {
            points.push(name.max);
        }
    }
    points
}

/// Files that end at a state to which nothing leads, though it lies behind the oldest that can be
/// restored, and for which no joined file stands in: there is a hole before them.
pub fn stranded(files: &[FileInfo]) -> Vec<Key> {
    let points = restorable(files);
    let is_point = |txid: Txid| points.binary_search(&txid).is_ok();
    let first = points.first().copied().unwrap_or(Txid::ZERO);
    let stands_in = |file: &&FileInfo| {
        (Level::L1..Level::SNAPSHOT).contains(&file.key.level) && is_point(file.key.name.max)
    };
    let joined: Vec<&FileInfo> = files.iter().filter(stands_in).collect();
    let is_stranded = |file: &&FileInfo| {
        let name = file.key.name;
        let has =
            |other: &&FileInfo| other.key.name.min <= name.min && other.key.name.max >= name.max;
        name.max > first && !is_point(name.max) && !joined.iter().any(has)
    };
    let mut stranded: Vec<Key> = files.iter().filter(is_stranded).map(|file| file.key).collect();
    stranded.sort_unstable();
    stranded
}

/// A run of TXIDs, each of which can be restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first of the run.
    pub first: Txid,
    /// The last of the run.
    pub last: Txid,
}

/// What can be restored, as runs of consecutive TXIDs, ascending.
pub fn coverage(files: &[FileInfo]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for point in restorable(files) {
        match runs.last_mut() {
            Some(run) if run.last.next() == point => run.last = point,
            _ => runs.push(Run { first: point, last: point }),
        }
    }
    runs
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
