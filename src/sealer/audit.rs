//! The audit compares the database with the page table, although nothing gives a reason to.
//!
//! All other work follows commits. A page that was captured wrong once would stay wrong at the replica until
//! its next write. The audit reads every page.
//!
//! The audit reads in slices. Each slice is one state, read in a transaction no longer than the slice, so that
//! no checkpoint waits longer. A page that differs is an error of walferry's, or the file was written past
//! SQLite. In both cases a comparison of the whole database follows, and its result is shipped.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::capture::{Cursor, Stop};
use super::replica::{LocalJob, Purpose, Replica};
use super::scan::Scan;
use crate::engine::Phase;
use crate::engine::audit::{Audit, Options};
use crate::finding::Finding;
use crate::local::state::State;
use crate::ltx;
use crate::settings::Settings;
use crate::status::Audited;
use crate::units::Pgno;

/// Most differing pages that are named.
const NAMED: usize = 20;
/// Bytes for which a frame of the WAL counts: the length of its header.
const FRAME_COST: u64 = 24;
/// Failed attempts in a row after which a warning is logged.
const FAILURES_TOLD: u32 = 60;

/// Result of a slice.
struct Slice {
    bytes: u64,
    pages: u64,
    /// The page behind the slice; `None` after the last page.
    next: Option<Pgno>,
    differ: Vec<Pgno>,
    /// Size of the database in pages, and the page table's size, if the two differ.
    sizes: Option<(u32, u32)>,
}

/// Reason why a slice was not compared.
enum Cannot {
    /// The slice cannot be compared now.
    Yet(String),
    /// The slice made room for a connection that wanted its read slot.
    MadeRoom,
    /// Capture stopped.
    Capture(Stop),
}

impl From<Stop> for Cannot {
    fn from(stop: Stop) -> Cannot {
        Cannot::Capture(stop)
    }
}

/// Returns the audits of a database, as its state records them.
pub(super) fn of(settings: &Settings, now: u64, state: Option<&State>) -> Audit {
    let interval = u64::try_from(settings.audit_interval.as_millis()).unwrap_or(u64::MAX);
    let options = Options { interval, rate: settings.audit_rate };
    let wall = crate::clock::wall().0;
    let age = state.and_then(|state| state.audited).map_or(0, |at| wall.saturating_sub(at));
    let next = state.and_then(|state| state.audit_next);
    Audit::new(options, now, u64::try_from(age).unwrap_or(0), next)
}

impl Replica {
    /// Continues the audit that an earlier process began.
    pub(super) fn resume_audit(&mut self) {
        let now = self.process.now();
        let state = self.local.as_ref().map(|local| &local.state);
        self.audit = of(self.database.settings(), now, state);
        if let Some(local) = &mut self.local {
            // The first audit of a lineage is due after one interval.
            local.state.audited.get_or_insert(crate::clock::wall().0);
        }
    }

    /// Returns the time at which the next slice is due, if one can be compared.
    pub(super) fn audit_due(&self) -> Option<u64> {
        let due = self.audit.due().filter(|_| self.may_audit())?;
        Some(due.max(self.writers_turn().unwrap_or(0)))
    }

    /// Returns the time until which no slice is read, so that a writer can restart the WAL.
    fn writers_turn(&self) -> Option<u64> {
        let now = self.process.now();
        self.database.with(|shared| shared.turn.until(now))
    }

    /// True if the page table is known to match a position in the current WAL.
    fn may_audit(&self) -> bool {
        self.attached
            && self.point.is_some()
            && self.local.is_some()
            && matches!(self.job, LocalJob::None)
            && self.cursor != Cursor::Unknown
            && !self.has_let_go()
            && self.engine.status().phase == Phase::Streaming
    }

    /// Compares the next slice, if it is due.
    pub(super) fn audit(&mut self) {
        let now = self.process.now();
        let may = self.dead.is_none() && self.audit.is_due(now) && self.may_audit();
        if !may || self.writers_turn().is_some() {
            return;
        }
        if self.audit.next().is_none()
            && let Some(local) = &mut self.local
        {
            local.state.audited = Some(crate::clock::wall().0);
            // A process that continues this audit starts it from page 1, unless a later save names another
            // page.
            local.state.audit_next = Some(1);
        }
        self.audit.begin(now);
        let first = self.audit.next().unwrap_or(1);
        let result = self.audit_slice(first);
        let now = self.process.now();
        match result {
            Ok(slice) => self.audited(&slice, now),
            Err(Cannot::Yet(why)) => {
                let path = self.database.label();
                log::debug!("{path}: pages from {first} on are not compared yet: {why}");
                if self.audit.put_off(now) == FAILURES_TOLD {
                    log::warn!("{path}: its audit cannot go on with page {first}: {why}");
                }
            }
            Err(Cannot::MadeRoom) => self.audit.made_room(now),
            Err(Cannot::Capture(stop)) => {
                self.audit.put_off(now);
                self.stopped(stop);
            }
        }
    }

