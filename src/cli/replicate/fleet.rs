//! The databases that are to be replicated: opened when they are there, let go when they are not.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;

use super::super::Error;
use super::super::failure::Failure;
use super::candidate;
use super::folder::{self, Unread};
use super::limits;
use super::member::{ABSENT, EMPTY, Member, NotOpen, OTHER_MODE};
use super::refusal::{self, Refusal};
use super::wanted::{Place, Wanted};

/// How often a folder is read.
const READ_FOLDERS: Duration = Duration::from_secs(2);
/// How long it is waited for locks in all while each database is looked at once: the others come late
/// meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a look takes before the caller is let do something else.
const LOOK: Duration = Duration::from_millis(200);
/// How long the last look takes, at most: whoever waits for the end is not kept by a lock that stays.
const LAST_LOOK: Duration = Duration::from_secs(3);
/// Between two attempts of it.
const PAUSE: Duration = Duration::from_millis(50);

/// All databases.
pub(super) struct Fleet {
    wanted: Vec<Wanted>,
    /// Folders that could not be read when they were read last, with the reasons.
    unread: BTreeMap<PathBuf, Unread>,
    /// Of each database that was named: where its path led at first, and where it does now.
    led: BTreeMap<PathBuf, (PathBuf, PathBuf)>,
    members: BTreeMap<PathBuf, Member>,
    /// Asked for what the whole process knows.
    asking: Connection,
    read_at: Option<Instant>,
    limit_told: bool,
    /// Where the next look goes on, if the last one did not see all.
    next: Option<PathBuf>,
    /// What is left of [`PATIENCE`].
    patience: Duration,
    /// Whether each database was looked at once.
    pub(super) all_seen: bool,
}

impl Fleet {
    /// With nothing open yet. The extension is loaded.
    pub(super) fn new(wanted: Vec<Wanted>) -> Result<Fleet, Error> {
        let asking = Connection::open_in_memory()
            .map_err(|error| Failure::sqlite("cannot open a database in memory", error))?;
        let members = BTreeMap::new();
        let (read_at, next, patience) = (None, None, PATIENCE);
        let (limit_told, all_seen) = (false, false);
        let led = BTreeMap::new();
        let unread = BTreeMap::new();
        Ok(Fleet {
            wanted,
            unread,
            led,
            members,
            asking,
            read_at,
            limit_told,
            next,
            patience,
            all_seen,
        })
    }

    /// Opens what is there, closes what is gone; `false` if that took so long that it ended before
    /// each database was looked at. The next call goes on.
    pub(super) fn look(&mut self) -> bool {
        let begun = Instant::now();
        if self.next.is_none() {
            self.patience = PATIENCE;
            if self.read_at.is_none_or(|at| at <= begun) {
                self.take_in();
                self.read_at = Some(begun + READ_FOLDERS);
            }
        }
        let next = self.next.take();
        let from = next.as_deref().map_or(Bound::Unbounded, Bound::Included);
        let mut forgotten = Vec::new();
        for (path, member) in self.members.range_mut::<Path, _>((from, Bound::Unbounded)) {
            if begun.elapsed() >= LOOK {
                self.next = Some(path.clone());
                break;
            }
            if !member.look(path, &mut self.patience) {
                forgotten.push(path.clone());
            }
        }
        for path in forgotten {
            self.members.remove(&path);
        }
        self.ask_of_new();
        if !self.limit_told
            && let Some((limit, needed)) = limits::too_low_for(self.members.len())
        {
            self.limit_told = true;
            log::error!(
                "{} databases need about {needed} open files, and the limit is {limit}: raise it (ulimit -n, LimitNOFILE=)",
                self.members.len()
            );
        }
        self.all_seen |= self.next.is_none();
        self.next.is_none()
    }

