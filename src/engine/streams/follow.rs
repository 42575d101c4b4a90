//! A follow in this process.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::codec::token::Token;
use crate::rt::{Receiver, RecvTimeoutError};
use crate::state::stream::Cursor;

use super::super::visits::Caller;
use super::event::{Ended, Event, What};
use super::follower::{Channel, FollowerId, Listener, News, Since, Tap};
use super::room::Message;
use super::{Guest, StreamError, Streams, address};

/// How many events a follower's channel holds; what does not fit waits in the room, up to its bound.
const EVENTS: usize = 256;

/// How to follow.
///
/// ```
/// use towpath::{FollowOptions, Since};
///
/// // What happens from now on, and only the durable part of it.
/// let options = FollowOptions { since: Since::Now, parts: false };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowOptions {
    /// From where.
    pub since: Since,
    /// Whether to get the parts of what is being produced.
    pub parts: bool,
}

impl Default for FollowOptions {
    fn default() -> FollowOptions {
        FollowOptions { since: Since::Start, parts: true }
    }
}

/// The events of a stream: first a snapshot, then what happens, as it happens.
///
/// An iterator whose `next` blocks. After [`What::Closed`] it ends. Keep the last event's token: whoever
/// follows again from there misses nothing and gets nothing twice.
///
/// ```
/// use towpath::{Engine, FollowOptions, Since, What};
///
/// let engine = Engine::builder().start()?;
/// let streams = engine.streams();
/// streams.create("chat/1", Default::default())?;
/// streams.append("chat/1", None, &"one")?;
/// let mut follow = streams.follow("chat/1", FollowOptions::default())?;
/// assert!(follow.any(|event| matches!(event.what, What::Message(_))));
///
/// // Gone for a while: come back with the token, and get what was missed.
/// let token = follow.token().expect("an event was taken");
/// drop(follow);
/// streams.append("chat/1", None, &"two")?;
/// let options = FollowOptions { since: Since::After(token), ..FollowOptions::default() };
/// let missed = streams.follow("chat/1", options)?.find_map(|event| match event.what {
///     What::Message(row) => Some(row.id),
///     _ => None,
/// });
/// assert_eq!(missed, Some(2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Follow {
    streams: Streams,
    stream: Uuid,
    id: FollowerId,
    /// None once it was turned into a bare receiver.
    events: Option<Receiver<Event>>,
    news: Arc<News>,
    last: Option<Token>,
    over: bool,
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Follow({})", self.stream)
    }
}

impl Streams {
    /// Follows a stream.
    ///
    /// # Errors
    /// There is no such stream, or the store cannot be asked.
    pub fn follow(&self, name: &str, options: FollowOptions) -> Result<Follow, StreamError> {
        let stream = self.patiently(|| self.wait(|then| self.resolve_then(address(name), then)))?;
        let id = self.next_follower();
        let (tx, rx) = self.rt().channel("follow", EVENTS);
        let news = Arc::new(News::default());
        let tap = Tap::Channel(Channel::new(Box::new(tx), self.limits().queue_bytes_max, news.clone()));
        let guest = self.visit(&Caller::default(), name, "process");
        self.follow_tap(id, stream, options, tap, guest)?;
        Ok(Follow { streams: self.clone(), stream, id, events: Some(rx), news, last: None, over: false })
    }

    /// Follows without a thread: the room tells `listener`, and again a little later what it has no room for.
    /// [`Streams::unfollow`] ends it.
    pub(crate) fn follow_with(
        &self,
        id: FollowerId,
        stream: Uuid,
        options: FollowOptions,
        listener: Box<dyn Listener>,
        guest: Guest,
    ) -> Result<(), StreamError> {
        let channel = Channel::new(listener, self.limits().queue_bytes_max, Arc::default());
        self.follow_tap(id, stream, options, Tap::Channel(channel), guest)
    }
}

impl Follow {
    /// The token to follow again from: that of the last event taken.
    pub fn token(&self) -> Option<Token> {
        self.last
    }

    /// The next event, or none if nothing comes within `wait`.
    ///
    /// # Errors
    /// [`Ended`] once the follow is over and everything was taken.
    pub fn next_within(&mut self, wait: Duration) -> Result<Option<Event>, Ended> {
        let deadline = self.streams.rt().now() + wait;
        match self.events.as_ref().map(|events| events.recv_deadline(deadline)) {
            Some(Ok(event)) => Ok(Some(self.took(event))),
            Some(Err(RecvTimeoutError::Timeout)) => Ok(None),
            Some(Err(RecvTimeoutError::Disconnected)) | None => Err(self.news.ended()),
        }
    }

    fn took(&mut self, event: Event) -> Event {
        self.last = Some(event.token);
        self.over = matches!(event.what, What::Closed(_));
        // The room waits for room in the channel, and is told when half of it is free.
        if let Some(events) = &self.events
            && events.len() < EVENTS / 2
            && self.news.takes_behind()
        {
            // Full: the room looks by itself before long.
            drop(self.streams.to_room(self.stream, Message::Drained(self.id)));
        }
        event
    }

    /// The bare channel, for a `select!` of one's own. It disconnects when the follow is over; dropping it
    /// ends the follow.
    ///
    /// # Panics
    /// In a simulation, where a bare channel would let the world in.
    pub fn into_receiver(mut self) -> crossbeam_channel::Receiver<Event> {
        let events = self.events.take().expect("only this method takes it, and it takes the follow with it");
        events.into_crossbeam()
    }
}

impl Iterator for Follow {
    type Item = Event;

    /// Waits. Woken by an event, or by the end of the follow or of the engine.
    fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        match self.events.as_ref()?.recv() {
            Ok(event) => Some(self.took(event)),
            // The last event had no place in the channel: it is said here.
            Err(_) => {
                self.over = true;
                let nowhere = Token { tag: Default::default(), cursor: Cursor::default() };
                let token = self.last.unwrap_or(nowhere);
                let ts = self.streams.rt().wall().as_millis();
                Some(Event { token, ts, what: What::Closed(self.news.ended()) })
            }
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        // One that was turned into a receiver is ended by dropping that.
        if self.events.take().is_some() {
            self.streams.unfollow(self.stream, self.id);
        }
    }
}
