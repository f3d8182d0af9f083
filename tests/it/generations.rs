//! What Litestream 0.3 wrote: which parts are taken, and that no damage to any of them passes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use tempfile::TempDir;
use walferry::restore::generations::{Report, list, plan, restore};
use walferry::restore::{Error, Options, Point};
use walferry::store::Store;
use walferry::store::file::FileStore;
use walferry::units::{Timestamp, Txid};

use crate::support::{Generations, block_on, copy_golden, golden, names, set_time};

/// When the first of the golden objects was made, in seconds after the epoch.
const BEGIN: u64 = 1_700_000_000;

/// A replica that is restored again and again.
struct Bench {
    generations: Generations,
    dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { generations: Generations::new(), dir: TempDir::new().unwrap() }
    }

    /// One from which everything has to be read: the oldest snapshot alone is left.
    fn from_the_start() -> Bench {
        let bench = Bench::new();
        for snapshot in ["00000003", "00000005", "00000008"] {
            bench.remove(&format!("snapshots/{snapshot}.snapshot.lz4"));
        }
        bench
    }

    /// One of which little has to be read: of that, only what the first WAL leads to.
    fn of_one_wal() -> Bench {
        let bench = Bench::from_the_start();
        for object in bench.generations.objects() {
            if object.starts_with("wal/") && !object.starts_with("wal/00000000") {
                bench.remove(&object);
            }
        }
        bench
    }

    fn path(&self, object: &str) -> PathBuf {
        self.generations.folder.join(object)
    }

    fn read(&self, object: &str) -> Vec<u8> {
        fs::read(self.path(object)).unwrap()
    }

    /// Replaces an object, whose time stays.
    fn write(&self, object: &str, bytes: &[u8]) {
        let path = self.path(object);
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, bytes).unwrap();
        let file = fs::File::options().append(true).open(path).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    }

    fn remove(&self, object: &str) {
        fs::remove_file(self.path(object)).unwrap();
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(FileStore::new(self.generations.replica.path()))
    }

    /// The database, and what is said of it. After a failure nothing is left.
    fn restore(&self, point: Point) -> Result<(Vec<u8>, Report), Error> {
        let (store, out) = (self.store(), self.dir.path().join("out.db"));
        let restored = block_on(async {
            let plan = plan(store.as_ref(), point).await?.expect("something of Litestream 0.3");
            restore(store, plan, &Options::new(&out)).await
        });
        let bytes = restored.map(|report| (fs::read(&out).unwrap(), report));
        if bytes.is_ok() {
            fs::remove_file(&out).unwrap();
        }
        assert_eq!(names(self.dir.path()), [""; 0]);
        bytes
    }

    fn latest(&self) -> Result<Vec<u8>, Error> {
        self.restore(Point::Latest).map(|(bytes, _)| bytes)
    }

    /// What is wrong with the object that a restore names.
    fn refused(&self, object: &str) -> String {
        match self.latest() {
            Err(Error::Object { path, what }) => {
                assert_eq!(path, format!("generations/ebcc5c9659d4a37f/{object}"), "{what}");
                what
            }
            Err(error) => panic!("{object}: another error: {error}"),
            Ok(_) => panic!("{object}: its damage is not noticed"),
        }
    }

    /// Why no restore is planned, or goes on.
    fn missing(&self) -> String {
        match self.latest() {
            Err(Error::Generations(error)) => error.to_string(),
            Err(error) => panic!("another error: {error}"),
            Ok(_) => panic!("nothing is missed"),
        }
    }
}

fn moment(second: u64) -> Point {
    Point::Time(Timestamp(i64::try_from(second).unwrap() * 1000))
}

fn restored(name: &str) -> Vec<u8> {
    fs::read(golden(&format!("litestream-0.3.13/restored/{name}.db"))).unwrap()
}

