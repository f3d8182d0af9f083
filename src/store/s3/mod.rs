//! A replica in an S3 bucket, in Litestream's layout: `<path>/<level, 4 hex digits>/<name>`, with the LTX
//! timestamp in the object's metadata.
//!
//! Files are created with `If-None-Match: *`, so exactly one of several writers wins. If the answer to a
//! create is lost, the SDK repeats the create and may find the object. So a create that ends in
//! [`ErrorKind::AlreadyExists`] may have met its own bytes.
//!
//! Large files are sent in parts. The parts of a killed process stay in the bucket, invisible, until a
//! lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`) removes them.

mod access;
mod client;
mod error;
mod names;
mod plain;
mod server;
mod settings;
mod sse;
mod upload;

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use bytes::Bytes;
use parking_lot::Mutex;

use self::error::{DELETE, GET, LIST, Operation, Place};
pub use self::server::Servers;
use self::server::{Pass, Server};
use self::settings::Settings;
pub(crate) use self::settings::kebab_case;
use self::sse::{CustomerKey, with_customer_key};
use super::{Access, Body, Error, ErrorKind, FileInfo, Key, Object, Store, Upload};
use crate::ltx::FileName;
use crate::units::{Level, Timestamp};

/// User metadata with the LTX timestamp; its header begins with `x-amz-meta-`.
const TIMESTAMP_METADATA: &str = "litestream-timestamp";
const CONTENT_TYPE: &str = "application/octet-stream";
/// Longest object that is read whole, in bytes. Longer objects are read in ranges.
const WHOLE_MAX: u64 = 1 << 30;
/// Bytes for which a transfer gets time if the server does not say how much it sends.
const LENGTH_UNKNOWN: u64 = 64 << 20;

/// A path in a bucket that holds one replica.
#[derive(Clone)]
pub struct S3Store(Arc<Replica>);

struct Replica {
    settings: Settings,
    place: Place,
    server: Arc<Server>,
    /// Read again after the store refused the key.
    customer_key: Mutex<Option<CustomerKey>>,
    /// True if the last call failed as [`ErrorKind::Unavailable`].
    doubtful: AtomicBool,
}

/// Credentials from a configuration file. `Debug` shows nothing of them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: String,
    /// Token of temporary credentials.
    pub session_token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// Client and key for one request, and the pass to the server, which is held until the answer is complete.
struct Connection {
    client: Client,
    customer_key: Option<CustomerKey>,
    _pass: Pass,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({})", self.0.settings.url)
    }
}

impl S3Store {
    /// Parses the URL. The first call looks up the credentials and contacts the bucket.
    pub fn open(url: &str) -> Result<S3Store, Error> {
        S3Store::open_with(url, None)
    }

    /// Parses the URL. `credentials` take precedence over those of the environment and of `~/.aws`.
    pub fn open_with(url: &str, credentials: Option<Credentials>) -> Result<S3Store, Error> {
        S3Store::open_shared(url, credentials, &Servers::default())
    }

    /// Opens a replica as [`S3Store::open_with`] does, sharing `servers` with other replicas.
    pub fn open_shared(
        url: &str,
        credentials: Option<Credentials>,
        servers: &Servers,
    ) -> Result<S3Store, Error> {
        S3Store::open_at(url, &Access::with(credentials), servers)
    }

    /// Checks URL and options without the environment. Returns the URL in its form for messages.
    pub(super) fn check(url: &str, access: &Access) -> Result<String, Error> {
        Ok(Settings::parse(url, access, |_| None)?.url)
    }

    /// True if both are one replica, reached in the same way by this process.
    pub(super) fn is_same_way(one: (&str, &Access), other: (&str, &Access)) -> bool {
        let way = |(url, access): (&str, &Access)| {
            let settings = Settings::parse(url, access, environment).ok()?;
            Some((settings.way(environment), access.credentials.clone()))
        };
        way(one).is_some_and(|one| Some(one) == way(other))
    }

    /// Parses URL and options. Shares `servers` with other replicas.
    pub fn open_at(url: &str, access: &Access, servers: &Servers) -> Result<S3Store, Error> {
        let settings = Settings::parse(url, access, environment)?;
        let credentials = access.credentials.clone();
        plain::check(&settings, credentials.as_ref())
            .map_err(|why| Error::new(ErrorKind::Invalid, format!("{}: {why}", settings.url)))?;
        let server = match (&settings.endpoint, &settings.region) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(region)) => format!("AWS in {region}"),
            (None, None) => "AWS".to_string(),
        };
        let place = Place { url: settings.url.clone(), bucket: settings.bucket.clone(), server };
        let server = servers.server(&place.server, &settings, credentials);
        Ok(S3Store(Arc::new(Replica {
            settings,
            place,
            server,
            customer_key: Mutex::new(None),
            doubtful: AtomicBool::new(false),
        })))
    }
}

