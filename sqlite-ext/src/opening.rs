//! Decides how a database that is being opened is treated.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use walferry::config::canonical;
use walferry::environment;
use walferry::local::state::Fingerprint;
use walferry::process::{self, Process};
use walferry::replications::Replications;
use walferry::settings::{self, Lookup};
use walferry::uri::Screened;
use walferry::withheld::Deadline;

use crate::api::BaseVfs;
use crate::configured::{CONFIGURED, configured};
use crate::edge::Edge;
use crate::ffi::Target;
use crate::registry::{DATABASES, Replicated, Shimmed, databases};

/// Finds settings in the URI parameters, then in the environment.
pub struct UriLookup<F>(F);

impl<F: Fn(&str) -> Option<String>> UriLookup<F> {
    /// Returns a lookup over the URI parameters of a database.
    pub fn new(parameter: F) -> Self {
        UriLookup(parameter)
    }
}

impl<F: Fn(&str) -> Option<String>> Lookup for UriLookup<F> {
    fn parameter(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn variable(&self, name: &str) -> Option<String> {
        environment::text(name)
    }
}

/// Warns of parameters that are unknown, but similar to one of walferry's. SQLite accepts any parameter, so a
/// misspelled one would leave the database without replication, or with the wrong settings.
pub fn look_at_parameters(path: &Path, names: &[String]) {
    for name in names {
        if let Some(meant) = settings::meant(name)
            && TOLD.fetch_add(1, Ordering::Relaxed) < TOLD_MAX
        {
            log::warn!(
                "{}: the URI parameter {name} means nothing; the nearest setting is {meant}",
                path.display()
            );
        }
    }
}

/// Warns of parameters that are ignored. If the policy ignores all of them, only the first call warns.
fn tell(path: &Path, screened: &Screened<'_>) {
    static OFF: AtomicBool = AtomicBool::new(false);
    if screened.is_off && OFF.swap(true, Ordering::Relaxed) {
        return;
    }
    for warning in &screened.warnings {
        if TOLD.fetch_add(1, Ordering::Relaxed) < TOLD_MAX {
            log::warn!("{}: {warning}", path.display());
        }
    }
}

/// Number of warnings about URIs. Limited, since a program may open each of its connections with the same
/// faulty URI.
static TOLD: AtomicU32 = AtomicU32::new(0);
const TOLD_MAX: u32 = 10;

/// Treatment of a database that is being opened.
pub enum Opening {
    /// Not replicated: all calls go to the VFS underneath.
    Plain,
    /// Replicated.
    Replicated(Replicated),
    /// Not opened, since its settings make replication impossible and ask for an error then.
    Refused,
}

/// Decides whether this database is replicated, and registers it with its replicas.
pub fn replicated(path: &Path, lookup: &dyn Lookup, vfs: BaseVfs) -> Opening {
    let path = canonical(path);
    let configured = configured();
    let screened = configured.screen(&path, lookup);
    tell(&path, &screened);
    let strict = configured.is_strict(&path, &screened);
    let mut url = String::new();
    let settings = match &screened.refusal {
        Some(why) => Err(why.clone()),
        None => configured.settings(&path, &screened),
    };
    let database = settings.and_then(|all| {
        let Some(first) = all.first() else { return Ok(None) };
        url.clone_from(&first.replica);
        if !vfs.is_plain() {
            return Err(format!(
                "it is opened through the VFS {}, which may change what is written, as encryption \
                 does; only a database that SQLite's own VFS writes can be replicated",
                vfs.name()
            ));
        }
        Process::start()?.database(&path, all, strict).map(Some)
    });
    match database {
        Ok(None) => Opening::Plain,
        Ok(Some((database, unheeded))) => {
            crate::drain_at_exit();
            Opening::Replicated(Replicated { shimmed: shimmed(&database, vfs), unheeded })
        }
        Err(why) => {
            process::refuse(&path, &url, &why);
            if strict { Opening::Refused } else { Opening::Plain }
        }
    }
}

/// Decides on a database that is opened in a child whose fork did not wait for everything under way
/// ([`inside::is_cut_off`]). Such a fork may have left locks held for ever, so every wait here ends.
pub fn cut_off(path: &Path, lookup: &dyn Lookup) -> Opening {
    let path = canonical(path);
    // Another thread of this process may hold a lock for a moment.
    let now = || Deadline::after(Duration::from_secs(1));
    let is_parents = || {
        let databases = now().lock(&DATABASES)?;
        let id = |path: &Path| Fingerprint::of(path).map(|now| now.file).ok();
        let file = id(&path);
        let is_it = |known: &PathBuf| *known == path || file.is_some() && id(known) == file;
        Some(databases.as_ref().is_some_and(|databases| databases.keys().any(is_it)))
    };
    let is_named = || {
        let known = now().lock(&CONFIGURED)?;
        // `names_replica` reads the configuration file here, if the parent has not read it.
        drop(known);
        Some(names_replica(&path, lookup))
    };
    if is_parents().unwrap_or(true) || is_named().unwrap_or(true) {
        log::error!("{} is not opened: {CUT_OFF}", path.display());
        return Opening::Refused;
    }
    Opening::Plain
}

/// Reason why the child of such a fork may not use replicated databases.
pub const CUT_OFF: &str = "this process was forked while another thread of its parent was in the middle of a \
    call of SQLite's, and that may have left locks to it that nobody holds; fork before databases are opened, \
    or start a new program";

/// Undoes the registration of a database whose file could not be opened. Another database may use its replica
/// then.
pub fn failed(target: Target) {
    let Target::Main(Replicated { shimmed, .. }) = target else { return };
    closed(shimmed);
}

/// Forgets a database that was closed, if everything of it is shipped or no connection of this process has
/// read it. Another database may use its replica then.
pub fn closed(shimmed: Arc<Shimmed>) {
    let path = shimmed.database.path().to_path_buf();
    drop(shimmed);
    if let Some(process) = Process::current() {
        process.forget_settled(&path);
    }
}

/// True if a replica is named for this database. Logs no error in the settings: the opening of the database
/// does so.
pub fn names_replica(path: &Path, lookup: &dyn Lookup) -> bool {
    let (configured, path) = (configured(), canonical(path));
    let screened = configured.screen(&path, lookup);
    let all = configured.settings(&path, &screened);
    screened.refusal.is_none() && all.is_ok_and(|all| !all.is_empty())
}

fn shimmed(database: &Replications, vfs: BaseVfs) -> Arc<Shimmed> {
    let mut databases = databases();
    let databases = databases.get_or_insert_with(HashMap::new);
    if let Some(known) = databases.get(database.path()).and_then(Weak::upgrade)
        && known.database.is_same(database)
    {
        return known;
    }
    let shimmed = Shimmed::new(database, vfs);
    if databases.len().is_power_of_two() {
        databases.retain(|_, known| known.strong_count() > 0);
    }
    databases.insert(database.path().to_path_buf(), Arc::downgrade(&shimmed));
    let path = database.path();
    database.set_border(|number| Arc::new(Edge { path: path.to_path_buf(), vfs, number }));
    shimmed
}
