//! Writes committed frames to files in the spool.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::age;
use crate::finding::Finding;
use crate::local::folder;
use crate::local::pages::{self, PageTable};
use crate::local::spool::{Entry, Spool};
use crate::ltx::{
    self, Checksum, DatabaseChecksum, Decoder, Encoded, Encoder, HEADER_LEN, Header, Tag,
};
use crate::scratch::{Place, Tape};
use crate::units::{PageSize, Pgno, Salts, Timestamp, Txid, WriterId};
use crate::wal::evidence::{Gap, Proven};
use crate::wal::{self, FrameSet};

/// Reason why capture stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// The local disk failed: try again later.
    Failed(String),
    /// The local disk has no room.
    NoRoom(String),
    /// The log cannot continue from here without a comparison of the whole database, or an image.
    Diverged(Finding),
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stop::Failed(why) | Stop::NoRoom(why) => f.write_str(why),
            Stop::Diverged(found) => found.fmt(f),
        }
    }
}

impl From<crate::local::Error> for Stop {
    fn from(error: crate::local::Error) -> Stop {
        stop(error.source.kind(), error.to_string())
    }
}

/// Converts the error of a page table. A page table that has changed unexpectedly is useless.
impl From<pages::Error> for Stop {
    fn from(error: pages::Error) -> Stop {
        match error {
            pages::Error::Io(error) => error.into(),
            pages::Error::Changed(_) => {
                log::error!("{error}");
                Stop::Diverged(Finding::TableDisproved)
            }
        }
    }
}

/// Converts errors of reads that name no path.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Failed(format!("cannot read the database or its WAL: {error}"))
    }
}

/// Position of the next frame to capture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cursor {
    /// Unknown: the database must be compared first.
    Unknown,
    /// Right behind this position.
    At(Proven),
}

/// Returns the finding for a gap in the evidence while the database is open.
pub(super) fn finding_of(gap: Gap) -> Finding {
    match gap {
        Gap::WentBack => Finding::WalWentBack,
        Gap::OtherFrames => Finding::OtherFrames,
        Gap::Restarted => Finding::WalRestartedUnseen,
    }
}

/// Values that all files of a database have in common.
#[derive(Clone, Copy)]
pub(super) struct Maker {
    pub writer: WriterId,
    pub page_size: PageSize,
    pub txid: Txid,
    pub timestamp: Timestamp,
    /// Time of the oldest commit in the file, as far as known.
    pub oldest: Timestamp,
    /// Checksum of the database before the file.
    pub pre_apply: DatabaseChecksum,
}

impl Maker {
    fn header(&self, commit: u32, post_apply: DatabaseChecksum, span: Span) -> Header {
        Header {
            page_size: self.page_size,
            commit,
            min_txid: self.txid,
            max_txid: self.txid,
            timestamp: self.timestamp,
            wal_offset: span.offset,
            wal_size: span.len,
            salts: span.salts,
            writer: self.writer,
            tag: Some(Tag { pre_apply: self.pre_apply, post_apply, full_image: false }),
        }
    }
}

/// Part of the WAL that a file's header names.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub offset: u64,
    pub len: u64,
    pub salts: Salts,
}

impl Span {
    /// Span of a file that was not made from a WAL. Litestream starts over at such a file.
    pub(super) const NONE: Span = Span { offset: 32, len: 0, salts: Salts(0, 0) };

    pub(super) fn frames(page_size: PageSize, salts: Salts, first: u32, last: u32) -> Span {
        let offset = wal::frame_offset(page_size, first);
        let end = wal::frame_offset(page_size, last.saturating_add(1));
        Span { offset, len: end.saturating_sub(offset), salts }
    }

    fn of(header: &Header) -> Span {
        Span { offset: header.wal_offset, len: header.wal_size, salts: header.salts }
    }
}

/// Consecutive frames to be read from the WAL.
pub(super) struct Stretch<'a> {
    pub wal: &'a File,
    pub frames: &'a FrameSet,
    /// Generation of the frames.
    pub salts: Salts,
    /// Called after the read; false if other frames may be in these places by then.
    pub in_place: &'a dyn Fn() -> bool,
}

