//! The two clocks, for those who do I/O; the core is given the time.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::units::Timestamp;

/// Milliseconds since the machine was started, with the time that it slept: the clock by which the
/// processes of a host tell each other times. Never goes back.
pub(crate) fn since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let millis = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
    u64::try_from(millis).unwrap_or(0)
}

/// Names the time since the machine was started, as no earlier or later one; `None` where the system does not.
pub(crate) fn boot() -> Option<u64> {
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        u64::from_str_radix(text.trim().replace('-', "").get(..16)?, 16).ok()
    })
}

/// What the wall clock shows, which anybody can set.
pub(crate) fn wall() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(now.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)))
}
