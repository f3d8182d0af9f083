//! What is found when a database is opened: state, spool and page table, held against each other
//! (`src/sealer/open.rs`).

use walferry::local::spool::Entry;
use walferry::local::state::{Base, State};
use walferry::ltx::{DatabaseChecksum, Decoder, Header};
use walferry::units::{WalPosition, WriterId};

use super::{ClosedFile, Point};
use crate::bug::Bug;
use crate::disk::{Stop, Stored};
use crate::host::Host;
use crate::world::Cx;

/// What the spool and the state add up to.
pub struct Found {
    pub state: State,
    pub closed: Vec<ClosedFile>,
    pub open: Vec<Entry>,
    pub point: Option<Point>,
    pub position: Option<WalPosition>,
    pub piece: u64,
}

impl Host {
    pub fn read_local(&mut self, cx: &mut Cx) -> Result<Found, Stop> {
        let state = match self.disk.state.clone() {
            Some(Stored::Whole(state)) => state,
            // The log begins anew.
            Some(Stored::Torn) | None => {
                let state = State::new(WriterId(cx.rng.next() | 1), "sim");
                self.born.insert(state.writer);
                state
            }
        };
        if matches!(self.disk.state, Some(Stored::Torn)) {
            self.claimed = None;
        }
        let remembers = |writer| state.writer == writer && state.claimed;
        if !self.claimed.is_none_or(remembers) {
            return Err(Stop::Broken("that the log is ours was forgotten".into()));
        }
        let base = state.base.or(state.image.map(|image| image.base));
        self.disk.table.set_commit(base.map_or(0, |base| base.commit));
        let Some(base) = state.base else {
            for entry in self.disk.scan(cx, 0)? {
                self.disk.remove(&entry)?;
            }
            if state.image.is_none() {
                self.disk.set_commit(0)?;
            }
            let (closed, open) = (Vec::new(), Vec::new());
            return Ok(Found { state, closed, open, point: None, position: None, piece: 0 });
        };
        let mut walk = Walk {
            point: Point::of(&base),
            expected: DatabaseChecksum::from_stored(base.checksum),
            position: base.position.map(WalPosition::from),
            piece: base.piece,
            broken: false,
        };
        let (mut closed, mut open) = (Vec::new(), Vec::new());
        for entry in self.disk.scan(cx, base.piece)? {
            match self.follow_spool(cx, &mut walk, &entry)? {
                Ok(header) => match entry.txid {
                    Some(_) => closed.push(closed_file(entry, &header)),
                    None => open.push(entry),
                },
                Err(why) => {
                    cx.log(format_args!("host {}: {}: {why}", self.id, entry.file_name()));
                    walk.broken = true;
                    // Its number will be another's: it is set aside.
                    if cx.bug != Bug::UnusableKept {
                        self.disk.remove(&entry)?;
                    }
                }
            }
        }
        if walk.broken {
            walk.position = None;
        }
        let proven = self.disk.table.checksum() == walk.expected;
        if !proven {
            cx.log(format_args!("host {}: the page table does not fit", self.id));
        }
        let point = (proven || cx.bug == Bug::TxidOnly).then_some(walk.point);
        Ok(Found { state, closed, open, point, position: walk.position, piece: walk.piece })
    }

    fn follow_spool(
        &mut self,
        cx: &Cx,
        walk: &mut Walk,
        entry: &Entry,
    ) -> Result<Result<Header, String>, Stop> {
        if walk.broken {
            return Ok(Err("a file before it is not usable".into()));
        }
        if entry.pieces.0 != walk.piece + 1 {
            return Ok(Err(format!("piece {} is missing", walk.piece + 1)));
        }
        if entry.txid.is_some_and(|txid| txid != walk.point.txid.next()) {
            return Ok(Err(format!("transaction {} is missing", walk.point.txid.next())));
        }
        let bytes = self.disk.read(entry).expect("the spool was just listed").clone();
        if cx.bug == Bug::SpoolNotRead {
            return Ok(Err("it is not looked at".into()));
        }
        let header = match Decoder::new(bytes.as_slice()) {
            Ok(decoder) => *decoder.header(),
            Err(error) => return Ok(Err(error.to_string())),
        };
        let Some(tag) = header.tag else {
            return Ok(Err("it is not a file of walferry's".into()));
        };
        if header.page_size != walk.point.page_size {
            return Ok(Err("it is of another page size".into()));
        }
        self.disk.write()?;
        if let Err(error) = self.disk.table.apply(&bytes)
            && cx.bug != Bug::TornSpoolBelieved
        {
            return Ok(Err(error.to_string()));
        }
        walk.expected = tag.post_apply;
        if cx.bug == Bug::TornSpoolBelieved {
            walk.expected = self.disk.table.checksum();
        }
        walk.position = entry.position;
        walk.piece = entry.pieces.1;
        if let Some(txid) = entry.txid {
            walk.point = Point {
                txid,
                checksum: tag.post_apply,
                timestamp: header.timestamp.0,
                ..walk.point
            };
        }
        Ok(Ok(header))
    }
}

/// Follows the spool's files from the base on.
struct Walk {
    point: Point,
    expected: DatabaseChecksum,
    position: Option<WalPosition>,
    piece: u64,
    broken: bool,
}

/// The point that a closed file makes, by its own header.
fn closed_file(entry: Entry, header: &Header) -> ClosedFile {
    let base = Base {
        txid: header.max_txid.0,
        piece: entry.pieces.1,
        page_size: header.page_size.get(),
        commit: header.commit,
        checksum: header.tag.map_or(0, |tag| tag.post_apply.get()),
        timestamp: header.timestamp.0,
        position: entry.position.map(Into::into),
    };
    ClosedFile { entry, base, seq: 0 }
}
