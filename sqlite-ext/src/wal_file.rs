//! Acts on calls of a WAL's methods.

use walferry::finding::Finding;
use walferry::units::{PageSize, Salts};
use walferry::wal::evidence::Restart;
use walferry::wal::{FRAME_HEADER_LEN, WAL_HEADER_LEN, WalIndex};

use crate::handle::Handle;

/// The calls of a WAL's methods that walferry acts on, while a connection has the database exclusively. They
/// show the restarts of such a connection, and its commits if the wal-index is not in shared memory.
pub struct WalFile<'a>(pub &'a Handle);

impl WalFile<'_> {
    /// Runs before `xWrite`. `front` holds the first bytes of the data for `offset`.
    pub fn before_write(&self, front: &[u8], len: i32, offset: u64) {
        let handle = self.0;
        if !handle.is_exclusive() {
            return;
        }
        let word = |at: usize| {
            front.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
        };
        if offset == 0 {
            self.before_overwrite(Some(Salts(word(16), word(20))));
            let mut written = handle.written.lock();
            written.page_size = PageSize::new(word(8));
            written.salts = Some(Salts(word(16), word(20)));
            written.committed = None;
            return;
        }
        let mut written = handle.written.lock();
        if written.page_size.is_none() {
            // The WAL existed before: another connection wrote its header.
            let path = walferry::local::wal_path(handle.database().path());
            let header =
                std::fs::File::open(path).ok().and_then(|wal| walferry::wal::WalHeader::read(&wal));
            written.page_size = header.map(|header| header.page_size);
            written.salts = header.map(|header| header.salts);
        }
        let Some(page_size) = written.page_size else { return };
        let frame_len = u64::from(page_size.get()) + FRAME_HEADER_LEN as u64;
        let is_header = usize::try_from(len) == Ok(FRAME_HEADER_LEN)
            && offset >= WAL_HEADER_LEN
            && (offset - WAL_HEADER_LEN).is_multiple_of(frame_len);
        if is_header && word(4) != 0 {
            let frame = u32::try_from((offset - WAL_HEADER_LEN) / frame_len + 1).unwrap_or(0);
            written.add_commit(frame, word(4), (word(16), word(20)));
        }
    }

    /// Runs before `xTruncate`.
    pub fn before_truncate(&self, size: i64) {
        if size == 0 {
            self.before_overwrite(self.0.index().map(|index| index.salts));
        }
    }

    /// Runs before the WAL is restarted or cut off by a connection that has the database exclusively. Such a
    /// connection does not ask for the read slots. `salts` are those of the next generation, if known.
    ///
    /// `walRestartHdr` has reset the shared wal-index by now. So `last` is the index that was noted at the
    /// last commit.
    fn before_overwrite(&self, salts: Option<Salts>) {
        let handle = self.0;
        let last = handle.exclusive_index();
        // The start of an empty WAL overwrites nothing.
        if last.is_none_or(|last| last.max_frame > 0) {
            handle.disturb();
        }
        if !handle.is_exclusive() || !handle.shimmed.is_attached() {
            return;
        }
        let Some(last) = last else { return };
        if salts == Some(last.salts) {
            return;
        }
        let captured = last.max_frame == 0 || handle.database().may_restart(last);
        let counted = match handle.index() {
            Some(now) => now.change == last.change,
            None => handle.written.lock().changes == last.change,
        };
        let (true, true) = (captured, counted) else {
            return handle.database().diverged(Finding::RestartedExclusively);
        };
        // The WAL is cut off by a connection that has its wal-index in memory. The next header brings the
        // salts. Until then the generation is empty, and any salts that it never had will do.
        let salts = salts.unwrap_or(Salts(last.salts.0.wrapping_add(1), !last.salts.1));
        let restart = Restart { from: last, to: salts, guard: *handle.guard.lock() };
        handle.database().restarted(Some(restart));
        *handle.last.lock() = Some(WalIndex { salts, max_frame: 0, ..last });
    }
}
