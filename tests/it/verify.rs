//! `walferry verify`: what is right is proven, whatever is wrong is named.

use std::sync::Arc;

use walferry::ltx::{Decoder, checksum};
use walferry::restore::Error;
use walferry::store::file::FileStore;
use walferry::store::memory::MemoryStore;
use walferry::store::{Key, Store};
use walferry::units::Txid;
use walferry::verify::{Advance, Depth, Kept, Newest, Report, advance, examine, verify};

use crate::support::{Replica, five, golden, key, put};

fn run(store: impl Store + 'static, depth: Depth) -> Result<Report, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(verify(Arc::new(store), depth, Kept::default(), 3, Arc::new(|_, _| {})))
}

fn whole(replica: &Replica) -> Report {
    run(replica.store.clone(), Depth::Whole).unwrap()
}

/// With compacted files and a snapshot.
fn joined() -> Replica {
    let replica = five();
    replica.compact(1, 2, 3);
    replica.compact(2, 1, 4);
    replica.snapshot(9, 3);
    replica
}

/// Expects defects of exactly these files.
fn expect_defects(report: &Report, keys: &[Option<Key>]) {
    let found: Vec<_> = report.defects.iter().map(|defect| defect.key).collect();
    assert_eq!(found, keys, "{:?}", report.defects);
    assert_eq!(report.proven, None);
}

#[test]
fn a_sound_replica_is_proven() {
    let replica = joined();
    let report = whole(&replica);
    assert_eq!(report.defects, []);
    let proven = report.proven.unwrap();
    assert_eq!((proven.txid, proven.checksum), (Txid(5), replica.checksum(5)));
    let bytes: u64 = replica.store.files().iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!((report.files, report.states, report.fetched), (8, 5, bytes));

    let report = run(replica.store.clone(), Depth::Headers).unwrap();
    assert_eq!((report.defects.len(), report.proven, report.fetched), (0, None, 800));
}

#[test]
fn what_litestream_wrote_is_sound_and_unproven() {
    for replica in ["litestream-0.5.17", "litestream-0.5.11"] {
        let report = run(FileStore::new(golden(replica)), Depth::Whole).unwrap();
        assert_eq!((report.defects.len(), report.proven), (0, None), "{replica}");
        assert_eq!(report.untagged, report.files);
    }
}

fn same_pages(replica: &Replica, file: Key, bytes: &[u8]) -> bool {
    let pages = |bytes: &[u8]| {
        let mut decoder = Decoder::new(bytes).unwrap();
        let mut pages = Vec::new();
        while let Some(page) = decoder.next_page().unwrap() {
            pages.push((page.pgno, page.data.to_vec()));
        }
        pages
    };
    pages(&replica.bytes(file)) == pages(bytes)
}

#[test]
fn every_changed_byte_is_found() {
    let replica = joined();
    for file in [key(0, 4, 4), key(1, 2, 3), key(9, 1, 3)] {
        let bytes = replica.bytes(file);
        for at in (0..bytes.len()).step_by(7) {
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x10;
            replica.put(file, changed);
            let report = whole(&replica);
            if report.defects.is_empty() && same_pages(&replica, file, &bytes) {
                // Compressed in another way: a match of a run of equal bytes at another distance.
                continue;
            }
            assert!(report.defects.iter().any(|defect| defect.key == Some(file)), "{at} of {file}");
        }
        replica.put(file, bytes[..bytes.len() - 1].to_vec());
        expect_defects(&whole(&replica), &[Some(file)]);
        replica.put(file, bytes.to_vec());
    }
    assert!(whole(&replica).proven.is_some());
}

#[test]
fn what_only_a_damaged_file_leads_to_is_not_counted() {
    for (replica, states) in [(five(), 3), (joined(), 5)] {
        let file = key(0, 4, 4);
        let mut bytes = replica.bytes(file).to_vec();
        bytes[150] ^= 1;
        replica.put(file, bytes);
        let report = whole(&replica);
        expect_defects(&report, &[Some(file)]);
        assert_eq!(report.states, states);
    }
}

#[test]
fn a_hole_is_found() {
    let replica = joined();
    for file in [key(0, 4, 4), key(2, 1, 4)] {
        replica.delete(file);
    }
    // The newest state is out of reach, and with it what would lead to it.
    let expected = [None, Some(key(0, 5, 5))];
    expect_defects(&whole(&replica), &expected);
    let report = run(replica.store.clone(), Depth::Headers).unwrap();
    expect_defects(&report, &expected);
}

