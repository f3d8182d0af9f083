//! The page by which the processes of one database talk to each other: the small file `shm-3`, which
//! all of them have open, and the pipe `bell`.
//!
//! The process that ships says how far it is ([`View`]); the others look there at their gate, and
//! call when they want something ([`Call`]). Nothing here is believed for more than waiting: what
//! the log may contain is decided from the WAL and the local state, which only the lock's holder
//! touches. A process that dies in the middle of an entry leaves a view that nobody can read whole;
//! the next shipper begins it anew. A file that somebody empties or fills with garbage costs waits
//! and no more: the shipper writes its entry again, once a second.

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

/// The file's name. A layout has a name of its own: an older or newer walferry beside this one has
/// another file, and never takes a word of this one for something else.
const NAME: &str = "shm-3";
/// Length of the file in words of 8 bytes.
const WORDS: usize = 512;
/// What the first word says of a file in this layout, and of one in any: all but the last byte.
const MAGIC: u64 = u64::from_le_bytes(*b"wfshm\0\0\x03");
const ANY_LAYOUT: u64 = u64::MAX >> 8;

// Places, in words.
const AT_MAGIC: usize = 0;
/// A futex that changes with each entry.
const AT_BELL: usize = 2;
/// What the shipper is asked for: a byte for each bit of [`Call`], so that nobody who asks for one
/// thing writes over another.
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
/// The entry: the checksum of what follows, the view, the error's text.
const AT_ENTRY: usize = 15;
const AT_VIEW: usize = AT_ENTRY + 1;
const VIEW_WORDS: usize = 16;
/// Longest text of an error, in words.
const ERROR_WORDS: usize = 96;
const ENTRY_WORDS: usize = 1 + VIEW_WORDS + ERROR_WORDS;
/// How often an entry is read again that is just being made.
const TRIES: usize = 100;
/// Where nobody can be waited for, the next look is after so long.
const NEXT_LOOK: Duration = Duration::from_millis(1);

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
    /// `iChange` there.
    pub captured_change: u32,
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
    /// Make room: a write has found none.
    pub const ROOM: Call = Call(64);

    /// Whether any of this is among what is asked for.
    pub fn has(self, other: Call) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the bit of this number is set.
    fn has_flag(self, at: usize) -> bool {
        self.0 >> at & 1 != 0
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Call) -> Call {
        Call(self.0 | other.0)
    }
}

/// The file and the pipe.
///
/// The file is read and written, not mapped: memory that is mapped from a file which somebody
/// shortens ends the process with SIGBUS. Words that several
/// processes write are made so that the last one may win. Only the kernel uses a mapping, to know
/// who waits for the same word ([`Futex`]).
#[derive(Debug)]
pub struct SharedPage {
    path: PathBuf,
    page: Mutex<Arc<Page>>,
    bell: PathBuf,
    /// The pipe as a caller has it open.
    ringing: Mutex<Option<File>>,
}

/// The file, open or not.
#[derive(Debug)]
struct Page {
    path: PathBuf,
    /// While it is open.
    file: Mutex<Option<Arc<File>>>,
    futex: Option<Futex>,
    /// Device and inode of the file.
    id: (u64, u64),
}

impl SharedPage {
    /// Opens the file of a state folder, which is made if need be. One in another layout is left
    /// alone, and is an error; what is none is begun anew.
    pub fn open(dir: &Path) -> Result<SharedPage, Error> {
        let path = dir.join(NAME);
        let page = Mutex::new(Page::open(&path)?.into());
        Ok(SharedPage { path, page, bell: dir.join(BELL), ringing: Mutex::new(None) })
    }

    /// Opens the file again when another one, or none, has its name. What was asked for in the old
    /// one and not seen is asked for in the new one: somebody waits for it.
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

    /// Whether the folder still has the file that is open.
    pub fn is_in_place(&self, dir: &Path) -> bool {
        std::fs::symlink_metadata(dir.join(NAME)).is_ok_and(|meta| id(&meta) == self.page().id)
    }

