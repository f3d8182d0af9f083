//! How many files the process may have open: each database takes about a dozen.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that a database takes: two for each connection and two connections, the pin, the WAL, and
/// what is beside the database.
const EACH: u64 = 12;
/// Files that the rest of the process takes.
const OTHERS: u64 = 64;

/// Raises the soft limit as far as it goes.
pub(super) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() && limit.current.is_some() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}

/// What the limit should be, if it is less than so many databases take.
pub(super) fn too_low_for(databases: usize) -> Option<(u64, u64)> {
    let needed = u64::try_from(databases).unwrap_or(u64::MAX).saturating_mul(EACH) + OTHERS;
    let limit = getrlimit(Resource::Nofile).current?;
    (limit < needed).then_some((limit, needed))
}
