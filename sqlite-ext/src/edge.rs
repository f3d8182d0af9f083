//! Gives the sealer access to a database.

use std::path::PathBuf;

use walferry::border::{Border, Reader, Way};
use walferry::units::Salts;
use walferry::wal::WalIndex;
use walferry::wal::evidence::{Guard, Restart};

use crate::alone::AloneReader;
use crate::api::{self, BaseVfs, OwnConnection};
use crate::ffi;
use crate::inside;
use crate::pin::Pin;
use crate::pinned_reader::PinnedReader;
use crate::reader::SnapshotReader;
use crate::registry::{self, Shimmed, find};

/// The sealer's access to one database.
pub struct Edge {
    pub(crate) path: PathBuf,
    pub(crate) vfs: BaseVfs,
    /// Number of the replication among those of the database.
    pub(crate) number: usize,
}

impl Edge {
    /// Runs a checkpoint on a connection of our own. Returns `true` if the checkpoint was not busy;
    /// `checkpoint` returns the first column of SQLite's answer. Does nothing if another file has replaced
    /// the database, the WAL or the wal-index: the three do not belong together any more.
    fn keep(
        &self,
        checkpoint: impl FnOnce(&OwnConnection, &Shimmed) -> Result<Option<String>, String>,
    ) -> std::io::Result<bool> {
        let api = api::api().ok_or_else(|| std::io::Error::other("SQLite is not there"))?;
        // Entered before, and left after, the drop of `shimmed`, which may close the connection.
        let _inside = inside::in_sqlite().ok_or_else(inside::shut_down)?;
        let Some(shimmed) = find(&self.path) else { return Ok(false) };
        if ffi::stands_above(api) {
            // The connection would bypass the VFS that stands above.
            return Ok(false);
        }
        let mut keeper = shimmed.keeper.lock();
        // `is_in_place` handles a replaced file, and takes a lock that comes before SQLite. After the last
        // close, no later close would close this connection, so none is opened then.
        let here = || shimmed.is_open() && shimmed.is_where_it_was() && shimmed.has_its_wal();
        if shimmed.is_asked_for() || !here() {
            return Ok(false);
        }
        let keeper = match &mut *keeper {
            Some(keeper) => keeper,
            none => {
                let opened = OwnConnection::open(api, self.vfs.0, &self.path);
                let opened = opened.map_err(std::io::Error::other)?;
                // Checked again before the connection reads: if the file is another one, SQLite would
                // truncate the wal-index.
                if !here() {
                    return Ok(false);
                }
                none.insert(opened)
            }
        };
        let busy = checkpoint(keeper, &shimmed).map_err(std::io::Error::other)?;
        Ok(busy.as_deref() == Some("0"))
    }
}

impl Border for Edge {
    fn hold(&self, hold: bool) {
        let Some(shimmed) = find(&self.path) else { return };
        let held = shimmed.holds.set(self.number, hold);
        let Some(_inside) = inside::in_sqlite() else { return };
        shimmed.repin_in_time();
        if let Some(pin) = shimmed.pin.lock().as_mut() {
            match held {
                true if shimmed.may_take_slots() => pin.hold_slot(),
                // `Shimmed::hold_again` takes the slot after the writer's request.
                true => {}
                false => pin.drop_slot(),
            }
        }
    }

    fn wal_index(&self) -> Option<WalIndex> {
        find(&self.path)?.index()
    }

    fn guard(&self) -> Option<Guard> {
        find(&self.path)?.guard()
    }

    fn frame_pages(&self, index: &WalIndex, first: u32, last: u32) -> Option<Vec<u32>> {
        let shimmed = find(&self.path)?;
        let _inside = inside::in_sqlite()?;
        shimmed.pin.lock().as_mut()?.frame_pages(index, first, last)
    }

    fn checkpoint(&self) -> std::io::Result<bool> {
        self.keep(|keeper, _| keeper.checkpoint(c"PRAGMA main.wal_checkpoint(PASSIVE)"))
    }

