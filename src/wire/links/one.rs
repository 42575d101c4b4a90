//! One link: what it reads, what it writes, when it has to be looked at again.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::queue::Queue;
use crate::state::time::Moment;
use crate::wire::http::{BodyReader, HeadReader};
use crate::wire::limits::{Limits, Pace};
use crate::wire::link::{GroupId, LinkId, Owner, Peer};
use crate::wire::pass::Pass;
use crate::wire::websocket;

/// What the bytes that arrive mean.
pub(super) enum Incoming {
    /// A request head, or the beginning of one.
    Head(HeadReader),
    /// The body of a request whose handler wants all of it.
    Whole(Box<Whole>),
    /// The body of a request whose handler has been called.
    Streamed(Box<Streamed>),
    /// The next request, which waits until this one is answered.
    Next,
    WebSocket(Box<websocket::Reader>),
    Raw,
    /// Nothing any more.
    Ignored,
}

pub(super) struct Whole {
    pub(super) reader: BodyReader,
    pub(super) body: Vec<u8>,
    pub(super) max: usize,
    pub(super) then: Box<dyn FnOnce(Vec<u8>) + Send>,
}

pub(super) struct Streamed {
    pub(super) reader: BodyReader,
    /// Who hears; nobody until the handler has said so, and until then nothing is read.
    pub(super) owner: Option<Owner>,
}

/// What the bytes that leave are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// Whole answers.
    Answers,
    /// A body of unknown length.
    Chunks {
        /// Whether it is chunked (HTTP/1.1) or ends with the connection.
        framed: bool,
        /// Whether comments keep it alive.
        events: bool,
    },
    WebSocket {
        role: websocket::Role,
        /// Whether our close frame has been queued.
        closed: bool,
        /// The close code if the peer does not keep up.
        slow: u16,
    },
    Raw {
        /// Whether our half ends behind what is queued.
        finished: bool,
    },
    /// Nothing is added any more. Once the queue is empty: the end, either at once, or after the peer has
    /// had the time to read it.
    Ending { linger: bool, told: bool },
}

/// The request in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InFlight {
    /// Counts requests on this link, so that an answer meets the one it is for.
    pub(super) number: u32,
    pub(super) waiting: bool,
    pub(super) head_only: bool,
    pub(super) http10: bool,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
}

/// Among whom a link waits to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It does not.
    None,
    /// Those who are told what many are told.
    OfMany,
    /// Those who have something of their own. It may have waited among the others before, where its place is
    /// passed over.
    Own,
}

pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) peer: Peer,
    /// Set when nothing more may be sent; shared with every handle.
    pub(super) cut: Arc<AtomicBool>,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    pub(super) request: InFlight,
    /// Bytes that were read and not understood yet.
    pub(super) held: Vec<u8>,
    pub(super) queue: Queue,
    pub(super) owner: Option<Owner>,
    /// Groups it is in, and where in them.
    pub(super) groups: Vec<(GroupId, u32)>,
    /// Marks and the queue position each stands at.
    pub(super) marks: Vec<(u64, u64)>,
    pub(super) turn: Turn,
    /// Its room is full.
    pub(super) parked: bool,
    /// Its room asked for a pause.
    pub(super) paused: bool,
    /// The peer ended its half.
    pub(super) eof: bool,
    /// When the present phase began.
    pub(super) since: Moment,
    pub(super) last_in: Moment,
    /// When bytes last left, or were first queued on an empty queue.
    pub(super) last_out: Moment,
    /// When it was last pinged.
    pub(super) pinged: Moment,
    /// When it is closed because the server goes.
    pub(super) drain_at: Moment,
    /// What whoever opened it keeps as long as it is there.
    pub(super) kept: Option<Box<dyn Any + Send>>,
    /// What it may still say in this second, where that is bounded.
    pub(super) pace: Option<Box<Pace>>,
    /// It said more than it may, and is not read before this.
    pub(super) slow_until: Moment,
    /// When the credentials end that it was opened with; then, when its owner's time to say so ends.
    pub(super) good_until: Moment,
    /// Whether its owner has been told that they have ended.
    pub(super) expired: bool,
    /// Whether they have been taken back.
    pub(super) pass: Option<Pass>,
    /// The earliest alarm that is set for it.
    pub(super) rings_at: Moment,
}

impl Link {
    pub(super) fn new(id: LinkId, peer: Peer, now: Moment) -> Link {
        Link {
            id,
            peer,
            cut: Arc::new(AtomicBool::new(false)),
            incoming: Incoming::Head(HeadReader::default()),
            outgoing: Outgoing::Answers,
            request: InFlight::default(),
            held: Vec::new(),
            queue: Queue::default(),
            owner: None,
            groups: Vec::new(),
            marks: Vec::new(),
            turn: Turn::None,
            parked: false,
            paused: false,
            eof: false,
            since: now,
            last_in: now,
            last_out: now,
            pinged: now,
            drain_at: Moment::NEVER,
            kept: None,
            pace: None,
            slow_until: Moment::NEVER,
            good_until: Moment::NEVER,
            expired: false,
            pass: None,
            rings_at: Moment::NEVER,
        }
    }

    /// Whether more may be read from the peer.
    pub(super) fn wants_bytes(&self, limits: &Limits) -> bool {
        let room = match &self.incoming {
            Incoming::Streamed(body) => body.owner.is_some() || self.held.len() < limits.held_bytes,
            Incoming::Next => self.held.len() < limits.held_bytes,
            _ => true,
        };
        room && !self.parked && !self.paused && !self.eof && self.slow_until == Moment::NEVER
    }

    /// When it has to be looked at, if nothing happens before.
    pub(super) fn due(&self, limits: &Limits) -> Moment {
        let mut due = self.drain_at.min(self.good_until).min(self.slow_until);
        if let Outgoing::Ending { .. } = self.outgoing {
            return self.drain_at.min(self.since + limits.close_wait);
        }
        if !self.queue.is_empty() {
            due = due.min(self.last_out + limits.write_wait);
        }
        due.min(match (&self.incoming, self.outgoing) {
            (Incoming::Head(_), _) if self.held.is_empty() => self.since + limits.idle_wait,
            (Incoming::Head(_), _) => self.since + limits.head_wait,
            (Incoming::Whole(_), _) => self.last_in + limits.body_wait,
            // Where bytes wait to leave, a comment behind them would keep nothing alive.
            (_, Outgoing::Chunks { events: true, .. }) if self.queue.is_empty() => {
                self.last_out + limits.heartbeat
            }
            (_, Outgoing::WebSocket { closed: true, .. }) => self.since + limits.close_wait,
            (_, Outgoing::WebSocket { .. }) => {
                // The next ping, or the end of patience.
                let silent = self.last_in + limits.heartbeat * 3;
                silent.min(self.last_in.max(self.pinged) + limits.heartbeat)
            }
            _ => Moment::NEVER,
        })
    }
}
