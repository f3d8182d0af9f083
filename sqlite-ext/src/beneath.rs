//! The second guard against a VFS that changes bytes: the file as the VFS reads it, held against the
//! bytes that the operating system has of it.
//!
//! A VFS is believed by its name, and any VFS may be registered by a name of SQLite's own. What such a
//! VFS decrypts would go to the replica in clear.

use std::path::Path;

use walferry::descriptors;

use crate::api::{Api, BaseVfs, OwnFile, read_descriptor};
use crate::inherited;

/// The least page size: page 1 is at least so long.
const COMPARED: usize = 512;
/// A checkpoint may write page 1 between the two looks.
const LOOKS: usize = 3;

/// How every database begins (<https://sqlite.org/fileformat.html#the_database_header>).
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Bytes of that header which are zero in every database.
const RESERVED: std::ops::Range<usize> = 72..92;
/// How a VFS gives page 1 of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PageOne {
    /// As it is in the file.
    Same,
    /// With other bytes.
    Changed,
    /// As no database begins: a codec above the VFS has encrypted it.
    Encrypted,
}

/// Looks how the VFS gives page 1. `None` where that cannot be told: the file is empty, or the process
/// cannot list its descriptors.
pub fn look(api: &'static Api, vfs: BaseVfs, path: &Path) -> Option<PageOne> {
    // The kernel gives out the lowest free number: here, unless SQLite had a descriptor left.
    let likely = descriptors::lowest_free();
    let file = OwnFile::open(api, vfs.0, path)?;
    let read = || {
        let mut page = [0; COMPARED];
        file.raw().read(&mut page, 0).ok().map(|()| page)
    };
    if is_encrypted(&read()?) {
        return Some(PageOne::Encrypted);
    }
    let mut looks = (0..LOOKS).map(|_| Some(read()? != of_the_file(path, likely)?));
    // Equal once is enough.
    let differs = looks.try_fold(true, |all, one| one.map(|differs| all && differs))?;
    Some(if differs { PageOne::Changed } else { PageOne::Same })
}

/// True if a file with this beginning is encrypted, or no database. A codec may leave the first bytes as they
/// are (`cipher_plaintext_header_size` of SQLCipher).
pub fn is_encrypted(beginning: &[u8]) -> bool {
    let reserved = beginning.get(RESERVED).unwrap_or_default();
    !beginning.starts_with(MAGIC) || reserved.iter().any(|byte| *byte != 0)
}

/// The beginning of a file, read through a descriptor that the process has of it. No descriptor is
/// opened: closing that would drop the process's locks.
fn of_the_file(path: &Path, likely: Option<i32>) -> Option<[u8; COMPARED]> {
    let mut page = [0; COMPARED];
    let numbers = inherited::descriptors_of(path, likely)?;
    let mut read = numbers.into_iter().map(|number| read_descriptor(number, &mut page, 0));
    read.any(|read| read == Some(COMPARED)).then_some(page)
}
