//! Flags as Litestream's users write them: long names behind a single dash, `-timestamp`, `-o`,
//! `-level=9`.
//!
//! The arguments are rewritten before they are parsed, by what the commands themselves know: a long
//! flag of the subcommand gets its second dash, and nothing else changes. A value keeps its dash,
//! such as `-5m` behind `-timestamp`.
//!
//! What looks like a long flag and is none gets its second dash too, so that the parser says which one is
//! meant: `-outptu x` would else be `-o utptu x`. So a value that is glued to a short flag must have
//! more in it than small letters, as `-oapp.db`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction, Command};

/// Rewrites the arguments of the program `command`, its name first. The command must be built.
pub(super) fn rewrite(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut rewritten: Vec<OsString> = args.next().into_iter().collect();
    let mut current = command;
    let mut value_follows = false;
    for arg in args.by_ref() {
        if value_follows {
            value_follows = false;
            rewritten.push(arg);
            continue;
        }
        if arg == "--" {
            rewritten.push(arg);
            break;
        }
        if !arg.as_bytes().starts_with(b"-") {
            if let Some(subcommand) = arg.to_str().and_then(|name| current.find_subcommand(name)) {
                current = subcommand;
            }
            rewritten.push(arg);
            continue;
        }
        let arg = if is_long_with_one_dash(current, &arg) { with_two_dashes(&arg) } else { arg };
        value_follows = takes_next_with_dash(current, &arg);
        rewritten.push(arg);
    }
    rewritten.extend(args);
    rewritten
}

/// Whether the subcommand knows this long flag, by any of its names.
pub(super) fn knows(command: &Command, long: &str) -> bool {
    find(command, long).is_some()
}

fn find<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| {
        arg.get_long() == Some(long)
            || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&long))
    })
}

/// Name and whether a value is glued to it; `None` for what is no flag of one dash.
pub(super) fn name_behind_dashes(arg: &OsStr) -> Option<(&str, bool)> {
    let bytes = arg.as_bytes().strip_prefix(b"-")?;
    let bytes = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let end = bytes.iter().position(|byte| *byte == b'=');
    let name = bytes.get(..end.unwrap_or(bytes.len()))?;
    std::str::from_utf8(name).ok().map(|name| (name, end.is_some()))
}

fn is_long_with_one_dash(command: &Command, arg: &OsStr) -> bool {
    if arg.as_bytes().starts_with(b"--") {
        return false;
    }
    let Some((name, _)) = name_behind_dashes(arg) else { return false };
    if name.len() < 2 {
        return false;
    }
    knows(command, name) || looks_like_a_long_flag(name) && !is_cluster(command, name)
}

