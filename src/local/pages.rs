//! The page table: one 8-byte checksum for each page of the database, as of the last captured commit.
//!
//! Entry `i` of the file, little-endian, is the checksum of page `i + 1` ([`ltx::checksum::page`]). The lock
//! page and unknown pages have zero; so has every entry behind the end of the file. The exclusive or of all
//! entries is the database checksum, so this one number proves the whole table right or wrong.
//!
//! The file is read and written in place, not mapped: a mapping of a file that another process shortens ends
//! the process with SIGBUS. Memory holds the exclusive or of each chunk of 512 entries, and a few chunks. A
//! chunk that is read again must have the same exclusive or as before. So a table that another process cut,
//! replaced or overwrote is noticed before it is used.
//!
//! Every change is in the file when the call that makes it returns, so a killed process loses none. The table
//! may be ahead of the state; the checksum shows that.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Context, folder};
use crate::ltx::{self, Checksum, DatabaseChecksum};
use crate::units::Pgno;

const ENTRY_LEN: usize = 8;
/// Entries of a chunk, which is one block of the disk.
const CHUNK: usize = 512;
const CHUNK_LEN: usize = CHUNK * ENTRY_LEN;
/// Number of chunks that are kept in memory (64 KiB). A commit touches few pages, and walks go in order.
const KEPT: usize = 16;
/// Number of chunks that are read at once when the table is opened.
const READ_AT_ONCE: usize = 64;

