//! Resolves a path to the file that it means, even if that file does not exist.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Most symbolic links that are followed for one path.
const LINKS_MAX: usize = 40;

/// Resolves links, `.` and `..` in a path, even if the path or folders above it do not exist yet
/// (`realpath -m`). A relative path starts at the working directory.
pub fn canonical(path: &Path) -> PathBuf {
    if let Ok(found) = std::fs::canonicalize(path) {
        return found;
    }
    let whole = match std::env::current_dir() {
        Ok(directory) => directory.join(path),
        Err(_) => path.to_path_buf(),
    };
    // Too many links mean a loop. No process can open such a path, so any name for it will do.
    resolve(&whole).unwrap_or(whole)
}

/// A part of a path that is not resolved yet.
enum Part {
    Root,
    Up,
    Down(OsString),
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = Part> {
    path.components().filter_map(|part| match part {
        Component::RootDir => Some(Part::Root),
        Component::ParentDir => Some(Part::Up),
        Component::Normal(name) => Some(Part::Down(name.to_os_string())),
        Component::CurDir | Component::Prefix(_) => None,
    })
}

fn resolve(whole: &Path) -> Option<PathBuf> {
    let mut left: VecDeque<Part> = parts(whole).collect();
    let mut resolved = PathBuf::new();
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        match part {
            Part::Root => resolved = PathBuf::from("/"),
            Part::Up => {
                resolved.pop();
            }
            Part::Down(name) => {
                resolved.push(name);
                let Ok(target) = std::fs::read_link(&resolved) else { continue };
                links += 1;
                if links > LINKS_MAX {
                    return None;
                }
                resolved.pop();
                for part in parts(&target).rev() {
                    left.push_front(part);
                }
            }
        }
    }
    Some(resolved)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_where_the_end_is_missing() {
        let dir = tempfile::TempDir::new().unwrap();
        let at = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(at.join("real/in")).unwrap();
        symlink("real", at.join("link")).unwrap();
        symlink(at.join("gone/away"), at.join("dangling")).unwrap();
        symlink("turn", at.join("round")).unwrap();
        symlink("round", at.join("turn")).unwrap();
        for (path, expected) in [
            ("real/in", "real/in"),
            ("link/in/../a.db", "real/a.db"),
            ("link/x/y/z", "real/x/y/z"),
            ("real/./x//y/../z", "real/x/z"),
            ("dangling/x", "gone/away/x"),
            ("round/x", "round/x"),
            ("nothing/../../up", "../up"),
        ] {
            let expected = match expected.strip_prefix("../") {
                Some(name) => at.parent().unwrap().join(name),
                None => at.join(expected),
            };
            assert_eq!(canonical(&at.join(path)), expected, "{path}");
        }
        assert_eq!(
            canonical(Path::new("nowhere/x")),
            std::env::current_dir().unwrap().join("nowhere/x")
        );
    }
}
