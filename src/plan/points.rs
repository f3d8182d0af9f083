//! The states that can be restored from a listing, in a form for users: ranges of states, the gaps
//! between them, and the cost of each state.

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
    /// The file of the lowest level that ends at the state; its header tells the commit time.
    pub file: FileInfo,
    /// Time of this file in the listing: the commit time in a folder, the time of the upload on S3.
    pub modified: Timestamp,
    /// Cost of restoring the state.
    pub cost: Cost,
}

/// Reads from the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// Number of files.
    pub files: u64,
    /// Sum of their lengths in bytes.
    pub bytes: u64,
    /// Number of requests for the files, without those for listings.
    pub requests: u64,
}

impl Cost {
    /// Returns the cost of these files; `requests` returns the number of requests for a file.
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

/// States that can be restored, without a gap between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The oldest state.
    pub first: Point,
    /// The newest state.
    pub last: Point,
    /// Number of states.
    pub states: usize,
    /// True if every TXID from the first to the last can be restored; else only ends of compacted files.
    pub every: bool,
}

/// A gap, and the files behind it, which cannot be used since files before them are missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// Newest state before the gap; `None` if there is none.
    pub after: Option<Txid>,
    /// First transaction behind the gap. The transactions between `after` and `next` are in no file.
    pub next: Txid,
    /// Last transaction that cannot be reached.
    pub last: Txid,
    /// Number of files that cannot be used.
    pub files: usize,
}

/// A range or a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// States that can be restored.
    Range(Range),
    /// A gap.
    Gap(Gap),
}

/// Returns every state that can be restored, ascending, with its cost.
pub fn points(files: &[FileInfo], requests: impl Fn(&FileInfo) -> u64) -> Vec<Point> {
    let mut ends: Vec<&FileInfo> = files.iter().filter(|file| file.len >= MIN_FILE_LEN).collect();
    ends.sort_by_key(|file| (file.key.name.max, file.key.level, file.key.name.min));
    let mut rest = ends.as_slice();
    let mut found: Vec<Point> = Vec::new();
    for txid in restorable(files) {
        let (_, from) = rest.split_at(rest.partition_point(|file| file.key.name.max < txid));
        let (here, behind) = from.split_at(from.partition_point(|file| file.key.name.max == txid));
        rest = behind;
        let Some(file) = here.first() else { continue };
        let cost = match (here, found.last()) {
            // The only file that ends here begins right behind the state before, and follows no other
            // state. So the plan is the plan of that state, plus this file. All other cases need a plan
            // of their own.
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

/// Returns the points as ranges, with the gaps between them, in the order of their TXIDs.
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

/// True if a state continues a range: by the same kind of step as the range's states, or as its second
/// state.
fn joins(range: &Range, point: &Point) -> bool {
    range.states == 1 || range.every == (point.txid == range.last.txid.next())
}

/// Returns the gaps: files that cannot be used, grouped by the point before them.
fn gaps(points: &[Point], files: &[FileInfo]) -> Vec<Gap> {
    let behind: BTreeSet<Key> = stranded(files).into_iter().collect();
    let mut stranded: Vec<&FileInfo> =
        files.iter().filter(|file| behind.contains(&file.key)).collect();
    // Files that are too short to be valid belong to the gap, unless no other file is behind the gap.
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
