//! The runtime facade: time, threads, channels, select, randomness and cancellation.
//!
//! Everything above this module is written against [`Rt`] and never against `std::thread`,
//! `Instant` or a channel crate. There are two arms:
//!
//! - **real**: `std` threads and crossbeam channels, with nothing added on the hot path;
//! - **simulated** (feature `testing`): the same OS threads, one running at a time, with virtual
//!   time and every choice drawn from a seed. `testing::Sim` makes those.
//!
//! *Invariant:* no facade call is made while a [`Lock`] guard is held; with the feature `testing`
//! each call asserts it. A receiver has one consumer.
//!
//! What is absent, on purpose: timeouts that read the clock themselves (a deadline is a [`Moment`]),
//! unbounded channels, rendezvous channels, and thread-local randomness.
//!
//! ```
//! use towpath::rt::Rt;
//! use std::time::Duration;
//!
//! let rt = Rt::real();
//! let (tx, rx) = rt.channel("greetings", 8);
//! let thread = rt.spawn("greeter", move || tx.send("hello").is_ok())?;
//! assert_eq!(rx.recv_deadline(rt.now() + Duration::from_secs(5)), Ok("hello"));
//! assert_eq!(thread.join(), Ok(true));
//! # Ok::<(), towpath::Error>(())
//! ```

mod cancel;
mod channel;
mod lock;
pub(crate) mod marks;
mod rand;
mod real;
mod select;
#[cfg(feature = "testing")]
pub(crate) mod sim;
mod slot;
mod thread;

use std::time::Duration;

use uuid::Uuid;

pub use cancel::{Cancel, CloserGuard};
pub use channel::{
    Receiver, RecvError, RecvTimeoutError, SendError, SendTimeoutError, Sender, TryRecvError, TrySendError,
};
pub use lock::{Guard, Lock};
#[doc(hidden)]
pub use marks::{is_planted, reached};
pub use rand::Rand;
pub use select::Select;
pub use slot::{Filler, Slot};
pub(crate) use thread::message;
pub use thread::{Panicked, Thread};

pub use crate::state::time::{Moment, Wall};

/// What a map outside `state` hashes with: seeded by the system in production, by the run in a
/// simulation.
pub type Hasher = foldhash::quality::FixedState;

/// How many threads run side by side on this machine.
pub(crate) fn parallelism() -> usize {
    real::parallelism()
}

/// Lets every thread go first that waits for the processor: for work that nobody waits for, and that is the better for
/// being done later.
pub(crate) fn give_way() {
    real::give_way();
}

/// What the system calls the calling thread.
pub(crate) fn current_thread_name() -> Option<String> {
    real::current_thread_name()
}

/// What a facade call does, so that a trap can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Op {
    /// Reading the monotonic clock.
    Now,
    /// Reading the calendar.
    Wall,
    /// Waiting for a moment.
    Sleep,
    /// Starting a thread.
    Spawn,
    /// Waiting for a thread to end.
    Join,
    /// Putting something into a channel.
    Send,
    /// Taking something out of a channel.
    Recv,
    /// Waiting for one of several.
    Select,
    /// Connecting to somebody.
    Dial,
    /// A call to a store.
    Store,
    /// Telling other replicas.
    Publish,
    /// Other input or output.
    Io,
    /// A place that a program of its own names.
    Custom(&'static str),
}

/// The runtime. Cheap to clone; every part of an engine holds one.
///
/// ```
/// use towpath::Rt;
///
/// // The operating system's threads and clock. What is written against it also runs under the simulator
/// // (`towpath::testing`), which hands out an `Rt` with virtual time.
/// let rt = Rt::real();
/// let (numbers, all) = rt.channel("numbers", 4);
/// let thread = rt.spawn("count", move || (1..=3).for_each(|n| drop(numbers.send(n))))?;
/// assert_eq!(all.iter().sum::<i32>(), 6);
/// thread.join().expect("it counted");
/// # Ok::<(), towpath::Error>(())
/// ```
#[derive(Clone)]
pub struct Rt {
    arm: Arm,
}

#[derive(Clone)]
enum Arm {
    Real,
    #[cfg(feature = "testing")]
    Sim(sim::Handle),
}

impl std::fmt::Debug for Rt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_simulated() { "Rt(simulated)" } else { "Rt(real)" })
    }
}

