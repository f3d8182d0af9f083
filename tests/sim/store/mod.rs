//! The model of an object store, and of the shipper's requests to it (`src/shipper.rs`).
//!
//! What it never does: tear a file, forget one that it confirmed, or let two conditional creates of
//! one name succeed; the trait forbids it that. A file that was sent in part never appears.

mod fate;
mod requests;

use std::collections::BTreeMap;

use walferry::engine::{Failure, Head, Verdict};
use walferry::ltx::{FileName, HEADER_LEN, Header};
use walferry::store::{FileInfo, Key};
use walferry::units::{Level, Timestamp, Txid, WriterId};

use requests::Pending;

/// What is asked.
#[derive(Clone, Debug)]
pub enum Request {
    FindHead,
    Put { key: Key, bytes: Vec<u8> },
    Inspect { txid: Txid, ours: Vec<u8> },
    Confirm { key: Key, writer: WriterId, checksum: u64 },
    OpenUpload { job: u64 },
    CompleteUpload { job: u64, key: Key, bytes: Vec<u8> },
    AbortUpload { job: u64 },
}

/// What comes back.
#[derive(Clone, Debug)]
pub enum Answer {
    Head(Option<Head>),
    PutDone,
    PutRefused,
    Inspected { txid: Txid, verdict: Verdict },
    Confirmed { arrived: bool },
    Upload { job: u64, outcome: Upload },
    Failed(Failure),
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
    pending: Vec<Pending>,
    pub down_until: u64,
    pub denied: bool,
    pub faults: bool,
}

impl Store {
    fn perform(&mut self, request: &Request) -> Option<Answer> {
        let upload = |job: &u64, outcome| Some(Answer::Upload { job: *job, outcome });
        match request {
            // The levels are listed one after the other: see `listed`.
            Request::FindHead => Some(Answer::Head(self.head(&[Level::L0]))),
            Request::Put { key, bytes } => {
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
        let (key, bytes) = newest?;
        let header = header(bytes);
        Some(Head {
            txid: key.name.max,
            post_apply: header.tag.map(|tag| tag.post_apply),
            writer: header.writer,
        })
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
            modified: Timestamp(0),
        };
        self.files.iter().map(info).collect()
    }
}

pub fn header(bytes: &[u8]) -> Header {
    Header::decode(bytes.first_chunk::<HEADER_LEN>().unwrap()).unwrap()
}
