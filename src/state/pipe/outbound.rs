//! What one end sends: what the local side writes, and what goes on the carrier when.

use super::control::Control;
use super::liveness::Alarm;
use super::{DATA_MAX, Link, Outgoing, Phase, Pipe, Violation};
use crate::state::replay::{Pool, Replay, Slices};
use crate::state::time::Moment;

impl Pipe {
    /// Takes as many of `bytes` as there is room for. Takes none after [`finish`](Pipe::finish), or
    /// when the pipe is over.
    #[must_use = "what was not taken is still the caller's"]
    pub fn write(&mut self, bytes: &[u8], pool: &mut Pool) -> usize {
        if self.accepts() { self.replay.push(bytes, pool) } else { 0 }
    }

    /// Takes bytes out of the front of `from`, as many as there is room for; gives how many.
    #[must_use = "what was not taken is still there"]
    pub fn write_from(&mut self, from: &mut Replay, pool: &mut Pool) -> u64 {
        if self.accepts() { self.replay.pull(from, pool) } else { 0 }
    }

    /// Room for the next `max` bytes in place, or for fewer; nothing when there is none.
    pub fn spaces(&mut self, max: usize, pool: &mut Pool) -> impl Iterator<Item = &mut [u8]> {
        let max = if self.accepts() { max } else { 0 };
        self.replay.spaces(max, pool)
    }

    /// The first `count` bytes of [`spaces`](Pipe::spaces) are written now.
    pub fn commit(&mut self, count: usize, pool: &mut Pool) {
        self.replay.commit(count, pool);
    }

    /// How much [`write`](Pipe::write) would take.
    pub fn room(&self) -> u64 {
        if self.accepts() { self.replay.room() } else { 0 }
    }

    /// This direction ends after what was written so far. The other one goes on.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    pub(super) fn accepts(&self) -> bool {
        self.phase == Phase::Open && !self.finished
    }

    /// What to put on the carrier next; nothing when it is up to the others. Call it only when the
    /// frame before is on its way. DATA carries at most `max` bytes.
    pub fn next(&mut self, now: Moment, max: usize) -> Option<Outgoing> {
        let Link::Attached(carrier) = &mut self.link else { return None };
        if let Some(token) = carrier.pong_due.take() {
            let (recv, limit) = self.tell();
            return Some(Outgoing::Control(Control::Pong { token, recv, limit }));
        }
        if let Some(token) = carrier.ping_due.take() {
            carrier.asked = Some((token, now));
            return Some(Outgoing::Control(Control::Ping { token }));
        }
        match &self.phase {
            Phase::Open => self.next_open(now, max),
            Phase::Ending(end) if !carrier.reset_sent => {
                carrier.reset_sent = true;
                Some(Outgoing::Control(Control::Reset(end.clone())))
            }
            Phase::Ending(_) | Phase::Over(_) => None,
        }
    }

    fn next_open(&mut self, now: Moment, max: usize) -> Option<Outgoing> {
        let len = self.sendable().min(max.min(DATA_MAX) as u64);
        let news = self.told.recv != self.received();
        let Link::Attached(carrier) = &mut self.link else { return None };
        if let Some(notice) = carrier.go_away_due.take() {
            return Some(Outgoing::Control(Control::GoAway(notice)));
        }
        // An ACK rides ahead of bytes that go anyway.
        if carrier.ack_due || (news && len > 0) {
            carrier.ack_due = false;
            let (recv, limit) = self.tell();
            self.say_goodbye();
            return Some(Outgoing::Control(Control::Ack { recv, limit }));
        }
        if len > 0 {
            let off = self.sent;
            self.sent += len;
            self.high = self.high.max(self.sent);
            self.timers.set_by(Alarm::Probe, now + self.settings.liveness.busy);
            return Some(Outgoing::Data { off, len: len as usize });
        }
        if self.sent < self.replay.end() || !self.finished {
            return None;
        }
        if let Some(end) = &self.broken {
            let due = !std::mem::replace(&mut carrier.reset_sent, true);
            return due.then(|| Outgoing::Control(Control::Reset(end.clone())));
        }
        if !carrier.fin_sent {
            carrier.fin_sent = true;
            self.fin_high = true;
            self.timers.set_by(Alarm::Probe, now + self.settings.liveness.busy);
            return Some(Outgoing::Control(Control::Fin { off: self.sent }));
        }
        if self.phase != Phase::Open { self.next(now, max) } else { None }
    }

    /// The bytes of a DATA frame from [`next`](Pipe::next), or the rest of it. The peer may have
    /// acknowledged the start of a frame whose rest is not written yet; the rest is always here.
    pub fn bytes(&self, off: u64, len: usize) -> Slices<'_> {
        self.replay.since(off, len).expect("what is not on the carrier yet cannot be acknowledged")
    }

    /// Whether [`next`](Pipe::next) could have something: cheap enough to ask after every input.
    pub fn wants_to_send(&self) -> bool {
        let Link::Attached(carrier) = &self.link else { return false };
        let asked = carrier.pong_due.is_some() || carrier.ping_due.is_some();
        asked
            || match self.phase {
                Phase::Open => {
                    let said = if self.broken.is_some() { carrier.reset_sent } else { carrier.fin_sent };
                    carrier.ack_due
                        || carrier.go_away_due.is_some()
                        || self.sendable() > 0
                        || (self.finished && !said && self.sent == self.replay.end())
                }
                Phase::Ending(_) => !carrier.reset_sent,
                Phase::Over(_) => false,
            }
    }

    /// How many bytes the peer would take that no DATA frame bears yet.
    pub fn sendable(&self) -> u64 {
        self.limit.min(self.replay.end()).saturating_sub(self.sent)
    }

    /// What an ACK or a PONG from the peer says.
    pub(super) fn acked(&mut self, recv: u64, limit: u64, pool: &mut Pool) -> Result<(), Violation> {
        let fin_sent = matches!(&self.link, Link::Attached(carrier) if carrier.fin_sent);
        let sent = self.sent + u64::from(fin_sent);
        if recv > sent {
            return Err(Violation::FromTheFuture { peer_has: recv, sent });
        }
        self.peer_has(recv, pool);
        self.limit = self.limit.max(limit);
        Ok(())
    }

    /// The peer has everything below `recv`, which is at most what was sent.
    pub(super) fn peer_has(&mut self, recv: u64, pool: &mut Pool) {
        let end = self.replay.end();
        self.fin_acked |= self.finished && self.fin_high && recv > end;
        self.replay.ack(recv.min(end), pool).expect("cut to the end");
    }
}
