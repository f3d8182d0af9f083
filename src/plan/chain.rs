//! Checks that the files of a replica agree on the states that they lead from and to.

use std::collections::HashMap;

use crate::ltx::{DatabaseChecksum, Header};
use crate::store::Key;
use crate::units::Txid;

/// Two files that contradict each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contradiction {
    /// The file that does not fit.
    pub key: Key,
    /// The file that `key` contradicts, and how.
    pub what: String,
}

/// Compares the tags of all files, given in any order. All files that end at a transaction must lead to
/// the same state, and all files that begin behind it must be made from this state. A full image may be
/// made from any state. Files without a tag, as Litestream writes them, are not compared.
pub fn contradictions(files: &[(Key, Header)]) -> Vec<Contradiction> {
    let mut sorted: Vec<&(Key, Header)> = files.iter().collect();
    sorted.sort_by_key(|(key, _)| (key.name.max, key.level, key.name.min));
    let mut states: HashMap<Txid, (Key, DatabaseChecksum)> = HashMap::new();
    let mut found = Vec::new();
    for (key, header) in &sorted {
        let Some(tag) = header.tag else { continue };
        match states.get(&key.name.max) {
            Some((other, state)) if *state != tag.post_apply => {
                let what = format!(
                    "it leads to another database than {other}: checksum {}, not {state}",
                    tag.post_apply
                );
                found.push(Contradiction { key: *key, what });
            }
            Some(_) => {}
            None => {
                states.insert(key.name.max, (*key, tag.post_apply));
            }
        }
    }
    for (key, header) in sorted {
        let Some(tag) = header.tag.filter(|tag| !tag.full_image) else { continue };
        if let Some((before, state)) = states.get(&key.name.min.prev())
            && *state != tag.pre_apply
        {
            let what = format!(
                "it was not made from the database that {before} leads to: checksum {}, not {state}",
                tag.pre_apply
            );
            found.push(Contradiction { key: *key, what });
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ltx::{FileName, Tag};
    use crate::units::{Level, PageSize, Salts, Timestamp, WriterId};

    fn file(level: u8, txids: (u64, u64), sums: Option<(u64, u64)>, full: bool) -> (Key, Header) {
        let name = FileName { min: Txid(txids.0), max: Txid(txids.1) };
        let key = Key { level: Level::new(level).unwrap(), name };
        let sum = DatabaseChecksum::from_stored;
        let tag = sums.map(|(pre, post)| Tag {
            pre_apply: sum(pre),
            post_apply: sum(post),
            full_image: full,
        });
        let header = Header {
            page_size: PageSize::new(512).unwrap(),
            commit: 1,
            min_txid: name.min,
            max_txid: name.max,
            timestamp: Timestamp(0),
            wal_offset: 32,
            wal_size: 0,
            salts: Salts(0, 0),
            writer: WriterId(1),
            tag,
        };
        (key, header)
    }

    fn keys(files: &[(Key, Header)]) -> Vec<String> {
        contradictions(files).into_iter().map(|found| found.key.to_string()).collect()
    }

    #[test]
    fn files_that_fit_do_not_contradict_each_other() {
        let files = [
            file(9, (1, 1), Some((0, 10)), true),
            file(0, (2, 2), Some((10, 20)), false),
            file(0, (3, 3), Some((20, 30)), false),
            file(1, (2, 3), Some((10, 30)), false),
            file(9, (1, 3), Some((0, 30)), true),
            file(0, (4, 4), None, false),
            file(0, (5, 5), Some((77, 50)), false),
            file(0, (6, 6), Some((99, 60)), true),
        ];
        assert_eq!(keys(&files), [""; 0]);
    }

    #[test]
    fn each_kind_of_contradiction_is_found() {
        let first = file(9, (1, 1), Some((0, 10)), true);
        let other_base = file(0, (2, 2), Some((11, 20)), false);
        assert_eq!(keys(&[other_base, first]), [other_base.0.to_string()]);
        let second = file(0, (2, 2), Some((10, 20)), false);
        let other_end = file(1, (1, 2), Some((0, 21)), true);
        assert_eq!(keys(&[other_end, second, first]), [other_end.0.to_string()]);
    }
}
