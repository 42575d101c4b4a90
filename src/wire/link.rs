//! What a room holds of a connection, and what it hears of it.
//!
//! *Sending.* A [`LinkHandle`] puts orders into the inbox of the link's I/O thread, first in first out,
//! and never waits: `send` three catch-up frames, `mark(1)`, `join` a group, and the peer sees exactly
//! that order. A [`Group`] belongs to one room; [`Group::fanout`] costs one order per I/O thread, however
//! many members it has.
//!
//! *Hearing.* Each link has one [`Owner`]: an [`Outlet`] (a room's inbox) and a tag the room picked. Events
//! of one poll round come as one [`LinkBatch`]. While the room's inbox is full the I/O thread keeps the
//! batch, stops reading the links in it, and tries again each round: backpressure reaches the peer, and
//! `Closed` never overtakes bytes because both stand in the same batch.
//!
//! *Credit.* Frames sent with [`LinkHandle::send`] count against the link's bound (1 MiB): a peer that
//! does not read is cut. Catch-up frames, sent with [`LinkHandle::send_paced`], do not: send a batch, then
//! [`LinkHandle::mark`], and send the next one when [`Happened::Passed`] says the first has left.
//!
//! ```
//! use towpath::rt::Rt;
//! use towpath::wire::{Doors, Frame, Happened, LinkBatch, LinkHandle, Outlet};
//!
//! enum Message {
//!     Links(LinkBatch),
//!     Follow(LinkHandle),
//! }
//!
//! let rt = Rt::real();
//! let (tx, rx) = rt.channel::<Message>("streams-0", 64);
//! // How link events become messages of this room; what does not fit now comes back.
//! let outlet = Outlet::new(move |batch| match tx.try_send(Message::Links(batch)) {
//!     Ok(()) => Ok(()),
//!     Err(refused) => match refused.into_inner() {
//!         Message::Links(batch) => Err(batch),
//!         Message::Follow(_) => Ok(()),
//!     },
//! });
//!
//! fn wake(doors: &Doors, inbox: Vec<Message>) {
//!     let mut group = doors.group();
//!     for message in inbox {
//!         match message {
//!             Message::Follow(link) => {
//!                 link.send_paced(Frame::text("history"));
//!                 group.join(&link);
//!                 group.fanout(Frame::text("news for all"));
//!             }
//!             Message::Links(batch) => {
//!                 for event in batch {
//!                     match event.what {
//!                         Happened::Closed(_) => group.forget(event.link),
//!                         Happened::Text(text) => println!("{}: {text}", event.tag),
//!                         _ => {}
//!                     }
//!                 }
//!             }
//!         }
//!     }
//! }
//! # let _ = (outlet, rx, wake as fn(&Doors, Vec<Message>));
//! ```

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::frame::Frame;
use super::http::ResponseHead;
use super::limits::Counts;
use super::order::{Errand, Line, Order, Port};
use super::pass::Pass;
use crate::rt;
use crate::state::time::Wall;

/// One connection, for as long as the process lives: which I/O thread, which place there, and a
/// generation, so that an order for a link that is gone meets nobody.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(u64);

impl LinkId {
    /// What stands where a dial failed and there is no link.
    pub const NONE: LinkId = LinkId(u64::MAX);

    /// At most 2^24 links on each of at most 256 I/O threads.
    pub(crate) fn new(thread: u8, slot: u32, generation: u32) -> LinkId {
        LinkId(u64::from(generation) << 32 | u64::from(thread) << 24 | u64::from(slot & 0x00ff_ffff))
    }

    pub(crate) fn thread(self) -> usize {
        (self.0 >> 24) as usize & 0xff
    }

    pub(crate) fn slot(self) -> usize {
        self.0 as usize & 0x00ff_ffff
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {}.{}.{}", self.thread(), self.slot(), self.0 >> 32)
    }
}

/// A set of links that one room sends the same frames to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub(crate) u64);

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The address, `None` on a Unix-domain socket.
    pub ip: Option<IpAddr>,
    /// The port, 0 on a Unix-domain socket.
    pub port: u16,
    /// Whether the link is encrypted.
    pub tls: bool,
    /// Which listener it came through; [`Peer::DIALED`] if it did not.
    pub listener: u8,
}

