//! The URLs of replicas.
//!
//! `file:///absolute/path`, `file:relative/path` and a plain path name a directory; `s3://` names a bucket.
//! The scheme decides which backend reads the rest (`super::open`).

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{Error, ErrorKind, Store};

/// Returns the URL of `name` below the URL of a replica. Options of an S3 URL stay at the end.
pub fn below(url: &str, name: &str) -> String {
    let has_options = matches!(split_scheme(url), Some(("s3", _)));
    let (place, options) = match url.split_once('?').filter(|_| has_options) {
        Some((place, options)) => (place, format!("?{options}")),
        None => (url, String::new()),
    };
    format!("{}/{name}{options}", place.trim_end_matches('/'))
}

/// Returns the URL of a path below `url`, as [`below`] does. The path may have any characters.
pub fn below_path(url: &str, path: &str) -> String {
    below(url, &in_url(url, path))
}

/// Encodes a path for use in `url`. If `url` is a plain path, the path stays as it is.
pub fn in_url<'a>(url: &str, path: &'a str) -> Cow<'a, str> {
    if !is_url(url) {
        return path.into();
    }
    let mut name = String::new();
    encode(path.as_bytes(), &mut name);
    name.into()
}

/// Returns the text that replaces `{name}` in `url` for a file of this name. In a URL, two names always have
/// two texts. In a plain path, each byte that is not UTF-8 becomes `%XX`.
pub fn of_name(url: &str, name: &OsStr) -> String {
    if is_url(url) {
        let mut text = String::new();
        encode(name.as_bytes(), &mut text);
        return text;
    }
    let chunks = name.as_bytes().utf8_chunks();
    chunks.fold(String::new(), |mut text, chunk| {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// Returns the folder that a URL or path names, if it names a folder.
pub fn folder(url: &str) -> Option<PathBuf> {
    match split_scheme(url) {
        None => Some(url.into()),
        Some(("file", rest)) => file_path(url, rest).ok(),
        Some(_) => None,
    }
}

/// True if the text is a URL, and not the path of a file or folder.
pub fn is_url(text: &str) -> bool {
    split_scheme(text).is_some()
}

/// Returns the URL without user, password and the values of options that may be secret.
pub fn redacted(url: &str) -> String {
    let url = without_user(url);
    let (before, query) = match url.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (url.as_str(), None),
    };
    let mut text = before.to_string();
    for (i, option) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        text.push(if i == 0 { '?' } else { '&' });
        match option.split_once('=') {
            Some((name, _)) if is_secret(name) => {
                text.push_str(name);
                text.push_str("=***");
            }
            // The endpoint is a URL of its own, and may contain a password.
            Some((_, value)) if percent_decode(value).contains(&b'@') => {
                text.push_str(option.split('=').next().unwrap_or_default());
                text.push_str("=***");
            }
            _ => text.push_str(option),
        }
    }
    text
}

/// Returns the URL with `***` for user and password. They may be written unencoded, and an AWS key may
/// contain a slash. So if the host looks like a user with a password, everything up to the last `@` is
/// replaced.
fn without_user(url: &str) -> String {
    let scheme = match url.find("://") {
        Some(end) => end,
        // A URL with too few slashes is still meant as an S3 URL.
        None if url.starts_with("s3:") => 2,
        None => return url.to_string(),
    };
    let (scheme, rest) = url.split_at(scheme + 1);
    // A path on this machine may contain any of these characters.
    let is_local = scheme.ends_with("file:");
    let slashes = if is_local { 2 } else { rest.len() - rest.trim_start_matches('/').len() };
    let (slashes, place) = rest.split_at(slashes);
    let (host, _) = place.split_at(place.find(['/', '?']).unwrap_or(place.len()));
    let end = if is_local || !host.contains(':') {
        host.rfind('@')
    } else {
        let before_query = place.split('?').next().unwrap_or_default();
        before_query.rfind('@').or_else(|| place.rfind('@'))
    };
    match end {
        Some(end) => [scheme, slashes, "***", place.split_at(end).1].concat(),
        None => url.to_string(),
    }
}

/// True if the value of an option must not be shown.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace(['-', '_'], "");
    let harmless = ["ssekmskeyid", "ssecustomerkeypath"];
    let telling = ["secret", "token", "key", "password", "passwd", "sig", "sas", "credential"];
    !harmless.contains(&name.as_str()) && telling.iter().any(|word| name.contains(word))
}

