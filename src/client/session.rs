//! A client of River sessions: typed, blocking calls that survive the links they go over.
//!
//! ```no_run
//! use towpath::client::session::{Client, Dialer, Options};
//!
//! fn ask(rt: &towpath::rt::Rt, dialer: std::sync::Arc<dyn Dialer>) -> Result<(), Box<dyn std::error::Error>> {
//!     let client = Client::start(rt, "me", "SERVER", dialer, Options::default())?;
//!     let half: f64 = client.rpc("math", "divide", &(3, 2))?;
//!     for tick in client.subscribe::<_, u64>("clock", "ticks", &half)? {
//!         println!("{}", tick?);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A call made while there is no link waits for one; a link that breaks is dialed again and what was lost on
//! it is sent again, unseen by the calls. Only when the session ends (its grace is over, or the server does not
//! know it any more) do open calls fail, with `UNEXPECTED_DISCONNECT`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{Bounds, Codec, typed};
use crate::engine::worker::{self, Crew, Inbox, Room, Worker};
use crate::rt::{Cancel, Hasher, Lock, Rand, Receiver, RecvTimeoutError, Rt, Sender};
use crate::state::envelope::{Envelope, Ids, Procedure, Tracing};
use crate::state::procedure::{Answer, Call, Called, Failure, Kind, UNEXPECTED_DISCONNECT};
use crate::state::seq::SendBounds;
use crate::state::session::client::{Client as Machine, Input, Retry};
use crate::state::session::{Action, Cause, Event, Options as SessionOptions, Timing};
use crate::state::time::Moment;
use crate::state::value::Value;
use crate::wire::bearer::{Bearer, Ear, Heard};
use crate::wire::{Dial, Happened, LinkBatch, LinkHandle, Outlet, Owner, Speak, Target, Wire};

/// The code of a call that was given up because its time was over. Local, never on the wire.
pub const TIMED_OUT: &str = "TIMED_OUT";
/// The code of an answer that is not what the caller expected. Local, never on the wire.
pub const BAD_ANSWER: &str = "BAD_ANSWER";

/// How a client finds links.
pub trait Dialer: Send + Sync {
    /// Starts one attempt. Answers at once; how it went is said through `caller`, under this number.
    fn dial(&self, dial: u64, deadline: Moment, caller: &Caller);
}

/// Where a dialer says how its dials went.
#[derive(Clone)]
pub struct Caller {
    inbox: Inbox<Message>,
    outlet: Outlet,
    cancel: Cancel,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Caller")
    }
}

impl Caller {
    /// The ear for a link with that number.
    pub fn ear(&self, dial: u64) -> Ear {
        let inbox = self.inbox.clone();
        Ear::new(move |heard| match heard {
            heard @ Heard::Closed { .. } => inbox.control(Message::Heard { dial, heard }).is_ok(),
            heard => inbox.data(Message::Heard { dial, heard }, Moment::NEVER).is_ok(),
        })
    }

    /// Where links on the I/O threads are heard; the tag is the dial's number.
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Cancelled when the client is gone.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// The dial succeeded.
    pub fn dialed(&self, dial: u64, bearer: Box<dyn Bearer>) {
        // A client that has ended lets the link go, which closes it.
        let _ = self.inbox.control(Message::Dialed { dial, bearer: BearerBox(bearer) });
    }

    /// It failed.
    pub fn failed(&self, dial: u64, why: impl Into<String>) {
        // A client that has ended does not mind.
        let _ = self.inbox.control(Message::DialFailed { dial, why: why.into() });
    }
}

/// Dials WebSockets over the I/O threads.
pub struct WebSocket {
    wire: Arc<dyn Wire>,
    target: Target,
    headers: Vec<(String, String)>,
    message_max: u32,
}

impl std::fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebSocket({:?})", self.target)
    }
}

impl WebSocket {
    /// A dialer for that target (`ws://…`, `wss://…`).
    pub fn new(wire: Arc<dyn Wire>, target: Target) -> WebSocket {
        WebSocket { wire, target, headers: Vec::new(), message_max: 4 << 20 }
    }

