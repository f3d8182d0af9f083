//! The state file: who ships this database, to where, and how far the log has come.
//!
//! It is JSON, so that a person can read it, with a checksum over its body, so that a torn or
//! edited file is told from a good one. It is replaced as a whole.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::replace::replace_file;
use super::{Context, Error, folder};
use crate::ltx::checksum::FileDigest;
use crate::units::{Salts, Txid, WalPosition, WriterId};

/// Everything that must survive a restart and is in no other file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// Our lineage.
    pub writer: u64,
    /// The replica's URL, without secrets; another one makes this state worthless.
    pub replica: String,
    /// Whether a file of this lineage is in the replica's log.
    pub claimed: bool,
    /// The first file of this lineage that the log has, as far as is known.
    #[serde(default)]
    pub first: Option<u64>,
    /// The lineage whose files the disk forgot, and for which this one goes on; or the one whose log this
    /// one is about to take over. Until it is in the log it may take that from no other.
    #[serde(default)]
    pub former: Option<u64>,
    /// Last state that the store has, if any.
    pub base: Option<Base>,
    /// A full image that was sent, but whose arrival was not confirmed yet.
    pub image: Option<Image>,
    /// TXID that the replica was last seen to hold still, long after it was sent.
    #[serde(default)]
    pub checked: u64,
    /// Database checksum that its file leaves.
    #[serde(default)]
    pub checked_sum: Option<u64>,
    /// The database file as it was left when its WAL had been checkpointed whole and removed.
    pub clean: Option<Clean>,
    /// When the last audit began, in milliseconds since the epoch: by any process of this lineage.
    #[serde(default)]
    pub audited: Option<i64>,
    /// The page with which it goes on, if it has not ended.
    #[serde(default)]
    pub audit_next: Option<u32>,
    /// A finding that the next start would not come to by itself, by its name, until the replica has what it
    /// calls for ([`crate::finding::Finding::is_found_again`]).
    #[serde(default)]
    pub due: Option<String>,
    /// Names the start of the machine since which `base` is the log's end: a power loss may bring an older
    /// state back.
    #[serde(default)]
    pub boot: Option<u64>,
}

/// A point of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Base {
    /// Its TXID.
    pub txid: u64,
    /// Number of the last captured piece that it contains ([`super::spool`]).
    pub piece: u64,
    /// Page size of the database.
    pub page_size: u32,
    /// Size of the database in pages.
    pub commit: u32,
    /// Database checksum.
    pub checksum: u64,
    /// Time of the last commit in it, in milliseconds since the epoch.
    pub timestamp: i64,
    /// Where in the WAL it ends; `None` if the database was complete without a WAL.
    pub position: Option<Position>,
}

impl Base {
    /// The TXID.
    pub fn txid(&self) -> Txid {
        Txid(self.txid)
    }
}

/// A WAL position in its stored form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Position {
    /// The two salts.
    pub salts: (u32, u32),
    /// Last frame.
    pub frame: u32,
    /// The checksum words in that frame's header.
    pub checksum: (u32, u32),
}

impl From<WalPosition> for Position {
    fn from(at: WalPosition) -> Position {
        Position { salts: (at.salts.0, at.salts.1), frame: at.frame, checksum: at.checksum }
    }
}

impl From<Position> for WalPosition {
    fn from(at: Position) -> WalPosition {
        WalPosition { salts: Salts(at.salts.0, at.salts.1), frame: at.frame, checksum: at.checksum }
    }
}

/// A full image on its way: what to believe if the store turns out to have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Image {
    /// Level of the file: 9 for the first, 0 for later ones.
    pub level: u8,
    /// First TXID in the file's name.
    pub min_txid: u64,
    /// The point that it makes.
    pub base: Base,
}

/// What tells that nobody wrote to the database file since we saw it last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fingerprint {
    /// File system and file.
    pub file: (u64, u64),
    /// Length in bytes.
    pub len: u64,
    /// Time of the last change of the contents: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Time of the last change of whatever kind, which nobody can set back. An older version did not
    /// note it: what it left is equal to no file.
    #[serde(default)]
    pub changed: Option<(i64, i64)>,
}

/// True if the path has another file than this, or none. A path that cannot be looked at just now tells
/// nothing.
pub fn is_replaced(file: (u64, u64), path: &Path) -> bool {
    match Fingerprint::of(path) {
        Ok(now) => now.file != file,
        Err(error) => {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        }
    }
}

/// True if a file that changed then may get the same time once more. One that lies further ahead is of before the
/// clock was set back.
fn is_same_tick(changed: (i64, i64), now: (i64, i64)) -> bool {
    const TICK_NS: i128 = 20_000_000;
    let ns = |(seconds, ns): (i64, i64)| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    (0..TICK_NS).contains(&(ns(changed) - ns(now)))
}

