//! The fuzz targets: each takes any bytes and panics when a promise of the library is broken.
//!
//! What all of them hold: no panic, memory within a bound made from the input's length, the same
//! answer twice, and what was accepted survives being written and read again.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use tempfile::TempDir;
use walferry::local::spool::Spool;
use walferry::local::state::State;
use walferry::ltx::checksum::FileDigest;
use walferry::ltx::encode::to_vec;
use walferry::ltx::index::{self, Builder, Entry, Mark, TAIL_LEN};
use walferry::ltx::merge::merge;
use walferry::ltx::{self, Checksum, Decoder, FileName, HEADER_LEN, Header, PAGE_HEADER_LEN, page};
use walferry::store::{self, url};
use walferry::units::{PageSize, Pgno, Salts, Timestamp, Txid, WriterId};
use walferry::wal::{self, FrameHeader, FrameSet, WalHeader, WalIndex};

use super::allocated::within;

/// A target by its name, which is also that of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 7] = [
    ("ltx_file", ltx_file),
    ("ltx_header", ltx_header),
    ("ltx_page", ltx_page),
    ("ltx_index", ltx_index),
    ("wal", wal),
    ("names", names),
    ("local", local),
];

/// Buffers whose size does not come from the input: one page plain, one compressed, and what the
/// LZ4 frame decoder takes for itself.
const BUFFERS: usize = 1 << 20;

type Pages = Vec<(Pgno, Vec<u8>)>;

/// A whole LTX file. One that is right but for its checksum is put right and read again, so that
/// mutation gets behind the checksum.
pub fn ltx_file(bytes: &[u8]) {
    let streamed = || -> Result<(Header, u64, Checksum), ltx::Error> {
        let mut decoder = Decoder::new(bytes)?;
        let (header, mut pages) = (*decoder.header(), 0);
        while decoder.next_page()?.is_some() {
            pages += 1;
        }
        Ok((header, pages, decoder.finish()?))
    };
    let first = within(BUFFERS + 16 * bytes.len(), streamed);
    assert_eq!(text(&first), text(&streamed()), "two answers to the same file");
    let by_index = within(BUFFERS + 16 * bytes.len(), || read_by_index(bytes, |_, _| ()));
    match first {
        Ok((header, count, checksum)) => {
            assert_eq!(checksum, by_index.expect("refused by its index, but not as a stream"));
            let pages = read_as_stream(bytes).expect("it was accepted before");
            assert_eq!(pages.len() as u64, count);
            let mut indexed = Vec::new();
            read_by_index(bytes, |pgno, page| indexed.push((pgno, page.to_vec()))).expect("again");
            assert!(pages == indexed, "the index gives other pages than the stream");
            check_written_again(bytes, header, &pages);
        }
        Err(ltx::Error::Corrupt(why)) => {
            assert!(by_index.is_err(), "refused as a stream, but not by its index: {why}");
            let right = why
                .strip_prefix("its checksum should be ")
                .map(|hex| u64::from_str_radix(hex, 16).expect("a checksum in hexadecimal digits"));
            if let Some((body, right)) = bytes.len().checked_sub(8).zip(right) {
                assert_ne!(bytes[body..], right.to_be_bytes(), "refused for a right checksum");
                ltx_file(&[&bytes[..body], &right.to_be_bytes()].concat());
            }
        }
        Err(error) => assert!(by_index.is_err(), "accepted by its index alone: {error}"),
    }
}

fn read_as_stream(bytes: &[u8]) -> Result<Pages, ltx::Error> {
    let mut decoder = Decoder::new(bytes)?;
    let mut pages = Vec::new();
    while let Some(page) = decoder.next_page()? {
        pages.push((page.pgno, page.data.to_vec()));
    }
    decoder.finish()?;
    Ok(pages)
}

