//! Connects the state machine of the replica's history with the shipper: sends its work, and handles the
//! results.

use std::time::Duration;

use super::replica::Replica;
use crate::engine::Phase;
use crate::history::{Done, Event, History, Options};
use crate::local::history;
use crate::local::spool::Entry;
use crate::local::state::{Base, random_id};
use crate::ltx::FileName;
use crate::plan::retain::{Keep, Own};
use crate::settings::Settings;
use crate::shipper::Task;
use crate::store::{FileInfo, Key};
use crate::units::{Level, Timestamp, Txid};

/// Window for one deletion of expired files, in milliseconds.
const CHECK_MS: u64 = 3_600_000;
/// Longest time that a request can be under way. While a file stays at the store this long, no such request can
/// create another file in its place.
const L0_RETENTION_SAFE: Duration = Duration::from_mins(5);

impl Replica {
    /// Continues with the knowledge of the replica that an earlier process of this lineage saved.
    pub(super) fn resume_history(&mut self) {
        let settings = self.database.settings();
        self.history = History::new(options(settings));
        if settings.history.deletes && settings.history.l0_retention < L0_RETENTION_SAFE {
            log::warn!(
                "{}: l0-retention is {:?}: a file should stay at the store for longer than a request can be under way, which is {L0_RETENTION_SAFE:?}",
                self.database.label(),
                settings.history.l0_retention
            );
        }
        let Some(local) = &self.local else { return };
        if let Some(saved) = history::load(&local.dir, &local.state) {
            self.history.resume(&saved);
        }
    }

    /// Ships the history work that is due, while the database streams and the log is ours.
    pub(super) fn keep_history(&mut self, now: u64) {
        if self.engine.status().phase != Phase::Streaming || !self.engine.has_claimed() {
            return;
        }
        let Some(local) = &self.local else { return };
        let copies = Some(local.copies.dir().to_path_buf());
        let first = local.state.first.map(Txid);
        let own = Own { first, last: self.engine.status().acked };
        if let Some(work) = self.history.poll(now, own) {
            self.ship(Task::History { work, copies });
        }
    }

    /// Moves a file that the store confirmed to the copies, because the next compaction reads it.
    pub(super) fn keep_copy(
        &mut self,
        entry: &Entry,
        base: &Base,
    ) -> Result<(), crate::local::Error> {
        let Some(local) = &mut self.local else { return Ok(()) };
        let key = Key { level: Level::L0, name: FileName::single(base.txid()) };
        local.copies.take(&local.spool.path(entry), key, entry.len)?;
        if local.spool.free().is_some_and(|free| local.copies.bytes() > free) {
            local.copies.clear();
        }
        self.add_to_history(key, entry.len, base);
        Ok(())
    }

    pub(super) fn add_to_history(&mut self, key: Key, len: u64, base: &Base) {
        let time = Timestamp(base.timestamp);
        let file = FileInfo { key, len, modified: time, stored: time };
        self.history.handle(self.process.now(), Event::Acked(file));
    }

    /// Forgets the history and the copies: the replica has changed.
    pub(super) fn forget_history(&mut self) {
        self.history.handle(self.process.now(), Event::Forget);
        if let Some(local) = &mut self.local {
            local.copies.clear();
        }
    }

    /// Handles the result of history work.
    pub(super) fn history_done(&mut self, done: Done) {
        let now = self.process.now();
        self.counters.requests += done.requests;
        if let Some(wait) = done.retry_after {
            let until = now + wait.as_millis() as u64;
            self.engine.hold_store_until(until);
            self.history.hold_until(until);
        }
        let path = self.database.label();
        match &done.event {
            Event::Failed(_) | Event::Damaged { .. } | Event::Contradicted(_) => {
                let doing = self.history.making();
                let what = doing.map_or("history".to_string(), |key| format!("joining to {key}"));
                let why = match &done.event {
                    Event::Failed(failure) => failure.message(),
                    Event::Damaged { message, .. } | Event::Contradicted(message) => message,
                    _ => "",
                };
                log::warn!("{path}: {what}: {why}");
            }
            Event::Joined { file, .. } => log::debug!("{path}: joined {}", file.key),
            Event::Retained { removed, .. } if *removed > 0 => {
                log::debug!("{path}: removed {removed} files of the replica");
            }
            _ => {}
        }
        if let Event::Surveyed(files) | Event::Retained { left: files, .. } = &done.event {
            let status = self.engine.status();
            let sent = status.sealed.max(status.acked);
            let end = files.iter().map(|file| file.key.name.max).max().unwrap_or_default();
            self.looks.saw_end(end, sent);
        }
        let joined = match &done.event {
            Event::Joined { file, .. } if file.key.level == Level::L1 => file.key.name.max,
            _ => Txid::ZERO,
        };
        self.history.handle(now, done.event);
        if let Some(local) = &mut self.local {
            local.copies.remove_up_to(joined);
        }
        self.save_history();
    }

    /// Saves the knowledge of the replica for the next process. A failed save does no harm.
    pub(super) fn save_history(&self) {
        let (Some(local), Some(saved)) = (&self.local, self.history.saved()) else { return };
        if let Err(error) = history::save(&local.dir, &local.state, saved, || local.may_write()) {
            log::warn!("{error}");
        }
    }
}

fn options(settings: &Settings) -> Options {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let settings = &settings.history;
    let keep = Keep { all: settings.retention.map(millis), l0: millis(settings.l0_retention) };
    Options {
        levels: settings.levels.iter().copied().map(millis).collect(),
        snapshot: millis(settings.snapshot_interval),
        keep: settings.deletes.then_some(keep),
        check: CHECK_MS,
        validation: millis(settings.validation_interval),
        jitter_seed: random_id(),
    }
}
