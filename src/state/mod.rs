//! The rules: machines that take `(now, input)` and push actions into a sink.
//!
//! Nothing here reads a clock, starts a thread, takes a lock, draws a random number, hashes with a
//! random seed or logs. What a machine needs from the world is handed to it.

pub mod attempt;
pub mod backoff;
pub mod batch;
pub mod connection;
pub mod envelope;
pub mod handshake;
pub mod metadata;
pub mod pipe;
pub mod procedure;
pub mod relay;
pub mod replay;
pub mod replica;
pub mod retry;
pub mod seq;
pub mod session;
pub mod stream;
pub mod time;
pub mod timers;
pub mod turn;
pub mod value;
pub mod watch;
