//! Live work that survives broken connections: sessions, streams, pipes, batched metadata and a
//! connection log, on plain threads.
#![forbid(unsafe_code)]
// A library does not talk to the terminal; the command line does it in one place.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod bus;
pub mod cli;
pub mod client;
pub mod codec;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod error;
pub mod front;
pub mod metrics;
pub mod rt;
pub mod service;
pub mod spool;
pub mod state;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;

pub use error::{Code, Error, Result};
