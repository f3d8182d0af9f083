//! Replicas that Litestream 0.3 wrote.
//!
//! `generations/<16 hex>/snapshots/<index>.snapshot.lz4` is the database file at the start of a WAL.
//! `generations/<16 hex>/wal/<index>_<offset>.wal.lz4` is a stretch of this WAL from byte `offset` on.
//! An index numbers one WAL, from its beginning to its restart.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use crate::store::Object;
use crate::units::Timestamp;

/// Folder of a replica that holds the generations.
pub const FOLDER: &str = "generations";

/// An unbroken run of WALs, as Litestream 0.3 replicated them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Generation {
    /// Name, 16 hex digits.
    pub name: String,
    /// Database files, by the index of the WAL that begins with this state.
    pub snapshots: BTreeMap<u32, Object>,
    /// WALs by index, each as its segments in the order of their offsets.
    pub wals: BTreeMap<u32, Vec<Segment>>,
}

/// A stretch of a WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Byte offset in the WAL of the first byte.
    pub offset: u64,
    /// The object.
    pub object: Object,
}

impl Generation {
    /// Returns all objects of the generation, the snapshots first.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        let segments = self.wals.values().flatten().map(|segment| &segment.object);
        self.snapshots.values().chain(segments)
    }
}

/// The objects to read: the snapshot, and then the WALs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Name of the generation, 16 hex digits.
    pub generation: String,
    /// Index of the first WAL.
    pub index: u32,
    /// Database file at the start of that WAL.
    pub snapshot: Object,
    /// WALs from that index on, by index, each as its segments in the order of their offsets.
    pub wals: BTreeMap<u32, Vec<Segment>>,
}