    /// Adds databases that are new.
    fn take_in(&mut self) {
        let first = self.read_at.is_none();
        let mut unread = BTreeMap::new();
        for wanted in &self.wanted {
            match &wanted.place {
                Place::Database(path) => {
                    let leads = crate::config::canonical(path);
                    if first {
                        add(&mut self.members, wanted, path, None);
                    }
                    let first_time = || (leads.clone(), leads.clone());
                    let (led, told) = self.led.entry(path.clone()).or_insert_with(first_time);
                    if *told != leads && leads.exists() {
                        told.clone_from(&leads);
                        let same = candidate::file_id(led) == candidate::file_id(&leads);
                        if !same && !self.members.contains_key(&leads) {
                            log::error!(
                                "{}: this leads to {} now, which is not replicated; what is replicated is the database to which it led: end and begin again",
                                path.display(),
                                leads.display()
                            );
                        }
                    }
                }
                Place::Folder { path, pattern, recursive, watch } if first || *watch => {
                    let mut files = Vec::new();
                    folder::find(path, pattern, *recursive, &mut files, &mut unread);
                    for file in files {
                        let within = file.strip_prefix(path).ok().map(Path::to_path_buf);
                        add(&mut self.members, wanted, &file, within.as_deref());
                    }
                }
                Place::Folder { path, .. } => {
                    // Without `watch` the folder is read once, and its errors stay.
                    let known = self.unread.iter().filter(|(folder, _)| folder.starts_with(path));
                    unread.extend(known.map(|(folder, why)| (folder.clone(), why.clone())));
                }
            }
        }
        for (folder, why) in &unread {
            if self.unread.get(folder) != Some(why) {
                log::error!("{}: {why}", folder.display());
            }
        }
        self.unread = unread;
    }

    /// Returns the folders that could not be read when they were read last.
    pub(super) fn unread(&self) -> impl Iterator<Item = (&Path, &Unread)> {
        self.unread.iter().map(|(folder, why)| (folder.as_path(), why))
    }

    /// Lets go of databases that the extension refuses, among those that were opened just now.
    fn ask_of_new(&mut self) {
        if !self.members.values().any(|member| member.unasked) {
            return;
        }
        let refusals = self.refusals();
        for (path, member) in self.members.iter_mut().filter(|(_, member)| member.unasked) {
            member.unasked = false;
            let refusal = refusals.get(&path.display().to_string());
            match refusal.filter(|refusal| refusal.of_all) {
                None => {
                    (member.said, member.failed) = (None, None);
                    log::info!("{}: opened", path.display());
                }
                Some(refusal) => {
                    let file = member.open.as_ref().map(|open| open.file);
                    member.close(path);
                    member.note_failure(path, file, &NotOpen::Refused(refusal.why.clone()));
                }
            }
        }
    }

    /// Returns why databases are not replicated, by their paths as the status has them.
    fn refusals(&self) -> HashMap<String, Refusal> {
        refusal::of(self.status())
    }

    /// Before the end: what came since the last look, and what could not be opened until now. Gives
    /// those that are there all the same and are not replicated.
    pub(super) fn look_at_last(&mut self) -> Vec<PathBuf> {
        let until = Instant::now() + LAST_LOOK;
        (self.next, self.read_at) = (None, self.read_at.map(|_| Instant::now()));
        loop {
            for failed in self.members.values_mut().filter_map(|member| member.failed.as_mut()) {
                failed.again = Instant::now();
            }
            while !self.look() && Instant::now() < until {}
            // A database in another journal mode was reported, and is no failure.
            let is_failed = |member: &Member| {
                member.failed.is_some() && member.said.as_deref() != Some(OTHER_MODE)
            };
            let soon = |member: &Member| member.failed.as_ref().is_some_and(|failed| failed.soon);
            let comes_soon = |member: &Member| is_failed(member) && soon(member);
            if !self.members.values().any(comes_soon) || Instant::now() >= until {
                // If the time was too short for all, the first database that was not looked at stands for the
                // rest.
                let unseen = self.next.iter().cloned();
                let refusals = self.refusals();
                let failed = self.members.iter().filter(|(path, member)| {
                    let refused = refusals.contains_key(&path.display().to_string());
                    is_failed(member) || refused && member.open.is_some()
                });
                let failed = failed.map(|(path, _)| path.clone());
                return failed.chain(unseen).chain(self.unread.keys().cloned()).collect();
            }
            std::thread::park_timeout(PAUSE);
        }
    }

