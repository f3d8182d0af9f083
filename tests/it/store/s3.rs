//! The S3 backend against real servers, which `make test` starts and names in the environment.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use walferry::store::conformance::{self, Traits, key, noise};
use walferry::store::s3::{Credentials, S3Store};
use walferry::store::{Body, Error, ErrorKind, Store, open};
use walferry::units::{Level, Timestamp};

const NOW: Timestamp = Timestamp(1_795_351_714_920);

/// A server and how to sign in.
#[derive(Clone)]
struct Server {
    endpoint: String,
    bucket: String,
    access_key_id: String,
    secret_access_key: String,
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test needs the S3 servers that `make test` starts; run `make test`")
    })
}

fn first_server() -> Server {
    // Else a test that finds no credentials would ask an address that is not of this machine.
    assert_eq!(env("AWS_EC2_METADATA_DISABLED"), "true");
    Server {
        endpoint: env("WALFERRY_TEST_S3_ENDPOINT"),
        bucket: env("WALFERRY_TEST_S3_BUCKET"),
        access_key_id: env("AWS_ACCESS_KEY_ID"),
        secret_access_key: env("AWS_SECRET_ACCESS_KEY"),
    }
}

fn second_server() -> Server {
    Server {
        endpoint: env("WALFERRY_TEST_S3_SECOND_ENDPOINT"),
        bucket: env("WALFERRY_TEST_S3_SECOND_BUCKET"),
        access_key_id: env("WALFERRY_TEST_S3_SECOND_ACCESS_KEY_ID"),
        secret_access_key: env("WALFERRY_TEST_S3_SECOND_SECRET_ACCESS_KEY"),
    }
}

impl Server {
    /// A store of the replica `name`, unlike those of other runs on the same server.
    fn open(&self, name: &str) -> Arc<dyn Store> {
        static RUN: OnceLock<u128> = OnceLock::new();
        let run = RUN.get_or_init(|| UNIX_EPOCH.elapsed().unwrap().as_nanos());
        self.open_path(&format!("run {run} {}/{name}", std::process::id()), "")
    }

    fn open_path(&self, path: &str, options: &str) -> Arc<dyn Store> {
        let credentials = Credentials {
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.clone(),
            session_token: None,
        };
        Arc::new(S3Store::open_with(&self.url(path, options), Some(credentials)).unwrap())
    }

    fn url(&self, path: &str, options: &str) -> String {
        format!("s3://{}/{path}?endpoint={}{options}", self.bucket, self.endpoint)
    }
}

fn some_bytes() -> Body {
    Body::Bytes(Bytes::from_static(b"some bytes"))
}

/// All that an error says, in all ways to show it.
fn everything(err: &Error) -> String {
    let mut text = format!("{err} {err:?}");
    let mut source = err.source();
    while let Some(err) = source {
        write!(text, " {err} {err:?}").unwrap();
        source = err.source();
    }
    text
}

#[tokio::test]
async fn the_first_server_keeps_the_contract() {
    let server = first_server();
    let traits = Traits { modified_is_timestamp: false, many: 1100 };
    conformance::run(traits, |name| server.open(name)).await;
}

#[tokio::test]
async fn the_second_server_keeps_the_contract() {
    let server = second_server();
    let traits = Traits { modified_is_timestamp: false, many: 1100 };
    conformance::run(traits, |name| server.open(name)).await;
}

#[tokio::test]
async fn credentials_of_the_environment_are_found() {
    let server = first_server();
    let store = open(&server.url("environment", "")).unwrap();
    store.list(Level::L0).await.unwrap();
}

#[tokio::test]
async fn a_wrong_secret_is_told_and_not_shown() {
    for mut server in [first_server(), second_server()] {
        let secret = "wrongSecretThatNobodyMaySee";
        server.secret_access_key = secret.to_string();
        let store = server.open("wrong secret");
        for err in [
            store.list(Level::L0).await.unwrap_err(),
            store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap_err(),
            store.get(key(0, 1), None).await.unwrap_err(),
        ] {
            assert_eq!(err.kind, ErrorKind::Unauthenticated, "{}", everything(&err));
            assert!(err.message.contains("AWS_SECRET_ACCESS_KEY"), "{err}");
            assert!(!everything(&err).contains(secret), "a secret is shown");
        }
    }
}

