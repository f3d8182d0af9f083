//! The spool: captured transactions on the local disk, as plain LTX files.
//!
//! Capture makes **pieces**, numbered from 1 without a gap. A file in the spool covers a range of pieces. Its
//! name says where in the WAL the range ends, so one rename publishes the file and that position at once:
//!
//!     open-<piece>-<piece>-<WAL position>.ltx      captured, no TXID yet
//!     <txid>-<piece>-<piece>-<WAL position>.ltx    closed: the replica's next file, never changed
//!
//! Closing merges all open files into one closed file. The process may die between the rename of the closed
//! file and the removal of the open ones. Their piece numbers then show that the closed file contains them.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::folder::{self, Folder};
use super::reserve::Reserve;
use super::{Context, Error};
use crate::scratch::Place;
use crate::units::{Salts, Txid, WalPosition, parse_hex_u32, parse_hex_u64};

/// Bytes written by [`Spool::try_write`]: a page of the largest size.
const TRIED: usize = 65_536;

/// A file in the spool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The TXID of a closed file; `None` for an open one.
    pub txid: Option<Txid>,
    /// First and last piece that the file covers.
    pub pieces: (u64, u64),
    /// Where in the WAL the last piece ends; `None` for pieces not made from a WAL.
    pub position: Option<WalPosition>,
    /// Length in bytes.
    pub len: u64,
}

impl Entry {
    /// Returns the entry's file name.
    pub fn file_name(&self) -> String {
        let txid = self.txid.map_or("open".to_string(), |txid| txid.to_string());
        let (first, last) = self.pieces;
        let position = match self.position {
            None => "none".to_string(),
            Some(WalPosition { salts, frame, checksum }) => format!(
                "{:08x}{:08x}{frame:08x}{:08x}{:08x}",
                salts.0, salts.1, checksum.0, checksum.1
            ),
        };
        format!("{txid}-{first:016x}-{last:016x}-{position}.ltx")
    }

    fn parse(name: &str) -> Option<Entry> {
        let mut fields = name.strip_suffix(".ltx")?.split('-');
        let txid = match fields.next()? {
            "open" => None,
            txid => Some(Txid::parse_hex(txid)?),
        };
        let pieces = (parse_hex_u64(fields.next()?)?, parse_hex_u64(fields.next()?)?);
        let position = match fields.next()? {
            "none" => None,
            hex if hex.len() == 40 && hex.is_ascii() => {
                let word = |at: usize| parse_hex_u32(hex.get(at..at + 8)?);
                Some(WalPosition {
                    salts: Salts(word(0)?, word(8)?),
                    frame: word(16)?,
                    checksum: (word(24)?, word(32)?),
                })
            }
            _ => return None,
        };
        (fields.next().is_none() && pieces.0 <= pieces.1).then_some(Entry {
            txid,
            pieces,
            position,
            len: 0,
        })
    }
}

/// The spool of one state folder.
#[derive(Clone, Debug)]
pub struct Spool {
    dir: PathBuf,
    scratch: Place,
}

impl Spool {
    /// Opens the spool of a state folder; makes the spool if it is missing.
    pub fn open(state_dir: &Path) -> Result<Spool, Error> {
        let dir = state_dir.join("spool");
        Folder::make(&dir)?;
        Ok(Spool::of(dir))
    }

    /// Returns the spool of a state folder, if it exists.
    pub fn existing(state_dir: &Path) -> Option<Spool> {
        let dir = state_dir.join("spool");
        folder::is_folder(&dir).then(|| Spool::of(dir))
    }

    fn of(dir: PathBuf) -> Spool {
        let scratch = scratch(&dir);
        Spool { dir, scratch }
    }

    /// Returns where to make the scratch file that records something of each page while a file is made.
    pub fn scratch(&self) -> Place {
        self.scratch.clone()
    }

    /// Returns all files in the order of their pieces, and removes the leftovers of a crash. These are
    /// unfinished files, open files that a closed file contains, and files up to piece `done`, which the
    /// state has passed. A leftover that cannot be removed is not returned either.
    pub fn scan(&self, done: u64) -> Result<Vec<Entry>, Error> {
        let (entries, unfinished) = self.list()?;
        let (kept, superseded) = sort_out(entries, done);
        for path in unfinished.into_iter().chain(superseded.iter().map(|entry| self.path(entry))) {
            if let Err(error) = remove_path(&path) {
                log::warn!("{error}; it is of no use any more");
            }
        }
        Ok(kept)
    }

    /// Returns the same files as [`Spool::scan`], and removes nothing.
    pub fn look(&self, done: u64) -> Result<Vec<Entry>, Error> {
        Ok(sort_out(self.list()?.0, done).0)
    }

    /// Returns all entries in no order, and the paths of unfinished files.
    fn list(&self) -> Result<(Vec<Entry>, Vec<PathBuf>), Error> {
        let (mut entries, mut unfinished) = (Vec::new(), Vec::new());
        for file in std::fs::read_dir(&self.dir).context("cannot list", &self.dir)? {
            let file = file.context("cannot list", &self.dir)?;
            let name = file.file_name();
            let Some(mut entry) = name.to_str().and_then(Entry::parse) else {
                if name.to_string_lossy().ends_with(".tmp") {
                    unfinished.push(file.path());
                }
                continue;
            };
            entry.len = file.metadata().context("cannot look at", &file.path())?.len();
            entries.push(entry);
        }
        Ok((entries, unfinished))
    }

    /// True if the spool holds no captured transaction.
    pub fn is_empty(&self) -> Result<bool, Error> {
        let mut files = std::fs::read_dir(&self.dir).context("cannot list", &self.dir)?;
        Ok(files.all(|file| {
            file.is_ok_and(|file| file.file_name().to_str().and_then(Entry::parse).is_none())
        }))
    }

