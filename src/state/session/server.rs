//! The server's side of a session.
//!
//! States: a link bears it, or none does and its grace runs. The wait for a handshake comes before there is
//! a session, and belongs to the link ([`Waiting`]).

use std::mem;

use super::{Action, Cause, Core, Event, Options, Receipt};
use crate::state::envelope::{Envelope, Ids, Message, REHANDSHAKE_STREAM};
use crate::state::handshake::{self, Known, Request, Response, Version};
use crate::state::time::Moment;

/// A link on which nothing has come yet.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// When it is given up.
    pub until: Moment,
}

/// The server's side of one session.
#[derive(Debug)]
pub struct Session {
    core: Core,
    /// The id it answers handshakes with: that of the client, except to clients that do not say where they stand.
    /// Those know a server that lost the session by an id of its own that is not the one before.
    named: String,
    state: State,
}

#[derive(Debug)]
enum State {
    Connected {
        link: u64,
        /// When the peer was last heard.
        heard: Moment,
        /// When to say that we live, and to see whether the peer does.
        tick: Moment,
        refresh: Refresh,
    },
    NoConnection {
        until: Moment,
    },
    /// Over; every later input is ignored.
    Ended,
}

/// Where the metadata's freshness stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refresh {
    /// It does not expire.
    Never,
    /// It is asked for anew at that moment.
    Due(Moment),
    /// It was asked for and must come by then.
    Asked(Moment),
    /// It came and is being looked at.
    Checking(Moment),
}

/// What can happen to a server's session.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A client's handshake was accepted: this link bears the session from now on.
    Attached {
        /// The link.
        link: u64,
        /// How many messages the client has.
        peer_has: u64,
        /// When to ask for fresh metadata, if ever.
        refresh_at: Option<Moment>,
    },
    /// A frame came, or what was none.
    Frame {
        /// The link it came on.
        link: u64,
        /// The message, or what is wrong with it.
        envelope: Result<Envelope, &'static str>,
    },
    /// A message that cannot be taken yet brought this acknowledgement: the peer lives.
    Glimpse {
        /// What it acknowledges.
        ack: u64,
    },
    /// A link is gone.
    Detached {
        /// The link.
        link: u64,
        /// The client said that it leaves for good.
        goodbye: bool,
    },
    /// Something to say on a stream.
    Say(Message),
    /// Ask for fresh metadata now.
    AskRefresh,
    /// The fresh metadata was looked at.
    Refreshed {
        /// When it expires next, if it was accepted.
        accepted: Option<Option<Moment>>,
    },
    /// The alarm that `deadline` asked for; one that comes early changes nothing.
    Alarm,
    /// Cut the link and keep the session.
    Cut(Cause),
    /// End it.
    End(Cause),
}

