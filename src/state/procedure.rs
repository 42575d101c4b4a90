//! Streams on a session: one for each call of a procedure, with two sides that close apart.
//!
//! [`Served`] is the side that answers, [`Called`] the side that asks. Both are pure tables of streams: a
//! message or a wish comes in, messages to say and things to tell the handler or the caller come out. They
//! number nothing and know nothing of links; a stream ends with its session at the latest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use super::envelope::{Envelope, Flags, Message, Procedure, Tracing};
use super::handshake::Version;
use super::value::Value;

/// The four shapes of a procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// One request, one answer.
    Rpc,
    /// Many requests, one answer.
    Upload,
    /// One request, many answers.
    Subscription,
    /// Many of both.
    Stream,
}

impl Kind {
    /// Whether the caller says more than its first message.
    pub fn has_requests(self) -> bool {
        matches!(self, Kind::Upload | Kind::Stream)
    }

    /// Whether there is exactly one answer, which also ends the answering side.
    pub fn answers_once(self) -> bool {
        matches!(self, Kind::Rpc | Kind::Upload)
    }

    /// As schemas call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Rpc => "rpc",
            Kind::Upload => "upload",
            Kind::Subscription => "subscription",
            Kind::Stream => "stream",
        }
    }
}

/// A handler failed in a way it did not declare.
pub const UNCAUGHT_ERROR: &str = "UNCAUGHT_ERROR";
/// The caller asked for what makes no sense.
pub const INVALID_REQUEST: &str = "INVALID_REQUEST";
/// One of the two sides ended the stream early.
pub const CANCEL: &str = "CANCEL";
/// The session ended under the stream. Never on the wire.
pub const UNEXPECTED_DISCONNECT: &str = "UNEXPECTED_DISCONNECT";

/// An error as streams carry it: a service's own, or one of the four above.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// What to branch on.
    pub code: String,
    /// What to read.
    pub message: String,
    /// What else there is to know.
    pub extras: Option<Value>,
}

impl Failure {
    /// An error without extras.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Failure {
        Failure { code: code.into(), message: message.into(), extras: None }
    }

    /// The same, with extras.
    #[must_use]
    pub fn with(mut self, extras: Value) -> Failure {
        self.extras = Some(extras);
        self
    }

    fn value(&self) -> Value {
        let mut fields = vec![
            ("code".to_owned(), self.code.as_str().into()),
            ("message".to_owned(), self.message.as_str().into()),
        ];
        fields.extend(self.extras.clone().map(|extras| ("extras".to_owned(), extras)));
        Value::Map(fields)
    }

    fn read(value: &Value) -> Option<Failure> {
        Some(Failure {
            code: value.get("code")?.as_str()?.to_owned(),
            message: value.get("message")?.as_str()?.to_owned(),
            extras: value.get("extras").cloned(),
        })
    }

    /// Whether it is one of the errors the protocol itself knows, the only ones a cancellation may carry.
    fn is_protocol(&self) -> bool {
        [UNCAUGHT_ERROR, INVALID_REQUEST, CANCEL, UNEXPECTED_DISCONNECT].contains(&self.code.as_str())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}

/// One answer: what was asked for, or an error.
pub type Answer = Result<Value, Failure>;

fn write_answer(answer: Answer) -> Value {
    match answer {
        Ok(payload) => Value::map([("ok", true.into()), ("payload", payload)]),
        Err(failure) => Value::map([("ok", false.into()), ("payload", failure.value())]),
    }
}

fn read_answer(payload: Value) -> Option<Answer> {
    let Value::Map(fields) = payload else { return None };
    let (mut ok, mut inner) = (None, None);
    for (name, value) in fields {
        match name.as_str() {
            "ok" => ok = value.as_bool(),
            "payload" => inner = Some(value),
            _ => {}
        }
    }
    match ok? {
        true => Some(Ok(inner?)),
        false => Failure::read(&inner?).map(Err),
    }
}

fn is_close(payload: &Value) -> bool {
    payload.get("type").and_then(Value::as_str) == Some("CLOSE")
}

fn cancel(stream: &str, failure: &Failure) -> Message {
    Message::new(stream, Flags::CANCEL, write_answer(Err(failure.clone())))
}

