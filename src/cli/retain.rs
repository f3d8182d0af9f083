//! `walferry retain`.

use jiff::SignedDuration;
use serde_json::json;

use super::configured::Named;
use super::{Error, moment, note, print, table, tidy};
use crate::history;
use crate::plan::retain::{Own, Policy};
use crate::store::FileInfo;

/// Arguments of `walferry retain`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry retain --dry-run --retention 720h s3://bucket/app",
]))]
pub(super) struct Args {
    #[command(flatten)]
    tidy: tidy::Args,
    /// How far back states can be restored, such as 720h or 30d: what only older ones need is removed.
    /// For a database of the configuration file, else what that says
    #[arg(long, value_name = "TIME", value_parser = moment::duration)]
    retention: Option<SignedDuration>,
    /// How far back each state can be restored that was shipped: older files of level 0 are removed
    /// where a joined one has all of them. Else what the file says, else 24h
    #[arg(long, value_name = "TIME", value_parser = moment::duration)]
    l0_retention: Option<SignedDuration>,
    /// Do not read what stays in the place of what is removed before that is
    #[arg(long)]
    quick: bool,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let named = args.tidy.named()?;
    let store = named.open()?;
    let files = tidy::files(&named, store.as_ref()).await?;
    let now = crate::clock::wall();
    let before = |ago| moment::before(now, ago);
    let (all, l0) = times(&args, &named)?;
    let policy = Policy { all: all.map(before), l0: before(l0) };
    let told = |file: &FileInfo| log::info!("reading {}", file.key);
    let mut damaged = Vec::new();
    if !args.quick {
        let found = history::damaged(&store, &files, policy, told).await;
        damaged = found.map_err(|error| Error::from(error).about(&named.url))?;
    }
    for key in &damaged {
        note(&format!(
            "file {key} of the replica is damaged: what else has its transactions stays"
        ));
    }
    let removed = if args.tidy.dry_run {
        history::removable(&store, &files, policy, Own::NONE, &damaged).await?
    } else {
        history::remove(&store, &files, policy, Own::NONE, &damaged).await?
    };
    let bytes = removed.iter().map(|file| file.len).fold(0, u64::saturating_add);
    if args.tidy.json {
        let files: Vec<_> = removed.iter().map(table::json).collect();
        let text = json!({ "removed": files, "bytes": bytes, "dry_run": args.tidy.dry_run });
        return print(&format!("{text}\n"));
    }
    let done = if args.tidy.dry_run { "would remove" } else { "removed" };
    let kept = table::count(files.len() - removed.len(), "file");
    let count = table::count(removed.len(), "file");
    print(&format!("{done} {count} with {bytes} bytes; {kept} stay\n"))
}

/// How far back all states are kept, and each one: as is said here, else in the file.
fn times(args: &Args, named: &Named) -> Result<(Option<SignedDuration>, SignedDuration), Error> {
    let history = named.of.as_ref().map(|(_, settings)| &settings.history);
    if history.is_some_and(|history| !history.deletes) && args.retention.is_none() {
        let text = "the file says that nothing is deleted; say --retention to do it all the same";
        return Err(Error::Usage(text.into()));
    }
    let signed = |time| SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    let all = match (args.retention, history) {
        (Some(given), _) => Some(given),
        (None, Some(history)) => history.retention.map(signed),
        (None, None) => {
            let text = "say how far back states are kept, with --retention such as 720h";
            return Err(Error::Usage(text.into()));
        }
    };
    let l0 = args.l0_retention.or_else(|| history.map(|history| signed(history.l0_retention)));
    Ok((all, l0.unwrap_or(SignedDuration::from_hours(24))))
}
