//! What the exit status says.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use crate::plan::generations;
use crate::{follow, plan, restore, store};

/// The exit statuses. Their numbers are a promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done.
    Success,
    /// Anything without a number of its own.
    Failure,
    /// The command line or a setting cannot work.
    Usage,
    /// There is no replica, or it never held what was asked for.
    Nothing,
    /// The replica is damaged or incomplete.
    Damaged,
    /// The store does not answer, or refuses the credentials.
    Unreachable,
    /// The output cannot be put there: something exists already, or the directory does not.
    Output,
    /// Another process ships the database, or nothing calls for what was asked.
    Declined,
    /// What the program of `walferry replicate --exec` has ended with.
    Program(u8),
}

impl Exit {
    /// Its number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Nothing => 3,
            Exit::Damaged => 4,
            Exit::Unreachable => 5,
            Exit::Output => 6,
            Exit::Declined => 7,
            Exit::Program(code) => code,
        }
    }
}

/// Number and meaning of each status, as the help shows them.
pub const TABLE: [(Exit, &str); 8] = [
    (Exit::Success, "success"),
    (Exit::Failure, "any other failure"),
    (Exit::Usage, "wrong usage or setting"),
    (Exit::Nothing, "no replica, or nothing in it to restore"),
    (Exit::Damaged, "the replica is damaged or incomplete"),
    (Exit::Unreachable, "the store is unreachable or denies access"),
    (Exit::Output, "the output exists already, or cannot be there"),
    (Exit::Declined, "another process ships the database, or nothing calls for it"),
];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// What stands below the options of a subcommand: how it is used, and how it ends.
pub(super) fn help_with(examples: &[&str]) -> String {
    let noun = if examples.len() == 1 { "Example" } else { "Examples" };
    format!("{noun}:\n  {}\n\n{}", examples.join("\n  "), help())
}

pub(super) fn help() -> String {
    let mut text = String::from("Exit status:\n");
    for (exit, meaning) in TABLE {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}  {meaning}", exit.code());
    }
    text
}

pub(super) fn of_restore(error: &restore::Error) -> Exit {
    use restore::Error;
    match error {
        Error::Store(error) | Error::BrokenOff { source: error, .. } => of_store(error.kind),
        Error::Plan(plan::Error::Empty | plan::Error::NotReachable { .. })
        | Error::TooEarly { .. }
        | Error::Generations(generations::Error::TooEarly { .. } | generations::Error::Empty) => {
            Exit::Nothing
        }
        Error::Plan(plan::Error::NoBase { .. } | plan::Error::Gap { .. })
        | Error::Generations(
            generations::Error::MissingIndex { .. } | generations::Error::MissingSegment { .. },
        )
        | Error::Object { .. }
        | Error::File { .. }
        | Error::Chain { .. }
        | Error::PageSize { .. }
        | Error::Missing { .. }
        | Error::Database { .. }
        | Error::Integrity { .. } => Exit::Damaged,
        Error::Exists { .. } | Error::Path { .. } | Error::Busy { .. } | Error::Copy { .. } => {
            Exit::Output
        }
        Error::Output { source, .. } if cannot_be_there(source.kind()) => Exit::Output,
        Error::Output { .. } | Error::Internal(_) => Exit::Failure,
    }
}

/// Whether it is the place that is wrong, and not the disk.
fn cannot_be_there(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        InvalidFilename, IsADirectory, NotADirectory, NotFound, PermissionDenied,
        ReadOnlyFilesystem,
    };
    matches!(
        kind,
        InvalidFilename
            | IsADirectory
            | NotADirectory
            | NotFound
            | PermissionDenied
            | ReadOnlyFilesystem
    )
}

pub(super) fn of_follow(error: &follow::Error) -> Exit {
    use follow::Error;
    match error {
        Error::Store(error) => of_store(error.kind),
        Error::Restore(error) => of_restore(error),
        Error::Plan(error) => of_restore(&restore::Error::Plan(*error)),
        Error::File { .. } => Exit::Damaged,
        Error::Generations => Exit::Nothing,
        Error::Changed(_)
        | Error::Unknown(_)
        | Error::OtherReplica { .. }
        | Error::Original(_)
        | Error::Busy { .. }
        | Error::Readers(_) => Exit::Output,
        Error::Back { .. } => Exit::Declined,
        Error::Local(error) if cannot_be_there(error.source.kind()) => Exit::Output,
        Error::Sqlite { .. }
        | Error::Local(_)
        | Error::Build
        | Error::Stopped
        | Error::Internal(_) => Exit::Failure,
    }
}

pub(super) fn of_store(kind: store::ErrorKind) -> Exit {
    use store::ErrorKind::{
        AlreadyExists, Denied, Invalid, Local, NoReplica, NoSpace, NotFound, Other, Throttled,
        Unauthenticated, Unavailable,
    };
    match kind {
        NoReplica => Exit::Nothing,
        // A listing had shown the file.
        NotFound => Exit::Damaged,
        Unauthenticated | Denied | Throttled | Unavailable => Exit::Unreachable,
        Invalid => Exit::Usage,
        AlreadyExists | NoSpace | Local | Other => Exit::Failure,
    }
}
