//! Waiting times after failures: doubling, with jitter, up to a limit.

use super::Millis;

/// First wait after a failure that may pass by itself, in milliseconds.
const FIRST: Millis = 250;
/// Longest wait after such failures.
const LONGEST: Millis = 15_000;
/// Wait after the fourth failure in a row, if a person has to mend the cause: wrong credentials, no such
/// bucket.
const LASTING: Millis = 30_000;
/// Number of failures in a row from which the cause is not expected to pass by itself.
const MAY_PASS: u32 = 3;

/// Waiting time after failures.
#[derive(Clone, Debug)]
pub struct Backoff {
    failures: u32,
    due: Millis,
    /// Time before which the other side wants no call, whatever else happens.
    not_before: Millis,
    random: u64,
}

impl Backoff {
    /// Returns a backoff without failures. Equal seeds give equal waits.
    pub fn new(seed: u64) -> Backoff {
        Backoff { failures: 0, due: 0, not_before: 0, random: seed | 1 }
    }

    /// Notes a failure at `now`.
    pub fn fail(&mut self, now: Millis, lasting: bool) {
        let doubled = FIRST << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        let wait = if lasting && self.failures > 3 { LASTING } else { doubled.min(LONGEST) };
        // Between half of the wait and all of it, so that many databases spread out.
        let spread = self.next_random() % (wait / 2 + 1);
        self.due = now.saturating_add(wait - spread);
    }

    /// Allows no call before `at`, as the other side asks. [`Backoff::reset`] does not shorten this wait.
    pub fn hold_until(&mut self, at: Millis) {
        self.not_before = self.not_before.max(at);
    }

    /// Forgets all failures.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.due = 0;
    }

    /// True if there were failures, but so few in a row that the cause may pass by itself within a second.
    pub fn may_pass(&self) -> bool {
        (1..MAY_PASS).contains(&self.failures)
    }

    /// True if the wait is over.
    pub fn is_due(&self, now: Millis) -> bool {
        now >= self.due()
    }

    /// Returns the end of the wait; 0 if there is none.
    pub fn due(&self) -> Millis {
        self.due.max(self.not_before)
    }

    /// Returns the next number of xorshift64, which is good enough to spread waits.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the waits after the first failures, each counted from the end of the wait before.
    fn waits(seed: u64, lasting: bool) -> Vec<Millis> {
        let mut backoff = Backoff::new(seed);
        let mut now = 1_000_000;
        let mut waits = Vec::new();
        for _ in 0..12 {
            backoff.fail(now, lasting);
            waits.push(backoff.due() - now);
            now = backoff.due();
        }
        waits
    }

    fn seeds() -> impl Iterator<Item = u64> {
        // Seeds as far apart as the random ids that seed real databases.
        (1..=1000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    #[test]
    fn waits_double_up_to_a_limit() {
        for seed in seeds() {
            let mut doubled = FIRST;
            for wait in waits(seed, false) {
                assert!((doubled / 2..=doubled).contains(&wait), "{wait} of {doubled}");
                doubled = (doubled * 2).min(LONGEST);
            }
            let lasting = waits(seed, true);
            assert!(lasting[4..].iter().all(|wait| (LASTING / 2..=LASTING).contains(wait)));
        }
    }

    #[test]
    fn databases_that_fail_together_do_not_come_back_together() {
        // A thousand databases lose their store at the same moment. In no tenth of a wait's width may more than
        // a fifth of them ask again.
        for failure in 0..12 {
            let mut due: Vec<Millis> =
                seeds().map(|seed| waits(seed, false)[..=failure].iter().sum()).collect();
            due.sort_unstable();
            let (first, last) = (due[0], due[due.len() - 1]);
            let width = ((FIRST << failure.min(6)).min(LONGEST) / 2).max(1);
            assert!(last - first >= width * 9 / 10, "failure {failure}: {first} to {last}");
            let slot = width / 10;
            let crowd = due
                .iter()
                .enumerate()
                .map(|(i, at)| due[i..].iter().take_while(|other| **other <= at + slot).count());
            let crowd = crowd.max().unwrap_or(0);
            assert!(crowd <= 200, "failure {failure}: {crowd} of 1000 within {slot} ms");
        }
    }

    #[test]
    fn what_the_other_side_asks_for_outlasts_a_reset() {
        let mut backoff = Backoff::new(7);
        backoff.hold_until(5000);
        backoff.fail(0, false);
        assert_eq!(backoff.due(), 5000);
        backoff.reset();
        assert!(!backoff.is_due(4999) && backoff.is_due(5000));
        backoff.hold_until(1000);
        assert_eq!(backoff.due(), 5000, "a shorter wish does not shorten a longer one");
        backoff.fail(20_000, false);
        assert!(backoff.due() > 20_000);
    }
}
