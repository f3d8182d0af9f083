//! The state file: the writer that ships this database, its replica, and how far the log has come.
//!
//! The file is JSON, which a person can read. A checksum over the body shows a torn or edited file. Each save
//! replaces the whole file.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::replace::replace_file;
use super::{Context, Error, folder};
use crate::ltx::checksum::FileDigest;
use crate::units::{Salts, Txid, WalPosition, WriterId};

/// All facts that must survive the end of the process and are in no other file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// Id of this lineage.
    pub writer: u64,
    /// The replica's URL, without secrets. For another replica this state is worthless.
    pub replica: String,
    /// True if a file of this lineage is in the replica's log.
    pub claimed: bool,
    /// The first file of this lineage in the log, as far as is known.
    #[serde(default)]
    pub first: Option<u64>,
    /// The lineage that this lineage continues, because the disk forgot its files; or the lineage whose log
    /// this one is about to take over. Until this lineage is in the log, it may take over the log from no
    /// other lineage.
    #[serde(default)]
    pub former: Option<u64>,
    /// The last state that the store has.
    pub base: Option<Base>,
    /// A full image that was sent, but that the store has not confirmed yet.
    pub image: Option<Image>,
    /// TXID of the last image, or of a later file that the store confirmed after a check of the files before
    /// it.
    #[serde(default)]
    pub checked: u64,
    /// Database checksum that the file of `checked` leaves.
    #[serde(default)]
    pub checked_sum: Option<u64>,
    /// The database file after its WAL was checkpointed whole and removed.
    pub clean: Option<Clean>,
    /// Start of the last audit by any process of this lineage, in milliseconds since the epoch.
    #[serde(default)]
    pub audited: Option<i64>,
    /// The page with which the audit continues, if the audit has not ended.
    #[serde(default)]
    pub audit_next: Option<u32>,
    /// Name of a finding that the next start would not find by itself
    /// ([`crate::finding::Finding::is_found_again`]). Kept until the replica has the answer that the finding
    /// calls for.
    #[serde(default)]
    pub due: Option<String>,
    /// Id of the boot of the machine since which `base` is the log's end. A power loss may bring back an
    /// older state.
    #[serde(default)]
    pub boot: Option<u64>,
}

/// A point of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Base {
    /// TXID of the point.
    pub txid: u64,
    /// Number of the last captured piece that the point contains ([`super::spool`]).
    pub piece: u64,
    /// Page size of the database.
    pub page_size: u32,
    /// Size of the database in pages.
    pub commit: u32,
    /// Database checksum.
    pub checksum: u64,
    /// Time of the last commit that the point contains, in milliseconds since the epoch.
    pub timestamp: i64,
    /// Where in the WAL the point ends; `None` if the database was complete without a WAL.
    pub position: Option<Position>,
}

impl Base {
    /// Returns the TXID.
    pub fn txid(&self) -> Txid {
        Txid(self.txid)
    }
}

/// A WAL position in its stored form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Position {
    /// The two salts.
    pub salts: (u32, u32),
    /// The last frame.
    pub frame: u32,
    /// The checksum words in the header of the last frame.
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

/// A full image on its way, with the facts that hold if the store turns out to have the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Image {
    /// Level of the file: 9 for the first image of a log, 0 for later ones.
    pub level: u8,
    /// First TXID in the file's name.
    pub min_txid: u64,
    /// The point of the log that the image makes.
    pub base: Base,
}

/// Attributes of the database file by which a write is noticed ([`Fingerprint::may_change_unseen`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Device and inode.
    pub file: (u64, u64),
    /// Length in bytes.
    pub len: u64,
    /// Time of the last change of the content: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Time of the last change of any kind, which no program can set back. A fingerprint of an older version
    /// lacks this time, and so equals no file's.
    #[serde(default)]
    pub changed: Option<(i64, i64)>,
}

/// True if the path has another file, or none. Any other error at the path proves nothing.
pub fn is_replaced(file: (u64, u64), path: &Path) -> bool {
    match Fingerprint::of(path) {
        Ok(now) => now.file != file,
        Err(error) => {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        }
    }
}

/// True if the next change of a file may get the same time as its last one, `changed`. A time further ahead
/// of `now` is from before the clock was set back.
fn is_same_tick(changed: (i64, i64), now: (i64, i64)) -> bool {
    const TICK_NS: i128 = 20_000_000;
    let ns = |(seconds, ns): (i64, i64)| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    (0..TICK_NS).contains(&(ns(changed) - ns(now)))
}

