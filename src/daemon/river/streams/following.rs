//! Follows over a session. The stream's room tells the call, and no thread waits.

use super::super::{Known, failed, value_of};
use crate::engine::streams::event::is_text;
use crate::engine::streams::{Ended, Event, FollowOptions, Listener, StreamError, Streams, What};
use crate::engine::visits::Caller;
use crate::rt::{Cancel, CloserGuard, TrySendError};
use crate::service::{Call, Failure, NotWritten, Writable};
use crate::state::value::Value;
use crate::store::streams::{Address, StreamRow};

/// A follow, as its stream's room reaches it.
struct Following {
    out: Writable<Value>,
    name: String,
    is_text: bool,
    /// It was said why it ended.
    over: bool,
    /// Cancelled when the call is over.
    cancel: Cancel,
    /// Ends the follow then.
    _guard: CloserGuard,
}

/// Finds the stream and follows it, until the call is over.
pub(super) fn begin(
    streams: &Streams,
    at: Address,
    options: FollowOptions,
    call: &Call,
    out: Writable<Value>,
) {
    let (known, cancel) = (streams.clone(), call.cancel_token().clone());
    let who = Caller { principal: Some(Known::of(call).name.into()), ..Caller::default() };
    let found = move |row: Result<StreamRow, StreamError>| match row {
        Ok(row) => open(&known, &row, options, &who, cancel, out),
        Err(error) => out.fail(failed(&error)),
    };
    streams.stands_then(at, Box::new(found));
}

fn open(
    streams: &Streams,
    row: &StreamRow,
    options: FollowOptions,
    who: &Caller,
    cancel: Cancel,
    out: Writable<Value>,
) {
    let (id, stream, leaving) = (streams.next_follower(), row.id, streams.clone());
    // A call that is over by now is found out when it is told the first event.
    let guard = cancel.on_cancel(move || leaving.unfollow(stream, id));
    let (name, is_text) = (row.name.clone(), is_text(&row.content_type));
    let guest = streams.visit(who, &name, "river");
    let following = Following { out, name, is_text, over: false, cancel, _guard: guard };
    if let Err(error) = streams.follow_with(id, stream, options, Box::new(following), guest) {
        // The call heard so from the listener, which is gone.
        log::warn!("follow refused stream={} error={error}", row.name);
    }
}

impl Listener for Following {
    fn tell(&mut self, event: Event) -> Result<(), TrySendError<Event>> {
        // Asked first, so that what has to wait is not written in vain.
        if !self.out.is_ready() {
            return Err(TrySendError::Full(event));
        }
        let Ok(value) = value_of(&event.to_json(&self.name, self.is_text)) else {
            return Err(TrySendError::Disconnected(event));
        };
        match self.out.try_write(&value) {
            Ok(()) => {
                self.over = matches!(event.what, What::Closed(_));
                Ok(())
            }
            Err(NotWritten::Full) => Err(TrySendError::Full(event)),
            Err(NotWritten::Closed | NotWritten::Unwritable) => Err(TrySendError::Disconnected(event)),
        }
    }

    fn untold(&mut self, why: Ended) {
        self.over = true;
        let message = "the follow has ended: begin another with the token of the last event";
        self.out.fail(Failure::new(why.name(), message));
    }
}

impl Drop for Following {
    /// A room that had no place for it, or does not exist any more, has said nothing.
    fn drop(&mut self) {
        if !self.over && !self.cancel.is_cancelled() {
            self.untold(Ended::Full);
        }
    }
}
