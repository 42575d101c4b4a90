//! What the room hears, and how links come to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::admission::Admitted;
use crate::engine::visits::Caller;
use crate::engine::worker::{Inbox, Refused};
use crate::rt::Lock;
use crate::state::handshake::{Refusal, Request};
use crate::state::procedure::{Answer, Failure};
use crate::state::session::Cause;
use crate::state::time::Moment;
use crate::wire::bearer::{self, Bearer, Ear, Heard};
use crate::wire::{LinkBatch, LinkHandle, Outlet};

/// What the room hears.
#[derive(Debug)]
pub enum Message {
    /// A link came in.
    Opened {
        /// Its number, from [`Doorbell::number`].
        link: u64,
        /// The way out.
        bearer: BearerBox,
        /// Who came, as far as its door knows.
        caller: Caller,
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
    /// Ask those for fresh metadata whose old holds no longer.
    Recheck,
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
pub(super) struct Mail {
    pub(super) inbox: Inbox<Message>,
    /// The same for threads of handlers, which do what they bring themselves.
    pub(super) entering: Inbox<Message>,
    /// Ends of calls that found no room. The room looks here when its inbox is empty, so that they stay behind
    /// the answers that went before them; their number is bounded by the calls that are open.
    pub(super) late: Arc<Lock<Vec<Message>>>,
}

impl Mail {
    pub(super) fn new(inbox: &Inbox<Message>) -> Mail {
        Mail { inbox: inbox.clone(), entering: inbox.entering(), late: Arc::default() }
    }

    pub(super) fn surely(&self, message: Message) {
        self.surely_into(&self.inbox, message);
    }

    pub(super) fn surely_into(&self, inbox: &Inbox<Message>, message: Message) {
        match inbox.control(message) {
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
        let (heavy, light) = (inbox.clone(), inbox.entering());
        let outlet = Outlet::new(move |batch| {
            let batches = if bearer::is_light(&batch) { &light } else { &heavy };
            match batches.try_data(Message::Batch(batch)) {
                Ok(()) | Err(Refused::Ended(_)) => Ok(()),
                Err(Refused::Full(Message::Batch(batch))) => Err(batch),
                Err(Refused::Full(_)) => Ok(()),
            }
        });
        Doorbell { inbox: inbox.clone(), numbers: Arc::new(AtomicU64::new(1)), outlet }
    }

    /// A number for a link that comes in.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The ear of a link on threads of its own. It waits while the room is full.
    pub fn ear(&self, link: u64) -> Ear {
        let inbox = self.inbox.entering();
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
        self.ring_from(link, bearer, Caller::default())
    }

    fn ring_from(&self, link: u64, bearer: Box<dyn Bearer>, caller: Caller) -> bool {
        match self.inbox.try_data(Message::Opened { link, bearer: BearerBox(bearer), caller }) {
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
    pub fn ring_handle(&self, link: u64, handle: LinkHandle, caller: Caller) -> bool {
        self.ring_from(link, Box::new(handle), caller)
    }
}
