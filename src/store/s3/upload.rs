//! Sends small files in one request, and large files in parts.
//!
//! A multipart upload is invisible until completed, and its completion is as conditional as a plain create.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use tokio::task::JoinSet;

use super::error::{ABORT_UPLOAD, COMPLETE_UPLOAD, CREATE_UPLOAD, PUT, UPLOAD_PART};
use super::sse::with_customer_key;
use super::{CONTENT_TYPE, Connection, Replica, TIMESTAMP_METADATA, client};
use crate::buffer::Buffer;
use crate::store::file::blocking;
use crate::store::parts::Parts;
use crate::store::{Body, Error, ErrorKind, Key, Upload};
use crate::units::Timestamp;

/// Longest file that is sent in one request, in bytes. Also the length of a longer file's parts, unless the
/// settings name one or [`PARTS_MAX`] parts of this length are too few. A few parts are in memory at a time.
const PART_LEN: usize = 8 << 20;
/// Most parts of an upload: a limit of S3.
const PARTS_MAX: u64 = 10_000;

/// Creates an object of known length.
pub(super) async fn put_new(
    replica: &Arc<Replica>,
    object: &str,
    body: Body,
    timestamp: Timestamp,
) -> Result<(), Error> {
    let source = Source::open(body).await?;
    if source.len() <= PART_LEN as u64 {
        return put_once(replica, object, &source, timestamp).await;
    }
    let multipart = Multipart::begin(Arc::clone(replica), object.to_string(), timestamp).await?;
    let sent = send_all(&multipart, &source).await;
    multipart.finish(sent).await
}

/// Creates an object in one request. Reads the bytes only after getting a pass: many replicas may wait, and
/// only those that send have their bytes in memory.
async fn put_once(
    replica: &Replica,
    object: &str,
    source: &Source,
    timestamp: Timestamp,
) -> Result<(), Error> {
    let connection = replica.connection().await?;
    let Connection { client, customer_key, .. } = &connection;
    let bytes = source.read(0, source.len()).await?;
    let limits = client::sending(bytes.len() as u64);
    let request = client
        .put_object()
        .bucket(&replica.settings.bucket)
        .key(object)
        .if_none_match("*")
        .content_type(CONTENT_TYPE)
        .metadata(TIMESTAMP_METADATA, timestamp.to_rfc3339())
        .set_storage_class(replica.settings.storage_class.clone())
        .set_server_side_encryption(replica.settings.encryption.clone())
        .set_ssekms_key_id(replica.settings.kms_key_id.clone())
        .body(ByteStream::from(bytes));
    with_customer_key!(request, customer_key.as_ref())
        .customize()
        .config_override(limits)
        .send()
        .await
        .map_err(|err| replica.failed(PUT, object, &err))?;
    Ok(())
}

/// Returns the length in bytes of the parts of a file of `len` bytes.
fn part_len(set: Option<usize>, len: u64) -> u64 {
    (set.unwrap_or(PART_LEN) as u64).max(len.div_ceil(PARTS_MAX))
}

/// Sends all parts of a file, a few at once.
async fn send_all(multipart: &Multipart, source: &Source) -> Result<Vec<CompletedPart>, Error> {
    let settings = &multipart.replica.settings;
    let part_len = part_len(settings.part_len, source.len());
    let mut tasks = JoinSet::new();
    let mut sent = Vec::new();
    // After a failure, dropping the set ends the tasks that still run.
    for number in 0..source.len().div_ceil(part_len) {
        if tasks.len() >= settings.concurrency {
            sent.extend(join(tasks.join_next().await)?);
        }
        let (multipart, source) = (multipart.clone(), source.clone());
        tasks.spawn(async move {
            let start = number * part_len;
            let len = part_len.min(source.len() - start);
            multipart.send(number as u32, &source, start, len).await
        });
    }
    while !tasks.is_empty() {
        sent.extend(join(tasks.join_next().await)?);
    }
    Ok(sent)
}

fn join<T>(
    result: Option<Result<Result<T, Error>, tokio::task::JoinError>>,
) -> Result<Option<T>, Error> {
    match result {
        None => Ok(None),
        Some(Ok(result)) => result.map(Some),
        Some(Err(err)) => Err(Error {
            kind: ErrorKind::Other,
            message: if err.is_panic() {
                "an internal error of walferry (a panic in an upload); please report it"
            } else {
                "an upload was given up because the program is stopping"
            }
            .to_string(),
            source: Some(err.into()),
            retry_after: None,
        }),
    }
}

/// Bytes of known length to send.
#[derive(Clone)]
enum Source {
    Bytes(Bytes),
    File { file: Arc<File>, path: Arc<PathBuf>, len: u64 },
}

