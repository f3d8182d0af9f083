//! `walferry promote`: a person decides which of two writers is the right one.
//!
//! The replica's log is a chain in which each TXID is created once. So the decision is made where
//! everybody sees it: the next TXID is claimed for a new writer id ([`crate::claim`]). What follows
//! is the full image that the next start of this database sends.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::given_up::{self, Held};
use super::{Error, configured, print};
use crate::claim::Claim;
use crate::local::state::{State, random_id};
use crate::log_end::newest;
use crate::ltx::Header;
use crate::shown;
use crate::store::{self, Store};
use crate::units::{Txid, WriterId};

/// Arguments of `walferry promote`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry promote --dry-run app.db",
    "walferry promote app.db",
]))]
pub(super) struct Args {
    /// The database that is to own the replica from now on; it is not touched
    database: PathBuf,
    /// The replica with its options, or what the configuration file calls it; else the one that the
    /// database was last replicated to
    #[arg(long, value_name = "NAME|URL")]
    replica: Option<String>,
    #[command(flatten)]
    file: configured::File,
    /// Also if no other writer has taken the replica
    #[arg(long)]
    force: bool,
    /// Only show how things stand
    #[arg(long)]
    dry_run: bool,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

/// The replica's newest file.
struct Head {
    txid: Txid,
    /// `None` if it cannot be read.
    header: Option<Header>,
}

impl Head {
    fn writer(&self) -> Option<WriterId> {
        self.header.map(|header| header.writer)
    }
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let held = the_one(given_up::hold(&args.database)?, &args)?;
    let known = held.state.as_ref().map(|state| state.replica.clone());
    let named = args.file.replica(held.database(), args.replica.as_deref(), known.as_deref())?;
    let Some((url, access)) = named else {
        return Err(Error::Usage(format!(
            "the state of {} cannot be read, so it does not say which replica is meant: give --replica",
            held.database().display()
        )));
    };
    let store = store::open_with(&url, &access)?;
    let identity = store::url::identity(store.as_ref());
    if let Some(known) = known.filter(|known| *known != identity) {
        return Err(Error::Usage(format!(
            "{} was replicated to {known}, not to {identity}: it has no place there that it could have lost",
            held.database().display()
        )));
    }
    let head = newest(store.as_ref()).await?;
    let head = head.map(|(key, header)| Head { txid: key.name.max, header });
    let fenced = is_fenced(&held, head.as_ref());
    if !fenced && !args.force {
        return Err(Error::Declined(why_not(&held, head.as_ref(), &identity)));
    }
    let writer = WriterId(random_id());
    let mut outcome = Outcome { held, head, identity, fenced, writer, claimed: None, kept: None };
    if args.dry_run {
        outcome.kept = outcome.held.keep_at();
    } else {
        outcome.promote(&store).await?;
    }
    print(&if args.json {
        format!("{}\n", outcome.json(args.dry_run))
    } else {
        outcome.text(args.dry_run)
    })
}

/// Of several replicas the one that is meant.
fn the_one(all: Vec<Held>, args: &Args) -> Result<Held, Error> {
    let replica_of = |held: &Held| held.state.as_ref().map(|state| state.replica.clone());
    let several = all.len() > 1;
    let names: Vec<String> = all.iter().filter_map(replica_of).collect();
    let given = args.replica.as_deref();
    let given = match all.first() {
        Some(held) if several => args.file.replica(held.database(), given, None)?,
        _ => None,
    };
    let meant = match given {
        Some((url, access)) if args.replica.is_some() => {
            Some(store::url::identity(store::open_with(&url, &access)?.as_ref()))
        }
        _ if several => {
            return Err(Error::Usage(format!(
                "{} has several replicas, so say which with --replica: {}",
                args.database.display(),
                names.join(", ")
            )));
        }
        _ => None,
    };
    let is_meant = |held: &Held| meant.is_none() || replica_of(held) == meant;
    all.into_iter().find(is_meant).ok_or_else(|| match meant {
        None => nothing_kept(args),
        Some(meant) => Error::Usage(format!(
            "{} is replicated to {}, not to {meant}",
            args.database.display(),
            names.join(", ")
        )),
    })
}

fn nothing_kept(args: &Args) -> Error {
    Error::Declined(format!(
        "walferry keeps nothing beside {}: its next start takes the replica by itself",
        args.database.display()
    ))
}

/// Whether another writer has taken the log where this database would go on. A database that has
/// written nothing to it has no place to lose: its first file takes the replica.
fn is_fenced(held: &Held, head: Option<&Head>) -> bool {
    let claimed = held.state.as_ref().is_some_and(|state| state.claimed);
    let foreign = |head: &Head| head.writer() != held.writer() && head.txid != held.acked();
    claimed && head.is_some_and(foreign)
}

fn why_not(held: &Held, head: Option<&Head>, replica: &str) -> String {
    let found = match head {
        None => format!("{replica} is empty"),
        Some(head) => format!("{replica} ends with TXID {}", head.txid),
    };
    format!(
        "{} has not lost its place to another writer: {found}, and no other writer went on from TXID {} of ours. Just start it; or give --force",
        held.database().display(),
        held.acked()
    )
}

/// What is found, and what is done.
struct Outcome {
    held: Held,
    head: Option<Head>,
    identity: String,
    fenced: bool,
    writer: WriterId,
    /// The TXID that shuts the other writer out.
    claimed: Option<Txid>,
    kept: Option<PathBuf>,
}

impl Outcome {
    /// First the log, which can refuse; then the local state. If this ends in between, the log is
    /// nobody's until the command is run again: it then finds a stranger's file once more.
    async fn promote(&mut self, store: &Arc<dyn Store>) -> Result<(), Error> {
        // Without a readable last file, no file can be made that takes over the log. The image of the next
        // start takes over the log instead.
        let last = self.head.as_ref().and_then(|head| head.header);
        if let Some(last) = last {
            let claimed =
                Claim { writer: self.writer, from: None }.take_over(store.as_ref(), &last).await?;
            self.claimed = Some(claimed.max_txid);
        }
        self.kept = self.held.give_up()?;
        let claimed = self.claimed.is_some();
        let state = State { claimed, ..State::new(self.writer, &self.identity) };
        self.held.begin(&state)
    }

