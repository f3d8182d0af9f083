//! Decisions as values: what to read, from nothing but a listing. No I/O, no clock.

pub mod chain;
pub mod compact;
pub mod generations;
pub mod points;
pub mod restore;
pub mod retain;

pub use restore::{Error, Plan, Target};
