//! `walferry restore --list`: what can be restored.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use super::progress::bytes;
use super::{Error, generations, print, table};
use crate::plan::generations::Generation;
use crate::plan::points::{Cost, Gap, Part, Point, Range, parts, points};
use crate::plan::restore::head;
use crate::plan::{self, Target};
use crate::restore::{self, Known, known, list_in_turn, requests};
use crate::shown;
use crate::store::Store;

/// Reads the listing, and a header for each end of a range.
pub(super) async fn list(
    store: Arc<dyn Store>,
    in_json: bool,
    parallelism: usize,
) -> Result<(), Error> {
    let files = list_in_turn(store.as_ref()).await?;
    let old = restore::generations::list(store.as_ref()).await?;
    if files.is_empty() && old.is_empty() {
        return Err(Error::Restore(plan::Error::Empty.into()));
    }
    let points = points(&files, requests);
    let parts = parts(&points, &files);
    let ends: Vec<Point> = parts.iter().flat_map(ends).copied().collect();
    let known = known(&store, &ends, parallelism).await;
    let problem = match plan::restore::restore(&files, Target::Latest) {
        Err(plan::Error::Empty) | Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    let listed = Listed {
        store: &store,
        points: &points,
        parts: &parts,
        known: ends.iter().zip(known).collect(),
        head: head(&files).map(|txid| txid.to_string()),
        problem: problem.or_else(|| generations::problem(&old)),
        old: &old,
    };
    print(&if in_json { format!("{}\n", listed.json()) } else { listed.text() })
}

/// The first and the last state of a range, once if it is the same.
fn ends(part: &Part) -> impl Iterator<Item = &Point> {
    let (first, last) = match part {
        Part::Range(range) if range.states == 1 => (Some(&range.first), None),
        Part::Range(range) => (Some(&range.first), Some(&range.last)),
        Part::Gap(_) => (None, None),
    };
    first.into_iter().chain(last)
}

struct Listed<'a> {
    store: &'a Arc<dyn Store>,
    points: &'a [Point],
    parts: &'a [Part],
    known: Vec<(&'a Point, Result<Known, restore::Error>)>,
    head: Option<String>,
    /// What Litestream 0.3 left.
    old: &'a [Generation],
    /// Why the newest state cannot be restored.
    problem: Option<String>,
}

impl Listed<'_> {
    fn known(&self, point: &Point) -> Option<&Known> {
        let found = self.known.iter().find(|(known, _)| known.txid == point.txid)?;
        found.1.as_ref().ok()
    }

    fn unreadable(&self) -> Vec<String> {
        let errors = self.known.iter().filter_map(|(_, known)| known.as_ref().err());
        errors.map(ToString::to_string).collect()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if !self.parts.is_empty() {
            text += &self.states_in_words();
        }
        text += &generations::text(self.old);
        for warning in self.problem.iter().chain(&self.unreadable()) {
            text += &shown::lines([["warning: ", warning].concat()]);
        }
        text
    }

    fn states_in_words(&self) -> String {
        let mut text = format!(
            "{:16}  {:16}  {:>7}  {:4}  {:24}  {:24}  {:>10}  {:>10}  requests\n",
            "first_txid", "last_txid", "states", "step", "from", "to", "database", "to read"
        );
        for part in self.parts {
            match part {
                Part::Range(range) => self.line(&mut text, range),
                Part::Gap(gap) => text += &gap_line(gap),
            }
        }
        let states = self.points.len();
        let summary = match (self.points.first(), self.points.last()) {
            (Some(first), Some(last)) if states > 1 => {
                format!("{states} states, TXID {} to {}\n", first.txid, last.txid)
            }
            (Some(only), _) => format!("1 state, TXID {}\n", only.txid),
            _ => "nothing of it can be restored\n".to_string(),
        };
        text + &summary
    }

    /// Sizes are those of the newest state of the range.
    fn line(&self, text: &mut String, range: &Range) {
        let Range { first, last, states, every } = range;
        let time = |point: &Point| {
            self.known(point).map_or("?".to_string(), |known| known.timestamp.to_string())
        };
        let size = self.known(last).map_or("?".to_string(), |known| bytes(known.bytes()));
        let step = if *every { "each" } else { "some" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{}  {}  {states:>7}  {step:4}  {:24}  {:24}  {size:>10}  {:>10}  {}",
            first.txid,
            last.txid,
            time(first),
            time(last),
            bytes(last.cost.bytes),
            last.cost.requests,
        );
    }

    fn json(&self) -> Value {
        let ranges = self.parts.iter().filter_map(|part| match part {
            Part::Range(range) => Some(json!({
                "first": self.end(&range.first),
                "last": self.end(&range.last),
                "states": range.states,
                "every_txid": range.every,
            })),
            Part::Gap(_) => None,
        });
        let gaps = self.parts.iter().filter_map(|part| match part {
            Part::Gap(gap) => Some(json!({
                "after": gap.after.map(|txid| txid.to_string()),
                "next": gap.next.to_string(),
                "last": gap.last.to_string(),
                "files": gap.files,
            })),
            Part::Range(_) => None,
        });
        let states = self.points.iter().map(|point| {
            let mut state = cost_in_json(&point.cost);
            state["txid"] = json!(point.txid.to_string());
            state["level"] = json!(point.file.key.level.get());
            state["listed_time"] = json!(point.modified.to_string());
            state
        });
        json!({
            "replica": self.store.url(),
            "ranges": ranges.collect::<Vec<_>>(),
            "gaps": gaps.collect::<Vec<_>>(),
            "states": states.collect::<Vec<_>>(),
            "head": self.head,
            "generations": generations::json(self.old),
            "problem": self.problem,
            "unreadable": self.unreadable(),
        })
    }

    fn end(&self, point: &Point) -> Value {
        let known = self.known(point);
        let mut end = cost_in_json(&point.cost);
        end["txid"] = json!(point.txid.to_string());
        end["time"] = json!(known.map(|known| known.timestamp.to_string()));
        end["database_bytes"] = json!(known.map(Known::bytes));
        end["pages"] = json!(known.map(|known| known.commit));
        end["page_size"] = json!(known.map(|known| known.page_size.get()));
        end
    }
}

/// What restoring reads.
pub(super) fn cost_in_json(cost: &Cost) -> Value {
    json!({ "files": cost.files, "bytes_to_read": cost.bytes, "requests": cost.requests })
}

fn gap_line(gap: &Gap) -> String {
    let behind = table::count(gap.files, "file");
    let missing = match gap.after {
        Some(after) => format!("after {after} nothing up to {}", gap.next.prev()),
        None => format!("nothing before {}", gap.next),
    };
    format!("gap: {missing}; {behind} behind it, up to {}, lead nowhere\n", gap.last)
}
