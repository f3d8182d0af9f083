//! Tests of the codec as a whole: real files of Litestream, round trips, damage, hostile lengths.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::encode::to_vec;
use super::index::{Builder, Entry, Reader, locate, put_varint, take_varint};
use super::merge::merge;
use super::*;
use crate::units::{PageSize, Pgno, Salts, Timestamp, Txid, WriterId};

type Pages = Vec<(Pgno, Vec<u8>)>;

fn decode(bytes: &[u8]) -> Result<(Header, Pages), Error> {
    let mut decoder = Decoder::new(bytes)?;
    let header = *decoder.header();
    let mut pages = Vec::new();
    while let Some(page) = decoder.next_page()? {
        pages.push((page.pgno, page.data.to_vec()));
    }
    decoder.finish()?;
    Ok((header, pages))
}

fn encode(header: &Header, pages: &Pages) -> Result<Vec<u8>, Error> {
    to_vec(header, pages.iter().map(|(pgno, data)| (*pgno, data.as_slice())))
}

fn size(bytes: u32) -> PageSize {
    PageSize::new(bytes).unwrap()
}

fn header(commit: u32) -> Header {
    Header {
        page_size: size(512),
        commit,
        min_txid: Txid(2),
        max_txid: Txid(3),
        timestamp: Timestamp(1_795_351_714_201),
        wal_offset: 32,
        wal_size: 536,
        salts: Salts(0xb273_579e, 0xd428_4371),
        writer: WriterId(7),
        tag: Some(Tag {
            pre_apply: DatabaseChecksum::from_stored(5),
            post_apply: DatabaseChecksum::from_stored(6),
            full_image: false,
        }),
    }
}

/// Returns a page whose bytes compress a little and differ by number and version.
fn page_of(pgno: Pgno, version: u32, len: usize) -> Vec<u8> {
    let mut seed = pgno.wrapping_mul(0x9e37_79b9) ^ version.wrapping_mul(0x85eb_ca6b);
    (0..len)
        .map(|i| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if i % 8 < 5 { pgno as u8 } else { (seed >> 24) as u8 }
        })
        .collect()
}

fn golden_files() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "ltx") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), &mut found);
    found.sort();
    found
}

#[test]
fn files_of_litestream_decode_and_survive_our_encoder() {
    let files = golden_files();
    assert!(files.len() >= 28, "only {} files in tests/golden", files.len());
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        let (header, pages) = decode(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = FileName::parse(path.file_name().unwrap().to_str().unwrap()).unwrap();
        assert_eq!((header.min_txid, header.max_txid), (name.min, name.max), "{}", path.display());
        assert!(header.tag.is_none() && !pages.is_empty());
        let again = encode(&header, &pages).unwrap();
        assert_eq!(decode(&again).unwrap(), (header, pages), "{}", path.display());
    }
}

#[test]
fn both_page_encodings_are_among_the_golden_files() {
    let mut seen = [false; 2];
    for path in golden_files() {
        let bytes = std::fs::read(&path).unwrap();
        let mut decoder = Decoder::new(bytes.as_slice()).unwrap();
        seen[usize::from(decoder.next_page().unwrap().unwrap().block.is_some())] = true;
    }
    assert_eq!(seen, [true, true]);
}

#[test]
fn random_access_finds_the_same_pages_as_the_stream() {
    for path in golden_files() {
        let bytes = std::fs::read(&path).unwrap();
        let (header, pages) = decode(&bytes).unwrap();
        let (start, len) = locate(bytes.len() as u64, &bytes).unwrap();
        let mut reader = Reader::new(&bytes[start as usize..(start + len) as usize]);
        let mut page = vec![0; header.page_size.bytes()];
        let mut digest = checksum::FileDigest::new();
        digest.update(&bytes[..HEADER_LEN]);
        for (pgno, data) in &pages {
            let entry = reader.next().unwrap().unwrap();
            let frame = &bytes[entry.offset as usize..(entry.offset + entry.len) as usize];
            page::decode(frame, *pgno, &mut page, &mut digest).unwrap();
            assert_eq!(&page, data);
            assert!(page::decode(frame, *pgno + 1, &mut page, &mut digest.clone()).is_err());
        }
        assert!(reader.next().is_none());
        assert_eq!(reader.end_offset() + PAGE_HEADER_LEN as u64, start);
        digest.update(&bytes[start as usize - PAGE_HEADER_LEN..bytes.len() - 8]);
        assert_eq!(digest.checksum().0.to_be_bytes(), bytes[bytes.len() - 8..]);
    }
}

