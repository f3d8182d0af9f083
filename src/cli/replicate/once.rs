//! `--once`: what is committed is shipped and what is due is done, and that is all.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::configured::File;
use super::super::failure::Failure;
use super::super::{Error, Exit, on_runtime, print, standing, sync};
use super::Args;
use super::fleet::Fleet;
use crate::config::Config;
use crate::shown;
use crate::store::Access;

/// How long to wait between two looks at whether the history is kept up.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) fn run(fleet: &mut Fleet, args: &Args, config: Option<&Config>) -> Result<(), Error> {
    while !fleet.look() {}
    let deadline = Instant::now() + args.timeout;
    let mut failed: Option<Error> = None;
    for (path, db) in fleet.members() {
        let left = deadline.saturating_duration_since(Instant::now());
        let synced = match db {
            Ok(db) => sync::sync(db, path, left),
            Err(_) if fleet.is_empty_in_folder(path) => continue,
            Err(why) => {
                let exit = if path.exists() { Exit::Failure } else { Exit::Usage };
                Err(Failure::because(exit, format!("{}: {why}", path.display())))
            }
        };
        let synced = synced.and_then(|txid| {
            let replicas = replicas_of(path, fleet.replica(path), config)?;
            let left = deadline.saturating_duration_since(Instant::now());
            on_runtime(standing::confirm(path, &replicas, left)).map(|()| txid)
        });
        match synced {
            Ok(txid) if args.json => {
                let line = json!({ "database": path.display().to_string(), "txid": txid });
                print(&format!("{line}\n"))?;
            }
            Ok(txid) => print(&shown::lines([format!("synced {}: TXID {txid}", path.display())]))?,
            Err(error) => {
                log::error!("{error}");
                failed.get_or_insert(error);
            }
        }
    }
    for (folder, why) in fleet.unread() {
        let exit = if why.missing { Exit::Usage } else { Exit::Failure };
        failed
            .get_or_insert_with(|| Failure::because(exit, format!("{}: {why}", folder.display())));
    }
    if failed.is_none() && fleet.members().next().is_none() {
        return Err(Error::Usage("there is no database".into()));
    }
    keep(fleet, deadline);
    fleet.close();
    failed.map_or(Ok(()), Err)
}

/// The replicas of a database, and how they are reached.
fn replicas_of(
    path: &Path,
    given: Option<&str>,
    config: Option<&Config>,
) -> Result<Vec<(String, Access)>, Error> {
    if let Some(url) = given {
        return Ok(vec![(url.to_string(), File::access(url, config))]);
    }
    let all = File::settings(path, config)?;
    Ok(all.into_iter().map(|one| (one.replica, one.access)).collect())
}

/// Waits for what is done for the history. It is as well done by the next.
fn keep(fleet: &Fleet, deadline: Instant) {
    loop {
        // The first answer may come before the work that follows from the last file has begun. The second comes
        // after.
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
        // The extension has no way to notify this process.
        std::thread::park_timeout(PAUSE);
    }
}
