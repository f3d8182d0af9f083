//! All integration tests in one binary, a module for each part of walferry.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
mod fuzz;
mod generations;
mod history;
mod hostile;
mod month;
mod restore;
mod store;
mod support;
mod tidy;
mod verify;
