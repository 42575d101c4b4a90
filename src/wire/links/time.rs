//! What happens because time passes, or because the server goes.

use super::one::{Incoming, Outgoing};
use super::{Links, STUCK_WAIT};
use crate::codec::sse;
use crate::state::time::{Moment, Wall};
use crate::wire::Drain;
use crate::wire::frame::Frame;
use crate::wire::http::Refusal;
use crate::wire::link::Happened;
use crate::wire::pass::Pass;
use crate::wire::websocket::{Outgoing as WsFrame, close};
use std::cmp::Reverse;
use std::time::Duration;

const SLOW_HEAD: Refusal =
    Refusal { status: 408, code: "slow_request", detail: "the request head did not arrive in time" };
const SLOW_BODY: Refusal =
    Refusal { status: 408, code: "slow_request", detail: "the request body did not arrive in time" };

/// The last event of a reader whose credentials ended and whose owner had no words for it.
const EXPIRED: &[u8] = b"event: closed\ndata: {\"reason\":\"auth\"}\n\n";

impl Links {
    pub(super) fn set_alarm(&mut self, slot: usize) {
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
    pub(super) fn look_at(&mut self, slot: usize) {
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
        if link.slow_until <= now {
            link.slow_until = Moment::NEVER;
            self.resume(slot);
        }
        if self.expire(slot) {
            return;
        }
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if link.due(&limits) > now {
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
                self.queue_frame(slot, &Frame::chunk(sse::HEARTBEAT).into(), true, Links::touch_in_turn);
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

    /// The moment, on the clock of the alarms, at which credentials end. Counted from now, so that a wall
    /// clock that jumps afterwards ends nothing early.
    pub(super) fn moment_of(&self, end: Option<Wall>) -> Moment {
        end.map_or(Moment::NEVER, |end| self.now + end.since(self.wall))
    }

    /// A link is good until then, and as long as this pass is: it was opened with these credentials, or they
    /// were shown for it.
    pub(super) fn bind(&mut self, slot: usize, end: Option<Wall>, pass: Option<Pass>) {
        let until = self.moment_of(end);
        if let Some(link) = self.slots[slot].as_deref_mut() {
            (link.good_until, link.expired, link.pass) = (until, false, pass);
            self.set_alarm(slot);
            // The pass may have ended since it was shown.
            self.recheck(slot);
        }
    }

    /// Ends a link's credentials if its pass has ended.
    pub(super) fn recheck(&mut self, slot: usize) {
        let now = self.now;
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        if link.pass.take_if(|pass| !pass.is_good()).is_some() {
            link.good_until = now;
            self.set_alarm(slot);
        }
    }

    /// If the credentials of a live link have ended, its owner may say so, and has a second for it; then the
    /// link is closed, which is answered with true.
    fn expire(&mut self, slot: usize) -> bool {
        let (now, wait) = (self.now, self.limits.close_wait);
        let Some(link) = self.slots[slot].as_deref_mut() else { return false };
        if link.good_until > now {
            return false;
        }
        if !std::mem::replace(&mut link.expired, true) {
            link.good_until = now + wait;
            self.emit(slot, Happened::Expired);
            return false;
        }
        link.good_until = Moment::NEVER;
        if let Outgoing::Chunks { events: true, .. } = link.outgoing {
            self.queue_frame(slot, &Frame::chunk(EXPIRED).into(), false, Links::touch);
        }
        self.close(slot, close::EXPIRED, "auth".into());
        true
    }

    pub(super) fn drain(&mut self, drain: Drain) {
        self.draining = true;
        for slot in 0..self.slots.len() {
            self.draw_drain(slot, drain.window, drain.draw);
        }
    }

    pub(super) fn draw_drain(&mut self, slot: usize, window: Duration, draw: u64) {
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
    pub(super) fn send_away(&mut self, slot: usize) {
        let Some(link) = self.slots[slot].as_deref_mut() else { return };
        (link.drain_at, link.good_until) = (Moment::NEVER, Moment::NEVER);
        if let Outgoing::Chunks { events: true, .. } = link.outgoing {
            // Not all at the same moment again: each client waits a while of its own.
            let wait = 500 + (spread(self.now.0, slot as u64) * 2_500.0) as u64;
            let retry = Frame::chunk(&sse::retry(Duration::from_millis(wait)));
            self.queue_frame(slot, &retry.into(), false, Links::touch);
        }
        self.close(slot, close::RESTART, "the server restarts".into());
    }
}

/// A share between 0 and 1 for one of many: splitmix64 of the draw and the number.
fn spread(draw: u64, number: u64) -> f64 {
    let mut x = draw ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}
