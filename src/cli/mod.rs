//! The command line: one file a subcommand. Errors are shown here, once, and nowhere else.

mod check;
mod compact;
mod configured;
mod dashes;
mod databases;
mod exit;
mod extension;
mod failure;
mod follow;
mod former;
mod generations;
mod given_up;
mod log;
mod ltx;
mod moment;
mod papers;
mod planned;
mod points;
mod progress;
mod promote;
mod replicate;
mod reset;
mod restore;
mod retain;
mod snapshot;
mod standing;
mod status;
mod sync;
mod table;
mod tidy;
mod verify;
mod version;

use std::error::Error as _;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use exit::Exit;

use crate::{config, follow as following, local, restore as restoring, store};

/// Replicates SQLite databases to object storage from inside the process that writes them, and
/// restores them.
#[derive(Parser)]
#[command(name = "walferry", version, after_help = exit::help())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replicate a database whose programs cannot load the extension
    Replicate(replicate::Args),
    /// Restore a database from a replica
    Restore(Box<restore::Args>),
    /// List the files of a replica and what can be restored from them
    #[command(alias = FORMER_LTX)]
    Ltx(ltx::Args),
    /// Show how the replication of a database stands, by what is beside it
    Status(status::Args),
    /// Give up what walferry keeps beside a database, so that its next start sends a full image
    Reset(reset::Args),
    /// Decide that a database which lost its replica to another writer is the right one
    Promote(promote::Args),
    /// Ship what a database has and its replica has not
    Sync(sync::Args),
    /// Check a whole replica: every file, and that they lead to what they say
    Verify(verify::Args),
    /// Join the files of a replica, so that there are fewer to restore from
    Compact(compact::Args),
    /// Join all files of a replica to a snapshot: what `compact --level 9` does
    Snapshot(snapshot::Args),
    /// Remove what is older than the history that is to be kept
    Retain(retain::Args),
    /// Show what applies to each database of the configuration, and where it comes from
    Databases(databases::Args),
    /// Try for real whether what the configuration says can work
    Check(check::Args),
    /// Print the version
    Version(version::Args),
    /// Print what a shell needs to complete the program's arguments
    Completions(papers::Completions),
    /// Write the manual pages
    Man(papers::Pages),
}

/// What Litestream 0.3 called `ltx`.
const FORMER_LTX: &str = "wal";

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let mut command = Cli::command();
    command.build();
    let args = dashes::rewrite(&command, std::env::args_os());
    let parsed = match former::refusal(&command, &args) {
        Some(why) => Err(Error::Usage(why)),
        None => match command.try_get_matches_from(&args) {
            Ok(matches) => Ok(matches),
            Err(error) => return explain(&error, &args),
        },
    };
    let done = parsed.and_then(|matches| {
        if args.iter().skip(1).any(|arg| arg == FORMER_LTX)
            && matches.subcommand_name() == Some("ltx")
        {
            note("`wal` is called `ltx` now");
        }
        let cli = Cli::from_arg_matches(&matches).map_err(|error| Error::Usage(error.to_string()));
        cli.and_then(run)
    });
    match done {
        Ok(exit) => exit.into(),
        Err(error) if error.is_broken_pipe() => Exit::Success.into(),
        Err(error) => {
            show(&error);
            error.exit().into()
        }
    }
}

/// Shows help, or what is wrong with the arguments. They are quoted in it, and may hold secrets.
fn explain(error: &clap::Error, args: &[OsString]) -> ExitCode {
    let (mut text, terminal) = if error.use_stderr() {
        (error.render(), io::stderr().is_terminal())
    } else {
        (error.render(), io::stdout().is_terminal())
    };
    let mut plain = text.to_string();
    for arg in args.iter().filter_map(|arg| arg.to_str()) {
        // The parser quotes an argument as a whole, or one side of its first equals sign.
        let sides = arg.split_once('=').map(|(name, value)| [value, name]);
        for quoted in [arg].into_iter().chain(sides.into_iter().flatten()) {
            let redacted = store::url::redacted(quoted);
            if redacted != quoted {
                plain = plain.replace(quoted, &redacted);
                text = clap::builder::StyledStr::from(plain.clone());
            }
        }
    }
    let text = if terminal { text.ansi().to_string() } else { text.to_string() };
    // A closed stream is nobody's business.
    let _ = if error.use_stderr() {
        io::stderr().write_all(text.as_bytes())
    } else {
        io::stdout().write_all(text.as_bytes())
    };
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() }
}

