//! Calls between the room and their handlers: how one is opened, where its requests go, how it is answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::client::Client;
use super::mail::{Mail, Message};
use crate::engine::handlers::Handlers;
use crate::engine::worker::Refused;
use crate::rt::Rt;
use crate::state::envelope::Tracing;
use crate::state::procedure::{Answer, Catalog, Failure};
use crate::state::time::Moment;
use crate::state::value::Value;

/// What the room serves.
pub trait Procedures: Catalog + Send + Sync + 'static {
    /// A call begins. Called in the room, which may be on a link's thread: it must not wait.
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
    pub(super) mail: &'a Mail,
    pub(super) session: u64,
    pub(super) stream: &'a str,
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
    /// Not now: [`Gate::ring_when_open`](super::Gate::ring_when_open).
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
            answer = match self.put(answer, |message| self.mail.entering.data(message, deadline)) {
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
        let message = Message::Answer { session: self.session, stream: self.stream.clone(), answer };
        self.mail.surely_into(&self.mail.entering, message);
    }

    /// The same for a thread that has work of its own, a room's or a store's: it leaves the answer and goes on.
    pub fn leave(&self, answer: Answer) {
        self.client.gate.flying.fetch_add(1, Ordering::AcqRel);
        let message = Message::Answer { session: self.session, stream: self.stream.clone(), answer };
        self.mail.surely(message);
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
