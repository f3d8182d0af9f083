//! The replica's history (`src/sealer/history.rs`). A part of all histories have it, so short in its
//! windows that each passes often.

use walferry::engine::Phase;
use walferry::history::{Event, History, Options};
use walferry::ltx::FileName;
use walferry::plan::retain::{Keep, Own};
use walferry::store::{FileInfo, Key};
use walferry::units::{Level, Timestamp, Txid};

use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, state};
use crate::world::Cx;

/// What is kept, in milliseconds.
const KEEP: Keep = Keep { all: Some(15_000), l0: 5000 };

fn options() -> Options {
    Options {
        levels: vec![1500, 4000, 9000],
        snapshot: 8000,
        keep: Some(KEEP),
        check: 5000,
        validation: 6000,
        jitter_seed: 7,
    }
}

impl Host {
    /// Goes on with what an earlier process of this lineage knew of the replica.
    pub fn resume_history(&mut self, cx: &Cx, p: usize) {
        let history = cx.keeps_history.then(|| {
            let mut history = History::new(options());
            let writer = state!(self, p).writer;
            if let Some((_, saved)) = self.disk.history.as_ref().filter(|(of, _)| *of == writer) {
                history.resume(saved);
            }
            history
        });
        re!(self, p).history = history;
    }

    /// Asks for what is due, while all goes well.
    pub fn keep_history(&mut self, cx: &mut Cx, p: usize) {
        let client = (self.id, self.procs[p].incarnation);
        let first = self.procs[p].replica.as_ref().and_then(|replica| replica.local.as_ref());
        let first = first.and_then(|local| local.state.first).map(Txid);
        // All of the log would be its own.
        let first = if cx.bug == Bug::LineageStartRemoved { Some(Txid(0)) } else { first };
        let replica = re!(self, p);
        let own = Own { first, last: replica.engine.status().acked };
        let streams = replica.engine.status().phase == Phase::Streaming;
        let Some(history) = &mut replica.history else { return };
        if !streams || !replica.engine.has_claimed() {
            return;
        }
        if let Some(work) = history.poll(cx.now, own) {
            cx.log(format_args!("host {}.{p}: {work:?}", self.id));
            let (now, bug) = (cx.now, cx.bug);
            cx.store.submit_chore(&mut cx.history_rng, now, client, work, bug);
        }
    }

    pub fn add_to_history(&mut self, cx: &Cx, p: usize, key: Key, len: u64, timestamp: i64) {
        if let Some(history) = &mut re!(self, p).history {
            let time = Timestamp(timestamp);
            let file = FileInfo { key, len, modified: time, stored: time };
            history.handle(cx.now, Event::Acked(file));
        }
    }

    pub fn add_l0_to_history(&mut self, cx: &Cx, p: usize, txid: Txid, at: i64) {
        let key = Key { level: Level::L0, name: FileName::single(txid) };
        let len = cx.store.files.get(&key).map_or(1000, |bytes| bytes.len() as u64);
        self.add_to_history(cx, p, key, len, at);
    }

    pub fn forget_history(&mut self, cx: &Cx, p: usize) {
        if let Some(history) = &mut re!(self, p).history {
            history.handle(cx.now, Event::Forget);
        }
    }

    pub fn history_done(&mut self, cx: &Cx, p: usize, event: Event) -> Result<(), Stop> {
        if let Some(history) = &mut re!(self, p).history {
            history.handle(cx.now, event);
        }
        self.save_history(cx, p)
    }

    /// What is known of the replica outlives this process, unless the disk is full.
    pub fn save_history(&mut self, cx: &Cx, p: usize) -> Result<(), Stop> {
        let Some(saved) = re!(self, p).history.as_ref().and_then(History::saved) else {
            return Ok(());
        };
        if !self.is_shipper(p) || cx.bug == Bug::LockIgnored {
            return Ok(());
        }
        let writer = state!(self, p).writer;
        self.disk.save_history(writer, saved)
    }
}
