//! Simulated histories: the production's engine, planner and codec, with models of database, disk,
//! process and store, on a virtual clock.
//!
//! `WALFERRY_SEED=n` runs one history and prints what happened in it; `WALFERRY_SEEDS=n` says how
//! many histories to run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]
#![allow(clippy::needless_pass_by_value)]

mod capture;
mod checks;
mod database;
mod disk;
mod host;
mod rng;
mod ship;
mod store;
mod whole;
mod world;

use world::{Bug, Tally, run};

const SEEDS: u64 = 500;
/// Within so many histories each mistake must show.
const CANARY_SEEDS: u64 = 4000;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn every_history_keeps_what_was_promised() {
    if let Some(seed) = setting("WALFERRY_SEED") {
        let outcome = run(seed, Bug::None);
        outcome.lines.iter().for_each(|line| println!("{line}"));
        outcome.verdict.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        return;
    }
    let mut sum = Tally::default();
    let mut failed = Vec::new();
    for seed in 0..setting("WALFERRY_SEEDS").unwrap_or(SEEDS) {
        let outcome = run(seed, Bug::None);
        if let Err(why) = outcome.verdict {
            failed.push(format!("WALFERRY_SEED={seed}: {why}"));
        }
        sum.commits += outcome.tally.commits;
        sum.crashes += outcome.tally.crashes;
        sum.files += outcome.tally.files;
        sum.images += outcome.tally.images;
        sum.fenced += outcome.tally.fenced;
    }
    println!("{sum:?}");
    assert!(failed.is_empty(), "{} histories failed:\n{}", failed.len(), first(&failed));
}

fn first(lines: &[String]) -> String {
    lines[..lines.len().min(20)].join("\n")
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
    let bugs = [
        Bug::AckBeforeDurable,
        Bug::StateBeforeSpool,
        Bug::ReleaseBeforeAck,
        Bug::SkipTxid,
        Bug::GateOpenEarly,
        Bug::DropPage,
        Bug::ForgetDivergence,
        Bug::FenceIgnored,
        Bug::StaleIndex,
        Bug::StaleGrant,
        Bug::GenerationUnchecked,
        Bug::JoinedComesLater,
        Bug::LagForgotten,
        Bug::CleanWhileUnknown,
    ];
    for bug in bugs {
        let found = (0..CANARY_SEEDS).find_map(|seed| {
            let verdict = std::panic::catch_unwind(|| run(seed, bug).verdict);
            match verdict {
                Ok(Ok(())) => None,
                Ok(Err(why)) => Some((seed, why)),
                Err(_) => Some((seed, "the model's own assertion".into())),
            }
        });
        println!("{bug:?}: {found:?}");
        assert!(found.is_some(), "{bug:?} stays hidden");
    }
}
