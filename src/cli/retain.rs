//! `walferry retain`.

use jiff::SignedDuration;
use serde_json::json;

use super::{Error, moment, print, table};
use crate::history;
use crate::plan::retain::{Own, Policy};
use crate::restore::list_in_turn;
use crate::store;

/// Arguments of `walferry retain`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help())]
pub(super) struct Args {
    /// The replica, such as s3://bucket/path or file:///path
    url: String,
    /// How far back states can be restored, such as 720h or 30d: what only older ones need is removed
    #[arg(long, value_name = "TIME", value_parser = moment::duration)]
    retention: SignedDuration,
    /// How far back each state can be restored that was shipped: older files of level 0 are removed
    /// where a joined one has all of them
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = moment::duration)]
    l0_retention: SignedDuration,
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let store = store::url::open(&args.url)?;
    let files = list_in_turn(store.as_ref()).await?;
    let now = moment::now();
    let before = |ago| moment::before(now, ago);
    let policy = Policy { all: Some(before(args.retention)), l0: before(args.l0_retention) };
    let removed = if args.dry_run {
        history::removable(&store, &files, policy, Own::NONE).await?
    } else {
        history::remove(&store, &files, policy, Own::NONE).await?
    };
    let bytes = removed.iter().map(|file| file.len).fold(0, u64::saturating_add);
    if args.json {
        let files: Vec<_> = removed.iter().map(table::json).collect();
        let text = json!({ "removed": files, "bytes": bytes, "dry_run": args.dry_run });
        return print(&format!("{text}\n"));
    }
    let done = if args.dry_run { "would remove" } else { "removed" };
    let kept = table::count(files.len() - removed.len(), "file");
    let count = table::count(removed.len(), "file");
    print(&format!("{done} {count} with {bytes} bytes; {kept} stay\n"))
}
