//! A restore that is broken off goes on where it stood, and believes nothing of what it finds there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use walferry::ltx::{Tag, checksum};
use walferry::restore::{Error, Options, Point, Report, Step, Watch};
use walferry::store::ErrorKind;
use walferry::units::{PageSize, Pgno, Txid};

use crate::support::watched::Watched;
use crate::support::{Replica, key, names, noise, run, run_in_order};

const FOREVER: u64 = u64::MAX;
const PAGES: u32 = 400;

/// A snapshot of seven stretches, over which two small files have written here and there.
fn replica() -> Replica {
    let mut replica = Replica::new(65536);
    replica.commit(2, &[]);
    let size = replica.page_size;
    replica.states.push((1..=PAGES).map(|pgno| noise(pgno, 2, size)).collect());
    replica.snapshot(9, 2);
    replica.delete(key(0, 1, 1));
    replica.commit(PAGES, &[1, 3, 70, 71]);
    replica.commit(PAGES, &[1, 390]);
    replica
}

/// A folder to restore to.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: TempDir::new().unwrap() }
    }

    fn entry(&self, name: &str) -> PathBuf {
        self.dir.path().join("out.db-restoring").join(name)
    }

    fn options(&self) -> Options {
        let options = Options::new(self.dir.path().join("out.db"));
        Options { parallelism: 1, resume_from: 1 << 20, ..options }
    }

    /// Breaks down after so many reads; what was read.
    fn broken_off(&self, replica: &Replica, reads: u64) -> (u64, u64) {
        let store = Watched::new(replica.store.clone(), reads);
        let error = run_in_order(store.clone(), self.options()).unwrap_err();
        let Error::BrokenOff { source, dir } = &error else { panic!("{error:?}") };
        assert_eq!(source.kind, ErrorKind::Unavailable);
        assert_eq!(*dir, self.entry(""));
        assert!(error.advice().unwrap().contains("goes on"), "{:?}", error.advice());
        assert_eq!(names(self.dir.path()), ["out.db-restoring"]);
        assert_eq!(names(dir), ["database", "lock", "record"]);
        store.read()
    }

    /// Restores, compares, and gives the report with what was read.
    fn restored(&self, replica: &Replica, options: Options) -> (Report, (u64, u64)) {
        let store = Watched::new(replica.store.clone(), FOREVER);
        let report = run(store.clone(), options).unwrap();
        assert_eq!(names(self.dir.path()), ["out.db"]);
        let expected = replica.image(report.txid.0);
        assert!(fs::read(self.dir.path().join("out.db")).unwrap() == expected);
        assert_eq!(report.checksum, replica.checksum(report.txid.0));
        assert_eq!((report.fetched, report.requests), store.read());
        (report, store.read())
    }

    /// Goes on; the bytes that were found and those that were read.
    fn resumed(&self, replica: &Replica) -> (u64, u64) {
        let (report, (bytes, _)) = self.restored(replica, self.options());
        (report.reused, bytes)
    }
}

/// What a restore of everything reads.
fn whole(replica: &Replica) -> (u64, u64) {
    let place = Place::new();
    place.restored(replica, place.options()).1
}

/// The small files take one read each, the snapshot's header and end one, then come its stretches.
const FIRST_STRETCH: u64 = 4;

#[test]
fn what_is_there_is_not_read_again() {
    for tagged in [true, false] {
        let mut replica = replica();
        if !tagged {
            without_tags(&mut replica);
        }
        let all = whole(&replica);
        assert_eq!(all.1, FIRST_STRETCH + 7);
        for stretches in 1..7 {
            let place = Place::new();
            let before = place.broken_off(&replica, FIRST_STRETCH + stretches);
            let (report, (bytes, requests)) = place.restored(&replica, place.options());
            // The outer parts of the files are read anew, and no stretch twice.
            let outer = all.0 - report.fetched - report.reused;
            assert_eq!(outer, 0, "stretches {stretches}");
            assert!(before.0 + bytes < all.0 + (1 << 20));
            assert_eq!(requests, all.1 - stretches);
            assert_eq!(report.proven, tagged);
        }
    }
}

