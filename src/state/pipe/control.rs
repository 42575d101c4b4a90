//! What the ends of a pipe say to each other besides bytes.

use super::End;
use std::time::Duration;

/// Everything that travels on a carrier besides bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// "I have everything below `recv`, and you may send up to `limit`."
    Ack {
        /// Everything below has arrived; counts the end of the direction as one.
        recv: u64,
        /// The first offset that must not be sent yet.
        limit: u64,
    },
    /// "My direction ends at `off`."
    Fin {
        /// The offset after the last byte.
        off: u64,
    },
    /// "It is over, now."
    Reset(End),
    /// "Are you there?"
    Ping {
        /// Comes back in the PONG.
        token: u64,
    },
    /// "I am, and this is what I have."
    Pong {
        /// From the PING.
        token: u64,
        /// As in an ACK.
        recv: u64,
        /// As in an ACK.
        limit: u64,
    },
    /// "This carrier will go; come with another one."
    GoAway(GoAway),
}

/// A carrier's notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoAway {
    /// How long it will still be there.
    pub deadline: Duration,
    /// How long to wait before dialling, drawn by the server so that not all come at once.
    pub retry_hint: Duration,
    /// Where to dial, if it is not the same place.
    pub url: Option<String>,
}
