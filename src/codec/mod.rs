//! Bytes to values and back: no I/O, no clock, nothing that waits.

pub mod pipe;
pub mod sse;
pub mod token;
//! Bytes to values and back. No I/O.

pub mod json;
pub mod msgpack;
pub mod typed;

mod river;

pub use river::{BadFrame, Bounds, Codec};
use river::Fields;
