//! The second guard against a VFS that changes bytes. It compares the file as the VFS reads it with the file
//! as the operating system has it.
//!
//! The first guard is the name of the VFS ([`BaseVfs::is_plain`]), and any VFS may be registered by a name of
//! SQLite's own. Data that such a VFS decrypts would go to the replica in clear.

use std::path::Path;

use walferry::descriptors;

use crate::api::{Api, BaseVfs, OwnFile, read_descriptor};
use crate::inherited;

/// Compared bytes of page 1: the smallest page size.
const COMPARED: usize = 512;
/// Number of comparisons. A checkpoint may write page 1 between the two reads of a comparison.
const LOOKS: usize = 3;

/// First bytes of every database (<https://sqlite.org/fileformat.html#the_database_header>).
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Bytes of that header that are zero in every database.
const RESERVED: std::ops::Range<usize> = 72..92;
/// Page 1 of a file as a VFS returns it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PageOne {
    /// Same bytes as in the file.
    Same,
    /// Other bytes than in the file.
    Changed,
    /// Not the beginning of a database: a codec above the VFS has encrypted the file.
    Encrypted,
}

/// Compares page 1 as the VFS returns it with the file. `None` if the comparison is not possible: the file is
/// empty, or the process cannot list its descriptors.
pub fn look(api: &'static Api, vfs: BaseVfs, path: &Path) -> Option<PageOne> {
    // Number of the descriptor that the open gets, since the kernel gives out the lowest free number. SQLite
    // may reuse a kept descriptor instead.
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
    // One equal comparison is enough.
    let differs = looks.try_fold(true, |all, one| one.map(|differs| all && differs))?;
    Some(if differs { PageOne::Changed } else { PageOne::Same })
}

/// True if a file with this beginning is encrypted, or is no database. A codec may leave the first bytes
/// unchanged (`cipher_plaintext_header_size` of SQLCipher).
pub fn is_encrypted(beginning: &[u8]) -> bool {
    let reserved = beginning.get(RESERVED).unwrap_or_default();
    !beginning.starts_with(MAGIC) || reserved.iter().any(|byte| *byte != 0)
}

/// Reads the beginning of a file through a descriptor that the process already has. Opens no descriptor of
/// its own: its close would drop the process's locks.
fn of_the_file(path: &Path, likely: Option<i32>) -> Option<[u8; COMPARED]> {
    let mut page = [0; COMPARED];
    let numbers = inherited::descriptors_of(path, likely)?;
    let mut read = numbers.into_iter().map(|number| read_descriptor(number, &mut page, 0));
    read.any(|read| read == Some(COMPARED)).then_some(page)
}
