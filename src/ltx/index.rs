//! The page index: for each page frame, in ascending page order, three unsigned LEB128 varints
//! (page number, offset of the frame from the file's start, length of the frame), then a zero.
//!
//! Eight bytes behind the index give the length of these varints, the zero included.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::io;

use super::error::{Error, corrupt};
use super::{HEADER_LEN, INDEX_SIZE_LEN, PAGE_HEADER_LEN, TRAILER_LEN};
use crate::scratch::{Place, Tape};
use crate::units::Pgno;

/// Largest length of an entry in bytes: three varints of up to 64 bits.
const ENTRY_MAX: usize = 30;
/// Approximate size in bytes of the pieces in which an index is written and read.
pub(super) const PIECE: usize = 64 << 10;

/// Location of one page's frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Page number.
    pub pgno: Pgno,
    /// Byte offset of the frame's header from the start of the file.
    pub offset: u64,
    /// Length of the frame in bytes, its header included.
    pub len: u64,
}

/// Collects an index while pages are written, at three to four bytes a page.
///
/// Frames follow each other without a gap, so the builder keeps only the step in page number and the
/// length of each frame.
#[derive(Default)]
pub struct Builder {
    steps: Tape,
    last: Pgno,
    /// Buffer for the entry that is being added.
    entry: Vec<u8>,
}

impl Builder {
    /// Starts a builder that spills to `place` and keeps little in memory.
    pub fn spilling(place: Place) -> Builder {
        Builder { steps: Tape::new(place), ..Builder::default() }
    }

    /// Adds the next frame. Pages must ascend.
    pub fn push(&mut self, pgno: Pgno, len: u64) -> io::Result<()> {
        self.entry.clear();
        put_varint(&mut self.entry, u64::from(pgno.saturating_sub(self.last)));
        put_varint(&mut self.entry, len);
        self.steps.push(&self.entry)?;
        self.last = pgno;
        Ok(())
    }

    /// Returns the index in its stored form, piece by piece.
    pub fn emission(self) -> Emission {
        Emission {
            steps: self.steps,
            read: 0,
            input: Vec::new(),
            used: 0,
            pgno: 0,
            offset: HEADER_LEN as u64,
            ended: false,
            piece: Vec::with_capacity(PIECE + ENTRY_MAX),
        }
    }
}

/// Produces the stored form of an index piece by piece, without the length field.
pub struct Emission {
    steps: Tape,
    /// Number of bytes read from `steps`.
    read: u64,
    /// Bytes read from `steps`; `entry` has used the first `used` of them.
    input: Vec<u8>,
    used: usize,
    /// Page number of the last entry.
    pgno: Pgno,
    /// Offset of the next frame.
    offset: u64,
    ended: bool,
    piece: Vec<u8>,
}

impl Emission {
    /// Returns the next piece, at most about 64 KiB; `None` behind the last.
    pub fn piece(&mut self) -> io::Result<Option<&[u8]>> {
        if self.ended {
            return Ok(None);
        }
        self.piece.clear();
        while self.piece.len() < PIECE {
            let Some(Entry { pgno, offset, len }) = self.entry()? else {
                self.piece.push(0);
                self.ended = true;
                break;
            };
            put_varint(&mut self.piece, u64::from(pgno));
            put_varint(&mut self.piece, offset);
            put_varint(&mut self.piece, len);
        }
        Ok(Some(&self.piece))
    }

    fn entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let mut rest = self.input.get(self.used..).unwrap_or_default();
            if let Some(step) = take_varint(&mut rest)
                && let Some(len) = take_varint(&mut rest)
            {
                self.used = self.input.len().saturating_sub(rest.len());
                self.pgno = self.pgno.saturating_add(step as u32);
                let entry = Entry { pgno: self.pgno, offset: self.offset, len };
                self.offset = self.offset.saturating_add(len);
                return Ok(Some(entry));
            }
            self.input.drain(..self.used);
            self.used = 0;
            let had = self.input.len();
            self.input.resize(had + PIECE, 0);
            let room = self.input.get_mut(had..).unwrap_or_default();
            let count = self.steps.read_at(room, self.read)?;
            self.input.truncate(had + count);
            self.read = self.read.saturating_add(count as u64);
            if count == 0 {
                return Ok(None);
            }
        }
    }
}

/// Length and digest of the index that a file should have. The entries themselves are not kept.
///
/// The digest has a random key for each file, so that an attacker cannot construct two indexes with the
/// same digest.
pub(super) struct Expected {
    keys: RandomState,
    entries: DefaultHasher,
    offset: u64,
    len: u64,
}

impl Expected {
    pub(super) fn new() -> Expected {
        let keys = RandomState::new();
        let entries = keys.build_hasher();
        Expected { keys, entries, offset: HEADER_LEN as u64, len: 1 }
    }

    /// Adds the next frame.
    pub(super) fn push(&mut self, pgno: Pgno, len: u64) {
        add(&mut self.entries, pgno, len);
        let bytes = varint_len(u64::from(pgno)) + varint_len(self.offset) + varint_len(len);
        self.len = self.len.saturating_add(bytes);
        self.offset = self.offset.saturating_add(len);
    }

    /// Returns the length in bytes of the stored form, without the length field.
    pub(super) fn stored_len(&self) -> u64 {
        self.len
    }

    /// Starts to digest a stored index, under the same key.
    pub(super) fn stored(&self) -> Stored {
        Stored { entries: self.keys.build_hasher(), walked: Mark::default(), at_hand: Vec::new() }
    }

    /// True if the stored index is this index. [`Stored::take`] has checked the offset of each frame.
    pub(super) fn is(&self, stored: &Stored) -> bool {
        stored.walked.expected_offset == self.offset
            && stored.entries.finish() == self.entries.finish()
    }
}

