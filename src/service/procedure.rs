//! A procedure: a shape, what it takes and gives, and the handler behind it.

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Failure;
use super::call::{Begun, Call, Ending};
use super::later::{Later, Resume, Sink, Sinking};
use super::requests::{Readable, queue};
use super::schema::{self, Schema};
use super::services::bad_init;
use super::writable::Writable;
use crate::codec::typed;
use crate::engine::handlers::Handlers;
use crate::engine::sessions::{Opened, Opening, Requests, Taken};
use crate::state::procedure::{Answer, Kind};
use crate::state::value::Value;

/// Opens a call: with its init, whether on the room's thread, and what its further requests must look like.
pub(super) type Run = dyn Fn(Opening<'_>, Value, bool, &Arc<Schema>) -> Opened + Send + Sync;

/// A procedure: its shape, what it takes and gives, and its handler.
///
/// ```
/// use towpath::Procedure;
/// use towpath::service::schema::number;
///
/// let half = Procedure::rpc(|_, n: f64| Ok(n / 2.0)).takes(number()).gives(number()).about("halves a number");
/// ```
pub struct Procedure {
    pub(super) kind: Kind,
    pub(super) init: Schema,
    pub(super) data: Schema,
    pub(super) answer: Schema,
    pub(super) failures: Schema,
    pub(super) about: Option<String>,
    pub(super) inline: bool,
    pub(super) run: Box<Run>,
    pub(super) checks: Arc<Schema>,
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

    /// One request, one answer, which the handler may leave to whoever has it: it runs as if
    /// [`inline`](Procedure::inline), must not wait, and the call holds no thread.
    ///
    /// ```
    /// use towpath::Procedure;
    /// use towpath::service::Later;
    ///
    /// let (to_whoever_knows, _asked) = std::sync::mpsc::sync_channel::<(String, Later<u64>)>(8);
    /// let ask = Procedure::rpc_later(move |_, name: String, later| {
    ///     if let Err(full) = to_whoever_knows.try_send((name, later)) {
    ///         drop(full); // its caller hears that nobody answered
    ///     }
    /// });
    /// # drop(ask);
    /// ```
    pub fn rpc_later<I, O, F>(handler: F) -> Procedure
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + 'static,
        F: Fn(&Call, I, Later<O>) + Send + Sync + 'static,
    {
        Procedure::new(Kind::Rpc, move |opening, init, _, _| {
            let init: I = match take_init(init) {
                Ok(init) => init,
                Err(failure) => return Opened::Failed(failure),
            };
            let begun = Begun::new(&opening);
            let later = Later::new(opening.answers());
            // Should it panic, it drops what it was to answer with, and the caller hears so.
            let _ = catch_unwind(AssertUnwindSafe(|| handler(&begun.call, init, later)));
            Opened::Running(Box::new(NoRequests { ending: begun.ending }))
        })
    }

    /// Many requests, which go into what the handler gives back, and one answer: as in [`Procedure::rpc_later`],
    /// nothing waits, and the call holds no thread.
    pub fn upload_later<I, R, O, S, F>(handler: F) -> Procedure
    where
        I: DeserializeOwned + Send + 'static,
        R: DeserializeOwned + 'static,
        O: Serialize + 'static,
        S: Sink<R> + 'static,
        F: Fn(&Call, I, Later<O>, Resume) -> S + Send + Sync + 'static,
    {
        Procedure::new(Kind::Upload, move |opening, init, _, data| {
            let init: I = match take_init(init) {
                Ok(init) => init,
                Err(failure) => return Opened::Failed(failure),
            };
            let begun = Begun::new(&opening);
            let (later, resume) = (Later::new(opening.answers()), Resume(opening.answers()));
            let sink = catch_unwind(AssertUnwindSafe(|| handler(&begun.call, init, later, resume))).ok();
            let (schema, ending) = (data.clone(), begun.ending);
            Opened::Running(Box::new(Sinking { sink, schema, ending, of: PhantomData }))
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
    /// thread, and no hop to one. While the room has nothing else to do that is on the thread which reads the
    /// call's link, so what takes long (100 µs is long) holds up other links too.
    #[must_use]
    pub fn inline(mut self) -> Procedure {
        self.inline = true;
        self
    }
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
