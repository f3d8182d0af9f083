//! Writes the committed pages of a WAL into a database, as SQLite's recovery does, but refuses a damaged WAL.

use std::fs::File;
use std::path::Path;

use std::os::unix::fs::FileExt;

use super::super::error::{Error, failed};
use super::look_at;
use crate::plan::generations::Segment;
use crate::units::Pgno;
use crate::wal::{self, Recovered};

/// Writes the committed pages of a WAL of `len` bytes into the database at `path`.
///
/// Litestream 0.3 copies a WAL only up to its last commit, and compares salts and checksums when it does
/// (`copyToShadowWAL` in its `db.go`). So a WAL with a faulty byte is damaged, and `replay` refuses the whole
/// WAL. SQLite would ignore everything behind the fault.
pub(super) fn replay(
    wal: &File,
    len: u64,
    segments: &[Segment],
    database: &File,
    path: &Path,
) -> Result<(), Error> {
    // Names the segment that byte `at` of the WAL came from.
    let refuse = |at: u64, what: String| {
        let holder = segments.iter().rfind(|segment| segment.offset <= at).or(segments.first());
        match holder {
            Some(segment) => Error::object(&segment.object, what),
            None => Error::Internal("a WAL has no segments"),
        }
    };
    let Some(found) = wal::recover(wal) else {
        return Err(refuse(0, "it does not begin with the header of a WAL".to_string()));
    };
    let end = wal::frame_offset(found.page_size, found.last.saturating_add(1));
    if end != len {
        let what = format!(
            "the WAL has no transaction with right checksums from byte {end:08x} on, and {} more \
             bytes",
            len.saturating_sub(end)
        );
        return Err(refuse(end.min(len.saturating_sub(1)), what));
    }
    let Some(first) = segments.first() else { return Ok(()) };
    let (page_size, pages) = look_at(database, path, &first.object)?;
    if page_size != found.page_size {
        let what = format!(
            "its pages have {} bytes, and those of the database before it {page_size}",
            found.page_size
        );
        return Err(refuse(0, what));
    }
    if found.last == 0 {
        return Ok(());
    }
    if let Some(pgno) = missing(&found, pages) {
        let what = format!(
            "with its WAL the database grows from {pages} to {} pages, and page {pgno} is not in \
             it: what was before it is missing",
            found.commit
        );
        return Err(refuse(0, what));
    }
    write(wal, &found, pages, database, path)
}

/// Returns the first page by which the database grew and which the WAL does not have.
fn missing(found: &Recovered, pages: u32) -> Option<Pgno> {
    let lock_page = found.page_size.lock_page();
    let mut next = pages.min(found.smallest).saturating_add(1);
    for pgno in found.newest.range(next..).map(|(pgno, _)| *pgno) {
        if next == lock_page {
            next = next.saturating_add(1);
        }
        if pgno > next {
            return Some(next);
        }
        next = pgno.saturating_add(1);
    }
    if next == lock_page {
        next = next.saturating_add(1);
    }
    (next <= found.commit).then_some(next)
}

fn write(
    wal: &File,
    found: &Recovered,
    pages: u32,
    database: &File,
    path: &Path,
) -> Result<(), Error> {
    let page_len = u64::from(found.page_size.get());
    let set_len = |pages: u32| {
        let set = database.set_len(u64::from(pages) * page_len);
        set.map_err(failed("setting the length of", path))
    };
    // Pages behind the smallest end were cut off, and their old contents must not come back.
    if found.smallest < pages {
        set_len(found.smallest)?;
    }
    let mut page = vec![0; found.page_size.bytes()];
    for (pgno, frame) in &found.newest {
        wal::read_frame_page(wal, found.page_size, *frame, &mut page)
            .map_err(failed("reading the WAL for", path))?;
        let offset = u64::from(pgno.saturating_sub(1)) * page_len;
        database.write_all_at(&page, offset).map_err(failed("writing", path))?;
    }
    set_len(found.commit)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::units::PageSize;

    #[test]
    fn every_page_of_the_growth_must_be_there() {
        let found = |commit, smallest, newest: &[Pgno]| Recovered {
            page_size: PageSize::new(65536).unwrap(),
            last: 9,
            commit,
            smallest,
            newest: newest.iter().map(|pgno| (*pgno, 1)).collect(),
        };
        for (commit, smallest, newest, expected) in [
            (3, 3, &[1][..], None),
            (5, 5, &[1, 4, 5], None),
            (5, 5, &[1, 5], Some(4)),
            (5, 5, &[1, 4], Some(5)),
            (5, 5, &[], Some(4)),
            // The database shrank before it grew.
            (3, 1, &[2, 3], None),
            (3, 1, &[3], Some(2)),
            (3, 2, &[1, 3], None),
        ] {
            let found = found(commit, smallest, newest);
            assert_eq!(missing(&found, 3), expected, "{commit} {smallest} {newest:?}");
        }
        // The lock page is in no WAL.
        for (commit, newest, expected) in [
            (16386, &[16384, 16386][..], None),
            (16386, &[16384], Some(16386)),
            (16385, &[16384], None),
            (16386, &[16386], Some(16384)),
        ] {
            assert_eq!(missing(&found(commit, commit, newest), 16383), expected, "{newest:?}");
        }
        assert_eq!(missing(&found(16386, 16385, &[16386]), 16384), None);
    }
}
