//! Records which stretches a restore has written, so that an interrupted restore can go on.
//!
//! The record names each stretch of page frames by its file (level, TXIDs, length, checksum) and its number,
//! with a digest of the fetched bytes. A restore never believes the record. A restore that goes on reads
//! header, index and trailer of every file again. It skips a stretch only if two conditions hold: the file
//! still has the same checksum, and the pages that are now in the output give the same digest. That digest then
//! counts for the file's checksum like the digest of a fetched stretch. The pages count for the database's
//! checksum.
//!
//! A page may be lost in a power loss, changed by another program, or superseded by a newer file. Such a page
//! only costs a request. So nothing has to be made durable during the restore.
//!
//! The digest covers all pages of the stretch, but the output has only the newest. A second digest covers the
//! other pages: the stretch with zeros in place of the pages in the output. The digest of the output's pages
//! has zeros for the other pages. Both digests combined give the digest of the whole stretch.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::error::{Error, failed};
use super::output::Workplace;
use crate::local::folder;
use crate::ltx::checksum::FileDigest;
use crate::ltx::{Checksum, FileName};
use crate::store::Key;
use crate::units::{Level, PageSize, Txid};

/// First bytes of the record; the page size follows. The number changes if stretches are cut in another way.
const MAGIC: &[u8; 8] = b"WFrest01";
const HEAD_LEN: usize = 16;
const ENTRY_LEN: usize = 72;

/// A file as it was when its stretches were fetched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Source {
    pub(super) key: Key,
    /// Length of the file in bytes.
    pub(super) len: u64,
    /// Checksum in the file's trailer.
    pub(super) checksum: Checksum,
}

/// A stretch whose newest pages are in the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Written {
    /// True if its pages are LZ4 blocks with a length, false if they are LZ4 frames.
    pub(super) blocks: bool,
    /// CRC of the bytes of the stretch that the file's checksum covers.
    pub(super) digest: u64,
    /// The same CRC with zeros for the pages in the output; `None` if all pages are there.
    pub(super) others: Option<u64>,
}

/// Record of the restore that is running.
pub(super) struct Record {
    path: PathBuf,
    file: File,
    known: HashMap<(Source, u32), Written>,
    /// Bytes of the replica's files whose pages are in the output.
    kept: AtomicU64,
    broken: AtomicBool,
}

/// Record of an earlier restore.
pub(super) struct Left {
    page_size: u32,
    known: HashMap<(Source, u32), Written>,
    keys: HashSet<(Key, u64)>,
    len: u64,
}

impl Left {
    /// Reads the record. Ignores damaged entries, and a record that does not begin with the magic number.
    pub(super) fn read(place: &Workplace) -> Result<Left, Error> {
        let path = place.entry("record");
        let nothing = Left::nothing();
        let file = match folder::read(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing),
            Err(error) => return Err(failed("opening", &path)(error)),
        };
        Left::parse(&file, nothing).map_err(failed("reading", &path))
    }

    fn parse(file: &File, nothing: Left) -> io::Result<Left> {
        let mut reader = io::BufReader::new(file);
        let mut head = [0; HEAD_LEN];
        if !read_whole(&mut reader, &mut head)? || !head.starts_with(MAGIC) {
            return Ok(nothing);
        }
        let [.., a, b, c, d, _, _, _, _] = head;
        let mut left =
            Left { page_size: u32::from_be_bytes([a, b, c, d]), len: HEAD_LEN as u64, ..nothing };
        let mut entry = [0; ENTRY_LEN];
        while read_whole(&mut reader, &mut entry)? {
            left.len += ENTRY_LEN as u64;
            if let Some((source, number, written)) = decode(&entry) {
                left.keys.insert((source.key, source.len));
                left.known.insert((source, number), written);
            }
        }
        Ok(left)
    }

    /// Returns an empty record.
    pub(super) fn nothing() -> Left {
        Left { page_size: 0, known: HashMap::new(), keys: HashSet::new(), len: 0 }
    }

    /// True if the record has a stretch.
    pub(super) fn is_something(&self) -> bool {
        !self.known.is_empty()
    }

    /// True if the record has stretches of this file, so that perhaps only its outer parts are needed.
    pub(super) fn has(&self, key: Key, len: u64) -> bool {
        self.keys.contains(&(key, len))
    }
}

/// Fills the buffer. Returns `false` if the file ends before.
fn read_whole(reader: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

impl Record {
    /// Goes on with the record of an earlier restore. If that record is of another page size, starts a new
    /// record and empties the output.
    pub(super) fn open(
        place: &Workplace,
        left: &Left,
        page_size: PageSize,
        database: &File,
    ) -> Result<Record, Error> {
        let (path, file) = (place.entry("record"), place.open("record")?);
        let mut known = left.known.clone();
        if left.page_size == page_size.get() {
            // The last entry may be cut short: the entries behind it would be misaligned.
            file.set_len(left.len).map_err(failed("shortening", &path))?;
        } else {
            known.clear();
            let begun = begin(&file, page_size);
            begun.map_err(failed("writing", &path))?;
            let database_path = place.entry("database");
            database.set_len(0).map_err(failed("emptying", &database_path))?;
        }
        // With APPEND each entry goes to the end of the file, whichever thread writes it.
        let append = rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::APPEND);
        append.map_err(|errno| failed("writing", &path)(errno.into()))?;
        let (kept, broken) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Record { path, file, known, kept, broken })
    }

    /// Returns the entry of this stretch.
    pub(super) fn find(&self, source: &Source, number: usize) -> Option<Written> {
        self.known.get(&(*source, u32::try_from(number).ok()?)).copied()
    }

    /// Notes that the newest pages of this stretch are in the output. The stretch has `bytes` bytes.
    pub(super) fn note(&self, source: &Source, number: usize, written: Written, bytes: u64) {
        let Ok(number) = u32::try_from(number) else { return };
        if self.broken.load(Ordering::Relaxed) {
            return;
        }
        // A failed write only costs the time that the record would have saved.
        match (&self.file).write_all(&encode(source, number, written)) {
            Ok(()) => self.keep(bytes),
            Err(error) => {
                self.broken.store(true, Ordering::Relaxed);
                log::warn!("writing {} failed: {error}", self.path.display());
            }
        }
    }

    /// Counts bytes whose pages are in the output.
    pub(super) fn keep(&self, bytes: u64) {
        self.kept.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes of the replica's files that need not be read again.
    pub(super) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }
}

