//! Files of a replica, as a table or as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::store::FileInfo;

/// One line a file under a heading.
pub(super) fn text<'a>(files: impl IntoIterator<Item = &'a FileInfo>) -> String {
    let mut text = format!("level  {:16}  {:16}  {:>12}  time\n", "min_txid", "max_txid", "bytes");
    for FileInfo { key, len, modified, .. } in files {
        let (min, max) = (key.name.min, key.name.max);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<5}  {min}  {max}  {len:>12}  {modified}", key.level.get());
    }
    text
}

/// One file as a JSON object.
pub(super) fn json(file: &FileInfo) -> Value {
    json!({
        "level": file.key.level.get(),
        "min_txid": file.key.name.min.to_string(),
        "max_txid": file.key.name.max.to_string(),
        "bytes": file.len,
        "time": file.modified.to_string(),
    })
}

/// `1 file`, `2 files`.
pub(super) fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
