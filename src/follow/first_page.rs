//! The few bytes of page 1 that differ in a copy, because SQLite writes to the copy.
//!
//! | offset | bytes | field | in the copy |
//! |---|---|---|---|
//! | 18 | 2 | file format versions | 2, 2: WAL mode |
//! | 24 | 4 | change counter | counted by the copy's own SQLite |
//! | 64 | 4 | incremental vacuum | 1 if the database has pointer maps, else the original |
//! | 92 | 8 | change counter for which the size is valid, SQLite's version | as the counter |
//!
//! (<https://sqlite.org/fileformat2.html#the_database_header>; `pager_write_changecounter` in `pager.c` writes
//! the counter whenever page 1 goes to the WAL.)
//!
//! The value of the incremental vacuum field keeps a commit to the copy from vacuuming. Otherwise SQLite would
//! move pages at the end of a transaction if the original is in auto-vacuum mode and a step ends with free
//! pages. The result would be another database.
//!
//! The follower keeps the original's values of these fields beside the copy, so that checksums are those of the
//! original.

use serde::{Deserialize, Serialize};

/// The fields: offset and length.
const PLACES: [(usize, usize); 4] = [(18, 2), (24, 4), (64, 4), (92, 8)];
/// Offset of the largest root page, which is 0 in a database without pointer maps.
const LARGEST_ROOT: usize = 52;
const INCREMENTAL: usize = 64;

/// The original's values of these fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Original([u8; 18]);

impl Original {
    /// Reads the fields from the original's page 1.
    pub(super) fn of(page: &[u8]) -> Original {
        let mut found = Original::default();
        let mut rest = &mut found.0[..];
        for (at, len) in PLACES {
            let (here, behind) = rest.split_at_mut(len);
            if let Some(bytes) = page.get(at..at + len) {
                here.copy_from_slice(bytes);
            }
            rest = behind;
        }
        found
    }

    /// Turns the copy's page 1 into the original's.
    pub(super) fn restore(&self, page: &mut [u8]) {
        let mut rest = &self.0[..];
        for (at, len) in PLACES {
            let (here, behind) = rest.split_at(len);
            if let Some(bytes) = page.get_mut(at..at + len) {
                bytes.copy_from_slice(here);
            }
            rest = behind;
        }
    }
}

/// Turns the original's page 1 into the copy's. SQLite sets the counter itself.
pub(super) fn adapt(page: &mut [u8]) {
    if let Some(versions) = page.get_mut(18..20) {
        versions.fill(2);
    }
    let has_maps = page.get(LARGEST_ROOT..LARGEST_ROOT + 4).is_some_and(|root| root != [0; 4]);
    if has_maps && let Some(flag) = page.get_mut(INCREMENTAL..INCREMENTAL + 4) {
        flag.copy_from_slice(&1u32.to_be_bytes());
    }
}

/// True if page 1 of a database file is adapted to a copy.
pub(super) fn is_adapted(page: &[u8]) -> bool {
    let mut adapted = page.to_vec();
    adapt(&mut adapted);
    adapted == page
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_original_comes_back() {
        let original: Vec<u8> = (0..=255).chain(0..=255).collect();
        let kept = Original::of(&original);
        let mut copy = original.clone();
        adapt(&mut copy);
        copy[24..28].fill(9);
        copy[92..100].fill(9);
        assert_eq!((&copy[18..20], &copy[64..68]), (&[2, 2][..], &[0, 0, 0, 1][..]));
        assert!(is_adapted(&copy) && !is_adapted(&original));
        kept.restore(&mut copy);
        assert_eq!(copy, original);
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Original>(&text).unwrap(), kept);
    }
}
