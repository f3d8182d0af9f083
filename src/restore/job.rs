//! One restore, from the plan on. It fetches everything, or only the files that an older copy or a restore that
//! was broken off does not have.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use super::base::{self, Older};
use super::crew::{Crew, Done};
use super::error::failed;
use super::fetch::{self, Opener, Source};
use super::handover::Staging;
#[cfg(feature = "cli")]
use super::integrity;
use super::making::{self, Making};
use super::output::{Place, Temporary, Workplace};
use super::record::{Left, Record};
use super::{Error, Instead, Options, Report, forward, place_of, verify};
use crate::ltx::{DatabaseChecksum, Header, page};
use crate::plan::{self, Plan};
use crate::store::FileInfo;

/// One restore, from the plan on.
pub(super) struct Job<'a> {
    pub(super) source: &'a Source,
    pub(super) runtime: &'a Handle,
    pub(super) options: &'a Options,
    pub(super) files: &'a [FileInfo],
    pub(super) plan: &'a Plan,
    pub(super) replica: &'a str,
    pub(super) leave: bool,
}

pub(super) type Outcome = (Report, Option<String>);

impl Job<'_> {
    pub(super) fn execute(&self) -> Result<Outcome, Error> {
        let place = place_of(self.options);
        let mut work = Workplace::take(&self.options.output, place)?.with_mode(self.options);
        if place != Place::Copy {
            return self.whole(&mut work, place, None);
        }
        let older = Older::look(&self.options.output, self.replica)?;
        match self.bring_forward(&work, &older)? {
            Ok(outcome) => Ok(outcome),
            Err(instead) => {
                work.clear()?;
                self.whole(&mut work, place, Some(instead))
            }
        }
    }

    /// Fetches everything, except the stretches that an earlier restore has written.
    fn whole(
        &self,
        work: &mut Workplace,
        place: Place,
        instead: Option<Instead>,
    ) -> Result<Outcome, Error> {
        if !self.options.resume {
            work.remove("record")?;
        }
        let left = Left::read(work)?;
        let begun = left.is_something();
        let kept = AtomicU64::new(0);
        match self.try_whole(work, place, &left, &kept) {
            Ok((mut report, not_left)) => {
                report.instead = instead;
                Ok((report, not_left))
            }
            Err(Error::Store(source))
                if begun || kept.load(Ordering::Relaxed) >= self.options.resume_from.max(1) =>
            {
                work.leave();
                let dir = work.entry("");
                Err(Error::BrokenOff { source, dir })
            }
            Err(error) => Err(error),
        }
    }

    fn try_whole(
        &self,
        work: &Workplace,
        place: Place,
        left: &Left,
        kept: &AtomicU64,
    ) -> Result<Outcome, Error> {
        let mut opener = self.opener(self.plan, left);
        let Some(last) = opener.next().transpose()? else {
            return Err(Error::Plan(plan::Error::Empty));
        };
        let Header { commit, page_size, .. } = last.header;

        // A page frame has a minimum length, so the length of the files bounds the number of pages. The lock
        // page has no frame. This check comes before anything of that size is allocated.
        let least = page::min_page_frame_len(page_size);
        let frames = self.plan.files.iter().map(|file| file.len / least);
        if frames.fold(1u64, u64::saturating_add) < u64::from(commit) {
            return Err(Error::corrupt(
                last.key,
                format!(
                    "it speaks of {commit} pages of {page_size} bytes, more than the files can hold"
                ),
            ));
        }

        let database = work.open("database")?;
        let record = if left.is_something() || self.plan.bytes() >= self.options.resume_from {
            Some(Record::open(work, left, page_size, &database)?)
        } else {
            let path = work.entry("database");
            database.set_len(0).map_err(failed("emptying", &path))?;
            None
        };
        let making = self.making(work, place, "database", &database)?;
        let done = self.crew().pages(&making, self.plan, last, &mut opener, record.as_ref(), 0);
        kept.store(record.as_ref().map_or(0, Record::kept), Ordering::Relaxed);
        let done = done?;
        if done.reused > 0 {
            making::clear_lock_page(&making.target(page_size), commit)?;
        }
        self.finish(making, self.plan, &done)
    }

    /// Copies the older copy and writes the newer pages over it. Returns `Ok(Err)` if everything must be
    /// fetched.
    fn bring_forward(
        &self,
        work: &Workplace,
        older: &Older,
    ) -> Result<Result<Outcome, Instead>, Error> {
        let (output, watch) = (&self.options.output, self.options.watch.as_ref());
        let plan = match forward(self.files, self.plan, older.txid()) {
            Ok(plan) => plan,
            Err(instead) => {
                // The copy is replaced as a whole. Data that was replicated from here must not get lost by
                // that, either.
                let file = File::open(output).map_err(failed("opening", output))?;
                let proof = older.prove((&file, output), None, watch, output)?;
                return Ok(Err(proof.err().unwrap_or(instead)));
            }
        };
        if plan.files.is_empty() {
            return self.same(older);
        }
        let copy = work.open("copy")?;
        base::copy(output, &copy, watch)?;
        let making = self.making(work, Place::Copy, "copy", &copy)?;
        let table = making.table.as_ref().map(|table| (&table.file, table.path()));
        if let Err(instead) = older.prove((&copy, &making.path), table, watch, output)? {
            return Ok(Err(instead));
        }
        let left = Left::nothing();
        let mut opener = self.opener(&plan, &left);
        let Some(last) = opener.next().transpose()? else {
            return Err(Error::Internal("a plan without files"));
        };
        let Header { commit, page_size, tag, .. } = last.header;
        if tag.is_none() {
            return Ok(Err(Instead::Untagged));
        }
        if page_size != older.page_size {
            let why = format!("its pages have {} bytes, not {page_size}", older.page_size);
            return Ok(Err(Instead::Disproved(why)));
        }
        let done =
            self.crew().pages(&making, &plan, last, &mut opener, None, older.base.commit).and_then(
                |done| making::clear_lock_page(&making.target(page_size), commit).map(|()| done),
            );
        let finished = done.and_then(|done| self.finish(making, &plan, &done));
        match finished {
            Ok((mut report, not_left)) => {
                report.from = Some(older.txid());
                Ok(Ok((report, not_left)))
            }
            // The replica may hold a new log by now, or its newest files may be damaged and older ones
            // intact. A restore that fetches everything finds out.
            Err(
                error @ (Error::File { .. }
                | Error::Chain { .. }
                | Error::PageSize { .. }
                | Error::Missing { .. }
                | Error::Database { .. }),
            ) => Ok(Err(Instead::Disproved(error.to_string()))),
            Err(error) => Err(error),
        }
    }

    /// Leaves the copy in place if its own pages and the replica prove that it is in the target state.
    fn same(&self, older: &Older) -> Result<Result<Outcome, Instead>, Error> {
        let (output, watch) = (&self.options.output, self.options.watch.as_ref());
        let file = File::open(output).map_err(failed("opening", output))?;
        if let Err(instead) = older.prove((&file, output), None, watch, output)? {
            return Ok(Err(instead));
        }
        let Some(last) = self.plan.files.last() else {
            return Err(Error::Plan(plan::Error::Empty));
        };
        let header = self.runtime.block_on(fetch::header(self.source, last.key))?;
        let Some(tag) = header.tag else { return Ok(Err(Instead::Untagged)) };
        if tag.post_apply != older.checksum() || header.commit != older.base.commit {
            let why = format!(
                "the replica's state {} has checksum {}, the copy's {}",
                self.plan.txid,
                tag.post_apply,
                older.checksum()
            );
            return Ok(Err(Instead::Disproved(why)));
        }
        let report = Report { from: Some(older.txid()), ..self.report(&header, older.checksum()) };
        Ok(Ok((report, None)))
    }

    fn opener<'b>(&'b self, plan: &Plan, left: &'b Left) -> Opener<'b> {
        let files = plan.files.iter().rev().copied();
        Opener::new(self.source, self.runtime, files, left, self.options.parallelism.max(1))
    }

    fn crew(&self) -> Crew<'_> {
        Crew { source: self.source, runtime: self.runtime, options: self.options }
    }

    fn making<'b>(
        &self,
        work: &'b Workplace,
        place: Place,
        name: &'static str,
        database: &'b File,
    ) -> Result<Making<'b>, Error> {
        let staging = self.leave.then(|| Staging::create(work));
        let staged = staging.as_ref().and_then(|staging| staging.as_ref().ok());
        let given = self.options.page_table.clone();
        let table = given.or_else(|| staged.map(Staging::pages));
        // The checksum of an older copy that was brought forward comes from its page table.
        let table = table.or_else(|| (name == "copy").then(|| work.entry("pages")));
        let table = table.as_deref().map(Temporary::create).transpose()?;
        Ok(Making { work, place, name, path: work.entry(name), database, table, staging })
    }

    /// Proves the result and gives it its name.
    fn finish(&self, making: Making<'_>, plan: &Plan, done: &Done) -> Result<Outcome, Error> {
        let Done { last: (last_key, last), .. } = *done;
        let target = making.target(last.page_size);
        making::set_lengths(&target, last.commit)?;
        let checksum = match (making.name, &making.table) {
            ("copy", Some(table)) => base::sum_of_table(&table.file, table.path(), last.commit)?,
            _ => done.checksum,
        };
        let expected = last.tag.map(|tag| tag.post_apply);
        if let Some(expected) = expected.filter(|expected| *expected != checksum) {
            return Err(Error::Database { key: last_key, expected, found: checksum });
        }
        verify::first_page(making.database, &making.path, last_key, &last)?;
        #[cfg(feature = "cli")]
        integrity::check(&making.path, self.options.integrity)?;
        let report = Report {
            proven: expected.is_some(),
            files: done.files,
            untagged: done.untagged,
            reused: done.reused,
            txid: plan.txid,
            ..self.report(&last, checksum)
        };
        let not_left = making.publish(&self.options.output, self.replica, &report)?;
        Ok((report, not_left))
    }

    /// Returns a report from the header of a state's last file. No file was read yet.
    fn report(&self, last: &Header, checksum: DatabaseChecksum) -> Report {
        Report {
            txid: self.plan.txid,
            timestamp: last.timestamp,
            commit: last.commit,
            page_size: last.page_size,
            checksum,
            proven: true,
            files: 0,
            untagged: 0,
            last: *last,
            fetched: self.source.fetched(),
            requests: self.source.requests(),
            reused: 0,
            passed_over: Vec::new(),
            from: None,
            instead: None,
            elapsed: Duration::ZERO,
        }
    }
}
