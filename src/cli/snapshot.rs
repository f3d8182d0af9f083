//! `walferry snapshot`: all files of a replica in one.

use std::path::Path;

use super::configured::Named;
use super::{Error, compact, tidy};
use crate::local::state::State;
use crate::local::{replicas, state_dir};

/// Arguments of `walferry snapshot`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&[
    "walferry snapshot s3://bucket/app",
    "walferry sync app.db && walferry snapshot app.db",
]))]
pub(super) struct Args {
    #[command(flatten)]
    tidy: tidy::Args,
}

/// What the replica has is joined to one file of level 9, by `walferry compact --level 9`. The
/// database is not read, and no process is asked: what was not shipped is not in the snapshot.
pub(super) async fn run(args: Args) -> Result<(), Error> {
    let named = match Path::new(&args.tidy.url).canonicalize() {
        Ok(database) if state_dir(&database).is_dir() && !args.tidy.named.lists(&database)? => {
            of_database(&database, &args.tidy)?
        }
        _ => args.tidy.named()?,
    };
    compact::join(&named, &[9], &args.tidy).await
}

/// The replica that is given by name, else the one to which the database was last replicated.
fn of_database(database: &Path, args: &tidy::Args) -> Result<Named, Error> {
    let dirs = replicas::existing(database);
    if dirs.len() > 1 && args.named.replica.is_none() {
        let names: Vec<String> = dirs
            .iter()
            .filter_map(|dir| State::load(dir).ok().flatten())
            .map(|state| state.replica)
            .collect();
        return Err(Error::Usage(format!(
            "{} has several replicas ({}): pick one with --replica",
            database.display(),
            names.join(", ")
        )));
    }
    let known = State::load(&state_dir(database))?.map(|state| state.replica);
    let given = args.named.replica.as_deref();
    let found = args.named.file.replica(database, given, known.as_deref())?;
    let (url, access) = found.ok_or_else(|| {
        Error::Usage(format!(
            "{} was never replicated from here: give the URL of its replica",
            database.display()
        ))
    })?;
    Ok(Named { url, access, name: None, of: None })
}
