//! How a client finds links: by WebSocket, or by whatever a closure connects.

use std::sync::Arc;

use super::room::{BearerBox, Message};
use crate::engine::worker::Inbox;
use crate::rt::{Cancel, Rt};
use crate::state::time::Moment;
use crate::wire::bearer::{Bearer, Ear, Heard};
use crate::wire::{Dial, Outlet, Owner, Speak, Target, Wire};

/// How a client finds links.
pub trait Dialer: Send + Sync {
    /// Starts one attempt. Answers at once; how it went is said through `caller`, under this number.
    fn dial(&self, dial: u64, deadline: Moment, caller: &Caller);
}

/// Where a dialer says how its dials went.
#[derive(Clone)]
pub struct Caller {
    pub(super) inbox: Inbox<Message>,
    pub(super) outlet: Outlet,
    pub(super) cancel: Cancel,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Caller")
    }
}

impl Caller {
    /// The ear for a link with that number.
    pub fn ear(&self, dial: u64) -> Ear {
        let inbox = self.inbox.entering();
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
