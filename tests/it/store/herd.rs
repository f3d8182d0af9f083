//! Many replicas at one server, and servers that hang or send more than they were asked for. The
//! servers are made here: what matters is what arrives there, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use walferry::store::conformance::key;
use walferry::store::s3::{Credentials, S3Store, Servers};
use walferry::store::{Body, ErrorKind, Store};
use walferry::units::{Level, Timestamp};

const NOW: Timestamp = Timestamp(1_795_351_714_920);
/// As many as one server gets at once.
const REQUESTS_MAX: usize = 16;
/// As many of these as may hang.
const DOUBTFUL_MAX: usize = 4;

fn open(servers: &Servers, endpoint: &str, path: &str) -> S3Store {
    let credentials = Credentials {
        access_key_id: "id".to_string(),
        secret_access_key: "secret".to_string(),
        session_token: None,
    };
    let url = format!("s3://bucket/{path}?endpoint={endpoint}&region=r");
    S3Store::open_shared(&url, Some(credentials), servers).unwrap()
}

/// A server that hands each request's head to `answer` and writes what it gives. Counts connections.
async fn serve<F, A>(answer: F) -> (String, Arc<AtomicUsize>)
where
    F: Fn(String) -> A + Send + Sync + 'static,
    A: Future<Output = String> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (connections, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
    let counted = connections.clone();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let answer = answer.clone();
            tokio::spawn(async move {
                while let Some(head) = request(&mut connection).await {
                    let answer = answer(head).await;
                    if connection.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (endpoint, connections)
}

/// Reads one request; gives its head.
async fn request(connection: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; len.map_or(0, |len| len.parse().unwrap())];
    connection.read_exact(&mut body).await.ok()?;
    Some(head)
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn many_replicas_share_a_few_connections() {
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    // Nothing is answered before as many requests are there as may be at once.
    let go = Arc::new(Semaphore::new(0));
    let (endpoint, connections) = {
        let most = most.clone();
        serve(move |_| {
            let (inside, most, go) = (inside.clone(), most.clone(), go.clone());
            async move {
                let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                if now == REQUESTS_MAX {
                    go.add_permits(1000);
                }
                go.acquire().await.unwrap().forget();
                inside.fetch_sub(1, Ordering::SeqCst);
                answer("200 OK", "bytes")
            }
        })
        .await
    };
    let servers = Servers::limited();
    let mut reads = JoinSet::new();
    for number in 0..200 {
        let store = open(&servers, &endpoint, &format!("db{number}"));
        reads.spawn(async move { store.get(key(0, 1), Some(0..5)).await.unwrap() });
    }
    for bytes in reads.join_all().await {
        assert_eq!(bytes, &b"bytes"[..]);
    }
    assert_eq!(most.load(Ordering::SeqCst), REQUESTS_MAX);
    // One that is being made when another comes free may end up in reserve.
    let connections = connections.load(Ordering::SeqCst);
    assert!(connections <= REQUESTS_MAX * 2, "{connections} connections");
}

/// A server whose requests for the path `dead` are never answered, and how many of these arrived.
async fn half_dead(refuse_first: bool) -> (String, Arc<Arrived>) {
    let arrived = Arc::new(Arrived::default());
    let seen = arrived.clone();
    let (endpoint, _) = serve(move |head| {
        let seen = seen.clone();
        async move {
            if !head.contains("/dead") {
                return answer("200 OK", "bytes");
            }
            if refuse_first && head.starts_with("put ") {
                // Not repeated by the client: it is to come back later.
                return "HTTP/1.1 500 X\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n"
                    .to_string();
            }
            seen.count.fetch_add(1, Ordering::SeqCst);
            seen.changed.notify_one();
            std::future::pending().await
        }
    })
    .await;
    (endpoint, arrived)
}

#[derive(Default)]
struct Arrived {
    count: AtomicUsize,
    changed: Notify,
}

impl Arrived {
    async fn reaches(&self, count: usize) {
        while self.count.load(Ordering::SeqCst) < count {
            self.changed.notified().await;
        }
    }
}

#[tokio::test]
async fn a_server_that_hangs_takes_no_place_at_another() {
    let (dead, arrived) = half_dead(false).await;
    let (alive, _) = half_dead(false).await;
    let servers = Servers::limited();
    let mut hanging = JoinSet::new();
    for number in 0..40 {
        let store = open(&servers, &dead, &format!("dead{number}"));
        hanging.spawn(async move { store.get(key(0, 1), Some(0..5)).await });
    }
    arrived.reaches(REQUESTS_MAX).await;
    let store = open(&servers, &alive, "alive");
    for _ in 0..100 {
        tokio::select! {
            read = store.get(key(0, 1), Some(0..5)) => drop(read.unwrap()),
            ended = hanging.join_next() => panic!("it waited for one that hangs: {ended:?}"),
        }
    }
    assert_eq!(arrived.count.load(Ordering::SeqCst), REQUESTS_MAX);
}

#[tokio::test]
async fn replicas_that_hang_leave_places_to_others_of_their_server() {
    let (endpoint, arrived) = half_dead(true).await;
    let servers = Servers::limited();
    let mut hanging = JoinSet::new();
    for number in 0..40 {
        let store = open(&servers, &endpoint, &format!("dead{number}"));
        // After one failure they are no longer trusted to answer.
        let body = Body::Bytes(Bytes::from_static(b"x"));
        let error = store.put_new(key(0, 1), body, NOW).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        hanging.spawn(async move { store.get(key(0, 1), Some(0..5)).await });
    }
    arrived.reaches(DOUBTFUL_MAX).await;
    let store = open(&servers, &endpoint, "alive");
    for _ in 0..100 {
        tokio::select! {
            read = store.get(key(0, 1), Some(0..5)) => drop(read.unwrap()),
            ended = hanging.join_next() => panic!("it waited for one that hangs: {ended:?}"),
        }
    }
    assert_eq!(arrived.count.load(Ordering::SeqCst), DOUBTFUL_MAX);
}

#[tokio::test]
async fn the_programs_own_replica_is_not_limited() {
    let (endpoint, arrived) = half_dead(false).await;
    let store = open(&Servers::default(), &endpoint, "dead");
    let mut reads = JoinSet::new();
    for _ in 0..REQUESTS_MAX * 2 {
        let store = store.clone();
        reads.spawn(async move { store.get(key(0, 1), Some(0..5)).await });
    }
    arrived.reaches(REQUESTS_MAX * 2).await;
}

/// What a server sends that does not stop; it stops here, so that a client that takes it all in is
/// seen and does not fill the memory of the machine.
const ENDLESS: usize = 96 << 20;

/// A server that begins each answer like this and goes on for ever. Gives the most bytes that it got
/// rid of in one answer.
async fn endless(head: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let most = Arc::new(AtomicUsize::new(0));
    let most_sent = most.clone();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let most_sent = most_sent.clone();
            tokio::spawn(async move {
                if request(&mut connection).await.is_none()
                    || connection.write_all(head.as_bytes()).await.is_err()
                {
                    return;
                }
                let chunked = head.contains("chunked");
                let piece = vec![b'x'; 64 << 10];
                let mut sent = 0;
                while sent < ENDLESS {
                    let mut bytes = piece.clone();
                    if chunked {
                        bytes = [b"10000\r\n", &bytes[..], b"\r\n"].concat();
                    }
                    if connection.write_all(&bytes).await.is_err() {
                        return;
                    }
                    sent += piece.len();
                    most_sent.fetch_max(sent, Ordering::SeqCst);
                }
            });
        }
    });
    (endpoint, most)
}

