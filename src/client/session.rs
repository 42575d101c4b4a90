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

mod call;
mod dial;
mod figures;
mod gate;
mod options;
mod room;

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::call::{Answers, RequestWriter, Upload};
use self::call::{READ_AHEAD, Source};
pub use self::dial::{Caller, DialWith, Dialer, WebSocket};
pub use self::figures::Figures;
use self::gate::Gate;
pub use self::options::{Listener, MakeMetadata, Options};
use self::room::{AnswerSink, ClientRoom, Items, Message, NewCall, Reading, Status};
use crate::codec::typed;
use crate::engine::worker::{self, Crew, Inbox, Worker};
use crate::rt::{Cancel, Lock, Rt};
use crate::state::envelope::{Ids, Procedure};
use crate::state::procedure::{Failure, Kind, UNEXPECTED_DISCONNECT};
use crate::state::session::Cause;
use crate::state::session::client::Input;
use crate::state::time::Moment;

/// The code of a call that was given up because its time was over. Local, never on the wire.
pub const TIMED_OUT: &str = "TIMED_OUT";
/// The code of an answer that is not what the caller expected. Local, never on the wire.
pub const BAD_ANSWER: &str = "BAD_ANSWER";

/// A client. Cheap to clone; when the last clone is dropped it says goodbye and its thread is joined.
///
/// ```
/// use std::sync::Arc;
/// use towpath::client::session::{DialWith, Options};
/// use towpath::{Client, Procedure, Rt, Service, Services, Sessions};
///
/// let rt = Rt::real();
/// let math = Service::new("math").with("double", Procedure::rpc(|_, n: u64| Ok(n * 2)));
/// let server = Sessions::builder(&rt, Services::new().with(math)).start()?;
/// // Over a network: `WebSocket::new(wire, Target::parse("wss://…/river")?)`.
/// let memory = server.memory_dialer();
/// let dialer = DialWith::new(&rt, move |ear| Ok(memory.dial(ear)?.0));
/// let client = Client::start(&rt, "me", "SERVER", Arc::new(dialer), Options::default())?;
/// assert_eq!(client.rpc::<_, u64>("math", "double", &21)?, 42);
/// client.cut(); // the next call dials again, and nobody notices
/// assert_eq!(client.rpc::<_, u64>("math", "double", &4)?, 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
        let (worker, inbox) =
            Worker::spawn_open(&crew, "client-session", worker::Bounds::of(4_096), |inbox| {
                ClientRoom::new(rt, id, server, dialer, options, room_gate, room_status, inbox, dials)
            })?;
        let ids = Lock::new(Ids::new(rt.rand("client-streams").next_u64()));
        let (worker, inbox) = (Lock::new(Some(worker)), inbox.entering());
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
        let mut answers = self.open::<I, O>(Kind::Rpc, service, procedure, init)?;
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
        self.open(Kind::Subscription, service, procedure, init)
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
        let answers = self.open(Kind::Upload, service, procedure, init)?;
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
        let answers = self.open(Kind::Stream, service, procedure, init)?;
        Ok((answers.requests(), answers))
    }

    fn open<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        kind: Kind,
        service: &str,
        procedure: &str,
        init: &I,
    ) -> Result<Answers<O>, Failure> {
        let init =
            typed::to_value(init).map_err(|why| Failure::new(BAD_ANSWER, format!("the request: {why}")))?;
        let stream = self.shared.ids.lock().make();
        let (to, items) = match kind {
            Kind::Rpc | Kind::Upload => {
                let (filler, slot) = self.shared.rt.slot("answer");
                (Items::One(filler), Source::One(slot))
            }
            Kind::Subscription | Kind::Stream => {
                let (tx, rx) = self.shared.rt.channel("answers", 2 * READ_AHEAD);
                (Items::Many(tx), Source::Many(rx))
            }
        };
        let reading = Arc::new(Reading::default());
        let sink = AnswerSink { items: to, reading: reading.clone() };
        let procedure = Procedure { service: service.to_owned(), name: procedure.to_owned() };
        self.shared.gate.wait(&self.shared.rt, Moment::NEVER);
        let message =
            Message::Call(Box::new(NewCall { stream: stream.clone(), kind, procedure, init, sink }));
        self.shared.put(message, Moment::NEVER)?;
        Ok(Answers { client: self.clone(), stream, items, reading, over: false, of: PhantomData })
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