    /// The same with one more header (its name in lower case) on the upgrade.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> WebSocket {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

impl Dialer for WebSocket {
    fn dial(&self, dial: u64, deadline: Moment, caller: &Caller) {
        self.wire.dial(Dial {
            target: self.target.clone(),
            speak: Speak::WebSocket { protocols: Vec::new(), message_max: self.message_max },
            headers: self.headers.clone(),
            deadline,
            cancel: caller.cancel.clone(),
            owner: Owner::new(&caller.outlet, dial),
        });
    }
}

/// Dials by calling a closure on a thread of its own: for Unix-domain sockets, for memory, for anything
/// [`bearer::stream`](crate::wire::bearer::stream) can be put over.
pub struct DialWith<F> {
    rt: Rt,
    connect: Arc<F>,
}

impl<F> std::fmt::Debug for DialWith<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DialWith")
    }
}

impl<F: Fn(Ear) -> crate::Result<Box<dyn Bearer>> + Send + Sync + 'static> DialWith<F> {
    /// A dialer that calls `connect`, which may block, and hands it the ear of the link to be.
    pub fn new(rt: &Rt, connect: F) -> DialWith<F> {
        DialWith { rt: rt.clone(), connect: Arc::new(connect) }
    }
}

impl<F: Fn(Ear) -> crate::Result<Box<dyn Bearer>> + Send + Sync + 'static> Dialer for DialWith<F> {
    fn dial(&self, dial: u64, _: Moment, caller: &Caller) {
        let (connect, answers) = (self.connect.clone(), caller.clone());
        let started = self.rt.spawn(format!("dial-{dial}"), move || match connect(answers.ear(dial)) {
            Ok(bearer) => answers.dialed(dial, bearer),
            Err(why) => answers.failed(dial, why.to_string()),
        });
        match started {
            // Its answer carries its number, and the client has stopped waiting for it by its deadline.
            Ok(thread) => thread.detach(),
            Err(why) => caller.failed(dial, why.to_string()),
        }
    }
}

/// Told what happens to a session.
pub type Listener = dyn Fn(&Event) + Send + Sync;
/// Makes the metadata of a handshake.
pub type MakeMetadata = dyn Fn() -> Result<Value, String> + Send + Sync;

/// What a client is told once.
#[derive(Clone)]
pub struct Options {
    /// How messages are written; the server must be told the same.
    pub codec: Codec,
    /// How much of a message is accepted.
    pub accepts: Bounds,
    /// Heartbeats, graces, timeouts.
    pub timing: Timing,
    /// How much may wait for acknowledgement.
    pub holds: SendBounds,
    /// How dials follow one another.
    pub retry: Retry,
    /// Dial again by itself when a link is lost.
    pub reconnects: bool,
    /// Dial at once, instead of with the first call.
    pub eager: bool,
    /// How long a call may take, unless it is told otherwise; none waits as long as the session lives.
    pub call_timeout: Option<Duration>,
    /// Makes the metadata of each handshake: fresh, because it is asked again when the old expires.
    pub metadata: Option<Arc<MakeMetadata>>,
    /// The trace of calls.
    pub tracing: Tracing,
    /// Told what happens to the session. Called on the client's own thread: it must not wait.
    pub listener: Option<Arc<Listener>>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("codec", &self.codec)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            codec: Codec::default(),
            accepts: Bounds::default(),
            timing: Timing::default(),
            holds: SendBounds::default(),
            retry: Retry::default(),
            reconnects: true,
            eager: false,
            call_timeout: None,
            metadata: None,
            tracing: Tracing::default(),
            listener: None,
        }
    }
}

/// A client. Cheap to clone; when the last clone is dropped it says goodbye and its thread is joined.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    rt: Rt,
    server: String,
    inbox: Inbox<Message>,
    gate: Arc<Gate>,
    ids: Lock<Ids>,
    call_timeout: Option<Duration>,
    status: Arc<Status>,
    cancel: Cancel,
    // Dropped last: the room's last wake says goodbye.
    worker: Lock<Option<Worker>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.cancel.cancel();
        drop(self.worker.get_mut().take());
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client(of {})", self.shared.server)
    }
}

#[derive(Default)]
struct Status {
    connected: AtomicBool,
    session: Lock<Option<String>>,
    calls: AtomicUsize,
}

/// Whether more may be said now.
#[derive(Default)]
struct Gate {
    full: AtomicBool,
    ended: AtomicBool,
    flying: AtomicUsize,
    waited_for: AtomicBool,
    waiters: Lock<Vec<Sender<()>>>,
}

/// Requests that may be on their way to the room.
const FLYING_MAX: usize = 1_024;

impl Gate {
    fn is_open(&self) -> bool {
        self.ended.load(Ordering::Acquire)
            || (!self.full.load(Ordering::Acquire) && self.flying.load(Ordering::Acquire) < FLYING_MAX)
    }

