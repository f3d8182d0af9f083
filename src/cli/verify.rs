//! `walferry verify`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;

use super::against::{self, Outcome};
use super::failure::Failure;
use super::sync::parse_timeout;
use super::{Error, Exit, configured, moment, print, progress, table};
use crate::restore::Step;
use crate::shown;
use crate::store;
use crate::verify::{self, Depth, Kept, Report};

/// Arguments of `walferry verify`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry verify s3://bucket/app",
    "walferry verify --quick --json s3://bucket/app",
    "walferry verify --against app.db s3://bucket/app",
]))]
pub(super) struct Args {
    /// The replica, such as s3://bucket/path or file:///path, or a database of the configuration file
    #[arg(value_name = "URL|DATABASE")]
    url: String,
    #[command(flatten)]
    named: configured::Args,
    /// Read only the header of each file: names, chain and coverage, but no page
    #[arg(long)]
    quick: bool,
    /// Compare its newest state with this database, page for page: it is read in one read transaction,
    /// as it is now
    #[arg(long, value_name = "DB", conflicts_with = "quick")]
    against: Option<PathBuf>,
    /// With --against: how long to wait for commits that are still on their way
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_timeout)]
    timeout: Duration,
    /// How far back it must be possible to restore, such as 168h
    #[arg(long, value_name = "TIME", value_parser = moment::duration)]
    retention: Option<SignedDuration>,
    /// How far back it must be possible to restore each state that was shipped, such as 24h
    #[arg(long, value_name = "TIME", value_parser = moment::duration)]
    l0_retention: Option<SignedDuration>,
    /// Requests at a time
    #[arg(long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    parallelism: u16,
    /// Report in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: progress::Args,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let named = args.named.one(&args.url)?;
    let store = named.open()?;
    let depth = if args.quick { Depth::Headers } else { Depth::Whole };
    let progress = args.progress.show(args.json);
    let told = progress.clone();
    let told = Arc::new(move |done, total| told.tell(Step::Fetch, done, total));
    let before = |ago| moment::before(crate::clock::wall(), ago);
    let (since, one_by_one) = (args.retention.map(before), args.l0_retention.map(before));
    let kept = Kept { since, one_by_one };
    let database = args.against.as_deref().map(against::existing).transpose()?;
    let parallelism = usize::from(args.parallelism);
    let verified = verify::examine(store.clone(), depth, kept, parallelism, told).await;
    progress.end();
    let (report, newest) = verified.map_err(|error| Error::from(error).about(&named.url))?;
    let url = store::url::redacted(&named.url);
    let outcome = match (database, newest) {
        (Some(database), Some(newest)) if report.defects.is_empty() => {
            Some(against::compare(&database, &named.url, &store, newest, args.timeout).await?)
        }
        (Some(_), None) if report.defects.is_empty() => {
            let text = format!("the files of {url} do not show each page of its newest state");
            return Err(Failure::because(Exit::Damaged, text));
        }
        _ => None,
    };
    if !args.progress.quiet {
        let outcome = outcome.as_ref();
        let text = if args.json {
            in_json(&report, outcome)
        } else {
            in_words(&report, args.quick, outcome)
        };
        print(&text)?;
    }
    match report.defects.len() {
        0 => outcome.map_or(Ok(()), |outcome| outcome.result()),
        number => Err(Error::Defects { url, number }),
    }
}

fn in_json(report: &Report, outcome: Option<&Outcome>) -> String {
    let defects = report.defects.iter().map(
        |defect| json!({ "file": defect.key.map(|key| key.to_string()), "what": defect.what }),
    );
    let proven = report.proven.map(|proven| {
        json!({
            "txid": proven.txid.to_string(),
            "timestamp": proven.timestamp.to_string(),
            "checksum": proven.checksum.to_string(),
        })
    });
    let text = json!({
        "files": report.files,
        "files_without_database_checksums": report.untagged,
        "bytes_fetched": report.fetched,
        "pages": report.pages,
        "states": report.states,
        "oldest": report.oldest.map(|(txid, at)| json!({
            "txid": txid.to_string(),
            "timestamp": at.to_string(),
        })),
        "proven": proven,
        "defects": defects.collect::<Vec<_>>(),
        "against": outcome.map(Outcome::json),
    });
    format!("{text}\n")
}

fn in_words(report: &Report, quick: bool, outcome: Option<&Outcome>) -> String {
    let mut lines: Vec<String> = Vec::new();
    for defect in &report.defects {
        let place = defect.key.map_or("the replica".to_string(), |key| key.to_string());
        lines.push(format!("{place}: {}", defect.what));
    }
    lines.push(format!(
        "read {} with {} bytes; {} can be restored",
        table::count(report.files, "file"),
        report.fetched,
        table::count(report.states, "state"),
    ));
    if let Some((txid, at)) = report.oldest {
        lines.push(format!("the oldest of them: TXID {txid} of {at}"));
    }
    if report.untagged > 0 {
        lines.push(format!(
            "{} of them carry no database checksums, as Litestream writes them",
            report.untagged
        ));
    }
    match report.proven {
        Some(proven) => lines.push(format!(
            "proven: TXID {} of {}, database checksum {}",
            proven.txid, proven.timestamp, proven.checksum
        )),
        None if quick => lines.push("no page was looked at".to_string()),
        None => {}
    }
    match outcome {
        Some(outcome) => lines.push(outcome.text()),
        None if report.defects.is_empty() => lines.push(
            "the replica is sound in itself; whether it is the database, --against DB shows".into(),
        ),
        None => {}
    }
    shown::lines(lines)
}
