//! How many files the process may still open.
//!
//! Near the limit the application comes first: what is kept open for each database (the pin, the shipper's
//! place) is not opened while so few descriptors are left.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Descriptors that are left to the application: one of sixteen, and at most so many.
const RESERVE: u64 = 64;

/// The number of standard error, behind those of standard input and output.
const STANDARD_LAST: RawFd = 2;

/// The limit on open files, if so few are left of it that they are the application's.
///
/// The kernel gives out the lowest free number (`open(2)`), which tells how many of those above it can be
/// free at the most.
pub fn scarce() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile).current?;
    let lowest = match probe() {
        Ok(probe) => u64::try_from(probe.as_raw_fd()).unwrap_or(0),
        Err(Errno::MFILE | Errno::NFILE) => limit,
        // Nothing of this is about descriptors.
        Err(_) => return None,
    };
    is_scarce(limit, lowest).then_some(limit)
}

/// Returns the number that the next descriptor gets, if no other thread opens or closes one meanwhile.
pub fn lowest_free() -> Option<i32> {
    probe().ok().map(|probe| probe.as_raw_fd())
}

/// Any descriptor: this one can be had without a right to read, and in a changed root.
fn probe() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Takes the numbers of standard input, output and error that are free, until the answer is dropped, so that
/// what is opened meanwhile gets none of them. Nothing can be read or written through what takes them.
pub fn take_standard() -> Result<Vec<OwnedFd>, Errno> {
    let mut taken = Vec::new();
    loop {
        let lowest = probe()?;
        if lowest.as_raw_fd() > STANDARD_LAST {
            return Ok(taken);
        }
        taken.push(lowest);
    }
}

fn is_scarce(limit: u64, lowest: u64) -> bool {
    limit.saturating_sub(lowest) < (limit / 16).min(RESERVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_them_are_the_applications() {
        assert!(!is_scarce(1024, 960), "64 are left of 1,024");
        assert!(is_scarce(1024, 961));
        assert!(!is_scarce(524_288, 524_224), "never more than 64");
        assert!(is_scarce(524_288, 524_225));
        assert!(!is_scarce(160, 150), "10 are left of 160");
        assert!(is_scarce(160, 151));
        assert!(is_scarce(1024, 1024), "none is left");
        assert!(!is_scarce(8, 7), "a limit that small is nobody's");
    }
}
