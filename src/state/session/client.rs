//! The client's side: the session there may be, and the dials that find it a link.
//!
//! A session begins with the first thing to say, or when one asks to connect, and dies with its grace: the
//! time without a link that both sides allow. Until then dialing goes on, however many dials fail; the
//! budget of the reference only says how slowly, and that somebody should be told.

use std::mem;
use std::time::Duration;

use super::{Action, Cause, Core, Event, HandshakeFailure, Options, Receipt};
use crate::state::envelope::{Envelope, Ids, Message, REHANDSHAKE_STREAM};
use crate::state::handshake::{self, Expected, Request, Response, Version};
use crate::state::time::Moment;
use crate::state::value::Value;

/// How dials follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The wait before the second dial of a row; the first goes at once. 150 ms.
    pub base: Duration,
    /// Added to every wait, at random below this. 200 ms.
    pub jitter_max: Duration,
    /// The longest wait, without the jitter. 32 s.
    pub wait_max: Duration,
    /// Dials in a row after which one is told that they fail. 5.
    pub budget: u32,
    /// How long a link must live to earn one dial back. 200 ms.
    pub restore: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry {
            base: Duration::from_millis(150),
            jitter_max: Duration::from_millis(200),
            wait_max: Duration::from_secs(32),
            budget: 5,
            restore: Duration::from_millis(200),
        }
    }
}

impl Retry {
    /// The wait before the next dial after `spent` in a row.
    pub(super) fn wait(&self, spent: u32, draw: u64) -> Duration {
        if spent == 0 {
            return Duration::ZERO;
        }
        let doubled = self.base.saturating_mul(1 << (spent - 1).min(30)).min(self.wait_max);
        let jitter = (u128::from(draw) * self.jitter_max.as_nanos()) >> 64;
        doubled + Duration::from_nanos(jitter as u64)
    }
}

/// The client's side of the sessions with one server: at most one at a time.
#[derive(Debug)]
pub struct Client {
    me: String,
    server: String,
    options: Options,
    retry: Retry,
    /// Dial again by itself when a link is lost.
    reconnects: bool,
    dials: u64,
    /// Dials in a row without a link that lived.
    spent: u32,
    /// The user was told of this outage.
    told: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing to keep. The next thing to say begins a session.
    Idle,
    /// A session, and where its link stands.
    Live(Core, Link),
}

/// The deadline of the grace is carried along until a link bears the session.
#[derive(Clone, Copy, Debug)]
enum Link {
    NoConnection { grace: Moment },
    BackingOff { until: Moment, grace: Moment },
    Connecting { dial: u64, until: Moment, grace: Moment },
    Handshaking { dial: u64, until: Moment, grace: Moment },
    Connected { dial: u64, since: Moment, heard: Moment, tick: Moment },
}

/// What can happen to a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Have a session with a link.
    Connect,
    /// Something to say on a stream; begins a session if there is none.
    Say(Message),
    /// A dial succeeded: the link has the dial's number.
    Dialed {
        /// The dial.
        dial: u64,
    },
    /// A dial failed.
    DialFailed {
        /// The dial.
        dial: u64,
    },
    /// The metadata that [`Action::AskMetadata`] asked for; `None` if this client has none.
    Metadata {
        /// The link it is for.
        link: u64,
        /// The metadata, or why there is none.
        metadata: Result<Option<Value>, String>,
    },
    /// A frame came, or what was none.
    Frame {
        /// The link it came on.
        link: u64,
        /// The message, or what is wrong with it.
        envelope: Result<Envelope, &'static str>,
    },
    /// A message that cannot be taken yet brought this acknowledgement: the server lives.
    Glimpse {
        /// The link it came on.
        link: u64,
        /// What it acknowledges.
        ack: u64,
    },
    /// A link is gone.
    Detached {
        /// The link.
        link: u64,
    },
    /// The alarm that `deadline` asked for; one that comes early changes nothing.
    Alarm,
    /// Dial now, whatever the wait.
    Hurry,
    /// Cut the link and keep the session; what follows is as if the network had done it.
    Cut(Cause),
    /// Whether to dial again by itself from now on.
    Reconnects(bool),
    /// End the session.
    End(Cause),
}

