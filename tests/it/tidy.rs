//! Rules of the house that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

/// Files of code may not grow beyond this many lines.
const LINES_MAX: usize = 800;

/// The core: values in, values out. What it may name of this crate. Of `scratch` it is handed the place: what
/// does not fit in memory goes where the caller says.
const CORE: [(&str, &[&str]); 4] = [
    ("src/ltx", &["units", "ltx", "scratch"]),
    ("src/wal", &["units", "wal", "scratch"]),
    ("src/plan", &["units", "ltx", "store", "plan"]),
    ("src/engine", &["units", "ltx", "store", "engine"]),
];

/// What the core must not do: it has no clock, no threads, no files, no network.
const CORE_WITHOUT: [&str; 6] =
    ["std::thread", "SystemTime", "Instant::now", "tokio", "std::net", "File::open"];

pub(super) fn files(root: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(root)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{root} has no code");
    found
}

pub(super) fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
}

/// The part of a file that is not its tests.
pub(super) fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

#[test]
fn the_core_names_nothing_of_the_shell() {
    for (root, allowed) in CORE {
        for (path, text) in files(root).iter().filter(|(path, _)| !is_test(path)) {
            for line in code(text).lines().filter(|line| !line.trim_start().starts_with("//")) {
                for part in line.split("crate::").skip(1) {
                    let module: String =
                        part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    assert!(
                        module.is_empty() || allowed.contains(&module.as_str()),
                        "{} names crate::{module}",
                        path.display()
                    );
                }
                for word in CORE_WITHOUT {
                    let file_of_wal = word == "File::open" && root == "src/wal";
                    assert!(
                        !line.contains(word) || file_of_wal,
                        "{} uses {word}: {line}",
                        path.display()
                    );
                }
            }
        }
    }
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let rooms = [
        "src/local/mapping.rs",
        "src/cli/extension.rs",
        "sqlite-ext/src/api",
        "sqlite-ext/src/ffi",
    ];
    for (path, text) in files("src").into_iter().chain(files("sqlite-ext/src")) {
        let known = rooms.iter().any(|room| {
            path.ends_with(room) || path.parent().is_some_and(|folder| folder.ends_with(room))
        });
        let uses = text.lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//") && (line.contains("unsafe {") || line.contains("unsafe impl"))
        });
        assert!(known || !uses, "{} has unsafe code", path.display());
    }
}

#[test]
fn files_stay_small_and_tests_do_not_sleep() {
    let roots = ["src", "sqlite-ext/src", "tests"];
    for (path, text) in roots.iter().flat_map(|root| files(root)) {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines: split it", path.display());
        let sleep = ["thread::", "sleep"].concat();
        assert!(!text.contains(&sleep), "{} sleeps: wait for a condition", path.display());
    }
}

#[test]
fn the_map_names_what_there_is() {
    let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let map = fs::read_to_string(map).expect("docs/architecture.md");
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("src") {
        let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
        let entry = name.as_str();
        if !["lib.rs", "main.rs", "settings.rs", "status.rs"].contains(&entry) {
            assert!(map.contains(&format!("`{entry}")), "the map does not name src/{entry}");
        }
    }
}

#[test]
fn every_finding_is_explained() {
    use walferry::finding::{Answer, Finding};
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = fs::read_to_string(root.join("docs/internals/findings.md")).expect("the findings");
    for finding in Finding::ALL {
        let answer = match finding.answer() {
            Answer::Compare => "comparison",
            Answer::Image => "image",
            Answer::Reopen => "open it again",
        };
        let row = map.lines().find(|line| line.starts_with(&format!("| `{}` |", finding.name())));
        assert!(
            row.is_some_and(|row| row.ends_with(&format!("| {answer} |"))),
            "{} is not in the table",
            finding.name()
        );
    }
}
