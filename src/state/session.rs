//! A session: one conversation between two parties that outlives its links.
//!
//! What both sides share stands here: numbers, what waits for acknowledgement, what is said about it and
//! why it ends. [`server`] and [`client`] are the two machines. Both are driven alike: `step(now, input,
//! sink)`, then carry out the actions in order, then set an alarm for `deadline()`.
//!
//! Every action that concerns a link carries its number, and an input about any link but the present one
//! changes nothing: it is an answer that came too late.
//!
//! Acknowledgements ride on every message. Beyond what the reference sends, each side says one by itself
//! after [`Timing::ack_every`] messages to which it had nothing to answer, and a server whose buffer is half
//! full asks for one, which a River client answers at once.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::envelope::{Envelope, Flags, Ids, Message, Outgoing};
use super::handshake::{Refusal, Version};
use super::seq::{Numbers, SendBounds, Verdict};

pub mod client;
pub mod server;

/// When things are said and when one stops waiting. Both ends must be given compatible heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often the server says that it lives. 1 s.
    pub heartbeat: Duration,
    /// After how many heartbeats of silence a link is given up. 2.
    pub heartbeats_until_dead: u32,
    /// How long a session without a link is kept. 5 s; zero keeps it not at all.
    pub grace: Duration,
    /// How long a handshake may take. 1 s.
    pub handshake: Duration,
    /// How long a dial may take. 2 s.
    pub connect: Duration,
    /// After how many messages that were only listened to an acknowledgement is said. 256.
    pub ack_every: u32,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_secs(1),
            heartbeats_until_dead: 2,
            grace: Duration::from_secs(5),
            handshake: Duration::from_secs(1),
            connect: Duration::from_secs(2),
            ack_every: 256,
        }
    }
}

impl Timing {
    fn dead_after(&self) -> Duration {
        self.heartbeat.saturating_mul(self.heartbeats_until_dead)
    }
}

/// How messages become bytes. Given to the machines, which know no codec.
pub type Encode = fn(Outgoing<'_>) -> Bytes;

/// What a session is told once.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Its clocks.
    pub timing: Timing,
    /// How much may wait for acknowledgement.
    pub bounds: SendBounds,
    /// Its codec.
    pub encode: Encode,
}

/// Why a link is closed or a session ends. Links carry it as a WebSocket close code and reason; River peers
/// ignore those, operators and logs do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The other side left on purpose, or we do.
    Goodbye,
    /// The handshake was refused.
    HandshakeRefused,
    /// No handshake came in time.
    HandshakeTimeout,
    /// Something arrived that is no message, or is from somebody else.
    InvalidMessage,
    /// A message arrived before one that should have come earlier.
    OutOfOrder,
    /// Nothing was heard for too long.
    Silent,
    /// The session goes on over a newer link.
    TakenOver,
    /// The client began another session.
    Replaced,
    /// More waits for acknowledgement than may be held.
    BufferFull,
    /// Fresh credentials were asked for and did not come, or were refused.
    RefreshFailed,
    /// This end is stopping.
    GoingAway,
    /// The grace ended without a link.
    GraceOver,
    /// A link that nobody waits for any more.
    NotWanted,
    /// The two sides no longer mean the same session.
    Mismatch,
    /// The link broke, or was closed by whoever bears it.
    LinkLost,
}

impl Cause {
    /// All of them, for metrics that name each.
    pub const ALL: [Cause; 15] = [
        Cause::Goodbye,
        Cause::HandshakeRefused,
        Cause::HandshakeTimeout,
        Cause::InvalidMessage,
        Cause::OutOfOrder,
        Cause::Silent,
        Cause::TakenOver,
        Cause::Replaced,
        Cause::BufferFull,
        Cause::RefreshFailed,
        Cause::GoingAway,
        Cause::GraceOver,
        Cause::NotWanted,
        Cause::Mismatch,
        Cause::LinkLost,
    ];

