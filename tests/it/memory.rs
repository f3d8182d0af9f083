//! Memory does not grow with the number of pages: what is counted is what a thread holds at once.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use walferry::ltx::encode::Encoded;
use walferry::ltx::merge::merge_into;
use walferry::ltx::{Decoder, Encoder, HEADER_LEN, Header};
use walferry::scratch::Place;
use walferry::units::{PageSize, Pgno, Salts, Timestamp, Txid, WriterId};
use walferry::wal::{self, FrameSet, ReadAt};

use crate::fuzz::allocated::within;

/// As many pages as a database of 4 GiB has.
const PAGES: u32 = 1 << 20;
/// No more bytes than pages, whatever is kept of each.
const LITTLE: usize = PAGES as usize;

fn size() -> PageSize {
    PageSize::new(512).unwrap()
}

fn header(commit: u32) -> Header {
    Header {
        page_size: size(),
        commit,
        min_txid: Txid(7),
        max_txid: Txid(7),
        timestamp: Timestamp(1),
        wal_offset: 32,
        wal_size: 0,
        salts: Salts(0, 0),
        writer: WriterId(1),
        tag: None,
    }
}

fn create(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn encoder<W: Write>(out: W, dir: &Path) -> Encoder<W> {
    Encoder::spilling(out, size(), Place::new(&dir.join("scratch.tmp"), create))
}

/// Every so many pages of a database, in a file of its own.
fn encoded(dir: &Path, step: usize) -> (File, Encoded) {
    let mut file = create(&dir.join("file.tmp")).unwrap();
    file.seek(SeekFrom::Start(HEADER_LEN as u64)).unwrap();
    let out = io::BufWriter::with_capacity(64 << 10, file);
    let mut encoder = encoder(out, dir);
    for pgno in (1..=PAGES).step_by(step) {
        encoder.page(pgno, &[pgno as u8; 512]).unwrap();
    }
    let (out, encoded) = encoder.finish(&header(PAGES)).unwrap();
    let file = out.into_inner().unwrap();
    file.write_all_at(&encoded.header, 0).unwrap();
    (file, encoded)
}

fn decoder(file: &File) -> Decoder<impl Read> {
    let mut file = file.try_clone().unwrap();
    file.rewind().unwrap();
    Decoder::new(BufReader::with_capacity(64 << 10, file)).unwrap()
}

#[test]
fn a_file_of_many_pages_is_made_and_read_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (file, encoded) = within(LITTLE, || encoded(dir.path(), 1));
    assert_eq!((encoded.pages, file.metadata().unwrap().len()), (u64::from(PAGES), encoded.len));
    let read = within(LITTLE / 2, || decoder(&file).finish().unwrap());
    assert_eq!(read, encoded.file_checksum);
}

/// A spilled index is the same as one that was kept, to the last byte.
#[test]
fn where_an_index_is_kept_changes_nothing_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Encoder::new(vec![0; HEADER_LEN], size());
    for pgno in 1..=PAGES {
        kept.page(pgno, &[pgno as u8; 512]).unwrap();
    }
    let (mut kept, head) = kept.finish(&header(PAGES)).unwrap();
    kept[..HEADER_LEN].copy_from_slice(&head.header);
    let (mut file, _) = encoded(dir.path(), 1);
    let mut spilled = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut spilled).unwrap();
    assert!(spilled == kept);
}

#[test]
fn files_of_many_pages_are_joined_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let files = [encoded(dir.path(), 1).0, encoded(dir.path(), 2).0, encoded(dir.path(), 3).0];
    let (_, joined) = within(LITTLE, || {
        let decoders = files.iter().map(decoder).collect();
        let out = encoder(io::sink(), dir.path());
        merge_into(decoders, &header(PAGES), out, |_, _| ()).unwrap()
    });
    assert_eq!(joined.pages, u64::from(PAGES));
}

/// A file with one byte of its index changed is refused wherever that is, also far from its ends.
#[test]
fn an_index_of_many_pages_is_read_to_the_last_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (file, encoded) = encoded(dir.path(), 4);
    let mut index_len = [0; 8];
    FileExt::read_exact_at(&file, &mut index_len, encoded.len - 24).unwrap();
    let index_len = u64::from_be_bytes(index_len);
    let start = encoded.len - 24 - index_len;
    for at in (0..8).map(|eighth| start + index_len / 8 * eighth + eighth).chain([encoded.len - 25])
    {
        let mut byte = [0];
        FileExt::read_exact_at(&file, &mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let error = decoder(&file).finish().unwrap_err();
        assert!(error.to_string().contains("page index"), "byte {at}: {error}");
        file.write_all_at(&byte, at).unwrap();
    }
    decoder(&file).finish().unwrap();
}

/// A WAL of which only the headers can be read: its frames hold the pages downwards, each third twice.
struct Downwards;

fn page_in(frame: u32) -> Pgno {
    PAGES - frame / 3 * 2 - frame % 3 / 2
}

impl ReadAt for Downwards {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let frame_len = (512 + wal::FRAME_HEADER_LEN) as u64;
        let frame = ((offset - wal::WAL_HEADER_LEN) / frame_len + 1) as u32;
        let words = [page_in(frame), if frame == PAGES { PAGES } else { 0 }, 7, 8, frame, 1];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        buffer.copy_from_slice(&bytes);
        Ok(())
    }
}

#[test]
fn a_transaction_of_many_pages_is_known_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(&dir.path().join("scratch.tmp"), create);
    let set = |known: bool| {
        let mut frames = FrameSet::default();
        frames.spill_to(&place);
        if known {
            let pages = |first, last| Some((first..=last).map(page_in).collect());
            frames.extend_known(&Downwards, size(), (1, PAGES), pages).unwrap();
        } else {
            frames.extend(&Downwards, size(), 1, PAGES).unwrap();
        }
        let (mut count, mut before) = (0, 0);
        for found in frames.newest.iter() {
            let (pgno, frame) = found.unwrap();
            assert!(pgno > before && page_in(frame) == pgno);
            assert!(frame == PAGES || page_in(frame + 1) != pgno, "the newer frame");
            (count, before) = (count + 1, pgno);
        }
        assert_eq!((frames.first, frames.last, frames.commit), (1, PAGES, PAGES));
        count
    };
    for known in [true, false] {
        let pages = within(4 * LITTLE, || set(known));
        assert_eq!(pages, PAGES - page_in(PAGES) + 1, "all pages down to the last frame's");
    }
}