    /// Whether every database that can be opened is replicated: its WAL is kept, and what is
    /// committed is seen. One that is locked now may be opened soon.
    pub(super) fn is_ready(&self) -> bool {
        let soon = |member: &Member| member.failed.as_ref().is_some_and(|failed| failed.soon);
        if !self.all_seen || self.members.values().any(soon) {
            return false;
        }
        let states: HashMap<String, String> = self
            .status()
            .into_iter()
            .filter_map(|one| {
                Some((one["database"].as_str()?.to_string(), one["state"].as_str()?.to_string()))
            })
            .collect();
        self.members.iter().filter(|(_, member)| member.open.is_some()).all(|(path, _)| {
            states.get(&path.display().to_string()).is_some_and(|state| state != "opening")
        })
    }

    /// `walferry_status()`.
    pub(super) fn status(&self) -> Vec<Value> {
        let text = self.asking.query_row("SELECT walferry_status()", [], |row| row.get(0));
        let text: String = text.unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Whether the extension's threads answer in this time.
    pub(super) fn answers(&self, within: Duration) -> bool {
        let ms = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
        let well = self.asking.query_row("SELECT walferry_ping(?1)", [ms], |row| row.get(0));
        well.is_ok_and(|well: i64| well == 1)
    }

    /// Every database with its connection; none while it is not open.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Path, Result<&Connection, &str>)> {
        self.members.iter().map(|(path, member)| {
            let said = member.said.as_deref().unwrap_or(ABSENT);
            (path.as_path(), member.open.as_ref().map(|open| &open.db).ok_or(said))
        })
    }

    /// Whether it is a file of a folder that nothing was written to.
    pub(super) fn is_empty_in_folder(&self, path: &Path) -> bool {
        let is_empty = |member: &Member| member.found && member.said.as_deref() == Some(EMPTY);
        self.members.get(path).is_some_and(is_empty)
    }

    /// The URL of a database's replica, if it was given.
    pub(super) fn replica(&self, path: &Path) -> Option<&str> {
        self.members.get(path)?.replica.as_deref()
    }

    /// Closes all of them.
    pub(super) fn close(&mut self) {
        for (path, member) in &mut self.members {
            member.close(path);
        }
    }
}

fn add(
    members: &mut BTreeMap<PathBuf, Member>,
    wanted: &Wanted,
    path: &Path,
    within: Option<&Path>,
) {
    let path = crate::config::canonical(path);
    if members.contains_key(&path) {
        return;
    }
    let member = Member::new(wanted, &path, within);
    members.insert(path, member);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Databases that somebody else has to themselves, opened without the extension.
    fn held(folder: &Path, number: usize) -> (Fleet, Vec<Connection>) {
        let mut fleet = Fleet::new(Vec::new()).unwrap();
        let holders = (0..number).map(|number| {
            let path = folder.join(format!("{number:02}.db"));
            let db = Connection::open(&path).unwrap();
            let to_itself = "PRAGMA journal_mode=WAL; PRAGMA locking_mode=EXCLUSIVE";
            db.execute_batch(&format!("{to_itself}; CREATE TABLE t (x)")).unwrap();
            let member = Member::plain(&path);
            fleet.members.insert(path, member);
            db
        });
        let holders = holders.collect();
        (fleet, holders)
    }

    #[test]
    fn locked_databases_do_not_keep_the_caller() {
        let folder = tempfile::tempdir().unwrap();
        let (mut fleet, holders) = held(folder.path(), 20);
        assert!(!fleet.look(), "it goes on for all of them");
        assert!(!fleet.is_ready());
        let tried = fleet.members.values().filter(|member| member.failed.is_some()).count();
        assert!((1..20).contains(&tried), "{tried}");
        while !fleet.look() {}
        assert!(fleet.members.values().all(|member| member.failed.is_some()));
        // The fleet waited for only a few of them.
        assert!(fleet.patience.is_zero());
        assert!(!fleet.is_ready(), "they may be opened soon");

        drop(holders);
        for member in fleet.members.values_mut() {
            member.failed.as_mut().unwrap().again = Instant::now();
        }
        while !fleet.look() {}
        assert!(fleet.members.values().all(|member| member.open.is_some()));
    }
}
