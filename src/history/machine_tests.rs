#![allow(clippy::unwrap_used)]

use super::*;

const LEVELS: [Millis; 2] = [30_000, 300_000];

fn history() -> History {
    let keep = Some(Keep { all: Some(1000), l0: 1000 });
    let options = Options { levels: LEVELS.to_vec(), keep, ..Options::default() };
    let mut history = History::new(options);
    history.handle(0, Event::Acked(file(9, 1, 0)));
    history
}

fn file(level: u8, txid: u64, time: i64) -> FileInfo {
    let (level, time) = (Level::new(level).unwrap(), Timestamp(time));
    let key = Key { level, name: FileName::single(Txid(txid)) };
    FileInfo { key, len: 1000, modified: time, stored: time }
}

fn acked(history: &mut History, now: Millis, txid: u64, time: i64) -> Option<Work> {
    history.handle(now, Event::Acked(file(0, txid, time)));
    history.poll(now, Own::NONE)
}

fn joins(work: Option<Work>) -> (u8, u64, u64) {
    let Some(Work::Join(step)) = work else { panic!("{work:?}") };
    let FileName { min, max } = step.key.name;
    (step.key.level.get(), min.0, max.0)
}

#[test]
fn the_next_transaction_closes_a_window() {
    let mut history = history();
    assert_eq!(acked(&mut history, 1000, 2, 1000), None);
    assert_eq!(acked(&mut history, 29_000, 3, 29_000), None);
    // Without a new transaction there is no work, no matter how much time passes.
    assert_eq!(history.poll(9_000_000, Own::NONE), None);
    assert_eq!(joins(acked(&mut history, 31_000, 4, 31_000)), (1, 2, 3));
    assert_eq!(history.poll(31_000, Own::NONE), None, "one thing at a time");
}

#[test]
fn a_log_whose_time_stands_still_is_joined_all_the_same() {
    let mut history = history();
    let ahead = 400 * 86_400_000;
    // The clock jumps ahead, which closes all windows, and back.
    let mut work = acked(&mut history, 1000, 2, ahead);
    assert_eq!(work, None, "there is nothing before it");
    for second in 2..40 {
        assert_eq!(work, None, "{second}");
        work = acked(&mut history, second * 1000, second + 1, ahead + second.cast_signed());
        if second == 31 {
            assert_eq!(joins(work.take()), (1, 2, 31));
        }
    }
}

#[test]
fn what_failed_waits_for_the_next_transaction() {
    let mut history = history();
    acked(&mut history, 1000, 2, 1000);
    assert_eq!(joins(acked(&mut history, 31_000, 3, 31_000)), (1, 2, 2));
    let failure = Failure::Store { kind: ErrorKind::Unavailable, message: "no answer".into() };
    history.handle(32_000, Event::Failed(failure));
    assert_eq!(history.status().failure.as_deref(), Some("no answer"));
    assert_eq!(history.poll(9_000_000, Own::NONE), None);
    // This transaction does not close a window, but the chore is still due.
    assert_eq!(joins(acked(&mut history, 9_000_000, 4, 31_500)), (1, 2, 3));
}

#[test]
fn files_that_are_missing_are_told_until_an_image_comes() {
    let validation = 10_000;
    let mut history = History::new(Options { validation, ..Options::default() });
    history.handle(0, Event::Acked(file(9, 1, 0)));
    for txid in 2..=3 {
        assert_eq!(acked(&mut history, 0, txid, 1000), None);
    }
    let Some(Work::Prove(step)) = acked(&mut history, 0, 4, 11_000) else { panic!() };
    assert_eq!(step.key.name.max, Txid(4));
    // One of the files is missing.
    let gone = Failure::Store { kind: ErrorKind::NotFound, message: "no such file".into() };
    history.handle(0, Event::Failed(gone));
    assert_eq!(acked(&mut history, 1000, 5, 11_001), Some(Work::Survey));
    let listing = || vec![file(9, 1, 0), file(0, 2, 1000), file(0, 4, 11_000), file(0, 5, 11_001)];
    history.handle(1000, Event::Surveyed(listing()));
    let missing = "transactions 0000000000000003 to 0000000000000003 are missing";
    let says =
        |history: &History| history.status().failure.is_some_and(|why| why.contains(missing));
    for txid in 6..20 {
        assert!(history.poll(2000, Own::NONE).is_none() && says(&history));
        history.handle(2000, Event::Acked(file(0, txid, 11_002)));
    }
    // The next process reports the same failure. The chore lists the replica again in the next window.
    let mut next = History::new(Options { validation, ..Options::default() });
    next.resume(&history.saved().unwrap());
    assert!(says(&next));
    assert_eq!(acked(&mut history, 90_000, 20, 21_000), Some(Work::Survey));
    history.handle(90_000, Event::Surveyed(listing()));
    assert!(history.poll(90_000, Own::NONE).is_none() && says(&history));
    let image = FileName { min: Txid(1), max: Txid(21) };
    let image = Key { level: Level::SNAPSHOT, name: image };
    history.handle(0, Event::Acked(FileInfo { key: image, ..file(0, 21, 21_001) }));
    assert_eq!(history.status().failure, None);
}

