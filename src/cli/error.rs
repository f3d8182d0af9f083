//! What a command fails with, and how that is shown.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::PathBuf;

use serde_json::json;

use super::{Exit, exit, failure, table};
use crate::{config, follow as following, local, restore as restoring, shown, store};

/// What a subcommand may fail with.
#[derive(Debug)]
pub(super) enum Error {
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
    pub(super) fn exit(&self) -> Exit {
        match self {
            Error::Restore(error) | Error::Replica { source: error, .. } => exit::of_restore(error),
            Error::Follow(error) => exit::of_follow(error),
            Error::Store(error) => exit::of_store(error.kind),
            Error::NoDatabase(_) | Error::Usage(_) | Error::Config(_) => Exit::Usage,
            Error::InUse { .. } | Error::Declined(_) => Exit::Declined,
            Error::Defects { .. } => Exit::Damaged,
            Error::Sync(error) => error.exit(),
            // Exit code of a shell.
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

    /// Adds which replica it was, where the message does not name it.
    pub(super) fn about(self, url: &str) -> Error {
        let url = store::url::redacted(url);
        match self {
            Error::Restore(source) if !source.to_string().contains(&url) => {
                Error::Replica { url, source }
            }
            other => other,
        }
    }

    /// Says it on standard error: as text, or in JSON as an object on one line.
    pub(super) fn show(&self, json: bool) {
        let text = if json { self.in_json() } else { self.in_words() };
        super::say(&text);
    }

    /// The message, then its causes, then what to do.
    fn in_words(&self) -> String {
        let mut text = match self {
            // Each mistake of a file has a line of its own.
            Error::Config(_) | Error::Usage(_) => format!("walferry: {self}\n"),
            _ => shown::lines([format!("walferry: {self}")]),
        };
        text += &shown::lines(self.causes().iter().map(|cause| format!("  {cause}")));
        if let Some(advice) = self.advice() {
            text.push_str(advice);
            text.push('\n');
        }
        text
    }

    fn in_json(&self) -> String {
        let mut text = json!({
            "error": self.to_string(),
            "causes": self.causes(),
            "advice": self.advice(),
            "exit_status": self.exit().code(),
        })
        .to_string();
        text.push('\n');
        text
    }

    /// What it comes from, the nearest first.
    fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut cause = self.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        causes
    }

    /// Whoever read our output has had enough.
    pub(super) fn is_broken_pipe(&self) -> bool {
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
            // The error itself is shown in place of its wrapper, so the source is the cause below it.
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
