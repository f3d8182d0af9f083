//! Descriptors that the child of a fork shares with its parent.
//!
//! While anybody of the process has a lock on a file, SQLite closes no descriptor of it: that would drop
//! the locks. It keeps it for the next connection (`setPendingFd` and `findReusableFd` in `os_unix.c`). A
//! child has inherited what its parent kept, and with each descriptor the position in the file; a SQLite
//! without pread sets that before each read and write. Where both use one, each reads and writes where the
//! other has moved to. So in a child they are set aside for good: before a database is opened, and when a
//! connection of the parent is closed, whose descriptor SQLite keeps, too.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

use walferry::withheld;

use crate::api::{
    Api, BaseVfs, FileId, OwnFile, SQLITE_OPEN_READONLY, SQLITE_OPEN_READWRITE, file_of,
};
use crate::inside;

/// The files of which a child has inherited descriptors.
#[derive(Default)]
pub struct Known {
    /// The process in the line of forks of which this is known.
    generation: u32,
    /// Files of which a descriptor was inherited.
    inherited: HashSet<FileId>,
    /// Those of which SQLite has no such descriptor left to give out.
    settled: HashSet<FileId>,
}

/// Of the standard library's kind, as it is locked around a fork. Taken before [`inside::outside`].
pub static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

fn known() -> withheld::Guard<Option<Known>> {
    withheld::lock(&KNOWN)
}

/// Keeps SQLite from giving out a descriptor of this database that the parent shares. Called before the
/// database is opened.
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
        // A thread of ours that opens or closes it meanwhile would get one, or change their number.
        let _outside = inside::outside();
        if take_all(api, vfs, path, file).is_some() {
            known.settled.insert(file);
        }
    }
}

/// Sets the descriptor aside that SQLite has kept of a connection from before the fork, which was closed.
pub fn closed(api: &'static Api, vfs: BaseVfs, path: &Path) {
    if inside::is_cut_off() {
        return;
    }
    if let (Some(known), Ok(meta)) = (known().as_mut(), std::fs::metadata(path)) {
        known.settled.remove(&id(&meta));
    }
    set_aside(api, vfs, path);
}

/// Opens the file until SQLite has to make a descriptor for it, and leaves those open for good that it had.
/// `None` where that cannot be told.
fn take_all(api: &'static Api, vfs: BaseVfs, path: &Path, file: FileId) -> Option<()> {
    let most = count(file)?;
    // It keeps those apart that may write.
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

/// Returns the descriptors that the process has of a file; `None` where it cannot list them. The one at
/// `likely` is enough if it is of that file: an application may have thousands of others.
pub fn descriptors_of(path: &Path, likely: Option<i32>) -> Option<Vec<i32>> {
    let file = id(&std::fs::metadata(path).ok()?);
    if let Some(number) = likely.filter(|number| file_of(*number) == Some(file)) {
        return Some(vec![number]);
    }
    let of_it = descriptors()?.into_iter().filter(|(_, found)| *found == file);
    Some(of_it.map(|(number, _)| number).collect())
}

/// All descriptors of the process, and the file of each. By number: a name is looked up much more slowly.
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
