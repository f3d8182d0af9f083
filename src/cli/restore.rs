//! `walferry restore`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::configured::Named;
use super::planned::Planned;
use super::{
    Error, Exit, configured, follow, generations, moment, note, points, print, progress, table,
};
use crate::config::values::{parse_duration, parse_mode};
use crate::follow as following;
use crate::plan;
use crate::restore::{self, Force, Integrity, Options, Point, Report, Watch};
use crate::shown;
use crate::store::{self, ErrorKind, Store};
use crate::units::{Timestamp, Txid};

/// Arguments of `walferry restore`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry restore -o app.db s3://bucket/app",
    "walferry restore -o app.db --timestamp -5m s3://bucket/app",
    "walferry restore -o app.db --force --txid 2a s3://bucket/app",
    "walferry restore -f -o copy.db s3://bucket/app",
    "walferry restore --list s3://bucket/app",
]))]
pub(super) struct Args {
    /// The replica, such as s3://bucket/path or file:///path, or a database of the configuration
    /// file; of its replicas the first that answers
    #[arg(value_name = "URL|DATABASE")]
    url: String,
    #[command(flatten)]
    named: configured::Args,
    /// Where to put the database; nothing may be there, unless --force or --delta says so. For a
    /// database of the configuration file, else its place there
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// The state after exactly this transaction, in hexadecimal; else the newest
    #[arg(long, value_name = "HEX")]
    txid: Option<Txid>,
    /// The last state at or before a moment: 2026-11-22T12:48:34Z, with any fraction and zone (UTC if
    /// none is given), or how long ago, such as -5m
    #[arg(long, value_name = "TIME", conflicts_with = "txid", allow_hyphen_values = true,
          value_parser = parse_moment)]
    timestamp: Option<Timestamp>,
    /// Threads, and requests at a time
    #[arg(long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    parallelism: u16,
    /// What SQLite checks before the database appears
    #[arg(long, value_enum, value_name = "none|quick|full", hide_possible_values = true,
          default_value_t = Integrity::None)]
    integrity_check: Integrity,
    /// Permission bits of the database, such as 640; else those of the file that it replaces, or of
    /// restore-mode, which is 600 by default
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode, conflicts_with = "list")]
    mode: Option<u32>,
    /// OUT may be an older copy that was restored before: replace it, and read only what is newer
    #[arg(long)]
    delta: bool,
    /// Replace what is at OUT, once the new database is proven. Twice: even if it was replicated from
    /// here and its replica may not have all of it
    #[arg(long, action = clap::ArgAction::Count, conflicts_with_all = ["delta", "dry_run"])]
    force: u8,
    /// Keep OUT current, for local readers, until SIGINT or SIGTERM. OUT may be a copy that was followed
    /// or restored before
    #[arg(short, long, conflicts_with_all = ["txid", "timestamp", "delta", "force",
          "dry_run", "no_resume", "if_db_not_exists"])]
    follow: bool,
    /// With --follow: time between two requests while nothing is new
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_interval,
          requires = "follow")]
    follow_interval: Duration,
    /// Begin anew where an earlier restore to OUT was broken off
    #[arg(long)]
    no_resume: bool,
    /// Report in JSON
    #[arg(long)]
    json: bool,
    /// Show which files would be read, and what would come out; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Show what can be restored, and what that would read
    #[arg(long, conflicts_with_all = ["output", "txid", "timestamp", "delta", "dry_run",
          "no_resume", "integrity_check", "if_db_not_exists", "force", "follow"])]
    list: bool,
    /// Succeed and do nothing if OUT exists
    #[arg(long, conflicts_with_all = ["delta", "force"])]
    if_db_not_exists: bool,
    /// Succeed and do nothing if there is no replica
    #[arg(long)]
    if_replica_exists: bool,
    #[command(flatten)]
    progress: progress::Args,
    /// What restore-mode says.
    #[arg(skip = 0o600_u32)]
    new_mode: u32,
}

impl Args {
    /// Whether it goes on until it is ended.
    pub(super) fn follows(&self) -> bool {
        self.follow
    }

    fn point(&self) -> Point {
        match (self.txid, self.timestamp) {
            (Some(txid), _) => Point::Txid(txid),
            (None, Some(at)) => Point::Time(at),
            (None, None) => Point::Latest,
        }
    }

