//! Shared parts of one process's replicas: a connector, a client for each way to sign in, and a limit of
//! requests to each server at once.
//!
//! All of them belong to the runtime that uses them first. A child of a fork has its own [`Servers`], and
//! never writes to the parent's sockets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::SharedHttpClient;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::access::Access;
use super::settings::Settings;
use super::{Credentials, client};

/// Most requests, and so connections, to one server at once, for all replicas that share it.
const REQUESTS_MAX: usize = 16;
/// Most of these requests for replicas whose last request failed as unavailable. Requests that hang leave the
/// rest to healthy replicas.
const DOUBTFUL_MAX: usize = 4;
/// Shortest time between two lookups of refused credentials, for all replicas that share them.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(1);
/// From this number of known ways to sign in on, those that no replica uses are dropped. Servers too.
const UNUSED_MAX: usize = 16;

/// The servers that the replicas of one process talk to.
#[derive(Default)]
pub struct Servers {
    limited: bool,
    http: Arc<OnceLock<SharedHttpClient>>,
    known: Mutex<HashMap<Access, Arc<Server>>>,
    gates: Mutex<HashMap<String, Arc<Gate>>>,
}

impl Servers {
    /// Returns servers for many replicas that are written at the same time: at most [`REQUESTS_MAX`] requests
    /// at once to each server. Without this limit (the default), the caller limits the requests.
    pub fn limited() -> Servers {
        Servers { limited: true, ..Servers::default() }
    }

    /// Returns the server of these settings, shared with replicas that reach it in the same way. `name`
    /// identifies the server for the limit of requests, whatever the way.
    pub(super) fn server(
        &self,
        name: &str,
        settings: &Settings,
        credentials: Option<Credentials>,
    ) -> Arc<Server> {
        let access = Access::new(settings, credentials);
        let mut known = self.known.lock();
        if let Some(server) = known.get(&access) {
            return server.clone();
        }
        if known.len() >= UNUSED_MAX {
            known.retain(|_, server| Arc::strong_count(server) > 1);
        }
        let server = Arc::new(Server {
            access: access.clone(),
            http: self.http.clone(),
            gate: self.gate(name),
            made: tokio::sync::Mutex::new(None),
            refused: AtomicBool::new(false),
        });
        known.insert(access, server.clone());
        server
    }

    fn gate(&self, name: &str) -> Arc<Gate> {
        let mut gates = self.gates.lock();
        if gates.len() >= UNUSED_MAX {
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        gates.entry(name.to_string()).or_insert_with(|| Arc::new(Gate::new(self.limited))).clone()
    }
}

/// A server and the way to sign in there.
pub(super) struct Server {
    access: Access,
    http: Arc<OnceLock<SharedHttpClient>>,
    gate: Arc<Gate>,
    /// One task makes the client, and the others wait for it.
    made: tokio::sync::Mutex<Option<Made>>,
    refused: AtomicBool,
}

struct Made {
    client: Client,
    at: Instant,
}

impl Server {
    /// Returns the client. Makes it for the first request, and again after the server refused the
    /// credentials.
    pub(super) async fn client(&self) -> Client {
        let mut made = self.made.lock().await;
        if let Some(Made { client, at }) = &*made
            && (!self.refused.load(Ordering::Relaxed) || at.elapsed() < LOOKUP_INTERVAL)
        {
            return client.clone();
        }
        self.refused.store(false, Ordering::Relaxed);
        let http = self.http.get_or_init(client::connector).clone();
        let client = client::build(&self.access, http).await;
        *made = Some(Made { client: client.clone(), at: Instant::now() });
        client
    }