impl Plan {
    /// Returns all objects in the order in which a restore reads them.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        let segments = self.wals.values().flatten().map(|segment| &segment.object);
        std::iter::once(&self.snapshot).chain(segments)
    }

    /// Returns the time of the newest object.
    pub fn time(&self) -> Timestamp {
        let times = self.objects().map(|object| object.modified);
        times.fold(self.snapshot.modified, Timestamp::max)
    }

    /// Checks that no WAL in between is missing, and that each WAL has its first segment.
    ///
    /// Gaps between segments show only when a restore reads them, since their plain lengths are unknown
    /// before. A missing last segment of a WAL cannot be detected.
    pub fn check(&self) -> Result<(), Error> {
        for ((index, segments), expected) in self.wals.iter().zip(u64::from(self.index)..) {
            let generation = || self.generation.clone();
            if u64::from(*index) != expected {
                let index = u32::try_from(expected).unwrap_or(*index);
                return Err(Error::MissingIndex { generation: generation(), index });
            }
            match segments.first() {
                Some(first) if first.offset > 0 => {
                    let (generation, missing) = (generation(), 0..first.offset);
                    return Err(Error::MissingSegment { generation, index: *index, missing });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reason why there is no plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// No snapshot is as old as the requested time.
    TooEarly {
        /// Requested time.
        at: Timestamp,
        /// Time of the oldest snapshot.
        first: Timestamp,
        /// Time of the newest object that a restore without a time would read.
        last: Timestamp,
    },
    /// The replica has no snapshot.
    Empty,
    /// A WAL on the way is missing.
    MissingIndex {
        /// Name of the generation.
        generation: String,
        /// Index of the WAL.
        index: u32,
    },
    /// A part of a WAL is missing.
    MissingSegment {
        /// Name of the generation.
        generation: String,
        /// Index of the WAL.
        index: u32,
        /// Missing bytes of the WAL.
        missing: Range<u64>,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::TooEarly { at, first, last } => write!(
                f,
                "the replica has no state as old as {at}; it has those from {first} to {last}"
            ),
            Error::Empty => f.write_str("the replica has no snapshot"),
            Error::MissingIndex { generation, index } => write!(
                f,
                "WAL {index:08x} of generation {generation} is missing in the replica, and later \
                 ones are there"
            ),
            Error::MissingSegment { generation, index, missing: Range { start, end } } => write!(
                f,
                "bytes {start:08x} to {end:08x} of WAL {index:08x} of generation {generation} are \
                 missing in the replica, and later ones are there"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Sorts objects into generations, the generation with the oldest object first. Skips objects with names
/// of another form.
pub fn list(objects: &[Object]) -> Vec<Generation> {
    let mut found: BTreeMap<&str, Generation> = BTreeMap::new();
    for object in objects {
        let Some((generation, part)) = parse(&object.path) else { continue };
        let generation = found.entry(generation).or_insert_with(|| Generation {
            name: generation.to_string(),
            snapshots: BTreeMap::new(),
            wals: BTreeMap::new(),
        });
        let object = object.clone();
        match part {
            Part::Snapshot { index } => drop(generation.snapshots.insert(index, object)),
            Part::Segment { index, offset } => {
                generation.wals.entry(index).or_default().push(Segment { offset, object });
            }
        }
    }
    let mut found: Vec<Generation> = found.into_values().collect();
    for segments in found.iter_mut().flat_map(|generation| generation.wals.values_mut()) {
        segments.sort_by_key(|segment| segment.offset);
    }
    found.sort_by_key(|generation| generation.objects().map(|object| object.modified).min());
    found
}

/// Chooses the newest snapshot of any generation, and all WAL segments that follow it there. With `at`,
/// only objects made at or before `at` count. [`Plan::check`] finds missing WALs.
pub fn restore(generations: &[Generation], at: Option<Timestamp>) -> Result<Plan, Error> {
    let in_time = |object: &Object| at.is_none_or(|at| object.modified <= at);
    let snapshots = || {
        generations.iter().flat_map(|generation| {
            generation.snapshots.iter().map(move |(index, object)| (generation, *index, object))
        })
    };
    let newest = snapshots()
        .filter(|(_, _, object)| in_time(object))
        .max_by_key(|(generation, index, object)| (object.modified, &generation.name, *index));
    let Some((generation, index, snapshot)) = newest else {
        let first = snapshots().map(|(_, _, object)| object.modified).min();
        return Err(match (at, first) {
            (Some(at), Some(first)) => {
                let last = restore(generations, None)?.time();
                Error::TooEarly { at, first, last }
            }
            _ => Error::Empty,
        });
    };
    let mut wals = BTreeMap::new();
    for (index, segments) in generation.wals.range(index..) {
        let segments: Vec<Segment> =
            segments.iter().filter(|segment| in_time(&segment.object)).cloned().collect();
        if !segments.is_empty() {
            wals.insert(*index, segments);
        }
    }
    let generation = generation.name.clone();
    Ok(Plan { generation, index, snapshot: snapshot.clone(), wals })
}

/// Kind of an object within its generation.
enum Part {
    Snapshot { index: u32 },
    Segment { index: u32, offset: u64 },
}

/// Parses an object's path into generation and kind. Offsets past 4 GiB have more than eight digits.
fn parse(path: &str) -> Option<(&str, Part)> {
    let (generation, rest) = path.strip_prefix(FOLDER)?.strip_prefix('/')?.split_once('/')?;
    hex(generation, 16..=16)?;
    let part = match rest.split_once('/')? {
        ("snapshots", name) => {
            let index = hex(name.strip_suffix(".snapshot.lz4")?, 8..=8)? as u32;
            Part::Snapshot { index }
        }
        ("wal", name) => {
            let (index, offset) = name.strip_suffix(".wal.lz4")?.split_once('_')?;
            Part::Segment { index: hex(index, 8..=8)? as u32, offset: hex(offset, 8..=16)? }
        }
        _ => return None,
    };
    Some((generation, part))
}

fn hex(text: &str, digits: RangeInclusive<usize>) -> Option<u64> {
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (lower && digits.contains(&text.len())).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    const A: &str = "00000000000000aa";
    const B: &str = "00000000000000bb";

    fn object(path: &str, modified: i64) -> Object {
        Object { path: format!("{FOLDER}/{path}"), len: 1, modified: Timestamp(modified) }
    }

    fn replica() -> Vec<Object> {
        let mut objects = vec![
            object(&format!("{A}/snapshots/00000000.snapshot.lz4"), 10),
            object(&format!("{A}/snapshots/00000002.snapshot.lz4"), 20),
            object(&format!("{B}/snapshots/00000000.snapshot.lz4"), 15),
            object(&format!("{A}/wal/00000002_100000000.wal.lz4"), 24),
            object(&format!("{A}/wal/00000002_00001038.wal.lz4"), 23),
            object(&format!("{A}/wal/00000002_00000000.wal.lz4"), 21),
            object(&format!("{A}/wal/00000003_00000000.wal.lz4"), 30),
            object(&format!("{A}/wal/00000000_00000000.wal.lz4"), 11),
            object(&format!("{A}/wal/00000001_00000000.wal.lz4"), 12),
        ];
        for strange in ["wal/0000000g_00000000.wal.lz4", "wal/1_2.wal.lz4", "README", "wal/x"] {
            objects.push(object(&format!("{A}/{strange}"), 1));
        }
        objects.push(object("short/snapshots/00000009.snapshot.lz4", 99));
        objects
    }

    fn plan(objects: &[Object], at: Option<i64>) -> Result<Plan, Error> {
        let plan = restore(&list(objects), at.map(Timestamp))?;
        plan.check()?;
        Ok(plan)
    }

    fn offsets(plan: &Plan) -> Vec<Vec<u64>> {
        plan.wals.values().map(|wal| wal.iter().map(|segment| segment.offset).collect()).collect()
    }

    #[test]
    fn the_newest_snapshot_and_what_follows_it() {
        let found = plan(&replica(), None).unwrap();
        assert_eq!((found.generation.as_str(), found.index, found.time().0), (A, 2, 30));
        assert_eq!(offsets(&found), [vec![0, 0x1038, 0x1_0000_0000], vec![0]]);
        let paths: Vec<&str> = found.objects().map(|object| &object.path[29..]).collect();
        let expected = [
            "snapshots/00000002.snapshot.lz4",
            "wal/00000002_00000000.wal.lz4",
            "wal/00000002_00001038.wal.lz4",
            "wal/00000002_100000000.wal.lz4",
            "wal/00000003_00000000.wal.lz4",
        ];
        assert_eq!(paths, expected);
        let found = plan(&replica(), Some(23)).unwrap();
        assert_eq!((offsets(&found), found.time().0), (vec![vec![0, 0x1038]], 23));
        let found = plan(&replica(), Some(20)).unwrap();
        assert_eq!((found.index, found.wals.len()), (2, 0));
        let found = plan(&replica(), Some(19)).unwrap();
        assert_eq!((found.generation.as_str(), found.wals.len()), (B, 0));
        let found = plan(&replica(), Some(14)).unwrap();
        assert_eq!((found.generation.as_str(), offsets(&found)), (A, vec![vec![0], vec![0]]));
    }

    #[test]
    fn what_is_missing_is_named() {
        let (at, first, last) = (Timestamp(9), Timestamp(10), Timestamp(30));
        assert_eq!(plan(&replica(), Some(9)), Err(Error::TooEarly { at, first, last }));
        assert_eq!(plan(&[], None), Err(Error::Empty));
        assert_eq!(plan(&[], Some(9)), Err(Error::Empty));
        let without = |part: &str| -> Vec<Object> {
            replica().into_iter().filter(|object| !object.path.contains(part)).collect()
        };
        let missing = Error::MissingIndex { generation: A.to_string(), index: 2 };
        assert_eq!(plan(&without("/wal/00000002"), None), Err(missing));
        assert_eq!(plan(&without("/wal/00000002"), Some(29)).unwrap().wals.len(), 0);
        let generation = A.to_string();
        let missing = Error::MissingSegment { generation, index: 2, missing: 0..0x1038 };
        assert_eq!(plan(&without("/wal/00000002_00000000"), None), Err(missing));
    }

    #[test]
    fn generations_are_listed_from_the_oldest() {
        let found = list(&replica());
        let names: Vec<&str> = found.iter().map(|generation| generation.name.as_str()).collect();
        assert_eq!(names, [A, B]);
        let parts = |n: usize| (found[n].snapshots.len(), found[n].wals.len());
        assert_eq!((parts(0), found[0].objects().count()), ((2, 4), 8));
        assert_eq!((parts(1), found[1].objects().count()), ((1, 0), 1));
    }
}
