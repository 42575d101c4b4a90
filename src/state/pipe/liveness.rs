//! When a carrier is asked whether it lives, and when it is taken for dead.

use std::time::Duration;

use super::{Link, Pipe};
use crate::state::time::Moment;
use crate::state::timers::Key;

/// How soon a dead carrier is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Ask after hearing nothing for this long.
    pub idle: Duration,
    /// Dead when the question stays unanswered for this long.
    pub idle_dead: Duration,
    /// The same while something is not acknowledged, which is when it hurts.
    pub busy: Duration,
    /// The same while something is not acknowledged.
    pub busy_dead: Duration,
}

impl Liveness {
    /// 15 s and 10 s; 3 s and 3 s with unacknowledged bytes. A balancer that reaps idle links does
    /// so after 30 s at the earliest.
    pub const NORMAL: Liveness = Liveness {
        idle: Duration::from_secs(15),
        idle_dead: Duration::from_secs(10),
        busy: Duration::from_secs(3),
        busy_dead: Duration::from_secs(3),
    };
    /// For somebody who waits in front of a screen: 2 s and 3 s.
    pub const FAST: Liveness = Liveness {
        idle: Duration::from_secs(2),
        idle_dead: Duration::from_secs(3),
        busy: Duration::from_secs(1),
        busy_dead: Duration::from_secs(2),
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    /// Something received was not acknowledged yet.
    Ack,
    /// The carrier may have been silent for long enough to ask.
    Probe,
    /// The answer may be overdue.
    Dead,
}

impl Key<3> for Alarm {
    const ALL: [Alarm; 3] = [Alarm::Ack, Alarm::Probe, Alarm::Dead];
    fn index(self) -> usize {
        self as usize
    }
}

impl Pipe {
    /// Bytes arrived, or a piece of a frame: life.
    pub fn heard(&mut self, now: Moment) {
        if let Link::Attached(carrier) = &mut self.link {
            carrier.heard = now;
            if let Some(welcomed) = carrier.welcomed.take() {
                self.round_trip = Some(now.since(welcomed));
                self.trip_is_new = true;
            }
        }
    }

    /// When the carrier that bears the pipe was last heard.
    pub fn heard_at(&self) -> Option<Moment> {
        match &self.link {
            Link::Attached(carrier) => Some(carrier.heard),
            Link::Detached => None,
        }
    }

    /// When to call [`alarm`](Pipe::alarm).
    pub fn deadline(&self) -> Option<Moment> {
        self.timers.next()
    }

    /// Time has passed. Gives the epoch of a carrier that must be taken for dead: close it, and
    /// [`detach`](Pipe::detach).
    pub fn alarm(&mut self, now: Moment) -> Option<u64> {
        while let Some(alarm) = self.timers.due(now) {
            let (quiet, within) = (self.quiet_for(), self.dead_after());
            let Link::Attached(carrier) = &mut self.link else { continue };
            match alarm {
                Alarm::Ack => carrier.ack_due = true,
                // The question is out already; `Dead` sets this again.
                Alarm::Probe if self.timers.get(Alarm::Dead).is_some() => {}
                Alarm::Probe if carrier.heard + quiet > now => {
                    self.timers.set(Alarm::Probe, carrier.heard + quiet)
                }
                Alarm::Probe => self.probe(now, within),
                Alarm::Dead if carrier.heard <= carrier.probed => return Some(carrier.epoch),
                Alarm::Dead => self.timers.set(Alarm::Probe, carrier.heard + quiet),
            }
        }
        None
    }

    /// Asks now, and takes the carrier for dead unless something is heard `within`: for a machine
    /// that just woke from sleep, or whose address changed.
    pub fn probe(&mut self, now: Moment, within: Duration) {
        let Link::Attached(carrier) = &mut self.link else { return };
        carrier.ping_due = Some(self.next_token);
        carrier.probed = now;
        self.next_token += 1;
        self.timers.stop(Alarm::Probe);
        self.timers.set(Alarm::Dead, now + within);
    }

    pub(super) fn quiet_for(&self) -> Duration {
        if self.is_owed() { self.settings.liveness.busy } else { self.settings.liveness.idle }
    }

    fn dead_after(&self) -> Duration {
        if self.is_owed() { self.settings.liveness.busy_dead } else { self.settings.liveness.idle_dead }
    }

    /// Whether the peer has yet to acknowledge something: what was put on this carrier, or what would be if it had
    /// said that there is room, which may have been lost.
    fn is_owed(&self) -> bool {
        !self.replay.is_empty() || (self.fin_high && !self.fin_acked)
    }

    /// A PONG came.
    pub(super) fn answered(&mut self, now: Moment, token: u64) {
        if let Link::Attached(carrier) = &mut self.link
            && let Some((asked, at)) = carrier.asked
            && asked == token
        {
            carrier.asked = None;
            self.round_trip = Some(now.since(at));
            self.trip_is_new = true;
        }
    }
}