impl Fingerprint {
    /// Looks at a file by its path. It is not opened: closing a descriptor of a database would
    /// drop this process's locks on it.
    pub fn of(path: &Path) -> std::io::Result<Fingerprint> {
        let meta = std::fs::metadata(path)?;
        Ok(Fingerprint {
            file: (meta.dev(), meta.ino()),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: Some((meta.ctime(), meta.ctime_nsec())),
        })
    }

    /// True if a write that comes now may leave it as it is: it was taken in the same tick of the clock that the
    /// file has from its last change.
    pub fn may_change_unseen(&self) -> bool {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        self.changed.is_none_or(|changed| is_same_tick(changed, (now.tv_sec, now.tv_nsec)))
    }

    /// Whether it is the same file with the same contents, perhaps under another name.
    pub fn is_renamed(&self, now: &Fingerprint) -> bool {
        *self == Fingerprint { changed: self.changed, ..*now }
    }
}

/// A database file that was complete without a WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Clean {
    /// The file.
    pub fingerprint: Fingerprint,
    /// Last captured piece that it contains.
    pub piece: u64,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    checksum: String,
    body: String,
}

const NAME: &str = "state";
const VERSION: u32 = 1;
/// No state is longer, in bytes: a URL and some numbers.
const LEN_MAX: u64 = 64 << 10;

impl State {
    /// A lineage that has shipped nothing yet.
    pub fn new(writer: WriterId, replica: &str) -> State {
        State {
            writer: writer.0,
            replica: replica.to_string(),
            claimed: false,
            first: None,
            former: None,
            base: None,
            image: None,
            checked: 0,
            checked_sum: None,
            clean: None,
            audited: None,
            audit_next: None,
            due: None,
            boot: None,
        }
    }

    /// The store has this file of ours.
    pub fn confirm(&mut self, base: Base, boot: Option<u64>) {
        self.claimed = true;
        self.boot = boot;
        self.first.get_or_insert(base.txid);
        self.image = None;
        self.base = Some(base);
        if self.checked == base.txid {
            self.checked_sum = Some(base.checksum);
        }
    }

    /// True if the log is known to end with `base`, now that the machine is in this time.
    pub fn is_sure(&self, boot: Option<u64>) -> bool {
        boot.is_some() && self.boot == boot
    }

    /// Reads the state of a folder. `Ok(None)` when there is none; a damaged one is an error of
    /// kind `InvalidData`.
    pub fn load(dir: &Path) -> Result<Option<State>, Error> {
        let mut state: Option<State> = load_sealed(&dir.join(NAME))?;
        if let Some(state) = &mut state {
            state.replica = crate::store::url::one_spelling(&state.replica);
        }
        Ok(state)
    }

    /// Makes the file of a folder durable as it is.
    pub fn sync(dir: &Path) -> Result<(), Error> {
        let path = dir.join(NAME);
        let synced = folder::read(&path).and_then(|file| file.sync_all());
        synced.and_then(|()| super::sync_folder(dir)).context("cannot sync", &path)
    }

    /// True if the file may not be on the disk: the process that wrote it may have been killed.
    pub fn may_be_unsynced(dir: &Path) -> bool {
        super::may_be_unsynced(dir.join(NAME).symlink_metadata())
    }

    /// Replaces the state of a folder, durably when asked.
    pub fn save(&self, dir: &Path, durable: bool) -> Result<(), Error> {
        save_sealed(self, &dir.join(NAME), durable)
    }

    /// The same, if this holds until the file is written. False if it does not.
    pub fn save_if(
        &self,
        dir: &Path,
        durable: bool,
        holds: impl Fn() -> bool,
    ) -> Result<bool, Error> {
        save_sealed_if(self, &dir.join(NAME), durable, holds)
    }

    /// True if a folder has one.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(NAME).exists()
    }
}

