//! The room that serves River sessions: links come in, sessions live on them, handlers answer.
//!
//! One room owns all sessions of one server id. What arrives on a link is decoded here, given to the
//! session's machine, and what that delivers to the table of streams; what both want done is carried out in
//! the order they said it, writes first, so that numbers leave in order also when a handler answers on the
//! spot. Handlers run behind [`Procedures`]: the room asks it to open a call, hands it requests and takes
//! answers, and never waits for any of them.
//!
//! *Backpressure.* A handler that does not read holds back its session: the room keeps what arrives,
//! unacknowledged, and past a bound stops reading the link, until the handler catches up. A peer that does not
//! acknowledge holds back its writers, through the session's [`Gate`].

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::handlers::Handlers;
use super::worker::{Inbox, Refused, Room};
use crate::codec::{Bounds, Codec};
use crate::metrics::{Counter, Counters, Gauge, Metrics};
use crate::rt::{Hasher, Lock, Rand, Rt, Sender};
use crate::state::envelope::{Envelope, Ids, Tracing};
use crate::state::handshake::{
    Decision, Refusal, RefusalCode, Request, Response, SecondClient, Version, decide,
};
use crate::state::procedure::{Answer, Catalog, Failure, Kind, Serve, Served, UNCAUGHT_ERROR};
use crate::state::seq::SendBounds;
use crate::state::session::server::{Input, Session};
use crate::state::session::{Action, Cause, Event, Options, Timing};
use crate::state::time::Moment;
use crate::state::value::Value;
use crate::wire::bearer::{BROKEN, Bearer, Ear, Heard};
use crate::wire::{Happened, LinkBatch, LinkHandle, Outlet};

/// What a server of sessions is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server's client id: what clients say they want to talk to.
    pub id: String,
    /// How messages are written; clients must be told the same.
    pub codec: Codec,
    /// How much of a message is accepted.
    pub accepts: Bounds,
    /// Heartbeats, graces, timeouts.
    pub timing: Timing,
    /// How much of one session may wait for acknowledgement.
    pub holds: SendBounds,
    /// Bytes of all sessions together that may wait for acknowledgement. 512 MiB.
    pub holds_total: usize,
    /// What becomes of a second client with an id that is taken.
    pub second: SecondClient,
    /// Sessions go on over new links. Without it every lost link ends its session.
    pub resumable: bool,
    /// Streams a session may have open. 4,096.
    pub streams_max: usize,
    /// Sessions. 100,000.
    pub sessions_max: usize,
    /// Links that have not said who they are. 10,000.
    pub waiting_max: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            id: "SERVER".into(),
            codec: Codec::default(),
            accepts: Bounds::default(),
            timing: Timing::default(),
            holds: SendBounds::default(),
            holds_total: 512 << 20,
            second: SecondClient::default(),
            resumable: true,
            streams_max: 4_096,
            sessions_max: 100_000,
            waiting_max: 10_000,
        }
    }
}

/// A client as handlers see it.
#[derive(Debug)]
pub struct Client {
    /// Its id, chosen by itself.
    pub id: String,
    /// Its session.
    pub session: String,
    /// The protocol it speaks.
    pub version: Version,
    metadata: Lock<Arc<Value>>,
    gate: Gate,
}

impl Client {
    /// What its handshake brought, as the admission made it; newer after a refresh.
    pub fn metadata(&self) -> Arc<Value> {
        self.metadata.lock().clone()
    }

    /// Whether writers should wait.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}

/// Whether a session has room for more to send. Shared by the room and the session's writers.
#[derive(Debug, Default)]
pub struct Gate {
    /// More waits for acknowledgement than writers should add to.
    full: AtomicBool,
    /// The session is over.
    ended: AtomicBool,
    /// Answers on their way to the room, not yet numbered.
    flying: AtomicUsize,
    /// Somebody waits to be told.
    waited_for: AtomicBool,
    waiters: Lock<Vec<Sender<()>>>,
}

/// Answers of one session that may be on their way to the room.
const FLYING_MAX: usize = 1_024;

impl Gate {
    /// Whether more may be written now.
    pub fn is_open(&self) -> bool {
        self.is_ended()
            || (!self.full.load(Ordering::Acquire) && self.flying.load(Ordering::Acquire) < FLYING_MAX)
    }

    /// Whether the session is over.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Rings `bell` once when more may be written, at once if that is now.
    pub fn ring_when_open(&self, bell: Sender<()>) {
        self.waiters.lock().push(bell);
        self.waited_for.store(true, Ordering::SeqCst);
        if self.is_open() {
            self.ring();
        }
    }

    fn ring(&self) {
        if self.waited_for.swap(false, Ordering::SeqCst) {
            let waiters = std::mem::take(&mut *self.waiters.lock());
            for waiter in waiters {
                // Full means that it was rung already.
                let _ = waiter.try_send(());
            }
        }
    }
}

/// Whether a client may have a session, and what its handlers learn of it.
pub trait Admission: Send + Sync {
    /// Looks at what a handshake brought, or a refresh (`before` is then what the last one made).
    ///
    /// # Errors
    /// The refusal the client is told: `MALFORMED_HANDSHAKE_META` or `REJECTED_BY_CUSTOM_HANDLER`, usually.
    fn admit(
        &self,
        client: &str,
        metadata: Option<&Value>,
        before: Option<&Value>,
    ) -> Result<Admitted, Refusal>;

    /// Whether it answers without waiting for anything, so that the room may ask it on its own thread.
    fn is_quick(&self) -> bool {
        false
    }
}

/// A client that was let in.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// What handlers learn of it.
    pub metadata: Value,
    /// How long that holds; the client is asked for fresh metadata before it ends.
    pub expires_in: Option<Duration>,
}