/// Writes the newest pages of a stretch of frames to a spool file, and updates the page table.
pub(super) fn write_frames(
    spool: &Spool,
    table: &mut PageTable,
    stretch: &Stretch<'_>,
    maker: &Maker,
    entry: Entry,
) -> Result<Entry, Stop> {
    let Stretch { wal, frames, salts, in_place } = *stretch;
    if frames.commit == 0 {
        return Err(Stop::Diverged(Finding::EmptyCommit));
    }
    let lock_page = maker.page_size.lock_page();
    let grown = table.commit().saturating_add(1)..=frames.commit;
    if let Some(missing) = first_missing(grown, lock_page, frames)? {
        log::warn!("page {missing} of {} is not in the WAL", frames.commit);
        return Err(Stop::Diverged(Finding::PagesMissing));
    }
    let mut writer = PieceWriter::begin(spool, maker.page_size)?;
    let mut page = vec![0; maker.page_size.bytes()];
    for found in frames.newest.iter() {
        let (pgno, frame) = found?;
        if pgno <= frames.commit && pgno != lock_page {
            wal::read_frame_page(wal, maker.page_size, frame, &mut page)?;
            writer.page(pgno, &page)?;
        }
    }
    // A restart of the WAL in spite of all guards would show in the WAL's header. A new generation overwrites
    // the file from the front. So if the first frame is still in place, all frames behind it are too.
    let same = wal::WalHeader::read(wal).is_some_and(|header| header.salts == salts);
    let first = || wal::FrameHeader::read(wal, maker.page_size, frames.first);
    if !same && first().map_or(true, |header| header.salts != salts) {
        return Err(Stop::Diverged(Finding::WalRestartedUnseen));
    }
    // Recovery may have cut off the generation, and a writer may have continued from there.
    let last = wal::checksum_at(wal, maker.page_size, frames.last);
    if !in_place() || last.map_or(true, |checksum| checksum != frames.checksum) {
        return Err(Stop::Diverged(if same {
            Finding::OtherFrames
        } else {
            Finding::WalRestartedUnseen
        }));
    }
    let span = Span::frames(maker.page_size, salts, frames.first, frames.last);
    writer.finish(spool, table, frames.commit, span, maker, entry)
}

/// Returns the first of these pages that no frame holds. The lock page is not needed.
fn first_missing(
    pages: RangeInclusive<Pgno>,
    lock_page: Pgno,
    frames: &FrameSet,
) -> io::Result<Option<Pgno>> {
    let mut wanted = pages.filter(|pgno| *pgno != lock_page).peekable();
    let mut found = frames.newest.iter();
    while let Some(pgno) = wanted.peek().copied() {
        match found.next().transpose()? {
            Some((there, _)) if there < pgno || there == lock_page => {}
            Some((there, _)) if there == pgno => drop(wanted.next()),
            _ => return Ok(Some(pgno)),
        }
    }
    Ok(None)
}

/// A spool file that is being written page by page.
pub(super) struct PieceWriter {
    encoder: Encoder<BufWriter<File>>,
    temp: PathBuf,
    sums: Sums,
}

impl PieceWriter {
    pub(super) fn begin(spool: &Spool, page_size: PageSize) -> Result<PieceWriter, Stop> {
        let temp = spool.temp_path();
        let file = create(&temp)?;
        let out = BufWriter::with_capacity(256 * 1024, file);
        let encoder = Encoder::spilling(out, page_size, spool.scratch());
        Ok(PieceWriter { encoder, temp, sums: Sums::new(spool.scratch()) })
    }

    pub(super) fn page(&mut self, pgno: Pgno, page: &[u8]) -> Result<(), Stop> {
        self.encoder.page(pgno, page).map_err(|error| encoding(&self.temp, error))?;
        self.sums.push(pgno, ltx::checksum::page(pgno, page))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.encoder.is_empty()
    }

    /// Completes the file, publishes it, and updates the page table.
    pub(super) fn finish(
        self,
        spool: &Spool,
        table: &mut PageTable,
        commit: u32,
        span: Span,
        maker: &Maker,
        entry: Entry,
    ) -> Result<Entry, Stop> {
        let post_apply = table.checksum_after(self.sums.parts(), commit)?;
        let header = maker.header(commit, post_apply, span);
        let done = self.encoder.finish(&header);
        let (out, encoded) = done.map_err(|error| encoding(&self.temp, error))?;
        let entry = complete(spool, out, &encoded, maker.oldest, entry)?;
        let before = (table.checksum(), table.commit());
        let Err(error) = follow(table, &self.sums, commit) else { return Ok(entry) };
        // The number of this piece is given out again. Of two files with the same number, a later read might
        // use the wrong one.
        spool.remove(&entry).unwrap_or_else(|error| log::error!("{error}"));
        if before == (table.checksum(), table.commit()) {
            return Err(error);
        }
        // The page table was updated in part. A comparison would count those pages as shipped.
        log::error!("{error}");
        Err(Stop::Diverged(Finding::TableDisproved))
    }
}

