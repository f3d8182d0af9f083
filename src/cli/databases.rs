//! `walferry databases`: what applies to each database, and where it comes from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::configured::File;
use super::failure::Failure;
use super::{Error, Exit, print};
use crate::config::{self, Config, Given};
use crate::settings::Settings;
use crate::shown;
use crate::store::url::redacted;
use crate::{environment, uri};

/// Arguments of `walferry databases`.
#[derive(clap::Args)]
#[command(after_help = super::exit::help_with(&["walferry databases --config walferry.yml"]))]
pub(super) struct Args {
    #[command(flatten)]
    file: File,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let config = required(&args.file)?;
    let mut databases = Vec::new();
    for path in config.files() {
        let replicas = File::settings(&path, Some(&config))?;
        databases.push((path, replicas));
    }
    let text = if args.json { in_json(&config, &databases) } else { in_words(&config, &databases) };
    print(&text)?;
    let mut unread = config.databases.iter().flat_map(config::Database::unread);
    unread.next().map_or(Ok(()), |(folder, error)| {
        let text = format!("{}: it cannot be read: {error}", folder.display());
        Err(Failure::because(Exit::Failure, text))
    })
}

/// The configuration file, which must be there.
pub(super) fn required(file: &File) -> Result<Config, Error> {
    file.load()?.ok_or_else(|| {
        Error::Usage(
            "there is no configuration file: name one with --config or WALFERRY_CONFIG, or write \
             /etc/walferry.yml"
                .to_string(),
        )
    })
}

/// Options of the store that are not in its URL, with where they come from. No secrets.
fn access(settings: &Settings) -> BTreeMap<&str, (String, String)> {
    let file = |what: &str| (what.to_string(), "file".to_string());
    let options = settings.access.options.iter();
    let mut all: BTreeMap<&str, (String, String)> =
        options.map(|(name, value)| (name.as_str(), file(value))).collect();
    if settings.replica.starts_with("s3:") {
        let credentials = match settings.access.credentials {
            Some(_) => file("given"),
            None => ("looked for".to_string(), "environment, ~/.aws, roles".to_string()),
        };
        all.insert("credentials", credentials);
    }
    if settings.access.customer_key.is_some() {
        all.insert("sse-customer-key", file("given"));
    }
    all
}

/// Which parameters count in the URIs of databases, where this file and this environment hold.
fn uri_parameters(config: &Config) -> Given {
    let variable = environment::text(uri::VARIABLE);
    uri::given(variable.as_deref(), config.uri.as_ref(), true)
}

fn in_json(config: &Config, databases: &[(PathBuf, Vec<Settings>)]) -> String {
    let value = |(text, origin): (&str, String)| json!({ "value": text, "from": origin });
    let replica = |settings: &Settings| {
        let given = settings.given.iter();
        let given: BTreeMap<&str, Value> = given
            .map(|(name, given)| (*name, value((&given.text, given.origin.to_string()))))
            .collect();
        let access: BTreeMap<&str, Value> = access(settings)
            .into_iter()
            .map(|(name, (text, from))| (name, value((&text, from))))
            .collect();
        json!({
            "name": settings.name,
            "url": redacted(&settings.replica),
            "from": settings.origin.to_string(),
            "access": access,
            "settings": given,
        })
    };
    let database = |(path, replicas): &(PathBuf, Vec<Settings>)| {
        json!({
            "path": path.display().to_string(),
            "replicas": replicas.iter().map(replica).collect::<Vec<_>>(),
        })
    };
    let folders: Vec<_> = config.databases.iter().filter_map(folder).collect();
    let notes: Vec<_> = config.notes.iter().map(ToString::to_string).collect();
    let uris = uri_parameters(config);
    let text = json!({
        "uri-parameters": value((&uris.text, uris.origin.to_string())),
        "config": config.file.display().to_string(),
        "databases": databases.iter().map(database).collect::<Vec<_>>(),
        "folders": folders,
        "notes": notes,
    });
    format!("{text}\n")
}

fn in_words(config: &Config, databases: &[(PathBuf, Vec<Settings>)]) -> String {
    let file = config.file.display();
    let mut lines = vec![format!("configured by {file}")];
    let uris = uri_parameters(config);
    let origin = origin_in(&config.file, &uris.origin.to_string());
    lines.push(format!("{:<24} {:<16} {origin}", uri::KEY, uris.text));
    for (path, replicas) in databases {
        lines.push(String::new());
        lines.push(path.display().to_string());
        if replicas.is_empty() {
            lines.push("  not replicated".to_string());
        }
        for settings in replicas {
            let name = settings.name.as_deref().map(|name| format!("{name}: ")).unwrap_or_default();
            lines.push(format!("  {name}{}  ({})", redacted(&settings.replica), settings.origin));
            for (name, (text, from)) in access(settings) {
                lines.push(format!("    {name:<20} {text:<16} {from}"));
            }
            for (name, given) in &settings.given {
                let origin = origin_in(&config.file, &given.origin.to_string());
                lines.push(format!("    {name:<20} {:<16} {origin}", given.text));
            }
        }
    }
    for folder in config.databases.iter().filter_map(folder) {
        lines.push(String::new());
        lines.push(format!("databases in {folder}, also those that are made later"));
    }
    if !config.notes.is_empty() {
        lines.push(String::new());
        lines.extend(config.notes.iter().map(|note| format!("{file}:{note}")));
    }
    shown::lines(lines)
}

/// Without the file's path where it is the one above all.
fn origin_in(file: &Path, origin: &str) -> String {
    match origin.strip_prefix(&file.display().to_string()) {
        Some(rest) => format!("line {}", rest.trim_start_matches(':')),
        None => origin.to_string(),
    }
}

fn folder(entry: &config::Database) -> Option<String> {
    let pattern = entry.pattern.as_ref()?;
    let below = if entry.recursive { " and below" } else { "" };
    Some(format!("{}{below}: {pattern}", entry.place.display()))
}