/// Lets everybody in and keeps what they bring.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anybody;

impl Admission for Anybody {
    fn admit(&self, _: &str, metadata: Option<&Value>, _: Option<&Value>) -> Result<Admitted, Refusal> {
        Ok(Admitted { metadata: metadata.cloned().unwrap_or(Value::Null), expires_in: None })
    }
    fn is_quick(&self) -> bool {
        true
    }
}

/// What the room serves.
pub trait Procedures: Catalog + Send + Sync + 'static {
    /// A call begins. Called on the room's thread: it must not wait.
    fn open(&self, procedure: usize, init: Value, call: Opening<'_>) -> Opened;
}

/// A call as it begins.
pub struct Opening<'a> {
    /// Who calls.
    pub client: &'a Arc<Client>,
    /// The caller's trace.
    pub tracing: Option<Tracing>,
    /// The threads for handlers that block.
    pub handlers: &'a Arc<Handlers>,
    /// The runtime.
    pub rt: &'a Rt,
    /// Calls that are open on this server, without this one.
    pub open_calls: usize,
    mail: &'a Mail,
    session: u64,
    stream: &'a str,
}

impl Opening<'_> {
    /// The way back, for a handler that answers later.
    pub fn answers(&self) -> Answers {
        Answers {
            mail: self.mail.clone(),
            client: self.client.clone(),
            session: self.session,
            stream: self.stream.into(),
        }
    }
}

/// What became of a call that was opened.
pub enum Opened {
    /// It is answered already.
    Answered(Answer),
    /// It failed already.
    Failed(Failure),
    /// It goes on; its requests go here.
    Running(Box<dyn Requests>),
}

/// Where a running call's requests go. Called on the room's thread: nothing here may wait.
pub trait Requests: Send {
    /// One more request.
    ///
    /// # Errors
    /// What is wrong with it; the call then fails.
    fn data(&mut self, value: Value) -> Result<Taken, Failure>;
    /// No more requests come.
    fn ended(&mut self);
    /// The call broke; nothing comes after this.
    fn broken(&mut self, failure: Failure);
    /// Both sides are closed: whoever still works for this call may stop.
    fn finished(&mut self);
}

/// How a request was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// There is room for more.
    More,
    /// Hold the session back until [`Answers::resume`].
    HoldBack,
}

/// The way back from a handler to its call.
#[derive(Clone)]
pub struct Answers {
    mail: Mail,
    client: Arc<Client>,
    session: u64,
    stream: Arc<str>,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answers({} of {})", self.stream, self.client.id)
    }
}

/// An answer that could not be sent; it comes back.
#[derive(Debug)]
pub enum Unsent {
    /// Not now: [`Gate::ring_when_open`].
    Full(Answer),
    /// The session or the server is over.
    Ended(Answer),
}

impl Answers {
    /// Who is answered.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Sends an answer if there is room for it. Never waits.
    ///
    /// # Errors
    /// No room now, or nobody to answer any more; the answer comes back.
    pub fn try_send(&self, answer: Answer) -> Result<(), Unsent> {
        self.put(answer, |message| self.mail.inbox.try_data(message))
    }

    /// Sends an answer, waiting for room in the session until `deadline`. Never on a room's thread.
    ///
    /// # Errors
    /// No room in time, or nobody to answer any more; the answer comes back.
    pub fn send(&self, rt: &Rt, mut answer: Answer, deadline: Moment) -> Result<(), Unsent> {
        loop {
            answer = match self.put(answer, |message| self.mail.inbox.data(message, deadline)) {
                Err(Unsent::Full(answer)) => answer,
                done => return done,
            };
            let (bell, rung) = rt.channel("gate", 1);
            self.client.gate.ring_when_open(bell);
            // Woken by the gate opening, which the session's end does as well.
            if rung.recv_deadline(deadline).is_err() {
                return Err(Unsent::Full(answer));
            }
        }
    }

    fn put(
        &self,
        answer: Answer,
        put: impl FnOnce(Message) -> Result<(), Refused<Message>>,
    ) -> Result<(), Unsent> {
        let gate = &self.client.gate;
        if gate.is_ended() {
            return Err(Unsent::Ended(answer));
        }
        if !gate.is_open() {
            return Err(Unsent::Full(answer));
        }
        gate.flying.fetch_add(1, Ordering::AcqRel);
        let message = Message::Answer { session: self.session, stream: self.stream.clone(), answer };
        put(message).map_err(|refused| {
            gate.flying.fetch_sub(1, Ordering::AcqRel);
            let ended = matches!(refused, Refused::Ended(_));
            let Message::Answer { answer, .. } = refused.into_inner() else {
                unreachable!("it comes back as it went")
            };
            if ended { Unsent::Ended(answer) } else { Unsent::Full(answer) }
        })
    }

    /// The one answer of a call that answers once: always sent, since there is but one a call.
    pub fn finish(&self, answer: Answer) {
        self.client.gate.flying.fetch_add(1, Ordering::AcqRel);
        self.mail.surely(Message::Answer { session: self.session, stream: self.stream.clone(), answer });
    }

    /// No more answers.
    pub fn close(&self) {
        self.mail.surely(Message::CloseAnswers { session: self.session, stream: self.stream.clone() });
    }

    /// The call ends at once.
    pub fn fail(&self, failure: Failure) {
        self.mail.surely(Message::Fail { session: self.session, stream: self.stream.clone(), failure });
    }

    /// The handler read enough for its session to go on.
    pub fn resume(&self) {
        self.mail.surely(Message::Resume { session: self.session, stream: self.stream.clone() });
    }
}