impl Source {
    async fn open(body: Body) -> Result<Source, Error> {
        match body {
            Body::Bytes(bytes) => Ok(Source::Bytes(bytes)),
            Body::File(path) => {
                blocking(move || {
                    match crate::local::folder::read(&path)
                        .and_then(|file| Ok((file.metadata()?.len(), file)))
                    {
                        Ok((len, file)) => {
                            Ok(Source::File { file: Arc::new(file), path: Arc::new(path), len })
                        }
                        Err(err) => Err(unreadable(&path, err)),
                    }
                })
                .await
            }
        }
    }

    fn len(&self) -> u64 {
        match self {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::File { len, .. } => *len,
        }
    }

    async fn read(&self, start: u64, len: u64) -> Result<Bytes, Error> {
        match self {
            Source::Bytes(bytes) => Ok(bytes.slice(start as usize..(start + len) as usize)),
            Source::File { file, path, .. } => {
                let (file, path) = (Arc::clone(file), Arc::clone(path));
                blocking(move || {
                    let read = || {
                        let mut buffer = Buffer::zeroed(len as usize)?;
                        file.read_exact_at(buffer.as_mut(), start)?;
                        Ok(buffer.into())
                    };
                    read().map_err(|err| unreadable(&path, err))
                })
                .await
            }
        }
    }
}

fn unreadable(path: &std::path::Path, err: std::io::Error) -> Error {
    Error::caused(ErrorKind::Local, format!("cannot read the local file {}", path.display()), err)
}

/// A multipart upload under way. Clones stand for the same upload.
#[derive(Clone)]
struct Multipart {
    replica: Arc<Replica>,
    object: Arc<str>,
    id: Arc<str>,
}

impl Multipart {
    async fn begin(
        replica: Arc<Replica>,
        object: String,
        timestamp: Timestamp,
    ) -> Result<Multipart, Error> {
        let connection = replica.connection().await?;
        let Connection { client, customer_key, .. } = &connection;
        let request = client
            .create_multipart_upload()
            .bucket(&replica.settings.bucket)
            .key(&object)
            .content_type(CONTENT_TYPE)
            .metadata(TIMESTAMP_METADATA, timestamp.to_rfc3339())
            .set_storage_class(replica.settings.storage_class.clone())
            .set_server_side_encryption(replica.settings.encryption.clone())
            .set_ssekms_key_id(replica.settings.kms_key_id.clone());
        let answer = with_customer_key!(request, customer_key.as_ref())
            .customize()
            .config_override(client::sending(0))
            .send()
            .await
            .map_err(|err| replica.failed(CREATE_UPLOAD, &object, &err))?;
        match answer.upload_id {
            Some(id) => Ok(Multipart { replica, object: object.into(), id: id.into() }),
            None => Err(replica.place.error(
                ErrorKind::Other,
                CREATE_UPLOAD,
                &object,
                "the answer names no upload",
                None,
            )),
        }
    }

    /// Sends part `number`, counted from 0.
    async fn send(
        &self,
        number: u32,
        source: &Source,
        start: u64,
        len: u64,
    ) -> Result<CompletedPart, Error> {
        // S3 counts from 1.
        let number = number.cast_signed().saturating_add(1);
        let connection = self.replica.connection().await?;
        let Connection { client, customer_key, .. } = &connection;
        let bytes = source.read(start, len).await?;
        let limits = client::sending(len);
        let request = client
            .upload_part()
            .bucket(&self.replica.settings.bucket)
            .key(&*self.object)
            .upload_id(&*self.id)
            .part_number(number)
            .body(ByteStream::from(bytes));
        let answer = with_customer_key!(request, customer_key.as_ref())
            .customize()
            .config_override(limits)
            .send()
            .await
            .map_err(|err| self.replica.failed(UPLOAD_PART, &self.object, &err))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag)
            .set_checksum_crc32(answer.checksum_crc32)
            .build())
    }

    async fn send_bytes(&self, number: u32, bytes: Bytes) -> Result<CompletedPart, Error> {
        let len = bytes.len() as u64;
        self.send(number, &Source::Bytes(bytes), 0, len).await
    }

    /// Makes the object visible if all parts were sent. Otherwise, or if that fails, aborts the upload.
    async fn finish(self, sent: Result<Vec<CompletedPart>, Error>) -> Result<(), Error> {
        let result = match sent {
            Ok(parts) => self.complete(parts).await,
            Err(err) => Err(err),
        };
        if result.is_err() {
            self.abort().await;
        }
        result
    }

    async fn complete(&self, mut parts: Vec<CompletedPart>) -> Result<(), Error> {
        parts.sort_unstable_by_key(CompletedPart::part_number);
        let connection = self.replica.connection().await?;
        let Connection { client, customer_key, .. } = &connection;
        let request = client
            .complete_multipart_upload()
            .bucket(&self.replica.settings.bucket)
            .key(&*self.object)
            .upload_id(&*self.id)
            .if_none_match("*")
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build());
        // The server may assemble thousands of parts before it answers.
        let limits = client::sending(64 << 20);
        let answer = with_customer_key!(request, customer_key.as_ref())
            .customize()
            .config_override(limits)
            .send()
            .await
            .map_err(|err| self.replica.failed(COMPLETE_UPLOAD, &self.object, &err))?;
        // S3 answers 200 before it knows the outcome. The SDK recognises an error in the body. A body that is
        // neither an error nor a result is not a success.
        if answer.e_tag.is_none() {
            return Err(self.replica.place.error(
                ErrorKind::Unavailable,
                COMPLETE_UPLOAD,
                &self.object,
                "the answer does not say that the object was made",
                None,
            ));
        }
        Ok(())
    }

    async fn abort(&self) {
        let Ok(connection) = self.replica.connection().await else { return };
        let request = connection
            .client
            .abort_multipart_upload()
            .bucket(&self.replica.settings.bucket)
            .key(&*self.object)
            .upload_id(&*self.id);
        if let Err(err) = request.customize().config_override(client::sending(0)).send().await {
            // The upload was completed after all, or removed, so there is nothing to abort.
            if err.code() != Some("NoSuchUpload") {
                let err = self.replica.failed(ABORT_UPLOAD, &self.object, &err);
                log::warn!("{err}; a lifecycle rule of the bucket can remove what was sent");
            }
        }
    }
}

