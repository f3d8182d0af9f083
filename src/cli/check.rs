//! `walferry check`: whether what the configuration file says can work, tried for real.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::against;
use super::configured::File;
use super::databases::required;
use super::sync::parse_timeout;
use super::{Error, print};
use crate::config::Config;
use crate::follow;
use crate::local::state::{State, random_id};
use crate::local::{self, state_dir};
use crate::ltx::FileName;
use crate::settings::{JournalMode, Settings};
use crate::shown;
use crate::store::{self, Access, Body, ErrorKind, Key, Store};
use crate::units::{Level, Txid};
use crate::verify::{self, Depth, Kept};

/// Requests at a time, where a whole replica is read.
const REQUESTS: usize = 8;

/// Arguments of `walferry check`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry check --config walferry.yml",
    "walferry check --deep app.db",
]))]
pub(super) struct Args {
    /// Only these databases; else all that the file lists
    #[arg(value_name = "DATABASE")]
    databases: Vec<PathBuf>,
    #[command(flatten)]
    file: File,
    /// Compare each database with its replicas, page for page, as `walferry verify --against` does; also
    /// one that is in no configuration file but was replicated from here
    #[arg(long)]
    deep: bool,
    /// With --deep: how long to wait for commits that are still on their way
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_timeout)]
    timeout: Duration,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

/// What was tried, on what, and what came of it.
struct Check {
    subject: String,
    what: &'static str,
    result: Result<String, String>,
}

/// The checks of one database or replica.
struct Checks<'a> {
    subject: String,
    all: &'a mut Vec<Check>,
}

impl Checks<'_> {
    /// Notes a result; whether it is well.
    fn note(&mut self, what: &'static str, result: Result<String, String>) -> bool {
        let well = result.is_ok();
        self.all.push(Check { subject: self.subject.clone(), what, result });
        well
    }
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    // A database that is named and was replicated from here needs no configuration file.
    let config = match args.file.load()? {
        None if args.deep && !args.databases.is_empty() => None,
        None => Some(required(&args.file)?),
        config => config,
    };
    let mut all = Vec::new();
    args.databases.iter().try_for_each(|path| super::not_a_url(path))?;
    let mut databases: Vec<PathBuf> =
        args.databases.iter().map(|path| crate::config::canonical(path)).collect();
    if let Some(config) = &config {
        let subject = config.file.display().to_string();
        if args.databases.is_empty() {
            databases = config.files();
        }
        let number = super::table::count(databases.len(), "database");
        Checks { subject, all: &mut all }.note("configuration", Ok(format!("read; {number}")));
        if args.databases.is_empty() {
            check_folders(config, &mut all);
        }
    }
    for path in databases {
        let replicas = File::settings(&path, config.as_ref())?;
        if args.deep {
            let found = deep_replicas(&path, &replicas, config.as_ref());
            let is_known = !found.is_empty();
            for one in found {
                let (subject, compared) = match one {
                    Ok((url, access)) => (
                        format!("{} to {}", path.display(), store::url::redacted(&url)),
                        compared(&path, &url, &access, args.timeout).await,
                    ),
                    Err(why) => (path.display().to_string(), Err(why)),
                };
                Checks { subject, all: &mut all }.note("deep", compared);
            }
            if replicas.is_empty() && is_known {
                continue;
            }
        }
        let mut checks = Checks { subject: path.display().to_string(), all: &mut all };
        if replicas.is_empty() {
            checks.note(
                "configuration",
                Err("neither the file nor the environment names a replica".into()),
            );
            continue;
        }
        check_database(&path, replicas.first(), &mut checks);
        for settings in &replicas {
            let url = store::url::redacted(&settings.replica);
            let subject = format!("{} to {url}", path.display());
            let mut checks = Checks { subject, all: &mut all };
            if let Some(why) = local::misplaced(&path, &settings.replica) {
                checks.note("place", Err(why));
            }
            check_replica(settings, &mut checks).await;
        }
    }
    let failed = all.iter().filter(|check| check.result.is_err()).count();
    print(&if args.json { in_json(&all) } else { in_words(&all) })?;
    if failed == 0 { Ok(()) } else { Err(Error::Checks(failed)) }
}

