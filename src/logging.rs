//! Format of a log line, in the extension's log and in the program's.

use std::time::SystemTime;

use log::{LevelFilter, Record};
use serde_json::json;

use crate::shown;
use crate::units::Timestamp;

/// Format of the lines.
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

/// Returns a line of the log, with its line break.
pub fn line(format: Format, record: &Record<'_>) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = Timestamp(since.map_or(0, |since| since.as_millis() as i64));
    match format {
        Format::Text => {
            let text = record.args().to_string();
            format!("{now} walferry {}: {}\n", record.level(), shown::line(&text))
        }
        Format::Json => {
            let text = json!({
                "time": now.to_string(),
                "level": record.level().as_str(),
                "pid": std::process::id(),
                "msg": record.args().to_string(),
            });
            shown::lines([text.to_string()])
        }
    }
}

/// Settings of the log from the environment.
#[derive(Default, Debug)]
pub struct Said {
    /// The level.
    pub level: Option<LevelFilter>,
    /// Format of the lines.
    pub format: Option<Format>,
    /// File to which the log goes.
    pub path: Option<String>,
    /// True if the log goes to standard error.
    pub stderr: bool,
    /// True if the environment says where the log goes.
    pub says_where: bool,
    /// Complaints about values that mean nothing. Such values count as not set.
    pub wrong: Vec<String>,
}

impl Said {
    /// Reads the variables of the log.
    ///
    /// - `WALFERRY_LOG` says where the log goes: `sqlite` (the default), `stderr`, or the path of a file, as
    ///   in `WALFERRY_LOG_FILE`. It may also hold a level.
    /// - `WALFERRY_LOG_LEVEL` is off, error, warn, info (the default) or debug.
    /// - `WALFERRY_LOG_FORMAT` is text (the default) or json.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Said {
        let variable = |name| variable(name).filter(|value| !value.trim().is_empty());
        let mut said = Said::default();
        if let Some(name) = variable("WALFERRY_LOG_LEVEL") {
            said.level = level(&name);
            if said.level.is_none() {
                let known = "off, error, warn, info, debug";
                said.wrong.push(format!("WALFERRY_LOG_LEVEL: '{name}' is no level: {known}"));
            }
        }
        if let Some(name) = variable("WALFERRY_LOG_FORMAT") {
            match name.parse() {
                Ok(format) => said.format = Some(format),
                Err(why) => said.wrong.push(format!("WALFERRY_LOG_FORMAT: {why}")),
            }
        }
        said.path = variable("WALFERRY_LOG_FILE");
        match variable("WALFERRY_LOG") {
            None => {}
            Some(log) if log == "stderr" => said.stderr = true,
            Some(log) if log == "sqlite" => said.says_where = true,
            Some(log) if log.contains('/') => {
                said.path.get_or_insert(log);
            }
            Some(log) => match level(&log) {
                Some(level) => {
                    said.level.get_or_insert(level);
                }
                None => said.wrong.push(format!(
                    "WALFERRY_LOG: '{log}' is neither stderr, sqlite nor a level, nor the path of a file, \
                     which has a slash in it"
                )),
            },
        }
        said.says_where |= said.stderr || said.path.is_some();
        said
    }
}

/// Returns the level of this name; `None` if there is none.
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
        let text = line(Format::Text, &record);
        assert!(text.ends_with(" walferry WARN: a \"b\"\\nc\n"), "{text}");
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("xml".parse::<Format>().is_err());
        assert_eq!(level("trace"), Some(LevelFilter::Debug));
        assert_eq!(level("loud"), None);
    }

    fn said(variables: &[(&str, &str)]) -> Said {
        Said::read(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_environment_is_believed_or_what_is_wrong_is_told() {
        let all = said(&[
            ("WALFERRY_LOG_LEVEL", "warn"),
            ("WALFERRY_LOG_FORMAT", "json"),
            ("WALFERRY_LOG", "./log"),
        ]);
        assert_eq!((all.level, all.format), (Some(LevelFilter::Warn), Some(Format::Json)));
        assert_eq!((all.path.as_deref(), all.says_where), (Some("./log"), true));
        assert!(all.wrong.is_empty(), "{all:?}");
        let level = said(&[("WALFERRY_LOG", "debug"), ("WALFERRY_LOG_FORMAT", "")]);
        assert_eq!((level.level, level.says_where), (Some(LevelFilter::Debug), false));
        assert!(level.wrong.is_empty() && said(&[("WALFERRY_LOG", "stderr")]).stderr);
        let file = said(&[("WALFERRY_LOG", "/a"), ("WALFERRY_LOG_FILE", "b")]);
        assert_eq!(file.path.as_deref(), Some("b"));
        let wrong = said(&[
            ("WALFERRY_LOG_LEVEL", "verbose"),
            ("WALFERRY_LOG_FORMAT", "xml"),
            ("WALFERRY_LOG", "somewhere"),
        ]);
        assert_eq!((wrong.level, wrong.format, wrong.says_where), (None, None, false));
        for words in
            ["WALFERRY_LOG_LEVEL: 'verbose'", "WALFERRY_LOG_FORMAT: 'xml'", "WALFERRY_LOG: 's"]
        {
            assert!(wrong.wrong.iter().any(|one| one.starts_with(words)), "{wrong:?}");
        }
    }
}