impl Peer {
    /// The `listener` of links that were dialed.
    pub const DIALED: u8 = u8::MAX;

    /// Whether the other end is on this machine.
    pub fn is_local(&self) -> bool {
        self.ip.is_none_or(|ip| ip.to_canonical().is_loopback())
    }
}

/// Events of several links, in the order they happened on each.
pub type LinkBatch = Vec<LinkEvent>;

/// Something that happened on a link.
#[derive(Debug)]
pub struct LinkEvent {
    /// Which link.
    pub link: LinkId,
    /// The tag its owner gave (a dial number, a follower's index: what the room likes).
    pub tag: u64,
    /// What happened.
    pub what: Happened,
}

/// What happened on a link. Nothing follows [`Happened::Closed`] or [`Happened::Refused`].
#[derive(Debug)]
pub enum Happened {
    /// A dial succeeded; here is the link, and the answer its peer gave if it spoke HTTP.
    Opened(LinkHandle, Option<Box<ResponseHead>>),
    /// A dial failed; the tag says which.
    Refused(super::Refused),
    /// A whole text message (WebSocket).
    Text(String),
    /// A whole binary message (WebSocket).
    Binary(Vec<u8>),
    /// A piece of a stream: of a streamed request body, of a raw link.
    Bytes(Vec<u8>),
    /// The stream of [`Happened::Bytes`] ended as it should: the body is whole, the peer sent EOF.
    Ended,
    /// Everything sent before [`LinkHandle::mark`] with this number has left.
    Passed(u64),
    /// The link is no longer a member of this group, because a frame for the group was lost on the way:
    /// bring it up to date by its cursor and join it again.
    Reset(GroupId),
    /// The credentials of who opened the link have ended. Whoever says nothing more to the peer, or does not
    /// give it more time ([`LinkHandle::good_until`]), finds it closed with `auth` a second later.
    Expired,
    /// The link is gone.
    Closed(Closing),
}

/// Why a link is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The code, as in [`super::websocket::close`]: `AWAY` for a plain end, `ABNORMAL` for a broken link,
    /// `TRY_AGAIN` for a peer that was cut because it did not keep up.
    pub code: u16,
    /// A few words.
    pub reason: Cow<'static, str>,
    /// Whether the peer ended it.
    pub by_peer: bool,
}

/// How a room hears of its links. Cheap to clone; clones are the same outlet and share batches.
#[derive(Clone)]
pub struct Outlet {
    deliver: Arc<dyn Fn(LinkBatch) -> Result<(), LinkBatch> + Send + Sync>,
}

impl Outlet {
    /// An outlet that hands batches over by calling `deliver`, on an I/O thread: it must not block. What
    /// cannot be taken now comes back as `Err` and is offered again.
    pub fn new(deliver: impl Fn(LinkBatch) -> Result<(), LinkBatch> + Send + Sync + 'static) -> Outlet {
        Outlet { deliver: Arc::new(deliver) }
    }

    /// An outlet into a channel of batches, for a thread that wants nothing else. When the receiver is
    /// gone, events are dropped: nobody is left to hear them.
    pub fn channel(batches: rt::Sender<LinkBatch>) -> Outlet {
        Outlet::new(move |batch| match batches.try_send(batch) {
            Ok(()) | Err(rt::TrySendError::Disconnected(_)) => Ok(()),
            Err(rt::TrySendError::Full(batch)) => Err(batch),
        })
    }

    pub(crate) fn deliver(&self, batch: LinkBatch) -> Result<(), LinkBatch> {
        (self.deliver)(batch)
    }

    /// Whether two outlets are clones of one.
    pub(crate) fn is(&self, other: &Outlet) -> bool {
        Arc::ptr_eq(&self.deliver, &other.deliver)
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outlet")
    }
}

/// Who hears of a link, and under which tag.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Where events go.
    pub outlet: Outlet,
    /// What they are tagged with.
    pub tag: u64,
}

impl Owner {
    /// An owner.
    pub fn new(outlet: &Outlet, tag: u64) -> Owner {
        Owner { outlet: outlet.clone(), tag }
    }
}

