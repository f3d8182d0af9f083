//! Whether every commit between a proven position and the WAL as it is now is accounted for.
//!
//! One question, no I/O of its own, no state: capture and the simulation ask it here and nowhere
//! else. The answer rests on what `wal.c` does:
//!
//! - Both salts change when a WAL is restarted (`walRestartHdr`: the first grows by one, the second
//!   is random), and a new WAL file gets two random ones. Equal salts are one generation.
//! - A frame's checksum is cumulative (`walEncodeFrame`). A frame that still carries the checksum
//!   that was captured has the same frames before it. For frames without one there is a
//!   [`checksum_at`] of ours.
//! - `iChange` grows by one with each commit (`sqlite3WalFrames`) and is left alone by a restart.
//!   Recovery sets it to 0 (`walIndexRecover`).
//! - A commit may leave several frames with a commit mark, each a copy of the one before it
//!   ([`Commits`]): a copy counts for nothing, unless it is known by other means that nothing is missing.
//! - A writer that dies between its frames and the wal-index leaves a transaction at the end of a generation
//!   that was never committed, if the next writer restarts the WAL. `iChange` does not count it.
//! - A new generation overwrites the file from its first frame on. What it has not reached is still
//!   the old one.
//!
//! Whatever these do not prove is [`Account::NotProven`], and the database is compared.

use std::io;

use super::{
    Commits, FrameHeader, ReadAt, Tail, WalHeader, WalIndex, checksum_at, count_commits, tail,
};
use crate::units::{PageSize, Salts, WalPosition};

/// A stretch of time in which no other process can restart or remove the WAL: it ends with the lock
/// that keeps them from it, and is never the same again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guard(pub u64);

/// A position up to which every commit is captured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proven {
    /// The position. Frame 0 means: all before this generation is captured, and it begins here.
    pub at: WalPosition,
    /// `iChange` after the position's commit; `None` where only the position is known, as after it
    /// was read from local state.
    pub change: Option<u32>,
    /// The wal-index's own checksum there; of no meaning without `change`, or at frame 0.
    pub sum: (u32, u32),
    /// The guard under which the position was seen.
    pub guard: Option<Guard>,
}

impl Proven {
    /// A position of which nothing but itself is known.
    pub fn position(at: WalPosition) -> Proven {
        Proven { at, change: None, sum: (0, 0), guard: None }
    }

    /// The beginning of the generation of `index`, when all before it is captured.
    pub fn beginning(salts: Salts, change: u32, guard: Option<Guard>) -> Proven {
        let at = WalPosition { salts, frame: 0, checksum: (0, 0) };
        Proven { at, change: Some(change), sum: (0, 0), guard }
    }

    /// The position at which this wal-index ends.
    pub fn end_of(index: &WalIndex, at: WalPosition, guard: Option<Guard>) -> Proven {
        Proven { at, change: Some(index.change), sum: index.frame_checksum, guard }
    }

    /// Generation and frame.
    pub fn place(&self) -> (Salts, u32) {
        (self.at.salts, self.at.frame)
    }

    /// True if this is the position of `index`, and no commit is counted in between. Recovery may bring
    /// the place back, and then the count: the frames tell.
    pub fn is_at(&self, index: &WalIndex) -> bool {
        self.place() == (index.salts, index.max_frame)
            && self.change.is_none_or(|change| self.ends(change, index))
    }

    /// The same, for whom a place alone is not enough.
    pub fn is_known_at(&self, index: &WalIndex) -> bool {
        self.change.is_some() && self.is_at(index)
    }

    fn ends(&self, change: u32, index: &WalIndex) -> bool {
        change == index.change && (index.max_frame == 0 || self.sum == index.frame_checksum)
    }

    /// Where capture stands after a restart that this process made or let happen: at the beginning
    /// of the next generation, if everything before it was captured.
    pub fn restarted(&self, restart: &Restart) -> Option<Proven> {
        let Restart { from, to, guard } = restart;
        self.is_known_at(from).then(|| Proven::beginning(*to, from.change, *guard))
    }
}

/// A restart that was seen from its beginning to its end by a thread that kept all others from
/// writing meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restart {
    /// Where the old generation ended.
    pub from: WalIndex,
    /// The new generation. A restart leaves `iChange` alone.
    pub to: Salts,
    /// The guard that was held again before anybody else could write.
    pub guard: Option<Guard>,
}

