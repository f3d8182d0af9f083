//! Whether a replica is a database: its newest state, page by page, against the database itself.
//!
//! The database is read in one read transaction by the program's own SQLite, after the replica. So it
//! may be ahead of it, and while somebody writes it is ahead all the time: whatever differs then is
//! looked at again, when more has come to the replica. A page that is in the database as it was before,
//! and that the replica still has otherwise though it has gone on since, is a difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::failure::Failure;
use super::status::Seen;
use super::{Error, Exit};
use crate::local::{self, replicas};
use crate::ltx::{Checksum, checksum};
use crate::standby::silence;
use crate::store::{self, Store};
use crate::units::{PageSize, Pgno, Txid};
use crate::verify::{self, Advance, Newest};

/// Time between two looks. What a process says of itself is at most a second old.
const AGAIN: Duration = Duration::from_millis(1200);
/// How long to wait for a database that somebody has locked.
const BUSY: Duration = Duration::from_secs(10);
/// So many pages are named.
const NAMED: usize = 20;

/// What the comparison came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Page for page the same.
    Equal,
    /// Each page that differs was written a moment before, and a process ships it.
    Written,
    /// The database has commits that the replica has not; nobody has shipped them in time.
    Ahead,
    /// The replica goes on, and a page differs that did not change meanwhile: a commit that is on its
    /// way may be the reason, and damage may be.
    Unknown,
    /// It differs, and nothing that waits to be shipped is the reason.
    Differs,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Verdict::Equal => "equal",
            Verdict::Written => "written",
            Verdict::Ahead => "ahead",
            Verdict::Unknown => "unknown",
            Verdict::Differs => "differs",
        }
    }
}

/// The outcome.
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    database: PathBuf,
    url: String,
    txid: Txid,
    pages: u32,
    differ: Vec<Pgno>,
    /// Who ships it, as far as that is known.
    shipper: String,
}

impl Outcome {
    pub(super) fn json(&self) -> Value {
        json!({
            "database": self.database.display().to_string(),
            "verdict": self.verdict.name(),
            "txid": self.txid.to_string(),
            "pages": self.pages,
            "differing": self.differ.len(),
            "differ": self.differ.iter().take(NAMED).collect::<Vec<_>>(),
        })
    }

    pub(super) fn text(&self) -> String {
        let Outcome { database, txid, pages, shipper, .. } = self;
        let database = database.display();
        let number = super::table::count(self.differ.len(), "page");
        let named: Vec<String> = self.differ.iter().take(NAMED).map(Pgno::to_string).collect();
        let dots = if self.differ.len() > NAMED { ", ..." } else { "" };
        let which = format!("{number} of {pages} ({}{dots})", named.join(", "));
        match self.verdict {
            Verdict::Equal => {
                format!("TXID {txid} is {database}: all of its {pages} pages are the same")
            }
            Verdict::Written => format!(
                "TXID {txid} is {database}, but for what was just written: {which} differ, each of which changed while this looked; {shipper}"
            ),
            Verdict::Ahead => format!(
                "{database} has commits that the replica has not, up to TXID {txid}: {which} differ; {shipper}"
            ),
            Verdict::Unknown => format!(
                "not known whether {database} is TXID {txid} of the replica: {which} differ, not all of which changed while this looked; {shipper}; look again with a longer --timeout"
            ),
            Verdict::Differs => format!(
                "{database} differs from TXID {txid} of the replica, and not by what waits to be shipped: {which}; {shipper}"
            ),
        }
    }

    /// The replica is that database, or follows it.
    pub(super) fn is_well(&self) -> bool {
        matches!(self.verdict, Verdict::Equal | Verdict::Written)
    }

    pub(super) fn result(&self) -> Result<(), Error> {
        if self.is_well() {
            return Ok(());
        }
        let url = store::url::redacted(&self.url);
        let database = self.database.display();
        let text = match self.verdict {
            Verdict::Unknown => format!("it is not known whether {url} is {database} as it is now"),
            _ => format!("{url} is not {database} as it is now"),
        };
        Err(Failure::because(Exit::Damaged, text))
    }
}