/// What the room hears.
#[derive(Debug)]
pub enum Message {
    /// A link came in.
    Opened {
        /// Its number, from [`Doorbell::number`].
        link: u64,
        /// The way out.
        bearer: BearerBox,
    },
    /// Something was heard on it.
    Heard {
        /// Its number.
        link: u64,
        /// What.
        heard: Heard,
    },
    /// Things were heard on links of the I/O threads, whose tags are their numbers.
    Batch(LinkBatch),
    /// An admission came to a result.
    Admitted {
        /// The link it was for.
        link: u64,
        /// What was asked.
        request: Option<Box<Request>>,
        /// The result.
        result: Result<Admitted, Refusal>,
    },
    /// A handler answers.
    Answer {
        /// The session, by the room's number.
        session: u64,
        /// The call.
        stream: Arc<str>,
        /// The answer.
        answer: Answer,
    },
    /// A handler has no more answers.
    CloseAnswers {
        /// The session, by the room's number.
        session: u64,
        /// The call.
        stream: Arc<str>,
    },
    /// A handler ends its call.
    Fail {
        /// The session, by the room's number.
        session: u64,
        /// The call.
        stream: Arc<str>,
        /// Why.
        failure: Failure,
    },
    /// A handler read enough.
    Resume {
        /// The session, by the room's number.
        session: u64,
        /// The call.
        stream: Arc<str>,
    },
    /// Ask this client, or all, for fresh metadata.
    Refresh(Option<String>),
    /// End this client's session.
    EndClient(String, Cause),
    /// Cut every link, or this client's, and keep the sessions: what a test or an operator does.
    Cut(Option<String>),
}

/// A bearer in a message.
pub struct BearerBox(pub Box<dyn Bearer>);

impl std::fmt::Debug for BearerBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer")
    }
}

/// The room's inbox, and a place for what must not be lost when that is full.
#[derive(Clone)]
struct Mail {
    inbox: Inbox<Message>,
    /// Ends of calls that found no room. The room looks here when its inbox is empty, so that they stay behind
    /// the answers that went before them; their number is bounded by the calls that are open.
    late: Arc<Lock<Vec<Message>>>,
}

impl Mail {
    fn surely(&self, message: Message) {
        match self.inbox.control(message) {
            Ok(()) | Err(Refused::Ended(_)) => {}
            Err(Refused::Full(message)) => self.late.lock().push(message),
        }
    }
}

/// How links come to the room.
#[derive(Clone)]
pub struct Doorbell {
    inbox: Inbox<Message>,
    numbers: Arc<AtomicU64>,
    outlet: Outlet,
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Doorbell")
    }
}

impl Doorbell {
    /// The doorbell of the room with that inbox.
    pub fn new(inbox: &Inbox<Message>) -> Doorbell {
        let batches = inbox.clone();
        let outlet = Outlet::new(move |batch| match batches.try_data(Message::Batch(batch)) {
            Ok(()) | Err(Refused::Ended(_)) => Ok(()),
            Err(Refused::Full(Message::Batch(batch))) => Err(batch),
            Err(Refused::Full(_)) => Ok(()),
        });
        Doorbell { inbox: inbox.clone(), numbers: Arc::new(AtomicU64::new(1)), outlet }
    }

    /// A number for a link that comes in.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The ear of a link on threads of its own. It waits while the room is full.
    pub fn ear(&self, link: u64) -> Ear {
        let inbox = self.inbox.clone();
        Ear::new(move |heard| match heard {
            heard @ Heard::Closed { .. } => inbox.control(Message::Heard { link, heard }).is_ok(),
            heard => inbox.data(Message::Heard { link, heard }, Moment::NEVER).is_ok(),
        })
    }

    /// Where events of a link on the I/O threads go; its number is their tag.
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Brings in a link. False when the room is too full or has ended; the link is then dropped.
    pub fn ring(&self, link: u64, bearer: Box<dyn Bearer>) -> bool {
        match self.inbox.try_data(Message::Opened { link, bearer: BearerBox(bearer) }) {
            Ok(()) => true,
            Err(refused) => {
                if let Message::Opened { bearer, .. } = refused.into_inner() {
                    bearer.0.close(Cause::GoingAway.code(), Cause::GoingAway.as_str());
                }
                false
            }
        }
    }

    /// Brings in a WebSocket of the I/O threads.
    pub fn ring_handle(&self, link: u64, handle: LinkHandle) -> bool {
        self.ring(link, Box::new(handle))
    }
}

/// What operators see of sessions.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    sessions: Gauge,
    connected: Gauge,
    calls: Gauge,
    unacked_bytes: Gauge,
    began: Counter,
    ended: Counters,
    disconnects: Counters,
    handshakes: Counters,
    resent: Counter,
    trimmed: Counter,
    duplicates: Counter,
    invalid: Counter,
    acks: Counter,
    frames: Counters,
    opened: Counters,
    failed: Counters,
}

