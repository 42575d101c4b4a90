//! What rooms and handlers ask for.

use super::Links;
use super::one::{Incoming, Outgoing, Turn};
use super::queue::{Bytes, GATHER_BYTES};
use crate::wire::frame::{Encoding, Frame};
use crate::wire::link::{Closing, GroupId, Happened, LinkId, Owner};
use crate::wire::order::{Errand, Line, Order};
use crate::wire::websocket::{self, Outgoing as WsFrame, Role, close};
use std::borrow::Cow;
use std::sync::Arc;

impl Links {
    /// Carries out what rooms and handlers asked for. What the driver must do itself is given back.
    pub(crate) fn take_orders(&mut self, errands: &mut Vec<Errand>) {
        let mut orders = std::mem::take(&mut self.taken);
        let overflow = self.orders.take(&mut orders);
        let mut each = orders.drain(..).peekable();
        while let Some(order) = each.next() {
            match order {
                Order::Errand(errand) => errands.push(*errand),
                Order::Fanout { group, frame } => {
                    let mut frames = vec![Arc::new(frame)];
                    let follows =
                        |next: &Order| matches!(next, Order::Fanout { group: g, .. } if *g == group);
                    while let Some(Order::Fanout { frame, .. }) = each.next_if(follows) {
                        frames.push(Arc::new(frame));
                    }
                    self.fan_out(group, &frames);
                }
                order => self.carry_out(order),
            }
        }
        drop(each);
        self.taken = orders;
        for (id, violation) in std::mem::take(&mut self.breaking) {
            if let Some(slot) = self.slot_of(id) {
                self.close_websocket(slot, violation.code, violation.reason.into(), false);
                self.end(slot, true);
            }
        }
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

    pub(super) fn slot_of(&self, id: LinkId) -> Option<usize> {
        let link = self.slots.get(id.slot())?.as_deref()?;
        (link.id == id).then_some(id.slot())
    }

    /// Where the answer is that an order was meant for, if it has not ended.
    pub(super) fn on(&self, line: Line) -> Option<usize> {
        let slot = self.slot_of(line.link)?;
        let link = self.slots[slot].as_deref()?;
        (link.request.number == line.request).then_some(slot)
    }

    /// Where the request is that is still to be answered.
    pub(super) fn awaiting(&self, line: Line) -> Option<usize> {
        let slot = self.on(line)?;
        self.slots[slot].as_deref()?.request.waiting.then_some(slot)
    }

    pub(super) fn carry_out(&mut self, order: Order) {
        match order {
            Order::Fanout { group, frame } => self.fan_out(group, &[Arc::new(frame)]),
            Order::Drain(drain) => self.drain(drain),
            Order::Open { line, opening, owner, terms } => match (self.awaiting(line), owner) {
                (Some(slot), owner) => self.open(slot, *opening, owner, terms),
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
                self.with(line, |links, slot| links.send(slot, frame, !paced))
            }
            Order::Join { line, group } => self.with(line, |links, slot| links.join(slot, group)),
            Order::Leave { line, group } => self.with(line, |links, slot| links.leave(slot, group)),
            Order::Mark { line, mark } => self.with(line, |links, slot| links.mark(slot, mark)),
            Order::Pause { line, paused } => self.with(line, |links, slot| links.pause(slot, paused)),
            Order::Prolong { line, good_until, pass } => {
                self.with(line, |links, slot| links.bind(slot, good_until, pass))
            }
            Order::Recheck => (0..self.slots.len()).for_each(|slot| self.recheck(slot)),
            Order::Finish { line } => self.with(line, Links::finish),
            Order::Close { line, code, reason } => {
                self.with(line, |links, slot| links.close(slot, code, reason))
            }
            // Given to the driver before this is called.
            Order::Errand(_) => {}
        }
    }

    /// An order for an answer that has ended is nobody's.
    pub(super) fn with(&mut self, line: Line, f: impl FnOnce(&mut Links, usize)) {
        if let Some(slot) = self.on(line) {
            f(self, slot);
        }
    }

    /// The peer left before its request was answered: whoever opened a link has to know.
    pub(super) fn too_late(&mut self, link: LinkId, owner: &Owner) {
        let reason = "the peer left before it was answered".into();
        let closing = Closing { code: close::ABNORMAL, reason, by_peer: true };
        self.outboxes.push(owner, link, Happened::Closed(closing));
    }

    pub(super) fn pause(&mut self, slot: usize, paused: bool) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.paused = paused;
        if !paused {
            self.resume(slot);
        }
    }