    fn json(&self, dry_run: bool) -> Value {
        let header = self.head.as_ref().and_then(|head| head.header);
        json!({
            "database": self.held.database().display().to_string(),
            "replica": self.identity,
            "fenced": self.fenced,
            "promoted": !dry_run,
            "head": self.head.as_ref().map(|head| json!({
                "txid": head.txid.to_string(),
                "writer": head.writer().map(|writer| writer.to_string()),
                "time": header.map(|header| header.timestamp.to_string()),
            })),
            "ours": self.held.json(),
            "writer": (!dry_run).then(|| self.writer.to_string()),
            "claimed": self.claimed.map(|txid| txid.to_string()),
            "kept": self.kept.as_ref().map(|kept| kept.display().to_string()),
        })
    }

    fn text(&self, dry_run: bool) -> String {
        let log = match &self.head {
            None => "empty".to_string(),
            Some(Head { txid, header: None }) => format!("TXID {txid}, which cannot be read"),
            Some(Head { txid, header: Some(header) }) => {
                format!("TXID {txid} by writer {}, {}", header.writer, header.timestamp)
            }
        };
        let ours = self.held.writer().map_or("unknown".to_string(), |writer| writer.to_string());
        let mut lines = vec![
            format!("{}: {log}", self.identity),
            format!(
                "{}: TXID {} confirmed, writer {ours}",
                self.held.database().display(),
                self.held.acked()
            ),
        ];
        lines.extend(self.held.lines(self.kept.as_deref(), dry_run));
        lines.push(match (dry_run, self.claimed) {
            (true, _) => "nothing was changed".to_string(),
            (false, None) => format!("the next start takes the replica as writer {}", self.writer),
            (false, Some(txid)) => format!(
                "the replica is this database's from TXID {txid} on, as writer {}: the other writer \
                 stops at its next file, and what it has written stays restorable",
                self.writer
            ),
        });
        if !dry_run {
            lines.push("start this database now: it sends a full image as the next TXID".into());
        }
        shown::lines(lines)
    }
}
