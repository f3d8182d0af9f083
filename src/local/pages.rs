//! The page table: one 8-byte checksum for each page of the database, as of the last captured
//! commit.
//!
//! Entry `i` of the file, little-endian, is the checksum of page `i + 1` ([`ltx::checksum::page`]);
//! zero for the lock page and for a page that is not known. The exclusive or of all entries is the
//! database checksum, so that the whole table can be proven right or wrong against one number.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use memmap2::MmapMut;

use super::{Context, Error, mapping};
use crate::ltx::{self, Checksum, DatabaseChecksum};
use crate::units::Pgno;

const ENTRY_LEN: usize = 8;
/// The smallest file has this many entries, one block of the disk: most databases are small.
const SMALLEST: usize = 512;
/// Up to this many entries the file doubles, beyond it grows in steps of as many, so that a growing
/// database maps it anew rarely.
const GROWTH: usize = 64 * 1024;

/// For how many entries a file is made that needs `needed` of them.
fn room_for(needed: usize) -> usize {
    if needed < GROWTH {
        needed.max(SMALLEST).next_power_of_two()
    } else {
        needed.div_ceil(GROWTH).saturating_mul(GROWTH)
    }
}

/// The table, mapped from its file.
#[derive(Debug)]
pub struct PageTable {
    path: PathBuf,
    file: File,
    map: Option<MmapMut>,
    capacity: usize,
    commit: u32,
    checksum: DatabaseChecksum,
}

impl PageTable {
    /// Opens the table of a database of `commit` pages, or makes an empty one, and sums it up.
    pub fn open(dir: &Path, commit: u32) -> Result<PageTable, Error> {
        let path = dir.join("pages");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .context("cannot open", &path)?;
        let mut len = file.metadata().context("cannot look at", &path)?.len();
        // What is beyond is not ours, or of a database that was larger: it would be read and cleared.
        let most = room_for(commit as usize).saturating_mul(ENTRY_LEN) as u64;
        if len > most {
            file.set_len(most).context("cannot shorten", &path)?;
            len = most;
        }
        let mut table = PageTable {
            path,
            file,
            map: None,
            capacity: len as usize / ENTRY_LEN,
            commit: 0,
            checksum: DatabaseChecksum::EMPTY,
        };
        table.remap()?;
        table.reserve(commit)?;
        table.commit = commit;
        table.clear_above(commit);
        table.sum_up();
        Ok(table)
    }

    /// Forgets all pages.
    pub fn reset(&mut self) {
        self.clear_above(0);
        self.commit = 0;
        self.checksum = DatabaseChecksum::EMPTY;
    }

    /// Size of the database in pages.
    pub fn commit(&self) -> u32 {
        self.commit
    }

    /// The database checksum of the pages that are known.
    pub fn checksum(&self) -> DatabaseChecksum {
        self.checksum
    }

    /// A page's checksum; `None` beyond the database and for pages not known.
    pub fn get(&self, pgno: Pgno) -> Option<Checksum> {
        if pgno == 0 || pgno > self.commit {
            return None;
        }
        let value = self.entry(pgno)?;
        (value != 0).then_some(Checksum(value))
    }

    /// Sets a page's checksum; the database grows to hold it. `None` forgets the page.
    pub fn set(&mut self, pgno: Pgno, checksum: Option<Checksum>) -> Result<(), Error> {
        if pgno > self.commit {
            self.set_commit(pgno)?;
        }
        if let Some(old) = self.get(pgno) {
            self.checksum.toggle(old);
        }
        if let Some(new) = checksum {
            self.checksum.toggle(new);
        }
        self.put(pgno, checksum.map_or(0, |checksum| checksum.0));
        Ok(())
    }

    /// Changes the size of the database in pages; what is cut off is forgotten.
    pub fn set_commit(&mut self, commit: u32) -> Result<(), Error> {
        for pgno in commit.saturating_add(1)..=self.commit {
            if let Some(old) = self.get(pgno) {
                self.checksum.toggle(old);
                self.put(pgno, 0);
            }
        }
        self.reserve(commit)?;
        self.commit = commit;
        Ok(())
    }

    /// Writes the mapped pages back to the file, for power loss.
    pub fn sync(&self) -> Result<(), Error> {
        match &self.map {
            Some(map) => map.flush().context("cannot sync", &self.path),
            None => Ok(()),
        }
    }

    /// Applies a captured file to the table, as recovery does: every page of the file, then the
    /// database's new size. Doing it twice is doing it once.
    pub fn apply<R: std::io::Read>(
        &mut self,
        decoder: &mut ltx::Decoder<R>,
    ) -> Result<(), ApplyError> {
        let commit = decoder.header().commit;
        while let Some(page) = decoder.next_page().map_err(ApplyError::File)? {
            if page.pgno <= commit {
                let checksum = ltx::checksum::page(page.pgno, page.data);
                self.set(page.pgno, Some(checksum)).map_err(ApplyError::Table)?;
            }
        }
        self.set_commit(commit).map_err(ApplyError::Table)
    }