/// The database's path with links resolved, as its processes know it.
pub(super) fn existing(path: &Path) -> Result<PathBuf, Error> {
    super::not_a_url(path)?;
    match path.canonicalize() {
        Ok(found) if found.is_file() => Ok(found),
        Ok(_) => Err(Error::Usage(format!("{}: this is no file", path.display()))),
        Err(error) => Err(Error::Usage(format!("{}: {error}", path.display()))),
    }
}

/// Compares until it is the same, known to differ, or `timeout` is over.
pub(super) async fn compare(
    database: &Path,
    url: &str,
    store: &Arc<dyn Store>,
    mut newest: Newest,
    timeout: Duration,
) -> Result<Outcome, Error> {
    let identity = store::url::identity(store.as_ref());
    let began = Instant::now();
    let first = newest.txid;
    let mut doubts = Doubts::default();
    let mut enough = Txid(u64::MAX);
    loop {
        // The standing is read before the database: commits up to then are in this TXID or the next.
        let standing = Standing::look(database, &identity)?;
        let now = read(database).await?;
        let differ = now.differing(&newest);
        let ripe = doubts.look(&differ, &now, &standing, newest.txid);
        enough = enough.min(standing.sealed.max(newest.txid).next().next());
        let moved = newest.txid > first;
        let verdict = if differ.is_empty() {
            Some(Verdict::Equal)
        } else if ripe {
            Some(Verdict::Differs)
        } else if moved && newest.txid >= enough {
            Some(Verdict::Written)
        } else if began.elapsed() >= timeout {
            Some(match moved && standing.ships {
                true if doubts.all_changed() => Verdict::Written,
                true => Verdict::Unknown,
                false => Verdict::Ahead,
            })
        } else {
            None
        };
        if let Some(verdict) = verdict {
            return Ok(Outcome {
                verdict,
                database: database.to_path_buf(),
                url: url.to_string(),
                txid: newest.txid,
                pages: u32::try_from(now.sums.len()).unwrap_or(u32::MAX),
                differ,
                shipper: standing.text,
            });
        }
        tokio::time::sleep(AGAIN.min(timeout)).await;
        newest = go_on(store, newest).await?;
    }
}

/// The newest state by now.
async fn go_on(store: &Arc<dyn Store>, newest: Newest) -> Result<Newest, Error> {
    match verify::advance(store.clone(), newest).await? {
        Advance::To(newest) => Ok(*newest),
        Advance::Lost(why) => {
            let text = format!("the replica changed while it was compared ({why}): try again");
            Err(Failure::because(Exit::Failure, text))
        }
    }
}

/// Pages that differ.
#[derive(Default)]
struct Doubts {
    pages: BTreeMap<Pgno, Doubt>,
    /// How often in a row the process that ships had nothing left to ship.
    quiet: u32,
    /// TXID of the replica at the last look, and the pages that differed then.
    last: Option<(Txid, Vec<Pgno>)>,
}

struct Doubt {
    /// What the database has.
    sum: Option<Checksum>,
    /// A replica that has come so far has what the database had when that was seen first.
    ripe: Txid,
    /// The database's page changed between two looks.
    changed: bool,
}

impl Doubts {
    /// Takes in what differs; whether that is known to be no commit that waits to be shipped.
    fn look(&mut self, differ: &[Pgno], now: &Pages, standing: &Standing, newest: Txid) -> bool {
        let mut before = std::mem::take(&mut self.pages);
        let mut fresh = false;
        let first = self.last.is_none();
        for pgno in differ {
            let sum = now.sum(*pgno);
            // Commits up to this standing are at the latest in the file after the next.
            let ripe = standing.sealed.max(newest).next().next();
            let known = before.remove(pgno).filter(|doubt| doubt.sum == sum);
            fresh |= known.is_none();
            // The page was equal at an earlier comparison, or had another checksum, so it has changed since.
            self.pages.insert(*pgno, known.unwrap_or(Doubt { sum, ripe, changed: !first }));
        }
        let same =
            !fresh && self.last.as_ref().is_some_and(|last| last == &(newest, differ.to_vec()));
        self.last = Some((newest, differ.to_vec()));
        let quiet = standing.is_quiet(newest);
        self.quiet = if quiet && same { self.quiet.saturating_add(1) } else { 0 };
        self.quiet >= 2 || self.pages.values().any(|doubt| newest >= doubt.ripe)
    }