/// Why the table cannot be used.
#[derive(Debug)]
pub enum Error {
    /// Reading or writing failed.
    Io(super::Error),
    /// The content of the file differs from the entries that this process knows.
    Changed(PathBuf),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Io(error) => error.fmt(f),
            Error::Changed(path) => {
                write!(f, "{} was changed or cut by somebody else", path.display())
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<super::Error> for Error {
    fn from(error: super::Error) -> Error {
        Error::Io(error)
    }
}

/// A chunk of the table in memory.
#[derive(Debug)]
struct Chunk {
    number: usize,
    entries: Box<[u64; CHUNK]>,
}

/// The page table of one state folder.
#[derive(Debug)]
pub struct PageTable {
    path: PathBuf,
    /// Open while the table is used, so that an idle database costs no descriptor.
    file: Option<File>,
    commit: u32,
    /// The exclusive or of all entries.
    sum: u64,
    /// The exclusive or of each chunk's entries, up to the last page.
    sums: Vec<u64>,
    /// Chunks in memory, the last used one at the end.
    kept: Vec<Chunk>,
    /// True if the file was written after its last sync.
    unsynced: bool,
}

/// Returns the chunk of a page, and the page's place in it. Page numbers begin with 1.
fn place(pgno: Pgno) -> (usize, usize) {
    let at = (pgno as usize).saturating_sub(1);
    (at / CHUNK, at % CHUNK)
}

impl PageTable {
    /// Opens the table of a database of `commit` pages, and sums it up; makes an empty table if the file is
    /// missing. A file that cannot be read at all is moved aside. An empty table proves nothing either.
    pub fn open(dir: &Path, commit: u32) -> Result<PageTable, super::Error> {
        let path = dir.join("pages");
        let opened = PageTable::open_file(&path, commit);
        match opened {
            Err(error) if is_of_no_use(&error.source) => {
                set_aside(&path, &error)?;
                PageTable::open_file(&path, commit)
            }
            opened => opened,
        }
    }

    fn open_file(path: &Path, commit: u32) -> Result<PageTable, super::Error> {
        let file = folder::open(path).context("cannot open", path)?;
        let meta = file.metadata().context("cannot look at", path)?;
        let (len, unsynced) = (meta.len(), super::may_be_unsynced(Ok(meta)));
        // The rest is of a larger database, or was not written by walferry.
        let most = u64::from(commit).saturating_mul(ENTRY_LEN as u64);
        if len > most {
            file.set_len(most).context("cannot shorten", path)?;
        }
        let path = path.to_path_buf();
        let (sums, kept) = (Vec::new(), Vec::new());
        let file = Some(file);
        let mut table = PageTable { path, file, commit, sum: 0, sums, kept, unsynced };
        table.sum_up()?;
        Ok(table)
    }

    /// Forgets all pages and the content of the file. A file that has taken the name is the table from now
    /// on.
    pub fn reset(&mut self) -> Result<(), super::Error> {
        self.kept.clear();
        self.sums.clear();
        (self.sum, self.commit) = (0, 0);
        self.file = None;
        self.shorten(0)
    }

    /// Closes the file until it is used again.
    pub fn rest(&mut self) {
        self.file = None;
    }

    /// Returns the file, opened again if it was closed. If another file has taken the name, its chunks do not
    /// match the known checksums.
    fn file(&mut self) -> Result<&File, super::Error> {
        let file = match self.file.take() {
            Some(file) => file,
            None => match folder::open(&self.path).context("cannot open", &self.path) {
                Err(error) if is_of_no_use(&error.source) => {
                    set_aside(&self.path, &error)?;
                    folder::open(&self.path).context("cannot open", &self.path)?
                }
                opened => opened?,
            },
        };
        Ok(self.file.insert(file))
    }

    fn shorten(&mut self, len: u64) -> Result<(), super::Error> {
        self.unsynced = true;
        let shortened = self.file()?.set_len(len);
        shortened.context("cannot shorten", &self.path)
    }

    /// Returns the size of the database in pages.
    pub fn commit(&self) -> u32 {
        self.commit
    }

    /// Returns the database checksum of the known pages.
    pub fn checksum(&self) -> DatabaseChecksum {
        DatabaseChecksum::from_stored(self.sum)
    }

    /// Returns a page's checksum; `None` for an unknown page and beyond the end of the database.
    pub fn get(&mut self, pgno: Pgno) -> Result<Option<Checksum>, Error> {
        if pgno == 0 || pgno > self.commit {
            return Ok(None);
        }
        let (number, at) = place(pgno);
        let value = self.chunk(number)?.get(at).copied().unwrap_or(0);
        Ok((value != 0).then_some(Checksum(value)))
    }

    /// Sets a page's checksum; the database grows to contain the page. `None` forgets the page.
    pub fn set(&mut self, pgno: Pgno, checksum: Option<Checksum>) -> Result<(), Error> {
        self.change(&[(pgno, checksum.unwrap_or(Checksum(0)))])
    }

    /// Sets the checksums of these pages, each of which is named once. Consecutive pages of a chunk are
    /// written together.
    pub fn set_all(&mut self, pages: &[(Pgno, Checksum)]) -> Result<(), Error> {
        self.change(pages)
    }

    fn change(&mut self, pages: &[(Pgno, Checksum)]) -> Result<(), Error> {
        let last = pages.iter().map(|(pgno, _)| *pgno).max().unwrap_or(0);
        if last > self.commit {
            self.set_commit(last)?;
        }
        for pages in pages.chunk_by(|one, next| place(one.0).0 == place(next.0).0) {
            let Some((number, _)) = pages.first().map(|(pgno, _)| place(*pgno)) else { continue };
            let before = *self.chunk(number)?;
            let mut after = before;
            let (mut first, mut end) = (CHUNK, 0);
            for (pgno, checksum) in pages.iter().filter(|(pgno, _)| *pgno != 0) {
                let (_, at) = place(*pgno);
                if let Some(entry) = after.get_mut(at) {
                    *entry = checksum.0;
                    (first, end) = (first.min(at), end.max(at + 1));
                }
            }
            let changed = after.get(first..end).unwrap_or_default();
            let bytes: Vec<u8> = changed.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            let offset = number.saturating_mul(CHUNK_LEN).saturating_add(first * ENTRY_LEN) as u64;
            self.unsynced = true;
            // The file comes first, so that an entry that could not be written is not in the checksums
            // either.
            let written = self.file()?.write_all_at(&bytes, offset);
            written.context("cannot write", &self.path)?;
            let sums = before.iter().zip(&after);
            let difference = sums.fold(0, |sum, (old, new)| sum ^ old ^ new);
            if let Some(chunk) = self.kept.last_mut() {
                *chunk.entries = after;
            }
            if let Some(sum) = self.sums.get_mut(number) {
                *sum ^= difference;
            }
            self.sum ^= difference;
        }
        Ok(())
    }

    /// Changes the size of the database in pages. Forgets the pages that are cut off.
    pub fn set_commit(&mut self, commit: u32) -> Result<(), Error> {
        let chunks = (commit as usize).div_ceil(CHUNK);
        if commit < self.commit {
            let cut = self.sum_above(commit)?;
            let len = u64::from(commit).saturating_mul(ENTRY_LEN as u64);
            self.shorten(len)?;
            self.sum ^= cut;
            self.sums.truncate(chunks);
            self.kept.retain(|chunk| chunk.number < chunks);
            let (number, at) = place(commit.saturating_add(1));
            for chunk in self.kept.iter_mut().filter(|chunk| chunk.number == number) {
                let entries = chunk.entries.get_mut(at..).unwrap_or_default();
                let cut = entries.iter().fold(0, |sum, entry| sum ^ entry);
                entries.fill(0);
                if let Some(sum) = self.sums.get_mut(number) {
                    *sum ^= cut;
                }
            }
        }
        self.sums.resize(chunks, 0);
        self.commit = commit;
        Ok(())
    }

    /// Returns the database checksum after a change to these pages and to this size. The pages come in parts,
    /// and each is named once.
    pub fn checksum_after<E: From<Error>>(
        &mut self,
        parts: impl IntoIterator<Item = Result<Vec<(Pgno, Checksum)>, E>>,
        commit: u32,
    ) -> Result<DatabaseChecksum, E> {
        let mut after = self.checksum();
        for part in parts {
            for (pgno, sum) in part? {
                if let Some(old) = self.get(pgno)? {
                    after.toggle(old);
                }
                after.toggle(sum);
            }
        }
        after.toggle(Checksum(self.sum_above(commit)?));
        Ok(after)
    }

    /// Returns the exclusive or of the entries of all pages behind page `commit`.
    fn sum_above(&mut self, commit: u32) -> Result<u64, Error> {
        if commit >= self.commit {
            return Ok(0);
        }
        let (number, at) = place(commit.saturating_add(1));
        let entries = self.chunk(number)?.get(at..).unwrap_or_default();
        let part = entries.iter().fold(0, |sum, entry| sum ^ entry);
        let whole = self.sums.get(number.saturating_add(1)..).unwrap_or_default();
        Ok(whole.iter().fold(part, |sum, chunk| sum ^ chunk))
    }

    /// Makes all changes durable against power loss.
    pub fn sync(&mut self) -> Result<(), super::Error> {
        if !self.unsynced {
            return Ok(());
        }
        let synced = self.file()?.sync_data();
        synced.context("cannot sync", &self.path)?;
        self.unsynced = false;
        Ok(())
    }

    /// Applies a captured file to the table, as recovery does: every page of the file, then the new size of
    /// the database. Applying a file twice has the same result as applying it once.
    pub fn apply<R: std::io::Read>(
        &mut self,
        decoder: &mut ltx::Decoder<R>,
    ) -> Result<(), ApplyError> {
        let commit = decoder.header().commit;
        let mut pages = Vec::with_capacity(CHUNK);
        while let Some(page) = decoder.next_page().map_err(ApplyError::File)? {
            if page.pgno <= commit {
                pages.push((page.pgno, ltx::checksum::page(page.pgno, page.data)));
            }
            if pages.len() >= CHUNK {
                self.set_all(&pages).map_err(ApplyError::Table)?;
                pages.clear();
            }
        }
        self.set_all(&pages).map_err(ApplyError::Table)?;
        self.set_commit(commit).map_err(ApplyError::Table)
    }

    /// Returns a chunk of the table, and moves it to the end of `kept`.
    fn chunk(&mut self, number: usize) -> Result<&[u64; CHUNK], Error> {
        let expected = self.sums.get(number).copied().unwrap_or(0);
        match self.kept.iter().rposition(|chunk| chunk.number == number) {
            Some(at) if at + 1 == self.kept.len() => {}
            Some(at) => {
                let chunk = self.kept.remove(at);
                self.kept.push(chunk);
            }
            None => {
                let mut bytes = [0; CHUNK_LEN];
                let offset = (number as u64).saturating_mul(CHUNK_LEN as u64);
                let read = read_at(self.file()?, &mut bytes, offset);
                read.context("cannot read", &self.path)?;
                let mut entries = Box::new([0; CHUNK]);
                for (entry, bytes) in entries.iter_mut().zip(bytes.as_chunks::<ENTRY_LEN>().0) {
                    *entry = u64::from_le_bytes(*bytes);
                }
                if entries.iter().fold(0, |sum, entry| sum ^ entry) != expected {
                    return Err(Error::Changed(self.path.clone()));
                }
                if self.kept.len() >= KEPT {
                    self.kept.remove(0);
                }
                self.kept.push(Chunk { number, entries });
            }
        }
        // Cannot happen: the chunk was just added.
        let last = self.kept.last().map(|chunk| &*chunk.entries);
        last.ok_or_else(|| Error::Changed(self.path.clone()))
    }

    fn sum_up(&mut self) -> Result<(), super::Error> {
        let chunks = (self.commit as usize).div_ceil(CHUNK);
        self.sums.reserve_exact(chunks);
        let mut bytes = vec![0; chunks.min(READ_AT_ONCE) * CHUNK_LEN];
        while self.sums.len() < chunks {
            let offset = (self.sums.len() as u64).saturating_mul(CHUNK_LEN as u64);
            let read = read_at(self.file()?, &mut bytes, offset);
            read.context("cannot read", &self.path)?;
            for chunk in bytes.chunks(CHUNK_LEN).take(chunks - self.sums.len()) {
                let entries = chunk.as_chunks::<ENTRY_LEN>().0.iter();
                let sum = entries.fold(0, |sum, entry| sum ^ u64::from_le_bytes(*entry));
                self.sums.push(sum);
                self.sum ^= sum;
            }
        }
        Ok(())
    }
}

/// Moves a file that is not a page table out of the way.
fn set_aside(path: &Path, why: &super::Error) -> Result<(), super::Error> {
    let aside = path.with_extension("unusable");
    log::error!("{why}; it is kept as {}", aside.display());
    folder::rename(path, &aside).context("cannot set aside", path)
}

/// Fills the buffer from byte `offset` on, with zeros behind the end of the file.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => {
                rest.fill(0);
                break;
            }
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// True if waiting does not turn a file with this error into a table: the file is something else, this
/// process may not read it, or its disk does not return it.
fn is_of_no_use(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const OF_NO_USE: [Errno; 3] = [Errno::ACCESS, Errno::INVAL, Errno::IO];
    folder::is_odd(error)
        || Errno::from_io_error(error).is_some_and(|errno| OF_NO_USE.contains(&errno))
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
        assert_eq!(again.get(7).unwrap(), Some(sums[0]));
        assert_eq!(again.get(70_001).unwrap(), None);
        again.set_commit(70_001).unwrap();
        assert_eq!((again.get(70_001).unwrap(), again.checksum()), (None, expected));
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
        for pgno in 1..=20_000u32 {
            table.set(pgno, Some(sum)).unwrap();
            assert_eq!(len(), u64::from(pgno) * 8);
        }
        assert_eq!(table.kept.len(), KEPT);
        drop(table);
        // A file that another process made longer takes neither memory nor time.
        lengthen(dir.path(), 1 << 43);
        let mut table = PageTable::open(dir.path(), 3).unwrap();
        let entries = (table.get(3).unwrap(), table.get(4).unwrap());
        assert_eq!((entries, len()), ((Some(sum), None), 24));
    }