    fn empty_wal(&self) -> std::io::Result<bool> {
        self.keep(|keeper, shimmed| {
            let Some(before) = shimmed.index() else { return Ok(None) };
            let database = &shimmed.database;
            // The sealer may look at the WAL meanwhile, and then waits for the outcome.
            database.restart_begins();
            let empty = || keeper.checkpoint(c"PRAGMA main.wal_checkpoint(TRUNCATE)");
            let busy = shimmed.ask_for_slots(empty);
            shimmed.hold_again();
            if busy.as_ref().is_ok_and(|busy| busy.as_deref() == Some("0")) {
                // A commit since `before` was read shows in `iChange`, and then there is no `Restart`.
                let guard = shimmed.guard();
                let after = shimmed.index();
                let restart = after.and_then(|after| Restart::between(&before, &after, guard));
                database.restarted(restart);
            } else {
                database.restart_failed();
            }
            busy
        })
    }

    fn forget_size(&self) {
        let Some(shimmed) = find(&self.path) else { return };
        let Some(_inside) = inside::in_sqlite() else { return };
        if let Some(pin) = shimmed.pin.lock().as_ref()
            && shimmed.may_take_slots()
        {
            pin.forget_size();
        }
    }

    fn copied(&self) -> Option<u32> {
        let shimmed = find(&self.path)?;
        shimmed.pin.lock().as_ref().map(Pin::copied)
    }

    fn hold_checkpoints(&self, hold: bool) -> bool {
        let Some(shimmed) = find(&self.path) else { return false };
        let Some(_inside) = inside::in_sqlite() else { return false };
        shimmed.pin.lock().as_mut().is_some_and(|pin| pin.hold_checkpoints(hold))
    }

    fn give_way(&self, captured: (Salts, u32), tail: u32) -> Way {
        let Some(shimmed) = find(&self.path) else { return Way::Shut };
        let Some(_inside) = inside::in_sqlite() else { return Way::Shut };
        let mut pin = shimmed.pin.lock();
        if !shimmed.holds.any() || !shimmed.may_take_slots() {
            return Way::Shut;
        }
        pin.as_mut().map_or(Way::Shut, |pin| pin.give_way(captured, tail))
    }

    fn take_back(&self) -> bool {
        let Some(shimmed) = find(&self.path) else { return true };
        let Some(_inside) = inside::in_sqlite() else { return false };
        let mut pin = shimmed.pin.lock();
        pin.as_mut().is_none_or(Pin::take_back)
    }

    fn is_in_place(&self) -> bool {
        let Some(shimmed) = find(&self.path) else { return true };
        if shimmed.is_where_it_was() {
            return !shimmed.is_orphaned();
        }
        // Taken before SQLite is entered, as in a fork: a fork takes this lock, and then keeps this thread
        // out of SQLite.
        let renewal = registry::renewal();
        let _inside = inside::in_sqlite();
        shimmed.orphan_in(&renewal);
        false
    }

    fn open_short_reader(&self, makes_room: bool) -> std::io::Result<Box<dyn Reader>> {
        if let Some(shimmed) = find(&self.path) {
            let _turn = shimmed.walks.lock();
            if !shimmed.is_asked_for()
                && let Some(reader) = PinnedReader::begin(&shimmed, makes_room)
            {
                return Ok(Box::new(reader));
            }
        }
        self.open_reader()
    }

    fn open_reader(&self) -> std::io::Result<Box<dyn Reader>> {
        let shimmed = find(&self.path);
        // No connection gets exclusive use of the database while a walk begins.
        let _turn = shimmed.as_ref().map(|shimmed| shimmed.walks.lock());
        let alone = shimmed.as_ref().and_then(|shimmed| shimmed.alone.lock().clone());
        if let Some(handle) = alone {
            return Ok(Box::new(AloneReader::begin(handle)?));
        }
        if shimmed.as_ref().is_some_and(|shimmed| shimmed.is_asked_for()) {
            return Err(std::io::Error::other("a connection asks for it to itself"));
        }
        let api = api::api().ok_or_else(|| std::io::Error::other("SQLite is not there"))?;
        Ok(Box::new(SnapshotReader::begin(api, self.vfs, &self.path)?))
    }
}
