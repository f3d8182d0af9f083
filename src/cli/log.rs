//! The program's own log, for commands that run for long: to standard error or a file, as text or
//! JSON. The extension writes to the same place.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use log::{LevelFilter, Log, Metadata, Record};

use super::{Error, extension};
use crate::config::Logging;
use crate::logging::{self, Format, Said};

/// Where the log goes.
#[derive(clap::Args)]
pub(super) struct Args {
    /// What is logged: error, warn, info, debug; else WALFERRY_LOG_LEVEL, else info
    #[arg(long = "log-level", value_name = "LEVEL", value_parser = parse_level)]
    level: Option<LevelFilter>,
    /// How: text or json; else WALFERRY_LOG_FORMAT, else text
    #[arg(long = "log-format", value_name = "FORMAT")]
    format: Option<Format>,
    /// A file to append to; else WALFERRY_LOG if that names one, else standard error
    #[arg(long = "log-file", value_name = "PATH")]
    file: Option<PathBuf>,
}

fn parse_level(text: &str) -> Result<LevelFilter, String> {
    logging::level(text)
        .ok_or_else(|| format!("'{text}' is no level: off, error, warn, info, debug"))
}

impl Args {
    /// Sets the log of this program up, as the arguments say, else the environment, else the file, and that of the extension, which is loaded later.
    pub(super) fn install(&self, configured: Option<&Logging>, json: bool) -> Result<(), Error> {
        let said = Said::read(&|name| std::env::var(name).ok());
        let in_file = || configured?.level.as_deref().and_then(logging::level);
        let level = self.level.or(said.level).or_else(in_file).unwrap_or(LevelFilter::Info);
        let format = self.format.or(json.then_some(Format::Json)).or(said.format);
        let in_file = || configured.filter(|log| log.json).map(|_| Format::Json);
        let format = format.or_else(in_file).unwrap_or_default();
        let path = self.file.clone().or(said.path.map(PathBuf::from));
        let path = path.or_else(|| configured?.file.clone());
        let file = path.as_ref().map(|path| {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            opened.map_err(|error| Error::Usage(format!("the log {}: {error}", path.display())))
        });
        let file = file.transpose()?;
        extension::set_log(path.as_deref(), level.as_str(), format);
        if log::set_boxed_logger(Box::new(Sink { file, format })).is_ok() {
            log::set_max_level(level);
        }
        for wrong in said.wrong {
            log::warn!("{wrong}");
        }
        Ok(())
    }
}

struct Sink {
    file: Option<File>,
    format: Format,
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("walferry")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = logging::line(self.format, record);
        // A log that cannot be written is no reason to fail.
        let _ = match self.file.as_ref() {
            Some(mut file) => file.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}
