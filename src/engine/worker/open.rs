//! Rooms with an open door: whoever brings something while nobody is inside goes in and does it.
//!
//! Crossing a thread costs several microseconds, which is more than most of what a room of sessions does with a
//! message. A guest, that is a thread which is not the room's own, does what it finds, within bounds, and leaves
//! the rest to the room's thread, which also keeps the alarms.
//!
//! *Invariant:* the shell with the room is in its seat or with exactly one thread, which puts it back or ends it.
//! Whoever puts it back looks into the inbox while holding the seat's lock, and whoever brings something tries the
//! seat after having put it into the inbox: so what comes while somebody is inside is found by one of the two.

use std::sync::atomic::Ordering;

use super::{Room, Shell, Woken, wait};
use crate::rt::{Lock, Moment, Receiver, Rt, Sender, TryRecvError};

/// Messages a guest takes in one round.
const ROUND_MAX: usize = 64;
/// Rounds a guest stays while more is brought. What comes after them is the thread's, which takes it together.
const ROUNDS: usize = 4;

/// The door, as an inbox knows it.
pub(super) trait Door: Send + Sync {
    /// Does what is in the inbox, unless somebody is inside and will find it.
    fn enter(&self);
    /// Wakes the room's thread.
    fn knock(&self);
}

pub(super) struct OpenDoor<R: Room> {
    seat: Lock<Seat<R>>,
    /// Rung for the room's thread; full when it was rung and nobody came yet.
    bell: Sender<()>,
}

struct Seat<R: Room> {
    /// `None` while somebody is inside, and after the end.
    shell: Option<Box<Shell<R>>>,
    /// When the room's thread wakes by itself.
    alarm: Option<Moment>,
    /// The room's thread waits for whoever is inside to leave.
    wanted: bool,
    /// The room panicked while a guest was inside.
    over: bool,
}

impl<R: Room> OpenDoor<R> {
    /// The door of a room whose thread is inside until it has done what there was at its start.
    pub(super) fn new(bell: Sender<()>) -> OpenDoor<R> {
        OpenDoor { seat: Lock::new(Seat { shell: None, alarm: None, wanted: false, over: false }), bell }
    }

    /// The room's thread goes to wait for its alarm; it stays if something has come.
    fn rest(&self, shell: Box<Shell<R>>, alarm: Option<Moment>) -> Option<Box<Shell<R>>> {
        let mut seat = self.seat.lock();
        if !shell.arrivals.is_empty() {
            return Some(shell);
        }
        seat.alarm = alarm;
        seat.shell = Some(shell);
        None
    }

    /// The room's thread goes in, as soon as whoever is inside has left. `None` if the room is over.
    fn take(&self, rung: &Receiver<()>) -> Option<Box<Shell<R>>> {
        loop {
            {
                let mut seat = self.seat.lock();
                if seat.over {
                    return None;
                }
                if let Some(shell) = seat.shell.take() {
                    return Some(shell);
                }
                seat.wanted = true;
            }
            crate::mark!(room_waits_for_its_guest);
            // Woken by the guest, who leaves soon: a wake waits for nobody. The bell's other end is in this door.
            rung.recv().ok()?;
        }
    }

    /// A guest leaves.
    fn leave(&self, shell: Box<Shell<R>>) {
        let alarm = shell.room.deadline();
        let ring = {
            let mut seat = self.seat.lock();
            let earlier = alarm.is_some_and(|alarm| seat.alarm.is_none_or(|set| alarm < set));
            let ring = earlier || seat.wanted || !shell.arrivals.is_empty();
            seat.wanted = false;
            seat.shell = Some(shell);
            ring
        };
        if ring {
            self.knock();
        }
    }

    /// The room panicked while a guest was inside.
    fn end(&self, shell: Box<Shell<R>>) {
        // Closes the inbox.
        drop(shell);
        self.seat.lock().over = true;
        self.knock();
    }
}

impl<R: Room> Door for OpenDoor<R> {
    fn enter(&self) {
        let shell = self.seat.lock().shell.take();
        let Some(mut shell) = shell else { return };
        for _ in 0..ROUNDS {
            crate::mark!(room_has_a_guest);
            if !shell.turn(ROUND_MAX) {
                return self.end(shell);
            }
            if shell.arrivals.is_empty() {
                break;
            }
        }
        self.leave(shell);
    }

    fn knock(&self) {
        // Full means that it was rung already and the thread has yet to look.
        let _ = self.bell.try_send(());
    }
}

impl<R: Room> Shell<R> {
    /// Wakes the room if something has come or its alarm is due; false if it panicked.
    fn turn(&mut self, max: usize) -> bool {
        self.unpack(max);
        let now = self.crew.rt().now();
        let due = self.room.deadline().is_some_and(|deadline| deadline <= now);
        (self.inbox.is_empty() && !due) || self.wake(now, false)
    }
}

/// What the thread of a room with an open door does.
pub(super) fn keep<R: Room>(
    door: &OpenDoor<R>,
    shell: Box<Shell<R>>,
    stopped: &Receiver<()>,
    rung: &Receiver<()>,
) {
    let (rt, beat) = (shell.crew.rt().clone(), shell.beat.clone());
    if let Some(mut shell) = until_stop(&rt, door, shell, stopped, rung) {
        shell.unpack(usize::MAX);
        shell.wake(rt.now(), true);
    }
    beat.ended.store(true, Ordering::Relaxed);
}

/// Gives the shell back for the room's last wake, unless the room is over before.
fn until_stop<R: Room>(
    rt: &Rt,
    door: &OpenDoor<R>,
    mut shell: Box<Shell<R>>,
    stopped: &Receiver<()>,
    rung: &Receiver<()>,
) -> Option<Box<Shell<R>>> {
    loop {
        if !shell.turn(shell.drain) {
            return None;
        }
        let alarm = shell.room.deadline();
        if let Some(busy) = door.rest(shell, alarm) {
            // A flood does not keep it from being stopped.
            if matches!(stopped.try_recv(), Err(TryRecvError::Disconnected)) {
                return Some(busy);
            }
            shell = busy;
            continue;
        }
        let woken = wait(rt, stopped, Some(rung), alarm);
        if matches!(woken, Woken::Inbox) {
            // It is taken so that the next ring is noticed; what it was for is found by looking.
            let _ = rung.try_recv();
        }
        shell = door.take(rung)?;
        if matches!(woken, Woken::Stop) {
            return Some(shell);
        }
    }
}
