//! The shared page: the small file `shm-3` and the pipe `bell`, through which the processes of one database
//! talk to each other. All of them have the file open.
//!
//! The shipper publishes how far it is ([`View`]). The other processes read the view at their gate, and call
//! the shipper when they want something ([`Call`]). Processes trust the page only for waiting: the content of
//! the log is decided from the WAL and the local state, which only the holder of the lock touches.
//!
//! A process that dies in the middle of an entry leaves a view that cannot be read whole; the next shipper
//! writes a new one. A file that is emptied or filled with garbage costs waits and no more: the shipper
//! writes its entry again once a second.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use parking_lot::Mutex;

use super::folder::{self, BELL, Folder};
use super::mapping::Futex;
use super::{Context, Error};
use crate::ltx::checksum::FileDigest;
use crate::units::Salts;

/// The file's name. Each layout has a name of its own. So an older or newer walferry beside this one uses
/// another file, and never misreads a word of this file.
const NAME: &str = "shm-3";
/// Length of the file in words of 8 bytes.
const WORDS: usize = 512;
/// First word of a file in this layout. All but its last byte are the same in every layout.
const MAGIC: u64 = u64::from_le_bytes(*b"wfshm\0\0\x03");
const ANY_LAYOUT: u64 = u64::MAX >> 8;

// Places in the file, in words.
const AT_MAGIC: usize = 0;
/// A futex that changes with each entry.
const AT_BELL: usize = 2;
/// Calls to the shipper: a byte for each bit of [`Call`], so that processes with different calls do not
/// overwrite each other's.
const AT_CALLS: usize = 3;
/// Last time at which a standby was here, in milliseconds.
const AT_STANDBY: usize = 4;
/// Time of the oldest commit that the shipper was not told of.
const AT_UNREPORTED: usize = 5;
/// Position in the WAL at which a process wants to restart it (salts, frame), and the number of that wish.
const AT_WANTED: usize = 6;
/// Last time at which the shipper was alive, in milliseconds.
const AT_ALIVE: usize = 9;
/// 1 if the shipper hears the bell.
const AT_LISTENS: usize = 10;
/// The entry: checksum of the rest, the view, the error's text.
const AT_ENTRY: usize = 15;
const AT_VIEW: usize = AT_ENTRY + 1;
const VIEW_WORDS: usize = 16;
/// Most words of an error's text: one for its length, the rest for its bytes.
const ERROR_WORDS: usize = 96;
const ENTRY_WORDS: usize = 1 + VIEW_WORDS + ERROR_WORDS;
/// How often a reader retries an entry that is being written.
const TRIES: usize = 100;
/// Longest pause before the next look at the view, if this process cannot wait on the futex.
const NEXT_LOOK: Duration = Duration::from_millis(1);

/// A position in a generation of the WAL: salts and frame.
pub type Place = (Salts, u32);

/// State of the shipper, as published for the other processes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// Number of the shipper's term, which differs for each process that became the shipper; 0 without a
    /// shipper.
    pub term: u64,
    /// Process id, valid in the namespace that `namespace` names ([`pid_namespace`]).
    pub pid: u32,
    /// See `pid`.
    pub namespace: u64,
    /// The gate: 0 while capture goes on, 1 shut, 2 open.
    pub gate: u32,
    /// Position up to which all frames are captured.
    pub captured: Option<Place>,
    /// `iChange` of the wal-index at `captured`.
    pub captured_change: u32,
    /// The shipper's count of changes up to which everything is captured. Comparable only within a term.
    pub captured_seq: u64,
    /// Value of `captured_seq` up to which the store has everything.
    pub acked_seq: u64,
    /// The WAL may be restarted behind this position.
    pub released: Option<Place>,
    /// Number of the last answered wish to restart the WAL; `released` tells whether the wish was granted.
    pub answered: u64,
    /// The last closed TXID.
    pub sealed: u64,
    /// The last TXID that the store confirmed.
    pub acked: u64,
    /// Time of the oldest unconfirmed commit, plus one; 0 for none.
    pub unacked_since: u64,
    /// Index of the state's word in [`crate::status::STATES`].
    pub state: u64,
    /// Bytes of the spool.
    pub pending_bytes: u64,
    /// Files of the spool.
    pub spool_files: u64,
    /// The error of the last attempt; empty for none.
    pub error: String,
}

