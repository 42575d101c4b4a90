//! The real arm: `std` threads, the system's clocks, the system's randomness.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::thread::{Panicked, Thread};
use crate::error::{Code, Error};
use crate::state::time::{Moment, Wall};

/// Moments count from the first call, so that they fit in 64 bits and mean nothing elsewhere.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// One seed a process: two maps of one engine may share it, two processes must not.
static HASH_SEED: LazyLock<u64> = LazyLock::new(|| {
    let mut bytes = [0; 8];
    secret(&mut bytes);
    u64::from_le_bytes(bytes)
});

#[inline]
pub(super) fn now() -> Moment {
    // 584 years of uptime fit.
    Moment(BEGINNING.elapsed().as_nanos() as u64)
}

/// The instant a moment stands for; a year from now where it cannot be expressed.
pub(super) fn instant(moment: Moment) -> Instant {
    const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365);
    BEGINNING.checked_add(Duration::from_nanos(moment.0)).unwrap_or_else(|| Instant::now() + FAR)
}

pub(super) fn wall() -> Wall {
    // A calendar before 1970 is a broken one; zero sorts first and is visible.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

pub(super) fn sleep_until(moment: Moment) {
    std::thread::sleep(moment.since(now()));
}

pub(super) fn hash_seed() -> u64 {
    *HASH_SEED
}

pub(super) fn secret(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the system has no randomness to give, so nothing secret can be made");
}

pub(super) fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

pub(super) fn give_way() {
    std::thread::yield_now();
}

pub(super) fn current_thread_name() -> Option<String> {
    std::thread::current().name().map(str::to_owned)
}

pub(super) fn spawn<T: Send + 'static>(
    name: String,
    f: impl FnOnce() -> T + Send + 'static,
) -> crate::Result<Thread<T>> {
    let handle = std::thread::Builder::new().name(name.clone()).spawn(f).map_err(|error| {
        Error::new(Code::Io, format!("starting thread {name}: {error}; the limit on threads may be too low"))
    })?;
    Ok(Thread::real(name, handle))
}

/// Waits for the end of a thread of the real arm.
pub(super) fn join<T>(name: &str, handle: std::thread::JoinHandle<T>) -> Result<T, Panicked> {
    handle.join().map_err(|payload| Panicked::new(name, payload.as_ref()))
}
