//! How any room is started, fed, drained, stopped, joined, and what happens when it panics.
//!
//! A [`Room`] owns many machines of one kind. Its thread waits in exactly one place, here: for stop
//! first, then for its inbox, then for its alarm. What has arrived is drained, up to a bound, before
//! the room is woken, so that bursts coalesce. Alarms are levels, not edges: a room whose deadline
//! has passed is woken until it names a later one.
//!
//! *Invariant:* one thread, one inbox, one first-in-first-out order. Data needs a permit, control
//! uses the remainder of the same queue, so control about a link never overtakes its bytes and
//! always has room.
//!
//! Stop ends waiting, not work: the room gets everything that is in the inbox in one last
//! [`Room::end`]. What is sent after that comes back to the sender.
//!
//! A room may have an [open door](Worker::spawn_open): then whoever brings something while nobody is
//! inside does it on the spot, and no thread is crossed. It is still one thread at a time.

mod open;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use self::open::{Door, OpenDoor};
use crate::rt::{Lock, Moment, Receiver, Rt, SendTimeoutError, Sender, Thread, TryRecvError, TrySendError};

/// Something that lives on a thread of its own.
pub trait Room: Send + 'static {
    /// What its inbox carries.
    type Message: Send + 'static;

    /// Handles everything that has arrived, at one moment. `inbox` may be empty: an alarm.
    /// Whatever is left in `inbox` is dropped.
    fn wake(&mut self, now: Moment, inbox: &mut Vec<Self::Message>);

    /// When it wants to be woken though nothing arrives.
    fn deadline(&self) -> Option<Moment>;

    /// The last wake, with all that is left in the inbox.
    fn end(&mut self, now: Moment, inbox: &mut Vec<Self::Message>) {
        self.wake(now, inbox);
    }

    /// Called instead of anything else after a panic in `wake` or `end`: put into safety what is
    /// held. The machines may be in any state.
    fn salvage(&mut self) {}

    /// Whether a wake may wait for somebody outside for long, who is then slow and not stuck.
    fn waits_for_others(&self) -> bool {
        false
    }

    /// Shows a simulation what the room holds; called after each wake. See [`Rt::facts`].
    fn show(&self, _rt: &Rt) {}
}

/// How much fits into an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Data messages that may wait.
    pub data: usize,
    /// Control messages that may wait besides: as many as requests that can be open at once.
    pub control: usize,
    /// How many messages one wake gets at most, so that a flood does not starve the alarm.
    pub drain: usize,
}

impl Bounds {
    /// `data` messages, a quarter as many control messages (at least 64), 1,024 a wake.
    pub const fn of(data: usize) -> Bounds {
        let control = if data / 4 < 64 { 64 } else { data / 4 };
        Bounds { data, control, drain: 1_024 }
    }
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds::of(4_096)
    }
}

/// A message that did not fit, or whose room has ended; it comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refused<M> {
    /// The inbox holds as much as it may.
    Full(M),
    /// The room has ended.
    Ended(M),
}

impl<M> Refused<M> {
    /// The message that was not taken.
    pub fn into_inner(self) -> M {
        match self {
            Refused::Full(message) | Refused::Ended(message) => message,
        }
    }
}

impl<M> std::fmt::Debug for Refused<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refused::Full(_) => "Full(..)",
            Refused::Ended(_) => "Ended(..)",
        })
    }
}

enum Parcel<M> {
    Data(M),
    Control(M),
}

/// The way into a room. Cheap to clone.
pub struct Inbox<M> {
    queue: Sender<Parcel<M>>,
    /// One token for each data message that waits; a full channel is what a lack of permits is, and
    /// a caller from outside can wait for it.
    permits: Sender<()>,
    /// The door, where it is open.
    door: Option<Arc<dyn Door>>,
    /// Whether whoever puts something in may go in.
    enters: bool,
}

impl<M> Clone for Inbox<M> {
    fn clone(&self) -> Inbox<M> {
        Inbox {
            queue: self.queue.clone(),
            permits: self.permits.clone(),
            door: self.door.clone(),
            enters: self.enters,
        }
    }
}

impl<M> std::fmt::Debug for Inbox<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inbox({} waiting)", self.queue.len())
    }
}

