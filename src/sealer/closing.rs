//! Closing files, and following them to the store until they are confirmed.

use super::capture::{self, Stop};
use super::open::Point;
use super::replica::{ClosedFile, Purpose, Replica, maker};
use crate::database::Gate;
use crate::engine::{Event, Failure};
use crate::local::pages::PageTable;
use crate::local::spool::Entry;
use crate::local::state::{Base, Position};
use crate::ltx::FileName;
use crate::shipper::{self, Outcome, Task};
use crate::store::{Body, Key};
use crate::units::{Level, Timestamp, Txid};

impl Replica {
    /// Closes what was captured as this TXID.
    pub(super) fn close(&mut self, txid: Txid) {
        let result = self.close_captured(txid);
        let now = self.process.now();
        match result {
            Ok(closed) => self.engine.handle(now, Event::Closed(closed)),
            Err(Stop::Diverged(found)) => {
                self.diverge(found);
                self.engine.handle(now, Event::Closed(None));
            }
            Err(Stop::Failed(message)) => {
                self.database.with(|shared| shared.set_gate(Gate::Shut));
                log::error!("{}: {message}", self.database.path().display());
                self.engine.handle(now, Event::LocalFailed(Failure::Local { message }));
            }
        }
        self.database.notify();
    }

    pub(super) fn close_captured(&mut self, txid: Txid) -> Result<Option<Txid>, Stop> {
        if self.open.is_empty() {
            // The common case: straight from the WAL into the file that is shipped.
            let seq = self.take_frames(Purpose::Close)?;
            if self.frames.is_empty() {
                self.set_captured(seq);
                self.nothing_to_close(seq);
                return Ok(None);
            }
            self.captured_seq = seq;
            let entry = self.next_entry(Some(txid));
            self.write_frames(&entry)?;
            self.set_captured(seq);
            return Ok(Some(txid));
        }
        self.capture(Purpose::Close)?;
        if self.open.is_empty() {
            return Ok(None);
        }
        let (Some(local), Some(point)) = (&mut self.local, self.point) else {
            return Err(Stop::Failed("the database is not open".into()));
        };
        let maker = maker(&self.engine, &point);
        let (first, last) = match (self.open.first(), self.open.last()) {
            (Some(first), Some(last)) => (first.pieces.0, last.pieces.1),
            _ => return Ok(None),
        };
        let position = self.open.last().and_then(|entry| entry.position);
        let entry = Entry { txid: Some(txid), pieces: (first, last), position, len: 0 };
        let (commit, post) = (local.table.commit(), local.table.checksum());
        let closed = capture::merge(&local.spool, &self.open, commit, post, &maker, entry)?;
        for piece in std::mem::take(&mut self.open) {
            local.spool.remove(&piece)?;
        }
        self.add_closed(closed, maker.timestamp);
        Ok(Some(txid))
    }

    /// Everything that was committed is with the store already.
    pub(super) fn nothing_to_close(&mut self, seq: u64) {
        if self.closed.is_empty() && self.open.is_empty() {
            self.show();
            self.database.with(|shared| shared.acked_seq = shared.acked_seq.max(seq));
        }
    }

    /// Joins the open pieces into one, still open.
    pub(super) fn join_open(&mut self) -> Result<(), Stop> {
        let (Some(local), Some(point)) = (&mut self.local, self.point) else { return Ok(()) };
        let (Some(first), Some(last)) = (self.open.first(), self.open.last()) else {
            return Ok(());
        };
        let entry = Entry {
            txid: None,
            pieces: (first.pieces.0, last.pieces.1),
            position: last.position,
            len: 0,
        };
        let maker = maker(&self.engine, &point);
        let (commit, post) = (local.table.commit(), local.table.checksum());
        let joined = capture::merge(&local.spool, &self.open, commit, post, &maker, entry)?;
        for piece in std::mem::take(&mut self.open) {
            if piece.pieces != joined.pieces {
                local.spool.remove(&piece)?;
            }
        }
        self.open.push(joined);
        Ok(())
    }

    pub(super) fn add_closed(&mut self, entry: Entry, timestamp: Timestamp) {
        let (Some(local), Some(point), Some(txid)) = (&self.local, &mut self.point, entry.txid)
        else {
            return;
        };
        point.txid = txid;
        point.checksum = local.table.checksum();
        point.timestamp = timestamp;
        let base = base(&local.table, point, &entry);
        self.closed.push_back(ClosedFile { entry, base, seq: self.captured_seq });
    }

