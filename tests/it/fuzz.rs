//! The fuzz targets of `tests/fuzz` on their corpora, and on some thousand mutations of these,
//! the same ones each time. `make fuzz` goes on from there.

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/allocated.rs"]
pub mod allocated;
#[path = "../fuzz/src/targets.rs"]
mod targets;

#[global_allocator]
static ALLOCATOR: allocated::Counting = allocated::Counting;

/// Mutations of a corpus's files that are tried, over all of them.
const MUTATIONS: u64 = 4000;

/// Longest input in bytes that a mutation grows to.
const LEN_MAX: usize = 16 << 10;

/// Keeps what a target was doing when it failed.
struct Case<'a> {
    target: &'a str,
    name: String,
    bytes: &'a [u8],
}

impl Drop for Case<'_> {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", self.target));
            let kept = fs::write(&path, self.bytes);
            eprintln!("{} fails on {}: {} {kept:?}", self.target, self.name, path.display());
        }
    }
}

fn run(target: targets::Target, name: String, bytes: &[u8]) {
    let case = Case { target: target.0, name, bytes };
    (target.1)(case.bytes);
}

/// The files of a corpus, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() >= 8, "only {} files in {}", files.len(), folder.display());
    files
}

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Changes one to four things; `other` is where foreign bytes come from.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let numbers = [0, 1, 0x7f, 0x80, 0xff, 0x200, 0xffff, 1 << 31, u64::MAX, 1 << 63];
        let number = numbers[random.below(numbers.len())].to_be_bytes();
        match random.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.next() as u8),
            4 => {
                let len = [1, 2, 4, 8][random.below(4)];
                let end = bytes.len().min(at + len);
                bytes.splice(at..end, number[8 - len..].iter().copied());
            }
            5 => {
                let end = at + random.below(bytes.len() - at);
                bytes.drain(at..end);
            }
            6 => {
                let from = random.below(other.len());
                let len = random.below(other.len() - from);
                let end = bytes.len().min(at + len);
                bytes.splice(at..end, other[from..from + len].iter().copied());
            }
            _ => {
                let end = at + random.below((bytes.len() - at).min(64));
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
        bytes.truncate(LEN_MAX);
    }
}

fn replay(name: &str) {
    let target = *targets::ALL.iter().find(|(known, _)| *known == name).expect("a target");
    let files = corpus(name);
    for (file, bytes) in &files {
        run(target, file.clone(), bytes);
    }
    let mut random = Random(0x5eed_0fa1_1fe5_7a6e);
    for number in 0..MUTATIONS {
        let (file, bytes) = &files[random.below(files.len())];
        let (_, other) = &files[random.below(files.len())];
        let mut bytes = bytes.clone();
        mutate(&mut bytes, other, &mut random);
        run(target, format!("mutation {number}, of {file}"), &bytes);
    }
}

macro_rules! replay {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*

        #[test]
        fn every_target_is_replayed() {
            assert_eq!([$(stringify!($target)),*], targets::ALL.map(|(name, _)| name));
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/fuzz_targets");
            for (name, _) in targets::ALL {
                let text = fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
                assert!(text.contains(&format!("targets::{name}(")), "{text}");
            }
            assert_eq!(fs::read_dir(folder).unwrap().count(), targets::ALL.len());
        }
    };
}

replay! { ltx_file ltx_header ltx_page ltx_index wal names local }

#[test]
fn memory_is_counted() {
    let held = allocated::within(2 << 20, || vec![1u8; 1 << 20]);
    let too_much = std::panic::catch_unwind(|| allocated::within(1 << 19, || vec![1u8; 1 << 20]));
    assert!(too_much.is_err() && held.len() == 1 << 20);
}
