//! Bytes arrive and are understood.

use super::Links;
use super::one::Incoming;
use crate::wire::link::Happened;

impl Links {
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
    pub(super) fn go_on(&mut self, slot: usize) {
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
    pub(super) fn understand(&mut self, slot: usize, bytes: &[u8]) -> usize {
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
    pub(super) fn understand_one(&mut self, slot: usize, bytes: &[u8]) -> Option<usize> {
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
                if let Some(until) =
                    link.pace.as_mut().and_then(|p| p.spend(self.now, messages.len(), bytes.len()))
                {
                    // Not cut: who says too much at once is heard later, and feels it.
                    link.slow_until = until;
                    self.port.counts.slowed.add(1);
                }
                let (id, heard) = (link.id, !messages.is_empty());
                if heard && outcome.is_err() {
                    // Nothing more is read, and nothing is said but the answers to what came before.
                    link.incoming = Incoming::Ignored;
                }
                for message in messages.drain(..) {
                    self.heard(slot, message);
                }
                self.scratch = messages;
                if let Err(violation) = outcome {
                    if heard {
                        self.broken.push((id, violation));
                        return Some(bytes.len());
                    }
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

    pub(super) fn emit(&mut self, slot: usize, what: Happened) {
        let Some(link) = self.slots[slot].as_deref() else { return };
        if let Some(owner) = &link.owner {
            self.outboxes.push(owner, link.id, what);
        }
    }
}
