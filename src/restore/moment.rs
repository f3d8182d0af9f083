//! Finds the transaction of a moment: the last shipped state at or before the moment.

use super::error::Error;
use super::point::{Point, Range};
use crate::ltx::{HEADER_LEN, Header, MIN_FILE_LEN};
use crate::plan;
use crate::store::{FileInfo, Key, Store};
use crate::units::{Timestamp, Txid};

/// Turns a point into a target of a plan. A point in time reads some headers, one for each time that the number
/// of files can be halved.
pub(super) async fn target(
    store: &dyn Store,
    files: &[FileInfo],
    point: Point,
) -> Result<plan::Target, Error> {
    let at = match point {
        Point::Latest => return Ok(plan::Target::Latest),
        Point::Txid(txid) => return Ok(plan::Target::Txid(txid)),
        Point::Time(at) => at,
    };
    match last(store, files, Some(at)).await? {
        // States behind a gap count, too. The plan then reports the gap.
        Some((txid, _)) => Ok(plan::Target::Txid(txid)),
        None => match range(store, files).await? {
            Some(range) => Err(Error::TooEarly { at, range }),
            None => Ok(plan::Target::Latest),
        },
    }
}

/// Returns the newest state at or before a moment, or of all files, and its commit time. The state may be
/// behind a gap.
pub(super) async fn last(
    store: &dyn Store,
    files: &[FileInfo],
    at: Option<Timestamp>,
) -> Result<Option<(Txid, Timestamp)>, Error> {
    let ends = ends(files);
    let mut found = None;
    // The binary search relies on this order: the commit times of a log rise with its transactions.
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = if at.is_none() { high - 1 } else { low + (high - low) / 2 };
        let Some(key) = ends.get(middle) else { break };
        let time = time_of(store, *key).await?;
        if at.is_none_or(|at| time <= at) {
            found = Some((key.name.max, time));
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(found)
}

/// Returns the commit times of the oldest and the newest state that can be restored from these files. `None` if
/// there is none. Reads two headers.
pub async fn range(store: &dyn Store, files: &[FileInfo]) -> Result<Option<Range>, Error> {
    let points = plan::restore::restorable(files);
    let ends = ends(files);
    let end_at = |txid: Option<&Txid>| {
        txid.and_then(|txid| ends.iter().find(|key| key.name.max == *txid)).copied()
    };
    let (Some(first), Some(last)) = (end_at(points.first()), end_at(points.last())) else {
        return Ok(None);
    };
    Ok(Some(Range { first: time_of(store, first).await?, last: time_of(store, last).await? }))
}

/// Returns a file for each state that can be restored or is behind a gap, ascending.
///
/// The file is the one of the lowest level, since the time of a snapshot may be the time at which it was made.
/// Other files end at states that no longer exist: they are older than the oldest kept state, or within a
/// compacted file.
fn ends(files: &[FileInfo]) -> Vec<Key> {
    let whole: Vec<FileInfo> =
        files.iter().filter(|file| file.len >= MIN_FILE_LEN).copied().collect();
    let points = plan::restore::restorable(&whole);
    let mut ends: Vec<Key> = whole
        .iter()
        .map(|file| file.key)
        .filter(|key| points.binary_search(&key.name.max).is_ok())
        .chain(plan::restore::stranded(&whole))
        .collect();
    ends.sort_unstable_by_key(|key| (key.name.max, key.level));
    ends.dedup_by_key(|key| key.name.max);
    ends
}

async fn time_of(store: &dyn Store, key: Key) -> Result<Timestamp, Error> {
    let bytes = store.get(key, Some(0..HEADER_LEN as u64)).await?;
    let head = bytes.first_chunk::<HEADER_LEN>().ok_or(Error::truncated(key, "header"))?;
    let header = Header::decode(head).map_err(|source| Error::File { key, source })?;
    Ok(header.timestamp)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ltx::encode::to_vec;
    use crate::ltx::{DatabaseChecksum, FileName, Tag};
    use crate::restore::list_in_turn;
    use crate::store::Body;
    use crate::store::memory::MemoryStore;
    use crate::units::{Level, PageSize, Salts, WriterId};

    /// Puts a file that ends at `max`. Its last commit is `seconds` after the epoch.
    async fn put(store: &MemoryStore, level: u8, min: u64, max: u64, seconds: i64) {
        let key = Key {
            level: Level::new(level).unwrap(),
            name: FileName { min: Txid(min), max: Txid(max) },
        };
        let sum = |n: u64| DatabaseChecksum::from_stored(n);
        let tag = Tag { pre_apply: sum(min - 1), post_apply: sum(max), full_image: min == 1 };
        let header = Header {
            page_size: PageSize::new(512).unwrap(),
            commit: 1,
            min_txid: Txid(min),
            max_txid: Txid(max),
            timestamp: Timestamp(seconds * 1000),
            wal_offset: 32,
            wal_size: 0,
            salts: Salts(0, 0),
            writer: WriterId(1),
            tag: Some(tag),
        };
        let page = [1; 512];
        let bytes = to_vec(&header, [(1, page.as_slice())]).unwrap();
        store.put_new(key, Body::Bytes(bytes.into()), header.timestamp).await.unwrap();
    }

    fn found(store: &MemoryStore, seconds: i64) -> Result<plan::Target, Error> {
        let point = Point::Time(Timestamp(seconds * 1000));
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let files = list_in_turn(store).await?;
            target(store, &files, point).await
        })
    }

    fn filled(files: &[(u8, u64, u64, i64)]) -> MemoryStore {
        let store = MemoryStore::new();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            for (level, min, max, seconds) in files {
                put(&store, *level, *min, *max, *seconds).await;
            }
        });
        store
    }

    #[test]
    fn a_moment_is_the_last_state_at_or_before_it() {
        let store = filled(&[(9, 1, 1, 100), (0, 2, 2, 110), (0, 3, 3, 120), (0, 4, 4, 120)]);
        for (seconds, txid) in [(100, 1), (109, 1), (110, 2), (119, 2), (120, 4), (99_999, 4)] {
            assert_eq!(found(&store, seconds).unwrap(), plan::Target::Txid(Txid(txid)));
        }
        let error = found(&store, 99).unwrap_err();
        let Error::TooEarly { range, .. } = error else { panic!("{error}") };
        assert_eq!((range.first.0, range.last.0), (100_000, 120_000));
        assert_eq!(found(&filled(&[]), 5).unwrap(), plan::Target::Latest);
    }

    #[test]
    fn a_compacted_file_stands_for_its_last_commit() {
        let store = filled(&[(9, 1, 1, 100), (1, 2, 5, 150), (0, 5, 5, 150), (9, 1, 5, 155)]);
        assert_eq!(found(&store, 149).unwrap(), plan::Target::Txid(Txid(1)));
        assert_eq!(found(&store, 150).unwrap(), plan::Target::Txid(Txid(5)));
    }

    #[test]
    fn what_was_joined_or_is_not_kept_any_more_is_no_state() {
        // The first file of a writer's lineage remains beside the compacted file that contains it.
        let joined = [(9, 1, 1, 100), (1, 2, 6, 160), (0, 4, 4, 140), (1, 7, 9, 190)];
        for (seconds, txid) in [(139, 1), (145, 1), (160, 6), (189, 6), (190, 9)] {
            let found = found(&filled(&joined), seconds).unwrap();
            assert_eq!(found, plan::Target::Txid(Txid(txid)), "{seconds}");
        }
        // Such a file also remains before the oldest state that is kept.
        let store = filled(&[(0, 4, 4, 140), (9, 1, 9, 190), (0, 10, 10, 200)]);
        let error = found(&store, 145).unwrap_err();
        let Error::TooEarly { range, .. } = error else { panic!("{error}") };
        assert_eq!((range.first.0, range.last.0), (190_000, 200_000));
    }

    #[test]
    fn a_state_behind_a_hole_is_found_so_that_the_plan_refuses_it() {
        let store = filled(&[(9, 1, 1, 100), (0, 2, 2, 110), (0, 4, 4, 130)]);
        assert_eq!(found(&store, 140).unwrap(), plan::Target::Txid(Txid(4)));
    }
}
