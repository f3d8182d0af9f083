//! Chooses the files that retention deletes.
//!
//! Retention deletes a file only by one of three rules:
//!
//! - A file of level 0 expires if one compacted file that is older than `l0` covers it. A younger
//!   compacted file may end behind a state that must be restorable by itself; the file of level 0 is the
//!   only way to this state.
//! - A snapshot that is older than `all` expires if a newer snapshot is older than `all`, too. From the
//!   newer one, every state of the time to keep can be reached. This newest snapshot older than `all` is
//!   the base.
//! - A file of any other level expires if it ends at or before the base.
//!
//! Two exceptions hold for level 0. Its newest file stays, since a writer finds the end of its log by
//! this file. And a file stays until it was at the store for the time of `l0`. As long as the file
//! exists, no request that is still under way can create another file in its place.
//!
//! A file that is too short to be valid covers no other file. Retention deletes nothing if the newest
//! state that can be restored would be lost ([`keeps_the_newest`]).

use std::collections::{BTreeMap, BTreeSet};

use super::restore::restorable;
use crate::ltx::{FileName, MIN_FILE_LEN};
use crate::store::{FileInfo, Key};
use crate::units::{Level, Timestamp, Txid, WriterId};

/// Times that decide which files to keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// States newer than this time can be restored. `None` keeps all.
    pub all: Option<Timestamp>,
    /// States newer than this time can be restored one by one, as they were uploaded.
    pub l0: Timestamp,
}

/// Retention times in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keep {
    /// Time for which states can be restored; `None` keeps all.
    pub all: Option<u64>,
    /// Time for which states can be restored one by one.
    pub l0: u64,
}

impl Keep {
    /// Returns the policy at the time `now`. If `now` is later than the time of the newest file at the
    /// store, the newest file's time counts instead. So a clock ahead of the store's deletes no file too
    /// early.
    pub fn at(self, now: Timestamp, files: &[FileInfo]) -> Policy {
        let newest = files.iter().map(|file| file.stored).max();
        let now = newest.map_or(now, |newest| newest.min(now));
        let ago =
            |time: u64| Timestamp(now.0.saturating_sub(i64::try_from(time).unwrap_or(i64::MAX)));
        Policy { all: self.all.map(ago), l0: ago(self.l0) }
    }
}

/// The files of level 0 that a writer knows to be its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    /// First transaction of the writer's lineage, if known.
    pub first: Option<Txid>,
    /// Last transaction that the store has confirmed to the writer.
    pub last: Txid,
}

impl Own {
    /// The value for a process that is no writer.
    pub const NONE: Own = Own { first: None, last: Txid(u64::MAX) };

    /// True if `txid` is one of the first two of the lineage. The first may be an image, which is too
    /// large to be kept; then the second file marks the lineage.
    fn is_begun_by(self, txid: Txid) -> bool {
        self.first.is_some_and(|first| txid == first || txid == first.next())
    }

    /// True if retention may keep the file of this transaction and delete the files behind it. The
    /// existence of such a file does not show that the log continues from there.
    pub fn may_outlast(self, txid: Txid) -> bool {
        self.first.is_none() || self.is_begun_by(txid)
    }

    /// True if the file of this transaction is the writer's own, and not one of the first two.
    fn has(self, txid: Txid) -> bool {
        self.first.is_some_and(|first| first.next() < txid && txid <= self.last)
    }
}

/// Expired files that can be deleted: at once, or after a check of their writer.
///
/// The first file of a lineage stays for ever. A writer may be paused, for any time, while another
/// process takes over the log. When the paused writer continues, it finds that file at its next TXID.
/// Only this file tells the writer that it has lost the log.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Doomed {
    /// Files that can be deleted.
    pub sure: Vec<FileInfo>,
    /// Files of level 0, ascending, that can be deleted unless they begin a lineage ([`begun`]).
    pub unsure: Vec<FileInfo>,
}