/// Requests to the shipper, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Call(pub u64);

impl Call {
    /// A process has committed.
    pub const LOOK: Call = Call(1);
    /// Capture everything: a process waits for it.
    pub const CAPTURE: Call = Call(2);
    /// Capture everything, then allow a restart of the WAL at the wanted position.
    pub const RELEASE: Call = Call(4);
    /// The WAL was restarted.
    pub const RESTARTED: Call = Call(8);
    /// The restart failed.
    pub const FAILED: Call = Call(16);
    /// Ship at once.
    pub const HURRY: Call = Call(32);
    /// Make room: a write found no room.
    pub const ROOM: Call = Call(64);

    /// True if any of `other`'s bits is set.
    pub fn has(self, other: Call) -> bool {
        self.0 & other.0 != 0
    }

    /// True if the bit of this number is set.
    fn has_flag(self, at: usize) -> bool {
        self.0 >> at & 1 != 0
    }

    /// Returns both calls together.
    #[must_use]
    pub fn and(self, other: Call) -> Call {
        Call(self.0 | other.0)
    }
}

/// The shared file and the pipe, as one process has them open.
///
/// The process reads and writes the file, and does not map it: a mapping of a file that another process
/// shortens ends the process with SIGBUS. Words that several processes write are designed so that the last
/// write may win. Only the kernel uses a mapping, to know which threads wait on the same word ([`Futex`]).
#[derive(Debug)]
pub struct SharedPage {
    path: PathBuf,
    page: Mutex<Arc<Page>>,
    bell: PathBuf,
    /// The pipe, open for calls.
    ringing: Mutex<Option<File>>,
}

/// The file of a shared page.
#[derive(Debug)]
struct Page {
    path: PathBuf,
    /// `None` while closed.
    file: Mutex<Option<Arc<File>>>,
    futex: Option<Futex>,
    /// Device and inode of the file.
    id: (u64, u64),
}

impl SharedPage {
    /// Opens the file of a state folder; makes the file if it is missing. A file of another layout is left as
    /// it is and is an error. A file of no layout is overwritten.
    pub fn open(dir: &Path) -> Result<SharedPage, Error> {
        let path = dir.join(NAME);
        let page = Mutex::new(Page::open(&path)?.into());
        Ok(SharedPage { path, page, bell: dir.join(BELL), ringing: Mutex::new(None) })
    }

    /// Opens the file again. Called when the name has another file, or none. Repeats the calls and the
    /// unreported commit of the old file that the shipper has not seen, because processes wait for them.
    pub fn renew(&self) -> Result<(), Error> {
        let new = Page::open(&self.path)?.into();
        let old = std::mem::replace(&mut *self.page.lock(), new);
        let mut calls = Call(0);
        for (at, _) in old.asked().iter().enumerate().filter(|(_, asked)| **asked != 0) {
            calls = calls.and(Call(1 << at));
        }
        match old.words().load(AT_UNREPORTED) {
            0 => {}
            since => self.unreported(since),
        }
        self.call(calls);
        Ok(())
    }

    fn page(&self) -> Arc<Page> {
        self.page.lock().clone()
    }

    /// True if the folder still has the open file.
    pub fn is_in_place(&self, dir: &Path) -> bool {
        std::fs::symlink_metadata(dir.join(NAME)).is_ok_and(|meta| id(&meta) == self.page().id)
    }

    /// Closes the file until the next use, so that an idle database costs its process one descriptor less.
    pub fn rest(&self) {
        *self.page().file.lock() = None;
    }

