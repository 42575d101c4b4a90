//! Notices between replicas: hints that something changed, never the change itself.
//!
//! A notice may be lost, doubled or late. A subscriber that may have missed some gets
//! [`BusEvent::Dropped`] in their place and reads what it watches again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::rt::{Lock, Receiver, Rt, TrySendError};

pub mod local;
#[cfg(feature = "postgres")]
pub mod postgres;

/// What a notice is about; each topic is one channel of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// A stream changed.
    Stream,
    /// Agents reported.
    Metadata,
    /// A replica came, went, or found its peers otherwise.
    Replica,
}

impl Topic {
    /// All of them.
    pub const ALL: [Topic; 3] = [Topic::Stream, Topic::Metadata, Topic::Replica];
}

/// A hint that something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A stream changed.
    Stream(StreamNotice),
    /// These agents have new values. At most 363 of them.
    Metadata(Arc<[Uuid]>),
    /// This replica changed.
    Replica(Uuid),
}

impl Notice {
    /// The topic it belongs to.
    pub fn topic(&self) -> Topic {
        match self {
            Notice::Stream(_) => Topic::Stream,
            Notice::Metadata(_) => Topic::Metadata,
            Notice::Replica(_) => Topic::Replica,
        }
    }
}

/// Where a stream stood after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamNotice {
    /// Which stream.
    pub stream: Uuid,
    /// Its position.
    pub pos: u64,
    /// Its generation.
    pub generation: u32,
    /// Who runs it, while it runs.
    pub worker: Option<Uuid>,
    /// The number of its last turn; 0 before the first.
    pub turn: u32,
    /// True when it was deleted: there is nothing left to read.
    pub deleted: bool,
}

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusEvent {
    /// A hint.
    Notice(Notice),
    /// Hints were lost here: read again whatever is watched.
    Dropped,
}

/// What a subscriber did with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It has it.
    Taken,
    /// It has no room. It gets a [`BusEvent::Dropped`] as soon as it takes one.
    Full,
    /// It is gone and wants no more.
    Gone,
}

/// Takes what a subscriber is sent, on the bus's thread or the publisher's. Must not block: a room
/// hands over its inbox, anyone else a bounded channel ([`receiver`]).
pub type Sink = Box<dyn Fn(BusEvent) -> Delivery + Send + Sync>;

/// How a bus fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BusHealth {
    /// False while the connection to the others is down.
    pub connected: bool,
    /// How long the last heartbeat took, end to end.
    pub latency: Option<Duration>,
    /// How long ago the last heartbeat came back.
    pub silent: Option<Duration>,
    /// Notices published.
    pub published: u64,
    /// Transactions they went out in.
    pub batches: u64,
    /// Notices received.
    pub received: u64,
    /// Notices not published, or not taken by a subscriber.
    pub dropped: u64,
    /// Times the connection was lost.
    pub disconnects: u64,
}

/// Notices between replicas.
pub trait Bus: Send + Sync {
    /// Sends a hint to everyone, this replica included. Never blocks: a full queue drops the notice,
    /// counts it, and the subscribers here get a drop marker; those elsewhere are healed by their poll.
    fn publish(&self, notice: Notice);
    /// Sends every later hint of a topic to `sink`, in order, until it says it is gone.
    fn subscribe(&self, topic: Topic, sink: Sink);
    /// How it fares.
    fn health(&self) -> BusHealth;
}

/// Subscribes with a channel of `bound` events. Its last slot is kept for a drop marker: a subscriber
/// that is too slow loses hints and learns that it did, in order.
pub fn receiver(bus: &dyn Bus, rt: &Rt, topic: Topic, bound: usize) -> Receiver<BusEvent> {
    let (sender, receiver) = rt.channel("bus-events", bound.max(2));
    let last = bound.max(2) - 1;
    bus.subscribe(
        topic,
        Box::new(move |event| {
            if event != BusEvent::Dropped && sender.len() >= last {
                return Delivery::Full;
            }
            match sender.try_send(event) {
                Ok(()) => Delivery::Taken,
                // A marker that does not fit: the one before it has not been read yet.
                Err(TrySendError::Full(_)) => Delivery::Full,
                Err(TrySendError::Disconnected(_)) => Delivery::Gone,
            }
        }),
    );
    receiver
}

/// The subscribers of a bus.
///
/// Invariant: whoever was not handed an event is `owed` a marker, and gets nothing else before it.
#[derive(Default)]
struct Subscribers {
    list: Lock<Arc<[Arc<Subscriber>]>>,
    received: AtomicU64,
    dropped: AtomicU64,
}

struct Subscriber {
    topic: Topic,
    sink: Sink,
    owed: AtomicBool,
    gone: AtomicBool,
}

impl Subscribers {
    fn add(&self, topic: Topic, sink: Sink) {
        let new =
            Arc::new(Subscriber { topic, sink, owed: AtomicBool::new(false), gone: AtomicBool::new(false) });
        let mut list = self.list.lock();
        let kept = list.iter().filter(|there| !there.gone.load(Ordering::Relaxed)).cloned();
        *list = kept.chain([new]).collect();
    }

    /// Who is there now. Sinks are called without the lock: they send.
    fn now(&self) -> Arc<[Arc<Subscriber>]> {
        self.list.lock().clone()
    }

    fn deliver(&self, notice: &Notice) {
        self.received.fetch_add(1, Ordering::Relaxed);
        for subscriber in self.now().iter().filter(|there| there.topic == notice.topic()) {
            if !subscriber.deliver(|| BusEvent::Notice(notice.clone())) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Hints of a topic, or of all, may be missing from here on.
    #[cfg(feature = "postgres")]
    fn lost(&self, topic: Option<Topic>) {
        for subscriber in self.now().iter().filter(|there| topic.is_none_or(|topic| there.topic == topic)) {
            subscriber.owed.store(true, Ordering::Relaxed);
            subscriber.settle();
        }
    }

    /// Hands over the markers that did not fit before.
    #[cfg(feature = "postgres")]
    fn settle(&self) {
        for subscriber in self.now().iter() {
            subscriber.settle();
        }
    }
}

impl Subscriber {
    /// True when the subscriber has the event, or wants no more.
    fn deliver(&self, event: impl FnOnce() -> BusEvent) -> bool {
        if !self.settle() {
            return false;
        }
        let taken = self.hand_over(event());
        if !taken {
            self.owed.store(true, Ordering::Relaxed);
            self.settle();
        }
        taken
    }

    /// True when no marker is owed any more.
    fn settle(&self) -> bool {
        if self.owed.load(Ordering::Relaxed) && self.hand_over(BusEvent::Dropped) {
            self.owed.store(false, Ordering::Relaxed);
        }
        !self.owed.load(Ordering::Relaxed)
    }

    fn hand_over(&self, event: BusEvent) -> bool {
        if self.gone.load(Ordering::Relaxed) {
            return true;
        }
        match (self.sink)(event) {
            Delivery::Taken => true,
            Delivery::Full => false,
            Delivery::Gone => {
                self.gone.store(true, Ordering::Relaxed);
                true
            }
        }
    }
}
