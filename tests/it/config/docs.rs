//! The table of keys in `docs/configuration.md` is the code's.

use std::fmt::Write as _;

use walferry::config::Place;
use walferry::config::keys::{KEYS, Kind, Meaning, Row};

const BEGIN: &str = "<!-- keys: begin -->\n";
const END: &str = "<!-- keys: end -->";

fn places(row: &Row) -> String {
    let word = |place: &Place| match place {
        Place::Global => "top",
        Place::Database => "database",
        Place::Replica => "replica",
    };
    row.places.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn value(row: &Row) -> String {
    match row.kind {
        Kind::Time => "time".into(),
        Kind::TimeOrOff => "time or `off`".into(),
        Kind::Size => "size".into(),
        Kind::Number => "number".into(),
        Kind::Switch => "`true`, `false`".into(),
        Kind::Word(words) => {
            words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
        }
        Kind::Levels => "times".into(),
        Kind::Path => "path".into(),
        Kind::Mode => "octal".into(),
        Kind::Text | Kind::Option | Kind::Structure => String::new(),
        Kind::Secret => "secret".into(),
    }
}

fn rendered() -> String {
    let mut text = String::new();
    text += "| key | where | value | default | what it does |\n| --- | --- | --- | --- | --- |\n";
    let of = |wanted: fn(&Meaning) -> bool| KEYS.iter().filter(move |row| wanted(&row.meaning));
    for row in of(|meaning| matches!(meaning, Meaning::Supported)) {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            row.name,
            places(row),
            value(row),
            row.default,
            row.text
        );
    }
    text += "\nAccepted, and without effect:\n\n| keys | where | why |\n| --- | --- | --- |\n";
    text += &grouped(|row| match row.meaning {
        Meaning::Note(why) => Some((format!("`{}`", row.name), why)),
        _ => None,
    });
    text += "\nRefused:\n\n| keys | where | why, and what to use |\n| --- | --- | --- |\n";
    text += &grouped(|row| match row.meaning {
        Meaning::Only(only, why) => Some((format!("`{}` other than `{only}`", row.name), why)),
        Meaning::Refused(why) => Some((format!("`{}`", row.name), why)),
        _ => None,
    });
    text
}

/// A line for all keys with the same reason at the same places.
fn grouped(shown: impl Fn(&Row) -> Option<(String, &'static str)>) -> String {
    let mut groups: Vec<(String, &str, Vec<String>)> = Vec::new();
    for row in KEYS {
        let Some((name, why)) = shown(row) else { continue };
        let at = places(row);
        match groups.iter_mut().find(|group| group.0 == at && group.1 == why) {
            Some(group) => group.2.push(name),
            None => groups.push((at, why, vec![name])),
        }
    }
    let line = |(at, why, names): (String, &str, Vec<String>)| {
        format!("| {} | {at} | {why} |\n", names.join(", "))
    };
    groups.into_iter().map(line).collect()
}

/// With `WALFERRY_WRITE_DOCS` set the page is brought up to date instead.
#[test]
fn the_page_has_the_keys_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    if std::env::var_os("WALFERRY_WRITE_DOCS").is_some() {
        std::fs::write(path, [before, BEGIN, &rendered(), END, after].concat()).unwrap();
        return;
    }
    assert!(found == rendered(), "it has not; WALFERRY_WRITE_DOCS=1 brings it up to date");
}
