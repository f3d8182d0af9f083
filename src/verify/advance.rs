//! Brings the checksums of a known state of the replica up to its newest state, by the files since.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::{CHUNK, Newest};
use crate::ltx::{self, Checksum, Decoder, Header};
use crate::store::reader::StoreReader;
use crate::store::{self, FileInfo, Store};
use crate::units::{Level, Pgno, Txid};

/// Result of [`advance`].
#[derive(Debug)]
pub enum Advance {
    /// The newest state, which may be the same as before.
    To(Box<Newest>),
    /// The files do not lead on from the known state, for this reason.
    Lost(String),
}

/// Reads the files of level 0 behind `newest`. Each file must follow the one before.
pub async fn advance(store: Arc<dyn Store>, newest: Newest) -> Result<Advance, store::Error> {
    let files = store.list(Level::L0).await?;
    let behind = files.into_iter().filter(|file| file.key.name.min > newest.txid);
    let mut behind: HashMap<Txid, FileInfo> =
        behind.map(|file| (file.key.name.min, file)).collect();
    let mut next = newest.txid.next();
    let mut all = Vec::new();
    while let Some(file) = behind.remove(&next) {
        next = file.key.name.max.next();
        all.push(file);
    }
    if let Some(txid) = behind.keys().min() {
        return Ok(Advance::Lost(format!("transaction {next} is not there, but {txid}")));
    }
    let runtime = Handle::current();
    let read = move || {
        let mut newest = newest;
        for file in all {
            let (header, pages) = match read_file(&*store, &runtime, &file) {
                Ok(read) => read?,
                Err(error) => return Ok(Advance::Lost(format!("{}: {error}", file.key))),
            };
            if let Err(why) = newest.apply(&header, &pages) {
                return Ok(Advance::Lost(format!("{}: {why}", file.key)));
            }
        }
        Ok(Advance::To(Box::new(newest)))
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(done) => done,
        Err(_) => Ok(Advance::Lost("a thread broke off".into())),
    }
}

type Contents = (Header, Vec<(Pgno, Checksum)>);

/// Reads a file. The outer error is the file's, the inner error is the store's.
fn read_file(
    store: &dyn Store,
    runtime: &Handle,
    file: &FileInfo,
) -> Result<Result<Contents, store::Error>, ltx::Error> {
    let mut reader = StoreReader::new(store, runtime, file.key, (file.len, CHUNK), &|_| {});
    let read = decode(&mut reader);
    match reader.failure() {
        Some(error) => Ok(Err(error)),
        None => read.map(Ok),
    }
}

fn decode(reader: &mut StoreReader<'_>) -> Result<Contents, ltx::Error> {
    let mut decoder = Decoder::new(reader)?;
    let header = *decoder.header();
    let mut pages = Vec::new();
    while let Some(page) = decoder.next_page()? {
        pages.push((page.pgno, ltx::checksum::page(page.pgno, page.data)));
    }
    decoder.finish()?;
    Ok((header, pages))
}

impl Newest {
    /// Applies a file to the state.
    fn apply(&mut self, header: &Header, pages: &[(Pgno, Checksum)]) -> Result<(), String> {
        let full = header.tag.is_some_and(|tag| tag.full_image);
        if header.page_size != self.page_size && !full {
            return Err("its pages have another size".into());
        }
        if full {
            self.sums.clear();
            self.page_size = header.page_size;
        }
        self.sums.resize(header.commit as usize, Checksum(0));
        for (pgno, sum) in pages {
            let at = (*pgno as usize).checked_sub(1);
            if let Some(known) = at.and_then(|at| self.sums.get_mut(at)) {
                *known = *sum;
            }
        }
        (self.txid, self.timestamp) = (header.max_txid, header.timestamp);
        let sum = self.checksum();
        match header.tag {
            Some(tag) if tag.post_apply != sum => {
                let names = tag.post_apply;
                Err(format!(
                    "the database that it leads to has checksum {sum}, but it names {names}"
                ))
            }
            _ => Ok(()),
        }
    }
}
