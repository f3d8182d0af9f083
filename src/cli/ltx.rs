//! `walferry ltx`.

use serde_json::json;

use super::{Error, configured, generations, print, table};
use crate::plan::restore::{head, restorable};
use crate::plan::{self, Target};
use crate::restore::{self, Range, list_in_turn, range};
use crate::shown;
use crate::store::FileInfo;
use crate::units::{Level, Txid};

/// Arguments of `walferry ltx`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry ltx s3://bucket/app",
    "walferry ltx --level 9 --json s3://bucket/app",
]))]
pub(super) struct Args {
    /// The replica, such as s3://bucket/path or file:///path, or a database of the configuration file
    #[arg(value_name = "URL|DATABASE")]
    url: String,
    #[command(flatten)]
    named: configured::Args,
    /// Which level to show, 0 to 9
    #[arg(long, value_name = "N|all", default_value = "all", value_parser = parse_levels)]
    level: Levels,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy)]
enum Levels {
    All,
    One(Level),
}

fn parse_levels(text: &str) -> Result<Levels, String> {
    if text == "all" {
        return Ok(Levels::All);
    }
    let level = text.parse().ok().and_then(Level::new).map(Levels::One);
    level.ok_or_else(|| "give a level from 0 to 9, or all".into())
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let named = args.named.one(&args.url)?;
    let store = named.open()?;
    // The restorable states depend on all levels, whichever levels are shown.
    let files = list_in_turn(store.as_ref()).await?;
    let old = restore::generations::list(store.as_ref()).await?;
    if files.is_empty() && old.is_empty() {
        return Err(Error::Restore(plan::Error::Empty.into()));
    }
    let shown: Vec<&FileInfo> = files
        .iter()
        .filter(|file| match args.level {
            Levels::All => true,
            Levels::One(level) => file.key.level == level,
        })
        .collect();
    let points = restorable(&files);
    let problem = match plan::restore::restore(&files, Target::Latest) {
        Err(plan::Error::Empty) | Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    // A damaged file does not keep a replica from being listed.
    let (times, unreadable) = match range(store.as_ref(), &files).await {
        Ok(times) => (times, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let problem = problem.or(unreadable).or_else(|| generations::problem(&old));
    if args.json {
        let text = json!({
            "files": shown.iter().map(|file| table::json(file)).collect::<Vec<_>>(),
            "restorable": {
                "states": points.len(),
                "oldest": points.first().map(ToString::to_string),
                "newest": points.last().map(ToString::to_string),
                "from": times.map(|times| times.first.to_string()),
                "to": times.map(|times| times.last.to_string()),
            },
            "head": head(&files).map(|txid| txid.to_string()),
            "generations": generations::json(&old),
            "problem": problem,
        });
        return print(&format!("{text}\n"));
    }
    let mut text = String::new();
    if !files.is_empty() {
        text += &files_in_words(shown, &points, times);
    }
    // Generations belong to no level.
    if matches!(args.level, Levels::All) {
        text += &generations::text(&old);
    }
    if let Some(problem) = problem {
        text += &shown::lines([["warning: ", &problem].concat()]);
    }
    print(&text)
}

fn files_in_words(shown: Vec<&FileInfo>, points: &[Txid], times: Option<Range>) -> String {
    let summary = match (points, points.last()) {
        ([only], _) => format!("restorable: TXID {only}\n"),
        ([first, ..], Some(last)) => {
            format!("restorable: {} states, TXID {first} to {last}\n", points.len())
        }
        _ => "restorable: nothing\n".to_string(),
    };
    let mut text = table::text(shown) + &summary;
    if let Some(times) = times {
        text += &["committed: ", &times.first.to_string(), " to ", &times.last.to_string(), "\n"]
            .concat();
    }
    text
}
