//! A full image: the whole database as one file, streamed to the store in parts.
//!
//! The first part has the header, which names the checksum of the resulting database. So the first part is sent
//! last. Memory holds at most four parts: the first, one being filled, one waiting, and one being sent.

use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::capture::{Cursor, Span};
use super::looks::Moment;
use super::open::Point;
use super::replica::{LocalJob, Replica};
use super::scan::{SLICE, Scan};
use crate::border::Border;
use crate::buffer::Buffer;
use crate::engine::{Event, Failure};
use crate::local;
use crate::local::reserve::Reserve;
use crate::local::state::{Base, Clean, Fingerprint, Image, Position};
use crate::log_end::Plan;
use crate::ltx::{self, DatabaseChecksum, Encoder, Ending, FileName, HEADER_LEN, Header, Tag};
use crate::shipper::{Part, Task, UploadOutcome};
use crate::store::Key;
use crate::units::{Level, Pgno, Timestamp, Txid};
use crate::wal::WalIndex;

/// The file being written.
enum Writing {
    Pages(Encoder<Buffer>),
    /// All pages are encoded; the page index follows.
    Index(Ending<Buffer>),
    /// The whole file is cut into parts.
    Done,
}

/// An image in progress.
pub(super) struct ImageJob {
    /// Number of this upload, which tells its outcomes from those of earlier uploads.
    number: u64,
    level: Level,
    txid: Txid,
    pre_apply: DatabaseChecksum,
    timestamp: Timestamp,
    stage: Stage,
}

enum Stage {
    /// The store has not yet accepted the upload.
    Opening,
    Sending(Box<Sending>),
    /// All parts are handed over.
    Completing(Box<Done>),
}

struct Sending {
    /// The walk; `None` once all pages are read.
    scan: Option<Scan>,
    /// Room reserved, while the database is read, for a write of the application that finds no room.
    reserve: Option<Reserve>,
    file: Writing,
    parts: mpsc::Sender<Part>,
    part_len: usize,
    /// The first part, kept until the header is known.
    first: Option<Buffer>,
    next_number: u32,
    /// A part for which the channel had no room yet.
    waiting: Option<Part>,
    blocked: bool,
    /// Value of `commit_seq` up to which the image holds every commit.
    seq: u64,
    /// True if the database was open in this process when the walk began.
    attached: bool,
    /// Value of the replica's `epoch` when the walk began.
    epoch: u64,
    fingerprint: Option<Fingerprint>,
    /// Value of the replica's `remembered` when the walk began.
    remembered: u64,
    /// Parts still to be sent after the page index is written.
    rest: Option<Vec<Part>>,
    done: Option<Box<Done>>,
}

struct Done {
    image: Image,
    /// Length of the file in bytes, known once the file is written.
    len: u64,
    seq: u64,
    cursor: Cursor,
    attached: bool,
    epoch: u64,
    fingerprint: Option<Fingerprint>,
}

impl Done {
    fn walked(&self) -> (u64, u64) {
        let base = self.image.base;
        let len = u64::from(base.commit).saturating_mul(u64::from(base.page_size));
        (len, len)
    }
}

impl ImageJob {
    pub(super) fn can_step(&self) -> bool {
        matches!(&self.stage, Stage::Sending(sending) if !sending.blocked)
    }

    /// True if the store may publish the file at any moment.
    pub(super) fn is_completing(&self) -> bool {
        matches!(self.stage, Stage::Completing(_))
    }

    /// Returns the bytes of the database that are read, and the bytes in all. `None` before the store has
    /// accepted the upload.
    pub(super) fn progress(&self) -> Option<(u64, u64)> {
        match &self.stage {
            Stage::Opening => None,
            Stage::Sending(sending) => match (&sending.scan, &sending.done) {
                (Some(scan), _) => Some(scan.walked()),
                (None, done) => done.as_ref().map(|done| done.walked()),
            },
            Stage::Completing(done) => Some(done.walked()),
        }
    }

    /// Returns the reserve that is kept while the database is read.
    pub(super) fn reserve(&self) -> Option<&Reserve> {
        match &self.stage {
            Stage::Sending(sending) => sending.reserve.as_ref(),
            Stage::Opening | Stage::Completing(_) => None,
        }
    }

