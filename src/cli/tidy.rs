//! What the commands that tidy up a replica have in common.

use super::configured::Named;
use super::{Error, configured};

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
