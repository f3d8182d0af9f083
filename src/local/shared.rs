//! What the processes that have one database open tell each other: the small file `shm`, mapped by
//! all of them, and the pipe `bell`.
//!
//! The process that ships says how far it is ([`View`]); the others look there at their gate, and
//! call when they want something ([`Call`]). Nothing here is believed for more than waiting: what
//! the log may contain is decided from the WAL and the local state, which only the lock's holder
//! touches. A process that dies in the middle of an entry leaves a view that nobody can read whole;
//! the next shipper begins it anew.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::thread::futex;

use super::mapping::Words;
use super::{Context, Error};
use crate::units::Salts;

/// Length of the file in words of 8 bytes.
const WORDS: usize = 512;
/// What the first word says of a file in this layout.
const MAGIC: u64 = u64::from_le_bytes(*b"wfshm\0\0\x01");

// Places, in words.
const AT_MAGIC: usize = 0;
/// Counts the entries; odd while one is being made.
const AT_SEQUENCE: usize = 1;
/// A futex that changes with each entry.
const AT_BELL: usize = 2;
/// What the shipper is asked for: bits of [`Call`].
const AT_CALLS: usize = 3;
/// When another process than the shipper was last here, in milliseconds.
const AT_STANDBY: usize = 4;
/// When the oldest commit was made that the shipper was not told of.
const AT_UNREPORTED: usize = 5;
/// Where the WAL stands that somebody wants to begin anew: salts, frame; and the wish's number.
const AT_WANTED: usize = 6;
/// When the shipper was last alive, in milliseconds.
const AT_ALIVE: usize = 9;
/// Whether the shipper hears the bell.
const AT_LISTENS: usize = 10;
const AT_VIEW: usize = 16;
const VIEW_WORDS: usize = 16;
const AT_ERROR: usize = AT_VIEW + VIEW_WORDS;
/// Longest text of an error, in words.
const ERROR_WORDS: usize = 96;

/// A position in a generation of the WAL.
pub type Place = (Salts, u32);

/// What the shipper says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// A number for each time that a process became the shipper; 0 while nobody is.
    pub term: u64,
    /// Process id, and the namespace in which it is one ([`pid_namespace`]).
    pub pid: u32,
    /// See `pid`.
    pub namespace: u64,
    /// The gate: 0 while capture goes on, 1 shut, 2 open.
    pub gate: u32,
    /// Everything up to here is captured.
    pub captured: Option<Place>,
    /// Counts captures within a term, and how many of them the store has.
    pub captured_seq: u64,
    /// See `captured_seq`.
    pub acked_seq: u64,
    /// The WAL is free to be begun anew behind this position.
    pub released: Option<Place>,
    /// The last wish to begin it anew that was answered, with `released` or without.
    pub answered: u64,
    /// Last TXIDs closed and confirmed.
    pub sealed: u64,
    /// See `sealed`.
    pub acked: u64,
    /// When the oldest unconfirmed commit was made, plus one; 0 for none.
    pub unacked_since: u64,
    /// Number of the state's word ([`crate::status::STATES`]).
    pub state: u64,
    /// Bytes and files in the spool.
    pub pending_bytes: u64,
    /// See `pending_bytes`.
    pub spool_files: u64,
    /// Why the last attempt failed.
    pub error: String,
}

/// What the shipper is asked for, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Call(pub u64);

impl Call {
    /// Something was committed.
    pub const LOOK: Call = Call(1);
    /// Capture everything: somebody waits for it.
    pub const CAPTURE: Call = Call(2);
    /// Capture everything, then let the WAL be begun anew at the wanted position.
    pub const RELEASE: Call = Call(4);
    /// The new beginning is made.
    pub const RESTARTED: Call = Call(8);
    /// It did not come about.
    pub const FAILED: Call = Call(16);
    /// Ship at once.
    pub const HURRY: Call = Call(32);

    /// Whether any of this is among what is asked for.
    pub fn has(self, other: Call) -> bool {
        self.0 & other.0 != 0
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Call) -> Call {
        Call(self.0 | other.0)
    }
}

