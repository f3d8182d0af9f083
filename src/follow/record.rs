//! How far a copy is, beside it: the file `follow` in its state folder.
//!
//! It names two places, since it cannot be replaced in the same moment as the database: where the copy
//! was, and where the step that was under way leads. Which of them it is shows the copy itself, by its
//! checksum.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::first_page::Original;
use crate::local;
use crate::local::state::{load_sealed, save_sealed};
use crate::ltx::DatabaseChecksum;
use crate::units::{PageSize, Timestamp, Txid};

/// The file, whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The replica, without secrets.
    pub(super) replica: String,
    pub(super) at: Place,
    /// Where the last step was to lead.
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

    /// `None` if the file was made by hand.
    pub(super) fn page_size(&self) -> Option<PageSize> {
        PageSize::new(self.page_size)
    }
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("follow")
}

impl Record {
    /// `Ok(None)` when there is none; a damaged one is an error of kind `InvalidData`.
    pub(super) fn load(dir: &Path) -> Result<Option<Record>, local::Error> {
        load_sealed(&path(dir))
    }

    /// Replaces it, durably.
    pub(super) fn save(&self, dir: &Path) -> Result<(), local::Error> {
        save_sealed(self, &path(dir), true)
    }
}
