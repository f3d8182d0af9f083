//! The configuration file of this process: read once, when the first database is opened.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use walferry::config::{self, Broken, Config, Given};
use walferry::settings::{Lookup, Settings};
use walferry::{environment, uri, withheld};

use crate::log_sink;

/// What the file says, if there is one.
pub enum Configured {
    /// There is none.
    Nothing,
    /// It says this.
    Says(Box<Config>),
    /// It is there, and cannot be used.
    Broken(Broken),
}

/// Of the standard library's kind, as it is held across a fork.
pub static CONFIGURED: Mutex<Known> = Mutex::new(None);

/// The value of `WALFERRY_URI`. The extension reads the variable when it is loaded: what the
/// application lets SQL change later is not believed.
static URI_VARIABLE: OnceLock<Option<String>> = OnceLock::new();

/// Reads what holds from the moment in which the extension is loaded.
pub fn remember_environment() {
    let _ = URI_VARIABLE.set(environment::text(uri::VARIABLE));
}

/// `None` before the first database was opened.
pub type Known = Option<Arc<Configured>>;

/// The file, read if that was not done yet. What is wrong with it is logged, once.
pub fn configured() -> Arc<Configured> {
    let mut known = withheld::lock(&CONFIGURED);
    if let Some(configured) = &*known {
        return configured.clone();
    }
    let configured = Arc::new(match config::file_of_environment() {
        None => Configured::Nothing,
        Some(file) => match config::load(&file, true) {
            Ok(config) => Configured::Says(Box::new(config)),
            Err(broken) => Configured::Broken(broken),
        },
    });
    *known = Some(configured.clone());
    drop(known);
    match configured.as_ref() {
        Configured::Nothing => {}
        Configured::Says(config) => {
            log_sink::configure(&config.logging);
            log::info!("configured by {}", config.file.display());
            for note in &config.notes {
                log::info!("{}:{note}", config.file.display());
            }
        }
        Configured::Broken(broken) => {
            for line in broken.to_string().lines() {
                log::error!("the configuration cannot be used: {line}");
            }
        }
    }
    configured
}

impl Configured {
    /// The settings of each replica of a database; none if it is not to be replicated.
    pub fn settings(&self, path: &Path, lookup: &dyn Lookup) -> Result<Vec<Settings>, String> {
        let all = self.resolve(path, lookup)?;
        if let Configured::Broken(broken) = self
            && !all.is_empty()
        {
            log::error!(
                "{}: nothing is deleted from its replica as long as {} cannot be used",
                path.display(),
                broken.file.display()
            );
        }
        Ok(all)
    }

    /// As [`Configured::settings`], without a word in the log.
    fn resolve(&self, path: &Path, lookup: &dyn Lookup) -> Result<Vec<Settings>, String> {
        match self {
            Configured::Nothing => Settings::resolve(path, lookup, None),
            Configured::Says(config) => Settings::resolve(path, lookup, Some(config)),
            Configured::Broken(broken) => Settings::resolve_without(path, lookup, broken),
        }
    }

    /// The parameters of a database's URI that count.
    pub fn screen<'a>(&self, path: &Path, lookup: &'a dyn Lookup) -> uri::Screened<'a> {
        uri::screen(&self.uri_parameters(), lookup, &|lookup| self.resolve(path, lookup))
    }

    /// Which parameters of URIs count.
    fn uri_parameters(&self) -> Given {
        let (file, has_file) = match self {
            Configured::Nothing => (None, false),
            Configured::Says(config) => (config.uri.as_ref(), true),
            Configured::Broken(broken) => (broken.uri.as_deref(), true),
        };
        let variable = URI_VARIABLE.get().and_then(Option::as_deref);
        uri::given(variable, file, has_file)
    }

    /// Whether a database whose settings cannot work is not to be opened.
    pub fn is_strict(&self, path: &Path, lookup: &dyn Lookup) -> bool {
        match self {
            Configured::Nothing => Settings::is_strict(path, lookup, None),
            Configured::Says(config) => Settings::is_strict(path, lookup, Some(config)),
            Configured::Broken(broken) => Settings::is_strict_without(lookup, broken),
        }
    }
}