impl Session {
    /// A session that begins with an accepted handshake. `me` is the server's client id; `draw` makes the ids of
    /// its messages.
    pub fn begin(
        me: &str,
        peer: &str,
        request: &Request,
        draw: u64,
        options: Options,
        sink: &mut Vec<Action>,
    ) -> Session {
        let core = Core::new(me, peer, request.session.clone(), request.version, draw, options);
        let named = match request.expected {
            Some(_) => core.id.clone(),
            // Not what the ids of its messages begin with.
            None => {
                format!("session-{}", Ids::drawn(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)))
            }
        };
        sink.push(Action::Began { session: core.id.clone() });
        // Attached in the same breath; until then its grace is over.
        Session { core, named, state: State::NoConnection { until: Moment::NEVER } }
    }

    /// Its id, named by the client.
    pub fn id(&self) -> &str {
        &self.core.id
    }

    /// The client.
    pub fn peer(&self) -> &str {
        &self.core.peer
    }

    /// The protocol it was begun with.
    pub fn version(&self) -> Version {
        self.core.version
    }

    /// Whether writers should wait.
    pub fn above_mark(&self) -> bool {
        self.core.numbers.above_mark()
    }

    /// Messages and bytes that wait for acknowledgement.
    pub fn unacked(&self) -> (usize, usize) {
        (self.core.numbers.unacked(), self.core.numbers.unacked_bytes())
    }

    /// Whether it is over.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// The link that bears it.
    pub fn link(&self) -> Option<u64> {
        match self.state {
            State::Connected { link, .. } => Some(link),
            State::NoConnection { .. } | State::Ended => None,
        }
    }

    /// What a handshake is compared with.
    pub fn known(&self) -> Known<'_> {
        Known {
            session: &self.core.id,
            connected: self.link().is_some(),
            received: self.core.numbers.received(),
            oldest: self.core.numbers.oldest(),
            next: self.core.numbers.next(),
        }
    }

    /// When it wants an [`Input::Alarm`].
    pub fn deadline(&self) -> Option<Moment> {
        match &self.state {
            State::Connected { tick, refresh, .. } => match refresh {
                Refresh::Never => Some(*tick),
                Refresh::Due(at) | Refresh::Asked(at) | Refresh::Checking(at) => Some(*tick.min(at)),
            },
            State::NoConnection { until } => Some(*until),
            State::Ended => None,
        }
    }

    /// Takes one input, pushes what must be done.
    pub fn step(&mut self, now: Moment, input: Input, sink: &mut Vec<Action>) {
        let state = mem::replace(&mut self.state, State::Ended);
        self.state = self.next(now, state, input, sink);
    }

    fn next(&mut self, now: Moment, state: State, input: Input, sink: &mut Vec<Action>) -> State {
        match (state, input) {
            (State::Ended, _) => State::Ended,

            (state, Input::Attached { link, peer_has, refresh_at }) => {
                if let State::Connected { link: old, .. } = state {
                    self.lose(old, Cause::TakenOver, sink);
                }
                self.attach(now, link, peer_has, refresh_at, sink)
            }

            (State::Connected { link, heard, tick, refresh }, Input::Frame { link: from, envelope })
                if link == from || crate::planted!("session_stale_link_delivers") =>
            {
                self.frame(now, State::Connected { link, heard, tick, refresh }, envelope, sink)
            }

            (State::Connected { link, tick, refresh, .. }, Input::Glimpse { ack }) => {
                self.core.forget_below(ack, sink);
                State::Connected { link, heard: now, tick, refresh }
            }

            (State::Connected { link, .. }, Input::Detached { link: gone, goodbye }) if link == gone => {
                if goodbye {
                    return self.end(None, Cause::Goodbye, sink);
                }
                sink.push(Action::Tell(Event::Disconnected { cause: Cause::LinkLost }));
                self.wait(now, sink)
            }

            (State::Connected { link, heard, tick, refresh }, Input::Say(message)) => {
                if !self.core.say(&message, Some(link), sink) || !self.ask_for_ack(link, sink) {
                    return self.end(Some(link), Cause::BufferFull, sink);
                }
                State::Connected { link, heard, tick, refresh }
            }
            (State::NoConnection { until }, Input::Say(message)) => {
                if !self.core.say(&message, None, sink) {
                    return self.end(None, Cause::BufferFull, sink);
                }
                State::NoConnection { until }
            }

            (State::Connected { link, heard, tick, .. }, Input::AskRefresh) => {
                self.ask_refresh(now, link, heard, tick, sink)
            }
            (
                State::Connected { link, heard, tick, refresh: Refresh::Checking(_) },
                Input::Refreshed { accepted },
            ) => match accepted {
                Some(at) => {
                    State::Connected { link, heard, tick, refresh: at.map_or(Refresh::Never, Refresh::Due) }
                }
                None => self.end(Some(link), Cause::RefreshFailed, sink),
            },

            (State::Connected { link, heard, tick, refresh }, Input::Alarm) => {
                self.alarm(now, link, heard, tick, refresh, sink)
            }
            (State::NoConnection { until }, Input::Alarm) if now >= until => {
                self.end(None, Cause::GraceOver, sink)
            }

            (State::Connected { link, .. }, Input::Cut(cause)) => {
                self.lose(link, cause, sink);
                self.wait(now, sink)
            }
            (State::Connected { link, .. }, Input::End(cause)) => self.end(Some(link), cause, sink),
            (State::NoConnection { .. }, Input::End(cause)) => self.end(None, cause, sink),

            // About a link that is not this one's, or a question nobody asks any more.
            (state, Input::Frame { .. } | Input::Glimpse { .. } | Input::Detached { .. }) => state,
            (state, Input::AskRefresh | Input::Refreshed { .. } | Input::Alarm | Input::Cut(_)) => state,
        }
    }

    fn attach(
        &mut self,
        now: Moment,
        link: u64,
        peer_has: u64,
        refresh_at: Option<Moment>,
        sink: &mut Vec<Action>,
    ) -> State {
        let stream = self.core.ids.make();
        let welcome = Response::Welcome { session: self.named.clone() }.message(stream);
        let frame = self.core.frame_apart(&welcome);
        sink.push(Action::Write { link, frame });
        let connected = self.core.resend(link, peer_has, sink);
        sink.push(Action::Tell(connected));
        State::Connected {
            link,
            heard: now,
            tick: now + self.core.options.timing.heartbeat,
            refresh: refresh_at.map_or(Refresh::Never, Refresh::Due),
        }
    }

    fn frame(
        &mut self,
        now: Moment,
        state: State,
        envelope: Result<Envelope, &'static str>,
        sink: &mut Vec<Action>,
    ) -> State {
        let State::Connected { link, tick, refresh, .. } = state else { return state };
        let envelope = match envelope {
            Ok(envelope) => envelope,
            Err(why) => return self.invalid(link, why, sink),
        };
        let mut refresh = refresh;
        match self.core.receive(&envelope, sink) {
            Receipt::Spoofed => return self.invalid(link, "it is from another client", sink),
            Receipt::Future => {
                self.lose(link, Cause::OutOfOrder, sink);
                return self.wait(now, sink);
            }
            Receipt::Duplicate | Receipt::Ack => {}
            Receipt::Fresh if envelope.stream == REHANDSHAKE_STREAM => {
                if let Refresh::Asked(until) = refresh {
                    let Some(metadata) = handshake::rehandshake_metadata(&envelope) else {
                        return self.end(Some(link), Cause::RefreshFailed, sink);
                    };
                    sink.push(Action::CheckRefresh { metadata: metadata.clone() });
                    refresh = Refresh::Checking(until);
                }
            }
            Receipt::Fresh => sink.push(Action::Deliver(envelope)),
        }
        if self.core.owes_ack() && !self.core.say_ack(link, sink) {
            return self.end(Some(link), Cause::BufferFull, sink);
        }
        State::Connected { link, heard: now, tick, refresh }
    }

    fn alarm(
        &mut self,
        now: Moment,
        link: u64,
        heard: Moment,
        tick: Moment,
        refresh: Refresh,
        sink: &mut Vec<Action>,
    ) -> State {
        match refresh {
            Refresh::Due(at) if now >= at => return self.ask_refresh(now, link, heard, tick, sink),
            Refresh::Asked(until) | Refresh::Checking(until) if now >= until => {
                return self.end(Some(link), Cause::RefreshFailed, sink);
            }
            _ => {}
        }
        if now < tick {
            return State::Connected { link, heard, tick, refresh };
        }
        let timing = self.core.options.timing;
        if now.since(heard) >= timing.dead_after() {
            self.lose(link, Cause::Silent, sink);
            return self.wait(now, sink);
        }
        if !self.core.say(&Message::heartbeat(), Some(link), sink) {
            return self.end(Some(link), Cause::BufferFull, sink);
        }
        // A thread that was held up owes no heartbeats for the time it missed.
        State::Connected { link, heard, tick: now + timing.heartbeat, refresh }
    }

    fn ask_refresh(
        &mut self,
        now: Moment,
        link: u64,
        heard: Moment,
        tick: Moment,
        sink: &mut Vec<Action>,
    ) -> State {
        if !self.core.say(&handshake::rehandshake_request(), Some(link), sink) {
            return self.end(Some(link), Cause::BufferFull, sink);
        }
        let until = now + self.core.options.timing.handshake;
        State::Connected { link, heard, tick, refresh: Refresh::Asked(until) }
    }

    /// Asks the client what it has, once, when the buffer is half full.
    #[must_use]
    fn ask_for_ack(&mut self, link: u64, sink: &mut Vec<Action>) -> bool {
        if self.core.asked.is_some() || !self.core.numbers.half_full() {
            return true;
        }
        self.core.asked = Some(self.core.numbers.next());
        self.core.say_ack(link, sink)
    }

    fn invalid(&mut self, link: u64, why: &'static str, sink: &mut Vec<Action>) -> State {
        sink.push(Action::Tell(Event::InvalidMessage(why)));
        self.end(Some(link), Cause::InvalidMessage, sink)
    }

    fn lose(&mut self, link: u64, cause: Cause, sink: &mut Vec<Action>) {
        sink.push(Action::Close { link, cause });
        sink.push(Action::Tell(Event::Disconnected { cause }));
    }

    /// No link: the grace begins, if there is any.
    fn wait(&mut self, now: Moment, sink: &mut Vec<Action>) -> State {
        let grace = self.core.options.timing.grace;
        if grace.is_zero() {
            return self.end(None, Cause::GraceOver, sink);
        }
        State::NoConnection { until: now + grace }
    }

    fn end(&mut self, link: Option<u64>, cause: Cause, sink: &mut Vec<Action>) -> State {
        if let Some(link) = link {
            self.lose(link, cause, sink);
        }
        sink.push(Action::Ended { session: self.core.id.clone(), cause });
        State::Ended
    }
}
