//! What an I/O thread is asked to do, and the inbox it is asked through.
//!
//! Invariant: the inbox is bounded, and what it has no room for is either given back or, where it must not be
//! forgotten and is bounded by what exists, kept in the [`Overflow`].

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::exchange::{Opening, Terms};
use super::frame::Frame;
use super::http::Response;
use super::limits::Counts;
use super::link::{GroupId, LinkId, Owner, Peer};
use super::pass::Pass;
use crate::rt;
use crate::state::time::Wall;

/// One answer on one link. A connection that is kept alive carries several, one after the other; what was
/// meant for an earlier one meets nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) link: LinkId,
    pub(crate) request: u32,
}

/// What an I/O thread is asked to do.
pub(crate) enum Order {
    /// Answer the request in flight.
    Answer {
        line: Line,
        response: Response,
    },
    /// Answer the request in flight with a link that stays.
    Open {
        line: Line,
        opening: Box<Opening>,
        owner: Option<Owner>,
        terms: Terms,
    },
    /// The link is good until then, and as long as this pass is.
    Prolong {
        line: Line,
        good_until: Option<Wall>,
        pass: Option<Pass>,
    },
    /// Passes have ended: look whose.
    Recheck,
    /// Stream the body of the request in flight to `owner`.
    Body {
        line: Line,
        owner: Owner,
    },
    Send {
        line: Line,
        frame: Frame,
        paced: bool,
    },
    Join {
        line: Line,
        group: GroupId,
    },
    Leave {
        line: Line,
        group: GroupId,
    },
    Fanout {
        group: GroupId,
        frame: Frame,
    },
    Mark {
        line: Line,
        mark: u64,
    },
    Pause {
        line: Line,
        paused: bool,
    },
    Finish {
        line: Line,
    },
    Close {
        line: Line,
        code: u16,
        reason: Cow<'static, str>,
    },
    /// Close every link, each at a moment drawn inside the window.
    Drain(super::Drain),
    /// What the driver does, not the links.
    Errand(Box<Errand>),
}

/// What a driver of [`Links`](super::links) is asked to do itself. A carrier is a connection as that driver
/// knows it.
pub(crate) enum Errand {
    /// A connection that was dialed.
    Adopt(super::Adopted),
    /// A connection that another I/O thread accepted.
    Accepted { carrier: Box<dyn Any + Send>, peer: Peer },
    /// Close everything within the time that a closing link has, and end.
    Stop,
}

impl Order {
    /// What it holds in memory until it is carried out.
    fn weight(&self) -> usize {
        match self {
            Order::Send { frame, .. } | Order::Fanout { frame, .. } => frame.len(),
            Order::Answer { response, .. } => response.content().len(),
            _ => 0,
        }
    }
}

/// What an inbox could not take and must not forget. Bounded by what exists: one answer for each
/// request in flight, each link and each group once.
#[derive(Default)]
pub(crate) struct Overflow {
    pub(crate) answers: Vec<Order>,
    pub(crate) groups: Vec<GroupId>,
    pub(crate) links: Vec<Line>,
}

/// Orders an I/O thread takes before its inbox is full.
const ORDERS_MAX: usize = 4 * 1024;
/// Bytes of frames in those orders.
const ORDER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The near side of one I/O thread's inbox.
pub(crate) struct Port {
    orders: rt::Sender<Order>,
    bytes: AtomicUsize,
    /// Whether the thread is up (or told to get up): who pushes wakes only a sleeper.
    awake: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
    overflow: rt::Lock<Overflow>,
    overflowed: AtomicBool,
    pub(crate) counts: Counts,
}

/// The far side of one I/O thread's inbox: what the thread itself holds.
pub(crate) struct Orders {
    receiver: rt::Receiver<Order>,
    port: Arc<Port>,
}

