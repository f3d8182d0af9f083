//! Where the library's log lines go: to the host's error log (`sqlite3_log`), or to a file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde_json::json;
use walferry::config::Logging;

const SQLITE_NOTICE: i32 = 27;
const SQLITE_WARNING: i32 = 28;

static HOST_LOG: AtomicBool = AtomicBool::new(true);

/// What the configuration file says, once it was read, where the environment says nothing.
static CONFIGURED: OnceLock<Configured> = OnceLock::new();

struct Configured {
    /// Written to by one call a line, as is the one of [`Sink`]; `None` for standard error.
    file: Option<File>,
    json: bool,
}

impl Configured {
    fn write(&self, record: &Record<'_>) {
        let (now, level, message) = (now(), record.level(), record.args());
        let line = if self.json {
            let pid = std::process::id();
            let text = message.to_string();
            let line =
                json!({"time": now.to_string(), "level": level.as_str(), "pid": pid, "msg": text});
            format!("{line}\n")
        } else {
            format!("{now} walferry {level}: {message}\n")
        };
        let _ = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

struct Sink {
    /// Written to by one call a line, without a lock: a fork may happen at any time.
    file: Option<File>,
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("walferry")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if let Some(configured) = CONFIGURED.get() {
            configured.write(record);
        } else if let Some(mut file) = self.file.as_ref() {
            let line = format!("{} walferry {}: {}\n", now(), record.level(), record.args());
            let _ = file.write_all(line.as_bytes());
        } else if HOST_LOG.load(Ordering::Relaxed)
            && let Some(api) = crate::api::api()
        {
            let code = if record.level() <= Level::Warn { SQLITE_WARNING } else { SQLITE_NOTICE };
            api.log(code, &format!("walferry: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

fn now() -> walferry::units::Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    walferry::units::Timestamp(since.map_or(0, |since| since.as_millis() as i64))
}

/// Sets the sink up: `WALFERRY_LOG` is off, error, warn, info (the default) or debug;
/// `WALFERRY_LOG_FILE` names a file to append to.
pub fn install() {
    let level = match std::env::var("WALFERRY_LOG").as_deref() {
        Ok("off") => LevelFilter::Off,
        Ok("error") => LevelFilter::Error,
        Ok("warn") => LevelFilter::Warn,
        Ok("debug") => LevelFilter::Debug,
        _ => LevelFilter::Info,
    };
    let file = std::env::var_os("WALFERRY_LOG_FILE")
        .and_then(|path| OpenOptions::new().create(true).append(true).open(path).ok());
    // The logger and the panic hook are those of this library's own copy of the standard library
    // and of `log`: the host's are not touched.
    if log::set_boxed_logger(Box::new(Sink { file })).is_ok() {
        log::set_max_level(level);
    }
    std::panic::set_hook(Box::new(|panic| log::error!("internal error: {panic}")));
}

/// Does what the configuration file says of the log, as far as the environment does not.
pub fn configure(logging: &Logging) {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let level = logging.level.as_deref().filter(|_| !is_set("WALFERRY_LOG"));
    if let Some(level) = level.and_then(|level| level.parse::<LevelFilter>().ok()) {
        log::set_max_level(level.min(LevelFilter::Debug));
    }
    if is_set("WALFERRY_LOG_FILE") {
        return;
    }
    let file = match &logging.file {
        Some(path) => match OpenOptions::new().create(true).append(true).open(path) {
            Ok(file) => Some(file),
            Err(why) => {
                log::error!("the log cannot be written to {}: {why}", path.display());
                return;
            }
        },
        None if logging.stderr => None,
        None => return,
    };
    let _ = CONFIGURED.set(Configured { file, json: logging.json });
}

/// The host is going away: its log's callback must not be called any more.
pub fn leave_host_log() {
    HOST_LOG.store(false, Ordering::Relaxed);
}
