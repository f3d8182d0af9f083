//! Counts walferry's threads in the host's SQLite, and the forks that lead to this process.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use walferry::withheld::{Deadline, Withheld};

use crate::{alive, api};

/// Threads of walferry in the host's SQLite. If the process forked during their calls, the child would find
/// SQLite's mutexes locked for ever. A lock of the standard library, since it is held across a fork.
static IN_SQLITE: Mutex<Threads> = Mutex::new(Threads { inside: 0, waiting: 0 });
static CHANGED: Condvar = Condvar::new();
/// Number of forks between the process that loaded the extension and this one.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// See [`is_cut_off`].
static IS_CUT_OFF: AtomicBool = AtomicBool::new(false);

/// Interval at which a waiting thread looks again whether others are inside.
const NEXT_LOOK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Threads {
    /// Number of walferry's threads inside.
    inside: usize,
    /// Number of threads that wait until none is inside. No other thread enters meanwhile.
    waiting: usize,
}

thread_local! {
    /// Number of times that this thread has entered and not left.
    static ENTERED: Cell<u32> = const { Cell::new(0) };
}

/// Keeps a thread of walferry counted as inside until dropped.
pub struct Inside {
    // Dropped first: the host gets the thread's log lines after the thread has left.
    _counted: Counted,
    _reason: Withheld,
}

/// The entry of a thread, counted until dropped. Not `Send`, since the same thread must drop it.
struct Counted(PhantomData<*const ()>);

impl Drop for Counted {
    fn drop(&mut self) {
        ENTERED.set(ENTERED.get().saturating_sub(1));
        let mut threads = IN_SQLITE.lock().unwrap_or_else(PoisonError::into_inner);
        threads.inside = threads.inside.saturating_sub(1);
        if threads.waiting > 0 {
            CHANGED.notify_all();
        }
    }
}

/// Enters the host's SQLite with a thread of walferry. `None` if the application has shut SQLite down.
pub fn in_sqlite() -> Option<Inside> {
    let inside = enter();
    alive::may_call().then_some(inside)
}

/// Counts the thread as inside. A thread that is inside already enters at once: the waiting threads wait for
/// it to leave.
fn enter() -> Inside {
    let reason = Withheld::new();
    let threads = IN_SQLITE.lock().unwrap_or_else(PoisonError::into_inner);
    let is_inside = ENTERED.get() > 0;
    let threads = CHANGED.wait_while(threads, |threads| threads.waiting > 0 && !is_inside);
    threads.unwrap_or_else(PoisonError::into_inner).inside += 1;
    ENTERED.set(ENTERED.get() + 1);
    Inside { _counted: Counted(PhantomData), _reason: reason }
}

/// Returns the error of work that needs the host's SQLite.
pub fn shut_down() -> io::Error {
    io::Error::other(
        "the application has shut SQLite down (sqlite3_shutdown); it goes on once the database is opened again",
    )
}

/// Returns the number of forks between the process that loaded the extension and this one.
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Keeps walferry's threads out of the host's SQLite until dropped.
pub struct Outside {
    threads: MutexGuard<'static, Threads>,
    _reason: Withheld,
}

impl Outside {
    /// Forgets the threads of the parent, which do not exist in the child.
    pub fn in_child(&mut self) {
        *self.threads = Threads::default();
    }
}

/// Waits until no thread of walferry is in the host's SQLite, and keeps them out.
pub fn outside() -> Outside {
    loop {
        if let Some(outside) = outside_until(Deadline::after(Duration::from_mins(1))) {
            return outside;
        }
    }
}

/// Does the same as [`outside`], if the threads leave in time. Interrupts checkpoints of walferry.
pub fn outside_until(deadline: Deadline) -> Option<Outside> {
    let reason = Withheld::new();
    let mut threads = deadline.poll(|| IN_SQLITE.try_lock())?;
    threads.waiting += 1;
    while threads.inside > 0 && !deadline.left().is_zero() {
        // Repeated, since a checkpoint that has not begun yet is not interrupted.
        api::interrupt_checkpoints();
        let wait = deadline.left().min(NEXT_LOOK);
        let waited = CHANGED.wait_timeout_while(threads, wait, |threads| threads.inside > 0);
        (threads, _) = waited.unwrap_or_else(PoisonError::into_inner);
    }
    threads.waiting -= 1;
    // Threads enter again when this lock is given back.
    CHANGED.notify_all();
    (threads.inside == 0).then_some(Outside { threads, _reason: reason })
}

/// Notes that this process is the child of a fork.
pub fn next_generation() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// True in the child of a fork that did not wait for everything under way. walferry's locks may be locked for
/// ever, and SQLite may have notes of file locks that the child does not hold. Such a child opens no database
/// that the parent replicates, nor one that is to be replicated.
pub fn is_cut_off() -> bool {
    IS_CUT_OFF.load(Ordering::Relaxed)
}

/// Notes that this process is the child of such a fork.
pub fn cut_off() {
    IS_CUT_OFF.store(true, Ordering::Relaxed);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_is_inside_enters_again_while_a_fork_waits_for_it() {
        let outer = enter();
        let forks =
            std::thread::spawn(|| outside_until(Deadline::after(Duration::from_mins(1))).is_some());
        while IN_SQLITE.lock().unwrap().waiting == 0 {
            std::thread::yield_now();
        }
        drop(enter());
        drop(outer);
        assert!(forks.join().unwrap());
    }
}
