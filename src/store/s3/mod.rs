//! A replica in an S3 bucket, in Litestream's layout: `<path>/<level, 4 hex digits>/<name>`, with
//! the LTX timestamp in the object's metadata.
//!
//! Files are created with `If-None-Match: *`, so that of several writers exactly one wins. When
//! the answer to a create is lost, the SDK repeats it and may find the object there: a create
//! that ends in [`ErrorKind::AlreadyExists`] may have met its own bytes.
//!
//! Large files go up in parts. What a killed process leaves of them stays in the bucket, unseen,
//! until a lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`) removes it.

mod client;
mod error;
mod settings;
mod sse;
mod upload;

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use parking_lot::Mutex;

use self::error::{DELETE, GET, LIST, Operation, PUT, Place};
use self::settings::Settings;
use self::sse::{CustomerKey, with_customer_key};
use super::{Body, Error, ErrorKind, FileInfo, Key, Store, Upload};
use crate::ltx::FileName;
use crate::units::{Level, Timestamp};

/// User metadata with the LTX timestamp; `x-amz-meta-` goes before it in the header.
const TIMESTAMP_METADATA: &str = "litestream-timestamp";
const CONTENT_TYPE: &str = "application/octet-stream";

/// A path in a bucket that holds one replica.
#[derive(Clone)]
pub struct S3Store(Arc<Replica>);

struct Replica {
    settings: Settings,
    place: Place,
    credentials: Option<Credentials>,
    /// Made anew after the store refused the credentials: others may be there by now.
    connection: Mutex<Option<Arc<Connection>>>,
}

/// Credentials from a configuration file. Its `Debug` shows nothing of them.
#[derive(Clone)]
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

/// What is made with the first request, and lasts as long as the credentials are accepted.
struct Connection {
    client: Client,
    customer_key: Option<CustomerKey>,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({})", self.0.settings.url)
    }
}

impl S3Store {
    /// Reads the URL. Credentials are looked up and the bucket is asked with the first call.
    pub fn open(url: &str) -> Result<S3Store, Error> {
        S3Store::open_with(url, None)
    }

    /// Reads the URL. `credentials` go before those of the environment and of `~/.aws`.
    pub fn open_with(url: &str, credentials: Option<Credentials>) -> Result<S3Store, Error> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let settings = Settings::parse(url, env)?;
        let server = match (&settings.endpoint, &settings.region) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(region)) => format!("AWS in {region}"),
            (None, None) => "AWS".to_string(),
        };
        let place = Place { url: settings.url.clone(), bucket: settings.bucket.clone(), server };
        let connection = Mutex::new(None);
        Ok(S3Store(Arc::new(Replica { settings, place, credentials, connection })))
    }
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> &str {
        &self.0.settings.url
    }

    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error> {
        patiently(|| self.0.list(level)).await
    }

    async fn get(&self, key: Key, range: Option<Range<u64>>) -> Result<Bytes, Error> {
        match range {
            // Nothing to ask for, and nothing that a range header could say.
            Some(range) if range.start >= range.end => Ok(Bytes::new()),
            range => {
                let object = self.0.object(key);
                patiently(|| self.0.get(&object, range.clone())).await
            }
        }
    }

    async fn put_new(&self, key: Key, body: Body, timestamp: Timestamp) -> Result<(), Error> {
        upload::put_new(&self.0, &self.0.object(key), body, timestamp).await
    }

    async fn upload_new(&self, key: Key, timestamp: Timestamp) -> Result<Box<dyn Upload>, Error> {
        Ok(Box::new(upload::S3Upload::new(Arc::clone(&self.0), key, timestamp)))
    }

    async fn delete(&self, key: Key) -> Result<(), Error> {
        self.0.delete(&self.0.object(key)).await
    }
}

/// The longest wish to be left alone for which a read waits by itself. Writes leave that to the
/// caller, who has other things to do meanwhile.
const READER_PATIENCE: Duration = Duration::from_secs(20);