/// Updates the page table with the pages of a file.
fn follow(table: &mut PageTable, sums: &Sums, commit: u32) -> Result<(), Stop> {
    for part in sums.parts() {
        table.set_all(&part?)?;
    }
    Ok(table.set_commit(commit)?)
}

/// Checksums of a file's pages, kept until the page table is updated.
struct Sums(Tape);

impl Sums {
    /// Bytes for each page: its number and its checksum.
    const ENTRY_LEN: usize = 12;
    /// Pages that are read at once.
    const AT_ONCE: usize = 4096;

    fn new(place: Place) -> Sums {
        Sums(Tape::new(place))
    }

    fn push(&mut self, pgno: Pgno, sum: Checksum) -> Result<(), Stop> {
        let mut entry = [0; Sums::ENTRY_LEN];
        let (number, rest) = entry.split_at_mut(size_of::<Pgno>());
        number.copy_from_slice(&pgno.to_le_bytes());
        rest.copy_from_slice(&sum.0.to_le_bytes());
        self.0.push(&entry).map_err(|error| stop(error.kind(), error.to_string()))
    }

    /// Returns all pages in order, in several parts.
    fn parts(&self) -> impl Iterator<Item = Result<Vec<(Pgno, Checksum)>, Stop>> {
        let (mut at, mut bytes) = (0, vec![0; Sums::AT_ONCE * Sums::ENTRY_LEN]);
        std::iter::from_fn(move || {
            let read = self.read(&mut bytes, at);
            let count = match read {
                Ok(0) => return None,
                Ok(count) => count,
                Err(error) => return Some(Err(stop(error.kind(), error.to_string()))),
            };
            at += count as u64;
            let entries = bytes[..count].as_chunks::<{ Sums::ENTRY_LEN }>().0;
            Some(Ok(entries.iter().map(|entry| Sums::entry(*entry)).collect()))
        })
    }

    /// Fills the buffer from byte `at` on, until the tape ends.
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut count = 0;
        loop {
            match self.0.read_at(&mut buffer[count..], at + count as u64)? {
                0 => return Ok(count),
                more => count += more,
            }
        }
    }

    fn entry(entry: [u8; Sums::ENTRY_LEN]) -> (Pgno, Checksum) {
        let [a, b, c, d, sum @ ..] = entry;
        (Pgno::from_le_bytes([a, b, c, d]), Checksum(u64::from_le_bytes(sum)))
    }
}

/// Returns the stop for a failure of the local disk.
pub(super) fn stop(kind: io::ErrorKind, message: String) -> Stop {
    if is_for_want_of_room(kind) { Stop::NoRoom(message) } else { Stop::Failed(message) }
}