    fn wait(&self, rt: &Rt, deadline: Moment) -> bool {
        while !self.is_open() {
            let (bell, rung) = rt.channel("gate", 1);
            self.waiters.lock().push(bell);
            self.waited_for.store(true, Ordering::SeqCst);
            if self.is_open() {
                self.ring();
            }
            // Woken by acknowledgements making room, or by the end.
            if rung.recv_deadline(deadline).is_err() {
                return self.is_open();
            }
        }
        true
    }

    fn ring(&self) {
        if self.waited_for.swap(false, Ordering::SeqCst) {
            for waiter in std::mem::take(&mut *self.waiters.lock()) {
                // Full means that it was rung already.
                let _ = waiter.try_send(());
            }
        }
    }
}

impl Client {
    /// Starts a client; it dials when there is something to say, or at once if it is told to be eager. `id` must
    /// be unique among the live clients of that server.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(
        rt: &Rt,
        id: &str,
        server: &str,
        dialer: Arc<dyn Dialer>,
        options: Options,
    ) -> crate::Result<Client> {
        let crew = Crew::new(rt);
        let cancel = rt.cancel_token();
        let (gate, status) = (Arc::new(Gate::default()), Arc::new(Status::default()));
        let (call_timeout, eager) = (options.call_timeout, options.eager);
        let (room_gate, room_status, dials) = (gate.clone(), status.clone(), cancel.child());
        let (worker, inbox) = Worker::spawn(&crew, "client-session", worker::Bounds::of(4_096), |inbox| {
            ClientRoom::new(rt, id, server, dialer, options, room_gate, room_status, inbox, dials)
        })?;
        let ids = Lock::new(Ids::new(rt.rand("client-streams").next_u64()));
        let worker = Lock::new(Some(worker));
        let (rt, server) = (rt.clone(), server.to_owned());
        let shared = Shared { rt, server, inbox, gate, ids, call_timeout, status, cancel, worker };
        let client = Client { shared: Arc::new(shared) };
        if eager {
            client.connect();
        }
        Ok(client)
    }

    /// Dials if there is no link, without waiting for it.
    pub fn connect(&self) {
        // A client that has ended cannot.
        let _ = self.shared.inbox.control(Message::Input(Input::Connect));
    }

    /// Dials now, whatever wait there was left.
    pub fn hurry(&self) {
        // A client that has ended cannot.
        let _ = self.shared.inbox.control(Message::Input(Input::Hurry));
    }

    /// Whether to dial again by itself from now on.
    pub fn reconnects(&self, yes: bool) {
        // A client that has ended does not.
        let _ = self.shared.inbox.control(Message::Input(Input::Reconnects(yes)));
    }

    /// Cuts the link and keeps the session: for tests, and for whoever knows that the network has changed.
    pub fn cut(&self) {
        // A client that has ended has no link.
        let _ = self.shared.inbox.control(Message::Input(Input::Cut(Cause::LinkLost)));
    }

    /// Ends the session at once: every open call is cancelled, and the server is told that nobody comes back.
    pub fn disconnect(&self) {
        // A client that has ended has no session.
        let _ = self.shared.inbox.control(Message::Goodbye);
    }

    /// Whether a link bears the session now.
    pub fn is_connected(&self) -> bool {
        self.shared.status.connected.load(Ordering::Acquire)
    }

    /// The session there is.
    pub fn session(&self) -> Option<String> {
        self.shared.status.session.lock().clone()
    }

    /// Calls that are open.
    pub fn open_calls(&self) -> usize {
        self.shared.status.calls.load(Ordering::Acquire)
    }

    /// One request, one answer.
    ///
    /// # Errors
    /// What the service answered, or what became of the call.
    pub fn rpc<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        service: &str,
        procedure: &str,
        init: &I,
    ) -> Result<O, Failure> {
        self.rpc_within(service, procedure, init, self.shared.call_timeout)
    }

    /// The same with a limit of its own; the call is cancelled when it is over.
    ///
    /// # Errors
    /// What the service answered, or what became of the call.
    pub fn rpc_within<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        service: &str,
        procedure: &str,
        init: &I,
        limit: Option<Duration>,
    ) -> Result<O, Failure> {
        let mut answers = self.open::<I, O>(Kind::Rpc, service, procedure, init, 2)?;
        answers.one(limit.map_or(Moment::NEVER, |limit| self.shared.rt.now() + limit))
    }

    /// One request, many answers. Dropping them cancels the call.
    ///
    /// # Errors
    /// The request could not be made.
    pub fn subscribe<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        service: &str,
        procedure: &str,
        init: &I,
    ) -> Result<Answers<O>, Failure> {
        self.open(Kind::Subscription, service, procedure, init, 2 * READ_AHEAD)
    }

    /// Many requests, one answer, which [`Upload::finish`] waits for.
    ///
    /// # Errors
    /// The request could not be made.
    pub fn upload<I: Serialize + ?Sized, R: Serialize, O: DeserializeOwned>(
        &self,
        service: &str,
        procedure: &str,
        init: &I,
    ) -> Result<Upload<R, O>, Failure> {
        let answers = self.open(Kind::Upload, service, procedure, init, 2)?;
        Ok(Upload { requests: answers.requests(), answers })
    }

    /// Many of both, read and written apart.
    ///
    /// # Errors
    /// The request could not be made.
    pub fn stream<I: Serialize + ?Sized, R: Serialize, O: DeserializeOwned>(
        &self,
        service: &str,
        procedure: &str,
        init: &I,
    ) -> Result<(RequestWriter<R>, Answers<O>), Failure> {
        let answers = self.open(Kind::Stream, service, procedure, init, 2 * READ_AHEAD)?;
        Ok((answers.requests(), answers))
    }

    fn open<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        kind: Kind,
        service: &str,
        procedure: &str,
        init: &I,
        bound: usize,
    ) -> Result<Answers<O>, Failure> {
        let init =
            typed::to_value(init).map_err(|why| Failure::new(BAD_ANSWER, format!("the request: {why}")))?;
        let stream = self.shared.ids.lock().make();
        let (tx, items) = self.shared.rt.channel("answers", bound);
        let waiting = Arc::new(AtomicUsize::new(0));
        let (held, broken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let sink =
            AnswerSink { items: tx, waiting: waiting.clone(), held: held.clone(), broken: broken.clone() };
        let procedure = Procedure { service: service.to_owned(), name: procedure.to_owned() };
        self.shared.gate.wait(&self.shared.rt, Moment::NEVER);
        let message =
            Message::Call(Box::new(NewCall { stream: stream.clone(), kind, procedure, init, sink }));
        self.shared.put(message, Moment::NEVER)?;
        Ok(Answers {
            client: self.clone(),
            stream,
            items,
            waiting,
            held,
            broken,
            over: false,
            of: PhantomData,
        })
    }
}

