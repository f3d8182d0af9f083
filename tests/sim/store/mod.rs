//! The model of an object store, and of the shipper's requests to it (`src/shipper.rs`).
//!
//! What it never does: tear a file, forget one that it confirmed, or let two conditional creates of
//! one name succeed; the trait forbids it that. A file that was sent in part never appears.

mod chores;
mod fate;
mod requests;

use std::collections::{BTreeMap, BTreeSet};

use walferry::engine::{Failure, Head, Verdict};
use walferry::ltx::encode::to_vec;
use walferry::ltx::{FileName, HEADER_LEN, Header, Tag};
use walferry::store::{FileInfo, Key};
use walferry::units::{Level, Salts, Timestamp, Txid, WriterId};

use chores::Chore;
pub use chores::Removed;
use requests::Pending;

/// What is asked.
#[derive(Clone, Debug)]
pub enum Request {
    /// With `claim`, a log of another writer is taken over for this one.
    FindHead {
        claim: Option<Claim>,
    },
    /// The second half of a claim: a file without pages, if there is none of its name.
    TakeOver {
        header: Box<Header>,
        claim: Claim,
    },
    /// The first file of a lineage goes out only if the log ends before it. With `look` the file
    /// before it must be there, if the log has gone on, and with `behind` be the last of level 0 (`Look`
    /// in `src/log_end.rs`).
    Put {
        key: Key,
        bytes: Vec<u8>,
        first: bool,
        look: bool,
        behind: bool,
    },
    Inspect {
        txid: Txid,
        ours: Vec<u8>,
    },
    Confirm {
        key: Key,
        writer: WriterId,
        checksum: u64,
    },
    OpenUpload {
        job: u64,
    },
    CompleteUpload {
        job: u64,
        key: Key,
        bytes: Vec<u8>,
    },
    AbortUpload {
        job: u64,
    },
}

/// A lineage that is to be put behind a log of another.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub writer: WriterId,
    /// The only other lineage whose log it may take, if not any.
    pub from: Option<WriterId>,
}

impl Claim {
    fn takes(self, other: WriterId) -> bool {
        other != self.writer && self.from.is_none_or(|from| from == other)
    }
}

/// What comes back.
#[derive(Clone, Debug)]
pub enum Answer {
    Head(Option<Head>),
    /// The log's end is a file that takes it over for us.
    Claimed(Head),
    PutDone,
    PutRefused,
    Inspected {
        txid: Txid,
        verdict: Verdict,
    },
    Confirmed {
        arrived: bool,
    },
    Upload {
        job: u64,
        outcome: Upload,
    },
    Failed(Failure),
    History(walferry::history::Event),
}

/// How an upload goes on, and ends.
#[derive(Clone, Debug)]
pub enum Upload {
    Opened,
    Done,
    Refused,
    Failed(Failure),
}

/// Who asks: a host, and which life of its processes.
pub type Client = (usize, u64);

#[derive(Default)]
pub struct Store {
    pub files: BTreeMap<Key, Vec<u8>>,
    /// Files in the order in which they appeared, since somebody last looked.
    pub arrived: Vec<Key>,
    /// When each file appeared, and what time it is.
    stored: BTreeMap<Key, u64>,
    now: u64,
    pending: Vec<Pending>,
    chores: Vec<Chore>,
    /// Files that were deleted since somebody last looked.
    pub removed: Vec<Removed>,
    /// Uploads that are under way.
    uploads: BTreeSet<(Client, u64)>,
    /// Longest time that a request may take effect after its answer.
    pub late_max: u64,
    pub down_until: u64,
    pub denied: bool,
    pub faults: bool,
}

