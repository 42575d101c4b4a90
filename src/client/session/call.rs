//! Calls as their caller sees them: answers to read, requests to write.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::room::{Message, Reading};
use super::{BAD_ANSWER, Client, Shared, TIMED_OUT};
use crate::codec::typed;
use crate::engine::worker;
use crate::rt::{Receiver, RecvTimeoutError, Slot};
use crate::state::procedure::{Answer, Failure, UNEXPECTED_DISCONNECT};
use crate::state::time::Moment;

/// Answers a caller may have unread before the session is held back.
pub(super) const READ_AHEAD: usize = 256;

/// The answers of a call, in order: an iterator that ends with the server's last one. Dropping it before
/// cancels the call.
pub struct Answers<O> {
    pub(super) client: Client,
    pub(super) stream: String,
    pub(super) items: Source,
    pub(super) reading: Arc<Reading>,
    pub(super) over: bool,
    pub(super) of: PhantomData<fn() -> O>,
}

/// Where answers come from.
pub(super) enum Source {
    /// The call is answered once.
    One(Slot<Answer>),
    Many(Receiver<Answer>),
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

    pub(super) fn requests<R>(&self) -> RequestWriter<R> {
        RequestWriter {
            shared: self.client.shared.clone(),
            stream: self.stream.clone(),
            reading: self.reading.clone(),
            closed: false,
            of: PhantomData,
        }
    }

    fn took(&self) {
        let left = self.reading.waiting.fetch_sub(1, Ordering::AcqRel) - 1;
        if left <= READ_AHEAD / 2 && self.reading.held.swap(false, Ordering::AcqRel) {
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
        let next = match &self.items {
            Source::Many(items) => items.recv_deadline(deadline).inspect(|_| self.took()),
            // It counts when the server has closed.
            Source::One(slot) => {
                slot.wait(deadline).and_then(|answer| answer.ok_or(RecvTimeoutError::Disconnected))
            }
        };
        match next {
            Ok(answer) => {
                self.over = matches!(self.items, Source::One(_));
                Some(read(answer))
            }
            Err(RecvTimeoutError::Timeout) => Some(Err(Failure::new(TIMED_OUT, "no answer came in time"))),
            Err(RecvTimeoutError::Disconnected) => {
                self.over = true;
                None
            }
        }
    }

    /// The one answer of a call that answers once.
    pub(super) fn one(&mut self, deadline: Moment) -> Result<O, Failure> {
        let none = || Err(Failure::new(BAD_ANSWER, "the server closed the call without an answer"));
        self.next_by(deadline).unwrap_or_else(none)
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
    reading: Arc<Reading>,
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
        if self.reading.broken.load(Ordering::Acquire) {
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
    pub(super) requests: RequestWriter<R>,
    pub(super) answers: Answers<O>,
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

    /// The answer, if it comes by `deadline` though there may be more requests: a server may know it before it has
    /// read everything, as when what it was given is refused. Once it has come, drop the upload.
    pub fn answer_by(&mut self, deadline: Moment) -> Option<Result<O, Failure>> {
        self.answers.next_by(deadline).filter(|answer| !matches!(answer, Err(why) if why.code == TIMED_OUT))
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
