//! `walferry replicate`: replicates databases whose programs cannot load the extension.
//!
//! The process opens each database through the extension and commits nothing. What it adds to the
//! extension is when to open and to close, a program to run beside, signals, and the service manager.

mod candidate;
mod child;
mod fleet;
mod folder;
mod limits;
mod member;
mod notify;
mod once;
mod orphans;
mod owner;
mod refusal;
mod signals;
mod wanted;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::{Error, Exit, configured, extension};
use crate::config::values::parse_duration;
use crate::config::{self, Config};
use crate::{settings, store};
use child::{Program, exit_code};
use fleet::Fleet;
use notify::Manager;
use signals::{Closing, Signal};
pub(crate) use wanted::{Place, Wanted};

/// How often it is looked which databases are there.
const LOOK: Duration = Duration::from_millis(500);
/// How long a program waits at most for its databases: a store that hangs must not keep it down.
const READY_FOR: Duration = Duration::from_secs(10);

/// Arguments of `walferry replicate`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry replicate --config walferry.yml",
    "walferry replicate app.db s3://bucket/app --exec 'gunicorn app:app'",
]))]
pub(super) struct Args {
    /// The database, which need not be there yet; or a folder of databases (see --pattern). Else all
    /// databases of the configuration file
    #[arg(requires = "url")]
    database: Option<PathBuf>,
    /// The replica, such as s3://bucket/path or file:///path; of a folder, what its databases' replicas
    /// are beneath
    url: Option<String>,
    #[command(flatten)]
    file: configured::File,
    /// Of a folder: which names are databases, such as *.db
    #[arg(long, value_name = "GLOB", requires = "database", value_parser = pattern)]
    pattern: Option<String>,
    /// Of a folder: also those in folders within
    #[arg(long, requires = "pattern")]
    recursive: bool,
    /// Run this program when its databases are replicated, and end when it does, with its exit code.
    /// Words as in a shell, without one. Else `exec` of the configuration file
    #[arg(long, value_name = "CMD", conflicts_with = "once")]
    exec: Option<String>,
    /// Ship what is committed and do what is due, then end
    #[arg(long)]
    once: bool,
    /// First restore the database, if it does not exist and the replica does
    #[arg(long, requires = "database")]
    restore_if_db_not_exists: bool,
    /// What is done with a database that is in another journal mode: `wal` changes it, `keep` waits;
    /// else what the configuration file says, else `keep`
    #[arg(long, value_name = "wal|keep", hide_possible_values = true,
          value_parser = ["wal", "keep"])]
    journal_mode: Option<String>,
    /// A setting of the extension, such as retention=720h; any number of times
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// How long --once waits for the store
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// The extension, walferry.so; else WALFERRY_EXTENSION, else the one beside this program or in
    /// ../lib/walferry/
    #[arg(long, value_name = "PATH")]
    extension: Option<PathBuf>,
    /// Report in JSON, and log in JSON if --log-format does not say otherwise
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    log: super::log::Args,
}

fn pattern(text: &str) -> Result<String, String> {
    match crate::config::pattern::matches(text, "") {
        Some(_) => Ok(text.to_string()),
        None => Err("it may have *, ?, [a-z] and [^a-z]".to_string()),
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("replica", _)) => Err("the replica is an argument of its own".to_string()),
        // The extension takes the journal mode from that argument, or from the default.
        Some(("journal-mode", _)) => Err("--journal-mode says that".to_string()),
        Some((name, value)) if !name.is_empty() => {
            settings::check(name, value)?;
            Ok((name.to_string(), value.to_string()))
        }
        _ => Err(format!("'{text}' is not a setting: write it like retention=720h")),
    }
}

