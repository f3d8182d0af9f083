//! walferry replicates SQLite databases to object storage from inside the process that writes
//! them. This library is everything but the border to SQLite, which is `sqlite-ext/`.
pub mod local;
pub mod ltx;
pub mod store;
pub mod units;
pub mod wal;