impl Figures {
    /// Describes them.
    pub fn describe(metrics: &mut Metrics) -> Figures {
        Figures {
            sessions: metrics.gauge("sessions", "River sessions that live, with or without a link."),
            connected: metrics.gauge("sessions_connected", "River sessions that a link bears."),
            calls: metrics.gauge("session_calls", "Calls of procedures that are open."),
            unacked_bytes: metrics
                .gauge("session_unacked_bytes", "Bytes sent on sessions and not yet acknowledged."),
            began: metrics.counter("sessions_began", "River sessions begun."),
            ended: metrics.counters("sessions_ended", "River sessions ended, by why."),
            disconnects: metrics.counters("session_disconnects", "Links that sessions lost, by why."),
            handshakes: metrics.counters("session_handshakes", "Handshakes, by what was answered."),
            resent: metrics.counter("session_resent", "Messages sent again after a reconnect."),
            trimmed: metrics
                .counter("session_trimmed", "Messages not sent again because the client had them."),
            duplicates: metrics.counter("session_duplicates", "Messages that had been received before."),
            invalid: metrics.counter("session_invalid", "Messages no session can go on after."),
            acks: metrics.counter("session_acks", "Acknowledgements said without being asked."),
            frames: metrics.counters("session_messages", "Messages on sessions, by direction."),
            opened: metrics.counters("session_calls_opened", "Calls of procedures, by kind."),
            failed: metrics.counters("session_calls_failed", "Calls ended by a protocol error, by its code."),
        }
    }
}

fn count(counters: &Counters, label: &'static str, value: &'static str) {
    counters.get_or_create(&vec![(label, value)]).inc();
}

/// A link as the room knows it.
struct Link {
    bearer: Box<dyn Bearer>,
    stage: Stage,
}

enum Stage {
    /// Nothing came yet.
    Waiting { until: Moment },
    /// Its handshake is being looked at.
    Admitting { from: String, until: Moment },
    /// It bears a session.
    Bound(u64),
}

/// A session as the room knows it.
struct Entry {
    session: Session,
    served: Served,
    client: Arc<Client>,
    requests: HashMap<String, Box<dyn Requests>, Hasher>,
    /// Streams whose handlers do not keep up.
    held_by: BTreeSet<String>,
    /// What arrived meanwhile. Not acknowledged, though its acknowledgements were heard.
    backlog: VecDeque<Result<Envelope, &'static str>>,
    /// Its link is not read.
    paused: bool,
    /// The alarm that is set for it.
    armed: Option<Moment>,
    unacked_bytes: usize,
}

/// Messages a held session keeps before its link is no longer read: enough for the acknowledgements of a peer
/// that respects its own mark to come through.
const BACKLOG_MAX: usize = 2_048;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    Link(u64),
    Session(u64),
}

/// The room.
pub struct Sessions<P> {
    rt: Rt,
    settings: Settings,
    options: Options,
    procedures: Arc<P>,
    admission: Arc<dyn Admission>,
    handlers: Arc<Handlers>,
    mail: Mail,
    figures: Figures,
    links: HashMap<u64, Link, Hasher>,
    waiting: usize,
    sessions: HashMap<u64, Entry, Hasher>,
    by_client: HashMap<String, u64, Hasher>,
    next_session: u64,
    alarms: BinaryHeap<Reverse<(Moment, Alarm)>>,
    ids: Ids,
    rand: Rand,
    open_calls: usize,
    unacked_bytes: usize,
    sinks: Vec<Vec<Action>>,
}

impl<P: Procedures> Sessions<P> {
    /// A room without sessions.
    pub fn new(
        rt: &Rt,
        settings: Settings,
        procedures: Arc<P>,
        admission: Arc<dyn Admission>,
        handlers: Arc<Handlers>,
        figures: Figures,
        inbox: &Inbox<Message>,
    ) -> Sessions<P> {
        let timing = match settings.resumable {
            true => settings.timing,
            // Without resuming, a session that lost its link has nothing to wait for.
            false => Timing { grace: Duration::ZERO, ..settings.timing },
        };
        let options = Options { timing, bounds: settings.holds, encode: settings.codec.encoder() };
        let mut rand = rt.rand("sessions");
        Sessions {
            rt: rt.clone(),
            options,
            procedures,
            admission,
            handlers,
            mail: Mail { inbox: inbox.clone(), late: Arc::default() },
            figures,
            links: HashMap::with_hasher(rt.hasher()),
            waiting: 0,
            sessions: HashMap::with_hasher(rt.hasher()),
            by_client: HashMap::with_hasher(rt.hasher()),
            next_session: 0,
            alarms: BinaryHeap::new(),
            ids: Ids::new(rand.next_u64()),
            rand,
            open_calls: 0,
            unacked_bytes: 0,
            sinks: Vec::new(),
            settings,
        }
    }

    fn handle(&mut self, now: Moment, message: Message) {
        match message {
            Message::Opened { link, bearer } => self.opened(now, link, bearer.0),
            Message::Heard { link, heard } => self.heard(now, link, heard),
            Message::Batch(batch) => {
                for event in batch {
                    let heard = match event.what {
                        Happened::Binary(bytes) => Heard::Frame(bytes.into()),
                        Happened::Text(_) => Heard::Garbage("a text came where bytes are spoken"),
                        Happened::Closed(closing) => {
                            Heard::Closed { code: if closing.by_peer { closing.code } else { BROKEN } }
                        }
                        _ => continue,
                    };
                    self.heard(now, event.tag, heard);
                }
            }
            Message::Admitted { link, request, result } => self.admitted(now, link, request, result),
            Message::Answer { session, stream, answer } => {
                let Some(entry) = self.sessions.get_mut(&session) else { return };
                entry.client.gate.flying.fetch_sub(1, Ordering::AcqRel);
                let mut sink = Vec::new();
                entry.served.answer(&stream, answer, &mut sink);
                self.serve(now, session, sink);
                self.settle(session);
            }
            Message::CloseAnswers { session, stream } => {
                let Some(entry) = self.sessions.get_mut(&session) else { return };
                let mut sink = Vec::new();
                entry.served.close_answers(&stream, &mut sink);
                self.serve(now, session, sink);
                self.settle(session);
            }
            Message::Fail { session, stream, failure } => {
                let Some(entry) = self.sessions.get_mut(&session) else { return };
                let mut sink = Vec::new();
                entry.served.fail(&stream, failure, &mut sink);
                self.serve(now, session, sink);
                self.settle(session);
            }
            Message::Resume { session, stream } => self.resume(now, session, &stream),
            Message::Refresh(client) => {
                let of = |id: &String| client.as_ref().is_none_or(|client| client == id);
                let mut all: Vec<u64> =
                    self.by_client.iter().filter(|(id, _)| of(id)).map(|(_, key)| *key).collect();
                all.sort_unstable();
                all.into_iter().for_each(|key| self.step(now, key, Input::AskRefresh));
            }
            Message::EndClient(client, cause) => {
                if let Some(key) = self.by_client.get(&client).copied() {
                    self.step(now, key, Input::End(cause));
                }
            }
            Message::Cut(client) => {
                let of = |id: &String| client.as_ref().is_none_or(|client| client == id);
                let mut all: Vec<u64> =
                    self.by_client.iter().filter(|(id, _)| of(id)).map(|(_, key)| *key).collect();
                all.sort_unstable();
                all.into_iter().for_each(|key| self.step(now, key, Input::Cut(Cause::LinkLost)));
            }
        }
    }

