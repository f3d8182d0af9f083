//! An older copy that is brought forward: only what is newer is read, and only a proven state replaces
//! what is there.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;
use walferry::local::pages::PageTable;
use walferry::local::state::State;
use walferry::restore::{Error, Instead, Options, Point, Refusal, Report, restore_with_state};
use walferry::units::Txid;

use crate::support::watched::Watched;
use crate::support::{Replica, block_on, key, names, put};

const FOREVER: u64 = u64::MAX;

fn replica() -> Replica {
    history(0)
}

/// Twelve transactions on forty pages, with a shrink and growth. Two histories differ in which pages
/// they change, and in nothing else.
fn history(which: u32) -> Replica {
    let mut replica = Replica::new(4096);
    replica.commit(40, &[]);
    for txid in 2..=6 {
        replica.commit(40 + txid, &[1, txid * 5 - which]);
    }
    replica.commit(30, &[1]);
    for txid in 8..=12 {
        replica.commit(30 + txid, &[1, txid + which]);
    }
    // So that the whole is more than what came last.
    replica.snapshot(9, 1);
    replica.delete(key(0, 1, 1));
    replica
}

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: TempDir::new().unwrap() }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out.db")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("out.db-walferry")
    }

    fn try_restore(
        &self,
        replica: &Replica,
        txid: Option<u64>,
        reads: u64,
    ) -> Result<(Report, (u64, u64)), Error> {
        let store = Watched::new(replica.store.clone(), reads);
        let point = txid.map_or(Point::Latest, |txid| Point::Txid(Txid(txid)));
        let options = Options { point, delta: true, parallelism: 2, ..Options::new(self.out()) };
        let (report, not_left) = block_on(restore_with_state(Arc::new(store.clone()), options))?;
        assert_eq!(not_left, None);
        Ok((report, store.read()))
    }

    /// Restores with an older copy, if there is one, and compares everything that comes out.
    fn restored(&self, replica: &Replica, txid: Option<u64>) -> (Report, u64) {
        let (report, (bytes, requests)) = self.try_restore(replica, txid, FOREVER).unwrap();
        assert_eq!((report.fetched, report.requests), (bytes, requests));
        assert_eq!(names(self.dir.path()), ["out.db", "out.db-walferry"]);
        let txid = report.txid.0;
        assert!(fs::read(self.out()).unwrap() == replica.image(txid), "TXID {txid}");
        // What the next replication, and the next delta, go on from.
        let state = State::load(&self.state()).unwrap().unwrap();
        let base = state.base.unwrap();
        assert_eq!((base.txid, base.checksum), (txid, replica.checksum(txid).get()));
        let table = PageTable::open(&self.state(), base.commit).unwrap();
        assert_eq!(table.checksum(), replica.checksum(txid));
        let fingerprint = walferry::local::state::Fingerprint::of(&self.out()).unwrap();
        assert_eq!(state.clean.unwrap().fingerprint, fingerprint);
        (report, bytes)
    }
}

fn len_of(replica: &Replica, txids: std::ops::RangeInclusive<u64>) -> u64 {
    txids.map(|txid| replica.bytes(key(0, txid, txid)).len() as u64).sum()
}

#[test]
fn only_newer_files_are_read() {
    let replica = replica();
    for (from, to) in [(1, 2), (2, 5), (5, 12), (6, 7), (6, 8), (7, 8), (11, 12)] {
        let place = Place::new();
        let (report, _) = place.restored(&replica, Some(from));
        assert_eq!((report.from, report.instead), (None, None));
        let (report, bytes) = place.restored(&replica, Some(to));
        if report.instead == Some(Instead::NotLess) {
            // The way from TXID 2 to 5 is nearly as long as the whole.
            continue;
        }
        assert_eq!((report.from, report.instead), (Some(Txid(from)), None), "{from} to {to}");
        assert_eq!(bytes, len_of(&replica, from + 1..=to), "{from} to {to}");
        assert!(report.proven);
    }
}

#[test]
fn again_and_again_as_the_replica_grows() {
    let mut replica = replica();
    let place = Place::new();
    place.restored(&replica, None);
    for n in 0..10 {
        replica.commit(43 + n, &[1, 3 * n + 2]);
        let (report, bytes) = place.restored(&replica, None);
        let head = replica.head();
        assert_eq!((report.txid, report.from), (Txid(head), Some(Txid(head - 1))));
        assert_eq!(bytes, len_of(&replica, head..=head));
    }
    // Joined files that reach back over the copy's state do too.
    replica.compact(1, 14, 22);
    for txid in 14..=22 {
        replica.delete(key(0, txid, txid));
    }
    let other = Place::new();
    other.restored(&replica, Some(22));
    replica.commit(52, &[1, 9]);
    assert_eq!(other.restored(&replica, None).0.from, Some(Txid(22)));
}

#[test]
fn a_copy_that_is_at_the_target_costs_a_header() {
    let replica = replica();
    let place = Place::new();
    place.restored(&replica, None);
    let before = fs::metadata(place.out()).unwrap().ino();
    let (report, bytes) = place.restored(&replica, None);
    assert_eq!((report.from, report.files, bytes), (Some(Txid(12)), 0, 100));
    assert_eq!(fs::metadata(place.out()).unwrap().ino(), before);
}