fn looks_like_a_long_flag(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

/// Several short flags behind one dash.
fn is_cluster(command: &Command, name: &str) -> bool {
    name.chars().all(|short| {
        let arg = command.get_arguments().find(|arg| arg.get_short() == Some(short));
        arg.is_some_and(|arg| !arg.get_action().takes_values())
    })
}

fn with_two_dashes(arg: &OsStr) -> OsString {
    let mut bytes = b"-".to_vec();
    bytes.extend_from_slice(arg.as_bytes());
    OsString::from_vec(bytes)
}

/// Whether the next argument belongs to this one even if it begins with a dash.
fn takes_next_with_dash(command: &Command, arg: &OsStr) -> bool {
    let Some((name, false)) = name_behind_dashes(arg) else { return false };
    let found = if arg.as_bytes().starts_with(b"--") {
        find(command, name)
    } else {
        let mut letters = name.chars();
        let short = letters.next().filter(|_| letters.next().is_none());
        command.get_arguments().find(|arg| short.is_some() && arg.get_short() == short)
    };
    found.is_some_and(|arg| {
        matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
            && arg.is_allow_hyphen_values_set()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;
    use proptest::prelude::*;

    use super::*;
    use crate::cli::Cli;

    fn command() -> Command {
        let mut command = Cli::command();
        command.build();
        command
    }

    fn rewritten(line: &str) -> String {
        let args = ["walferry"].into_iter().chain(line.split_whitespace()).map(OsString::from);
        let done = rewrite(&command(), args);
        let done: Vec<_> = done.iter().skip(1).map(|arg| arg.to_str().unwrap()).collect();
        done.join(" ")
    }

    #[test]
    fn as_litestream_users_write_them() {
        for (line, expected) in [
            (
                "restore -o a.db -timestamp 2026-11-22T12:48:34Z s3://b/a",
                "restore -o a.db --timestamp 2026-11-22T12:48:34Z s3://b/a",
            ),
            ("restore -timestamp -5m -o x u", "restore --timestamp -5m -o x u"),
            ("restore -timestamp=-5m u", "restore --timestamp=-5m u"),
            ("restore --timestamp -force u", "restore --timestamp -force u"),
            (
                "restore -if-db-not-exists -if-replica-exists u",
                "restore --if-db-not-exists --if-replica-exists u",
            ),
            (
                "restore -parallelism=8 -integrity-check full u",
                "restore --parallelism=8 --integrity-check full u",
            ),
            ("restore -f -follow-interval 1s -o=x u", "restore -f --follow-interval 1s -o=x u"),
            ("restore -dry-run -json -txid 2a u", "restore --dry-run --json --txid 2a u"),
            ("ltx -level all u", "ltx --level all u"),
            ("wal -level 9 u", "wal --level 9 u"),
            ("restore -q -fq -qf u", "restore -q -fq -qf u"),
            ("restore -h", "restore -h"),
            ("restore -help", "restore --help"),
            ("-help", "--help"),
            // Glued values, and arguments behind `--`.
            ("restore -oapp.db -o/tmp/x u", "restore -oapp.db -o/tmp/x u"),
            ("restore -o x -- -force", "restore -o x -- -force"),
            // Misspelt flags become long flags, so that the parser names the right flag.
            ("restore -timestmp 1 -outptu x u", "restore --timestmp 1 --outptu x u"),
            ("restore -forcee u", "restore --forcee u"),
            // The command does not have this flag.
            ("reset -level 1 a.db", "reset --level 1 a.db"),
        ] {
            assert_eq!(rewritten(line), expected, "{line}");
        }
    }

    #[test]
    fn arguments_that_are_no_text_stay() {
        let odd = OsString::from_vec(b"-o=\xff-json".to_vec());
        let long = OsString::from_vec(b"-output=\xff".to_vec());
        let args = ["walferry".into(), "restore".into(), odd.clone(), long];
        let done = rewrite(&command(), args);
        assert_eq!(done[2], odd);
        assert_eq!(done[3].as_bytes(), b"--output=\xff");
    }

    /// Every long flag of every subcommand.
    #[test]
    fn every_long_flag_works_with_one_dash() {
        let command = command();
        for subcommand in command.get_subcommands() {
            for arg in subcommand.get_arguments().filter(|arg| arg.get_long().is_some()) {
                let long = arg.get_long().unwrap();
                let args = ["walferry", subcommand.get_name(), &format!("-{long}")];
                let done = rewrite(&command, args.map(OsString::from));
                assert_eq!(done[2], *format!("--{long}"), "{}", subcommand.get_name());
            }
        }
    }

    fn piece() -> impl Strategy<Value = String> {
        let command = command();
        let mut flags: Vec<String> = Vec::new();
        for subcommand in command.get_subcommands() {
            let longs = subcommand.get_arguments().filter_map(Arg::get_long);
            flags.extend(longs.map(str::to_string));
        }
        prop_oneof![
            prop::sample::select(flags),
            "[a-z-]{1,12}".prop_map(|text| text),
            "[A-Za-z0-9:/=._-]{0,16}".prop_map(|text| text),
        ]
    }

    proptest! {
        /// Nothing but a second dash is ever added, nothing is lost or moved, rewriting twice is
        /// rewriting once, and what is written with two dashes does not change at all.
        #[test]
        fn only_dashes_are_added(
            name in prop::sample::select(vec!["restore", "ltx", "sync", "compact", "verify"]),
            pieces in prop::collection::vec(("-{0,3}", piece()), 0..8),
        ) {
            let command = command();
            let mut args = vec![OsString::from("walferry"), OsString::from(name)];
            args.extend(pieces.iter().map(|(dashes, text)| OsString::from(format!("{dashes}{text}"))));
            let done = rewrite(&command, args.clone());
            prop_assert_eq!(args.len(), done.len());
            for (before, after) in args.iter().zip(&done) {
                let one = before.as_bytes().starts_with(b"-") && !before.as_bytes().starts_with(b"--");
                if !one {
                    prop_assert_eq!(before, after);
                } else if before != after {
                    let long = with_two_dashes(before);
                    prop_assert_eq!(&long, after);
                }
            }
            prop_assert_eq!(rewrite(&command, done.clone()), done);
        }

        /// The value of a flag that may begin with a dash is left alone, whatever it is.
        #[test]
        fn values_are_left_alone(value in "-[a-z0-9-]{1,12}", dashes in "--?") {
            let args = ["walferry", "restore", &format!("{dashes}timestamp"), &value, "-json"];
            let done = rewrite(&command(), args.map(OsString::from));
            prop_assert_eq!(done[3].to_str().unwrap(), value);
            prop_assert_eq!(done[4].to_str().unwrap(), "--json");
        }
    }
}
