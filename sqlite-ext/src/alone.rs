//! Reads a database that one connection of this process has exclusively.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use walferry::border::{Reader, Snapshot};
use walferry::local::state::Fingerprint;
use walferry::wal::WalIndex;

use crate::api::{self, OwnFile};
use crate::handle::Handle;
use crate::header::{self, Header};
use crate::inside;

/// Reads a database that one connection of this process has exclusively.
///
/// No other connection can open such a database, so the reader uses a file object of our own. The
/// application's file object must not be used by another thread. A SQLite built without `pread()`, as before
/// 3.42 from its amalgamation, seeks and then reads or writes. A seek of another thread between the two would
/// send the application's pages to another place.
///
/// [`Reader::is_intact`] tells whether the connection has disturbed the read.
pub struct AloneReader {
    handle: Arc<Handle>,
    file: AloneFile,
    snapshot: Snapshot,
    disturbances: u32,
}

impl AloneReader {
    /// Begins the walk.
    pub fn begin(handle: Arc<Handle>) -> std::io::Result<AloneReader> {
        let disturbances = handle.disturbances.load(Ordering::Acquire);
        // Read once: pages of one commit and a size of another would make a state that never was.
        let seen = index_alone(&handle);
        let index = seen.filter(|index| index.max_frame > 0);
        if handle.adopted && index.is_none() {
            return Err(std::io::Error::other(
                "it is held exclusively by the connection that loaded walferry; set \
                 PRAGMA locking_mode=NORMAL there, or load walferry before the database is opened",
            ));
        }
        let file = open_alone(&handle)?;
        let mut head = [0; header::LEN];
        read_alone(&handle, &file, 0, &mut head)?;
        let header = Header(&head);
        let not_wal = || std::io::Error::other("it is not in WAL mode");
        if index.is_none() && !header.has_wal_mode() {
            return Err(not_wal());
        }
        let wal = walferry::local::wal_path(handle.database().path());
        if seen.is_none() && std::fs::metadata(wal).is_ok_and(|f| f.len() > 0) {
            return Err(std::io::Error::other(
                "it has a WAL of which nothing is seen before the next commit",
            ));
        }
        let page_size = match index {
            Some(index) => Some(index.page_size),
            None => header.page_size(),
        };
        let page_size = page_size.ok_or_else(not_wal)?;
        let page_count = index.map_or_else(|| header.page_count(), |index| Some(index.page_count));
        let no_count = || std::io::Error::other("its header does not tell its size");
        let page_count = page_count.ok_or_else(no_count)?;
        let snapshot = Snapshot { page_size, page_count, index: seen };
        Ok(AloneReader { handle, file, snapshot, disturbances })
    }
}

/// A file object of our own, closed at drop.
struct AloneFile(Option<OwnFile>);

impl Drop for AloneFile {
    fn drop(&mut self) {
        let inside = inside::in_sqlite();
        let file = self.0.take();
        if inside.is_none() {
            // The file object belongs to a SQLite that was shut down.
            std::mem::forget(file);
        }
    }
}

/// Returns the last committed wal-index of an exclusive connection. Holds the lock `readable`, so that the
/// connection cannot take the wal-index away meanwhile by its close.
fn index_alone(handle: &Handle) -> Option<WalIndex> {
    let readable = handle.readable.lock();
    readable.then(|| handle.exclusive_index()).flatten()
}

/// Opens the file once more, through the VFS underneath. That VFS closes no descriptor while locks of this
/// process depend on it.
fn open_alone(handle: &Handle) -> std::io::Result<AloneFile> {
    let file = AloneFile(Some(open_own(handle)?));
    // Checked after the open: the path must name the file that the connection has.
    let now = Fingerprint::of(handle.database().path()).map(|now| now.file).ok();
    if now != *handle.shimmed.file.lock() {
        return Err(std::io::Error::other("another file has its name"));
    }
    Ok(file)
}

fn open_own(handle: &Handle) -> std::io::Result<OwnFile> {
    let _inside = inside::in_sqlite().ok_or_else(inside::shut_down)?;
    let path = handle.database().path();
    let api = api::api().ok_or_else(|| std::io::Error::other("SQLite is not there"))?;
    OwnFile::open(api, handle.shimmed.vfs.0, path)
        .ok_or_else(|| std::io::Error::other("its file cannot be opened"))
}

fn read_alone(
    handle: &Handle,
    file: &AloneFile,
    offset: u64,
    buffer: &mut [u8],
) -> std::io::Result<()> {
    let _inside = inside::in_sqlite().ok_or_else(inside::shut_down)?;
    let readable = handle.readable.lock();
    if !*readable {
        return Err(std::io::Error::other("the connection that had it to itself has let it go"));
    }
    if handle.real.is_mapped() {
        return Err(std::io::Error::other(
            "it is held exclusively by a connection with memory-mapped I/O; set \
             PRAGMA mmap_size=0 or PRAGMA locking_mode=NORMAL there",
        ));
    }
    match &file.0 {
        Some(file) => file.raw().read(buffer, offset),
        None => Err(inside::shut_down()),
    }
}

impl Reader for AloneReader {
    fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    fn read_main(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        read_alone(&self.handle, &self.file, offset, buffer)
    }

    fn index_now(&self) -> Option<WalIndex> {
        index_alone(&self.handle)
    }

    fn is_intact(&self) -> bool {
        self.disturbances == self.handle.disturbances.load(Ordering::Acquire)
    }
}
