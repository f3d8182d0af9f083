//! The file `history`: what a process knew of the replica's files, for the next process. Without this file,
//! or with the file of another log, the next process lists the replica.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::replace::replace_file;
use super::state::{State, read_bounded};
use super::{Context, Error};
use crate::history::Saved;

/// Most bytes of the file: some tens of known files, or some thousands without compaction.
const LEN_MAX: u64 = 2 << 20;

#[derive(Serialize, Deserialize)]
struct Remembered {
    /// The writer of the log, and its replica.
    writer: u64,
    replica: String,
    known: Saved,
}

/// Reads what a process knew of the log that `state` is about. `None` if the file is missing, damaged or of
/// another log.
pub(crate) fn load(dir: &Path, state: &State) -> Option<Saved> {
    let text = read_bounded(&dir.join("history"), LEN_MAX).ok()?;
    let remembered: Remembered = serde_json::from_slice(&text).ok()?;
    let fits = remembered.writer == state.writer && remembered.replica == state.replica;
    fits.then_some(remembered.known)
}

/// Writes the file, if `holds` still returns true. If the text is too long to be read again, removes the
/// file.
pub(crate) fn save(
    dir: &Path,
    state: &State,
    known: Saved,
    holds: impl Fn() -> bool,
) -> Result<(), Error> {
    let path = dir.join("history");
    let remembered = Remembered { writer: state.writer, replica: state.replica.clone(), known };
    let text = serde_json::to_vec(&remembered).map_err(std::io::Error::other);
    let text = text.context("cannot encode", &path)?;
    if text.len() as u64 > LEN_MAX {
        return super::spool::remove_path(&path);
    }
    replace_file(&path, &text, false, holds).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::WriterId;

    #[test]
    fn what_is_no_history_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::new(WriterId(7), "file:///r");
        let path = dir.path().join("history");
        assert!(load(dir.path(), &state).is_none());
        for garbage in [b"".as_slice(), b"{\"wri", b"\0\xff\x7f", b"{}", b"null", b"[1,2]"] {
            std::fs::write(&path, garbage).unwrap();
            assert!(load(dir.path(), &state).is_none(), "{garbage:?}");
        }
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 43).unwrap();
        assert!(load(dir.path(), &state).is_none());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(load(dir.path(), &state).is_none());
    }
}