impl Fingerprint {
    /// Looks at a file by its path. The file is not opened: closing a descriptor of a database would drop
    /// this process's locks on it.
    pub fn of(path: &Path) -> std::io::Result<Fingerprint> {
        let meta = std::fs::metadata(path)?;
        Ok(Fingerprint {
            file: (meta.dev(), meta.ino()),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: Some((meta.ctime(), meta.ctime_nsec())),
        })
    }

    /// True if a write that comes now may leave the fingerprint as it is: the file's last change was in the
    /// current tick of the clock, or has no known time.
    pub fn may_change_unseen(&self) -> bool {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        self.changed.is_none_or(|changed| is_same_tick(changed, (now.tv_sec, now.tv_nsec)))
    }

    /// True if `now` is the same file with the same content, perhaps under another name.
    pub fn is_renamed(&self, now: &Fingerprint) -> bool {
        *self == Fingerprint { changed: self.changed, ..*now }
    }
}

/// A database file that was complete without a WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Clean {
    /// The file.
    pub fingerprint: Fingerprint,
    /// Last captured piece that the file contains.
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
/// Most bytes of a state: a URL and some numbers.
const LEN_MAX: u64 = 64 << 10;

impl State {
    /// Returns the state of a lineage that has shipped nothing yet.
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

    /// Notes that the store has the file that makes `base`.
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

    /// True if the log is known to end with `base`: the state was saved in this boot of the machine.
    pub fn is_sure(&self, boot: Option<u64>) -> bool {
        boot.is_some() && self.boot == boot
    }

    /// Reads the state of a folder. `Ok(None)` if the folder has none; a damaged state is an error of kind
    /// `InvalidData`.
    pub fn load(dir: &Path) -> Result<Option<State>, Error> {
        let mut state: Option<State> = load_sealed(&dir.join(NAME))?;
        if let Some(state) = &mut state {
            state.replica = crate::store::url::one_spelling(&state.replica);
        }
        Ok(state)
    }

    /// Makes the state file of a folder durable as it is.
    pub fn sync(dir: &Path) -> Result<(), Error> {
        let path = dir.join(NAME);
        let synced = folder::read(&path).and_then(|file| file.sync_all());
        synced.and_then(|()| super::sync_folder(dir)).context("cannot sync", &path)
    }

    /// True if the state file may not be on the disk, because its writer may have been killed before syncing.
    pub fn may_be_unsynced(dir: &Path) -> bool {
        super::may_be_unsynced(dir.join(NAME).symlink_metadata())
    }

    /// Replaces the state of a folder, durably if asked.
    pub fn save(&self, dir: &Path, durable: bool) -> Result<(), Error> {
        save_sealed(self, &dir.join(NAME), durable)
    }

    /// Replaces the state if `holds` returns true until the file is written. Returns false if it does not.
    pub fn save_if(
        &self,
        dir: &Path,
        durable: bool,
        holds: impl Fn() -> bool,
    ) -> Result<bool, Error> {
        save_sealed_if(self, &dir.join(NAME), durable, holds)
    }

    /// True if a folder has a state.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(NAME).exists()
    }
}

/// Reads a file that [`save_sealed`] wrote. `Ok(None)` if the file is missing; a damaged file is an error of
/// kind `InvalidData`.
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

/// Replaces a small file by `body` as JSON with a checksum, durably if asked.
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

/// Reads a file of up to `most` bytes. Of a longer file, reads one byte more to show that it is too long.
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

/// Returns a random number for a writer id, made of the random keys that the standard library draws.
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
        // A name that is too long is an error for any user.
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
        // Waits until the file system's clock advances.
        while Fingerprint::of(&path).unwrap().changed == before.changed {
            std::fs::write(&path, b"after!").unwrap();
            file.set_modified(modified).unwrap();
        }
        let now = Fingerprint::of(&path).unwrap();
        assert_eq!((now.len, now.modified, now.file), (before.len, before.modified, before.file));
        assert_ne!(now, before);
        // A state of an older version can be read, and its fingerprint equals no file's.
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
        // Only so much of a long file is read as shows that it is too long.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 43).unwrap();
        let error = State::load(dir.path()).unwrap_err();
        assert_eq!(error.source.kind(), std::io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("longer than"), "{error}");
    }
}