    /// True if each page that differs was seen to change.
    fn all_changed(&self) -> bool {
        self.pages.values().all(|doubt| doubt.changed)
    }
}

/// What the process that ships the database says of itself.
struct Standing {
    /// A process ships it, and was heard of lately.
    ships: bool,
    /// Nothing waits, as it says.
    idle: bool,
    sealed: Txid,
    text: String,
}

impl Standing {
    fn look(database: &Path, identity: &str) -> Result<Standing, Error> {
        for dir in replicas::existing(database) {
            let seen = Seen::look(database, &dir)?;
            if seen.replica.as_deref() != Some(identity) {
                continue;
            }
            let idle = seen.state == "streaming" && seen.lag_ms == Some(0) && seen.spool_files == 0;
            let text = match (seen.shipper, seen.silent_ms, seen.lag_ms) {
                (Some(pid), Some(silent), _) => silence(pid, silent),
                (Some(pid), None, Some(lag)) => {
                    format!("process {pid} ships it: {}, lag {lag} ms", seen.state)
                }
                (Some(pid), None, None) => format!("process {pid} ships it: {}", seen.state),
                (None, ..) => "no process ships it".to_string(),
            };
            let ships = seen.shipper.is_some() && seen.silent_ms.is_none();
            return Ok(Standing { ships, idle, sealed: seen.sealed, text });
        }
        let text = "it is not known to be replicated there".to_string();
        Ok(Standing { ships: false, idle: false, sealed: Txid::ZERO, text })
    }

    /// Whether the replica has all that there is to ship.
    fn is_quiet(&self, newest: Txid) -> bool {
        self.idle && self.sealed <= newest
    }
}

/// A database: the checksum of each page, from page 1 on.
struct Pages {
    page_size: Option<PageSize>,
    sums: Vec<Checksum>,
}

impl Pages {
    fn sum(&self, pgno: Pgno) -> Option<Checksum> {
        let at = (pgno as usize).checked_sub(1)?;
        self.sums.get(at).copied()
    }

    /// The pages that are not the same, or are only on one side.
    fn differing(&self, newest: &Newest) -> Vec<Pgno> {
        let count = self.sums.len().max(newest.sums.len());
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let same_size = self.page_size == Some(newest.page_size);
        (1..=count)
            .filter(|pgno| !same_size || self.sum(*pgno) != newest.sum(*pgno))
            .filter(|pgno| *pgno != newest.page_size.lock_page())
            .collect()
    }
}

async fn read(database: &Path) -> Result<Pages, Error> {
    let path = database.to_path_buf();
    let read = tokio::task::spawn_blocking(move || {
        read_pages(&path)
            .map_err(|error| Failure::sqlite(format!("cannot read {}", path.display()), error))
    });
    read.await.map_err(|error| Error::System(std::io::Error::other(error)))?
}

/// Through SQLite, so that what is in the WAL counts, in one statement and so in one state.
fn read_pages(path: &Path) -> Result<Pages, rusqlite::Error> {
    let db = open(path)?;
    db.busy_timeout(BUSY)?;
    let mut statement = db.prepare("SELECT pgno, data FROM sqlite_dbpage")?;
    let mut rows = statement.query([])?;
    let mut pages = Pages { page_size: None, sums: Vec::new() };
    while let Some(row) = rows.next()? {
        let pgno: Pgno = row.get(0)?;
        let data = row.get_ref(1)?.as_blob()?;
        pages.page_size = u32::try_from(data.len()).ok().and_then(PageSize::new);
        pages.sums.push(checksum::page(pgno, data));
    }
    Ok(pages)
}