/// Asserts that a valid header, after `change`, is legal or refused.
fn check_header(change: impl Fn(&mut Header), legal: bool) {
    let mut changed = header(9);
    change(&mut changed);
    match changed.encode() {
        Ok(bytes) => {
            assert!(legal, "{changed:?} was encoded");
            assert_eq!(Header::decode(&bytes).unwrap(), changed);
        }
        Err(error) => assert!(!legal && matches!(error, Error::Rule(_)), "{changed:?}: {error}"),
    }
}

#[test]
fn header_round_trip() {
    check_header(|_| (), true);
    for bytes in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        check_header(|header| header.page_size = size(bytes), true);
    }
    check_header(|header| header.commit = u32::MAX, true);
    check_header(|header| header.commit = 0, false);
    check_header(|header| header.min_txid = Txid(0), false);
    check_header(|header| header.min_txid = Txid(1), true);
    check_header(|header| header.min_txid = Txid(4), false);
    check_header(
        |header| (header.min_txid, header.max_txid) = (Txid(u64::MAX), Txid(u64::MAX)),
        true,
    );
    check_header(|header| header.timestamp = Timestamp(i64::MIN), true);
    check_header(|header| header.timestamp = Timestamp(-1), true);
    check_header(|header| header.wal_offset = 0, false);
    check_header(|header| (header.wal_offset, header.wal_size) = (0, 0), false);
    check_header(
        |header| (header.wal_offset, header.wal_size, header.salts) = (0, 0, Salts(0, 0)),
        true,
    );
    check_header(
        |header| (header.wal_offset, header.wal_size, header.salts) = (0, 0, Salts(0, 1)),
        false,
    );
    check_header(|header| (header.wal_size, header.salts) = (0, Salts(0, 0)), true);
    check_header(|header| header.wal_offset = i64::MAX as u64, true);
    check_header(|header| header.wal_offset = 1 << 63, false);
    check_header(|header| header.wal_size = u64::MAX, false);
    check_header(|header| header.writer = WriterId(0), true);
    check_header(|header| header.tag = None, true);
    check_header(|header| header.tag.as_mut().unwrap().full_image = true, true);
}

/// Overwrites bytes of an encoded header. Asserts that a reader finds a tag, or none, or (with `None`)
/// refuses the header.
fn check_header_bytes(changes: &[(usize, &[u8])], tag_expected: Option<bool>) {
    let mut bytes = header(9).encode().unwrap();
    for (at, with) in changes {
        bytes[*at..*at + with.len()].copy_from_slice(with);
    }
    match (Header::decode(&bytes), tag_expected) {
        (Ok(header), Some(tag)) => assert_eq!(header.tag.is_some(), tag, "{changes:?}"),
        (Err(Error::Corrupt(_)), None) => {}
        (result, expected) => panic!("{changes:?}: {result:?}, expected {expected:?}"),
    }
}

#[test]
fn header_bytes_that_no_encoder_of_ours_writes() {
    check_header_bytes(&[], Some(true));
    check_header_bytes(&[(0, b"LTX2")], None);
    for flags in [1, 3, 4, 0x8000_0002u32] {
        check_header_bytes(&[(4, &flags.to_be_bytes())], None);
    }
    for page_size in [0, 1, 256, 513, 1 << 17, u32::MAX] {
        check_header_bytes(&[(8, &page_size.to_be_bytes())], None);
    }
    let (one, pre) = (1u64.to_be_bytes(), (1u64 << 63).to_be_bytes());
    check_header_bytes(&[(40, &one)], None);
    check_header_bytes(&[(40, &pre)], None);
    // The format's own checksums: compulsory on increments, forbidden on snapshots.
    check_header_bytes(&[(4, &[0; 4])], None);
    check_header_bytes(&[(4, &[0; 4]), (40, &one)], None);
    check_header_bytes(&[(4, &[0; 4]), (40, &pre)], Some(true));
    check_header_bytes(&[(4, &[0; 4]), (16, &one), (40, &pre)], None);
    check_header_bytes(&[(4, &[0; 4]), (16, &one)], Some(true));
    // Reserved bytes of another program are no data, not an error.
    check_header_bytes(&[(80, b"XX")], Some(false));
    check_header_bytes(&[(82, &[2])], Some(false));
    check_header_bytes(&[(83, &[2])], Some(false));
    check_header_bytes(&[(80, &[0; 20])], Some(false));
    check_header_bytes(&[(48, &[0xff])], None);
    check_header_bytes(&[(56, &[0xff])], None);
}