impl Rt {
    /// Real threads, the real clock.
    pub fn real() -> Rt {
        Rt { arm: Arm::Real }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn simulated(handle: sim::Handle) -> Rt {
        Rt { arm: Arm::Sim(handle) }
    }

    /// Whether time and scheduling come from a seed.
    pub fn is_simulated(&self) -> bool {
        match &self.arm {
            Arm::Real => false,
            #[cfg(feature = "testing")]
            Arm::Sim(_) => true,
        }
    }

    /// The monotonic clock.
    #[inline]
    pub fn now(&self) -> Moment {
        match &self.arm {
            Arm::Real => real::now(),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => handle.now(),
        }
    }

    /// The calendar.
    #[inline]
    pub fn wall(&self) -> Wall {
        match &self.arm {
            Arm::Real => real::wall(),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => handle.wall(),
        }
    }

    /// Waits until `moment`. Nothing wakes it early; a thread that must be stoppable waits in a
    /// [`Select`] instead.
    pub fn sleep_until(&self, moment: Moment) {
        match &self.arm {
            Arm::Real => real::sleep_until(moment),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => handle.sleep_until(moment),
        }
    }

    /// Waits for `duration`.
    pub fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration);
    }

    /// Starts a named thread. Dropping the handle joins it.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> crate::Result<Thread<T>> {
        match &self.arm {
            Arm::Real => real::spawn(name.into(), f),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => Ok(handle.spawn(name.into(), f)),
        }
    }

    /// A channel that holds at most `bound` messages (at least 1). The name is for thread tables
    /// and traps.
    pub fn channel<T>(&self, name: &'static str, bound: usize) -> (Sender<T>, Receiver<T>) {
        assert!(bound > 0, "channel {name} needs a bound of at least 1: there are no rendezvous channels");
        match &self.arm {
            Arm::Real => channel::real(bound),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => channel::simulated(handle, name, bound),
        }
    }

    /// Waits for one of several channels, any ready one with the same chance.
    pub fn select(&self) -> Select<'_> {
        Select::new(self, false)
    }

    /// Waits for one of several channels; the first one added wins.
    pub fn select_biased(&self) -> Select<'_> {
        Select::new(self, true)
    }

    /// A stream of random numbers, for jitter and the like. Secrets come from [`Rt::secret`].
    pub fn rand(&self, stream: &'static str) -> Rand {
        Rand::new(self, stream)
    }

    /// Bytes nobody can guess: keys, nonces, leases. From the system on the real arm.
    pub fn secret<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        match &self.arm {
            Arm::Real => real::secret(&mut bytes),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => handle.secret(&mut bytes),
        }
        bytes
    }

    /// A random UUID.
    pub fn uuid_v4(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.secret()).into_uuid()
    }

    /// A UUID that sorts by time: what database keys are made of.
    pub fn uuid_v7(&self) -> Uuid {
        let millis = u64::try_from(self.wall().as_millis()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &self.secret()).into_uuid()
    }

    /// What the maps of this engine hash with.
    pub fn hasher(&self) -> Hasher {
        match &self.arm {
            Arm::Real => Hasher::with_seed(real::hash_seed()),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => Hasher::with_seed(handle.hash_seed()),
        }
    }

    /// A token that cancels what was started with it, and its children.
    pub fn cancel_token(&self) -> Cancel {
        Cancel::new(self)
    }

    /// A place where a trap may hold the caller of a simulation. Costs nothing in production.
    #[inline]
    pub fn point(&self, op: Op, tags: &[&str]) {
        match &self.arm {
            Arm::Real => _ = (op, tags),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => handle.point(op, tags),
        }
    }

    /// A line in the trace of a simulation. Costs nothing in production.
    #[inline]
    pub fn trace(&self, line: impl FnOnce() -> String) {
        match &self.arm {
            Arm::Real => drop(line),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => handle.note(line()),
        }
    }

    /// Shows a simulation what this thread holds now, so that invariants can be checked after every
    /// step; the latest facts of each thread count. Costs nothing in production.
    #[inline]
    pub fn facts<F: std::any::Any + Send>(&self, facts: impl FnOnce() -> F) {
        match &self.arm {
            Arm::Real => drop(facts),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => handle.facts(Box::new(facts())),
        }
    }
}
