//! Replacing small files of local state.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::folder::{self, Nameless};
use super::{Context, Error, sync_folder};

/// Replaces a small file: temporary file, optional fsync, rename. Returns false if `holds` returns false
/// before the file has its name; then nothing is left behind.
pub(crate) fn replace_file(
    path: &Path,
    bytes: &[u8],
    durable: bool,
    holds: impl Fn() -> bool,
) -> Result<bool, Error> {
    if !holds() {
        return Ok(false);
    }
    let temp = path.with_extension("tmp");
    let write = |mut file: &File| {
        file.write_all(bytes).context("cannot write", &temp)?;
        if durable { file.sync_all().context("cannot sync", &temp) } else { Ok(()) }
    };
    // A file without a name does not disturb a process that removes the folder at the same time.
    let mut is_named = false;
    if let Some(nameless) = Nameless::create(&temp) {
        write(nameless.file())?;
        if !holds() {
            return Ok(false);
        }
        is_named = nameless.give_name().is_ok();
    }
    if !is_named {
        write(&folder::create(&temp).context("cannot create", &temp)?)?;
        if !holds() {
            folder::remove(&temp).context("cannot remove", &temp)?;
            return Ok(false);
        }
    }
    folder::rename(&temp, path).context("cannot replace", path)?;
    if durable {
        let parent = path.parent().unwrap_or(path);
        sync_folder(parent).context("cannot sync", parent)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_whole_with_or_without_a_temporary_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for (durable, text) in [(true, "first"), (false, "second")] {
            assert!(replace_file(&path, text.as_bytes(), durable, || true).unwrap());
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        // A crash left a temporary file.
        fs::write(dir.path().join("state.tmp"), "left").unwrap();
        assert!(replace_file(&path, b"third", true, || true).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "third");
        assert_eq!(names(dir.path()), ["state"]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_left_where_the_condition_ends_while_the_file_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for looks in 0..2 {
            let seen = Cell::new(0);
            let holds = || seen.replace(seen.get() + 1) < looks;
            assert!(!replace_file(&path, b"bytes", true, holds).unwrap());
            assert!(names(dir.path()).is_empty(), "{looks}");
        }
        assert!(replace_file(&path, b"bytes", true, || true).unwrap());
        assert_eq!(names(dir.path()), ["state"]);
    }
}
