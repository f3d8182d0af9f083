//! All integration tests in one binary, a module for each part of walferry.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod asked;
mod cli;
mod command_line;
mod config;
mod delta;
mod follow;
mod fuzz;
mod generations;
mod history;
mod hostile;
mod listing;
mod memory;
mod month;
mod ratchets;
mod restore;
mod resume;
mod store;
mod support;
mod tidy;
mod verify;
