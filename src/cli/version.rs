//! `walferry version`.

use super::{Error, print};

pub(super) fn run() -> Result<(), Error> {
    print(concat!("walferry ", env!("CARGO_PKG_VERSION"), "\n"))
}