// ---- the side that answers ----

/// What procedures there are.
pub trait Catalog {
    /// The procedure of that name.
    fn find(&self, service: &str, procedure: &str) -> Result<(Kind, usize), Missing>;

    /// Whether what a v1.1 client sent first is the first datum and not the init, which is then empty.
    fn init_is_data(&self, procedure: usize, payload: &Value) -> bool;
}

/// What was asked for and is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The service.
    Service,
    /// The procedure in it.
    Procedure,
}

/// What the side that answers wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Serve {
    /// Say this on the session.
    Say(Message),
    /// Start the handler.
    Open {
        /// The stream, by which everything about this call is named.
        stream: String,
        /// Its shape.
        kind: Kind,
        /// Which procedure, as the catalog numbers it.
        procedure: usize,
        /// The first message.
        init: Value,
        /// The caller's trace.
        tracing: Option<Tracing>,
    },
    /// Hand the handler one more request.
    Data {
        /// The stream.
        stream: String,
        /// The request.
        value: Value,
    },
    /// No more requests come.
    RequestsEnded {
        /// The stream.
        stream: String,
    },
    /// The reader gets this error and nothing after it; nothing more can be written.
    Broken {
        /// The stream.
        stream: String,
        /// Why.
        failure: Failure,
    },
    /// Both sides are closed: the handler's cancellation token fires.
    Finished {
        /// The stream.
        stream: String,
    },
}

#[derive(Clone, Copy, Debug)]
struct Sides {
    kind: Kind,
    requests_open: bool,
    answers_open: bool,
}

/// Streams the server remembers to have cancelled, so that what the client sent before it knew is ignored.
/// The newest 200.
#[derive(Debug, Default)]
struct Tombstones {
    order: VecDeque<String>,
    known: BTreeSet<String>,
}

impl Tombstones {
    const MAX: usize = 200;

