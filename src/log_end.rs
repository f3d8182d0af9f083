//! Asks the store where a replica's log ends, and which writer wrote the last file.

use crate::engine::Head;
use crate::ltx::{DatabaseChecksum, FileName, Header};
use crate::store::{Error, ErrorKind, Key, Store, read_header};
use crate::units::{Level, Txid, WriterId};

/// Transactions that the store must still have before a file goes out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Look {
    /// The last transaction that the store confirmed. Its own file is expected, since the file of the log's
    /// end always stays. If only compacted files hold the transaction, the log may have gone on without us.
    pub last: Option<Confirmed>,
    /// An earlier confirmed transaction, which any file may hold.
    pub earlier: Option<Confirmed>,
    /// True for the first file of a lineage, and for a file for which `last` shows nothing. The log must end
    /// before that file.
    pub first: bool,
    /// True if the file of `last` does not prove that the log ends with it. This process may know less than
    /// was removed from the log meanwhile.
    pub behind: bool,
    /// Writer of the file that goes out. The file itself may already be there, if its acknowledgement was
    /// lost.
    pub writer: WriterId,
}

/// A transaction that the store confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Confirmed {
    pub txid: Txid,
    /// Database checksum after the transaction, if known.
    pub post_apply: Option<DatabaseChecksum>,
    /// Writer of the transaction's own file, if known: a restored database goes on behind another writer's
    /// file.
    pub writer: Option<WriterId>,
}

impl Confirmed {
    /// True if a file that ends with the transaction leaves another state than ours. The name of the file
    /// proves nothing: another database in an emptied replica has files of the same names.
    fn is_denied_by(&self, key: Key, header: &Header) -> bool {
        match (self.post_apply, header.tag) {
            (Some(ours), Some(tag)) => tag.post_apply != ours,
            // Litestream's compaction drops the tag, but Litestream starts a log with a snapshot.
            (Some(_), None) => key.level == Level::SNAPSHOT,
            (None, _) => false,
        }
    }
}

/// Result of [`see`].
pub(crate) enum Seen {
    AsExpected,
    /// Confirmed files are gone; the log ends with this transaction.
    Lost(Option<Txid>),
    /// The log already has this end, which is not ours.
    GoneOn(Head),
}

/// Checks whether the file of `next` would follow the expected end of the log. Makes one request for each
/// transaction whose file is in its place.
pub(crate) async fn see(store: &dyn Store, look: Look, next: Txid) -> Result<Seen, Error> {
    for (confirmed, is_last) in [(look.last, true), (look.earlier, false)] {
        let Some(confirmed) = confirmed else { continue };
        let Some(other) = find_other(store, confirmed).await? else { continue };
        match other {
            Other::File(head) if is_last => return Ok(Seen::GoneOn(head)),
            // The files behind the earlier transaction are ours: the log goes on from there with an image.
            Other::File(_) => return Ok(Seen::Lost(look.last.map(|last| last.txid))),
            Other::Nothing(end) => return Ok(Seen::Lost(end)),
            Other::End(end) if is_last && end >= next => {
                return gone_on(store, next, look.writer).await;
            }
            Other::End(_) => {}
        }
    }
    if look.first || look.behind && has_at_least(store, next).await? {
        return gone_on(store, next, look.writer).await;
    }
    Ok(Seen::AsExpected)
}

/// True if level 0 has a file of this transaction or of a later one.
///
/// The newest file of level 0 always stays. An older file may outlast the files behind it: a process that
/// removes another writer's files keeps every file that may begin a lineage. Any file whose predecessor is
/// gone may.
async fn has_at_least(store: &dyn Store, txid: Txid) -> Result<bool, Error> {
    let files = store.list(Level::L0).await?;
    Ok(files.iter().any(|file| file.key.name.max >= txid))
}

/// Find in place of the file of a transaction.
enum Other {
    /// A file that another writer made, or that leads to another state.
    File(Head),
    /// No file holds the transaction; the log ends with this one.
    Nothing(Option<Txid>),
    /// Another file holds the transaction, and nothing speaks against that file; the log ends with this
    /// transaction.
    End(Txid),
}

