//! Parses values: lengths of time, sizes, levels, modes and switches.

use std::time::Duration;

/// Default of levels 1, 2 and 3, as Litestream has them.
pub(crate) const LEVELS: &str = "30s,5m,1h";

/// Levels 1 to 8 can have compacted files.
const LEVELS_MAX: usize = 8;

/// Parses a length of time: numbers with `ns`, `us`, `ms`, `s`, `m`, `h` or `d`, as in `500ms`, `1h30m` and
/// `30d`. A 0 needs no unit.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a length of time: write it like 500ms, 1s, 5m or 24h");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut sum = Duration::ZERO;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let seconds = match unit {
            "ns" => number / 1e9,
            "us" | "µs" | "μs" => number / 1e6,
            "ms" => number / 1000.0,
            "s" => number,
            "m" => number * 60.0,
            "h" => number * 3600.0,
            "d" => number * 86_400.0,
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
        sum = sum.checked_add(part).ok_or_else(wrong)?;
        rest = after;
        if rest.is_empty() {
            return Ok(sum);
        }
    }
}

/// Parses a size in bytes: a number, or a number with `KB`, `MB`, `GB`, `TB` (powers of 1024).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: write it like 500MB or 10GB");
    let text = text.trim().to_ascii_uppercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.trim().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Parses levels such as `30s,5m,1h`. Each is longer than the one before. `off` in place of a time omits the
/// level, and `off` alone omits all levels.
pub(crate) fn parse_levels(text: &str) -> Result<Vec<Duration>, String> {
    let level = |text: &str| match parse_time_or_off(text)? {
        Some(Duration::ZERO) => Err("0 is no length of time here: write off".to_string()),
        level => Ok(level.unwrap_or_default()),
    };
    let levels: Vec<Duration> = text.split(',').map(level).collect::<Result<_, _>>()?;
    if levels.len() > LEVELS_MAX {
        return Err(format!("there are {LEVELS_MAX} levels at the most"));
    }
    let made: Vec<&Duration> = levels.iter().filter(|level| !level.is_zero()).collect();
    if !made.is_sorted_by(|a, b| a < b) {
        return Err(format!(
            "'{text}' does not rise: each level's time must be longer than the one before it, as in {LEVELS}"
        ));
    }
    Ok(levels)
}

pub(crate) fn parse_time_or_off(text: &str) -> Result<Option<Duration>, String> {
    match text.trim() {
        "off" => Ok(None),
        text => parse_duration(text).map(Some),
    }
}

/// Parses permission bits in octal, such as `640`.
pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0o").unwrap_or(digits);
    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777);
    mode.filter(|_| !digits.starts_with('+'))
        .ok_or_else(|| "give permission bits in octal, such as 640".into())
}

pub(crate) fn parse_switch(text: &str) -> Result<bool, String> {
    match text.trim() {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        other => Err(format!("'{other}' is neither on nor off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_in_the_syntax_of_go() {
        for (text, ms) in [
            ("0", 0),
            ("500ms", 500),
            ("1.5s", 1500),
            ("1h30m", 5_400_000),
            ("720h", 2_592_000_000),
            ("30d", 2_592_000_000),
            ("1m0.5s", 60_500),
            ("1000us", 1),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "1", "h", "1h30", "-1s", "1 h", "1h 30m", "1x", "1e3s", "1..5s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