/// Refuses what is no path of a database but the URL of a replica, whose secrets no message may show.
fn not_a_url(path: &Path) -> Result<(), Error> {
    let text = path.to_string_lossy();
    if !store::url::is_url(&text) {
        return Ok(());
    }
    let url = store::url::redacted(&text);
    Err(Error::Usage(format!("{url} is the URL of a replica; give the path of a database")))
}

fn note(text: &str) {
    let _ = io::stderr().write_all(["walferry: ", text, "\n"].concat().as_bytes());
}

/// Adds which replica it was, where the message does not name it.
fn about(url: &str, error: Error) -> Error {
    let url = store::url::redacted(url);
    match error {
        Error::Restore(source) if !source.to_string().contains(&url) => {
            Error::Replica { url, source }
        }
        other => other,
    }
}

fn run(cli: Cli) -> Result<Exit, Error> {
    match cli.command {
        Command::Replicate(args) => return replicate::run(&args),
        Command::Restore(args) if args.follows() => on_runtime_left(restore::run(*args)),
        Command::Restore(args) => on_runtime(restore::run(*args)),
        Command::Ltx(args) => on_runtime(ltx::run(args)),
        Command::Reset(args) => reset::run(&args),
        Command::Promote(args) => on_runtime(promote::run(args)),
        Command::Sync(args) => sync::run(&args),
        Command::Verify(args) => on_runtime(verify::run(args)),
        Command::Compact(args) => on_runtime(compact::run(args)),
        Command::Retain(args) => on_runtime(retain::run(args)),
        Command::Databases(args) => databases::run(&args),
        Command::Check(args) => on_runtime(check::run(args)),
        Command::Status(args) => status::run(&args),
        Command::Snapshot(args) => on_runtime(snapshot::run(args)),
        Command::Version(args) => version::run(&args),
        Command::Completions(args) => papers::complete(&args),
        Command::Man(args) => papers::pages(&args),
    }?;
    Ok(Exit::Success)
}

/// Restores a database if it does not exist, and its replica does. `from` is the URL of the replica, or
/// with a configuration file the database.
fn restore_missing(database: &Path, from: &Path, file: &configured::File) -> Result<(), Error> {
    let words =
        ["walferry", "restore", "--if-db-not-exists", "--if-replica-exists", "--quiet", "-o"];
    let mut words: Vec<OsString> = words.iter().map(OsString::from).collect();
    words.push(database.into());
    if let Some(config) = &file.config {
        words.extend(["--config".into(), config.into()]);
    }
    words.extend(file.no_expand_env.then(|| "--no-expand-env".into()));
    words.extend(["--".into(), from.into()]);
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::Restore(args) }) => on_runtime(restore::run(*args)),
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Usage(error.to_string())),
    }
}

fn on_runtime(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    runtime()?.block_on(work)
}

/// As [`on_runtime`], for work that ends before its threads do: what a restore has under way when it is
/// told to end is left, as by a kill.
fn on_runtime_left(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let runtime = runtime()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().map_err(Error::System)
}

/// What a subcommand may fail with.
#[derive(Debug)]
enum Error {
    Restore(restoring::Error),
    Replica {
        url: String,
        source: restoring::Error,
    },
    Follow(following::Error),
    Store(store::Error),
    Local(local::Error),
    /// There is neither a database at this path nor anything that walferry kept for one.
    NoDatabase(PathBuf),
    /// Another process ships the database.
    InUse {
        database: PathBuf,
        pid: Option<u32>,
        /// Not that: it keeps the copy current.
        follows: bool,
    },
    /// What was asked for makes no sense as things are.
    Declined(String),
    /// A setting contradicts what is there.
    Usage(String),
    Sync(failure::Failure),
    /// The configuration file cannot be used.
    Config(config::Broken),
    /// So many checks failed.
    Checks(usize),
    /// A replica was checked, and this much is wrong with it.
    Defects {
        url: String,
        number: usize,
    },
    /// The program of `--exec` could not be started.
    Exec {
        program: String,
        source: io::Error,
    },
    Write(io::Error),
    System(io::Error),
}