/// Returns small files of every kind for the tests of damage.
fn specimens() -> Vec<(String, Vec<u8>)> {
    let pages: Pages = [1, 2, 5].map(|pgno| (pgno, page_of(pgno, 0, 512))).into();
    let mut specimens = vec![
        ("ours".to_string(), encode(&header(9), &pages).unwrap()),
        ("no pages".to_string(), encode(&header(9), &Vec::new()).unwrap()),
    ];
    for path in golden_files() {
        let bytes = std::fs::read(&path).unwrap();
        if bytes.len() < 300 {
            specimens.push((path.display().to_string(), bytes));
        }
    }
    specimens
}

#[test]
fn every_truncation_and_every_extension_is_refused() {
    for (name, bytes) in specimens() {
        for len in 0..bytes.len() {
            let error = decode(&bytes[..len]).expect_err(&format!("{name} cut to {len} bytes"));
            assert!(matches!(error, Error::Truncated(_)), "{name} cut to {len} bytes: {error}");
        }
        for extra in [&[0][..], &[1], &[0; 100]] {
            assert!(decode(&[&bytes, extra].concat()).is_err(), "{name} with {extra:?} behind");
        }
    }
}

#[test]
fn every_flipped_bit_is_refused_or_changes_nothing() {
    for (name, bytes) in specimens() {
        let whole = decode(&bytes).unwrap();
        let (index_start, _) = locate(bytes.len() as u64, &bytes).unwrap();
        let compressed = HEADER_LEN + PAGE_HEADER_LEN..index_start as usize - PAGE_HEADER_LEN;
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                if let Ok(content) = decode(&damaged) {
                    // The same page has many LZ4 forms: the last token has four unused bits,
                    // and in repeating data a match may begin at several distances.
                    assert_eq!(content, whole, "{name}, bit {bit} of byte {at}");
                    assert!(compressed.contains(&at), "{name}, bit {bit} of byte {at}");
                }
            }
        }
    }
}

#[test]
fn bytes_overwritten_at_random_never_pass() {
    let (_, bytes) = specimens().remove(0);
    let whole = decode(&bytes).unwrap();
    proptest!(|(at in 0..bytes.len(), with in proptest::collection::vec(any::<u8>(), 1..40))| {
        let mut damaged = bytes.clone();
        let end = (at + with.len()).min(damaged.len());
        damaged[at..end].copy_from_slice(&with[..end - at]);
        if let Ok(content) = decode(&damaged) {
            prop_assert_eq!(content, whole.clone());
        }
    });
}

/// A reader of some bytes and then endless zeros. `largest` records the largest buffer it was asked to
/// fill.
struct Endless<'a> {
    front: &'a [u8],
    largest: &'a mut usize,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        *self.largest = (*self.largest).max(buffer.len());
        if self.front.is_empty() {
            buffer.fill(0);
            return Ok(buffer.len());
        }
        self.front.read(buffer)
    }
}

#[test]
fn lengths_that_lie_are_refused_before_they_are_believed() {
    let head = header(9).encode().unwrap();
    let frame = |flags: u16, rest: &[u8]| {
        [&head[..], &1u32.to_be_bytes(), &flags.to_be_bytes(), rest].concat()
    };
    let cases = [
        ("a block of 4 GiB", frame(1, &u32::MAX.to_be_bytes())),
        ("a block one byte too long", frame(1, &(512 + 2 + 16 + 1u32).to_be_bytes())),
        ("an empty block", frame(1, &0u32.to_be_bytes())),
        ("a frame of 4 MiB blocks", frame(0, &[0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73])),
        ("no frame", frame(0, &[0; 40])),
        ("unknown page flags", frame(2, &[])),
        ("zeros without end", head.to_vec()),
    ];
    for (name, front) in cases {
        let mut largest = 0;
        let mut decoder = Decoder::new(Endless { front: &front, largest: &mut largest }).unwrap();
        let result = decoder.next_page().map(|page| page.is_some());
        match result {
            Ok(false) => assert!(decoder.finish().is_err(), "{name}"),
            Ok(true) => panic!("{name} was taken"),
            Err(_) => drop(decoder),
        }
        assert!(largest <= 64 * 1024, "{name}: a read of {largest} bytes");
    }
}

#[test]
fn a_block_that_expands_to_another_length_is_refused() {
    for len in [0, 1, 511, 513, 1024, 100_000] {
        let block = lz4_flex::block::compress(&vec![7; len]);
        let mut page = vec![0; 512];
        assert!(page::expand_block(&block, 1, &mut page).is_err(), "{len}");
    }
}

