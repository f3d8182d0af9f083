//! Chooses the files to read for the database as of a transaction.
//!
//! A file `min-max` holds the newest version of every page that changed in these transactions. So the
//! file takes any state from `min - 1` to `max - 1` to state `max`. A file with min TXID 1 needs no
//! predecessor.
//! Files may overlap, and levels do not matter. A plan must not have a gap in the TXIDs: across a gap,
//! it would give a database that never existed.

use std::cmp::Reverse;
use std::fmt;

use crate::ltx::MIN_FILE_LEN;
use crate::store::{FileInfo, Key};
use crate::units::{Level, Txid};

/// The state to restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The newest state that any file of the replica ends at.
    Latest,
    /// The state after exactly this transaction.
    Txid(Txid),
}

/// The files to read, oldest first. From [`restore`], the first file has min TXID 1. The last file ends
/// at the target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The files.
    pub files: Vec<FileInfo>,
    /// The state that the files lead to.
    pub txid: Txid,
}

impl Plan {
    /// Returns the sum of the files' lengths in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).fold(0, u64::saturating_add)
    }
}

/// Reason why there is no plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The replica holds no files at all.
    Empty,
    /// Files exist, but none begins with transaction 1.
    NoBase {
        /// Lowest min TXID of all files.
        first: Txid,
    },
    /// Transactions on the way to the target are in no file.
    Gap {
        /// Newest state before the gap that can be restored.
        after: Txid,
        /// First transaction behind the gap.
        next: Txid,
    },
    /// No file ends at the target.
    NotReachable {
        /// The target.
        target: Txid,
        /// Newest restorable state before the target.
        below: Option<Txid>,
        /// Oldest restorable state after the target.
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

/// Chooses the fewest files that lead a database in state `from` to the target; no files if the two are
/// equal. `None` if the target cannot be reached from there: the target lies before `from`, or only a
/// file with min TXID 1 leads to the target.
pub fn forward(files: &[FileInfo], from: Txid, target: Txid) -> Option<Plan> {
    let steps: Vec<FileInfo> =
        files.iter().filter(|file| file.key.name.min > Txid(1)).copied().collect();
    let chosen = walk(&steps, from, target);
    let reached = chosen.last().map_or(from, |file| file.key.name.max);
    (reached == target).then_some(Plan { files: chosen, txid: target })
}

/// Walks from state `start` towards `end`, always with the file that leads furthest.
///
/// The walk takes the fewest files and reaches the end if any plan does. The reason is that a file that
/// can follow a state can also follow every later state below its end.
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

/// Returns a rank for choosing among files; the greatest wins. The order is: leads furthest, has a valid
/// length, repeats the fewest transactions, is shortest, and is at the highest level, where files live
/// longest.
///
/// A file that is too short to be valid wins only if no other file leads as far. The plan then fails at
/// this file, and does not silently lead to an older state.
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
    // The walk took every file that can follow, so these files begin behind a gap.
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

/// Returns the newest transaction that any file of the replica holds.
pub fn head(files: &[FileInfo]) -> Option<Txid> {
    files.iter().map(|file| file.key.name.max).max()
}

/// Returns every TXID for which [`restore`] finds a plan, ascending. Files that are too short to be valid
/// do not count.
pub fn restorable(files: &[FileInfo]) -> Vec<Txid> {
    let mut by_max: Vec<&FileInfo> = files.iter().filter(|f| f.len >= MIN_FILE_LEN).collect();
    by_max.sort_by_key(|file| (file.key.name.max, file.key.name.min));
    let mut points: Vec<Txid> = Vec::new();
    for file in by_max {
        let name = file.key.name;
        // Of the files with the same end, the one with the lowest min comes first; the others add nothing.
        let before = points.last().copied().unwrap_or(Txid::ZERO);
        if before < name.max && name.min <= before.next() {
            points.push(name.max);
        }
    }
    points
}

/// Returns the files behind a gap, ascending.
///
/// Such a file ends behind the oldest state that can be restored, at a state that cannot be restored. No
/// compacted file that can be used covers its transactions.
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
    /// First TXID of the run.
    pub first: Txid,
    /// Last TXID of the run.
    pub last: Txid,
}

/// Returns the states that can be restored, as runs of consecutive TXIDs, ascending.
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
