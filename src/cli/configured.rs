//! Which replicas a command means: a URL, or a database of the configuration file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Error;
use crate::config::{self, Config, canonical};
use crate::settings::{Environment, Settings};
use crate::store::{self, Access, Store};

/// Where the configuration file is.
#[derive(clap::Args)]
pub(super) struct File {
    /// The configuration file; else that of WALFERRY_CONFIG or LITESTREAM_CONFIG, else
    /// /etc/walferry.yml, else /etc/litestream.yml
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Leave $VAR and ${VAR} in the configuration file as they are
    #[arg(long)]
    pub(super) no_expand_env: bool,
}

/// Which replica of a database.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) file: File,
    /// Of a database with several replicas, the one that is meant: its name or its URL
    #[arg(long, value_name = "NAME|URL")]
    pub(super) replica: Option<String>,
}

/// A replica, and how it is reached.
pub(super) struct Named {
    pub(super) url: String,
    pub(super) access: Access,
    /// What the file calls it.
    pub(super) name: Option<String>,
    /// The database, if one was named, and what holds for it.
    pub(super) of: Option<(PathBuf, Settings)>,
}

impl Named {
    /// Opens the store; nothing is asked of it yet.
    pub(super) fn open(&self) -> Result<Arc<dyn Store>, Error> {
        Ok(store::open_with(&self.url, &self.access)?)
    }

    fn by_url(url: &str, access: Access) -> Named {
        Named { url: url.to_string(), access, name: None, of: None }
    }
}

impl File {
    /// The file that is named, or the one that there is.
    pub(super) fn load(&self) -> Result<Option<Config>, Error> {
        match self.config.clone().or_else(config::file_of_environment) {
            Some(file) => Ok(Some(config::load(&file, !self.no_expand_env)?)),
            None => Ok(None),
        }
    }

    /// The settings of each replica of a database; none if nobody says anything of it.
    pub(super) fn settings(
        database: &Path,
        config: Option<&Config>,
    ) -> Result<Vec<Settings>, Error> {
        Settings::resolve(&canonical(database), &Environment, config).map_err(Error::Usage)
    }

    /// How the replica at a URL is reached, as the file says.
    pub(super) fn access(url: &str, config: Option<&Config>) -> Access {
        let Some(config) = config else { return Access::default() };
        let identity = store::check_url(url, &Access::default()).ok();
        let mut all = config.databases.iter().flat_map(|database| &database.replicas);
        let same = all.find(|replica| Some(&replica.identity) == identity.as_ref());
        same.map_or(&config.global.access, |replica| &replica.layer.access).fitting(url)
    }
}

impl File {
    /// The replica of a database that was replicated to `known`: the given one, by its name or URL,
    /// else the known one; how it is reached is in the file.
    pub(super) fn replica(
        &self,
        database: &Path,
        given: Option<&str>,
        known: Option<&str>,
    ) -> Result<Option<(String, Access)>, Error> {
        // A text that is neither a URL nor a path is the name of a replica in the file.
        let name = given.filter(|given| !store::url::is_url(given) && !given.contains('/'));
        let config = match self.load() {
            // If the replica is known, errors of a file that the user did not name do not matter.
            Err(_) if self.config.is_none() && name.is_none() && given.or(known).is_some() => None,
            loaded => loaded?,
        };
        let all = match &config {
            Some(config) => File::settings(database, Some(config))?,
            None => Vec::new(),
        };
        let identity = |url: &str| store::check_url(url, &Access::default()).ok();
        let wanted = given.or(known);
        let is_it = |settings: &Settings| match wanted {
            None => true,
            Some(wanted) => {
                let same = identity(wanted);
                settings.name.as_deref() == Some(wanted)
                    || (same.is_some() && identity(&settings.replica) == same)
            }
        };
        if let Some(name) = name
            && !all.iter().any(is_it)
        {
            return Err(Error::Usage(no_replica(database, name, &all)));
        }
        // A URL of the command line keeps its own options.
        let found = all.into_iter().find(is_it).map(|settings| {
            let given = given.filter(|given| store::url::is_url(given));
            (given.map_or(settings.replica, str::to_string), settings.access)
        });
        let unlisted = || {
            let url = wanted?;
            Some((url.to_string(), File::access(url, config.as_ref())))
        };
        Ok(found.or_else(unlisted))
    }
}