/// Expects that everything is read, for a reason.
fn expect_whole(place: &Place, replica: &Replica, txid: Option<u64>) -> Instead {
    let (report, _) = place.restored(replica, txid);
    assert_eq!(report.from, None);
    report.instead.unwrap()
}

#[test]
fn a_copy_that_was_written_to_is_not_gone_on_from() {
    let replica = replica();
    let change = |change: &dyn Fn(&File)| {
        let place = Place::new();
        place.restored(&replica, Some(11));
        change(&File::options().read(true).write(true).open(place.out()).unwrap());
        assert_eq!(expect_whole(&place, &replica, None), Instead::Changed);
        // And it is well again.
        assert_eq!(place.restored(&replica, None).0.from, Some(Txid(12)));
    };
    // In a page that the newer file replaces, too: nobody knows what else was done.
    for at in [5, 12 * 4096 + 100, 40 * 4096 + 4095] {
        change(&|file| file.write_all_at(&[0xee], at).unwrap());
    }
    change(&|file| file.set_len(40 * 4096).unwrap());
    change(&|file| file.set_len(1 << 30).unwrap());
    change(&|file| file.set_len(0).unwrap());
    // Of the same contents, at another time: that is no change.
    let place = Place::new();
    place.restored(&replica, Some(11));
    let bytes = fs::read(place.out()).unwrap();
    fs::remove_file(place.out()).unwrap();
    fs::write(place.out(), bytes).unwrap();
    assert_eq!(place.restored(&replica, None).0.from, Some(Txid(11)));
}

#[test]
fn what_leads_nowhere_is_read_as_a_whole() {
    // An older state than the copy's.
    let replica = replica();
    let place = Place::new();
    place.restored(&replica, Some(9));
    assert_eq!(expect_whole(&place, &replica, Some(8)), Instead::Newer(Txid(9)));
    // Files that are not kept any more.
    replica.snapshot(9, 11);
    for txid in 9..=11 {
        replica.delete(key(0, txid, txid));
    }
    assert_eq!(expect_whole(&place, &replica, None), Instead::NoWay(Txid(8)));
    // A snapshot that is smaller than all that leads there.
    let replica = self::replica();
    let place = Place::new();
    place.restored(&replica, Some(2));
    replica.snapshot(9, 12);
    assert_eq!(expect_whole(&place, &replica, None), Instead::NotLess);
}

#[test]
fn another_history_under_the_same_numbers_is_found_out() {
    let (ours, theirs) = (history(0), history(1));
    for from in [11, 12] {
        let place = Place::new();
        place.restored(&ours, Some(from));
        let instead = expect_whole(&place, &theirs, None);
        assert!(matches!(instead, Instead::Disproved(_)), "{instead:?}");
    }
}

#[test]
fn damage_in_a_newer_file_does_no_harm() {
    let replica = replica();
    let place = Place::new();
    place.restored(&replica, Some(11));
    replica.snapshot(8, 12);
    let newest = key(0, 12, 12);
    let mut bytes = replica.bytes(newest).to_vec();
    bytes[150] ^= 1;
    put(&replica.store, newest, bytes);
    let instead = expect_whole(&place, &replica, None);
    assert!(
        matches!(&instead, Instead::Disproved(why) if why.contains("cannot be used")),
        "{instead:?}"
    );
    // Where nothing else leads there, the copy stays as it is.
    let place = Place::new();
    place.restored(&replica, Some(11));
    replica.delete(key(8, 1, 12));
    let error = place.try_restore(&replica, None, FOREVER).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error:?}");
    assert!(fs::read(place.out()).unwrap() == replica.image(11));
    assert_eq!(names(place.dir.path()), ["out.db", "out.db-walferry"]);
}

#[test]
fn a_failure_at_any_read_leaves_the_copy_as_it_is() {
    let replica = replica();
    let place = Place::new();
    place.restored(&replica, Some(8));
    let state = fs::read(place.state().join("state")).unwrap();
    for reads in 0..4 {
        let error = place.try_restore(&replica, None, reads).unwrap_err();
        assert!(matches!(error, Error::Store(_)), "{error:?}");
        assert!(fs::read(place.out()).unwrap() == replica.image(8));
        assert_eq!(fs::read(place.state().join("state")).unwrap(), state);
        assert_eq!(names(place.dir.path()), ["out.db", "out.db-walferry"]);
    }
    assert_eq!(place.restored(&replica, None).0.from, Some(Txid(8)));
}

#[test]
fn untagged_files_prove_nothing() {
    let mut replica = replica();
    let place = Place::new();
    place.restored(&replica, Some(11));
    replica.tagged = false;
    replica.commit(43, &[1, 2]);
    // Without tags a database must begin as one of SQLite.
    let (report, _) = place.try_restore(&replica, None, FOREVER).unwrap();
    assert_eq!((report.from, report.instead), (None, Some(Instead::Untagged)));
}