#[tokio::test]
async fn unknown_and_missing_credentials_are_told() {
    let mut server = first_server();
    server.access_key_id = "AKIANOBODY".to_string();
    let err = server.open("unknown key").list(Level::L0).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Unauthenticated, "{}", everything(&err));

    let store = S3Store::open(&server.url("no profile", "&profile=walferry-nobody")).unwrap();
    let err = store.list(Level::L0).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Unauthenticated, "{}", everything(&err));
    assert!(err.message.contains("~/.aws"), "{err}");
}

#[tokio::test]
async fn a_missing_bucket_is_named() {
    for mut server in [first_server(), second_server()] {
        server.bucket = format!("no-such-bucket-{}", std::process::id());
        let store = server.open_path("p", "");
        let mut errors = vec![
            store.list(Level::L0).await.unwrap_err(),
            store.get(key(0, 1), None).await.unwrap_err(),
        ];
        // The first server makes a missing bucket when something is put there.
        if server.endpoint == second_server().endpoint {
            errors.push(store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap_err());
        }
        for err in errors {
            assert_eq!(err.kind, ErrorKind::NoReplica, "{}", everything(&err));
            let words = format!("bucket {} does not exist at http", server.bucket);
            assert!(err.message.contains(&words), "{err}");
        }
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut server = first_server();
    server.endpoint = format!("http://{unused}");
    let err = server.open("p").put_new(key(0, 1), some_bytes(), NOW).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Unavailable, "{}", everything(&err));
    assert!(err.kind.is_transient());
    assert!(err.message.contains(&unused.to_string()), "{err}");
}

#[tokio::test]
async fn foreign_keys_are_passed_over() {
    let server = first_server();
    let store = server.open("foreign");
    store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap();
    // Replicas below this one put their own files at keys that begin like ours.
    for below in ["foreign/0000", "foreign/0000/deep"] {
        server.open(below).put_new(key(0, 7), some_bytes(), NOW).await.unwrap();
    }
    let keys: Vec<_> =
        store.list(Level::L0).await.unwrap().into_iter().map(|file| file.key).collect();
    assert_eq!(keys, [key(0, 1)]);
}

#[tokio::test]
async fn objects_of_a_folder_are_listed_and_read() {
    for server in [first_server(), second_server()] {
        let store = server.open("objects");
        assert_eq!(store.objects("generations").await.unwrap(), []);
        // Replicas below this one put their files at keys of which the folder's are some.
        for below in ["objects/generations/a", "objects/generations/b/c", "objects/generations2"] {
            server.open(below).put_new(key(0, 7), some_bytes(), NOW).await.unwrap();
        }
        let mut objects = store.objects("generations").await.unwrap();
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        let name = "0000/0000000000000007-0000000000000007.ltx";
        let path = format!("generations/b/c/{name}");
        let paths: Vec<&str> = objects.iter().map(|object| object.path.as_str()).collect();
        assert_eq!(paths, [format!("generations/a/{name}").as_str(), &path]);
        assert!(objects.iter().all(|object| object.len == 10 && object.modified > Timestamp(0)));
        assert_eq!(store.object(&path, 0..10).await.unwrap(), &b"some bytes"[..]);
        assert_eq!(store.object(&path, 5..900).await.unwrap(), &b"bytes"[..]);
        assert_eq!(store.object(&path, 5..5).await.unwrap(), &b""[..]);
        store.object(&path, 11..12).await.unwrap_err();
        let err = store.object("generations/c", 0..1).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::NotFound, "{}", everything(&err));
    }
}

