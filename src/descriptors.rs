//! Tells how many more files the process may open.
//!
//! Near the limit the application comes first. Descriptors that walferry keeps open for each database (the
//! pin, the shipper's place) are not opened while so few are left.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Most descriptors that are left to the application; never more than a sixteenth of the limit.
const RESERVE: u64 = 64;

/// Number of standard error; standard input and output have the numbers before it.
const STANDARD_LAST: RawFd = 2;

/// Returns the limit on open files if so few descriptors are left that they belong to the application.
///
/// The kernel gives out the lowest free number (`open(2)`). So no more than the numbers from there to the
/// limit can be free.
pub fn scarce() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile).current?;
    let lowest = match probe() {
        Ok(probe) => u64::try_from(probe.as_raw_fd()).unwrap_or(0),
        Err(Errno::MFILE | Errno::NFILE) => limit,
        // The error has nothing to do with descriptors.
        Err(_) => return None,
    };
    is_scarce(limit, lowest).then_some(limit)
}

/// Returns the number that the next descriptor gets, unless another thread opens or closes one meanwhile.
pub fn lowest_free() -> Option<i32> {
    probe().ok().map(|probe| probe.as_raw_fd())
}

/// Opens any descriptor. `/` with `O_PATH` needs no right to read, and also opens in a changed root.
fn probe() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Takes the free numbers among standard input, output and error until the result is dropped, so no file
/// opened meanwhile gets one of them. The descriptors in the result can neither be read nor written.
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