/// Sorts expired files. Leaves out files of level 0 that must stay: the first two of the lineage, and those
/// behind `own.last`.
pub fn doomed(expired: Vec<FileInfo>, own: Own) -> Doomed {
    let mut doomed = Doomed::default();
    for file in expired {
        match file.key.level {
            Level::L0 if file.key.name.max > own.last => {}
            Level::L0 if own.is_begun_by(file.key.name.max) => {}
            Level::L0 if !own.has(file.key.name.max) => doomed.unsure.push(file),
            _ => doomed.sure.push(file),
        }
    }
    doomed.unsure.sort_unstable_by_key(|file| file.key);
    doomed
}

/// Returns the files of `unsure` whose predecessor is not in `unsure`, each with a file that ends at the
/// predecessor's transaction.
///
/// The second file names the writer of the predecessor, since a compacted file has the writer of its last
/// transaction. Leaves out files for which no such file exists. `unsure` must be ascending.
pub fn predecessors(unsure: &[FileInfo], files: &[FileInfo]) -> Vec<(Key, Key)> {
    let mut ends: BTreeMap<Txid, Key> = BTreeMap::new();
    for file in files.iter().filter(|file| is_whole(file)) {
        ends.entry(file.key.name.max).or_insert(file.key);
    }
    let mut before = None;
    let mut found = Vec::new();
    for file in unsure {
        let previous = file.key.name.min.prev();
        if before != Some(previous)
            && let Some(end) = ends.get(&previous)
        {
            found.push((file.key, *end));
        }
        before = Some(file.key.name.max);
    }
    found
}

/// Returns the files that may begin a lineage: their writer differs from the writer of the transaction
/// before, or one of the two writers is unknown.
///
/// `written` must be ascending. `predecessor` gives the writer of the transaction before a file, if that
/// transaction is not in `written`.
pub fn begun(
    written: &[(FileInfo, Option<WriterId>)],
    predecessor: &BTreeMap<Key, WriterId>,
) -> Vec<Key> {
    let mut before: Option<(Txid, WriterId)> = None;
    let mut begun = Vec::new();
    for (file, writer) in written {
        if let Some(by) = predecessor.get(&file.key) {
            before = Some((file.key.name.min.prev(), *by));
        }
        let goes_on = before
            .is_some_and(|(txid, by)| txid.next() == file.key.name.min && *writer == Some(by));
        if !goes_on {
            begun.push(file.key);
        }
        before = writer.map(|writer| (file.key.name.max, writer));
    }
    begun
}

/// Returns the expired files, oldest first; files with the same end by level, so that covered files come
/// before those that cover them.
pub fn expired(files: &[FileInfo], policy: Policy) -> Vec<FileInfo> {
    let base = policy.all.and_then(|since| base(files, since));
    let newest = files.iter().filter(|file| file.key.level == Level::L0).map(|file| file.key).max();
    let covers = covers(files, policy.l0);
    let mut expired: Vec<FileInfo> = files
        .iter()
        .filter(|file| Some(file.key) != newest)
        .filter(|file| {
            let young = file.key.level == Level::L0 && file.stored >= policy.l0;
            let joined = file.key.level == Level::L0 && is_covered(&covers, file.key.name);
            !young && (joined || base.is_some_and(|base| is_superseded(file.key, base)))
        })
        .copied()
        .collect();
    expired.sort_unstable_by_key(|file| (file.key.name.max, file.key));
    expired
}

