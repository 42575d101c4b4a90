//! An I/O thread without system calls: links, their queues and groups, what they parse and write, when
//! they have to be looked at, and who is told.
//!
//! It is driven: by the poller with sockets, by the simulated network with bytes of its own.
//!
//! ```text
//! at(now, wall)                         once a round
//! accept / adopt → slot                 a connection is there
//! feed(slot, bytes), eof, broke         what arrived
//! take_orders()                         what rooms asked for
//! ring()                                alarms that are due
//! next_own, next_of_many → gather → wrote   what to write
//! settle()                              batches go to their rooms
//! take_effects()                        sockets to close, to half-close, to read again
//! deadline()                            how long the thread may sleep
//! ```
//!
//! Invariant: a link is in `groups[g]` at the place its own list says. A link without an owner tells
//! nobody; one that was closed towards its owner has lost it, so nothing follows `Closed`. Every link
//! that is not idle has an alarm no later than its due moment.

mod one;
mod orders;
mod outbox;
mod queue;
mod reading;
mod requests;
mod speaking;
mod time;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(crate) use queue::GATHER_MAX;

use self::one::{Incoming, Link, Outgoing, Turn};
use self::outbox::Outboxes;
use super::dial::{Adopted, Speak};
use super::exchange::{Front, HandOver};
use super::limits::Limits;
use super::link::{Closing, GroupId, Happened, LinkHandle, LinkId, Peer};
use super::order::{Line, Order, Orders, Port};
use super::websocket::{self, Message, Role, Violation, close};
use crate::rt::{Hasher, Rt};
use crate::state::time::{Moment, Wall};
use std::time::Duration;

/// What the driver has to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// End our half of it.
    FinishWriting(usize),
    /// Close it; the slot is free.
    Close(usize),
    /// Read it again: it was left with bytes unread.
    Resume(usize),
    /// Give it away, with what [`Links::take_handing`] has for it; the slot is free.
    HandOver(usize),
}

/// A connection that is to be given away.
pub(crate) struct Handing {
    pub(crate) to: HandOver,
    pub(crate) head: Vec<u8>,
    pub(crate) early: Vec<u8>,
    pub(crate) peer: Peer,
}

/// How long a room that was full is left alone before its batch is offered again.
const STUCK_WAIT: Duration = Duration::from_millis(5);
/// Small bodies are written together with their head.
const INLINE_MAX: usize = 4 * 1024;

/// See the [module](self).
pub(crate) struct Links {
    thread: u8,
    limits: Limits,
    front: Arc<dyn Front>,
    port: Arc<Port>,
    orders: Orders,
    rt: Rt,
    now: Moment,
    wall: Wall,
    slots: Vec<Option<Box<Link>>>,
    free: Vec<usize>,
    /// Counts links, so that a handle to an earlier one meets nobody.
    generation: u32,
    groups: HashMap<GroupId, Vec<u32>, Hasher>,
    outboxes: Outboxes,
    alarms: BinaryHeap<Reverse<(Moment, LinkId)>>,
    /// Links to be written because of something for them alone, in turn.
    own: VecDeque<LinkId>,
    /// The same because of what many are told, or because more waits for them than one turn takes.
    of_many: VecDeque<LinkId>,
    effects: Vec<Effect>,
    /// Bytes nobody can guess, for the masks of dialed WebSockets.
    masks: Vec<[u8; 4]>,
    /// Set once the server goes: requests in flight are the last on their connection.
    draining: bool,
    scratch: Vec<Message>,
    /// WebSockets that broke the protocol behind messages which their rooms have not heard yet.
    broken: Vec<(LinkId, Violation)>,
    /// The same, once they have: whoever answers at once has answered before the next round.
    breaking: Vec<(LinkId, Violation)>,
    taken: Vec<Order>,
    /// Slots whose connection the driver has still to close.
    freed: Vec<usize>,
    handing: Vec<(usize, Handing)>,
}

