//! Whose files SQLite makes beside a database: they must not shut its owner out.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat, getxattr};
use rustix::process::{getegid, geteuid};

/// Mode bits.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const SET_GROUP: u32 = 0o2000;

const HINT: &str = "run walferry as the database's owner, or in a group that the database and its folder have and that may write both";

/// Returns why this process leaves a database alone: it is another user's, and the owner could not
/// write it any more beside files of this process.
///
/// SQLite gives `-wal` and `-shm` the database's mode, and the user of the process that makes them;
/// only root gives them to the database's owner.
pub(super) fn shuts_out(path: &Path) -> Option<String> {
    let user = geteuid();
    if user.is_root() {
        return None;
    }
    let database = std::fs::metadata(path).ok()?;
    let owner = database.uid();
    if owner == user.as_raw() {
        return None;
    }
    if accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_err() {
        return Some(format!(
            "it is user {owner}'s, and user {} may not write it: {HINT}",
            user.as_raw()
        ));
    }
    let missing = ["-wal", "-shm"].into_iter().find(|end| !beside(path, end).exists())?;
    (!owner_writes_new(path, &database)).then(|| {
        format!(
            "it is user {owner}'s, who could not write the {missing} that user {} would make: {HINT}",
            user.as_raw()
        )
    })
}

/// Whether a file that this process makes, with the database's mode, is one that the database's owner
/// writes. A group that may write the database is taken for one of its owner's.
fn owner_writes_new(path: &Path, database: &Metadata) -> bool {
    if database.mode() & OTHERS_WRITE != 0 {
        return true;
    }
    let Some(folder) = path.parent() else { return false };
    // A default ACL decides the rights of new files alone.
    if getxattr(folder, "system.posix_acl_default", &mut [0_u8; 0]).is_ok() {
        return true;
    }
    let folder = std::fs::metadata(folder).ok().filter(|folder| folder.mode() & SET_GROUP != 0);
    let group = folder.map_or_else(|| getegid().as_raw(), |folder| folder.gid());
    database.mode() & GROUP_WRITES != 0 && group == database.gid()
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}
