//! The two clocks, for the code that does I/O. The core gets the time from its callers.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::units::Timestamp;

/// Returns the milliseconds since the machine was started, including the time that it slept. The processes of
/// a host give each other times by this clock, which never goes back.
pub(crate) fn since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let millis = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
    u64::try_from(millis).unwrap_or(0)
}

/// Returns an id that only this boot of the machine has; `None` if the system gives none.
pub(crate) fn boot() -> Option<u64> {
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        u64::from_str_radix(text.trim().replace('-', "").get(..16)?, 16).ok()
    })
}

/// Returns the time of the wall clock, which can be set to any time.
pub(crate) fn wall() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(now.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)))
}
