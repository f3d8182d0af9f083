//! An LTX encoder without scruples: every field may lie, and the checksums are right nevertheless.

use walferry::ltx::DatabaseChecksum;
use walferry::ltx::checksum::FileDigest;
use walferry::units::{PageSize, Pgno};

use super::page_of;

/// Anything that looks like an LTX file. What is not said otherwise is right, whatever the lies
/// around it: checksums are made last.
#[derive(Clone)]
pub struct Raw {
    pub magic: [u8; 4],
    pub flags: u32,
    pub page_size: u32,
    pub commit: u32,
    pub min: u64,
    pub max: u64,
    pub timestamp: i64,
    pub pre_apply: u64,
    pub wal_offset: i64,
    /// Database checksums before and after, and whether the image is full.
    pub tag: Option<(DatabaseChecksum, DatabaseChecksum, bool)>,
    pub frames: Vec<Frame>,
    /// Page number, offset and length of each entry; else what the frames say.
    pub index: Option<Vec<[u64; 3]>>,
    /// Bytes in the place of the index.
    pub index_bytes: Option<Vec<u8>>,
    pub index_len: Option<u64>,
    pub end_of_pages: [u8; 6],
    /// Exclusive or onto the file checksum.
    pub checksum_error: u64,
}

#[derive(Clone)]
pub struct Frame {
    pub pgno: Pgno,
    /// Header, and size prefix if there is one: what the checksum covers as it is.
    pub prefix: Vec<u8>,
    pub stored: Vec<u8>,
    pub plain: Vec<u8>,
}

impl Frame {
    /// A page in the block encoding.
    pub fn new(pgno: Pgno, plain: &[u8]) -> Frame {
        Frame::of_block(pgno, lz4_flex::block::compress(plain), plain)
    }

    pub fn of_block(pgno: Pgno, stored: Vec<u8>, plain: &[u8]) -> Frame {
        let len = (stored.len() as u32).to_be_bytes();
        let prefix = [&pgno.to_be_bytes()[..], &1u16.to_be_bytes(), &len].concat();
        Frame { pgno, prefix, stored, plain: plain.to_vec() }
    }

    /// A page in the older encoding, where this stands for an LZ4 frame.
    pub fn of_frame(pgno: Pgno, stored: &[u8], plain: &[u8]) -> Frame {
        let prefix = [&pgno.to_be_bytes()[..], &0u16.to_be_bytes()].concat();
        Frame { pgno, prefix, stored: stored.to_vec(), plain: plain.to_vec() }
    }

    pub fn len(&self) -> u64 {
        (self.prefix.len() + self.stored.len()) as u64
    }
}

impl Raw {
    /// A file of pages of 512 bytes as of its last TXID.
    pub fn new(min: u64, max: u64, commit: u32, pages: &[Pgno]) -> Raw {
        let page =
            |pgno: &Pgno| Frame::new(*pgno, &page_of(*pgno, max, PageSize::new(512).unwrap()));
        Raw {
            magic: *b"LTX1",
            flags: 2,
            page_size: 512,
            commit,
            min,
            max,
            timestamp: 1_795_351_714_201,
            pre_apply: 0,
            wal_offset: 0,
            tag: None,
            frames: pages.iter().map(page).collect(),
            index: None,
            index_bytes: None,
            index_len: None,
            end_of_pages: [0; 6],
            checksum_error: 0,
        }
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::from(self.magic);
        for field in [self.flags, self.page_size, self.commit] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        let timestamp = self.timestamp.cast_unsigned();
        let wal_offset = self.wal_offset.cast_unsigned();
        for field in [self.min, self.max, timestamp, self.pre_apply, wal_offset] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        bytes.resize(80, 0);
        if let Some((before, after, full)) = self.tag {
            bytes.extend_from_slice(&[b'W', b'F', 1, u8::from(full)]);
            bytes.extend_from_slice(&before.get().to_be_bytes());
            bytes.extend_from_slice(&after.get().to_be_bytes());
        }
        bytes.resize(100, 0);
        bytes
    }

    pub fn entries(&self) -> Vec<[u64; 3]> {
        let mut offset = 100;
        let entry = |frame: &Frame| {
            let entry = [u64::from(frame.pgno), offset, frame.len()];
            offset += frame.len();
            entry
        };
        self.frames.iter().map(entry).collect()
    }

    /// The index, its length, and the empty checksum behind it.
    pub fn index(&self) -> Vec<u8> {
        let mut bytes = self.index_bytes.clone().unwrap_or_else(|| {
            let entries = self.index.clone().unwrap_or_else(|| self.entries());
            let mut bytes = Vec::new();
            entries.concat().iter().for_each(|value| put_varint(&mut bytes, *value));
            bytes.push(0);
            bytes
        });
        let len = self.index_len.unwrap_or(bytes.len() as u64);
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (mut bytes, index) = (self.header(), self.index());
        let mut digest = FileDigest::new();
        digest.update(&bytes);
        for frame in &self.frames {
            bytes.extend_from_slice(&frame.prefix);
            bytes.extend_from_slice(&frame.stored);
            digest.update(&frame.prefix);
            digest.update(&frame.plain);
        }
        for part in [&self.end_of_pages[..], &index] {
            bytes.extend_from_slice(part);
            digest.update(part);
        }
        let sum = digest.checksum().0 ^ self.checksum_error;
        bytes.extend_from_slice(&sum.to_be_bytes());
        bytes
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