    /// Takes the reserve out of the job. Dropping it frees the room.
    pub(super) fn take_reserve(&mut self) -> Option<Reserve> {
        match &mut self.stage {
            Stage::Sending(sending) => sending.reserve.take(),
            Stage::Opening | Stage::Completing(_) => None,
        }
    }

    /// True if the database is being read, so that its WAL must stay.
    pub(super) fn is_reading(&self) -> bool {
        matches!(self.stage, Stage::Sending(_))
    }
}

impl Replica {
    pub(super) fn begin_image(
        &mut self,
        level: Level,
        txid: Txid,
        pre_apply: Option<DatabaseChecksum>,
    ) {
        // Timestamps rise with TXIDs, whatever the clock says: a point in time must mean one state.
        let base = self.local.as_ref().and_then(|local| local.state.base);
        let before = base.map_or(0, |base| base.timestamp).max(self.log_time.0);
        let timestamp = Timestamp(crate::clock::wall().0.max(before.saturating_add(1)));
        let min = if level == Level::SNAPSHOT { Txid(1) } else { txid };
        let key = Key { level, name: FileName { min, max: txid } };
        let path = self.database.label();
        log::info!("{path}: sending a full image as transaction {txid}");
        let pre_apply = pre_apply.unwrap_or(DatabaseChecksum::EMPTY);
        let stage = Stage::Opening;
        let number = self.next_number();
        let image = ImageJob { number, level, txid, pre_apply, timestamp, stage };
        self.job = LocalJob::Image(Box::new(image));
        // Pages in the WAL may not be in the database file yet.
        let wal = local::wal_path(self.database.path());
        let len = |path| std::fs::metadata(path).map_or(0, |file| file.len());
        let len = len(self.database.path()).saturating_add(len(&wal));
        let plan = Plan { head: self.engine.located(), writer: self.engine.writer() };
        self.ship(Task::OpenUpload { job: number, key, timestamp, len, plan });
    }

    /// Handles what the shipper reports about an upload.
    pub(super) fn upload_event(&mut self, number: u64, outcome: UploadOutcome) {
        let ours = matches!(&self.job, LocalJob::Image(image) if image.number == number);
        if !ours {
            // A report about an upload that was given up.
            return;
        }
        let LocalJob::Image(mut image) = std::mem::replace(&mut self.job, LocalJob::None) else {
            return;
        };
        match (outcome, &mut image.stage) {
            (UploadOutcome::Opened { part_len, parts }, Stage::Opening) => {
                match self.begin_sending(parts, part_len) {
                    Ok(sending) => {
                        image.stage = Stage::Sending(Box::new(sending));
                        self.job = LocalJob::Image(image);
                    }
                    Err(stopped) => self.image_stopped(stopped),
                }
            }
            (UploadOutcome::Ready, stage) => {
                if let Stage::Sending(sending) = stage {
                    sending.blocked = false;
                }
                self.job = LocalJob::Image(image);
            }
            (UploadOutcome::Done, Stage::Completing(done)) => self.image_sent(done),
            (
                outcome @ (UploadOutcome::Refused | UploadOutcome::Failed(_)),
                Stage::Completing(done),
            ) => {
                // The file may be at the store. Even a refusal may be the answer to our own repeated request.
                if let UploadOutcome::Failed(failure) = outcome {
                    log::warn!("{}: {}", self.database.label(), failure.message());
                    self.engine.note(failure);
                }
                let (level, min) = (image.level, Txid(done.image.min_txid));
                let txid = done.image.base.txid();
                let unsure = Event::ImageUnsure { level, min, txid };
                self.engine.handle(self.process.now(), unsure);
            }
            (UploadOutcome::Refused, _) => {
                self.forget_image();
                self.engine.handle(self.process.now(), Event::ImageRefused);
            }
            (UploadOutcome::Failed(failure), _) => self.image_failed(failure),
            _ => {
                let message = "the store and the sealer lost step over an image".to_string();
                self.image_failed(Failure::Local { message });
            }
        }
        self.set_gate();
    }

    fn image_failed(&mut self, failure: Failure) {
        log::warn!("{}: the full image was not sent: {}", self.database.label(), failure.message());
        self.engine.handle(self.process.now(), Event::ImageFailed(failure));
    }

