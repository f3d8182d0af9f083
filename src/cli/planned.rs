//! `walferry restore --dry-run`: what a restore would read, and what would come out.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::progress::bytes;
use super::{points, table};
use crate::local;
use crate::local::state::State;
use crate::ltx::Header;
use crate::plan::Plan;
use crate::plan::points::Cost;
use crate::restore::{self, Instead, Point};
use crate::shown;
use crate::store::{self, FileInfo, Store};
use crate::units::Txid;

/// What a restore would do.
pub(super) struct Planned {
    plan: Plan,
    /// Of the state that it leads to.
    last: Header,
    /// The state of the older copy from which it would go on, if nobody has written to that.
    from: Option<Txid>,
    instead: Option<Instead>,
}

impl Planned {
    /// Plans; `copy` is an older copy that may be brought forward.
    pub(super) async fn make(
        store: &Arc<dyn Store>,
        point: Point,
        copy: Option<&Path>,
    ) -> Result<Planned, restore::Error> {
        let (files, plan) = restore::plan(store, point).await?;
        let last = restore::last_header(store, &plan).await?;
        Ok(match copy.and_then(|copy| state_beside(copy, store)) {
            Some(from) => match restore::forward(&files, &plan, from) {
                Ok(forward) => Planned { plan: forward, last, from: Some(from), instead: None },
                Err(instead) => Planned { plan, last, from: None, instead: Some(instead) },
            },
            None => Planned { plan, last, from: None, instead: None },
        })
    }

    fn cost(&self) -> Cost {
        Cost::of(&self.plan.files, restore::requests)
    }

    /// Size of what would come out, in bytes.
    fn result(&self) -> u64 {
        u64::from(self.last.commit) * u64::from(self.last.page_size.get())
    }

    pub(super) fn json(&self) -> String {
        let cost = self.cost();
        let mut text = points::cost_in_json(&cost);
        text["txid"] = json!(self.plan.txid.to_string());
        text["timestamp"] = json!(self.last.timestamp.to_string());
        text["bytes"] = json!(cost.bytes);
        text["files"] = self.plan.files.iter().map(file_in_json).collect();
        text["database_bytes"] = json!(self.result());
        text["pages"] = json!(self.last.commit);
        text["page_size"] = json!(self.last.page_size.get());
        text["from"] = json!(self.from.map(|from| from.to_string()));
        text["instead"] = json!(self.instead.as_ref().map(ToString::to_string));
        format!("{text}\n")
    }

    pub(super) fn text(&self) -> String {
        let (files, cost) = (&self.plan.files, self.cost());
        let mut lines = Vec::new();
        if let Some(instead) = &self.instead {
            lines.push(format!("everything would be read: {instead}"));
        }
        if let Some(from) = self.from {
            lines.push(format!(
                "would go on from TXID {from}, where the copy is by what is kept beside it"
            ));
        }
        lines.push(format!(
            "would restore TXID {} from {} with {} bytes in {}",
            self.plan.txid,
            table::count(files.len(), "file"),
            cost.bytes,
            table::count(usize::try_from(cost.requests).unwrap_or(usize::MAX), "request"),
        ));
        let result = self.result();
        lines.push(format!("of {}, {result} bytes ({})", self.last.timestamp, bytes(result)));
        table::text(files) + &shown::lines(lines)
    }
}

fn file_in_json(file: &FileInfo) -> Value {
    let mut text = table::json(file);
    text["requests"] = json!(restore::requests(file));
    text
}

/// The state in which an older copy was left, as is written beside it. A dry run does not prove it.
fn state_beside(copy: &Path, store: &Arc<dyn Store>) -> Option<Txid> {
    let state = State::load(&local::state_dir(copy)).ok().flatten()?;
    let ours = state.replica == store::url::identity(store.as_ref());
    state.base.filter(|_| ours).map(|base| base.txid())
}
