//! Closes files, and follows them to the store until the store confirms them.

use super::capture::{self, Stop};
use super::looks::Moment;
use super::open::Point;
use super::replica::{ClosedFile, Purpose, Replica, maker};
use super::unreadable;
use crate::claim::Claim;
use crate::database::Gate;
use crate::engine::{Event, Failure, Head, Verdict};
use crate::local::pages::PageTable;
use crate::local::spool::Entry;
use crate::local::state::{Base, Position, State, random_id};
use crate::ltx::FileName;
use crate::shipper::{self, Outcome, Task};
use crate::store::{Body, Key};
use crate::units::{Level, Timestamp, Txid, WriterId};

/// Result of an attempt to close a file.
#[derive(Clone, Copy)]
pub(super) enum Attempt {
    /// A file of this TXID was closed.
    Made(Txid),
    /// There was no commit up to this value of `commit_seq`.
    Nothing(u64),
}

impl Attempt {
    pub(super) fn made(self) -> Option<Txid> {
        match self {
            Attempt::Made(txid) => Some(txid),
            Attempt::Nothing(_) => None,
        }
    }
}

impl Replica {
    /// Closes the captured frames as the file of this TXID.
    pub(super) fn close(&mut self, txid: Txid) {
        if self.shrinks() {
            log::info!("{}: the database has shrunk: a full image", self.database.label());
            self.need_image();
            return self.engine.handle(self.process.now(), Event::Closed(None));
        }
        let result = self.close_captured(txid);
        let now = self.process.now();
        match result {
            Ok(attempt) => {
                // The WAL came or went just now. Its commits are looked for after the transition is processed.
                if attempt.made().is_none()
                    && self.database.with(|shared| !shared.transitions.is_empty())
                {
                    self.database.with(|shared| {
                        shared.unreported_since.get_or_insert(now);
                    });
                    self.wake();
                }
                self.ended(attempt);
            }
            Err(Stop::Diverged(found)) => {
                self.diverge(found);
                self.engine.handle(now, Event::Closed(None));
            }
            Err(Stop::NoRoom(message)) if self.gives_up_pieces() => {
                log::error!("{}: {message}", self.database.label());
                self.engine.handle(now, Event::Closed(None));
            }
            Err(stop @ (Stop::Failed(_) | Stop::NoRoom(_))) => {
                self.capture_fails(&stop);
                let may_be_lost = matches!(stop, Stop::Failed(_));
                let message = stop.to_string();
                self.discard_unfinished();
                self.database.with(|shared| shared.set_gate(Gate::Shut));
                self.tell_why_it_fails(&message);
                self.engine.handle(now, Event::LocalFailed(Failure::Local { message }));
                if may_be_lost {
                    self.suspect_spool();
                }
            }
        }
        self.database.notify();
    }

    /// True if the database has fewer pages than the last file says, and the settings call for an image then.
    /// Litestream's VFS follows a file with fewer pages only if that file holds all of them.
    fn shrinks(&self) -> bool {
        let last = self.closed.back().map(|file| file.base.commit);
        let stored = self.local.as_ref().and_then(|local| local.state.base);
        let last = last.or(stored.map(|base| base.commit));
        // An empty WAL does not tell the size.
        let published = self.database.with(|shared| shared.published);
        let now = published.filter(|index| index.max_frame > 0).map(|index| index.page_count);
        self.database.settings().history.shrink_images && now < last && now.is_some()
    }