    fn image_stopped(&mut self, Stopped { why: message, gave_way }: Stopped) {
        if !gave_way {
            return self.image_failed(Failure::Local { message });
        }
        log::info!("{}: the full image begins anew: {message}", self.database.label());
        self.engine.handle(self.process.now(), Event::ImageFailed(Failure::Local { message }));
    }

    /// Ends an image that reads the database and so keeps the WAL; false if there is none. The image is
    /// repeated later.
    pub(super) fn end_image(&mut self) -> bool {
        let reads = matches!(&self.job, LocalJob::Image(image) if image.is_reading());
        if reads {
            self.job = LocalJob::None;
            let message = "it was given up for a write that found no room".to_string();
            self.image_failed(Failure::Local { message });
        }
        reads
    }

    /// Forgets an image that was refused. The file at the store is not ours, so no later check must look for
    /// it.
    fn forget_image(&mut self) {
        if let Some(local) = &mut self.local {
            local.state.image = None;
            if let Err(error) = local.save(false) {
                log::error!("{}: {error}", self.database.label());
            }
        }
    }

    fn begin_sending(
        &mut self,
        parts: mpsc::Sender<Part>,
        part_len: usize,
    ) -> Result<Sending, Stopped> {
        // From here on the WAL must not be restarted.
        self.database.with(|shared| {
            shared.set_gate(crate::database::Gate::Shut);
            // If `captured` stayed set, the WAL would be let go where capture had reached the WAL's end.
            shared.captured = None;
        });
        self.hold_wal();
        let seq = self.database.with(|shared| shared.commit_seq);
        let scan = self.open_scan()?;
        self.refresh_published();
        let local = self.local.as_mut().ok_or("the local state is not open")?;
        local.table.reset().map_err(|error| error.to_string())?;
        let scratch = local.spool.scratch();
        let fingerprint = Fingerprint::of(self.database.path()).ok();
        self.cursor = Cursor::Unknown;
        self.point = None;
        self.clear_frames();
        self.clear_spool();
        let page_size = scan.page_size();
        // A part is cut only after the slice that completes it was encoded.
        let mut part = Buffer::with_capacity(part_len.saturating_add(4 * SLICE));
        part.write_all(&[0; HEADER_LEN]).map_err(|error| error.to_string())?;
        let reserve = self.reserve();
        Ok(Sending {
            scan: Some(scan),
            reserve,
            file: Writing::Pages(Encoder::spilling(part, page_size, scratch)),
            parts,
            part_len,
            first: None,
            next_number: 1,
            waiting: None,
            blocked: false,
            seq,
            attached: self.is_attached(),
            epoch: self.epoch(),
            fingerprint,
            remembered: self.remembered,
            rest: None,
            done: None,
        })
    }

    /// Opens a walk over all pages, in a read transaction.
    pub(super) fn open_scan(&mut self) -> Result<Scan, Stopped> {
        let place = self.local.as_ref().map(|local| local.spool.scratch());
        self.scan(|border, wal| {
            let guard = border.guard();
            Scan::begin(border.open_reader()?, wal, guard, place.as_ref())
        })
    }

    /// Opens a walk over one slice of the pages, in a short read transaction.
    pub(super) fn open_slice(&mut self, first: Pgno, makes_room: bool) -> Result<Scan, String> {
        let scan = self.scan(|border, wal| {
            let pages = |index: &WalIndex, add: &mut dyn FnMut(u32, Pgno)| {
                border.each_frame_page(index, 1, index.max_frame, add)
            };
            Scan::begin_at(first, border.open_short_reader(makes_room)?, wal, pages)
        });
        scan.map_err(|stopped| stopped.why)
    }

    fn scan(
        &self,
        open: impl FnOnce(&dyn Border, &Path) -> std::io::Result<Scan>,
    ) -> Result<Scan, Stopped> {
        let border = self.database.border().cloned().ok_or("the database is not open")?;
        let path = self.database.path();
        Ok(open(&*border, &local::wal_path(path))?)
    }

