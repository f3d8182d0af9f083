//! How the WAL comes and goes (`src/sealer/attach.rs`).

use walferry::engine::{Closed, Event, Need, Opened};
use walferry::local::state::{Clean, Fingerprint, State};
use walferry::units::{Level, PageSize, Txid, WalPosition};
use walferry::wal::{FrameHeader, FrameSet, WalHeader};

use super::open::Found;
use super::{Cursor, Local};
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, sh, state};
use crate::process::{Attach, Gate, Transition};
use crate::sqlite::WalFile;
use crate::world::Cx;

/// How long to wait before the shipper's place is asked for again.
const STANDBY_RETRY: u64 = 500;

impl Host {
    /// Takes in how the WAL came and went, in order.
    pub fn follow(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        while let Some(next) = sh!(self, p).transitions.front().copied() {
            match next {
                Transition::Attached(attach) => {
                    if !self.is_shipper(p) && !self.open_local(cx, p)? {
                        re!(self, p).late = true;
                        let transitions = &mut sh!(self, p).transitions;
                        while transitions.len() >= 2 {
                            transitions.drain(..2);
                        }
                        return Ok(());
                    }
                    self.meanwhile(cx, p);
                    let late = std::mem::replace(&mut re!(self, p).late, false);
                    let attach = if late { self.brought_up_to_date(cx, p, attach) } else { attach };
                    if late && self.is_misread(p, &attach) {
                        let why = "a comparison is due for what was seen long ago";
                        return Err(Stop::Broken(why.into()));
                    }
                    self.attach_wal(cx, p, &attach);
                }
                Transition::Detached(clean) => self.detach_wal(cx, p, clean)?,
            }
            sh!(self, p).transitions.pop_front();
        }
        Ok(())
    }

    /// Whether the WAL goes on where the log ends, and an older one would be held against the log.
    fn is_misread(&mut self, p: usize, attach: &Attach) -> bool {
        let now = self.wal_index(p);
        let Cursor::At(at) = re!(self, p).cursor else { return false };
        now != attach.index
            && now.is_some_and(|now| now.salts == at.salts && now.max_frame >= at.frame)
            && attach.index.is_none_or(|seen| seen.salts != at.salts || seen.max_frame < at.frame)
    }

    /// What is seen of the WAL now, since what was seen at first is old.
    fn brought_up_to_date(&mut self, cx: &mut Cx, p: usize, attach: Attach) -> Attach {
        if cx.bug == Bug::StaleAttachBelieved {
            return attach;
        }
        self.refresh_published(cx, p);
        Attach { index: self.wal_index(p), fingerprint: None }
    }

    fn attach_wal(&mut self, cx: &mut Cx, p: usize, attach: &Attach) {
        sh!(self, p).diverged = None;
        let wal = self.db.open_wal();
        let replica = re!(self, p);
        replica.epoch += 1;
        replica.attached = true;
        replica.frames = FrameSet::default();
        replica.wal = wal;
        self.resume(cx, p, attach);
        self.set_gate(p);
    }

    fn open_local(&mut self, cx: &mut Cx, p: usize) -> Result<bool, Stop> {
        if self.lock.is_some_and(|holder| holder != p) && cx.bug != Bug::LockIgnored {
            re!(self, p).retry_at = Some(cx.now + STANDBY_RETRY);
            sh!(self, p).gate = Gate::Shut;
            cx.log(format_args!("host {}.{p}: stands by", self.id));
            return Ok(false);
        }
        self.lock = Some(p);
        re!(self, p).retry_at = None;
        let found = self.read_local(cx)?;
        self.take_over(cx, p, found);
        Ok(true)
    }

    fn take_over(&mut self, cx: &mut Cx, p: usize, found: Found) {
        self.reset_engine(cx, p, found.state.writer);
        let need = match (found.point, found.state.image) {
            (Some(_), _) => Need::Nothing,
            (None, Some(image)) => Need::Confirm {
                level: Level::new(image.level).unwrap(),
                min: Txid(image.min_txid),
                txid: image.base.txid(),
            },
            (None, None) => Need::Image,
        };
        let opened = Opened {
            claimed: found.state.claimed,
            acked: found.state.base.map_or(Txid::ZERO, |base| base.txid()),
            closed: found.closed.iter().map(|file| Closed::new(file.base.txid(), cx.now)).collect(),
            uncommitted_since_close: !found.open.is_empty(),
            need,
        };
        cx.log(format_args!("host {}.{p}: {opened:?}", self.id));
        let replica = re!(self, p);
        replica.closed = found.closed.into();
        replica.open = found.open;
        replica.point = found.point;
        replica.piece = found.piece;
        replica.cursor = found.position.map_or(Cursor::Unknown, Cursor::At);
        replica.local = Some(Local { state: found.state });
        replica.took_over_at = cx.now;
        self.hold(p, true);
        self.resume_history(cx, p);
        re!(self, p).engine.handle(cx.now, Event::Opened(opened));
    }