    /// Closes the file until it is needed again: a database that is open and idle costs its process a
    /// descriptor less.
    pub fn rest(&self) {
        *self.page().file.lock() = None;
    }

    /// Where callers ring.
    pub fn bell_path(&self) -> &Path {
        &self.bell
    }

    /// Becomes the shipper: a new term begins, whatever was left in the file. Gives its number.
    pub fn begin_term(&self, now: u64) -> u64 {
        // What is there may be the half of an entry, or garbage: never 0 after all that.
        let last = self.page().words().load(AT_VIEW) & u64::MAX >> 1;
        let term = last.max(super::state::random_id() >> 16).wrapping_add(1);
        self.alive(now);
        self.set_listens(false);
        let (pid, namespace) = (std::process::id(), pid_namespace());
        self.publish(&View { term, pid, namespace, gate: 1, ..View::default() });
        term
    }

    /// The shipper says how things stand, and wakes all who wait.
    pub fn publish(&self, view: &View) {
        let page = self.page();
        page.words().store_all(AT_ENTRY, &entry_of(view));
        // Nobody else writes it.
        let bell = page.mark().wrapping_add(1);
        page.words().write(AT_BELL * 8, &bell.to_ne_bytes());
        if let Some(futex) = &page.futex {
            futex.wake();
        }
    }

    /// What the shipper said last; `None` if it has said nothing, and if what is there is not whole.
    pub fn view(&self) -> Option<View> {
        self.page().view()
    }

    /// A mark to wait from: taken before the view is looked at.
    pub fn mark(&self) -> u32 {
        let mark = self.page().mark();
        fence(Ordering::SeqCst);
        mark
    }

    /// Waits until the shipper says something after this mark, or for this long at the most.
    pub fn wait(&self, mark: u32, timeout: Duration) {
        let waited = self.page().futex.as_ref().is_some_and(|futex| futex.wait(mark, timeout));
        if !waited {
            std::thread::park_timeout(timeout.min(NEXT_LOOK));
        }
    }

