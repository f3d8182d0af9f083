//! Takes over a log from another writer: creates a file without pages under the log's next TXID.
//!
//! The new file leaves the database as the other writer made it. That writer's next file finds its TXID
//! taken, and the writer stops. A full image alone would not be enough: during its upload, an active writer
//! takes one TXID after another. The image would have to be sent again and again.

use crate::log_end::outrun;
use crate::ltx::encode::to_vec;
use crate::ltx::{FileName, Header, Tag};
use crate::store::{Body, Error, ErrorKind, Key, Store, read_header};
use crate::units::{Level, Salts, Timestamp, Txid, WriterId};
use crate::wal::WAL_HEADER_LEN;

/// Most times that the other writer may be faster before the attempt ends with an error.
const ATTEMPTS: u32 = 100;

/// The writer that takes over a log, and the writer from which it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub writer: WriterId,
    /// Only this writer's log may be taken over; `None` means any writer's.
    pub from: Option<WriterId>,
}

impl Claim {
    /// True if a log that ends with this file may be taken over and is not ours yet.
    pub(crate) fn is_due(&self, last: &Header) -> bool {
        last.writer != self.writer && self.from.is_none_or(|from| from == last.writer)
    }

    /// Creates the log's next file behind `last`, or behind files created meanwhile. Returns the header of
    /// the log's last file. That is a file of another writer if the log may not be taken over from that
    /// writer.
    pub(crate) async fn take_over(
        &self,
        store: &dyn Store,
        last: &Header,
    ) -> Result<Header, Error> {
        let mut last = *last;
        for _ in 0..ATTEMPTS {
            let header = unchanged(&last, self.writer);
            let key = Key { level: Level::L0, name: FileName::single(header.max_txid) };
            let bytes = to_vec(&header, []).map_err(|error| unusable(key, &error))?;
            match store.put_new(key, Body::Bytes(bytes.into()), header.timestamp).await {
                // The TXID can also be free because its file was compacted and removed while this process was
                // stopped.
                Ok(()) => match outrun(store, key).await? {
                    None => return Ok(header),
                    Some(end) => {
                        let end = read_header(store, end).await?;
                        last = end.map_err(|error| unusable(key, &error))?;
                    }
                },
                Err(error) if error.kind == ErrorKind::AlreadyExists => {
                    let there = read_header(store, key).await?;
                    last = there.map_err(|error| unusable(key, &error))?;
                }
                Err(error) => return Err(error),
            }
            if !self.is_due(&last) {
                // The file is ours: an answer was lost on the way, and the request was repeated. Or the last
                // file is from a third writer.
                return Ok(last);
            }
        }
        let why = format!(
            "another writer of {} was faster {ATTEMPTS} times in a row; stop it",
            store.url()
        );
        Err(Error::new(ErrorKind::Unavailable, why))
    }
}

fn unusable(key: Key, error: &crate::ltx::Error) -> Error {
    Error::new(ErrorKind::Other, format!("cannot go on behind {key}: {error}"))
}

