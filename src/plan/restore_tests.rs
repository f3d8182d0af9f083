#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ltx::FileName;
use crate::store::Key;
use crate::units::{Level, Timestamp};

fn file(level: u8, min: u64, max: u64) -> FileInfo {
    let name = FileName { min: Txid(min), max: Txid(max) };
    let key = Key { level: Level::new(level).unwrap(), name };
    FileInfo { key, len: 1000 + (max - min), modified: Timestamp(0), stored: Timestamp(0) }
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

fn check(listing: &str, target: u64, expected: Result<&str, Error>) {
    let target = if target == 0 { Target::Latest } else { Target::Txid(Txid(target)) };
    let plan = restore(&files(listing), target).map(|plan| plan.files);
    assert_eq!(plan, expected.map(files), "{listing:?} to {target:?}");
}

#[test]
fn plans() {
    check("0:1-1 0:2-2 0:3-3", 0, Ok("0:1-1 0:2-2 0:3-3"));
    check("0:1-1 0:2-2 0:3-3", 2, Ok("0:1-1 0:2-2"));
    check("9:1-6", 0, Ok("9:1-6"));
    check("1:1-3 1:4-6", 0, Ok("1:1-3 1:4-6"));
    check("9:1-3 1:2-5 0:6-6", 0, Ok("9:1-3 1:2-5 0:6-6"));
    check("9:1-100 0:101-101", 0, Ok("9:1-100 0:101-101"));
    check("0:1-100 0:50-50 0:101-101", 0, Ok("0:1-100 0:101-101"));
    // The plan begins with the newest file from TXID 1 on, of any level, and skips older ones.
    check("9:1-1 9:1-5 9:1-8 0:9-9", 0, Ok("9:1-8 0:9-9"));
    check("9:1-1 9:1-5 9:1-8 0:6-6 0:7-7", 7, Ok("9:1-5 0:6-6 0:7-7"));
    check("9:1-5 1:1-7", 0, Ok("1:1-7"));
    // The plan takes the file that leads furthest; among equals, the one that repeats least.
    check("9:1-3 0:4-4 0:5-5 1:4-5 2:2-5 3:4-6", 0, Ok("9:1-3 3:4-6"));
    check("9:1-3 0:4-4 0:5-5 1:4-5 2:2-5 3:4-6", 5, Ok("9:1-3 1:4-5"));
    // A gap behind the target, or before the snapshot, does not matter.
    check("9:1-3 0:5-5", 3, Ok("9:1-3"));
    check("0:1-1 9:1-6 0:3-3 0:7-7", 0, Ok("9:1-6 0:7-7"));
    check("9:4-6 0:1-1 0:2-2 0:3-3", 0, Ok("0:1-1 0:2-2 0:3-3 9:4-6"));
}

#[test]
fn refusals() {
    let not = |target, below: Option<u64>, above: Option<u64>| {
        Err(Error::NotReachable {
            target: Txid(target),
            below: below.map(Txid),
            above: above.map(Txid),
        })
    };
    let gap = |after, next| Err(Error::Gap { after: Txid(after), next: Txid(next) });
    check("", 0, Err(Error::Empty));
    check("", 5, Err(Error::Empty));
    check("0:100-100 9:50-60", 0, Err(Error::NoBase { first: Txid(50) }));
    check("0:100-100", 100, Err(Error::NoBase { first: Txid(100) }));
    check("9:1-3 0:5-5 0:6-6", 0, gap(3, 5));
    check("9:1-3 0:5-5 0:6-6", 6, gap(3, 5));
    check("9:1-3 0:5-5 0:9-9", 0, gap(3, 5));
    check("9:1-3 0:5-5 0:6-6", 4, not(4, Some(3), None));
    check("9:1-3 0:4-4", 9, not(9, Some(4), None));
    check("9:1-3 1:4-8", 6, not(6, Some(3), Some(8)));
    check("9:1-8", 3, not(3, None, Some(8)));
    check("9:1-3 9:1-8 0:5-5", 5, gap(3, 5));
    check("9:1-8 0:5-5", 5, not(5, None, Some(8)));
    check(
        "0:18446744073709551615-18446744073709551615",
        0,
        Err(Error::NoBase { first: Txid(u64::MAX) }),
    );
}

#[test]
fn what_a_refusal_says() {
    let text = |listing, target| restore(&files(listing), target).unwrap_err().to_string();
    assert_eq!(
        text("9:1-3 0:6-6", Target::Latest),
        "transactions 0000000000000004 to 0000000000000005 are missing in the replica; the \
         newest TXID before them that can be restored is 0000000000000003"
    );
    assert_eq!(
        text("9:1-3 1:4-8", Target::Txid(Txid(6))),
        "no file of the replica ends at TXID 0000000000000006; the nearest that can be restored \
         are 0000000000000003 and 0000000000000008"
    );
}

#[test]
fn runs_of_what_can_be_restored() {
    let runs = |listing| -> Vec<(u64, u64)> {
        coverage(&files(listing)).iter().map(|run| (run.first.0, run.last.0)).collect()
    };
    assert_eq!(runs(""), []);
    assert_eq!(runs("0:5-5"), []);
    assert_eq!(runs("9:1-3 0:4-4 0:5-5 1:6-9 0:10-10"), [(3, 5), (9, 10)]);
    assert_eq!(runs("9:1-3 0:5-5 9:1-8 0:9-9"), [(3, 3), (8, 9)]);
}

/// Returns, for each reachable TXID, the smallest number of files that lead there. Tries every file after
/// every state until nothing changes.
fn brute_force(files: &[FileInfo]) -> BTreeMap<u64, usize> {
    let mut fewest = BTreeMap::from([(0u64, 0usize)]);
    loop {
        let before = fewest.clone();
        for file in files {
            let (min, max) = (file.key.name.min.0, file.key.name.max.0);
            for (state, count) in before.range(..max) {
                // A file from TXID 1 on needs no other file.
                let count = if min == 1 { 1 } else { count + 1 };
                if min <= state + 1 && fewest.get(&max).is_none_or(|known| *known > count) {
                    fewest.insert(max, count);
                }
            }
        }
        if fewest == before {
            fewest.remove(&0);
            return fewest;
        }
    }
}

fn listing() -> impl Strategy<Value = Vec<FileInfo>> {
    let one =
        (0u8..=9, 1u64..14, 0u64..6).prop_map(|(level, min, more)| file(level, min, min + more));
    proptest::collection::vec(one, 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn as_good_as_brute_force(listing in listing(), target in 1u64..20) {
        let truth = brute_force(&listing);
        let points: Vec<u64> = restorable(&listing).iter().map(|txid| txid.0).collect();
        prop_assert_eq!(&points, &truth.keys().copied().collect::<Vec<_>>());
        for (target, end) in [
            (Target::Txid(Txid(target)), target),
            (Target::Latest, head(&listing).map_or(0, |head| head.0)),
        ] {
            match restore(&listing, target) {
                Ok(plan) => {
                    prop_assert_eq!(plan.txid, Txid(end));
                    prop_assert_eq!(Some(&plan.files.len()), truth.get(&end));
                    let mut reached = 0;
                    for file in &plan.files {
                        let name = file.key.name;
                        prop_assert!(name.min.0 <= reached + 1 && name.max.0 > reached);
                        reached = name.max.0;
                    }
                    prop_assert_eq!(reached, end);
                    prop_assert_eq!(plan.files[0].key.name.min, Txid(1));
                }
                Err(error) => {
                    prop_assert!(!truth.contains_key(&end), "{}", error);
                    let (below, above) = (
                        truth.range(..end).next_back().map(|(point, _)| Txid(*point)),
                        truth.range(end..).next().map(|(point, _)| Txid(*point)),
                    );
                    match error {
                        Error::Empty => prop_assert!(listing.is_empty()),
                        Error::NoBase { .. } => prop_assert!(truth.is_empty()),
                        Error::Gap { after, next } => {
                            prop_assert_eq!(Some(after), below);
                            prop_assert!(next > after.next() && next <= Txid(end));
                        }
                        Error::NotReachable { below: b, above: a, .. } => {
                            prop_assert_eq!((b, a), (below, above));
                        }
                    }
                }
            }
        }
    }
}