/// The replicas of a database; where nobody names one, those that it was replicated to from here. A state
/// folder that shows no replica is an error: a comparison was asked for and cannot be made.
fn deep_replicas(
    database: &Path,
    named: &[Settings],
    config: Option<&Config>,
) -> Vec<Result<(String, Access), String>> {
    if !named.is_empty() {
        return named.iter().map(|one| Ok((one.replica.clone(), one.access.clone()))).collect();
    }
    let mut dirs = local::replicas::existing(database);
    // The main folder may exist only as the parent of other replicas' folders.
    let main = state_dir(database);
    if dirs.len() > 1 && local::given_up::is_given_up(&main) {
        dirs.retain(|dir| *dir != main);
    }
    let replica = |dir: PathBuf| match (follow::position(&dir), State::load(&dir)) {
        (_, Ok(Some(state))) => {
            let access = File::access(&state.replica, config);
            Ok((state.replica, access))
        }
        (Ok(Some(copy)), _) => {
            Err(format!("it is a copy of {}, and nothing replicates a copy", copy.replica))
        }
        (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
        (Ok(None), Ok(None)) => Err(format!("{} names no replica", dir.display())),
    };
    dirs.into_iter().map(replica).collect()
}

/// Whether a replica is the database as it is now.
async fn compared(
    database: &Path,
    url: &str,
    access: &Access,
    timeout: Duration,
) -> Result<String, String> {
    let said = |error: Error| error.to_string();
    let store = store::open_with(url, access).map_err(|error| said(error.into()))?;
    let quiet = Arc::new(|_, _| {});
    let examined = verify::examine(store.clone(), Depth::Whole, Kept::default(), REQUESTS, quiet);
    let (report, newest) = examined.await.map_err(|error| said(error.into()))?;
    if let Some(defect) = report.defects.first() {
        let number = super::table::count(report.defects.len(), "defect");
        let place = defect.key.map_or("the replica".to_string(), |key| key.to_string());
        return Err(format!("{number}, such as: {place}: {}", defect.what));
    }
    let newest = newest.ok_or("its files do not show each page of its newest state")?;
    let outcome = against::compare(database, url, &store, newest, timeout).await.map_err(said)?;
    if outcome.is_well() { Ok(outcome.text()) } else { Err(outcome.text()) }
}

fn in_json(all: &[Check]) -> String {
    let one = |check: &Check| {
        let (Ok(said) | Err(said)) = &check.result;
        json!({
            "subject": check.subject,
            "check": check.what,
            "ok": check.result.is_ok(),
            "said": said,
        })
    };
    let failed = all.iter().filter(|check| check.result.is_err()).count();
    let text = json!({ "checks": all.iter().map(one).collect::<Vec<_>>(), "failed": failed });
    format!("{text}\n")
}

fn in_words(all: &[Check]) -> String {
    let line = |check: &Check| match &check.result {
        Ok(said) => format!("ok      {}: {}: {said}", check.subject, check.what),
        Err(why) => format!("FAILED  {}: {}: {why}", check.subject, check.what),
    };
    shown::lines(all.iter().map(line))
}

/// The folders whose databases are to be replicated.
fn check_folders(config: &Config, all: &mut Vec<Check>) {
    for folder in config.databases.iter().filter(|entry| entry.pattern.is_some()) {
        let subject = folder.place.display().to_string();
        let there = std::fs::read_dir(&folder.place)
            .map(|_| {
                format!(
                    "it is there, with {}",
                    super::table::count(folder.files().len(), "database")
                )
            })
            .map_err(|error| error.to_string());
        let unread = if there.is_ok() { folder.unread() } else { Vec::new() };
        Checks { subject, all }.note("folder", there);
        for (path, error) in unread {
            let subject = path.display().to_string();
            Checks { subject, all }.note("folder", Err(format!("it cannot be read: {error}")));
        }
    }
}

/// The program is another process than the one that writes: a look at the file takes no locks from
/// anybody.
fn check_database(path: &Path, settings: Option<&Settings>, checks: &mut Checks<'_>) {
    let mut header = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(100).read_to_end(&mut header).map(|_| ()));
    let there = match read {
        Ok(()) if header.is_empty() => Ok("it is there, and empty".to_string()),
        Ok(()) if header.starts_with(b"SQLite format 3\0") => Ok("it is there".to_string()),
        Ok(()) => Err("it is no SQLite database".to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok("it is not there yet; the program that opens it makes it".to_string())
        }
        Err(error) => Err(format!("it cannot be read: {error}")),
    };
    if checks.note("database", there) && !header.is_empty() {
        checks.note("journal mode", journal_mode(&header, settings));
    }
    checks.note("state folder", state_folder(path));
}

