//! Calls that are answered later, and hold no thread meanwhile.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Failure;
use super::call::Ending;
use super::requests::bad_data;
use super::schema::Schema;
use crate::codec::typed;
use crate::engine::sessions::{Answers, Requests, Taken};
use crate::state::procedure::{Answer, INVALID_REQUEST};
use crate::state::value::Value;

/// The one answer of a call, given when it is there, by any thread. Dropped without one, the call fails.
pub struct Later<O> {
    answers: Option<Answers>,
    of: PhantomData<fn(O)>,
}

impl<O> std::fmt::Debug for Later<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Later({:?})", self.answers)
    }
}

impl<O> Later<O> {
    pub(super) fn new(answers: Answers) -> Later<O> {
        Later { answers: Some(answers), of: PhantomData }
    }
}

impl<O: Serialize> Later<O> {
    /// Answers. Never waits.
    pub fn give(mut self, answer: Result<O, Failure>) {
        if let Some(answers) = self.answers.take() {
            let written = |answer: O| {
                typed::to_value(&answer)
                    .map_err(|why| Failure::uncaught(format!("the answer cannot be sent: {why}")))
            };
            tell(&answers, answer.and_then(written));
        }
    }
}

fn tell(answers: &Answers, answer: Answer) {
    match answer {
        Err(failure) if failure.ends_call() => answers.fail(failure),
        answer => answers.leave(answer),
    }
}

impl<O> Drop for Later<O> {
    fn drop(&mut self) {
        if let Some(answers) = self.answers.take() {
            tell(&answers, Err(Failure::uncaught("nobody answered this call")));
        }
    }
}

/// Where the requests of an upload go that holds no thread. Called where the sessions are served: nothing here may
/// wait.
pub trait Sink<R>: Send {
    /// One more request. False holds the session back until [`Resume::now`].
    fn take(&mut self, request: R) -> bool;
    /// No more come.
    fn ended(&mut self);
    /// Nobody waits for the answer any more, or it was given and the client has said everything.
    fn gone(&mut self);
}

/// Lets a session go on that a [`Sink`] holds back.
#[derive(Clone, Debug)]
pub struct Resume(pub(super) Answers);

impl Resume {
    /// More can be taken.
    pub fn now(&self) {
        self.0.resume();
    }
}

/// The requests of an upload on their way into a sink; there is none if its handler panicked.
pub(super) struct Sinking<R, S> {
    pub(super) sink: Option<S>,
    pub(super) schema: Arc<Schema>,
    pub(super) ending: Ending,
    pub(super) of: PhantomData<fn(R)>,
}

impl<R: DeserializeOwned, S: Sink<R>> Requests for Sinking<R, S> {
    fn data(&mut self, value: Value) -> Result<Taken, Failure> {
        let complaints = self.schema.check(&value);
        if !complaints.is_empty() {
            return Err(bad_data(&complaints));
        }
        let request = typed::from_value(value).map_err(|why| {
            let message = "message in requestData position did not match schema";
            Failure::new(INVALID_REQUEST, message).with(Value::from(why.to_string()))
        })?;
        match self.sink.as_mut().is_none_or(|sink| sink.take(request)) {
            true => Ok(Taken::More),
            false => Ok(Taken::HoldBack),
        }
    }

    fn ended(&mut self) {
        if let Some(sink) = &mut self.sink {
            sink.ended();
        }
    }

    fn broken(&mut self, _: Failure) {
        self.finished();
    }

    fn finished(&mut self) {
        if let Some(sink) = &mut self.sink {
            sink.gone();
        }
        self.ending.now();
    }
}
