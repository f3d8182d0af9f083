//! How long to wait after failures: doubling, with jitter, up to a limit.

use super::Millis;

/// First wait after a failure that may pass by itself, in milliseconds.
const FIRST: Millis = 250;
/// Longest wait after such failures.
const LONGEST: Millis = 15_000;
/// Wait after a failure that somebody has to mend: wrong credentials, no such bucket.
const LASTING: Millis = 30_000;

/// Waiting time after failures.
#[derive(Clone, Debug)]
pub struct Backoff {
    failures: u32,
    due: Millis,
    random: u64,
}

impl Backoff {
    /// No failure yet. Equal seeds give equal waits.
    pub fn new(seed: u64) -> Backoff {
        Backoff { failures: 0, due: 0, random: seed | 1 }
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

    /// Forgets all failures.
    pub fn reset(&mut self) {
        self.failures = 0;
        self.due = 0;
    }

    /// Whether the wait is over.
    pub fn is_due(&self, now: Millis) -> bool {
        now >= self.due
    }

    /// When the wait is over; 0 when there is none.
    pub fn due(&self) -> Millis {
        self.due
    }

    /// xorshift64: enough to spread waits.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
