//! walferry replicates SQLite databases to object storage from inside the process that writes
//! them. This library is everything but the border to SQLite, which is `sqlite-ext/`.
#[cfg(feature = "cli")]
pub mod cli;
pub mod ltx;
pub mod plan;
pub mod restore;
pub mod store;
pub mod units;
