//! `walferry verify`.

use std::sync::Arc;

use jiff::SignedDuration;
use serde_json::json;

use super::{Error, configured, moment, print, progress, table};
use crate::restore::Step;
use crate::store;
use crate::verify::{self, Depth, Kept, Report};

/// Arguments of `walferry verify`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry verify s3://bucket/app",
    "walferry verify --quick --json s3://bucket/app",
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
    let verified = verify::verify(store, depth, kept, usize::from(args.parallelism), told).await;
    progress.end();
    let report = verified.map_err(|error| Error::from(error).about(&named.url))?;
    if !args.progress.quiet {
        print(&if args.json { in_json(&report) } else { in_words(&report, args.quick) })?;
    }
    match report.defects.len() {
        0 => Ok(()),
        number => Err(Error::Defects { url: store::url::redacted(&named.url), number }),
    }
}

fn in_json(report: &Report) -> String {
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
    });
    format!("{text}\n")
}

fn in_words(report: &Report, quick: bool) -> String {
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
    lines.push(String::new());
    lines.join("\n")
}
