//! The configuration file of this process: read once, when the first database is opened.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use walferry::config::{self, Broken, Config};
use walferry::settings::{Lookup, Settings};

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
static CONFIGURED: Mutex<Known> = Mutex::new(None);

/// `None` before the first database was opened.
pub type Known = Option<Arc<Configured>>;

/// What is known of the file; held while the process forks.
pub fn known() -> MutexGuard<'static, Known> {
    CONFIGURED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file, read if that was not done yet. What is wrong with it is logged, once.
pub fn configured() -> Arc<Configured> {
    let mut known = known();
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
        Configured::Broken(broken) => log::error!("the configuration cannot be used:\n{broken}"),
    }
    configured
}

impl Configured {
    /// The settings of each replica of a database; none if it is not to be replicated.
    pub fn settings(&self, path: &Path, lookup: &dyn Lookup) -> Result<Vec<Settings>, String> {
        let config = match self {
            Configured::Nothing => None,
            Configured::Says(config) => Some(config.as_ref()),
            Configured::Broken(broken) => return without_file(path, lookup, broken),
        };
        Settings::resolve(path, lookup, config)
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

/// What holds where the file cannot be used.
fn without_file(
    path: &Path,
    lookup: &dyn Lookup,
    broken: &Broken,
) -> Result<Vec<Settings>, String> {
    let all = Settings::resolve_without(path, lookup, broken)?;
    if !all.is_empty() {
        log::error!(
            "{}: nothing is deleted from its replica as long as {} cannot be used",
            path.display(),
            broken.file.display()
        );
    }
    Ok(all)
}