    pub(super) fn stream_body(&mut self, slot: usize, owner: Owner) {
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

    pub(super) fn join(&mut self, slot: usize, group: GroupId) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        // One that was closed towards its owner is in no group: nothing would take it out again.
        if link.owner.is_none() || link.groups.iter().any(|(own, _)| *own == group) {
            return;
        }
        let members = self.groups.entry(group).or_default();
        // Most are in one group, and idle links are many: room for one, not for four.
        link.groups.reserve_exact(usize::from(link.groups.is_empty()));
        link.groups.push((group, members.len() as u32));
        members.push(slot as u32);
    }

    pub(super) fn leave(&mut self, slot: usize, group: GroupId) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if let Some(place) = link.groups.iter().position(|(own, _)| *own == group) {
            let (_, at) = link.groups.swap_remove(place);
            self.take_out(group, at);
        }
    }

    /// A frame for this group was lost on the way here: its members go, and their owners hear of it.
    pub(super) fn reset_group(&mut self, group: GroupId) {
        for slot in self.groups.remove(&group).unwrap_or_default() {
            let slot = slot as usize;
            if let Some(link) = self.slots[slot].as_deref_mut() {
                link.groups.retain(|(own, _)| *own != group);
            }
            self.emit(slot, Happened::Reset(group));
        }
    }

    /// Queues frames with every member of a group. Several that came together are written as one piece: each
    /// link has it once, however many they are.
    pub(super) fn fan_out(&mut self, group: GroupId, frames: &[Arc<Frame>]) {
        let Some(members) = self.groups.get_mut(&group).map(std::mem::take) else { return };
        let mut slow = Vec::new();
        let bursts: Vec<_> =
            bursts(frames).map(|burst| (burst, (burst.len() > 1).then(|| joined(burst)))).collect();
        for &slot in &members {
            let mut each = bursts.iter();
            if !each.all(|(burst, joined)| self.queue_burst(slot as usize, burst, joined.as_ref())) {
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

    /// Queues frames, as one piece where the link takes them as they are and its bound is far enough away;
    /// false if it is reached.
    fn queue_burst(&mut self, slot: usize, burst: &[Arc<Frame>], joined: Option<&Arc<[u8]>>) -> bool {
        let Some(link) = self.slots[slot].as_deref() else { return true };
        let as_it_is = match link.outgoing {
            Outgoing::Chunks { framed, .. } => framed && burst[0].encoding() == Encoding::Chunk,
            Outgoing::WebSocket { role, closed, .. } => {
                let speaks = matches!(burst[0].encoding(), Encoding::Text | Encoding::Binary);
                role == Role::Server && !closed && speaks
            }
            Outgoing::Answers | Outgoing::Raw { .. } | Outgoing::Ending { .. } => false,
        };
        match joined {
            Some(all) if as_it_is && link.queue.live() + all.len() <= self.limits.queue_bytes => {
                self.port.counts.deliveries.add(burst.len() as u64);
                self.put(slot, Bytes::Shared(all.clone()), true);
                self.touch_in_turn(slot);
                true
            }
            _ => burst.iter().all(|frame| self.queue_frame(slot, frame, true, Links::touch_in_turn)),
        }
    }

    pub(super) fn send(&mut self, slot: usize, frame: Frame, live: bool) {
        if !self.queue_frame(slot, &Arc::new(frame), live, Links::touch) {
            self.cut_slow(slot);
        }
    }

    /// Queues a frame in the link's own encoding, and has the link written when `touch` says; false if its bound is
    /// reached.
    pub(super) fn queue_frame(
        &mut self,
        slot: usize,
        frame: &Arc<Frame>,
        live: bool,
        touch: fn(&mut Links, usize),
    ) -> bool {
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
            Outgoing::Chunks { framed: true, .. } => Bytes::Frame(Frame::chunk(frame.payload()).into()),
            Outgoing::Chunks { framed: false, .. } | Outgoing::Raw { .. } => Bytes::Payload(frame.clone()),
            Outgoing::WebSocket { role: Role::Server, .. }
                if fits(Encoding::Text) || fits(Encoding::Binary) =>
            {
                Bytes::Frame(frame.clone())
            }
            Outgoing::WebSocket { role: Role::Server, .. } => {
                Bytes::Frame(Frame::binary(frame.payload()).into())
            }
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
        self.put(slot, bytes, live);
        touch(self, slot);
        true
    }

    pub(super) fn push(&mut self, slot: usize, bytes: Bytes, live: bool) {
        self.put(slot, bytes, live);
        self.touch(slot);
    }

    /// Queues bytes. Whoever calls has the link written.
    fn put(&mut self, slot: usize, bytes: Bytes, live: bool) {
        let now = self.now;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if link.queue.is_empty() {
            link.last_out = now;
        }
        link.queue.push(bytes, live);
    }

    /// Puts the link among those to be written before what many are told, though it may wait among those already.
    pub(super) fn touch(&mut self, slot: usize) {
        if let Some(link) = self.slots[slot].as_deref_mut()
            && std::mem::replace(&mut link.turn, Turn::Own) != Turn::Own
        {
            self.own.push_back(link.id);
        }
    }

    /// Puts the link behind all others that are to be written.
    pub(super) fn touch_in_turn(&mut self, slot: usize) {
        if let Some(link) = self.slots[slot].as_deref_mut()
            && link.turn == Turn::None
        {
            link.turn = Turn::OfMany;
            self.of_many.push_back(link.id);
        }
    }

    pub(super) fn mark(&mut self, slot: usize, mark: u64) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if link.queue.is_empty() {
            self.emit(slot, Happened::Passed(mark));
        } else {
            link.marks.push((mark, link.queue.pushed()));
        }
    }

    pub(super) fn finish(&mut self, slot: usize) {
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

    pub(super) fn close(&mut self, slot: usize, code: u16, reason: Cow<'static, str>) {
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

    pub(super) fn cut_slow(&mut self, slot: usize) {
        self.count().cut_slow.add(1);
        let code = match self.slots[slot].as_deref().map(|link| &link.outgoing) {
            Some(Outgoing::WebSocket { slow, .. }) => *slow,
            _ => close::TRY_AGAIN,
        };
        self.cut_with(slot, code, "the reader did not keep up: come back with a cursor");
    }

    /// Ends a link that cannot be served: what has not begun to leave is dropped, so that the reason has a
    /// chance to arrive.
    pub(super) fn cut(&mut self, slot: usize, reason: &'static str) {
        self.cut_with(slot, close::TRY_AGAIN, reason);
    }

    fn cut_with(&mut self, slot: usize, code: u16, reason: &'static str) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.queue.drop_unbegun();
        link.marks.clear();
        self.close(slot, code, reason.into());
        self.end(slot, true);
    }
}

/// Frames in order, so many of one encoding at a time as one write takes.
fn bursts(frames: &[Arc<Frame>]) -> impl Iterator<Item = &[Arc<Frame>]> {
    let mut bytes = 0;
    frames.chunk_by(move |one, next| {
        bytes += one.len();
        let goes_on = one.encoding() == next.encoding() && bytes + next.len() <= GATHER_BYTES;
        if !goes_on {
            bytes = 0;
        }
        goes_on
    })
}

/// Frames one behind the other.
fn joined(burst: &[Arc<Frame>]) -> Arc<[u8]> {
    let mut bytes = Vec::with_capacity(burst.iter().map(|frame| frame.len()).sum());
    burst.iter().for_each(|frame| bytes.extend_from_slice(frame.bytes()));
    bytes.into()
}