    fn followed(&self) -> Result<follow::Wanted<'_>, Error> {
        let Some(output) = self.output.clone() else {
            return Err(Error::Usage("say with -o where the copy is to be".into()));
        };
        Ok(follow::Wanted {
            output,
            interval: self.follow_interval,
            parallelism: usize::from(self.parallelism),
            integrity: self.integrity_check,
            mode: self.mode.or(Some(self.new_mode)),
            json: self.json,
            progress: &self.progress,
        })
    }

    fn options(&self, output: &Path) -> Options {
        let mut options = Options::new(output);
        options.point = self.point();
        options.parallelism = usize::from(self.parallelism);
        options.integrity = self.integrity_check;
        options.mode = self.mode;
        options.new_mode = self.new_mode;
        options.delta = self.delta;
        options.resume = !self.no_resume;
        options.force = match self.force {
            0 => Force::Never,
            1 => Force::Shipped,
            _ => Force::Unshipped,
        };
        options
    }
}

fn parse_moment(text: &str) -> Result<Timestamp, String> {
    moment::parse(text, crate::clock::wall())
}

/// Less than this between two requests is a mistake.
const SHORTEST: Duration = Duration::from_millis(10);

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < SHORTEST { Err("give at least 10ms".into()) } else { Ok(interval) }
}

pub(super) async fn run(mut args: Args) -> Result<(), Error> {
    let replicas = args.named.all(&args.url)?;
    args.new_mode = args.named.restore_mode(&replicas)?;
    if args.output.is_none() && !args.dry_run && !args.list {
        let place = replicas.first().and_then(|named| named.of.as_ref());
        let Some((database, _)) = place else {
            return Err(Error::Usage("say where to put the database, with -o".to_string()));
        };
        args.output = Some(database.clone());
    }
    args.output.as_deref().map_or(Ok(()), super::not_a_url)?;
    if let Some(path) = args.output.as_ref().filter(|_| args.if_db_not_exists)
        && path.symlink_metadata().is_ok()
    {
        let text = format!("{} exists already, nothing was restored", path.display());
        return nothing_done(&args, &text);
    }
    let last = replicas.len().saturating_sub(1);
    let mut passed_over: Option<Error> = None;
    for (number, named) in replicas.iter().enumerate() {
        let url = store::url::redacted(&named.url);
        let called = named.name.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
        let done = if args.follow {
            follow::run(&args.followed()?, named.open()?).await
        } else {
            restore_or_plan(&args, named).await
        };
        match done {
            Err(error) if last > 0 && is_no_answer(&error) => {
                let why = error.about(&named.url);
                if number < last {
                    note(&format!("passed over replica {called}{url}: {why}"));
                }
                passed_over = Some(match passed_over {
                    Some(first) if telling(&first) >= telling(&why) => first,
                    _ => why,
                });
            }
            Ok(()) if last > 0 => {
                note(&format!("of replica {called}{url}"));
                return Ok(());
            }
            Err(error) => return nothing_if_absent(&args, error.about(&named.url)),
            Ok(()) => return Ok(()),
        }
    }
    passed_over.map_or(Ok(()), |error| nothing_if_absent(&args, error))
}

/// Of several replicas that gave nothing, how much it matters what one of them said: a store that fails
/// may have the database, and one that lacks the state may have others; then it is not true that there
/// is no replica.
fn telling(error: &Error) -> u8 {
    match error.exit() {
        Exit::Unreachable => 2,
        _ if !is_absent(error) => 1,
        _ => 0,
    }
}

/// Success where there is no replica and that was foreseen.
fn nothing_if_absent(args: &Args, error: Error) -> Result<(), Error> {
    if args.if_replica_exists && is_absent(&error) {
        return nothing_done(args, &format!("nothing was restored: {error}"));
    }
    Err(error)
}

/// Whether another replica may have what this one does not give.
fn is_no_answer(error: &Error) -> bool {
    matches!(error.exit(), Exit::Unreachable | Exit::Nothing)
}