    pub(super) fn put(&mut self, txid: Txid) {
        let (Some(local), Some(file)) = (&self.local, self.find_closed(txid)) else {
            return self.lost_file(txid);
        };
        let body = Body::File(local.spool.path(&file.entry));
        let timestamp = Timestamp(file.base.timestamp);
        let key = Key { level: Level::L0, name: FileName::single(txid) };
        self.ship(Task::Put { key, body, timestamp });
    }

    pub(super) fn inspect(&mut self, txid: Txid) {
        let (Some(local), Some(file)) = (&self.local, self.find_closed(txid)) else {
            return self.lost_file(txid);
        };
        match shipper::identity(&local.spool.path(&file.entry)) {
            Ok(ours) => self.ship(Task::Inspect { txid, ours }),
            Err(error) => {
                let path = local.spool.path(&file.entry);
                let message = format!("cannot read {}: {error}", path.display());
                let failure = Event::RequestFailed(Failure::Local { message });
                self.engine.handle(self.process.now(), failure);
            }
        }
    }

    /// Cannot be: the engine asks only for files that it was told of. Said rather than ignored.
    pub(super) fn lost_file(&mut self, txid: Txid) {
        let message = format!("the file of transaction {txid} is not in the spool");
        log::error!("{}: {message}", self.database.path().display());
        let failure = Event::RequestFailed(Failure::Local { message });
        self.engine.handle(self.process.now(), failure);
    }

    pub(super) fn find_closed(&self, txid: Txid) -> Option<&ClosedFile> {
        self.closed.iter().find(|file| file.entry.txid == Some(txid))
    }

    /// Takes in the end of a job at the store.
    pub(super) fn shipped(&mut self, outcome: Outcome) {
        self.wake();
        let now = self.process.now();
        let event = match outcome {
            Outcome::Head(head) => Event::HeadFound(head),
            Outcome::PutDone => {
                let Some(txid) = self.closed.front().and_then(|file| file.entry.txid) else {
                    return;
                };
                self.engine.handle(now, Event::PutDone { txid });
                self.acked(txid);
                return;
            }
            Outcome::PutRefused => {
                let Some(txid) = self.closed.front().and_then(|file| file.entry.txid) else {
                    return;
                };
                Event::PutRefused { txid }
            }
            Outcome::Inspected { txid, verdict } => {
                self.engine.handle(now, Event::Inspected { txid, verdict });
                self.after_inspection(txid);
                return;
            }
            Outcome::Confirmed { arrived } => {
                self.confirmed(arrived);
                Event::Confirmed { arrived }
            }
            Outcome::Failed(failure) => {
                log::warn!("{}: {}", self.database.path().display(), failure.message());
                Event::RequestFailed(failure)
            }
            Outcome::Upload { job, outcome } => return self.upload_event(job, outcome),
        };
        self.engine.handle(now, event);
    }

    pub(super) fn after_inspection(&mut self, txid: Txid) {
        if self.engine.status().acked >= txid {
            self.acked(txid);
        }
    }

    /// The store confirmed a file: the state passes it, then it is removed.
    pub(super) fn acked(&mut self, txid: Txid) {
        let Some(local) = &mut self.local else { return };
        let mut seq = 0;
        while self.closed.front().is_some_and(|file| file.entry.txid <= Some(txid)) {
            let Some(file) = self.closed.pop_front() else { break };
            local.state.base = Some(file.base);
            local.state.claimed = true;
            local.state.image = None;
            let removed =
                local.state.save(&local.dir, false).and_then(|()| local.spool.remove(&file.entry));
            if let Err(error) = removed {
                log::error!("{}: {error}", self.database.path().display());
            }
            seq = seq.max(file.seq);
        }
        self.show();
        self.database.with(|shared| shared.acked_seq = shared.acked_seq.max(seq));
        self.publish();
    }

    pub(super) fn mark_acked(&mut self, seq: u64) {
        self.captured_seq = seq;
        self.show();
        self.database.with(|shared| {
            shared.captured_seq = seq;
            shared.acked_seq = shared.acked_seq.max(seq);
        });
    }

    /// Forgets everything that waits: an image supersedes it.
    pub(super) fn clear_spool(&mut self) -> Result<(), Stop> {
        let Some(local) = &self.local else { return Ok(()) };
        for entry in self.open.drain(..).chain(self.closed.drain(..).map(|file| file.entry)) {
            local.spool.remove(&entry)?;
        }
        Ok(())
    }
}

/// The point that a closed file makes.
fn base(table: &PageTable, point: &Point, entry: &Entry) -> Base {
    Base {
        txid: point.txid.0,
        piece: entry.pieces.1,
        page_size: point.page_size.get(),
        commit: table.commit(),
        checksum: point.checksum.get(),
        timestamp: point.timestamp.0,
        position: entry.position.map(Position::from),
    }
}
