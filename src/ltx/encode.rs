//! Writes an LTX file in one pass.
//!
//! The header comes first in the file and holds the checksum of the resulting database, which is
//! known last. So the encoder writes everything behind the header, and returns the header at the
//! end. The caller puts the header in front: in a file by a positional write, in a multipart upload
//! by sending the first part last. The file checksum joins the digests of the two stretches.

use std::io::Write;

use super::checksum::{Checksum, FileDigest};
use super::error::{Error, rule};
use super::header::Header;
use super::index::{Builder, Emission};
use super::{HEADER_LEN, INDEX_SIZE_LEN, PAGE_HEADER_LEN, TRAILER_LEN, page};
use crate::scratch::Place;
use crate::units::{PageSize, Pgno};

/// Result of [`Encoder::finish`].
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    /// The first hundred bytes of the file.
    pub header: [u8; HEADER_LEN],
    /// Length of the whole file in bytes, header included.
    pub len: u64,
    /// The file's checksum, as in its last eight bytes.
    pub file_checksum: Checksum,
    /// Number of pages in the file.
    pub pages: u64,
}

/// Writes page frames, index and trailer to `W`, which stands at offset 100 of the file.
pub struct Encoder<W> {
    out: W,
    page_size: PageSize,
    digest: FileDigest,
    index: Builder,
    last: Pgno,
    len: u64,
    pages: u64,
    block: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// Starts a file of pages of this size. Keeps the index in memory until the end, at three to four
    /// bytes a page.
    pub fn new(out: W, page_size: PageSize) -> Encoder<W> {
        Encoder::with_index(out, page_size, Builder::default())
    }

    /// As [`Encoder::new`], but spills the index to `place`, so that memory use does not grow with the
    /// number of pages.
    pub fn spilling(out: W, page_size: PageSize, place: Place) -> Encoder<W> {
        Encoder::with_index(out, page_size, Builder::spilling(place))
    }

    fn with_index(out: W, page_size: PageSize, index: Builder) -> Encoder<W> {
        Encoder {
            out,
            page_size,
            digest: FileDigest::new(),
            index,
            last: 0,
            len: HEADER_LEN as u64,
            pages: 0,
            // The compressor requires more room than it ever fills; see `Encoder::block`.
            block: vec![0; lz4_flex::block::get_maximum_output_size(page_size.bytes())],
        }
    }

    /// Returns the length of the file so far in bytes, header included.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if no page was written yet.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Returns the writer underneath, so that the caller can take the bytes written so far.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Compresses and writes a page. Pages must ascend; the lock page is an error.
    pub fn page(&mut self, pgno: Pgno, data: &[u8]) -> Result<(), Error> {
        let mut block = std::mem::take(&mut self.block);
        let result = match lz4_flex::block::compress_into(data, &mut block) {
            Ok(len) => self.block(pgno, block.get(..len).unwrap_or_default(), data),
            Err(error) => rule(format!("page {pgno} does not compress: {error}")),
        };
        self.block = block;
        result
    }

    /// Writes a page with its compressed block; `data` is the plain page.
    pub fn block(&mut self, pgno: Pgno, block: &[u8], data: &[u8]) -> Result<(), Error> {
        if pgno <= self.last {
            return rule(format!("page {pgno} after page {}", self.last));
        }
        if pgno == self.page_size.lock_page() {
            return rule(format!("page {pgno}, the lock page"));
        }
        if data.len() != self.page_size.bytes() {
            return rule(format!("a page of {} bytes", data.len()));
        }
        // Readers refuse a block longer than one literal run.
        let block_len = match u32::try_from(block.len()) {
            Ok(len) if block.len() <= page::max_block_len(self.page_size) => len,
            _ => return rule(format!("a block of {} bytes", block.len())),
        };
        let prefix = page::block_prefix(pgno, block_len);
        self.digest.update(&prefix);
        self.digest.update(data);
        self.out.write_all(&prefix)?;
        self.out.write_all(block)?;
        let frame_len = (prefix.len() as u64).saturating_add(u64::from(block_len));
        self.index.push(pgno, frame_len)?;
        self.last = pgno;
        self.len = self.len.saturating_add(frame_len);
        self.pages = self.pages.saturating_add(1);
        Ok(())
    }

    /// Writes index and trailer, and returns the header to put in front.
    pub fn finish(self, header: &Header) -> Result<(W, Encoded), Error> {
        let mut ending = self.end(header)?;
        while ending.step()? {}
        ending.finish()
    }

    /// Writes the end of the pages. The returned [`Ending`] writes the index piece by piece.
    pub fn end(self, header: &Header) -> Result<Ending<W>, Error> {
        let Encoder { mut out, page_size, mut digest, index, last, len, pages, .. } = self;
        if header.page_size != page_size {
            return rule("a header of another page size");
        }
        if last > header.commit {
            return rule(format!("page {last} in a database of {} pages", header.commit));
        }
        let header = header.encode()?;
        digest.update(&[0; PAGE_HEADER_LEN]);
        out.write_all(&[0; PAGE_HEADER_LEN])?;
        let len = len.saturating_add(PAGE_HEADER_LEN as u64);
        Ok(Ending { out, header, digest, index: index.emission(), index_len: 0, len, pages })
    }
}

/// A file with all pages written, and index and trailer still to come.
pub struct Ending<W> {
    out: W,
    header: [u8; HEADER_LEN],
    digest: FileDigest,
    index: Emission,
    index_len: u64,
    len: u64,
    pages: u64,
}

impl<W: Write> Ending<W> {
    /// Returns the writer underneath, so that the caller can take the bytes written so far.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes the next piece of the index, at most about 64 KiB. Returns `false` if the whole index was
    /// written already.
    pub fn step(&mut self) -> Result<bool, Error> {
        let Some(piece) = self.index.piece()? else { return Ok(false) };
        self.digest.update(piece);
        self.out.write_all(piece)?;
        self.index_len = self.index_len.saturating_add(piece.len() as u64);
        Ok(true)
    }

    /// Writes the trailer and returns the header to put in front. Call this when [`Ending::step`] has
    /// returned `false`.
    pub fn finish(self) -> Result<(W, Encoded), Error> {
        let Ending { mut out, header, mut digest, index_len, len, pages, .. } = self;
        for field in [index_len, 0] {
            digest.update(&field.to_be_bytes());
            out.write_all(&field.to_be_bytes())?;
        }
        let mut front = FileDigest::new();
        front.update(&header);
        let file_checksum = front.digested().then(digest.digested()).checksum();
        out.write_all(&file_checksum.0.to_be_bytes())?;
        let end = (INDEX_SIZE_LEN + TRAILER_LEN) as u64;
        let len = len.saturating_add(index_len).saturating_add(end);
        Ok((out, Encoded { header, len, file_checksum, pages }))
    }
}

/// Writes a whole file to memory, for small files and tests. Pages must ascend.
pub fn to_vec<'a>(
    header: &Header,
    pages: impl IntoIterator<Item = (Pgno, &'a [u8])>,
) -> Result<Vec<u8>, Error> {
    let mut encoder = Encoder::new(vec![0; HEADER_LEN], header.page_size);
    for (pgno, data) in pages {
        encoder.page(pgno, data)?;
    }
    let (mut bytes, encoded) = encoder.finish(header)?;
    if let Some(front) = bytes.first_chunk_mut::<HEADER_LEN>() {
        *front = encoded.header;
    }
    Ok(bytes)
}
