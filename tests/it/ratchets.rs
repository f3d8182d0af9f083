//! Counts of habits that the project leaves behind, one by one. Each may only fall: whoever lowers a count lowers its
//! bound here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::tidy::{code, files, is_test};

/// A function with more lines of code is hard to hold in mind.
const LINES_OF_FUNCTION: usize = 70;
/// A doc comment does not begin with a word that hides the name of its thing.
const HIDING: [&str; 9] =
    ["What", "Whoever", "Who", "Nobody", "Somebody", "It", "That", "Whether", "They"];

fn product() -> Vec<(PathBuf, String)> {
    let all = files("src").into_iter().chain(files("sqlite-ext/src"));
    all.filter(|(path, _)| !is_test(path)).collect()
}

/// Fails unless the count is the bound.
fn ratchet(what: &str, found: usize, bound: usize, list: &[String]) {
    assert!(found <= bound, "{what}: {found}, and {bound} before: {list:#?}");
    assert!(found == bound, "{what}: {found}, and {bound} before. Lower the bound");
}

#[test]
fn errors_are_types() {
    let is_text = |line: &&str| line.contains("Result<") && line.contains(", String>");
    let mut list = Vec::new();
    for (path, text) in product() {
        let lines = code(&text).lines().filter(is_text);
        list.extend(lines.map(|line| format!("{}: {}", path.display(), line.trim())));
    }
    ratchet("results with a text as error", list.len(), 104, &list);
}

#[test]
fn functions_are_short() {
    let mut list = Vec::new();
    for (path, text) in product() {
        let lines: Vec<&str> = code(&text).lines().collect();
        for (first, line) in lines.iter().enumerate() {
            let start = line.trim_start();
            let is_function = start.starts_with("fn ") || start.contains(" fn ");
            if start.starts_with("//") || !is_function || !starts_a_body(&lines[first..]) {
                continue;
            }
            // rustfmt puts the last brace where the function begins.
            let end = format!("{}}}", &line[..line.len() - start.len()]);
            let last = lines[first..].iter().position(|line| *line == end).unwrap_or(0);
            let is_code = |line: &&&str| !line.trim_start().starts_with("//");
            let len = lines[first..=first + last].iter().filter(is_code).count();
            if len > LINES_OF_FUNCTION {
                list.push(format!("{}: {len} lines: {start}", path.display()));
            }
        }
    }
    ratchet("long functions", list.len(), 7, &list);
}

/// True if a function that begins here has a body of several lines.
fn starts_a_body(lines: &[&str]) -> bool {
    let end = lines.iter().find(|line| line.ends_with(['{', ';', '}']));
    end.is_some_and(|line| line.ends_with('{'))
}

#[test]
fn names_of_types_are_unique() {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for (_, text) in files("src").into_iter().filter(|(path, _)| !is_test(path)) {
        for line in code(&text).lines() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let is_item = |word: &str| ["struct", "enum", "trait", "type"].contains(&word);
            if line.starts_with(['p', 's', 'e', 't']) && words.any(is_item) {
                *names.entry(words.next().unwrap_or("").to_string()).or_default() += 1;
            }
        }
    }
    let twice = names.into_iter().filter(|(_, count)| *count > 1);
    let list: Vec<String> = twice.map(|(name, count)| format!("{name}: {count}")).collect();
    ratchet("names of several types", list.len(), 68, &list);
}

#[test]
fn doc_comments_name_their_thing() {
    let mut list = Vec::new();
    for (path, text) in product() {
        let mut inside = false;
        for line in text.lines() {
            let doc = line.trim_start();
            let doc = doc.strip_prefix("///").or_else(|| doc.strip_prefix("//!"));
            let begins = doc.filter(|_| !inside).and_then(|doc| doc.split_whitespace().next());
            if begins.is_some_and(|word| HIDING.contains(&word)) {
                list.push(format!("{}: {}", path.display(), line.trim()));
            }
            inside = doc.is_some();
        }
    }
    ratchet("doc comments that begin with a pronoun", list.len(), 67, &list);
}

/// The folder or file of `src/` that a file is in.
fn entry(path: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let below = path.strip_prefix(root).expect("a file of the library");
    let first = below.iter().next().expect("a name").to_string_lossy().into_owned();
    first.strip_suffix(".rs").unwrap_or(&first).to_string()
}

/// Every entry of `src/` with those that it names.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let files: Vec<_> = files("src").into_iter().filter(|(path, _)| !is_test(path)).collect();
    let all: BTreeSet<String> = files.iter().map(|(path, _)| entry(path)).collect();
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in &files {
        let from = entry(path);
        let lines = code(text).lines().filter(|line| !line.trim_start().starts_with("//"));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        for part in text.split("crate::").skip(1) {
            // One name, or a list of names in braces.
            let list = part.strip_prefix('{').and_then(|list| list.split("};").next());
            let names = list.unwrap_or(part).split(if list.is_some() { "," } else { "::" });
            for name in names.take(if list.is_some() { usize::MAX } else { 1 }) {
                let name = name.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next();
                if let Some(to) = name.filter(|to| all.contains(*to) && *to != from) {
                    arrows.entry(from.clone()).or_default().insert(to.to_string());
                }
            }
        }
    }
    arrows
}

#[test]
fn entries_of_the_library_stand_in_no_circle() {
    let arrows = arrows();
    let reach = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_string()]);
        while let Some(at) = open.pop() {
            let next = arrows.get(&at).into_iter().flatten();
            open.extend(next.filter(|to| seen.insert((*to).clone())).cloned());
        }
        seen
    };
    let list: Vec<String> =
        arrows.keys().filter(|from| reach(from).contains(*from)).cloned().collect();
    ratchet("entries in a circle", list.len(), 18, &list);
}
