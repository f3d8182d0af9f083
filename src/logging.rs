//! What a line of the log looks like, in the extension's log and in the program's.

use std::time::SystemTime;

use log::{LevelFilter, Record};
use serde_json::json;

use crate::units::Timestamp;

/// How lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// `2026-11-22T12:48:34.000Z walferry INFO: what happened`
    #[default]
    Text,
    /// An object with `time`, `level`, `pid` and `msg`.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            other => Err(format!("'{other}' is no format of a log: text or json")),
        }
    }
}

/// A line, with its end.
pub fn line(format: Format, record: &Record<'_>) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = Timestamp(since.map_or(0, |since| since.as_millis() as i64));
    match format {
        Format::Text => format!("{now} walferry {}: {}\n", record.level(), record.args()),
        Format::Json => {
            let text = json!({
                "time": now.to_string(),
                "level": record.level().as_str(),
                "pid": std::process::id(),
                "msg": record.args().to_string(),
            });
            format!("{text}\n")
        }
    }
}

/// The level of this name; `None` if there is none.
pub fn level(name: &str) -> Option<LevelFilter> {
    // Litestream has `trace` too.
    let name = if name.eq_ignore_ascii_case("trace") { "debug" } else { name };
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_of_its_format() {
        let message = format_args!("a \"b\"\nc");
        let record = Record::builder().args(message).level(log::Level::Warn).build();
        let text = line(Format::Json, &record);
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((text.matches('\n').count(), &parsed["level"]), (1, &json!("WARN")));
        assert_eq!(parsed["msg"], "a \"b\"\nc");
        assert!(line(Format::Text, &record).contains(" walferry WARN: a "));
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("xml".parse::<Format>().is_err());
        assert_eq!(level("trace"), Some(LevelFilter::Debug));
        assert_eq!(level("loud"), None);
    }
}
