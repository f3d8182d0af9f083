//! What the library needs of the SQLite that writes the database.
//!
//! The library never links SQLite and never opens the database or its wal-index by itself: closing
//! such a descriptor would drop the process's locks
//! (<https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).
//! The extension implements these traits over the host's SQLite.

use std::io;

use crate::units::{PageSize, Pgno, Salts};
use crate::wal::evidence::Guard;
use crate::wal::{WalIndex, parts};

/// One open database, seen through the host's SQLite.
pub trait Border: Send + Sync {
    /// The wal-index header as it is now, or `None` while no connection of this process has it
    /// mapped.
    fn wal_index(&self) -> Option<WalIndex>;

    /// What keeps other processes from restarting or removing the WAL now. Held without a break for
    /// as long as the answer is the same.
    fn guard(&self) -> Option<Guard>;

    /// The pages that frames `first..=last` hold, as the wal-index has them, if it belongs to the
    /// generation of `index` and has all of them. Such frames must be committed and in place.
    fn frame_pages(&self, index: &WalIndex, first: u32, last: u32) -> Option<Vec<Pgno>>;

    /// Shows `each` of these frames with its page, a part of them after the other. `false` when they are
    /// not known: then `each` may have seen some of them.
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

    /// Whether to keep other processes from beginning the WAL anew: only the process that ships does.
    fn hold(&self, hold: bool);

    /// Copies what the WAL has into the database file, as far as readers allow: a checkpoint that waits
    /// for nobody and overwrites nothing. `false` when somebody else is at it.
    fn checkpoint(&self) -> io::Result<bool>;

    /// Begins the WAL anew and cuts its file off, if all of it is in the database file and nobody reads. The
    /// write lock is held for a moment. `false` when somebody is in the way.
    fn empty_wal(&self) -> io::Result<bool>;

    /// Has the wal-index of an empty WAL say nothing of the size of the database. The write lock is held for
    /// a moment. Nothing happens while somebody is in the way.
    fn forget_size(&self);

    /// How many frames of the WAL are in the database file too, whoever copied them; `None` while nothing
    /// of ours has the wal-index mapped.
    fn copied(&self) -> Option<u32>;

    /// Keeps everybody from checkpointing, as far as nobody is at it already; or ends that. Whether
    /// nobody can.
    fn hold_checkpoints(&self, hold: bool) -> bool;

    /// Lets other processes begin the WAL anew, if it is captured up to `captured`, or up to at most
    /// `tail` committed frames less.
    fn give_way(&self, captured: (Salts, u32), tail: u32) -> Way;

    /// Ends that: keeps others from beginning the WAL anew once more. `false` when it has to be tried
    /// again.
    fn take_back(&self) -> bool;

    /// Whether the database's path still names the file that is open. If not, connections that have
    /// the old one are replicated no more.
    fn is_in_place(&self) -> bool;

    /// Starts a read transaction on a connection of our own.
    fn open_reader(&self) -> io::Result<Box<dyn Reader>>;

    /// Starts a read transaction for a moment. If it is to make room, it ends by itself when a writer of
    /// this process wants what it holds, as [`Reader::is_intact`] tells; and it always does for who wants
    /// the database to itself.
    fn open_short_reader(&self, _makes_room: bool) -> io::Result<Box<dyn Reader>> {
        self.open_reader()
    }
}

/// How other processes may begin the WAL anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Not at all.
    Shut,
    /// Only right behind what is captured: all of it is in the database file, and nobody can
    /// checkpoint what comes, without which there is no new beginning.
    Narrow,
    /// As soon as somebody has checkpointed all of it.
    Wide,
}

/// A read transaction. While it lives, no checkpoint writes a frame beyond [`Snapshot::frames`]
/// into the database file.
pub trait Reader {
    /// What the transaction sees, or a little later: read after it had begun.
    fn snapshot(&self) -> Snapshot;

    /// Fills `buffer` from byte `offset` of the database file. The error is `ResourceBusy` where the reader was
    /// ended because it was in somebody's way.
    fn read_main(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The wal-index as it is now, seen through this reader.
    fn index_now(&self) -> Option<WalIndex>;

    /// Whether everything read so far belongs to the one state. A read transaction sees to that by
    /// itself; without one it is known only afterwards.
    fn is_intact(&self) -> bool {
        true
    }
}

/// A state of the database: the file's pages, overlaid by the frames of the WAL up to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Page size.
    pub page_size: PageSize,
    /// Size of the database in pages.
    pub page_count: u32,
    /// The wal-index at that moment; `None` when there is no WAL.
    pub index: Option<WalIndex>,
}

impl Snapshot {
    /// Last frame that belongs to the state; 0 for none.
    pub fn frames(&self) -> u32 {
        self.index.map_or(0, |index| index.max_frame)
    }
}
