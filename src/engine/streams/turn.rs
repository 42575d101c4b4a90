//! A turn in the hands of its producer.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use crate::rt::Cancel;
use crate::state::stream::LeaseHash;
use crate::store::streams::{End, Fence, QueuedRow};

use super::{Accepted, Alive, ClaimedTurn, StreamError, Streams, Written, draft};

/// A claim on a stream. Dropping it without having finished says that the producer is lost, and the stream
/// becomes what it asks for then.
///
/// ```
/// let engine = towpath::Engine::builder().start()?;
/// let streams = engine.streams();
/// streams.create("chat/1", Default::default())?;
/// let turn = streams.run("chat/1")?;
/// for word in ["one ", "two"] {
///     if turn.cancelled().is_cancelled() {
///         return Ok(turn.abort()?); // somebody interrupts
///     }
///     turn.part(&word)?;
/// }
/// turn.commit(Some("assistant"), &"one two")?;
/// turn.finish()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TurnHandle {
    streams: Streams,
    claimed: ClaimedTurn,
    over: bool,
}

impl fmt::Debug for TurnHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.claimed.fmt(f)
    }
}

impl TurnHandle {
    pub(super) fn new(streams: Streams, claimed: ClaimedTurn) -> TurnHandle {
        TurnHandle { streams, claimed, over: false }
    }

    /// The stream's id.
    pub fn stream(&self) -> Uuid {
        self.claimed.stream
    }

    /// The stream's name.
    pub fn name(&self) -> &str {
        &self.claimed.name
    }

    /// The turn's number.
    pub fn number(&self) -> u32 {
        self.claimed.turn
    }

    /// The input that was waiting, if one was.
    pub fn input(&self) -> Option<&QueuedRow> {
        self.claimed.input.as_ref()
    }

    /// Cancelled when the turn is asked to stop, and when it was lost. Whoever produces looks at it, or waits
    /// for it, and acknowledges with [`TurnHandle::abort`] or ends as usual.
    pub fn cancelled(&self) -> &Cancel {
        &self.claimed.cancel
    }

    fn fence(&self) -> Fence {
        Fence { turn: self.claimed.turn, lease: LeaseHash::of(&self.claimed.lease) }
    }

    /// Adds a part: any JSON. Gives its number.
    ///
    /// # Errors
    /// The turn was lost, or holds as much as it may; nothing was added.
    pub fn part(&self, part: &impl Serialize) -> Result<u32, StreamError> {
        let part = serde_json::to_string(part).map_err(|error| StreamError::BadJson(error.to_string()))?;
        self.parts(vec![part.into()]).map(|accepted| accepted.last)
    }

    /// Adds several parts, each a JSON document.
    ///
    /// # Errors
    /// The turn was lost, or holds as much as it may; the error says how many were added.
    pub fn parts(&self, parts: Vec<Arc<str>>) -> Result<Accepted, StreamError> {
        let stream = self.claimed.stream;
        self.ask(|streams, then| streams.parts_then(stream, self.fence(), None, parts, then))
    }

    /// Writes a durable message, which stands for all parts so far. The turn goes on.
    ///
    /// # Errors
    /// The turn was lost: nothing was written, and nothing will be under this claim.
    pub fn commit(&self, role: Option<&str>, content: &impl Serialize) -> Result<Written, StreamError> {
        let draft = draft(role, content)?;
        let key = self.streams.rt().uuid_v4().to_string();
        let stream = self.claimed.stream;
        self.streams.patiently(|| {
            let (draft, key) = (draft.clone(), Some(key.clone()));
            self.ask(|streams, then| streams.commit_then(stream, self.fence(), draft, key, then))
        })
    }

    /// Says that the producer is alive though it has no part. Once in 60 s is enough.
    ///
    /// # Errors
    /// The turn was lost.
    pub fn keepalive(&self) -> Result<Alive, StreamError> {
        let stream = self.claimed.stream;
        self.ask(|streams, then| streams.keepalive_then(stream, self.fence(), then))
    }

    /// Ends the turn well.
    ///
    /// # Errors
    /// The turn was lost: somebody else has the stream, or had it.
    pub fn finish(self) -> Result<(), StreamError> {
        self.end(End::Done)
    }

    /// Ends the turn with an error, which followers are shown.
    ///
    /// # Errors
    /// The turn was lost.
    pub fn fail(self, why: impl Into<String>) -> Result<(), StreamError> {
        self.end(End::Failed(why.into()))
    }

    /// Gives the turn up, or acknowledges that it was asked to stop: the stream is idle.
    ///
    /// # Errors
    /// The turn was lost.
    pub fn abort(self) -> Result<(), StreamError> {
        self.end(End::Aborted)
    }

    fn end(mut self, end: End) -> Result<(), StreamError> {
        self.over = true;
        let stream = self.claimed.stream;
        self.streams.patiently(|| {
            let end = end.clone();
            self.ask(|streams, then| streams.end_then(stream, self.fence(), end, then))
        })
    }

    fn ask<T: Send + 'static>(
        &self,
        start: impl FnOnce(&Streams, super::room::Then<T>),
    ) -> Result<T, StreamError> {
        match self.streams.wait(|then| start(&self.streams, then)) {
            Err(StreamError::NotHere) => Err(StreamError::TurnLost { turn: self.claimed.turn }),
            answer => answer,
        }
    }
}

impl Drop for TurnHandle {
    fn drop(&mut self) {
        if !self.over {
            // Nobody waits for the answer: a lease that cannot be ended now dies by itself.
            self.streams.end_then(self.claimed.stream, self.fence(), End::Lost, Box::new(drop));
        }
    }
}