/// Reads what [`save_sealed`] wrote. `Ok(None)` when there is no such file; a damaged one is an error
/// of kind `InvalidData`.
pub(crate) fn load_sealed<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let text = match read_bounded(path, LEN_MAX) {
        Ok(text) if text.len() as u64 <= LEN_MAX => text,
        Ok(_) => return Err(damaged(path, format!("it is longer than {LEN_MAX} bytes"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("cannot read", path),
    };
    parse(&text).map(Some).map_err(|what| damaged(path, what))
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let envelope: Envelope =
        serde_json::from_slice(text).map_err(|error| format!("it is damaged: {error}"))?;
    if envelope.version != VERSION {
        return Err(format!("it was written by another version ({})", envelope.version));
    }
    if envelope.checksum != checksum_of(&envelope.body) {
        return Err("its checksum is wrong".into());
    }
    serde_json::from_str(&envelope.body).map_err(|error| format!("it is damaged: {error}"))
}

/// Replaces a small file by this as JSON with a checksum, durably when asked.
pub(crate) fn save_sealed(body: &impl Serialize, path: &Path, durable: bool) -> Result<(), Error> {
    save_sealed_if(body, path, durable, || true).map(drop)
}

fn save_sealed_if(
    body: &impl Serialize,
    path: &Path,
    durable: bool,
    holds: impl Fn() -> bool,
) -> Result<bool, Error> {
    let encoded = serde_json::to_string(body).and_then(|body| {
        let checksum = checksum_of(&body);
        serde_json::to_vec(&Envelope { version: VERSION, checksum, body })
    });
    let bytes = encoded.map_err(std::io::Error::other).context("cannot encode", path)?;
    replace_file(path, &bytes, durable, holds)
}

/// Reads a file, of a long one just enough to show that it is too long.
pub(super) fn read_bounded(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    super::folder::read(path)?.take(most + 1).read_to_end(&mut text)?;
    Ok(text)
}

fn damaged(path: &Path, what: String) -> Error {
    Error {
        message: format!("cannot use {}", path.display()),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, what),
    }
}

/// A random number for a writer id, from the random keys that the standard library draws.
pub fn random_id() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn checksum_of(body: &str) -> String {
    let mut digest = FileDigest::new();
    digest.update(body.as_bytes());
    digest.checksum().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_the_future_is_of_no_tick_of_now() {
        let now = (100, 999_000_000);
        assert!(is_same_tick(now, now) && is_same_tick((101, 5_000_000), now));
        for other in [(100, 995_000_000), (101, 500_000_000), (99, 999_000_000), (1 << 40, 0)] {
            assert!(!is_same_tick(other, now), "{other:?}");
        }
    }

    #[test]
    fn a_path_that_cannot_be_looked_at_has_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        std::fs::write(&path, "").unwrap();
        let (device, number) = Fingerprint::of(&path).unwrap().file;
        assert!(!is_replaced((device, number), &path));
        assert!(is_replaced((device, number + 1), &path));
        assert!(is_replaced((device, number), &folder.path().join("none")));
        assert!(is_replaced((device, number), &path.join("in a file")));
        // Too long a name is an error that any user gets.
        assert!(!is_replaced((device, number), &folder.path().join("n".repeat(300))));
    }

    #[test]
    fn a_fingerprint_tells_more_than_a_time_that_can_be_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        std::fs::write(&path, b"before").unwrap();
        let before = Fingerprint::of(&path).unwrap();
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        // Until the file system's clock has gone on.
        while Fingerprint::of(&path).unwrap().changed == before.changed {
            std::fs::write(&path, b"after!").unwrap();
            file.set_modified(modified).unwrap();
        }
        let now = Fingerprint::of(&path).unwrap();
        assert_eq!((now.len, now.modified, now.file), (before.len, before.modified, before.file));
        assert_ne!(now, before);
        // As a state of an older version has it: it can be read, and is equal to no file.
        let old = Fingerprint { changed: None, ..now };
        let mut text = serde_json::to_value(old).unwrap();
        text.as_object_mut().unwrap().remove("changed").unwrap();
        let read: Fingerprint = serde_json::from_value(text).unwrap();
        assert_eq!(read, old);
        assert_ne!(Fingerprint::of(&path).unwrap(), read);
    }

    #[test]
    fn a_state_of_an_older_version_owes_nothing() {
        let state = State::new(WriterId(7), "file:///r");
        let mut text = serde_json::to_value(&state).unwrap();
        text.as_object_mut().unwrap().remove("due").unwrap();
        assert_eq!(serde_json::from_value::<State>(text).unwrap(), state);
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), None);
        let mut state = State::new(WriterId(7), "file:///r");
        state.clean = Some(Clean { fingerprint: Fingerprint::of(dir.path()).unwrap(), piece: 3 });
        state.save(dir.path(), true).unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), Some(state));
        let path = dir.path().join("state");
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(State::load(dir.path()).is_err());
        for len in [at, 3, 0] {
            bytes.truncate(len);
            std::fs::write(&path, &bytes).unwrap();
            let error = State::load(dir.path()).unwrap_err();
            assert_eq!(error.source.kind(), std::io::ErrorKind::InvalidData, "{len} bytes");
        }
        // Of a file that is only long no more is read than shows it.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 43).unwrap();
        let error = State::load(dir.path()).unwrap_err();
        assert_eq!(error.source.kind(), std::io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("longer than"), "{error}");
    }
}