    /// Decides how the log goes on with the WAL that was found.
    fn resume(&mut self, cx: &mut Cx, p: usize, attach: &Attach) {
        let fingerprint = self.db.fingerprint();
        let replica = re!(self, p);
        let (Some(local), Some(point)) = (&replica.local, replica.point) else {
            replica.cursor = Cursor::Unknown;
            return;
        };
        let position = match replica.cursor {
            Cursor::At(position) => Some(position),
            _ => None,
        };
        let wal = replica.wal.as_ref();
        let resumed = match resume(
            cx.bug,
            position,
            replica.piece,
            &local.state,
            point.page_size,
            attach,
            wal,
        ) {
            // Others may have written before the pin was held.
            Resume::At(Cursor::Fresh)
                if attach.fingerprint != Some(fingerprint) && cx.bug != Bug::FreshUnpinned =>
            {
                Resume::Compare("the database was written while it was opened")
            }
            resumed => resumed,
        };
        match resumed {
            Resume::At(cursor) => re!(self, p).cursor = cursor,
            Resume::Compare(_) if cx.bug == Bug::ForgetDivergence => {
                re!(self, p).cursor = Cursor::Fresh;
            }
            Resume::Compare(why) => {
                cx.log(format_args!("host {}.{p}: {why}", self.id));
                let replica = re!(self, p);
                replica.cursor = Cursor::Unknown;
                replica.engine.handle(cx.now, Event::Diverged);
            }
            Resume::OtherPageSize => {
                cx.log(format_args!("host {}.{p}: the page size changed", self.id));
                self.need_image(cx, p);
            }
        }
        let replica = re!(self, p);
        if attach.index.is_some_and(|index| replica.is_behind(&index)) {
            replica.engine.handle(cx.now, Event::Committed { at: cx.now });
        }
    }

    pub fn need_image(&mut self, cx: &mut Cx, p: usize) {
        let replica = re!(self, p);
        replica.cursor = Cursor::Unknown;
        replica.point = None;
        replica.frames = FrameSet::default();
        replica.engine.handle(cx.now, Event::ImageNeeded);
        self.set_gate(p);
    }

    fn detach_wal(&mut self, cx: &Cx, p: usize, clean: Option<Fingerprint>) -> Result<(), Stop> {
        let replica = re!(self, p);
        let known = replica.cursor != Cursor::Unknown || cx.bug == Bug::CleanWhileUnknown;
        let known = replica.attached && replica.frames.is_empty() && known;
        let clean = clean.filter(|_| known);
        replica.epoch += 1;
        replica.attached = false;
        if replica.job.is_none() {
            replica.wal = None;
        }
        replica.frames = FrameSet::default();
        replica.awake = true;
        let piece = replica.piece;
        if replica.local.is_some() {
            state!(self, p).clean = clean.map(|fingerprint| Clean { fingerprint, piece });
            let state = state!(self, p).clone();
            self.disk.save_if_possible(&state, false)?;
        }
        Ok(())
    }
}

/// How the WAL, as it was when it was seen first, goes on from the log.
enum Resume {
    At(Cursor),
    Compare(&'static str),
    OtherPageSize,
}

/// Holds the end of the log against the WAL (`resume` in `src/sealer/open.rs`).
fn resume(
    bug: Bug,
    position: Option<WalPosition>,
    piece: u64,
    state: &State,
    page_size: PageSize,
    attach: &Attach,
    wal: Option<&WalFile>,
) -> Resume {
    if attach.index.is_some_and(|index| index.page_size != page_size) {
        return Resume::OtherPageSize;
    }
    let Some(index) = attach.index.filter(|index| index.max_frame > 0) else {
        let any = bug == Bug::CleanOfAnyPiece;
        let clean = state.clean.filter(|clean| clean.piece == piece || any);
        return match (clean, attach.fingerprint) {
            (Some(clean), Some(now)) if clean.fingerprint == now => Resume::At(Cursor::Fresh),
            (Some(_), _) => Resume::Compare("the database file changed while it was closed"),
            (None, _) => Resume::Compare("the WAL is gone, and we did not see it go"),
        };
    };
    let Some(position) = position else {
        return Resume::Compare("there is a WAL of which the log knows nothing");
    };
    if position.salts != index.salts {
        return Resume::Compare("the WAL was begun anew while nobody watched");
    }
    if position.frame > index.max_frame {
        return Resume::Compare("the WAL ends before the log does");
    }
    let Some(wal) = wal else { return Resume::Compare("the WAL cannot be read") };
    let wal = wal.borrow();
    let same = WalHeader::read(wal.as_slice()).is_some_and(|h| h.salts == position.salts);
    let frame = FrameHeader::read(wal.as_slice(), page_size, position.frame);
    match frame {
        Ok(frame)
            if same
                && (frame.checksum == position.checksum
                    || bug == Bug::UnsyncedPositionBelieved) =>
        {
            Resume::At(Cursor::At(position))
        }
        _ => Resume::Compare("the WAL has other frames than those in the log"),
    }
}