/// The mapped file and the pipe.
#[derive(Debug)]
pub struct SharedPage {
    words: Words,
    /// Device and inode of the file.
    file: (u64, u64),
    bell: PathBuf,
    /// The pipe as a caller has it open.
    ringing: Mutex<Option<File>>,
}

impl SharedPage {
    /// Maps the file of a state folder, which is made if need be.
    pub fn open(dir: &Path) -> Result<SharedPage, Error> {
        let path = dir.join("shm");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).context("cannot open", &path)?;
        // Never shortened: another process may have it mapped.
        super::pages::allocate(&file, WORDS as u64 * 8).context("cannot make room for", &path)?;
        let words = Words::map(&file, WORDS).context("cannot map", &path)?;
        words.word(AT_MAGIC).store(MAGIC, Ordering::Release);
        let file = id(&file.metadata().context("cannot look at", &path)?);
        Ok(SharedPage { words, file, bell: dir.join("bell"), ringing: Mutex::new(None) })
    }

    /// Whether the folder still has the file that is mapped.
    pub fn is_in_place(&self, dir: &Path) -> bool {
        std::fs::metadata(dir.join("shm")).is_ok_and(|meta| id(&meta) == self.file)
    }

    /// Where callers ring.
    pub fn bell_path(&self) -> &Path {
        &self.bell
    }

    /// Becomes the shipper: a new term begins, whatever was left in the file. Gives its number.
    pub fn begin_term(&self, now: u64) -> u64 {
        let sequence = self.load(AT_SEQUENCE);
        if !sequence.is_multiple_of(2) {
            // Somebody died in the middle of an entry.
            self.store(AT_SEQUENCE, sequence.wrapping_add(1));
        }
        let term = self.load(AT_VIEW).max(super::state::random_id() >> 16).wrapping_add(1);
        self.alive(now);
        self.set_listens(false);
        let (pid, namespace) = (std::process::id(), pid_namespace());
        self.publish(&View { term, pid, namespace, gate: 1, ..View::default() });
        term
    }

    /// The shipper says how things stand, and wakes all who wait.
    pub fn publish(&self, view: &View) {
        let sequence = self.load(AT_SEQUENCE);
        self.words.word(AT_SEQUENCE).store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (at, word) in view.to_words().into_iter().enumerate() {
            self.words.word(AT_VIEW + at).store(word, Ordering::Relaxed);
        }
        self.put_error(&view.error);
        self.store(AT_SEQUENCE, sequence.wrapping_add(2));
        let bell = self.words.half(AT_BELL);
        bell.fetch_add(1, Ordering::AcqRel);
        let _ = futex::wake(bell, futex::Flags::empty(), u32::MAX >> 1);
    }

    /// What the shipper said last; `None` while it is just saying it, and if it died in doing so.
    pub fn view(&self) -> Option<View> {
        (0..100).find_map(|_| {
            let before = self.load(AT_SEQUENCE);
            let mut words = [0; VIEW_WORDS];
            for (at, word) in words.iter_mut().enumerate() {
                *word = self.words.word(AT_VIEW + at).load(Ordering::Relaxed);
            }
            let error = self.error();
            fence(Ordering::Acquire);
            let after = self.words.word(AT_SEQUENCE).load(Ordering::Relaxed);
            (before == after && before.is_multiple_of(2)).then(|| View::from_words(&words, error))
        })
    }

    /// A mark to wait from: taken before the view is looked at.
    pub fn mark(&self) -> u32 {
        self.words.half(AT_BELL).load(Ordering::Acquire)
    }

    /// Waits until the shipper says something after this mark, or for this long.
    pub fn wait(&self, mark: u32, timeout: Duration) {
        let timeout = rustix::time::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let bell = self.words.half(AT_BELL);
        let _ = futex::wait(bell, futex::Flags::empty(), mark, Some(&timeout));
    }

    /// Asks the shipper for something. It is woken unless the same was asked and not seen yet.
    pub fn call(&self, call: Call) {
        let before = Call(self.words.word(AT_CALLS).fetch_or(call.0, Ordering::AcqRel));
        if before.0 & call.0 != call.0 {
            self.ring();
        }
    }

    /// What was asked for since the last time, but for [`Call::LOOK`].
    pub fn take_calls(&self) -> Call {
        Call(self.words.word(AT_CALLS).fetch_and(Call::LOOK.0, Ordering::AcqRel))
    }

    /// From now on the next commit rings. To be called before the wal-index is looked at.
    pub fn listen(&self) {
        self.words.word(AT_CALLS).fetch_and(!Call::LOOK.0, Ordering::AcqRel);
    }

    /// Notes a commit that the shipper does not know of.
    pub fn unreported(&self, now: u64) {
        let word = self.words.word(AT_UNREPORTED);
        let _ = word.compare_exchange(0, now.max(1), Ordering::AcqRel, Ordering::Acquire);
    }

    /// When the oldest such commit was made; forgotten with this.
    pub fn take_unreported(&self) -> Option<u64> {
        let word = self.words.word(AT_UNREPORTED);
        (word.load(Ordering::Relaxed) != 0)
            .then(|| word.swap(0, Ordering::AcqRel))
            .filter(|since| *since != 0)
    }

    /// When the oldest commit was made that the shipper was not told of.
    pub fn peek_unreported(&self) -> Option<u64> {
        Some(self.load(AT_UNREPORTED)).filter(|since| *since != 0)
    }

    /// Names the position at which the WAL is to be begun anew. Only who holds the WAL's write lock
    /// does that, so that there is one at a time. Gives the wish's number.
    pub fn want(&self, (salts, frame): Place) -> u64 {
        self.store(AT_WANTED, pack_salts(salts));
        self.store(AT_WANTED + 1, u64::from(frame));
        self.words.word(AT_WANTED + 2).fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    /// That position and the wish's number.
    pub fn wanted(&self) -> (Place, u64) {
        let number = self.load(AT_WANTED + 2);
        ((unpack_salts(self.load(AT_WANTED)), self.load(AT_WANTED + 1) as u32), number)
    }

    /// The shipper is alive.
    pub fn alive(&self, now: u64) {
        self.store(AT_ALIVE, now);
    }

    /// Whether it hears the bell; else it comes by once a second.
    pub fn set_listens(&self, listens: bool) {
        self.store(AT_LISTENS, u64::from(listens));
    }

    /// See [`SharedPage::set_listens`].
    pub fn listens(&self) -> bool {
        self.load(AT_LISTENS) != 0
    }

    /// When it was.
    pub fn last_alive(&self) -> u64 {
        self.load(AT_ALIVE)
    }

    /// A process that stands by is here.
    pub fn standing_by(&self, now: u64) {
        self.store(AT_STANDBY, now);
    }

    /// When one was.
    pub fn last_standby(&self) -> u64 {
        self.load(AT_STANDBY)
    }

    fn ring(&self) {
        let mut ringing = self.ringing.lock();
        if ringing.is_none() {
            // Open for reading too, so that there is always a reader: a write to a pipe without one
            // raises SIGPIPE in the application.
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
            let opened = options.open(&self.bell).ok();
            *ringing = opened.filter(|file| {
                use std::os::unix::fs::FileTypeExt;
                file.metadata().is_ok_and(|meta| meta.file_type().is_fifo())
            });
        }
        // A full pipe has rung already; without a pipe the shipper looks by itself, once a second.
        if let Some(pipe) = ringing.as_mut() {
            let _ = pipe.write(&[1]);
        }
    }

    fn load(&self, at: usize) -> u64 {
        self.words.word(at).load(Ordering::Acquire)
    }

    fn store(&self, at: usize, value: u64) {
        self.words.word(at).store(value, Ordering::Release);
    }

    fn put_error(&self, text: &str) {
        let mut end = text.len().min((ERROR_WORDS - 1) * 8);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let bytes = text.as_bytes().get(..end).unwrap_or_default();
        self.words.word(AT_ERROR).store(bytes.len() as u64, Ordering::Relaxed);
        for (at, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            let word = u64::from_le_bytes(word);
            self.words.word(AT_ERROR + 1 + at).store(word, Ordering::Relaxed);
        }
    }

    fn error(&self) -> String {
        text_at(|at| self.words.word(AT_ERROR + at).load(Ordering::Relaxed))
    }
}

