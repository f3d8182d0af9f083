//! Reads an LTX file as a stream, page by page, with bounded memory.

use std::io::Read;

use super::checksum::{Checksum, FileDigest};
use super::error::{Error, corrupt, section};
use super::header::Header;
use super::index::{Expected, PIECE};
use super::{HEADER_LEN, INDEX_SIZE_LEN, PAGE_HEADER_LEN, page};
use crate::units::Pgno;

/// Reads header, pages, index and trailer in this order and checks each against the others.
///
/// The decoder returns pages before it knows the file checksum. The pages are valid only once
/// [`Decoder::finish`] has returned `Ok`.
pub struct Decoder<R> {
    input: Counting<R>,
    header: Header,
    digest: FileDigest,
    index: Expected,
    last: Pgno,
    at_end: bool,
    block: Vec<u8>,
    block_len: Option<usize>,
    page: Vec<u8>,
}

/// A decoded page, borrowed from the decoder.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Page number.
    pub pgno: Pgno,
    /// The plain page.
    pub data: &'a [u8],
    /// The page's LZ4 block as stored, unless the file has the older frame encoding.
    pub block: Option<&'a [u8]>,
}

impl<R: Read> Decoder<R> {
    /// Reads and checks the header.
    pub fn new(input: R) -> Result<Decoder<R>, Error> {
        let mut input = Counting { inner: input, count: 0 };
        let mut head = [0; HEADER_LEN];
        section(input.read_exact(&mut head), "header")?;
        let header = Header::decode(&head)?;
        let mut digest = FileDigest::new();
        digest.update(&head);
        Ok(Decoder {
            input,
            header,
            digest,
            index: Expected::new(),
            last: 0,
            at_end: false,
            block: vec![0; page::max_block_len(header.page_size)],
            block_len: None,
            page: vec![0; header.page_size.bytes()],
        })
    }

    /// Returns the file's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the next page, in ascending order; `None` behind the last.
    pub fn next_page(&mut self) -> Result<Option<Page<'_>>, Error> {
        if self.at_end || !self.read_page()? {
            self.at_end = true;
            return Ok(None);
        }
        Ok(Some(Page {
            pgno: self.last,
            data: &self.page,
            block: self.block_len.and_then(|len| self.block.get(..len)),
        }))
    }

    fn read_page(&mut self) -> Result<bool, Error> {
        let start = self.input.count;
        let mut head = [0; PAGE_HEADER_LEN];
        section(self.input.read_exact(&mut head), "page frames")?;
        let (pgno, flags) = page::parse_header(head)?;
        self.digest.update(&head);
        if pgno == 0 {
            return Ok(false);
        }
        if pgno <= self.last {
            return corrupt(format!("page {pgno} after page {}", self.last));
        }
        if pgno > self.header.commit {
            let commit = self.header.commit;
            return corrupt(format!("it holds page {pgno} of a database of {commit} pages"));
        }
        if pgno == self.header.page_size.lock_page() {
            return corrupt(format!("it holds page {pgno}, the lock page"));
        }
        if flags == page::FLAG_BLOCK {
            let mut size = [0; page::BLOCK_SIZE_LEN];
            section(self.input.read_exact(&mut size), "page frames")?;
            self.digest.update(&size);
            let len = u32::from_be_bytes(size) as usize;
            let Some(block) = self.block.get_mut(..len) else {
                return corrupt(format!("page {pgno} claims {len} compressed bytes"));
            };
            section(self.input.read_exact(block), "page frames")?;
            page::expand_block(block, pgno, &mut self.page)?;
            self.block_len = Some(len);
        } else {
            let limit = page::max_frame_len(self.header.page_size) as u64;
            page::expand_frame(&mut (&mut self.input).take(limit), pgno, &mut self.page)?;
            self.block_len = None;
        }
        self.digest.update(&self.page);
        self.index.push(pgno, self.input.count.saturating_sub(start));
        self.last = pgno;
        Ok(true)
    }

    /// Reads the rest of the file. Checks the index against the pages, the file checksum, and that the
    /// file ends behind the trailer.
    pub fn finish(mut self) -> Result<Checksum, Error> {
        while self.next_page()?.is_some() {}
        let stored = self.read_index()?;
        let mut fields = [0; INDEX_SIZE_LEN + 16];
        section(self.input.read_exact(&mut fields), "page index or trailer")?;
        // A valid file has no byte here; this read finds any that follows.
        if (&mut self.input).take(1).read_to_end(&mut Vec::new())? > 0 {
            return corrupt("bytes behind the trailer, or a page index of another length");
        }
        let [a, b, c, d, e, f, g, h, post_apply @ .., _, _, _, _, _, _, _, _] = fields;
        let index_len = [a, b, c, d, e, f, g, h];
        if u64::from_be_bytes(index_len) != self.index.stored_len() {
            return corrupt("the page index does not have the length that it claims");
        }
        stored?;
        self.digest.update(&index_len);
        self.digest.update(&post_apply);
        let computed = self.digest.checksum();
        if !fields.ends_with(&computed.0.to_be_bytes()) {
            return corrupt(format!("its checksum should be {computed}"));
        }
        Ok(computed)
    }

    /// Reads as many bytes as the index of these pages has. The inner error says that the stored index
    /// does not match the pages.
    fn read_index(&mut self) -> Result<Result<(), Error>, Error> {
        let (mut stored, mut found) = (self.index.stored(), Ok(()));
        let mut left = self.index.stored_len();
        let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
        while left > 0 {
            piece.truncate(usize::try_from(left).unwrap_or(PIECE));
            section(self.input.read_exact(&mut piece), "page index or trailer")?;
            self.digest.update(&piece);
            left = left.saturating_sub(piece.len() as u64);
            found = found.and_then(|()| stored.take(&piece, left == 0));
        }
        let other = || corrupt("the page index does not match the pages");
        Ok(match found {
            Ok(()) if self.index.is(&stored) => Ok(()),
            // `Truncated` here is no short file: all bytes of the index were read.
            Ok(()) | Err(Error::Truncated(_)) => other(),
            Err(error) => Err(error),
        })
    }
}

struct Counting<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count = self.count.saturating_add(n as u64);
        Ok(n)
    }
}