    /// Returns the path of an entry's file.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.dir.join(entry.file_name())
    }

    /// Returns the path at which an entry is written before its rename.
    pub fn temp_path(&self) -> PathBuf {
        self.dir.join("next.tmp")
    }

    /// Removes the unfinished file, which takes up room for nothing.
    pub fn discard(&self) {
        let _ = remove_path(&self.temp_path());
    }

    /// Reserves room on the disk for the application while the WAL of its database, of `database` bytes, must
    /// stay.
    pub fn reserve(&self, database: u64) -> Option<Reserve> {
        Reserve::keep(&self.dir, database)
    }

    /// Returns the free bytes on the spool's file system; `None` if the file system does not tell.
    pub fn free(&self) -> Option<u64> {
        free_at(&self.dir)
    }

    /// Returns an error if a file cannot be made and written here. Leaves no file.
    pub fn try_write(&self) -> Result<(), Error> {
        let temp = self.temp_path();
        let written = folder::create(&temp).and_then(|mut file| file.write_all(&vec![0; TRIED]));
        self.discard();
        written.context("cannot write", &temp)
    }

    /// Makes a written file an entry of the spool. A crash of the process cannot lose the entry, but a power
    /// loss can. Then the WAL still has its frames, or a comparison of the database with the page table finds
    /// its pages.
    pub fn publish(&self, temp: &Path, entry: &Entry) -> Result<(), Error> {
        folder::rename(temp, &self.path(entry)).context("cannot rename to", &self.path(entry))
    }

    /// Takes an unusable file out of the log, and keeps it for a person to look at.
    pub fn set_aside(&self, entry: &Entry) -> Result<PathBuf, Error> {
        let path = self.path(entry);
        let aside = path.with_extension("ltx.unusable");
        folder::rename(&path, &aside).context("cannot set aside", &path)?;
        Ok(aside)
    }

    /// Removes an entry's file.
    pub fn remove(&self, entry: &Entry) -> Result<(), Error> {
        remove_path(&self.path(entry))
    }
}

/// Returns the free bytes on a path's file system; `None` if the file system does not tell.
pub(crate) fn free_at(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    // FUSE answers zero blocks for a file system that does not implement the call.
    let tells = disk.f_blocks > 0;
    tells.then(|| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Returns where a state folder's files without a name are made. A crash may leave such a file with its name;
/// the file is then removed like any unfinished file.
pub(crate) fn scratch(dir: &Path) -> Place {
    Place::new(&dir.join("scratch.tmp"), folder::create_unnamed)
}

/// Returns entries in the order of their pieces, and those that other entries contain or that end by `done`.
fn sort_out(mut entries: Vec<Entry>, done: u64) -> (Vec<Entry>, Vec<Entry>) {
    // A closed file comes before an open file with the same first piece. The longer of two such open files
    // comes first: the shorter file was merged into the longer.
    entries.sort_by_key(|entry| {
        (entry.pieces.0, entry.txid.is_none(), std::cmp::Reverse(entry.pieces.1))
    });
    let (mut kept, mut superseded): (Vec<Entry>, Vec<Entry>) = (Vec::new(), Vec::new());
    for entry in entries {
        let passed = kept.last().map_or(done, |last| last.pieces.1);
        if entry.pieces.1 <= passed {
            superseded.push(entry);
        } else {
            kept.push(entry);
        }
    }
    (kept, superseded)
}

pub(super) fn remove_path(path: &Path) -> Result<(), Error> {
    match folder::remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot remove", path)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(txid: Option<u64>, first: u64, last: u64) -> Entry {
        let position =
            Some(WalPosition { salts: Salts(1, 0xffff_ffff), frame: 9, checksum: (3, 4) });
        Entry { txid: txid.map(Txid), pieces: (first, last), position, len: 0 }
    }

    #[test]
    fn names_go_both_ways() {
        for entry in [entry(Some(7), 1, 3), entry(None, 4, 4)] {
            assert_eq!(Entry::parse(&entry.file_name()), Some(entry));
        }
        let bare = Entry { position: None, ..entry(Some(7), 1, 3) };
        assert_eq!(Entry::parse(&bare.file_name()), Some(bare));
        for wrong in ["open-1-2-none.ltx", "x.ltx", "open.ltx", &entry(None, 4, 3).file_name()] {
            assert_eq!(Entry::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_crash_while_closing_leaves_no_double() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let put = |entry: &Entry| std::fs::write(spool.path(entry), b"x").unwrap();
        let all = [
            entry(Some(6), 1, 2),
            entry(Some(7), 3, 5),
            entry(None, 3, 3),
            entry(None, 4, 4),
            entry(None, 5, 5),
            entry(None, 6, 7),
            entry(None, 6, 6),
            entry(None, 7, 7),
        ];
        all.iter().for_each(put);
        std::fs::write(spool.temp_path(), b"half").unwrap();
        let pieces = |entries: &[Entry]| entries.iter().map(|e| e.pieces).collect::<Vec<_>>();
        assert_eq!(pieces(&spool.look(2).unwrap()), [(3, 5), (6, 7)]);
        assert!(spool.temp_path().exists(), "a look changes nothing");
        // A leftover that cannot be removed is passed over each time.
        let stuck = spool.path(&entry(None, 4, 5));
        std::fs::create_dir_all(stuck.join("in it")).unwrap();
        assert_eq!(pieces(&spool.scan(2).unwrap()), [(3, 5), (6, 7)]);
        assert_eq!(pieces(&spool.scan(0).unwrap()), [(3, 5), (6, 7)], "the rest is gone");
        assert!(stuck.exists() && !spool.temp_path().exists());
    }
}
