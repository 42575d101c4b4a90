//! Services in Rust: procedures with a name, a shape and a handler, served on sessions.
//!
//! A handler is a closure. One that blocks gets a thread of a pool; one marked [`Procedure::inline`] runs in the
//! room that serves the sessions, and must not wait: an rpc that computes, or a subscription that only hands
//! its [`Writable`] to whoever will write to it later, which costs no thread however long it lives.
//!
//! ```
//! use towpath::service::schema::{number, object};
//! use towpath::service::{Failure, Procedure, Service};
//!
//! #[derive(serde::Deserialize)]
//! struct Divide { a: f64, b: f64 }
//!
//! let math = Service::new("math").with(
//!     "divide",
//!     Procedure::rpc(|_call, ask: Divide| match ask.b {
//!         0.0 => Err(Failure::new("DIV_BY_ZERO", "Cannot divide by zero")),
//!         b => Ok(ask.a / b),
//!     })
//!     .takes(object([("a", number()), ("b", number())]))
//!     .inline(),
//! );
//! # let _ = math;
//! ```

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::typed;
use crate::engine::handlers::Handlers;
use crate::engine::sessions::{Answers, Client, Opened, Opening, Procedures, Requests, Taken, Unsent};
use crate::rt::{Cancel, Receiver, Rt, Sender};
use crate::state::envelope::Tracing;
use crate::state::procedure::{
    Answer, CANCEL, Catalog, INVALID_REQUEST, Kind, Missing, UNCAUGHT_ERROR, UNEXPECTED_DISCONNECT,
};
use crate::state::time::Moment;
use crate::state::value::Value;

pub mod reference;
pub mod schema;
pub mod server;

pub use crate::state::procedure::Failure;
use schema::Schema;

impl Failure {
    /// Ends the call as cancelled, with these words.
    pub fn cancel(message: impl Into<String>) -> Failure {
        Failure::new(CANCEL, message)
    }

    /// Ends the call as failed in a way the service did not declare.
    pub fn uncaught(error: impl std::fmt::Display) -> Failure {
        Failure::new(UNCAUGHT_ERROR, error.to_string())
    }

    /// Whether it ends the call, where a service's own error is an answer.
    fn ends_call(&self) -> bool {
        [CANCEL, UNCAUGHT_ERROR, INVALID_REQUEST, UNEXPECTED_DISCONNECT].contains(&self.code.as_str())
    }
}

/// A call as its handler sees it.
pub struct Call {
    client: Arc<Client>,
    tracing: Option<Tracing>,
    cancel: Arc<OnceLock<Cancel>>,
    over: Arc<AtomicBool>,
    open_calls: usize,
    rt: Rt,
}

impl Call {
    /// The caller's client id.
    pub fn from(&self) -> &str {
        &self.client.id
    }

    /// The caller's session.
    pub fn session(&self) -> &str {
        &self.client.session
    }

    /// What the caller's handshake brought; newer after a refresh.
    pub fn metadata(&self) -> Arc<Value> {
        self.client.metadata()
    }

    /// The caller's trace.
    pub fn tracing(&self) -> Option<&Tracing> {
        self.tracing.as_ref()
    }

    /// Calls that were open on this server when this one began.
    pub fn open_calls(&self) -> usize {
        self.open_calls
    }

    /// The runtime the server runs on.
    pub fn rt(&self) -> &Rt {
        &self.rt
    }

    /// Cancelled when nobody waits for this call any more: it was cancelled, its session ended, or both its
    /// sides are closed.
    pub fn cancel_token(&self) -> &Cancel {
        let token = self.cancel.get_or_init(|| self.rt.cancel_token());
        // It may have ended before anybody asked for a token.
        if self.over.load(Ordering::Acquire) {
            token.cancel();
        }
        token
    }

