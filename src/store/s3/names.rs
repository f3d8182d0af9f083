//! Looks up the names of servers, on threads of its own.
//!
//! The system's call may take half a minute if no name server answers, and cannot be cancelled. On the
//! runtime's threads for blocking calls, a few such lookups would delay all work on files, even for
//! replicas that need no names. Here each name has one lookup at a time, for any number of waiting
//! requests. All lookups together have [`LOOKUPS_MAX`] threads.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;

use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Most lookups at once, and so threads.
const LOOKUPS_MAX: usize = 8;
/// Most of these lookups for names whose last lookup failed. Names without an answer leave the rest to other
/// names.
const DOUBTFUL_MAX: usize = 4;
/// Most names that are remembered as failed.
const FAILED_MAX: usize = 256;

/// The system's call, or a test's.
type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;
/// Result of a lookup, for all requests that wait for it.
type Found = Result<Vec<IpAddr>, Failed>;

/// The resolver of one process's stores.
#[derive(Clone)]
pub(super) struct Names(Arc<Inner>);

struct Inner {
    look_up: Box<LookUp>,
    places: Arc<Semaphore>,
    doubtful: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names that are being looked up.
    running: HashMap<String, watch::Receiver<Option<Found>>>,
    /// Names whose last lookup failed.
    failed: HashSet<String>,
}