/// Returns the files that cover the files expired by this policy: the base snapshot and compacted files.
pub fn stand_ins(files: &[FileInfo], policy: Policy) -> Vec<FileInfo> {
    let base = policy.all.and_then(|since| base(files, since));
    let covers = covers(files, policy.l0);
    let mut names: BTreeSet<(bool, FileName)> = BTreeSet::new();
    for file in expired(files, policy) {
        match base.filter(|base| is_superseded(file.key, *base)) {
            Some(max) => {
                names.insert((true, FileName { min: Txid(1), max }));
            }
            None => names.extend(cover_of(&covers, file.key.name).map(|cover| (false, cover))),
        }
    }
    let stands_in = |file: &&FileInfo| {
        let whole = file.key.level == Level::SNAPSHOT;
        let joined = (Level::L1..Level::L8).contains(&file.key.level) && file.stored < policy.l0;
        (whole || joined) && is_whole(file) && names.contains(&(whole, file.key.name))
    };
    files.iter().filter(stands_in).copied().collect()
}

/// Returns the files, with length 0 for damaged ones, so that damaged files cover no other file.
pub fn stripped(files: &[FileInfo], damaged: &[Key]) -> Vec<FileInfo> {
    let len = |file: &FileInfo| if damaged.contains(&file.key) { 0 } else { file.len };
    files.iter().map(|file| FileInfo { len: len(file), ..*file }).collect()
}

/// Returns the TXID of the base: the newest snapshot that is at least as old as `since`.
fn base(files: &[FileInfo], since: Timestamp) -> Option<Txid> {
    let old = |file: &&FileInfo| {
        let whole = is_whole(file) && file.key.name.min == Txid(1);
        file.key.level == Level::SNAPSHOT && whole && file.modified <= since
    };
    files.iter().filter(old).map(|file| file.key.name.max).max()
}

fn is_whole(file: &FileInfo) -> bool {
    file.len >= MIN_FILE_LEN
}

/// True if the newest state that can be restored stays the same without the files `removed`.
pub fn keeps_the_newest(files: &[FileInfo], removed: &[FileInfo]) -> bool {
    let gone: BTreeSet<Key> = removed.iter().map(|file| file.key).collect();
    let newest = |files: &mut dyn Iterator<Item = &FileInfo>| {
        let whole: Vec<FileInfo> = files.filter(|file| is_whole(file)).copied().collect();
        restorable(&whole).last().copied()
    };
    let left = newest(&mut files.iter().filter(|file| !gone.contains(&file.key)));
    left == newest(&mut files.iter())
}

fn is_superseded(key: Key, base: Txid) -> bool {
    match key.level {
        Level::SNAPSHOT => key.name.max < base,
        _ => key.name.max <= base,
    }
}

/// Returns the TXID ranges of compacted files that are older than `l0`, ascending. Each range ends behind
/// the one before it.
fn covers(files: &[FileInfo], l0: Timestamp) -> Vec<FileName> {
    // Level 8 does not count: its files may be mere intermediate files of a snapshot. If level 8 is in
    // use, files of the levels below cover the same transactions.
    let is_joined = |level: Level| level > Level::L0 && level < Level::L8;
    let covers = |file: &&FileInfo| is_joined(file.key.level) && is_whole(file) && file.stored < l0;
    let mut covers: Vec<FileName> = files.iter().filter(covers).map(|file| file.key.name).collect();
    covers.sort_unstable_by_key(|name| (name.min, std::cmp::Reverse(name.max)));
    let mut reached = Txid::ZERO;
    covers.retain(|name| {
        let further = name.max > reached;
        reached = reached.max(name.max);
        further
    });
    covers
}

fn is_covered(covers: &[FileName], name: FileName) -> bool {
    cover_of(covers, name).is_some()
}