/// Opens the database so that nothing is left beside it: a read-only connection makes an empty WAL where
/// there is none, and cannot remove it. With a journal the connection may only read, as another one would
/// roll that back.
fn open(path: &Path) -> Result<Connection, rusqlite::Error> {
    let left = [local::wal_path(path), local::beside(path, "-journal")];
    let access = if left.iter().any(|file| file.exists()) {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    } else {
        OpenFlags::SQLITE_OPEN_READ_WRITE
    };
    Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(sealed: u64, idle: bool) -> Standing {
        Standing { ships: true, idle, sealed: Txid(sealed), text: String::new() }
    }

    fn pages(sums: &[u64]) -> Pages {
        let sums = sums.iter().map(|sum| Checksum(*sum)).collect();
        Pages { page_size: PageSize::new(4096), sums }
    }

    #[test]
    fn a_page_is_different_when_the_replica_has_gone_past_it() {
        let mut doubts = Doubts::default();
        let mut look = |differ: &[Pgno], sums: &[u64], newest: u64| {
            doubts.look(differ, &pages(sums), &standing(newest + 1, false), Txid(newest))
        };
        assert!(!look(&[1, 2], &[7, 8], 5));
        // The program writes page 1 again and again. Page 2 stays, but the replica may not have it yet.
        assert!(!look(&[1, 2], &[17, 8], 6));
        assert!(!look(&[1, 2], &[27, 8], 7));
        assert!(look(&[1, 2], &[37, 8], 8));
        // Without page 2 the comparison would go on in this way.
        assert!(!look(&[1], &[47, 8], 9));
        assert!(!look(&[1], &[57, 8], 12));
        assert!(!look(&[1], &[67, 8], 15));
        // A page that was equal in between counts as new.
        assert!(!look(&[2], &[67, 9], 20));
        assert!(!look(&[], &[67, 9], 21));
        assert!(!look(&[2], &[67, 9], 40));
    }

    #[test]
    fn a_page_that_differs_counts_as_changed_only_if_it_changed_between_two_looks() {
        let mut doubts = Doubts::default();
        let mut look = |differ: &[Pgno], sums: &[u64]| {
            doubts.look(differ, &pages(sums), &standing(6, false), Txid(5));
            doubts.all_changed()
        };
        // Page 2 is damaged, or was written before the first look.
        assert!(!look(&[1, 2], &[7, 8, 9]));
        assert!(!look(&[1, 2], &[17, 8, 9]));
        assert!(!look(&[1, 2], &[27, 8, 9]));
        assert!(look(&[1, 2], &[27, 18, 9]));
        assert!(look(&[1, 2], &[27, 18, 9]), "a page that changed once");
        // Page 3 was equal, and was written since.
        assert!(look(&[1, 3], &[37, 18, 19]));
        assert!(look(&[1, 3], &[37, 18, 19]));
    }

    #[test]
    fn where_nothing_waits_to_be_shipped_the_third_look_is_the_last() {
        let look = |doubts: &mut Doubts, differ: &[Pgno], sealed: u64, idle: bool| {
            doubts.look(differ, &pages(&[7, 8]), &standing(sealed, idle), Txid(5))
        };
        let mut doubts = Doubts::default();
        let mut found = [0; 3].map(|_| look(&mut doubts, &[2], 5, true));
        assert_eq!(found, [false, false, true]);
        // An upload is pending: a sealed file that the store does not have, or a lag.
        for (sealed, idle) in [(6, true), (5, false)] {
            let mut doubts = Doubts::default();
            found = [0; 3].map(|_| look(&mut doubts, &[2], sealed, idle));
            assert_eq!(found, [false; 3]);
        }
    }

    #[test]
    fn what_is_on_one_side_only_differs() {
        let newest = Newest {
            txid: Txid(1),
            timestamp: crate::units::Timestamp(0),
            page_size: PageSize::new(4096).unwrap(),
            sums: [7, 8, 9].map(Checksum).to_vec(),
        };
        assert_eq!(pages(&[7, 8, 9]).differing(&newest), Vec::<Pgno>::new());
        assert_eq!(pages(&[7, 1, 9, 4]).differing(&newest), [2, 4]);
        assert_eq!(pages(&[7, 8]).differing(&newest), [3]);
        assert_eq!(pages(&[]).differing(&newest), [1, 2, 3]);
    }
}