impl Restart {
    /// What lies between two looks at the wal-index under the write lock: a restart, or nothing of
    /// the kind.
    pub fn between(before: &WalIndex, after: &WalIndex, guard: Option<Guard>) -> Option<Restart> {
        let next = after.salts.0 == before.salts.0.wrapping_add(1);
        let empty = after.max_frame == 0 && after.change == before.change;
        (next && empty).then_some(Restart { from: *before, to: after.salts, guard })
    }
}

/// What is seen of a WAL now.
pub struct Sight<'a, R: ReadAt + ?Sized> {
    /// The wal-index.
    pub index: &'a WalIndex,
    /// The file. It may be older or newer than the index: both are looked at one after the other.
    pub wal: &'a R,
    /// Page size of the frames at the position.
    pub page_size: PageSize,
    /// The guard that was held while the index was read.
    pub guard: Option<Guard>,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Account {
    /// The frames behind the position, up to the index's last, are all that was committed since.
    Continues,
    /// A new generation has begun. What was committed since is the tail of the old one, and the
    /// frames of the new one from the first on.
    Begun {
        /// Frames of the old generation behind the position.
        tail: Tail,
        /// `iChange` where the new generation begins.
        change: u32,
    },
    /// Index and file are not of one moment: look at both again.
    Overtaken,
    /// Something may be missing.
    NotProven(Gap),
}

/// Why something may be missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gap {
    /// The same generation ends before the position: recovery cut it.
    WentBack,
    /// The same generation has another frame at the position.
    OtherFrames,
    /// Another generation, and commits that are not accounted for.
    Restarted,
}

/// Accounts for everything between `proven` and what is seen.
///
/// # Errors
/// The WAL cannot be read. That it ends early is no error, but [`Account::Overtaken`].
pub fn account<R: ReadAt + ?Sized>(proven: &Proven, sight: &Sight<'_, R>) -> io::Result<Account> {
    let account = if proven.at.salts == sight.index.salts {
        same(proven, sight)
    } else {
        next(proven, sight)
    };
    // What was read behind the WAL's header may be of a generation that has begun since.
    let has_begun = || sight.index.max_frame > 0 && !is_of(sight.wal, sight.index.salts);
    match account {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Account::Overtaken),
        Ok(Account::NotProven(Gap::OtherFrames | Gap::Restarted)) if has_begun() => {
            Ok(Account::Overtaken)
        }
        other => other,
    }
}

/// The generation of the position is the one that is there.
fn same<R: ReadAt + ?Sized>(proven: &Proven, sight: &Sight<'_, R>) -> io::Result<Account> {
    let Sight { index, wal, page_size, .. } = *sight;
    let at = proven.at;
    if index.max_frame < at.frame {
        return Ok(Account::NotProven(Gap::WentBack));
    }
    if index.max_frame == 0 {
        return Ok(Account::Continues);
    }
    if !is_of(wal, index.salts) {
        return Ok(Account::Overtaken);
    }
    if at.frame == 0 {
        // All of the generation is taken: whatever is in it is all.
        return Ok(Account::Continues);
    }
    let there = checksum_at(wal, page_size, at.frame)? == at.checksum;
    Ok(if there { Account::Continues } else { Account::NotProven(Gap::OtherFrames) })
}

/// Another generation is there.
fn next<R: ReadAt + ?Sized>(proven: &Proven, sight: &Sight<'_, R>) -> io::Result<Account> {
    let Sight { index, wal, page_size, guard } = *sight;
    let unproven = Ok(Account::NotProven(Gap::Restarted));
    let at = proven.at;
    let comparable = index.max_frame == 0 || index.page_size == page_size;
    let Some(change) = proven.change.filter(|_| comparable) else { return unproven };
    if index.max_frame > 0 && !is_of(wal, index.salts) {
        return Ok(Account::Overtaken);
    }
    let direct = index.salts.0 == at.salts.0.wrapping_add(1);
    if at.frame > 0 && !direct {
        return unproven;
    }
    let left = if at.frame > 0 { tail(wal, page_size, at) } else { Tail::default() };
    let begun = count_commits(wal, page_size, 1, index.max_frame)?;
    let (found, grown) = (left.commits + begun, index.change.wrapping_sub(change));
    let Some(before) = commits_before(left.commits, begun, grown) else { return unproven };
    if !left.frames.is_empty() && grown != found.most {
        // The tail may end with a transaction that is none, and a copy may stand for a commit.
        return unproven;
    }
    let held = guard.is_some() && proven.guard == guard;
    let overwritten = || overwritten(at, &left, sight);
    let all = match (grown == found.least, held) {
        // Each of the frames that count is a commit, so that not one is missing.
        (true, true) => true,
        (true, false) => overwritten().is_some_and(|n| outcounts_recovery(change, found, n)),
        // Copies count as commits here, and may stand for as many that are missing: there is no room
        // for these if nothing was overwritten.
        (false, true) => overwritten() == Some(0),
        (false, false) => false,
    };
    if !all {
        return unproven;
    }
    Ok(Account::Begun { tail: left, change: change.wrapping_add(before) })
}

