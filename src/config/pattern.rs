//! Matches names of files with patterns, as Go's `filepath.Match` does.

/// Returns true if a name matches a pattern, or `None` if the pattern is malformed.
///
/// `*` stands for any letters and `?` for one letter. `[a-z]` and `[^a-z]` stand for one letter that is in the
/// range, or not in it. `\` makes the next letter stand for itself.
pub(crate) fn matches(pattern: &str, name: &str) -> Option<bool> {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    // `retry` is the place to go on if the part behind the last star does not match: one letter later.
    let (mut at, mut position, mut retry) = (0, 0, None);
    let fits = loop {
        match pattern.get(at) {
            Some('*') => {
                at += 1;
                retry = Some((at, position + 1));
                continue;
            }
            None if position == name.len() => break true,
            Some(_) => {
                let (next, fits) = one(&pattern, at, name.get(position).copied())?;
                if fits {
                    (at, position) = (next, position + 1);
                    continue;
                }
            }
            None => {}
        }
        match retry {
            Some((after, next)) if next <= name.len() => {
                (at, position) = (after, next);
                retry = Some((after, next + 1));
            }
            _ => break false,
        }
    };
    // The part of the pattern that was not reached may be malformed, too.
    is_well_formed(&pattern).then_some(fits)
}

/// True if no part of the pattern is malformed.
fn is_well_formed(pattern: &[char]) -> bool {
    let mut at = 0;
    while let Some(&c) = pattern.get(at) {
        if c == '*' {
            at += 1;
            continue;
        }
        match one(pattern, at, Some('x')) {
            Some((next, _)) => at = next,
            None => return false,
        }
    }
    true
}

/// Matches the part of the pattern at `at` with one letter. Returns the end of the part, and true if the letter
/// matches.
fn one(pattern: &[char], at: usize, letter: Option<char>) -> Option<(usize, bool)> {
    let fits = |known: char| letter == Some(known);
    match *pattern.get(at)? {
        '?' => Some((at + 1, letter.is_some_and(|letter| letter != '/'))),
        '\\' => pattern.get(at + 1).map(|&known| (at + 2, fits(known))),
        '[' => {
            let mut at = at + 1;
            let negated = pattern.get(at) == Some(&'^');
            at += usize::from(negated);
            let (mut found, mut first) = (false, true);
            loop {
                if pattern.get(at) == Some(&']') && !first {
                    let fits = letter.is_some() && found != negated;
                    return Some((at + 1, fits));
                }
                first = false;
                let (low, next) = bound(pattern, at)?;
                at = next;
                let mut high = low;
                if pattern.get(at) == Some(&'-') {
                    (high, at) = bound(pattern, at + 1)?;
                }
                found |= letter.is_some_and(|letter| (low..=high).contains(&letter));
            }
        }
        known => Some((at + 1, fits(known))),
    }
}

fn bound(pattern: &[char], at: usize) -> Option<(char, usize)> {
    match *pattern.get(at)? {
        '\\' => pattern.get(at + 1).map(|&letter| (letter, at + 2)),
        '-' | ']' => None,
        letter => Some((letter, at + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, name, expected) in [
            ("*.db", "a.db", Some(true)),
            ("*.db", "a.db-wal", Some(false)),
            ("*", "", Some(true)),
            ("a*b*c", "axxbyyc", Some(true)),
            ("a*b*c", "axxbyy", Some(false)),
            ("?ä.db", "xä.db", Some(true)),
            ("[a-c]x", "bx", Some(true)),
            ("[^a-c]x", "bx", Some(false)),
            ("[^a-c]x", "x", Some(false)),
            ("\\*x", "*x", Some(true)),
            ("\\*x", "yx", Some(false)),
            ("[]a]", "]", None),
            ("[", "a", None),
            ("a[", "b", None),
            ("[a-]", "a", None),
            ("x\\", "x", None),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