    pub(super) fn step_image(&mut self, mut image: Box<ImageJob>) {
        let result = match &mut image.stage {
            Stage::Sending(sending) if !sending.blocked => {
                let head = Head {
                    level: image.level,
                    txid: image.txid,
                    pre_apply: image.pre_apply,
                    timestamp: image.timestamp,
                };
                self.step_sending(sending, &head)
            }
            _ => Ok(false),
        };
        match result {
            Ok(finished) => {
                if finished
                    && let Stage::Sending(sending) = &mut image.stage
                    && let Some(done) = sending.done.take()
                {
                    image.stage = Stage::Completing(done);
                }
                self.job = LocalJob::Image(image);
            }
            Err(stopped) => self.image_stopped(stopped),
        }
        self.set_gate();
    }

    /// Does one slice; `true` when all parts are handed over.
    fn step_sending(&mut self, sending: &mut Sending, head: &Head) -> Result<bool, Stopped> {
        if let Some(part) = sending.waiting.take()
            && !sending.send(part)?
        {
            return Ok(false);
        }
        if let Some(rest) = &mut sending.rest {
            let Some(part) = rest.pop() else { return Ok(true) };
            sending.send(part)?;
            return Ok(
                sending.waiting.is_none() && sending.rest.as_ref().is_some_and(Vec::is_empty)
            );
        }
        let Some(scan) = &mut sending.scan else {
            sending.step_index()?;
            return Ok(false);
        };
        let Some(local) = self.local.as_mut() else { return Err("the local state is gone".into()) };
        let (Writing::Pages(encoder), table) = (&mut sending.file, &mut local.table) else {
            return Err("it was read already".into());
        };
        let mut sums = Vec::new();
        let more = scan.step(|pgno, page| -> Result<(), Stopped> {
            encoder.page(pgno, page).map_err(|error| error.to_string())?;
            sums.push((pgno, ltx::checksum::page(pgno, page)));
            Ok(())
        })?;
        table.set_all(&sums).map_err(|error| error.to_string())?;
        sending.cut_part()?;
        if !more {
            self.finish_sending(sending, head)?;
        }
        Ok(false)
    }