#[test]
fn a_hole_in_the_past_is_found() {
    let replica = joined();
    for file in [key(0, 2, 2), key(1, 2, 3), key(2, 1, 4)] {
        replica.delete(file);
    }
    // State 3 is restored from the snapshot, and what leads on from there is not missed.
    assert_eq!(whole(&replica).defects, []);
    replica.delete(key(9, 1, 3));
    replica.snapshot(9, 5);
    let report = run(replica.store.clone(), Depth::Headers).unwrap();
    expect_defects(&report, &[Some(key(0, 3, 3)), Some(key(0, 4, 4))]);
    assert_eq!(report.oldest.unwrap().0, Txid(1));
}

#[test]
fn a_file_under_another_name_is_found() {
    let replica = joined();
    replica.put(key(0, 6, 6), replica.bytes(key(0, 5, 5)).to_vec());
    for depth in [Depth::Headers, Depth::Whole] {
        expect_defects(&run(replica.store.clone(), depth).unwrap(), &[Some(key(0, 6, 6))]);
    }
}

#[test]
fn a_chain_of_two_histories_is_found() {
    let replica = joined();
    let wrong = replica.checksum(1);
    replica.put_pages(0, 5, 5, &[1, 5], |header| header.tag.as_mut().unwrap().pre_apply = wrong);
    for depth in [Depth::Headers, Depth::Whole] {
        expect_defects(&run(replica.store.clone(), depth).unwrap(), &[Some(key(0, 5, 5))]);
    }
}

#[test]
fn a_page_left_out_is_found() {
    let replica = joined();
    replica.put_pages(0, 5, 5, &[1], |_| ());
    assert_eq!(run(replica.store.clone(), Depth::Headers).unwrap().defects, []);
    expect_defects(&whole(&replica), &[Some(key(0, 5, 5))]);
    // A page that an earlier, larger database had is not that of the one that grew again.
    let mut replica = Replica::new(512);
    replica.commit(6, &[]);
    replica.commit(3, &[1]);
    replica.commit(6, &[1]);
    assert!(whole(&replica).proven.is_some());
    replica.put_pages(0, 3, 3, &[1, 4, 5], |_| ());
    let report = whole(&replica);
    expect_defects(&report, &[Some(key(0, 3, 3))]);
    assert!(report.defects[0].what.contains("1 pages"), "{:?}", report.defects);
}

#[test]
fn an_empty_replica_is_none() {
    let error = run(MemoryStore::new(), Depth::Whole).unwrap_err();
    assert!(matches!(error, Error::Plan(walferry::plan::Error::Empty)), "{error}");
}

fn newest_of(store: &MemoryStore) -> Newest {
    let store = Arc::new(store.clone());
    let (report, newest) =
        on_runtime(examine(store, Depth::Whole, Kept::default(), 2, Arc::new(|_, _| {}))).unwrap();
    assert_eq!(report.defects, []);
    newest.unwrap()
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(work)
}

/// A store with these files of a replica.
fn part(replica: &Replica, files: &[u64]) -> MemoryStore {
    let store = MemoryStore::new();
    for txid in files {
        put(&store, key(0, *txid, *txid), replica.bytes(key(0, *txid, *txid)).to_vec());
    }
    store
}

#[test]
fn the_newest_state_is_known_page_by_page_and_followed() {
    let replica = five();
    for txid in 1..=5 {
        let newest = newest_of(&part(&replica, &(1..=txid).collect::<Vec<_>>()));
        let pages = (1..).zip(&replica.states[txid as usize]);
        let sums: Vec<_> = pages.map(|(pgno, page)| checksum::page(pgno, page)).collect();
        assert_eq!((newest.txid, &newest.sums), (Txid(txid), &sums));
        assert_eq!(newest.checksum(), replica.checksum(txid));
        // Over growth, a shrink and growth again it leads to what a whole look sees.
        let last = newest_of(&replica.store);
        let led = on_runtime(advance(Arc::new(replica.store.clone()), newest)).unwrap();
        let Advance::To(led) = led else { panic!("{led:?}") };
        assert_eq!(*led, last);
    }
    let one = newest_of(&part(&replica, &[1]));
    let led = |store: MemoryStore| on_runtime(advance(Arc::new(store), one.clone())).unwrap();
    assert!(matches!(led(part(&replica, &[1, 3])), Advance::Lost(why) if why.contains('2')));
    let wrong = part(&replica, &[1]);
    put(&wrong, key(0, 2, 2), {
        let mut other = five();
        other.states[2][0][100] ^= 1;
        other.put_pages(0, 2, 2, &[1, 2, 5, 6], |header| header.tag = replica.header(2, 2).tag);
        other.bytes(key(0, 2, 2)).to_vec()
    });
    assert!(matches!(led(wrong), Advance::Lost(why) if why.contains("checksum")));
}