    /// Records that the server refused the credentials. New credentials may exist by now: files and roles are
    /// renewed while the process lives.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// Waits for a pass to send a request. `doubtful` is true if the replica's last request failed as
    /// unavailable. First come, first served.
    pub(super) async fn enter(&self, doubtful: bool) -> Pass {
        self.gate.enter(doubtful).await
    }
}

/// Limits of the requests under way.
struct Gate {
    requests: Arc<Semaphore>,
    doubtful: Arc<Semaphore>,
}

/// Right to send a request to the server; given back when dropped.
pub(super) struct Pass {
    _doubtful: Option<OwnedSemaphorePermit>,
    _request: Option<OwnedSemaphorePermit>,
}

impl Gate {
    fn new(limited: bool) -> Gate {
        let places = |most| Arc::new(Semaphore::new(if limited { most } else { UNLIMITED }));
        Gate { requests: places(REQUESTS_MAX), doubtful: places(DOUBTFUL_MAX) }
    }

    async fn enter(&self, doubtful: bool) -> Pass {
        // These semaphores are never closed. A doubtful request waits before it takes a place that others
        // could use.
        let doubtful =
            if doubtful { self.doubtful.clone().acquire_owned().await.ok() } else { None };
        Pass { _doubtful: doubtful, _request: self.requests.clone().acquire_owned().await.ok() }
    }
}

const UNLIMITED: usize = Semaphore::MAX_PERMITS;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        Settings::parse(url, &crate::store::Access::default(), |_| None).unwrap()
    }

    #[test]
    fn replicas_share_what_is_the_same() {
        let servers = Servers::limited();
        let open = |url: &str| servers.server("one", &settings(url), None);
        let first = open("s3://b/p?endpoint=http://h");
        assert!(Arc::ptr_eq(&first, &open("s3://other/q?endpoint=http://h&part-size=5MiB")));
        for other in [
            "s3://b/p?endpoint=http://g",
            "s3://b/p?endpoint=http://h&region=r",
            "s3://b/p?endpoint=http://h&profile=p",
            "s3://b/p?endpoint=http://h&force-path-style=false",
        ] {
            let other = open(other);
            assert!(!Arc::ptr_eq(&first, &other));
            assert!(Arc::ptr_eq(&first.gate, &other.gate) && Arc::ptr_eq(&first.http, &other.http));
        }
        let key = |key: &str| Credentials {
            access_key_id: key.to_string(),
            secret_access_key: "s".to_string(),
            session_token: None,
        };
        let given = |id| servers.server("one", &settings("s3://b/p"), Some(key(id)));
        assert!(Arc::ptr_eq(&given("a"), &given("a")) && !Arc::ptr_eq(&given("a"), &given("b")));
    }

    #[test]
    fn what_nobody_uses_is_not_kept_without_end() {
        let servers = Servers::limited();
        let kept = servers.server("kept", &settings("s3://b/p?region=kept"), None);
        for number in 0..100 {
            let url = format!("s3://b/p?region=r{number}");
            servers.server(&number.to_string(), &settings(&url), None);
        }
        assert!(servers.known.lock().len() <= UNUSED_MAX + 1);
        assert!(servers.gates.lock().len() <= UNUSED_MAX + 1);
        let again = servers.server("kept", &settings("s3://b/p?region=kept"), None);
        assert!(Arc::ptr_eq(&kept, &again) && Arc::ptr_eq(&kept.gate, &again.gate));
    }

    #[tokio::test]
    async fn what_hangs_takes_few_places() {
        let gate = Gate::new(true);
        let mut hanging = Vec::new();
        for _ in 0..DOUBTFUL_MAX {
            hanging.push(gate.enter(true).await);
        }
        {
            let mut next = Box::pin(gate.enter(true));
            assert!(futures_poll(&mut next).await.is_none(), "too many doubtful");
            let mut well = Vec::new();
            for _ in 0..REQUESTS_MAX - DOUBTFUL_MAX {
                well.push(gate.enter(false).await);
            }
            let mut full = Box::pin(gate.enter(false));
            assert!(futures_poll(&mut full).await.is_none(), "more than the most");
            well.pop();
            full.await;
        }
        hanging.pop();
        gate.enter(true).await;
    }

    /// Polls a future once.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            let polled = std::pin::Pin::new(&mut *future).poll(context);
            std::task::Poll::Ready(match polled {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