/// Bytes 18 and 19 are 2 in WAL mode (<https://sqlite.org/fileformat2.html>).
fn journal_mode(header: &[u8], settings: Option<&Settings>) -> Result<String, String> {
    if header.get(18..20) == Some(&[2, 2]) {
        return Ok("WAL".into());
    }
    match settings.map(|settings| settings.journal_mode) {
        Some(JournalMode::Wal) => {
            Ok("not WAL yet; it is put into WAL mode when it is opened with walferry".into())
        }
        _ => Err("not WAL, and journal-mode is keep; only WAL mode is replicated: set PRAGMA \
                  journal_mode=WAL"
            .into()),
    }
}

/// Whether the folder beside the database can be made, or written to.
fn state_folder(database: &Path) -> Result<String, String> {
    let state = state_dir(database);
    let folder = match (state.is_dir(), database.parent()) {
        (false, Some(parent)) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        (false, _) => PathBuf::from("."),
        (true, _) => state.clone(),
    };
    let trial = folder.join(format!(".walferry-check-{:016x}", random_id()));
    let made = local::folder::create_new(&trial);
    made.and_then(|_| std::fs::remove_file(&trial))
        .map(|()| format!("{} can be written", state.display()))
        .map_err(|error| format!("{} cannot be written: {error}", folder.display()))
}

/// What a replica needs of its store, on a file in a folder of its own beside the levels, which
/// neither walferry nor Litestream looks into.
async fn check_replica(settings: &Settings, checks: &mut Checks<'_>) {
    let said = |error: store::Error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text += &[": ", &error.to_string()].concat();
            cause = error.source();
        }
        text
    };
    let open = |url: &str| store::open_with(url, &settings.access);
    let folder = format!("walferry-check-{:016x}", random_id());
    let trial_url = store::url::below(&settings.replica, &folder);
    let (replica, trial) = match (open(&settings.replica), open(&trial_url)) {
        (Ok(replica), Ok(trial)) => (replica, trial),
        (Err(error), _) | (_, Err(error)) => {
            checks.note("settings", Err(error.to_string()));
            return;
        }
    };
    let files = replica.list(Level::L0).await;
    let listed = files.map(|files| super::table::count(files.len(), "file") + " of level 0");
    if !checks.note("credentials and list", listed.map_err(said)) {
        return;
    }
    let absent = absent_ancestors(&trial_url);
    let key = Key { level: Level::L0, name: FileName::single(Txid(1)) };
    let put = |text: &'static [u8]| {
        trial.put_new(key, Body::Bytes(Bytes::from_static(text)), crate::clock::wall())
    };
    let first = b"walferry check: this may be deleted";
    let written = put(first).await.map(|()| "a file was created".to_string());
    if checks.note("write", written.map_err(said)) {
        let again = match put(b"another one").await {
            Err(error) if error.kind == ErrorKind::AlreadyExists => {
                Ok("the second file of the same name was refused".to_string())
            }
            Ok(()) => {
                Err("the store replaced a file that was there: two writers would overwrite each \
                           other; it does not know conditional writes (If-None-Match)"
                    .to_string())
            }
            Err(error) => Err(said(error)),
        };
        checks.note("conditional create", again);
        let found = match trial.get(key, None).await {
            Ok(bytes) if bytes.as_ref() == first => Ok("what was written is what was read".into()),
            Ok(_) => Err("the file has another content than was written".to_string()),
            Err(error) => Err(said(error)),
        };
        checks.note("read", found);
        let deleted = deleted(&trial, key, settings, &trial_url).await;
        checks.note("delete", deleted);
    }
    for folder in absent {
        // A folder that is not empty stays.
        let _ = std::fs::remove_dir(folder);
    }
}

async fn deleted(
    trial: &Arc<dyn Store>,
    key: Key,
    settings: &Settings,
    url: &str,
) -> Result<String, String> {
    let gone = match trial.delete(key).await {
        Ok(()) => match trial.list(Level::L0).await {
            Ok(files) if files.is_empty() => Ok("the file is gone".to_string()),
            Ok(_) => Err("the file is still listed".to_string()),
            Err(error) => Err(error.to_string()),
        },
        Err(error) => Err(error.to_string()),
    };
    let left = store::url::redacted(url);
    match gone {
        Err(why) if !settings.history.deletes => {
            Ok(format!("not possible, nor needed with deletes off: {left} stays ({why})"))
        }
        Err(why) => Err(format!(
            "{why}; {left} stays. Allow it, or say deletes: false to keep everything for ever"
        )),
        well => well,
    }
}

/// In a folder, those that the trial makes, the deepest first.
fn absent_ancestors(url: &str) -> Vec<PathBuf> {
    let root = store::url::folder(url);
    let Some(root) = root else { return Vec::new() };
    let deepest = root.join("ltx").join("0");
    deepest.ancestors().take_while(|folder| !folder.exists()).map(Path::to_path_buf).collect()
}
