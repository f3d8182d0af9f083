//! Sends the library's log lines to the host's error log (`sqlite3_log`), to standard error or to a file.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use walferry::config::Logging;
use walferry::environment;
use walferry::logging::{self, Format, Said};
use walferry::shown;
use walferry::withheld::{self, Line};

use crate::api::{self, Written};
use crate::log_file::LogFile;

const SQLITE_NOTICE: i32 = 27;
const SQLITE_WARNING: i32 = 28;

static HOST_LOG: AtomicBool = AtomicBool::new(true);

/// The sink that the environment names.
static INSTALLED: OnceLock<Sink> = OnceLock::new();
/// The sink that the configuration file names. Set once the file was read, if the environment names none.
static CONFIGURED: OnceLock<Sink> = OnceLock::new();

/// Number of lines that standard error or the file did not take. The next line that is taken reports them.
static LOST: AtomicU64 = AtomicU64::new(0);
/// The last line was written only in part.
static IS_TORN: AtomicBool = AtomicBool::new(false);

struct Sink {
    to: To,
    format: Format,
}

enum To {
    Host,
    Stderr,
    File(LogFile),
}

impl Sink {
    fn current() -> Option<&'static Sink> {
        CONFIGURED.get().or_else(|| INSTALLED.get())
    }

    fn write(&self, record: &Record<'_>) {
        match &self.to {
            To::Host => to_host(record),
            To::Stderr => {
                self.say(record, |text| api::to_stderr(text.as_bytes()));
            }
            // The file may not be writable any more, for example if the program has become another user
            // since.
            To::File(file) => {
                if !self.say(record, |text| file.write(text)) {
                    to_host(record);
                }
            }
        }
    }

    /// Writes a line, with the number of lost lines before it. Returns `false` if this line is lost too.
    fn say(&self, record: &Record<'_>, write: impl FnOnce(&str) -> Written) -> bool {
        let (lost, is_torn) =
            (LOST.swap(0, Ordering::Relaxed), IS_TORN.swap(false, Ordering::Relaxed));
        let mut text = String::from(if is_torn { "\n" } else { "" });
        if lost > 0 {
            text.push_str(&self.line_of_loss(lost));
        }
        text.push_str(&logging::line(self.format, record));
        let written = write(&text);
        if written != Written::Whole {
            LOST.fetch_add(lost + 1, Ordering::Relaxed);
            IS_TORN.fetch_or(is_torn || written == Written::Part, Ordering::Relaxed);
        }
        written == Written::Whole
    }

    fn line_of_loss(&self, lost: u64) -> String {
        let lines = if lost == 1 { "line" } else { "lines" };
        let verb = if lost == 1 { "was" } else { "were" };
        let said = format_args!("{lost} {lines} of the log {verb} lost: nothing took them in time");
        logging::line(self.format, &Record::builder().level(Level::Warn).args(said).build())
    }
}

fn to_host(record: &Record<'_>) {
    let code = if record.level() <= Level::Warn { SQLITE_WARNING } else { SQLITE_NOTICE };
    let text = format!("walferry: {}", record.args());
    withheld::say(Line { code, text: shown::line(&text).into_owned() });
}

/// Gives a line to the host's log. The caller holds no lock of walferry.
fn give(line: &Line) {
    if HOST_LOG.load(Ordering::Relaxed)
        && crate::alive::may_log()
        && let Some(api) = api::api()
    {
        api.log(line.code, &line.text);
    }
}

/// The logger. Its sinks are [`INSTALLED`] and [`CONFIGURED`].
struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("walferry")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata())
            && let Some(sink) = Sink::current()
        {
            sink.write(record);
        }
    }

    fn flush(&self) {}
}

fn said() -> Said {
    Said::read(&environment::text)
}

/// Sets up the sink that the environment names.
pub fn install() {
    let mut said = said();
    let to = match said.path.as_deref().map(|path| LogFile::new(Path::new(path))) {
        Some(Ok(file)) => To::File(file),
        Some(Err(why)) => {
            said.wrong.push(why);
            To::Host
        }
        None if said.stderr => To::Stderr,
        None => To::Host,
    };
    let is_seen = !matches!(to, To::Host);
    // The logger and the panic hook are those of this library's own copy of `log` and of the standard
    // library. The host's stay unchanged.
    withheld::set_say(give);
    let _ = INSTALLED.set(Sink { to, format: said.format.unwrap_or_default() });
    if log::set_logger(&Logger).is_ok() {
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

/// Warns of an environment that was not understood. Also writes to standard error, since few programs show
/// the host's log.
fn complain(what: &str, is_seen: bool) {
    log::warn!("{what}");
    if !is_seen {
        api::to_stderr(format!("walferry: {}\n", shown::line(what)).as_bytes());
    }
}

/// Applies the configuration file's settings of the log, unless the environment has set the same.
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
        Some(path) => match LogFile::new(path) {
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

/// Stops writing to the host's log. The host is ending, and the callback of its log must not be called any
/// more.
pub fn leave_host_log() {
    HOST_LOG.store(false, Ordering::Relaxed);
}

/// Stops writing the log to a file of this database, which is about to be opened.
pub fn opens(database: &Path) {
    if let Some(Sink { to: To::File(file), .. }) = Sink::current()
        && file.leave_to(database)
    {
        log::error!(
            "the log is not written to {} any more: this is a file of the database {}",
            file.path().display(),
            database.display()
        );
    }
}
