//! Where a thread's pipes are while nobody works on them.
//!
//! Crossing a thread costs several microseconds and leaves the bytes in another processor's cache, which is
//! more than all else that is done to them. So a thread that holds a handle, a *guest*, may take the pipes for as long
//! as it takes to move its own bytes, without waiting, and puts them back. Alarms, attempts to connect and the ends
//! of pipes and carriers stay with the pipes' own thread, and so does everything while no guest comes.
//!
//! *Invariant:* the pipes are in their seat or with exactly one thread. A guest that finds the seat empty sends an
//! order instead, which the pipes' thread sees before it sleeps; the pipes' thread waits for a guest to leave, and
//! while it waits no other guest goes in.

use super::Port;
use super::shard::Shard;
use crate::rt::{Lock, Moment, Receiver, RecvTimeoutError, Rt, Sender};

pub(super) struct Seat {
    inner: Lock<Inner>,
    /// Rung for the pipes' thread; full when it was rung and the thread has yet to look.
    bell: Sender<()>,
}

#[derive(Default)]
struct Inner {
    shard: Option<Box<Shard>>,
    /// When the pipes' thread wakes by itself.
    wakes_at: Option<Moment>,
    /// The pipes' thread waits for whoever is inside to leave.
    wanted: bool,
    /// Guests that wait for the same.
    line: Vec<Sender<()>>,
    /// The pipes' thread has ended.
    closed: bool,
}

impl Seat {
    pub(super) fn new(bell: Sender<()>) -> Seat {
        Seat { inner: Lock::new(Inner::default()), bell }
    }

    /// The pipes' thread goes to sleep until then.
    pub(super) fn rest(&self, shard: Box<Shard>, wakes_at: Option<Moment>) {
        let line = {
            let mut inner = self.inner.lock();
            inner.wakes_at = wakes_at;
            inner.shard = Some(shard);
            std::mem::take(&mut inner.line)
        };
        next_please(line);
    }

    /// The pipes' thread has ended.
    pub(super) fn close(&self) {
        let line = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            std::mem::take(&mut inner.line)
        };
        next_please(line);
    }

    /// The pipes' thread has something to do.
    pub(super) fn take(&self, rung: &Receiver<()>) -> Box<Shard> {
        loop {
            {
                let mut inner = self.inner.lock();
                inner.wanted = inner.shard.is_none();
                if let Some(shard) = inner.shard.take() {
                    return shard;
                }
            }
            crate::mark!(pipes_wait_for_their_guest);
            // Woken by the guest, who leaves soon: it waits for nobody. The bell's other end is in here.
            let _ = rung.recv();
        }
    }

    /// A guest goes in, unless somebody is there.
    pub(super) fn enter<'a>(&self, port: &'a Port) -> Option<Guest<'a>> {
        let mut inner = self.inner.lock();
        let shard = if inner.wanted { None } else { inner.shard.take() };
        shard.map(|shard| Guest { port, shard: Some(shard) })
    }

    /// The same for a guest who waits for whoever is there to leave, at most until then: nobody stays for long.
    pub(super) fn enter_in_turn<'a>(
        &self,
        rt: &Rt,
        port: &'a Port,
        until: Option<Moment>,
    ) -> Option<Guest<'a>> {
        loop {
            if let Some(guest) = self.enter(port) {
                return Some(guest);
            }
            let (call, called) = rt.channel("pipes-line", 1);
            {
                let mut inner = self.inner.lock();
                if inner.closed {
                    return None;
                }
                if inner.shard.is_some() && !inner.wanted {
                    continue;
                }
                inner.line.push(call);
            }
            // Woken by whoever puts the pipes back. A place in line that is given up is passed over.
            match until {
                Some(until) => {
                    if called.recv_deadline(until) == Err(RecvTimeoutError::Timeout) {
                        return None;
                    }
                }
                None => drop(called.recv()),
            }
        }
    }
}

fn next_please(line: Vec<Sender<()>>) {
    for guest in line {
        // It waits for one word, or has left.
        let _ = guest.try_send(());
    }
}

/// A guest inside. Dropping it puts the pipes back.
pub(super) struct Guest<'a> {
    port: &'a Port,
    shard: Option<Box<Shard>>,
}

impl Guest<'_> {
    pub(super) fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().expect("it is here until the guest leaves")
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let Some(shard) = self.shard.take() else { return };
        let next = shard.wants_to_wake();
        let seat = &self.port.seat;
        let (wanted, sooner, line) = {
            let mut inner = seat.inner.lock();
            let sooner = next.is_some_and(|next| inner.wakes_at.is_none_or(|set| next < set));
            if sooner {
                inner.wakes_at = next;
            }
            inner.shard = Some(shard);
            let line = if inner.wanted { Vec::new() } else { std::mem::take(&mut inner.line) };
            (inner.wanted, sooner, line)
        };
        if wanted {
            // Full: it was rung already, and the thread looks.
            let _ = seat.bell.try_send(());
        } else if sooner {
            self.port.rouse();
        }
        next_please(line);
    }
}