    /// Waits, at most until the call is over; tells whether it is.
    pub fn wait(&self, duration: Duration) -> bool {
        let (bell, rung) = self.rt.channel::<()>("call", 1);
        let guard = self.cancel_token().on_cancel(move || {
            // One ring is enough, and nobody rings before.
            let _ = bell.try_send(());
        });
        // Woken by the token.
        let over = rung.recv_deadline(self.rt.now() + duration).is_ok();
        drop(guard);
        over
    }
}

/// Opens a call: with its init, whether on the room's thread, and what its further requests must look like.
type Run = dyn Fn(Opening<'_>, Value, bool, &Arc<Schema>) -> Opened + Send + Sync;

/// A procedure: its shape, what it takes and gives, and its handler.
///
/// ```
/// use towpath::Procedure;
/// use towpath::service::schema::number;
///
/// let half = Procedure::rpc(|_, n: f64| Ok(n / 2.0)).takes(number()).gives(number()).about("halves a number");
/// ```
pub struct Procedure {
    kind: Kind,
    init: Schema,
    data: Schema,
    answer: Schema,
    failures: Schema,
    about: Option<String>,
    inline: bool,
    run: Box<Run>,
    checks: Arc<Schema>,
}

impl std::fmt::Debug for Procedure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Procedure({})", self.kind.as_str())
    }
}

impl Procedure {
    fn new(
        kind: Kind,
        run: impl Fn(Opening<'_>, Value, bool, &Arc<Schema>) -> Opened + Send + Sync + 'static,
    ) -> Procedure {
        let any = schema::any;
        Procedure {
            kind,
            init: any(),
            data: any(),
            answer: any(),
            failures: any(),
            about: None,
            inline: false,
            run: Box::new(run),
            checks: Arc::new(any()),
        }
    }

    /// One request, one answer.
    pub fn rpc<I, O, F>(handler: F) -> Procedure
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize,
        F: Fn(&Call, I) -> Result<O, Failure> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        Procedure::new(Kind::Rpc, move |opening, init, inline, _| {
            let init: I = match take_init(init) {
                Ok(init) => init,
                Err(failure) => return Opened::Failed(failure),
            };
            if inline {
                let call = Begun::new(&opening).call;
                return finish(catch(|| handler(&call, init)?.answer()));
            }
            let begun = Begun::new(&opening);
            let (answers, handler, call) = (opening.answers(), handler.clone(), begun.call);
            let job = move || match catch(|| handler(&call, init)?.answer()) {
                Err(failure) if failure.ends_call() => answers.fail(failure),
                answer => answers.finish(answer),
            };
            start(&opening, job, NoRequests { ending: begun.ending })
        })
    }