    fn add(&mut self, stream: &str) {
        if !self.known.insert(stream.to_owned()) {
            return;
        }
        self.order.push_back(stream.to_owned());
        if self.order.len() > Tombstones::MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// The streams of one session, on the side that answers.
#[derive(Debug)]
pub struct Served {
    me: String,
    version: Version,
    streams: BTreeMap<String, Sides>,
    cancelled: Tombstones,
    /// How many may be open at once. 4,096; one more is refused.
    max: usize,
}

impl Served {
    /// A session's table. `me` is the server's client id: a message to somebody else is ignored.
    pub fn new(me: &str, version: Version, max: usize) -> Served {
        let (streams, cancelled) = (BTreeMap::new(), Tombstones::default());
        Served { me: me.to_owned(), version, streams, cancelled, max }
    }

    /// How many streams are open.
    pub fn open(&self) -> usize {
        self.streams.len()
    }

    /// Whether more may be written on that stream.
    pub fn is_writable(&self, stream: &str) -> bool {
        self.streams.get(stream).is_some_and(|sides| sides.answers_open)
    }

    /// A message arrived.
    pub fn arrived(&mut self, envelope: Envelope, catalog: &impl Catalog, sink: &mut Vec<Serve>) {
        if envelope.to != self.me {
            return;
        }
        if let Some(sides) = self.streams.get(&envelope.stream).copied() {
            self.more(envelope, sides, sink);
        } else if !self.cancelled.known.contains(&envelope.stream) {
            self.begin(envelope, catalog, sink);
        }
    }

    fn begin(&mut self, envelope: Envelope, catalog: &impl Catalog, sink: &mut Vec<Serve>) {
        let Envelope { stream, flags, service, procedure, tracing, payload, .. } = envelope;
        let (kind, index, init) = match self.check(flags, service, procedure, payload, catalog) {
            Ok(opening) => opening,
            Err(message) => {
                self.cancelled.add(&stream);
                sink.push(Serve::Say(cancel(&stream, &Failure::new(INVALID_REQUEST, message))));
                return;
            }
        };
        let half_closed = flags.has(self.version.close_flag());
        self.streams.insert(stream.clone(), Sides { kind, requests_open: true, answers_open: true });
        let data_first =
            self.version == Version::V1_1 && kind.has_requests() && catalog.init_is_data(index, &init);
        let (init, data) = if data_first { (Value::Map(Vec::new()), Some(init)) } else { (init, None) };
        sink.push(Serve::Open { stream: stream.clone(), kind, procedure: index, init, tracing });
        if let Some(value) = data {
            sink.push(Serve::Data { stream: stream.clone(), value });
        }
        if half_closed {
            self.close_requests(&stream, sink);
        }
    }

    /// What an opening message opens, or why it opens nothing.
    fn check(
        &self,
        flags: Flags,
        service: Option<String>,
        procedure: Option<String>,
        payload: Result<Value, super::envelope::BadPayload>,
        catalog: &impl Catalog,
    ) -> Result<(Kind, usize, Value), String> {
        if !flags.has(Flags::OPEN) {
            let text = "can't create a new procedure stream from a message that doesn't have the stream open bit set";
            return Err(text.into());
        }
        let service =
            service.filter(|name| !name.is_empty()).ok_or("missing service name in stream open message")?;
        let procedure = procedure
            .filter(|name| !name.is_empty())
            .ok_or("missing procedure name in stream open message")?;
        let (kind, index) = catalog.find(&service, &procedure).map_err(|missing| match missing {
            Missing::Service => format!("couldn't find service {service}"),
            Missing::Procedure => format!("couldn't find a matching procedure for {service}.{procedure}"),
        })?;
        let init = payload.map_err(|bad| format!("procedure init cannot be read: {bad}"))?;
        if self.streams.len() >= self.max {
            return Err(format!("too many streams are open on this session: {}", self.max));
        }
        Ok((kind, index, init))
    }

    fn more(&mut self, envelope: Envelope, sides: Sides, sink: &mut Vec<Serve>) {
        let Envelope { stream, flags, payload, .. } = envelope;
        if self.version != Version::V1_1 && flags.has(Flags::CANCEL) {
            self.cancelled_by_client(&stream, sides, payload.ok(), sink);
            return;
        }
        if !sides.requests_open {
            let text = "received message after request stream is closed";
            self.fail(&stream, Failure::new(INVALID_REQUEST, text), sink);
            return;
        }
        let closes = flags.has(self.version.close_flag());
        match payload {
            Ok(payload) if closes && is_close(&payload) => self.close_requests(&stream, sink),
            Ok(value) if sides.kind.has_requests() => {
                sink.push(Serve::Data { stream: stream.clone(), value });
                if closes {
                    self.close_requests(&stream, sink);
                }
            }
            Ok(_) => self.fail(&stream, Failure::new(INVALID_REQUEST, "expected control payload"), sink),
            Err(bad) => {
                let text = format!("request data cannot be read: {bad}");
                self.fail(&stream, Failure::new(INVALID_REQUEST, text), sink);
            }
        }
    }

    fn cancelled_by_client(
        &mut self,
        stream: &str,
        sides: Sides,
        payload: Option<Value>,
        sink: &mut Vec<Serve>,
    ) {
        let sent =
            payload.and_then(read_answer).and_then(Result::err).filter(|failure| failure.code == CANCEL);
        let failure =
            sent.unwrap_or_else(|| Failure::new(CANCEL, "stream cancelled, client sent invalid payload"));
        if !sides.kind.answers_once() && sides.answers_open {
            sink.push(Serve::Say(self.close_message(stream)));
        }
        self.streams.remove(stream);
        // It said its last word; should more come, it was on its way before.
        self.cancelled.add(stream);
        sink.push(Serve::Broken { stream: stream.to_owned(), failure });
        sink.push(Serve::Finished { stream: stream.to_owned() });
    }

    fn close_message(&self, stream: &str) -> Message {
        Message { flags: self.version.close_flag(), ..Message::close(stream) }
    }

    fn close_requests(&mut self, stream: &str, sink: &mut Vec<Serve>) {
        let Some(sides) = self.streams.get_mut(stream).filter(|sides| sides.requests_open) else { return };
        sides.requests_open = false;
        let (answers_open, kind) = (sides.answers_open, sides.kind);
        sink.push(Serve::RequestsEnded { stream: stream.to_owned() });
        // A v1.1 peer closes both sides when it closes one, but waits for an answer that comes once.
        if self.version == Version::V1_1 && answers_open && !kind.answers_once() {
            self.close_answers(stream, sink);
        } else if !answers_open {
            self.finish(stream, sink);
        }
    }

    fn finish(&mut self, stream: &str, sink: &mut Vec<Serve>) {
        if self.streams.remove(stream).is_some() {
            sink.push(Serve::Finished { stream: stream.to_owned() });
        }
    }

    /// The handler answers. False when nobody listens any more.
    pub fn answer(&mut self, stream: &str, answer: Answer, sink: &mut Vec<Serve>) -> bool {
        let Some(sides) = self.streams.get_mut(stream).filter(|sides| sides.answers_open) else {
            return false;
        };
        let once = sides.kind.answers_once();
        let flags = if once { self.version.close_flag() } else { Flags::NONE };
        sink.push(Serve::Say(Message::new(stream, flags, write_answer(answer))));
        if once {
            sides.answers_open = false;
            if !sides.requests_open {
                self.finish(stream, sink);
            }
        }
        true
    }

    /// The handler has no more answers.
    pub fn close_answers(&mut self, stream: &str, sink: &mut Vec<Serve>) {
        let Some(sides) = self.streams.get_mut(stream).filter(|sides| sides.answers_open) else { return };
        sides.answers_open = false;
        let (requests_open, kind) = (sides.requests_open, sides.kind);
        if !kind.answers_once() {
            sink.push(Serve::Say(self.close_message(stream)));
        }
        if !requests_open {
            self.finish(stream, sink);
        } else if self.version == Version::V1_1 && !kind.answers_once() {
            self.close_requests(stream, sink);
        }
    }

    /// The stream ends at once: the handler cancelled or failed, or the client broke a rule.
    pub fn fail(&mut self, stream: &str, failure: Failure, sink: &mut Vec<Serve>) {
        let Some(sides) = self.streams.remove(stream) else { return };
        self.cancelled.add(stream);
        if self.version == Version::V1_1 && sides.answers_open && !sides.kind.answers_once() {
            // To a v1.1 client the bit that cancels is a bare close: why must be said before it.
            sink.push(Serve::Say(Message::new(stream, Flags::NONE, write_answer(Err(failure.clone())))));
            sink.push(Serve::Say(self.close_message(stream)));
        } else {
            sink.push(Serve::Say(cancel(stream, &failure)));
        }
        sink.push(Serve::Broken { stream: stream.to_owned(), failure });
        sink.push(Serve::Finished { stream: stream.to_owned() });
    }

    /// The session ended: nothing is said, everybody is told.
    pub fn disconnected(&mut self, sink: &mut Vec<Serve>) {
        let failure = Failure::new(UNEXPECTED_DISCONNECT, "client unexpectedly disconnected");
        for stream in std::mem::take(&mut self.streams).into_keys() {
            sink.push(Serve::Broken { stream: stream.clone(), failure: failure.clone() });
            sink.push(Serve::Finished { stream });
        }
        self.cancelled = Tombstones::default();
    }
}

// ---- the side that asks ----

/// What the side that asks wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Say this on the session.
    Say(Message),
    /// An answer came.
    Answered {
        /// The stream.
        stream: String,
        /// The answer.
        answer: Answer,
    },
    /// No more answers come.
    AnswersEnded {
        /// The stream.
        stream: String,
    },
    /// The caller may write no more: the stream is over both ways.
    RequestsBroken {
        /// The stream.
        stream: String,
    },
}

/// The streams of one session, on the side that asks.
#[derive(Debug)]
pub struct Called {
    server: String,
    streams: BTreeMap<String, Sides>,
}

impl Called {
    /// No streams to that server.
    pub fn new(server: &str) -> Called {
        Called { server: server.to_owned(), streams: BTreeMap::new() }
    }