    // ---- links ----

    fn opened(&mut self, now: Moment, link: u64, bearer: Box<dyn Bearer>) {
        if self.waiting >= self.settings.waiting_max {
            bearer.close(Cause::GoingAway.code(), "too many links have not said who they are");
            return;
        }
        let until = now + self.settings.timing.handshake;
        self.waiting += 1;
        self.alarms.push(Reverse((until, Alarm::Link(link))));
        self.links.insert(link, Link { bearer, stage: Stage::Waiting { until } });
    }

    fn heard(&mut self, now: Moment, link: u64, heard: Heard) {
        let Some(known) = self.links.get(&link) else { return };
        match (&known.stage, heard) {
            (Stage::Bound(key), Heard::Frame(frame)) => {
                let key = *key;
                let envelope = self.settings.codec.decode(&frame, self.settings.accepts).map_err(|bad| bad.0);
                self.arrived(now, key, link, envelope);
            }
            (Stage::Bound(key), Heard::Garbage(why)) => {
                let key = *key;
                self.arrived(now, key, link, Err(why));
            }
            (Stage::Bound(key), Heard::Closed { code }) => {
                let key = *key;
                self.forget_link(link);
                self.flush_backlog(now, key, link);
                self.step(now, key, Input::Detached { link, goodbye: code == Cause::Goodbye.code() });
            }
            (Stage::Waiting { until }, Heard::Frame(frame)) => {
                let until = *until;
                self.handshake(now, link, until, &frame);
            }
            (Stage::Waiting { .. }, Heard::Garbage(_)) => self.close_link(link, Cause::InvalidMessage),
            // Whoever cannot wait for an answer does not get one.
            (Stage::Admitting { .. }, Heard::Frame(_) | Heard::Garbage(_)) => {
                self.close_link(link, Cause::HandshakeRefused);
            }
            (Stage::Waiting { .. } | Stage::Admitting { .. }, Heard::Closed { .. }) => {
                drop(self.forget_link(link))
            }
        }
    }

    fn forget_link(&mut self, link: u64) -> Option<Link> {
        let known = self.links.remove(&link)?;
        self.waiting -= usize::from(!matches!(known.stage, Stage::Bound(_)));
        Some(known)
    }

    fn close_link(&mut self, link: u64, cause: Cause) {
        if let Some(known) = self.forget_link(link) {
            known.bearer.close(cause.code(), cause.as_str());
        }
    }

