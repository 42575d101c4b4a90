//! Where a handler writes its answers.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use serde::Serialize;

use super::Failure;
use crate::codec::typed;
use crate::engine::sessions::{Answers, Opening, Unsent};
use crate::rt::{Rt, Sender};
use crate::state::procedure::Answer;
use crate::state::time::Moment;

/// Where a handler writes its answers. Dropping it closes the call's answers; it may outlive the handler.
pub struct Writable<O> {
    answers: Answers,
    rt: Rt,
    closed: AtomicBool,
    pub(super) scope: Scope,
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
    pub(super) fn new(opening: &Opening<'_>) -> Writable<O> {
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

/// The last word of a handler of many answers that failed.
fn give_up(answers: &Answers, failure: Failure) {
    match failure.ends_call() {
        true => answers.fail(failure),
        false => {
            // It may be a room that says so.
            answers.leave(Err(failure));
            answers.close();
        }
    }
}

/// Whether a handler of many answers is still at work. A [`Writable`] dropped meanwhile closes the call only
/// once it is known that the handler did not fail: a failure must be the last word, not come after one.
#[derive(Clone, Default)]
pub(super) struct Scope(Arc<AtomicU8>);

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
    pub(super) fn end(&self, answers: &Answers, result: Answer) {
        let before = self.0.swap(Scope::OVER, Ordering::AcqRel);
        match result {
            Err(failure) => give_up(answers, failure),
            Ok(_) if before == Scope::DROPPED => answers.close(),
            Ok(_) => {}
        }
    }
}
