//! One page frame.
//!
//! Block encoding (ours, and Litestream's from 0.5.16): page number (4), flags 1 (2), length n (4),
//! then n bytes of one raw LZ4 block. Frame encoding (Litestream 0.5.0 to 0.5.15): page number (4),
//! flags 0 (2), then one complete LZ4 frame. Only the index gives the length of that LZ4 frame.
//!
//! The file checksum covers the page frame's header, the length field of the block encoding, and the
//! page's plain bytes. The checksum does not cover the compressed bytes.

use std::io::{self, Read};

use super::checksum::FileDigest;
use super::error::{Error, corrupt};
use super::lz4::{self, End, Tail};
use super::{PAGE_HEADER_LEN, header};
use crate::units::{PageSize, Pgno};

/// Flag of a page stored as a size-prefixed LZ4 block.
pub const FLAG_BLOCK: u16 = 1;

/// Length of the size prefix of a block in bytes.
pub const BLOCK_SIZE_LEN: usize = 4;

/// Value of the three block-size bits (mask 0x70) in an LZ4 frame's sixth byte: blocks of at most 64 KiB.
const LZ4_BLOCKS_OF_64K: u8 = 0x40;

/// Returns the length of the longest LZ4 block that a page can need: one literal run (LZ4 block format
/// description).
pub fn max_block_len(page_size: PageSize) -> usize {
    let page = page_size.bytes();
    page.saturating_add(page / 255).saturating_add(16)
}

/// Returns the length of the longest LZ4 frame accepted for a page: [`max_block_len`], plus ample room
/// for frame header, checksums and content size.
pub fn max_frame_len(page_size: PageSize) -> usize {
    max_block_len(page_size).saturating_add(64)
}

/// Returns the length of the longest page frame of either encoding, header included.
pub fn max_page_frame_len(page_size: PageSize) -> usize {
    max_frame_len(page_size).saturating_add(PAGE_HEADER_LEN + BLOCK_SIZE_LEN)
}

/// Returns the length of the shortest page frame of either encoding, header included. One byte of an
/// LZ4 block expands to at most 255 bytes of the page, so a file's length limits its expanded size.
pub fn min_page_frame_len(page_size: PageSize) -> u64 {
    let least = page_size.bytes() / 255;
    least.saturating_add(PAGE_HEADER_LEN + BLOCK_SIZE_LEN) as u64
}

/// Splits a frame's header into page number and flags.
pub fn parse_header(bytes: [u8; PAGE_HEADER_LEN]) -> Result<(Pgno, u16), Error> {
    let [a, b, c, d, flags @ ..] = bytes;
    let (pgno, flags) = (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes(flags));
    if flags & !FLAG_BLOCK != 0 || (pgno == 0 && flags != 0) {
        return corrupt(format!("page {pgno} has unknown flags {flags:#x}"));
    }
    Ok((pgno, flags))
}

/// Expands a raw LZ4 block to exactly one page.
pub fn expand_block(block: &[u8], pgno: Pgno, page: &mut [u8]) -> Result<(), Error> {
    match lz4_flex::block::decompress_into(block, page) {
        Ok(n) if n == page.len() => Ok(()),
        Ok(n) => corrupt(format!("page {pgno} expands to {n} bytes, not {}", page.len())),
        Err(error) => corrupt(format!("page {pgno} does not expand: {error}")),
    }
}

/// Expands one LZ4 frame to exactly one page, and leaves `input` just behind the frame.
///
/// Accepts only frames of blocks up to 64 KiB, as Litestream writes them. The decoder allocates buffers
/// of the size that the frame claims, and the largest page has 64 KiB.
pub fn expand_frame(input: &mut impl Read, pgno: Pgno, page: &mut [u8]) -> Result<(), Error> {
    let bad = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated("page frames"),
        _ => Error::Corrupt(format!("page {pgno} does not expand: {error}")),
    };
    let mut head = [0; 6];
    input.read_exact(&mut head).map_err(bad)?;
    let [magic @ .., _, sizes] = head;
    if magic != lz4::MAGIC || sizes & 0x70 != LZ4_BLOCKS_OF_64K {
        return corrupt(format!("page {pgno} is no LZ4 frame of blocks of 64 KiB"));
    }
    let mut input = Tail::new(input);
    let mut frame = lz4_flex::frame::FrameDecoder::new(head.chain(&mut input));
    frame.read_exact(page).map_err(bad)?;
    let before = frame.get_mut().get_mut().1.count();
    // This read consumes the end mark and the content checksum, and must return no more data.
    if frame.read(&mut [0]).map_err(bad)? != 0 {
        return corrupt(format!("page {pgno} expands to more than {} bytes", page.len()));
    }
    match input.end(before) {
        End::Mark | End::Checksum => Ok(()),
        End::Early => Err(Error::Truncated("page frames")),
        End::Other => corrupt(format!("page {pgno} has an LZ4 frame without an end")),
    }
}

/// Decodes one whole page frame from memory into `page` and adds it to the file's digest.
///
/// `expected` is the page number that the index gives for these bytes.
pub fn decode(
    bytes: &[u8],
    expected: Pgno,
    page: &mut [u8],
    digest: &mut FileDigest,
) -> Result<(), Error> {
    let Some((head, body)) = bytes.split_first_chunk::<PAGE_HEADER_LEN>() else {
        return Err(Error::Truncated("page frames"));
    };
    let (pgno, flags) = parse_header(*head)?;
    if pgno != expected {
        return corrupt(format!("the index names page {expected} where page {pgno} is stored"));
    }
    digest.update(head);
    if flags == FLAG_BLOCK {
        let Some((size, block)) = body.split_first_chunk::<BLOCK_SIZE_LEN>() else {
            return Err(Error::Truncated("page frames"));
        };
        if u32::from_be_bytes(*size) as usize != block.len() {
            return corrupt(format!("the index gives page {pgno} another length than its frame"));
        }
        digest.update(size);
        expand_block(block, pgno, page)?;
    } else {
        let mut rest = body;
        expand_frame(&mut rest, pgno, page)?;
        if !rest.is_empty() {
            return corrupt(format!("the index gives page {pgno} another length than its frame"));
        }
    }
    digest.update(page);
    Ok(())
}

/// Returns the bytes before a block: header and size prefix.
pub(crate) fn block_prefix(pgno: Pgno, block_len: u32) -> [u8; PAGE_HEADER_LEN + BLOCK_SIZE_LEN] {
    let mut bytes = [0; PAGE_HEADER_LEN + BLOCK_SIZE_LEN];
    let (head, len) = bytes.split_at_mut(PAGE_HEADER_LEN);
    head.copy_from_slice(&header::page_header(pgno, FLAG_BLOCK));
    len.copy_from_slice(&block_len.to_be_bytes());
    bytes
}