    fn audited(&mut self, slice: &Slice, now: u64) {
        let differed = slice.differ.len() as u64 + u64::from(slice.sizes.is_some());
        let next = slice.next.filter(|_| differed == 0);
        self.audit.slice_done(slice.bytes, slice.pages, next.unwrap_or(1), now);
        if let Some(local) = &mut self.local {
            local.state.audit_next = next;
        }
        if next.is_some() {
            return;
        }
        let pages = self.audit.finished(now);
        if differed > 0 {
            // Saved before the finding is reported: no commit points to it, and the next audit may be a day
            // away.
            self.remember(Finding::AuditDiffers);
        } else if let Some(local) = &mut self.local
            && let Err(error) = local.save(false)
        {
            log::error!("{}: {error}", self.database.label());
        }
        let path = self.database.label();
        if differed == 0 {
            log::debug!("{path}: audited, {pages} pages are as they were captured");
        } else {
            log::error!(
                "{path}: {} not as captured; please report it: this is a fault of walferry's, unless somebody wrote to the file past SQLite",
                named(slice)
            );
            self.diverge(Finding::AuditDiffers);
        }
        // Set last, so that an observer that sees the count also sees the finding.
        let at = crate::clock::wall();
        self.database.with(|shared| {
            let before = shared.report.audit.map_or(0, |audit| audit.differed);
            let differed = before.saturating_add(differed);
            shared.report.audit = Some(Audited { at, pages, differed });
        });
    }

    /// Compares the pages of one slice, from `first` on, as they are in one state of the database.
    fn audit_slice(&mut self, first: Pgno) -> Result<Slice, Cannot> {
        let not_yet = |why: &str| Cannot::Yet(why.to_string());
        // Capture runs first, so that the read transaction of the slice is short.
        self.capture(Purpose::Gate)?;
        let Cursor::At(end) = self.cursor else { return Err(not_yet("capture lost its place")) };
        if !self.frames.is_empty() {
            return Err(not_yet("not all of it is captured"));
        }
        let (salts, frame) = end.place();
        let mut scan = self.open_slice(first, self.audit.makes_room()).map_err(Cannot::Yet)?;
        let snapshot = scan.snapshot();
        let index = snapshot.index.ok_or_else(|| not_yet("there is no WAL"))?;
        if salts != index.salts || frame > index.max_frame {
            return Err(not_yet("capture stands elsewhere"));
        }
        // Pages committed since the captured position are not in the page table.
        let mut later = BTreeSet::new();
        if frame < index.max_frame {
            let border = self.database.border();
            let (begin, last) = (frame.saturating_add(1), index.max_frame);
            let mut add = |_, pgno| {
                if scan.may_step_to(pgno) {
                    later.insert(pgno);
                }
            };
            let known =
                border.is_some_and(|border| border.each_frame_page(&index, begin, last, &mut add));
            if !known {
                return Err(not_yet("its wal-index cannot be read"));
            }
        }
        let (Some(local), Some(point)) = (&mut self.local, self.point) else {
            return Err(not_yet("the local state is not open"));
        };
        if snapshot.page_size != point.page_size {
            return Err(not_yet("its page size changed"));
        }
        let table = &mut local.table;
        let (mut pages, mut differ) = (0, Vec::new());
        let more = scan.step(|pgno, page| -> Result<(), Stop> {
            pages += 1;
            // Pages by which the database grew since are not in the page table.
            if pgno <= table.commit()
                && !later.contains(&pgno)
                && table.get(pgno)? != Some(ltx::checksum::page(pgno, page))
            {
                differ.push(pgno);
            }
            Ok(())
        });
        let more = match more {
            Ok(more) => more,
            Err(_) if !scan.is_intact() => return Err(Cannot::MadeRoom),
            Err(Stop::Failed(why) | Stop::NoRoom(why)) => return Err(Cannot::Yet(why)),
            Err(stop) => return Err(stop.into()),
        };
        let sizes = (snapshot.page_count, table.commit());
        let sizes = Some(sizes).filter(|(now, known)| now != known && frame == index.max_frame);
        check_generation(&scan)?;
        let read = pages * u64::from(snapshot.page_size.get());
        let bytes = read.saturating_add(u64::from(index.max_frame).saturating_mul(FRAME_COST));
        Ok(Slice { bytes, pages, next: more.then(|| scan.next()), differ, sizes })
    }
}

/// Returns an error if the WAL was restarted or recovered while the slice was read.
fn check_generation(scan: &Scan) -> Result<(), Cannot> {
    if !scan.is_intact() {
        return Err(Cannot::MadeRoom);
    }
    let read = scan.snapshot().index.zip(scan.index_now());
    let same = read.is_some_and(|(then, now)| now.follows(&then));
    if same {
        Ok(())
    } else {
        Err(Cannot::Yet("the WAL was begun anew or recovered while it was read".into()))
    }
}

/// Returns a text that names the differences.
fn named(slice: &Slice) -> String {
    let pages: Vec<String> = slice.differ.iter().take(NAMED).map(Pgno::to_string).collect();
    let more = slice.differ.len().saturating_sub(NAMED);
    let mut text = match pages.len() {
        0 => String::new(),
        1 => format!("page {} is", pages.concat()),
        _ if more > 0 => format!("pages {} and {more} more are", pages.join(", ")),
        _ => format!("pages {} are", pages.join(", ")),
    };
    if let Some((now, known)) = slice.sizes {
        let and = if text.is_empty() { "" } else { ", and " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{and}its size of {now} pages, captured {known}, is");
    }
    text
}
