//! Calls that may block, on the runtime's threads for them.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static ASKS: Cell<bool> = const { Cell::new(false) };
}

/// True while this thread asks the runtime for one. Tokio panics where none can be started and none is
/// there; that is caught, and is no internal error for a panic hook to tell.
pub fn is_asked_for_a_thread() -> bool {
    ASKS.get()
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// No thread could be started: the system's limit is reached, or the process just executes
    /// another program. Later there may be one.
    NoThread,
    /// The call was given up, as the runtime ends, or panicked.
    GivenUp,
}

/// Runs a job where it may block. Needs a Tokio runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Broken> {
    ASKS.set(true);
    let started = catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_blocking(job)));
    ASKS.set(false);
    let running = started.map_err(|_| Broken::NoThread)?;
    running.await.map_err(|_| Broken::GivenUp)
}