pub(super) fn is_for_want_of_room(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Merges open spool files into one file. The caller removes the open files.
pub(super) fn merge(
    spool: &Spool,
    open: &[Entry],
    commit: u32,
    post_apply: DatabaseChecksum,
    maker: &Maker,
    entry: Entry,
) -> Result<Entry, Stop> {
    let mut inputs = Vec::with_capacity(open.len());
    let mut span = Span::NONE;
    for piece in open {
        let path = spool.path(piece);
        let file = folder::read(&path).map_err(|error| failed("cannot open", &path, &error))?;
        let decoder = Decoder::new(BufReader::with_capacity(128 * 1024, file));
        let decoder = decoder.map_err(|error| encoding(&path, error))?;
        span = Span::of(decoder.header());
        inputs.push(decoder);
    }
    let header = maker.header(commit, post_apply, span);
    let temp = spool.temp_path();
    let out = BufWriter::with_capacity(256 * 1024, create(&temp)?);
    let encoder = Encoder::spilling(out, maker.page_size, spool.scratch());
    let merged = ltx::merge::merge_into(inputs, &header, encoder, |_, _| ());
    let (out, encoded) = merged.map_err(|broken| match broken.source {
        ltx::Error::Io(error) => failed("cannot join spool files to", &temp, &error),
        other => {
            // The page table has the file's pages already, so a comparison would not find them.
            log::error!("a file in the spool is damaged: {other}");
            Stop::Diverged(Finding::TableDisproved)
        }
    })?;
    complete(spool, out, &encoded, maker.oldest, entry)
}

/// Creates a spool file, positioned behind the room for its header.
fn create(path: &Path) -> Result<File, Stop> {
    let mut file = folder::create(path).map_err(|error| failed("cannot create", path, &error))?;
    file.seek(SeekFrom::Start(HEADER_LEN as u64))
        .map_err(|error| failed("cannot write", path, &error))?;
    Ok(file)
}

/// Writes the header and gives the file its name.
fn complete(
    spool: &Spool,
    mut out: BufWriter<File>,
    encoded: &Encoded,
    oldest: Timestamp,
    mut entry: Entry,
) -> Result<Entry, Stop> {
    let temp = spool.temp_path();
    let written = out.flush().and_then(|()| out.get_ref().write_all_at(&encoded.header, 0));
    written.map_err(|error| failed("cannot write", &temp, &error))?;
    age::keep_oldest(out.get_ref(), oldest);
    entry.len = encoded.len;
    spool.publish(&temp, &entry)?;
    Ok(entry)
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Stop {
    stop(error.kind(), format!("{what} {}: {error}", path.display()))
}

fn encoding(path: &Path, error: ltx::Error) -> Stop {
    match error {
        ltx::Error::Io(error) => failed("cannot write or read", path, &error),
        other => Stop::Failed(format!("{} cannot be a spool file: {other}", path.display())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::allocated::within;

    /// Pages of a database of 2 GiB, at 4096 bytes a page.
    const PAGES: u32 = 1 << 19;

    #[test]
    fn a_piece_of_many_pages_is_made_in_little_memory() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let mut table = PageTable::open(dir.path(), 0).unwrap();
        let page_size = PageSize::new(512).unwrap();
        let pre_apply = table.checksum();
        let (txid, timestamp) = (Txid(7), Timestamp(1));
        let oldest = timestamp;
        let maker = Maker { writer: WriterId(1), page_size, txid, timestamp, oldest, pre_apply };
        let page = |pgno: Pgno| [pgno as u8; 512];
        let entry = Entry { txid: None, pieces: (1, 1), position: None, len: 0 };
        let entry = within(2 << 20, || {
            let mut writer = PieceWriter::begin(&spool, page_size).unwrap();
            for pgno in 1..=PAGES {
                writer.page(pgno, &page(pgno)).unwrap();
            }
            writer.finish(&spool, &mut table, PAGES, Span::NONE, &maker, entry).unwrap()
        });
        let mut by_hand = DatabaseChecksum::EMPTY;
        (1..=PAGES).for_each(|pgno| by_hand.toggle(ltx::checksum::page(pgno, &page(pgno))));
        assert_eq!((table.checksum(), table.commit()), (by_hand, PAGES));
        assert_eq!(table.get(PAGES / 2).unwrap(), Some(ltx::checksum::page(PAGES / 2, &page(0))));
        let decoder = Decoder::new(folder::read(&spool.path(&entry)).map(BufReader::new).unwrap());
        let mut decoder = decoder.unwrap();
        assert_eq!(decoder.header().tag.unwrap().post_apply, by_hand);
        assert_eq!(decoder.next_page().unwrap().unwrap().pgno, 1);
        decoder.finish().unwrap();
        let left = std::fs::read_dir(spool.path(&entry).parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "nothing but the file");
    }

    #[test]
    fn a_page_by_which_the_database_grew_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let place = crate::local::spool::scratch(dir.path());
        let missing = |pages: &[Pgno], grown: RangeInclusive<Pgno>, lock_page| {
            let mut frames = FrameSet::default();
            frames.spill_to(&place);
            let last = pages.len() as u32;
            let mut wal = vec![0; (32 + pages.len() * 536) - 512];
            for (pgno, at) in pages.iter().zip((32..).step_by(536)) {
                wal[at..at + 4].copy_from_slice(&pgno.to_be_bytes());
                wal[at + 8] = 1;
            }
            frames.extend(wal.as_slice(), PageSize::new(512).unwrap(), 1, last).unwrap();
            first_missing(grown, lock_page, &frames).unwrap()
        };
        assert_eq!(missing(&[7, 3, 5, 4, 6], 4..=7, 99), None);
        assert_eq!(missing(&[7, 3, 5, 4], 4..=7, 99), Some(6));
        assert_eq!(missing(&[7, 3, 5, 4], 4..=7, 6), None);
        assert_eq!(missing(&[7, 3, 5, 4, 6], 4..=8, 99), Some(8));
        assert_eq!(missing(&[7, 3, 5, 4, 6], 4..=8, 8), None);
        assert_eq!(missing(&[7, 3, 5, 4, 6], 4..=8, 6), Some(8));
        assert_eq!(missing(&[2], 2..=3, 99), Some(3));
        #[allow(clippy::reversed_empty_ranges)]
        let shrunk = missing(&[2], 5..=3, 99);
        assert_eq!(shrunk, None);
    }
}
