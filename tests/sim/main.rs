//! Simulated histories: the production's engine, planner and codec, with models of database, disk,
//! processes and store, on a virtual clock.
//!
//! `WALFERRY_SEED=n` runs one history and prints what happened in it; `WALFERRY_SEEDS=n` says how
//! many histories to run; `WALFERRY_BUG=name` looks for one known mistake.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]
#![allow(clippy::needless_pass_by_value)]
// The events share one shape, and a model may say things at length.
#![allow(clippy::unnecessary_wraps, clippy::large_enum_variant, clippy::collapsible_match)]
#![allow(clippy::manual_is_multiple_of, clippy::bool_to_int_with_if)]

mod bug;
mod checks;
mod disk;
mod events;
mod finale;
mod host;
mod outsider;
mod process;
mod regressions;
mod rng;
mod runner;
mod sealer;
mod sqlite;
mod store;
mod world;

use bug::Bug;
use runner::run_all;
use world::{run, run_and};

const SEEDS: u64 = 2000;
/// Within so many histories each mistake must show.
const CANARY_SEEDS: u64 = 10_000;
/// Histories around the one that showed a mistake last are run first.
const AROUND: u64 = 4;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn every_history_keeps_what_was_promised() {
    if let Some(seed) = setting("WALFERRY_SEED") {
        let outcome = run_and(seed, Bug::None, true);
        outcome.verdict.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        return;
    }
    let first = setting("WALFERRY_FIRST").unwrap_or(0);
    let count = setting("WALFERRY_SEEDS").unwrap_or(SEEDS);
    let report = run_all(first..first + count, Bug::None, false);
    println!("{:?}", report.sum);
    let lines = report.failed.iter().map(|(seed, why)| format!("WALFERRY_SEED={seed}: {why}"));
    let lines: Vec<String> = lines.collect();
    let shown = lines[..lines.len().min(30)].join("\n");
    assert!(lines.is_empty(), "{} histories failed:\n{shown}", lines.len());
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..20 {
        assert_eq!(run(seed, Bug::None).lines, run(seed, Bug::None).lines, "seed {seed}");
    }
    assert_ne!(run(1, Bug::None).lines, run(2, Bug::None).lines);
}

#[test]
fn known_mistakes_are_found() {
    let only = std::env::var("WALFERRY_BUG").ok();
    let count = setting("WALFERRY_SEEDS").unwrap_or(CANARY_SEEDS);
    let mut hidden = Vec::new();
    let rare = bug::RARE.into_iter().filter(|_| only.is_some());
    for (bug, seen_at) in bug::ALL.into_iter().chain(rare) {
        if only.as_ref().is_some_and(|only| !format!("{bug:?}").contains(only)) {
            continue;
        }
        let mut report = run_all(seen_at.saturating_sub(AROUND)..seen_at + AROUND, bug, true);
        if report.failed.is_empty() {
            report = run_all(0..count, bug, true);
        }
        match report.failed.first() {
            Some((seed, why)) => println!("{bug:?}: seed {seed}: {why}"),
            None => hidden.push(bug),
        }
    }
    assert!(hidden.is_empty(), "these mistakes stay hidden: {hidden:?}");
}