#[test]
fn index_that_lies_about_its_length_is_refused() {
    for (_, bytes) in specimens() {
        let at = bytes.len() - 24;
        for wrong in [0, u64::MAX, bytes.len() as u64, at as u64 - 105, 1 << 62] {
            let mut damaged = bytes.clone();
            damaged[at..at + 8].copy_from_slice(&wrong.to_be_bytes());
            assert!(locate(damaged.len() as u64, &damaged).is_err(), "{wrong}");
            assert!(decode(&damaged).is_err(), "{wrong}");
        }
        assert!(locate(23, &bytes[at..]).is_err());
        assert!(locate(bytes.len() as u64, &bytes[at + 1..]).is_err());
    }
}

fn check_index(bytes: &[u8], entries: Option<usize>) {
    let result: Result<Vec<Entry>, Error> = Reader::new(bytes).collect();
    assert_eq!(result.as_ref().ok().map(Vec::len), entries, "{bytes:?}: {result:?}");
}

#[test]
fn index_entries_are_checked() {
    check_index(&[0], Some(0));
    check_index(&[1, 100, 20, 0], Some(1));
    check_index(&[1, 100, 20, 2, 120, 20, 0], Some(2));
    check_index(&[], None);
    check_index(&[1, 100, 20], None);
    check_index(&[1, 100], None);
    check_index(&[1, 100, 20, 0, 0], None);
    check_index(&[1, 101, 20, 0], None);
    check_index(&[1, 100, 6, 0], None);
    check_index(&[2, 100, 20, 1, 120, 20, 0], None);
    check_index(&[1, 100, 20, 1, 120, 20, 0], None);
    check_index(&[1, 100, 20, 2, 121, 20, 0], None);
    // A page number beyond 32 bits, an overlong varint, one of 65 bits, an offset that overflows.
    check_index(&[0x80, 0x80, 0x80, 0x80, 0x10, 100, 20, 0], None);
    check_index(&[[0x81; 10].as_slice(), &[0, 100, 20, 0]].concat(), None);
    check_index(&[[0xff; 9].as_slice(), &[2, 100, 20, 0]].concat(), None);
    check_index(&[[1, 100].as_slice(), &[0xff; 9], &[1, 0]].concat(), None);
}

#[test]
fn encoder_refuses_what_readers_refuse() {
    let page = [0; 512];
    let check = |pages: &[(Pgno, &[u8])]| {
        let error = to_vec(&header(9), pages.iter().copied()).expect_err(&format!("{pages:?}"));
        assert!(matches!(error, Error::Rule(_)), "{error}");
    };
    check(&[(0, &page)]);
    check(&[(2, &page), (1, &page)]);
    check(&[(2, &page), (2, &page)]);
    check(&[(1, &page[1..])]);
    check(&[(1, &[0; 1024])]);
    check(&[(10, &page)]);
    check(&[(size(512).lock_page(), &page)]);
    let other = Header { page_size: size(1024), ..header(9) };
    assert!(matches!(Encoder::new(Vec::new(), size(512)).finish(&other), Err(Error::Rule(_))));
}

#[test]
fn pages_around_the_lock_page_pass_and_the_lock_page_does_not() {
    let page_size = size(65536);
    let lock = page_size.lock_page();
    assert_eq!(lock, 16385);
    let mut head = Header { page_size, ..header(lock + 9) };
    head.wal_size = 0;
    let pages: Pages = [1, lock - 1, lock + 1].map(|pgno| (pgno, page_of(pgno, 0, 65536))).into();
    let bytes = encode(&head, &pages).unwrap();
    assert_eq!(decode(&bytes).unwrap(), (head, pages.clone()));
    // The encoder refuses to write the lock page, and the decoder refuses a file that holds it.
    let at = bytes.windows(4).position(|w| w == (lock + 1).to_be_bytes()).unwrap();
    let mut with_lock = bytes;
    with_lock[at..at + 4].copy_from_slice(&lock.to_be_bytes());
    let error = decode(&with_lock).unwrap_err();
    assert!(error.to_string().contains("lock page"), "{error}");
    assert!(matches!(encode(&head, &vec![(lock, vec![0; 65536])]), Err(Error::Rule(_))));
}

/// Generates inputs of a merge: for each file its commit and, for each page, true if the file holds it.
fn merge_inputs() -> impl Strategy<Value = Vec<(u32, Vec<bool>)>> {
    proptest::collection::vec((1u32..12, proptest::collection::vec(any::<bool>(), 12)), 1..6)
}

