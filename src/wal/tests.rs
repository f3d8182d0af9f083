//! Tests of the WAL's layout, on bytes made by hand.

use super::*;
use crate::units::{PageSize, Salts};

fn frame(pgno: u32, commit: u32, fill: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [pgno, commit, 7, 8, u32::from(fill), 2] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    bytes.extend_from_slice(&[fill; 512]);
    bytes
}

fn wal(frames: &[(u32, u32, u8)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [0x377f_0682u32, 3_007_000, 512, 0, 7, 8, 0, 0] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    for (pgno, commit, fill) in frames {
        bytes.extend_from_slice(&frame(*pgno, *commit, *fill));
    }
    bytes
}

fn page_size() -> PageSize {
    PageSize::new(512).unwrap()
}

#[test]
fn the_newest_frame_of_each_page_wins() {
    let bytes = wal(&[(1, 0, 1), (2, 2, 2), (1, 0, 3), (3, 3, 4), (9, 0, 5)]);
    let mut set = FrameSet::default();
    set.extend(bytes.as_slice(), page_size(), 1, 2).unwrap();
    set.extend(bytes.as_slice(), page_size(), 1, 4).unwrap();
    assert!(set.newest.iter().map(Result::unwrap).eq([(1, 3), (2, 2), (3, 4)]));
    assert_eq!((set.first, set.last, set.commit), (1, 4, 3));
    assert_eq!(set.checksum, (4, 2));
    let mut page = [0; 512];
    read_frame_page(bytes.as_slice(), page_size(), 3, &mut page).unwrap();
    assert_eq!(page, [3; 512]);
}

#[test]
fn page_numbers_from_the_wal_index_give_the_same_set() {
    let bytes = wal(&[(1, 0, 1), (2, 2, 2), (1, 0, 3), (3, 3, 4)]);
    let (mut read, mut known) = (FrameSet::default(), FrameSet::default());
    read.extend(bytes.as_slice(), page_size(), 1, 4).unwrap();
    let mut extend = |frames, pages: &[u32]| {
        known.extend_known(bytes.as_slice(), page_size(), frames, |_, _| Some(pages.to_vec()))
    };
    extend((1, 2), &[1, 2]).unwrap();
    extend((3, 4), &[1, 3]).unwrap();
    for (frames, wrong) in [((3, 4), [1, 2].as_slice()), ((3, 4), &[0, 3]), ((3, 3), &[1])] {
        assert!(extend(frames, wrong).is_err(), "{wrong:?}");
    }
    assert!(extend((3, 4), &[3]).is_err() && extend((3, 4), &[7, 1, 3]).is_err());
    let none = known.extend_known(bytes.as_slice(), page_size(), (3, 4), |_, _| None);
    assert!(none.is_err());
    assert_eq!(known, read);
}

#[test]
fn a_cut_off_wal_changes_nothing() {
    let bytes = wal(&[(1, 0, 1), (2, 2, 2)]);
    let mut set = FrameSet::default();
    assert!(set.extend(bytes.as_slice(), page_size(), 1, 3).is_err());
    assert!(set.is_empty());
}

#[test]
fn headers() {
    let bytes = wal(&[(5, 9, 1)]);
    let header = WalHeader::read(bytes.as_slice()).unwrap();
    assert_eq!(header, WalHeader { page_size: page_size(), salts: Salts(7, 8) });
    let frame = FrameHeader::read(bytes.as_slice(), page_size(), 1).unwrap();
    assert_eq!((frame.pgno, frame.commit, frame.salts), (5, 9, Salts(7, 8)));
    assert!(WalHeader::read([0u8; 32].as_slice()).is_none());
    assert!(WalHeader::read([0u8; 3].as_slice()).is_none());
}

#[test]
fn wal_index_copies_must_agree() {
    let mut copy = [0u8; WalIndex::LEN];
    copy[0..4].copy_from_slice(&3_007_000u32.to_ne_bytes());
    copy[8..12].copy_from_slice(&5u32.to_ne_bytes());
    copy[12] = 1;
    copy[14..16].copy_from_slice(&1u16.to_ne_bytes());
    copy[16..20].copy_from_slice(&77u32.to_ne_bytes());
    copy[24..28].copy_from_slice(&9u32.to_ne_bytes());
    copy[28..32].copy_from_slice(&10u32.to_ne_bytes());
    copy[32..36].copy_from_slice(&0x0102_0304u32.to_be_bytes());
    seal(&mut copy);
    let mut both = [0u8; 2 * WalIndex::LEN];
    both[..WalIndex::LEN].copy_from_slice(&copy);
    assert_eq!(WalIndex::parse_both(&both), None);
    both[WalIndex::LEN..].copy_from_slice(&copy);
    let index = WalIndex::parse_both(&both).unwrap();
    assert_eq!((index.change, index.max_frame, index.page_size.get()), (5, 77, 65536));
    assert_eq!((index.salts, index.frame_checksum), (Salts(0x0102_0304, 0), (9, 10)));
    both[12] = 0;
    assert_eq!(WalIndex::parse_both(&both), None, "the copies differ");
    copy[12] = 0;
    seal(&mut copy);
    assert_eq!(WalIndex::parse(&copy), None, "not initialised");
}

fn seal(copy: &mut [u8; WalIndex::LEN]) {
    let sum = WalIndex::checksum(copy);
    copy[40..44].copy_from_slice(&sum.0.to_ne_bytes());
    copy[44..48].copy_from_slice(&sum.1.to_ne_bytes());
}

/// A wal-index header as SQLite 3.40.1 wrote it after three frames with pages of 512 bytes, on a
/// little-endian machine.
#[cfg(target_endian = "little")]
const HEADER: [u8; WalIndex::LEN] = [
    0x18, 0xe2, 0x2d, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x02,
    0x03, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x13, 0xf0, 0x27, 0xc9, 0x73, 0x7e, 0xe2, 0x5a,
    0xa1, 0xe9, 0x9d, 0xb9, 0x31, 0xbe, 0x71, 0x38, 0xa1, 0x4f, 0xe8, 0xbc, 0x72, 0x08, 0x28, 0x27,
];

#[cfg(target_endian = "little")]
#[test]
fn the_size_is_taken_out_of_the_index_of_an_empty_wal_alone() {
    assert_eq!(WalIndex::without_size(&HEADER), None, "the WAL has frames");
    let mut empty = HEADER;
    empty[16] = 0;
    assert_eq!(
        WalIndex::without_size(&empty),
        None,
        "the header does not stand up to its checksum"
    );
    seal(&mut empty);
    let without = WalIndex::without_size(&empty).unwrap();
    let before = WalIndex::parse(&empty).unwrap();
    assert_eq!(before.page_count, 2);
    assert_eq!(WalIndex::parse(&without), Some(WalIndex { page_count: 0, ..before }));
    assert_eq!(without[..20], empty[..20]);
    assert_eq!(without[24..40], empty[24..40]);
}

#[cfg(target_endian = "little")]
#[test]
fn a_wal_index_that_is_torn_in_both_copies_is_refused() {
    let index = WalIndex::parse(&HEADER).unwrap();
    assert_eq!((index.change, index.max_frame, index.page_count), (2, 3, 2));
    assert_eq!(index.frame_checksum, (0xc927_f013, 0x5ae2_7e73));
    for at in 0..WalIndex::LEN {
        let mut torn = HEADER;
        torn[at] ^= 0x10;
        assert_eq!(WalIndex::parse(&torn), None, "byte {at}");
        let both = [torn, torn].concat().try_into().unwrap();
        assert_eq!(WalIndex::parse_both(&both), None, "byte {at}");
    }
}