    pub(super) fn close_captured(&mut self, txid: Txid) -> Result<Attempt, Stop> {
        if self.open.is_empty() {
            // The common case: frames go straight from the WAL into the file that is uploaded.
            let seq = self.take_frames(Purpose::Close)?;
            if self.is_astray() {
                self.clear_frames();
                return Ok(Attempt::Nothing(0));
            }
            if self.open.is_empty() && self.frames.is_empty() {
                self.set_captured(seq);
                return Ok(Attempt::Nothing(seq));
            }
            // `take_frames` has written the tail of the old generation as a piece, if there was one.
            let alone = self.open.is_empty();
            if !self.frames.is_empty() {
                let entry = self.next_entry(alone.then_some(txid));
                self.frames_seq = self.frames_seq.max(seq);
                self.write_frames(&entry)?;
            }
            self.set_captured(seq.max(self.captured_seq));
            if alone {
                return Ok(Attempt::Made(txid));
            }
        } else if self.is_astray() {
            return Ok(Attempt::Nothing(0));
        } else {
            self.capture(Purpose::Close)?;
        }
        let (Some(local), Some(point)) = (&mut self.local, self.point) else {
            return Err(Stop::Failed("the database is not open".into()));
        };
        let maker = maker(&self.engine, &point);
        let (first, last) = match (self.open.first(), self.open.last()) {
            (Some(first), Some(last)) => (first.pieces.0, last.pieces.1),
            // The captured pieces were given up meanwhile. No count is reported for them.
            _ => return Ok(Attempt::Nothing(0)),
        };
        let position = self.open.last().and_then(|entry| entry.position);
        let entry = Entry { txid: Some(txid), pieces: (first, last), position, len: 0 };
        let (commit, post) = (local.table.commit(), local.table.checksum());
        let closed = capture::merge(&local.spool, &self.open, commit, post, &maker, entry)?;
        // From here on the merged file is the log's next file, whatever becomes of its pieces.
        let pieces = std::mem::take(&mut self.open);
        self.add_closed(closed, maker.timestamp);
        self.remove_files(&pieces);
        Ok(Attempt::Made(txid))
    }

    /// Reports the result. The engine comes first, because the report for a wait that ends here is made from
    /// its status.
    pub(super) fn ended(&mut self, attempt: Attempt) {
        self.engine.handle(self.process.now(), Event::Closed(attempt.made()));
        if let Attempt::Nothing(seq) = attempt {
            self.nothing_to_close(seq);
        }
    }

    /// Notes that the store has every commit up to this value of `commit_seq`.
    pub(super) fn nothing_to_close(&mut self, seq: u64) {
        if self.closed.is_empty() && self.open.is_empty() && self.engine.is_sure() {
            self.show();
            self.database.with(|shared| shared.acked_seq = shared.acked_seq.max(seq));
        }
    }

