//! Withholds lines for the host's log while the thread holds a lock.
//!
//! The host's log may be a function that waits for a lock of the host, as any function in Python does. A
//! thread that forks may have that lock, and waits for locks of walferry before it forks. So a thread gives a
//! line to the host only after it has given back its last lock.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{
    Mutex as StdMutex, MutexGuard as StdMutexGuard, OnceLock, PoisonError, RwLock,
    RwLockWriteGuard, TryLockError, TryLockResult,
};
use std::time::{Duration, Instant};

/// A line for the host's log, with its code.
pub struct Line {
    /// The code.
    pub code: i32,
    /// The text.
    pub text: String,
}

/// Gives a line to the host.
pub type Say = fn(&Line);

static SAY: OnceLock<Say> = OnceLock::new();

/// Most withheld lines of a thread; further lines are only counted.
const LINES_MAX: usize = 1000;
/// `SQLITE_WARNING`, the code of the line with the number of dropped lines.
const WARNING: i32 = 28;

thread_local! {
    /// Read several times for each commit, so it has no destructor.
    static THREAD: Thread = const { Thread { reasons: Cell::new(0), has_lines: Cell::new(false) } };
    static LINES: RefCell<VecDeque<Line>> = const { RefCell::new(VecDeque::new()) };
    /// Number of lines dropped since the number was last reported.
    static LOST: Cell<u64> = const { Cell::new(0) };
    /// True while the thread gives lines to the host. Lines that come meanwhile wait for their turn.
    static IS_SAYING: Cell<bool> = const { Cell::new(false) };
}

struct Thread {
    /// Number of reasons to withhold lines.
    reasons: Cell<usize>,
    /// True if lines may be withheld, false if certainly none are.
    has_lines: Cell<bool>,
}

/// Sets the function that gives lines to the host.
pub fn set_say(say: Say) {
    let _ = SAY.set(say);
}

/// Gives a line to the host, at once or behind the last lock.
pub fn say(line: Line) {
    let mut line = Some(line);
    // A thread whose variables are already destroyed holds no lock any more.
    let kept = LINES.try_with(|lines| {
        let mut lines = lines.borrow_mut();
        match line.take() {
            line if lines.len() < LINES_MAX => lines.extend(line),
            _ => LOST.set(LOST.get() + 1),
        }
        THREAD.with(|thread| thread.has_lines.set(true));
    });
    match (kept, line, SAY.get()) {
        (Err(_), Some(line), Some(say)) => say(&line),
        _ => say_all(),
    }
}

#[cold]
fn say_all() {
    let may_say = || THREAD.with(|thread| thread.reasons.get()) == 0 && !IS_SAYING.get();
    let Some(say) = SAY.get().filter(|_| may_say()) else { return };
    IS_SAYING.set(true);
    while let Ok(Some(line)) = LINES.try_with(|lines| lines.borrow_mut().pop_front()) {
        say(&line);
    }
    match LOST.take() {
        0 => {}
        lost => {
            let text = format!("walferry: {lost} more lines were lost: too many waited for a lock");
            say(&Line { code: WARNING, text });
        }
    }
    IS_SAYING.set(false);
    THREAD.with(|thread| thread.has_lines.set(false));
}

/// Forgets the thread's withheld lines, as in the child of a fork: its parent reports them.
pub fn forget() {
    let _ = LINES.try_with(|lines| lines.borrow_mut().clear());
    LOST.set(0);
}

/// A reason for the current thread to withhold lines, until it is dropped.
pub struct Withheld(PhantomData<*const ()>);

impl Withheld {
    /// Begins to withhold.
    #[allow(clippy::new_without_default)] // it has an effect
    #[inline]
    pub fn new() -> Withheld {
        THREAD.with(|thread| thread.reasons.set(thread.reasons.get() + 1));
        Withheld(PhantomData)
    }
}

impl Drop for Withheld {
    #[inline]
    fn drop(&mut self) {
        let says = THREAD.with(|thread| {
            let left = thread.reasons.get().saturating_sub(1);
            thread.reasons.set(left);
            left == 0 && thread.has_lines.get()
        });
        if says {
            say_all();
        }
    }
}

/// A lock that is held, with a reason to withhold until it is given back.
pub struct Held<G> {
    // Rust drops the fields in this order.
    guard: G,
    _reason: Withheld,
}

impl<G> Held<G> {
    /// Takes a lock.
    pub fn new(take: impl FnOnce() -> G) -> Held<G> {
        let reason = Withheld::new();
        Held { guard: take(), _reason: reason }
    }

    /// Takes a lock if that is possible.
    pub fn try_new(take: impl FnOnce() -> Option<G>) -> Option<Held<G>> {
        let reason = Withheld::new();
        take().map(|guard| Held { guard, _reason: reason })
    }
}

