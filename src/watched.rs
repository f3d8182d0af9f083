//! State with news that threads wait for.
//!
//! The lock and the condition variable are the standard library's. parking_lot keeps the waiting threads in a
//! table of the process. The child of a fork inherits that table without the threads, and gives their memory
//! to threads of its own.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// State behind a lock, with news that threads can wait for.
#[derive(Default)]
pub(crate) struct Watched<T> {
    state: Mutex<T>,
    news: Condvar,
}

impl<T> Watched<T> {
    pub(crate) const fn new(state: T) -> Watched<T> {
        Watched { state: Mutex::new(state), news: Condvar::new() }
    }

    /// Locks the state, even after a thread panicked while it held the lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all threads that wait for news.
    pub(crate) fn notify_all(&self) {
        self.news.notify_all();
    }

    /// Waits for news, and gives the lock back meanwhile. `false` once the deadline has passed.
    pub(crate) fn wait_until<'a>(
        &self,
        state: MutexGuard<'a, T>,
        deadline: Instant,
    ) -> (MutexGuard<'a, T>, bool) {
        self.wait_for(state, deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits for news, and gives the lock back meanwhile. `false` after this time without news.
    pub(crate) fn wait_for<'a>(
        &self,
        state: MutexGuard<'a, T>,
        time: Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        let (state, end) =
            self.news.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
        (state, !end.timed_out())
    }

    /// Waits for news without a limit, and gives the lock back meanwhile.
    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.news.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}
