//! What a server of sessions is told once.

use crate::codec::{Bounds, Codec};
use crate::engine::visits::Visits;
use crate::state::handshake::SecondClient;
use crate::state::seq::SendBounds;
use crate::state::session::Timing;

/// What a server of sessions is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server's client id: what clients say they want to talk to.
    pub id: String,
    /// How messages are written; clients must be told the same.
    pub codec: Codec,
    /// How much of a message is accepted.
    pub accepts: Bounds,
    /// Heartbeats, graces, timeouts.
    pub timing: Timing,
    /// How much of one session may wait for acknowledgement.
    pub holds: SendBounds,
    /// Bytes of all sessions together that may wait for acknowledgement. 512 MiB.
    pub holds_total: usize,
    /// What becomes of a second client with an id that is taken.
    pub second: SecondClient,
    /// Sessions go on over new links. Without it every lost link ends its session.
    pub resumable: bool,
    /// Streams a session may have open. 4,096.
    pub streams_max: usize,
    /// Sessions. 100,000.
    pub sessions_max: usize,
    /// Links that have not said who they are. 10,000.
    pub waiting_max: usize,
    /// Where sessions are recorded. Nowhere.
    pub visits: Visits,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            id: "SERVER".into(),
            codec: Codec::default(),
            accepts: Bounds::default(),
            timing: Timing::default(),
            holds: SendBounds::default(),
            holds_total: 512 << 20,
            second: SecondClient::default(),
            resumable: true,
            streams_max: 4_096,
            sessions_max: 100_000,
            waiting_max: 10_000,
            visits: Visits::default(),
        }
    }
}
