//! Descriptors that the child of a fork shares with its parent.
//!
//! While the process has a lock on a file, SQLite closes no descriptor of that file: the close would drop the
//! locks. SQLite keeps the descriptor for the next connection (`setPendingFd` and `findReusableFd` in
//! `os_unix.c`). A child inherits the descriptors that its parent has kept, and shares the position in each
//! file with the parent. A SQLite without pread sets that position before each read and write. If both
//! processes use the descriptor, one reads or writes at the position that the other has set.
//!
//! So a child sets these descriptors aside for good. It does so before a database is opened. It also does so
//! when a connection of the parent is closed, since SQLite keeps that connection's descriptor too.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

use walferry::withheld;

use crate::api::{
    Api, BaseVfs, FileId, OwnFile, SQLITE_OPEN_READONLY, SQLITE_OPEN_READWRITE, file_of,
};
use crate::inside;

/// Files of which a child has inherited descriptors.
#[derive(Default)]
pub struct Known {
    /// Generation of the process ([`inside::generation`]) for which this is known.
    generation: u32,
    /// Files of which a descriptor was inherited.
    inherited: HashSet<FileId>,
    /// Files of which SQLite has no inherited descriptor left to reuse.
    settled: HashSet<FileId>,
}

/// Locked around a fork, and so a lock of the standard library. Taken before [`inside::outside`].
pub static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

fn known() -> withheld::Guard<Option<Known>> {
    withheld::lock(&KNOWN)
}

/// Keeps SQLite from reusing a descriptor of this database that the parent shares. Called before the database
/// is opened.
pub fn set_aside(api: &'static Api, vfs: BaseVfs, path: &Path) {
    let generation = inside::generation();
    if generation == 0 || inside::is_cut_off() || !vfs.is_plain() {
        return;
    }
    let Ok(file) = std::fs::metadata(path).map(|meta| id(&meta)) else { return };
    let mut known = known();
    let known = known.get_or_insert_with(Known::default);
    if known.generation != generation {
        let inherited = descriptors().unwrap_or_default().into_iter().map(|(_, file)| file);
        *known = Known { generation, inherited: inherited.collect(), settled: HashSet::new() };
    }
    if known.inherited.contains(&file) && !known.settled.contains(&file) {
        // A thread of walferry that opens or closes the file meanwhile would get an inherited descriptor, or
        // change their number.
        let _outside = inside::outside();
        if take_all(api, vfs, path, file).is_some() {
            known.settled.insert(file);
        }
    }
}

/// Sets aside the descriptor that SQLite kept when a connection from before the fork was closed.
pub fn closed(api: &'static Api, vfs: BaseVfs, path: &Path) {
    if inside::is_cut_off() {
        return;
    }
    if let (Some(known), Ok(meta)) = (known().as_mut(), std::fs::metadata(path)) {
        known.settled.remove(&id(&meta));
    }
    set_aside(api, vfs, path);
}

/// Opens the file until SQLite has to make a new descriptor, and leaves the reused ones open for good. `None`
/// if the process cannot list its descriptors.
fn take_all(api: &'static Api, vfs: BaseVfs, path: &Path, file: FileId) -> Option<()> {
    let most = count(file)?;
    // SQLite keeps writable and read-only descriptors apart.
    for flags in [SQLITE_OPEN_READWRITE, SQLITE_OPEN_READONLY] {
        for _ in 0..most {
            let before = count(file)?;
            let Some(opened) = OwnFile::open_with(api, vfs.0, path, flags) else { break };
            if count(file)? > before {
                break;
            }
            std::mem::forget(opened);
        }
    }
    Some(())
}

fn count(file: FileId) -> Option<usize> {
    Some(descriptors()?.iter().filter(|(_, found)| *found == file).count())
}

/// Returns the descriptors that the process has of a file; `None` if it cannot list them. If `likely` is a
/// descriptor of the file, returns only that one: an application may have thousands of others.
pub fn descriptors_of(path: &Path, likely: Option<i32>) -> Option<Vec<i32>> {
    let file = id(&std::fs::metadata(path).ok()?);
    if let Some(number) = likely.filter(|number| file_of(*number) == Some(file)) {
        return Some(vec![number]);
    }
    let of_it = descriptors()?.into_iter().filter(|(_, found)| *found == file);
    Some(of_it.map(|(number, _)| number).collect())
}

/// Returns all descriptors of the process, with the file of each. Finds the file by number, since a lookup by
/// name is much slower.
fn descriptors() -> Option<Vec<(i32, FileId)>> {
    // The process's own folder is empty once its first thread has ended.
    let mut lists = ["/proc/thread-self/fd", "/proc/self/fd"].into_iter();
    let list = lists.find_map(|list| std::fs::read_dir(list).ok())?;
    let of = |entry: std::fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, file_of(number)?))
    };
    Some(list.filter_map(Result::ok).filter_map(of).collect())
}

fn id(meta: &std::fs::Metadata) -> FileId {
    (meta.dev(), meta.ino())
}
