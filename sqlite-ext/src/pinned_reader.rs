//! Reads a part of a database through the pin, in a read transaction without a connection.
//!
//! Such a read costs no descriptor. A writer of this process that restarts the WAL can end the transaction
//! instead of being refused. A checkpoint of this process can also end the transaction, if the checkpoint
//! would otherwise stop too far from the WAL's end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use walferry::border::{Reader, Snapshot};
use walferry::units::PageSize;
use walferry::wal::WalIndex;

use crate::header::{self, Header};
use crate::inside;
use crate::pin::{Pin, Read};
use crate::registry::Shimmed;

/// Bytes read at a time while the pin is locked: a writer may be waiting for that lock.
const AT_ONCE: usize = 16 << 10;

/// Reads the state that a read transaction of the pin sees.
pub struct PinnedReader {
    shimmed: Arc<Shimmed>,
    read: Read,
    snapshot: Snapshot,
}

impl PinnedReader {
    /// Begins the transaction. `None` if the pin is not held or cannot begin a transaction now. With
    /// `makes_room`, a writer of this process that restarts the WAL ends the transaction.
    pub fn begin(shimmed: &Arc<Shimmed>, makes_room: bool) -> Option<PinnedReader> {
        let _inside = inside::in_sqlite()?;
        let mut pin = shimmed.pin.lock();
        let pin = pin.as_mut().filter(|_| shimmed.may_take_slots())?;
        let (read, index) = pin.begin_read(makes_room)?;
        let snapshot = snapshot(pin, index);
        if snapshot.is_none() {
            pin.end_read();
        }
        shimmed.reads_until.store(pin.reads_until().unwrap_or(u32::MAX), Ordering::Release);
        Some(PinnedReader { shimmed: shimmed.clone(), read, snapshot: snapshot? })
    }

    /// Calls `call` with the pin if the transaction is still under way.
    fn with<T>(&self, call: impl FnOnce(&Pin) -> T) -> Option<T> {
        let _inside = inside::in_sqlite()?;
        let pin = self.shimmed.pin.lock();
        pin.as_ref().filter(|pin| pin.is_reading(self.read)).map(call)
    }
}

/// Returns the state that the transaction sees.
fn snapshot(pin: &Pin, index: WalIndex) -> Option<Snapshot> {
    let of_index = (index.page_size, index.page_count);
    let (page_size, page_count) = if index.max_frame > 0 { of_index } else { of_file(pin)? };
    Some(Snapshot { page_size, page_count, index: Some(index) }).filter(|_| page_count > 0)
}

/// Returns page size and number of pages from the header of the database file, if it tells both. Only for a
/// database whose WAL is empty.
fn of_file(pin: &Pin) -> Option<(PageSize, u32)> {
    let mut head = [0; header::LEN];
    pin.read(&mut head, 0).ok()?;
    let header = Header(&head);
    header.page_size().zip(header.page_count())
}

fn ended() -> io::Error {
    io::Error::other("a writer or a connection asked for what it held, or the process forked")
}

impl Reader for PinnedReader {
    fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    fn index_now(&self) -> Option<WalIndex> {
        self.with(Pin::index).flatten()
    }

    fn read_main(&mut self, mut offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for piece in buffer.chunks_mut(AT_ONCE) {
            let len = piece.len() as u64;
            self.with(|pin| pin.read(piece, offset)).ok_or_else(ended)??;
            offset = offset.saturating_add(len);
        }
        Ok(())
    }

    fn is_intact(&self) -> bool {
        self.with(|_| ()).is_some()
    }
}

impl Drop for PinnedReader {
    fn drop(&mut self) {
        let Some(_inside) = inside::in_sqlite() else { return };
        let mut pin = self.shimmed.pin.lock();
        if let Some(pin) = pin.as_mut().filter(|pin| pin.is_reading(self.read)) {
            pin.end_read();
        }
        self.shimmed.reads_until.store(u32::MAX, Ordering::Release);
    }
}