proptest! {
    #[test]
    fn varint_round_trip(value: u64) {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        prop_assert_eq!(bytes.len(), (64 - (value | 1).leading_zeros() as usize).div_ceil(7));
        let mut rest = bytes.as_slice();
        prop_assert_eq!(take_varint(&mut rest), Some(value));
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn index_round_trip(steps in proptest::collection::vec((1u32..100_000, 7u64..70_000), 0..400)) {
        let (mut builder, mut expected) = (Builder::default(), Vec::new());
        let (mut pgno, mut offset) = (0, HEADER_LEN as u64);
        for (step, len) in steps {
            pgno += step;
            builder.push(pgno, len).unwrap();
            expected.push(Entry { pgno, offset, len });
            offset += len;
        }
        let (mut bytes, mut emission) = (Vec::new(), builder.emission());
        while let Some(piece) = emission.piece().unwrap() {
            bytes.extend_from_slice(piece);
        }
        let mut reader = Reader::new(&bytes);
        let found: Vec<Entry> = reader.by_ref().map(|entry| entry.unwrap()).collect();
        prop_assert_eq!(reader.end_offset(), offset);
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn file_round_trip(
        numbers in proptest::collection::btree_set(1u32..5000, 0..20),
        filler in proptest::collection::vec(any::<u8>(), 512),
        tagged: bool,
    ) {
        let pages: Pages = numbers.iter().map(|pgno| {
            let mut page = filler.clone();
            page[..4].copy_from_slice(&pgno.to_be_bytes());
            (*pgno, page)
        }).collect();
        let head = Header { tag: header(1).tag.filter(|_| tagged), ..header(5000) };
        let bytes = encode(&head, &pages).unwrap();
        prop_assert_eq!(decode(&bytes).unwrap(), (head, pages));
    }

    #[test]
    fn merge_keeps_the_newest_image_of_each_page(inputs in merge_inputs()) {
        let (mut files, mut model) = (Vec::new(), BTreeMap::new());
        let last_commit = inputs.last().unwrap().0;
        for (version, (commit, held)) in inputs.iter().enumerate() {
            let pages: Pages = (1..=*commit)
                .filter(|pgno| held[*pgno as usize - 1])
                .map(|pgno| (pgno, page_of(pgno, version as u32, 512)))
                .collect();
            model.extend(pages.iter().cloned());
            files.push(encode(&header(*commit), &pages).unwrap());
        }
        model.retain(|pgno, _| *pgno <= last_commit);
        let decoders = files.iter().map(|file| Decoder::new(file.as_slice()).unwrap()).collect();
        let (body, encoded) = merge(decoders, &header(last_commit), Vec::new()).unwrap();
        let merged = [&encoded.header[..], &body].concat();
        prop_assert_eq!(encoded.len, merged.len() as u64);
        prop_assert_eq!(encoded.pages, model.len() as u64);
        prop_assert_eq!(decode(&merged).unwrap().1, model.into_iter().collect::<Pages>());
    }
}

#[test]
fn merge_refuses_a_damaged_input_and_mixed_page_sizes() {
    let pages: Pages = vec![(1, page_of(1, 0, 512))];
    let good = encode(&header(9), &pages).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    let run = |files: [&[u8]; 2], header: &Header| {
        let decoders = files.into_iter().map(|file| Decoder::new(file).unwrap()).collect();
        merge(decoders, header, Vec::new()).map(|_| ())
    };
    run([&good, &good], &header(9)).unwrap();
    assert!(matches!(run([&good, &bad], &header(9)), Err(Error::Corrupt(_))));
    assert!(matches!(run([&bad, &good], &header(9)), Err(Error::Corrupt(_))));
    let other = Header { page_size: size(1024), ..header(9) };
    assert!(matches!(run([&good, &good], &other), Err(Error::Rule(_))));
}

#[test]
fn incompressible_pages_fit_the_bound_that_readers_set() {
    for bytes in [512, 4096, 65536] {
        let mut seed = 1u64;
        let noise: Vec<u8> = (0..bytes)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        let head = Header { page_size: size(bytes), wal_size: 0, ..header(1) };
        let pages = vec![(1, noise)];
        let file = encode(&head, &pages).unwrap();
        assert!(file.len() > bytes as usize);
        assert_eq!(decode(&file).unwrap().1, pages);
    }
    let mut encoder = Encoder::new(Vec::new(), size(512));
    let too_long = vec![0; page::max_block_len(size(512)) + 1];
    assert!(matches!(encoder.block(1, &too_long, &[0; 512]), Err(Error::Rule(_))));
}