/// As Litestream writes it, but for what `change` sets.
fn compress(bytes: &[u8], change: impl FnOnce(FrameInfo) -> FrameInfo) -> Vec<u8> {
    let info = FrameInfo::new().content_checksum(true).block_size(BlockSize::Max4MB);
    let mut encoder = FrameEncoder::with_frame_info(change(info), Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn expand(bytes: &[u8]) -> Vec<u8> {
    let mut decoder = lz4_flex::frame::FrameDecoder::new(bytes);
    let mut expanded = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut expanded).unwrap();
    expanded
}

#[test]
fn each_moment_is_what_litestream_makes_of_it() {
    let bench = Bench::new();
    assert!(bench.latest().unwrap() == restored("latest"));
    for (second, name) in [
        (1, "2023-11-14T22-13-21Z"),
        (5, "2023-11-14T22-13-25Z"),
        (11, "2023-11-14T22-13-31Z"),
        (26, "latest"),
        (u64::from(u32::MAX), "latest"),
    ] {
        let (bytes, report) = bench.restore(moment(BEGIN + second)).unwrap();
        assert!(bytes == restored(name), "{name}");
        assert_eq!(bytes.len() as u64, u64::from(report.commit) * 4096);
    }
    // The way there does not matter.
    let (bytes, report) = Bench::from_the_start().restore(Point::Latest).unwrap();
    assert!(bytes == restored("latest"));
    assert_eq!((report.index, report.objects), (0, 24));
}

/// What damage to one object may at worst do: an error that names it, or nothing at all. LZ4 has
/// bits that stand for nothing, and more than one way to write the same bytes.
///
/// Tries every bit of the frame's header and end, and one bit in `every` of the others; as well every
/// `every`th length.
fn damage(bench: &Bench, object: &str, every: usize) {
    let (good, expected) = (bench.read(object), bench.latest().unwrap());
    let (mut flips, mut harmless) = (0, 0);
    let near_an_end = |at| at < 16 || at + 16 > good.len();
    for bit in (0..8 * good.len()).filter(|bit| near_an_end(bit / 8) || bit % every == 0) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        bench.write(object, &bad);
        flips += 1;
        match bench.latest() {
            Err(Error::Object { path, .. }) => assert!(path.ends_with(object), "{path}"),
            Err(error) => panic!("{object}, bit {bit}: {error}"),
            Ok(bytes) => {
                assert!(bytes == expected, "{object}, bit {bit}: damage passes");
                assert!(expand(&bad) == expand(&good));
                harmless += 1;
            }
        }
    }
    assert!(harmless * 20 <= flips, "{object}: {harmless} of {flips} flipped bits do nothing");
    for len in (0..good.len()).filter(|len| near_an_end(*len) || len % every == 0) {
        bench.write(object, &good[..len]);
        bench.refused(object);
    }
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9];
    for more in [&[0][..], &[0; 3], &[0; 4], &vec![0; 100_000], &skippable, &good] {
        bench.write(object, &[&good, more].concat());
        assert!(bench.refused(object).contains("bytes behind its end"));
    }
    bench.write(object, &good);
    assert!(bench.latest().unwrap() == expected);
}

#[test]
fn no_damage_to_a_snapshot_passes() {
    damage(&Bench::of_one_wal(), "snapshots/00000000.snapshot.lz4", 3);
    damage(&Bench::new(), "snapshots/00000008.snapshot.lz4", 997);
}

#[test]
fn no_damage_to_a_segment_passes() {
    let bench = Bench::of_one_wal();
    damage(&bench, "wal/00000000_00000000.wal.lz4", 5);
    damage(&bench, "wal/00000000_00004080.wal.lz4", 61);
    damage(&Bench::new(), "wal/00000008_00000000.wal.lz4", 3);
}

#[test]
fn nothing_but_a_frame_with_a_checksum_is_taken() {
    let bench = Bench::new();
    let snapshot = "snapshots/00000008.snapshot.lz4";
    let bytes = expand(&bench.read(snapshot));
    let same = |frame| frame;
    for change in [
        same,
        |frame: FrameInfo| frame.block_size(BlockSize::Max64KB),
        |frame: FrameInfo| frame.block_mode(BlockMode::Linked).block_size(BlockSize::Max64KB),
        |frame: FrameInfo| frame.block_checksums(true),
        |frame: FrameInfo| frame.content_size(Some(73728)),
    ] {
        bench.write(snapshot, &compress(&bytes, change));
        assert!(bench.latest().unwrap() == restored("latest"));
    }
    bench.write(snapshot, &compress(&bytes, |frame| frame.content_checksum(false)));
    assert!(bench.refused(snapshot).contains("checksum of its content"));
    let good = compress(&bytes, same);
    // A frame of the old form, and one to be passed over.
    for magic in [0x184c_2102_u32, 0x184d_2a50] {
        bench.write(snapshot, &[&magic.to_le_bytes(), &good[4..]].concat());
        assert!(bench.refused(snapshot).contains("no LZ4 frame"));
    }
    // An empty block is no end, though the decoder takes it for one.
    let end = good.len() - 8;
    bench.write(snapshot, &[&good[..end], &[0, 0, 0, 0x80], &good[end..]].concat());
    assert!(bench.refused(snapshot).contains("has no end"));
    for nothing in [&[][..], &bytes[..100], &[7; 4096]] {
        bench.write(snapshot, &compress(nothing, same));
        bench.refused(snapshot);
    }
}

