//! Fetches a file of the replica and proves the whole file before a page of it is used.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::error::Error;
use crate::ltx::{self, Decoder, Header};
use crate::restore::truncated;
use crate::store::{ErrorKind, Key, Store};
use crate::units::Pgno;

/// Bytes of one request. A longer file is kept on disk until it is proven.
const PIECE: u64 = 8 << 20;

/// Pages in ascending order.
pub(super) trait Pages {
    /// Returns the next page, or `None` behind the last.
    fn next(&mut self) -> Result<Option<(Pgno, &[u8])>, Error>;
}

/// A file of the replica whose checksum is right.
#[derive(Debug)]
pub(super) struct Proven {
    pub(super) key: Key,
    pub(super) header: Header,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Memory(Bytes),
    Disk(PathBuf, File),
}

/// Reads and proves a file. Returns `Ok(None)` if the file does not exist.
///
/// A long file is kept in a file of local state, which has the name `scratch` only while it is created.
pub(super) async fn fetch(
    store: &dyn Store,
    key: Key,
    scratch: &Path,
) -> Result<Option<Proven>, Error> {
    let Some(first) = piece(store, key, 0).await? else { return Ok(None) };
    let content = if (first.len() as u64) < PIECE {
        Content::Memory(first)
    } else {
        let failed = || Error::local("cannot write", scratch);
        let created = crate::local::folder::create_unnamed(scratch);
        let mut file = created.map_err(Error::local("cannot create", scratch))?;
        file.write_all(&first).map_err(failed())?;
        let mut len = first.len() as u64;
        loop {
            // The range begins at the last byte that is known to exist, so that the end of the file is no
            // error.
            let Some(bytes) = piece(store, key, len - 1).await? else { return Ok(None) };
            let Some((_, news)) = bytes.split_first() else {
                return Err(truncated(key, "bytes").into());
            };
            file.write_all(news).map_err(failed())?;
            len += news.len() as u64;
            if (bytes.len() as u64) < PIECE {
                break;
            }
        }
        Content::Disk(scratch.to_path_buf(), file)
    };
    let proving = tokio::task::spawn_blocking(move || prove(key, content));
    proving.await.map_err(|_| Error::Internal("a thread broke off"))?.map(Some)
}

async fn piece(store: &dyn Store, key: Key, at: u64) -> Result<Option<Bytes>, Error> {
    match store.get(key, Some(at..at + PIECE)).await {
        Ok(bytes) if bytes.len() as u64 > PIECE => {
            Err(Error::corrupt(key, "the store sent more of it than was asked for"))
        }
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn prove(key: Key, content: Content) -> Result<Proven, Error> {
    let refuse = |source| Error::File { key, source };
    let decoder = Decoder::new(content.reader()?).map_err(refuse)?;
    let header = *decoder.header();
    let named = (key.name.min, key.name.max);
    if (header.min_txid, header.max_txid) != named {
        let (min, max) = (header.min_txid, header.max_txid);
        return Err(Error::corrupt(key, format!("it holds transactions {min} to {max}")));
    }
    decoder.finish().map_err(refuse)?;
    Ok(Proven { key, header, content })
}

impl Content {
    fn reader(&self) -> Result<Box<dyn Read + '_>, Error> {
        match self {
            Content::Memory(bytes) => Ok(Box::new(&bytes[..])),
            Content::Disk(path, file) => {
                let mut file = file;
                file.seek(SeekFrom::Start(0)).map_err(Error::local("cannot read", path))?;
                Ok(Box::new(BufReader::with_capacity(256 << 10, file)))
            }
        }
    }
}

impl Proven {
    /// Returns the pages of the file, from the first on.
    pub(super) fn pages(&self) -> Result<FilePages<'_>, Error> {
        let refuse = |source| Error::File { key: self.key, source };
        let decoder = Decoder::new(self.content.reader()?).map_err(refuse)?;
        Ok(FilePages { key: self.key, decoder })
    }
}

/// The pages of a file of the replica.
pub(super) struct FilePages<'a> {
    key: Key,
    decoder: Decoder<Box<dyn Read + 'a>>,
}

impl Pages for FilePages<'_> {
    fn next(&mut self) -> Result<Option<(Pgno, &[u8])>, Error> {
        let key = self.key;
        let refuse = |source: ltx::Error| Error::File { key, source };
        let page = self.decoder.next_page().map_err(refuse)?;
        Ok(page.map(|page| (page.pgno, page.data)))
    }
}

/// The pages of a database that was restored as a whole, without the lock page.
pub(super) struct DatabasePages {
    path: PathBuf,
    file: BufReader<File>,
    next: Pgno,
    commit: u32,
    lock_page: Pgno,
    page: Vec<u8>,
}

impl DatabasePages {
    pub(super) fn open(
        path: &Path,
        page_size: crate::units::PageSize,
        commit: u32,
    ) -> Result<DatabasePages, Error> {
        let file = crate::local::folder::read(path).map_err(Error::local("cannot open", path))?;
        let (file, lock_page) = (BufReader::with_capacity(1 << 20, file), page_size.lock_page());
        let page = vec![0; page_size.bytes()];
        Ok(DatabasePages { path: path.to_path_buf(), file, next: 1, commit, lock_page, page })
    }
}

impl Pages for DatabasePages {
    fn next(&mut self) -> Result<Option<(Pgno, &[u8])>, Error> {
        loop {
            if self.next > self.commit {
                return Ok(None);
            }
            let pgno = self.next;
            self.next = pgno.saturating_add(1);
            let read = self.file.read_exact(&mut self.page);
            read.map_err(Error::local("cannot read", &self.path))?;
            if pgno != self.lock_page {
                return Ok(Some((pgno, &self.page)));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::log_end::tests::{key, on_runtime};
    use crate::store::Body;
    use crate::store::memory::MemoryStore;
    use crate::units::Timestamp;

    #[test]
    fn link_in_place_of_the_scratch_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (scratch, other) = (folder.path().join("incoming"), folder.path().join("other"));
        std::fs::write(&other, "of another program").unwrap();
        std::os::unix::fs::symlink(&other, &scratch).unwrap();
        on_runtime(async {
            let (store, key) = (MemoryStore::new(), key(0, 1, 1));
            let bytes = vec![1; PIECE as usize + 1];
            store.put_new(key, Body::Bytes(bytes.into()), Timestamp(1)).await.unwrap();
            fetch(&store, key, &scratch).await.unwrap_err();
        });
        let kept = std::fs::read(&other).unwrap();
        assert!(kept == b"of another program", "the link was followed: {} bytes", kept.len());
        assert!(scratch.symlink_metadata().is_err(), "the scratch file is left");
    }
}
