//! The store backends: the contract that all share, and what is particular to each.

mod file;
mod herd;
mod s3;