    /// Many requests, one answer.
    pub fn upload<I, R, O, F>(handler: F) -> Procedure
    where
        I: DeserializeOwned + Send + 'static,
        R: DeserializeOwned + Send + 'static,
        O: Serialize,
        F: Fn(&Call, I, Readable<R>) -> Result<O, Failure> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        Procedure::new(Kind::Upload, move |opening, init, inline, data| {
            let init: I = match take_init(init) {
                Ok(init) => init,
                Err(failure) => return Opened::Failed(failure),
            };
            let begun = Begun::new(&opening);
            let answers = opening.answers();
            let (requests, readable) = queue(&opening, begun.ending, data.clone());
            let (handler, call) = (handler.clone(), begun.call);
            let job = move || match catch(|| handler(&call, init, readable)?.answer()) {
                Err(failure) if failure.ends_call() => answers.fail(failure),
                answer => answers.finish(answer),
            };
            start_or_run(&opening, job, requests, inline)
        })
    }

    /// One request, many answers. The call ends when its [`Writable`] is dropped, which the handler may hand on.
    pub fn subscription<I, O, F>(handler: F) -> Procedure
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + 'static,
        F: Fn(&Call, I, Writable<O>) -> Result<(), Failure> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        Procedure::new(Kind::Subscription, move |opening, init, inline, _| {
            let init: I = match take_init(init) {
                Ok(init) => init,
                Err(failure) => return Opened::Failed(failure),
            };
            let begun = Begun::new(&opening);
            let writable = Writable::new(&opening);
            let (answers, handler, call) = (opening.answers(), handler.clone(), begun.call);
            let scope = writable.scope.clone();
            let job =
                move || scope.end(&answers, catch(|| handler(&call, init, writable).map(|()| Value::Null)));
            start_or_run(&opening, job, NoRequests { ending: begun.ending }, inline)
        })
    }

    /// Many of both.
    pub fn stream<I, R, O, F>(handler: F) -> Procedure
    where
        I: DeserializeOwned + Send + 'static,
        R: DeserializeOwned + Send + 'static,
        O: Serialize + 'static,
        F: Fn(&Call, I, Readable<R>, Writable<O>) -> Result<(), Failure> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        Procedure::new(Kind::Stream, move |opening, init, inline, data| {
            let init: I = match take_init(init) {
                Ok(init) => init,
                Err(failure) => return Opened::Failed(failure),
            };
            let begun = Begun::new(&opening);
            let writable = Writable::new(&opening);
            let (requests, readable) = queue(&opening, begun.ending, data.clone());
            let (answers, handler, call) = (opening.answers(), handler.clone(), begun.call);
            let scope = writable.scope.clone();
            let job = move || {
                scope.end(&answers, catch(|| handler(&call, init, readable, writable).map(|()| Value::Null)));
            };
            start_or_run(&opening, job, requests, inline)
        })
    }

    /// What the first message must look like.
    #[must_use]
    pub fn takes(mut self, init: Schema) -> Procedure {
        self.init = init;
        self
    }

    /// What further requests must look like.
    #[must_use]
    pub fn requests(mut self, data: Schema) -> Procedure {
        self.checks = Arc::new(data.clone());
        self.data = data;
        self
    }

    /// What an answer looks like.
    #[must_use]
    pub fn gives(mut self, answer: Schema) -> Procedure {
        self.answer = answer;
        self
    }

    /// What errors the service itself answers with.
    #[must_use]
    pub fn fails(mut self, failures: Schema) -> Procedure {
        self.failures = failures;
        self
    }

    /// Says in a sentence what it does.
    #[must_use]
    pub fn about(mut self, text: &str) -> Procedure {
        self.about = Some(text.to_owned());
        self
    }

    /// Runs the handler in the room that serves the sessions, where nothing may wait: answers then cost no
    /// thread, and no hop to one.
    #[must_use]
    pub fn inline(mut self) -> Procedure {
        self.inline = true;
        self
    }
}

/// A named group of procedures.
///
/// ```
/// use towpath::{Procedure, Service};
///
/// let clock = Service::new("clock").with("echo", Procedure::rpc(|_, text: String| Ok(text)));
/// ```
#[derive(Debug)]
pub struct Service {
    name: String,
    procedures: BTreeMap<String, Procedure>,
}

impl Service {
    /// A service without procedures.
    pub fn new(name: &str) -> Service {
        Service { name: name.to_owned(), procedures: BTreeMap::new() }
    }

    /// The same with one more procedure; of two with one name the later counts.
    #[must_use]
    pub fn with(mut self, name: &str, procedure: Procedure) -> Service {
        self.procedures.insert(name.to_owned(), procedure);
        self
    }
}

/// Everything a server offers.
///
/// ```
/// use towpath::{Procedure, Service, Services};
///
/// let services = Services::new().with(Service::new("a").with("echo", Procedure::rpc(|_, text: String| Ok(text))));
/// assert!(services.typescript().contains("echo"));
/// ```
#[derive(Debug, Default)]
pub struct Services {
    procedures: Vec<(String, String, Procedure)>,
    names: BTreeMap<String, BTreeMap<String, usize>>,
}

impl Services {
    /// Nothing yet.
    pub fn new() -> Services {
        Services::default()
    }