#[tokio::test]
async fn customer_keys_are_needed_to_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, [9; 32]).unwrap();
    // The first server repeats a header in its answer, which the SDK refuses.
    let server = second_server();
    let name = format!("sse {}", std::process::id());
    let options = format!("&sse-customer-key-path={}", path.display());
    let encrypted = server.open_path(&name, &options);
    let large = noise(1, 9 << 20);
    for (txid, bytes) in [(1, noise(2, 100)), (2, large)] {
        encrypted.put_new(key(0, txid), Body::Bytes(bytes.clone()), NOW).await.unwrap();
        assert!(encrypted.get(key(0, txid), None).await.unwrap() == bytes);
        assert_eq!(encrypted.get(key(0, txid), Some(5..15)).await.unwrap(), bytes.slice(5..15));
        let err = server.open_path(&name, "").get(key(0, txid), None).await.unwrap_err();
        assert!(matches!(err.kind, ErrorKind::Invalid | ErrorKind::Other), "{err}");
    }
}

#[tokio::test]
async fn objects_are_as_litestream_makes_them() {
    // What the server gets is looked at on the wire, where metadata and headers are all to see.
    let request = what_is_sent(|store| async move {
        store.put_new(key(9, 31), some_bytes(), NOW).await.unwrap();
    });
    let request = request.await;
    assert!(
        request.starts_with("PUT /bucket/some/path/0009/000000000000001f-000000000000001f.ltx"),
        "{request}"
    );
    for header in [
        "x-amz-meta-litestream-timestamp: 2026-11-22T12:48:34.92Z",
        "content-type: application/octet-stream",
        "if-none-match: *",
        "x-amz-storage-class: STANDARD_IA",
        "x-amz-server-side-encryption: aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id: k",
        "x-amz-checksum-crc32: ",
        "content-length: 10",
    ] {
        assert!(
            request.to_ascii_lowercase().contains(&header.to_ascii_lowercase()),
            "{header}: {request}"
        );
    }
}

/// The first request that a call sends, answered with a plain success.
async fn what_is_sent<F: Future<Output = ()>>(call: impl FnOnce(Arc<dyn Store>) -> F) -> String {
    let (endpoint, requests) = answering(|_| answer(200, "")).await;
    let mut server = first_server();
    (server.endpoint, server.bucket) = (endpoint, "bucket".to_string());
    let options = "&storage-class=STANDARD_IA&sse=aws:kms&sse-kms-key-id=k";
    call(server.open_path("some/path", options)).await;
    let requests = requests.lock();
    requests[0].clone()
}

#[tokio::test]
async fn answers_of_strange_servers_are_errors() {
    let list_page = |rest: &str| {
        format!("<ListBucketResult><IsTruncated>true</IsTruncated>{rest}</ListBucketResult>")
    };
    let cases: Vec<(&str, String, ErrorKind)> = vec![
        ("cut off", answer(200, &list_page("")), ErrorKind::Other),
        (
            "endless",
            answer(200, &list_page("<NextContinuationToken>a</NextContinuationToken>")),
            ErrorKind::Other,
        ),
        (
            "no time",
            answer(
                200,
                "<ListBucketResult><Contents><Key>p/0000/0000000000000001-0000000000000001.ltx\
                 </Key><Size>3</Size></Contents></ListBucketResult>",
            ),
            ErrorKind::Other,
        ),
        ("slow down", answer(503, "<Error><Code>SlowDown</Code></Error>"), ErrorKind::Throttled),
        ("busy", answer(500, "<Error><Code>InternalError</Code></Error>"), ErrorKind::Unavailable),
        ("denied", answer(403, "<Error><Code>AccessDenied</Code></Error>"), ErrorKind::Denied),
        (
            "elsewhere",
            answer(301, "<Error><Code>PermanentRedirect</Code></Error>"),
            ErrorKind::Invalid,
        ),
        ("not XML", answer(200, "<html>sign in"), ErrorKind::Unavailable),
    ];
    for (name, answer, kind) in cases {
        let (endpoint, _requests) = answering(move |_| answer.clone()).await;
        let mut server = first_server();
        server.endpoint = endpoint;
        let err = server.open_path("p", "").list(Level::L0).await.unwrap_err();
        assert_eq!(err.kind, kind, "{name}: {}", everything(&err));
    }
}

