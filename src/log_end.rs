//! Where a replica's log ends, and who wrote its last file: asked of the store.

use crate::engine::Head;
use crate::ltx::{FileName, Header};
use crate::store::{Error, ErrorKind, Key, Store, read_header};
use crate::units::{Level, Txid};

/// What the newest file over all levels says, or that of `acked` if a listing does not show it.
pub(crate) async fn find_head(store: &dyn Store, acked: Txid) -> Result<Option<Head>, Error> {
    let head = newest(store).await?.map(|(key, header)| head_of(key.name.max, header));
    match head {
        Some(head) if head.txid >= acked => Ok(Some(head)),
        head => Ok(head_at(store, acked).await?.or(head)),
    }
}

/// The head that the file of a transaction of its own makes, if it is there.
pub(crate) async fn head_at(store: &dyn Store, txid: Txid) -> Result<Option<Head>, Error> {
    if txid == Txid::ZERO {
        return Ok(None);
    }
    let key = Key { level: Level::L0, name: FileName::single(txid) };
    match read_header(store, key).await {
        Ok(header) => Ok(Some(head_of(txid, header.ok()))),
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

/// The newest file over all levels, and its header if it has one that can be read.
pub(crate) async fn newest(store: &dyn Store) -> Result<Option<(Key, Option<Header>)>, Error> {
    let mut newest: Option<Key> = None;
    for level in Level::all() {
        for file in store.list(level).await? {
            // Of files that end alike the lower level's: it is the original.
            if newest.is_none_or(|key| key.name.max < file.key.name.max) {
                newest = Some(file.key);
            }
        }
    }
    let Some(key) = newest else { return Ok(None) };
    Ok(Some((key, read_header(store, key).await?.ok())))
}
