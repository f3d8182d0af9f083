//! The command line: one file a subcommand. Errors are shown in `main`, once, and nowhere else.

mod against;
mod check;
mod compact;
mod configured;
mod dashes;
mod databases;
mod error;
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

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use error::Error;
pub use exit::Exit;

use crate::{shown, store};

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

/// The flag with which a command reports in JSON.
const IN_JSON: &str = "json";

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
    let asked = parsed.as_ref().ok().and_then(|matches| matches.subcommand());
    let json = asked.is_some_and(|(_, args)| matches!(args.try_get_one(IN_JSON), Ok(Some(true))));
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
            error.show(json);
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
    // The message quotes arguments as they are. The colours of the help are control characters, too.
    let is_harmful = |arg: &OsString| matches!(shown::line(&arg.to_string_lossy()), Cow::Owned(_));
    if args.iter().any(is_harmful) {
        text = clap::builder::StyledStr::from(shown::text(&plain).into_owned());
    }
    let text = if terminal { text.ansi().to_string() } else { text.to_string() };
    // A closed stream is no reason to fail.
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

/// Writes a line to standard error, beside what is reported.
fn note(text: &str) {
    say(&["walferry: ", &shown::line(text), "\n"].concat());
}

/// Writes to standard error. A closed one is nobody's business.
fn say(text: &str) {
    let _ = io::stderr().write_all(shown::text(text).as_bytes());
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

/// Writes to standard output.
fn print(text: &str) -> Result<(), Error> {
    print_as_it_is(&shown::text(text))
}

/// Writes to standard output what is wholly of this program.
fn print_as_it_is(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Write)
}
