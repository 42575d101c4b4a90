//! Bytes to values and back: no I/O, no clock, nothing that waits.

pub mod pipe;
pub mod sse;
pub mod token;