impl Args {
    /// The one database or folder that is named, else all of the configuration file.
    fn wanted(&self, config: Option<&Config>) -> Result<Vec<Wanted>, Error> {
        if let (Some(database), Some(url)) = (&self.database, &self.url) {
            return Ok(vec![self.named(database, url)?]);
        }
        let Some(config) = config else {
            let text = "name a database and the URL of its replica, or a configuration file";
            return Err(Error::Usage(text.to_string()));
        };
        let all: Vec<Wanted> =
            config.databases.iter().map(|entry| self.configured(entry)).collect();
        if all.is_empty() {
            return Err(Error::Usage(format!("{} lists no database", config.file.display())));
        }
        Ok(all)
    }

    fn named(&self, database: &Path, url: &str) -> Result<Wanted, Error> {
        // A URL here means that the two arguments are swapped.
        super::not_a_url(database)?;
        // A wrong URL is reported before any file is touched.
        store::open(url)?;
        let path = database.to_path_buf();
        let place = match &self.pattern {
            Some(pattern) => Place::Folder {
                path,
                pattern: pattern.clone(),
                recursive: self.recursive,
                watch: !self.once,
            },
            None if path.is_dir() => {
                let text = "this is a folder: say with --pattern which names are databases";
                return Err(Error::Usage(format!("{}: {text}", path.display())));
            }
            None => Place::Database(path),
        };
        let mut parameters = vec![("replica".to_string(), url.to_string())];
        parameters.extend(self.settings.iter().cloned());
        Ok(Wanted {
            place,
            parameters,
            set_wal: self.journal_mode.as_deref() == Some("wal"),
            restore: self.restore_if_db_not_exists,
        })
    }

    /// An entry of the file: the extension finds its replicas there by itself.
    fn configured(&self, entry: &config::Database) -> Wanted {
        let path = entry.place.clone();
        let place = match &entry.pattern {
            Some(pattern) => Place::Folder {
                path,
                pattern: pattern.clone(),
                recursive: entry.recursive,
                watch: entry.watch && !self.once,
            },
            None => Place::Database(path),
        };
        let in_file = entry.layer.values.get("journal-mode").map(|given| given.text.as_str());
        Wanted {
            place,
            parameters: self.settings.clone(),
            set_wal: self.journal_mode.as_deref().or(in_file) == Some("wal"),
            restore: entry.restore,
        }
    }
}

/// What the main thread waits for.
enum Event {
    Signal(Signal),
    /// The program of `--exec` has ended.
    Ended(std::io::Result<ExitStatus>),
}

/// Runs until it is told to end; what is not shipped then is shipped when the process exits.
pub(super) fn run(args: &Args) -> Result<Exit, Error> {
    // If a database is named, a file that the user did not name is not read.
    let of_no_matter = args.database.is_some() && args.file.config.is_none();
    let config = if of_no_matter { None } else { args.file.load()? };
    let in_file = config.as_ref().and_then(|config| config.exec.as_deref());
    let exec = args.exec.as_deref().or(in_file.filter(|_| !args.once && args.database.is_none()));
    let words = exec.map(words).transpose()?;
    let wanted = args.wanted(config.as_ref())?;
    // This call sets the environment of the extension, so it comes before the second thread.
    args.log.install(config.as_ref().map(|config| &config.logging), args.json)?;
    if let Some(config) = &config {
        extension::set_config(&config.file, args.file.no_expand_env);
        for note in &config.notes {
            log::info!("{}:{note}", config.file.display());
        }
    }
    extension::load_named(args.extension.as_deref())?;
    let manager = Manager::of_environment();
    manager.ask_for_time_during(|| {
        let mut missing = wanted.iter().filter(|wanted| wanted.restore);
        missing.try_for_each(|wanted| restore(wanted, &args.file))
    })?;
    limits::raise();
    let mut fleet = Fleet::new(wanted)?;
    if args.once {
        return once::run(&mut fleet, args, config.as_ref()).map(|()| Exit::Success);
    }
    let (events, arriving) = mpsc::channel();
    let closing = Arc::new(OnceLock::new());
    signals::listen(words.is_some(), &events, &closing)?;
    let service = Service { fleet, manager, arriving, closing };
    service.run(words.as_deref(), &events)
}

