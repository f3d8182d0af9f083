//! What can be restored from a listing, as a person wants to see it: ranges of states, the holes
//! between them, and the files that each state takes.

use std::collections::BTreeSet;

use super::restore::{restorable, restore, stranded};
use super::{Plan, Target};
use crate::ltx::MIN_FILE_LEN;
use crate::store::{FileInfo, Key};
use crate::units::{Timestamp, Txid};

/// A state that can be restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// The state.
    pub txid: Txid,
    /// The file of the lowest level that ends there; its header tells the commit time.
    pub file: FileInfo,
    /// Time of that file by the listing: its commit time in a folder, its upload on S3.
    pub modified: Timestamp,
    /// What restoring it reads.
    pub cost: Cost,
}

/// What is read of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// Files.
    pub files: u64,
    /// Their lengths in bytes together.
    pub bytes: u64,
    /// Requests for them, listings not counted.
    pub requests: u64,
}

impl Cost {
    /// That of these files, where one takes so many requests.
    pub fn of(files: &[FileInfo], requests: impl Fn(&FileInfo) -> u64) -> Cost {
        files.iter().fold(Cost::default(), |cost, file| cost.and(file, requests(file)))
    }

    fn and(self, file: &FileInfo, requests: u64) -> Cost {
        Cost {
            files: self.files.saturating_add(1),
            bytes: self.bytes.saturating_add(file.len),
            requests: self.requests.saturating_add(requests),
        }
    }
}

/// States that follow each other, none of which is behind a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The oldest.
    pub first: Point,
    /// The newest.
    pub last: Point,
    /// How many there are.
    pub states: usize,
    /// Whether every TXID from the first to the last is one; else only where a joined file ends.
    pub every: bool,
}

/// Files that lead nowhere, since what comes before them is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The newest state before the hole; `None` if there is none.
    pub after: Option<Txid>,
    /// The first transaction behind the hole: those between are in no file.
    pub next: Txid,
    /// The last transaction that is out of reach.
    pub last: Txid,
    /// Files out of reach.
    pub files: usize,
}

/// One or the other, in the order of their TXIDs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// States.
    Range(Range),
    /// A hole.
    Gap(Gap),
}

/// Every state that can be restored, ascending, with what it takes.
pub fn points(files: &[FileInfo], requests: impl Fn(&FileInfo) -> u64) -> Vec<Point> {
    let mut ends: Vec<&FileInfo> = files.iter().collect();
    ends.sort_by_key(|file| (file.key.name.max, file.key.level, file.key.name.min));
    let mut rest = ends.as_slice();
    let mut found: Vec<Point> = Vec::new();
    for txid in restorable(files) {
        let (_, from) = rest.split_at(rest.partition_point(|file| file.key.name.max < txid));
        let (here, behind) = from.split_at(from.partition_point(|file| file.key.name.max == txid));
        rest = behind;
        let Some(file) = here.first() else { continue };
        let cost = match (here, found.last()) {
            // Where the only file goes on from the state before, its plan is that one's and this file:
            // to every other state it is no way. Anything else is planned anew.
            ([only], Some(before))
                if only.key.name.min == before.txid.next() && only.key.name.min > Txid(1) =>
            {
                before.cost.and(only, requests(only))
            }
            _ => match restore(files, Target::Txid(txid)) {
                Ok(Plan { files, .. }) => Cost::of(&files, &requests),
                Err(_) => continue,
            },
        };
        found.push(Point { txid, file: **file, modified: file.modified, cost });
    }
    found
}

/// The points as ranges, with the holes between them.
pub fn parts(points: &[Point], files: &[FileInfo]) -> Vec<Part> {
    let gaps = gaps(points, files);
    let mut parts: Vec<Part> = Vec::new();
    let mut waiting = gaps.iter().peekable();
    for point in points {
        while let Some(gap) = waiting.next_if(|gap| gap.next < point.txid) {
            parts.push(Part::Gap(*gap));
        }
        match parts.last_mut() {
            Some(Part::Range(range)) if joins(range, point) => {
                range.every = point.txid == range.last.txid.next();
                range.last = *point;
                range.states = range.states.saturating_add(1);
            }
            _ => parts.push(Part::Range(Range {
                first: *point,
                last: *point,
                states: 1,
                every: true,
            })),
        }
    }
    parts.extend(waiting.map(|gap| Part::Gap(*gap)));
    parts
}

/// Whether a state goes on in a range: by the same kind of step, or as the first step at all.
fn joins(range: &Range, point: &Point) -> bool {
    range.states == 1 || range.every == (point.txid == range.last.txid.next())
}

/// Files behind a hole, by the points that they lie between.
fn gaps(points: &[Point], files: &[FileInfo]) -> Vec<Gap> {
    let behind: BTreeSet<Key> = stranded(files).into_iter().collect();
    let mut stranded: Vec<&FileInfo> =
        files.iter().filter(|file| behind.contains(&file.key)).collect();
    // One that is too short to be a file is a part of the hole, unless nothing is behind it.
    if stranded.iter().any(|file| file.len >= MIN_FILE_LEN) {
        stranded.retain(|file| file.len >= MIN_FILE_LEN);
    }
    stranded.sort_by_key(|file| file.key.name.max);
    let mut gaps: Vec<Gap> = Vec::new();
    for file in stranded {
        let name = file.key.name;
        let before = points.partition_point(|point| point.txid < name.max);
        let after = before.checked_sub(1).and_then(|at| points.get(at)).map(|point| point.txid);
        match gaps.last_mut() {
            Some(gap) if gap.after == after => {
                gap.next = gap.next.min(name.min);
                gap.last = gap.last.max(name.max);
                gap.files = gap.files.saturating_add(1);
            }
            _ => gaps.push(Gap { after, next: name.min, last: name.max, files: 1 }),
        }
    }
    gaps
}

#[cfg(test)]
#[path = "points_tests.rs"]
mod tests;
