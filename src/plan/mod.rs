//! Decisions as values: what to read, from nothing but a listing. No I/O, no clock.

pub mod chain;
pub mod restore;

pub use restore::{Error, Plan, Target};
