//! Services in Rust: procedures with a name, a shape and a handler, served on sessions.
//!
//! A handler is a closure. One that blocks gets a thread of a pool; one marked [`Procedure::inline`] runs in the
//! room that serves the sessions, and must not wait: an rpc that computes, or a subscription that only hands
//! its [`Writable`] to whoever will write to it later, which costs no thread however long it lives. In the same way
//! [`Procedure::rpc_later`] and [`Procedure::upload_later`] leave the answer to whoever has it.
//!
//! ```
//! use towpath::service::schema::{number, object};
//! use towpath::service::{Failure, Procedure, Service};
//!
//! #[derive(serde::Deserialize)]
//! struct Divide { a: f64, b: f64 }
//!
//! let math = Service::new("math").with(
//!     "divide",
//!     Procedure::rpc(|_call, ask: Divide| match ask.b {
//!         0.0 => Err(Failure::new("DIV_BY_ZERO", "Cannot divide by zero")),
//!         b => Ok(ask.a / b),
//!     })
//!     .takes(object([("a", number()), ("b", number())]))
//!     .inline(),
//! );
//! # let _ = math;
//! ```

mod call;
mod later;
mod procedure;
pub mod reference;
mod requests;
pub mod schema;
pub mod server;
mod services;
mod writable;

pub use self::call::Call;
pub use self::later::{Later, Resume, Sink};
pub use self::procedure::Procedure;
pub use self::requests::Readable;
pub use self::services::{Service, Services};
pub use self::writable::{NotWritten, Writable};
pub use crate::state::procedure::Failure;
use crate::state::procedure::{CANCEL, INVALID_REQUEST, UNCAUGHT_ERROR, UNEXPECTED_DISCONNECT};

impl Failure {
    /// Ends the call as cancelled, with these words.
    pub fn cancel(message: impl Into<String>) -> Failure {
        Failure::new(CANCEL, message)
    }

    /// Ends the call as failed in a way the service did not declare.
    pub fn uncaught(error: impl std::fmt::Display) -> Failure {
        Failure::new(UNCAUGHT_ERROR, error.to_string())
    }

    /// Whether it ends the call, where a service's own error is an answer.
    fn ends_call(&self) -> bool {
        [CANCEL, UNCAUGHT_ERROR, INVALID_REQUEST, UNEXPECTED_DISCONNECT].contains(&self.code.as_str())
    }
}
