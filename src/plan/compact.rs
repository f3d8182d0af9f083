//! Chooses the files of the next compaction.
//!
//! Each level in use compacts files of the level below ([`Ladder`]). A snapshot compacts all files that
//! lead to a state. The inputs of a compaction stay until retention deletes them. So a compacted file
//! adds a shorter plan for a state, and no plan for another state is lost.
//!
//! Litestream's VFS (0.5.17) reads a live replica. A VFS opened at a TXID inside the range of a level-1
//! file stops at that file, unless its plan had a file of level 1. So the newest file of level 1 is
//! never compacted, and a snapshot ends before that file. Every plan then contains a file of level 1, if
//! that level is in use. Only a snapshot that a user asks for ([`whole`]) has all transactions.

use std::collections::BTreeSet;

use super::restore::{self, Target, restore};
use crate::ltx::{FileName, MIN_FILE_LEN};
use crate::store::{FileInfo, Key};
use crate::units::{Level, Txid};

/// Largest number of inputs of a compaction to a level from 1 to 8, since each input takes memory. The
/// next compaction takes the remaining files.
pub const INPUTS_MAX: usize = 256;

/// Largest number of inputs of a snapshot. If there are more, [`in_turn`] first compacts the older ones
/// to fewer files.
pub const SNAPSHOT_INPUTS_MAX: usize = 512;

/// One compaction: its inputs, oldest first, and its result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The file to make.
    pub key: Key,
    /// The inputs. Each begins right behind the input before, or repeats some of its transactions.
    pub inputs: Vec<FileInfo>,
}

/// The levels in use for compaction, lowest first.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ladder(Vec<Level>);

impl Ladder {
    /// Keeps the levels 1 to 8 of `levels`, which may come in any order.
    pub fn new(levels: impl IntoIterator<Item = Level>) -> Ladder {
        let between = |level: &Level| *level > Level::L0 && *level < Level::SNAPSHOT;
        let mut levels: Vec<Level> = levels.into_iter().filter(between).collect();
        levels.sort_unstable();
        levels.dedup();
        Ladder(levels)
    }

    /// Returns the levels `made`, and the levels that these files show to be in use.
    ///
    /// A level with files is in use if its newest file ends behind all files of higher levels. Otherwise
    /// the level was in use only in the past.
    pub fn of(files: &[FileInfo], made: impl IntoIterator<Item = Level>) -> Ladder {
        let moves = |level: &Level| {
            let higher = Level::all().filter(|other| other > level);
            newest_of(files, *level) > higher.filter_map(|other| newest_of(files, other)).max()
        };
        let moving = Level::all().filter(|level| *level < Level::SNAPSHOT).filter(moves);
        Ladder::new(moving.chain(made))
    }

    fn has(&self, level: Level) -> bool {
        self.0.contains(&level)
    }

    /// Returns the level for intermediate files of a snapshot with too many inputs: level 8, unless that
    /// level is in use. Retention does not count these files as covering others.
    fn spare(&self) -> Option<Level> {
        (!self.has(Level::L8)).then_some(Level::L8)
    }

    /// Returns the level whose files are compacted to `level`.
    fn below(&self, level: Level) -> Level {
        self.0.iter().copied().filter(|other| *other < level).max().unwrap_or(Level::L0)
    }

    /// Returns the level to which files of `level` are compacted.
    fn above(&self, level: Level) -> Option<Level> {
        self.0.iter().copied().find(|other| *other > level)
    }
}

