//! `--once`: what is committed is shipped and what is due is done, and that is all.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::failure::Failure;
use super::super::{Error, Exit, print, sync};
use super::fleet::Fleet;

/// How long to wait between two looks at whether the history is kept up.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) fn run(fleet: &mut Fleet, timeout: Duration, json: bool) -> Result<(), Error> {
    while !fleet.look() {}
    let deadline = Instant::now() + timeout;
    let mut failed: Option<Error> = None;
    for (path, db) in fleet.members() {
        let left = deadline.saturating_duration_since(Instant::now());
        let synced = match db {
            Ok(db) => sync::sync(db, path, left),
            Err(why) => {
                let text = format!("{}: {why}", path.display());
                Err(Failure::because(Exit::Usage, text))
            }
        };
        match synced {
            Ok(txid) if json => {
                let line = json!({ "database": path.display().to_string(), "txid": txid });
                print(&format!("{line}\n"))?;
            }
            Ok(txid) => print(&format!("synced {}: TXID {txid}\n", path.display()))?,
            Err(error) => {
                log::error!("{error}");
                failed.get_or_insert(error);
            }
        }
    }
    if fleet.members().next().is_none() {
        return Err(Error::Usage("there is no database".into()));
    }
    keep(fleet, deadline);
    fleet.close();
    failed.map_or(Ok(()), Err)
}

/// Waits for what is done for the history. It is as well done by the next.
fn keep(fleet: &Fleet, deadline: Instant) {
    loop {
        // The first is heard before what follows from the last file is begun, the second after.
        let left = || deadline.saturating_duration_since(Instant::now());
        if !fleet.answers(left()) || !fleet.answers(left()) {
            return;
        }
        let busy = fleet.status().into_iter().find(|one| one["keeping"] == true);
        let Some(busy) = busy else { return };
        if left().is_zero() {
            let path = Path::new(busy["database"].as_str().unwrap_or_default()).display();
            return log::warn!("{path}: joining its files goes on the next time");
        }
        // The extension has no way to call back.
        std::thread::park_timeout(PAUSE);
    }
}
