//! The simulated arm: real OS threads, one running at a time, virtual time, every choice seeded.
//!
//! A token goes from thread to thread at facade calls. Whoever holds it runs; everybody else waits
//! on a parker of its own. When nobody can run, time jumps to the next deadline; when there is none
//! either, the run has deadlocked and says who waits for what.
//!
//! *Invariant:* the state behind `Scheduler::state` is only touched by the holder of the token, by
//! threads that let go of channel ends after the run, and by the watchdog. User code runs with the
//! state unlocked.

mod channel;
mod handle;
mod pool;
mod scheduler;
mod state;
mod tape;
mod trace;
mod trap;

pub(crate) use self::channel::{ChanRx, ChanTx, Wait};
pub(crate) use self::handle::{Handle, Join};
pub use self::scheduler::Policy;
pub(crate) use self::scheduler::{Config, Failure, Finished, as_unwinding, run};
pub(crate) use self::state::Until;
pub(crate) use self::trap::{CallInfo, TrapId};
