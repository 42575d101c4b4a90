//! The requests of a call on their way to its handler, and how a handler that does not read holds them back.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::de::DeserializeOwned;

use super::Failure;
use super::call::Ending;
use super::schema::{self, Schema};
use crate::codec::typed;
use crate::engine::sessions::{Answers, Opening, Requests, Taken};
use crate::rt::{Receiver, Sender};
use crate::state::procedure::INVALID_REQUEST;
use crate::state::time::Moment;
use crate::state::value::Value;

/// Requests a handler may have unread before its session is held back, and as many again that may still be on
/// their way then.
const READ_AHEAD: usize = 128;

/// The requests of a call, on their way to its handler.
pub(super) struct Queue {
    items: Option<Sender<Result<Value, Failure>>>,
    waiting: Arc<AtomicUsize>,
    held: Arc<AtomicBool>,
    schema: Arc<Schema>,
    ending: Ending,
}

pub(super) fn queue<R>(opening: &Opening<'_>, ending: Ending, schema: Arc<Schema>) -> (Queue, Readable<R>) {
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

pub(super) fn bad_data(complaints: &[schema::Complaint]) -> Failure {
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
