//! `walferry ltx`.

use serde_json::json;

use super::{Error, print, table};
use crate::plan::restore::{head, restorable, restore};
use crate::plan::{self, Target};
use crate::restore::{list_in_turn, range};
use crate::store::{self, FileInfo};
use crate::units::Level;

/// Arguments of `walferry ltx`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help())]
pub(super) struct Args {
    /// The replica, such as s3://bucket/path or file:///path
    url: String,
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
    let store = store::url::open(&args.url)?;
    // What can be restored depends on all levels, whichever are shown.
    let files = list_in_turn(store.as_ref()).await?;
    if files.is_empty() {
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
    let problem = restore(&files, Target::Latest).err().map(|error| error.to_string());
    // A replica whose files are damaged is listed all the same.
    let (times, unreadable) = match range(store.as_ref(), &files).await {
        Ok(times) => (times, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let problem = problem.or(unreadable);
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
            "problem": problem,
        });
        return print(&format!("{text}\n"));
    }
    let summary = match (points.as_slice(), points.last()) {
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
    if let Some(problem) = problem {
        text += &["warning: ", &problem, "\n"].concat();
    }
    print(&text)
}
