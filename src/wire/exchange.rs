//! A request, and the right to answer it: with a whole response, or with a link that stays.

use std::any::Any;
use std::fmt;

use super::http::{Head, Response};
use super::link::{LinkHandle, LinkId, Owner, Peer};
use super::order::Order;
use super::pass::Pass;
use crate::state::time::Wall;

/// How a request is answered with a link that stays.
#[derive(Debug)]
pub enum Opening {
    /// A body of unknown length, of [`Frame::chunk`](super::Frame::chunk)s.
    Chunks {
        /// Status and headers.
        response: Response,
    },
    /// The same as server-sent events: a comment goes out when it was quiet for a heartbeat, and a
    /// `retry:` drawn for each client when the server drains.
    Events {
        /// Status and headers.
        response: Response,
    },
    /// A WebSocket. The response is the 101 with its headers.
    WebSocket {
        /// The 101, with `Sec-WebSocket-Accept` and the protocol chosen.
        response: Response,
        /// The largest message let in, in bytes.
        message_max: u32,
        /// The close code for a reader that does not keep up.
        slow: u16,
    },
    /// Bytes in both directions, behind a 101 or a 200.
    Raw {
        /// What is answered.
        response: Response,
    },
    /// The connection leaves the I/O threads: whoever takes it writes the answer and drives it alone.
    HandOver {
        /// What is to be answered.
        response: Response,
        /// Who takes it, on the I/O thread: it must not block.
        to: HandOver,
    },
}

/// Takes a connection out of the I/O threads.
pub struct HandOver(Box<dyn FnOnce(Handed) + Send>);

impl HandOver {
    /// By calling `take`, on an I/O thread.
    pub fn new(take: impl FnOnce(Handed) + Send + 'static) -> HandOver {
        HandOver(Box::new(take))
    }

    pub(crate) fn hand(self, handed: Handed) {
        (self.0)(handed);
    }
}

impl fmt::Debug for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandOver")
    }
}

/// A connection that left the I/O threads.
pub struct Handed {
    /// Its socket, which does not block and is registered nowhere.
    pub socket: HandedSocket,
    /// The encryption between, if there is any.
    pub tls: Option<rustls::Connection>,
    /// The answer, to be written first.
    pub head: Vec<u8>,
    /// What the peer sent behind its request.
    pub early: Vec<u8>,
    /// Who is at the other end.
    pub peer: Peer,
}

/// The socket of a connection that left the I/O threads.
#[derive(Debug)]
pub enum HandedSocket {
    /// Over TCP.
    Tcp(mio::net::TcpStream),
    /// On this machine.
    Unix(mio::net::UnixStream),
}

/// The request in flight on a link: answered once, now or later, from any thread.
///
/// Dropped without an answer it answers 500, so that no peer waits for a handler that lost it.
pub struct Exchange {
    link: LinkHandle,
    answered: bool,
    terms: Terms,
}

/// What a link that is opened by an answer is bound to.
#[derive(Default)]
pub struct Terms {
    /// When the credentials end that came with the request. `None` is never.
    pub good_until: Option<Wall>,
    /// Whether they have been taken back. `None` is never.
    pub pass: Option<Pass>,
    /// Kept as long as the link is there, and dropped with it.
    pub kept: Option<Box<dyn Any + Send>>,
}

impl Exchange {
    pub(crate) fn new(link: LinkHandle) -> Exchange {
        Exchange { link, answered: false, terms: Terms::default() }
    }

    /// The link the request came over.
    pub fn link(&self) -> LinkId {
        self.link.id()
    }

    /// Says what a link is bound to that is opened as the answer.
    pub fn terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// Answers with a whole response.
    pub fn answer(mut self, response: Response) {
        self.answer_with(response);
    }

    fn answer_with(&mut self, response: Response) {
        self.answered = true;
        self.link.port().push_answer(Order::Answer { line: self.link.line(), response });
    }

    /// Answers with a link that stays; `owner` hears what happens on it.
    pub fn open(mut self, opening: Opening, owner: Option<Owner>) -> LinkHandle {
        self.answered = true;
        let opening = Box::new(opening);
        let terms = std::mem::take(&mut self.terms);
        self.link.port().push_answer(Order::Open { line: self.link.line(), opening, owner, terms });
        self.link.clone()
    }

    /// Lets the body of a streamed request flow to `owner`, as [`Happened::Bytes`](super::Happened::Bytes) and
    /// [`Happened::Ended`](super::Happened::Ended); [`Happened::Closed`](super::Happened::Closed) if the peer leaves before it was answered. The request
    /// may be answered at any time, also before its body ended; nothing is heard after that.
    pub fn stream_body(&self, owner: Owner) -> LinkHandle {
        self.link.port().push_answer(Order::Body { line: self.link.line(), owner });
        self.link.clone()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.answered {
            self.answer_with(Response::problem(500, "internal", "the request was dropped without an answer"));
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {} on {:?}", self.link.line().request, self.link)
    }
}

/// What to do with a request whose head was read.
pub enum Plan {
    /// Read the body up to `max` bytes (more is a 413), then call `then` with all of it.
    Whole {
        /// The largest body.
        max: usize,
        /// Called on the I/O thread with the body; answers through the exchange it holds.
        then: Box<dyn FnOnce(Vec<u8>) + Send>,
    },
    /// The handler has the exchange; the body waits until [`Exchange::stream_body`] is called.
    Streamed,
    /// The exchange is answered; what is left of the body is not read and the connection closes (unless
    /// there is no body).
    Answered,
}

/// What serves requests. Called on an I/O thread: it must not block, and it must not wait for room in a
/// channel.
pub trait Front: Send + Sync {
    /// A head has been read.
    fn request(&self, head: Head, peer: &Peer, exchange: Exchange) -> Plan;
}
