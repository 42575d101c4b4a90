//! Bytes to values and back: no I/O, no clock, nothing that waits.

pub mod connection;
pub mod envelope;
pub mod json;
pub mod msgpack;
pub mod notice;
pub mod pipe;
mod river;
pub mod sse;
pub mod ticket;
pub mod token;
pub mod typed;

use river::Fields;
pub use river::{BadFrame, Bounds, Codec};
