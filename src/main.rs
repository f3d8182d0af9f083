//! The walferry program.

use std::process::ExitCode;

fn main() -> ExitCode {
    walferry::cli::main()
}
