//! Whether more may be said now. Shared by the room and whoever writes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::rt::{Lock, Rt, Sender};
use crate::state::time::Moment;

/// Whether more may be said now.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) full: AtomicBool,
    pub(super) ended: AtomicBool,
    pub(super) flying: AtomicUsize,
    pub(super) waited_for: AtomicBool,
    pub(super) waiters: Lock<Vec<Sender<()>>>,
}

/// Requests that may be on their way to the room.
const FLYING_MAX: usize = 1_024;

impl Gate {
    pub(super) fn is_open(&self) -> bool {
        self.ended.load(Ordering::Acquire)
            || (!self.full.load(Ordering::Acquire) && self.flying.load(Ordering::Acquire) < FLYING_MAX)
    }

    pub(super) fn wait(&self, rt: &Rt, deadline: Moment) -> bool {
        while !self.is_open() {
            let (bell, rung) = rt.channel("gate", 1);
            self.waiters.lock().push(bell);
            self.waited_for.store(true, Ordering::SeqCst);
            if self.is_open() {
                self.ring();
            }
            // Woken by acknowledgements making room, or by the end.
            if rung.recv_deadline(deadline).is_err() {
                return self.is_open();
            }
        }
        true
    }

    pub(super) fn ring(&self) {
        if self.waited_for.swap(false, Ordering::SeqCst) {
            for waiter in std::mem::take(&mut *self.waiters.lock()) {
                // Full means that it was rung already.
                let _ = waiter.try_send(());
            }
        }
    }
}
