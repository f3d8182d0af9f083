//! `walferry restore --follow`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{Error, print, progress, say, table};
use crate::follow::{self, Event, Options, Stop};
use crate::restore::{Integrity, Watch};
use crate::shown;
use crate::store::Store;

/// How a copy is followed.
pub(super) struct Wanted<'a> {
    pub(super) output: PathBuf,
    /// Time between two requests while nothing is new.
    pub(super) interval: Duration,
    pub(super) parallelism: usize,
    pub(super) integrity: Integrity,
    pub(super) mode: Option<u32>,
    pub(super) json: bool,
    pub(super) progress: &'a progress::Args,
}

/// Follows until a signal. Where there is no copy by then, that is no success.
pub(super) async fn run(args: &Wanted<'_>, store: Arc<dyn Store>) -> Result<(), Error> {
    let progress = args.progress.show(args.json);
    let told = progress.clone();
    let options = Options {
        output: args.output.clone(),
        interval: args.interval,
        parallelism: args.parallelism,
        integrity: args.integrity,
        mode: args.mode,
        watch: Some(Watch::new(move |step, done, total| told.tell(step, done, total))),
    };
    let stop = Arc::new(Stop::default());
    let signals = stop_at_signals(stop.clone())?;
    let mut failure = None;
    let told = stop.clone();
    let followed = follow::follow(store, options, stop, |event| {
        progress.clear();
        if !args.progress.quiet
            && failure.is_none()
            && let Err(error) = tell(args, &event)
        {
            // The reader of the output has gone, or the disk is full: no further event can be reported.
            failure = Some(error);
            told.set();
        }
    })
    .await;
    signals.abort();
    progress.end();
    let last = followed?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let Some(last) = last else { return Err(Error::Follow(follow::Error::Stopped)) };
    match (args.progress.quiet, args.json) {
        (true, _) => Ok(()),
        (false, true) => {
            print(&format!("{}\n", json!({ "event": "end", "txid": last.to_string() })))
        }
        (false, false) => print(&format!("ended at TXID {last}\n")),
    }
}

fn stop_at_signals(stop: Arc<Stop>) -> Result<tokio::task::JoinHandle<()>, Error> {
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Error::System)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(Error::System)?;
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        stop.set();
    }))
}

fn tell(args: &Wanted<'_>, event: &Event<'_>) -> Result<(), Error> {
    let text = if args.json { in_json(event) } else { in_words(args, event) };
    if matches!(event, Event::Trouble { .. }) && !args.json {
        say(&text);
        return Ok(());
    }
    print(&text)
}

fn in_words(args: &Wanted<'_>, event: &Event<'_>) -> String {
    let path = args.output.display().to_string();
    let path = shown::line(&path);
    match event {
        Event::Restored(report) => format!(
            "restored {path}: TXID {} of {}, {} bytes; following\n",
            report.txid,
            report.timestamp,
            u64::from(report.commit) * u64::from(report.page_size.get()),
        ),
        Event::Resumed { txid, timestamp } => {
            format!("{path} is at TXID {txid} of {timestamp}; following\n")
        }
        Event::Step { txid, timestamp, pages, whole } => {
            let pages = table::count(usize::try_from(*pages).unwrap_or(usize::MAX), "page");
            let whole = whole.as_ref().map(|why| format!("; everything was read: {why}"));
            let whole = whole.unwrap_or_default();
            shown::lines([format!("TXID {txid} of {timestamp}, {pages} written{whole}")])
        }
        Event::Trouble { error } => {
            let mut text = format!("walferry: {error}");
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                text += &[": ", &error.to_string()].concat();
                cause = error.source();
            }
            shown::lines([text + "; trying again"])
        }
    }
}

fn in_json(event: &Event<'_>) -> String {
    let text = match event {
        Event::Restored(report) => json!({
            "event": "restored",
            "txid": report.txid.to_string(),
            "timestamp": report.timestamp.to_string(),
            "bytes": u64::from(report.commit) * u64::from(report.page_size.get()),
            "proven": report.proven,
        }),
        Event::Resumed { txid, timestamp } => json!({
            "event": "resumed",
            "txid": txid.to_string(),
            "timestamp": timestamp.to_string(),
        }),
        Event::Step { txid, timestamp, pages, whole } => json!({
            "event": "step",
            "txid": txid.to_string(),
            "timestamp": timestamp.to_string(),
            "pages": pages,
            "whole": whole,
        }),
        Event::Trouble { error } => json!({ "event": "trouble", "error": error.to_string() }),
    };
    format!("{text}\n")
}