/// Returns the next compaction to one of the levels 1 to 8; `None` if there is nothing to compact. The
/// inputs are files of lower levels that are newer than the level's files. Files of level 0 must end
/// before `before`.
///
/// A compacted file never spans a gap. Behind a gap, the level starts again: the missing files do not
/// come any more, and a full image has replaced them.
pub fn next(files: &[FileInfo], ladder: &Ladder, level: Level, before: Txid) -> Option<Step> {
    let mut waiting = waiting(files, ladder, level, before).into_iter().peekable();
    let at_level = files.iter().filter(|file| file.key.level == level && is_whole(file));
    let mut reached = at_level.map(|file| file.key.name.max).max();
    let mut inputs: Vec<FileInfo> = Vec::new();
    while inputs.len() < INPUTS_MAX {
        // Of the files that can follow the last input, take the one that leads furthest.
        let Some(first) = waiting.peek().map(|file| file.key.name.min) else { break };
        if inputs.is_empty() && reached.is_some_and(|reached| first > reached.next()) {
            reached = None;
        }
        let limit = reached.map_or(first, Txid::next);
        let goes_on = |file: &&FileInfo| file.key.name.min <= limit;
        let furthest =
            std::iter::from_fn(|| waiting.next_if(goes_on)).max_by_key(|file| file.key.name.max);
        match furthest {
            Some(file) if Some(file.key.name.max) > reached => {
                inputs.push(*file);
                reached = Some(file.key.name.max);
            }
            Some(_) => {}
            None => break,
        }
    }
    step(level, inputs)
}

/// Returns the files that may be compacted to this level, by their first TXID. Levels between `level` and
/// the one below in the ladder hold files from a time when those levels were in use.
fn waiting<'a>(
    files: &'a [FileInfo],
    ladder: &Ladder,
    level: Level,
    before: Txid,
) -> Vec<&'a FileInfo> {
    let below = ladder.below(level);
    let left_out = if below == Level::L1 { newest_of(files, below) } else { None };
    let waits = |file: &&FileInfo| {
        let name = (file.key.level, file.key.name.max);
        (below..level).contains(&file.key.level)
            && is_whole(file)
            && !is_young(file, before)
            && left_out.is_none_or(|newest| name != (below, newest))
    };
    let mut waiting: Vec<&FileInfo> = files.iter().filter(waits).collect();
    waiting.sort_unstable_by_key(|file| file.key.name);
    waiting
}

/// True if the file is of level 0 and must wait for a later compaction.
fn is_young(file: &FileInfo, before: Txid) -> bool {
    file.key.level == Level::L0 && file.key.name.max >= before
}

fn is_whole(file: &FileInfo) -> bool {
    file.len >= MIN_FILE_LEN
}

fn newest_of(files: &[FileInfo], level: Level) -> Option<Txid> {
    files.iter().filter(|file| file.key.level == level).map(|file| file.key.name.max).max()
}