impl Shared {
    fn put(&self, message: Message, deadline: Moment) -> Result<(), Failure> {
        self.gate.flying.fetch_add(1, Ordering::AcqRel);
        self.inbox.data(message, deadline).map_err(|_| {
            self.gate.flying.fetch_sub(1, Ordering::AcqRel);
            Failure::new(UNEXPECTED_DISCONNECT, "the client has ended")
        })
    }
}

/// Answers a caller may have unread before the session is held back.
const READ_AHEAD: usize = 256;

/// The answers of a call, in order: an iterator that ends with the server's last one. Dropping it before
/// cancels the call.
pub struct Answers<O> {
    client: Client,
    stream: String,
    items: Receiver<Answer>,
    waiting: Arc<AtomicUsize>,
    held: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
    over: bool,
    of: PhantomData<fn() -> O>,
}

impl<O> std::fmt::Debug for Answers<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answers({})", self.stream)
    }
}

impl<O> Answers<O> {
    /// Ends the call: the server is told, and one error `CANCEL` comes before the end.
    pub fn cancel(&self) {
        // A client that has ended has told everybody.
        let _ = self.client.shared.inbox.control(Message::Cancel { stream: self.stream.clone() });
    }

    fn requests<R>(&self) -> RequestWriter<R> {
        RequestWriter {
            shared: self.client.shared.clone(),
            stream: self.stream.clone(),
            broken: self.broken.clone(),
            closed: false,
            of: PhantomData,
        }
    }

    fn took(&self) {
        let left = self.waiting.fetch_sub(1, Ordering::AcqRel) - 1;
        if left <= READ_AHEAD / 2 && self.held.swap(false, Ordering::AcqRel) {
            // Full means that the room wakes anyway, and looks.
            let _ = self.client.shared.inbox.control(Message::Resume { stream: self.stream.clone() });
        }
    }
}