/// Looks for the file of a transaction. Returns `None` if the file is there, else the find in its place.
async fn find_other(store: &dyn Store, confirmed: Confirmed) -> Result<Option<Other>, Error> {
    let txid = confirmed.txid;
    let own = Key { level: Level::L0, name: FileName::single(txid) };
    if let Some(header) = header_of(store, own).await? {
        let strange = |it: &Header| confirmed.writer.is_some_and(|writer| writer != it.writer);
        let other = header.filter(|it| strange(it) || confirmed.is_denied_by(own, it));
        return Ok(other.map(|header| Other::File(head_of(txid, Some(header)))));
    }
    let (mut holds, mut end, mut last) = (false, None, None);
    for level in Level::all() {
        for file in store.list(level).await? {
            let name = file.key.name;
            holds |= (name.min..=name.max).contains(&txid);
            end = end.max(Some(name.max));
            if name.max == txid {
                last.get_or_insert(file.key);
            }
        }
    }
    let Some(end) = end.filter(|_| holds) else { return Ok(Some(Other::Nothing(end))) };
    if let Some(key) = last
        && let Some(Some(header)) = header_of(store, key).await?
        && confirmed.is_denied_by(key, &header)
    {
        return Ok(Some(Other::File(head_of(txid, Some(header)))));
    }
    Ok(Some(Other::End(end)))
}

/// Returns `GoneOn` if the log is beyond `next`, or ends there with a file of another writer.
///
/// The result is `AsExpected` if `next` has a file of its own. The store then refuses ours, and the two are
/// compared: an earlier process may have put that file without getting the acknowledgement.
async fn gone_on(store: &dyn Store, next: Txid, writer: WriterId) -> Result<Seen, Error> {
    let head = find_head(store, Txid::ZERO).await?;
    let head = head.filter(|head| head.txid > next || head.txid == next && head.writer != writer);
    match head {
        Some(head) if head_at(store, next).await?.is_none() => Ok(Seen::GoneOn(head)),
        _ => Ok(Seen::AsExpected),
    }
}

/// Returns the log's end if another file also holds the transaction of the file `created`. That TXID was
/// taken before, and was free because its file had been compacted and removed. Deletes `created` then.
///
/// A writer that goes on behind our file, as it may, makes no such end.
pub(crate) async fn outrun(store: &dyn Store, created: Key) -> Result<Option<Key>, Error> {
    let txid = created.name.max;
    let (mut holds, mut end) = (false, None::<Key>);
    for level in Level::all() {
        for file in store.list(level).await? {
            let name = file.key.name;
            holds |= file.key != created && (name.min..=name.max).contains(&txid);
            if end.is_none_or(|end| end.name.max < name.max) {
                end = Some(file.key);
            }
        }
    }
    let end = end.filter(|end| holds && end.name.max > txid);
    if end.is_some()
        && let Err(error) = store.delete(created).await
    {
        // The file does no harm in a log that leads past it.
        log::warn!("{created} is of no use any more: {error}");
    }
    Ok(end)
}

/// End of the log, as found, for which an image is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    pub head: Option<Head>,
    pub writer: WriterId,
}

impl Plan {
    /// True if the log still ends where the image is to go on. A late file of this writer does not count as
    /// another end: the image is beyond all of this writer's files.
    pub(crate) async fn holds(&self, store: &dyn Store, key: Key) -> Result<bool, Error> {
        let end = |head: Head| (head.txid, head.writer);
        let planned = self.head.map(end);
        let found = find_head(store, self.end()).await?.map(end);
        Ok(found == planned
            || found.is_some_and(|(txid, writer)| {
                writer == self.writer && (self.end()..key.name.max).contains(&txid)
            }))
    }

    /// True if another writer's file appeared between the log's end and the image while the image was
    /// completed.
    pub(crate) async fn is_crossed(&self, store: &dyn Store, key: Key) -> Result<bool, Error> {
        let mut newest: Option<Key> = None;
        for level in Level::all() {
            for file in store.list(level).await? {
                let name = file.key.name;
                let between = name.max > self.end() && name.min <= key.name.max;
                if between && file.key != key && newest.is_none_or(|it| it.name.max < name.max) {
                    newest = Some(file.key);
                }
            }
        }
        let Some(newest) = newest else { return Ok(false) };
        let header = header_of(store, newest).await?.flatten();
        Ok(header.is_some_and(|header| header.writer != self.writer))
    }

    fn end(&self) -> Txid {
        self.head.map_or(Txid::ZERO, |head| head.txid)
    }
}

/// Returns the head from the newest file over all levels. If no listing reaches `acked`, the head comes from
/// that transaction's own file, if that is there.
pub(crate) async fn find_head(store: &dyn Store, acked: Txid) -> Result<Option<Head>, Error> {
    let head = newest(store).await?.map(|(key, header)| head_of(key.name.max, header));
    match head {
        Some(head) if head.txid >= acked => Ok(Some(head)),
        head => Ok(head_at(store, acked).await?.or(head)),
    }
}