    /// How many streams are open.
    pub fn open(&self) -> usize {
        self.streams.len()
    }

    /// Calls a procedure on a stream with a new id.
    pub fn call(
        &mut self,
        stream: &str,
        kind: Kind,
        procedure: Procedure,
        init: Value,
        tracing: Tracing,
        sink: &mut Vec<Call>,
    ) {
        let requests_open = kind.has_requests();
        let flags = if requests_open { Flags::OPEN } else { Flags::OPEN_CLOSED };
        self.streams.insert(stream.to_owned(), Sides { kind, requests_open, answers_open: true });
        let message = Message::new(stream, flags, init);
        sink.push(Call::Say(Message { procedure: Some(procedure), tracing: Some(tracing), ..message }));
    }

    /// One more request. False when nobody listens any more.
    pub fn write(&mut self, stream: &str, value: Value, sink: &mut Vec<Call>) -> bool {
        let open = self.streams.get(stream).is_some_and(|sides| sides.requests_open);
        if open {
            sink.push(Call::Say(Message::new(stream, Flags::NONE, value)));
        }
        open
    }

    /// No more requests.
    pub fn close(&mut self, stream: &str, sink: &mut Vec<Call>) {
        let Some(sides) = self.streams.get_mut(stream).filter(|sides| sides.requests_open) else { return };
        sides.requests_open = false;
        let answers_open = sides.answers_open;
        sink.push(Call::Say(Message::close(stream)));
        if !answers_open {
            self.streams.remove(stream);
        }
    }