fn cover_of(covers: &[FileName], name: FileName) -> Option<FileName> {
    let behind = covers.partition_point(|cover| cover.min <= name.min);
    covers.get(..behind)?.last().filter(|cover| cover.max >= name.max).copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::compact::{self, Ladder};
    use crate::plan::restore::restorable;

    fn file(level: u8, min: u64, max: u64, time: i64) -> FileInfo {
        let name = FileName { min: Txid(min), max: Txid(max) };
        let key = Key { level: Level::new(level).unwrap(), name };
        let time = Timestamp(time);
        FileInfo { key, len: 1000, modified: time, stored: time }
    }

    fn files(text: &str) -> Vec<FileInfo> {
        let parse = |word: &str| {
            let (level, range) = word.split_once(':').unwrap();
            let (range, time) = range.split_once('@').unwrap();
            let (min, max) = range.split_once('-').unwrap();
            let number = |text: &str| text.parse().unwrap();
            file(level.parse().unwrap(), number(min), number(max), number(time) as i64)
        };
        text.split_whitespace().map(parse).collect()
    }

    fn check(listing: &str, all: i64, l0: i64, expected: &str) {
        let policy = Policy { all: (all > 0).then_some(Timestamp(all)), l0: Timestamp(l0) };
        assert_eq!(expired(&files(listing), policy), files(expected), "{listing:?} {policy:?}");
    }

    #[test]
    fn level_0_goes_when_it_is_old_and_joined() {
        let listing = "9:1-1@1 0:2-2@2 0:3-3@3 1:2-3@3 0:4-4@4 0:5-5@5";
        check(listing, 0, 3, "");
        check(listing, 0, 4, "0:2-2@2 0:3-3@3");
        check(listing, 0, 9, "0:2-2@2 0:3-3@3");
        // The newest file stays, even if a compacted file covers it.
        check("0:2-2@2 1:2-2@2", 0, 9, "");
        check("0:2-2@2 0:3-3@3 1:2-3@3", 0, 9, "0:2-2@2");
        // One compacted file, at any level, must cover the whole file and be old enough.
        let listing = "9:1-4@4 0:2-2@2 0:3-3@3 0:4-4@4 0:5-5@5 2:2-3@3 3:2-4@6 1:3-4@6 0:6-6@6";
        check(listing, 0, 4, "0:2-2@2 0:3-3@3");
        check(listing, 0, 7, "0:2-2@2 0:3-3@3 0:4-4@4");
    }

    #[test]
    fn what_leads_to_the_time_that_is_kept_stays() {
        let listing = "9:1-1@1 1:2-3@3 9:1-3@3 1:4-6@6 9:1-6@6 1:7-9@9 0:10-10@10";
        check(listing, 6, 0, "9:1-1@1 1:2-3@3 9:1-3@3 1:4-6@6");
        check(listing, 5, 0, "9:1-1@1 1:2-3@3");
        check(listing, 2, 0, "");
        check(listing, 0, 0, "");
        // The only snapshot stays however old it is.
        check("9:1-1@1 0:2-2@2 0:3-3@3", 99, 0, "");
        // A file that reaches beyond the snapshot stays.
        check("9:1-1@1 2:2-9@9 9:1-5@5 1:2-5@5", 7, 0, "9:1-1@1 1:2-5@5");
    }

    #[test]
    fn what_is_no_whole_file_stands_in_for_nothing() {
        let check = |listing: &str, short: &str| {
            let mut files = files(listing);
            let short = self::files(short).first().unwrap().key;
            let mut of_short = files.iter_mut().filter(|file| file.key == short);
            of_short.next().unwrap().len = MIN_FILE_LEN - 1;
            let expired = expired(&files, Policy { all: Some(Timestamp(9)), l0: Timestamp(9) });
            assert_eq!(expired, Vec::new(), "{listing:?} without {short}");
        };
        check("9:1-1@1 9:1-4@4 0:2-2@2 0:3-3@3 0:4-4@4 0:5-5@5", "9:1-4@4");
        check("9:1-1@1 1:2-4@4 0:2-2@2 0:3-3@3 0:4-4@4 0:5-5@5", "1:2-4@4");
        // A file of level 9 that does not begin at TXID 1 is no snapshot.
        let listing = "9:1-1@1 9:2-4@4 0:2-2@2 0:3-3@3 0:4-4@4 0:5-5@5";
        assert_eq!(
            expired(&files(listing), Policy { all: Some(Timestamp(9)), l0: Timestamp(9) }),
            []
        );
    }

    #[test]
    fn what_stands_in_is_known_and_damaged_it_does_not() {
        let listing = files(
            "9:1-1@1 1:2-3@3 0:2-2@2 0:3-3@3 9:1-3@3 0:4-4@4 0:5-5@5 1:4-5@5 2:4-5@5 0:6-6@6",
        );
        let policy = Policy { all: Some(Timestamp(4)), l0: Timestamp(6) };
        let keys = |files: Vec<FileInfo>| files.iter().map(|file| file.key).collect::<Vec<_>>();
        let stand_ins = |damaged: &[Key]| keys(stand_ins(&stripped(&listing, damaged), policy));
        let expired = |damaged: &[Key]| keys(expired(&stripped(&listing, damaged), policy));
        let of = |text: &str| keys(files(text));
        assert_eq!(stand_ins(&[]), of("9:1-3@3 1:4-5@5 2:4-5@5"));
        assert_eq!(expired(&[]), of("9:1-1@1 0:2-2@2 0:3-3@3 1:2-3@3 0:4-4@4 0:5-5@5"));
        let base = of("9:1-3@3");
        assert_eq!(stand_ins(&base), of("1:2-3@3 1:4-5@5 2:4-5@5"));
        assert_eq!(expired(&base), of("0:2-2@2 0:3-3@3 0:4-4@4 0:5-5@5"));
        let all = of("9:1-3@3 1:2-3@3 1:4-5@5 2:4-5@5");
        assert_eq!((stand_ins(&all), expired(&all)), (vec![], vec![]));
    }

    #[test]
    fn the_newest_state_must_be_among_what_is_left() {
        let all = files("9:1-1@1 9:1-4@4 0:2-2@2 0:3-3@3 0:4-4@4 0:5-5@5");
        let without = |text: &str| keeps_the_newest(&all, &files(text));
        assert!(without("9:1-1@1 0:2-2@2") && without("9:1-4@4") && without(""));
        assert!(!without("9:1-4@4 0:3-3@3") && !without("0:5-5@5") && !without("9:1-1@1 9:1-4@4"));
        // With a gap, the newest state is the one before the gap.
        let all = files("9:1-1@1 0:2-2@2 0:4-4@4");
        assert!(keeps_the_newest(&all, &files("0:4-4@4")));
        assert!(!keeps_the_newest(&all, &files("0:2-2@2")));
    }

    #[test]
    fn the_first_file_of_a_lineage_stays() {
        let expired = files("0:2-2@2 0:3-3@3 0:4-4@4 0:5-5@5 0:6-6@6 0:7-7@7 1:2-5@5");
        let own = Own { first: Some(Txid(4)), last: Txid(6) };
        let sorted = doomed(expired.clone(), own);
        assert_eq!(sorted.sure, files("0:6-6@6 1:2-5@5"));
        assert_eq!(sorted.unsure, files("0:2-2@2 0:3-3@3"));
        let sorted = doomed(expired.clone(), Own { first: None, last: Txid(5) });
        let by = [Some(1), Some(1), Some(2), Some(2)].map(|by| by.map(WriterId));
        let written: Vec<_> = sorted.unsure.into_iter().zip(by).collect();
        let key = |txid| file(0, txid, txid, 0).key;
        let none = BTreeMap::new();
        assert_eq!(begun(&written, &none), [key(2), key(4)]);
        // The compacted file of the predecessor tells its writer.
        let told = |by| BTreeMap::from([(key(2), WriterId(by))]);
        assert_eq!(begun(&written, &told(1)), [key(4)]);
        assert_eq!(begun(&written, &told(2)), [key(2), key(4)]);
        // A file that cannot be read may begin a lineage, and so may a file behind a gap.
        let written = [
            (file(0, 2, 2, 0), Some(1)),
            (file(0, 3, 3, 0), None),
            (file(0, 4, 4, 0), Some(1)),
            (file(0, 6, 6, 0), Some(1)),
        ]
        .map(|(file, by)| (file, by.map(WriterId)));
        assert_eq!(begun(&written, &none), [key(2), key(3), key(4), key(6)]);
        let unsure = files("0:2-2@2 0:3-3@3 0:6-6@6 0:9-9@9");
        let listing = files("9:1-1@1 1:2-5@5 0:3-3@3 0:6-6@6 2:2-8@8 1:6-9@9");
        let found = predecessors(&unsure, &listing);
        let file = |text: &str| files(text)[0].key;
        let of = |txid, end| (key(txid), file(end));
        assert_eq!(found, [of(2, "9:1-1@1"), of(6, "1:2-5@5"), of(9, "2:2-8@8")]);
        assert_eq!(doomed(expired, Own::NONE).unsure.len(), 6);
    }

    proptest! {
        /// A long history of writing, compaction and retention: every state that the policy keeps can be
        /// restored at any time, and the other files are deleted.
        #[test]
        fn nothing_needed_is_ever_deleted(
            keep in 20i64..200,
            keep_l0 in 5i64..40,
            rhythm in (2i64..6, 10i64..20, 25i64..60),
            levels in prop::sample::select(vec![vec![1u8, 2], vec![2], vec![1, 3], vec![2, 3]]),
            gaps in prop::collection::vec(1i64..4, 50..400),
        ) {
            let (mut all, mut now, mut txid) = (vec![file(9, 1, 1, 0)], 0, 1);
            let mut times = vec![(Txid(1), 0)];
            let mut most = 0;
            let levels: Vec<Level> = levels.into_iter().filter_map(Level::new).collect();
            let (ladder, lowest) = (Ladder::new(levels.iter().copied()), levels[0]);
            let every = levels.into_iter().zip([rhythm.0, rhythm.1]);
            let every: Vec<_> = every.chain([(Level::SNAPSHOT, rhythm.2)]).collect();
            for gap in gaps {
                now += gap;
                txid += 1;
                all.push(file(0, txid, txid, now));
                times.push((Txid(txid), now));
                for (level, every) in &every {
                    if now / every != (now - gap) / every
                        && let Some(step) = compact::next(&all, &ladder, *level, Txid(txid))
                    {
                        let name = step.key.name;
                        all.push(file(level.get(), name.min.0, name.max.0, now));
                    }
                }
                let policy =
                    Policy { all: Some(Timestamp(now - keep)), l0: Timestamp(now - keep_l0) };
                for gone in expired(&all, policy) {
                    let points = |files: &[FileInfo]| restorable(files);
                    all.retain(|file| file.key != gone.key);
                    // This must hold after each single delete, too.
                    let points = points(&all);
                    prop_assert_eq!(points.last(), Some(&Txid(txid)));
                    for (txid, at) in times.iter().rev().take_while(|(_, at)| *at > now - keep_l0.min(keep)) {
                        prop_assert!(points.contains(txid), "{} of {} at {}", txid, at, now);
                    }
                    // Older states must be no further apart than the files of the lowest level.
                    let since = times.iter().rev().take_while(|(_, at)| *at > now - keep);
                    let oldest = since.last().map(|(txid, _)| *txid).unwrap();
                    prop_assert!(points.iter().any(|point| *point <= oldest));
                    let made: Vec<Txid> = all
                        .iter()
                        .filter(|file| file.key.level == lowest)
                        .map(|file| file.key.name.max)
                        .filter(|max| *max >= oldest)
                        .collect();
                    prop_assert!(made.iter().all(|max| points.contains(max)));
                }
                most = most.max(all.len());
            }
            let bound = (keep + 2 * rhythm.2 + keep_l0) * 3 + 20;
            prop_assert!(most as i64 <= bound, "{} files, at most {}", most, bound);
        }
    }
}