async fn restore_or_plan(args: &Args, named: &Named) -> Result<(), Error> {
    let store = named.open()?;
    if args.list {
        return points::list(store, args.json, usize::from(args.parallelism)).await;
    }
    let output = args.output.as_ref().filter(|_| !args.dry_run);
    if let Some(output) = output {
        restore::check_output(&args.options(output))?;
    }
    let Some(plan) = restore::generations::plan(store.as_ref(), args.point()).await? else {
        return restore_files(args, store).await;
    };
    let Some(output) = output else {
        return generations::show_plan(&plan, args.json);
    };
    let report = restore::generations::restore(store, plan, &args.options(output)).await?;
    if args.progress.quiet {
        return Ok(());
    }
    generations::show_report(output, &report, args.json)
}

async fn restore_files(args: &Args, store: Arc<dyn Store>) -> Result<(), Error> {
    let output = match &args.output {
        Some(output) if !args.dry_run => output.clone(),
        _ => {
            let copy = args.output.as_deref().filter(|_| args.delta);
            let planned = Planned::make(&store, args.point(), copy).await?;
            return print(&if args.json { planned.json() } else { planned.text() });
        }
    };
    let progress = args.progress.show(args.json);
    let mut options = args.options(&output);
    let told = progress.clone();
    options.watch = Some(Watch::new(move |step, done, total| told.tell(step, done, total)));
    let restored = restore::restore_with_state(store, options).await;
    progress.end();
    let (report, not_left) = restored?;
    if args.progress.quiet {
        return Ok(());
    }
    show_report(args, &output, &report, not_left.as_deref())
}

fn is_absent(error: &Error) -> bool {
    let (Error::Restore(error)
    | Error::Replica { source: error, .. }
    | Error::Follow(following::Error::Restore(error))) = error
    else {
        return false;
    };
    match error {
        restore::Error::Plan(plan::Error::Empty) => true,
        restore::Error::Store(error) => error.kind == ErrorKind::NoReplica,
        _ => false,
    }
}

fn nothing_done(args: &Args, text: &str) -> Result<(), Error> {
    if args.progress.quiet {
        return Ok(());
    }
    if args.json {
        return print(&format!("{}\n", json!({ "restored": false, "reason": text })));
    }
    print(&shown::lines([text]))
}

fn show_report(
    args: &Args,
    output: &Path,
    report: &Report,
    not_left: Option<&str>,
) -> Result<(), Error> {
    let path = output.display().to_string();
    let bytes = u64::from(report.commit) * u64::from(report.page_size.get());
    if args.json {
        let text = json!({
            "restored": true,
            "output": path,
            "txid": report.txid.to_string(),
            "timestamp": report.timestamp.to_string(),
            "bytes": bytes,
            "pages": report.commit,
            "page_size": report.page_size.get(),
            "checksum": report.checksum.to_string(),
            "proven": report.proven,
            "files": report.files,
            "files_without_database_checksums": report.untagged,
            "bytes_fetched": report.fetched,
            "requests": report.requests,
            "bytes_reused": report.reused,
            "passed_over": report.passed_over.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "from": report.from.map(|from| from.to_string()),
            "instead": report.instead.as_ref().map(ToString::to_string),
            "elapsed_ms": report.elapsed.as_millis() as u64,
            "state_left": not_left.is_none(),
        });
        return print(&format!("{text}\n"));
    }
    let mut lines = Vec::new();
    if let Some(instead) = &report.instead {
        lines.push(format!("everything was read: {instead}"));
    }
    lines.push(format!(
        "restored {path}: TXID {} of {}, {bytes} bytes, from {} with {} bytes in {:.2} s",
        report.txid,
        report.timestamp,
        table::count(report.files, "file"),
        report.fetched,
        report.elapsed.as_secs_f64(),
    ));
    for key in &report.passed_over {
        lines
            .push(format!("{key} is damaged: it was passed over, since others have what is in it"));
    }
    if report.reused > 0 {
        lines.push(format!(
            "{} bytes of these files were there already, from a restore that was broken off",
            report.reused
        ));
    }
    if let Some(from) = report.from {
        lines.push(format!("went on from TXID {from}, where the copy was"));
    }
    if report.untagged > 0 {
        lines.push(format_untagged(report));
    }
    if let Some(why) = not_left {
        lines.push(format!(
            "no replication state could be left beside it, so replicating it again begins with a full \
             image: {why}"
        ));
    }
    print(&shown::lines(lines))
}

fn format_untagged(report: &Report) -> String {
    format!(
        "{} of {} carry no database checksums, as Litestream writes them; through these only the \
         transaction numbers hold the chain together",
        report.untagged,
        table::count(report.files, "file"),
    )
}