/// As Litestream writes them.
fn without_tags(replica: &mut Replica) {
    replica.tagged = false;
    for (key, bytes) in replica.store.files() {
        let mut decoder = walferry::ltx::Decoder::new(&bytes[..]).unwrap();
        let mut pages: Vec<Pgno> = Vec::new();
        while let Some(page) = decoder.next_page().unwrap() {
            pages.push(page.pgno);
        }
        let (min, max) = (key.name.min.0, key.name.max.0);
        replica.put_pages(key.level.get(), min, max, &pages, |header| header.tag = None);
    }
    // SQLite's name is at the beginning of what Litestream replicates.
    let head = replica.states.len() as u64 - 1;
    let size = replica.page_size;
    crate::support::begin_database(&mut replica.states[head as usize][0], size);
    replica.put_pages(0, head, head, &[1, 390], |header| header.tag = None);
}

#[test]
fn it_can_break_off_again_and_again() {
    let replica = replica();
    let (place, all) = (Place::new(), whole(&replica));
    place.broken_off(&replica, FIRST_STRETCH + 2);
    // Even if it does not come to a single stretch, what is there stays.
    place.broken_off(&replica, 0);
    place.broken_off(&replica, 1);
    place.broken_off(&replica, FIRST_STRETCH + 1);
    place.broken_off(&replica, FIRST_STRETCH);
    let (_, (_, requests)) = place.restored(&replica, place.options());
    assert_eq!(requests, all.1 - 3);
}

#[test]
fn a_page_that_was_changed_meanwhile_is_fetched_again() {
    let replica = replica();
    let stretches = 5;
    let stand = || {
        let place = Place::new();
        place.broken_off(&replica, FIRST_STRETCH + stretches);
        let file = File::options().write(true).open(place.entry("database")).unwrap();
        (place, file)
    };
    let (place, _) = stand();
    let (reused, bytes) = place.resumed(&replica);
    // One bit of a page, and the stretch that has it comes anew.
    for pgno in [2u64, 100, 300] {
        let (place, file) = stand();
        let mut byte = [0];
        let at = (pgno - 1) * 65536 + 777;
        File::open(place.entry("database")).unwrap().read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let (found, read) = place.resumed(&replica);
        assert!(found < reused && reused - found < 5 << 20, "page {pgno}: {found} of {reused}");
        assert_eq!(found + read, reused + bytes);
    }
    // A page that belongs to a small file: that comes anew in any case.
    let (place, file) = stand();
    file.write_all_at(&vec![1; 65536], 69 * 65536).unwrap();
    assert_eq!(place.resumed(&replica).0, reused);
    // All of it is gone, as after a power loss.
    let (place, file) = stand();
    file.set_len(0).unwrap();
    assert_eq!(place.resumed(&replica), (0, reused + bytes));
    // Zeros, and more than there should be.
    let (place, file) = stand();
    file.set_len(0).unwrap();
    file.set_len(1 << 40).unwrap();
    assert_eq!(place.resumed(&replica), (0, reused + bytes));
}

#[test]
fn a_record_that_lies_is_found_out() {
    let replica = replica();
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 5);
    let (database, record) = (place.entry("database"), place.entry("record"));
    let (pages, entries) = (fs::read(database).unwrap(), fs::read(&record).unwrap());
    let mut found = Vec::new();
    // Each entry as that of each other stretch; and every single byte.
    let lies = (0..entries.len()).map(|at| {
        let mut lie = entries.clone();
        lie[at] ^= 1 << (at % 8);
        lie
    });
    let swapped = (1..5).map(|n| {
        let mut lie = entries.clone();
        let (from, to) = (16 + 72 * n, 16 + 72 * (n - 1));
        lie.copy_within(from..from + 72, to);
        lie
    });
    for lie in lies.step_by(11).chain(swapped).chain([Vec::new(), entries[..50].to_vec()]) {
        let place = Place::new();
        fs::create_dir(place.entry("")).unwrap();
        fs::write(place.entry("database"), &pages).unwrap();
        fs::write(place.entry("record"), lie).unwrap();
        found.push(place.resumed(&replica).0);
    }
    assert!(found.iter().any(|found| *found > 0) && found.contains(&0), "{found:?}");
}

