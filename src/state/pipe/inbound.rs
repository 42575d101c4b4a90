//! What one end receives: what the carrier brings, what the local side takes, and what the peer hears of it.

use std::time::Duration;

use super::liveness::Alarm;
use super::{Link, Phase, Pipe, Told, Violation};
use crate::state::replay::{Pool, Replay, Slices};
use crate::state::time::Moment;

/// Acknowledge at the latest after this many new bytes...
const ACK_BYTES: u64 = 1024 * 1024;
/// ...or after this long.
const ACK_WAIT: Duration = Duration::from_millis(25);

impl Pipe {
    /// What was received and not taken yet.
    pub fn readable(&self, max: usize) -> Slices<'_> {
        self.inbound.since(self.inbound.acked(), max).expect("the oldest byte is there")
    }

    /// How many bytes were received and not taken yet.
    pub fn unread(&self) -> u64 {
        self.inbound.len()
    }

    /// The local side took `count` received bytes.
    pub fn took(&mut self, now: Moment, count: u64, pool: &mut Pool) {
        if count == 0 {
            return;
        }
        let upto = self.inbound.acked() + count;
        self.inbound.ack(upto, pool).expect("no more is taken than was received");
        self.owe_ack(now);
    }

    /// The local side takes received bytes into `to`, as many as it has room for; gives how many.
    pub fn give_to(&mut self, now: Moment, to: &mut Replay, pool: &mut Pool) -> u64 {
        let count = to.pull(&mut self.inbound, pool);
        if count > 0 {
            self.owe_ack(now);
        }
        count
    }

    /// Whether the peer's direction has ended and everything before was taken.
    pub fn at_end(&self) -> bool {
        self.peer_fin && self.inbound.is_empty()
    }

    /// Bytes of a DATA frame, or the piece of it that is here. Gives those that are new; the caller
    /// must deliver them in order and call [`took`](Pipe::took), or [`hold`](Pipe::hold) them: they
    /// count as received. Bytes from any but the newest carrier are not new.
    pub fn data<'a>(&mut self, epoch: u64, off: u64, bytes: &'a [u8]) -> Result<&'a [u8], Violation> {
        self.data_behind(0, epoch, off, bytes)
    }

    /// The same behind `pending` fresh bytes that are neither held nor passed yet.
    pub fn data_behind<'a>(
        &mut self,
        pending: u64,
        epoch: u64,
        off: u64,
        bytes: &'a [u8],
    ) -> Result<&'a [u8], Violation> {
        if self.attached() != Some(epoch) || self.phase != Phase::Open {
            return Ok(&[]);
        }
        let end = off.checked_add(bytes.len() as u64).ok_or(Violation::Overflow)?;
        let expected = self.inbound.end() + pending;
        if off > expected {
            return Err(Violation::Gap { expected, came: off });
        }
        if end > self.told.limit {
            return Err(Violation::OverLimit { limit: self.told.limit, came: end });
        }
        let known = (expected - off).min(bytes.len() as u64);
        self.counts.duplicates += known;
        let fresh = &bytes[known as usize..];
        if self.peer_fin && !fresh.is_empty() {
            return Err(Violation::AfterFin { fin: expected, came: end });
        }
        Ok(fresh)
    }

    /// Room for the bytes that come next on a carrier, from `off` on, so that they need not be copied: read
    /// into it, then say how many [`arrived`](Pipe::arrived). At least `min` bytes and at most `max`; nothing
    /// where such bytes would not be new, allowed and for somebody, in one piece: [`data`](Pipe::data) decides
    /// about those.
    pub fn arriving(
        &mut self,
        epoch: u64,
        off: u64,
        (min, max): (usize, usize),
        pool: &mut Pool,
    ) -> Option<&mut [u8]> {
        if !self.expects(epoch, off) {
            return None;
        }
        let allowed = usize::try_from(self.told.limit.saturating_sub(off)).unwrap_or(usize::MAX);
        let len = self.inbound.space(pool).len().min(allowed).min(max);
        if len < min {
            self.inbound.tidy(pool);
            return None;
        }
        Some(&mut self.inbound.space(pool)[..len])
    }

    /// Whether `count` bytes that come next on a carrier, from `off` on, may go to the local side without being
    /// kept: tell it with [`passed`](Pipe::passed).
    pub fn may_pass(&self, epoch: u64, off: u64, count: usize) -> bool {
        let allowed = self.told.limit.saturating_sub(off);
        self.expects(epoch, off) && self.inbound.is_empty() && count as u64 <= allowed
    }

    /// Whether bytes from `off` on would be new and for somebody.
    fn expects(&self, epoch: u64, off: u64) -> bool {
        let open = self.attached() == Some(epoch) && self.phase == Phase::Open;
        open && self.broken.is_none() && !self.peer_fin && off == self.inbound.end()
    }

    /// The first `count` bytes of what [`arriving`](Pipe::arriving) gave have come.
    pub fn arrived(&mut self, now: Moment, count: usize, pool: &mut Pool) {
        self.inbound.commit(count, pool);
        if count > 0 {
            self.owe_ack(now);
        }
    }

    /// Keeps fresh bytes for the local side, which takes them when it can.
    pub fn hold(&mut self, now: Moment, fresh: &[u8], pool: &mut Pool) {
        if self.phase != Phase::Open || fresh.is_empty() {
            return;
        }
        if self.broken.is_some() {
            return self.passed(now, fresh.len(), pool);
        }
        let taken = self.inbound.push(fresh, pool);
        debug_assert_eq!(taken, fresh.len(), "what is within the limit fits the window");
        self.owe_ack(now);
    }

    /// Fresh bytes went to the local side without being kept.
    pub fn passed(&mut self, now: Moment, count: usize, pool: &mut Pool) {
        self.inbound.skip(count as u64, pool);
        self.owe_ack(now);
    }

    /// A FIN came: the peer's direction ends at `off`.
    pub(super) fn peer_ends(&mut self, off: u64) -> Result<(), Violation> {
        let expected = self.inbound.end();
        if off > expected {
            return Err(Violation::Gap { expected, came: off });
        }
        if off < expected {
            return Err(Violation::AfterFin { fin: off, came: expected });
        }
        off.checked_add(1).ok_or(Violation::Overflow)?;
        self.peer_fin = true;
        self.ack_at_once();
        Ok(())
    }

    /// What this side has: everything below. Counts the end of the peer's direction as one. It is
    /// final for a carrier only once nothing is accepted from the one before.
    pub fn received(&self) -> u64 {
        self.inbound.end() + u64::from(self.peer_fin)
    }

    /// Whether [`received`](Pipe::received) counts the end of the peer's direction.
    pub fn peer_finished(&self) -> bool {
        self.peer_fin
    }

    /// Up to where the peer may send now.
    pub fn allows(&self) -> u64 {
        self.inbound.acked().saturating_add(self.settings.window).max(self.told.limit)
    }

    /// What an ACK or a handshake says, and remembers as said.
    pub fn tell(&mut self) -> (u64, u64) {
        self.told = Told { recv: self.received(), limit: self.allows() };
        self.timers.stop(Alarm::Ack);
        (self.told.recv, self.told.limit)
    }

    fn ack_at_once(&mut self) {
        if let Link::Attached(carrier) = &mut self.link {
            carrier.ack_due = true;
        }
    }

    /// Something was received or taken: the peer hears of it now, soon, or when it matters.
    pub(super) fn owe_ack(&mut self, now: Moment) {
        let Link::Attached(carrier) = &mut self.link else { return };
        let step = (self.settings.window / 4).min(ACK_BYTES);
        let fresh = self.inbound.end() - self.told.recv.min(self.inbound.end());
        let allows = self.inbound.acked().saturating_add(self.settings.window);
        let wider = allows.saturating_sub(self.told.limit);
        let starving = self.told.limit - self.inbound.end() < step;
        if fresh >= step || (wider >= step && starving) || (wider >= 2 * step) {
            carrier.ack_due = true;
        } else if fresh > 0 || (wider > 0 && starving) {
            self.timers.set_by(Alarm::Ack, now + ACK_WAIT);
        }
    }
}
