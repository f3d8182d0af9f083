//! How the WAL comes and goes (`src/sealer/attach.rs`).

use walferry::engine::{Closed, Event, Need, Opened};
use walferry::local::state::{Clean, State};
use walferry::units::{Level, PageSize, Txid, WalPosition};
use walferry::wal::evidence::{self, Account, Gap, Proven, Sight};
use walferry::wal::{NO_WAL, WalHeader, WalIndex, count_commits};

use super::open::Found as Opening;
use super::{Cursor, Local};
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, re, sh, state};
use crate::process::{Attach, Gate, Transition, WalEnd, stands_at};
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
                Transition::Detached(end) => self.detach_wal(cx, p, end)?,
            }
            sh!(self, p).transitions.pop_front();
        }
        Ok(())
    }

    /// Whether the WAL goes on where the log ends, and an older one would be held against the log.
    fn is_misread(&mut self, p: usize, attach: &Attach) -> bool {
        let now = self.wal_index(p);
        let Cursor::At(end) = re!(self, p).cursor else { return false };
        let (salts, frame) = end.place();
        now != attach.index
            && now.is_some_and(|now| now.salts == salts && now.max_frame >= frame)
            && attach.index.is_none_or(|seen| seen.salts != salts || seen.max_frame < frame)
    }

    /// What is seen of the WAL now, since what was seen at first is old.
    fn brought_up_to_date(&mut self, cx: &mut Cx, p: usize, attach: Attach) -> Attach {
        if cx.bug == Bug::StaleAttachBelieved {
            return attach;
        }
        self.refresh_published(cx, p);
        Attach { guard: None, index: self.wal_index(p), fingerprint: None }
    }

    fn attach_wal(&mut self, cx: &mut Cx, p: usize, attach: &Attach) {
        sh!(self, p).diverged = None;
        let wal = self.db.open_wal();
        let replica = re!(self, p);
        replica.epoch += 1;
        replica.attached = true;
        replica.clear_frames();
        replica.wal = wal;
        self.hold(p, true);
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

    fn take_over(&mut self, cx: &mut Cx, p: usize, found: Opening) {
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
            since: cx.now,
            need,
            sure: found.state.is_sure(self.boot()),
        };
        cx.log(format_args!("host {}.{p}: {opened:?}", self.id));
        let replica = re!(self, p);
        replica.closed = found.closed.into();
        replica.open = found.open;
        replica.point = found.point;
        replica.piece = found.piece;
        let at = |at| Cursor::At(Proven::position(at));
        replica.cursor = found.position.map_or(Cursor::Unknown, at);
        replica.clear_frames();
        replica.local = Some(Local { state: found.state });
        replica.took_over_at = cx.now;
        replica.claiming = false;
        self.hold(p, true);
        self.resume_history(cx, p);
        re!(self, p).engine.handle(cx.now, Event::Opened(opened));
    }

    /// Decides how the log goes on with the WAL that was found.
    fn resume(&mut self, cx: &mut Cx, p: usize, attach: &Attach) {
        let replica = re!(self, p);
        let (Some(local), Some(point)) = (&replica.local, replica.point) else {
            replica.cursor = Cursor::Unknown;
            return;
        };
        let position = match replica.cursor {
            Cursor::At(end) => Some(end.at),
            Cursor::Unknown => None,
        };
        let found = Found { position, piece: replica.piece, page_size: point.page_size };
        let wal = replica.wal.as_ref().map(|wal| wal.borrow().clone());
        match resume(cx.bug, &found, &local.state, attach, wal.as_deref().unwrap_or(NO_WAL)) {
            Resume::At(end) => re!(self, p).cursor = Cursor::At(end),
            Resume::Compare(_) if cx.bug == Bug::ForgetDivergence => {
                if let Some(index) = attach.index.or(self.db.index()) {
                    let end = Proven::beginning(index.salts, index.change, attach.guard);
                    re!(self, p).cursor = Cursor::At(end);
                }
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
        replica.clear_frames();
        replica.engine.handle(cx.now, Event::ImageNeeded);
        self.set_gate(p);
    }

    fn detach_wal(&mut self, cx: &mut Cx, p: usize, end: Option<WalEnd>) -> Result<(), Stop> {
        self.follow_restart(p);
        let replica = re!(self, p);
        let place = replica.captured().filter(|_| replica.attached);
        // Only a WAL that was captured to its last frame has left a file that is known.
        let believed = match cx.bug {
            Bug::CleanWhileUnknown => place.is_none(),
            Bug::CloseRace => place.is_some(),
            _ => false,
        };
        let is_at = |end: &WalEnd| stands_at(cx.bug, place, &end.index);
        let clean = end.filter(|end| believed || is_at(end));
        replica.epoch += 1;
        replica.attached = false;
        replica.wal = None;
        replica.clear_frames();
        replica.awake = true;
        let piece = replica.piece;
        if replica.local.is_some() {
            state!(self, p).clean = clean.map(|end| Clean { fingerprint: end.fingerprint, piece });
            let state = state!(self, p).clone();
            self.disk.save_if_possible(&state, false)?;
        }
        Ok(())
    }
}

/// What the local state says of where the log ends.
struct Found {
    position: Option<WalPosition>,
    piece: u64,
    page_size: PageSize,
}

/// How the WAL, as it was when it was seen first, goes on from the log.
enum Resume {
    At(Proven),
    Compare(&'static str),
    OtherPageSize,
}

/// Holds the end of the log against the WAL (`resume` in `src/sealer/open.rs`).
fn resume(bug: Bug, found: &Found, state: &State, attach: &Attach, wal: &[u8]) -> Resume {
    let any = bug == Bug::CleanOfAnyPiece;
    let clean = state.clean.filter(|clean| clean.piece == found.piece || any);
    let Some(index) = attach.index else {
        return Resume::Compare("there is a WAL, and its index cannot be seen");
    };
    if index.max_frame > 0 && index.page_size != found.page_size {
        return Resume::OtherPageSize;
    }
    if let (Some(clean), Some(now)) = (clean, attach.fingerprint)
        && clean.fingerprint == now
        && let Some(begun) = begun_since_close(attach, &index, found.page_size, wal)
    {
        return Resume::At(begun);
    }
    let Some(at) = found.position.filter(|_| index.max_frame > 0) else {
        return Resume::Compare(match clean {
            _ if index.max_frame > 0 => "there is a WAL of which the log knows nothing",
            Some(_) => "the database file changed while it was closed",
            None => "the WAL is gone, and we did not see it go",
        });
    };
    let sight = Sight { index: &index, wal, page_size: found.page_size, guard: None };
    let proven = Proven::position(at);
    match evidence::account(&proven, &sight).expect("memory can be read") {
        Account::Continues => Resume::At(proven),
        Account::NotProven(Gap::WentBack) => Resume::Compare("the WAL ends before the log does"),
        Account::NotProven(Gap::OtherFrames) => {
            Resume::Compare("the WAL has other frames than those in the log")
        }
        _ => Resume::Compare("the WAL was begun anew while nobody watched"),
    }
}

/// The beginning of the WAL that was made for a database whose file is as a clean close has left it
/// (`begun_since_close` in `src/sealer/open.rs`).
fn begun_since_close(
    attach: &Attach,
    index: &WalIndex,
    page_size: PageSize,
    wal: &[u8],
) -> Option<Proven> {
    if index.max_frame > 0 && WalHeader::read(wal).is_none_or(|head| head.salts != index.salts) {
        return None;
    }
    let commits = count_commits(wal, page_size, 1, index.max_frame).ok()?;
    (commits.least == index.change).then(|| Proven::beginning(index.salts, 0, attach.guard))
}
