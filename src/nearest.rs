//! What somebody may have meant who misspelt a name.

/// The known name that has the unknown one as its part, or the fewest letters to change.
pub(crate) fn nearest<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    known.into_iter().min_by_key(|name| (!name.contains(unknown), distance(name, unknown)))
}

/// As [`nearest`], if it is near enough to be what was meant: at most a third of its letters, and
/// two in any case, are others.
pub(crate) fn near<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = nearest(unknown, known)?;
    let limit = (name.len() / 3).max(2);
    (name.contains(unknown) || distance(name, unknown) <= limit).then_some(name)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    // One row of the table: the distances of what was read of `a` to each beginning of `b` but
    // the empty one.
    let mut row: Vec<usize> = (1..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let (mut diagonal, mut left) = (i, i + 1);
        for (y, above) in b.bytes().zip(&mut row) {
            left = (diagonal + usize::from(x != y)).min(left + 1).min(*above + 1);
            diagonal = std::mem::replace(above, left);
        }
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn what_is_too_far_away_was_not_meant() {
        let known = ["retention", "region", "bucket"];
        assert_eq!(near("retentoin", known), Some("retention"));
        assert_eq!(near("regoin", known), Some("region"));
        assert_eq!(near("colour", known), None);
    }
}
