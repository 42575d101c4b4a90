//! The only lock of the crate.

use std::ops::{Deref, DerefMut};

/// A mutex for microseconds: nothing is sent, received, read or written while it is held.
///
/// With the feature `testing` every facade call asserts that its thread holds none.
#[derive(Debug, Default)]
pub struct Lock<T>(parking_lot::Mutex<T>);

/// What [`Lock::lock`] gives; letting go of it unlocks.
#[must_use = "a guard that is dropped at once protects nothing"]
#[derive(Debug)]
pub struct Guard<'a, T> {
    inner: parking_lot::MutexGuard<'a, T>,
    _depth: Depth,
}

impl<T> Lock<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Lock<T> {
        Lock(parking_lot::Mutex::new(value))
    }

    /// Waits for the lock.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        Guard { inner: self.0.lock(), _depth: Depth::deeper() }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let inner = self.0.try_lock()?;
        Some(Guard { inner, _depth: Depth::deeper() })
    }

    /// The value, when nobody else can hold the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    /// The value, at the end.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(feature = "testing")]
thread_local! {
    static HELD: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Counts the guards of a thread, where anybody looks.
#[derive(Debug)]
struct Depth;

impl Depth {
    #[inline]
    fn deeper() -> Depth {
        #[cfg(feature = "testing")]
        HELD.with(|held| held.set(held.get() + 1));
        Depth
    }
}

#[cfg(feature = "testing")]
impl Drop for Depth {
    fn drop(&mut self) {
        HELD.with(|held| held.set(held.get() - 1));
    }
}

/// Panics if this thread holds a guard: a facade call may hand the processor to somebody who wants
/// the same lock.
#[cfg(feature = "testing")]
pub(super) fn assert_none_held(op: super::Op) {
    let held = HELD.with(std::cell::Cell::get);
    assert!(
        held == 0 || std::thread::panicking(),
        "{op:?} while holding {held} lock(s): let go of the guard before calling the runtime"
    );
}