fn words(command: &str) -> Result<Vec<String>, Error> {
    let words = shlex::split(command).filter(|words| !words.is_empty());
    words.ok_or_else(|| {
        let text =
            "--exec: this is not the line of a program: a quote does not end, or it is empty";
        Error::Usage(text.to_string())
    })
}

/// Restores a database that is not there, if its replica is.
fn restore(wanted: &Wanted, file: &configured::File) -> Result<(), Error> {
    let Place::Database(path) = &wanted.place else { return Ok(()) };
    // The restore would take a plain path for the path of a database.
    let from = match wanted.replica(None) {
        Some(url) if store::url::is_url(&url) => PathBuf::from(url),
        Some(folder) => store::url::of_path(&config::canonical(Path::new(&folder))).into(),
        None => path.clone(),
    };
    super::restore_missing(path, &from, file)
}

struct Service {
    fleet: Fleet,
    manager: Manager,
    arriving: Receiver<Event>,
    /// Set when it begins to close: what a signal means from then on.
    closing: Arc<OnceLock<Closing>>,
}

impl Service {
    fn run(mut self, words: Option<&[String]>, events: &Sender<Event>) -> Result<Exit, Error> {
        let begun = Instant::now();
        let (mut ready, mut program) = (false, None);
        let mut beat = Instant::now();
        // Half of the watchdog's time, as sd_watchdog_enabled(3) advises.
        let beats = self.manager.watchdog.map(|time| time / 2);
        let (exit, closing) = loop {
            let whole = self.fleet.look();
            let well = !ready && self.fleet.is_ready();
            // `READY_FOR` alone is not enough: a first look at very many databases takes longer, without any of
            // them hanging.
            let waited = self.fleet.all_seen && begun.elapsed() >= READY_FOR;
            if !ready && (well || waited) {
                ready = true;
                if !well {
                    log::warn!("some database is not replicated yet; going on without");
                }
                self.manager.tell("READY=1");
                if let Some(words) = words {
                    program = Some(Program::start(words, events)?);
                }
            }
            if let Some(every) = beats
                && beat <= Instant::now()
            {
                beat = Instant::now() + every;
                if self.fleet.answers(every / 2) {
                    self.manager.tell("WATCHDOG=1");
                } else {
                    log::error!("the threads that replicate do not answer");
                }
            }
            let wait =
                beats.map_or(LOOK, |_| LOOK.min(beat.saturating_duration_since(Instant::now())));
            let wait = match ready {
                _ if !whole => Duration::ZERO,
                true => wait,
                false => wait.min(Duration::from_millis(20)),
            };
            match self.arriving.recv_timeout(wait) {
                Ok(Event::Signal(signal)) => match &program {
                    Some(program) => {
                        if !signal.is_of_a_key() {
                            program.signal(signal.number);
                        }
                    }
                    None => {
                        log::info!("told to end by signal {}", signal.number);
                        break (Exit::Success, Closing::Told);
                    }
                },
                Ok(Event::Ended(status)) => {
                    let exit = match status {
                        Ok(status) => {
                            log::info!("the program has ended: {status}");
                            Exit::Program(exit_code(status))
                        }
                        Err(error) => {
                            log::error!("how the program has ended is not known: {error}");
                            Exit::Failure
                        }
                    };
                    break (exit, Closing::Ended(Instant::now()));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        };
        // From here on the listener keeps signals to itself, and sends no events.
        let _ = self.closing.set(closing);
        self.manager.tell("STOPPING=1");
        let left = self.fleet.look_at_last();
        for path in &left {
            log::error!("{}: it is not replicated at the end", path.display());
        }
        self.fleet.close();
        Ok(if left.is_empty() || exit != Exit::Success { exit } else { Exit::Failure })
    }
}
