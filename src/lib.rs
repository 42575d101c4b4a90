//! Live work that survives broken connections: sessions, streams, pipes, batched metadata and a
//! connection log, on plain threads.
#![forbid(unsafe_code)]

pub mod error;
pub mod state;

pub use error::{Code, Error, Result};
