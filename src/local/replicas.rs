//! Assigns each replica of a database its state folder.
//!
//! The state of a database's only replica is in `<database>-walferry/`. With several replicas, one has that
//! folder (the main folder). Each other replica has `<database>-walferry/replicas/<name>/`; the name is a
//! digest of the replica's URL. A replica keeps its folder when other replicas are added, removed or
//! reordered: with a state in another folder, it would need a full image.

use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::folder::is_folder;
use super::lock::{Attempt, Lock};
use super::state::State;

/// Folder that contains the folders of all replicas but one.
const OTHERS: &str = "replicas";

/// Returns the state folder of each of these replicas, which are given by their identities
/// ([`crate::store::url::identity`]).
pub fn dirs(database: &Path, replicas: &[&str]) -> Vec<PathBuf> {
    let main = super::state_dir(database);
    let own = |replica: &str| main.join(OTHERS).join(name(replica));
    let has = |replica: &str| is_folder(&own(replica));
    let owner = owner(&main);
    let at = match main_one(owner.as_deref(), replicas, &has) {
        // A process that ships to a replica outside this list keeps the main folder.
        Some(_) if owner.is_some_and(|owner| !replicas.contains(&&*owner)) && is_held(&main) => {
            None
        }
        at => at,
    };
    let dir = |(number, replica): (usize, &&str)| {
        if Some(number) == at { main.clone() } else { own(replica) }
    };
    replicas.iter().enumerate().map(dir).collect()
}

/// Returns the process that ships the database to another replica, if the replica given has no folder of its
/// own: the process's id, if known, and its replica.
pub fn shipped_elsewhere(database: &Path, replica: &str) -> Option<(Option<u32>, String)> {
    let main = super::state_dir(database);
    let owner = owner(&main).filter(|owner| owner != replica)?;
    if is_folder(&main.join(OTHERS).join(name(replica))) {
        return None;
    }
    match Lock::try_take(&main) {
        Ok(Attempt::HeldBy(pid)) => Some((pid, owner)),
        _ => None,
    }
}

/// Returns the replica whose state is in a folder.
fn owner(dir: &Path) -> Option<String> {
    State::load(dir).ok().flatten().map(|state| state.replica)
}

fn is_held(dir: &Path) -> bool {
    matches!(Lock::try_take(dir), Ok(Attempt::HeldBy(_)))
}

/// Returns every state folder of a database, of whichever replica.
pub fn existing(database: &Path) -> Vec<PathBuf> {
    let main = super::state_dir(database);
    let others = others(&main);
    let mut all: Vec<PathBuf> = main.is_dir().then_some(main).into_iter().collect();
    all.extend(others);
    all
}

/// Returns the folders of all further replicas in a main folder.
pub(super) fn others(main: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(main.join(OTHERS)).into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| is_folder(path)).collect();
    dirs.sort();
    dirs
}

/// Returns the number of the replica that has the main folder: the replica whose state is in there. Without
/// such a replica, returns the first, unless that has a folder already.
fn main_one(owner: Option<&str>, replicas: &[&str], has: &dyn Fn(&str) -> bool) -> Option<usize> {
    let owned = replicas.iter().position(|replica| Some(*replica) == owner);
    owned.or_else(|| replicas.first().filter(|replica| !has(replica)).map(|_| 0))
}

fn name(replica: &str) -> String {
    use std::fmt::Write as _;
    let digest = Md5::digest(replica.as_bytes());
    digest.iter().take(8).fold(String::new(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(owner: Option<&str>, replicas: &[&str], own: &[&str], expected: Option<usize>) {
        let at = main_one(owner, replicas, &|replica| own.contains(&replica));
        assert_eq!(at, expected, "{owner:?} {replicas:?} {own:?}");
    }

    #[test]
    fn a_replica_keeps_its_folder() {
        check(None, &["a"], &[], Some(0));
        check(None, &["a", "b"], &[], Some(0));
        check(Some("a"), &["b", "a"], &[], Some(1));
        check(Some("a"), &["b", "a"], &["b"], Some(1));
        // The replica's URL was changed, as the state in the folder shows.
        check(Some("z"), &["a"], &[], Some(0));
        // The replica that had the main folder is no longer set.
        check(Some("a"), &["b"], &["b"], None);
        check(Some("a"), &["c", "b"], &["b"], Some(0));
        check(None, &["b", "a"], &["b"], None);
    }

    #[test]
    fn names_tell_replicas_apart() {
        assert_eq!(name("s3://bucket/app").len(), 16);
        assert_ne!(name("s3://bucket/app"), name("s3://bucket/apq"));
    }
}