/// Where a page was changed, and the record too, so that the two fit: the file's checksum does not.
#[test]
fn a_record_that_was_forged_does_not_get_a_wrong_page_through() {
    let replica = replica();
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 5);
    let mut entries = fs::read(place.entry("record")).unwrap();
    let mut pages = fs::read(place.entry("database")).unwrap();
    pages[100 * 65536 + 5] ^= 1;
    // Page 101 is the 37th of the second stretch; ten bytes stand before each page.
    let mut change = vec![0; 64 * 65546];
    let nothing = digest_of(&change);
    change[36 * 65546 + 10 + 5] ^= 1;
    let change = digest_of(&change) ^ nothing;
    let second = [9, 3, 0, 0, 0, 0, 0, 2];
    let entry = entries[16..].chunks_exact_mut(72).find(|entry| entry[..8] == second).unwrap();
    let digest = u64::from_be_bytes(entry[40..48].try_into().unwrap()) ^ change;
    entry[40..48].copy_from_slice(&digest.to_be_bytes());
    let sum = digest_of(&entry[..64]) | 1 << 63;
    entry[64..72].copy_from_slice(&sum.to_be_bytes());
    fs::write(place.entry("record"), entries).unwrap();
    fs::write(place.entry("database"), pages).unwrap();
    let error = run(replica.store.clone(), place.options()).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error:?}");
    // It is gone with what it has led to.
    assert_eq!(names(place.dir.path()), [""; 0]);
    place.restored(&replica, place.options());
}

fn digest_of(bytes: &[u8]) -> u64 {
    let mut digest = checksum::FileDigest::new();
    digest.update(bytes);
    digest.digested().crc
}

#[test]
fn a_replica_that_moved_on_keeps_what_is_still_the_same() {
    let mut replica = replica();
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 6);
    // Two pages in two stretches that were written already, in files that were not there.
    replica.commit(PAGES, &[1, 80]);
    replica.commit(PAGES, &[1, 200]);
    let (report, (_, requests)) = place.restored(&replica, place.options());
    assert_eq!(report.txid, Txid(6));
    // Page 1 was superseded before; pages 80 and 200 cost a stretch each.
    assert_eq!(requests, whole(&replica).1 - 4);
    // The same for a target that lies before.
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 2 + 6);
    let options = Options { point: Point::Txid(Txid(4)), ..place.options() };
    let (report, _) = place.restored(&replica, options);
    assert!(report.reused > 0 && report.txid == Txid(4));
}

#[test]
fn a_file_that_is_another_one_under_its_name_is_read() {
    let replica = replica();
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 5);
    // Somebody has begun the replica anew: same names, same lengths, other pages.
    let size = replica.page_size;
    let mut other = Replica::new(65536);
    other.commit(2, &[]);
    other.states.push((1..=PAGES).map(|pgno| noise(pgno, 9, size)).collect());
    other.snapshot(9, 2);
    other.delete(key(0, 1, 1));
    other.commit(PAGES, &[1, 3, 70, 71]);
    other.commit(PAGES, &[1, 390]);
    let len = |replica: &Replica| replica.bytes(key(9, 1, 2)).len();
    assert_eq!(len(&replica), len(&other));
    let (report, _) = place.restored(&other, place.options());
    assert_eq!(report.reused, 0);
}

#[test]
fn pages_of_another_size_are_not_mixed_in() {
    let replica = replica();
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 5);
    let mut other = Replica::new(512);
    other.commit(40, &[]);
    let (report, _) = place.restored(&other, place.options());
    assert_eq!((report.reused, report.page_size), (0, PageSize::new(512).unwrap()));
}

