//! Whether a replica still ends where this database left it. What had to be sent has shown that; where
//! nothing had to be sent, nobody has asked the store.

use std::path::Path;
use std::time::Duration;

use super::failure::Failure;
use super::{Error, Exit};
use crate::local::replicas;
use crate::local::state::State;
use crate::log_end::{head_at, newest};
use crate::plan::retain::Own;
use crate::store::{self, Access, Store};
use crate::units::{Txid, WriterId};

/// The store has at least so long to answer, however long it took to send what was to be sent.
const LEAST: Duration = Duration::from_secs(5);

/// Asks each store once, which takes two requests where all is well.
pub(super) async fn confirm(
    database: &Path,
    replicas: &[(String, Access)],
    timeout: Duration,
) -> Result<(), Error> {
    let asked = tokio::time::timeout(timeout.max(LEAST), ask(database, replicas)).await;
    asked.unwrap_or_else(|_| {
        let text =
            "everything is sent, but the store does not say in time whether it is there still";
        Err(Failure::because(Exit::Unreachable, format!("{}: {text}", database.display())))
    })
}

async fn ask(database: &Path, replicas: &[(String, Access)]) -> Result<(), Error> {
    for (url, access) in replicas {
        let store = store::open_with(url, access)?;
        let identity = store::url::identity(store.as_ref());
        let Some((writer, own)) = left_at(database, &identity) else { continue };
        let txid = own.last;
        let found = look(store.as_ref(), writer, own).await?;
        let said = match found {
            Found::AsLeft => continue,
            Found::Lost => format!(
                "{identity} does not hold transaction {txid} any more, which it had confirmed: somebody has \
                 removed it. The next commit sends the whole database again"
            ),
            Found::Foreign(by, at) => format!(
                "another writer ({by}) has written transaction {at} to {identity}: what is committed here from \
                 now on does not get there. Let only one writer use a replica; walferry promote takes it back"
            ),
        };
        let exit = if matches!(found, Found::Lost) { Exit::Damaged } else { Exit::Failure };
        return Err(Failure::because(exit, format!("{}: {said}", database.display())));
    }
    Ok(())
}

/// Who we are there, and our transactions, up to the last that the store has confirmed.
fn left_at(database: &Path, identity: &str) -> Option<(WriterId, Own)> {
    let states = replicas::existing(database).into_iter();
    let state = states.filter_map(|dir| State::load(&dir).ok().flatten());
    let ours = state.into_iter().find(|state| state.replica == identity && state.claimed)?;
    let own = Own { first: ours.first.map(Txid), last: Txid(ours.base?.txid) };
    Some((WriterId(ours.writer), own))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    AsLeft,
    Lost,
    Foreign(WriterId, Txid),
}

async fn look(store: &dyn Store, writer: WriterId, own: Own) -> Result<Found, Error> {
    let txid = own.last;
    // While the store has the file of a transaction, it has the files of all later transactions, too. The first
    // files of a writer are an exception.
    let last = if own.may_outlast(txid) { None } else { head_at(store, txid).await? };
    let head = match last {
        Some(_) => head_at(store, txid.next()).await?.map(|head| (head.txid, head.writer)),
        None => {
            let newest = newest(store).await?;
            let Some((key, header)) = newest.filter(|(key, _)| key.name.max >= txid) else {
                return Ok(Found::Lost);
            };
            Some((key.name.max, header.map(|header| header.writer).unwrap_or_default()))
        }
    };
    Ok(match head {
        // A running process of the same writer may have uploaded more meanwhile.
        Some((at, by)) if at > txid && by != writer => Found::Foreign(by, at),
        _ => Found::AsLeft,
    })
}
