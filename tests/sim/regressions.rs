//! Histories that once broke a promise.

use crate::bug::Bug;
use crate::runner::verdict;

fn holds(seed: u64) {
    verdict(seed, Bug::None).0.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
}

#[test]
fn the_first_history() {
    holds(0);
}
