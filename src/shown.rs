//! Escapes text from outside before it is shown.
//!
//! Names of files, words of a server and values of variables may hold harmful characters. A terminal may obey
//! them instead of showing them, or one line may look like two. So every output of text writes them as JSON
//! does: `\u001b`. This holds for lines of the log, the program's output, and the answers of SQL functions.
//! JSON output stays JSON with the same meaning.

use std::borrow::Cow;
use std::fmt::Write as _;

/// True for characters that must be escaped: controls of ASCII and Latin-1, and characters that end a line or
/// turn the direction of text.
fn is_harmful(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

/// Escapes a text, except its line breaks.
pub fn text(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_harmful(c) && c != '\n')
}

/// Escapes a text that is one line, or a part of one.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_harmful)
}

/// Returns all lines, each escaped and with a line break.
pub fn lines<T: AsRef<str>>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().fold(String::new(), |text, one| text + &line(one.as_ref()) + "\n")
}

fn escaped(text: &str, is_harmful: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_harmful(c) => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c => {
                // Writing to a string cannot fail. All harmful characters have at most four hexadecimal
                // digits.
                let _ = write!(escaped, "\\u{:04x}", u32::from(c));
            }
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn harmful_characters_are_written_as_in_json() {
        for (given, shown) in [
            ("\u{1b}[2J", "\\u001b[2J"),
            ("\0\u{7}\r\t", "\\u0000\\u0007\\r\\t"),
            ("\u{7f}\u{80}\u{9b}\u{9f}", "\\u007f\\u0080\\u009b\\u009f"),
            ("\u{2028}\u{2029}\u{202e}\u{2069}", "\\u2028\\u2029\\u202e\\u2069"),
        ] {
            assert_eq!(text(given), shown);
            assert_eq!(line(given), shown);
        }
        assert_eq!((text("a\nb"), line("a\nb")), ("a\nb".into(), "a\\nb".into()));
        assert_eq!(lines(["a\nb", "c"]), "a\\nb\nc\n");
    }

    #[test]
    fn ordinary_text_is_not_copied() {
        for given in ["", "räume/数据 😀.db", "a\\u001b", "s3://b/p?x=%1b", "\u{a0}\u{200d}\u{ad}"]
        {
            assert!(matches!(line(given), Cow::Borrowed(same) if same == given), "{given}");
        }
    }

    #[test]
    fn json_stays_json_and_means_the_same() {
        let every: String =
            ('\0'..='\u{2100}').chain(['\u{feff}', '\u{ffff}', '\u{1f600}']).collect();
        let json = serde_json::json!({ &every: [&every] });
        let written = json.to_string();
        let shown = text(&written);
        assert!(!shown.contains(is_harmful));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), json);
    }
}