impl Port {
    pub(crate) fn new(rt: &rt::Rt, wake: impl Fn() + Send + Sync + 'static) -> (Arc<Port>, Orders) {
        let (orders, receiver) = rt.channel("io", ORDERS_MAX);
        let port = Arc::new(Port {
            orders,
            bytes: AtomicUsize::new(0),
            awake: AtomicBool::new(false),
            wake: Box::new(wake),
            overflow: rt::Lock::new(Overflow::default()),
            overflowed: AtomicBool::new(false),
            counts: Counts::default(),
        });
        (port.clone(), Orders { receiver, port })
    }

    /// Puts an order in, or gives it back because there is no room.
    pub(super) fn push(&self, order: Order) -> Result<(), Order> {
        let weight = order.weight();
        if weight > 0 && self.bytes.fetch_add(weight, Ordering::Relaxed) + weight > ORDER_BYTES_MAX {
            self.bytes.fetch_sub(weight, Ordering::Relaxed);
            return Err(order);
        }
        match self.orders.try_send(order) {
            Ok(()) => {
                self.rouse();
                Ok(())
            }
            Err(rt::TrySendError::Full(order)) => {
                self.bytes.fetch_sub(weight, Ordering::Relaxed);
                Err(order)
            }
            // The thread has stopped: its links are closed and their owners have heard.
            Err(rt::TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    /// An order that must not be lost, and of which there can be only as many as there are requests in
    /// flight. It is carried out before everything that is pushed after it.
    pub(super) fn push_answer(&self, order: Order) {
        if let Err(order) = self.push(order) {
            self.spill(|overflow| overflow.answers.push(order));
        }
    }

    pub(super) fn spill(&self, add: impl FnOnce(&mut Overflow)) {
        add(&mut self.overflow.lock());
        self.overflowed.store(true, Ordering::SeqCst);
        self.rouse();
    }

    pub(crate) fn rouse(&self) {
        if self.claims_wake() {
            (self.wake)();
        }
    }

    /// Whether the thread sleeps and whoever asked is the one to wake it: until then nobody else does.
    pub(super) fn claims_wake(&self) -> bool {
        !self.awake.swap(true, Ordering::SeqCst)
    }

    /// Wakes the thread, as was claimed, if there is something for it.
    pub(super) fn wake_for_what_came(&self) {
        if self.is_empty() {
            self.awake.store(false, Ordering::SeqCst);
            // Whoever brought something in between left the wake to us.
            if self.is_empty() || !self.claims_wake() {
                return;
            }
        }
        (self.wake)();
    }

    fn is_empty(&self) -> bool {
        self.orders.is_empty() && !self.overflowed.load(Ordering::SeqCst)
    }
}

impl Orders {
    /// Takes what is there: first what did not fit, whose answers come before everything pushed after
    /// them, then at most what was in the inbox at that moment. The groups and links in the overflow
    /// are to be treated as lost *after* the orders: whatever concerned them was pushed before.
    pub(crate) fn take(&self, orders: &mut Vec<Order>) -> Overflow {
        let mut overflow = Overflow::default();
        if self.port.overflowed.swap(false, Ordering::SeqCst) {
            overflow = std::mem::take(&mut *self.port.overflow.lock());
            orders.append(&mut overflow.answers);
        }
        let from = orders.len();
        self.receiver.drain_into(orders, self.receiver.len());
        let weight: usize = orders[from..].iter().map(Order::weight).sum();
        self.port.bytes.fetch_sub(weight, Ordering::Relaxed);
        overflow
    }

    /// Whether nothing waits in the inbox.
    pub(crate) fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Says that the thread is about to sleep; false if something came in and it must not.
    pub(crate) fn may_sleep(&self) -> bool {
        self.port.awake.store(false, Ordering::SeqCst);
        if self.port.is_empty() {
            return true;
        }
        self.woke();
        false
    }

    /// Says that the thread is up.
    pub(crate) fn woke(&self) {
        self.port.awake.store(true, Ordering::SeqCst);
    }
}