/// Splits a URL at its scheme, which stays as written. `None` for a path, even with a colon.
pub(super) fn split_scheme(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let mut chars = scheme.chars();
    let is_scheme = chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    (is_scheme && (rest.starts_with("//") || matches!(scheme, "file" | "s3")))
        .then_some((scheme, rest))
}

/// Returns the path in a `file:` URL.
pub(super) fn file_path(url: &str, rest: &str) -> Result<PathBuf, Error> {
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(after) if after.starts_with('/') => after,
        Some(after) => match after.strip_prefix("localhost") {
            Some(path) if path.starts_with('/') => path,
            _ => {
                return Err(invalid(format!(
                    "{}: a file URL names no host; write file:///absolute/path or \
                     file:relative/path",
                    redacted(url)
                )));
            }
        },
    };
    if path.contains(['?', '#']) {
        return Err(invalid(format!(
            "{}: a file URL takes no options; if ? or # belong to the path, write %3F or %23",
            redacted(url)
        )));
    }
    if path.is_empty() {
        return Err(invalid(format!("{url}: the path is missing; write file:///absolute/path")));
    }
    let bytes = percent_decode(path);
    if bytes.contains(&0) {
        return Err(invalid(format!("{url}: a path cannot hold a zero byte")));
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

/// Returns the `s3:` URL of a path in a bucket.
pub fn of_bucket(bucket: &str, path: &str) -> String {
    let mut url = format!("s3://{bucket}/");
    encode(path.trim_matches('/').as_bytes(), &mut url);
    url
}

/// Returns the `file:` URL of an absolute path.
pub fn of_path(path: &Path) -> String {
    let mut url = "file://".to_string();
    encode(path.as_os_str().as_bytes(), &mut url);
    url
}

fn encode(path: &[u8], url: &mut String) {
    for &byte in path {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
            url.push(char::from(byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
    }
}

/// Replaces `%41` by `A`. A `%` without two hex digits stays as it is.
pub(crate) fn percent_decode(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = |digit: u8| char::from(digit).to_digit(16);
        match (byte, tail) {
            (b'%', &[high, low, ref after @ ..]) => {
                if let (Some(high), Some(low)) = (hex(high), hex(low)) {
                    decoded.push((high << 4 | low) as u8);
                    rest = after;
                    continue;
                }
                decoded.push(byte);
            }
            _ => decoded.push(byte),
        }
        rest = tail;
    }
    decoded
}

pub(super) fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

/// Returns the identity of a replica: its URL without the options, which say how to reach it.
pub fn identity(store: &dyn Store) -> String {
    without_options(store.url())
}

pub(super) fn without_options(url: &str) -> String {
    let end = url.find('?').unwrap_or(url.len());
    one_spelling(url.get(..end).unwrap_or(url).trim_end_matches('/'))
}

/// Returns a place in a bucket as [`of_bucket`] writes it, whichever of its characters were encoded.
pub(crate) fn one_spelling(identity: &str) -> String {
    let in_bucket = identity.strip_prefix("s3://").and_then(|place| place.split_once('/'));
    let Some((bucket, path)) = in_bucket else { return identity.to_string() };
    let mut url = format!("s3://{bucket}/");
    encode(&percent_decode(path), &mut url);
    url
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    fn path_of(url: &str) -> Result<PathBuf, String> {
        let Some(("file", rest)) = split_scheme(url) else { return Ok(PathBuf::from(url)) };
        file_path(url, rest).map_err(|err| err.message)
    }

    #[test]
    fn names_in_place_of_a_pattern_stay_apart() {
        for (url, bytes, text) in [
            ("s3://b/{name}", &b"a b%.db"[..], "a%20b%25.db"),
            ("s3://b/{name}", b"a\xff.db", "a%FF.db"),
            ("s3://b/{name}", b"a\xfe.db", "a%FE.db"),
            ("/r/{name}", b"a b%.db", "a b%.db"),
            ("/r/{name}", b"a\xff\xc3\xa4.db", "a%FF\u{e4}.db"),
        ] {
            assert_eq!(of_name(url, OsStr::from_bytes(bytes)), text, "{url}");
        }
    }

    #[test]
    fn paths_and_file_urls() {
        for (url, path) in [
            ("file:///a/b", "/a/b"),
            ("file://localhost/a/b", "/a/b"),
            ("file:/a/b", "/a/b"),
            ("file:a/b", "a/b"),
            ("file:///with%20space/%C3%A4%25", "/with space/ä%"),
            ("file:///a%zz%4", "/a%zz%4"),
            ("/plain/%20", "/plain/%20"),
            ("plain:with/colon", "plain:with/colon"),
        ] {
            assert_eq!(path_of(url), Ok(PathBuf::from(path)), "{url}");
        }
        for (url, word) in [
            ("file://host/a", "names no host"),
            ("file:///a?b=c", "takes no options"),
            ("file://", "names no host"),
            ("file:", "path is missing"),
            ("file:///a%00b", "zero byte"),
        ] {
            let message = path_of(url).expect_err(url);
            assert!(message.contains(word), "{url}: {message}");
        }
    }

    #[test]
    fn a_place_has_one_spelling() {
        for (url, identity) in [
            ("s3://b/a b/ä?region=r", "s3://b/a%20b/%C3%A4"),
            ("s3://b/a%20b/%c3%a4/", "s3://b/a%20b/%C3%A4"),
            ("s3://b/x%41", "s3://b/xA"),
            ("s3://b/100%25", "s3://b/100%25"),
            ("s3://b", "s3://b"),
            ("file:///a%20b", "file:///a%20b"),
        ] {
            assert_eq!(without_options(url), identity);
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for (url, shown) in [
            ("s3://u:p@b/x", "s3://***@b/x"),
            ("s3://token@b/x", "s3://***@b/x"),
            ("s3://u:a/b+c@b/x", "s3://***@b/x"),
            ("s3://u:a/b@c/d@b/x?region=r", "s3://***@b/x?region=r"),
            ("s3://u:a?b/c@b/x", "s3://***@b/x"),
            ("s3://u:p@b/x?endpoint=http://u:p@h", "s3://***@b/x?endpoint=***"),
            ("s3:/u:a/b@b/x", "s3:/***@b/x"),
            ("s3:u:p@b/x", "s3:***@b/x"),
            ("s3:///u:p@b/x", "s3:///***@b/x"),
            ("gs://u:p/w@b/x", "gs://***@b/x"),
            ("s3://b.localhost:9000/x", "s3://b.localhost:9000/x"),
            ("file:///a:b/c@d", "file:///a:b/c@d"),
            ("file:/a:b/c@d", "file:/a:b/c@d"),
            ("a:b/c@d", "a:b/c@d"),
            ("s3://b/x@y", "s3://b/x@y"),
            ("s3://b/x?region=r&secret-access-key=s", "s3://b/x?region=r&secret-access-key=***"),
            ("s3://b/x?accessKeyId=s", "s3://b/x?accessKeyId=***"),
            ("s3://b/x?sse-customer-key=s", "s3://b/x?sse-customer-key=***"),
            ("s3://b/x?sse-customer-key-path=/s", "s3://b/x?sse-customer-key-path=/s"),
            ("s3://b/x?endpoint=http://u:p@h", "s3://b/x?endpoint=***"),
            ("/a/b", "/a/b"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }
}