    /// The same with one more service.
    #[must_use]
    pub fn with(mut self, service: Service) -> Services {
        let names = self.names.entry(service.name.clone()).or_default();
        for (name, procedure) in service.procedures {
            names.insert(name.clone(), self.procedures.len());
            self.procedures.push((service.name.clone(), name, procedure));
        }
        self
    }

    /// What is offered, as JSON: for each service and procedure its kind and the JSON Schemas of what it takes
    /// and gives.
    pub fn json_schema(&self) -> serde_json::Value {
        let mut services = serde_json::Map::new();
        for (service, procedures) in &self.names {
            let mut all = serde_json::Map::new();
            for (name, index) in procedures {
                let (_, _, procedure) = &self.procedures[*index];
                let mut described = serde_json::json!({
                    "type": procedure.kind.as_str(),
                    "init": procedure.init.json_schema(),
                    "output": procedure.answer.json_schema(),
                    "errors": procedure.failures.json_schema(),
                });
                if procedure.kind.has_requests() {
                    described["input"] = procedure.data.json_schema();
                }
                if let Some(about) = &procedure.about {
                    described["description"] = about.as_str().into();
                }
                all.insert(name.clone(), described);
            }
            services.insert(service.clone(), serde_json::json!({ "procedures": all }));
        }
        serde_json::json!({ "services": services })
    }

    /// What is offered, as a TypeScript declaration file.
    pub fn typescript(&self) -> String {
        let mut text = String::from("// Generated by `towpath river types`.\nexport interface Services {\n");
        for (service, procedures) in &self.names {
            text += &format!("  {}: {{\n", schema::property(service));
            for (name, index) in procedures {
                let (_, _, procedure) = &self.procedures[*index];
                if let Some(about) = &procedure.about {
                    text += &format!("    /** {} */\n", about.replace("*/", "* /"));
                }
                let input = match procedure.kind.has_requests() {
                    true => format!(" input: {};", procedure.data.typescript()),
                    false => String::new(),
                };
                text += &format!(
                    "    {}: {{ type: \"{}\"; init: {};{input} output: {}; errors: {} }};\n",
                    schema::property(name),
                    procedure.kind.as_str(),
                    procedure.init.typescript(),
                    procedure.answer.typescript(),
                    procedure.failures.typescript(),
                );
            }
            text += "  };\n";
        }
        text + "}\n"
    }
}

impl Catalog for Services {
    fn find(&self, service: &str, procedure: &str) -> Result<(Kind, usize), Missing> {
        let procedures = self.names.get(service).ok_or(Missing::Service)?;
        let index = *procedures.get(procedure).ok_or(Missing::Procedure)?;
        Ok((self.procedures[index].2.kind, index))
    }

    fn init_is_data(&self, procedure: usize, payload: &Value) -> bool {
        let (_, _, procedure) = &self.procedures[procedure];
        // As in the reference: where the init may be empty, what fits a datum is taken for one.
        procedure.data.fits(payload) && procedure.init.fits(&Value::Map(Vec::new()))
    }
}

impl Procedures for Services {
    fn open(&self, procedure: usize, init: Value, call: Opening<'_>) -> Opened {
        let (_, _, procedure) = &self.procedures[procedure];
        if !procedure.init.fits(&init) {
            return Opened::Failed(bad_init());
        }
        (procedure.run)(call, init, procedure.inline, &procedure.checks)
    }
}

fn bad_init() -> Failure {
    Failure::new(INVALID_REQUEST, "procedure init failed validation")
}

fn take_init<I: DeserializeOwned>(init: Value) -> Result<I, Failure> {
    typed::from_value(init).map_err(|_| bad_init())
}

/// Something a handler gives back.
trait Given {
    fn answer(self) -> Answer;
}

impl<T: Serialize> Given for T {
    fn answer(self) -> Answer {
        typed::to_value(&self).map_err(|why| Failure::uncaught(format!("the answer cannot be sent: {why}")))
    }
}

