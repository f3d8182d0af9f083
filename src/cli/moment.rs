//! Moments as people write them.

use jiff::{SignedDuration, Span, SpanRelativeTo, civil, tz::Offset};

use crate::units::Timestamp;

/// Reads a moment: RFC 3339, with or without fraction and zone (UTC without), a date alone, or how
/// long ago it was, such as `-5m` or `-1d 2h`.
pub(super) fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let text = text.trim();
    let millis = match text.strip_prefix('-') {
        Some(ago) => {
            let ago = duration(ago)?;
            let ago = i64::try_from(ago.as_millis()).map_err(|_| unreadable(text))?;
            now.0.checked_sub(ago)
        }
        None => match text.parse::<jiff::Timestamp>() {
            Ok(at) => Some(at.as_millisecond()),
            Err(_) => {
                let civil: civil::DateTime = text.parse().map_err(|_| unreadable(text))?;
                let at = Offset::UTC.to_timestamp(civil).map_err(|_| unreadable(text))?;
                Some(at.as_millisecond())
            }
        },
    };
    millis.map(Timestamp).ok_or_else(|| unreadable(text))
}

/// Reads a length of time, such as `90s`, `1h30m`, `720h` or `30d`.
pub(super) fn duration(text: &str) -> Result<SignedDuration, String> {
    let failed = |_| format!("{text} is no length of time: write 30s, 5m, 2h or 1d");
    let span: Span = text.parse().map_err(failed)?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(failed)?;
    if duration.is_negative() { Err(format!("{text} is less than nothing")) } else { Ok(duration) }
}

/// As long ago as this.
pub(super) fn before(now: Timestamp, ago: SignedDuration) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)))
}

fn unreadable(text: &str) -> String {
    format!("{text} is no moment: write 2026-11-22T12:48:34Z, another zone as +01:00, or -5m")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_351_714_201);

    #[test]
    fn moments_as_people_write_them() {
        let read = |text| parse(text, NOW).unwrap().to_rfc3339();
        for (text, expected) in [
            ("2026-11-22T12:48:34Z", "2026-11-22T12:48:34Z"),
            ("2026-11-22T12:48:34.201Z", "2026-11-22T12:48:34.201Z"),
            ("2026-11-22T12:48:34.2019999Z", "2026-11-22T12:48:34.201Z"),
            ("2026-11-22t14:48:34+02:00", "2026-11-22T12:48:34Z"),
            ("2026-11-22 12:48:34", "2026-11-22T12:48:34Z"),
            ("2026-11-22T12:48", "2026-11-22T12:48:00Z"),
            ("2026-11-22", "2026-11-22T00:00:00Z"),
            ("-5m", "2026-11-22T12:43:34.201Z"),
            ("-1h30m", "2026-11-22T11:18:34.201Z"),
            ("-1d 2h", "2026-11-21T10:48:34.201Z"),
            ("-500ms", "2026-11-22T12:48:33.701Z"),
            ("-2w", "2026-11-08T12:48:34.201Z"),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in ["", "-", "yesterday", "2026-13-01", "5m", "-5", "-1mo", "--5m", "-9999999999h"]
        {
            let said = parse(text, NOW).unwrap_err();
            assert!(said.contains("write") || said.contains("less than"), "{text}: {said}");
        }
    }
}