#[test]
fn a_wal_is_right_up_to_its_last_byte() {
    let bench = Bench::from_the_start();
    let last = "wal/00000000_00004080.wal.lz4";
    let (good, frame_len) = (expand(&bench.read(last)), 24 + 4096);
    let frames = good.len() / frame_len;
    assert_eq!(good.len(), frames * frame_len);
    let same = |frame| frame;
    let refused = |bytes: &[u8]| {
        bench.write(last, &compress(bytes, same));
        bench.refused(last)
    };
    for at in (0..good.len()).step_by(211) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(refused(&bad).contains("no transaction with right checksums"), "byte {at}");
    }
    for len in (0..good.len()).step_by(499).filter(|len| len % frame_len != 0) {
        assert!(refused(&good[..len]).contains("no transaction"), "{len} bytes");
    }
    refused(&[&good[..], &[0; 10]].concat());
    // A frame that no commit follows.
    let mut bad = good.clone();
    let at = (frames - 1) * frame_len;
    bad[at + 4..at + 8].fill(0);
    refused(&bad);
    bench.write(last, &compress(&good, same));

    let first = "wal/00000008_00000000.wal.lz4";
    let good = expand(&bench.read(first));
    for at in 0..32 {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bench.write(first, &compress(&bad, same));
        assert!(bench.refused(first).contains("header of a WAL"), "byte {at}");
    }
    // A header without a frame is a WAL in which nothing is committed yet.
    bench.write(first, &compress(&good[..32], same));
    let before = bench.latest().unwrap();
    assert_eq!(before.len(), restored("latest").len());
    assert!(before != restored("latest"));
}

#[test]
fn what_is_missing_is_named() {
    let bench = Bench::from_the_start();
    let objects = bench.generations.objects();
    for (object, next) in objects.iter().zip(objects.iter().skip(1)).skip(1) {
        let (path, away) = (bench.path(object), bench.dir.path().join("..").join("away"));
        let away = away.with_file_name(format!("away-{}", std::process::id()));
        fs::rename(&path, &away).unwrap();
        let index = &object[4..12];
        if object.contains("_00000000") && index == &next[4..12] {
            let said = bench.missing();
            assert!(said.contains(&format!("bytes 00000000 to {} of WAL {index}", &next[13..21])));
        } else if index == &next[4..12] {
            let said = bench.missing();
            assert!(said.contains(&format!("bytes {} to", &object[13..21])), "{object}: {said}");
        } else {
            // The last of a WAL: what the next one builds on is not there.
            let name = next.as_str();
            let what = match bench.latest() {
                Err(Error::Object { path, what }) if path.ends_with(name) => what,
                Err(error) => panic!("{object}: {error}"),
                Ok(bytes) => {
                    assert!(bytes == restored("latest"), "{object}: its loss passes");
                    String::from("what was before it is missing")
                }
            };
            assert!(what.contains("what was before it is missing"), "{object}: {what}");
        }
        fs::rename(&away, &path).unwrap();
    }
    for index in ["00000000", "00000004", "00000007"] {
        let bench = Bench::from_the_start();
        for object in objects.iter().filter(|object| object.starts_with(&format!("wal/{index}"))) {
            bench.remove(object);
        }
        assert!(bench.missing().contains(&format!("WAL {index} of generation ebcc5c9659d4a37f")));
        // What was before it can be had.
        bench.restore(moment(BEGIN)).unwrap();
    }
    // A segment that begins before the one in front of it ends.
    let bench = Bench::from_the_start();
    let second = "wal/00000002_00001038.wal.lz4";
    fs::copy(bench.path(second), bench.path("wal/00000002_00001000.wal.lz4")).unwrap();
    assert!(bench.refused("wal/00000002_00001000.wal.lz4").contains("reaches to byte 00001038"));
}

#[test]
fn a_snapshot_of_other_pages_is_refused() {
    let bench = Bench::new();
    let snapshot = "snapshots/00000008.snapshot.lz4";
    let mut bytes = expand(&bench.read(snapshot));
    bytes[16..18].copy_from_slice(&8192u16.to_be_bytes());
    bench.write(snapshot, &compress(&bytes, |frame| frame));
    let said = bench.refused("wal/00000008_00000000.wal.lz4");
    assert!(said.contains("have 4096 bytes, and those of the database before it 8192"), "{said}");
}