    /// Asks the shipper for something. It is woken unless the same was asked and not seen yet.
    pub fn call(&self, call: Call) {
        // What the call is about, a commit, is to be seen by who takes it: see `listen`.
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

    /// What was asked for since the last time, but for [`Call::LOOK`]. It is taken before it is done:
    /// who asks for the same meanwhile is served by this time, too.
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

    /// From now on the next commit rings. To be called before the wal-index is looked at.
    pub fn listen(&self) {
        self.page().words().write(AT_CALLS * 8, &[0]);
        // Either the look sees the commit, or who made it sees this.
        fence(Ordering::SeqCst);
    }

    /// Notes a commit that the shipper does not know of.
    pub fn unreported(&self, now: u64) {
        // Of two processes that find nothing here at once, one is a moment later than the other.
        if self.page().words().load(AT_UNREPORTED) == 0 {
            self.page().words().store(AT_UNREPORTED, now.max(1));
        }
    }

    /// Forgets such commits, once the shipper has said itself that they are not at the store.
    pub fn forget_unreported(&self) {
        self.page().words().store(AT_UNREPORTED, 0);
    }

    /// When the oldest commit was made that the shipper was not told of.
    pub fn peek_unreported(&self) -> Option<u64> {
        Some(self.page().words().load(AT_UNREPORTED)).filter(|since| *since != 0)
    }

    /// Names the position at which the WAL is to be begun anew. Only who holds the WAL's write lock
    /// does that, so that there is one at a time. Gives the wish's number.
    pub fn want(&self, (salts, frame): Place) -> u64 {
        let number = match self.page().words().load(AT_WANTED + 2) {
            // Not one that was answered before the file was emptied.
            0 => super::state::random_id() >> 16,
            last => last,
        };
        let number = number.wrapping_add(1);
        self.page().words().store_all(AT_WANTED, &[pack_salts(salts), u64::from(frame)]);
        // Behind its position, so that who sees the number sees that, too.
        self.page().words().store(AT_WANTED + 2, number);
        number
    }

    /// That position and the wish's number.
    pub fn wanted(&self) -> (Place, u64) {
        let number = self.page().words().load(AT_WANTED + 2);
        let mut place = [0; 2];
        self.page().words().load_all(AT_WANTED, &mut place);
        let [salts, frame] = place;
        ((unpack_salts(salts), frame as u32), number)
    }

    /// The shipper is alive.
    pub fn alive(&self, now: u64) {
        self.page().words().store(AT_ALIVE, now);
    }

    /// Whether it hears the bell; else it comes by once a second.
    pub fn set_listens(&self, listens: bool) {
        self.page().words().store(AT_LISTENS, u64::from(listens));
    }

    /// See [`SharedPage::set_listens`].
    pub fn listens(&self) -> bool {
        self.page().words().load(AT_LISTENS) != 0
    }

    /// When it was.
    pub fn last_alive(&self) -> u64 {
        self.page().words().load(AT_ALIVE)
    }

    /// A process that stands by is here.
    pub fn standing_by(&self, now: u64) {
        self.page().words().store(AT_STANDBY, now);
    }

    /// When one was.
    pub fn last_standby(&self) -> u64 {
        self.page().words().load(AT_STANDBY)
    }

    fn ring(&self) {
        let mut ringing = self.ringing.lock();
        if ringing.is_none() {
            *ringing = open_bell(&self.bell).ok();
        }
        // A full pipe has rung already; without a pipe the shipper looks by itself, once a second.
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
        // Room for all of it, so that a full disk is an error here and not silence later.
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

    /// Opens the file that was closed. Another one of its name is none of this page's.
    fn open_again(&self) -> Option<File> {
        let file = folder::open_existing(&self.path).ok()?;
        (id(&file.metadata().ok()?) == self.id).then_some(file)
    }

    /// A byte for each thing that is asked for.
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

/// The words of the file, little-endian. What cannot be read is 0, and what cannot be written is
/// not: whoever waits for it waits for his time-out.
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

    /// Reads these words at once.
    fn load_all(&self, at: usize, words: &mut [u64]) {
        let mut bytes = [0; ENTRY_WORDS * 8];
        let len = (words.len() * 8).min(bytes.len());
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        self.read(at * 8, bytes);
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
    }

    /// Writes these words at once.
    fn store_all(&self, at: usize, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(at * 8, &bytes);
    }
}

/// A view as it is in the file.
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

/// What an entry says, if it is whole.
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

/// Never 0, which is what an empty file has.
fn checksum_of(words: &[u64]) -> u64 {
    let mut digest = FileDigest::new();
    for word in words {
        digest.update(&word.to_le_bytes());
    }
    digest.checksum().0 | 1
}

/// Makes the file at least so long, and gives it room on the disk where that can be had.
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

/// What is to be seen of a shared page by who takes no part: nothing is made or changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Glance {
    /// See [`SharedPage::view`].
    pub view: Option<View>,
    /// See [`SharedPage::last_alive`].
    pub last_alive: u64,
    /// See [`SharedPage::peek_unreported`].
    pub unreported_since: Option<u64>,
}

/// Looks at the page of a state folder. `Ok(None)` when there is none in our layout.
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

/// A number for the namespace in which our process id is one; 0 when there is no telling.
pub fn pid_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    // Nothing that is waited for: a fork in the midst of a first look would leave the child waiting for ever.
    // A child may be in another namespace.
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

/// Opens the pipe, which is made if need be, for the end that reads. Open for writing too, it does not
/// end when the last caller goes.
pub fn make_bell(path: &Path) -> Result<File, Error> {
    folder_of(path)?.make_pipe(BELL).context("cannot make the pipe", path)
}

/// Opens the pipe for a caller. Open for reading too, there is always a reader: a write to a pipe without
/// one raises SIGPIPE in the application.
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
            // The frame plus one, so that none and frame 0 are two things. A WAL has far fewer than 2^32.
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
