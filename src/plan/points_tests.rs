#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::ltx::FileName;
use crate::units::Level;

fn file(level: u8, min: u64, max: u64) -> FileInfo {
    let name = FileName { min: Txid(min), max: Txid(max) };
    let key = Key { level: Level::new(level).unwrap(), name };
    FileInfo { key, len: 1000 + 7 * min + max, modified: Timestamp(0), stored: Timestamp(0) }
}

/// Parses a listing, such as `"9:1-3 0:4-4"`: level and range of each file.
fn files(text: &str) -> Vec<FileInfo> {
    text.split_whitespace()
        .map(|word| {
            let (level, range) = word.split_once(':').unwrap();
            let (min, max) = range.split_once('-').unwrap();
            file(level.parse().unwrap(), min.parse().unwrap(), max.parse().unwrap())
        })
        .collect()
}

/// Shows the parts of a listing. `3-5*3` are three states, one for each TXID. `3~9*2` are two states with
/// TXIDs in between that cannot be restored. `!3>5-6*2` are two files from 5 to 6 behind a gap after 3.
fn shown(listing: &str) -> String {
    let files = files(listing);
    let parts = parts(&points(&files, |_| 1), &files);
    let texts = parts.iter().map(|part| match part {
        Part::Range(Range { first, last, states, every }) => {
            let step = if *every { '-' } else { '~' };
            format!("{}{step}{}*{states}", first.txid.0, last.txid.0)
        }
        Part::Gap(Gap { after, next, last, files }) => {
            format!("!{}>{}-{}*{files}", after.map_or(0, |after| after.0), next.0, last.0)
        }
    });
    texts.collect::<Vec<_>>().join(" ")
}

#[test]
fn point_has_the_whole_file_if_another_one_with_its_end_is_too_short() {
    let mut files = files("0:1-1 0:3-3 1:2-3");
    files[1].len = 10;
    let found = points(&files, |_| 1);
    assert_eq!(
        found.last().map(|point| (point.txid, point.file.key)),
        Some((Txid(3), files[2].key))
    );
}

#[test]
fn ranges_and_holes() {
    for (listing, expected) in [
        ("", ""),
        ("9:1-1", "1-1*1"),
        ("0:1-1 0:2-2 0:3-3", "1-3*3"),
        // Older history is coarser: first only the ends of compacted files, then each transaction.
        ("9:1-1 1:2-5 1:6-9 1:10-13 0:13-13 0:14-14 0:15-15", "1~13*4 14-15*2"),
        ("9:1-1 0:2-2 0:3-3 1:4-9 1:10-20", "1-3*3 9~20*2"),
        ("9:1-8 0:9-9 0:10-10", "8-10*3"),
        // Gaps, and the files behind them.
        ("9:1-3 0:5-5 0:6-6", "3-3*1 !3>5-6*2"),
        ("9:1-3 0:5-5 0:6-6 9:1-8 0:9-9", "3-3*1 !3>5-6*2 8-9*2"),
        ("0:5-5 0:6-6", "!0>5-6*2"),
        // No gaps: the first file of a writer, which retention keeps, and a part of a compacted file.
        ("0:2-2 9:1-5 0:6-6", "5-6*2"),
        ("9:1-3 1:4-9 0:6-6", "3~9*2"),
        ("9:1-3 0:5-5 1:5-7 9:1-9 0:11-11", "3-3*1 !3>5-7*2 9-9*1 !9>11-11*1"),
    ] {
        assert_eq!(shown(listing), expected, "{listing}");
    }
}

#[test]
fn a_point_is_shown_by_the_file_of_its_lowest_level() {
    let files = files("9:1-3 1:2-3 0:3-3 0:1-1 0:2-2");
    let found = points(&files, |_| 1);
    assert_eq!(found.last().unwrap().file, file(0, 3, 3));
    assert_eq!(found.last().unwrap().cost.files, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn costs_are_those_of_the_plans(
        listing in proptest::collection::vec(
            (0u8..=9, 1u64..14, 0u64..6).prop_map(|(level, min, more)| file(level, min, min + more)),
            0..14,
        ),
    ) {
        let requests = |file: &FileInfo| file.len % 3 + 1;
        let found = points(&listing, requests);
        let txids: Vec<Txid> = found.iter().map(|point| point.txid).collect();
        prop_assert_eq!(&txids, &restorable(&listing));
        for point in &found {
            let plan = restore(&listing, Target::Txid(point.txid)).unwrap();
            prop_assert_eq!(point.cost, Cost::of(&plan.files, requests));
        }
        let parts = parts(&found, &listing);
        let states: usize = parts.iter().map(|part| match part {
            Part::Range(range) => range.states,
            Part::Gap(_) => 0,
        }).sum();
        prop_assert_eq!(states, found.len());
        let stranded: usize = parts.iter().map(|part| match part {
            Part::Gap(gap) => gap.files,
            Part::Range(_) => 0,
        }).sum();
        // Every other file ends at a state, lies before the first state, or is a part of a compacted file.
        let is_part = |name: FileName| listing.iter().any(|file| {
            let joined = file.key.name;
            (1..9).contains(&file.key.level.get())
                && txids.contains(&joined.max)
                && joined.min <= name.min
                && joined.max >= name.max
        });
        let leads_nowhere = |file: &&FileInfo| {
            let name = file.key.name;
            let before = txids.first().is_some_and(|first| name.max < *first);
            !txids.contains(&name.max) && !before && !is_part(name)
        };
        prop_assert_eq!(stranded, listing.iter().filter(leads_nowhere).count());
    }
}