impl Error {
    fn exit(&self) -> Exit {
        match self {
            Error::Restore(error) | Error::Replica { source: error, .. } => exit::of_restore(error),
            Error::Follow(error) => exit::of_follow(error),
            Error::Store(error) => exit::of_store(error.kind),
            Error::NoDatabase(_) | Error::Usage(_) | Error::Config(_) => Exit::Usage,
            Error::InUse { .. } | Error::Declined(_) => Exit::Declined,
            Error::Defects { .. } => Exit::Damaged,
            Error::Sync(error) => error.exit(),
            // As of a shell.
            Error::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Exit::Program(127)
            }
            Error::Exec { .. } => Exit::Program(126),
            Error::Checks(_) | Error::Local(_) | Error::Write(_) | Error::System(_) => {
                Exit::Failure
            }
        }
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            Error::Restore(error) | Error::Replica { source: error, .. } => error.advice(),
            Error::Follow(error) => error.advice(),
            Error::Defects { .. } => Some(
                "`walferry ltx` shows what can still be restored. To begin the replica anew with a \
                 full image, give its database another path there, or run `walferry reset`.",
            ),
            _ => None,
        }
    }

    /// Whoever read our output has had enough.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Error::Write(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Restore(error) => error.fmt(f),
            Error::Replica { url, source } => write!(f, "{url}: {source}"),
            Error::Follow(error) => error.fmt(f),
            Error::Store(error) => error.fmt(f),
            Error::Local(error) => f.write_str(&error.message),
            Error::NoDatabase(path) => {
                write!(f, "there is no database {}, and no state of one", path.display())
            }
            Error::InUse { database, pid, follows } => {
                let does = if *follows { "follows its replica with it" } else { "ships it" };
                let who = pid.map_or("another process".to_string(), |pid| format!("process {pid}"));
                write!(f, "{} is in use: {who} {does}; end that process first", database.display())
            }
            Error::Declined(why) | Error::Usage(why) => f.write_str(why),
            Error::Sync(error) => error.fmt(f),
            Error::Config(broken) => write!(f, "the configuration cannot be used:\n{broken}"),
            Error::Checks(number) => write!(f, "{} failed", table::count(*number, "check")),
            Error::Defects { url, number } => {
                write!(f, "{url} has {}", table::count(*number, "defect"))
            }
            Error::Exec { program, .. } => write!(f, "{program} could not be started"),
            Error::Write(_) => f.write_str("the output could not be written"),
            Error::System(_) => f.write_str("the program could not start its threads"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Shown as the error itself, so what counts is the cause underneath.
            Error::Restore(error) | Error::Replica { source: error, .. } => error.source(),
            Error::Follow(error) => error.source(),
            Error::Store(error) => error.source(),
            Error::Local(error) => Some(&error.source),
            Error::NoDatabase(_)
            | Error::InUse { .. }
            | Error::Declined(_)
            | Error::Usage(_)
            | Error::Config(_)
            | Error::Checks(_)
            | Error::Defects { .. } => None,
            Error::Sync(error) => error.source(),
            Error::Exec { source: error, .. } | Error::Write(error) | Error::System(error) => {
                Some(error)
            }
        }
    }
}

impl From<restoring::Error> for Error {
    fn from(error: restoring::Error) -> Error {
        Error::Restore(error)
    }
}

impl From<config::Broken> for Error {
    fn from(broken: config::Broken) -> Error {
        Error::Config(broken)
    }
}

impl From<following::Error> for Error {
    fn from(error: following::Error) -> Error {
        Error::Follow(error)
    }
}

impl From<local::Error> for Error {
    fn from(error: local::Error) -> Error {
        Error::Local(error)
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Error {
        Error::Store(error)
    }
}

/// The message, then its causes, then what to do. A closed stderr is nobody's business.
fn show(error: &Error) {
    let mut text = format!("walferry: {error}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &["  ", &error.to_string(), "\n"].concat();
        cause = error.source();
    }
    if let Some(advice) = error.advice() {
        text.push_str(advice);
        text.push('\n');
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes to standard output.
fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Write)
}