    /// Returns the path of the pipe.
    pub fn bell_path(&self) -> &Path {
        &self.bell
    }

    /// Makes this process the shipper: begins a new term, whatever the file contains. Returns the term's
    /// number.
    pub fn begin_term(&self, now: u64) -> u64 {
        // The file may contain half an entry, or garbage. The result is never 0.
        let last = self.page().words().load(AT_VIEW) & u64::MAX >> 1;
        let term = last.max(super::state::random_id() >> 16).wrapping_add(1);
        self.alive(now);
        self.set_listens(false);
        let (pid, namespace) = (std::process::id(), pid_namespace());
        self.publish(&View { term, pid, namespace, gate: 1, ..View::default() });
        term
    }

    /// Publishes the shipper's view, and wakes all processes that wait.
    pub fn publish(&self, view: &View) {
        let page = self.page();
        page.words().store_all(AT_ENTRY, &entry_of(view));
        // Only the shipper writes this word.
        let bell = page.mark().wrapping_add(1);
        page.words().write(AT_BELL * 8, &bell.to_ne_bytes());
        if let Some(futex) = &page.futex {
            futex.wake();
        }
    }

    /// Returns the shipper's last view; `None` if there is none, or if the view is not whole.
    pub fn view(&self) -> Option<View> {
        self.page().view()
    }

    /// Returns a mark to wait from. Take the mark before reading the view.
    pub fn mark(&self) -> u32 {
        let mark = self.page().mark();
        fence(Ordering::SeqCst);
        mark
    }

    /// Waits until the shipper publishes a view after this mark, for `timeout` at most. May return earlier.
    pub fn wait(&self, mark: u32, timeout: Duration) {
        let waited = self.page().futex.as_ref().is_some_and(|futex| futex.wait(mark, timeout));
        if !waited {
            std::thread::park_timeout(timeout.min(NEXT_LOOK));
        }
    }

    /// Asks the shipper for something. Wakes the shipper unless the same call is pending.
    pub fn call(&self, call: Call) {
        // The shipper must see the commit that the call is about: see `listen`.
        fence(Ordering::SeqCst);
        let page = self.page();
        let asked = page.asked();
        let mut rings = false;
        for (at, _) in
            asked.iter().enumerate().filter(|(at, asked)| call.has_flag(*at) && **asked == 0)
        {
            page.words().write(AT_CALLS * 8 + at, &[1]);
            rings = true;
        }
        if rings {
            self.ring();
        }
    }

    /// Takes the calls since the last time. Clears each before the caller acts on it, so the same call made
    /// meanwhile counts again. [`Call::LOOK`] stays set until [`SharedPage::listen`].
    pub fn take_calls(&self) -> Call {
        let page = self.page();
        let asked = page.asked();
        let mut calls = Call(0);
        for (at, _) in asked.iter().enumerate().filter(|(_, asked)| **asked != 0) {
            calls = calls.and(Call(1 << at));
            if !Call::LOOK.has_flag(at) {
                page.words().write(AT_CALLS * 8 + at, &[0]);
            }
        }
        fence(Ordering::SeqCst);
        calls
    }

    /// Makes the next commit ring. Call this before reading the wal-index.
    pub fn listen(&self) {
        self.page().words().write(AT_CALLS * 8, &[0]);
        // Either this process sees the commit in the wal-index, or the committing process sees the cleared
        // call.
        fence(Ordering::SeqCst);
    }

    /// Notes a commit that the shipper does not know of.
    pub fn unreported(&self, now: u64) {
        // If two processes find no time here at once, the later write wins; the two times differ by a moment.
        if self.page().words().load(AT_UNREPORTED) == 0 {
            self.page().words().store(AT_UNREPORTED, now.max(1));
        }
    }

    /// Forgets the unreported commits, after the shipper has published that the store does not have them.
    pub fn forget_unreported(&self) {
        self.page().words().store(AT_UNREPORTED, 0);
    }

