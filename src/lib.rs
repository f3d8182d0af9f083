//! walferry replicates SQLite databases to object storage from inside the process that writes them. This
//! library holds everything except the border to SQLite, which is in `sqlite-ext/`.
#[cfg(test)]
#[path = "../tests/fuzz/src/allocated.rs"]
mod allocated;
pub mod blocking;
pub mod border;
mod buffer;
pub mod canonical;
mod claim;
#[cfg(feature = "cli")]
pub mod cli;
mod clock;
pub mod config;
pub mod database;
pub mod descriptors;
pub mod engine;
pub mod environment;
pub mod finding;
#[cfg(feature = "cli")]
pub mod follow;
mod gate;
pub mod history;
pub mod local;
mod log_end;
pub mod logging;
pub mod ltx;
mod nearest;
mod neighbours;
pub mod plan;
pub mod process;
pub mod replications;
pub mod restore;
mod rooms;
pub mod scratch;
mod sealer;
pub mod settings;
mod shipper;
pub mod shown;
mod standby;
pub mod status;
pub mod store;
mod tender;
pub mod units;
pub mod uri;
#[cfg(feature = "cli")]
pub mod verify;
pub mod wait;
pub mod wal;
mod watched;
pub mod withheld;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: allocated::Counting = allocated::Counting;
