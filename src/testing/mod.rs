//! The deterministic thread harness: whole engines, and programs of your own, on real OS threads
//! under a seeded scheduler with virtual time. Public, but promised unstable.
//!
//! [`Sim`] runs one test under one seed: same seed, same trace, byte for byte. [`Sweep`] runs it
//! under many, shrinks the first failure and prints the command that replays it. Inside, [`Test`]
//! moves time, sets traps, kills nodes and states invariants.
//!
//! ```
//! use std::time::Duration;
//! use towpath::testing::Sim;
//!
//! let outcome = Sim::new(7).run(|t| {
//!     let rt = t.rt();
//!     let (tx, rx) = rt.channel("beat", 1);
//!     let heart = rt.spawn("heart", {
//!         let rt = rt.clone();
//!         move || {
//!             rt.sleep(Duration::from_secs(3_600));
//!             tx.send("beat").is_ok()
//!         }
//!     })?;
//!     t.advance(Duration::from_secs(3_599));
//!     assert!(rx.try_recv().is_err(), "an hour is not over yet");
//!     t.advance(Duration::from_secs(1));
//!     assert_eq!(rx.try_recv(), Ok("beat"));
//!     assert_eq!(heart.join(), Ok(true));
//!     Ok::<(), towpath::Error>(())
//! });
//! outcome.assert_ok(); // took no time worth mentioning
//! ```
//!
//! What is absent: time does not pass while code runs, so that races hide; **stalls** (a runnable
//! thread sleeps a seeded while) are what brings them out, and [`Sweep`] has them on by default.

mod bus;
mod faulty;
mod net;
mod outcome;
mod shrink;
mod sim;
mod sweep;
mod tape;
mod test;
mod trap;

pub use bus::{BusFaults, FlakyBus};
pub use faulty::{Faulty, FaultyStores, StoreFaults};
pub use net::{Net, NetFaults, NetNode, Serving};
pub use outcome::Outcome;
pub use shrink::{Shrunk, shrink};
pub use sim::{Sim, Verdict};
pub use sweep::{Sweep, Swept};
pub use tape::Choices;
pub use test::{Facts, Test};
pub use trap::{Call, Held, Trap};

pub use crate::rt::Op;
pub use crate::rt::sim::Policy;