/// Runs a handler; a panic is a failure like any other.
fn catch(handler: impl FnOnce() -> Answer) -> Answer {
    catch_unwind(AssertUnwindSafe(handler)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Failure::uncaught(text.unwrap_or("the handler failed")))
    })
}

fn finish(answer: Answer) -> Opened {
    match answer {
        Err(failure) if failure.ends_call() => Opened::Failed(failure),
        answer => Opened::Answered(answer),
    }
}

/// The last word of a handler of many answers that failed.
fn give_up(answers: &Answers, failure: Failure) {
    match failure.ends_call() {
        true => answers.fail(failure),
        false => {
            answers.finish(Err(failure));
            answers.close();
        }
    }
}

/// Whether a handler of many answers is still at work. A [`Writable`] dropped meanwhile closes the call only
/// once it is known that the handler did not fail: a failure must be the last word, not come after one.
#[derive(Clone, Default)]
struct Scope(Arc<AtomicU8>);

impl Scope {
    const WORKING: u8 = 0;
    const DROPPED: u8 = 1;
    const OVER: u8 = 2;

    /// The writable is dropped. True if that closes the call now.
    fn dropped(&self) -> bool {
        let dropped =
            self.0.compare_exchange(Scope::WORKING, Scope::DROPPED, Ordering::AcqRel, Ordering::Acquire);
        dropped.is_err()
    }

    /// The handler came to an end.
    fn end(&self, answers: &Answers, result: Answer) {
        let before = self.0.swap(Scope::OVER, Ordering::AcqRel);
        match result {
            Err(failure) => give_up(answers, failure),
            Ok(_) if before == Scope::DROPPED => answers.close(),
            Ok(_) => {}
        }
    }
}

/// A call that began, and what ends it.
struct Begun {
    call: Call,
    ending: Ending,
}

struct Ending {
    cancel: Arc<OnceLock<Cancel>>,
    over: Arc<AtomicBool>,
}

impl Ending {
    fn now(&self) {
        self.over.store(true, Ordering::Release);
        if let Some(token) = self.cancel.get() {
            token.cancel();
        }
    }
}

impl Begun {
    fn new(opening: &Opening<'_>) -> Begun {
        let (cancel, over) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
        let call = Call {
            client: opening.client.clone(),
            tracing: opening.tracing.clone(),
            cancel: cancel.clone(),
            over: over.clone(),
            open_calls: opening.open_calls,
            rt: opening.rt.clone(),
        };
        Begun { call, ending: Ending { cancel, over } }
    }
}

fn start(
    opening: &Opening<'_>,
    job: impl FnOnce() + Send + 'static,
    requests: impl Requests + 'static,
) -> Opened {
    let handlers: &Handlers = opening.handlers;
    match handlers.run(job) {
        true => Opened::Running(Box::new(requests)),
        false => Opened::Failed(Failure::uncaught("the server is too busy: every handler thread is taken")),
    }
}

fn start_or_run(
    opening: &Opening<'_>,
    job: impl FnOnce() + Send + 'static,
    requests: impl Requests + 'static,
    inline: bool,
) -> Opened {
    if !inline {
        return start(opening, job, requests);
    }
    job();
    Opened::Running(Box::new(requests))
}

/// The requests of a call that has none.
struct NoRequests {
    ending: Ending,
}

impl Requests for NoRequests {
    fn data(&mut self, _: Value) -> Result<Taken, Failure> {
        Ok(Taken::More)
    }
    fn ended(&mut self) {}
    fn broken(&mut self, _: Failure) {
        self.ending.now();
    }
    fn finished(&mut self) {
        self.ending.now();
    }
}

/// Requests a handler may have unread before its session is held back, and as many again that may still be on
/// their way then.
const READ_AHEAD: usize = 128;

/// The requests of a call, on their way to its handler.
struct Queue {
    items: Option<Sender<Result<Value, Failure>>>,
    waiting: Arc<AtomicUsize>,
    held: Arc<AtomicBool>,
    schema: Arc<Schema>,
    ending: Ending,
}

