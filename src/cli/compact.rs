//! `walferry compact`.

use serde_json::json;

use super::configured::Named;
use super::{Error, print, table, tidy};
use crate::history::{self, Joined, Purpose};
use crate::plan;
use crate::plan::compact::{self, Ladder, Step};
use crate::restore::list_in_turn;
use crate::store::FileInfo;
use crate::units::{Level, Txid};

/// Arguments of `walferry compact`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry compact s3://bucket/app",
    "walferry compact --level 9 s3://bucket/app",
]))]
pub(super) struct Args {
    #[command(flatten)]
    tidy: tidy::Args,
    /// Which levels to make, in this order: 1 to 8 from the next lower one that there is, 9 for a snapshot
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 3],
          value_parser = clap::value_parser!(u8).range(1..=9))]
    level: Vec<u8>,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let named = args.tidy.named()?;
    join(&named, &args.level, &args.tidy).await
}

/// Makes a file of each of these levels, as far as there is anything to join.
pub(super) async fn join(named: &Named, levels: &[u8], how: &tidy::Args) -> Result<(), Error> {
    let store = named.open()?;
    let mut files = tidy::files(named, store.as_ref()).await?;
    let mut lines = Vec::new();
    let levels = || levels.iter().filter_map(|level| Level::new(*level));
    for level in levels() {
        // A snapshot that a person asks for takes all files, whichever levels below are being made.
        let ladder = match level {
            Level::SNAPSHOT => Ladder::default(),
            _ => Ladder::of(&files, levels()),
        };
        // Files that arrive meanwhile wait for the next run, since a program may write without a pause.
        let before = plan::restore::head(&files).map_or(Txid::ZERO, Txid::next);
        let (mut last, mut more) = (None, true);
        while more {
            let Some((step, rest)) = next(&files, &ladder, level, before, named)? else { break };
            if last.replace(step.key) == Some(step.key) {
                break;
            }
            more = rest;
            if how.dry_run {
                // A dry run plans the next steps as if this file existed.
                let len = step.inputs.iter().map(|file| file.len).fold(0, u64::saturating_add);
                let now = crate::clock::wall();
                files.push(FileInfo { key: step.key, len, modified: now, stored: now });
                lines.push(line(how.json, &step, None));
                continue;
            }
            let joined = history::join(store.clone(), step.clone(), Purpose::Publish, None);
            let joined = joined.await.map_err(|error| Error::from(error).about(&named.url))?;
            files = list_in_turn(store.as_ref()).await?;
            lines.push(line(how.json, &step, Some(joined)));
        }
    }
    if lines.is_empty() {
        let why = "there is nothing to join";
        lines.push(if how.json {
            format!("{}\n", json!({ "file": null, "inputs": [], "reason": why }))
        } else {
            format!("{why}\n")
        });
    }
    print(&lines.concat())
}

/// The next step, and whether it leaves anything: so many files are joined at a time.
fn next(
    files: &[FileInfo],
    ladder: &Ladder,
    level: Level,
    before: Txid,
    named: &Named,
) -> Result<Option<(Step, bool)>, Error> {
    if level != Level::SNAPSHOT {
        let step = compact::next(files, ladder, level, before);
        return Ok(step.map(|step| {
            let more = step.inputs.len() >= compact::INPUTS_MAX;
            (step, more)
        }));
    }
    let whole = compact::snapshot(files, ladder, before);
    let whole = whole.map_err(|error| Error::Restore(error.into()).about(&named.url))?;
    Ok(whole.map(|whole| {
        let step = compact::in_turn(whole.clone(), ladder);
        let more = step.key != whole.key;
        (step, more)
    }))
}

fn line(json: bool, step: &Step, joined: Option<Joined>) -> String {
    if json {
        let text = json!({
            "file": step.key.to_string(),
            "inputs": step.inputs.iter().map(table::json).collect::<Vec<_>>(),
            "bytes": joined.map(|joined| joined.len),
            "pages": joined.map(|joined| joined.pages),
            "bytes_fetched": joined.map(|joined| joined.fetched),
            "existed": joined.map(|joined| joined.existed),
        });
        return format!("{text}\n");
    }
    let (key, from) = (step.key, table::count(step.inputs.len(), "file"));
    match joined {
        None => format!("would make {key} from {from}\n"),
        Some(joined) if joined.existed => format!("{key} was made by somebody else meanwhile\n"),
        Some(Joined { len, pages, .. }) => {
            let pages = table::count(usize::try_from(pages).unwrap_or(usize::MAX), "page");
            format!("made {key} from {from}: {pages}, {len} bytes\n")
        }
    }
}