/// As a restore reads: outer parts first, then each page where the index says that it is.
fn read_by_index(
    bytes: &[u8],
    mut each: impl FnMut(Pgno, &[u8]),
) -> Result<Checksum, Box<dyn std::error::Error>> {
    let head = bytes.first_chunk::<HEADER_LEN>().ok_or("no header")?;
    let header = Header::decode(head)?;
    let (start, len) = index::locate(bytes.len() as u64, bytes)?;
    assert!(start + len + TAIL_LEN as u64 == bytes.len() as u64);
    let frames_end = start as usize - PAGE_HEADER_LEN;
    if bytes[frames_end..start as usize] != [0; PAGE_HEADER_LEN] {
        return Err("the pages do not end before the index".into());
    }
    let mut digest = FileDigest::new();
    digest.update(head);
    let mut page = vec![0; header.page_size.bytes()];
    let mut reader = index::Reader::new(&bytes[start as usize..(start + len) as usize]);
    while let Some(Entry { pgno, offset, len }) = reader.next().transpose()? {
        let longest = page::max_page_frame_len(header.page_size) as u64;
        let shortest = page::min_page_frame_len(header.page_size);
        if len > longest || reader.end_offset() > frames_end as u64 {
            return Err("a frame that cannot be".into());
        }
        if pgno == header.page_size.lock_page() || pgno > header.commit {
            return Err("the lock page, or one beyond the end".into());
        }
        page::decode(&bytes[offset as usize..][..len as usize], pgno, &mut page, &mut digest)?;
        assert!(len >= shortest, "a frame of {len} bytes, under {shortest}, was decoded");
        each(pgno, &page);
    }
    if reader.end_offset() != frames_end as u64 {
        return Err("the index does not reach to the end of the pages".into());
    }
    let (covered, stored) = bytes.split_last_chunk::<8>().ok_or("no trailer")?;
    digest.update(&covered[frames_end..]);
    if digest.checksum().0.to_be_bytes() != *stored {
        return Err("the checksum is wrong".into());
    }
    Ok(digest.checksum())
}

fn check_written_again(bytes: &[u8], header: Header, pages: &Pages) {
    let borrowed = || pages.iter().map(|(pgno, page)| (*pgno, page.as_slice()));
    let again = to_vec(&header, borrowed()).expect("what was read can be written");
    assert!(read_as_stream(&again).expect("our own file") == *pages);
    assert_eq!(Decoder::new(&again[..]).expect("our own header").header(), &header);
    let alone = vec![Decoder::new(bytes).expect("it was accepted before")];
    let (body, encoded) = merge(alone, &header, Vec::new()).expect("a merge of one file");
    assert_eq!(encoded.len, (HEADER_LEN + body.len()) as u64);
    let merged = [&encoded.header[..], &body].concat();
    assert!(read_as_stream(&merged).expect("a merged file") == *pages);
}

fn text<T: std::fmt::Debug>(value: &T) -> String {
    format!("{value:?}")
}

/// The hundred bytes in front of a file.
pub fn ltx_header(bytes: &[u8]) {
    let Some(head) = bytes.first_chunk::<HEADER_LEN>() else { return };
    let first = within(4096, || Header::decode(head));
    assert_eq!(text(&first), text(&Header::decode(head)));
    let Ok(header) = first else { return };
    let again = header.encode().expect("what was read can be written");
    assert_eq!(Header::decode(&again).expect("our own header"), header);
    let _ = (header.last_frame(), header.timestamp.to_rfc3339(), header.page_size.lock_page());
}

