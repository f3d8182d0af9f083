//! Proves that no commit is missing between a proven position and the WAL as it is now.
//!
//! [`account`] has no state and does no I/O but reads of the WAL. Capture and the simulation both use it.
//! The proof rests on these properties of `wal.c`:
//!
//! - A restart of the WAL changes both salts (`walRestartHdr`: the first grows by one, the second is
//!   random). A new WAL file gets two random salts. Frames with equal salts are of one generation.
//! - A frame's checksum is cumulative (`walEncodeFrame`). A frame that still has the captured checksum
//!   has the same frames before it. For frames without a checksum, [`checksum_at`] computes one.
//! - `iChange` grows by one with each commit (`sqlite3WalFrames`). A restart leaves `iChange` unchanged.
//!   Recovery sets `iChange` to 0 (`walIndexRecover`).
//! - A commit may leave several frames with a commit mark, each a copy of the frame before ([`Commits`]).
//!   A copy counts as a commit only if other evidence shows that no commit is missing.
//! - A process may die after it wrote frames and before it published them in the wal-index. If the next
//!   process to write restarts the WAL, the old generation ends with a transaction that was never
//!   committed. `iChange` does not count that transaction.
//! - A new generation overwrites the file from its first frame on. The frames behind it are still those
//!   of the old generation.
//!
//! If these properties prove nothing, the result is [`Account::NotProven`], and walferry compares the
//! database with the page table.

use std::io;

use super::{
    Commits, FrameHeader, ReadAt, Tail, WalHeader, WalIndex, checksum_at, count_commits, tail,
};
use crate::units::{PageSize, Salts, WalPosition};

/// Number of a period in which a lock of ours keeps all other processes from restarting or removing the
/// WAL. The period ends with the lock. No two periods have the same number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guard(pub u64);

/// A position up to which every commit is captured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proven {
    /// The position. Frame 0 is the start of this generation, with every earlier commit captured.
    pub at: WalPosition,
    /// `iChange` after the position's commit; `None` if only the position is known, as when read from
    /// local state.
    pub change: Option<u32>,
    /// Frame checksum of the wal-index at the position; meaningless without `change`, or at frame 0.
    pub sum: (u32, u32),
    /// Guard under which the wal-index was read at the position.
    pub guard: Option<Guard>,
}

impl Proven {
    /// Returns a position without `iChange` or guard.
    pub fn position(at: WalPosition) -> Proven {
        Proven { at, change: None, sum: (0, 0), guard: None }
    }

    /// Returns the start of the generation with these salts, for when every earlier commit is captured.
    pub fn beginning(salts: Salts, change: u32, guard: Option<Guard>) -> Proven {
        let at = WalPosition { salts, frame: 0, checksum: (0, 0) };
        Proven { at, change: Some(change), sum: (0, 0), guard }
    }

    /// Returns the position at the end of this wal-index.
    pub fn end_of(index: &WalIndex, at: WalPosition, guard: Option<Guard>) -> Proven {
        Proven { at, change: Some(index.change), sum: index.frame_checksum, guard }
    }

    /// Returns salts and frame of the position.
    pub fn place(&self) -> (Salts, u32) {
        (self.at.salts, self.at.frame)
    }

    /// True if this is the position of `index`, with the same `iChange`, if known. Recovery and later
    /// commits can bring back the same place and the same count; the frame checksum tells them apart.
    pub fn is_at(&self, index: &WalIndex) -> bool {
        self.place() == (index.salts, index.max_frame)
            && self.change.is_none_or(|change| self.ends(change, index))
    }

    /// As [`Proven::is_at`], but false if `change` is unknown.
    pub fn is_known_at(&self, index: &WalIndex) -> bool {
        self.change.is_some() && self.is_at(index)
    }

    fn ends(&self, change: u32, index: &WalIndex) -> bool {
        change == index.change && (index.max_frame == 0 || self.sum == index.frame_checksum)
    }

    /// Returns the start of the next generation, after a restart that this process made or allowed.
    /// `None` if this position is not the end of the old generation.
    pub fn restarted(&self, restart: &Restart) -> Option<Proven> {
        let Restart { from, to, guard } = restart;
        self.is_known_at(from).then(|| Proven::beginning(*to, from.change, *guard))
    }
}

/// A restart of the WAL that one thread has seen from both sides, with no commit in between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restart {
    /// Wal-index at the end of the old generation.
    pub from: WalIndex,
    /// Salts of the new generation. A restart leaves `iChange` unchanged.
    pub to: Salts,
    /// Guard held when the new generation was still empty.
    pub guard: Option<Guard>,
}

impl Restart {
    /// Returns the restart between two reads of the wal-index by one thread. `None` if the two differ by
    /// anything but one restart, such as a commit, which `iChange` counts.
    pub fn between(before: &WalIndex, after: &WalIndex, guard: Option<Guard>) -> Option<Restart> {
        let next = after.salts.0 == before.salts.0.wrapping_add(1);
        let empty = after.max_frame == 0 && after.change == before.change;
        (next && empty).then_some(Restart { from: *before, to: after.salts, guard })
    }
}

/// The WAL as it is now.
pub struct Sight<'a, R: ReadAt + ?Sized> {
    /// The wal-index.
    pub index: &'a WalIndex,
    /// The WAL file. Its contents may be older or newer than the index, since the two are not read at once.
    pub wal: &'a R,
    /// Page size of the frames at the position.
    pub page_size: PageSize,
    /// Guard held while the index was read.
    pub guard: Option<Guard>,
}

