//! Finds the known name that a misspelt name may mean.

/// Returns the known name that contains the unknown name; else the known name with the fewest letters to
/// change.
pub(crate) fn nearest<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    known.into_iter().min_by_key(|name| (!name.contains(unknown), distance(name, unknown)))
}

/// Returns [`nearest`] if that is near enough: it contains the unknown name, or at most a third of its
/// letters differ. Two different letters always pass.
pub(crate) fn near<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = nearest(unknown, known)?;
    let limit = (name.len() / 3).max(2);
    (name.contains(unknown) || distance(name, unknown) <= limit).then_some(name)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    // One row of the table: the distances from the part of `a` read so far to each beginning of `b` except
    // the empty beginning.
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