impl<O: DeserializeOwned> Answers<O> {
    /// Waits for the next answer, at most until `deadline`: then the error is `TIMED_OUT`, and the call goes on.
    /// `None` when there are no more.
    pub fn next_by(&mut self, deadline: Moment) -> Option<Result<O, Failure>> {
        // Woken by an answer, or by the end of the call, which drops the other end.
        match self.items.recv_deadline(deadline) {
            Ok(answer) => {
                self.took();
                Some(read(answer))
            }
            Err(RecvTimeoutError::Timeout) => Some(Err(Failure::new(TIMED_OUT, "no answer came in time"))),
            Err(RecvTimeoutError::Disconnected) => {
                self.over = true;
                None
            }
        }
    }

    /// The one answer of a call that answers once: it counts when the server has closed.
    fn one(&mut self, deadline: Moment) -> Result<O, Failure> {
        let answer = match self.next_by(deadline) {
            Some(Err(failure)) if failure.code == TIMED_OUT => return Err(failure),
            Some(answer) => answer,
            None => return Err(Failure::new(BAD_ANSWER, "the server closed the call without an answer")),
        };
        match self.items.recv_deadline(deadline) {
            Err(RecvTimeoutError::Timeout) => {
                Err(Failure::new(TIMED_OUT, "the answer was not closed in time"))
            }
            _ => {
                self.over = true;
                answer
            }
        }
    }
}

fn read<O: DeserializeOwned>(answer: Answer) -> Result<O, Failure> {
    typed::from_value(answer?).map_err(|why| Failure::new(BAD_ANSWER, why.to_string()))
}

impl<O: DeserializeOwned> Iterator for Answers<O> {
    type Item = Result<O, Failure>;
    fn next(&mut self) -> Option<Result<O, Failure>> {
        self.next_by(Moment::NEVER)
    }
}

impl<O> Drop for Answers<O> {
    fn drop(&mut self) {
        if !self.over {
            self.cancel();
        }
    }
}

/// Where a caller writes requests. Dropping it says that there are no more.
pub struct RequestWriter<R> {
    shared: Arc<Shared>,
    stream: String,
    broken: Arc<AtomicBool>,
    closed: bool,
    of: PhantomData<fn(R)>,
}

impl<R> std::fmt::Debug for RequestWriter<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RequestWriter({})", self.stream)
    }
}

impl<R> RequestWriter<R> {
    /// No more requests.
    pub fn close(&mut self) {
        if !self.closed {
            self.closed = true;
            // Behind every request that was written: the inbox keeps their order.
            let message = Message::Close { stream: self.stream.clone() };
            if let Err(worker::Refused::Full(message)) = self.shared.inbox.control(message) {
                // The reserve is for many closes at once; whoever closes is outside and may wait.
                let _ = self.shared.put(message, Moment::NEVER);
            }
        }
    }
}

impl<R: Serialize> RequestWriter<R> {
    /// Writes a request, waiting while the session has no room.
    ///
    /// # Errors
    /// Nobody reads any more: the answers say why.
    pub fn write(&self, request: &R) -> Result<(), Failure> {
        let value = typed::to_value(request)
            .map_err(|why| Failure::new(BAD_ANSWER, format!("the request: {why}")))?;
        self.shared.gate.wait(&self.shared.rt, Moment::NEVER);
        if self.broken.load(Ordering::Acquire) {
            return Err(Failure::new(
                UNEXPECTED_DISCONNECT,
                "nobody reads the requests of this call any more",
            ));
        }
        self.shared.put(Message::Write { stream: self.stream.clone(), value }, Moment::NEVER)
    }
}

impl<R> Drop for RequestWriter<R> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Many requests and the one answer to them.
#[derive(Debug)]
pub struct Upload<R, O> {
    requests: RequestWriter<R>,
    answers: Answers<O>,
}

impl<R: Serialize, O: DeserializeOwned> Upload<R, O> {
    /// Writes a request, waiting while the session has no room.
    ///
    /// # Errors
    /// Nobody reads any more: [`Upload::finish`] says why.
    pub fn write(&self, request: &R) -> Result<(), Failure> {
        self.requests.write(request)
    }

    /// Ends the call early.
    pub fn cancel(&self) {
        self.answers.cancel();
    }

    /// Says that there are no more requests and waits for the answer.
    ///
    /// # Errors
    /// What the service answered, or what became of the call.
    pub fn finish(mut self) -> Result<O, Failure> {
        self.requests.close();
        let limit = self.answers.client.shared.call_timeout;
        let deadline = limit.map_or(Moment::NEVER, |limit| self.answers.client.shared.rt.now() + limit);
        self.answers.one(deadline)
    }
}

