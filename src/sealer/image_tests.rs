//! Tests that an image is cut into parts, and that the parts together give the file.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::border::{Reader, Snapshot};
use crate::local::spool::scratch;
use crate::units::{PageSize, Salts, WriterId};

const PART_LEN: usize = 1 << 20;

fn header(commit: u32) -> Header {
    Header {
        page_size: PageSize::new(512).unwrap(),
        commit,
        min_txid: Txid(1),
        max_txid: Txid(1),
        timestamp: Timestamp(1),
        wal_offset: 32,
        wal_size: 0,
        salts: Salts(0, 0),
        writer: WriterId(1),
        tag: None,
    }
}

fn page(pgno: Pgno) -> [u8; 512] {
    [pgno as u8; 512]
}

fn put(file: &mut Vec<u8>, part: Part) {
    let Part::Data { number, bytes } = part else { return };
    let at = number as usize * PART_LEN;
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(&bytes);
}

/// Makes an image as the sealer does, and takes its parts from a channel with room for one part. Returns the
/// file and the largest number of bytes that waited.
fn sent(pages: u32) -> (Vec<u8>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let (parts, mut taken) = mpsc::channel(1);
    let mut buffer = Buffer::with_capacity(PART_LEN);
    buffer.write_all(&[0; HEADER_LEN]).unwrap();
    let encoder = Encoder::spilling(buffer, header(0).page_size, scratch(dir.path()));
    let mut sending = Sending {
        scan: None,
        reserve: None,
        file: Writing::Pages(encoder),
        parts,
        part_len: PART_LEN,
        first: None,
        next_number: 1,
        waiting: None,
        blocked: false,
        seq: 0,
        attached: true,
        epoch: 0,
        fingerprint: None,
        remembered: 0,
        rest: None,
        done: None,
    };
    let (mut file, mut most) = (Vec::new(), 0);
    let mut take = |sending: &mut Sending| {
        while let Ok(part) = taken.try_recv() {
            put(&mut file, part);
            if let Some(part) = sending.waiting.take() {
                sending.send(part).unwrap();
            }
        }
        match &mut sending.file {
            Writing::Pages(encoder) => most = most.max(encoder.get_mut().len()),
            Writing::Index(ending) => most = most.max(ending.get_mut().len()),
            Writing::Done => {}
        }
    };
    for pgno in 1..=pages {
        let Writing::Pages(encoder) = &mut sending.file else { unreachable!() };
        encoder.page(pgno, &page(pgno)).unwrap();
        sending.cut_part().unwrap();
        take(&mut sending);
    }
    let Writing::Pages(encoder) = std::mem::replace(&mut sending.file, Writing::Done) else {
        unreachable!()
    };
    sending.file = Writing::Index(encoder.end(&header(pages)).unwrap());
    while sending.rest.is_none() {
        sending.step_index().unwrap();
        take(&mut sending);
    }
    let rest = sending.rest.take().unwrap();
    most = most.max(rest.len().saturating_sub(2) * PART_LEN);
    rest.into_iter().rev().for_each(|part| put(&mut file, part));
    (file, most)
}

#[test]
fn the_index_of_an_image_is_sent_part_by_part() {
    for pages in [1, 3000, 500_000] {
        let (file, most) = sent(pages);
        let all: Vec<_> = (1..=pages).map(|pgno| (pgno, page(pgno))).collect();
        let all = all.iter().map(|(pgno, page)| (*pgno, page.as_slice()));
        assert!(file == ltx::encode::to_vec(&header(pages), all).unwrap(), "{pages} pages");
        assert!(most <= 2 * PART_LEN, "{most} bytes of {pages} pages waited");
    }
}

/// A reader whose wal-index has changed: the index of the snapshot, and the index of now.
struct Changed(WalIndex, WalIndex);

impl Reader for Changed {
    fn snapshot(&self) -> Snapshot {
        let index = self.0;
        let (page_size, page_count) = (index.page_size, index.page_count);
        Snapshot { page_size, page_count, index: Some(index) }
    }

    fn read_main(&mut self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn index_now(&self) -> Option<WalIndex> {
        Some(self.1)
    }
}

/// Returns a WAL of three frames. Only the marked frames have salts and a checksum.
fn wal(salts: Salts, marked: [bool; 3]) -> Vec<u8> {
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_be_bytes()).collect() };
    let mut bytes = words(&[0x377f_0682, 3_007_000, 512, 0, salts.0, salts.1, 0, 0]);
    for (pgno, marked) in (1..).zip(marked) {
        let fields = if marked { [salts.0, salts.1, pgno, pgno] } else { [0; 4] };
        bytes.extend(words(&[pgno, pgno]));
        bytes.extend(words(&fields));
        bytes.extend(page(pgno));
    }
    bytes
}

#[test]
fn however_many_commits_follow_a_recovery_a_walk_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db-wal");
    let salts = Salts(1, 2);
    let page_size = header(0).page_size;
    let index = |change, max_frame| WalIndex {
        change,
        max_frame,
        page_count: 3,
        page_size,
        salts,
        ..WalIndex::EMPTY
    };
    let ends = |now: WalIndex, marked| {
        std::fs::write(&path, wal(salts, [true, false, false])).unwrap();
        let reader = Box::new(Changed(index(2, 3), now));
        let scan = Scan::begin(reader, &path, None, None).unwrap();
        std::fs::write(&path, wal(salts, marked)).unwrap();
        Replica::check_generation(&scan).is_err()
    };
    assert!(!ends(index(2, 3), [true, false, false]));
    assert!(!ends(index(3, 4), [true, false, false]), "another commit");
    // Recovery keeps the first frame. Then one commit follows, then another.
    assert!(ends(index(0, 1), [true, false, false]));
    assert!(ends(index(1, 2), [true, true, false]));
    assert!(ends(index(2, 3), [true, true, true]));
}