impl<M: Send + 'static> Inbox<M> {
    /// Data, if there is a permit. Never waits.
    ///
    /// # Errors
    /// No permit, or the room has ended; the message comes back.
    pub fn try_data(&self, message: M) -> Result<(), Refused<M>> {
        match self.permits.try_send(()) {
            Ok(()) => self.put(Parcel::Data(message)),
            Err(TrySendError::Full(())) => Err(Refused::Full(message)),
            Err(TrySendError::Disconnected(())) => Err(Refused::Ended(message)),
        }
    }

    /// Data, waiting for a permit until `deadline`: for callers from outside, never for a room or an
    /// I/O thread. Woken by the room draining its inbox or ending.
    ///
    /// # Errors
    /// No permit in time, or the room has ended; the message comes back.
    pub fn data(&self, message: M, deadline: Moment) -> Result<(), Refused<M>> {
        match self.permits.send_deadline((), deadline) {
            Ok(()) => self.put(Parcel::Data(message)),
            Err(SendTimeoutError::Timeout(())) => Err(Refused::Full(message)),
            Err(SendTimeoutError::Disconnected(())) => Err(Refused::Ended(message)),
        }
    }

    /// Control: answers to requests, closes, things whose number is bounded by what is open. Never
    /// waits; `Full` means that a credit was miscounted.
    ///
    /// # Errors
    /// The reserve is used up, or the room has ended; the message comes back.
    pub fn control(&self, message: M) -> Result<(), Refused<M>> {
        self.put(Parcel::Control(message))
    }

    /// The same inbox for threads that may go in where the door is open: callers, I/O threads, threads of
    /// handlers. Not for a room, whose own work would wait meanwhile.
    #[must_use]
    pub fn entering(&self) -> Inbox<M> {
        Inbox { enters: true, ..self.clone() }
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn put(&self, parcel: Parcel<M>) -> Result<(), Refused<M>> {
        let open = |parcel| match parcel {
            Parcel::Data(message) | Parcel::Control(message) => message,
        };
        // Full cannot be for data: the queue holds every permit and the reserve besides.
        self.queue.try_send(parcel).map_err(|error| match error {
            TrySendError::Full(parcel) => Refused::Full(open(parcel)),
            TrySendError::Disconnected(parcel) => Refused::Ended(open(parcel)),
        })?;
        match &self.door {
            Some(door) if self.enters => door.enter(),
            Some(door) => door.knock(),
            None => {}
        }
        Ok(())
    }
}

/// The rooms of one engine: who is stuck, and whether one has panicked.
#[derive(Clone)]
pub struct Crew {
    rt: Rt,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    poisoned: AtomicBool,
    cause: Lock<Option<String>>,
    rooms: Lock<Vec<Arc<Beat>>>,
}

/// When a room woke, while it is awake.
struct Beat {
    name: String,
    /// Nanoseconds of the wake under way, plus one; 0 while it waits.
    awake_since: AtomicU64,
    /// See [`Room::waits_for_others`].
    waits_for_others: AtomicBool,
    ended: AtomicBool,
}

impl Crew {
    /// A crew without rooms.
    pub fn new(rt: &Rt) -> Crew {
        Crew { rt: rt.clone(), shared: Arc::default() }
    }

    /// The runtime its rooms run on.
    pub fn rt(&self) -> &Rt {
        &self.rt
    }

    /// What the first room that panicked said; nothing while all is well.
    pub fn poisoned(&self) -> Option<String> {
        if !self.shared.poisoned.load(Ordering::Acquire) {
            return None;
        }
        self.shared.cause.lock().clone()
    }

    /// The rooms that have been awake for longer than `limit`: blocked, or drowning.
    pub fn stuck(&self, now: Moment, limit: Duration) -> Vec<(String, Duration)> {
        let rooms = self.shared.rooms.lock();
        let patient = |beat: &Beat| beat.waits_for_others.load(Ordering::Relaxed);
        let awake = rooms.iter().filter(|beat| !patient(beat)).filter_map(|beat| {
            let since = beat.awake_since.load(Ordering::Relaxed).checked_sub(1)?;
            Some((beat.name.clone(), now.since(Moment(since))))
        });
        awake.filter(|(_, awake)| *awake > limit).collect()
    }

    /// The names of the rooms that run.
    pub fn rooms(&self) -> Vec<String> {
        self.shared.rooms.lock().iter().map(|beat| beat.name.clone()).collect()
    }