/// Returns the compaction to the next snapshot, with any number of inputs (see [`in_turn`]).
///
/// If level 1 is in use and has files, the snapshot ends before the newest of them. Otherwise files of
/// level 0 must end before `before`. `None` if that snapshot exists. Missing files on the way are an
/// error.
pub fn snapshot(
    files: &[FileInfo],
    ladder: &Ladder,
    before: Txid,
) -> Result<Option<Step>, restore::Error> {
    let target = match before_newest(files).filter(|_| ladder.has(Level::L1)) {
        None => {
            let old = files.iter().filter(|file| !is_young(file, before));
            old.map(|file| file.key.name.max).max()
        }
        before => before,
    };
    let Some(target) = target.filter(|target| newest_of(files, Level::SNAPSHOT) < Some(*target))
    else {
        return Ok(None);
    };
    match restore(files, Target::Txid(target)) {
        Ok(plan) => Ok(step(Level::SNAPSHOT, plan.files)),
        // No file ends at the target. The next file of level 1 will give another target.
        Err(restore::Error::NotReachable { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the files that lead to the newest state, as a compaction to a snapshot.
pub fn whole(files: &[FileInfo]) -> Result<Option<Step>, restore::Error> {
    Ok(step(Level::SNAPSHOT, restore(files, Target::Latest)?.files))
}

/// Returns the first compaction to do for a snapshot: the snapshot itself if it has few enough inputs.
/// Otherwise this is a compaction of its oldest inputs to the spare level, which is not in use otherwise.
pub fn in_turn(step: Step, ladder: &Ladder) -> Step {
    if step.inputs.len() <= SNAPSHOT_INPUTS_MAX {
        return step;
    }
    let spare = ladder.spare();
    let is_joined = |file: &FileInfo| Some(file.key.level) == spare || file.key.name.min == Txid(1);
    let waiting = step.inputs.iter().skip_while(|file| is_joined(file)).copied();
    let group = spare.and_then(|level| self::step(level, waiting.take(INPUTS_MAX).collect()));
    // Without a spare level, make a snapshot of the oldest inputs. With files at all levels, there are
    // hardly ever so many inputs.
    group.unwrap_or_else(|| {
        let mut inputs = step.inputs;
        inputs.truncate(SNAPSHOT_INPUTS_MAX);
        let max = inputs.last().map_or(Txid(1), |file| file.key.name.max);
        Step { key: Key { level: Level::SNAPSHOT, name: FileName { min: Txid(1), max } }, inputs }
    })
}

/// Returns the state before the newest file of level 1, if there is such a file.
fn before_newest(files: &[FileInfo]) -> Option<Txid> {
    let of_level_1 = files.iter().filter(|file| file.key.level == Level::L1);
    of_level_1.max_by_key(|file| file.key.name.max).map(|file| file.key.name.min.prev())
}

/// True if a snapshot is worth its bytes: the files behind the previous snapshot have at least an eighth
/// of its bytes. With fewer bytes, a restore without the new snapshot takes hardly longer.
pub fn is_worth_it(step: &Step) -> bool {
    match step.inputs.split_first() {
        Some((base, tail)) if base.key.level == Level::SNAPSHOT => {
            let len = tail.iter().map(|file| file.len).fold(0, u64::saturating_add);
            len.saturating_mul(8) >= base.len
        }
        _ => true,
    }
}

/// Returns the files of a listing that decide about the next compactions and the next snapshot. These are
/// some tens of files, no matter how many the listing has.
pub fn needed(files: &[FileInfo], ladder: &Ladder) -> Vec<FileInfo> {
    let newest: Vec<Option<Txid>> = Level::all().map(|level| newest_of(files, level)).collect();
    let of = |level: Level| newest.get(usize::from(level.get())).copied().flatten();
    let targets = [Some(Target::Latest), before_newest(files).map(Target::Txid)];
    let plans = targets.into_iter().flatten().filter_map(|target| restore(files, target).ok());
    let planned: BTreeSet<Key> = plans.flat_map(|plan| plan.files).map(|file| file.key).collect();
    let is_needed = |file: &&FileInfo| {
        let (level, max) = (file.key.level, Some(file.key.name.max));
        let waits = ladder.above(level).is_some_and(|above| max > of(above));
        waits || max == of(level) || planned.contains(&file.key)
    };
    files.iter().filter(is_needed).copied().collect()
}

impl Step {
    /// Returns the step without its newest input; `None` if no input is left.
    pub fn shorter(mut self) -> Option<Step> {
        self.inputs.pop();
        let max = self.inputs.last()?.key.name.max;
        let name = FileName { max, ..self.key.name };
        Some(Step { key: Key { name, ..self.key }, inputs: self.inputs })
    }
}

fn step(level: Level, inputs: Vec<FileInfo>) -> Option<Step> {
    let (first, last) = (inputs.first()?.key.name, inputs.last()?.key.name);
    let min = if level == Level::SNAPSHOT { Txid(1) } else { first.min };
    let key = Key { level, name: FileName { min, max: last.max } };
    Some(Step { key, inputs })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::restore::restorable;
    use crate::units::Timestamp;

    fn file(level: u8, min: u64, max: u64) -> FileInfo {
        let name = FileName { min: Txid(min), max: Txid(max) };
        let key = Key { level: Level::new(level).unwrap(), name };
        let time = Timestamp(max as i64);
        FileInfo { key, len: 1000, modified: time, stored: time }
    }

    /// Parses a listing, such as `"9:1-3 0:4-4"`: level and range of each file. A file's time is its last
    /// TXID.
    fn files(text: &str) -> Vec<FileInfo> {
        let parse = |word: &str| {
            let (level, range) = word.split_once(':').unwrap();
            let (min, max) = range.split_once('-').unwrap();
            file(level.parse().unwrap(), min.parse().unwrap(), max.parse().unwrap())
        };
        text.split_whitespace().map(parse).collect()
    }

    fn any(files: &[FileInfo], ladder: &Ladder, level: Level, before: Txid) -> Option<Step> {
        match level {
            Level::SNAPSHOT => snapshot(files, ladder, before).ok().flatten(),
            _ => next(files, ladder, level, before),
        }
    }

    fn check(listing: &str, level: u8, before: u64, expected: Option<(&str, &str)>) {
        check_with(&[1, 2, 3], listing, level, before, expected);
    }

    fn ladder(levels: &[u8]) -> Ladder {
        Ladder::new(levels.iter().filter_map(|level| Level::new(*level)))
    }

    fn check_with(
        levels: &[u8],
        listing: &str,
        level: u8,
        before: u64,
        expected: Option<(&str, &str)>,
    ) {
        let step = any(&files(listing), &ladder(levels), Level::new(level).unwrap(), Txid(before));
        let expected =
            expected.map(|(key, inputs)| Step { key: files(key)[0].key, inputs: files(inputs) });
        assert_eq!(step, expected, "{listing:?} to level {level} before {before}");
    }

    #[test]
    fn levels_join_what_is_below() {
        check("9:1-1 0:2-2 0:3-3 0:4-4", 1, 9, Some(("1:2-4", "0:2-2 0:3-3 0:4-4")));
        check("9:1-1 0:2-2 0:3-3 0:4-4", 1, 4, Some(("1:2-3", "0:2-2 0:3-3")));
        check("9:1-1 0:2-2 0:3-3 1:2-3 0:4-4", 1, 9, Some(("1:4-4", "0:4-4")));
        check("9:1-1 0:3-3 1:2-3", 1, 9, None);
        check("", 1, 9, None);
        check("0:2-2 0:3-3 0:5-5", 1, 9, Some(("1:2-3", "0:2-2 0:3-3")));
    }

    #[test]
    fn a_level_that_stands_still_is_not_made() {
        let of = |text: &str, made: &[u8]| {
            Ladder::of(&files(text), made.iter().filter_map(|level| Level::new(*level)))
        };
        let regular = "9:1-3 3:2-3 2:2-3 2:4-6 1:2-3 1:4-6 1:7-7 0:8-8";
        assert_eq!(of(regular, &[]), ladder(&[1, 2]));
        assert_eq!(of(regular, &[3]), ladder(&[1, 2, 3]));
        assert_eq!(of("9:1-1 1:2-2 2:2-9 0:10-10", &[2]), ladder(&[2]));
        assert_eq!(of("9:1-9 1:2-2 0:10-10", &[]), ladder(&[]));
        assert_eq!(of("", &[1]), ladder(&[1]));
    }

    #[test]
    fn behind_a_hole_a_level_begins_anew() {
        check("1:2-3 0:5-5", 1, 9, Some(("1:5-5", "0:5-5")));
        check("1:2-3 0:3-3 0:5-5 0:6-6 0:8-8", 1, 9, Some(("1:5-6", "0:5-5 0:6-6")));
        check("9:1-1 1:2-3 9:1-5 0:6-6 0:7-7", 1, 7, Some(("1:6-6", "0:6-6")));
        check("2:2-3 1:6-7 1:8-8 1:9-9", 2, 9, Some(("2:6-8", "1:6-7 1:8-8")));
        // `0:2-2` is an old file that was left over.
        check("1:2-2 0:2-2 0:8-8 0:9-9", 1, 9, Some(("1:8-8", "0:8-8")));
        check("1:2-3 0:3-3 0:9-9", 1, 9, None);
    }

    #[test]
    fn the_newest_of_level_1_is_left_to_readers() {
        check("1:2-3 1:4-6 1:7-7", 2, 9, Some(("2:2-6", "1:2-3 1:4-6")));
        check("1:2-3", 2, 9, None);
        check("2:2-3 2:4-6", 3, 9, Some(("3:2-6", "2:2-3 2:4-6")));
        check("9:1-1 1:2-3 1:4-6 0:7-7", 9, 9, Some(("9:1-3", "9:1-1 1:2-3")));
        check("9:1-1 1:2-3", 9, 9, None);
        check("9:1-3 1:2-3 1:4-6", 9, 9, None);
        check("9:1-1 0:2-2 0:3-3", 9, 9, Some(("9:1-3", "9:1-1 0:2-2 0:3-3")));
        check("9:1-1 0:2-2 0:4-4", 9, 9, None);
    }

    #[test]
    fn a_hole_is_told() {
        let of = |text: &str| snapshot(&files(text), &ladder(&[]), Txid(99));
        let gap = restore::Error::Gap { after: Txid(2), next: Txid(4) };
        assert_eq!(of("9:1-1 0:2-2 0:4-4"), Err(gap));
        assert_eq!(whole(&files("9:1-1 0:2-2 0:4-4")), Err(gap));
        assert_eq!(of("0:2-2"), Err(restore::Error::NoBase { first: Txid(2) }));
        assert_eq!(of(""), Ok(None));
    }

    #[test]
    fn many_files_are_joined_to_fewer_first() {
        for levels in [&[][..], &[1]] {
            let ladder = ladder(levels);
            let mut all: Vec<FileInfo> = (2..=2000).map(|txid| file(0, txid, txid)).collect();
            all.push(file(9, 1, 1));
            let (points, mut made) = (restorable(&all), 0);
            loop {
                let step = snapshot(&all, &ladder, Txid(9999)).unwrap().unwrap();
                assert_eq!(step.key, file(9, 1, 2000).key);
                let step = in_turn(step, &ladder);
                assert!(step.inputs.len() <= SNAPSHOT_INPUTS_MAX);
                all.push(FileInfo { key: step.key, ..step.inputs[0] });
                assert_eq!(restorable(&all), points);
                if step.key.level == Level::SNAPSHOT {
                    break;
                }
                assert!(!ladder.has(step.key.level) && step.inputs.len() == INPUTS_MAX);
                made += 1;
            }
            assert_eq!(made, 6, "{levels:?}");
            assert_eq!(snapshot(&all, &ladder, Txid(9999)), Ok(None));
        }
    }

    #[test]
    fn a_level_can_be_left_out() {
        let (from_2, with_hole) = (&[2, 3], &[1, 3]);
        check_with(from_2, "9:1-1 0:2-2 0:3-3 0:4-4", 2, 4, Some(("2:2-3", "0:2-2 0:3-3")));
        check_with(from_2, "2:2-3 2:4-6 0:7-7", 3, 9, Some(("3:2-6", "2:2-3 2:4-6")));
        check_with(from_2, "9:1-1 2:2-3 0:4-4", 9, 9, Some(("9:1-4", "9:1-1 2:2-3 0:4-4")));
        check_with(with_hole, "1:2-3 1:4-6 1:7-7", 3, 9, Some(("3:2-6", "1:2-3 1:4-6")));
        // Level 1 was in use in the past, and some files of level 0 are gone.
        let before = "9:1-1 2:2-3 1:2-3 1:4-6 0:5-5 0:6-6 0:7-7 0:8-8";
        check_with(from_2, before, 2, 8, Some(("2:4-7", "1:4-6 0:7-7")));
        // A snapshot does not wait for a level that is no longer in use.
        let before = "9:1-3 1:2-3 1:4-6 0:7-7";
        check_with(from_2, before, 9, 9, Some(("9:1-7", "9:1-3 1:4-6 0:7-7")));
        check(before, 9, 9, None);
    }

    proptest! {
        /// Gaps at random places, with snapshots behind them: every file is compacted in the end, and no
        /// compacted file spans a gap.
        #[test]
        fn holes_hold_nothing_up(
            missing in prop::collection::btree_set(2u64..60, 0..12),
            levels in prop::sample::select(vec![vec![1u8, 2], vec![1, 2, 3], vec![2], vec![2, 3]]),
            order in prop::collection::vec(0usize..4, 40..80),
        ) {
            let ladder = ladder(&levels);
            let mut all = vec![file(9, 1, 1)];
            for txid in 2..=60 {
                let image = !missing.contains(&txid) && missing.contains(&(txid - 1));
                let there = !missing.contains(&txid);
                all.extend(image.then(|| file(9, 1, txid)));
                all.extend((there && !image).then(|| file(0, txid, txid)));
            }
            let holes: Vec<u64> =
                (2..=60).filter(|t| !all.iter().any(|f| f.key == file(0, *t, *t).key)).collect();
            let mut made = order.into_iter().map(|at| levels[at % levels.len()]);
            loop {
                let all_levels = || levels.iter().copied();
                let step = made.next().into_iter().chain(all_levels()).find_map(|level| {
                    any(&all, &ladder, Level::new(level).unwrap(), Txid(100))
                });
                let Some(step) = step else { break };
                prop_assert!(!all.iter().any(|file| file.key == step.key), "made twice");
                let FileName { min, max } = step.key.name;
                let across = holes.iter().any(|hole| (min.0..=max.0).contains(hole));
                prop_assert!(!across, "{min} to {max}");
                let few = needed(&all, &ladder);
                let of_few = any(&few, &ladder, step.key.level, Txid(100));
                prop_assert_eq!(of_few.as_ref(), Some(&step));
                all.push(file(step.key.level.get(), min.0, max.0));
            }
            for txid in (2..=60).filter(|txid| !holes.contains(txid)) {
                let has = |f: &FileInfo| {
                    f.key.level.get() == levels[0] && f.key.name.min.0 <= txid && f.key.name.max.0 >= txid
                };
                prop_assert!(all.iter().any(has), "{txid} is not joined");
            }
        }

        /// Compactions in random order: the same states can be restored, no level has a gap, and the
        /// compactions come to an end.
        #[test]
        fn joining_adds_ways_and_takes_none(
            count in 1u64..40,
            levels in prop::collection::vec(1u8..=8, 0..5),
            steps in prop::collection::vec((1u8..=9, 0u64..50), 1..30),
        ) {
            let ladder = ladder(&levels);
            let mut all: Vec<FileInfo> = (2..=count).map(|txid| file(0, txid, txid)).collect();
            all.push(file(9, 1, 1));
            let points = restorable(&all);
            for (level, before) in steps {
                let (level, before) = (Level::new(level).unwrap(), Txid(before));
                if level != Level::SNAPSHOT && !ladder.has(level) {
                    continue;
                }
                if let Some(step) = any(&all, &ladder, level, before) {
                    prop_assert!(!all.iter().any(|file| file.key == step.key), "made twice");
                    let FileName { min, max } = step.key.name;
                    let mut reached = step.inputs[0].key.name.min.prev();
                    for input in &step.inputs {
                        prop_assert!(input.key.name.min <= reached.next());
                        prop_assert!(input.key.name.max > reached);
                        reached = input.key.name.max;
                    }
                    prop_assert_eq!(reached, max);
                    prop_assert_eq!(step.inputs[0].key.name.min, min);
                    all.push(file(level.get(), min.0, max.0));
                    prop_assert_eq!(restorable(&all), points.clone());
                }
                // The files that `needed` keeps lead to the same decisions.
                let few = needed(&all, &ladder);
                for level in ladder.0.iter().copied().chain([Level::SNAPSHOT]) {
                    let of_few = any(&few, &ladder, level, before);
                    prop_assert_eq!(of_few, any(&all, &ladder, level, before));
                }
            }
            for level in 1..9 {
                let mut of: Vec<FileName> = all
                    .iter()
                    .filter(|file| file.key.level.get() == level)
                    .map(|file| file.key.name)
                    .collect();
                of.sort_unstable();
                prop_assert!(of.windows(2).all(|pair| pair[0].max.next() == pair[1].min));
            }
        }
    }
}