impl<G: Deref> Deref for Held<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Held<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

/// A held lock of the standard library.
pub type Guard<T> = Held<StdMutexGuard<'static, T>>;

/// Takes a lock of the standard library.
pub fn lock<T>(mutex: &'static StdMutex<T>) -> Guard<T> {
    Held::new(|| mutex.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A lock that withholds lines while it is held.
#[derive(Default)]
pub struct Mutex<T>(parking_lot::Mutex<T>);

/// A held [`Mutex`].
pub type MutexGuard<'a, T> = Held<parking_lot::MutexGuard<'a, T>>;

impl<T> Mutex<T> {
    /// Makes a free lock.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(parking_lot::Mutex::new(value))
    }

    /// Takes the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        Held::new(|| self.0.lock())
    }

    /// Takes the lock if another thread gives it back in time.
    pub fn lock_until(&self, deadline: Deadline) -> Option<MutexGuard<'_, T>> {
        Held::try_new(|| self.0.try_lock_until(deadline.0))
    }
}

/// Pause before the next try to take a lock that is not free.
const NEXT_LOOK: Duration = Duration::from_micros(200);

/// End of a wait for locks. A free lock can be taken even after it.
#[derive(Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// Sets the end this long from now.
    pub fn after(wait: Duration) -> Deadline {
        Deadline(Instant::now() + wait)
    }

    /// Returns the time left.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Takes a lock of the standard library.
    pub fn lock<T>(self, mutex: &'static StdMutex<T>) -> Option<Guard<T>> {
        Held::try_new(|| self.poll(|| mutex.try_lock()))
    }

    /// Takes a lock of the standard library that readers may share, for this thread alone.
    pub fn write<T>(self, lock: &'static RwLock<T>) -> Option<Held<RwLockWriteGuard<'static, T>>> {
        Held::try_new(|| self.poll(|| lock.try_write()))
    }

    /// Tries to take a lock until the end: the standard library has no wait with a time limit.
    pub fn poll<G>(self, mut take: impl FnMut() -> TryLockResult<G>) -> Option<G> {
        loop {
            match take() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(guard)) => return Some(guard.into_inner()),
                Err(TryLockError::WouldBlock) if self.left().is_zero() => return None,
                Err(TryLockError::WouldBlock) => std::thread::park_timeout(NEXT_LOOK),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    fn note(line: &Line) {
        SAID.with_borrow_mut(|said| said.push(line.text.clone()));
        // The host may log another line for a line. That line comes behind the waiting lines.
        if line.text == "a" {
            say(Line { code: 0, text: "of a".into() });
        }
    }

    fn said() -> Vec<String> {
        SAID.take()
    }

    #[test]
    fn lines_wait_for_the_last_lock_of_their_thread_and_keep_their_order() {
        set_say(note);
        let line = |text: &str| say(Line { code: 0, text: text.into() });
        static ONE: StdMutex<()> = StdMutex::new(());
        let other = Mutex::new(());
        line("at once");
        assert_eq!(said(), ["at once"]);
        let one = lock(&ONE);
        line("a");
        let second = other.lock();
        drop(one);
        line("b");
        assert!(said().is_empty());
        std::thread::spawn(move || {
            say(Line { code: 0, text: "of another thread".into() });
            assert_eq!(said(), ["of another thread"]);
        })
        .join()
        .unwrap();
        drop(second);
        assert_eq!(said(), ["a", "b", "of a"]);
        {
            let _reason = Withheld::new();
            line("forgotten");
            forget();
        }
        assert!(said().is_empty());
    }

    #[test]
    fn lines_that_are_not_kept_are_counted() {
        set_say(note);
        let line = |text: &str| say(Line { code: 0, text: text.into() });
        {
            let _reason = Withheld::new();
            (0..LINES_MAX + 7).for_each(|_| line("b"));
        }
        let lines = said();
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert_eq!(
            lines[LINES_MAX],
            "walferry: 7 more lines were lost: too many waited for a lock"
        );
        line("b");
        assert_eq!(said(), ["b"], "they are told once");
    }

    #[test]
    fn a_lock_that_is_not_given_back_is_not_waited_for_for_ever() {
        static HELD: StdMutex<()> = StdMutex::new(());
        let other = Mutex::new(());
        let (one, two) = (lock(&HELD), other.lock());
        let now = Deadline::after(Duration::ZERO);
        assert!(now.lock(&HELD).is_none() && other.lock_until(now).is_none());
        drop((one, two));
        assert!(now.lock(&HELD).is_some() && other.lock_until(now).is_some());
    }
}
