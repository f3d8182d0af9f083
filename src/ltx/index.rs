//! The page index: for each page frame, in ascending page order, three unsigned LEB128 varints
//! (page number, offset of the frame from the file's start, length of the frame), then a zero.
//!
//! Behind it stand eight bytes with the length of these varints, the zero included.

use super::error::{Error, corrupt};
use super::{HEADER_LEN, INDEX_SIZE_LEN, PAGE_HEADER_LEN, TRAILER_LEN};
use crate::units::Pgno;

/// Most bytes of an entry: three varints of up to 64 bits.
const ENTRY_MAX: usize = 30;

/// Where one page's frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Page number.
    pub pgno: Pgno,
    /// Byte offset of the frame's header from the start of the file.
    pub offset: u64,
    /// Length of the frame in bytes, its header included.
    pub len: u64,
}

/// Collects an index while pages are written, at three to four bytes a page: frames follow each
/// other without a gap, so only the step in page number and the length need to be kept.
#[derive(Default)]
pub struct Builder {
    steps: Vec<u8>,
    last: Pgno,
}

impl Builder {
    /// Notes the next frame. Pages must ascend.
    pub fn push(&mut self, pgno: Pgno, len: u64) {
        put_varint(&mut self.steps, u64::from(pgno.saturating_sub(self.last)));
        put_varint(&mut self.steps, len);
        self.last = pgno;
    }

    /// The entries in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let (mut rest, mut pgno, mut offset) = (self.steps.as_slice(), 0u32, HEADER_LEN as u64);
        std::iter::from_fn(move || {
            let step = take_varint(&mut rest)?;
            let len = take_varint(&mut rest)?;
            pgno = pgno.saturating_add(step as u32);
            let entry = Entry { pgno, offset, len };
            offset = offset.saturating_add(len);
            Some(entry)
        })
    }

    /// Hands the stored form to `sink` piece by piece, without the length field; gives its length.
    pub fn emit<E>(&self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<u64, E> {
        let mut total = 0u64;
        let mut piece = Vec::with_capacity(64 * 1024 + 64);
        for entry in self.entries() {
            put_varint(&mut piece, u64::from(entry.pgno));
            put_varint(&mut piece, entry.offset);
            put_varint(&mut piece, entry.len);
            if piece.len() >= 64 * 1024 {
                sink(&piece)?;
                total = total.saturating_add(piece.len() as u64);
                piece.clear();
            }
        }
        piece.push(0);
        sink(&piece)?;
        Ok(total.saturating_add(piece.len() as u64))
    }
}

/// A stored index, checked entry by entry while it is walked.
#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    expected_offset: u64,
    last: Pgno,
    finished: bool,
}

/// How far a walk has come.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    expected_offset: u64,
    last: Pgno,
    /// Bytes of the last part that were walked.
    pub walked: usize,
}

impl Default for Mark {
    fn default() -> Mark {
        Mark { expected_offset: HEADER_LEN as u64, last: 0, walked: 0 }
    }
}

impl<'a> Reader<'a> {
    /// Takes the index's varints, without the length field behind them.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, expected_offset: HEADER_LEN as u64, last: 0, finished: false }
    }

    /// Goes on in an index of which only a part is at hand: `bytes` follow what `before` has walked.
    pub fn resume(bytes: &'a [u8], before: Mark) -> Reader<'a> {
        let Mark { expected_offset, last, .. } = before;
        Reader { rest: bytes, expected_offset, last, finished: false }
    }

    /// Walks the entries that are whole in these bytes, which the rest of the index follows. An
    /// end is an error here.
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

    /// Offset just behind the frames walked so far: after the last entry, where the six zero
    /// bytes stand.
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

/// Finds the index from the end of a file: `tail` is the file's last bytes, at least
/// [`TAIL_LEN`] of them; the answer is the index's start offset and its length without the
/// length field.
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

/// Length field and trailer: the least that [`locate`] needs.
pub const TAIL_LEN: usize = INDEX_SIZE_LEN + TRAILER_LEN;

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes one varint off the front; `None` when it is cut off or longer than 64 bits.
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