#[test]
fn a_damaged_file_is_passed_over_and_stands_in_for_nothing() {
    let keep = Keep { all: None, l0: 1000 };
    let options =
        Options { levels: vec![30_000], check: 90_000, validation: 60_000, ..Options::default() };
    let mut history = History::new(Options { keep: Some(keep), ..options });
    history.handle(0, Event::Acked(file(9, 1, 0)));
    acked(&mut history, 0, 2, 1000);
    assert_eq!(joins(acked(&mut history, 0, 3, 31_000)), (1, 2, 2));
    let level_1 = file(1, 2, 1000);
    let joined = |file| Event::Joined { file, existed: false, proven: false };
    history.handle(0, joined(level_1));
    assert_eq!(joins(acked(&mut history, 0, 4, 61_000)), (1, 3, 3));
    history.handle(0, joined(file(1, 3, 31_000)));
    let Some(Work::Prove(step)) = history.poll(0, Own::NONE) else { panic!() };
    assert!(step.inputs.contains(&level_1));
    history.handle(0, Event::Damaged { key: level_1.key, message: "it is damaged".into() });
    // The inputs of the damaged file are not known any more, so the replica must be listed.
    let Some(Work::Survey) = history.poll(10_000, Own::NONE) else { panic!() };
    let mut listing: Vec<FileInfo> = (2..=4).map(|txid| file(0, txid, 1000)).collect();
    // The store lists the file with the time of its upload.
    let uploaded = FileInfo { modified: Timestamp(77), stored: Timestamp(78), ..level_1 };
    listing.extend([file(9, 1, 0), uploaded, file(1, 3, 31_000)]);
    history.handle(0, Event::Surveyed(listing.clone()));
    let Some(Work::Prove(step)) = history.poll(10_000, Own::NONE) else { panic!() };
    let reads = |key| step.inputs.iter().any(|file: &FileInfo| file.key == key);
    assert!(reads(file(0, 2, 1000).key) && !reads(level_1.key));
    history.handle(0, Event::Proved(Some(Txid(4))));
    let said = history.status().failure.unwrap();
    assert!(said.contains("1/0000000000000002-0000000000000002.ltx of the replica is damaged"));
    assert_eq!(joins(acked(&mut history, 10_000, 5, 91_000)), (1, 4, 4));
    history.handle(0, joined(file(1, 4, 61_000)));
    let Some(Work::Retain { damaged, .. }) = history.poll(10_000, Own::NONE) else { panic!() };
    assert_eq!(damaged, [level_1.key]);
    history.handle(0, Event::Retained { left: listing.clone(), removed: 0 });
    // Listings and a new process do not forget the damaged file.
    let mut next = History::new(Options { levels: vec![30_000], ..Options::default() });
    next.resume(&history.saved().unwrap());
    for history in [&mut next, &mut history] {
        history.take_over(listing.clone());
        assert!(history.is_damaged(level_1.key));
    }
    // A repaired file counts as a new file.
    let at = listing.iter().position(|file| *file == uploaded).unwrap();
    listing[at].modified = Timestamp(9);
    history.take_over(listing);
    assert_eq!(history.status().failure, None);
}

#[test]
fn files_that_contradict_each_other_are_read_once_in_a_window() {
    let mut history = History::new(Options { validation: 10_000, ..Options::default() });
    history.handle(0, Event::Acked(file(9, 1, 0)));
    let Some(Work::Prove(_)) = acked(&mut history, 0, 2, 10_000) else { panic!() };
    history.handle(0, Event::Contradicted("checksums differ".into()));
    for txid in 3..9 {
        assert_eq!(acked(&mut history, 9_000, txid, 11_000), None);
        assert_eq!(history.status().failure.as_deref(), Some("checksums differ"));
    }
    assert!(matches!(acked(&mut history, 9_000, 9, 21_000), Some(Work::Prove(_))));
    history.handle(0, Event::Proved(Some(Txid(9))));
    assert_eq!(history.status().failure, None);
}

#[test]
fn a_hole_in_what_is_known_is_looked_at() {
    let mut history = history();
    acked(&mut history, 1000, 2, 1000);
    let saved = history.saved().unwrap();
    // Another process shipped 3 and 4, and was killed.
    let mut next = History::new(Options { levels: LEVELS.to_vec(), ..Options::default() });
    next.resume(&saved);
    assert_eq!(acked(&mut next, 0, 5, 29_000), None);
    assert_eq!(acked(&mut next, 0, 6, 31_000), Some(Work::Survey));
    let mut files: Vec<FileInfo> = (2..=5).map(|txid| file(0, txid, 1)).collect();
    files.push(file(9, 1, 0));
    // Files that were confirmed while the replica was listed are not lost.
    next.handle(0, Event::Acked(file(0, 6, 31_000)));
    next.handle(0, Event::Acked(file(0, 7, 31_001)));
    next.handle(0, Event::Surveyed(files));
    assert_eq!(joins(next.poll(0, Own::NONE)), (1, 2, 5));
    assert_eq!(head(next.files.as_deref().unwrap()), Txid(7));
}