fn environment(name: &str) -> Option<String> {
    crate::environment::text(name).filter(|value| !value.is_empty())
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> &str {
        &self.0.settings.url
    }

    fn server(&self) -> Option<&str> {
        Some(&self.0.place.server)
    }

    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error> {
        self.0.noted(patiently(|| self.0.list(level)).await)
    }

    async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        match range {
            // No range header can express an empty range.
            Some(range) if range.start >= range.end => Ok(Bytes::new()),
            range => {
                let object = self.0.object(key);
                self.0.noted(patiently(|| self.0.get(&object, range.clone())).await)
            }
        }
    }

    async fn objects(&self, folder: &str) -> Result<Vec<Object>, Error> {
        self.0.noted(patiently(|| self.0.objects(folder)).await)
    }

    async fn object(&self, path: &str, range: Range<u64>) -> Result<Bytes, Error> {
        if range.start >= range.end {
            return Ok(Bytes::new());
        }
        let object = self.0.settings.object(path);
        self.0.noted(patiently(|| self.0.get(&object, Some(range.clone()))).await)
    }

    async fn put_new(&self, key: Key, body: Body, timestamp: Timestamp) -> Result<(), Error> {
        self.0.noted(upload::put_new(&self.0, &self.0.object(key), body, timestamp).await)
    }

    async fn upload_new(
        &self,
        key: Key,
        timestamp: Timestamp,
        len: u64,
    ) -> Result<Box<dyn Upload>, Error> {
        Ok(Box::new(upload::S3Upload::new(Arc::clone(&self.0), key, timestamp, len)))
    }

    async fn delete(&self, key: Key) -> Result<(), Error> {
        self.0.noted(self.0.delete(&self.0.object(key)).await)
    }
}

/// Longest wait that a store can ask of a read. Writes leave such a wait to the caller, who has other work to
/// do.
const READER_PATIENCE: Duration = Duration::from_secs(20);

/// A read that failed sooner than this is repeated. A store may answer some requests and not others. Work
/// that takes a dozen requests, such as looking for the log's end, must not fail then.
const SOON: Duration = Duration::from_secs(3);
/// First pause before such a repetition; each further pause is twice as long.
const PAUSE: Duration = Duration::from_millis(250);

