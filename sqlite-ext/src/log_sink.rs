//! Where the library's log lines go: to the host's error log (`sqlite3_log`), to standard error or
//! to a file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use walferry::config::Logging;
use walferry::environment;
use walferry::logging::{self, Format, Said};
use walferry::shown;

const SQLITE_NOTICE: i32 = 27;
const SQLITE_WARNING: i32 = 28;

static HOST_LOG: AtomicBool = AtomicBool::new(true);

/// Where the configuration file has the log go, once it was read, if the environment says nothing.
static CONFIGURED: OnceLock<Sink> = OnceLock::new();

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

impl Sink {
    fn write(&self, record: &Record<'_>) {
        match &self.to {
            To::File(file) => write(file, &logging::line(self.format, record)),
            To::Stderr => logging::to_stderr(&logging::line(self.format, record)),
            To::Host => {
                if HOST_LOG.load(Ordering::Relaxed)
                    && crate::alive::may_log()
                    && let Some(api) = crate::api::api()
                {
                    let code =
                        if record.level() <= Level::Warn { SQLITE_WARNING } else { SQLITE_NOTICE };
                    let text = format!("walferry: {}", record.args());
                    api.log(code, &shown::line(&text));
                }
            }
        }
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("walferry")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            CONFIGURED.get().unwrap_or(self).write(record);
        }
    }

    fn flush(&self) {}
}

fn write(mut to: impl Write, line: &str) {
    let _ = to.write_all(line.as_bytes());
}

fn said() -> Said {
    Said::read(&environment::text)
}

fn open(path: &Path) -> Result<File, String> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|why| format!("the log cannot be written to {}: {why}", path.display()))
}

/// Sets the sink up, as the environment says.
pub fn install() {
    let mut said = said();
    let to = match said.path.as_deref().map(|path| open(Path::new(path))) {
        Some(Ok(file)) => To::File(file),
        Some(Err(why)) => {
            said.wrong.push(why);
            To::Host
        }
        None if said.stderr => To::Stderr,
        None => To::Host,
    };
    let is_seen = !matches!(to, To::Host);
    // The logger and the panic hook are those of this library's own copy of the standard library
    // and of `log`: the host's are not touched.
    if log::set_boxed_logger(Box::new(Sink { to, format: said.format.unwrap_or_default() })).is_ok()
    {
        log::set_max_level(said.level.unwrap_or(LevelFilter::Info));
    }
    std::panic::set_hook(Box::new(|panic| {
        if !walferry::blocking::asks_the_system() {
            log::error!("internal error: {panic}");
        }
    }));
    if environment::is_ignored() && environment::is_meant_for_us() {
        let what = "this is a set-uid program: variables of the environment (WALFERRY_*, AWS_* and \
                    others) are ignored; name the replica in /etc/walferry.yml";
        complain(what, is_seen);
    }
    for wrong in &said.wrong {
        complain(wrong, is_seen);
    }
}

/// Tells of an environment that was not understood. Few programs show the host's log, so it is on
/// standard error as well.
fn complain(what: &str, is_seen: bool) {
    log::warn!("{what}");
    if !is_seen {
        write(std::io::stderr(), &format!("walferry: {}\n", shown::line(what)));
    }
}

/// Does what the configuration file says of the log, as far as the environment does not.
pub fn configure(configured: &Logging) {
    let said = said();
    if said.level.is_none()
        && let Some(level) = configured.level.as_deref().and_then(logging::level)
    {
        log::set_max_level(level.min(LevelFilter::Debug));
    }
    if said.says_where {
        return;
    }
    let to = match &configured.file {
        Some(path) => match open(path) {
            Ok(file) => To::File(file),
            Err(why) => {
                log::error!("{why}");
                return;
            }
        },
        None if configured.stderr => To::Stderr,
        None => return,
    };
    let format = if configured.json { Format::Json } else { Format::Text };
    let _ = CONFIGURED.set(Sink { to, format: said.format.unwrap_or(format) });
}

/// The host is going away: its log's callback must not be called any more.
pub fn leave_host_log() {
    HOST_LOG.store(false, Ordering::Relaxed);
}