fn queue<R>(opening: &Opening<'_>, ending: Ending, schema: Arc<Schema>) -> (Queue, Readable<R>) {
    let (items, rx) = opening.rt.channel("requests", 2 * READ_AHEAD);
    let waiting = Arc::new(AtomicUsize::new(0));
    let held = Arc::new(AtomicBool::new(false));
    let answers = opening.answers();
    let readable =
        Readable { items: rx, waiting: waiting.clone(), held: held.clone(), answers, of: PhantomData };
    (Queue { items: Some(items), waiting, held, schema, ending }, readable)
}

impl Queue {
    fn put(&mut self, item: Result<Value, Failure>) {
        if let Some(items) = &self.items {
            self.waiting.fetch_add(1, Ordering::AcqRel);
            // Full cannot be: the session is held back at half. Gone means that the handler reads no more.
            let _ = items.try_send(item);
        }
    }
}

impl Requests for Queue {
    fn data(&mut self, value: Value) -> Result<Taken, Failure> {
        let complaints = self.schema.check(&value);
        if !complaints.is_empty() {
            return Err(bad_data(&complaints));
        }
        self.put(Ok(value));
        if self.waiting.load(Ordering::Acquire) < READ_AHEAD {
            return Ok(Taken::More);
        }
        self.held.store(true, Ordering::Release);
        // The handler may have read everything in between, and would then have nothing to resume after.
        match self.waiting.load(Ordering::Acquire) < READ_AHEAD && self.held.swap(false, Ordering::AcqRel) {
            true => Ok(Taken::More),
            false => Ok(Taken::HoldBack),
        }
    }

    fn ended(&mut self) {
        self.items = None;
    }

    fn broken(&mut self, failure: Failure) {
        self.put(Err(failure));
        self.items = None;
        self.ending.now();
    }

    fn finished(&mut self) {
        self.items = None;
        self.ending.now();
    }
}

fn bad_data(complaints: &[schema::Complaint]) -> Failure {
    let first = complaints.iter().take(5).map(|complaint| {
        let path = ("path", complaint.path.as_str().into());
        Value::map([path, ("message", complaint.message.as_str().into())])
    });
    Failure::new(INVALID_REQUEST, "message in requestData position did not match schema").with(Value::map([
        ("totalErrors", (complaints.len() as u64).into()),
        ("firstValidationErrors", Value::Array(first.collect())),
    ]))
}

/// The requests of a call, as its handler reads them: an iterator that ends with the client's last one, or with
/// one error if the call broke.
pub struct Readable<R> {
    items: Receiver<Result<Value, Failure>>,
    waiting: Arc<AtomicUsize>,
    held: Arc<AtomicBool>,
    answers: Answers,
    of: PhantomData<fn() -> R>,
}

impl<R> std::fmt::Debug for Readable<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Readable({} waiting)", self.waiting.load(Ordering::Relaxed))
    }
}

impl<R: DeserializeOwned> Readable<R> {
    /// Waits for the next request, at most until `deadline`; `None` when there is none by then or any more.
    pub fn next_by(&self, deadline: Moment) -> Option<Result<R, Failure>> {
        // Woken by a request, or by the end of the call, which drops the other end.
        self.items.recv_deadline(deadline).ok().map(|item| self.took(item))
    }

    fn took(&self, item: Result<Value, Failure>) -> Result<R, Failure> {
        let left = self.waiting.fetch_sub(1, Ordering::AcqRel) - 1;
        if left <= READ_AHEAD / 2 && self.held.swap(false, Ordering::AcqRel) {
            self.answers.resume();
        }
        typed::from_value(item?).map_err(|why| {
            let message = "message in requestData position did not match schema";
            Failure::new(INVALID_REQUEST, message).with(Value::from(why.to_string()))
        })
    }
}

impl<R: DeserializeOwned> Iterator for Readable<R> {
    type Item = Result<R, Failure>;
    fn next(&mut self) -> Option<Result<R, Failure>> {
        self.items.recv().ok().map(|item| self.took(item))
    }
}