/// Result of [`account`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Account {
    /// Same generation: the frames behind the position, up to the index's last, hold every commit since.
    Continues,
    /// The WAL was restarted. The tail of the old generation, and all frames of the new one, hold every
    /// commit since.
    Begun {
        /// Frames of the old generation behind the position.
        tail: Tail,
        /// `iChange` at the start of the new generation.
        change: u32,
    },
    /// Index and file are of two moments; the caller must read both again.
    Overtaken,
    /// Commits may be missing.
    NotProven(Gap),
}

/// Reason why commits may be missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gap {
    /// The same generation ends before the position: recovery cut it off.
    WentBack,
    /// The same generation has another frame at the position.
    OtherFrames,
    /// The WAL has another generation, and not every commit is accounted for.
    Restarted,
}

/// Accounts for every commit between `proven` and the WAL as it is now.
///
/// # Errors
/// The WAL cannot be read. A WAL that ends early gives [`Account::Overtaken`] instead.
pub fn account<R: ReadAt + ?Sized>(proven: &Proven, sight: &Sight<'_, R>) -> io::Result<Account> {
    let account = if proven.at.salts == sight.index.salts {
        same(proven, sight)
    } else {
        next(proven, sight)
    };
    // A restart in between may have changed the frames that were read behind the WAL's header.
    let has_begun = || sight.index.max_frame > 0 && !is_of(sight.wal, sight.index.salts);
    match account {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Account::Overtaken),
        Ok(Account::NotProven(Gap::OtherFrames | Gap::Restarted)) if has_begun() => {
            Ok(Account::Overtaken)
        }
        other => other,
    }
}

/// Accounts for commits if the WAL still has the generation of the position.
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
        // The caller captures the generation from its first frame on, so every frame is accounted for.
        return Ok(Account::Continues);
    }
    let there = checksum_at(wal, page_size, at.frame)? == at.checksum;
    Ok(if there { Account::Continues } else { Account::NotProven(Gap::OtherFrames) })
}

/// Accounts for commits if the WAL has another generation than the position.
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
        // The tail may end with a transaction that was never committed, while a copy makes up the count.
        return unproven;
    }
    let held = guard.is_some() && proven.guard == guard;
    let overwritten = || overwritten(at, &left, sight);
    let all = match (grown == found.least, held) {
        // Each counted frame is a commit and the guard rules out recovery, so no commit is missing.
        (true, true) => true,
        (true, false) => overwritten().is_some_and(|n| outcounts_recovery(change, found, n)),
        // Here copies count as commits, and may stand for as many missing commits. If no frame was
        // overwritten, there is no place for missing commits.
        (false, true) => overwritten() == Some(0),
        (false, false) => false,
    };
    if !all {
        return unproven;
    }
    Ok(Account::Begun { tail: left, change: change.wrapping_add(before) })
}

/// Returns the number of commits in the tail of the old generation. `None` if `iChange` has grown by a
/// number that the frames do not explain, or if the tail's share of that number is ambiguous.
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

/// True if no recovery can have happened since the position. The count must fit, and the new generation
/// must have overwritten at most `overwritten` frames of the old one.
///
/// Recovery sets `iChange` to 0. For the count to fit after a recovery, at least `change` more commits
/// must exist. Each of them is either a found frame that looks like a copy, or is not found at all.
/// A commit that is not found had at least one frame that the new generation has overwritten. If the
/// copies and the overwritten frames together are fewer than `change`, no recovery happened.
fn outcounts_recovery(change: u32, found: Commits, overwritten: u32) -> bool {
    change > overwritten.saturating_add(found.doubtful())
}

/// Returns an upper bound for the frames of the old generation, behind those found, that the new
/// generation has overwritten.
///
/// `None` if the file does not show the end of the old generation, as after it was cut off (TRUNCATE
/// checkpoint, `journal_size_limit`).
fn overwritten<R: ReadAt + ?Sized>(
    at: WalPosition,
    left: &Tail,
    sight: &Sight<'_, R>,
) -> Option<u32> {
    if at.frame == 0 {
        // The lengths of the earlier generations are unknown.
        return None;
    }
    let Sight { index, wal, page_size, .. } = *sight;
    let (found, checksum) = if left.frames.is_empty() {
        (at.frame, at.checksum)
    } else {
        (left.frames.last, left.frames.checksum)
    };
    // The new generation may have grown since its index was read.
    let known = found.max(index.max_frame);
    let (reached, behind) = end_of_generation(wal, page_size, index.salts, known);
    let ends = match behind {
        // A frame of a still older generation: the position's generation never reached this place.
        Some(frame) => is_older(frame.salts, at.salts),
        // The file ends with the last found frame of the old generation: it was not cut off.
        None if reached == found && found > index.max_frame => {
            FrameHeader::read(wal, page_size, found)
                .is_ok_and(|frame| frame.salts == at.salts && frame.checksum == checksum)
        }
        None => false,
    };
    ends.then(|| reached.saturating_sub(found))
}

/// Returns the last frame of the generation `salts`, and the header of the frame behind it.
///
/// The frame `known` counts as one of the generation. Its frames are consecutive from there on, since a
/// generation overwrites the file from the front.
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
            // Keep this header: at a second read, the generation may have grown up to here.
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

/// True if the generation `first` was in the file before `second`, by at most 65,536 restarts. Each
/// restart adds one to the first salt.
///
/// A process that finds no WAL takes random salts. If it dies, the frames that it leaves do not count as
/// older.
fn is_older(first: Salts, second: Salts) -> bool {
    const RESTARTS_MAX: u32 = 1 << 16;
    (1..=RESTARTS_MAX).contains(&second.0.wrapping_sub(first.0))
}

/// True if the file's header has these salts.
fn is_of<R: ReadAt + ?Sized>(wal: &R, salts: Salts) -> bool {
    WalHeader::read(wal).is_some_and(|header| header.salts == salts)
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
