//! Decisions as values, made from a listing alone: files to read, to compact and to delete. No I/O, no
//! clock.

pub mod chain;
pub mod compact;
pub mod generations;
pub mod points;
pub mod restore;
pub mod retain;

pub use restore::{Error, Plan, Target};
