//! The file header: 100 bytes.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `LTX1` |
//! | 4 | 4 | flags: 2, no database checksums in the format's own fields |
//! | 8 | 4 | page size in bytes |
//! | 12 | 4 | commit: size of the database in pages after this file |
//! | 16 | 8 | min TXID |
//! | 24 | 8 | max TXID |
//! | 32 | 8 | timestamp, ms since the epoch, signed |
//! | 40 | 8 | pre-apply checksum: 0 |
//! | 48 | 8 | offset in the WAL of the first frame covered, signed |
//! | 56 | 8 | bytes of WAL covered, signed |
//! | 64 | 8 | the WAL's two salts |
//! | 72 | 8 | node id: our writer id |
//! | 80 | 20 | reserved: our tag |
//!
//! Litestream refuses files that use the format's own database checksums. It ignores the node id
//! and the reserved bytes; the file checksum covers both. So our database checksums are in the
//! reserved bytes:
//!
//! | offset | size | field of the tag |
//! |---|---|---|
//! | 80 | 2 | `WF` |
//! | 82 | 1 | version, 1 |
//! | 83 | 1 | bit 0: the file holds every page of the database |
//! | 84 | 8 | database checksum before this file is applied |
//! | 92 | 8 | database checksum after |

use super::checksum::DatabaseChecksum;
use super::error::{Error, corrupt, rule};
use super::{HEADER_LEN, PAGE_HEADER_LEN};
use crate::units::{PageSize, Salts, Timestamp, Txid, WriterId};

const MAGIC: &[u8; 4] = b"LTX1";
const FLAG_NO_CHECKSUM: u32 = 2;
const TAG_MAGIC: &[u8; 2] = b"WF";
const TAG_VERSION: u8 = 1;
const TAG_FULL_IMAGE: u8 = 1;
const WAL_HEADER_LEN: u64 = 32;

/// Our own part of a header. Its checksums prove that one file follows another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// Checksum of the database before this file is applied.
    pub pre_apply: DatabaseChecksum,
    /// Checksum of the database after this file is applied.
    pub post_apply: DatabaseChecksum,
    /// True if the file holds every page of the database, and so needs no predecessor.
    pub full_image: bool,
}

/// A file's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Page size of the database.
    pub page_size: PageSize,
    /// Size of the database in pages after this file.
    pub commit: u32,
    /// First transaction covered, from 1.
    pub min_txid: Txid,
    /// Last transaction covered.
    pub max_txid: Txid,
    /// Commit time of the last transaction.
    pub timestamp: Timestamp,
    /// Byte offset in the WAL of the first frame covered: at least 32 in a file made from a WAL,
    /// 0 in a compacted one.
    pub wal_offset: u64,
    /// Bytes of WAL covered.
    pub wal_size: u64,
    /// Salts of that WAL.
    pub salts: Salts,
    /// Writer of the file; 0 for Litestream.
    pub writer: WriterId,
    /// Our tag; `None` in files of other programs.
    pub tag: Option<Tag>,
}

impl Header {
    /// Checks the rules for the fields and their combinations. Encoder and decoder call this function.
    pub fn validate(&self) -> Result<(), String> {
        if self.min_txid < Txid(1) {
            return Err("min TXID is 0".into());
        }
        if self.max_txid < self.min_txid {
            return Err(format!("max TXID {} below min TXID {}", self.max_txid, self.min_txid));
        }
        if self.commit == 0 {
            return Err("an empty database has no LTX form".into());
        }
        if i64::try_from(self.wal_offset).is_err() || i64::try_from(self.wal_size).is_err() {
            return Err("negative WAL offset or size".into());
        }
        let from_wal = self.wal_size != 0 || self.salts != Salts::default();
        if self.wal_offset == 0 && from_wal {
            return Err("WAL salts or size without a WAL offset".into());
        }
        Ok(())
    }

    /// True if the file's TXID range starts at 1, so that by its name it needs no predecessor.
    pub fn is_snapshot(&self) -> bool {
        self.min_txid == Txid(1)
    }

    /// Returns the number of the last WAL frame covered, if the file was made from a WAL.
    pub fn last_frame(&self) -> Option<u32> {
        let frame_len = u64::from(self.page_size.get()) + 24;
        let end = self.wal_offset.checked_add(self.wal_size)?.checked_sub(WAL_HEADER_LEN)?;
        u32::try_from(end / frame_len).ok()
    }