    /// Writes the header after all pages are read, and saves the image that is about to appear at the store.
    fn finish_sending(&mut self, sending: &mut Sending, head: &Head) -> Result<(), Stopped> {
        // The rest of the upload needs no read transaction.
        let Some(scan) = sending.scan.take() else { return Err("it was read already".into()) };
        sending.reserve = None;
        if !scan.is_intact() {
            let why = "it was opened, or a checkpoint ran, while it was read";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why).into());
        }
        Self::check_generation(&scan)?;
        let Some(local) = self.local.as_mut() else { return Err("the local state is gone".into()) };
        let snapshot = scan.snapshot();
        local.table.set_commit(snapshot.page_count).map_err(|error| error.to_string())?;
        let position = scan.position();
        let span = match position {
            Some(at) => Span::frames(snapshot.page_size, at.salts, 1, at.frame),
            None => Span::NONE,
        };
        let min_txid = if head.level == Level::SNAPSHOT { Txid(1) } else { head.txid };
        let header = Header {
            page_size: snapshot.page_size,
            commit: snapshot.page_count,
            min_txid,
            max_txid: head.txid,
            timestamp: head.timestamp,
            wal_offset: span.offset,
            wal_size: span.len,
            salts: span.salts,
            writer: self.engine.writer(),
            tag: Some(Tag {
                pre_apply: head.pre_apply,
                post_apply: local.table.checksum(),
                full_image: true,
            }),
        };
        let Writing::Pages(encoder) = std::mem::replace(&mut sending.file, Writing::Done) else {
            return Err("it was read already".into());
        };
        let ending = encoder.end(&header).map_err(|error| error.to_string())?;
        sending.file = Writing::Index(ending);
        let base = Base {
            txid: head.txid.0,
            piece: self.piece,
            page_size: snapshot.page_size.get(),
            commit: snapshot.page_count,
            checksum: local.table.checksum().get(),
            timestamp: head.timestamp.0,
            position: position.map(Position::from),
        };
        let image = Image { level: head.level.get(), min_txid: min_txid.0, base };
        local.state.base = None;
        local.state.clean = None;
        local.state.image = Some(image);
        // The state has no base now. A state without a base calls for an image until one is confirmed.
        self.is_answered(sending.remembered);
        let Some(local) = self.local.as_mut() else { return Err("the local state is gone".into()) };
        local.save(true).map_err(|error| error.to_string())?;
        self.counters().images += 1;
        sending.done = Some(Box::new(Done {
            image,
            len: 0,
            seq: sending.seq,
            cursor: scan.end(),
            attached: sending.attached,
            epoch: sending.epoch,
            fingerprint: sending.fingerprint.filter(|_| position.is_none()),
        }));
        Ok(())
    }

    /// Returns an error if the WAL was restarted or recovered during the walk.
    pub(super) fn check_generation(scan: &Scan) -> Result<(), String> {
        if !scan.is_intact() {
            return Err("a checkpoint ran while the database was read".into());
        }
        let Some(before) = scan.snapshot().index.filter(|index| index.max_frame > 0) else {
            // Readers of the file alone keep every process from copying frames into it.
            return Ok(());
        };
        // Recovery may have cut off frames without a checksum. Until later commits fill all of their places,
        // the index ends earlier. After that `iChange` may be the same again, but the last frame is another.
        match scan.index_now() {
            Some(now) if now.follows(&before) && scan.has_last() => Ok(()),
            _ => Err("the WAL was restarted or recovered while the database was read".into()),
        }
    }

    fn image_sent(&mut self, done: &Done) {
        self.looks.all_seen(Moment::now());
        let Some(local) = self.local.as_mut() else { return };
        let base = done.image.base;
        local.state.checked = base.txid;
        local.state.confirm(base, crate::clock::boot());
        local.state.clean = done
            .fingerprint
            .filter(|_| !done.attached)
            .map(|fingerprint| Clean { fingerprint, piece: base.piece });
        if let Err(error) = local.save(true) {
            log::error!("{}: {error}", self.database.label());
        }
        self.point = point_of(&base);
        let now = self.process.now();
        let seen = done.cursor != Cursor::Unknown;
        let same_wal = seen && done.attached && self.is_attached() && done.epoch == self.epoch();
        if same_wal {
            self.cursor = done.cursor;
        }
        let later = self.database.with(|shared| shared.commit_seq > done.seq);
        let complete = !later && !self.published_is_ahead();
        let (min, max) = (Txid(done.image.min_txid), base.txid());
        let level = Level::new(done.image.level).unwrap_or(Level::SNAPSHOT);
        self.add_to_history(Key { level, name: FileName { min, max } }, done.len, &base);
        self.engine.handle(now, Event::ImageSent { txid: base.txid(), complete });
        let path = self.database.label();
        log::info!("{path}: the full image is at the store, {} pages", base.commit);
        self.mark_acked(done.seq);
        if !complete {
            self.engine.handle(now, Event::Committed { at: now });
        }
        if !same_wal && (self.is_attached() || !complete) {
            // Commits made meanwhile are in a WAL from which capture cannot continue, or which is gone.
            self.engine.handle(now, Event::Diverged);
        }
    }

    /// Handles the store's answer whether an earlier process's image has arrived.
    pub(super) fn confirmed(&mut self, arrived: bool) {
        let now = self.process.now();
        let Some(local) = self.local.as_mut() else { return };
        let Some(image) = local.state.image.take() else { return };
        if arrived {
            local.state.confirm(image.base, local.state.boot);
            self.piece = image.base.piece;
            let expected = image.base.checksum;
            if local.table.commit() != image.base.commit
                && let Err(error) = local.table.set_commit(image.base.commit)
            {
                log::error!("{}: {error}", self.database.label());
            }
            if local.table.checksum().get() == expected {
                self.point = point_of(&image.base);
                // The comparison finds all commits made since.
                self.engine.handle(now, Event::Diverged);
            } else {
                self.engine.handle(now, Event::ImageNeeded);
            }
        }
        if let Some(local) = &mut self.local
            && let Err(error) = local.save(true)
        {
            log::error!("{}: {error}", self.database.label());
        }
    }
}

/// Fields of the header that are known before the walk.
struct Head {
    level: Level,
    txid: Txid,
    pre_apply: DatabaseChecksum,
    timestamp: Timestamp,
}

