//! Opens the store that a replica's URL names.

use std::path::PathBuf;
use std::sync::Arc;

use super::file::{FILE_MODE, FILE_MODE_VARIABLE, FileStore, parse_file_mode};
use super::s3::{S3Store, Servers};
use super::url::{file_path, identity, invalid, split_scheme, without_options};
use super::{Access, Error, Store};
use crate::environment;

/// Forms of a replica's URL, for messages.
const FORMS: &str = "file:///absolute/path, file:relative/path, a plain path, or s3://bucket/path";

/// Opens the store that a URL or path names. Makes no request.
pub fn open(url: &str) -> Result<Arc<dyn Store>, Error> {
    open_with(url, &Access::default())
}

/// Opens a store as [`open`] does, with the settings of a configuration file.
pub fn open_with(url: &str, access: &Access) -> Result<Arc<dyn Store>, Error> {
    open_at(url, access, &Servers::default())
}

/// Opens a store as [`open_with`] does, for one of many replicas. All of them share the connections and
/// credentials of `servers`.
pub fn open_at(url: &str, access: &Access, servers: &Servers) -> Result<Arc<dyn Store>, Error> {
    if url.is_empty() {
        return Err(invalid(format!("a replica needs a URL: {FORMS}")));
    }
    match split_scheme(url) {
        Some(("file", rest)) => Ok(Arc::new(folder(file_path(url, rest)?, access)?)),
        Some(("s3", _)) => Ok(Arc::new(S3Store::open_at(url, access, servers)?)),
        Some((scheme @ ("gs" | "gcs" | "abs" | "sftp"), _)) => {
            Err(invalid(format!("{scheme}:// is not supported yet; a replica may be {FORMS}")))
        }
        Some((scheme, _)) => {
            Err(invalid(format!("{scheme}:// is not known; a replica may be {FORMS}")))
        }
        None if url.contains('\0') => {
            Err(invalid(format!("{url:?}: a path cannot hold a zero byte")))
        }
        None => Ok(Arc::new(folder(url.into(), access)?)),
    }
}

/// Opens a folder. The mode of its files comes from the environment, or else from the configuration file.
fn folder(root: PathBuf, access: &Access) -> Result<FileStore, Error> {
    let given = access.options.get(FILE_MODE).map(|text| (FILE_MODE, text.clone()));
    let variable = || {
        let text = environment::text(FILE_MODE_VARIABLE).filter(|text| !text.trim().is_empty());
        text.map(|text| (FILE_MODE_VARIABLE, text))
    };
    let Some((name, text)) = variable().or(given) else { return Ok(FileStore::new(root)) };
    let mode = parse_file_mode(&text)
        .map_err(|why| invalid(format!("{}: {name}: {why}", super::url::of_path(&root))))?;
    Ok(FileStore::with_mode(root, mode))
}

/// Checks URL and options, as far as possible without a request and without the environment of S3. Returns
/// the replica's identity.
pub fn check_url(url: &str, access: &Access) -> Result<String, Error> {
    match split_scheme(url) {
        Some(("s3", _)) => S3Store::check(url, access).map(|url| without_options(&url)),
        _ => Ok(identity(open(url)?.as_ref())),
    }
}

/// True if two URLs name one replica, and this process would reach it in the same way by both.
pub fn is_same_way(one: (&str, &Access), other: (&str, &Access)) -> bool {
    match (split_scheme(one.0), split_scheme(other.0)) {
        (Some(("s3", _)), Some(("s3", _))) => S3Store::is_same_way(one, other),
        (Some(("s3", _)), _) | (_, Some(("s3", _))) => false,
        _ => {
            let identity = |url| open(url).ok().map(|store| identity(store.as_ref()));
            identity(one.0).is_some_and(|one| Some(one) == identity(other.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ErrorKind;

    #[test]
    fn what_cannot_be_opened_is_refused_with_the_forms_that_can() {
        let kinds_and_words = [
            ("", "needs a URL"),
            ("gs://b/p", "not supported yet"),
            ("sftp://u@h/p", "not supported yet"),
            ("abs://c/p", "not supported yet"),
            ("http://h/p", "not known"),
        ];
        for (url, word) in kinds_and_words {
            let Err(err) = open(url) else { panic!("{url} was opened") };
            assert_eq!(err.kind, ErrorKind::Invalid, "{url}");
            assert!(err.message.contains(word) && err.message.contains("s3://"), "{err}");
        }
        assert_eq!(
            open("/x y/z").map(|store| store.url().to_string()).ok().as_deref(),
            Some("file:///x%20y/z")
        );
    }
}
