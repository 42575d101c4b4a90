//! The answer to a request, given once.

use serde::Serialize;

use crate::wire::http::{Head, Response, Version};
use crate::wire::{Exchange, HandOver, LinkHandle, LinkId, Opening, Owner, Terms, websocket};

/// The right to answer one request: now or later, from any thread. Dropping it unanswered is a 500.
///
/// If the peer has left meanwhile, an answer goes nowhere, and an opened link tells its owner
/// [`Closed`](crate::wire::Happened::Closed).
#[derive(Debug)]
pub struct Reply {
    exchange: Exchange,
    asked: Asked,
    /// What the router adds to every answer (CORS).
    extra: Vec<(&'static str, String)>,
}

/// What of the request decides how it may be answered.
#[derive(Debug)]
struct Asked {
    /// `Sec-WebSocket-Accept` for the key that came, if it asked for a WebSocket as RFC 6455 4.2.1 wants.
    websocket: Option<String>,
    protocols: Vec<String>,
    upgrade: Option<String>,
    version: Version,
}

impl Reply {
    pub(super) fn new(exchange: Exchange, head: &Head, extra: Vec<(&'static str, String)>) -> Reply {
        let upgrade = head.upgrade().map(str::to_ascii_lowercase);
        let is_websocket = upgrade.as_deref() == Some("websocket")
            && head.method == crate::wire::http::Method::Get
            && head.header("sec-websocket-version") == Some("13");
        let key = if is_websocket { head.header("sec-websocket-key") } else { None };
        let asked = Asked {
            websocket: key.and_then(websocket::accept_key),
            protocols: match is_websocket {
                true => head.list("sec-websocket-protocol").map(str::to_owned).collect(),
                false => Vec::new(),
            },
            upgrade,
            version: head.version,
        };
        Reply { exchange, asked, extra }
    }

    /// Says what a link is bound to that is opened as the answer.
    pub(super) fn terms(&mut self, terms: Terms) {
        self.exchange.terms(terms);
    }

    /// The link the request came over.
    pub fn link(&self) -> LinkId {
        self.exchange.link()
    }

    fn dress(&mut self, response: Response) -> Response {
        let extra = std::mem::take(&mut self.extra);
        extra.into_iter().fold(response, |response, (name, value)| response.header(name, value))
    }

    /// Answers.
    pub fn send(mut self, response: Response) {
        let response = self.dress(response);
        self.exchange.answer(response);
    }

    /// Answers in JSON.
    pub fn json(self, status: u16, value: &impl Serialize) {
        self.send(Response::json(status, value));
    }

    /// Answers without a body.
    pub fn empty(self, status: u16) {
        self.send(Response::new(status));
    }

    /// Answers with an error: a stable code, and a sentence.
    pub fn problem(self, status: u16, code: &str, detail: &str) {
        self.send(Response::problem(status, code, detail));
    }

    /// Opens a stream of server-sent events: frames are [`Frame::chunk`](crate::wire::Frame::chunk)s of what
    /// [`Event`](crate::codec::sse::Event) writes. A comment goes out every 15 s of silence.
    pub fn sse(self, owner: Option<Owner>) -> LinkHandle {
        self.sse_with(Response::new(200), owner)
    }

    /// The same with a status and headers of its own.
    pub fn sse_with(mut self, response: Response, owner: Option<Owner>) -> LinkHandle {
        let response = live(response).header("content-type", "text/event-stream");
        let response = self.dress(response);
        self.exchange.open(Opening::Events { response }, owner)
    }

    /// Opens a body of unknown length: frames are [`Frame::chunk`](crate::wire::Frame::chunk)s, [`LinkHandle::finish`] ends it.
    pub fn stream(mut self, response: Response, owner: Option<Owner>) -> LinkHandle {
        let response = self.dress(response);
        self.exchange.open(Opening::Chunks { response }, owner)
    }

    /// Opens a WebSocket: frames are [`Frame::text`](crate::wire::Frame::text) and [`Frame::binary`](crate::wire::Frame::binary). Of `protocols` the first that
    /// the client offered is chosen; none has to match. `None` if the request does not ask for a
    /// WebSocket (it has been told so).
    pub fn websocket(self, protocols: &[&str], message_max: u32, owner: Owner) -> Option<LinkHandle> {
        self.open_websocket(protocols, message_max, websocket::close::TRY_AGAIN, owner)
    }

    /// The same for whoever follows with tokens: one that does not keep up is cut with
    /// [`SLOW`](websocket::close::SLOW).
    pub fn follower_websocket(
        self,
        protocols: &[&str],
        message_max: u32,
        owner: Owner,
    ) -> Option<LinkHandle> {
        self.open_websocket(protocols, message_max, websocket::close::SLOW, owner)
    }

    fn open_websocket(
        mut self,
        protocols: &[&str],
        message_max: u32,
        slow: u16,
        owner: Owner,
    ) -> Option<LinkHandle> {
        let Some(accept) = self.asked.websocket.take() else {
            self.refuse_upgrade("websocket");
            return None;
        };
        let chosen = protocols.iter().find(|ours| self.asked.protocols.iter().any(|theirs| theirs == *ours));
        let mut response = Response::new(101)
            .header("upgrade", "websocket")
            .header("connection", "Upgrade")
            .header("sec-websocket-accept", accept);
        if let Some(protocol) = chosen {
            response = response.header("sec-websocket-protocol", *protocol);
        }
        let response = self.dress(response);
        Some(self.exchange.open(Opening::WebSocket { response, message_max, slow }, Some(owner)))
    }

    /// The subprotocols the client offered.
    pub fn protocols(&self) -> &[String] {
        &self.asked.protocols
    }

    /// Opens raw bytes behind `Upgrade: protocol`. `None` if the request does not ask for that (it has
    /// been told so).
    pub fn upgrade(mut self, protocol: &str, owner: Owner) -> Option<LinkHandle> {
        if self.asked.upgrade.as_deref() != Some(protocol) {
            self.refuse_upgrade(protocol);
            return None;
        }
        let response = Response::new(101).header("upgrade", protocol).header("connection", "Upgrade");
        let response = self.dress(response);
        Some(self.exchange.open(Opening::Raw { response }, Some(owner)))
    }

    /// Gives the connection away behind `Upgrade: protocol`: it leaves the I/O threads, and whoever takes
    /// it writes the 101 that comes with it. Nothing happens if the request does not ask for that (it has
    /// been told so).
    pub fn hand_over(mut self, protocol: &str, to: HandOver) {
        let response = match protocol {
            "websocket" => self.asked.websocket.take().map(|accept| {
                Response::new(101).header("upgrade", "websocket").header("sec-websocket-accept", accept)
            }),
            _ if self.asked.upgrade.as_deref() == Some(protocol) => {
                Some(Response::new(101).header("upgrade", protocol))
            }
            _ => None,
        };
        let Some(response) = response else { return self.refuse_upgrade(protocol) };
        let response = self.dress(response.header("connection", "Upgrade"));
        self.exchange.open(Opening::HandOver { response, to }, None);
    }

    fn refuse_upgrade(mut self, protocol: &str) {
        let detail = format!("this path speaks `Upgrade: {protocol}` over HTTP/1.1");
        let response = Response::problem(426, "upgrade_required", &detail)
            .header("upgrade", protocol)
            .header("connection", "Upgrade")
            .header("sec-websocket-version", "13")
            .closing();
        let response = self.dress(response);
        self.exchange.answer(response);
    }

    /// Lets the body of a streamed route flow to `owner`. The reply is still to be given.
    pub fn stream_body(&self, owner: Owner) -> LinkHandle {
        self.exchange.stream_body(owner)
    }

    /// Whether a stream of chunks can be told from a broken one (not in HTTP/1.0).
    pub fn is_http11(&self) -> bool {
        self.asked.version == Version::Http11
    }
}

/// The right to answer one request with one whole response, whoever asked: somebody over HTTP, or the daemon's own
/// River services. Dropping it unanswered is an error to whoever asked.
pub struct Answer(To);

enum To {
    Http(Box<Reply>),
    Local(Box<dyn FnOnce(Response) + Send>),
}

impl Answer {
    pub(crate) fn local(then: impl FnOnce(Response) + Send + 'static) -> Answer {
        Answer(To::Local(Box::new(then)))
    }

    /// Answers.
    pub fn send(self, response: Response) {
        match self.0 {
            To::Http(reply) => reply.send(response),
            To::Local(then) => then(response),
        }
    }

    /// Answers in JSON.
    pub fn json(self, status: u16, value: &impl Serialize) {
        self.send(Response::json(status, value));
    }

    /// Answers without a body.
    pub fn empty(self, status: u16) {
        self.send(Response::new(status));
    }

    /// Answers with an error: a stable code, and a sentence.
    pub fn problem(self, status: u16, code: &str, detail: &str) {
        self.send(Response::problem(status, code, detail));
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Answer {
        Answer(To::Http(Box::new(reply)))
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer")
    }
}

/// What every live read carries: nobody on the way may keep it or hold it back.
fn live(response: Response) -> Response {
    let response = match response.header_value("cache-control") {
        Some(_) => response,
        None => response.header("cache-control", "no-store"),
    };
    response.header("x-accel-buffering", "no")
}