/// A way to one link. Cheap to clone. Dropping it does nothing to the link.
///
/// Every method returns at once. If the I/O thread's inbox is full, the link is cut instead (with
/// `TRY_AGAIN`), and its owner hears [`Happened::Closed`]; whatever is sent to it afterwards is dropped,
/// so that a peer never sees a gap.
#[derive(Clone)]
pub struct LinkHandle {
    line: Line,
    port: Arc<Port>,
    cut: Arc<AtomicBool>,
}

impl LinkHandle {
    pub(crate) fn new(line: Line, port: &Arc<Port>, cut: &Arc<AtomicBool>) -> LinkHandle {
        LinkHandle { line, port: port.clone(), cut: cut.clone() }
    }

    pub(super) fn line(&self) -> Line {
        self.line
    }

    pub(super) fn port(&self) -> &Port {
        &self.port
    }

    /// Which link it is.
    pub fn id(&self) -> LinkId {
        self.line.link
    }

    /// Sends a frame that counts against the link's bound: a peer that lets more than that pile up is
    /// cut.
    pub fn send(&self, frame: Frame) {
        self.order(Order::Send { line: self.line, frame, paced: false });
    }

    /// Sends a frame that does not count against the bound. The caller paces itself by
    /// [`LinkHandle::mark`].
    pub fn send_paced(&self, frame: Frame) {
        self.order(Order::Send { line: self.line, frame, paced: true });
    }

    /// Asks for [`Happened::Passed`] with this number once everything sent so far has left.
    pub fn mark(&self, mark: u64) {
        self.order(Order::Mark { line: self.line, mark });
    }

    /// Stops reading from the peer, or goes on. What was already read still arrives.
    pub fn pause(&self, paused: bool) {
        self.order(Order::Pause { line: self.line, paused });
    }

    /// Ends what we send and leaves the rest open: the last chunk of a stream (after which the connection
    /// may carry another request), the end of the writing half of a raw link.
    pub fn finish(&self) {
        self.order(Order::Finish { line: self.line });
    }

    /// Closes the link once what was sent has left (within a second). A WebSocket sends the code
    /// and the reason; a chunked stream gets its last chunk, so the peer sees a whole answer. The code
    /// `ABNORMAL` breaks the link instead, at once: a peer sees an unfinished answer.
    pub fn close(&self, code: u16, reason: impl Into<Cow<'static, str>>) {
        self.order(Order::Close { line: self.line, code, reason: reason.into() });
    }

    /// Says when the credentials end that the link is held with, and whether they are taken back: other ones
    /// were shown. `None` is never.
    pub fn good_until(&self, end: Option<Wall>, pass: Option<Pass>) {
        self.order(Order::Prolong { line: self.line, good_until: end, pass });
    }

    fn order(&self, order: Order) {
        if self.cut.load(Ordering::Acquire) {
            return;
        }
        if self.port.push(order).is_err() {
            // An I/O thread that does not keep up cannot be waited for by a room. The link is cut; the
            // cursor of who follows over it makes up for what is dropped here.
            self.cut.store(true, Ordering::Release);
            self.port.spill(|overflow| overflow.links.push(self.line));
        }
    }
}

impl fmt::Debug for LinkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.line.link)
    }
}

/// All I/O threads together. Cheap to clone.
#[derive(Clone)]
pub struct Doors {
    ports: Arc<[Arc<Port>]>,
    groups: Arc<AtomicU64>,
}

impl Doors {
    pub(crate) fn new(ports: Vec<Arc<Port>>) -> Doors {
        Doors { ports: ports.into(), groups: Arc::new(AtomicU64::new(1)) }
    }

    /// A group without members, for the room that asks.
    pub fn group(&self) -> Group {
        let parts = self.ports.iter().map(|_| Part { id: self.next_group(), members: 0 }).collect();
        Group { doors: self.clone(), parts }
    }

