//! What ends a pipe because no peer may do it.

use std::fmt;

/// What the peer did that no peer may do. Ends the pipe; never clamped, never guessed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Bytes came that do not follow the ones before.
    Gap {
        /// The next offset that was expected.
        expected: u64,
        /// The offset that came.
        came: u64,
    },
    /// More bytes came than were allowed.
    OverLimit {
        /// The first offset that was not allowed.
        limit: u64,
        /// Where the bytes would have ended.
        came: u64,
    },
    /// Bytes, or another end, came after the end of the direction.
    AfterFin {
        /// Where the direction had ended.
        fin: u64,
        /// The offset that came.
        came: u64,
    },
    /// The peer says it has what was never sent to it.
    FromTheFuture {
        /// What it says it has.
        peer_has: u64,
        /// What was sent.
        sent: u64,
    },
    /// The peer says it has less than it has acknowledged.
    Lost {
        /// What it says it has.
        peer_has: u64,
        /// The oldest byte that is kept.
        oldest: u64,
    },
    /// An offset plus a length is no offset.
    Overflow,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Gap { expected, came } => write!(f, "expected byte {expected}, byte {came} came"),
            Violation::OverLimit { limit, came } => {
                write!(f, "bytes up to {came} came, the limit was {limit}")
            }
            Violation::AfterFin { fin, came } => {
                write!(f, "byte {came} came, the direction had ended at {fin}")
            }
            Violation::FromTheFuture { peer_has, sent } => {
                write!(f, "the peer says it has {peer_has} bytes, {sent} were sent")
            }
            Violation::Lost { peer_has, oldest } => {
                write!(f, "the peer says it has {peer_has} bytes, it acknowledged {oldest} before")
            }
            Violation::Overflow => f.write_str("an offset is out of range"),
        }
    }
}

impl std::error::Error for Violation {}