/// Expects that what is there is not touched.
fn refused(place: &Place, replica: &Replica) -> Error {
    let before = (fs::read(place.out()).unwrap(), names(place.dir.path()));
    let error = place.try_restore(replica, None, FOREVER).unwrap_err();
    assert!((fs::read(place.out()).unwrap(), names(place.dir.path())) == before, "{error:?}");
    error
}

#[test]
fn what_is_no_copy_is_not_replaced() {
    let replica = replica();
    let why = |error: Error| match error {
        Error::Copy { why, .. } => why,
        other => panic!("{other:?}"),
    };
    // A file of which nothing is known.
    let place = Place::new();
    fs::write(place.out(), "mine").unwrap();
    assert_eq!(why(refused(&place, &replica)), Refusal::Unknown);
    // One whose state is damaged, belongs to another replica, or to somebody who ships it.
    let place = Place::new();
    place.restored(&replica, Some(11));
    let good = State::load(&place.state()).unwrap().unwrap();
    fs::write(place.state().join("state"), "nonsense").unwrap();
    assert_eq!(why(refused(&place, &replica)), Refusal::Unknown);
    let other = State { replica: "file:///elsewhere".into(), ..good.clone() };
    other.save(&place.state(), false).unwrap();
    assert_eq!(why(refused(&place, &replica)), Refusal::OtherReplica("file:///elsewhere".into()));
    good.save(&place.state(), false).unwrap();
    let lock = walferry::local::lock::Lock::try_take(&place.state()).unwrap();
    let shipped = Refusal::Shipped(Some(std::process::id()));
    assert_eq!(why(refused(&place, &replica)), shipped);
    drop(lock);
    // What is not in the replica yet: in the spool, in a new lineage, in the file, in a WAL.
    let spool = place.state().join("spool");
    fs::create_dir_all(&spool).unwrap();
    let waiting = spool.join("000000000000000d-0000000000000001-0000000000000001-none.ltx");
    fs::write(&waiting, "x").unwrap();
    assert_eq!(why(refused(&place, &replica)), Refusal::Unshipped);
    fs::remove_file(waiting).unwrap();
    State { base: None, ..good.clone() }.save(&place.state(), false).unwrap();
    assert_eq!(why(refused(&place, &replica)), Refusal::Unshipped);
    State { claimed: true, ..good.clone() }.save(&place.state(), false).unwrap();
    let file = File::options().write(true).open(place.out()).unwrap();
    file.write_all_at(&[0xee], 4096 * 20).unwrap();
    assert_eq!(why(refused(&place, &replica)), Refusal::Unshipped);
    good.save(&place.state(), false).unwrap();
    for name in ["out.db-wal", "out.db-journal"] {
        let path = place.dir.path().join(name);
        fs::write(&path, "x").unwrap();
        let error = refused(&place, &replica);
        assert!(matches!(&error, Error::Exists { path: there } if *there == path), "{error:?}");
        fs::remove_file(path).unwrap();
    }
    // An empty one holds nothing.
    fs::write(place.dir.path().join("out.db-wal"), "").unwrap();
    assert_eq!(
        place.try_restore(&replica, None, FOREVER).unwrap().0.instead,
        Some(Instead::Changed)
    );
    // A link is no file of ours.
    let place = Place::new();
    place.restored(&replica, Some(11));
    fs::rename(place.out(), place.dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", place.out()).unwrap();
    assert!(matches!(refused(&place, &replica), Error::Path { .. }));
}

#[test]
fn a_copy_that_a_program_has_open_is_not_replaced() {
    let replica = replica();
    let place = Place::new();
    place.restored(&replica, Some(11));
    // As SQLite locks a database that it reads.
    let script = "import fcntl, struct, sys\n\
                  file = open(sys.argv[1], 'r+b')\n\
                  lock = struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, 0x40000002, 510, 0)\n\
                  fcntl.fcntl(file, fcntl.F_SETLK, lock)\n\
                  print('locked', flush=True)\n\
                  sys.stdin.read()\n";
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", script, place.out().to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 7];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    let error = refused(&place, &replica);
    assert!(matches!(&error, Error::Copy { why: Refusal::Open(_), .. }), "{error:?}");
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(place.restored(&replica, None).0.from, Some(Txid(11)));
}

#[test]
fn files_that_were_kept_for_a_person_stay() {
    let replica = replica();
    let place = Place::new();
    place.restored(&replica, Some(11));
    let kept = place.state().join("kept-1");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("precious.ltx"), "mine").unwrap();
    place.restored(&replica, None);
    assert_eq!(fs::read(kept.join("precious.ltx")).unwrap(), b"mine");
    // Also where the database itself is gone.
    fs::remove_file(place.out()).unwrap();
    let error = place.try_restore(&replica, None, FOREVER).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error:?}");
    assert_eq!(fs::read(kept.join("precious.ltx")).unwrap(), b"mine");
}

#[test]
fn a_new_place_is_restored_to_as_ever() {
    let replica = replica();
    let place = Place::new();
    let (report, _) = place.restored(&replica, None);
    assert_eq!((report.from, report.instead, report.txid), (None, None, Txid(12)));
}