    /// The caller wants no more of it.
    pub fn cancel(&mut self, stream: &str, reason: &str, sink: &mut Vec<Call>) {
        let Some(sides) = self.streams.remove(stream) else { return };
        let failure = Failure::new(CANCEL, reason);
        sink.push(Call::Say(cancel(stream, &failure)));
        Called::break_off(stream, sides, failure, sink);
    }

    /// Everything the caller has open, cancelled: what a client that leaves says last.
    pub fn cancel_all(&mut self, reason: &str, sink: &mut Vec<Call>) {
        let streams: Vec<String> = self.streams.keys().cloned().collect();
        for stream in streams {
            self.cancel(&stream, reason, sink);
        }
    }

    /// A message arrived.
    pub fn arrived(&mut self, envelope: Envelope, sink: &mut Vec<Call>) {
        let Envelope { stream, flags, payload, .. } = envelope;
        let Some(sides) = self.streams.get_mut(&stream) else { return };
        if flags.has(Flags::CANCEL) {
            let sent = payload.ok().and_then(read_answer).and_then(Result::err).filter(Failure::is_protocol);
            let failure =
                sent.unwrap_or_else(|| Failure::new(CANCEL, "stream cancelled with invalid payload"));
            let sides = *sides;
            self.streams.remove(&stream);
            Called::break_off(&stream, sides, failure, sink);
            return;
        }
        if !sides.answers_open {
            return;
        }
        let closes = flags.has(Flags::CLOSED);
        match payload {
            Ok(payload) if closes && is_close(&payload) => {}
            Ok(payload) => {
                if let Some(answer) = read_answer(payload) {
                    sink.push(Call::Answered { stream: stream.clone(), answer });
                }
            }
            // The answer is lost, so the call is; the session is not.
            Err(bad) => {
                self.cancel(&stream, &format!("the answer cannot be read: {bad}"), sink);
                return;
            }
        }
        if closes {
            sides.answers_open = false;
            let requests_open = sides.requests_open;
            sink.push(Call::AnswersEnded { stream: stream.clone() });
            if !requests_open {
                self.streams.remove(&stream);
            }
        }
    }

    /// The session ended: nothing is said, everybody is told.
    pub fn disconnected(&mut self, sink: &mut Vec<Call>) {
        let text = format!("{} unexpectedly disconnected", self.server);
        let failure = Failure::new(UNEXPECTED_DISCONNECT, text);
        for (stream, sides) in std::mem::take(&mut self.streams) {
            Called::break_off(&stream, sides, failure.clone(), sink);
        }
    }

    fn break_off(stream: &str, sides: Sides, failure: Failure, sink: &mut Vec<Call>) {
        if sides.requests_open {
            sink.push(Call::RequestsBroken { stream: stream.to_owned() });
        }
        if sides.answers_open {
            sink.push(Call::Answered { stream: stream.to_owned(), answer: Err(failure) });
            sink.push(Call::AnswersEnded { stream: stream.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests;