    /// Returns the time of the oldest commit that the shipper was not told of.
    pub fn peek_unreported(&self) -> Option<u64> {
        Some(self.page().words().load(AT_UNREPORTED)).filter(|since| *since != 0)
    }

    /// Names the position at which this process wants to restart the WAL. Returns the wish's number. Only the
    /// holder of the WAL's write lock makes a wish, so there is one wish at a time.
    pub fn want(&self, (salts, frame): Place) -> u64 {
        let number = match self.page().words().load(AT_WANTED + 2) {
            // A random number: an old one may have been answered before the file was emptied.
            0 => super::state::random_id() >> 16,
            last => last,
        };
        let number = number.wrapping_add(1);
        self.page().words().store_all(AT_WANTED, &[pack_salts(salts), u64::from(frame)]);
        // Written after the position, so that a process that sees the number sees the position too.
        self.page().words().store(AT_WANTED + 2, number);
        number
    }

    /// Returns the wanted position and the number of the wish.
    pub fn wanted(&self) -> (Place, u64) {
        let number = self.page().words().load(AT_WANTED + 2);
        let mut place = [0; 2];
        self.page().words().load_all(AT_WANTED, &mut place);
        let [salts, frame] = place;
        ((unpack_salts(salts), frame as u32), number)
    }

    /// Notes that the shipper is alive.
    pub fn alive(&self, now: u64) {
        self.page().words().store(AT_ALIVE, now);
    }

    /// Records that the shipper hears the bell, or else that the shipper looks once a second.
    pub fn set_listens(&self, listens: bool) {
        self.page().words().store(AT_LISTENS, u64::from(listens));
    }

    /// True if the shipper hears the bell.
    pub fn listens(&self) -> bool {
        self.page().words().load(AT_LISTENS) != 0
    }

    /// Returns the last time at which the shipper was alive, in milliseconds.
    pub fn last_alive(&self) -> u64 {
        self.page().words().load(AT_ALIVE)
    }

    /// Notes that a standby is here at `now`; 0 takes the note back.
    pub fn standing_by(&self, now: u64) {
        self.page().words().store(AT_STANDBY, now);
    }

    /// Returns the last time at which a standby was here, in milliseconds.
    pub fn last_standby(&self) -> u64 {
        self.page().words().load(AT_STANDBY)
    }

    fn ring(&self) {
        let mut ringing = self.ringing.lock();
        if ringing.is_none() {
            *ringing = open_bell(&self.bell).ok();
        }
        // A full pipe has rung already. Without a pipe, the shipper looks by itself once a second.
        if let Some(pipe) = ringing.as_mut() {
            let _ = pipe.write(&[1]);
        }
    }
}

impl Page {
    fn open(path: &Path) -> Result<Page, Error> {
        let file = folder::open(path).context("cannot open", path)?;
        let meta = file.metadata().context("cannot look at", path)?;
        let file = Arc::new(file);
        let words = Words(Some(file.clone()));
        match words.load(AT_MAGIC) {
            MAGIC => {}
            0 => words.store(AT_MAGIC, MAGIC),
            other if other & ANY_LAYOUT == MAGIC & ANY_LAYOUT => {
                let error = std::io::Error::other("it is in the layout of another version");
                return Err(error).context("cannot use", path);
            }
            _ => {
                let mut empty = [0; WORDS];
                empty[AT_MAGIC] = MAGIC;
                words.store_all(AT_MAGIC, &empty);
            }
        }
        // Reserves room for the whole file, so that a full disk is an error here and not silence later.
        make_room(&file, WORDS as u64 * 8).context("cannot make room for", path)?;
        let futex = Futex::map(&file, AT_BELL * 8).ok();
        Ok(Page::of(path, file, futex, id(&meta)))
    }