/// The text whose length is in the first of these words, and its bytes in the following.
fn text_at(word: impl Fn(usize) -> u64) -> String {
    let len = (word(0) as usize).min((ERROR_WORDS - 1) * 8);
    let mut bytes: Vec<u8> =
        (0..len.div_ceil(8)).map(|at| word(at + 1)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is to be seen of a shared page by who takes no part: it is read, not mapped, and nothing is
/// changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Glance {
    /// See [`SharedPage::view`].
    pub view: Option<View>,
    /// See [`SharedPage::last_alive`].
    pub last_alive: u64,
    /// See [`SharedPage::peek_unreported`].
    pub unreported_since: Option<u64>,
}

/// Looks at the page of a state folder. `Ok(None)` when there is none.
pub fn glance(dir: &Path) -> Result<Option<Glance>, Error> {
    let path = dir.join("shm");
    let read = || -> std::io::Result<Vec<u64>> {
        let mut bytes = vec![0; WORDS * 8];
        File::open(&path)?.read_exact(&mut bytes)?;
        let words = bytes.as_chunks::<8>().0.iter();
        Ok(words.map(|word| u64::from_le_bytes(*word)).collect())
    };
    let mut before = match read() {
        Ok(words) => words,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).context("cannot read", &path),
    };
    let word = |words: &[u64], at: usize| words.get(at).copied().unwrap_or(0);
    for _ in 0..100 {
        // A read is no atomic look: what is the same twice around an even number was whole.
        let after = read().context("cannot read", &path)?;
        let entry = AT_VIEW..AT_ERROR + ERROR_WORDS;
        let sequence = word(&after, AT_SEQUENCE);
        let whole = sequence.is_multiple_of(2)
            && sequence == word(&before, AT_SEQUENCE)
            && before.get(entry.clone()) == after.get(entry);
        let mut view = [0; VIEW_WORDS];
        for (at, to) in view.iter_mut().enumerate() {
            *to = word(&after, AT_VIEW + at);
        }
        if whole || word(&after, AT_MAGIC) != MAGIC {
            let error = text_at(|at| word(&after, AT_ERROR + at));
            return Ok(Some(Glance {
                view: whole.then(|| View::from_words(&view, error)),
                last_alive: word(&after, AT_ALIVE),
                unreported_since: Some(word(&after, AT_UNREPORTED)).filter(|since| *since != 0),
            }));
        }
        before = after;
    }
    Ok(Some(Glance { view: None, last_alive: word(&before, AT_ALIVE), unreported_since: None }))
}

