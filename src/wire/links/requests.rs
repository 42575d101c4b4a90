//! Requests begin, are answered, and become links that stay.

use super::one::{InFlight, Incoming, Outgoing, Streamed, Whole};
use super::queue::Bytes;
use super::{Effect, Handing, INLINE_MAX, Links};
use crate::state::time::Moment;
use crate::wire::exchange::{Exchange, HandOver, Opening, Plan, Terms};
use crate::wire::http::{
    BodyReader, Framed, Head, HeadReader, Method, Refusal, Response, ResponseForm, Version,
};
use crate::wire::limits::Pace;
use crate::wire::link::{LinkHandle, Owner};
use crate::wire::order::Line;
use crate::wire::websocket::{self, Role, close};
use std::time::Duration;

impl Links {
    pub(super) fn begin_request(&mut self, slot: usize, head: Head) {
        self.port.counts.requests.add(1);
        let draining = self.draining;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.request = InFlight {
            number: link.request.number.wrapping_add(1),
            waiting: true,
            head_only: head.method == Method::Head,
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

    pub(super) fn say_continue(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if std::mem::take(&mut link.request.expects_continue) {
            self.push(slot, Bytes::Static(b"HTTP/1.1 100 Continue\r\n\r\n"), false);
        }
    }

    pub(super) fn body_arrived(&mut self, slot: usize) {
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
    pub(super) fn refuse(&mut self, slot: usize, refusal: Refusal) {
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
    pub(super) fn write_answer(&mut self, slot: usize, response: Response) {
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

    pub(super) fn next_request(&mut self, slot: usize) {
        let now = self.now;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.incoming = Incoming::Head(HeadReader::default());
        link.outgoing = Outgoing::Answers;
        // What is still on its way to the last answer meets nobody.
        link.request.number = link.request.number.wrapping_add(1);
        link.since = now;
        (link.good_until, link.expired, link.pass, link.kept) = (Moment::NEVER, false, None, None);
        self.go_on(slot);
        self.resume(slot);
        self.set_alarm(slot);
    }

    /// The driver may have left bytes unread while this link wanted none.
    pub(super) fn resume(&mut self, slot: usize) {
        self.effects.push(Effect::Resume(slot));
    }

    pub(super) fn open(&mut self, slot: usize, opening: Opening, owner: Option<Owner>, terms: Terms) {
        let (now, wall) = (self.now, self.wall);
        let good_until = self.moment_of(terms.good_until);
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        link.request.waiting = false;
        link.since = now;
        (link.good_until, link.expired, link.pass, link.kept) = (good_until, false, terms.pass, terms.kept);
        if owner.is_some() {
            link.owner = owner;
        }
        let framed = !link.request.http10;
        let (response, body, outgoing) = match opening {
            Opening::HandOver { response, to } => return self.hand_over(slot, response, to),
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
            Opening::WebSocket { response, message_max, slow } => {
                link.pace = Pace::of(&self.limits).map(Box::new);
                link.incoming =
                    Incoming::WebSocket(Box::new(websocket::Reader::new(Role::Server, message_max)));
                (
                    response,
                    Framed::UntilClose,
                    Outgoing::WebSocket { role: Role::Server, closed: false, slow },
                )
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
        // Its pass may have ended while the answer was on its way.
        self.recheck(slot);
    }

    /// The connection goes to somebody else, with what is to be answered and what the peer has sent.
    fn hand_over(&mut self, slot: usize, response: Response, to: HandOver) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if !link.queue.is_empty() {
            // Answers to earlier requests are still on their way, and would be lost with the link.
            let busy = Response::problem(503, "full", "wait for the answers before an upgrade: try again");
            return self.write_answer(slot, busy);
        }
        let mut head = Vec::with_capacity(256);
        let (body, head_only) = (Framed::UntilClose, false);
        response.write(&mut head, ResponseForm { wall: self.wall, body, close: false, head_only });
        let handing = Handing { to, head, early: std::mem::take(&mut link.held), peer: link.peer };
        self.dismiss(slot, close::NORMAL, "the connection was handed over".into(), false);
        if self.slots[slot].take().is_some() {
            self.freed.push(slot);
            self.count().links.sub(1);
            self.handing.push((slot, handing));
            self.effects.push(Effect::HandOver(slot));
        }
    }

    /// What goes with an [`Effect::HandOver`].
    pub(crate) fn take_handing(&mut self, slot: usize) -> Option<Handing> {
        let at = self.handing.iter().position(|(handed, _)| *handed == slot)?;
        Some(self.handing.swap_remove(at).1)
    }
}