    fn of(path: &Path, file: Arc<File>, futex: Option<Futex>, id: (u64, u64)) -> Page {
        Page { path: path.to_path_buf(), file: Mutex::new(Some(file)), futex, id }
    }

    fn words(&self) -> Words {
        let mut file = self.file.lock();
        if file.is_none() {
            *file = self.open_again().map(Arc::new);
        }
        Words(file.clone())
    }

    /// Opens the closed file again. `None` if another file has taken the name.
    fn open_again(&self) -> Option<File> {
        let file = folder::open_existing(&self.path).ok()?;
        (id(&file.metadata().ok()?) == self.id).then_some(file)
    }

    /// Returns a byte for each call; nonzero if the call is pending.
    fn asked(&self) -> [u8; 8] {
        self.words().load(AT_CALLS).to_le_bytes()
    }

    fn mark(&self) -> u32 {
        let mut bytes = [0; 4];
        self.words().read(AT_BELL * 8, &mut bytes);
        u32::from_ne_bytes(bytes)
    }

    fn view(&self) -> Option<View> {
        for _ in 0..TRIES {
            let mut entry = [0; ENTRY_WORDS];
            self.words().load_all(AT_ENTRY, &mut entry);
            if entry[0] == 0 {
                return None;
            }
            if let Some(view) = view_of(&entry) {
                return Some(view);
            }
        }
        None
    }
}

/// The words of the file, little-endian. A word that cannot be read is 0, and a failed write is ignored: the
/// process that waits for its effect waits for its timeout.
struct Words(Option<Arc<File>>);

impl Words {
    /// Fills the buffer from byte `at` on, with zeros where the file ends.
    fn read(&self, at: usize, buffer: &mut [u8]) {
        let file = self.0.as_ref();
        let count = file.and_then(|file| file.read_at(buffer, at as u64).ok()).unwrap_or(0);
        buffer.get_mut(count..).unwrap_or_default().fill(0);
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let _ = self.0.as_ref().map(|file| file.write_all_at(bytes, at as u64));
    }

    fn load(&self, at: usize) -> u64 {
        let mut words = [0];
        self.load_all(at, &mut words);
        words[0]
    }

    fn store(&self, at: usize, value: u64) {
        self.store_all(at, &[value]);
    }

    /// Reads these words in one system call.
    fn load_all(&self, at: usize, words: &mut [u64]) {
        let mut bytes = [0; ENTRY_WORDS * 8];
        let len = (words.len() * 8).min(bytes.len());
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        self.read(at * 8, bytes);
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
    }

    /// Writes these words in one system call.
    fn store_all(&self, at: usize, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(at * 8, &bytes);
    }
}

/// Encodes a view as an entry of the file.
fn entry_of(view: &View) -> [u64; ENTRY_WORDS] {
    let mut entry = [0; ENTRY_WORDS];
    let (_, rest) = entry.split_at_mut(1);
    let (words, error) = rest.split_at_mut(VIEW_WORDS);
    words.copy_from_slice(&view.to_words());
    let text = &view.error;
    let mut end = text.len().min((ERROR_WORDS - 1) * 8);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let bytes = text.as_bytes().get(..end).unwrap_or_default();
    let lengths = std::iter::once(bytes.len() as u64);
    let text = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(word)
    });
    error.iter_mut().zip(lengths.chain(text)).for_each(|(to, from)| *to = from);
    entry[0] = checksum_of(rest);
    entry
}

/// Decodes an entry; `None` if the entry is not whole.
fn view_of(entry: &[u64; ENTRY_WORDS]) -> Option<View> {
    let (checksum, rest) = entry.split_first()?;
    if *checksum != checksum_of(rest) {
        return None;
    }
    let (words, error) = rest.split_first_chunk::<VIEW_WORDS>()?;
    let len = (*error.first()? as usize).min((ERROR_WORDS - 1) * 8);
    let mut bytes: Vec<u8> = error.iter().skip(1).flat_map(|word| word.to_le_bytes()).collect();
    bytes.truncate(len);
    Some(View::from_words(words, String::from_utf8_lossy(&bytes).into_owned()))
}