#[tokio::test]
async fn no_more_is_taken_in_than_was_asked_for() {
    const CHUNKED: &str = "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n";
    const PART: &str = "HTTP/1.1 206 X\r\nTransfer-Encoding: chunked\r\n\r\n";
    const LONG: &str = "HTTP/1.1 206 X\r\nContent-Length: 4611686018427387904\r\n\r\n";
    const ERROR: &str = "HTTP/1.1 404 X\r\nTransfer-Encoding: chunked\r\n\r\n";
    const LIST: &str = "HTTP/1.1 200 X\r\nContent-Type: application/xml\r\nTransfer-Encoding: chunked\
                        \r\n\r\n1b\r\n<ListBucketResult><Prefix>\n\r\n";
    for head in [CHUNKED, PART, LONG, ERROR] {
        let (endpoint, sent) = endless(head).await;
        let store = open(&Servers::limited(), &endpoint, "p");
        for range in [0..10, 100..100_000] {
            let error = store.get(key(0, 1), Some(range)).await.unwrap_err();
            if head != ERROR {
                assert_eq!(error.kind, ErrorKind::Invalid, "{head}: {error}");
                assert!(error.message.contains("more than the range"), "{error}");
            }
        }
        taken_in(&sent, head);
    }
    for head in [LIST, ERROR] {
        let (endpoint, sent) = endless(head).await;
        open(&Servers::limited(), &endpoint, "p").list(Level::L0).await.unwrap_err();
        taken_in(&sent, head);
    }
    for head in [CHUNKED, ERROR] {
        let (endpoint, sent) = endless(head).await;
        let store = open(&Servers::limited(), &endpoint, "p");
        let body = Body::Bytes(Bytes::from_static(b"x"));
        store.put_new(key(0, 1), body, NOW).await.unwrap_err();
        taken_in(&sent, head);
        let _ = store.delete(key(0, 1)).await;
        taken_in(&sent, head);
    }
    let (endpoint, sent) = endless(LONG).await;
    let error = open(&Servers::limited(), &endpoint, "p").get(key(0, 1), None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    taken_in(&sent, LONG);
}

/// Some megabytes are on the way in sockets.
fn taken_in(sent: &AtomicUsize, head: &str) {
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent < ENDLESS / 2, "{head}: {sent} bytes were taken in");
}