/// How many of the commits by which `iChange` has grown are in the tail of the old generation, if it has
/// grown by as many as are found and that can be told.
fn commits_before(left: Commits, begun: Commits, grown: u32) -> Option<u32> {
    let found = left + begun;
    if !found.may_be(grown) {
        None
    } else if grown == found.least || left.is_exact() {
        Some(left.least)
    } else {
        begun.is_exact().then(|| grown.wrapping_sub(begun.least))
    }
}

/// True if recovery cannot have happened since the position, given that the count fits, and that so many
/// frames of the old generation were overwritten.
///
/// Recovery sets `iChange` to 0. For the count to fit all the same, at least `change` commits must
/// be among those that are not found, or that are found and do not count. The former were in frames
/// which the new generation has overwritten, one frame or more each: where there were fewer such
/// frames, it did not happen.
fn outcounts_recovery(change: u32, found: Commits, overwritten: u32) -> bool {
    change > overwritten.saturating_add(found.doubtful())
}

/// How many frames of the old generation the new one has overwritten, at most, behind those that are
/// found. `None` where the end of the old generation is not seen: a file that was cut off (TRUNCATE
/// checkpoint, `journal_size_limit`) shows nothing of it.
fn overwritten<R: ReadAt + ?Sized>(
    at: WalPosition,
    left: &Tail,
    sight: &Sight<'_, R>,
) -> Option<u32> {
    if at.frame == 0 {
        // How long the generations before were is not known.
        return None;
    }
    let Sight { index, wal, page_size, .. } = *sight;
    let (found, checksum) = if left.frames.is_empty() {
        (at.frame, at.checksum)
    } else {
        (left.frames.last, left.frames.checksum)
    };
    // The new one may have grown since its index was read.
    let known = found.max(index.max_frame);
    let (reached, behind) = end_of_generation(wal, page_size, index.salts, known);
    let ends = match behind {
        // An older generation's, which the position's has never reached.
        Some(frame) => is_older(frame.salts, at.salts),
        // The file ends with the last frame that is known: it is as long as it ever was.
        None if reached == found && found > index.max_frame => {
            FrameHeader::read(wal, page_size, found)
                .is_ok_and(|frame| frame.salts == at.salts && frame.checksum == checksum)
        }
        None => false,
    };
    ends.then(|| reached.saturating_sub(found))
}

/// The last frame of this generation behind one that counts as its, and the frame that is behind that;
/// they follow each other, as a generation overwrites the file from the front.
fn end_of_generation<R: ReadAt + ?Sized>(
    wal: &R,
    page_size: PageSize,
    salts: Salts,
    known: u32,
) -> (u32, Option<FrameHeader>) {
    let (mut last, mut step, mut behind) = (known, 1u32, None);
    let mut goes_on = |frame| {
        let read = FrameHeader::read(wal, page_size, frame).ok();
        let goes_on = read.is_some_and(|header| header.salts == salts);
        if !goes_on {
            // Read once: by a second time the generation may have come so far.
            behind = read;
        }
        goes_on
    };
    while goes_on(last.saturating_add(step)) {
        last = last.saturating_add(step);
        step = step.saturating_mul(2);
    }
    while step > 1 {
        step /= 2;
        if goes_on(last.saturating_add(step)) {
            last = last.saturating_add(step);
        }
    }
    (last, behind)
}

/// True if the first generation was in the file before the second. Each restart adds one to the first
/// salt; a writer that finds no WAL takes random ones, and what it leaves when it dies is no older.
fn is_older(first: Salts, second: Salts) -> bool {
    const RESTARTS_MAX: u32 = 1 << 16;
    (1..=RESTARTS_MAX).contains(&second.0.wrapping_sub(first.0))
}

/// True if the file's header names this generation.
fn is_of<R: ReadAt + ?Sized>(wal: &R, salts: Salts) -> bool {
    WalHeader::read(wal).is_some_and(|header| header.salts == salts)
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
