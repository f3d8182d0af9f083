//! Checks that the states that a replica should have can be restored: finds gaps in its history, and
//! states that retention should have kept.

use std::collections::HashMap;

use super::{Defect, Kept};
use crate::ltx::Header;
use crate::plan::restore::{restorable, stranded};
use crate::store::{FileInfo, Key};
use crate::units::{Level, Timestamp, Txid};

/// Returns the oldest state that can be restored, and its commit time.
pub(super) fn oldest(files: &[FileInfo], headers: &[(Key, Header)]) -> Option<(Txid, Timestamp)> {
    times(files, headers).into_iter().next()
}

/// Returns the defects of the history.
pub(super) fn defects(files: &[FileInfo], headers: &[(Key, Header)], kept: Kept) -> Vec<Defect> {
    let what = "nothing leads to the states that it has: files before it are missing";
    let defect = |key| Defect { key: Some(key), what: what.to_string() };
    let mut defects: Vec<Defect> = stranded(files).into_iter().map(defect).collect();
    let times = times(files, headers);
    let of_replica = |what| Defect { key: None, what };
    if let (Some(since), Some((first, at))) = (kept.since, times.first())
        && *first > Txid(1)
        && *at > since
    {
        defects.push(of_replica(format!(
            "the oldest state that can be restored is of {at}, TXID {first}; there should be one of \
             {since} or before"
        )));
    }
    if let Some(since) = kept.one_by_one {
        let young = times.partition_point(|(_, at)| *at <= since).saturating_sub(1);
        let gaps =
            times.get(young..).unwrap_or_default().windows(2).filter_map(|pair| match pair {
                [(before, _), (next, at)] if *next > before.next() => Some((*before, *next, *at)),
                _ => None,
            });
        defects.extend(gaps.map(|(before, next, at)| {
            of_replica(format!(
                "between TXID {before} and {next} of {at} no state can be restored; since {since} each \
                 one should"
            ))
        }));
    }
    defects
}

/// Returns the states that can be restored, ascending, with their commit times. Leaves out a state whose
/// header cannot be read, which is a defect of its own.
fn times(files: &[FileInfo], headers: &[(Key, Header)]) -> Vec<(Txid, Timestamp)> {
    let mut ends: HashMap<Txid, (Level, Timestamp)> = HashMap::new();
    for (key, header) in headers {
        let end = ends.entry(key.name.max).or_insert((key.level, header.timestamp));
        *end = (*end).min((key.level, header.timestamp));
    }
    let time = |txid: Txid| ends.get(&txid).map(|(_, at)| (txid, *at));
    restorable(files).into_iter().filter_map(time).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ltx::FileName;
    use crate::units::{PageSize, Salts, WriterId};

    /// Parses a listing, such as `"9:1-3 0:4-4"`: level and range of each file. A file's commit time in
    /// seconds is its last TXID.
    fn files(text: &str) -> (Vec<FileInfo>, Vec<(Key, Header)>) {
        let file = |word: &str| {
            let (level, range) = word.split_once(':').unwrap();
            let (min, max) = range.split_once('-').unwrap();
            let name =
                FileName { min: Txid(min.parse().unwrap()), max: Txid(max.parse().unwrap()) };
            let key = Key { level: Level::new(level.parse().unwrap()).unwrap(), name };
            let time = Timestamp(name.max.0 as i64 * 1000);
            let header = Header {
                page_size: PageSize::new(4096).unwrap(),
                commit: 1,
                min_txid: name.min,
                max_txid: name.max,
                timestamp: time,
                wal_offset: 32,
                wal_size: 0,
                salts: Salts::default(),
                writer: WriterId::default(),
                tag: None,
            };
            (FileInfo { key, len: 1000, modified: time, stored: time }, (key, header))
        };
        text.split_whitespace().map(file).unzip()
    }

    fn found(text: &str, since: i64, one_by_one: i64) -> Vec<String> {
        let (files, headers) = files(text);
        let at = |second: i64| (second > 0).then_some(Timestamp(second * 1000));
        let kept = Kept { since: at(since), one_by_one: at(one_by_one) };
        let show = |defect: Defect| match defect.key {
            Some(key) => key.to_string(),
            None => defect.what.split(" of ").next().unwrap().to_string(),
        };
        defects(&files, &headers, kept).into_iter().map(show).collect()
    }

    #[test]
    fn holes_are_found_and_what_is_joined_is_none() {
        assert_eq!(found("9:1-1 0:2-2 0:3-3", 0, 0), [""; 0]);
        let behind = found("9:1-1 0:2-2 0:4-4 9:1-6", 0, 0);
        assert_eq!(behind.len(), 1, "{behind:?}");
        assert!(behind[0].contains("0000000000000004"));
        // The first file of a writer, whose neighbours were compacted and deleted.
        assert_eq!(found("9:1-1 0:4-4 1:2-6 0:7-7", 0, 0), [""; 0]);
        assert_eq!(found("9:1-9 0:4-4 0:10-10", 0, 0), [""; 0]);
        assert_eq!(found("9:1-1 0:4-4 1:5-6 0:8-8 9:1-9", 0, 0).len(), 3);
    }

    #[test]
    fn a_retention_is_held_against_the_states() {
        let replica = "9:1-5 0:6-6 1:6-8 0:9-9 0:10-10";
        assert_eq!(found(replica, 5, 8), [""; 0]);
        assert_eq!(found(replica, 4, 0), ["the oldest state that can be restored is"]);
        let gap = "between TXID 0000000000000006 and 0000000000000008";
        assert_eq!(found(replica, 0, 7), [gap]);
        assert_eq!(found(replica, 0, 6), [gap]);
        // A replica that is younger than the requested time has every state.
        assert_eq!(found("9:1-1 0:2-2", 0, 0), [""; 0]);
        assert_eq!(found("9:1-1 0:2-2", -1, 1), [""; 0]);
    }
}