/// Why a name has no address.
#[derive(Clone, Debug)]
struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// Right to run a lookup; given back when dropped.
struct Place {
    _doubtful: Option<OwnedSemaphorePermit>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Names {
    /// Returns a resolver that asks the system.
    pub(super) fn of_system() -> Names {
        Names::with(|name| Ok((name, 0).to_socket_addrs()?.map(|found| found.ip()).collect()))
    }

    fn with(look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Names {
        Names(Arc::new(Inner {
            look_up: Box::new(look_up),
            places: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            doubtful: Arc::new(Semaphore::new(DOUBTFUL_MAX)),
            state: Mutex::default(),
        }))
    }

    /// Waits for the addresses of a name. If the request is cancelled, the lookup goes on for later requests.
    async fn find(&self, name: &str) -> Found {
        let mut running = match self.running(name) {
            Some(running) => running,
            None => {
                let place = self.enter(name).await;
                self.begin(name, place)?
            }
        };
        match running.wait_for(Option::is_some).await.map(|found| found.clone()) {
            Ok(Some(found)) => found,
            Ok(None) | Err(_) => Err(Failed("the lookup broke off".to_string())),
        }
    }

    fn running(&self, name: &str) -> Option<watch::Receiver<Option<Found>>> {
        self.0.state.lock().running.get(name).cloned()
    }

    /// Waits for a place; first come, first served.
    async fn enter(&self, name: &str) -> Place {
        let failed = self.0.state.lock().failed.contains(name);
        // These semaphores are never closed. A doubtful name waits before it takes a place that others could
        // use.
        let doubtful =
            if failed { self.0.doubtful.clone().acquire_owned().await.ok() } else { None };
        Place { _doubtful: doubtful, _place: self.0.places.clone().acquire_owned().await.ok() }
    }

    /// Starts a lookup, unless another lookup of this name runs by now.
    fn begin(&self, name: &str, place: Place) -> Result<watch::Receiver<Option<Found>>, Failed> {
        let mut state = self.0.state.lock();
        if let Some(running) = state.running.get(name) {
            return Ok(running.clone());
        }
        let (tell, told) = watch::channel(None);
        let mut lookup =
            Lookup { names: self.clone(), name: name.to_string(), tell, _place: Some(place) };
        state.running.insert(name.to_string(), told.clone());
        drop(state);
        let thread = std::thread::Builder::new().name("walferry-names".to_string());
        thread.spawn(move || lookup.run()).map_err(|error| {
            Failed(format!("the system gives no thread to look up a name with: {error}"))
        })?;
        Ok(told)
    }
}

impl ResolveDns for Names {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move { self.find(name).await.map_err(ResolveDnsError::new) })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

/// A lookup under way. Dropping it removes the name from the running lookups, also if its thread did not
/// start or panicked.
struct Lookup {
    names: Names,
    name: String,
    tell: watch::Sender<Option<Found>>,
    _place: Option<Place>,
}

impl Lookup {
    fn run(&mut self) {
        let found = (self.names.0.look_up)(&self.name).map_err(|error| Failed(error.to_string()));
        let mut state = self.names.0.state.lock();
        if found.is_ok() {
            state.failed.remove(&self.name);
        } else {
            if state.failed.len() >= FAILED_MAX {
                state.failed.clear();
            }
            state.failed.insert(self.name.clone());
        }
        drop(state);
        self.tell.send_replace(Some(found));
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.names.0.state.lock().running.remove(&self.name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::watched::Watched;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Name servers. Lookups of names that begin with `dead` hang until told to answer, and then fail.
    #[derive(Default)]
    struct Servers {
        answer: Watched<bool>,
        asked: AtomicUsize,
        hanging: AtomicUsize,
    }

    impl Servers {
        fn names(self: &Arc<Servers>) -> Names {
            let servers = self.clone();
            Names::with(move |name| {
                servers.asked.fetch_add(1, Ordering::SeqCst);
                if !name.starts_with("dead") {
                    return Ok(vec![HERE]);
                }
                servers.hanging.fetch_add(1, Ordering::SeqCst);
                let mut answer = servers.answer.lock();
                while !*answer {
                    answer = servers.answer.wait(answer);
                }
                servers.hanging.fetch_sub(1, Ordering::SeqCst);
                Err(io::Error::other("no server answers"))
            })
        }

        fn answer(&self, answer: bool) {
            *self.answer.lock() = answer;
            self.answer.notify_all();
        }

        fn hanging(&self) -> usize {
            self.hanging.load(Ordering::SeqCst)
        }

        /// Waits until this many lookups hang.
        async fn until(&self, hanging: usize) {
            while self.hanging() != hanging {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn ask(names: &Names, name: impl Into<String>) -> tokio::task::JoinHandle<Found> {
        let (names, name) = (names.clone(), name.into());
        tokio::spawn(async move { names.find(&name).await })
    }

    fn on_runtime(test: impl Future<Output = ()>) {
        // Like the uploader's runtime, with the fewest threads for blocking calls.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn lookups_that_hang_take_no_thread_that_files_need() {
        on_runtime(async {
            let servers = Arc::<Servers>::default();
            let names = servers.names();
            let waiting: Vec<_> = (0..5).map(|n| ask(&names, format!("dead{n}"))).collect();
            servers.until(5).await;
            assert_eq!(crate::blocking::blocking(|| 7).await, Ok(7));
            assert_eq!(names.find("well").await.unwrap(), [HERE]);
            servers.answer(true);
            for waits in waiting {
                assert_eq!(waits.await.unwrap().unwrap_err().0, "no server answers");
            }
        });
    }

    #[test]
    fn a_name_has_one_lookup_whoever_gives_up_waiting() {
        on_runtime(async {
            let servers = Arc::<Servers>::default();
            let names = servers.names();
            for _ in 0..50 {
                let waits = ask(&names, "dead");
                servers.until(1).await;
                waits.abort();
                assert!(waits.await.unwrap_err().is_cancelled());
            }
            assert_eq!(servers.asked.load(Ordering::SeqCst), 1);
            let last = ask(&names, "dead");
            tokio::task::yield_now().await;
            servers.answer(true);
            last.await.unwrap().unwrap_err();
            servers.until(0).await;
            assert!(names.0.state.lock().running.len() <= 1);
        });
    }

    #[test]
    fn names_that_nobody_answers_for_leave_places_to_the_others() {
        on_runtime(async {
            let servers = Arc::<Servers>::default();
            let names = servers.names();
            let dead = || (0..20).map(|n| ask(&names, format!("dead{n}"))).collect::<Vec<_>>();
            let first = dead();
            servers.until(LOOKUPS_MAX).await;
            servers.answer(true);
            for waits in first {
                waits.await.unwrap().unwrap_err();
            }
            servers.until(0).await;
            servers.answer(false);
            let again = dead();
            servers.until(DOUBTFUL_MAX).await;
            assert_eq!(names.find("well").await.unwrap(), [HERE]);
            assert_eq!(servers.hanging(), DOUBTFUL_MAX);
            servers.answer(true);
            for waits in again {
                waits.await.unwrap().unwrap_err();
            }
        });
    }

    #[test]
    fn the_system_knows_this_machine() {
        on_runtime(async {
            let found = Names::of_system().find("localhost").await.unwrap();
            assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty(), "{found:?}");
        });
    }
}
