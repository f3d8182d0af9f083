//! What the fuzz targets are made of. The normal tests replay them (`tests/it/fuzz.rs`).

pub mod allocated;
pub mod targets;

#[global_allocator]
static ALLOCATOR: allocated::Counting = allocated::Counting;