fn begin(file: &File, page_size: PageSize) -> io::Result<()> {
    let mut head = [0; HEAD_LEN];
    let (magic, rest) = head.split_at_mut(MAGIC.len());
    magic.copy_from_slice(MAGIC);
    let (size, _) = rest.split_at_mut(4);
    size.copy_from_slice(&page_size.get().to_be_bytes());
    file.set_len(0)?;
    file.write_all_at(&head, 0)
}

fn encode(source: &Source, number: u32, written: Written) -> [u8; ENTRY_LEN] {
    let Source { key, len, checksum } = source;
    let kind = u8::from(written.blocks) | u8::from(written.others.is_some()) << 1;
    let mut bytes = Vec::with_capacity(ENTRY_LEN);
    bytes.extend_from_slice(&[key.level.get(), kind, 0, 0]);
    bytes.extend_from_slice(&number.to_be_bytes());
    for word in [
        key.name.min.0,
        key.name.max.0,
        *len,
        checksum.0,
        written.digest,
        written.others.unwrap_or(0),
        0,
    ] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    let sum = sum_of(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes.try_into().unwrap_or([0; ENTRY_LEN])
}

fn decode(bytes: &[u8; ENTRY_LEN]) -> Option<(Source, u32, Written)> {
    let (covered, sum) = bytes.split_last_chunk::<8>()?;
    if sum_of(covered).to_be_bytes() != *sum {
        return None;
    }
    let (first, words) = covered.split_first_chunk::<8>()?;
    let [level, kind, _, _, number @ ..] = *first;
    let mut words = words.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
    let mut next = || words.next().unwrap_or(0);
    let name = FileName { min: Txid(next()), max: Txid(next()) };
    let key = Key { level: Level::new(level)?, name };
    let source = Source { key, len: next(), checksum: Checksum(next()) };
    let (digest, others) = (next(), next());
    let others = (kind & 2 != 0).then_some(others);
    Some((source, u32::from_be_bytes(number), Written { blocks: kind & 1 != 0, digest, others }))
}

fn sum_of(bytes: &[u8]) -> u64 {
    let mut digest = FileDigest::new();
    digest.update(bytes);
    digest.checksum().0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::restore::output::Place;

    fn source(max: u64) -> Source {
        let name = FileName { min: Txid(1), max: Txid(max) };
        let key = Key { level: Level::SNAPSHOT, name };
        Source { key, len: 12345, checksum: Checksum(max | 1 << 63) }
    }

    #[test]
    fn what_was_noted_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let place = Workplace::take(&dir.path().join("out.db"), Place::Free).unwrap();
        let (size, other) = (PageSize::new(4096).unwrap(), PageSize::new(512).unwrap());
        let database = place.open("database").unwrap();
        let open = |size| {
            let left = Left::read(&place).unwrap();
            Record::open(&place, &left, size, &database).unwrap()
        };
        let written = |digest| Written { blocks: true, digest, others: (digest == 2).then_some(7) };
        let record = open(size);
        record.note(&source(5), 1, written(1), 100);
        record.note(&source(5), 2, written(2), 100);
        record.note(&source(6), 1, written(3), 100);
        assert_eq!(record.kept(), 300);
        // The last entry is cut short, the second damaged.
        let path = place.entry("record");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 1);
        bytes[HEAD_LEN + ENTRY_LEN + 30] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let left = Left::read(&place).unwrap();
        assert!(left.has(source(5).key, 12345) && !left.has(source(5).key, 12346));
        assert!(!left.has(source(6).key, 12345));
        let record = open(size);
        assert_eq!(record.find(&source(5), 1), Some(written(1)));
        assert_eq!(record.find(&source(5), 2), None);
        let changed = Source { checksum: Checksum(9), ..source(5) };
        assert_eq!(record.find(&changed, 1), None);
        record.note(&source(5), 2, written(2), 100);
        database.set_len(5).unwrap();
        assert_eq!(open(size).find(&source(5), 2), Some(written(2)));
        assert_eq!(database.metadata().unwrap().len(), 5);
        // Pages of another size are at other offsets.
        assert_eq!(open(other).find(&source(5), 1), None);
        assert_eq!(database.metadata().unwrap().len(), 0);
        assert_eq!(open(size).find(&source(5), 1), None);
    }

    #[test]
    fn threads_do_not_write_over_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let place = Workplace::take(&dir.path().join("out.db"), Place::Free).unwrap();
        let database = place.open("database").unwrap();
        let size = PageSize::new(4096).unwrap();
        let left = Left::read(&place).unwrap();
        let record = Record::open(&place, &left, size, &database).unwrap();
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                let record = &record;
                scope.spawn(move || {
                    for number in 0..500 {
                        let written = Written { blocks: true, digest: thread, others: None };
                        record.note(&source(thread), number, written, 1);
                    }
                });
            }
        });
        assert_eq!(Left::read(&place).unwrap().known.len(), 2000);
    }
}
