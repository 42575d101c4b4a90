//! The bus of one process: a notice is handed to the subscribers by whoever publishes it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Bus, BusHealth, Notice, Sink, Subscribers, Topic};

/// The bus of one process. Several engines of one process may share it.
#[derive(Default)]
pub struct LocalBus {
    subscribers: Subscribers,
    published: AtomicU64,
}

impl LocalBus {
    /// A bus without subscribers.
    pub fn new() -> LocalBus {
        LocalBus::default()
    }
}

impl Bus for LocalBus {
    fn publish(&self, notice: Notice) {
        self.published.fetch_add(1, Ordering::Relaxed);
        self.subscribers.deliver(&notice);
    }

    fn subscribe(&self, topic: Topic, sink: Sink) {
        self.subscribers.add(topic, sink);
    }

    fn health(&self) -> BusHealth {
        let published = self.published.load(Ordering::Relaxed);
        BusHealth {
            connected: true,
            published,
            batches: published,
            received: self.subscribers.received.load(Ordering::Relaxed),
            dropped: self.subscribers.dropped.load(Ordering::Relaxed),
            ..BusHealth::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::{BusEvent, receiver};
    use super::*;
    use crate::rt::{Rt, TryRecvError};

    fn replica(id: u128) -> Notice {
        Notice::Replica(Uuid::from_u128(id))
    }

    fn drained(rx: &crate::rt::Receiver<BusEvent>) -> Vec<Option<u128>> {
        let mut events = Vec::new();
        while let Ok(event) = rx.try_recv() {
            events.push(match event {
                BusEvent::Notice(Notice::Replica(id)) => Some(id.as_u128()),
                BusEvent::Notice(other) => panic!("{other:?}"),
                BusEvent::Dropped => None,
            });
        }
        events
    }

    #[test]
    fn each_subscriber_gets_every_notice_of_its_topic_in_order() {
        let (bus, rt) = (LocalBus::new(), Rt::real());
        let (one, other) = (receiver(&bus, &rt, Topic::Replica, 8), receiver(&bus, &rt, Topic::Replica, 8));
        let streams = receiver(&bus, &rt, Topic::Stream, 8);
        for id in 1..=3 {
            bus.publish(replica(id));
        }
        assert_eq!(drained(&one), [Some(1), Some(2), Some(3)]);
        assert_eq!(drained(&other), [Some(1), Some(2), Some(3)]);
        assert_eq!(streams.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn a_full_subscriber_finds_a_marker_in_its_last_slot_and_harms_nobody() {
        let (bus, rt) = (LocalBus::new(), Rt::real());
        let (slow, fast) = (receiver(&bus, &rt, Topic::Replica, 3), receiver(&bus, &rt, Topic::Replica, 64));
        for id in 1..=5 {
            bus.publish(replica(id));
        }
        assert_eq!(drained(&slow), [Some(1), Some(2), None]);
        // What came while the marker waited to be read is owed a marker of its own: it was read too
        // early to cover it, as far as anyone can tell.
        bus.publish(replica(6));
        assert_eq!(drained(&slow), [None, Some(6)]);
        bus.publish(replica(7));
        assert_eq!(drained(&slow), [Some(7)]);
        assert_eq!(drained(&fast).len(), 7);
        assert_eq!(bus.health().dropped, 3);
    }

    #[test]
    fn a_subscriber_that_is_gone_is_forgotten() {
        let (bus, rt) = (LocalBus::new(), Rt::real());
        drop(receiver(&bus, &rt, Topic::Replica, 3));
        bus.publish(replica(1));
        let there = receiver(&bus, &rt, Topic::Replica, 3);
        assert_eq!(bus.subscribers.now().len(), 1);
        bus.publish(replica(2));
        assert_eq!(drained(&there), [Some(2)]);
    }
}
