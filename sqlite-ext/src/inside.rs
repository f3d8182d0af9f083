//! Being inside the host's SQLite, in this process and not in the child of another.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use walferry::withheld::{Deadline, Withheld};

use crate::{alive, api};

/// Threads of ours in the host's SQLite. The child of a fork that happened in the middle of SQLite would find its
/// mutexes locked for ever. Of the standard library's kind, as it is locked across a fork.
static IN_SQLITE: Mutex<Threads> = Mutex::new(Threads { inside: 0, waiting: 0 });
static CHANGED: Condvar = Condvar::new();
/// How many forks lie between this process and the one that loaded the extension.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// See [`is_cut_off`].
static IS_CUT_OFF: AtomicBool = AtomicBool::new(false);

/// A thread that waits looks again after so long whether others are inside.
const NEXT_LOOK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Threads {
    /// Threads of ours that are inside.
    inside: usize,
    /// Those that wait until none is: nobody enters meanwhile.
    waiting: usize,
}

thread_local! {
    /// How often this thread has entered without having left.
    static ENTERED: Cell<u32> = const { Cell::new(0) };
}

/// A thread of ours is inside, until this is dropped.
pub struct Inside {
    // What the thread logs is given to the host behind it.
    _counted: Counted,
    _reason: Withheld,
}

/// A thread's entry, counted until it is dropped; by the same thread, so it is not `Send`.
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

/// Enters the host's SQLite, as a thread of ours. `None` where the application has shut it down.
pub fn in_sqlite() -> Option<Inside> {
    let inside = enter();
    alive::may_call().then_some(inside)
}

/// A thread that is inside already does not wait for those who wait for it.
fn enter() -> Inside {
    let reason = Withheld::new();
    let threads = IN_SQLITE.lock().unwrap_or_else(PoisonError::into_inner);
    let is_inside = ENTERED.get() > 0;
    let threads = CHANGED.wait_while(threads, |threads| threads.waiting > 0 && !is_inside);
    threads.unwrap_or_else(PoisonError::into_inner).inside += 1;
    ENTERED.set(ENTERED.get() + 1);
    Inside { _counted: Counted(PhantomData), _reason: reason }
}

/// The error of work that needs the host's SQLite.
pub fn shut_down() -> io::Error {
    io::Error::other(
        "the application has shut SQLite down (sqlite3_shutdown); it goes on once the database is opened again",
    )
}

/// The number of this process in the line of forks.
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// None of our threads is inside, or enters, until this is dropped.
pub struct Outside {
    threads: MutexGuard<'static, Threads>,
    _reason: Withheld,
}

impl Outside {
    /// Forgets the threads of the parent, which the child of a fork does not have.
    pub fn in_child(&mut self) {
        *self.threads = Threads::default();
    }
}

/// Waits until none of our threads is in the host's SQLite, and keeps them out.
pub fn outside() -> Outside {
    loop {
        if let Some(outside) = outside_until(Deadline::after(Duration::from_mins(1))) {
            return outside;
        }
    }
}

/// The same, if they leave it in time. A checkpoint of ours ends before its time.
pub fn outside_until(deadline: Deadline) -> Option<Outside> {
    let reason = Withheld::new();
    let mut threads = deadline.poll(|| IN_SQLITE.try_lock())?;
    threads.waiting += 1;
    while threads.inside > 0 && !deadline.left().is_zero() {
        // Again and again: one that has not begun yet is not interrupted.
        api::interrupt_checkpoints();
        let wait = deadline.left().min(NEXT_LOOK);
        let waited = CHANGED.wait_timeout_while(threads, wait, |threads| threads.inside > 0);
        (threads, _) = waited.unwrap_or_else(PoisonError::into_inner);
    }
    threads.waiting -= 1;
    // They enter again once this lock is given back.
    CHANGED.notify_all();
    (threads.inside == 0).then_some(Outside { threads, _reason: reason })
}

/// Counts the process among the children of forks.
pub fn next_generation() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// True in the child of a fork that did not wait for all that was under way: locks of ours may be locked for
/// ever, and SQLite may have notes of locks on files that nobody holds. No database that the parent replicates
/// is opened here, nor one that is to be replicated.
pub fn is_cut_off() -> bool {
    IS_CUT_OFF.load(Ordering::Relaxed)
}

/// Notes that it is one.
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