impl Store {
    fn perform(&mut self, request: &Request) -> Option<Answer> {
        let upload = |job: &u64, outcome| Some(Answer::Upload { job: *job, outcome });
        match request {
            // The levels are listed one after the other: see `listed`.
            Request::FindHead { .. } => Some(Answer::Head(self.head(&[Level::L0]))),
            Request::TakeOver { header, .. } => {
                let key = claim_key(header);
                self.create(key, &to_vec(header, []).unwrap());
                let there = self::header(&self.files[&key]);
                (there.writer == header.writer).then(|| Answer::Claimed(head_of(&there)))
            }
            Request::Put { key, bytes, first, look, behind } => {
                let last = FileName::single(key.name.min.prev());
                let last = self.files.contains_key(&Key { level: Level::L0, name: last });
                let l0 = self.files.keys().filter(|key| key.level == Level::L0);
                let later = *behind && l0.map(|key| key.name.max).max() >= Some(key.name.min);
                let gone_on = |head: &Head| {
                    let (next, ours) = (key.name.min, header(bytes).writer);
                    let beyond = head.txid > next || head.txid == next && head.writer != ours;
                    let free = !self.files.contains_key(key);
                    beyond && free && (*first || later || (*look && !last))
                };
                let head = self.head(&Level::all().collect::<Vec<_>>());
                if let Some(head) = head.filter(gone_on) {
                    let (txid, writer) = (key.name.min, head.writer);
                    return Some(Answer::Inspected { txid, verdict: Verdict::Foreign { writer } });
                }
                Some(if self.create(*key, bytes) { Answer::PutDone } else { Answer::PutRefused })
            }
            Request::Inspect { txid, ours } => {
                Some(Answer::Inspected { txid: *txid, verdict: self.inspect(*txid, ours) })
            }
            Request::Confirm { key, writer, checksum } => {
                let header = self.files.get(key).map(|bytes| header(bytes));
                let arrived = header.is_some_and(|header| {
                    header.writer == *writer
                        && header.tag.is_some_and(|tag| tag.post_apply.get() == *checksum)
                });
                Some(Answer::Confirmed { arrived })
            }
            Request::OpenUpload { job } => upload(job, Upload::Opened),
            Request::CompleteUpload { job, key, bytes } => {
                let created = self.create(*key, bytes);
                upload(job, if created { Upload::Done } else { Upload::Refused })
            }
            Request::AbortUpload { job } => {
                let message = "the image was given up".to_string();
                upload(job, Upload::Failed(Failure::Local { message }))
            }
        }
    }

    fn create(&mut self, key: Key, bytes: &[u8]) -> bool {
        if self.files.contains_key(&key) {
            return false;
        }
        self.files.insert(key, bytes.to_vec());
        self.stored.insert(key, self.now);
        self.arrived.push(key);
        true
    }

    /// As the shipper finds it: the newest over these levels, of equals the lowest level's.
    fn head(&self, levels: &[Level]) -> Option<Head> {
        let files = self.files.iter().filter(|(key, _)| levels.contains(&key.level));
        let mut newest: Option<(Key, &Vec<u8>)> = None;
        for (key, bytes) in files {
            if newest.is_none_or(|(other, _)| other.name.max < key.name.max) {
                newest = Some((*key, bytes));
            }
        }
        newest.map(|(_, bytes)| head_of(&header(bytes)))
    }

    fn inspect(&self, txid: Txid, ours: &[u8]) -> Verdict {
        let key = Key { level: Level::L0, name: FileName::single(txid) };
        match self.files.get(&key) {
            None => Verdict::Missing,
            Some(bytes) if bytes.as_slice() == ours => Verdict::Ours,
            Some(bytes) => Verdict::Foreign { writer: header(bytes).writer },
        }
    }

    pub fn listing(&self) -> Vec<FileInfo> {
        let info = |(key, bytes): (&Key, &Vec<u8>)| FileInfo {
            key: *key,
            len: bytes.len() as u64,
            modified: header(bytes).timestamp,
            stored: Timestamp(self.stored[key].cast_signed()),
        };
        self.files.iter().map(info).collect()
    }
}

fn head_of(header: &Header) -> Head {
    let post_apply = header.tag.map(|tag| tag.post_apply);
    Head { txid: header.max_txid, post_apply, timestamp: header.timestamp, writer: header.writer }
}

fn claim_key(header: &Header) -> Key {
    Key { level: Level::L0, name: FileName::single(header.max_txid) }
}

/// What takes a log over behind `last`: a file that leaves the database as it is (`src/claim.rs`).
fn unchanged(last: &Header, writer: WriterId) -> Header {
    let txid = last.max_txid.next();
    Header {
        min_txid: txid,
        max_txid: txid,
        timestamp: Timestamp(last.timestamp.0 + 1),
        wal_offset: 32,
        wal_size: 0,
        salts: Salts(0, 0),
        writer,
        tag: last.tag.map(|tag| Tag {
            pre_apply: tag.post_apply,
            post_apply: tag.post_apply,
            full_image: false,
        }),
        ..*last
    }
}

pub fn header(bytes: &[u8]) -> Header {
    Header::decode(bytes.first_chunk::<HEADER_LEN>().unwrap()).unwrap()
}