    fn lengthen(dir: &Path, len: u64) {
        File::options().write(true).open(dir.join("pages")).unwrap().set_len(len).unwrap();
    }

    fn sum_of(pgno: Pgno, round: u8) -> Checksum {
        ltx::checksum::page(pgno, &[round])
    }

    /// Returns a table of 40 chunks. The first chunk is no longer in memory; the last one is.
    fn forty_chunks(dir: &Path) -> (PageTable, u32) {
        let commit = 40 * CHUNK as u32;
        let mut table = PageTable::open(dir, 0).unwrap();
        for pgno in 1..=commit {
            table.set(pgno, Some(sum_of(pgno, 0))).unwrap();
        }
        (table, commit)
    }

    #[test]
    fn a_table_that_is_cut_or_overwritten_under_us_is_found_out() {
        type Harm = fn(&File);
        let harms: [(&str, Harm); 4] = [
            ("emptied", |file| file.set_len(0).unwrap()),
            ("a few bytes", |file| file.set_len(13).unwrap()),
            ("emptied and longer", |file| {
                file.set_len(0).unwrap();
                file.set_len(1 << 20).unwrap();
            }),
            ("overwritten", |file| file.write_all_at(b"something else", 100).unwrap()),
        ];
        for (what, harm) in harms {
            let dir = tempfile::tempdir().unwrap();
            let (mut table, commit) = forty_chunks(dir.path());
            harm(&File::options().write(true).open(dir.path().join("pages")).unwrap());
            let before = table.checksum();
            assert!(matches!(table.get(1), Err(Error::Changed(_))), "{what}");
            assert!(matches!(table.set(1, None), Err(Error::Changed(_))), "{what}");
            assert!(matches!(table.set_commit(1), Err(Error::Changed(_))), "{what}");
            let pages = [(1, sum_of(1, 1))];
            let after = table.checksum_after([Ok(pages.to_vec())], commit);
            assert!(matches!(after, Err(Error::Changed(_))));
            // The values in memory are still right.
            assert_eq!((table.checksum(), table.commit()), (before, commit));
            assert_eq!(table.get(commit).unwrap(), Some(sum_of(commit, 0)), "{what}");
            // The next process notices it, too.
            let again = PageTable::open(dir.path(), commit).unwrap();
            assert_ne!(again.checksum(), before, "{what}");
            drop(again);
            // A reset makes the table usable again.
            table.reset().unwrap();
            assert_eq!((table.checksum(), table.get(1).unwrap()), (DatabaseChecksum::EMPTY, None));
            table.set(1, Some(sum_of(1, 1))).unwrap();
            let mut again = PageTable::open(dir.path(), 1).unwrap();
            assert_eq!(again.get(1).unwrap(), Some(sum_of(1, 1)), "{what}");
        }
    }