// ---- the room ----

struct BearerBox(Box<dyn Bearer>);

struct NewCall {
    stream: String,
    kind: Kind,
    procedure: Procedure,
    init: Value,
    sink: AnswerSink,
}

struct AnswerSink {
    items: Sender<Answer>,
    waiting: Arc<AtomicUsize>,
    held: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

enum Message {
    Input(Input),
    Goodbye,
    Dialed { dial: u64, bearer: BearerBox },
    DialFailed { dial: u64, why: String },
    Heard { dial: u64, heard: Heard },
    Batch(LinkBatch),
    Metadata { link: u64, metadata: Result<Option<Value>, String> },
    Call(Box<NewCall>),
    Write { stream: String, value: Value },
    Close { stream: String },
    Cancel { stream: String },
    Resume { stream: String },
}

/// Messages kept while a caller does not read, before the link is no longer read.
const BACKLOG_MAX: usize = 2_048;

struct ClientRoom {
    rt: Rt,
    codec: Codec,
    accepts: Bounds,
    connect: Duration,
    machine: Machine,
    called: Called,
    dialer: Arc<dyn Dialer>,
    caller: Caller,
    metadata: Option<Arc<MakeMetadata>>,
    tracing: Tracing,
    listener: Option<Arc<Listener>>,
    link: Option<(u64, Box<dyn Bearer>)>,
    answers: HashMap<String, AnswerSink, Hasher>,
    held_by: BTreeSet<String>,
    backlog: VecDeque<Result<Envelope, &'static str>>,
    paused: bool,
    gate: Arc<Gate>,
    status: Arc<Status>,
    rand: Rand,
}

impl ClientRoom {
    fn new(
        rt: &Rt,
        id: &str,
        server: &str,
        dialer: Arc<dyn Dialer>,
        options: Options,
        gate: Arc<Gate>,
        status: Arc<Status>,
        inbox: &Inbox<Message>,
        cancel: Cancel,
    ) -> ClientRoom {
        let session =
            SessionOptions { timing: options.timing, bounds: options.holds, encode: options.codec.encoder() };
        let mut machine = Machine::new(id, server, session, options.retry);
        machine.step(rt.now(), 0, Input::Reconnects(options.reconnects), &mut Vec::new());
        let batches = inbox.clone();
        let outlet = Outlet::new(move |batch| match batches.try_data(Message::Batch(batch)) {
            Err(worker::Refused::Full(Message::Batch(batch))) => Err(batch),
            _ => Ok(()),
        });
        ClientRoom {
            rt: rt.clone(),
            codec: options.codec,
            accepts: options.accepts,
            connect: options.timing.connect,
            machine,
            called: Called::new(server),
            dialer,
            caller: Caller { inbox: inbox.clone(), outlet, cancel },
            metadata: options.metadata,
            tracing: options.tracing,
            listener: options.listener,
            link: None,
            answers: HashMap::with_hasher(rt.hasher()),
            held_by: BTreeSet::new(),
            backlog: VecDeque::new(),
            paused: false,
            gate,
            status,
            rand: rt.rand("client-session"),
        }
    }

    fn handle(&mut self, now: Moment, message: Message) {
        match message {
            Message::Input(input) => self.step(now, input),
            Message::Goodbye => self.goodbye(now),
            Message::Dialed { dial, bearer } => self.dialed(now, dial, bearer.0),
            Message::DialFailed { dial, why } => {
                log::debug!("dial {dial} failed: {why}");
                self.step(now, Input::DialFailed { dial });
            }
            Message::Heard { dial, heard } => self.heard(now, dial, heard),
            Message::Batch(batch) => batch.into_iter().for_each(|event| match event.what {
                Happened::Opened(handle, _) => self.dialed(now, event.tag, Box::<LinkHandle>::new(handle)),
                Happened::Refused(why) => {
                    log::debug!("dial {} failed: {why}", event.tag);
                    self.step(now, Input::DialFailed { dial: event.tag });
                }
                Happened::Binary(bytes) => self.heard(now, event.tag, Heard::Frame(bytes.into())),
                Happened::Text(_) => {
                    self.heard(now, event.tag, Heard::Garbage("a text came where bytes are spoken"))
                }
                Happened::Closed(closing) => self.heard(now, event.tag, Heard::Closed { code: closing.code }),
                _ => {}
            }),
            Message::Metadata { link, metadata } => self.step(now, Input::Metadata { link, metadata }),
            Message::Call(call) => {
                self.landed();
                let NewCall { stream, kind, procedure, init, sink } = *call;
                self.answers.insert(stream.clone(), sink);
                self.calls(now, |called, tracing, sink| {
                    called.call(&stream, kind, procedure, init, tracing, sink)
                });
            }
            Message::Write { stream, value } => {
                self.landed();
                self.calls(now, |called, _, sink| {
                    // Written to a call that is over: its answers say so.
                    let _ = called.write(&stream, value, sink);
                });
            }
            Message::Close { stream } => self.calls(now, |called, _, sink| called.close(&stream, sink)),
            Message::Cancel { stream } => {
                self.calls(now, |called, _, sink| called.cancel(&stream, "cancelled by client", sink));
            }
            Message::Resume { stream } => self.resume(now, &stream),
        }
    }