    /// While this is held, an I/O thread that sleeps is not woken by what it is asked: it is when this is dropped, if
    /// it was asked anything, and finds all of it. For whoever has many things to say at once: a thread that is woken
    /// by the first would take the processor of who has the others, do that one thing and sleep again, and so for each
    /// of them.
    #[must_use = "dropping it wakes the I/O threads"]
    pub(crate) fn quietly(&self) -> Quietly<'_> {
        let asleep = self.ports.iter().map(|port| port.claims_wake()).collect();
        Quietly { doors: self, asleep }
    }

    fn next_group(&self) -> GroupId {
        GroupId(self.groups.fetch_add(1, Ordering::Relaxed))
    }

    /// What each I/O thread has counted.
    pub fn counts(&self) -> impl Iterator<Item = &Counts> {
        self.ports.iter().map(|port| &port.counts)
    }

    /// Closes every link because the server goes: idle connections at once, live ones at moments spread
    /// over the window, with `RESTART` and, for server-sent events, a `retry:` of their own. Requests in
    /// flight are answered; their connections close behind the answer. Nothing new is accepted.
    pub fn drain(&self, window: Duration, draw: u64) {
        self.tell_all(|| Order::Drain(super::Drain { window, draw }));
    }

    /// Ends the links whose [`Pass`] has ended, as if their credentials had.
    pub fn recheck(&self) {
        self.tell_all(|| Order::Recheck);
    }

    pub(crate) fn send_errand(&self, thread: usize, errand: Errand) {
        self.ports[thread % self.ports.len()].push_answer(Order::Errand(Box::new(errand)));
    }

    /// Tells every I/O thread the same.
    pub(crate) fn tell_all(&self, order: impl Fn() -> Order) {
        for port in self.ports.iter() {
            port.push_answer(order());
        }
    }

    /// Hands a dialed connection to an I/O thread, picked by its dial number.
    pub(crate) fn adopt(&self, adopted: super::Adopted) {
        self.send_errand(adopted.owner.tag as usize, Errand::Adopt(adopted));
    }
}

/// See [`Doors::quietly`].
pub(crate) struct Quietly<'a> {
    doors: &'a Doors,
    /// Which threads slept when it began.
    asleep: Vec<bool>,
}

impl Drop for Quietly<'_> {
    fn drop(&mut self) {
        for (port, _) in self.doors.ports.iter().zip(&self.asleep).filter(|(_, asleep)| **asleep) {
            port.wake_for_what_came();
        }
    }
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Doors({} threads)", self.ports.len())
    }
}

/// Links that get the same frames. It belongs to one room; membership is kept on the I/O threads.
///
/// When an I/O thread's inbox is full, the frame is lost for the members there: each of them leaves the
/// group and its owner hears [`Happened::Reset`]. The group itself goes on under a new number, so that
/// no member ever sees a frame behind a gap.
#[derive(Debug)]
pub struct Group {
    doors: Doors,
    /// One for each I/O thread.
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    id: GroupId,
    members: u32,
}

impl Group {
    /// Adds a link, behind everything that was sent to it before.
    pub fn join(&mut self, link: &LinkHandle) {
        let part = &mut self.parts[link.id().thread()];
        part.members += 1;
        link.order(Order::Join { line: link.line, group: part.id });
    }

    /// Takes a link out.
    pub fn leave(&mut self, link: &LinkHandle) {
        let part = &mut self.parts[link.id().thread()];
        part.members = part.members.saturating_sub(1);
        link.order(Order::Leave { line: link.line, group: part.id });
    }

    /// Says that a member is gone or was reset: call it for a [`Happened::Closed`] or
    /// [`Happened::Reset`] of a link that had joined.
    pub fn forget(&mut self, link: LinkId) {
        let part = &mut self.parts[link.thread()];
        part.members = part.members.saturating_sub(1);
    }

    /// Sends a frame to every member.
    pub fn fanout(&mut self, frame: Frame) {
        let doors = &self.doors;
        for (part, port) in self.parts.iter_mut().zip(doors.ports.iter()) {
            if part.members == 0 {
                continue;
            }
            if port.push(Order::Fanout { group: part.id, frame: frame.clone() }).is_err() {
                // Lost for everyone there: they are reset by their cursors, and nothing that is sent
                // from now on reaches them before that.
                let lost = std::mem::replace(&mut part.id, doors.next_group());
                port.spill(|overflow| overflow.groups.push(lost));
            }
        }
    }

    /// How many links have joined and were not taken out.
    pub fn members(&self) -> usize {
        self.parts.iter().map(|part| part.members as usize).sum()
    }

    /// Whether nobody would get a frame.
    pub fn is_empty(&self) -> bool {
        self.members() == 0
    }
}
