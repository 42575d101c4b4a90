//! Errors: a code to branch on, a sentence to read.

use std::fmt;

/// What went wrong, in one word that does not change between versions.
///
/// Doors show it as the `code` of a problem document; programs branch on it.
///
/// ```
/// use towpath::{Code, Engine};
///
/// let refused = Engine::builder().postgres("not an address").start().unwrap_err();
/// assert_ne!(refused.code(), Code::Stopped);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The request cannot be understood; sending it again will not help.
    BadRequest,
    /// There is no such thing.
    NotFound,
    /// It exists already, and differs from what was asked for.
    Exists,
    /// What was asked contradicts the state the thing is in.
    Conflict,
    /// The caller is not known.
    Unauthorized,
    /// The caller is known and may not.
    Forbidden,
    /// A bound was reached: wait and try again.
    Full,
    /// The store cannot be reached now; nothing is known to be wrong with the request.
    StoreUnavailable,
    /// The engine is stopping or has stopped.
    Stopped,
    /// It did not happen within the time given.
    TimedOut,
    /// A setting has no meaning.
    BadConfig,
    /// The operating system said no.
    Io,
    /// A bug in towpath.
    Internal,
}

impl Code {
    /// The code as it is written in problem documents, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::BadRequest => "bad_request",
            Code::NotFound => "not_found",
            Code::Exists => "exists",
            Code::Conflict => "conflict",
            Code::Unauthorized => "unauthorized",
            Code::Forbidden => "forbidden",
            Code::Full => "full",
            Code::StoreUnavailable => "store_unavailable",
            Code::Stopped => "stopped",
            Code::TimedOut => "timed_out",
            Code::BadConfig => "bad_config",
            Code::Io => "io",
            Code::Internal => "internal",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error at the face of the library: a [`Code`] and a sentence that says what, where and what to
/// do. Parts of towpath with a question of their own have an enum of their own and turn into this.
///
/// ```
/// use towpath::{Code, Error};
///
/// let error = Error::new(Code::Io, "disk full").while_("writing the spool");
/// assert_eq!((error.code(), error.to_string()), (Code::Io, "writing the spool: disk full".to_owned()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: Code,
    text: String,
}

/// What most calls of the library answer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with its code and its sentence (a lower-case fragment, no full stop).
    pub fn new(code: Code, text: impl Into<String>) -> Error {
        Error { code, text: text.into() }
    }

    /// What to branch on.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The same error, said from further out: `opening the store: <text>`.
    #[must_use]
    pub fn while_(mut self, doing: impl fmt::Display) -> Error {
        self.text = format!("{doing}: {}", self.text);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        let code = match error.kind() {
            std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => Code::TimedOut,
            std::io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Io,
        };
        Error::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_where_it_happened_from_the_outside_in() {
        let error = Error::new(Code::Io, "disk full").while_("writing the spool").while_("flushing");
        assert_eq!(error.to_string(), "flushing: writing the spool: disk full");
        assert_eq!(error.code().as_str(), "io");
    }
}