/// Returns a checksum that is never 0, since an empty file has 0.
fn checksum_of(words: &[u64]) -> u64 {
    let mut digest = FileDigest::new();
    for word in words {
        digest.update(&word.to_le_bytes());
    }
    digest.checksum().0 | 1
}

/// Makes the file at least `len` bytes long, with room on the disk where the file system can reserve room.
fn make_room(file: &File, len: u64) -> std::io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            if file.metadata()?.len() < len {
                file.set_len(len)?;
            }
            Ok(())
        }
        other => Ok(other?),
    }
}

/// The public part of a shared page, for a process that takes no part. Nothing is made or changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Glance {
    /// See [`SharedPage::view`].
    pub view: Option<View>,
    /// See [`SharedPage::last_alive`].
    pub last_alive: u64,
    /// See [`SharedPage::peek_unreported`].
    pub unreported_since: Option<u64>,
}

/// Looks at the page of a state folder. `Ok(None)` if the folder has none in this layout.
pub fn glance(dir: &Path) -> Result<Option<Glance>, Error> {
    let path = dir.join(NAME);
    let file = match folder::read(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("cannot read", &path),
    };
    let file = Arc::new(file);
    if Words(Some(file.clone())).load(AT_MAGIC) != MAGIC {
        return Ok(None);
    }
    let page = Page::of(&path, file, None, (0, 0));
    let unreported = page.words().load(AT_UNREPORTED);
    Ok(Some(Glance {
        view: page.view(),
        last_alive: page.words().load(AT_ALIVE),
        unreported_since: Some(unreported).filter(|since| *since != 0),
    }))
}

fn id(meta: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (meta.dev(), meta.ino())
}

/// Returns the number of the namespace of this process's id; 0 if unknown.
pub fn pid_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    // No lock and no `OnceLock`: a fork during the first call would leave the child waiting for ever. The
    // process id tells a child, which may be in another namespace.
    static OF: AtomicU32 = AtomicU32::new(0);
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    if OF.load(Ordering::Acquire) != pid {
        let number = std::fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino());
        NUMBER.store(number, Ordering::Release);
        OF.store(pid, Ordering::Release);
    }
    NUMBER.load(Ordering::Acquire)
}

/// Opens the pipe for the shipper; makes the pipe if it is missing. The shipper opens it for writing too, so
/// that the pipe does not end when the last caller leaves.
pub fn make_bell(path: &Path) -> Result<File, Error> {
    folder_of(path)?.make_pipe(BELL).context("cannot make the pipe", path)
}

/// Opens the pipe for a caller. The caller opens it for reading too, so that there is always a reader: a
/// write to a pipe without a reader raises SIGPIPE in the application.
fn open_bell(path: &Path) -> Result<File, Error> {
    folder_of(path)?.pipe(BELL).context("cannot open the pipe", path)
}

fn folder_of(path: &Path) -> Result<Folder, Error> {
    let parent = path.parent().unwrap_or(path);
    Folder::open(parent).context("cannot open", parent)
}

impl View {
    fn to_words(&self) -> [u64; VIEW_WORDS] {
        let place = |place: Option<Place>| match place {
            None => (0, 0),
            // The frame plus one: 0 stands for none. A WAL has far fewer than 2^32 frames.
            Some((salts, frame)) => (pack_salts(salts), u64::from(frame) + 1),
        };
        let (captured, released) = (place(self.captured), place(self.released));
        [
            self.term,
            u64::from(self.pid) | u64::from(self.gate) << 32,
            captured.0,
            captured.1 | u64::from(self.captured_change) << 32,
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
            captured: place(c0, c1 & u64::from(u32::MAX)),
            captured_change: (c1 >> 32) as u32,
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
mod tests;
