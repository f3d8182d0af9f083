//! The page table: as the production's, without its file.

use walferry::ltx::{self, Checksum, DatabaseChecksum, Decoder};
use walferry::units::Pgno;

#[derive(Clone, Default)]
pub struct Table {
    pub(super) sums: Vec<Option<Checksum>>,
}

impl Table {
    pub fn commit(&self) -> u32 {
        self.sums.len() as u32
    }

    pub fn get(&self, pgno: Pgno) -> Option<Checksum> {
        *self.sums.get(pgno as usize - 1)?
    }

    pub fn checksum(&self) -> DatabaseChecksum {
        let mut sum = DatabaseChecksum::EMPTY;
        self.sums.iter().flatten().for_each(|page| sum.toggle(*page));
        sum
    }

    pub fn set(&mut self, pgno: Pgno, sum: Option<Checksum>) {
        if self.sums.len() < pgno as usize {
            self.sums.resize(pgno as usize, None);
        }
        self.sums[pgno as usize - 1] = sum;
    }

    pub fn set_commit(&mut self, commit: u32) {
        self.sums.resize(commit as usize, None);
    }

    /// As recovery applies a captured file: page by page, before the file has proven itself.
    pub fn apply(&mut self, bytes: &[u8]) -> Result<(), ltx::Error> {
        let mut decoder = Decoder::new(bytes)?;
        let commit = decoder.header().commit;
        while let Some(page) = decoder.next_page()? {
            if page.pgno <= commit {
                let sum = ltx::checksum::page(page.pgno, page.data);
                self.set(page.pgno, Some(sum));
            }
        }
        self.set_commit(commit);
        decoder.finish().map(|_| ())
    }
}
