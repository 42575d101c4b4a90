//! What belongs to one pipe: its local side, its carrier, and when to look at it next.

use super::*;

impl Local {
    pub(super) fn socket(socket: Socket) -> Local {
        Local::Socket(LocalSocket {
            socket,
            readable: true,
            flows: false,
            writable: true,
            write_ended: false,
            deaf: false,
        })
    }
}

impl Bearer {
    /// Bears `pipe`, which was attached a moment ago.
    pub(super) fn new(
        now: Moment,
        pipe: &Pipe,
        carrier: Carrier,
        decoder: Decoder,
        peer: CarrierPeer,
    ) -> Bearer {
        Bearer {
            epoch: pipe.epoch(),
            carrier,
            outbox: Outbox::new(),
            decoder,
            readable: true,
            ends: false,
            writable: true,
            watched: Watched::ALL,
            sight: None,
            lost: None,
            still: false,
            peer,
            since: now,
        }
    }
}

impl Local {
    /// Writes bytes that nothing waits in front of; gives how many went.
    pub(super) fn write_now(&mut self, pieces: &[&[u8]]) -> usize {
        let Local::Socket(local) = self else { return 0 };
        if !local.writable || local.deaf {
            return 0;
        }
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        match local.socket.write_vectored(&slices) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                local.writable = false;
                0
            }
            // Found again, and handled, by whoever writes what is held.
            Err(_) => 0,
        }
    }
}

impl ServerSide {
    /// The carrier is gone, and its client has yet to come back.
    pub(super) fn is_without_carrier(&self, now: Moment, shared: &Shared, why: &str) {
        shared.figures.away();
        if let Some(evict) =
            shared.ledger.away(self.id, &self.principal, now, shared.settings.limits.detached)
        {
            shared.evict(evict);
        }
        (shared.notes)(&Note::Detached { id: self.id, why: why.to_owned() });
    }
}

impl Live {
    /// A pipe that no carrier bears yet.
    pub(super) fn new(serial: u64, pipe: Pipe, local: Local, role: Role, born: rt::Wall) -> Live {
        Live {
            serial,
            window: pipe.window(),
            pipe,
            bearer: None,
            local,
            role,
            alarm: None,
            detached_at: None,
            stood: (0, 0),
            goodbye_by: None,
            dropped_at: None,
            born,
            up: 0,
            down: 0,
            blocked_since: None,
            duplicates: 0,
            held: 0,
            is_pressed: false,
            guest_at: None,
            is_watched: false,
            stream: 0,
            looked: (Moment::ZERO, 0),
            was_full: false,
        }
    }

    /// Bytes came from the peer, whatever they are.
    pub(super) fn heard(&mut self, now: Moment) {
        self.pipe.heard(now);
        if let Role::Server(server) = &mut self.role {
            server.unconfirmed = None;
        }
    }

    /// A carrier was lost: whether the pipe got further since the last time. What a carrier brought may be
    /// acknowledged in the handshake of the next.
    pub(super) fn got_further(&mut self) -> bool {
        let stand = (self.pipe.received(), self.pipe.written().1);
        std::mem::replace(&mut self.stood, stand) != stand
    }

    /// Reading from the local side failed, or the system noticed that it is broken.
    pub(super) fn local_failed(&mut self, error: &io::Error, pool: &mut Pool) {
        if let Local::Socket(local) = &mut self.local {
            local.deaf = true;
        }
        let text = format!("the connection behind the pipe broke: {error}");
        self.pipe.break_off(End::new(Ending::TargetReset, text), pool);
    }

    /// Over for the peer, and the local side has everything it will get.
    pub(super) fn is_finished(&self) -> bool {
        let Some(end) = self.pipe.over_with() else { return false };
        if self.pipe.unread() == 0 {
            return true;
        }
        match (&self.local, end.code) {
            (Local::Socket(local), Ending::Eof) => local.deaf,
            // What can be delivered at once was; the rest is lost with the connection, as with TCP.
            (Local::Socket(_), _) => true,
            (Local::Duct(_), code) => code != Ending::Eof && code != Ending::TargetReset,
        }
    }

    /// Counts what is new since the last time.
    pub(super) fn count(&mut self, now: Moment, shared: &Shared) {
        let duplicates = self.pipe.counts().duplicates;
        if duplicates > self.duplicates {
            shared.figures.duplicates(duplicates - std::mem::replace(&mut self.duplicates, duplicates));
        }
        if let Some(trip) = self.pipe.take_round_trip() {
            shared.figures.round_trip(trip);
        }
        if self.pipe.is_full() {
            self.blocked_since.get_or_insert(now);
        } else if let Some(since) = self.blocked_since.take() {
            shared.figures.blocked(now.since(since));
        }
    }

    pub(super) fn next_alarm(&self, shared: &Shared) -> Option<Moment> {
        let role = match &self.role {
            Role::Server(_) => None,
            Role::Client(client) => {
                let replace_at = client.replace_at.filter(|_| self.bearer.is_some());
                Moment::earliest(client.redial_at, replace_at)
            }
        };
        let over = self.pipe.over_with().is_some();
        let dropped = self.dropped_at.filter(|_| self.pipe.ending().is_none()).map(|since| since + LINGER);
        let guests = self.guest_at.map(|at| at + GUEST_WAIT);
        let alarms = [self.pipe.deadline(), role, self.goodbye_by, dropped, guests, self.expires_at(shared)];
        alarms.into_iter().flatten().min().filter(|_| !over)
    }

    /// When it is given up if nothing happens.
    pub(super) fn expires_at(&self, shared: &Shared) -> Option<Moment> {
        match &self.role {
            Role::Server(server) => {
                let unconfirmed = server.unconfirmed.map(|since| since + CONFIRM_WAIT);
                let grace = match self.pipe.is_done() {
                    // Only the goodbye is missing. Whoever comes for it later hears how it ended.
                    true => Some(shared.settings.grace.map_or(LINGER, |grace| grace.min(LINGER))),
                    // Also where the target has broken off: its last output, and why, are still to be told.
                    false => shared.settings.grace,
                };
                let detached = self.detached_at.zip(grace).map(|(since, grace)| since + grace);
                Moment::earliest(unconfirmed, detached)
            }
            Role::Client(client) => {
                let budget = if client.known.is_none() { client.patience } else { client.grace };
                budget.filter(|_| self.bearer.is_none()).map(|budget| client.lost_at + budget)
            }
        }
    }

    pub(super) fn info(&self, now: Moment) -> Option<PipeInfo> {
        let Role::Server(server) = &self.role else { return None };
        Some(PipeInfo {
            id: server.id,
            attached: self.bearer.is_some(),
            detached_for: self.detached_at.map(|since| now.since(since)),
            principal: server.principal.clone(),
            target: server.target.clone(),
            peer: self.bearer.as_ref().map(|bearer| bearer.peer.clone()),
            created_at: self.born,
            epoch: self.pipe.epoch(),
            resumes: self.pipe.counts().resumes,
            replayed: self.pipe.counts().replayed,
            duplicates: self.pipe.counts().duplicates,
            buffered: self.pipe.buffered(),
            bytes_to_target: self.down,
            bytes_from_target: self.up,
            round_trip: self.pipe.round_trip(),
        })
    }
}
