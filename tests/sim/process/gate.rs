//! What an application's thread may call (`src/database.rs`): publishing commits, and the gate.

use walferry::wal::WalIndex;

use super::{Attach, Control, Gate, Transition};
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
        shared.published = attach.index;
        shared.captured = None;
        shared.grant = None;
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
    pub fn detached(&mut self, cx: &mut Cx, p: usize, clean: bool) -> Result<(), Stop> {
        let clean = clean.then(|| self.db.fingerprint());
        let shared = &mut sh!(self, p);
        shared.captured = None;
        shared.transitions.push_back(Transition::Detached(clean));
        self.sealer_is_quicker(cx, p)?;
        self.control(cx, p, Control::Detached);
        Ok(())
    }

    /// The write lock is about to be given up.
    pub fn publish(&mut self, cx: &mut Cx, p: usize) {
        let (index, head) = (self.db.index, self.db.head());
        if index.is_none() || !self.procs[p].attached || sh!(self, p).published == index {
            return;
        }
        let shared = &mut sh!(self, p);
        shared.published = index;
        shared.seqs.push(head);
        shared.unreported_since.get_or_insert(cx.now);
        if let Some(replica) = &mut self.procs[p].replica {
            replica.awake = true;
        }
        self.ring(cx, p);
    }

    /// The gate: may the WAL, complete up to `index`, be overwritten?
    pub fn may_restart(&mut self, cx: &mut Cx, p: usize, index: WalIndex) -> Result<bool, Stop> {
        if cx.bug == Bug::GateOpenEarly && self.open_early(p, index) {
            return Ok(true);
        }
        let reached = self.wait_captured(cx, p, index)?;
        if reached {
            sh!(self, p).grant = Some((index.salts, index.max_frame));
        }
        Ok(reached)
    }

    /// The planted mistake: it is said to be captured, and is not.
    fn open_early(&mut self, p: usize, index: WalIndex) -> bool {
        let wal = self.db.open_wal();
        let Some(replica) = &mut self.procs[p].replica else { return false };
        let (Some(wal), Cursor::At(_)) = (wal, replica.cursor) else { return false };
        let size = self.db.page_size();
        let frame =
            walferry::wal::FrameHeader::read(wal.borrow().as_slice(), size, index.max_frame)
                .unwrap();
        let (salts, checksum) = (index.salts, frame.checksum);
        let at = walferry::units::WalPosition { salts, frame: index.max_frame, checksum };
        replica.cursor = Cursor::At(at);
        sh!(self, p).grant = Some((index.salts, index.max_frame));
        true
    }

    /// Waits until everything up to `index` is captured.
    pub fn wait_captured(&mut self, cx: &mut Cx, p: usize, index: WalIndex) -> Result<bool, Stop> {
        if index.max_frame == 0 {
            return Ok(true);
        }
        let head = self.db.head();
        let shared = &mut sh!(self, p);
        if shared.published != Some(index) {
            shared.published = Some(index);
            shared.seqs.push(head);
            shared.unreported_since.get_or_insert(cx.now);
        }
        for asked in [false, true] {
            let fenced = self.is_fenced(p);
            let shared = &mut sh!(self, p);
            if shared.gate == Gate::Open && !shared.transitions.is_empty() && !fenced {
                return Err(Stop::Broken(
                    "the gate is open for a WAL that nobody looked at".into(),
                ));
            }
            if shared.gate == Gate::Open || shared.captured == Some((index.salts, index.max_frame))
            {
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
