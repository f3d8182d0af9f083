//! Reads the header of a file in a store.

use super::{Error, Key, Store};
use crate::ltx::{self, HEADER_LEN, Header};

/// Returns a file's header, or the reason why the file has none.
pub(crate) async fn read_header(
    store: &dyn Store,
    key: Key,
) -> Result<Result<Header, ltx::Error>, Error> {
    let bytes = store.get(key, Some(0..HEADER_LEN as u64)).await?;
    Ok(match bytes.first_chunk::<HEADER_LEN>() {
        Some(head) => Header::decode(head),
        None => Err(ltx::Error::Truncated("header")),
    })
}