/// Repeats a read when the store says when to, or when the read failed quickly with an error that may pass.
async fn patiently<T, F>(read: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut pause = PAUSE;
    for _ in 1..client::attempts() {
        let begun = tokio::time::Instant::now();
        match read().await {
            Err(Error { retry_after: Some(wait), .. }) if wait <= READER_PATIENCE => {
                tokio::time::sleep(wait).await;
            }
            Err(Error { retry_after: None, kind, .. })
                if kind.is_transient() && begun.elapsed() < SOON =>
            {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            result => return result,
        }
    }
    read().await
}

impl Replica {
    fn object(&self, key: Key) -> String {
        format!("{}{}", self.settings.prefix(key.level), key.name)
    }

    /// Waits for a pass to the server, and returns the pass with everything else that a request needs.
    async fn connection(&self) -> Result<Connection, Error> {
        let customer_key = self.customer_key().await?;
        let pass = self.server.enter(self.doubtful.load(Ordering::Relaxed)).await;
        Ok(Connection { client: self.server.client().await, customer_key, _pass: pass })
    }

    async fn customer_key(&self) -> Result<Option<CustomerKey>, Error> {
        if let Some(given) = &self.settings.customer_key {
            return Ok(Some(given.clone()));
        }
        let Some(path) = self.settings.customer_key_path.clone() else { return Ok(None) };
        let known = self.customer_key.lock().clone();
        if known.is_some() {
            return Ok(known);
        }
        let read = super::file::blocking(move || CustomerKey::read(&path)).await?;
        Ok(Some(self.customer_key.lock().insert(read).clone()))
    }

    /// Records if the result was [`ErrorKind::Unavailable`].
    fn noted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        let silent = matches!(&result, Err(error) if error.kind == ErrorKind::Unavailable);
        self.doubtful.store(silent, Ordering::Relaxed);
        result
    }

    /// Turns a failed call for `object` into an error. After a refusal, the next call looks up the
    /// credentials again: files and roles are renewed while the process lives.
    fn failed<E>(
        &self,
        operation: Operation,
        object: &str,
        err: &SdkError<E, HttpResponse>,
    ) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let error = self.place.failed(operation, object, err);
        if matches!(error.kind, ErrorKind::Unauthenticated | ErrorKind::Denied) {
            self.server.refuse();
            *self.customer_key.lock() = None;
        }
        error
    }

    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error> {
        let prefix = self.settings.prefix(level);
        // The delimiter leaves out the keys of folders below, which are not walferry's.
        let mut files = Vec::new();
        for Object { path, len, modified } in self.list_below(&prefix, Some("/")).await? {
            if let Some(name) = FileName::parse(&path) {
                files.push(FileInfo { key: Key { level, name }, len, modified, stored: modified });
            }
        }
        // Servers list in different orders, and a file may be on two pages if others are created meanwhile.
        files.sort_unstable_by_key(|file| file.key);
        files.dedup_by_key(|file| file.key);
        Ok(files)
    }

    async fn objects(&self, folder: &str) -> Result<Vec<Object>, Error> {
        let found = self.list_below(&self.settings.object(&format!("{folder}/")), None).await?;
        let named = |object: Object| Object { path: format!("{folder}/{}", object.path), ..object };
        Ok(found.into_iter().map(named).collect())
    }

    /// Returns all objects whose keys begin with `prefix`, each with the rest of its key as its path.
    async fn list_below(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
    ) -> Result<Vec<Object>, Error> {
        let other = |why: &str| self.place.error(ErrorKind::Other, LIST, prefix, why, None);
        let mut objects = Vec::new();
        let mut tokens = HashSet::new();
        let mut token = None;
        loop {
            let connection = self.connection().await?;
            let page = connection
                .client
                .list_objects_v2()
                .bucket(&self.settings.bucket)
                .prefix(prefix)
                .set_delimiter(delimiter.map(str::to_string))
                .set_continuation_token(token)
                .customize()
                .config_override(client::listing())
                .send()
                .await
                .map_err(|err| self.failed(LIST, prefix, &err))?;
            for object in page.contents() {
                let Some(path) = object.key().and_then(|key| key.strip_prefix(prefix)) else {
                    continue;
                };
                let len = object.size().and_then(|size| u64::try_from(size).ok());
                let modified = object.last_modified().and_then(|time| time.to_millis().ok());
                let (Some(len), Some(modified)) = (len, modified) else {
                    return Err(other("the answer lacks a file's length or time"));
                };
                let (path, modified) = (path.to_string(), Timestamp(modified));
                objects.push(Object { path, len, modified });
            }
            if page.is_truncated() != Some(true) {
                break;
            }
            // A list that ends early, or never, must not count as the whole list.
            match page.next_continuation_token {
                Some(next) if tokens.insert(next.clone()) => token = Some(next),
                _ => return Err(other("the answer is cut off and does not say how to go on")),
            }
        }
        Ok(objects)
    }

    async fn get(&self, object: &str, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        let mut attempt = 1;
        loop {
            match self.get_once(object, range.as_ref()).await? {
                Ok(bytes) => return Ok(bytes),
                Err(cause) if attempt < client::attempts() => {
                    log::debug!("GetObject of {object} broke off, trying again: {cause}");
                    attempt += 1;
                }
                Err(cause) => {
                    let why = "the transfer broke off";
                    let kind = ErrorKind::Unavailable;
                    return Err(self.place.error(kind, GET, object, why, Some(cause)));
                }
            }
        }
    }

    /// Returns the bytes, or the reason why their transfer broke off after it began.
    async fn get_once(
        &self,
        object: &str,
        range: Option<&Range<u64>>,
    ) -> Result<Result<Bytes, String>, Error> {
        let connection = self.connection().await?;
        let Connection { client, customer_key, .. } = &connection;
        let request = client.get_object().bucket(&self.settings.bucket).key(object);
        let request = with_customer_key!(request, customer_key.as_ref());
        let most = range.map_or(WHOLE_MAX, |range| range.end - range.start);
        let limits = client::receiving(most);
        let answer = match range {
            None => request.customize().config_override(limits).send().await,
            Some(range) => {
                // Some servers send the whole object's checksum with a part of the object.
                let unchecked =
                    limits.response_checksum_validation(ResponseChecksumValidation::WhenRequired);
                let range = match range.end.checked_sub(1) {
                    Some(last) if i64::try_from(last).is_ok() => {
                        format!("bytes={}-{last}", range.start)
                    }
                    _ => format!("bytes={}-", range.start),
                };
                request.range(range).customize().config_override(unchecked).send().await
            }
        };
        let answer = answer.map_err(|err| self.failed(GET, object, &err))?;
        let too_long = || {
            let why = match range {
                Some(_) => "the server sent more than the range that was asked for",
                None => "it is too long to be read at once",
            };
            self.place.error(ErrorKind::Invalid, GET, object, why, None)
        };
        let len = answer.content_length().and_then(|len| u64::try_from(len).ok());
        if len.is_some_and(|len| len > most) {
            return Err(too_long());
        }
        let transfer = answer.body.collect();
        let limit = client::transfer_time(len.unwrap_or(most.min(LENGTH_UNKNOWN)));
        let bytes = match tokio::time::timeout(limit, transfer).await {
            Ok(Ok(body)) => body.into_bytes(),
            Ok(Err(err)) if client::is_too_long(&err) => return Err(too_long()),
            Ok(Err(err)) => return Ok(Err(error::words(&err))),
            Err(_) => return Ok(Err(format!("not done after {} s", limit.as_secs()))),
        };
        let got = bytes.len() as u64;
        if len.is_some_and(|len| len != got) {
            return Ok(Err(format!("{got} of {} bytes arrived", len.unwrap_or_default())));
        }
        Ok(Ok(bytes))
    }

    async fn delete(&self, object: &str) -> Result<(), Error> {
        let connection = self.connection().await?;
        let request = connection.client.delete_object();
        let request = request.bucket(&self.settings.bucket).key(object);
        match request.customize().config_override(client::sending(0)).send().await {
            Ok(_) => Ok(()),
            Err(err) => match self.failed(DELETE, object, &err) {
                Error { kind: ErrorKind::NotFound, .. } => Ok(()),
                err => Err(err),
            },
        }
    }
}
