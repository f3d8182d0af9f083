//! Traits through which the library uses the SQLite that writes the database.
//!
//! The library never links SQLite, and never opens the database or its wal-index itself. Closing such a
//! descriptor would drop the process's locks
//! (<https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).
//! The extension implements these traits over the host's SQLite.

use std::io;

use crate::units::{PageSize, Pgno, Salts};
use crate::wal::evidence::Guard;
use crate::wal::{WalIndex, parts};

/// One open database, seen through the host's SQLite.
pub trait Border: Send + Sync {
    /// Returns the current wal-index header; `None` while no connection of this process has the wal-index
    /// mapped.
    fn wal_index(&self) -> Option<WalIndex>;

    /// Returns the guard that now keeps other processes from restarting or removing the WAL. Two equal
    /// answers mean that this guard was held between them without a break.
    fn guard(&self) -> Option<Guard>;

    /// Returns the pages that frames `first..=last` hold, as the wal-index lists them. `None` unless the
    /// wal-index belongs to the generation of `index` and has all of these frames. The frames must be
    /// committed and in place.
    fn frame_pages(&self, index: &WalIndex, first: u32, last: u32) -> Option<Vec<Pgno>>;

    /// Calls `each` with the number and the page of every one of these frames, in several parts. Returns
    /// `false` if the pages of a part are unknown; `each` may have seen some frames by then.
    fn each_frame_page(
        &self,
        index: &WalIndex,
        first: u32,
        last: u32,
        each: &mut dyn FnMut(u32, Pgno),
    ) -> bool {
        parts(first, last).all(|(first, last)| {
            let pages = self.frame_pages(index, first, last);
            let known = pages.is_some();
            (first..=last).zip(pages.into_iter().flatten()).for_each(|(at, pgno)| each(at, pgno));
            known
        })
    }

    /// Keeps other processes from restarting the WAL, or stops doing so. Only the process that ships does
    /// this.
    fn hold(&self, hold: bool);

    /// Copies frames of the WAL into the database file, as far as readers allow. This checkpoint waits for no
    /// reader or writer, and does not restart the WAL. `false` if it did not run, as during another
    /// checkpoint.
    fn checkpoint(&self) -> io::Result<bool>;

    /// Restarts the WAL and truncates its file, if every frame is in the database file and no connection
    /// reads. Holds the write lock for a moment. `false` if another connection prevents this.
    fn empty_wal(&self) -> io::Result<bool>;

    /// Removes the size of the database from the wal-index of an empty WAL. Holds the write lock for a
    /// moment. Does nothing while another connection reads or writes.
    fn forget_size(&self);

    /// Returns how many frames of the WAL are in the database file too, copied by any process. `None` while
    /// this process has no pin, through which it reads that number.
    fn copied(&self) -> Option<u32>;

    /// Blocks all checkpoints, unless one is running, or allows them again. Returns `true` if checkpoints are
    /// blocked now.
    fn hold_checkpoints(&self, hold: bool) -> bool;

    /// Lets other processes restart the WAL, if the WAL ends at `captured`, or at most `tail` committed
    /// frames behind that position.
    fn give_way(&self, captured: (Salts, u32), tail: u32) -> Way;

    /// Ends the way that [`Border::give_way`] has opened: other processes cannot restart the WAL any more.
    /// `false` if the caller must try again.
    fn take_back(&self) -> bool;

    /// True if the database's path still names the open file. If not, connections to the old file are not
    /// replicated any more.
    fn is_in_place(&self) -> bool;

    /// Starts a read transaction on a connection of walferry's own.
    fn open_reader(&self) -> io::Result<Box<dyn Reader>>;

    /// Starts a short read transaction.
    ///
    /// With `makes_room`, the transaction ends by itself when a writer of this process wants the lock that
    /// the transaction holds; [`Reader::is_intact`] tells. Every short transaction ends by itself for a
    /// connection that wants exclusive use of the database.
    fn open_short_reader(&self, _makes_room: bool) -> io::Result<Box<dyn Reader>> {
        self.open_reader()
    }
}

/// How other processes may restart the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Other processes cannot restart the WAL.
    Shut,
    /// Only right behind the captured frames: all of them are in the database file, and our checkpoint lock
    /// blocks all checkpoints. Without a checkpoint of later frames, the WAL cannot be restarted behind
    /// those.
    Narrow,
    /// As soon as any process has checkpointed the whole WAL.
    Wide,
}

/// A read transaction. While the transaction goes on, no checkpoint writes a frame beyond
/// [`Snapshot::frames`] into the database file.
pub trait Reader {
    /// Returns the state that the transaction sees, or a slightly later one: it is read after the transaction
    /// began.
    fn snapshot(&self) -> Snapshot;

    /// Fills `buffer` from byte `offset` of the database file. The error is `ResourceBusy` if the reader was
    /// ended because another connection had to wait for it.
    fn read_main(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Returns the current wal-index, seen through this reader.
    fn index_now(&self) -> Option<WalIndex>;

    /// True if everything read so far belongs to one state. A read transaction ensures this by itself; a
    /// reader without one knows only afterwards.
    fn is_intact(&self) -> bool {
        true
    }
}

/// State of the database: the pages of the file, overlaid by the frames of the WAL up to a given one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Page size.
    pub page_size: PageSize,
    /// Size of the database in pages.
    pub page_count: u32,
    /// The wal-index of this state; `None` if there is no WAL.
    pub index: Option<WalIndex>,
}

impl Snapshot {
    /// Returns the last frame that belongs to the state; 0 for none.
    pub fn frames(&self) -> u32 {
        self.index.map_or(0, |index| index.max_frame)
    }
}
