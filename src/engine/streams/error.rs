//! Why something could not be done with a stream, with a code to branch on.

use std::fmt;

use super::*;

/// Why something could not be done with a stream.
///
/// ```
/// use towpath::{Engine, StreamError};
///
/// let engine = Engine::builder().start()?;
/// let refused = engine.streams().append("nowhere", None, &1).unwrap_err();
/// assert_eq!((refused.code(), &refused), ("not_found", &StreamError::Missing));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamError {
    /// There is no such stream.
    Missing,
    /// It was deleted, and is kept for its forks.
    Gone,
    /// It exists, and is not what was asked for.
    Exists,
    /// It is closed.
    Closed,
    /// There is no such message, or it was removed.
    NoMessage {
        /// Its id.
        id: u64,
    },
    /// There is no such waiting input; a worker may have it.
    NoInput {
        /// Its id.
        id: u64,
    },
    /// The turn never was, or its parts are no longer kept.
    NoTurn {
        /// Its number.
        turn: u32,
    },
    /// A turn runs already.
    TurnRunning {
        /// Who runs it.
        worker: Uuid,
        /// Its number.
        turn: u32,
    },
    /// The turn is no longer the caller's.
    TurnLost {
        /// Its number.
        turn: u32,
    },
    /// The turn does not run on this replica.
    NotHere,
    /// A part was refused; those before it were taken.
    Part {
        /// Why.
        why: PartRefused,
        /// How many were taken now.
        accepted: u32,
        /// The turn's last part.
        last: u32,
    },
    /// As many inputs wait as may.
    QueueFull {
        /// How many may.
        most: usize,
    },
    /// It is too long.
    TooLarge {
        /// How many bytes it has.
        bytes: usize,
        /// How many it may have.
        max: usize,
    },
    /// What was sent is of another type than the stream.
    OtherType {
        /// What the stream is.
        is: String,
    },
    /// The name is not one a stream may have.
    BadName(&'static str),
    /// What was sent is not JSON.
    BadJson(String),
    /// It contradicts what was before.
    Conflict(&'static str),
    /// The replica that runs the turn cannot be reached; whether it did what was asked is not known.
    Unreachable,
    /// The store could not be asked.
    Store(StoreError),
    /// There is more to do than can be done.
    Full,
    /// The engine has stopped.
    Stopped,
}

impl StreamError {
    /// What programs branch on; doors show it.
    pub fn code(&self) -> &'static str {
        match self {
            StreamError::Missing => "not_found",
            StreamError::Gone => "gone",
            StreamError::Exists => "stream_exists",
            StreamError::Closed => "stream_closed",
            StreamError::NoMessage { .. } => "no_message",
            StreamError::NoInput { .. } => "no_input",
            StreamError::NoTurn { .. } => "no_turn",
            StreamError::TurnRunning { .. } => "turn_running",
            StreamError::TurnLost { .. } | StreamError::NotHere => "turn_lost",
            StreamError::Part { why: PartRefused::Gap { .. }, .. } => "part_gap",
            StreamError::Part { why: PartRefused::Full { .. }, .. } => "turn_full",
            StreamError::Part { why: PartRefused::Closed, .. } => "turn_lost",
            StreamError::QueueFull { .. } => "queue_full",
            StreamError::TooLarge { .. } => "too_large",
            StreamError::OtherType { .. } => "other_type",
            StreamError::BadName(_) => "reserved_name",
            StreamError::BadJson(_) => "bad_json",
            StreamError::Conflict(_) => "conflict",
            StreamError::Unreachable => "worker_unreachable",
            StreamError::Store(error) if error.code == "full" => "full",
            StreamError::Store(_) => "store_unavailable",
            StreamError::Full => "full",
            StreamError::Stopped => "stopped",
        }
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamError::Missing => f.write_str("there is no such stream; create it first"),
            StreamError::Gone => f.write_str("the stream was deleted"),
            StreamError::Exists => {
                f.write_str("a stream of this name exists, and differs from what was asked for")
            }
            StreamError::Closed => f.write_str("the stream is closed; nothing can be added to it"),
            StreamError::NoMessage { id } => write!(f, "the stream has no message {id}"),
            StreamError::NoInput { id } => write!(f, "no input {id} waits; a worker may have taken it"),
            StreamError::NoTurn { turn } => write!(f, "the parts of turn {turn} are not kept here"),
            StreamError::TurnRunning { worker, turn } => {
                write!(f, "turn {turn} runs on replica {worker}; wait for it or interrupt it")
            }
            StreamError::TurnLost { turn } => {
                write!(
                    f,
                    "turn {turn} is not yours any more: it ended, or another worker took over; claim again"
                )
            }
            StreamError::NotHere => f.write_str("the turn does not run, or not under this lease"),
            StreamError::Part { why, .. } => why.fmt(f),
            StreamError::QueueFull { most } => {
                write!(f, "{most} inputs wait already; let a worker take some")
            }
            StreamError::TooLarge { bytes, max } => write!(f, "{bytes} bytes are over the limit of {max}"),
            StreamError::OtherType { is } => write!(f, "the stream's content type is {is}"),
            StreamError::BadName(why) => write!(f, "not a name for a stream: {why}"),
            StreamError::BadJson(why) => write!(f, "not JSON: {why}"),
            StreamError::Conflict(what) => f.write_str(what),
            StreamError::Unreachable => f.write_str(
                "the replica that runs the turn cannot be reached: try again, with the same part number or \
                 Idempotency-Key, since it may have been done",
            ),
            StreamError::Store(error) => write!(f, "the store: {error}"),
            StreamError::Full => f.write_str("too much to do at the moment; try again"),
            StreamError::Stopped => f.write_str("the engine has stopped"),
        }
    }
}

impl std::error::Error for StreamError {}

impl From<StreamError> for Error {
    fn from(error: StreamError) -> Error {
        let code = match &error {
            StreamError::Missing
            | StreamError::Gone
            | StreamError::NoMessage { .. }
            | StreamError::NoInput { .. }
            | StreamError::NoTurn { .. } => Code::NotFound,
            StreamError::Exists => Code::Exists,
            StreamError::Closed
            | StreamError::TurnRunning { .. }
            | StreamError::TurnLost { .. }
            | StreamError::NotHere
            | StreamError::Part { why: PartRefused::Closed | PartRefused::Gap { .. }, .. }
            | StreamError::Conflict(_) => Code::Conflict,
            StreamError::Part { why: PartRefused::Full { .. }, .. }
            | StreamError::QueueFull { .. }
            | StreamError::Full => Code::Full,
            StreamError::TooLarge { .. }
            | StreamError::OtherType { .. }
            | StreamError::BadName(_)
            | StreamError::BadJson(_) => Code::BadRequest,
            StreamError::Store(store) => return Error::from(store.clone()).while_("streams"),
            StreamError::Unreachable => Code::TimedOut,
            StreamError::Stopped => Code::Stopped,
        };
        Error::new(code, error.to_string())
    }
}
