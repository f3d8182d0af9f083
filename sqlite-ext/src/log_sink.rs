//! Where the library's log lines go: to the host's error log (`sqlite3_log`), to standard error or
//! to a file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use walferry::logging::{self, Format};

const SQLITE_NOTICE: i32 = 27;
const SQLITE_WARNING: i32 = 28;

static HOST_LOG: AtomicBool = AtomicBool::new(true);

struct Sink {
    to: To,
    format: Format,
}

enum To {
    Host,
    Stderr,
    /// Written to by one call a line, without a lock: a fork may happen at any time.
    File(File),
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("walferry")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match &self.to {
            To::File(file) => write(file, &logging::line(self.format, record)),
            To::Stderr => write(std::io::stderr(), &logging::line(self.format, record)),
            To::Host => {
                if HOST_LOG.load(Ordering::Relaxed)
                    && let Some(api) = crate::api::api()
                {
                    let code =
                        if record.level() <= Level::Warn { SQLITE_WARNING } else { SQLITE_NOTICE };
                    api.log(code, &format!("walferry: {}", record.args()));
                }
            }
        }
    }

    fn flush(&self) {}
}

fn write(mut to: impl Write, line: &str) {
    let _ = to.write_all(line.as_bytes());
}

/// Sets the sink up. `WALFERRY_LOG` says where to: `sqlite` (the default), `stderr`, or the path of a
/// file, which is what `WALFERRY_LOG_FILE` says too; a level in it is one. `WALFERRY_LOG_LEVEL` is
/// off, error, warn, info (the default) or debug; `WALFERRY_LOG_FORMAT` is text (the default) or json.
pub fn install() {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let log = variable("WALFERRY_LOG");
    let level = variable("WALFERRY_LOG_LEVEL");
    let named = [&level, &log].into_iter().flatten().find_map(|name| logging::level(name));
    let path = variable("WALFERRY_LOG_FILE");
    let path = path.or_else(|| log.clone().filter(|log| log.contains('/')));
    let file = path.and_then(|path| OpenOptions::new().create(true).append(true).open(path).ok());
    let to = match file {
        Some(file) => To::File(file),
        None if log.as_deref() == Some("stderr") => To::Stderr,
        None => To::Host,
    };
    let format = variable("WALFERRY_LOG_FORMAT").and_then(|name| name.parse().ok());
    // The logger and the panic hook are those of this library's own copy of the standard library
    // and of `log`: the host's are not touched.
    if log::set_boxed_logger(Box::new(Sink { to, format: format.unwrap_or_default() })).is_ok() {
        log::set_max_level(named.unwrap_or(LevelFilter::Info));
    }
    std::panic::set_hook(Box::new(|panic| log::error!("internal error: {panic}")));
}

/// The host is going away: its log's callback must not be called any more.
pub fn leave_host_log() {
    HOST_LOG.store(false, Ordering::Relaxed);
}