/// Returns the head from the own file of a transaction, if the file is there.
pub(crate) async fn head_at(store: &dyn Store, txid: Txid) -> Result<Option<Head>, Error> {
    if txid == Txid::ZERO {
        return Ok(None);
    }
    let key = Key { level: Level::L0, name: FileName::single(txid) };
    Ok(header_of(store, key).await?.map(|header| head_of(txid, header)))
}

/// Reads the header of a file. Returns `None` if the file is missing, `Some(None)` if the header cannot be
/// read.
async fn header_of(store: &dyn Store, key: Key) -> Result<Option<Option<Header>>, Error> {
    match read_header(store, key).await {
        Ok(header) => Ok(Some(header.ok())),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn head_of(txid: Txid, header: Option<Header>) -> Head {
    Head {
        txid,
        post_apply: header.and_then(|header| header.tag).map(|tag| tag.post_apply),
        timestamp: header.map(|header| header.timestamp).unwrap_or_default(),
        writer: header.map(|header| header.writer).unwrap_or_default(),
    }
}

/// Returns the newest file over all levels, and its header if that can be read.
pub(crate) async fn newest(store: &dyn Store) -> Result<Option<(Key, Option<Header>)>, Error> {
    let mut newest: Option<Key> = None;
    for level in Level::all() {
        for file in store.list(level).await? {
            // The file of the lower level counts among files with the same end: it is the original.
            if newest.is_none_or(|key| key.name.max < file.key.name.max) {
                newest = Some(file.key);
            }
        }
    }
    let Some(key) = newest else { return Ok(None) };
    Ok(Some((key, read_header(store, key).await?.ok())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::ltx::Tag;
    use crate::ltx::encode::to_vec;
    use crate::store::Body;
    use crate::store::memory::MemoryStore;
    use crate::units::{PageSize, Salts, Timestamp};

    pub(crate) const OURS: WriterId = WriterId(1);
    pub(crate) const THEIRS: WriterId = WriterId(2);

    fn sum(n: u64) -> DatabaseChecksum {
        DatabaseChecksum::from_stored(n)
    }

    pub(crate) fn key(level: u8, min: u64, max: u64) -> Key {
        Key { level: Level::new(level).unwrap(), name: FileName { min: Txid(min), max: Txid(max) } }
    }

    /// Returns a file that leads to the state `leaves`; without `leaves` the file has no tag.
    pub(crate) fn file(key: Key, writer: WriterId, leaves: Option<u64>) -> Vec<u8> {
        let header = Header {
            page_size: PageSize::new(512).unwrap(),
            commit: 7,
            min_txid: key.name.min,
            max_txid: key.name.max,
            timestamp: Timestamp(1),
            wal_offset: 0,
            wal_size: 0,
            salts: Salts::default(),
            writer,
            tag: leaves.map(|leaves| Tag {
                pre_apply: sum(0),
                post_apply: sum(leaves),
                full_image: false,
            }),
        };
        to_vec(&header, []).unwrap()
    }

    pub(crate) async fn add(store: &MemoryStore, key: Key, writer: WriterId, leaves: Option<u64>) {
        let bytes = file(key, writer, leaves);
        store.put_new(key, Body::Bytes(bytes.into()), Timestamp(1)).await.unwrap();
    }

    pub(crate) fn on_runtime(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test);
    }

    fn confirmed(txid: u64) -> Confirmed {
        Confirmed { txid: Txid(txid), post_apply: Some(sum(txid)), writer: Some(OURS) }
    }

    /// Returns the result of our look at transactions 3 and 1.
    async fn look(files: &[(Key, WriterId, Option<u64>)]) -> Seen {
        let store = MemoryStore::new();
        for (key, writer, leaves) in files {
            add(&store, *key, *writer, *leaves).await;
        }
        let (last, earlier) = (Some(confirmed(3)), Some(confirmed(1)));
        let look = Look { last, earlier, writer: OURS, ..Look::default() };
        see(&store, look, Txid(4)).await.unwrap()
    }

    #[test]
    fn a_look_at_our_own_log_goes_on() {
        on_runtime(async {
            let first = (key(9, 1, 1), OURS, Some(1));
            let logs = [
                vec![first, (key(0, 2, 2), OURS, Some(2)), (key(0, 3, 3), OURS, Some(3))],
                // Compacted by another writer, and by Litestream, which leaves no tag.
                vec![first, (key(1, 2, 3), THEIRS, Some(3))],
                vec![first, (key(1, 2, 3), WriterId(0), None)],
                // An image of ours, which holds the transactions before it.
                vec![(key(9, 1, 3), OURS, Some(3))],
                vec![(key(9, 1, 3), THEIRS, Some(3))],
            ];
            for log in logs {
                assert!(matches!(look(&log).await, Seen::AsExpected), "{log:?}");
            }
        });
    }

    #[test]
    fn a_look_believes_no_file_by_its_name() {
        on_runtime(async {
            let first = (key(9, 1, 1), OURS, Some(1));
            let logs = [
                vec![(key(0, 3, 3), THEIRS, Some(30))],
                // The state of a copied database equals ours.
                vec![first, (key(0, 3, 3), THEIRS, Some(3))],
                vec![first, (key(0, 3, 3), WriterId(0), None)],
                vec![(key(9, 1, 3), THEIRS, Some(30))],
                vec![first, (key(1, 2, 3), THEIRS, Some(30))],
                vec![(key(9, 1, 3), WriterId(0), None)],
            ];
            for log in logs {
                let Seen::GoneOn(head) = look(&log).await else { panic!("{log:?}") };
                assert_eq!(head.txid, Txid(3), "{log:?}");
            }
        });
    }

    #[test]
    fn a_look_does_not_believe_a_file_that_outlasted_those_behind_it() {
        on_runtime(async {
            for (end, goes_on) in
                [(None, true), (Some((4, OURS)), true), (Some((9, THEIRS)), false)]
            {
                let store = MemoryStore::new();
                add(&store, key(0, 3, 3), OURS, Some(3)).await;
                if let Some((end, writer)) = end {
                    add(&store, key(0, end, end), writer, Some(end)).await;
                    add(&store, key(9, 1, end), writer, Some(end)).await;
                }
                let last = Some(confirmed(3));
                let look = Look { last, behind: true, writer: OURS, ..Look::default() };
                let seen = see(&store, look, Txid(4)).await.unwrap();
                assert_eq!(matches!(seen, Seen::AsExpected), goes_on, "{end:?}");
            }
        });
    }

    #[test]
    fn a_look_of_a_restored_database_goes_on_behind_the_other_writer() {
        on_runtime(async {
            let store = MemoryStore::new();
            add(&store, key(0, 3, 3), THEIRS, Some(3)).await;
            for (leaves, goes_on) in [(3, true), (4, false)] {
                let post_apply = Some(sum(leaves));
                let last = Some(Confirmed { txid: Txid(3), post_apply, writer: None });
                let look = Look { last, first: true, writer: OURS, ..Look::default() };
                let seen = see(&store, look, Txid(4)).await.unwrap();
                assert_eq!(matches!(seen, Seen::AsExpected), goes_on);
            }
        });
    }

    #[test]
    fn a_look_at_an_earlier_file_of_another_finds_ours_lost() {
        on_runtime(async {
            let last = (key(0, 3, 3), OURS, Some(3));
            for log in [
                vec![last],
                vec![last, (key(9, 1, 1), THEIRS, Some(10))],
                vec![last, (key(0, 1, 1), THEIRS, Some(10))],
            ] {
                let seen = look(&log).await;
                assert!(matches!(seen, Seen::Lost(Some(Txid(3)))), "{log:?}");
            }
        });
    }

    #[test]
    fn an_image_completes_only_where_it_was_planned() {
        on_runtime(async {
            let image = key(0, 6, 6);
            for (planned, found, holds) in [
                (None, None, true),
                (None, Some((5, THEIRS)), false),
                (None, Some((6, THEIRS)), false),
                // Late, from before the replica was emptied.
                (None, Some((5, OURS)), true),
                (Some((5, OURS)), Some((5, OURS)), true),
                // Another lineage's log, behind which an image was requested.
                (Some((5, THEIRS)), Some((5, THEIRS)), true),
                (Some((5, OURS)), Some((5, THEIRS)), false),
                (Some((5, OURS)), Some((20, THEIRS)), false),
                // Emptied, in part or as a whole.
                (Some((5, OURS)), Some((4, OURS)), false),
                (Some((5, OURS)), None, false),
            ] {
                let store = MemoryStore::new();
                if let Some((txid, writer)) = found {
                    add(&store, key(0, txid, txid), writer, Some(1)).await;
                }
                let head = planned.map(|(txid, writer)| Head {
                    txid: Txid(txid),
                    post_apply: None,
                    timestamp: Timestamp(0),
                    writer,
                });
                let plan = Plan { head, writer: OURS };
                let held = plan.holds(&store, image).await.unwrap();
                assert_eq!(held, holds, "{planned:?} {found:?}");
            }
        });
    }
}
