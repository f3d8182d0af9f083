//! Checks while a restore runs: each file's checksum, the chain from file to file, and that no page is missing.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::error::{Error, failed};
use crate::ltx::checksum::Digested;
use crate::ltx::{Checksum, Header};
use crate::store::Key;
use crate::units::{PageSize, Pgno};

/// Combines the digests of a file's stretches, which come in any order, into the file's checksum.
pub(super) struct FileProof {
    key: Key,
    state: Mutex<Joining>,
}

struct Joining {
    joined: Digested,
    next: usize,
    /// Digests of stretches that came before their turn: never more than there are stretches in flight.
    early: BTreeMap<usize, Digested>,
    last: Option<(usize, Checksum)>,
}

impl FileProof {
    /// Returns a proof for this file. Stretch 0 is the file's header.
    pub(super) fn new(key: Key) -> FileProof {
        let joined = Digested::default();
        let state = Joining { joined, next: 0, early: BTreeMap::new(), last: None };
        FileProof { key, state: Mutex::new(state) }
    }

    /// Adds the digest of stretch `number`. Once all digests are there, compares the checksum and counts the
    /// file in `proven`.
    pub(super) fn add(
        &self,
        number: usize,
        digest: Digested,
        proven: &AtomicUsize,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        state.early.insert(number, digest);
        while let Some(digest) = {
            let next = state.next;
            state.early.remove(&next)
        } {
            state.joined = state.joined.then(digest);
            state.next += 1;
        }
        match state.last {
            Some((last, stored)) if state.next > last => {
                let computed = state.joined.checksum();
                if computed != stored {
                    return Err(Error::corrupt(
                        self.key,
                        format!("its checksum should be {computed}"),
                    ));
                }
                proven.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Sets the number of the last stretch and the expected checksum. Call `expect` before that stretch is
    /// added.
    pub(super) fn expect(&self, last: usize, stored: Checksum) {
        self.state.lock().last = Some((last, stored));
    }
}

/// Walks the plan from its newest file to its oldest, and checks that each older file leads to the newer file.
#[derive(Default)]
pub(super) struct Chain {
    newer: Option<(Key, Header)>,
    broken: Option<Error>,
    /// Files without a tag.
    pub(super) untagged: usize,
}

/// Role of a file for the newer files.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The pages of the file count.
    Needed,
    /// The newer file holds everything: neither this file nor the older files are needed.
    Superseded,
}

impl Chain {
    pub(super) fn step(&mut self, key: Key, header: &Header) -> Result<Step, Error> {
        if let Some((newer_key, newer)) = &self.newer {
            if newer.tag.is_some_and(|tag| tag.full_image) {
                return Ok(Step::Superseded);
            }
            if newer.page_size != header.page_size {
                return Err(Error::PageSize { older: key, newer: *newer_key });
            }
            // Files that overlap have no common state to compare.
            if let (Some(tag), Some(newer_tag)) = (header.tag, newer.tag)
                && header.max_txid.next() == newer.min_txid
                && tag.post_apply != newer_tag.pre_apply
            {
                self.broken.get_or_insert(Error::Chain { older: key, newer: *newer_key });
            }
        }
        if header.tag.is_none() {
            self.untagged += 1;
        }
        self.newer = Some((key, *header));
        Ok(Step::Needed)
    }

    /// Returns the newest broken link, if there is one. Call `finish` after the files' checksums are compared:
    /// a damaged file can look like a broken link, and its damage shows only when all of it was read.
    pub(super) fn finish(self) -> Result<(), Error> {
        self.broken.map_or(Ok(()), Err)
    }
}

/// Words of 64 bits in a chunk of the bitmap.
const CHUNK_WORDS: usize = 1024;

/// The pages that are claimed, one bit for each page. Files claim their pages from the newest to the oldest.
pub(super) struct Claims {
    /// A chunk is allocated when its first page is claimed. A false number of pages takes no memory.
    chunks: Vec<Option<Box<[u64; CHUNK_WORDS]>>>,
    commit: u32,
    lock_page: Pgno,
    /// Pages of the smallest database among the files walked so far. Pages behind its end were cut off, and
    /// only newer files can have brought them back.
    limit: u32,
    claimed: u64,
}

impl Claims {
    pub(super) fn new(commit: u32, page_size: PageSize) -> Claims {
        let chunks = vec![None; (commit as usize).div_ceil(64 * CHUNK_WORDS)];
        let lock_page = page_size.lock_page();
        Claims { chunks, commit, lock_page, limit: commit, claimed: 0 }
    }

    /// Moves on to an older file, whose database has this many pages.
    pub(super) fn next_file(&mut self, commit: u32) {
        self.limit = self.limit.min(commit);
    }

    /// Claims a page for the current file. Returns true if the file has the newest image of the page.
    pub(super) fn claim(&mut self, pgno: Pgno) -> bool {
        let Some(index) = pgno.checked_sub(1).filter(|_| pgno <= self.limit) else {
            return false;
        };
        let (chunk, word, bit) = place(index);
        let Some(chunk) = self.chunks.get_mut(chunk) else { return false };
        let chunk = chunk.get_or_insert_with(|| Box::new([0; CHUNK_WORDS]));
        if chunk[word] & bit != 0 {
            return false;
        }
        chunk[word] |= bit;
        self.claimed += 1;
        true
    }

    /// Checks that every page except the lock page was claimed. `key` is the newest file.
    ///
    /// A page that was not claimed may come from a database of `base` pages, unless it was cut off since.
    pub(super) fn finish(&self, key: Key, base: u32) -> Result<(), Error> {
        let pages = u64::from(self.commit) - u64::from(self.lock_page <= self.commit);
        if self.claimed == pages {
            return Ok(());
        }
        let missing = |pgno: &Pgno| {
            let (chunk, word, bit) = place(pgno - 1);
            let chunk = self.chunks.get(chunk).and_then(Option::as_ref);
            *pgno != self.lock_page && chunk.is_none_or(|chunk| chunk[word] & bit == 0)
        };
        let known = base.min(self.limit) as usize;
        let mut unknown = (1..=self.commit).skip(known).filter(missing);
        match unknown.next() {
            None => Ok(()),
            Some(first) => Err(Error::Missing { first, count: unknown.count() as u64 + 1, key }),
        }
    }
}

/// Returns the chunk, the word in the chunk and the bit of a page's index from 0.
fn place(index: u32) -> (usize, usize, u64) {
    let word = (index / 64) as usize;
    (word / CHUNK_WORDS, word % CHUNK_WORDS, 1 << (index % 64))
}

/// First bytes of an SQLite database file; the page size follows.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Checks that the result begins like a database of this page size.
///
/// A file with our tag may lead to another beginning: databases that their SQLite encrypts begin with other
/// bytes. Litestream replicates none of these.
pub(super) fn first_page(
    database: &File,
    path: &Path,
    key: Key,
    header: &Header,
) -> Result<(), Error> {
    let mut head = [0; 18];
    database.read_exact_at(&mut head, 0).map_err(failed("reading", path))?;
    let [magic @ .., high, low] = head;
    if magic != *SQLITE_MAGIC {
        return match header.tag {
            Some(_) => Ok(()),
            None => Err(Error::corrupt(key, "what it leads to is not a SQLite database")),
        };
    }
    if PageSize::from_u16(u16::from_be_bytes([high, low])) != Some(header.page_size) {
        return Err(Error::corrupt(
            key,
            format!("the database that it leads to has no pages of {} bytes", header.page_size),
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ltx::FileName;
    use crate::units::{Level, Txid};

    /// A page of an older copy counts only if no later database was too small for it.
    #[test]
    fn what_was_cut_off_does_not_come_back_from_a_copy() {
        let size = PageSize::new(512).unwrap();
        let name = FileName { min: Txid(3), max: Txid(4) };
        let key = Key { level: Level::L0, name };
        let claims = |smallest: u32, claimed: &[Pgno]| {
            let mut claims = Claims::new(8, size);
            claims.next_file(8);
            assert!(claimed.iter().all(|pgno| claims.claim(*pgno)));
            claims.next_file(smallest);
            claims
        };
        let finish = |claims: Claims, base| match claims.finish(key, base) {
            Ok(()) => None,
            Err(Error::Missing { first, count, .. }) => Some((first, count)),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(finish(claims(8, &[1, 8]), 8), None);
        assert_eq!(finish(claims(8, &[1, 8]), 7), None);
        assert_eq!(finish(claims(8, &[1, 8]), 5), Some((6, 2)));
        assert_eq!(finish(claims(6, &[1, 8]), 8), Some((7, 1)));
        assert_eq!(finish(claims(6, &[1, 7, 8]), 8), None);
        assert_eq!(finish(claims(8, &[]), 0), Some((1, 8)));
        let all = |base| {
            let mut claims = Claims::new(3, size);
            (1..=3).for_each(|pgno| assert!(claims.claim(pgno)));
            finish(claims, base)
        };
        assert_eq!((all(0), all(u32::MAX)), (None, None));
    }
}
