//! A client as handlers see it, and the gate that holds back whoever writes to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::rt::{Lock, Sender};
use crate::state::handshake::Version;
use crate::state::value::Value;

/// A client as handlers see it.
#[derive(Debug)]
pub struct Client {
    /// Its id, chosen by itself.
    pub id: String,
    /// Its session.
    pub session: String,
    /// The protocol it speaks.
    pub version: Version,
    pub(super) metadata: Lock<Arc<Value>>,
    pub(super) gate: Gate,
}

impl Client {
    /// What its handshake brought, as the admission made it; newer after a refresh.
    pub fn metadata(&self) -> Arc<Value> {
        self.metadata.lock().clone()
    }

    /// Whether writers should wait.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}

/// Whether a session has room for more to send. Shared by the room and the session's writers.
#[derive(Debug, Default)]
pub struct Gate {
    /// More waits for acknowledgement than writers should add to.
    pub(super) full: AtomicBool,
    /// The session is over.
    pub(super) ended: AtomicBool,
    /// Answers on their way to the room, not yet numbered.
    pub(super) flying: AtomicUsize,
    /// Somebody waits to be told.
    pub(super) waited_for: AtomicBool,
    pub(super) waiters: Lock<Vec<Sender<()>>>,
}

/// Answers of one session that may be on their way to the room.
const FLYING_MAX: usize = 1_024;

impl Gate {
    /// Whether more may be written now.
    pub fn is_open(&self) -> bool {
        self.is_ended()
            || (!self.full.load(Ordering::Acquire) && self.flying.load(Ordering::Acquire) < FLYING_MAX)
    }

    /// Whether the session is over.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Rings `bell` once when more may be written, at once if that is now.
    pub fn ring_when_open(&self, bell: Sender<()>) {
        self.waiters.lock().push(bell);
        self.waited_for.store(true, Ordering::SeqCst);
        if self.is_open() {
            self.ring();
        }
    }

    pub(super) fn ring(&self) {
        if self.waited_for.swap(false, Ordering::SeqCst) {
            let waiters = std::mem::take(&mut *self.waiters.lock());
            for waiter in waiters {
                // Full means that it was rung already.
                let _ = waiter.try_send(());
            }
        }
    }
}