    fn enlist(&self, name: &str) -> Arc<Beat> {
        let beat = Arc::new(Beat {
            name: name.to_owned(),
            awake_since: AtomicU64::new(0),
            waits_for_others: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let mut rooms = self.shared.rooms.lock();
        rooms.retain(|beat| !beat.ended.load(Ordering::Relaxed));
        rooms.push(beat.clone());
        beat
    }

    fn poison(&self, cause: String) {
        let first = {
            let mut slot = self.shared.cause.lock();
            let first = slot.is_none();
            if first {
                *slot = Some(cause.clone());
            }
            first
        };
        self.shared.poisoned.store(true, Ordering::Release);
        if first {
            log::error!("{cause}; the engine drains and stops");
        }
    }
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("rooms", &self.rooms()).field("poisoned", &self.poisoned()).finish()
    }
}

/// A running room. Dropping it stops the room, gives it its last wake and joins its thread.
#[derive(Debug)]
#[must_use = "dropping a worker stops its room"]
pub struct Worker {
    // Declared, and so dropped, in this order: the thread is joined after stop was said.
    stop: Option<Sender<()>>,
    thread: Option<Thread<()>>,
}

impl Worker {
    /// Starts a room on a thread called `name`. `make` gets the room's own inbox, for answers to
    /// what the room asks of others.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn spawn<R: Room>(
        crew: &Crew,
        name: impl Into<String>,
        bounds: Bounds,
        make: impl FnOnce(&Inbox<R::Message>) -> R,
    ) -> crate::Result<(Worker, Inbox<R::Message>)> {
        let name = name.into();
        let rt = crew.rt();
        let (stop, stopped) = rt.channel("stop", 1);
        let (inbox, shell) = Shell::new(crew, &name, bounds, None, make);
        let thread = rt.spawn(name, move || shell.run(&stopped))?;
        Ok((Worker { stop: Some(stop), thread: Some(thread) }, inbox))
    }

    /// The same for a room with an open door: whoever puts something into an [entering](Inbox::entering) inbox
    /// while nobody is inside does what is there, on a thread of his own; the room's thread does the rest and
    /// keeps the alarms. For rooms whose wakes are short and wait for nobody, where each thread that is crossed
    /// is most of what a message costs.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn spawn_open<R: Room>(
        crew: &Crew,
        name: impl Into<String>,
        bounds: Bounds,
        make: impl FnOnce(&Inbox<R::Message>) -> R,
    ) -> crate::Result<(Worker, Inbox<R::Message>)> {
        let name = name.into();
        let rt = crew.rt();
        let (stop, stopped) = rt.channel("stop", 1);
        let (bell, rung) = rt.channel("door", 1);
        let door = Arc::new(OpenDoor::new(bell));
        let (inbox, shell) = Shell::new(crew, &name, bounds, Some(door.clone()), make);
        let shell = Box::new(shell);
        let thread = rt.spawn(name, move || open::keep(&door, shell, &stopped, &rung))?;
        Ok((Worker { stop: Some(stop), thread: Some(thread) }, inbox))
    }

    /// Tells the room to stop without waiting for its end; dropping the worker waits.
    pub fn stop(&mut self) {
        self.stop = None;
    }

    /// Whether the room has ended.
    pub fn is_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(Thread::is_finished)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Let go of stop before joining; the other order waits for ever.
        self.stop = None;
        self.thread = None;
    }
}

/// What ended a wait.
enum Woken {
    Stop,
    Inbox,
    Alarm,
}

/// What runs a room, around it.
struct Shell<R: Room> {
    crew: Crew,
    room: R,
    arrivals: Receiver<Parcel<R::Message>>,
    spent: Receiver<()>,
    drain: usize,
    beat: Arc<Beat>,
    parcels: Vec<Parcel<R::Message>>,
    inbox: Vec<R::Message>,
}