    /// Merges the open pieces into one piece, which stays open.
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
        let pieces = std::mem::replace(&mut self.open, vec![joined.clone()]);
        let joined: Vec<Entry> =
            pieces.into_iter().filter(|piece| piece.pieces != joined.pieces).collect();
        self.remove_files(&joined);
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
        self.no_room = None;
    }

    pub(super) fn put(&mut self, txid: Txid) {
        let (Some(local), Some(file)) = (&self.local, self.find_closed(txid)) else {
            return self.lost_file(txid);
        };
        let path = local.spool.path(&file.entry);
        if let Err(message) = unreadable::check(&path, file) {
            return self.cannot_read(message);
        }
        let body = Body::File(path);
        let timestamp = Timestamp(file.base.timestamp);
        let key = Key { level: Level::L0, name: FileName::single(txid) };
        let (claimed, writer) = (self.engine.has_claimed(), self.engine.writer());
        let look = self.looks.before_put(Moment::now(), Some(&local.state), claimed, writer);
        self.ship(Task::Put { key, body, timestamp, look });
    }

    pub(super) fn inspect(&mut self, txid: Txid) {
        let (Some(local), Some(file)) = (&self.local, self.find_closed(txid)) else {
            return self.lost_file(txid);
        };
        match shipper::identity(&local.spool.path(&file.entry)) {
            Ok(ours) => self.ship(Task::Inspect { txid, ours }),
            Err(error) => {
                let path = local.spool.path(&file.entry);
                self.cannot_read(format!("cannot read {}: {error}", path.display()));
            }
        }
    }

    /// Handles a local file that cannot be read for a request to the store.
    fn cannot_read(&mut self, message: String) {
        log::error!("{}: {message}", self.database.label());
        let failure = Event::RequestFailed(Failure::Local { message });
        self.engine.handle(self.process.now(), failure);
        self.give_up_unreadable();
    }

    /// Reports a file that is not in the spool. This cannot happen, since the engine asks only for files that
    /// it was told of.
    pub(super) fn lost_file(&mut self, txid: Txid) {
        let message = format!("the file of transaction {txid} is not in the spool");
        log::error!("{}: {message}", self.database.label());
        let failure = Event::RequestFailed(Failure::Local { message });
        self.engine.handle(self.process.now(), failure);
    }

    pub(super) fn find_closed(&self, txid: Txid) -> Option<&ClosedFile> {
        self.closed.iter().find(|file| file.entry.txid == Some(txid))
    }

    /// Handles the end of a job at the store.
    pub(super) fn shipped(&mut self, outcome: Outcome) {
        self.wake();
        let now = self.process.now();
        let event = match outcome {
            Outcome::Head(head) => {
                self.log_time = self.log_time.max(head.map_or(Timestamp(0), |head| head.timestamp));
                match self.begin_claim(head) {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(failure) => {
                        return self.engine.handle(now, Event::RequestFailed(failure));
                    }
                }
                self.tell_lost_log(head);
                match self.tell_own_twin(head) {
                    Ok(()) => Event::HeadFound(head),
                    Err(failure) => Event::RequestFailed(failure),
                }
            }
            Outcome::Claimed(head) => {
                self.log_time = self.log_time.max(head.timestamp);
                self.claimed(head.txid);
                Event::HeadFound(Some(head))
            }
            Outcome::SlowDown(wait) => {
                return self.engine.hold_store_until(now + wait.as_millis() as u64);
            }
            Outcome::Lost(end) => {
                self.replica_lost(end);
                Event::ReplicaLost
            }
            Outcome::PutDone => {
                let Some(txid) = self.closed.front().and_then(|file| file.entry.txid) else {
                    return;
                };
                self.checked(txid);
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
                if let Verdict::Foreign { writer } = verdict
                    && let Err(failure) = self.tell_own_twin(Some(Head {
                        txid,
                        post_apply: None,
                        timestamp: Timestamp(0),
                        writer,
                    }))
                {
                    return self.engine.handle(now, Event::RequestFailed(failure));
                }
                self.engine.handle(now, Event::Inspected { txid, verdict });
                self.after_inspection(txid);
                self.note_claim();
                return;
            }
            Outcome::Confirmed { arrived } => {
                self.confirmed(arrived);
                Event::Confirmed { arrived }
            }
            Outcome::Failed(failure) => {
                // From here on it is unknown whether the claim is in the log.
                self.claiming = false;
                log::warn!("{}: {}", self.database.label(), failure.message());
                if failure.is_no_replica() {
                    self.looks.doubt();
                }
                let is_local = failure.is_of_local_file();
                self.engine.handle(now, Event::RequestFailed(failure));
                if is_local {
                    self.give_up_unreadable();
                }
                return;
            }
            Outcome::Upload { job, outcome } => return self.upload_event(job, outcome),
            Outcome::History(done) => return self.history_done(done),
        };
        self.engine.handle(now, event);
        self.note_claim();
        self.note_sure();
    }

    /// Saves that the log was seen to end where the state says.
    fn note_sure(&mut self) {
        let (boot, is_sure) = (crate::clock::boot(), self.engine.is_sure());
        let Some(local) = self.local.as_mut().filter(|local| is_sure && local.state.boot != boot)
        else {
            return;
        };
        local.state.boot = boot;
        if let Err(error) = local.save(false) {
            log::error!("{}: {error}", self.database.label());
        }
    }

    /// Saves that the log was found to be ours. Otherwise the next start would take over the log once more,
    /// from its writer of that time.
    fn note_claim(&mut self) {
        let Some(local) = &mut self.local else { return };
        if !self.engine.has_claimed() || std::mem::replace(&mut local.state.claimed, true) {
            return;
        }
        if let Err(error) = local.save(true) {
            log::error!("{}: {error}", self.database.label());
        }
    }

    /// Notes that the store confirmed a file, perhaps after a check of the files before it.
    fn checked(&mut self, txid: Txid) {
        if self.looks.confirmed(Moment::now())
            && let Some(local) = &mut self.local
        {
            local.state.checked = txid.0;
            // `State::confirm` sets the checksum.
            local.state.checked_sum = None;
        }
    }

    /// Logs that the replica was emptied or replaced, and forgets its history. An image follows: without one,
    /// the log would silently continue in a state from which nothing can be restored.
    fn replica_lost(&mut self, end: Option<Txid>) {
        self.forget_history();
        let found = match end {
            Some(end) => format!("ends with transaction {end}"),
            None => "is empty".to_string(),
        };
        log::error!(
            "{}: {} {found} and lacks files that it had confirmed, up to transaction {}: they were removed, or the replica was created anew. A full image begins it again",
            self.database.label(),
            crate::store::url::redacted(&self.database.settings().replica),
            self.engine.status().acked
        );
    }

    /// Takes over a log of another writer; `true` if a claim is under way.
    ///
    /// The other writer's id is on the disk before a file of ours is in the log. A process may die before it
    /// saves the claim, or have no room to save it. Without the id, the next start would claim the log again.
    /// By then a third writer may have taken over the log from us.
    fn begin_claim(&mut self, head: Option<Head>) -> Result<bool, Failure> {
        let writer = self.engine.writer();
        let (Some(head), Some(local)) = (head, &mut self.local) else { return Ok(false) };
        let claims = !self.engine.has_claimed() && head.writer != writer;
        // A pending claim that was answered with another writer's file was not created, since its TXID was
        // taken. The log may then be taken from that writer.
        if !claims || (local.state.former.is_some() && !self.claiming) {
            return Ok(false);
        }
        let before = local.state.former.replace(head.writer.0);
        if let Err(error) = local.save(true) {
            local.state.former = before;
            return Err(Failure::Local { message: error.to_string() });
        }
        self.claiming = true;
        let claim = Some(Claim { writer, from: Some(head.writer) });
        self.ship(Task::FindHead { acked: self.engine.status().acked, claim });
        Ok(true)
    }

    /// Continues after a claim was created: the log of another writer is now ours, and a writer that takes it
    /// from us fences us. The base of our own former log is useless there, so a start after a crash finds that
    /// an image is due.
    fn claimed(&mut self, at: Txid) {
        self.claiming = false;
        log::warn!(
            "{}: {} was written by another writer; it is taken over as transaction {at}, and a full image follows",
            self.database.label(),
            crate::store::url::redacted(&self.database.settings().replica)
        );
        self.claimed_at = at;
        self.forget_history();
        self.engine.claim();
        let Some(local) = &mut self.local else { return };
        let new = State::new(self.engine.writer(), &local.state.replica);
        let state = State { claimed: true, first: Some(at.0), ..new };
        local.state = state;
        if let Err(error) = local.save(true) {
            log::error!("{}: {error}", self.database.label());
        }
    }

    /// Counts the log as claimed if a third writer has it. A lineage that continues another lineage, or may
    /// have taken over its log, never takes the log from a third writer: that writer took it first.
    fn tell_lost_log(&mut self, head: Option<Head>) {
        let former = self.local.as_ref().and_then(|local| local.state.former);
        let (Some(head), Some(former)) = (head, former) else { return };
        if head.writer != self.engine.writer() && head.writer != WriterId(former) {
            self.engine.claim();
        }
    }

    /// Starts a new lineage if the log has a later file with our writer id that we do not know.
    ///
    /// Either the disk forgot that file, or a copy of this machine or folder writes with the same id. With a
    /// new id for this process, one of two copies finds the files of its twin and stops. The new id is on the
    /// disk before any file with it is in the log.
    fn tell_own_twin(&mut self, head: Option<Head>) -> Result<(), Failure> {
        let acked = self.engine.status().acked;
        let (known, ours) = (acked.max(self.claimed_at), self.engine.writer());
        let Some(head) = head.filter(|head| head.txid > known && head.writer == ours) else {
            return Ok(());
        };
        let Some(local) = &mut self.local else { return Ok(()) };
        // A promoted database has claimed the log with a file that is not from its disk.
        if !local.state.claimed || acked == Txid::ZERO {
            return Ok(());
        }
        let writer = WriterId(random_id());
        // The base of the old log is useless for an image.
        let renamed = State { former: Some(ours.0), ..State::new(writer, &local.state.replica) };
        let state = std::mem::replace(&mut local.state, renamed);
        if let Err(error) = local.save(true) {
            local.state = state;
            return Err(Failure::Local { message: error.to_string() });
        }
        log::warn!(
            "{}: transaction {} of the replica is from this writer ({ours}), but not from this disk, which either forgot it or is a copy; going on as writer {writer} with a full image",
            self.database.label(),
            head.txid
        );
        self.engine.begin_lineage(writer);
        self.forget_history();
        Ok(())
    }

    pub(super) fn after_inspection(&mut self, txid: Txid) {
        if self.engine.status().acked >= txid {
            self.acked(txid);
        }
    }

    /// Handles the store's confirmation of a file: saves a state that covers the file, then takes the file out
    /// of the spool.
    pub(super) fn acked(&mut self, txid: Txid) {
        let mut seq = 0;
        // A file that was already at the store says nothing about the files behind it.
        let boot = crate::clock::boot().filter(|_| self.engine.is_sure());
        while self.closed.front().is_some_and(|file| file.entry.txid <= Some(txid)) {
            let (Some(file), Some(local)) = (self.closed.pop_front(), &mut self.local) else {
                break;
            };
            // A power loss must not undo the fact that the log is ours: we would claim the log again.
            let durable = !local.state.claimed;
            local.state.confirm(file.base, boot.or(local.state.boot));
            local.passed.push((file.entry, file.base));
            seq = seq.max(file.seq);
            self.answers(file.base.txid());
            let saved = self.local.as_mut().map_or(Ok(()), |local| local.save(durable));
            if let Err(error) = saved.and_then(|()| self.keep_copies()) {
                log::error!("{}: {error}", self.database.label());
            }
        }
        self.show();
        self.database.with(|shared| shared.acked_seq = shared.acked_seq.max(seq));
        self.publish();
    }

    /// Takes the files that the saved state covers out of the spool.
    fn keep_copies(&mut self) -> Result<(), crate::local::Error> {
        let passed = self.local.as_mut().map(|local| std::mem::take(&mut local.passed));
        let kept = passed.into_iter().flatten().map(|(entry, base)| self.keep_copy(&entry, &base));
        kept.fold(Ok(()), Result::and)
    }

    pub(super) fn mark_acked(&mut self, seq: u64) {
        self.captured_seq = seq;
        self.show();
        self.database.with(|shared| {
            shared.captured_seq = seq;
            shared.acked_seq = shared.acked_seq.max(seq);
        });
    }

    /// Removes all files that wait in the spool, since an image replaces them.
    pub(super) fn clear_spool(&mut self) {
        let closed = self.closed.drain(..).map(|file| file.entry);
        let passed = self.local.iter_mut().flat_map(|local| local.passed.drain(..));
        let passed = passed.map(|(entry, _)| entry);
        let entries: Vec<Entry> = self.open.drain(..).chain(closed).chain(passed).collect();
        self.remove_files(&entries);
    }

    /// Removes files whose pieces are in another file by now. The next read of the spool recognizes a file that
    /// could not be removed, and skips it.
    fn remove_files(&self, entries: &[Entry]) {
        let Some(local) = &self.local else { return };
        for entry in entries {
            if let Err(error) = local.spool.remove(entry) {
                log::warn!("{}: {error}; it is of no use any more", self.database.label());
            }
        }
    }
}

/// Returns the base that a closed file makes.
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
