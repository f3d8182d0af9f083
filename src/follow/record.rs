//! The record of a copy's state: the file `follow` in its state folder.
//!
//! The record names two places, since it cannot be replaced in the same moment as the database. `at` is the
//! state before the last step, and `next` is the state that the step leads to. The checksum of the copy shows
//! which of the two is right.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::first_page::Original;
use crate::local;
use crate::local::state::{load_sealed, save_sealed};
use crate::ltx::DatabaseChecksum;
use crate::units::{PageSize, Timestamp, Txid};

/// Contents of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// URL of the replica, without secrets.
    pub(super) replica: String,
    pub(super) at: Place,
    /// State that the last step was to lead to.
    pub(super) next: Option<Place>,
}

/// A state of the original.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    txid: u64,
    page_size: u32,
    /// Size in pages.
    pub(super) commit: u32,
    checksum: u64,
    timestamp: i64,
    pub(super) original: Original,
}

impl Place {
    pub(super) fn new(
        (txid, timestamp): (Txid, Timestamp),
        (page_size, commit): (PageSize, u32),
        checksum: DatabaseChecksum,
        original: Original,
    ) -> Place {
        let (page_size, checksum) = (page_size.get(), checksum.get());
        Place { txid: txid.0, page_size, commit, checksum, timestamp: timestamp.0, original }
    }

    pub(super) fn txid(&self) -> Txid {
        Txid(self.txid)
    }

    pub(super) fn timestamp(&self) -> Timestamp {
        Timestamp(self.timestamp)
    }

    pub(super) fn checksum(&self) -> DatabaseChecksum {
        DatabaseChecksum::from_stored(self.checksum)
    }

    /// Returns `None` if a person has edited the file.
    pub(super) fn page_size(&self) -> Option<PageSize> {
        PageSize::new(self.page_size)
    }
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("follow")
}

impl Record {
    /// Loads the record. Returns `Ok(None)` if there is none. A damaged record is an error of kind
    /// `InvalidData`.
    pub(super) fn load(dir: &Path) -> Result<Option<Record>, local::Error> {
        load_sealed(&path(dir))
    }

    /// Replaces the record, durably.
    pub(super) fn save(&self, dir: &Path) -> Result<(), local::Error> {
        save_sealed(self, &path(dir), true)
    }
}