impl<R: Room> Shell<R> {
    fn new(
        crew: &Crew,
        name: &str,
        bounds: Bounds,
        door: Option<Arc<dyn Door>>,
        make: impl FnOnce(&Inbox<R::Message>) -> R,
    ) -> (Inbox<R::Message>, Shell<R>) {
        let rt = crew.rt();
        let (queue, arrivals) = rt.channel("inbox", bounds.data + bounds.control);
        let (permits, spent) = rt.channel("permits", bounds.data);
        let inbox = Inbox { queue, permits, door, enters: false };
        let beat = crew.enlist(name);
        let room = make(&inbox);
        beat.waits_for_others.store(room.waits_for_others(), Ordering::Relaxed);
        let (crew, drain) = (crew.clone(), bounds.drain);
        let (parcels, empty) = (Vec::new(), Vec::new());
        (inbox, Shell { crew, room, arrivals, spent, drain, beat, parcels, inbox: empty })
    }

    fn run(mut self, stopped: &Receiver<()>) {
        // A channel whose senders are all gone is always ready: it is waited for no more.
        let mut reachable = true;
        loop {
            let arrivals = reachable.then_some(&self.arrivals);
            let woken = wait(self.crew.rt(), stopped, arrivals, self.room.deadline());
            let stop = matches!(woken, Woken::Stop);
            self.unpack(if stop { usize::MAX } else { self.drain });
            if matches!(woken, Woken::Inbox) && self.inbox.is_empty() {
                match self.arrivals.try_recv() {
                    // A sender is heard only after what it sent can be taken: this wake was for something that
                    // the one before had taken, and now there is more.
                    Ok(parcel) => {
                        self.parcels.push(parcel);
                        self.unpack(self.drain);
                    }
                    // And now there is not.
                    Err(TryRecvError::Empty) => continue,
                    Err(TryRecvError::Disconnected) => {
                        crate::mark!(room_out_of_reach);
                        reachable = false;
                        continue;
                    }
                }
            }
            let now = self.crew.rt.now();
            if !self.wake(now, stop) {
                break;
            }
            self.room.show(&self.crew.rt);
            if stop {
                break;
            }
        }
        self.beat.ended.store(true, Ordering::Relaxed);
    }

    /// Wakes the room with what was unpacked, for the last time if it is to stop; false if it panicked.
    fn wake(&mut self, now: Moment, stop: bool) -> bool {
        self.beat.awake_since.store(now.0.wrapping_add(1), Ordering::Relaxed);
        let (room, inbox) = (&mut self.room, &mut self.inbox);
        let woken =
            catch_unwind(AssertUnwindSafe(
                || if stop { room.end(now, inbox) } else { room.wake(now, inbox) },
            ));
        self.beat.awake_since.store(0, Ordering::Relaxed);
        self.inbox.clear();
        woken.map_err(|panic| self.fail(panic)).is_ok()
    }

    fn unpack(&mut self, max: usize) {
        self.arrivals.drain_into(&mut self.parcels, max);
        let mut data = 0;
        self.inbox.extend(self.parcels.drain(..).map(|parcel| match parcel {
            Parcel::Data(message) => {
                data += 1;
                message
            }
            Parcel::Control(message) => message,
        }));
        for _ in 0..data {
            // Each data message was put in after its permit, so this many are there.
            let permit = self.spent.try_recv();
            debug_assert!(permit.is_ok(), "a data message arrived without a permit");
        }
    }

    fn fail(&mut self, panic: Box<dyn std::any::Any + Send>) {
        #[cfg(feature = "testing")]
        let panic = match crate::rt::sim::as_unwinding(panic) {
            // The run is over or the node was killed: the room must not get to do anything more.
            Ok(unwinding) => std::panic::resume_unwind(unwinding),
            Err(panic) => panic,
        };
        let name = &self.beat.name;
        self.crew.poison(format!("room {name} panicked: {}", crate::rt::message(panic.as_ref())));
        if catch_unwind(AssertUnwindSafe(|| self.room.salvage())).is_err() {
            log::error!("room {name} panicked again while saving what it held; that is lost");
        }
    }
}

/// Waits for whatever comes first. Woken by stop, by a sender, by the alarm.
fn wait<T>(
    rt: &Rt,
    stopped: &Receiver<()>,
    arrivals: Option<&Receiver<T>>,
    deadline: Option<Moment>,
) -> Woken {
    let mut select = rt.select_biased();
    let stop = select.recv(stopped);
    if let Some(arrivals) = arrivals {
        select.recv(arrivals);
    }
    match select.ready(deadline) {
        Some(index) if index == stop => Woken::Stop,
        Some(_) => Woken::Inbox,
        None => Woken::Alarm,
    }
}

#[cfg(test)]
mod tests;
