//! Runs many histories, on all cores.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bug::Bug;
use crate::world::{Tally, run};

/// What a range of seeds came to.
#[derive(Default)]
pub struct Report {
    pub sum: Tally,
    /// Seeds whose history broke a promise, and which.
    pub failed: Vec<(u64, String)>,
}

/// Why a history failed, if it did. The model's own assertions count.
pub fn verdict(seed: u64, bug: Bug) -> (Result<(), String>, Tally) {
    let ran = std::panic::catch_unwind(|| {
        let outcome = run(seed, bug);
        (outcome.verdict, outcome.tally)
    });
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        (Err(format!("panic: {}", text.unwrap_or_default())), Tally::default())
    })
}

/// Runs all seeds; with `first_only` it ends soon after the first that fails.
pub fn run_all(seeds: Range<u64>, bug: Bug, first_only: bool) -> Report {
    let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
    let report = Mutex::new(Report::default());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut mine = Report::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let (verdict, tally) = verdict(seed, bug);
                    mine.sum += tally;
                    if let Err(why) = verdict {
                        mine.failed.push((seed, why));
                        if first_only {
                            next.fetch_max(end, Ordering::Relaxed);
                        }
                    }
                }
                let mut all = report.lock().expect("no thread panics while it holds this");
                all.sum += mine.sum;
                all.failed.append(&mut mine.failed);
            });
        }
    });
    let mut report = report.into_inner().expect("all threads are done");
    report.failed.sort();
    report
}