#[tokio::test]
async fn a_conflict_may_be_repeated_and_a_refused_condition_not() {
    for (status, code, kind) in [
        (409, "ConditionalRequestConflict", ErrorKind::Unavailable),
        (412, "PreconditionFailed", ErrorKind::AlreadyExists),
        (501, "NotImplemented", ErrorKind::Invalid),
    ] {
        let body = format!("<Error><Code>{code}</Code></Error>");
        let (endpoint, requests) = answering(move |_| answer(status, &body)).await;
        let mut server = first_server();
        server.endpoint = endpoint;
        let store = server.open_path("p", "");
        let err = store.put_new(key(0, 1), some_bytes(), NOW).await.unwrap_err();
        assert_eq!(err.kind, kind, "{}", everything(&err));
        if kind == ErrorKind::AlreadyExists {
            assert_eq!(requests.lock().len(), 1);
        }
    }
}

#[tokio::test]
async fn completing_with_an_error_in_the_answer_is_an_error() {
    for (name, body, kind) in [
        ("error", "<Error><Code>InternalError</Code></Error>", ErrorKind::Unavailable),
        ("empty", "", ErrorKind::Unavailable),
        (
            "no etag",
            "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>",
            ErrorKind::Unavailable,
        ),
    ] {
        let (endpoint, requests) = answering(move |request| {
            if request.starts_with("POST") && request.contains("?uploads") {
                answer(
                    200,
                    "<InitiateMultipartUploadResult><UploadId>u</UploadId>\
                     </InitiateMultipartUploadResult>",
                )
            } else if request.starts_with("POST") {
                answer(200, body)
            } else {
                answer(200, "")
            }
        })
        .await;
        let mut server = first_server();
        server.endpoint = endpoint;
        let store = server.open_path("p", "");
        let large = Body::Bytes(noise(1, 9 << 20));
        let err = store.put_new(key(0, 1), large, NOW).await.expect_err(name);
        assert_eq!(err.kind, kind, "{name}: {}", everything(&err));
        let last = requests.lock().last().cloned().unwrap();
        assert!(last.starts_with("DELETE"), "{name}: the upload was not given up: {last}");
    }
}

#[tokio::test]
async fn a_read_that_breaks_off_is_repeated() {
    let (endpoint, requests) = answering({
        let count = std::sync::atomic::AtomicU32::new(0);
        move |_| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome".to_string(),
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome bytes".to_string(),
        }
    })
    .await;
    let mut server = first_server();
    server.endpoint = endpoint;
    let got = server.open_path("p", "").get(key(0, 1), None).await.unwrap();
    assert_eq!(got, &b"some bytes"[..]);
    assert_eq!(requests.lock().len(), 2);
}

/// An answer with an XML body.
fn answer(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nETag: \"e\"\r\nContent-Length: \
         {}\r\n\r\n{body}",
        body.len()
    )
}

type Requests = Arc<parking_lot::Mutex<Vec<String>>>;

/// A server that gives an answer of the test's choice to each request and closes the connection.
async fn answering(choose: impl Fn(&str) -> String + Send + Sync + 'static) -> (String, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Requests::default();
    let (seen, choose) = (Arc::clone(&requests), Arc::new(choose));
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let (seen, choose) = (Arc::clone(&seen), Arc::clone(&choose));
            tokio::spawn(async move { serve(connection, &seen, &*choose).await });
        }
    });
    (endpoint, requests)
}

async fn serve(
    mut connection: TcpStream,
    seen: &Requests,
    choose: &(dyn Fn(&str) -> String + Sync),
) {
    let mut received = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = connection.read(&mut buffer).await else { return };
        received.extend_from_slice(&buffer[..count]);
        let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
        let len = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let len: usize = len.map_or(0, |len| len.parse().unwrap());
        if received.len() >= end + 4 + len {
            break;
        }
    }
    let request = String::from_utf8_lossy(&received).into_owned();
    let reply = choose(&request);
    seen.lock().push(request);
    let _ = connection.write_all(reply.as_bytes()).await;
    let _ = connection.shutdown().await;
}