    fn handshake(&mut self, now: Moment, link: u64, until: Moment, frame: &Bytes) {
        let Ok(envelope) = self.settings.codec.decode(frame, self.settings.accepts) else {
            count(&self.figures.handshakes, "result", "undecodable");
            return self.close_link(link, Cause::InvalidMessage);
        };
        let from = envelope.from.clone();
        let request = match Request::read(&envelope) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(link, &from, refusal),
        };
        let before =
            self.by_client.get(&from).and_then(|key| self.sessions.get(key)).map(|e| e.client.metadata());
        if let Some(known) = self.links.get_mut(&link) {
            known.stage = Stage::Admitting { from: from.clone(), until };
        }
        let (admission, mail) = (self.admission.clone(), self.mail.clone());
        if admission.is_quick() {
            let result = admission.admit(&from, request.metadata.as_ref(), before.as_deref());
            return self.admitted(now, link, Some(Box::new(request)), result);
        }
        let metadata = request.metadata.clone();
        let request = Some(Box::new(request));
        let asked = from.clone();
        let started = self.handlers.run(move || {
            let result = admit(&*admission, &asked, metadata.as_ref(), before.as_deref());
            mail.surely(Message::Admitted { link, request, result });
        });
        if !started {
            self.refuse(
                link,
                &from,
                Refusal::new(RefusalCode::RejectedByCustomHandler, "the server is too busy"),
            );
        }
    }

    fn admitted(
        &mut self,
        now: Moment,
        link: u64,
        request: Option<Box<Request>>,
        result: Result<Admitted, Refusal>,
    ) {
        let Some(known) = self.links.get(&link) else { return };
        let from = match (&known.stage, request) {
            (Stage::Admitting { from, .. }, Some(request)) => (from.clone(), request),
            (Stage::Bound(key), None) => {
                let key = *key;
                return self.refreshed(now, key, result);
            }
            _ => return,
        };
        let (from, request) = from;
        let admitted = match result {
            Ok(admitted) => admitted,
            Err(refusal) => return self.refuse(link, &from, refusal),
        };
        let key = self.by_client.get(&from).copied();
        let known = key.and_then(|key| self.sessions.get(&key)).map(|entry| entry.session.known());
        match decide(&request, known, self.settings.second, self.settings.resumable) {
            Decision::Refuse(refusal) => self.refuse(link, &from, refusal),
            Decision::Resume => {
                count(&self.figures.handshakes, "result", "resumed");
                let Some(key) = key else { return };
                self.attach(now, key, link, &request, admitted);
            }
            Decision::Begin => {
                if let Some(old) = key {
                    self.step(now, old, Input::End(Cause::Replaced));
                }
                if self.sessions.len() >= self.settings.sessions_max {
                    let refusal = Refusal::new(
                        RefusalCode::RejectedByCustomHandler,
                        "the server holds as many sessions as it may",
                    );
                    return self.refuse(link, &from, refusal);
                }
                count(&self.figures.handshakes, "result", "begun");
                let key = self.begin(&from, &request, &admitted);
                self.attach(now, key, link, &request, admitted);
            }
        }
    }

    fn refuse(&mut self, link: u64, client: &str, refusal: Refusal) {
        count(&self.figures.handshakes, "result", refusal.code.as_str());
        let stream = self.ids.make();
        let message = Response::Refused(refusal).message(stream);
        let id = self.ids.make();
        let frame = self.settings.codec.encode(crate::state::envelope::Outgoing {
            id: &id,
            from: &self.settings.id,
            to: client,
            seq: 0,
            ack: 0,
            message: &message,
        });
        if let Some(known) = self.links.get(&link) {
            known.bearer.send(frame);
        }
        self.close_link(link, Cause::HandshakeRefused);
    }

    fn begin(&mut self, from: &str, request: &Request, admitted: &Admitted) -> u64 {
        self.next_session += 1;
        let key = self.next_session;
        let mut sink = Vec::new();
        let draw = self.rand.next_u64();
        let session = Session::begin(&self.settings.id, from, request, draw, self.options, &mut sink);
        let client = Client {
            id: from.to_owned(),
            session: request.session.clone(),
            version: request.version,
            metadata: Lock::new(Arc::new(admitted.metadata.clone())),
            gate: Gate::default(),
        };
        let entry = Entry {
            session,
            served: Served::new(&self.settings.id, request.version, self.settings.streams_max),
            client: Arc::new(client),
            requests: HashMap::with_hasher(self.rt.hasher()),
            held_by: BTreeSet::new(),
            backlog: VecDeque::new(),
            paused: false,
            armed: None,
            unacked_bytes: 0,
        };
        self.sessions.insert(key, entry);
        self.by_client.insert(from.to_owned(), key);
        self.figures.began.inc();
        self.figures.sessions.inc();
        key
    }

    fn attach(&mut self, now: Moment, key: u64, link: u64, request: &Request, admitted: Admitted) {
        let refresh_at = self.refresh_at(now, admitted.expires_in);
        if let Some(known) = self.links.get_mut(&link) {
            known.stage = Stage::Bound(key);
            self.waiting -= 1;
        }
        if let Some(entry) = self.sessions.get_mut(&key) {
            *entry.client.metadata.lock() = Arc::new(admitted.metadata);
            // What an older link brought and nobody took is sent again on this one.
            entry.backlog.clear();
            entry.paused = false;
        }
        self.step(now, key, Input::Attached { link, peer_has: request.expected.next_expected, refresh_at });
    }

    /// Fresh metadata is asked for one handshake's time before the old expires.
    fn refresh_at(&self, now: Moment, expires_in: Option<Duration>) -> Option<Moment> {
        expires_in.map(|life| now + life.saturating_sub(self.settings.timing.handshake))
    }

    fn refreshed(&mut self, now: Moment, key: u64, result: Result<Admitted, Refusal>) {
        let accepted = result.ok().map(|admitted| {
            if let Some(entry) = self.sessions.get_mut(&key) {
                *entry.client.metadata.lock() = Arc::new(admitted.metadata);
            }
            self.refresh_at(now, admitted.expires_in)
        });
        self.step(now, key, Input::Refreshed { accepted });
    }

    // ---- sessions ----

    fn arrived(&mut self, now: Moment, key: u64, link: u64, envelope: Result<Envelope, &'static str>) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        if entry.held_by.is_empty() || entry.session.link() != Some(link) {
            return self.step(now, key, Input::Frame { link, envelope });
        }
        // Its numbers wait with it, but what it acknowledges, and that the peer lives, is known now.
        let ack = envelope.as_ref().map_or(0, |envelope| envelope.ack);
        entry.backlog.push_back(envelope);
        if entry.backlog.len() >= BACKLOG_MAX && !entry.paused {
            entry.paused = true;
            if let Some(link) = self.links.get(&link) {
                link.bearer.pause(true);
            }
        }
        self.step(now, key, Input::Glimpse { ack });
    }

    fn resume(&mut self, now: Moment, key: u64, stream: &str) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        entry.held_by.remove(stream);
        let Some(link) = entry.session.link() else { return };
        self.flush_backlog(now, key, link);
    }

    /// Takes what waited until a handler holds the session back again.
    fn flush_backlog(&mut self, now: Moment, key: u64, link: u64) {
        loop {
            let Some(entry) = self.sessions.get_mut(&key).filter(|entry| entry.held_by.is_empty()) else {
                return;
            };
            let Some(envelope) = entry.backlog.pop_front() else { break };
            self.step(now, key, Input::Frame { link, envelope });
        }
        if let Some(entry) = self.sessions.get_mut(&key).filter(|entry| entry.paused) {
            entry.paused = false;
            if let Some(link) = self.links.get(&link) {
                link.bearer.pause(false);
            }
        }
    }

    fn step(&mut self, now: Moment, key: u64, input: Input) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        let mut sink = self.sinks.pop().unwrap_or_default();
        entry.session.step(now, input, &mut sink);
        self.carry_out(now, key, &mut sink);
        sink.clear();
        self.sinks.push(sink);
        self.settle(key);
    }

    /// Does what the session wants. What it delivers comes last: a handler may answer on the spot, and its
    /// answer is numbered after what was written here.
    fn carry_out(&mut self, now: Moment, key: u64, sink: &mut Vec<Action>) {
        let mut delivered = Vec::new();
        for action in sink.drain(..) {
            match action {
                Action::Write { link, frame } => {
                    if let Some(link) = self.links.get(&link) {
                        link.bearer.send(frame);
                    }
                }
                Action::Deliver(envelope) => delivered.push(envelope),
                Action::Close { link, cause } => self.close_link(link, cause),
                Action::CheckRefresh { metadata } => self.check_refresh(now, key, metadata),
                Action::Ended { cause, .. } => self.ended(now, key, cause),
                Action::Tell(event) => self.tell(event),
                Action::Began { .. } | Action::Writable => {}
                Action::Dial { .. } | Action::AskMetadata { .. } => {}
            }
        }
        for envelope in delivered {
            let Some(entry) = self.sessions.get_mut(&key) else { return };
            let mut sink = Vec::new();
            entry.served.arrived(envelope, &*self.procedures, &mut sink);
            self.serve(now, key, sink);
        }
    }

    /// Does what the streams want, in order.
    fn serve(&mut self, now: Moment, key: u64, sink: Vec<Serve>) {
        for action in sink {
            let Some(entry) = self.sessions.get_mut(&key) else { return };
            match action {
                Serve::Say(message) => {
                    count(&self.figures.frames, "direction", "out");
                    let mut sink = self.sinks.pop().unwrap_or_default();
                    entry.session.step(now, Input::Say(message), &mut sink);
                    self.carry_out(now, key, &mut sink);
                    self.sinks.push(sink);
                }
                Serve::Open { stream, kind, procedure, init, tracing } => {
                    self.open(now, key, stream, kind, procedure, init, tracing);
                }
                Serve::Data { stream, value } => {
                    let Some(requests) = entry.requests.get_mut(&stream) else { continue };
                    match requests.data(value) {
                        Ok(Taken::More) => {}
                        Ok(Taken::HoldBack) => {
                            entry.held_by.insert(stream);
                        }
                        Err(failure) => self.fail(now, key, &stream, failure),
                    }
                }
                Serve::RequestsEnded { stream } => {
                    if let Some(requests) = entry.requests.get_mut(&stream) {
                        requests.ended();
                    }
                }
                Serve::Broken { stream, failure } => {
                    if let Some(requests) = entry.requests.get_mut(&stream) {
                        requests.broken(failure);
                    }
                }
                Serve::Finished { stream } => {
                    self.open_calls -= 1;
                    self.figures.calls.dec();
                    let finished = entry.requests.remove(&stream);
                    if let Some(mut finished) = finished {
                        finished.finished();
                    }
                    if self.sessions.get(&key).is_some_and(|entry| entry.held_by.contains(&stream)) {
                        // Whoever held the session back is gone; what waits is taken with the next wake.
                        let message = Message::Resume { session: key, stream: stream.as_str().into() };
                        self.mail.surely(message);
                    }
                }
            }
        }
    }

    fn open(
        &mut self,
        now: Moment,
        key: u64,
        stream: String,
        kind: Kind,
        procedure: usize,
        init: Value,
        tracing: Option<Tracing>,
    ) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        count(&self.figures.opened, "kind", kind.as_str());
        let opening = Opening {
            client: &entry.client,
            tracing,
            handlers: &self.handlers,
            rt: &self.rt,
            open_calls: self.open_calls,
            mail: &self.mail,
            session: key,
            stream: &stream,
        };
        self.open_calls += 1;
        self.figures.calls.inc();
        match self.procedures.open(procedure, init, opening) {
            Opened::Running(requests) => {
                entry.requests.insert(stream, requests);
            }
            Opened::Answered(answer) => {
                let mut sink = Vec::new();
                entry.served.answer(&stream, answer, &mut sink);
                self.serve(now, key, sink);
            }
            Opened::Failed(failure) => self.fail(now, key, &stream, failure),
        }
    }

    fn fail(&mut self, now: Moment, key: u64, stream: &str, failure: Failure) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        let uncaught = failure.code == UNCAUGHT_ERROR;
        count(&self.figures.failed, "code", if uncaught { "uncaught" } else { "refused" });
        let mut sink = Vec::new();
        entry.served.fail(stream, failure, &mut sink);
        self.serve(now, key, sink);
    }

    fn check_refresh(&mut self, now: Moment, key: u64, metadata: Value) {
        let Some(entry) = self.sessions.get(&key) else { return };
        let (Some(link), from, before) =
            (entry.session.link(), entry.client.id.clone(), entry.client.metadata())
        else {
            return;
        };
        let (admission, mail) = (self.admission.clone(), self.mail.clone());
        let check = move || admit(&*admission, &from, Some(&metadata), Some(&before));
        if self.admission.is_quick() {
            return self.mail.surely(Message::Admitted { link, request: None, result: check() });
        }
        let started = self.handlers.run(move || {
            mail.surely(Message::Admitted { link, request: None, result: check() });
        });
        if !started {
            self.step(now, key, Input::Refreshed { accepted: None });
        }
    }

    fn ended(&mut self, now: Moment, key: u64, cause: Cause) {
        let Some(mut entry) = self.sessions.remove(&key) else { return };
        count(&self.figures.ended, "cause", cause.as_str());
        self.figures.sessions.dec();
        if self.by_client.get(&entry.client.id) == Some(&key) {
            self.by_client.remove(&entry.client.id);
        }
        self.unacked_bytes -= entry.unacked_bytes;
        entry.client.gate.ended.store(true, Ordering::Release);
        entry.client.gate.ring();
        let mut sink = Vec::new();
        entry.served.disconnected(&mut sink);
        for action in sink {
            match action {
                Serve::Broken { stream, failure } => {
                    if let Some(requests) = entry.requests.get_mut(&stream) {
                        requests.broken(failure);
                    }
                }
                Serve::Finished { stream } => {
                    self.open_calls -= 1;
                    self.figures.calls.dec();
                    if let Some(mut requests) = entry.requests.remove(&stream) {
                        requests.finished();
                    }
                }
                _ => {}
            }
        }
        let client = &entry.client.id;
        self.rt.trace(|| format!("session of {client} ended at {now:?}: {cause}"));
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Connected { resent, trimmed } => {
                self.figures.connected.inc();
                self.figures.resent.inc_by(resent as u64);
                self.figures.trimmed.inc_by(trimmed as u64);
            }
            Event::Disconnected { cause } => {
                self.figures.connected.dec();
                count(&self.figures.disconnects, "cause", cause.as_str());
            }
            Event::Duplicate => drop(self.figures.duplicates.inc()),
            Event::InvalidMessage(_) => drop(self.figures.invalid.inc()),
            Event::AckSaid => drop(self.figures.acks.inc()),
            Event::HandshakeFailed(_) | Event::Mismatch(_) | Event::RetriesExceeded => {}
        }
    }

    /// After anything happened to a session: its gate, its share of memory, its alarm.
    fn settle(&mut self, key: u64) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        let gate = &entry.client.gate;
        gate.full.store(entry.session.above_mark(), Ordering::Release);
        if gate.waited_for.load(Ordering::SeqCst) && gate.is_open() {
            gate.ring();
        }
        let (_, bytes) = entry.session.unacked();
        self.unacked_bytes = self.unacked_bytes - entry.unacked_bytes + bytes;
        entry.unacked_bytes = bytes;
        self.figures.unacked_bytes.set(self.unacked_bytes as i64);
        let Some(deadline) = entry.session.deadline() else { return };
        if entry.armed.is_none_or(|armed| deadline < armed) {
            entry.armed = Some(deadline);
            self.alarms.push(Reverse((deadline, Alarm::Session(key))));
        }
        if self.unacked_bytes > self.settings.holds_total {
            // Whoever asked for the last byte pays for it: the sum has a bound, as each of them has.
            let now = self.rt.now();
            self.step(now, key, Input::End(Cause::BufferFull));
        }
    }

    fn ring_alarms(&mut self, now: Moment) {
        while let Some(Reverse((at, alarm))) =
            self.alarms.peek().copied().filter(|Reverse((at, _))| *at <= now)
        {
            self.alarms.pop();
            match alarm {
                Alarm::Link(link) => {
                    let late = self.links.get(&link).is_some_and(|link| match link.stage {
                        Stage::Waiting { until } | Stage::Admitting { until, .. } => until <= now,
                        Stage::Bound(_) => false,
                    });
                    if late {
                        count(&self.figures.handshakes, "result", "timed_out");
                        self.close_link(link, Cause::HandshakeTimeout);
                    }
                }
                Alarm::Session(key) => {
                    let Some(entry) = self.sessions.get_mut(&key).filter(|entry| entry.armed == Some(at))
                    else {
                        continue;
                    };
                    entry.armed = None;
                    if entry.paused {
                        // Its silence is our doing.
                        self.step(now, key, Input::Glimpse { ack: 0 });
                    }
                    self.step(now, key, Input::Alarm);
                }
            }
        }
    }

    fn wake_with(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        for message in inbox.drain(..) {
            self.handle(now, message);
        }
        if self.mail.inbox.is_empty() {
            let late = std::mem::take(&mut *self.mail.late.lock());
            for message in late {
                self.handle(now, message);
            }
        }
        self.ring_alarms(now);
    }
}

fn admit(
    admission: &dyn Admission,
    client: &str,
    metadata: Option<&Value>,
    before: Option<&Value>,
) -> Result<Admitted, Refusal> {
    let admit = std::panic::AssertUnwindSafe(|| admission.admit(client, metadata, before));
    std::panic::catch_unwind(admit).unwrap_or_else(|_| {
        Err(Refusal::new(RefusalCode::RejectedByCustomHandler, "the handshake handler failed"))
    })
}

impl<P: Procedures> Room for Sessions<P> {
    type Message = Message;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        self.wake_with(now, inbox);
    }

    fn deadline(&self) -> Option<Moment> {
        let alarm = self.alarms.peek().map(|Reverse((at, _))| *at);
        // Late mail is looked at as soon as the inbox is empty.
        if self.mail.late.lock().is_empty() { alarm } else { Some(Moment::ZERO) }
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        self.wake_with(now, inbox);
        let mut all: Vec<u64> = self.sessions.keys().copied().collect();
        all.sort_unstable();
        for key in all {
            self.step(now, key, Input::End(Cause::GoingAway));
        }
        let links: Vec<u64> = self.links.keys().copied().collect();
        for link in links {
            self.close_link(link, Cause::GoingAway);
        }
    }
}