/// Returns the header of a file that follows `last` and leaves the database as it is.
fn unchanged(last: &Header, writer: WriterId) -> Header {
    let txid: Txid = last.max_txid.next();
    Header {
        min_txid: txid,
        max_txid: txid,
        timestamp: Timestamp(crate::clock::wall().0.max(last.timestamp.0.saturating_add(1))),
        wal_offset: WAL_HEADER_LEN,
        wal_size: 0,
        salts: Salts::default(),
        writer,
        tag: last.tag.map(|tag| Tag {
            pre_apply: tag.post_apply,
            post_apply: tag.post_apply,
            full_image: false,
        }),
        ..*last
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ltx::DatabaseChecksum;
    use crate::store::memory::MemoryStore;
    use crate::units::PageSize;

    fn header(txid: u64, writer: u64) -> Header {
        let checksum = |n| DatabaseChecksum::from_stored(1 << 63 | n);
        Header {
            page_size: PageSize::new(512).unwrap(),
            commit: 7,
            min_txid: Txid(txid),
            max_txid: Txid(txid),
            timestamp: Timestamp(i64::MAX - 1000),
            wal_offset: 0,
            wal_size: 0,
            salts: Salts::default(),
            writer: WriterId(writer),
            tag: Some(Tag {
                pre_apply: checksum(txid - 1),
                post_apply: checksum(txid),
                full_image: false,
            }),
        }
    }

    const ANYBODYS: Claim = Claim { writer: WriterId(2), from: None };

    async fn put(store: &MemoryStore, header: &Header) {
        let key = Key { level: Level::L0, name: FileName::single(header.max_txid) };
        let bytes = to_vec(header, []).unwrap();
        store.put_new(key, Body::Bytes(bytes.into()), header.timestamp).await.unwrap();
    }

    fn on_runtime(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test);
    }

    #[test]
    fn a_claim_goes_behind_whatever_came_meanwhile_and_changes_nothing() {
        on_runtime(async {
            let store = MemoryStore::new();
            put(&store, &header(5, 1)).await;
            put(&store, &header(6, 1)).await;
            put(&store, &header(7, 1)).await;
            let claimed = ANYBODYS.take_over(&store, &header(5, 1)).await.unwrap();
            assert_eq!((claimed.max_txid, claimed.commit), (Txid(8), 7));
            let tag = claimed.tag.unwrap();
            assert_eq!(tag.pre_apply, header(7, 1).tag.unwrap().post_apply);
            assert_eq!(tag.post_apply, tag.pre_apply);
            assert!(claimed.timestamp > header(7, 1).timestamp);
            assert_eq!(store.files().len(), 4);
        });
    }

    #[test]
    fn a_claim_in_a_place_that_was_joined_and_removed_goes_behind_the_logs_end() {
        on_runtime(async {
            let store = MemoryStore::new();
            let joined = Header { min_txid: Txid(6), ..header(20, 1) };
            let name = FileName { min: Txid(6), max: Txid(20) };
            let level = Level::new(1).unwrap();
            let bytes = to_vec(&joined, []).unwrap();
            let put = store.put_new(Key { level, name }, Body::Bytes(bytes.into()), Timestamp(1));
            put.await.unwrap();
            super::tests::put(&store, &header(20, 1)).await;
            // The log ended here before this process was stopped.
            let claimed = ANYBODYS.take_over(&store, &header(5, 1)).await.unwrap();
            assert_eq!(claimed.max_txid, Txid(21));
            let names: Vec<_> = store.files().iter().map(|(key, _)| key.name).collect();
            assert_eq!(names, [FileName::single(Txid(20)), FileName::single(Txid(21)), name]);
            // By now the log ends with this writer's own file, so there is nothing to take over from writer
            // 9.
            let claim = Claim { from: Some(WriterId(9)), ..ANYBODYS };
            let last = claim.take_over(&store, &header(5, 9)).await.unwrap();
            assert_eq!((last.max_txid, last.writer), (Txid(21), WriterId(2)));
            assert_eq!(store.files().len(), 3);
        });
    }

    #[test]
    fn a_claim_on_one_writers_log_stops_at_a_thirds_file() {
        on_runtime(async {
            let store = MemoryStore::new();
            put(&store, &header(6, 1)).await;
            put(&store, &header(7, 3)).await;
            let claim = Claim { from: Some(WriterId(1)), ..ANYBODYS };
            assert!(claim.is_due(&header(5, 1)) && !claim.is_due(&header(5, 3)));
            let last = claim.take_over(&store, &header(5, 1)).await.unwrap();
            assert_eq!((last.max_txid, last.writer), (Txid(7), WriterId(3)));
            assert_eq!(store.files().len(), 2);
        });
    }

    #[test]
    fn a_claim_that_is_repeated_finds_itself() {
        on_runtime(async {
            let store = MemoryStore::new();
            put(&store, &header(6, 2)).await;
            let claimed = ANYBODYS.take_over(&store, &header(5, 1)).await.unwrap();
            assert_eq!(claimed.max_txid, Txid(6));
            assert_eq!(store.files().len(), 1);
        });
    }
}
