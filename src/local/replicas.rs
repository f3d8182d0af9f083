//! Which folder of local state belongs to which replica of a database.
//!
//! A database with one replica has its state in `<database>-walferry/`. Of several one has that, and
//! each other one `<database>-walferry/replicas/<name>/`, where the name is made of the replica's URL.
//! A replica keeps its folder when others come, go, or are named in another order: a state in another
//! folder would cost a full image.

use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::folder::is_folder;
use super::lock::{Attempt, Lock};
use super::state::State;

/// The folder of the folders of all replicas but one.
const OTHERS: &str = "replicas";

/// The folder of each of these replicas of a database, by their identities
/// ([`crate::store::url::identity`]).
pub fn dirs(database: &Path, replicas: &[&str]) -> Vec<PathBuf> {
    let main = super::state_dir(database);
    let own = |replica: &str| main.join(OTHERS).join(name(replica));
    let has = |replica: &str| is_folder(&own(replica));
    let owner = owner(&main);
    let at = match main_one(owner.as_deref(), replicas, &has) {
        // Whoever ships to a replica that is not among these goes on doing so.
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

/// The process that ships a database to another replica than this one, which is shipped to by nobody:
/// its id, if it is known, and its replica.
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

/// Whose state is in a folder.
fn owner(dir: &Path) -> Option<String> {
    State::load(dir).ok().flatten().map(|state| state.replica)
}

fn is_held(dir: &Path) -> bool {
    matches!(Lock::try_take(dir), Ok(Attempt::HeldBy(_)))
}

/// Every folder of local state that a database has, whoever's it is.
pub fn existing(database: &Path) -> Vec<PathBuf> {
    let main = super::state_dir(database);
    let others = others(&main);
    let mut all: Vec<PathBuf> = main.is_dir().then_some(main).into_iter().collect();
    all.extend(others);
    all
}

/// The folders of the other replicas in that of one.
pub(super) fn others(main: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(main.join(OTHERS)).into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| is_folder(path)).collect();
    dirs.sort();
    dirs
}

/// Which replica has the database's own folder: whose state is in it. Where that is nobody's of
/// these, the first, unless it has a folder already.
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
        // Its URL was changed: what is in the folder shows that.
        check(Some("z"), &["a"], &[], Some(0));
        // The one that had the folder is not set any more.
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