/// One page frame behind a byte for the page size and four for the page number that the index
/// gives; then the same bytes as a page's contents, through the encoder.
pub fn ltx_page(bytes: &[u8]) {
    let Some((&[size, a, b, c, d], frame)) = bytes.split_first_chunk::<5>() else { return };
    let page_size = PageSize::new(512 << (size % 8)).expect("a page size");
    let expected = u32::from_be_bytes([a, b, c, d]);
    let decode = || {
        let (mut page, mut digest) = (vec![0; page_size.bytes()], FileDigest::new());
        page::decode(frame, expected, &mut page, &mut digest).map(|()| (page, digest.checksum()))
    };
    let first = within(BUFFERS + 4 * frame.len(), decode);
    assert_eq!(text(&first), text(&decode()));
    let mut page = frame.get(..page_size.bytes()).unwrap_or(frame).to_vec();
    if let Ok((decoded, _)) = first {
        assert!(frame.len() as u64 >= page::min_page_frame_len(page_size));
        assert!(frame.len() <= page::max_page_frame_len(page_size) || frame[5] == 0);
        page = decoded;
    }
    page.resize(page_size.bytes(), 0);
    let header = Header {
        page_size,
        commit: u32::MAX,
        min_txid: Txid(2),
        max_txid: Txid(2),
        timestamp: Timestamp(0),
        wal_offset: 0,
        wal_size: 0,
        salts: Salts(0, 0),
        writer: WriterId(0),
        tag: None,
    };
    match to_vec(&header, [(expected, page.as_slice())]) {
        Ok(file) => {
            assert!(read_as_stream(&file).expect("our own file") == [(expected, page)]);
        }
        Err(_) => assert!(expected == 0 || expected == page_size.lock_page()),
    }
}

/// The varints of a page index; and the end of a file, behind eight bytes for its length.
pub fn ltx_index(bytes: &[u8]) {
    let walk =
        || index::Reader::new(bytes).try_fold(0usize, |count, entry| entry.map(|_| count + 1));
    let first = within(4096, walk);
    assert_eq!(text(&first), text(&walk()));
    if first.is_ok() {
        let entries: Vec<Entry> =
            index::Reader::new(bytes).map(|entry| entry.expect("accepted before")).collect();
        let (mut builder, mut stored) = (Builder::default(), Vec::new());
        let (mut last, mut end) = (0, HEADER_LEN as u64);
        for entry in &entries {
            assert!(entry.pgno > last && entry.offset == end && entry.len > 0);
            (last, end) = (entry.pgno, entry.offset + entry.len);
            builder.push(entry.pgno, entry.len).expect("it is in memory");
        }
        let mut emission = builder.emission();
        while let Some(piece) = emission.piece().expect("it is in memory") {
            stored.extend_from_slice(piece);
        }
        assert!(stored.len() <= bytes.len(), "ours is the shortest form");
        let again = index::Reader::new(&stored).map(|entry| entry.expect("our own index"));
        assert!(again.eq(entries));
    }
    check_in_pieces(bytes, &first);
    let Some((len, tail)) = bytes.split_first_chunk::<8>() else { return };
    let file_len = u64::from_be_bytes(*len);
    if let Ok((start, len)) = index::locate(file_len, tail) {
        assert_eq!(start.checked_add(len).and_then(|end| end.checked_add(24)), Some(file_len));
        assert!(start >= 106 && len > 0);
    }
}

/// An index that comes in two pieces, cut anywhere, is walked as it is in one.
fn check_in_pieces(bytes: &[u8], whole: &Result<usize, ltx::Error>) {
    for cut in (0..bytes.len()).step_by(1 + bytes.len() / 16) {
        let (mut early, mut late) = (0, 0);
        let count = |_| {
            early += 1;
            Ok(())
        };
        let Ok(mark) = index::Reader::resume(&bytes[..cut], Mark::default()).skip_whole(count)
        else {
            assert!(whole.is_err(), "a part is refused, but not the whole");
            continue;
        };
        assert!(mark.walked <= cut);
        let rest = index::Reader::resume(&bytes[mark.walked..], mark);
        let ended = rest.into_iter().try_for_each(|entry| entry.map(|_| late += 1));
        match whole {
            Ok(count) => assert!(ended.is_ok() && early + late == *count),
            Err(_) => assert!(ended.is_err()),
        }
    }
}