/// Early end of a read.
pub(super) struct Stopped {
    pub why: String,
    /// True if the read stood in the way of another connection, which may happen at any time.
    gave_way: bool,
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Stopped {
        let gave_way = error.kind() == io::ErrorKind::ResourceBusy;
        Stopped { why: format!("cannot read the database: {error}"), gave_way }
    }
}

impl From<String> for Stopped {
    fn from(why: String) -> Stopped {
        Stopped { why, gave_way: false }
    }
}

impl From<&str> for Stopped {
    fn from(why: &str) -> Stopped {
        Stopped::from(why.to_string())
    }
}

impl Sending {
    /// Hands over a part; `false` if the channel has no room and the part waits.
    fn send(&mut self, part: Part) -> Result<bool, String> {
        match self.parts.try_send(part) {
            Ok(()) => Ok(true),
            Err(TrySendError::Full(part)) => {
                self.waiting = Some(part);
                self.blocked = true;
                Ok(false)
            }
            Err(TrySendError::Closed(_)) => Err("the store does not take more parts".into()),
        }
    }

    /// Writes a part of the page index. At its end, makes the last parts.
    fn step_index(&mut self) -> Result<(), String> {
        let Writing::Index(ending) = &mut self.file else {
            return Err("it was written already".into());
        };
        // As many bytes at once as of the pages.
        let end = ending.get_mut().len().saturating_add(SLICE).min(self.part_len);
        while ending.get_mut().len() < end {
            if ending.step().map_err(|error| error.to_string())? {
                continue;
            }
            let Writing::Index(ending) = std::mem::replace(&mut self.file, Writing::Done) else {
                return Err("it was written already".into());
            };
            let (bytes, encoded) = ending.finish().map_err(|error| error.to_string())?;
            if let Some(done) = &mut self.done {
                done.len = encoded.len;
            }
            let rest = last_parts(self, bytes, &encoded.header);
            self.rest = Some(rest.map_err(|error| error.to_string())?);
            return Ok(());
        }
        self.cut_part()
    }

    /// Cuts a full part off the encoded bytes.
    fn cut_part(&mut self) -> Result<(), String> {
        let part_len = self.part_len;
        let bytes = match &mut self.file {
            Writing::Pages(encoder) => encoder.get_mut(),
            Writing::Index(ending) => ending.get_mut(),
            Writing::Done => return Ok(()),
        };
        if bytes.len() < part_len {
            return Ok(());
        }
        let rest = bytes.split_off(part_len).map_err(|error| error.to_string())?;
        let part = std::mem::replace(bytes, rest);
        if self.first.is_none() {
            self.first = Some(part);
            return Ok(());
        }
        let number = self.next_number;
        self.next_number += 1;
        self.send(Part::Data { number, bytes: Bytes::from(part) })?;
        Ok(())
    }
}

/// Returns the remaining parts in reverse order, as a stack.
fn last_parts(
    sending: &mut Sending,
    mut bytes: Buffer,
    header: &[u8; HEADER_LEN],
) -> io::Result<Vec<Part>> {
    let mut first = sending.first.take();
    let mut last = Vec::new();
    loop {
        let rest = bytes.split_off(sending.part_len)?;
        if first.is_none() {
            first = Some(bytes);
        } else if !bytes.is_empty() {
            let number = sending.next_number;
            sending.next_number += 1;
            last.push(Part::Data { number, bytes: Bytes::from(bytes) });
        }
        if rest.is_empty() {
            break;
        }
        bytes = rest;
    }
    let mut first = first.unwrap_or_else(|| Buffer::with_capacity(0));
    if let Some(front) = first.as_mut().first_chunk_mut::<HEADER_LEN>() {
        *front = *header;
    }
    last.push(Part::Data { number: 0, bytes: Bytes::from(first) });
    last.push(Part::Complete);
    last.reverse();
    Ok(last)
}

fn point_of(base: &Base) -> Option<Point> {
    Some(Point {
        txid: base.txid(),
        page_size: crate::units::PageSize::new(base.page_size)?,
        checksum: DatabaseChecksum::from_stored(base.checksum),
        timestamp: Timestamp(base.timestamp),
    })
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
