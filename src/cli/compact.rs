//! `walferry compact`.

use serde_json::json;

use super::{Error, configured, moment, print, table};
use crate::history::{self, Joined, Purpose};
use crate::plan::compact::{self, Ladder, Step};
use crate::restore::list_in_turn;
use crate::store;
use crate::units::{Level, Txid};

/// Arguments of `walferry compact`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help())]
pub(super) struct Args {
    /// The replica, such as s3://bucket/path or file:///path, or a database of the configuration file
    #[arg(value_name = "URL|DATABASE")]
    url: String,
    #[command(flatten)]
    named: configured::Args,
    /// Which levels to make, in this order: 1 to 8 from the next lower one that there is, 9 for a snapshot
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 3],
          value_parser = clap::value_parser!(u8).range(1..=9))]
    level: Vec<u8>,
    /// Only show what would be joined
    #[arg(long)]
    dry_run: bool,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let named = args.named.one(&args.url)?;
    let store = named.open()?;
    let mut files = list_in_turn(store.as_ref()).await?;
    let mut lines = Vec::new();
    let levels = || args.level.iter().filter_map(|level| Level::new(*level));
    for level in levels() {
        let ladder = Ladder::of(&files, levels());
        let Some(step) = compact::next(&files, &ladder, level, Txid(u64::MAX)) else { continue };
        if args.dry_run {
            // What a later level would join of this one is planned as if it were there.
            let len = step.inputs.iter().map(|file| file.len).fold(0, u64::saturating_add);
            let now = moment::now();
            files.push(store::FileInfo { key: step.key, len, modified: now, stored: now });
            lines.push(line(&args, &step, None));
            continue;
        }
        let joined = history::join(store.clone(), step.clone(), Purpose::Publish, None);
        let joined = joined.await.map_err(|error| super::about(&named.url, error.into()))?;
        files = list_in_turn(store.as_ref()).await?;
        lines.push(line(&args, &step, Some(joined)));
    }
    if lines.is_empty() && !args.json {
        lines.push("there is nothing to join\n".to_string());
    }
    print(&lines.concat())
}

fn line(args: &Args, step: &Step, joined: Option<Joined>) -> String {
    if args.json {
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
