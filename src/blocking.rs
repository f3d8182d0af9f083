//! Calls that may block, on the runtime's threads for them.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static ASKS: Cell<bool> = const { Cell::new(false) };
}

/// True while this thread asks the runtime for what the system may not give. Tokio panics where it does
/// not; that is caught, and is no internal error for a panic hook to tell.
pub fn asks_the_system() -> bool {
    ASKS.get()
}

/// Asks the runtime for a thread or a descriptor; `None` where the system gives none.
pub(crate) fn ask<T>(job: impl FnOnce() -> T) -> Option<T> {
    ASKS.set(true);
    let given = catch_unwind(AssertUnwindSafe(job)).ok();
    ASKS.set(false);
    given
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// No thread could be started: the system's limit is reached, or the process just executes
    /// another program. Later there may be one.
    NoThread,
    /// The call was given up, as the runtime ends.
    GivenUp,
    /// The call panicked.
    Panicked,
}

/// Runs a job where it may block. Needs a Tokio runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Broken> {
    let running = ask(|| tokio::task::spawn_blocking(job)).ok_or(Broken::NoThread)?;
    running.await.map_err(|ended| if ended.is_panic() { Broken::Panicked } else { Broken::GivenUp })
}