/// An upload whose exact length is unknown. The first part waits in memory until a second part shows that the
/// file has more than one.
pub(super) struct S3Upload {
    replica: Arc<Replica>,
    object: String,
    timestamp: Timestamp,
    part_len: usize,
    parts: Parts,
    state: State,
}

enum State {
    Empty,
    One(u32, Bytes),
    Many(Multipart, Vec<CompletedPart>),
}

impl S3Upload {
    /// `len` is the estimated length of the file in bytes.
    pub(super) fn new(replica: Arc<Replica>, key: Key, timestamp: Timestamp, len: u64) -> S3Upload {
        // Pages that do not compress make the file longer than the database, and so do new pages.
        let part_len = part_len(replica.settings.part_len, len.saturating_add(len / 16)) as usize;
        let (object, parts) = (replica.object(key), Parts::new(key, part_len));
        S3Upload { replica, object, timestamp, part_len, parts, state: State::Empty }
    }

    async fn send(&mut self, number: u32, bytes: Bytes) -> Result<(), Error> {
        if let State::Many(multipart, sent) = &mut self.state {
            sent.push(multipart.send_bytes(number, bytes).await?);
            return Ok(());
        }
        match std::mem::replace(&mut self.state, State::Empty) {
            State::One(first, first_bytes) => {
                let begun = Multipart::begin(
                    Arc::clone(&self.replica),
                    self.object.clone(),
                    self.timestamp,
                );
                let multipart = begun.await?;
                self.state = State::Many(multipart.clone(), Vec::new());
                let sent = [
                    multipart.send_bytes(first, first_bytes).await?,
                    multipart.send_bytes(number, bytes).await?,
                ];
                self.state = State::Many(multipart, sent.into());
            }
            _ => self.state = State::One(number, bytes),
        }
        Ok(())
    }
}

#[async_trait]
impl Upload for S3Upload {
    fn part_len(&self) -> usize {
        self.part_len
    }

    async fn part(&mut self, number: u32, bytes: Bytes) -> Result<(), Error> {
        if u64::from(number) >= PARTS_MAX {
            return Err(self.replica.place.error(
                ErrorKind::Invalid,
                UPLOAD_PART,
                &self.object,
                &format!(
                    "S3 takes {PARTS_MAX} parts and this file needs more; set a part-size larger \
                     than {} MiB in the URL",
                    self.part_len >> 20
                ),
                None,
            ));
        }
        self.parts.add(number, bytes.len())?;
        let sent = self.send(number, bytes).await;
        self.replica.noted(sent)
    }

    async fn complete(self: Box<Self>) -> Result<(), Error> {
        let S3Upload { replica, object, timestamp, parts, state, .. } = *self;
        let whole = parts.check();
        let completed = match state {
            State::Many(multipart, sent) => {
                let count = parts.count();
                let whole = whole.and_then(|()| {
                    if sent.len() == count { Ok(sent) } else { Err(broken(&replica, &object)) }
                });
                multipart.finish(whole).await
            }
            State::One(_, bytes) => match whole {
                Ok(()) => put_once(&replica, &object, &Source::Bytes(bytes), timestamp).await,
                Err(err) => Err(err),
            },
            State::Empty if parts.count() == 0 => {
                put_once(&replica, &object, &Source::Bytes(Bytes::new()), timestamp).await
            }
            State::Empty => Err(broken(&replica, &object)),
        };
        replica.noted(completed)
    }

    async fn abort(self: Box<Self>) {
        if let State::Many(multipart, _) = &self.state {
            multipart.abort().await;
        }
    }
}

/// Returns the error of an upload that was completed although a part was refused or cancelled.
fn broken(replica: &Replica, object: &str) -> Error {
    let why = "not all of its parts arrived";
    replica.place.error(ErrorKind::Invalid, PUT, object, why, None)
}