fn id(meta: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (meta.dev(), meta.ino())
}

/// A number for the namespace in which our process id is one; 0 when there is no telling.
pub fn pid_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    static NUMBER: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *NUMBER.get_or_init(|| std::fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino()))
}

/// Makes the pipe, unless it is there.
pub fn make_bell(path: &Path) -> Result<(), Error> {
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
    match rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(std::io::Error::from(error)).context("cannot make the pipe", path),
    }
}

impl View {
    fn to_words(&self) -> [u64; VIEW_WORDS] {
        let place = |place: Option<Place>| match place {
            None => (0, 0),
            // The frame plus one, so that none and frame 0 are two things.
            Some((salts, frame)) => (pack_salts(salts), u64::from(frame) + 1),
        };
        let (captured, released) = (place(self.captured), place(self.released));
        [
            self.term,
            u64::from(self.pid) | u64::from(self.gate) << 32,
            captured.0,
            captured.1,
            self.captured_seq,
            self.acked_seq,
            released.0,
            released.1,
            self.sealed,
            self.acked,
            self.unacked_since,
            self.state,
            self.pending_bytes,
            self.spool_files,
            self.answered,
            self.namespace,
        ]
    }

    fn from_words(words: &[u64; VIEW_WORDS], error: String) -> View {
        let place = |salts, frame: u64| {
            frame.checked_sub(1).map(|frame| (unpack_salts(salts), frame as u32))
        };
        let [term, pid, c0, c1, captured_seq, acked_seq, r0, r1, sealed, acked, since, state, ..] =
            *words;
        let [.., pending_bytes, spool_files, answered, namespace] = *words;
        View {
            term,
            pid: pid as u32,
            namespace,
            gate: (pid >> 32) as u32,
            captured: place(c0, c1),
            captured_seq,
            acked_seq,
            released: place(r0, r1),
            answered,
            sealed,
            acked,
            unacked_since: since,
            state,
            pending_bytes,
            spool_files,
            error,
        }
    }
}