/// Behind the end of the new database, and in its lock page, nothing is left of an older attempt.
#[test]
fn nothing_shows_through_in_the_lock_page() {
    let size = PageSize::new(65536).unwrap();
    let (lock, commit) = (size.lock_page(), size.lock_page() + 2);
    let mut replica = Replica::new(65536);
    let zeros = vec![0; size.bytes()];
    let first = crate::support::page_of(1, 1, size);
    let pages: Vec<Pgno> = (1..=commit).filter(|pgno| *pgno != lock).collect();
    // Many pages that take no room, then some that do.
    let mut state = vec![zeros; commit as usize];
    state[0] = first;
    for pgno in 2..300 {
        state[pgno as usize - 1] = noise(pgno, 1, size);
    }
    let mut sum = walferry::ltx::DatabaseChecksum::EMPTY;
    for pgno in &pages {
        sum.toggle(checksum::page(*pgno, &state[*pgno as usize - 1]));
    }
    replica.states.push(state);
    let pre_apply = walferry::ltx::DatabaseChecksum::EMPTY;
    replica.put_pages(9, 1, 1, &pages, |header| {
        header.tag = Some(Tag { pre_apply, post_apply: sum, full_image: true });
    });
    let place = Place::new();
    place.broken_off(&replica, 2 + 2);
    let file = File::options().write(true).open(place.entry("database")).unwrap();
    file.write_all_at(&vec![7; 65536], size.offset_of(lock)).unwrap();
    let report = run(replica.store.clone(), place.options()).unwrap();
    assert!(report.reused > 0);
    let file = File::open(place.dir.path().join("out.db")).unwrap();
    let mut page = vec![1; size.bytes()];
    file.read_exact_at(&mut page, size.offset_of(lock)).unwrap();
    assert!(page.iter().all(|byte| *byte == 0));
    assert_eq!(file.metadata().unwrap().len(), u64::from(commit) * 65536);
}

#[test]
fn a_small_restore_leaves_nothing() {
    let replica = replica();
    let place = Place::new();
    let store = Watched::new(replica.store.clone(), FIRST_STRETCH + 5);
    let options = Options { resume_from: 1 << 30, ..place.options() };
    let error = run(store, options).unwrap_err();
    assert!(matches!(error, Error::Store(_)), "{error:?}");
    assert_eq!(names(place.dir.path()), [""; 0]);
    // Nor does one that has not come far.
    let store = Watched::new(replica.store.clone(), FIRST_STRETCH);
    run(store, place.options()).unwrap_err();
    assert_eq!(names(place.dir.path()), [""; 0]);
}

#[test]
fn a_damaged_replica_leaves_nothing() {
    let replica = replica();
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 5);
    let snapshot = key(9, 1, 2);
    let mut bytes = replica.bytes(snapshot).to_vec();
    let at = bytes.len() * 9 / 10;
    bytes[at] ^= 1;
    replica.put(snapshot, bytes);
    let error = run(replica.store.clone(), place.options()).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error:?}");
    assert_eq!(names(place.dir.path()), [""; 0]);
}

#[test]
fn it_begins_anew_if_it_is_told_to() {
    let replica = replica();
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 5);
    let (report, read) = place.restored(&replica, Options { resume: false, ..place.options() });
    assert_eq!((report.reused, read), (0, whole(&replica)));
}

#[test]
fn the_page_table_is_whole_too() {
    let replica = replica();
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 5);
    let tables = TempDir::new().unwrap();
    let table = tables.path().join("pages");
    let (report, _) =
        place.restored(&replica, Options { page_table: Some(table.clone()), ..place.options() });
    assert!(report.reused > 0);
    let expected: Vec<u8> = replica.states[4]
        .iter()
        .zip(1..)
        .flat_map(|(page, pgno)| checksum::page(pgno, page).0.to_le_bytes())
        .collect();
    assert_eq!(fs::read(table).unwrap(), expected);
}

#[test]
fn all_of_it_is_told() {
    let replica = replica();
    let place = Place::new();
    place.broken_off(&replica, FIRST_STRETCH + 3);
    let (last, total) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let watch = {
        let (last, total) = (last.clone(), total.clone());
        Watch::new(move |step, done, all| {
            assert_eq!(step, Step::Fetch);
            last.fetch_max(done, Ordering::Relaxed);
            total.store(all, Ordering::Relaxed);
        })
    };
    place.restored(&replica, Options { watch: Some(watch), ..place.options() });
    let bytes: u64 = replica
        .store
        .files()
        .iter()
        .filter(|(file, _)| *file != key(0, 1, 1))
        .map(|(_, bytes)| bytes.len() as u64)
        .sum();
    assert_eq!((last.load(Ordering::Relaxed), total.load(Ordering::Relaxed)), (bytes, bytes));
}