/// Repeats a read when the store says when.
async fn patiently<T, F>(read: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    for _ in 1..client::attempts() {
        match read().await {
            Err(Error { retry_after: Some(wait), .. }) if wait <= READER_PATIENCE => {
                tokio::time::sleep(wait).await;
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

    async fn connection(&self) -> Result<Arc<Connection>, Error> {
        let known = self.connection.lock().clone();
        if let Some(connection) = known {
            return Ok(connection);
        }
        let customer_key = match self.settings.customer_key_path.clone() {
            None => None,
            Some(path) => Some(super::file::blocking(move || CustomerKey::read(&path)).await?),
        };
        let client = client::build(&self.settings, self.credentials.clone()).await;
        let made = Arc::new(Connection { client, customer_key });
        Ok(self.connection.lock().get_or_insert(made).clone())
    }

    /// The error of a failed call for `object`. After a refusal the next call looks for the
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
            *self.connection.lock() = None;
        }
        error
    }

    async fn list(&self, level: Level) -> Result<Vec<FileInfo>, Error> {
        let prefix = self.settings.prefix(level);
        let other = |why: &str| self.place.error(ErrorKind::Other, LIST, &prefix, why, None);
        let mut files = Vec::new();
        let mut tokens = HashSet::new();
        let mut token = None;
        loop {
            let connection = self.connection().await?;
            let page = connection
                .client
                .list_objects_v2()
                .bucket(&self.settings.bucket)
                .prefix(&prefix)
                // Spares the keys of folders below, which are not ours.
                .delimiter("/")
                .set_continuation_token(token)
                .send()
                .await
                .map_err(|err| self.failed(LIST, &prefix, &err))?;
            for object in page.contents() {
                let name = object.key().and_then(|key| key.strip_prefix(prefix.as_str()));
                let Some(name) = name.and_then(FileName::parse) else { continue };
                let len = object.size().and_then(|size| u64::try_from(size).ok());
                let modified = object.last_modified().and_then(|time| time.to_millis().ok());
                let (Some(len), Some(modified)) = (len, modified) else {
                    return Err(other("the answer lacks a file's length or time"));
                };
                let modified = Timestamp(modified);
                files.push(FileInfo { key: Key { level, name }, len, modified });
            }
            if page.is_truncated() != Some(true) {
                break;
            }
            // A list that ends early, or never, must not be taken for the whole.
            match page.next_continuation_token {
                Some(next) if tokens.insert(next.clone()) => token = Some(next),
                _ => return Err(other("the answer is cut off and does not say how to go on")),
            }
        }
        // Servers differ in their order, and a file may appear on two pages when others are
        // created meanwhile.
        files.sort_unstable_by_key(|file| file.key);
        files.dedup_by_key(|file| file.key);
        Ok(files)
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

    /// The bytes, or why their transfer broke off after it had begun.
    async fn get_once(
        &self,
        object: &str,
        range: Option<&Range<u64>>,
    ) -> Result<Result<Bytes, String>, Error> {
        let connection = self.connection().await?;
        let Connection { client, customer_key } = &*connection;
        let request = client.get_object().bucket(&self.settings.bucket).key(object);
        let request = with_customer_key!(request, customer_key.as_ref());
        let answer = match range {
            None => request.send().await,
            Some(range) => {
                // Some servers send the whole object's checksum with a part of it.
                let unchecked = aws_sdk_s3::config::Config::builder()
                    .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
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
        let len = answer.content_length().and_then(|len| u64::try_from(len).ok());
        let transfer = answer.body.collect();
        let limit = client::transfer_time(len.unwrap_or_default());
        let bytes = match tokio::time::timeout(limit, transfer).await {
            Ok(Ok(body)) => body.into_bytes(),
            Ok(Err(err)) => return Ok(Err(error::words(&err))),
            Err(_) => return Ok(Err(format!("not done after {} s", limit.as_secs()))),
        };
        let got = bytes.len() as u64;
        if len.is_some_and(|len| len != got) {
            return Ok(Err(format!("{got} of {} bytes arrived", len.unwrap_or_default())));
        }
        if range.is_some_and(|range| got > range.end - range.start) {
            let why = "the server sent more than the range that was asked for";
            return Err(self.place.error(ErrorKind::Invalid, GET, object, why, None));
        }
        Ok(Ok(bytes))
    }

    /// Creates an object in one request.
    async fn put_once(
        &self,
        object: &str,
        bytes: Bytes,
        timestamp: Timestamp,
    ) -> Result<(), Error> {
        let connection = self.connection().await?;
        let Connection { client, customer_key } = &*connection;
        let timeouts = client::timeouts(bytes.len() as u64);
        let request = client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(object)
            .if_none_match("*")
            .content_type(CONTENT_TYPE)
            .metadata(TIMESTAMP_METADATA, timestamp.to_rfc3339())
            .set_storage_class(self.settings.storage_class.clone())
            .set_server_side_encryption(self.settings.encryption.clone())
            .set_ssekms_key_id(self.settings.kms_key_id.clone())
            .body(ByteStream::from(bytes));
        with_customer_key!(request, customer_key.as_ref())
            .customize()
            .config_override(aws_sdk_s3::config::Config::builder().timeout_config(timeouts))
            .send()
            .await
            .map_err(|err| self.failed(PUT, object, &err))?;
        Ok(())
    }

    async fn delete(&self, object: &str) -> Result<(), Error> {
        let connection = self.connection().await?;
        let request = connection.client.delete_object();
        match request.bucket(&self.settings.bucket).key(object).send().await {
            Ok(_) => Ok(()),
            Err(err) => match self.failed(DELETE, object, &err) {
                Error { kind: ErrorKind::NotFound, .. } => Ok(()),
                err => Err(err),
            },
        }
    }
}