    /// Something that was on its way to the room has arrived.
    fn landed(&mut self) {
        self.gate.flying.fetch_sub(1, Ordering::AcqRel);
    }

    fn dialed(&mut self, now: Moment, dial: u64, bearer: Box<dyn Bearer>) {
        let before = self.link.replace((dial, bearer));
        self.step(now, Input::Dialed { dial });
        // A dial that was given up came through: the machine closed it, and the link there was goes on.
        if self.link.is_none() {
            self.link = before;
        }
    }

    fn heard(&mut self, now: Moment, dial: u64, heard: Heard) {
        let envelope = match heard {
            Heard::Frame(frame) => self.codec.decode(&frame, self.accepts).map_err(|bad| bad.0),
            Heard::Garbage(why) => Err(why),
            Heard::Closed { .. } => {
                self.flush_backlog(now, dial);
                if self.link.as_ref().is_some_and(|(number, _)| *number == dial) {
                    self.link = None;
                }
                return self.step(now, Input::Detached { link: dial });
            }
        };
        if self.held_by.is_empty() {
            return self.step(now, Input::Frame { link: dial, envelope });
        }
        if self.link.as_ref().is_none_or(|(number, _)| *number != dial) {
            return;
        }
        // Its number waits with it, but what it acknowledges, and that the server lives, is known now.
        let ack = envelope.as_ref().map_or(0, |envelope| envelope.ack);
        self.backlog.push_back(envelope);
        if self.backlog.len() >= BACKLOG_MAX && !self.paused {
            self.paused = true;
            if let Some((_, bearer)) = &self.link {
                bearer.pause(true);
            }
        }
        self.step(now, Input::Glimpse { link: dial, ack });
    }

    fn resume(&mut self, now: Moment, stream: &str) {
        self.held_by.remove(stream);
        if let Some((dial, _)) = &self.link {
            let dial = *dial;
            self.flush_backlog(now, dial);
        }
    }

    fn flush_backlog(&mut self, now: Moment, dial: u64) {
        while self.held_by.is_empty() {
            let Some(envelope) = self.backlog.pop_front() else {
                if std::mem::take(&mut self.paused)
                    && let Some((_, bearer)) = &self.link
                {
                    bearer.pause(false);
                }
                return;
            };
            self.step(now, Input::Frame { link: dial, envelope });
        }
    }

    fn step(&mut self, now: Moment, input: Input) {
        let mut sink = Vec::new();
        let draw = self.rand.next_u64();
        self.machine.step(now, draw, input, &mut sink);
        let mut delivered = Vec::new();
        for action in sink {
            match action {
                Action::Write { link, frame } => {
                    if let Some((_, bearer)) = self.link.as_ref().filter(|(number, _)| *number == link) {
                        bearer.send(frame);
                    }
                }
                Action::Deliver(envelope) => delivered.push(envelope),
                Action::Dial { dial } => {
                    self.forget_backlog();
                    self.dialer.dial(dial, now + self.connect, &self.caller);
                }
                Action::AskMetadata { link } => self.ask_metadata(link),
                Action::Close { link, cause } => {
                    if let Some((_, bearer)) = self.link.take_if(|(number, _)| *number == link) {
                        bearer.close(cause.code(), cause.as_str());
                    }
                }
                Action::Ended { .. } => {
                    self.forget_backlog();
                    self.calls(now, |called, _, sink| called.disconnected(sink));
                }
                Action::Tell(event) => {
                    if let Some(listener) = &self.listener {
                        listener(&event);
                    }
                }
                Action::Began { .. } | Action::Writable | Action::CheckRefresh { .. } => {}
            }
        }
        for envelope in delivered {
            self.calls(now, |called, _, sink| called.arrived(envelope, sink));
        }
    }

