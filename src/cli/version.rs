//! `walferry version`.

use serde_json::json;

use super::{Error, extension, print};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `walferry version`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&["walferry version --verbose"]))]
pub(super) struct Args {
    /// Also what it was built with and for, and where the extension is
    #[arg(short, long)]
    verbose: bool,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let (sqlite, target) = (rusqlite::version(), target());
    let extension = extension::find(None).ok().map(|path| path.display().to_string());
    if args.json {
        let text = json!({
            "version": VERSION,
            "target": target,
            "sqlite": sqlite,
            "extension": extension,
        });
        return print(&format!("{text}\n"));
    }
    print(&format!("walferry {VERSION}\n"))?;
    if !args.verbose {
        return Ok(());
    }
    let extension = extension.unwrap_or_else(|| "not beside the program".to_string());
    print(&format!("for {target}\nSQLite {sqlite}\nextension {extension}\n"))
}

fn target() -> String {
    [std::env::consts::ARCH, std::env::consts::OS].join("-")
}