impl Links {
    pub(crate) fn new(
        rt: &Rt,
        thread: u8,
        limits: Limits,
        front: Arc<dyn Front>,
        port: Arc<Port>,
        orders: Orders,
    ) -> Links {
        Links {
            thread,
            limits,
            front,
            port,
            orders,
            rt: rt.clone(),
            now: rt.now(),
            wall: rt.wall(),
            slots: Vec::new(),
            free: Vec::new(),
            generation: 0,
            groups: HashMap::with_hasher(rt.hasher()),
            outboxes: Outboxes::default(),
            alarms: BinaryHeap::new(),
            own: VecDeque::new(),
            of_many: VecDeque::new(),
            effects: Vec::new(),
            masks: Vec::new(),
            draining: false,
            scratch: Vec::new(),
            broken: Vec::new(),
            breaking: Vec::new(),
            taken: Vec::new(),
            freed: Vec::new(),
            handing: Vec::new(),
        }
    }

    /// Says what time it is; everything until the next call happens then.
    pub(crate) fn at(&mut self, now: Moment, wall: Wall) {
        (self.now, self.wall) = (now, wall);
    }

    pub(crate) fn orders(&self) -> &Orders {
        &self.orders
    }

    /// How many links there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len() - self.freed.len()
    }

    fn count(&self) -> &super::limits::Counts {
        &self.port.counts
    }

    // ---- connections come and go

    /// A connection was accepted; `None` if there are as many as there may be.
    pub(crate) fn accept(&mut self, peer: Peer) -> Option<usize> {
        if self.len() >= self.limits.links {
            self.count().turned_away.add(1);
            return None;
        }
        let slot = self.insert(peer);
        self.count().accepted.add(1);
        self.set_alarm(slot);
        Some(slot)
    }

    /// A connection that was dialed.
    pub(crate) fn adopt(&mut self, adopted: Adopted) -> usize {
        let Adopted { peer, speak, head, early, owner, .. } = adopted;
        let slot = self.insert(peer);
        let link = self.slots[slot].as_deref_mut().expect("just inserted");
        (link.incoming, link.outgoing) = match speak {
            Speak::Raw | Speak::Upgrade { .. } => (Incoming::Raw, Outgoing::Raw { finished: false }),
            Speak::WebSocket { message_max, .. } => (
                Incoming::WebSocket(Box::new(websocket::Reader::new(Role::Client, message_max))),
                Outgoing::WebSocket { role: Role::Client, closed: false, slow: close::TRY_AGAIN },
            ),
        };
        link.owner = Some(owner.clone());
        let (id, cut) = (link.id, link.cut.clone());
        let handle = LinkHandle::new(Line { link: id, request: 0 }, &self.port, &cut);
        self.outboxes.push(&owner, id, Happened::Opened(handle, head.map(Box::new)));
        self.set_alarm(slot);
        if !early.is_empty() {
            self.feed(slot, &early);
        }
        slot
    }

    fn insert(&mut self, peer: Peer) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.generation = self.generation.wrapping_add(1);
        let id = LinkId::new(self.thread, slot as u32, self.generation);
        self.slots[slot] = Some(Box::new(Link::new(id, peer, self.now)));
        self.count().links.add(1);
        slot
    }

    /// The peer ended its half.
    pub(crate) fn eof(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if std::mem::replace(&mut link.eof, true) {
            return;
        }
        match (&link.incoming, link.outgoing) {
            // It may have ended its half and still wait for the answer.
            (Incoming::Next, Outgoing::Answers) => {}
            (Incoming::Streamed(body), Outgoing::Answers) if body.reader.is_done() => {}
            (Incoming::Raw, Outgoing::Raw { finished: false }) => self.emit(slot, Happened::Ended),
            (Incoming::Raw, Outgoing::Raw { finished: true }) => {
                self.dismiss(slot, close::AWAY, "the peer ended it".into(), true);
                self.end(slot, false);
            }
            (Incoming::WebSocket(_), _) => {
                self.drop_link(slot, close::ABNORMAL, "the peer left without a close", true)
            }
            (Incoming::Whole(_) | Incoming::Streamed(_), _) => {
                self.drop_link(slot, close::ABNORMAL, "the peer left inside a body", true);
            }
            _ => self.drop_link(slot, close::AWAY, "the peer left", true),
        }
    }

    /// The connection broke.
    pub(crate) fn broke(&mut self, slot: usize, why: &'static str) {
        self.drop_link(slot, close::ABNORMAL, why, true);
    }

    /// Tells the owner and forgets the link at once.
    fn drop_link(&mut self, slot: usize, code: u16, reason: impl Into<Cow<'static, str>>, by_peer: bool) {
        self.dismiss(slot, code, reason.into(), by_peer);
        if self.slots[slot].take().is_some() {
            self.freed.push(slot);
            self.count().links.sub(1);
            self.effects.push(Effect::Close(slot));
        }
    }

    /// Tells the owner that the link is closed, takes it out of its groups, and drops whatever is still
    /// sent to it. The connection itself may go on for a while.
    fn dismiss(&mut self, slot: usize, code: u16, reason: Cow<'static, str>, by_peer: bool) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.cut.store(true, Ordering::Release);
        let id = link.id;
        let closing = Closing { code, reason, by_peer };
        let body_owner = match &mut link.incoming {
            Incoming::Streamed(body) => body.owner.take(),
            _ => None,
        };
        for owner in [body_owner, link.owner.take()].into_iter().flatten() {
            self.outboxes.push(&owner, id, Happened::Closed(closing.clone()));
        }
        self.leave_all(slot);
    }

    fn leave_all(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        for (group, at) in std::mem::take(&mut link.groups) {
            self.take_out(group, at);
        }
    }

    /// Removes the member at a place of a group; the one moved there learns its new place.
    fn take_out(&mut self, group: GroupId, at: u32) {
        let Some(members) = self.groups.get_mut(&group) else { return };
        members.swap_remove(at as usize);
        if let Some(&moved) = members.get(at as usize) {
            if let Some(moved) = self.slots[moved as usize].as_deref_mut() {
                for place in &mut moved.groups {
                    if place.0 == group {
                        place.1 = at;
                    }
                }
            }
        } else if members.is_empty() {
            self.groups.remove(&group);
        }
    }

    /// Closes the connection behind what is queued. A peer that may still be sending gets the time to read
    /// the answer (`linger`): closing with unread bytes would reset what it has not read.
    fn end(&mut self, slot: usize, linger: bool) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.incoming = Incoming::Ignored;
        link.held = Vec::new();
        link.outgoing = Outgoing::Ending { linger: linger && !link.eof, told: false };
        link.since = self.now;
        (link.parked, link.paused) = (false, false);
        self.touch(slot);
        if linger {
            self.effects.push(Effect::Resume(slot));
        }
    }

    // ---- bytes leave

    /// Whether a connection is left with something to write that is for it alone, or to end.
    pub(crate) fn has_own(&self) -> bool {
        !self.own.is_empty() || !self.breaking.is_empty()
    }

    /// How many connections are left with something to write that many are told.
    pub(crate) fn many(&self) -> usize {
        self.of_many.len()
    }

    /// A connection with something to write that is for it alone, or to end.
    pub(crate) fn next_own(&mut self) -> Option<usize> {
        while let Some(id) = self.own.pop_front() {
            if let Some(slot) = self.begins(id, Turn::Own) {
                return Some(slot);
            }
        }
        None
    }

    /// A connection with something to write that many are told. Whoever drives this writes a few of them and looks
    /// then what has come: an answer does not wait until thousands have heard the news before it, and what many
    /// are told meanwhile leaves with what still waits for them.
    pub(crate) fn next_of_many(&mut self) -> Option<usize> {
        while let Some(id) = self.of_many.pop_front() {
            if let Some(slot) = self.begins(id, Turn::OfMany) {
                return Some(slot);
            }
        }
        None
    }

    /// A link whose turn has come, if it is still there and has not had it.
    fn begins(&mut self, id: LinkId, turn: Turn) -> Option<usize> {
        let slot = self.slot_of(id)?;
        let link = self.slots[slot].as_deref_mut()?;
        (link.turn == turn).then(|| {
            link.turn = Turn::None;
            slot
        })
    }

    /// Puts a connection among those to be written: it can take bytes again.
    pub(crate) fn writable(&mut self, slot: usize) {
        self.touch_in_turn(slot);
    }

    /// How many pieces are to be written on this connection.
    pub(crate) fn pieces(&self, slot: usize) -> usize {
        self.slots[slot].as_deref().map_or(0, |link| link.queue.pieces())
    }

    /// What to write next on this connection: how many slices, none if its queue is empty.
    pub(crate) fn gather<'a>(&'a self, slot: usize, slices: &mut [IoSlice<'a>]) -> usize {
        self.slots[slot].as_deref().map_or(0, |link| link.queue.gather(slices))
    }

    /// So many bytes were written.
    pub(crate) fn wrote(&mut self, slot: usize, n: usize) {
        self.port.counts.bytes_out.add(n as u64);
        let now = self.now;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.queue.wrote(n);
        if n > 0 {
            link.last_out = now;
        }
        if !link.marks.is_empty() {
            let left = link.queue.left();
            let passed = link.marks.iter().take_while(|(_, at)| *at <= left).count();
            let marks: Vec<u64> = link.marks.drain(..passed).map(|(mark, _)| mark).collect();
            for mark in marks {
                self.emit(slot, Happened::Passed(mark));
            }
        }
    }

    /// As much as could be written was, and `all` says whether that was everything: ends what is to be
    /// ended, sets the alarm.
    pub(crate) fn flushed(&mut self, slot: usize, all: bool) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if all && link.queue.is_empty() {
            match &mut link.outgoing {
                Outgoing::Ending { linger: false, .. } => {
                    self.drop_link(slot, close::NORMAL, "", false);
                    return;
                }
                Outgoing::Ending { told: told @ false, .. } => {
                    *told = true;
                    self.effects.push(Effect::FinishWriting(slot));
                }
                Outgoing::Raw { finished: true } => self.effects.push(Effect::FinishWriting(slot)),
                _ => {}
            }
        }
        self.set_alarm(slot);
    }

    // ---- the end of a round

    /// Offers every batch of events to its room.
    pub(crate) fn settle(&mut self) {
        let delivered = self.outboxes.deliver();
        self.breaking.append(&mut self.broken);
        self.count().parked.add(delivered.full);
        for id in delivered.park {
            if let Some(slot) = self.slot_of(id)
                && let Some(link) = self.slots[slot].as_deref_mut()
            {
                link.parked = true;
            }
        }
        for id in delivered.unpark {
            if let Some(slot) = self.slot_of(id)
                && let Some(link) = self.slots[slot].as_deref_mut()
            {
                link.parked = false;
                self.effects.push(Effect::Resume(slot));
            }
        }
    }

    /// What the driver has to do with connections.
    pub(crate) fn take_effects(&mut self, effects: &mut Vec<Effect>) {
        effects.append(&mut self.effects);
        // Only now may a slot be used again: the driver is about to close what stood there.
        self.free.append(&mut self.freed);
    }

    /// Whether the server goes, and nothing new is to be accepted.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Closes every link as its protocol closes: the thread is about to end.
    pub(crate) fn close_all(&mut self) {
        self.draining = true;
        for slot in 0..self.slots.len() {
            let Some(link) = self.slots[slot].as_deref() else { continue };
            match (&link.incoming, link.outgoing) {
                (Incoming::Head(_), Outgoing::Answers) => {
                    self.drop_link(slot, close::AWAY, "the server stops", false);
                }
                _ => self.close(slot, close::RESTART, "the server stops".into()),
            }
        }
    }

    /// Closes everything at once and tells the owners: the thread ends.
    pub(crate) fn end_all(&mut self) {
        for slot in 0..self.slots.len() {
            self.drop_link(slot, close::AWAY, "the server stopped", false);
        }
        self.settle();
    }
}

#[cfg(test)]
mod tests;
