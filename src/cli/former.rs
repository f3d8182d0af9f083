//! Commands and flags of Litestream that walferry does not have, and what to use instead.

use std::ffi::OsString;

use clap::Command;

use super::dashes::{knows, name_behind_dashes};

/// Commands, and what does their work here.
const COMMANDS: [(&str, &str); 10] = [
    (
        "generations",
        "there are no generations: `walferry ltx URL` lists the files of a replica, also those of \
         Litestream 0.3, and `walferry restore --list URL` what can be restored",
    ),
    (
        "snapshots",
        "`walferry ltx --level 9 URL` lists the snapshots, and `walferry restore --list URL` what can be \
         restored",
    ),
    (
        "list",
        "`walferry databases` shows what is configured, and `walferry status DB` how one stands",
    ),
    ("info", "there is no control socket: `walferry status DB` says how a database stands"),
    ("register", NO_SOCKET),
    ("unregister", NO_SOCKET),
    ("start", NO_SOCKET),
    ("stop", NO_SOCKET),
    ("mcp", "there is no server: each command takes --json"),
    ("validate", "it is called `walferry verify URL`"),
];

const NO_SOCKET: &str = "there is no control socket: a database is replicated when a program opens it \
    with the extension, and `walferry status DB` says how it stands";

/// Flags, and what to use instead; each for the commands that do not have it.
const FLAGS: [(&str, &str); 6] = [
    (
        "generation",
        "the generation is found by the moment: give -timestamp. `walferry ltx URL` lists those that \
         Litestream 0.3 left",
    ),
    (
        "index",
        "a state is named by -txid, or for what Litestream 0.3 wrote by -timestamp. `walferry restore \
         --list URL` shows what there is",
    ),
    ("replica", "give the URL of the replica instead of the database"),
    ("socket", "there is no control socket: what a command needs is beside the database"),
    ("enforce-retention", "`walferry retain --retention TIME URL` does so at any time"),
    ("force-snapshot", "`walferry snapshot URL` does so at any time"),
];

/// What is to be said instead of doing it; `None` if nothing is.
pub(super) fn refusal(command: &Command, args: &[OsString]) -> Option<String> {
    let mut rest = args.iter().skip(1).skip_while(|arg| name_behind_dashes(arg).is_some());
    let name = rest.next()?.to_str()?;
    let Some(subcommand) = command.find_subcommand(name) else {
        let (_, instead) = COMMANDS.iter().find(|(former, _)| *former == name)?;
        return Some(format!("walferry has no command `{name}`: {instead}"));
    };
    let flags = rest.take_while(|arg| *arg != "--").filter_map(|arg| name_behind_dashes(arg));
    for (flag, _) in flags {
        if let Some((_, instead)) = FLAGS.iter().find(|(former, _)| *former == flag)
            && !knows(subcommand, flag)
        {
            return Some(format!("`walferry {name}` has no flag -{flag}: {instead}"));
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn said(line: &str) -> Option<String> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let mut command = Cli::command();
        command.build();
        refusal(&command, &args)
    }

    #[test]
    fn a_sentence_names_what_to_use() {
        for (line, instead) in [
            ("walferry generations -config x db", "walferry ltx URL"),
            ("walferry snapshots db", "--level 9"),
            ("walferry list", "walferry status"),
            ("walferry info -json", "walferry status"),
            ("walferry register -replica x db", "extension"),
            ("walferry restore -generation 0123 db", "-timestamp"),
            ("walferry restore -o x --index=4 db", "-txid"),
            ("walferry status -replica s3 db", "URL"),
            ("walferry sync -socket /run/x db", "beside the database"),
        ] {
            let said = said(line).unwrap_or_default();
            assert!(said.contains(instead), "{line}: {said}");
        }
        for line in [
            "walferry",
            "walferry -help",
            "walferry sync --replica u db",
            "walferry restore -replica s3 db",
            "walferry restore -- -index",
            "walferry wal u",
        ] {
            assert_eq!(said(line), None, "{line}");
        }
    }

    /// What a sentence names is there.
    #[test]
    fn the_commands_that_are_named_exist() {
        let command = Cli::command();
        let sentences = COMMANDS.iter().chain(&FLAGS).map(|(_, instead)| instead);
        for named in sentences.flat_map(|text| text.split("`walferry ").skip(1)) {
            let name = named.split([' ', '`']).next().unwrap();
            assert!(command.find_subcommand(name).is_some(), "{name}");
        }
        for (name, _) in COMMANDS {
            assert!(command.find_subcommand(name).is_none(), "{name} is there");
        }
    }
}
