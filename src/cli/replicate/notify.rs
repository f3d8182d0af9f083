//! Telling the service manager how things stand (`sd_notify(3)`): datagrams to the socket that
//! `NOTIFY_SOCKET` names.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How much longer it is asked to wait each time, and how often.
const LONGER: Duration = Duration::from_mins(1);
const ASK: Duration = Duration::from_secs(20);

/// The service manager, if there is one that wants to know.
pub(super) struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants a sign of life, at the latest.
    pub(super) watchdog: Option<Duration>,
}

impl Manager {
    /// As the environment says.
    pub(super) fn of_environment() -> Manager {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let bytes = name.as_bytes();
            let address = match bytes.split_first() {
                Some((b'@', name)) => SocketAddr::from_abstract_name(name),
                _ => SocketAddr::from_pathname(&name),
            };
            Some((UnixDatagram::unbound().ok()?, address.ok()?))
        });
        let variable = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let mine = variable("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = variable("WATCHDOG_USEC").filter(|usec| mine && *usec > 0);
        Manager { socket, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// Tells it something; nobody to hear it is no error.
    pub(super) fn tell(&self, state: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }

    /// Does what comes before `READY=1` and may take long. The time that a unit has to start ends
    /// it otherwise, again and again.
    pub(super) fn ask_for_time_during<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.socket.is_none() {
            return work();
        }
        let (working, done) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let asks = std::thread::Builder::new().name("notify".into());
            let asks = asks.spawn_scoped(scope, move || {
                loop {
                    self.tell(&format!("EXTEND_TIMEOUT_USEC={}", LONGER.as_micros()));
                    if done.recv_timeout(ASK) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            });
            if let Err(error) = asks {
                log::debug!("the service manager is not asked for time: {error}");
            }
            let result = work();
            drop(working);
            result
        })
    }
}