    /// The WebSocket close code: 4000 and the position in [`Cause::ALL`].
    pub fn code(self) -> u16 {
        4000 + self as u16
    }

    /// The close reason, and the label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Goodbye => "goodbye",
            Cause::HandshakeRefused => "handshake_refused",
            Cause::HandshakeTimeout => "handshake_timeout",
            Cause::InvalidMessage => "invalid_message",
            Cause::OutOfOrder => "out_of_order",
            Cause::Silent => "silent",
            Cause::TakenOver => "taken_over",
            Cause::Replaced => "replaced",
            Cause::BufferFull => "buffer_full",
            Cause::RefreshFailed => "refresh_failed",
            Cause::GoingAway => "going_away",
            Cause::GraceOver => "grace_over",
            Cause::NotWanted => "not_wanted",
            Cause::Mismatch => "mismatch",
            Cause::LinkLost => "link_lost",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a machine wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Client: open a link. The answer carries the number.
    Dial {
        /// Its number.
        dial: u64,
    },
    /// Client: construct the metadata for a handshake, or again for a refresh.
    AskMetadata {
        /// The link it is for.
        link: u64,
    },
    /// Server: look at the metadata a client sent as a refresh.
    CheckRefresh {
        /// What it sent.
        metadata: super::value::Value,
    },
    /// Write a frame to a link. What does not fit there is a lost link, not a lost frame.
    Write {
        /// The link.
        link: u64,
        /// One message.
        frame: Bytes,
    },
    /// Close a link.
    Close {
        /// The link.
        link: u64,
        /// Why.
        cause: Cause,
    },
    /// A message for the streams on this session.
    Deliver(Envelope),
    /// A session exists from now on.
    Began {
        /// Its id.
        session: String,
    },
    /// It does not any more; its streams get `UNEXPECTED_DISCONNECT`.
    Ended {
        /// Its id.
        session: String,
        /// Why.
        cause: Cause,
    },
    /// Writers that waited may go on.
    Writable,
    /// Something to count or to tell the user.
    Tell(Event),
}

/// What happened, for metrics, logs and listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link bears the session.
    Connected {
        /// How many frames were sent again on it.
        resent: usize,
        /// How many the peer turned out to have.
        trimmed: usize,
    },
    /// The session is without a link.
    Disconnected {
        /// Why.
        cause: Cause,
    },
    /// A handshake failed for good; a later call dials again.
    HandshakeFailed(HandshakeFailure),
    /// The peer and we did not mean the same session; a new one begins.
    Mismatch(String),
    /// More dials failed in a row than the budget holds; dialing goes on, slowly.
    RetriesExceeded,
    /// A message that had been received before.
    Duplicate,
    /// A message no session can go on after.
    InvalidMessage(&'static str),
    /// An acknowledgement was said without being asked.
    AckSaid,
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The server said no.
    Refused(Refusal),
    /// The server's answer was none.
    BadResponse,
    /// The server answered for another session.
    OtherSession(String),
    /// The metadata could not be constructed.
    NoMetadata(String),
}

impl fmt::Display for HandshakeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeFailure::Refused(refusal) => write!(f, "{refusal}"),
            HandshakeFailure::BadResponse => f.write_str("the server's answer is not a handshake response"),
            HandshakeFailure::OtherSession(id) => write!(f, "the server answered for another session, {id}"),
            HandshakeFailure::NoMetadata(why) => write!(f, "the handshake metadata could not be made: {why}"),
        }
    }
}

/// What both machines carry from link to link.
#[derive(Debug)]
struct Core {
    me: String,
    peer: String,
    id: String,
    version: Version,
    numbers: Numbers,
    ids: Ids,
    options: Options,
    /// Messages received since anything was said.
    unsaid: u32,
    /// The number of the question for an acknowledgement that is under way.
    asked: Option<u64>,
}

