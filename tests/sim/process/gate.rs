//! What an application's thread may call (`src/database.rs`): publishing commits, and the gate.

use walferry::wal::WalIndex;
use walferry::wal::evidence::Proven;

use super::{Attach, Control, Gate, Transition, WalEnd};
use crate::bug::Bug;
use crate::disk::Stop;
use crate::host::{Host, sh};
use crate::sealer::Cursor;
use crate::world::Cx;

/// How long the gate waits for the sealer.
const GATE_TIMEOUT: u64 = 1000;

impl Host {
    /// Tells the sealer, and rings.
    pub fn control(&mut self, cx: &mut Cx, p: usize, control: Control) {
        self.procs[p].controls.push_back(control);
        self.ring(cx, p);
    }

    pub fn ring(&mut self, cx: &mut Cx, p: usize) {
        let delay = match cx.rng.below(100) {
            0..75 => 0,
            75..95 => cx.rng.below(20),
            _ => cx.rng.below(if cx.calm { 5 } else { 2500 }),
        };
        let process = &mut self.procs[p];
        let at = cx.now + delay;
        process.wake_at = Some(process.wake_at.map_or(at, |known| known.min(at)));
    }

    /// The WAL was opened and its index read for the first time, which ended with commit `head`.
    pub fn attached(
        &mut self,
        cx: &mut Cx,
        p: usize,
        attach: Attach,
        head: usize,
    ) -> Result<(), Stop> {
        let shared = &mut sh!(self, p);
        shared.transitions.push_back(Transition::Attached(attach));
        shared.published = shared.published.or(attach.index);
        shared.captured = None;
        shared.restart = None;
        shared.seqs.push(head);
        if cx.bug != Bug::GateLeftOpen && shared.gate == Gate::Open {
            shared.gate = Gate::Capturing;
        }
        self.meanwhile(cx, p);
        self.sealer_is_quicker(cx, p)?;
        self.control(cx, p, Control::Attached);
        Ok(())
    }

    /// The sealer comes by before it is told.
    fn sealer_is_quicker(&mut self, cx: &mut Cx, p: usize) -> Result<(), Stop> {
        let quick = !cx.calm && !cx.within && cx.rng.chance(8);
        if quick && self.procs[p].replica.is_some() { self.work(cx, p) } else { Ok(()) }
    }

    /// Capture cannot vouch for completeness any more.
    pub fn diverged(&mut self, cx: &mut Cx, p: usize, why: &'static str) {
        sh!(self, p).diverged.get_or_insert(why);
        self.control(cx, p, Control::Capture);
    }

    /// Nobody of this process has the WAL any more.
    pub fn detached(&mut self, cx: &mut Cx, p: usize, end: Option<WalEnd>) -> Result<(), Stop> {
        let shared = &mut sh!(self, p);
        shared.captured = None;
        shared.transitions.push_back(Transition::Detached(end));
        self.sealer_is_quicker(cx, p)?;
        self.control(cx, p, Control::Detached);
        Ok(())
    }

    /// The write lock is about to be given up.
    pub fn publish(&mut self, cx: &mut Cx, p: usize) {
        let index = self.wal_index(p);
        if index.is_none() || !self.procs[p].attached || sh!(self, p).published == index {
            return;
        }
        self.note_published(cx.now, p, index);
        if let Some(replica) = &mut self.procs[p].replica {
            replica.awake = true;
        }
        self.ring(cx, p);
    }

    /// The wal-index was seen like this.
    pub fn note_published(&mut self, now: u64, p: usize, index: Option<WalIndex>) {
        let head = self.db.head();
        let shared = &mut sh!(self, p);
        if index.is_some() && shared.published != index {
            shared.published = index;
            shared.seqs.push(head);
            shared.unreported_since.get_or_insert(now);
        }
    }

    /// The gate: may the WAL, complete up to `index`, be overwritten? The caller holds the write lock.
    pub fn may_restart(&mut self, cx: &mut Cx, p: usize, index: WalIndex) -> Result<bool, Stop> {
        if cx.bug == Bug::GateOpenEarly && self.open_early(p, index) {
            return Ok(true);
        }
        self.wait_for_capture(cx, p, index, true)
    }

    /// The planted mistake: it is said to be captured, and is not.
    fn open_early(&mut self, p: usize, index: WalIndex) -> bool {
        let wal = self.db.open_wal();
        let Some(replica) = &mut self.procs[p].replica else { return false };
        let (Some(wal), Cursor::At(_)) = (wal, replica.cursor) else { return false };
        let size = self.db.page_size();
        let checksum =
            walferry::wal::checksum_at(wal.borrow().as_slice(), size, index.max_frame).unwrap();
        let salts = index.salts;
        let at = walferry::units::WalPosition { salts, frame: index.max_frame, checksum };
        replica.cursor = Cursor::At(Proven::end_of(&index, at, None));
        true
    }

    /// Waits until everything committed so far is captured.
    pub fn wait_captured(&mut self, cx: &mut Cx, p: usize) -> Result<bool, Stop> {
        match self.wal_index(p) {
            Some(index) if self.procs[p].attached => self.wait_for_capture(cx, p, index, false),
            _ => Ok(true),
        }
    }

    /// With `still`, the caller holds the write lock, and capture must stand at `index` itself.
    fn wait_for_capture(
        &mut self,
        cx: &mut Cx,
        p: usize,
        index: WalIndex,
        still: bool,
    ) -> Result<bool, Stop> {
        let index = self.wal_index(p).unwrap_or(index);
        self.note_published(cx.now, p, Some(index));
        let seq = sh!(self, p).seq();
        for asked in [false, true] {
            let fenced = self.is_fenced(p);
            let shared = &mut sh!(self, p);
            if shared.gate == Gate::Open && !shared.transitions.is_empty() && !fenced {
                return Err(Stop::Broken(
                    "the gate is open for a WAL that nobody looked at".into(),
                ));
            }
            let all = !still && shared.captured.is_some() && shared.captured_seq >= seq;
            if shared.gate == Gate::Open || all || shared.has_captured(cx.bug, &index) {
                return Ok(true);
            }
            if shared.gate == Gate::Shut {
                return Ok(false);
            }
            if asked || self.procs[p].busy_until > cx.now + GATE_TIMEOUT {
                // Time is up: nobody else waits in vain.
                sh!(self, p).gate = Gate::Shut;
                return Ok(false);
            }
            self.control(cx, p, Control::Capture);
            self.procs[p].busy_until = cx.now;
            self.run_sealer(cx, p)?;
        }
        Ok(false)
    }

    /// Waits until everything committed before the call is at the store; the waiting is judged by
    /// the checks, which know what each count stands for.
    pub fn wait(&mut self, cx: &mut Cx, p: usize, hurry: bool) {
        self.publish(cx, p);
        let shared = &sh!(self, p);
        if shared.acked_seq < shared.seq() {
            self.control(cx, p, if hurry { Control::Hurry } else { Control::Capture });
        }
    }
}
