//! The configuration file of this process, read once when the first database is opened.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use walferry::config::{self, Broken, Config, Given};
use walferry::settings::{Lookup, Settings};
use walferry::{environment, uri, withheld};

use crate::log_sink;

/// Contents of the configuration file, if there is one.
pub enum Configured {
    /// There is no configuration file.
    Nothing,
    /// The file has this configuration.
    Says(Box<Config>),
    /// There is a file, but it cannot be used.
    Broken(Broken),
}

/// The configuration. A lock of the standard library, since it is held across a fork.
pub static CONFIGURED: Mutex<Known> = Mutex::new(None);

/// The value of `WALFERRY_URI`, read when the extension is loaded. Later changes do not count: the
/// application may let SQL make them.
static URI_VARIABLE: OnceLock<Option<String>> = OnceLock::new();

/// Reads the variables whose values count from the load of the extension on.
pub fn remember_environment() {
    let _ = URI_VARIABLE.set(environment::text(uri::VARIABLE));
}

/// The configuration; `None` before the first database was opened.
pub type Known = Option<Arc<Configured>>;

/// Returns the configuration. The first call reads the file, and logs its errors.
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
    /// Returns the settings of each replica of a database; none if the database is not to be replicated.
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

    /// Returns the same as [`Configured::settings`], and logs nothing.
    fn resolve(&self, path: &Path, lookup: &dyn Lookup) -> Result<Vec<Settings>, String> {
        match self {
            Configured::Nothing => Settings::resolve(path, lookup, None),
            Configured::Says(config) => Settings::resolve(path, lookup, Some(config)),
            Configured::Broken(broken) => Settings::resolve_without(path, lookup, broken),
        }
    }

    /// Returns the parameters of a database's URI that count.
    pub fn screen<'a>(&self, path: &Path, lookup: &'a dyn Lookup) -> uri::Screened<'a> {
        uri::screen(&self.uri_parameters(), lookup, &|lookup| self.resolve(path, lookup))
    }

    /// Returns the policy for URI parameters.
    fn uri_parameters(&self) -> Given {
        let (file, has_file) = match self {
            Configured::Nothing => (None, false),
            Configured::Says(config) => (config.uri.as_ref(), true),
            Configured::Broken(broken) => (broken.uri.as_deref(), true),
        };
        let variable = URI_VARIABLE.get().and_then(Option::as_deref);
        uri::given(variable, file, has_file)
    }

    /// True if a database is not to be opened when its settings cannot work.
    pub fn is_strict(&self, path: &Path, lookup: &dyn Lookup) -> bool {
        match self {
            Configured::Nothing => Settings::is_strict(path, lookup, None),
            Configured::Says(config) => Settings::is_strict(path, lookup, Some(config)),
            Configured::Broken(broken) => Settings::is_strict_without(lookup, broken),
        }
    }
}
