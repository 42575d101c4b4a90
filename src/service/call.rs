//! A call as its handler sees it, and what ends it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::engine::sessions::{Client, Opening};
use crate::rt::{Cancel, Rt};
use crate::state::envelope::Tracing;
use crate::state::value::Value;

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

/// A call that began, and what ends it.
pub(super) struct Begun {
    pub(super) call: Call,
    pub(super) ending: Ending,
}

pub(super) struct Ending {
    cancel: Arc<OnceLock<Cancel>>,
    over: Arc<AtomicBool>,
}

impl Ending {
    pub(super) fn now(&self) {
        self.over.store(true, Ordering::Release);
        if let Some(token) = self.cancel.get() {
            token.cancel();
        }
    }
}

impl Begun {
    pub(super) fn new(opening: &Opening<'_>) -> Begun {
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
