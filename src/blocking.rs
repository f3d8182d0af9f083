//! Runs calls that may block on the threads that the runtime has for them.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static ASKS: Cell<bool> = const { Cell::new(false) };
}

/// True while this thread asks the runtime for a thread or a descriptor.
///
/// Tokio panics if the system gives none. `ask` catches that panic, which is not an internal error, so the
/// panic hook does not report it.
pub fn asks_the_system() -> bool {
    ASKS.get()
}

/// Asks the runtime for a thread or a descriptor; `None` if the system gives none.
pub(crate) fn ask<T>(job: impl FnOnce() -> T) -> Option<T> {
    ASKS.set(true);
    let given = catch_unwind(AssertUnwindSafe(job)).ok();
    ASKS.set(false);
    given
}

/// Reason why a blocking call has no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// The system could start no thread: its limit is reached, or the process is just executing another
    /// program. A later call may succeed.
    NoThread,
    /// The runtime ended before the call did.
    GivenUp,
    /// The call panicked.
    Panicked,
}

/// Runs a job on a thread that may block. Needs a Tokio runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Broken> {
    let running = ask(|| tokio::task::spawn_blocking(job)).ok_or(Broken::NoThread)?;
    running.await.map_err(|ended| if ended.is_panic() { Broken::Panicked } else { Broken::GivenUp })
}