    /// Returns the header as bytes.
    pub fn encode(&self) -> Result<[u8; HEADER_LEN], Error> {
        if let Err(broken) = self.validate() {
            return rule(broken);
        }
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FLAG_NO_CHECKSUM.to_be_bytes());
        bytes.extend_from_slice(&self.page_size.get().to_be_bytes());
        bytes.extend_from_slice(&self.commit.to_be_bytes());
        bytes.extend_from_slice(&self.min_txid.0.to_be_bytes());
        bytes.extend_from_slice(&self.max_txid.0.to_be_bytes());
        bytes.extend_from_slice(&self.timestamp.0.to_be_bytes());
        bytes.extend_from_slice(&0u64.to_be_bytes());
        bytes.extend_from_slice(&self.wal_offset.to_be_bytes());
        bytes.extend_from_slice(&self.wal_size.to_be_bytes());
        bytes.extend_from_slice(&self.salts.0.to_be_bytes());
        bytes.extend_from_slice(&self.salts.1.to_be_bytes());
        bytes.extend_from_slice(&self.writer.0.to_be_bytes());
        if let Some(tag) = self.tag {
            bytes.extend_from_slice(TAG_MAGIC);
            bytes.push(TAG_VERSION);
            bytes.push(if tag.full_image { TAG_FULL_IMAGE } else { 0 });
            bytes.extend_from_slice(&tag.pre_apply.get().to_be_bytes());
            bytes.extend_from_slice(&tag.post_apply.get().to_be_bytes());
        }
        bytes.resize(HEADER_LEN, 0);
        bytes.try_into().map_err(|_| Error::Rule("a header of another length".into()))
    }

    /// Parses a header and checks every rule.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, Error> {
        let mut fields = Fields(bytes);
        if fields.take::<4>() != *MAGIC {
            return corrupt("it does not begin with LTX1");
        }
        let flags = fields.u32();
        if flags & !FLAG_NO_CHECKSUM != 0 {
            return corrupt(format!("unknown header flags {flags:#x}"));
        }
        let page_size = fields.u32();
        let Some(page_size) = PageSize::new(page_size) else {
            return corrupt(format!("page size {page_size} is not one of SQLite's"));
        };
        let commit = fields.u32();
        let (min_txid, max_txid) = (Txid(fields.u64()), Txid(fields.u64()));
        let timestamp = Timestamp(fields.u64().cast_signed());
        let pre_apply = fields.u64();
        if flags & FLAG_NO_CHECKSUM != 0 && pre_apply != 0 {
            return corrupt("a pre-apply checksum in a file without checksums");
        }
        if flags == 0 && (min_txid > Txid(1)) != (pre_apply >> 63 == 1) {
            return corrupt("the pre-apply checksum does not go with the first TXID");
        }
        let header = Header {
            page_size,
            commit,
            min_txid,
            max_txid,
            timestamp,
            wal_offset: fields.u64(),
            wal_size: fields.u64(),
            salts: Salts(fields.u32(), fields.u32()),
            writer: WriterId(fields.u64()),
            tag: decode_tag(&mut fields),
        };
        match header.validate() {
            Ok(()) => Ok(header),
            Err(broken) => corrupt(broken),
        }
    }
}

/// Returns the tag in the reserved bytes, if they are a tag of a known version. Other bytes are no
/// error: they mean 'no data'.
fn decode_tag(fields: &mut Fields<'_>) -> Option<Tag> {
    let magic = fields.take::<2>();
    let [version, flags] = fields.take::<2>();
    let (pre_apply, post_apply) = (fields.u64(), fields.u64());
    let known = magic == *TAG_MAGIC && version == TAG_VERSION && flags & !TAG_FULL_IMAGE == 0;
    known.then(|| Tag {
        pre_apply: DatabaseChecksum::from_stored(pre_apply),
        post_apply: DatabaseChecksum::from_stored(post_apply),
        full_image: flags & TAG_FULL_IMAGE != 0,
    })
}

/// Reads fields from the front. Fields past the end are zero; a fixed-size header has none.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

/// Returns a page frame's header: page number and flags.
pub(crate) fn page_header(pgno: u32, flags: u16) -> [u8; PAGE_HEADER_LEN] {
    let mut bytes = [0; PAGE_HEADER_LEN];
    let (number, rest) = bytes.split_at_mut(size_of::<u32>());
    number.copy_from_slice(&pgno.to_be_bytes());
    rest.copy_from_slice(&flags.to_be_bytes());
    bytes
}
