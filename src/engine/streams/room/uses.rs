//! Those who wait for the next message without a link of their own, and what keeps a stream in use alive.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{StreamsRoom, Surroundings};
use crate::engine::streams::StreamError;
use crate::engine::streams::room::Then;
use crate::rt::Moment;
use crate::state::stream::Cursor;
use crate::store::streams::{Expiry, MessageRow, StreamRow};

/// Somebody who waits for the next message.
pub(in crate::engine::streams) struct Poll {
    pub(in crate::engine::streams) stream: Uuid,
    /// Generation and position of what it has.
    pub(in crate::engine::streams) after: Cursor,
    pub(in crate::engine::streams) deadline: Moment,
    pub(in crate::engine::streams) then: Then<Polled>,
}

/// What waiting brought.
#[derive(Clone, Debug)]
pub struct Polled {
    /// The stream as it stands.
    pub row: StreamRow,
    /// Whether anything happened: a message, the stream's end, a new generation.
    pub news: bool,
    /// The messages after the position asked for; none if they have to be read.
    pub messages: Option<Vec<Arc<MessageRow>>>,
}

/// A stream in use is kept from running out this often, or more often if its time is shorter: the store
/// writes no more often than that either.
const RENEW: Duration = Duration::from_secs(10);

impl Surroundings {
    /// What Durable Streams readers send along when they come back.
    pub(super) fn cursor(&self) -> u64 {
        self.cursors.now(self.rt.wall())
    }
}

impl StreamsRoom {
    pub(super) fn wait_for_news(&mut self, poll: Poll) {
        let stream = poll.stream;
        self.enter(stream).polls.push(poll);
        self.touched.push(stream);
    }

    /// Answers those for whom there is something, and those who have waited long enough.
    pub(super) fn serve_polls(&mut self, now: Moment, stream: Uuid) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        if entry.polls.is_empty() {
            return;
        }
        let Some(view) = &entry.view else {
            // The store does not answer: neither do we, for longer than was asked.
            for poll in entry.polls.extract_if(.., |poll| poll.deadline <= now) {
                (poll.then)(Err(StreamError::Full));
            }
            return;
        };
        let state = &view.row.state;
        let over = state.closed_pos.is_some() && view.shown() == state.pos;
        let has_news = |poll: &Poll| {
            let behind = poll.after.pos < state.history_pos && poll.after.pos < view.shown();
            poll.after.generation != state.generation || behind || over
        };
        for poll in entry.polls.extract_if(.., |poll| has_news(poll) || poll.deadline <= now) {
            let news = has_news(&poll);
            let messages = view.recent_after(poll.after.pos);
            (poll.then)(Ok(Polled { row: view.row.clone(), news, messages }));
        }
    }

    /// Nobody waits any longer: this replica is about to stop, and another can be asked.
    pub(super) fn end_polls(&mut self) {
        for entry in self.streams.values_mut() {
            for poll in entry.polls.drain(..) {
                (poll.then)(match &entry.view {
                    Some(view) => Ok(Polled { row: view.row.clone(), news: false, messages: None }),
                    None => Err(StreamError::Stopped),
                });
            }
        }
    }

    /// A stream that somebody follows does not run out.
    pub(super) fn keep_what_is_used(&mut self, now: Moment, stream: Uuid) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let used = !entry.followers.is_empty() || !entry.polls.is_empty();
        let ttl = entry.view.as_ref().and_then(|view| match view.row.expiry {
            Expiry::Ttl(ttl) if used => Some(ttl),
            _ => None,
        });
        let Some(ttl) = ttl else {
            entry.renew_at = None;
            return;
        };
        let every = (ttl / 3).clamp(Duration::from_millis(100), RENEW);
        if entry.renew_at.is_none_or(|at| at <= now) {
            entry.renew_at = Some(now + every);
            self.around.desk.touch(vec![stream]);
        }
    }
}