/// The golden files of Litestream 0.5.17 beside those of 0.3.13: both, and which is planned.
struct Both {
    bench: Bench,
    levels: TempDir,
}

impl Both {
    /// The newest object of Litestream 0.3 is of this second.
    fn new(newest: u64) -> Both {
        let (bench, levels) = (Bench::new(), copy_golden("litestream-0.5.17", "ltx"));
        let objects = bench.generations.objects();
        for (object, second) in objects.iter().rev().zip(0..) {
            set_time(&bench.path(object), newest - second);
        }
        fs::rename(levels.path().join("ltx"), bench.generations.replica.path().join("ltx"))
            .unwrap();
        Both { bench, levels }
    }

    /// The time of what is planned of Litestream 0.3, in seconds, if the levels have nothing newer.
    fn planned(&self, point: Point) -> Result<Option<i64>, Error> {
        let plan = block_on(plan(self.bench.store().as_ref(), point))?;
        Ok(plan.map(|plan| plan.time().0 / 1000))
    }
}

#[test]
fn of_both_the_newer_state_is_restored() {
    // The files of the levels are of 2026-11-22T12:48:32.804Z to 12:49:04.196Z.
    let (first, last) = (1_795_351_712, 1_795_351_744);
    let upgraded = Both::new(BEGIN + 26);
    assert_eq!(upgraded.planned(Point::Latest).unwrap(), None);
    assert_eq!(upgraded.planned(Point::Txid(Txid(1))).unwrap(), None);
    for (second, expected) in [
        (BEGIN + 3, Some(BEGIN + 3)),
        (first, Some(BEGIN + 26)),
        (first + 1, None),
        (last + 9, None),
    ] {
        let expected = expected.map(u64::cast_signed);
        assert_eq!(upgraded.planned(moment(second)).unwrap(), expected, "{second}");
    }
    let error = upgraded.planned(moment(BEGIN - 1)).unwrap_err();
    let Error::TooEarly { range, .. } = error else { panic!("{error}") };
    assert_eq!(range.first.to_string(), "2023-11-14T22:13:20Z");
    assert_eq!(range.last.to_string(), "2026-11-22T12:49:04.196Z");

    let gone_back = Both::new(last + 100);
    assert_eq!(gone_back.planned(Point::Latest).unwrap(), Some((last + 100).cast_signed()));
    assert_eq!(gone_back.planned(moment(last + 1)).unwrap(), None);
    assert_eq!(gone_back.planned(moment(last + 99)).unwrap(), Some((last + 99).cast_signed()));
    assert!(gone_back.bench.latest().unwrap() == restored("latest"));
    assert!(gone_back.levels.path().exists());
    // What is missing there is told, not replaced by what is older.
    gone_back.bench.remove("snapshots/00000008.snapshot.lz4");
    gone_back.bench.remove("wal/00000007_00000000.wal.lz4");
    assert!(gone_back.bench.missing().contains("WAL 00000007"));
}

#[test]
fn only_objects_of_its_form_count() {
    let bench = Bench::new();
    let (replica, folder) = (bench.generations.replica.path(), &bench.generations.folder);
    let before = block_on(list(bench.store().as_ref())).unwrap();
    assert_eq!((before.len(), before[0].objects().count()), (1, 27));
    fs::write(folder.join("wal/00000009_00000000.wal.lz4.tmp"), "x").unwrap();
    fs::write(folder.join("README"), "x").unwrap();
    fs::create_dir(folder.join("wal/00000009_00000000.wal.lz4")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.join("snapshots/00000009.snapshot.lz4"))
        .unwrap();
    fs::create_dir(replica.join("generations/other")).unwrap();
    assert_eq!(block_on(list(bench.store().as_ref())).unwrap(), before);
    fs::remove_dir_all(replica.join("generations")).unwrap();
    fs::write(replica.join("generations"), "x").unwrap();
    assert_eq!(block_on(list(bench.store().as_ref())).unwrap(), []);
    let nowhere: Arc<dyn Store> = Arc::new(FileStore::new(Path::new("/nowhere/at/all")));
    assert_eq!(block_on(plan(nowhere.as_ref(), Point::Latest)).unwrap(), None);
}
