//! What Litestream 0.3 left in a replica, in words or as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json as value};

use super::{Error, print, table};
use crate::plan::generations::{self, Generation, Plan, Segment};
use crate::restore::generations::Report;
use crate::shown;
use crate::store::Object;
use crate::units::Timestamp;

/// What a restore would read.
pub(super) fn show_plan(plan: &Plan, json: bool) -> Result<(), Error> {
    let bytes = length(plan.objects());
    if json {
        let objects: Vec<Value> = plan
            .objects()
            .map(|object| value!({ "path": object.path, "bytes": object.len }))
            .collect();
        let text = value!({
            "generation": plan.generation,
            "timestamp": plan.time().to_string(),
            "bytes": bytes,
            "objects": objects,
        });
        return print(&format!("{text}\n"));
    }
    print(&format!(
        "would restore generation {} of {} from {} with {bytes} bytes\n",
        plan.generation,
        plan.time(),
        table::count(plan.objects().count(), "object"),
    ))
}

/// What was restored.
pub(super) fn show_report(output: &Path, report: &Report, json: bool) -> Result<(), Error> {
    let path = output.display().to_string();
    let shown = shown::line(&path);
    let bytes = u64::from(report.commit) * u64::from(report.page_size.get());
    if json {
        let text = value!({
            "restored": true,
            "output": path,
            "generation": report.generation,
            "timestamp": report.timestamp.to_string(),
            "bytes": bytes,
            "pages": report.commit,
            "page_size": report.page_size.get(),
            "proven": false,
            "files": report.objects,
            "bytes_fetched": report.fetched,
            "elapsed_ms": report.elapsed.as_millis() as u64,
            "state_left": false,
        });
        return print(&format!("{text}\n"));
    }
    print(&format!(
        "restored {shown}: generation {} of {}, {bytes} bytes, from {} with {} bytes in {:.2} s\n\
         Litestream 0.3 wrote it, without a checksum of the whole: --integrity-check full asks \
         SQLite. Replicating it again begins with a full image\n",
        report.generation,
        report.timestamp,
        table::count(report.objects, "object"),
        report.fetched,
        report.elapsed.as_secs_f64(),
    ))
}

/// One line a generation under a heading, and the moments that can be restored; nothing where there
/// is no generation.
pub(super) fn text(list: &[Generation]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "{:16}  {:>9}  {:>8}  {:>12}  {:24}  to\n",
        "generation", "snapshots", "WALs", "bytes", "from"
    );
    for generation in list {
        let (from, to) = times(generation.objects());
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{}  {:>9}  {:>8}  {:>12}  {:24}  {}",
            generation.name,
            generation.snapshots.len(),
            generation.wals.len(),
            length(generation.objects()),
            from.map(|time| time.to_string()).unwrap_or_default(),
            to.map(|time| time.to_string()).unwrap_or_default(),
        );
    }
    let first = times(list.iter().flat_map(|generation| generation.snapshots.values())).0;
    match (first, generations::restore(list, None)) {
        (Some(first), Ok(plan)) => {
            let _ = writeln!(text, "restorable from Litestream 0.3: {first} to {}", plan.time());
        }
        _ => text += "restorable from Litestream 0.3: nothing\n",
    }
    text
}

/// The same as JSON, with every snapshot and WAL.
pub(super) fn json(list: &[Generation]) -> Value {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    let one = |generation: &Generation| {
        let snapshots = generation.snapshots.iter().map(|(index, object)| {
            value!({
                "index": format!("{index:08x}"),
                "bytes": object.len,
                "time": object.modified.to_string(),
            })
        });
        let wals = generation.wals.iter().map(|(index, segments): (&u32, &Vec<Segment>)| {
            let objects = || segments.iter().map(|segment| &segment.object);
            let (from, to) = times(objects());
            value!({
                "index": format!("{index:08x}"),
                "segments": segments.len(),
                "bytes": length(objects()),
                "from": time(from),
                "to": time(to),
            })
        });
        let (from, to) = times(generation.objects());
        value!({
            "generation": generation.name,
            "snapshots": snapshots.collect::<Vec<_>>(),
            "wals": wals.collect::<Vec<_>>(),
            "from": time(from),
            "to": time(to),
        })
    };
    list.iter().map(one).collect()
}

/// Why the newest state cannot be restored, as far as names tell.
pub(super) fn problem(list: &[Generation]) -> Option<String> {
    if list.is_empty() {
        return None;
    }
    let plan = generations::restore(list, None).and_then(|plan| plan.check());
    plan.err().map(|error| error.to_string())
}

fn length<'a>(objects: impl Iterator<Item = &'a Object>) -> u64 {
    objects.fold(0, |sum, object| sum.saturating_add(object.len))
}

/// When the oldest and the newest were made.
fn times<'a>(objects: impl Iterator<Item = &'a Object>) -> (Option<Timestamp>, Option<Timestamp>) {
    objects.map(|object| object.modified).fold((None, None), |(first, last), time| {
        let first = first.map_or(time, |first: Timestamp| first.min(time));
        (Some(first), last.max(Some(time)))
    })
}
