//! A bus that loses, doubles and reorders notices.
//!
//! It keeps the one promise a bus makes: what is lost without a drop marker is healed by whoever
//! polls; and order holds within a stream only as far as the seed lets it, since notices are hints.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::bus::{Bus, BusEvent, BusHealth, Delivery, Notice, Sink, Topic};
use crate::rt::{Lock, Op, Receiver, Rt, Sender, Thread, TrySendError};

/// How bad a bus is. Chances are one in so many; 0 is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusFaults {
    /// A notice is lost without a word.
    pub lose: u64,
    /// A notice arrives twice.
    pub double: u64,
    /// A notice waits behind the next one.
    pub reorder: u64,
    /// The listening connection drops: everybody gets a drop marker, and what is under way is lost.
    pub disconnect: u64,
    /// Notices take up to this long.
    pub latency_max: Duration,
}

impl BusFaults {
    /// A bus without faults.
    pub const CALM: BusFaults =
        BusFaults { lose: 0, double: 0, reorder: 0, disconnect: 0, latency_max: Duration::ZERO };

    /// Everything that happens to notices, every dozen or so.
    pub const ROUGH: BusFaults = BusFaults {
        lose: 12,
        double: 12,
        reorder: 8,
        disconnect: 50,
        latency_max: Duration::from_millis(20),
    };
}

/// Notices that wait to be delivered, at most.
const QUEUE: usize = 1_024;

/// A bus between simulated replicas: share one among them. Dropping it ends its thread.
pub struct FlakyBus {
    shared: Arc<Shared>,
    queue: Lock<Option<Sender<Notice>>>,
    thread: Lock<Option<Thread>>,
}

struct Shared {
    rt: Rt,
    faults: Lock<BusFaults>,
    subscribers: Lock<BTreeMap<u64, (Topic, Sink)>>,
    health: Lock<(BusHealth, u64)>,
}

impl FlakyBus {
    /// A bus whose thread belongs to `rt`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(rt: &Rt, faults: BusFaults) -> crate::Result<FlakyBus> {
        let shared = Arc::new(Shared {
            rt: rt.clone(),
            faults: Lock::new(faults),
            subscribers: Lock::default(),
            health: Lock::new((BusHealth { connected: true, ..BusHealth::default() }, 0)),
        });
        let (queue, notices) = rt.channel("notices", QUEUE);
        let courier = Courier { shared: shared.clone(), held: None };
        let thread = rt.spawn("bus", move || courier.run(&notices))?;
        Ok(FlakyBus { shared, queue: Lock::new(Some(queue)), thread: Lock::new(Some(thread)) })
    }

    /// From now on it is this bad.
    pub fn set_faults(&self, faults: BusFaults) {
        *self.shared.faults.lock() = faults;
    }
}

impl Bus for FlakyBus {
    fn publish(&self, notice: Notice) {
        self.shared.rt.point(Op::Publish, &["bus"]);
        let queue = self.queue.lock().clone();
        let Some(queue) = queue else { return };
        match queue.try_send(notice) {
            Ok(()) => self.shared.health.lock().0.published += 1,
            // As the real one: the notice is dropped, and everybody here learns that some were.
            Err(TrySendError::Full(_)) => self.shared.disconnect(),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn subscribe(&self, topic: Topic, sink: Sink) {
        let number = {
            let mut health = self.shared.health.lock();
            health.1 += 1;
            health.1
        };
        self.shared.subscribers.lock().insert(number, (topic, sink));
    }

    fn health(&self) -> BusHealth {
        self.shared.health.lock().0
    }
}

impl Drop for FlakyBus {
    fn drop(&mut self) {
        // The queue before the thread that waits for it.
        let queue = self.queue.lock().take();
        drop(queue);
        let thread = self.thread.lock().take();
        drop(thread);
    }
}

impl std::fmt::Debug for FlakyBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FlakyBus({:?})", self.health())
    }
}

impl Shared {
    fn deliver(&self, event: &BusEvent, topic: Option<Topic>) {
        // Taken out while they are called: a sink is a call of the runtime, and no lock is held over one.
        let subscribers = std::mem::take(&mut *self.subscribers.lock());
        let mut kept = BTreeMap::new();
        for (number, (wanted, mut sink)) in subscribers {
            let gone = topic.is_none_or(|topic| topic == wanted) && self.hand_over(&mut sink, event);
            if !gone {
                kept.insert(number, (wanted, sink));
            }
        }
        // Whoever subscribed meanwhile stays too.
        self.subscribers.lock().append(&mut kept);
    }

    /// Whether the subscriber is gone.
    fn hand_over(&self, sink: &mut Sink, event: &BusEvent) -> bool {
        match sink(event.clone()) {
            Delivery::Taken => false,
            Delivery::Gone => true,
            Delivery::Full => {
                self.health.lock().0.dropped += 1;
                // Said as soon as there is room for it; a room that stays full re-reads by its poll.
                for _ in 0..100 {
                    self.rt.sleep(Duration::from_millis(10));
                    match sink(BusEvent::Dropped) {
                        Delivery::Taken => return false,
                        Delivery::Gone => return true,
                        Delivery::Full => {}
                    }
                }
                false
            }
        }
    }

    fn disconnect(&self) {
        crate::mark!(bus_disconnected);
        self.health.lock().0.disconnects += 1;
        self.deliver(&BusEvent::Dropped, None);
    }

    fn chance(&self, tape: &'static str, one_in: u64) -> bool {
        // 0 is benign: the fault sits at the upper end.
        one_in > 0 && self.rt.rand(tape).below(one_in) == one_in - 1
    }
}

/// The thread that carries notices.
struct Courier {
    shared: Arc<Shared>,
    /// A notice that lets the next one pass.
    held: Option<Notice>,
}

impl Courier {
    fn run(mut self, notices: &Receiver<Notice>) {
        for notice in notices.iter() {
            self.carry(notice);
        }
    }

    fn carry(&mut self, notice: Notice) {
        let faults = *self.shared.faults.lock();
        let millis = faults.latency_max.as_millis() as u64;
        if millis > 0 {
            self.shared.rt.sleep(Duration::from_millis(self.shared.rt.rand("bus latency").below(millis + 1)));
        }
        if self.shared.chance("bus disconnect", faults.disconnect) {
            self.held = None;
            self.shared.disconnect();
            return;
        }
        if self.shared.chance("bus lose", faults.lose) {
            crate::mark!(notice_lost);
            return;
        }
        let double = self.shared.chance("bus double", faults.double);
        let before = self.held.take();
        if before.is_none() && self.shared.chance("bus reorder", faults.reorder) {
            crate::mark!(notice_overtaken);
            self.held = Some(notice);
            return;
        }
        for notice in std::iter::once(notice.clone()).chain(double.then_some(notice)).chain(before) {
            self.shared.health.lock().0.received += 1;
            let topic = notice.topic();
            self.shared.deliver(&BusEvent::Notice(notice), Some(topic));
        }
    }
}
