//! `walferry reset`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::given_up::{self, Held};
use super::{Error, configured, print};
use crate::shown;

/// Arguments of `walferry reset`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry reset --dry-run app.db",
    "walferry reset app.db",
]))]
pub(super) struct Args {
    /// The database; it is not touched
    database: PathBuf,
    #[command(flatten)]
    file: configured::File,
    /// Only show what would be given up
    #[arg(long)]
    dry_run: bool,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    if args.file.config.is_some() {
        // The local state names its replica itself. But a file that the user names must be correct.
        args.file.load()?;
    }
    // The locks of all state folders are taken before any state is given up.
    let held = given_up::hold(&args.database)?;
    if held.iter().all(Held::is_given_up) {
        let path = args.database.display();
        if args.json {
            let database = path.to_string();
            let text = json!({ "database": database, "reset": false, "reason": "no local state" });
            return print(&format!("{text}\n"));
        }
        let text =
            format!("{path}: walferry keeps nothing beside it, so there is nothing to reset");
        return print(&shown::lines([text]));
    }
    held.iter().filter(|held| !held.is_given_up()).try_for_each(|held| reset(held, args))
}

fn reset(held: &Held, args: &Args) -> Result<(), Error> {
    let kept = if args.dry_run { held.keep_at() } else { held.give_up()? };
    if args.json {
        let mut text = held.json();
        text["database"] = held.database().display().to_string().into();
        text["replica"] = replica(held).into();
        text["reset"] = (!args.dry_run).into();
        text["kept"] = kept.map(|kept| kept.display().to_string()).into();
        return print(&format!("{text}\n"));
    }
    print(&report(held, kept.as_deref(), args.dry_run))
}

fn replica(held: &Held) -> Option<&str> {
    held.state.as_ref().map(|state| state.replica.as_str())
}

fn report(held: &Held, kept: Option<&Path>, dry_run: bool) -> String {
    let path = held.database().display();
    let mut lines = vec![match replica(held) {
        Some(replica) => format!("{path}: replicated to {replica} up to TXID {}", held.acked()),
        None => format!("{path}: its state cannot be read"),
    }];
    lines.extend(held.lines(kept, dry_run));
    let done = if dry_run {
        "nothing was changed"
    } else {
        "the state is given up; the next start sends a full image"
    };
    lines.push(done.to_string());
    shown::lines(lines)
}