    #[test]
    fn a_table_that_is_something_else_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("pages/in it")).unwrap();
        let mut table = PageTable::open(dir.path(), 5).unwrap();
        assert_eq!((table.checksum(), table.get(5).unwrap()), (DatabaseChecksum::EMPTY, None));
        assert!(dir.path().join("pages.unusable/in it").is_dir());
        table.set(5, Some(sum_of(5, 0))).unwrap();
        // A reset replaces a file that was deleted or replaced.
        std::fs::remove_file(dir.path().join("pages")).unwrap();
        table.reset().unwrap();
        table.set(2, Some(sum_of(2, 0))).unwrap();
        let mut again = PageTable::open(dir.path(), 2).unwrap();
        assert_eq!(again.get(2).unwrap(), Some(sum_of(2, 0)));
    }

    #[test]
    fn what_is_said_of_the_next_state_is_true() {
        let dir = tempfile::tempdir().unwrap();
        let (mut table, commit) = forty_chunks(dir.path());
        let sizes =
            [commit, commit + 3000, commit - 1, 9 * CHUNK as u32 + 7, 9 * CHUNK as u32, 1, 0];
        for (round, size) in (1..).zip(sizes) {
            let pages: Vec<_> = (1..=size)
                .filter(|pgno| pgno % 97 == 0 || *pgno > table.commit())
                .map(|pgno| (pgno, sum_of(pgno, round)))
                .collect();
            let parts = pages.chunks(1000).map(|part| Ok::<_, Error>(part.to_vec()));
            let after = table.checksum_after(parts, size).unwrap();
            match round % 2 {
                0 => table.set_all(&pages).unwrap(),
                _ => pages.iter().for_each(|(pgno, sum)| table.set(*pgno, Some(*sum)).unwrap()),
            }
            table.set_commit(size).unwrap();
            assert_eq!(table.checksum(), after, "{size} pages");
            let mut again = PageTable::open(dir.path(), size).unwrap();
            assert_eq!(again.checksum(), after, "{size} pages, from the file");
            let mut by_hand = DatabaseChecksum::EMPTY;
            for pgno in 1..=size {
                let entry = again.get(pgno).unwrap();
                assert_eq!(entry, table.get(pgno).unwrap());
                by_hand.toggle(entry.unwrap());
            }
            assert_eq!(by_hand, after);
        }
    }
}
