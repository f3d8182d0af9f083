//! Which files to join next.
//!
//! Level 1 joins files of level 0, level 2 those of level 1, and so on; a snapshot joins all that
//! lead to a state. What is joined stays until retention takes it away: a joined file adds a shorter
//! way to a state and takes none from any other.
//!
//! Readers of a live replica that were opened in the midst of a range stop at a level-1 file that
//! straddles it, unless their plan had such a file (Litestream's VFS, 0.5.17). So the newest file of
//! level 1 is never joined itself, and no snapshot reaches beyond the one before it: every plan
//! contains a file of level 1.

use std::collections::BTreeSet;

use super::restore::{Target, restore};
use crate::ltx::{FileName, MIN_FILE_LEN};
use crate::store::{FileInfo, Key};
use crate::units::{Level, Txid};

/// The lowest level whose files are joined from others.
pub const FIRST: Level = Level::L1;
/// Most files that are joined to one: each takes memory while it is read. What is left is joined to
/// the next.
pub const INPUTS_MAX: usize = 256;

/// Files to join, oldest first, and what becomes of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The file to make.
    pub key: Key,
    /// The files that it is made from: each begins behind the one before, or repeats some of it.
    pub inputs: Vec<FileInfo>,
}

/// What to join to a file of a level: everything below that is newer than what the level has; of the
/// files of level 0 those that end before `before`. `None` where nothing is to be done.
pub fn next(files: &[FileInfo], level: Level, before: Txid) -> Option<Step> {
    if level == Level::SNAPSHOT {
        return snapshot(files, before);
    }
    let below = Level::new(level.get().checked_sub(1)?)?;
    let at = |level| move |file: &&FileInfo| file.key.level == level && file.len >= MIN_FILE_LEN;
    let begun = files.iter().filter(at(level)).map(|file| file.key.name.max).max();
    let mut waiting: Vec<&FileInfo> = files.iter().filter(at(below)).collect();
    waiting.sort_unstable_by_key(|file| file.key);
    if below == Level::L1 {
        waiting.pop();
    }
    let mut inputs: Vec<FileInfo> = Vec::new();
    let mut reached = begun;
    for file in waiting {
        let FileName { min, max } = file.key.name;
        if reached.is_some_and(|reached| max <= reached) {
            continue;
        }
        // Behind a hole, or what is too young: another time.
        let young = below == Level::L0 && max >= before;
        if reached.is_some_and(|reached| min > reached.next()) || young {
            break;
        }
        if inputs.len() == INPUTS_MAX {
            break;
        }
        inputs.push(*file);
        reached = Some(max);
    }
    step(level, inputs)
}

fn snapshot(files: &[FileInfo], before: Txid) -> Option<Step> {
    let target = match before_newest(files) {
        None => files.iter().map(|file| file.key.name.max).filter(|max| *max < before).max()?,
        Some(before) => before,
    };
    let snapshots = files.iter().filter(|file| file.key.level == Level::SNAPSHOT);
    if snapshots.map(|file| file.key.name.max).max() >= Some(target) {
        return None;
    }
    let mut plan = restore(files, Target::Txid(target)).ok()?;
    plan.files.truncate(INPUTS_MAX);
    step(Level::SNAPSHOT, plan.files)
}

/// The state before the newest file of level 1, if there is one.
fn before_newest(files: &[FileInfo]) -> Option<Txid> {
    let of_level_1 = files.iter().filter(|file| file.key.level == FIRST);
    of_level_1.max_by_key(|file| file.key.name.max).map(|file| file.key.name.min.prev())
}

/// Whether a snapshot is worth its bytes: what there is to read behind the one before it comes to an
/// eighth of that one. Until then a restore takes hardly longer without.
pub fn is_worth_it(step: &Step) -> bool {
    match step.inputs.split_first() {
        Some((base, tail)) if base.key.level == Level::SNAPSHOT => {
            let len = tail.iter().map(|file| file.len).fold(0, u64::saturating_add);
            len.saturating_mul(8) >= base.len
        }
        _ => true,
    }
}

/// Of a listing, what decides about the next joins up to level `top` and to a snapshot: some tens of
/// files, however many there are.
pub fn needed(files: &[FileInfo], top: Level) -> Vec<FileInfo> {
    let newest = |level: Level| {
        files.iter().filter(|file| file.key.level == level).map(|file| file.key.name.max).max()
    };
    let newest: Vec<Option<Txid>> = Level::all().map(newest).collect();
    let of = |level: usize| newest.get(level).copied().flatten();
    let targets = [Some(Target::Latest), before_newest(files).map(Target::Txid)];
    let plans = targets.into_iter().flatten().filter_map(|target| restore(files, target).ok());
    let planned: BTreeSet<Key> = plans.flat_map(|plan| plan.files).map(|file| file.key).collect();
    let is_needed = |file: &&FileInfo| {
        let level = usize::from(file.key.level.get());
        let waits = file.key.level < top && Some(file.key.name.max) > of(level + 1);
        waits || Some(file.key.name.max) == of(level) || planned.contains(&file.key)
    };
    files.iter().filter(is_needed).copied().collect()
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

    /// `"9:1-3 0:4-4"`: level and range of each file; a file's time is its last transaction.
    fn files(text: &str) -> Vec<FileInfo> {
        let parse = |word: &str| {
            let (level, range) = word.split_once(':').unwrap();
            let (min, max) = range.split_once('-').unwrap();
            file(level.parse().unwrap(), min.parse().unwrap(), max.parse().unwrap())
        };
        text.split_whitespace().map(parse).collect()
    }

    fn check(listing: &str, level: u8, before: u64, expected: Option<(&str, &str)>) {
        let step = next(&files(listing), Level::new(level).unwrap(), Txid(before));
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
        check("1:2-3 0:5-5", 1, 9, None);
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

    proptest! {
        /// Whatever is joined in whatever order: the same states can be restored, each level is
        /// without holes, and there is always an end.
        #[test]
        fn joining_adds_ways_and_takes_none(
            count in 1u64..40,
            steps in prop::collection::vec((1u8..=9, 0u64..50), 1..30),
        ) {
            let mut all: Vec<FileInfo> = (2..=count).map(|txid| file(0, txid, txid)).collect();
            all.push(file(9, 1, 1));
            let points = restorable(&all);
            for (level, before) in steps {
                let (level, before) = (Level::new(level).unwrap(), Txid(before));
                if let Some(step) = next(&all, level, before) {
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
                // What is kept of a listing leads to the same decisions.
                for top in 1..=4 {
                    let top = Level::new(top).unwrap();
                    let few = needed(&all, top);
                    for level in Level::all().filter(|l| *l == Level::SNAPSHOT || *l <= top) {
                        prop_assert_eq!(next(&few, level, before), next(&all, level, before));
                    }
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