/// A message that came over the present link.
enum Receipt {
    /// Received before; nothing to do.
    Duplicate,
    /// For the streams, or the session itself.
    Fresh,
    /// An acknowledgement and nothing more.
    Ack,
    /// Some are missing: only a new handshake helps.
    Future,
    /// Nobody this session knows.
    Spoofed,
}

impl Core {
    fn new(me: &str, peer: &str, id: String, version: Version, draw: u64, options: Options) -> Core {
        Core {
            me: me.to_owned(),
            peer: peer.to_owned(),
            id,
            version,
            numbers: Numbers::new(options.bounds),
            ids: Ids::new(draw),
            options,
            unsaid: 0,
            asked: None,
        }
    }

    /// A frame outside the numbering: a handshake.
    fn frame_apart(&mut self, message: &Message) -> Bytes {
        let id = self.ids.make();
        (self.options.encode)(Outgoing { id: &id, from: &self.me, to: &self.peer, seq: 0, ack: 0, message })
    }

    /// Numbers a message, keeps it, and writes it if there is a link. False when no more can be held.
    #[must_use]
    fn say(&mut self, message: &Message, link: Option<u64>, sink: &mut Vec<Action>) -> bool {
        let id = self.ids.make();
        let frame = (self.options.encode)(Outgoing {
            id: &id,
            from: &self.me,
            to: &self.peer,
            seq: self.numbers.next(),
            ack: self.numbers.received() + u64::from(crate::planted!("session_ack_before_processing")),
            message,
        });
        if !self.numbers.keep(frame.clone()) {
            return false;
        }
        if let Some(link) = link {
            self.unsaid = 0;
            sink.push(Action::Write { link, frame });
        }
        true
    }

    /// Says an acknowledgement without being asked.
    #[must_use]
    fn say_ack(&mut self, link: u64, sink: &mut Vec<Action>) -> bool {
        sink.push(Action::Tell(Event::AckSaid));
        self.say(&Message::heartbeat(), Some(link), sink)
    }

    /// Whether it is time to say an acknowledgement for want of anything else.
    fn owes_ack(&self) -> bool {
        self.unsaid >= self.options.timing.ack_every
    }

    /// Sends again what the peer does not have.
    fn resend(&mut self, link: u64, peer_has: u64, sink: &mut Vec<Action>) -> Event {
        let above = self.numbers.above_mark();
        let trimmed = if crate::planted!("session_resend_without_trim") {
            0
        } else {
            self.numbers.forget_below(peer_has)
        };
        let frames = self.numbers.frames();
        let resent = frames.len();
        sink.extend(frames.map(|frame| Action::Write { link, frame: frame.clone() }));
        self.asked = None;
        if above && !self.numbers.above_mark() {
            sink.push(Action::Writable);
        }
        Event::Connected { resent, trimmed }
    }

    /// Takes note of a message, before anything is done about it.
    fn receive(&mut self, envelope: &Envelope, sink: &mut Vec<Action>) -> Receipt {
        if envelope.from != self.peer {
            return Receipt::Spoofed;
        }
        match self.numbers.judge(envelope.seq) {
            Verdict::Future => return Receipt::Future,
            Verdict::Duplicate => {
                self.forget_below(envelope.ack, sink);
                sink.push(Action::Tell(Event::Duplicate));
                return Receipt::Duplicate;
            }
            Verdict::Next => {}
        }
        self.forget_below(envelope.ack, sink);
        self.numbers.accept();
        self.unsaid += 1;
        if envelope.flags.has(Flags::ACK) { Receipt::Ack } else { Receipt::Fresh }
    }

    fn forget_below(&mut self, peer_has: u64, sink: &mut Vec<Action>) {
        let above = self.numbers.above_mark();
        self.numbers.forget_below(peer_has);
        if self.asked.is_some_and(|asked| self.numbers.oldest() > asked) {
            self.asked = None;
        }
        if above && !self.numbers.above_mark() {
            sink.push(Action::Writable);
        }
    }
}

#[cfg(test)]
mod tests;
