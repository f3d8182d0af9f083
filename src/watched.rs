//! State of which threads wait for news.
//!
//! Its lock and condition variable are the standard library's. parking_lot keeps the threads that
//! wait in a table of the process. The child of a fork inherits that table without the threads, and
//! gives their memory to threads of its own.

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

    /// Locks the state, also after a panic of a thread that had it locked.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all threads that wait for news.
    pub(crate) fn notify_all(&self) {
        self.news.notify_all();
    }

    /// Waits for news without the lock. False once the deadline has passed.
    pub(crate) fn wait_until<'a>(
        &self,
        state: MutexGuard<'a, T>,
        deadline: Instant,
    ) -> (MutexGuard<'a, T>, bool) {
        self.wait_for(state, deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits for news without the lock. False after this time without any.
    pub(crate) fn wait_for<'a>(
        &self,
        state: MutexGuard<'a, T>,
        time: Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        let (state, end) =
            self.news.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
        (state, !end.timed_out())
    }

    /// Waits for news without the lock, however long that takes.
    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.news.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}