impl Client {
    /// A client that has not dialed. `me` must be unique among the live clients of `server`.
    pub fn new(me: &str, server: &str, options: Options, retry: Retry) -> Client {
        Client {
            me: me.to_owned(),
            server: server.to_owned(),
            options,
            retry,
            reconnects: true,
            dials: 0,
            spent: 0,
            told: false,
            state: State::Idle,
        }
    }

    /// The session there is.
    pub fn session(&self) -> Option<&str> {
        match &self.state {
            State::Idle => None,
            State::Live(core, _) => Some(&core.id),
        }
    }

    /// Whether a link bears the session.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Live(_, Link::Connected { .. }))
    }

    /// Whether writers should wait.
    pub fn above_mark(&self) -> bool {
        matches!(&self.state, State::Live(core, _) if core.numbers.above_mark())
    }

    /// Messages and bytes that wait for acknowledgement.
    pub fn unacked(&self) -> (usize, usize) {
        match &self.state {
            State::Idle => (0, 0),
            State::Live(core, _) => (core.numbers.unacked(), core.numbers.unacked_bytes()),
        }
    }

    /// When it wants an [`Input::Alarm`].
    pub fn deadline(&self) -> Option<Moment> {
        let State::Live(_, link) = &self.state else { return None };
        Some(match *link {
            Link::NoConnection { grace } => grace,
            Link::BackingOff { until, grace }
            | Link::Connecting { until, grace, .. }
            | Link::Handshaking { until, grace, .. } => until.min(grace),
            Link::Connected { tick, .. } => tick,
        })
    }

    /// Takes one input, pushes what must be done. `draw` is a random number.
    pub fn step(&mut self, now: Moment, draw: u64, input: Input, sink: &mut Vec<Action>) {
        if let Input::Reconnects(yes) = input {
            self.reconnects = yes;
        }
        let state = mem::replace(&mut self.state, State::Idle);
        self.state = match (state, input) {
            (State::Idle, Input::Connect) => {
                let core = self.begin(draw, sink);
                self.back_off(now, draw, core, None, sink)
            }
            (State::Idle, Input::Say(message)) => {
                let mut core = self.begin(draw, sink);
                if !core.say(&message, None, sink) {
                    self.end(core, None, Cause::BufferFull, sink)
                } else {
                    self.back_off(now, draw, core, None, sink)
                }
            }
            // A dial that nobody waits for any more came through.
            (State::Idle, Input::Dialed { dial }) => {
                sink.push(Action::Close { link: dial, cause: Cause::NotWanted });
                State::Idle
            }
            (State::Idle, _) => State::Idle,
            (State::Live(core, link), input) => self.live(now, draw, core, link, input, sink),
        };
    }

    fn live(
        &mut self,
        now: Moment,
        draw: u64,
        mut core: Core,
        link: Link,
        input: Input,
        sink: &mut Vec<Action>,
    ) -> State {
        match (link, input) {
            (link, Input::Say(message)) => {
                let bearer = match link {
                    Link::Connected { dial, .. } => Some(dial),
                    _ => None,
                };
                if !core.say(&message, bearer, sink) {
                    return self.end(core, bearer, Cause::BufferFull, sink);
                }
                // Whoever says something wants it to arrive, also after a drop that was not followed by a dial.
                match link {
                    Link::NoConnection { grace } => self.back_off(now, draw, core, Some(grace), sink),
                    link => State::Live(core, link),
                }
            }
            (Link::NoConnection { grace }, Input::Connect | Input::Hurry) => {
                self.back_off(now, draw, core, Some(grace), sink)
            }
            (Link::BackingOff { grace, .. }, Input::Hurry) => self.dial(now, core, grace, sink),

            (Link::Connecting { dial, grace, .. }, Input::Dialed { dial: answer }) if dial == answer => {
                let until = now + self.options.timing.handshake;
                sink.push(Action::AskMetadata { link: dial });
                State::Live(core, Link::Handshaking { dial, until, grace })
            }
            (Link::Connecting { dial, grace, .. }, Input::DialFailed { dial: answer }) if dial == answer => {
                self.drop_link(now, draw, core, grace, Cause::LinkLost, sink)
            }

            (Link::Handshaking { dial, .. }, Input::Metadata { link: asked, metadata }) if dial == asked => {
                match metadata {
                    Ok(metadata) => {
                        let request = Request {
                            version: Version::V2_0,
                            session: core.id.clone(),
                            expected: Some(Expected {
                                next_expected: core.numbers.received(),
                                next_sent: core.numbers.oldest(),
                            }),
                            metadata,
                        };
                        let stream = core.ids.make();
                        let frame = core.frame_apart(&request.message(stream));
                        sink.push(Action::Write { link: dial, frame });
                        State::Live(core, link)
                    }
                    Err(why) => self.fail(core, dial, HandshakeFailure::NoMetadata(why), sink),
                }
            }
            (Link::Handshaking { dial, .. }, Input::Frame { link: from, envelope }) if dial == from => {
                self.response(now, draw, core, dial, envelope, sink)
            }
            (Link::Handshaking { dial, grace, .. }, Input::Detached { link: gone }) if dial == gone => {
                self.drop_link(now, draw, core, grace, Cause::LinkLost, sink)
            }

            (Link::Connected { dial, since, tick, .. }, Input::Frame { link: from, envelope })
                if dial == from || crate::planted!("session_stale_link_delivers") =>
            {
                self.frame(now, draw, core, dial, since, tick, envelope, sink)
            }
            (Link::Connected { dial, since, tick, .. }, Input::Glimpse { link: from, ack })
                if dial == from =>
            {
                core.forget_below(ack, sink);
                State::Live(core, Link::Connected { dial, since, heard: now, tick })
            }
            (Link::Connected { dial, since, .. }, Input::Detached { link: gone }) if dial == gone => {
                self.earn(now, since);
                self.lost(now, draw, core, Cause::LinkLost, sink)
            }
            (Link::Connected { dial, .. }, Input::Metadata { link: asked, metadata }) if dial == asked => {
                // Without metadata there is nothing to answer; the server decides what that means.
                if let Ok(Some(metadata)) = metadata
                    && !core.say(&handshake::rehandshake_response(metadata), Some(dial), sink)
                {
                    return self.end(core, Some(dial), Cause::BufferFull, sink);
                }
                State::Live(core, link)
            }

            (link, Input::Alarm) => self.alarm(now, draw, core, link, sink),

            (Link::Connected { dial, since, .. }, Input::Cut(cause)) => {
                sink.push(Action::Close { link: dial, cause });
                self.earn(now, since);
                self.lost(now, draw, core, cause, sink)
            }
            (link, Input::End(cause)) => {
                let bearer = match link {
                    Link::Connected { dial, .. } | Link::Handshaking { dial, .. } => Some(dial),
                    _ => None,
                };
                self.end(core, bearer, cause, sink)
            }

            (
                Link::Handshaking { dial, .. } | Link::Connected { dial, .. },
                Input::Dialed { dial: again },
            ) if dial == again => State::Live(core, link),
            // A dial we gave up on came through: it is closed, here and nowhere else.
            (link, Input::Dialed { dial }) => {
                sink.push(Action::Close { link: dial, cause: Cause::NotWanted });
                State::Live(core, link)
            }
            // About a link that is not this one's, or already as asked.
            (link, _) => State::Live(core, link),
        }
    }

    fn alarm(&mut self, now: Moment, draw: u64, mut core: Core, link: Link, sink: &mut Vec<Action>) -> State {
        match link {
            Link::NoConnection { grace }
            | Link::BackingOff { grace, .. }
            | Link::Connecting { grace, .. }
            | Link::Handshaking { grace, .. }
                if now >= grace =>
            {
                let bearer = match link {
                    Link::Handshaking { dial, .. } => Some(dial),
                    _ => None,
                };
                self.end(core, bearer, Cause::GraceOver, sink)
            }
            Link::BackingOff { until, grace } if now >= until => self.dial(now, core, grace, sink),
            Link::Connecting { until, grace, .. } if now >= until => {
                self.drop_link(now, draw, core, grace, Cause::LinkLost, sink)
            }
            Link::Handshaking { dial, until, grace } if now >= until => {
                sink.push(Action::Close { link: dial, cause: Cause::HandshakeTimeout });
                self.drop_link(now, draw, core, grace, Cause::HandshakeTimeout, sink)
            }
            Link::Connected { dial, since, heard, tick } if now >= tick => {
                let timing = self.options.timing;
                if now.since(heard) >= timing.dead_after() {
                    sink.push(Action::Close { link: dial, cause: Cause::Silent });
                    self.earn(now, since);
                    return self.lost(now, draw, core, Cause::Silent, sink);
                }
                if crate::planted!("session_client_heartbeats")
                    && !core.say(&Message::heartbeat(), Some(dial), sink)
                {
                    return self.end(core, Some(dial), Cause::BufferFull, sink);
                }
                State::Live(core, Link::Connected { dial, since, heard, tick: now + timing.heartbeat })
            }
            early => State::Live(core, early),
        }
    }

    fn response(
        &mut self,
        now: Moment,
        draw: u64,
        mut core: Core,
        dial: u64,
        envelope: Result<Envelope, &'static str>,
        sink: &mut Vec<Action>,
    ) -> State {
        let response =
            envelope.ok().and_then(|envelope| Response::read(&envelope).map(|read| (envelope, read)));
        match response {
            Some((_, Response::Welcome { session })) if session == core.id => {
                // What the server has it does not say; its next message's `ack` will.
                let peer_has = core.numbers.oldest();
                let connected = core.resend(dial, peer_has, sink);
                sink.push(Action::Tell(connected));
                self.told = false;
                let tick = now + self.options.timing.heartbeat;
                State::Live(core, Link::Connected { dial, since: now, heard: now, tick })
            }
            Some((_, Response::Welcome { session })) => {
                self.fail(core, dial, HandshakeFailure::OtherSession(session), sink)
            }
            Some((_, Response::Refused(refusal))) if refusal.code.is_retriable() => {
                sink.push(Action::Tell(Event::Mismatch(refusal.reason)));
                self.end(core, Some(dial), Cause::Mismatch, sink);
                if !self.reconnects {
                    return State::Idle;
                }
                let core = self.begin(draw, sink);
                self.back_off(now, draw, core, None, sink)
            }
            Some((_, Response::Refused(refusal))) => {
                self.fail(core, dial, HandshakeFailure::Refused(refusal), sink)
            }
            None => self.fail(core, dial, HandshakeFailure::BadResponse, sink),
        }
    }

    fn frame(
        &mut self,
        now: Moment,
        draw: u64,
        mut core: Core,
        dial: u64,
        since: Moment,
        tick: Moment,
        envelope: Result<Envelope, &'static str>,
        sink: &mut Vec<Action>,
    ) -> State {
        let envelope = match envelope {
            Ok(envelope) => envelope,
            Err(why) => return self.invalid(core, dial, why, sink),
        };
        let fits = match core.receive(&envelope, sink) {
            Receipt::Spoofed => return self.invalid(core, dial, "it is from another server", sink),
            Receipt::Future => {
                sink.push(Action::Close { link: dial, cause: Cause::OutOfOrder });
                self.earn(now, since);
                return self.lost(now, draw, core, Cause::OutOfOrder, sink);
            }
            Receipt::Duplicate => true,
            // A server's heartbeat, or its question for an acknowledgement, is answered at once.
            Receipt::Ack => core.say(&Message::heartbeat(), Some(dial), sink),
            Receipt::Fresh if envelope.stream == REHANDSHAKE_STREAM => {
                if handshake::is_rehandshake_request(&envelope) {
                    sink.push(Action::AskMetadata { link: dial });
                }
                true
            }
            Receipt::Fresh => {
                sink.push(Action::Deliver(envelope));
                !core.owes_ack() || core.say_ack(dial, sink)
            }
        };
        if !fits {
            return self.end(core, Some(dial), Cause::BufferFull, sink);
        }
        State::Live(core, Link::Connected { dial, since, heard: now, tick })
    }

    fn begin(&mut self, draw: u64, sink: &mut Vec<Action>) -> Core {
        // Not the draw that its messages' ids begin with: those are seen by whoever sees a message.
        let id = format!("session-{}", Ids::drawn(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)));
        sink.push(Action::Began { session: id.clone() });
        Core::new(&self.me, &self.server, id, Version::V2_0, draw, self.options)
    }

    /// Waits for the next dial's turn; a session that has no grace yet gets one.
    fn back_off(
        &mut self,
        now: Moment,
        draw: u64,
        core: Core,
        grace: Option<Moment>,
        sink: &mut Vec<Action>,
    ) -> State {
        // A session that has never had a link may look for one even where none outlives its link.
        let first =
            self.options.timing.grace.max(self.options.timing.connect + self.options.timing.handshake);
        let grace = grace.unwrap_or(now + first);
        if self.spent >= self.retry.budget && !self.told {
            self.told = true;
            sink.push(Action::Tell(Event::RetriesExceeded));
        }
        let wait = self.retry.wait(self.spent, draw);
        if wait.is_zero() {
            return self.dial(now, core, grace, sink);
        }
        State::Live(core, Link::BackingOff { until: now + wait, grace })
    }

    fn dial(&mut self, now: Moment, core: Core, grace: Moment, sink: &mut Vec<Action>) -> State {
        self.dials += 1;
        self.spent = self.spent.saturating_add(1);
        sink.push(Action::Dial { dial: self.dials });
        State::Live(
            core,
            Link::Connecting { dial: self.dials, until: now + self.options.timing.connect, grace },
        )
    }

    /// A link that lived gives back what dialing it cost.
    fn earn(&mut self, now: Moment, since: Moment) {
        let earned = now.since(since).as_nanos() / self.retry.restore.as_nanos().max(1);
        self.spent = self.spent.saturating_sub(u32::try_from(earned).unwrap_or(u32::MAX));
    }

    /// A link that bore the session is gone: a new grace begins, if there is any.
    fn lost(&mut self, now: Moment, draw: u64, core: Core, cause: Cause, sink: &mut Vec<Action>) -> State {
        let grace = self.options.timing.grace;
        if grace.is_zero() {
            sink.push(Action::Tell(Event::Disconnected { cause }));
            return self.end(core, None, Cause::GraceOver, sink);
        }
        self.drop_link(now, draw, core, now + grace, cause, sink)
    }

    fn drop_link(
        &mut self,
        now: Moment,
        draw: u64,
        core: Core,
        grace: Moment,
        cause: Cause,
        sink: &mut Vec<Action>,
    ) -> State {
        sink.push(Action::Tell(Event::Disconnected { cause }));
        match self.reconnects {
            true => self.back_off(now, draw, core, Some(grace), sink),
            false => State::Live(core, Link::NoConnection { grace }),
        }
    }

    fn invalid(&mut self, core: Core, dial: u64, why: &'static str, sink: &mut Vec<Action>) -> State {
        sink.push(Action::Tell(Event::InvalidMessage(why)));
        self.end(core, Some(dial), Cause::InvalidMessage, sink)
    }

    fn fail(&mut self, core: Core, dial: u64, failure: HandshakeFailure, sink: &mut Vec<Action>) -> State {
        sink.push(Action::Tell(Event::HandshakeFailed(failure)));
        self.end(core, Some(dial), Cause::HandshakeRefused, sink)
    }

    fn end(&mut self, core: Core, link: Option<u64>, cause: Cause, sink: &mut Vec<Action>) -> State {
        if let Some(link) = link {
            sink.push(Action::Close { link, cause });
            sink.push(Action::Tell(Event::Disconnected { cause }));
        }
        sink.push(Action::Ended { session: core.id, cause });
        State::Idle
    }
}