impl Args {
    /// The replicas that are meant, in the file's order; at least one.
    pub(super) fn all(&self, target: &str) -> Result<Vec<Named>, Error> {
        if store::url::is_url(target) {
            if let Some(replica) = &self.replica {
                let text = format!(
                    "--replica {} picks a replica of a database; there is a URL already",
                    store::url::redacted(replica)
                );
                return Err(Error::Usage(text));
            }
            let config = if self.file.config.is_some() { self.file.load()? } else { None };
            return Ok(vec![Named::by_url(target, File::access(target, config.as_ref()))]);
        }
        let config = match self.file.load() {
            // A folder is a replica. Errors of a file that the user did not name do not matter.
            Err(_) if self.file.config.is_none() && Path::new(target).is_dir() => None,
            loaded => loaded?,
        };
        let database = canonical(Path::new(target));
        let is_listed = config.as_ref().is_some_and(|config| config.entry(&database).is_some());
        // Only an existing folder is a replica. Otherwise a database that no file lists would pass for a
        // missing replica with nothing to restore.
        if !is_listed && self.file.config.is_none() && Path::new(target).is_dir() {
            return Ok(vec![self.folder(target)?]);
        }
        if !is_listed {
            return Err(Error::Usage(unlisted(target, config.as_ref())));
        }
        let Some(config) = config else { return Err(Error::Usage(unlisted(target, None))) };
        let named = |settings: Settings| Named {
            url: settings.replica.clone(),
            access: settings.access.clone(),
            name: settings.name.clone(),
            of: Some((database.clone(), settings)),
        };
        let all: Vec<Named> =
            File::settings(&database, Some(&config))?.into_iter().map(named).collect();
        let Some(wanted) = &self.replica else {
            return if all.is_empty() {
                Err(Error::Usage(unlisted(target, Some(&config))))
            } else {
                Ok(all)
            };
        };
        pick(all, wanted, &config, target)
    }

    /// The permission bits of a database that is restored where there is none, as file and environment say.
    pub(super) fn restore_mode(&self, replicas: &[Named]) -> Result<u32, Error> {
        if let Some((_, settings)) = replicas.first().and_then(|named| named.of.as_ref()) {
            return Ok(settings.restore_mode);
        }
        let config = if self.file.config.is_some() { self.file.load()? } else { None };
        Settings::restore_mode_of_any(&Environment, config.as_ref()).map_err(Error::Usage)
    }

    /// Whether the configuration file lists a database. One that nobody named does not matter if it
    /// cannot be read.
    pub(super) fn lists(&self, database: &Path) -> Result<bool, Error> {
        let config = match self.file.load() {
            Err(_) if self.file.config.is_none() => None,
            loaded => loaded?,
        };
        Ok(config.is_some_and(|config| config.entry(database).is_some()))
    }

    /// The one replica that is meant.
    pub(super) fn one(&self, target: &str) -> Result<Named, Error> {
        let mut all = self.all(target)?;
        match all.len() {
            1 => Ok(all.remove(0)),
            _ => Err(Error::Usage(format!(
                "{target} has several replicas ({}): pick one with --replica",
                names(&all)
            ))),
        }
    }

    /// A path that no file lists: a folder that is a replica.
    fn folder(&self, target: &str) -> Result<Named, Error> {
        match &self.replica {
            None => Ok(Named::by_url(target, Access::default())),
            Some(replica) => Err(Error::Usage(format!(
                "--replica {} picks a replica of a database, and no configuration file lists {target}",
                store::url::redacted(replica)
            ))),
        }
    }
}

/// The replica of this name or URL.
fn pick(all: Vec<Named>, wanted: &str, config: &Config, target: &str) -> Result<Vec<Named>, Error> {
    let known = names(&all);
    let identity = || store::check_url(wanted, &Access::default()).ok();
    let wanted_identity = if store::url::is_url(wanted) { identity() } else { None };
    let is_it = |named: &Named| {
        named.name.as_deref() == Some(wanted)
            || (wanted_identity.is_some()
                && store::check_url(&named.url, &named.access).ok() == wanted_identity)
    };
    if let Some(found) = all.into_iter().find(is_it) {
        return Ok(vec![found]);
    }
    if store::url::is_url(wanted) {
        return Ok(vec![Named::by_url(wanted, File::access(wanted, Some(config)))]);
    }
    Err(Error::Usage(format!("{target} has no replica {wanted}; there are {known}")))
}

fn names(all: &[Named]) -> String {
    let shown =
        |named: &Named| named.name.clone().unwrap_or_else(|| store::url::redacted(&named.url));
    all.iter().map(shown).collect::<Vec<_>>().join(", ")
}

/// A name that no replica of the database has.
fn no_replica(database: &Path, name: &str, all: &[Settings]) -> String {
    let database = database.display();
    let folder = format!("a folder is written ./{name} or file:{name}");
    if all.is_empty() {
        return format!(
            "no configuration file names a replica {name} of {database}: give its URL, such as \
             s3://bucket/path; {folder}"
        );
    }
    let shown = |one: &Settings| one.name.clone().unwrap_or(store::url::redacted(&one.replica));
    let known: Vec<_> = all.iter().map(shown).collect();
    format!("{database} has no replica {name}; there are {}; {folder}", known.join(", "))
}

/// A path that is neither a folder nor a database of the file, if there is one.
fn unlisted(target: &str, config: Option<&Config>) -> String {
    let Some(config) = config else {
        return format!(
            "no configuration file lists {target}, as there is none: name one with --config or \
             WALFERRY_CONFIG. A folder that is a replica is written file:{target}"
        );
    };
    let known: Vec<_> =
        config.databases.iter().map(|entry| entry.place.display().to_string()).collect();
    let known = if known.is_empty() { "nothing".to_string() } else { known.join(", ") };
    format!(
        "{} lists no database {target}; it has {known}. A folder that is a replica is written file:{target}",
        config.file.display()
    )
}
