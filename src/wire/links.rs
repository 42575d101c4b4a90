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
//! next_dirty → gather → wrote           what to write
//! settle()                              batches go to their rooms
//! take_effects()                        sockets to close, to half-close, to read again
//! deadline()                            how long the thread may sleep
//! ```
//!
//! Invariant: a link is in `groups[g]` at the place its own list says. A link without an owner tells
//! nobody; one that was closed towards its owner has lost it, so nothing follows `Closed`. Every link
//! that is not idle has an alarm no later than its due moment.

mod one;
mod outbox;
mod queue;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(crate) use queue::GATHER_MAX;

use self::one::{InFlight, Incoming, Link, Outgoing, Streamed, Whole};
use self::outbox::Outboxes;
use self::queue::Bytes;
use super::Drain;
use super::dial::{Adopted, Speak};
use super::frame::{Encoding, Frame};
use super::http::{BodyReader, Framed, Head, HeadReader, Refusal, Response, ResponseForm, Version};
use super::limits::Limits;
use super::link::{
    Closing, Errand, Exchange, Front, GroupId, Happened, Line, LinkHandle, LinkId, Opening, Order, Orders,
    Owner, Peer, Plan, Port,
};
use super::websocket::{self, Message, Outgoing as WsFrame, Role, close};
use crate::codec::sse;
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
    dirty: Vec<LinkId>,
    effects: Vec<Effect>,
    /// Bytes nobody can guess, for the masks of dialed WebSockets.
    masks: Vec<[u8; 4]>,
    /// Set once the server goes: requests in flight are the last on their connection.
    draining: bool,
    scratch: Vec<Message>,
    taken: Vec<Order>,
    /// Slots whose connection the driver has still to close.
    freed: Vec<usize>,
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
            dirty: Vec::new(),
            effects: Vec::new(),
            masks: Vec::new(),
            draining: false,
            scratch: Vec::new(),
            taken: Vec::new(),
            freed: Vec::new(),
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
                Outgoing::WebSocket { role: Role::Client, closed: false },
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

    // ---- bytes arrive

    /// Whether more may be read from this connection now.
    pub(crate) fn wants_bytes(&self, slot: usize) -> bool {
        let link = self.slots.get(slot).and_then(Option::as_deref);
        link.is_some_and(|link| link.wants_bytes(&self.limits))
            && self.outboxes.bytes() < self.limits.parked_bytes
    }

    /// Bytes arrived.
    pub(crate) fn feed(&mut self, slot: usize, bytes: &[u8]) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        self.port.counts.bytes_in.add(bytes.len() as u64);
        link.last_in = self.now;
        if link.held.is_empty() {
            if matches!(link.incoming, Incoming::Head(_)) {
                // The first byte of a head starts its time.
                link.since = self.now;
            }
            let taken = self.understand(slot, bytes);
            if let Some(link) = self.slots[slot].as_deref_mut() {
                link.held.extend_from_slice(&bytes[taken..]);
            }
        } else {
            link.held.extend_from_slice(bytes);
            self.go_on(slot);
        }
        self.set_alarm(slot);
    }

    /// Understands what is held.
    fn go_on(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        let mut held = std::mem::take(&mut link.held);
        let taken = self.understand(slot, &held);
        if let Some(link) = self.slots[slot].as_deref_mut() {
            if taken == held.len() {
                held = Vec::new();
            } else if taken > 0 {
                held.drain(..taken);
            }
            link.held = held;
        }
    }

    /// Takes as much as can be understood now, and answers how much that was.
    fn understand(&mut self, slot: usize, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            let step = self.understand_one(slot, &bytes[taken..]);
            taken += step.unwrap_or(0);
            if step.is_none() {
                break;
            }
        }
        taken
    }

    /// `None` when nothing more can be done with what is there.
    fn understand_one(&mut self, slot: usize, bytes: &[u8]) -> Option<usize> {
        let link = self.slots[slot].as_deref_mut()?;
        match &mut link.incoming {
            Incoming::Head(reader) => match reader.read(bytes, &self.limits.head) {
                Ok(None) => None,
                Ok(Some((head, taken))) => {
                    self.begin_request(slot, head);
                    Some(taken)
                }
                Err(refusal) => {
                    self.refuse(slot, refusal);
                    Some(bytes.len())
                }
            },
            Incoming::Whole(body) => {
                let room = body.max + 1;
                match body.reader.read(bytes, &mut body.body, room) {
                    Ok(taken) => {
                        self.body_arrived(slot);
                        Some(taken)
                    }
                    Err(refusal) => {
                        self.refuse(slot, refusal);
                        Some(bytes.len())
                    }
                }
            }
            Incoming::Streamed(body) => {
                let owner = body.owner.clone()?;
                let mut piece = Vec::new();
                match body.reader.read(bytes, &mut piece, self.limits.held_bytes) {
                    Ok(taken) => {
                        let (id, done) = (link.id, body.reader.is_done());
                        if !piece.is_empty() {
                            self.outboxes.push(&owner, id, Happened::Bytes(piece));
                        }
                        if done {
                            link.incoming = Incoming::Next;
                            self.outboxes.push(&owner, id, Happened::Ended);
                            // While the answer is owed, the owner of the body is who has to know that the
                            // peer left.
                            link.owner.get_or_insert(owner);
                        }
                        Some(taken)
                    }
                    Err(refusal) => {
                        self.refuse(slot, refusal);
                        Some(bytes.len())
                    }
                }
            }
            Incoming::Next => None,
            Incoming::WebSocket(reader) => {
                let mut messages = std::mem::take(&mut self.scratch);
                let outcome = reader.feed(bytes, &mut messages);
                for message in messages.drain(..) {
                    self.heard(slot, message);
                }
                self.scratch = messages;
                if let Err(violation) = outcome {
                    self.close_websocket(slot, violation.code, violation.reason.into(), false);
                    self.end(slot, true);
                }
                Some(bytes.len())
            }
            Incoming::Raw => {
                self.emit(slot, Happened::Bytes(bytes.to_vec()));
                Some(bytes.len())
            }
            Incoming::Ignored => Some(bytes.len()),
        }
    }

    fn emit(&mut self, slot: usize, what: Happened) {
        let Some(link) = self.slots[slot].as_deref() else { return };
        if let Some(owner) = &link.owner {
            self.outboxes.push(owner, link.id, what);
        }
    }

    // ---- requests

    fn begin_request(&mut self, slot: usize, head: Head) {
        self.port.counts.requests.add(1);
        let draining = self.draining;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.request = InFlight {
            number: link.request.number.wrapping_add(1),
            waiting: true,
            head_only: head.method == super::http::Method::Head,
            http10: head.version == Version::Http10,
            keep_alive: head.keep_alive && !draining,
            expects_continue: head.expects_continue,
        };
        let (id, peer, number, framing) = (link.id, link.peer, link.request.number, head.framing);
        link.incoming = Incoming::Next;
        let handle = LinkHandle::new(Line { link: id, request: number }, &self.port, &link.cut);
        let plan = self.front.request(head, &peer, Exchange::new(handle));
        let reader = BodyReader::new(framing);
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        match plan {
            Plan::Whole { then, .. } if reader.is_done() => then(Vec::new()),
            Plan::Whole { max, then } => {
                link.incoming = Incoming::Whole(Box::new(Whole { reader, body: Vec::new(), max, then }));
                self.say_continue(slot);
            }
            Plan::Streamed => link.incoming = Incoming::Streamed(Box::new(Streamed { reader, owner: None })),
            Plan::Answered if reader.is_done() => {}
            // A body nobody wants: it would have to be read to find the next request behind it.
            Plan::Answered => {
                link.request.keep_alive = false;
                link.incoming = Incoming::Ignored;
            }
        }
    }

    fn say_continue(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if std::mem::take(&mut link.request.expects_continue) {
            self.push(slot, Bytes::Static(b"HTTP/1.1 100 Continue\r\n\r\n"), false);
        }
    }

    fn body_arrived(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        let Incoming::Whole(body) = &link.incoming else { return };
        if body.body.len() > body.max {
            let max = body.max;
            // The handler is dropped with its reply, whose answer comes too late for this request.
            self.port.counts.refused.add(1);
            let detail = format!("the body is over its limit of {max} bytes");
            self.write_answer(slot, Response::problem(413, "too_large", &detail).closing());
            return;
        }
        if body.reader.is_done()
            && let Incoming::Whole(body) = std::mem::replace(&mut link.incoming, Incoming::Next)
        {
            (body.then)(body.body);
        }
    }

    /// Answers a request that cannot be served and closes; what follows it is never read as a request.
    fn refuse(&mut self, slot: usize, refusal: Refusal) {
        self.port.counts.refused.add(1);
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if !matches!(link.outgoing, Outgoing::Answers) {
            // In the middle of a live answer there is no place for another.
            self.drop_link(slot, close::PROTOCOL, refusal.detail, true);
            return;
        }
        link.request.waiting = true;
        self.dismiss(slot, close::PROTOCOL, refusal.detail.into(), true);
        self.write_answer(slot, refusal.into());
    }

    /// Writes a whole answer to the request in flight.
    fn write_answer(&mut self, slot: usize, response: Response) {
        let wall = self.wall;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        // An answer before the end of the body: what is left of it would be read as a request.
        let unread = !matches!(link.incoming, Incoming::Next)
            && !matches!(&link.incoming, Incoming::Streamed(body) if body.reader.is_done());
        let close = response.closes() || !link.request.keep_alive || unread || link.eof;
        link.request.waiting = false;
        link.owner = None;
        let form = ResponseForm { wall, body: Framed::Whole, close, head_only: link.request.head_only };
        let mut bytes = Vec::with_capacity(256);
        let body = response.write(&mut bytes, form);
        if body.as_slice().len() <= INLINE_MAX {
            bytes.extend_from_slice(body.as_slice());
            self.push(slot, Bytes::Own(bytes), false);
        } else {
            self.push(slot, Bytes::Own(bytes), false);
            self.push(slot, body.into(), false);
        }
        if close {
            self.end(slot, true);
        } else {
            self.next_request(slot);
        }
    }

    fn next_request(&mut self, slot: usize) {
        let now = self.now;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.incoming = Incoming::Head(HeadReader::default());
        link.outgoing = Outgoing::Answers;
        // What is still on its way to the last answer meets nobody.
        link.request.number = link.request.number.wrapping_add(1);
        link.since = now;
        self.go_on(slot);
        self.resume(slot);
        self.set_alarm(slot);
    }

    /// The driver may have left bytes unread while this link wanted none.
    fn resume(&mut self, slot: usize) {
        self.effects.push(Effect::Resume(slot));
    }

    fn open(&mut self, slot: usize, opening: Opening, owner: Option<Owner>) {
        let (now, wall) = (self.now, self.wall);
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.request.waiting = false;
        link.since = now;
        if owner.is_some() {
            link.owner = owner;
        }
        let framed = !link.request.http10;
        let (response, body, outgoing) = match opening {
            Opening::Chunks { response } if framed => {
                (response, Framed::Chunked, Outgoing::Chunks { framed, events: false })
            }
            Opening::Events { response } if framed => {
                (response, Framed::Chunked, Outgoing::Chunks { framed, events: true })
            }
            Opening::Chunks { response } => {
                (response, Framed::UntilClose, Outgoing::Chunks { framed, events: false })
            }
            Opening::Events { response } => {
                (response, Framed::UntilClose, Outgoing::Chunks { framed, events: true })
            }
            Opening::WebSocket { response, message_max } => {
                link.incoming =
                    Incoming::WebSocket(Box::new(websocket::Reader::new(Role::Server, message_max)));
                (response, Framed::UntilClose, Outgoing::WebSocket { role: Role::Server, closed: false })
            }
            Opening::Raw { response } => {
                link.incoming = Incoming::Raw;
                (response, Framed::UntilClose, Outgoing::Raw { finished: false })
            }
        };
        link.outgoing = outgoing;
        let chunks = matches!(outgoing, Outgoing::Chunks { .. });
        let close = chunks && (!link.request.keep_alive || !framed);
        let head_only = link.request.head_only;
        let mut bytes = Vec::with_capacity(256);
        response.write(&mut bytes, ResponseForm { wall, body, close, head_only });
        self.push(slot, Bytes::Own(bytes), false);
        if head_only && chunks {
            // A HEAD has its whole answer now.
            self.dismiss(slot, close::NORMAL, "the request was a HEAD".into(), false);
            self.end(slot, true);
            return;
        }
        if self.draining {
            self.draw_drain(slot, Duration::ZERO, 0);
        }
        self.go_on(slot);
        self.resume(slot);
        self.set_alarm(slot);
    }

    // ---- WebSocket

    fn heard(&mut self, slot: usize, message: Message) {
        match message {
            Message::Text(text) => self.emit(slot, Happened::Text(text)),
            Message::Binary(bytes) => self.emit(slot, Happened::Binary(bytes)),
            Message::Ping(payload) => self.push_ws(slot, WsFrame::Pong(&payload)),
            Message::Pong(_) => {}
            Message::Close(said) => {
                let (code, reason) = said.unwrap_or((close::NONE, String::new()));
                // What it said is said back (RFC 6455 5.5.1), unless we closed first.
                self.dismiss(slot, code, reason.into(), true);
                self.push_close(slot, code, "");
                self.end(slot, true);
            }
        }
    }

    fn close_websocket(&mut self, slot: usize, code: u16, reason: Cow<'static, str>, by_peer: bool) {
        self.push_close(slot, code, &reason);
        self.dismiss(slot, code, reason, by_peer);
    }

    /// Queues our close frame, once.
    fn push_close(&mut self, slot: usize, code: u16, reason: &str) {
        let now = self.now;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if let Outgoing::WebSocket { closed, .. } = &mut link.outgoing
            && !std::mem::replace(closed, true)
        {
            link.since = now;
            self.push_ws(slot, WsFrame::Close(code, reason));
        }
    }

    fn push_ws(&mut self, slot: usize, frame: WsFrame<'_>) {
        let Some(link) = self.slots[slot].as_deref() else { return };
        let Outgoing::WebSocket { role, .. } = link.outgoing else { return };
        let mask = if role == Role::Client { Some(self.mask()) } else { None };
        let mut bytes = Vec::new();
        websocket::write_frame(&mut bytes, frame, mask);
        self.push(slot, Bytes::Own(bytes), true);
    }

    /// A mask nobody can foresee (RFC 6455 10.3), drawn from the system sixteen at a time.
    fn mask(&mut self) -> [u8; 4] {
        if self.masks.is_empty() {
            let bytes = self.rt.secret::<64>();
            self.masks = bytes.chunks_exact(4).map(|four| [four[0], four[1], four[2], four[3]]).collect();
        }
        self.masks.pop().expect("just filled")
    }

    // ---- orders

    /// Carries out what rooms and handlers asked for. What the driver must do itself is given back.
    pub(crate) fn take_orders(&mut self, errands: &mut Vec<Errand>) {
        let mut orders = std::mem::take(&mut self.taken);
        let overflow = self.orders.take(&mut orders);
        for order in orders.drain(..) {
            match order {
                Order::Errand(errand) => errands.push(*errand),
                order => self.carry_out(order),
            }
        }
        self.taken = orders;
        // Lost after everything that was ordered before they were.
        for group in overflow.groups {
            self.count().cut_full.add(1);
            self.reset_group(group);
        }
        for line in overflow.links {
            if let Some(slot) = self.on(line) {
                self.count().cut_full.add(1);
                self.cut(slot, "more was sent than the server could hand on");
            }
        }
    }

    fn slot_of(&self, id: LinkId) -> Option<usize> {
        let link = self.slots.get(id.slot())?.as_deref()?;
        (link.id == id).then_some(id.slot())
    }

    /// Where the answer is that an order was meant for, if it has not ended.
    fn on(&self, line: Line) -> Option<usize> {
        let slot = self.slot_of(line.link)?;
        let link = self.slots[slot].as_deref()?;
        (link.request.number == line.request).then_some(slot)
    }

    /// Where the request is that is still to be answered.
    fn awaiting(&self, line: Line) -> Option<usize> {
        let slot = self.on(line)?;
        self.slots[slot].as_deref()?.request.waiting.then_some(slot)
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Fanout { group, frame } => self.fan_out(group, &frame),
            Order::Drain(drain) => self.drain(drain),
            Order::Open { line, opening, owner } => match (self.awaiting(line), owner) {
                (Some(slot), owner) => self.open(slot, *opening, owner),
                (None, Some(owner)) => self.too_late(line.link, &owner),
                (None, None) => {}
            },
            Order::Body { line, owner } => match self.awaiting(line) {
                Some(slot) => self.stream_body(slot, owner),
                None => self.too_late(line.link, &owner),
            },
            Order::Answer { line, response } => {
                if let Some(slot) = self.awaiting(line) {
                    self.write_answer(slot, response);
                }
            }
            Order::Send { line, frame, paced } => {
                self.with(line, |links, slot| links.send(slot, &frame, !paced))
            }
            Order::Join { line, group } => self.with(line, |links, slot| links.join(slot, group)),
            Order::Leave { line, group } => self.with(line, |links, slot| links.leave(slot, group)),
            Order::Mark { line, mark } => self.with(line, |links, slot| links.mark(slot, mark)),
            Order::Pause { line, paused } => self.with(line, |links, slot| links.pause(slot, paused)),
            Order::Finish { line } => self.with(line, Links::finish),
            Order::Close { line, code, reason } => {
                self.with(line, |links, slot| links.close(slot, code, reason))
            }
            // Given to the driver before this is called.
            Order::Errand(_) => {}
        }
    }

    /// An order for an answer that has ended is nobody's.
    fn with(&mut self, line: Line, f: impl FnOnce(&mut Links, usize)) {
        if let Some(slot) = self.on(line) {
            f(self, slot);
        }
    }

    /// The peer left before its request was answered: whoever opened a link has to know.
    fn too_late(&mut self, link: LinkId, owner: &Owner) {
        let reason = "the peer left before it was answered".into();
        let closing = Closing { code: close::ABNORMAL, reason, by_peer: true };
        self.outboxes.push(owner, link, Happened::Closed(closing));
    }

    fn pause(&mut self, slot: usize, paused: bool) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.paused = paused;
        if !paused {
            self.resume(slot);
        }
    }

    fn stream_body(&mut self, slot: usize, owner: Owner) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        let id = link.id;
        match &mut link.incoming {
            Incoming::Streamed(body) if body.reader.is_done() => {
                link.incoming = Incoming::Next;
                self.outboxes.push(&owner, id, Happened::Ended);
                link.owner.get_or_insert(owner);
            }
            Incoming::Streamed(body) => {
                body.owner = Some(owner);
                self.say_continue(slot);
            }
            _ => self.outboxes.push(&owner, id, Happened::Ended),
        }
        self.go_on(slot);
        self.resume(slot);
        self.set_alarm(slot);
    }

    fn join(&mut self, slot: usize, group: GroupId) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        // One that was closed towards its owner is in no group: nothing would take it out again.
        if link.owner.is_none() || link.groups.iter().any(|(own, _)| *own == group) {
            return;
        }
        let members = self.groups.entry(group).or_default();
        link.groups.push((group, members.len() as u32));
        members.push(slot as u32);
    }

    fn leave(&mut self, slot: usize, group: GroupId) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if let Some(place) = link.groups.iter().position(|(own, _)| *own == group) {
            let (_, at) = link.groups.swap_remove(place);
            self.take_out(group, at);
        }
    }

    /// A frame for this group was lost on the way here: its members go, and their owners hear of it.
    fn reset_group(&mut self, group: GroupId) {
        for slot in self.groups.remove(&group).unwrap_or_default() {
            let slot = slot as usize;
            if let Some(link) = self.slots[slot].as_deref_mut() {
                link.groups.retain(|(own, _)| *own != group);
            }
            self.emit(slot, Happened::Reset(group));
        }
    }

    fn fan_out(&mut self, group: GroupId, frame: &Frame) {
        let Some(members) = self.groups.get_mut(&group).map(std::mem::take) else { return };
        let mut slow = Vec::new();
        for &slot in &members {
            if !self.queue_frame(slot as usize, frame, true) {
                slow.push(slot as usize);
            }
        }
        if let Some(place) = self.groups.get_mut(&group) {
            *place = members;
        }
        for slot in slow {
            self.cut_slow(slot);
        }
    }

    fn send(&mut self, slot: usize, frame: &Frame, live: bool) {
        if !self.queue_frame(slot, frame, live) {
            self.cut_slow(slot);
        }
    }

    /// Queues a frame in the link's own encoding; false if its bound is reached.
    fn queue_frame(&mut self, slot: usize, frame: &Frame, live: bool) -> bool {
        let Some(link) = self.slots[slot].as_deref() else { return true };
        if live && link.queue.live() + frame.len() > self.limits.queue_bytes.max(frame.len()) {
            return false;
        }
        let fits = |encoding| frame.encoding() == encoding;
        let bytes = match link.outgoing {
            Outgoing::WebSocket { closed: true, .. }
            | Outgoing::Ending { .. }
            | Outgoing::Raw { finished: true } => {
                return true;
            }
            // A handle sends only once it was opened; this is an answered request.
            Outgoing::Answers => return true,
            Outgoing::Chunks { framed: true, .. } if fits(Encoding::Chunk) => Bytes::Frame(frame.clone()),
            Outgoing::Chunks { framed: true, .. } => Bytes::Frame(Frame::chunk(frame.payload())),
            Outgoing::Chunks { framed: false, .. } | Outgoing::Raw { .. } => Bytes::Payload(frame.clone()),
            Outgoing::WebSocket { role: Role::Server, .. }
                if fits(Encoding::Text) || fits(Encoding::Binary) =>
            {
                Bytes::Frame(frame.clone())
            }
            Outgoing::WebSocket { role: Role::Server, .. } => Bytes::Frame(Frame::binary(frame.payload())),
            Outgoing::WebSocket { role: Role::Client, .. } => {
                let mask = Some(self.mask());
                let outgoing = match frame.encoding() {
                    Encoding::Text => WsFrame::Text(frame.payload()),
                    _ => WsFrame::Binary(frame.payload()),
                };
                let mut bytes = Vec::with_capacity(frame.len() + 4);
                websocket::write_frame(&mut bytes, outgoing, mask);
                Bytes::Own(bytes)
            }
        };
        self.port.counts.deliveries.add(1);
        self.push(slot, bytes, live);
        true
    }

    fn push(&mut self, slot: usize, bytes: Bytes, live: bool) {
        let now = self.now;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if link.queue.is_empty() {
            link.last_out = now;
        }
        link.queue.push(bytes, live);
        self.touch(slot);
    }

    /// Puts the link among those to be written.
    fn touch(&mut self, slot: usize) {
        if let Some(link) = self.slots[slot].as_deref_mut()
            && !std::mem::replace(&mut link.dirty, true)
        {
            let id = link.id;
            self.dirty.push(id);
        }
    }

    fn mark(&mut self, slot: usize, mark: u64) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if link.queue.is_empty() {
            self.emit(slot, Happened::Passed(mark));
        } else {
            link.marks.push((mark, link.queue.pushed()));
        }
    }

    fn finish(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        match link.outgoing {
            Outgoing::Chunks { framed, .. } => {
                let unread = !matches!(link.incoming, Incoming::Next);
                let again = framed && link.request.keep_alive && !unread && !link.eof;
                if framed {
                    self.push(slot, Bytes::Static(b"0\r\n\r\n"), false);
                }
                self.dismiss(slot, close::NORMAL, "it was finished".into(), false);
                if again {
                    // The next request gets handles of its own; those of this answer stay cut.
                    if let Some(link) = self.slots[slot].as_deref_mut() {
                        link.cut = Arc::default();
                    }
                    self.next_request(slot);
                } else {
                    self.end(slot, true);
                }
            }
            Outgoing::Raw { finished: false } if link.eof => {
                self.dismiss(slot, close::AWAY, "both ends finished".into(), true);
                self.end(slot, false);
            }
            Outgoing::Raw { finished: false } => {
                link.outgoing = Outgoing::Raw { finished: true };
                self.touch(slot);
            }
            Outgoing::WebSocket { .. } => self.close(slot, close::NORMAL, "".into()),
            _ => {}
        }
    }

    fn close(&mut self, slot: usize, code: u16, reason: Cow<'static, str>) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if code == close::ABNORMAL {
            self.drop_link(slot, code, reason, false);
            return;
        }
        match link.outgoing {
            // The peer answers with a close of its own, or time runs out.
            Outgoing::WebSocket { .. } => self.close_websocket(slot, code, reason, false),
            Outgoing::Chunks { framed, .. } => {
                if framed {
                    self.push(slot, Bytes::Static(b"0\r\n\r\n"), false);
                }
                self.dismiss(slot, code, reason, false);
                self.end(slot, true);
            }
            Outgoing::Answers | Outgoing::Raw { .. } => {
                self.dismiss(slot, code, reason, false);
                self.end(slot, true);
            }
            Outgoing::Ending { .. } => {}
        }
        self.set_alarm(slot);
    }

    fn cut_slow(&mut self, slot: usize) {
        self.count().cut_slow.add(1);
        self.cut(slot, "the reader did not keep up: come back with a cursor");
    }

    /// Ends a link that cannot be served: what has not begun to leave is dropped, so that the reason has a
    /// chance to arrive.
    fn cut(&mut self, slot: usize, reason: &'static str) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.queue.drop_unbegun();
        link.marks.clear();
        self.close(slot, close::TRY_AGAIN, reason.into());
        self.end(slot, true);
    }

    // ---- the server goes

    fn drain(&mut self, drain: Drain) {
        self.draining = true;
        for slot in 0..self.slots.len() {
            self.draw_drain(slot, drain.window, drain.draw);
        }
    }

    fn draw_drain(&mut self, slot: usize, window: Duration, draw: u64) {
        let now = self.now;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        match (&link.incoming, link.outgoing) {
            (Incoming::Head(_), Outgoing::Answers) => {
                self.drop_link(slot, close::RESTART, "the server restarts", false)
            }
            (_, Outgoing::Answers | Outgoing::Ending { .. }) => link.request.keep_alive = false,
            _ => {
                let share = spread(draw, slot as u64);
                let wait = window.mul_f64(share);
                link.drain_at = now + wait;
                self.set_alarm(slot);
            }
        }
    }

    /// Closes a live link because the server goes.
    fn send_away(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.drain_at = Moment::NEVER;
        if let Outgoing::Chunks { events: true, .. } = link.outgoing {
            // Not all at the same moment again: each client waits a while of its own.
            let wait = 500 + (spread(self.now.0, slot as u64) * 2_500.0) as u64;
            self.queue_frame(slot, &Frame::chunk(&sse::retry(Duration::from_millis(wait))), false);
        }
        self.close(slot, close::RESTART, "the server restarts".into());
    }

    // ---- bytes leave

    /// Whether a connection is left with something to write.
    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// A connection with something to write, or to end.
    pub(crate) fn next_dirty(&mut self) -> Option<usize> {
        while let Some(id) = self.dirty.pop() {
            if let Some(slot) = self.slot_of(id)
                && let Some(link) = self.slots[slot].as_deref_mut()
            {
                link.dirty = false;
                return Some(slot);
            }
        }
        None
    }

    /// Puts a connection among those to be written: it can take bytes again.
    pub(crate) fn writable(&mut self, slot: usize) {
        self.touch(slot);
    }

    /// What to write next on this connection: how many slices, none if its queue is empty.
    pub(crate) fn gather<'a>(&'a self, slot: usize, slices: &mut [IoSlice<'a>; GATHER_MAX]) -> usize {
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

    // ---- time

    fn set_alarm(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        let due = link.due(&self.limits);
        // An alarm that is later than the one that is set is found when that one rings: most activity
        // only pushes the moment back, and costs nothing here.
        if due < link.rings_at {
            link.rings_at = due;
            self.alarms.push(Reverse((due, link.id)));
        }
    }

    /// When the next alarm rings.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let alarm = self.alarms.peek().map(|Reverse((at, _))| *at);
        let stuck = self.outboxes.is_stuck().then(|| self.now + STUCK_WAIT);
        Moment::earliest(alarm, stuck)
    }

    /// Looks at every link whose alarm is due.
    pub(crate) fn ring(&mut self) {
        while let Some(&Reverse((at, id))) = self.alarms.peek() {
            if at > self.now {
                return;
            }
            self.alarms.pop();
            let Some(slot) = self.slot_of(id) else { continue };
            let Some(link) = self.slots[slot].as_deref_mut() else { continue };
            if link.rings_at != at {
                continue;
            }
            link.rings_at = Moment::NEVER;
            if link.due(&self.limits) <= self.now {
                self.look_at(slot);
            }
            let still_due =
                self.slots[slot].as_deref().is_some_and(|link| link.due(&self.limits) <= self.now);
            debug_assert!(!still_due, "looking at a link settles what was due");
            self.set_alarm(slot);
        }
    }

    /// Something about this link is due.
    fn look_at(&mut self, slot: usize) {
        let now = self.now;
        let limits = self.limits;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if let Outgoing::Ending { .. } = link.outgoing {
            self.drop_link(slot, close::NORMAL, "", false);
            return;
        }
        if link.drain_at <= now {
            self.send_away(slot);
            return;
        }
        if !link.queue.is_empty() && link.last_out + limits.write_wait <= now {
            self.cut_slow(slot);
            return;
        }
        match (&link.incoming, link.outgoing) {
            (Incoming::Head(_), _) if link.held.is_empty() => {
                self.drop_link(slot, close::NORMAL, "no request came", false);
            }
            (Incoming::Head(_), _) => self.refuse(slot, SLOW_HEAD),
            (Incoming::Whole(_), _) => self.refuse(slot, SLOW_BODY),
            (_, Outgoing::Chunks { events: true, .. }) => {
                self.queue_frame(slot, &Frame::chunk(sse::HEARTBEAT), true);
            }
            (_, Outgoing::WebSocket { closed: true, .. }) => self.end(slot, false),
            (_, Outgoing::WebSocket { .. }) if link.last_in + limits.heartbeat * 3 <= now => {
                self.close_websocket(slot, close::ABNORMAL, "the peer gave no sign of life".into(), true);
                self.end(slot, false);
            }
            (_, Outgoing::WebSocket { .. }) => {
                link.pinged = now;
                self.push_ws(slot, WsFrame::Ping(b""));
            }
            _ => {}
        }
    }

    // ---- the end of a round

    /// Offers every batch of events to its room.
    pub(crate) fn settle(&mut self) {
        let delivered = self.outboxes.deliver();
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

const SLOW_HEAD: Refusal =
    Refusal { status: 408, code: "slow_request", detail: "the request head did not arrive in time" };
const SLOW_BODY: Refusal =
    Refusal { status: 408, code: "slow_request", detail: "the request body did not arrive in time" };

/// A share between 0 and 1 for one of many: splitmix64 of the draw and the number.
fn spread(draw: u64, number: u64) -> f64 {
    let mut x = draw ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
