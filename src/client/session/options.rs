//! What a client is told once.

use std::sync::Arc;
use std::time::Duration;

use super::figures::Figures;
use crate::codec::{Bounds, Codec};
use crate::state::envelope::Tracing;
use crate::state::seq::SendBounds;
use crate::state::session::client::Retry;
use crate::state::session::{Event, Timing};
use crate::state::value::Value;

/// Told what happens to a session.
pub type Listener = dyn Fn(&Event) + Send + Sync;
/// Makes the metadata of a handshake.
pub type MakeMetadata = dyn Fn() -> Result<Value, String> + Send + Sync;

/// What a client is told once.
#[derive(Clone)]
pub struct Options {
    /// How messages are written; the server must be told the same.
    pub codec: Codec,
    /// How much of a message is accepted.
    pub accepts: Bounds,
    /// Heartbeats, graces, timeouts.
    pub timing: Timing,
    /// How much may wait for acknowledgement.
    pub holds: SendBounds,
    /// How dials follow one another.
    pub retry: Retry,
    /// Dial again by itself when a link is lost.
    pub reconnects: bool,
    /// Dial at once, instead of with the first call.
    pub eager: bool,
    /// How long a call may take, unless it is told otherwise; none waits as long as the session lives.
    pub call_timeout: Option<Duration>,
    /// Makes the metadata of each handshake: fresh, because it is asked again when the old expires.
    pub metadata: Option<Arc<MakeMetadata>>,
    /// The trace of calls.
    pub tracing: Tracing,
    /// Told what happens to the session. Called on the client's own thread, or on that of a caller or of the link
    /// which does its work just then: it must not wait.
    pub listener: Option<Arc<Listener>>,
    /// What is counted; [`Figures::describe`] shows it to operators.
    pub figures: Figures,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("codec", &self.codec)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            codec: Codec::default(),
            accepts: Bounds::default(),
            timing: Timing::default(),
            holds: SendBounds::default(),
            retry: Retry::default(),
            reconnects: true,
            eager: false,
            call_timeout: None,
            metadata: None,
            tracing: Tracing::default(),
            listener: None,
            figures: Figures::default(),
        }
    }
}