    /// What an old link brought and nobody took is sent again on the next.
    fn forget_backlog(&mut self) {
        self.backlog.clear();
        self.paused = false;
    }

    fn ask_metadata(&mut self, link: u64) {
        let Some(make) = self.metadata.clone() else {
            let answer = Message::Metadata { link, metadata: Ok(None) };
            // To itself: at most one for each link, and the reserve holds more.
            let _ = self.caller.inbox.control(answer);
            return;
        };
        let inbox = self.caller.inbox.clone();
        let made = self.rt.spawn("metadata", move || {
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make()));
            let metadata = made.unwrap_or_else(|_| Err("its constructor panicked".into())).map(Some);
            // A client that has ended asks for no metadata.
            let _ = inbox.control(Message::Metadata { link, metadata });
        });
        match made {
            // It may ask a token server: nobody waits for it, its answer carries the link's number.
            Ok(thread) => thread.detach(),
            Err(why) => {
                let metadata = Err(why.to_string());
                let _ = self.caller.inbox.control(Message::Metadata { link, metadata });
            }
        }
    }

    fn calls(&mut self, now: Moment, change: impl FnOnce(&mut Called, Tracing, &mut Vec<Call>)) {
        let mut sink = Vec::new();
        change(&mut self.called, self.tracing.clone(), &mut sink);
        for action in sink {
            match action {
                Call::Say(message) => self.step(now, Input::Say(message)),
                Call::Answered { stream, answer } => {
                    let Some(sink) = self.answers.get(&stream) else { continue };
                    let waiting = sink.waiting.fetch_add(1, Ordering::AcqRel) + 1;
                    // Full cannot be: the session is held back at half. Gone means that the caller reads no more,
                    // and its cancellation is on its way.
                    if sink.items.try_send(answer).is_ok() && waiting >= READ_AHEAD {
                        sink.held.store(true, Ordering::Release);
                        let read_meanwhile = sink.waiting.load(Ordering::Acquire) < READ_AHEAD;
                        if !(read_meanwhile && sink.held.swap(false, Ordering::AcqRel)) {
                            self.held_by.insert(stream);
                        }
                    }
                }
                Call::AnswersEnded { stream } => {
                    self.answers.remove(&stream);
                    if self.held_by.contains(&stream) {
                        // What waits is taken with the next wake.
                        let _ = self.caller.inbox.control(Message::Resume { stream });
                    }
                }
                Call::RequestsBroken { stream } => {
                    if let Some(sink) = self.answers.get(&stream) {
                        sink.broken.store(true, Ordering::Release);
                    }
                }
            }
        }
        self.status.calls.store(self.called.open(), Ordering::Release);
    }

    /// Cancels what is open, so that the server knows at once, and leaves.
    fn goodbye(&mut self, now: Moment) {
        if self.machine.is_connected() {
            self.calls(now, |called, _, sink| called.cancel_all("the client left", sink));
        }
        self.step(now, Input::End(Cause::Goodbye));
    }

    fn settle(&mut self) {
        self.gate.full.store(self.machine.above_mark(), Ordering::Release);
        if self.gate.is_open() {
            self.gate.ring();
        }
        let connected = self.machine.is_connected();
        if self.status.connected.swap(connected, Ordering::AcqRel) != connected || !connected {
            *self.status.session.lock() = self.machine.session().map(str::to_owned);
        }
    }

    fn wake_with(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        for message in inbox.drain(..) {
            self.handle(now, message);
        }
        if self.machine.deadline().is_some_and(|deadline| deadline <= now) {
            if let Some((dial, _)) = self.link.as_ref().filter(|_| self.paused) {
                // Its silence is our doing.
                let dial = *dial;
                self.step(now, Input::Glimpse { link: dial, ack: 0 });
            }
            self.step(now, Input::Alarm);
        }
        self.settle();
    }
}

impl Room for ClientRoom {
    type Message = Message;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        self.wake_with(now, inbox);
    }

    fn deadline(&self) -> Option<Moment> {
        self.machine.deadline()
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        self.wake_with(now, inbox);
        self.goodbye(now);
        self.gate.ended.store(true, Ordering::Release);
        self.gate.waited_for.store(true, Ordering::SeqCst);
        self.gate.ring();
    }
}