/// A wal-index header in both its copies, then a WAL.
pub fn wal(bytes: &[u8]) {
    let Some((copies, wal)) = bytes.split_first_chunk::<{ 2 * WalIndex::LEN }>() else { return };
    assert_eq!(WalIndex::parse_both(copies), WalIndex::parse_both(copies));
    // What is no header by its checksum alone is made one: else nothing but the first bytes is tried.
    let mut copies = *copies;
    for copy in copies.as_chunks_mut::<{ WalIndex::LEN }>().0 {
        let sum = WalIndex::checksum(copy);
        copy[40..44].copy_from_slice(&sum.0.to_ne_bytes());
        copy[44..48].copy_from_slice(&sum.1.to_ne_bytes());
    }
    let index = WalIndex::parse_both(&copies);
    let header = WalHeader::read(wal);
    let small = PageSize::new(512).expect("a page size");
    let page_size = header.map(|header| header.page_size).or(index.map(|index| index.page_size));
    let page_size = page_size.unwrap_or(small);
    let frame_len = page_size.bytes() + wal::FRAME_HEADER_LEN;
    let whole = wal.len().saturating_sub(wal::WAL_HEADER_LEN as usize) / frame_len;
    let last = index.map_or(whole as u32, |index| index.max_frame);

    let mut set = FrameSet::default();
    let limit = 4096 + 256 * whole;
    let taken = within(limit, || set.extend(wal, page_size, 1, last));
    let readable = (1..=last).take(whole + 1).map(|frame| FrameHeader::read(wal, page_size, frame));
    let headers: Vec<FrameHeader> =
        readable.take_while(Result::is_ok).map(|header| header.expect("looked at")).collect();
    let good = headers.len() == last as usize && headers.iter().all(|header| header.pgno != 0);
    assert_eq!(taken.is_ok(), good);
    if !good {
        assert_eq!(set, FrameSet::default(), "half a stretch");
        return;
    }
    // In two steps, and against a look at each frame in turn.
    let mut steps = FrameSet::default();
    steps.extend(wal, page_size, 1, last / 2).expect("a part of what was read");
    let half = steps.clone();
    assert!(steps.extend(wal, page_size, 1, u32::MAX).is_err());
    assert_eq!(steps, half, "a failure changes nothing");
    steps.extend(wal, page_size, 1, last).expect("the rest");
    assert_eq!(steps, set);
    for (header, frame) in headers.iter().zip(1..) {
        assert!(set.newest.get(header.pgno).expect("it is in memory") >= Some(frame));
    }
    for found in set.newest.iter() {
        let (pgno, frame) = found.expect("it is in memory");
        assert_eq!(headers[frame as usize - 1].pgno, pgno);
        let mut page = vec![0; page_size.bytes()];
        let whole = frame as usize <= whole;
        assert!(wal::read_frame_page(wal, page_size, frame, &mut page).is_ok() || !whole);
    }
    let mut commits = headers.iter().filter(|header| header.commit != 0);
    assert_eq!(set.commit, commits.next_back().map_or(0, |header| header.commit));
    check_known(wal, page_size, &headers, &set);
}

/// The same stretch with the page numbers that a wal-index would give.
fn check_known(wal: &[u8], page_size: PageSize, headers: &[FrameHeader], set: &FrameSet) {
    let pages: Vec<Pgno> = headers.iter().map(|header| header.pgno).collect();
    let mut known = FrameSet::default();
    let extend = |known: &mut FrameSet, pages: &[Pgno]| {
        let part = |first: u32, last: u32| Some(pages[first as usize - 1..last as usize].to_vec());
        known.extend_known(wal, page_size, (1, pages.len() as u32), part)
    };
    let taken = extend(&mut known, &pages);
    let ends_in_commit = headers.last().is_none_or(|header| header.commit != 0);
    assert_eq!(taken.is_ok(), ends_in_commit);
    assert_eq!(known, if ends_in_commit { set.clone() } else { FrameSet::default() });
    // Page numbers that are not those of the frames, and more of them than there are frames.
    for pages in [&[pages.as_slice(), &[7; 999]].concat(), &vec![0; pages.len() + 1]] {
        let before = known.clone();
        assert!(extend(&mut known, pages).is_err());
        assert_eq!(known, before);
    }
}