/// Digest of a stored index, which arrives in parts.
pub(super) struct Stored {
    entries: DefaultHasher,
    walked: Mark,
    /// First bytes of an entry that continues in the next part.
    at_hand: Vec<u8>,
}

impl Stored {
    /// Adds the next part. `last` says that no part follows.
    pub(super) fn take(&mut self, part: &[u8], last: bool) -> Result<(), Error> {
        self.at_hand.extend_from_slice(part);
        let mut reader = Reader::resume(&self.at_hand, self.walked);
        let entries = &mut self.entries;
        if last {
            for entry in reader.by_ref() {
                let Entry { pgno, len, .. } = entry?;
                add(entries, pgno, len);
            }
            self.walked.expected_offset = reader.end_offset();
            return Ok(());
        }
        self.walked = reader.skip_whole(|entry| {
            add(entries, entry.pgno, entry.len);
            Ok(())
        })?;
        self.at_hand.drain(..self.walked.walked);
        Ok(())
    }
}

fn add(entries: &mut DefaultHasher, pgno: Pgno, len: u64) {
    entries.write_u32(pgno);
    entries.write_u64(len);
}

/// Iterates over a stored index and checks each entry.
#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    expected_offset: u64,
    last: Pgno,
    finished: bool,
}

/// State of a [`Reader`] between two parts of an index.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    expected_offset: u64,
    last: Pgno,
    /// Number of bytes of the last part that the reader has passed.
    pub walked: usize,
}

impl Default for Mark {
    fn default() -> Mark {
        Mark { expected_offset: HEADER_LEN as u64, last: 0, walked: 0 }
    }
}

impl<'a> Reader<'a> {
    /// Starts at the first entry. `bytes` are the index's varints, without the length field behind them.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, expected_offset: HEADER_LEN as u64, last: 0, finished: false }
    }

    /// Continues an index that arrives in parts: `bytes` follow the entries before the mark `before`.
    pub fn resume(bytes: &'a [u8], before: Mark) -> Reader<'a> {
        let Mark { expected_offset, last, .. } = before;
        Reader { rest: bytes, expected_offset, last, finished: false }
    }

    /// Calls `each` for the entries that are whole in these bytes. The rest of the index follows in later
    /// parts, so the end of the index is an error here.
    pub fn skip_whole(
        mut self,
        mut each: impl FnMut(Entry) -> Result<(), Error>,
    ) -> Result<Mark, Error> {
        let len = self.rest.len();
        loop {
            let before = self.clone();
            match self.step() {
                Ok(Some(entry)) => each(entry)?,
                Ok(None) => return corrupt("bytes behind the end of the page index"),
                Err(Error::Truncated(_)) if before.rest.len() < ENTRY_MAX => {
                    let Reader { rest, expected_offset, last, .. } = before;
                    let walked = len.saturating_sub(rest.len());
                    return Ok(Mark { expected_offset, last, walked });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the offset just behind the frames so far. After the last entry, this is the offset of the
    /// six zero bytes.
    pub fn end_offset(&self) -> u64 {
        self.expected_offset
    }

    fn step(&mut self) -> Result<Option<Entry>, Error> {
        let truncated = || Error::Truncated("page index");
        let pgno = take_varint(&mut self.rest).ok_or_else(truncated)?;
        if pgno == 0 {
            if !self.rest.is_empty() {
                return corrupt("bytes behind the end of the page index");
            }
            self.finished = true;
            return Ok(None);
        }
        let offset = take_varint(&mut self.rest).ok_or_else(truncated)?;
        let len = take_varint(&mut self.rest).ok_or_else(truncated)?;
        let Some(pgno) = u32::try_from(pgno).ok().filter(|pgno| *pgno > self.last) else {
            return corrupt(format!("the page index goes from page {} to page {pgno}", self.last));
        };
        let next = offset.checked_add(len);
        if offset != self.expected_offset || len <= PAGE_HEADER_LEN as u64 || next.is_none() {
            return corrupt(format!("the page index puts page {pgno} where it cannot be"));
        }
        self.last = pgno;
        self.expected_offset = next.unwrap_or(offset);
        Ok(Some(Entry { pgno, offset, len }))
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.finished = true;
        }
        step.transpose()
    }
}

/// Finds the index from the end of a file. `tail` holds the file's last bytes, at least [`TAIL_LEN`].
/// Returns the index's start offset and its length without the length field.
pub fn locate(file_len: u64, tail: &[u8]) -> Result<(u64, u64), Error> {
    let field = tail
        .len()
        .checked_sub(TAIL_LEN)
        .and_then(|at| tail.get(at..))
        .and_then(|end| end.first_chunk::<INDEX_SIZE_LEN>());
    let Some(field) = field else {
        return Err(Error::Truncated("trailer"));
    };
    let len = u64::from_be_bytes(*field);
    let least = (HEADER_LEN + PAGE_HEADER_LEN) as u64;
    match file_len.checked_sub(TAIL_LEN as u64).and_then(|end| end.checked_sub(len)) {
        Some(start) if start >= least && len > 0 => Ok((start, len)),
        _ => corrupt(format!("a page index of {len} bytes does not fit the file")),
    }
}

/// Length in bytes of the index's length field and the trailer: the least that [`locate`] needs.
pub const TAIL_LEN: usize = INDEX_SIZE_LEN + TRAILER_LEN;

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Returns the number of bytes that [`put_varint`] writes.
fn varint_len(value: u64) -> u64 {
    u64::from((64 - (value | 1).leading_zeros()).div_ceil(7))
}

/// Takes one varint off the front; `None` if the varint is cut off or longer than 64 bits.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let group = u64::from(byte & 0x7f);
        if shift == 63 && group > 1 {
            return None;
        }
        value |= group << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