fn pack_salts(salts: Salts) -> u64 {
    u64::from(salts.0) | u64::from(salts.1) << 32
}

fn unpack_salts(word: u64) -> Salts {
    Salts(word as u32, (word >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(n: u64) -> View {
        View {
            term: 7,
            pid: n as u32,
            namespace: n,
            gate: 2,
            captured: Some((Salts(n as u32, 2), 0)),
            captured_seq: n,
            acked_seq: n,
            released: None,
            answered: n,
            sealed: n,
            acked: n,
            unacked_since: n,
            state: n,
            pending_bytes: n,
            spool_files: n,
            error: "é".repeat(n as usize % 500),
        }
    }

    #[test]
    fn a_view_is_seen_whole_by_another_mapping() {
        let dir = tempfile::tempdir().unwrap();
        let ours = SharedPage::open(dir.path()).unwrap();
        let theirs = SharedPage::open(dir.path()).unwrap();
        ours.begin_term(1);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..20_000).for_each(|n| ours.publish(&view(n))));
            while theirs.view().is_none_or(|view| view.sealed != 19_999) {
                if let Some(seen) = theirs.view().filter(|seen| seen.state != 0) {
                    let n = seen.sealed;
                    let glance = glance(dir.path()).unwrap().unwrap().view;
                    if let Some(seen) = glance.filter(|seen| seen.state != 0) {
                        let expected = view(seen.sealed);
                        assert!(expected.error.starts_with(&seen.error));
                        assert_eq!(
                            (seen.captured, seen.namespace),
                            (expected.captured, seen.sealed)
                        );
                    }
                    let expected = view(n);
                    assert_eq!(
                        View { error: String::new(), ..seen.clone() },
                        View { error: String::new(), ..expected.clone() }
                    );
                    assert!(expected.error.starts_with(&seen.error));
                }
            }
        });
    }

    #[test]
    fn a_shipper_that_died_in_the_middle_is_followed_by_a_new_term() {
        let dir = tempfile::tempdir().unwrap();
        let page = SharedPage::open(dir.path()).unwrap();
        page.begin_term(1);
        let first = page.view().unwrap().term;
        page.words.word(AT_SEQUENCE).fetch_add(1, Ordering::AcqRel);
        assert_eq!(page.view(), None);
        page.begin_term(2);
        assert!(page.view().unwrap().term > first);
    }

    #[test]
    fn calls_ring_once_until_they_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let page = SharedPage::open(dir.path()).unwrap();
        page.call(Call::LOOK);
        assert!(page.take_calls().has(Call::LOOK), "without a pipe nothing is lost");
        page.listen();
        make_bell(page.bell_path()).unwrap();
        make_bell(page.bell_path()).unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
        let mut pipe = options.open(page.bell_path()).unwrap();
        let mut rings = || {
            let mut buffer = [0; 16];
            pipe.read(&mut buffer).unwrap_or(0)
        };
        page.call(Call::LOOK);
        page.call(Call::LOOK);
        assert_eq!(rings(), 1);
        page.call(Call::HURRY);
        assert_eq!(rings(), 1);
        let calls = page.take_calls();
        assert!(calls.has(Call::HURRY) && calls.has(Call::LOOK) && !calls.has(Call::CAPTURE));
        page.call(Call::LOOK);
        assert_eq!(rings(), 0, "it is known that there are commits");
        page.listen();
        page.call(Call::LOOK);
        assert_eq!(rings(), 1);
    }

    #[test]
    fn the_oldest_unreported_commit_counts() {
        let dir = tempfile::tempdir().unwrap();
        let page = SharedPage::open(dir.path()).unwrap();
        page.unreported(5);
        page.unreported(9);
        assert_eq!((page.peek_unreported(), page.take_unreported()), (Some(5), Some(5)));
        assert_eq!(page.take_unreported(), None);
    }
}
