//! What the commands that tidy up a replica have in common.

use super::configured::Named;
use super::{Error, configured};
use crate::plan;
use crate::restore::{self, list_in_turn};
use crate::store::{FileInfo, Store};

/// Arguments of all of them.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The replica, such as s3://bucket/path or file:///path, or a database of the configuration file
    #[arg(value_name = "URL|DATABASE")]
    pub(super) url: String,
    #[command(flatten)]
    pub(super) named: configured::Args,
    /// Only show what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Report in JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Args {
    /// The replica that is meant.
    pub(super) fn named(&self) -> Result<Named, Error> {
        self.named.one(&self.url)
    }
}

/// The files of a replica. That there is none, as where its name is misspelt, is an error: nothing would
/// ever be done there.
pub(super) async fn files(named: &Named, store: &dyn Store) -> Result<Vec<FileInfo>, Error> {
    let files = list_in_turn(store).await?;
    if files.is_empty() && restore::generations::list(store).await?.is_empty() {
        return Err(Error::Restore(plan::Error::Empty.into()).about(&named.url));
    }
    Ok(files)
}