    fn reserve(&mut self, commit: u32) -> Result<(), Error> {
        let needed = commit as usize;
        if needed > self.capacity {
            let capacity = room_for(needed);
            self.map = None;
            let len = capacity.saturating_mul(ENTRY_LEN) as u64;
            allocate(&self.file, len).context("cannot grow", &self.path)?;
            self.capacity = capacity;
            self.remap()?;
        }
        Ok(())
    }

    fn remap(&mut self) -> Result<(), Error> {
        if self.capacity > 0 {
            let len = self.capacity.saturating_mul(ENTRY_LEN);
            self.map = Some(mapping::map(&self.file, len).context("cannot map", &self.path)?);
        }
        Ok(())
    }

    fn entry(&self, pgno: Pgno) -> Option<u64> {
        let at = (pgno as usize).checked_sub(1)?.checked_mul(ENTRY_LEN)?;
        let bytes = self.map.as_ref()?.get(at..at.checked_add(ENTRY_LEN)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    fn put(&mut self, pgno: Pgno, value: u64) {
        let at = (pgno as usize).saturating_sub(1).saturating_mul(ENTRY_LEN);
        if let Some(bytes) =
            self.map.as_mut().and_then(|map| map.get_mut(at..at.saturating_add(ENTRY_LEN)))
        {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn clear_above(&mut self, commit: u32) {
        let from = (commit as usize).saturating_mul(ENTRY_LEN);
        if let Some(rest) = self.map.as_mut().and_then(|map| map.get_mut(from..))
            && rest.iter().any(|byte| *byte != 0)
        {
            rest.fill(0);
        }
    }

    fn sum_up(&mut self) {
        let mut sum = 0u64;
        let bytes = self.map.as_deref().unwrap_or_default();
        for entry in bytes.chunks_exact(ENTRY_LEN) {
            sum ^= u64::from_le_bytes(entry.try_into().unwrap_or_default());
        }
        self.checksum = DatabaseChecksum::from_stored(sum);
    }
}

/// Makes room on the disk for what will be written through the mapping: on a full disk a write to
/// a hole would end the process with SIGBUS.
pub(super) fn allocate(file: &File, len: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let zeros = [0; 8192];
            let mut at = file.metadata()?.len();
            while at < len {
                let count = zeros.len().min((len - at) as usize);
                file.write_all_at(zeros.get(..count).unwrap_or(&zeros), at)?;
                at += count as u64;
            }
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Why a captured file could not be applied to the table.
#[derive(Debug)]
pub enum ApplyError {
    /// The captured file is damaged.
    File(ltx::Error),
    /// The table could not be changed.
    Table(Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_survives_and_knows_its_sum() {
        let dir = tempfile::tempdir().unwrap();
        let sums: Vec<Checksum> =
            (1..=100_000u32).map(|pgno| ltx::checksum::page(pgno, b"x")).collect();
        let expected = {
            let mut table = PageTable::open(dir.path(), 0).unwrap();
            for (pgno, sum) in (1..).zip(&sums) {
                table.set(pgno, Some(*sum)).unwrap();
            }
            table.set(7, Some(sums[0])).unwrap();
            table.set_commit(70_000).unwrap();
            table.checksum()
        };
        let mut again = PageTable::open(dir.path(), 70_000).unwrap();
        assert_eq!(again.checksum(), expected);
        assert_eq!(again.get(7), Some(sums[0]));
        assert_eq!(again.get(70_001), None);
        again.set_commit(70_001).unwrap();
        assert_eq!((again.get(70_001), again.checksum()), (None, expected));
        let mut by_hand = DatabaseChecksum::EMPTY;
        for (pgno, sum) in (1..=70_000u32).zip(&sums) {
            by_hand.toggle(if pgno == 7 { sums[0] } else { *sum });
        }
        assert_eq!(by_hand, expected);
    }

    #[test]
    fn a_small_database_has_a_small_table() {
        let dir = tempfile::tempdir().unwrap();
        let len = || std::fs::metadata(dir.path().join("pages")).unwrap().len();
        let sum = ltx::checksum::page(1, b"x");
        let mut table = PageTable::open(dir.path(), 0).unwrap();
        let mut grown = 0;
        for pgno in 1..=200_000 {
            let before = len();
            table.set(pgno, Some(sum)).unwrap();
            grown += u32::from(len() > before);
            if pgno <= 512 {
                assert_eq!(len(), 4096);
            }
        }
        assert!(grown <= 12, "mapped anew {grown} times");
        assert!(len() < 200_000 * 8 * 2);
        drop(table);
        // A file that somebody made longer takes neither memory nor time.
        File::options()
            .write(true)
            .open(dir.path().join("pages"))
            .unwrap()
            .set_len(1 << 43)
            .unwrap();
        let table = PageTable::open(dir.path(), 3).unwrap();
        assert_eq!((table.get(3), table.get(4), len()), (Some(sum), None, 4096));
    }
}
