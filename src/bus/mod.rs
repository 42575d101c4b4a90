//! Notices between replicas: hints that something changed, never the change itself.
//!
//! A notice may be lost, doubled or late. A subscriber that may have missed some gets
//! [`BusEvent::Dropped`] in their place and reads what it watches again.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

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
/// hands over its inbox, anyone else a bounded channel.
pub type Sink = Box<dyn FnMut(BusEvent) -> Delivery + Send>;

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