/// A name or URL.
pub fn names(bytes: &[u8]) {
    let Ok(name) = str::from_utf8(bytes) else { return };
    let limit = 64 * 1024 + 64 * name.len();
    if let Some(parsed) = FileName::parse(name) {
        assert_eq!(parsed.to_string(), name, "one name for each range");
        assert!(Txid::ZERO < parsed.min && parsed.min <= parsed.max);
    }
    if let Some(txid) = Txid::parse_hex(name) {
        assert_eq!(txid.to_string(), name);
    }
    if let Ok(txid) = name.parse::<Txid>() {
        assert!(txid > Txid::ZERO && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(Txid::parse_hex(&txid.to_string()), Some(txid));
    }
    let shown = within(limit, || url::redacted(name));
    assert_eq!(url::redacted(&shown), shown);
    match within(limit, || store::open(name)) {
        Ok(store) => {
            let again = store::open(store.url()).expect("the URL of a store opens it");
            assert_eq!(again.url(), store.url());
            assert_eq!(url::identity(again.as_ref()), url::identity(store.as_ref()));
        }
        Err(error) => assert!(!error.message.is_empty()),
    }
}

/// The state file, then the names of spool files; the first byte says which, and whether a body
/// gets an envelope with the right checksum.
pub fn local(bytes: &[u8]) {
    thread_local! { static FOLDER: OnceCell<TempDir> = const { OnceCell::new() }; }
    let Some((&kind, rest)) = bytes.split_first() else { return };
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| TempDir::new().expect("a temporary folder")).path();
        match kind % 3 {
            0 => state(folder, rest),
            1 => {
                let Ok(body) = str::from_utf8(rest) else { return };
                let mut digest = FileDigest::new();
                digest.update(rest);
                let checksum = digest.checksum().to_string();
                let envelope = json_string(body);
                let text = format!(r#"{{"version":1,"checksum":"{checksum}","body":{envelope}}}"#);
                state(folder, text.as_bytes());
            }
            _ => spool(folder, rest),
        }
    });
}

/// A string of JSON.
fn json_string(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if (c as u32) < 0x20 => quoted.extend(format!("\\u{:04x}", c as u32).chars()),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn state(folder: &Path, text: &[u8]) {
    fs::write(folder.join("state"), text).expect("a state file");
    match within(64 * 1024 + 16 * text.len(), || State::load(folder)) {
        Ok(state) => {
            let state = state.expect("there is a file");
            assert_eq!(State::load(folder).expect("accepted before"), Some(state.clone()));
            state.save(folder, false).expect("a state can be saved");
            assert_eq!(State::load(folder).expect("our own"), Some(state));
        }
        Err(error) => assert_eq!(error.source.kind(), std::io::ErrorKind::InvalidData, "{error}"),
    }
}

fn spool(folder: &Path, text: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let Some((&done, text)) = text.split_first() else { return };
    let spool = Spool::open(folder).expect("a spool");
    let inside = folder.join("spool");
    let list = || -> Vec<_> {
        let mut names: Vec<_> = fs::read_dir(&inside)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    let mut strange = Vec::new();
    for name in text.split(|byte| *byte == b'\n').take(16) {
        let usable = !name.is_empty() && name.len() < 256 && !name.contains(&0);
        if usable && !name.contains(&b'/') && name != b"." && name != b".." {
            let name = std::ffi::OsStr::from_bytes(name);
            fs::write(inside.join(name), b"x").expect("a spool file");
            if !name.as_bytes().ends_with(b".ltx") && !name.as_bytes().ends_with(b".tmp") {
                strange.push(name);
            }
        }
    }
    let kept = spool.scan(u64::from(done)).expect("a scan");
    let mut passed = u64::from(done);
    for entry in &kept {
        assert!(entry.pieces.0 <= entry.pieces.1 && entry.pieces.1 > passed);
        passed = entry.pieces.1;
        assert!(spool.path(entry).is_file(), "{} is not there", entry.file_name());
        assert_eq!(entry.len, 1);
    }
    let names = list();
    assert!(strange.iter().all(|name| names.iter().any(|kept| kept == name)));
    assert_eq!(spool.scan(u64::from(done)).expect("a scan"), kept);
    assert_eq!(list(), names);
    assert_eq!(spool.is_empty().expect("a look"), kept.is_empty());
    fs::remove_dir_all(&inside).expect("the spool");
}