impl<R> Drop for Readable<R> {
    fn drop(&mut self) {
        // Who reads no more must not hold others back.
        if self.held.swap(false, Ordering::AcqRel) {
            self.answers.resume();
        }
    }
}

/// Where a handler writes its answers. Dropping it closes the call's answers; it may outlive the handler.
pub struct Writable<O> {
    answers: Answers,
    rt: Rt,
    closed: AtomicBool,
    scope: Scope,
    of: PhantomData<fn(O)>,
}

impl<O> std::fmt::Debug for Writable<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writable({:?})", self.answers)
    }
}

/// Why something was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotWritten {
    /// The session has no room now: wait for [`Writable::when_ready`].
    Full,
    /// Nobody listens any more.
    Closed,
    /// It cannot be made a message.
    Unwritable,
}

impl std::fmt::Display for NotWritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NotWritten::Full => "the session has no room for more answers now",
            NotWritten::Closed => "nobody listens to this call any more",
            NotWritten::Unwritable => "the answer cannot be made a message",
        })
    }
}

impl std::error::Error for NotWritten {}

impl From<NotWritten> for Failure {
    fn from(why: NotWritten) -> Failure {
        Failure::uncaught(why)
    }
}

impl<O> Writable<O> {
    fn new(opening: &Opening<'_>) -> Writable<O> {
        let rt = opening.rt.clone();
        let (answers, closed) = (opening.answers(), AtomicBool::new(false));
        Writable { answers, rt, closed, scope: Scope::default(), of: PhantomData }
    }

    /// Whether something can be written now.
    pub fn is_ready(&self) -> bool {
        self.answers.client().gate().is_open()
    }

    /// Rings `bell` once when something can be written, or nobody listens any more.
    pub fn when_ready(&self, bell: Sender<()>) {
        self.answers.client().gate().ring_when_open(bell);
    }

    /// No more answers.
    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.answers.close();
        }
    }

    /// Ends the call with this failure.
    pub fn fail(&self, failure: Failure) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            give_up(&self.answers, failure);
        }
    }
}

impl<O: Serialize> Writable<O> {
    /// Writes an answer, waiting for room. Never in an `inline` handler.
    ///
    /// # Errors
    /// Nobody listens any more, or it is no message.
    pub fn write(&self, answer: &O) -> Result<(), NotWritten> {
        self.write_answer(Ok(typed::to_value(answer).map_err(|_| NotWritten::Unwritable)?))
    }

    /// Writes an error of the service; the call goes on.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub fn write_failure(&self, failure: Failure) -> Result<(), NotWritten> {
        self.write_answer(Err(failure))
    }

    fn write_answer(&self, answer: Answer) -> Result<(), NotWritten> {
        if self.closed.load(Ordering::Acquire) {
            return Err(NotWritten::Closed);
        }
        self.answers.send(&self.rt, answer, Moment::NEVER).map_err(|unsent| match unsent {
            Unsent::Full(_) => NotWritten::Full,
            Unsent::Ended(_) => NotWritten::Closed,
        })
    }

    /// Writes an answer if there is room for it. Never waits.
    ///
    /// # Errors
    /// No room now, nobody listens any more, or it is no message.
    pub fn try_write(&self, answer: &O) -> Result<(), NotWritten> {
        if self.closed.load(Ordering::Acquire) {
            return Err(NotWritten::Closed);
        }
        let answer = Ok(typed::to_value(answer).map_err(|_| NotWritten::Unwritable)?);
        self.answers.try_send(answer).map_err(|unsent| match unsent {
            Unsent::Full(_) => NotWritten::Full,
            Unsent::Ended(_) => NotWritten::Closed,
        })
    }
}

impl<O> Drop for Writable<O> {
    fn drop(&mut self) {
        if !self.closed.load(Ordering::Acquire) && self.scope.dropped() {
            self.close();
        }
    }
}
